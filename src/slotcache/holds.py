"""Holds: places promised for a while, then confirmed, given up or expired.

A manager checks what it is asked, hands the table one unit of work for one transaction, and
runs the hook when that transaction is over. What a unit of work does to the rows is the
table's: this module knows no SQL.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from slotcache.lifecycle import Hold
from slotcache.policy import HoldPolicy, seconds
from slotcache.protocols import InvalidationHook, Scope, SlotId

__all__ = ["HoldManager"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_log = logging.getLogger("slotcache")

_MAX_OWNER = 255
_MAX_BATCH = 10_000
_INT64 = 2**63


@dataclass(frozen=True, slots=True)
class Change(Generic[T_co]):
    """What a unit of work came to.

    Attributes:
        value: The answer for the caller.
        scopes: The scopes in which a hold or a slot changed state, each once. None at all: it
            was a replay, and nothing was written that has to last.
    """

    value: T_co
    scopes: tuple[Scope | None, ...] = ()


@dataclass(frozen=True, slots=True)
class DueHold:
    """A hold whose time is over, though nobody has written that down."""

    id: UUID
    slot_id: SlotId


class Ledger(Protocol):
    """The table inside one transaction. A refusal raises, and the transaction is rolled back."""

    def create(
        self, slot_id: SlotId, quantity: int, *, ttl: float, owner: str | None
    ) -> Change[Hold]:
        """Promise `quantity` places, if so many are free."""

    def confirm(self, hold_id: UUID) -> Change[Hold]:
        """Make the promise good."""

    def cancel(self, hold_id: UUID) -> Change[Hold]:
        """Take the promise, or the places sold under it, back."""

    def get(self, hold_id: UUID) -> Hold:
        """Return the hold as it is now."""

    def due(self, limit: int) -> Sequence[DueHold]:
        """Return the holds that are due the longest, locking nothing."""

    def expire(self, due: Sequence[DueHold]) -> Change[int]:
        """Write down those that are still due; return how many."""


class HoldTable(Protocol):
    """The private port between the managers and a table of holds."""

    @property
    def id_type(self) -> type[SlotId]:
        """The type of its slot ids."""

    def _read(self, work: Callable[[Ledger], T], *, lock_wait: float) -> T:
        """Run work that changes nothing."""

    def _transact(
        self,
        work: Callable[[Ledger], Change[T]],
        changed: list[Scope | None],
        *,
        lock_wait: float,
    ) -> T:
        """Run work in one transaction and commit it; the connection is given back on return.

        Before the commit is sent, the scopes of the change are added to `changed`; they are
        removed again if the database says that it did not commit. So when this is left, by
        whatever exit, `changed` holds what may have become visible to others (P8).
        """


class HoldManager:
    """Takes, confirms, cancels and expires holds, and never oversells (P6).

    Make one for each table when the application starts, and use it from all threads. Every
    operation is one transaction of its own, finished when the call returns: whatever it raises
    except `BackendError`, nothing was changed.

    Args:
        slots: The table, for example `slotcache.sql.SqlSlots`.
        on_change: Called with the scope whose list changed, after the commit and with no
            connection in hand, once for each transaction and scope (P8); usually
            `SlotAvailabilityService.clear_availability_cache`. Write None if nothing caches
            the list. What it raises is logged and counted, and the call that made the change
            succeeds.
        policy: How long holds last, and how long to wait for a locked slot.

    Raises:
        TypeError: `on_change` cannot be called, or is asynchronous.

    Examples:
        >>> from slotcache import HoldManager
        >>> from slotcache.sql import SqlSlots
        >>> slots = SqlSlots.sqlite(":memory:")
        >>> slots.create_tables()
        >>> slots.add([(1, 30)])
        >>> holds = HoldManager(slots, on_change=None)
        >>> hold = holds.create(1, quantity=2)
        >>> holds.confirm(hold.id).state
        <HoldState.CONFIRMED: 'confirmed'>
    """

    def __init__(
        self,
        slots: HoldTable,
        *,
        on_change: InvalidationHook | None,
        policy: HoldPolicy = HoldPolicy(),
    ) -> None:
        if not hasattr(slots, "_transact"):
            raise TypeError(f"slots must be a table such as SqlSlots(engine), not {slots!r:.80}")
        if on_change is not None:
            _check_hook(on_change)
        self._slots = slots
        self._on_change = on_change
        self._policy = policy
        self._hook_failures = 0

    @property
    def hook_failures(self) -> int:
        """How often the hook has raised: each time a list may have been shown for a `ttl` (P8)."""
        return self._hook_failures

    def create(
        self,
        slot_id: SlotId,
        quantity: int = 1,
        *,
        ttl: float | None = None,
        owner: str | None = None,
    ) -> Hold:
        """Promise places to somebody for a while.

        Args:
            slot_id: The slot, of the type that the table's ids have.
            quantity: How many places, at least 1.
            ttl: Seconds until the hold expires by itself; None: the policy's.
            owner: Whom it belongs to, up to 255 characters of your own choice.

        Returns:
            The new hold, HELD.

        Raises:
            SlotFull: Fewer places are free; it says how many.
            SlotNotFound: There is no such slot, or it is not open.
            Busy: The slot stayed locked for `lock_wait` seconds.
            BackendError: The database failed.
        """
        self._check_slot_id(slot_id)
        _check_count("quantity", quantity)
        _check_owner(owner)
        lasting = self._lasting(ttl)
        return self._change(
            lambda ledger: ledger.create(slot_id, quantity, ttl=lasting, owner=owner)
        )

    def confirm(self, hold_id: UUID) -> Hold:
        """Make a live hold's places its owner's for good.

        Returns:
            The hold, CONFIRMED; `replayed` if it was so already (P7).

        Raises:
            HoldExpired: It was not confirmed in time, whether or not anybody wrote that down.
            IllegalTransition: It was cancelled.
            HoldNotFound: There is no such hold.
            SlotFull: The row of the slot was edited by others and has no place left for it.
            Busy: The slot stayed locked for `lock_wait` seconds.
            BackendError: The database failed.
        """
        _check_hold_id(hold_id)
        return self._change(lambda ledger: ledger.confirm(hold_id))

    def cancel(self, hold_id: UUID) -> Hold:
        """Give a hold's places back to everybody, also those of a confirmed one.

        Returns:
            The hold, CANCELLED. `replayed` if it had ended before: then it is returned as it
            is, CANCELLED or EXPIRED (P7).

        Raises:
            HoldNotFound: There is no such hold.
            Busy: The slot stayed locked for `lock_wait` seconds.
            BackendError: The database failed.
        """
        _check_hold_id(hold_id)
        return self._change(lambda ledger: ledger.cancel(hold_id))

    def get(self, hold_id: UUID) -> Hold:
        """Return a hold as it is now: EXPIRED from the instant at which it is due.

        Raises:
            HoldNotFound: There is no such hold.
            BackendError: The database failed.
        """
        _check_hold_id(hold_id)
        return self._read(lambda ledger: ledger.get(hold_id))

    def expire_due(self, limit: int = 500) -> int:
        """Write EXPIRED on holds that are due, those due the longest first.

        Due holds count as expired with or without it, and their places are free: it only keeps
        the table tidy. Any number of processes may do it at once.

        Args:
            limit: How many at most, from 1 to 10,000.

        Returns:
            How many were written; fewer than `limit`: no more were due.

        Raises:
            Busy: Their slots stayed locked for `lock_wait` seconds.
            BackendError: The database failed.
        """
        _check_count("limit", limit)
        if limit > _MAX_BATCH:
            raise ValueError(f"limit must be at most {_MAX_BATCH}, not {limit}: call it repeatedly")
        due = self._read(lambda ledger: ledger.due(limit))
        return self._change(lambda ledger: ledger.expire(due)) if due else 0

    def _read(self, work: Callable[[Ledger], T]) -> T:
        return self._slots._read(work, lock_wait=self._policy.lock_wait)

    def _change(self, work: Callable[[Ledger], Change[T]]) -> T:
        changed: list[Scope | None] = []
        try:
            return self._slots._transact(work, changed, lock_wait=self._policy.lock_wait)
        finally:
            # Also when the answer to the commit was lost, or a signal cut in after it (P8).
            for scope in changed:
                self._tell(scope)

    def _tell(self, scope: Scope | None) -> None:
        """Run the hook, which cannot make a change that is committed look failed."""
        if self._on_change is None:
            return
        try:
            answer = self._on_change(scope)
            if inspect.iscoroutine(answer):
                answer.close()
                raise TypeError("the hook returned a coroutine, which nobody here can await")
        except Exception:
            self._hook_failures += 1
            _log.exception(
                "the on_change hook failed for scope %r: its cached list is out of date "
                "until its ttl ends",
                scope,
            )

    def _check_slot_id(self, slot_id: object) -> None:
        expected = self._slots.id_type
        if isinstance(slot_id, bool) or not isinstance(slot_id, expected):
            raise TypeError(
                f"slot_id must be {expected.__name__}, as in the table, not {slot_id!r}"
            )
        if isinstance(slot_id, int) and not -_INT64 <= slot_id < _INT64:
            raise ValueError(f"slot_id must be an int of 64 bits, not {slot_id}")

    def _lasting(self, ttl: object) -> float:
        """Return the hold's life in seconds, checked against the longest allowed."""
        if ttl is None:
            return self._policy.ttl
        number = seconds("ttl", ttl, above_zero=True)
        longest = self._policy.max_lifetime
        if number > longest:
            raise ValueError(
                f"ttl={number:g} is longer than the policy's max_lifetime={longest:g}: "
                "shorten it, or make HoldPolicy(max_lifetime=...) longer"
            )
        return number


def _check_hook(on_change: object) -> None:
    if not callable(on_change):
        raise TypeError(
            f"on_change must be callable with a scope, not {on_change!r}: "
            "write None if nothing caches the list"
        )
    if any(map(inspect.iscoroutinefunction, (on_change, type(on_change).__call__))):
        raise TypeError(
            f"on_change={on_change!r} is asynchronous, and this manager cannot await it: "
            "give it a plain function"
        )


def _check_hold_id(hold_id: object) -> None:
    if not isinstance(hold_id, UUID):
        raise TypeError(f"hold_id must be a UUID, not {hold_id!r}: write UUID(text) for a text")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, 1 or more, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, not {value}")


def _check_owner(owner: object) -> None:
    if owner is None:
        return
    if not isinstance(owner, str):
        raise TypeError(f"owner must be a str or None, not {owner!r}: write str(owner)")
    if not 1 <= len(owner) <= _MAX_OWNER:
        raise ValueError(
            f"owner must have 1 to {_MAX_OWNER} characters, not {len(owner)}: write None for nobody"
        )
