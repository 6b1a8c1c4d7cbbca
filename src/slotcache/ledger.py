"""The private port between the managers and a table of holds.

A manager hands the table one unit of work; the table runs it on a `Ledger` in one transaction, and
tells which lists that changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from slotcache.hook import Hook
from slotcache.lifecycle import Hold, HoldState
from slotcache.protocols import Scope, SlotId

__all__ = [
    "AsyncHoldTable",
    "AwaitedTable",
    "Change",
    "DueHold",
    "HoldRequest",
    "HoldTable",
    "Ledger",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Change(Generic[T_co]):
    """What a unit of work came to.

    Attributes:
        value: The answer for the caller.
        scopes: The scopes in which a hold or a slot changed state, each once; none of them: what
            was written shows in no list. None: nothing was written that has to last.
    """

    value: T_co
    scopes: tuple[Scope | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """What somebody asks for: all of it, or nothing.

    Attributes:
        places: How many places of which slots, at least one of each.
        ttl: For how many seconds.
        owner: For whom; None: nobody said.
        idempotency_key: Makes the same request again find the holds that the first one made; None:
            each makes new ones.
        replaces: Live holds of the owner that are given up for it.
    """

    places: Mapping[SlotId, int]
    ttl: float
    owner: str | None = None
    idempotency_key: str | None = None
    replaces: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class DueHold:
    """A hold whose time is over, though nobody has written that down."""

    id: UUID
    slot_id: SlotId


class Ledger(Protocol):
    """The table inside one transaction. A refusal raises, and the transaction is rolled back."""

    def create(self, request: HoldRequest) -> Change[tuple[Hold, ...]]:
        """Promise places, if so many are free: a hold for each slot, in the order asked for."""

    def confirm(self, hold_id: UUID, *, reference: str | None, revives: bool) -> Change[Hold]:
        """Make the promise good; if it `revives`, also one that expired, if there is room."""

    def cancel(self, hold_id: UUID, *, quantity: int | None, restock: bool) -> Change[Hold]:
        """Take the promise, or the places sold under it, back: all of it, or so many places."""

    def extend(self, hold_id: UUID, ttl: float, *, max_lifetime: float) -> Change[Hold]:
        """Let a live hold end later: `ttl` from now, at most `max_lifetime` after it was made."""

    def get(self, hold_id: UUID) -> Hold:
        """Return the hold as it is now."""

    def find(
        self, *, slot_id: SlotId | None, owner: str | None, state: HoldState | None, limit: int
    ) -> list[Hold]:
        """Return the latest holds of which all that is not None is true."""

    def set_capacity(self, slot_id: SlotId, capacity: int) -> Change[None]:
        """Resize a slot, if what it has sold and promised still fits."""

    def due(self, limit: int) -> Sequence[DueHold]:
        """Return the holds that are due the longest, locking nothing."""

    def expire(self, due: Sequence[DueHold]) -> Change[int]:
        """Write down those that are still due and in nobody else's hands; return how many."""

    def ended(self, older_than: float, limit: int) -> Sequence[UUID]:
        """Return holds that ended so many seconds ago, the first to end first, locking nothing."""

    def purge(self, ended: Sequence[UUID]) -> Change[int]:
        """Forget these holds, and their keys; return how many there still were."""


class HoldTable(Protocol):
    """A table of holds, as a manager sees it."""

    @property
    def id_type(self) -> type[SlotId]:
        """The type of its slot ids."""

    def _within(self, transaction: object, hook: Hook) -> HoldTable:
        """Return the same table inside a transaction of its user's.

        Of that table, `changed` stays empty: it tells the hook itself when that is committed.
        """

    def _read(self, work: Callable[[Ledger], T], *, lock_wait: float) -> T:
        """Run work that changes nothing."""

    def _create(
        self, request: HoldRequest, changed: list[Scope | None], *, lock_wait: float
    ) -> tuple[Hold, ...]:
        """As `_transact` with `Ledger.create`, by a shorter way where there is one."""

    def _transact(
        self,
        work: Callable[[Ledger], Change[T]],
        changed: list[Scope | None],
        *,
        lock_wait: float,
    ) -> T:
        """Run work in one transaction and commit it; the connection is given back on return.

        The work is run again if the database gave the transaction up in favour of another.

        Before the commit is sent, the scopes of the change are added to `changed`; they are
        removed again if the database says that it did not commit. So when this is left, by
        whatever exit, `changed` holds what may have become visible to others (P8).
        """


class AsyncHoldTable(Protocol):
    """`HoldTable` on asyncio. Work is not: it runs on a `Ledger` that waits by itself."""

    @property
    def id_type(self) -> type[SlotId]:
        """As `HoldTable.id_type`."""

    def _within(self, transaction: object, hook: Hook) -> AsyncHoldTable:
        """As `HoldTable._within`."""

    def _here(self) -> AsyncHoldTable:
        """Return what it is in this task, also if what is done with it is done in another one."""

    async def _read(self, work: Callable[[Ledger], T], *, lock_wait: float) -> T:
        """As `HoldTable._read`."""

    async def _create(
        self, request: HoldRequest, changed: list[Scope | None], *, lock_wait: float
    ) -> tuple[Hold, ...]:
        """As `HoldTable._create`."""

    async def _transact(
        self,
        work: Callable[[Ledger], Change[T]],
        changed: list[Scope | None],
        *,
        lock_wait: float,
    ) -> T:
        """As `HoldTable._transact`; a cancellation is one of the exits."""


class AwaitedTable:
    """A `HoldTable` as an async port.

    Args:
        table: The table.
    """

    def __init__(self, table: HoldTable) -> None:
        self._table = table

    @property
    def id_type(self) -> type[SlotId]:
        """The type of its slot ids."""
        return self._table.id_type

    async def _call(self, method: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call what may wait in its own way; as it stands, in line: it never suspends."""
        return method(*args, **options)

    def _within(self, transaction: object, hook: Hook) -> AsyncHoldTable:
        return AwaitedTable(self._table._within(transaction, hook))

    def _here(self) -> AsyncHoldTable:
        return self

    async def _read(self, work: Callable[[Ledger], T], *, lock_wait: float) -> T:
        return await self._call(self._table._read, work, lock_wait=lock_wait)

    async def _create(
        self, request: HoldRequest, changed: list[Scope | None], *, lock_wait: float
    ) -> tuple[Hold, ...]:
        return await self._call(self._table._create, request, changed, lock_wait=lock_wait)

    async def _transact(
        self,
        work: Callable[[Ledger], Change[T]],
        changed: list[Scope | None],
        *,
        lock_wait: float,
    ) -> T:
        return await self._call(self._table._transact, work, changed, lock_wait=lock_wait)
