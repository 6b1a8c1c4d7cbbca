"""The operations of a manager, once, for both worlds.

An operation checks what it is asked, hands the table one unit of work for one transaction, and
tells the hook when that is over. What a unit of work does to the rows is the table's (`ledger.py`
is the port). It is a coroutine over async ports, as the read flow is: the blocking manager runs it
on ports that never suspend.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar
from uuid import UUID

from slotcache.arguments import (
    check_capacity,
    check_count,
    check_flag,
    check_hold_id,
    check_limit,
    check_slot_id,
    check_state,
    checked_ids,
    checked_places,
    checked_text,
    lasting,
)
from slotcache.hook import Call, Hook, tell_all
from slotcache.ledger import AsyncHoldTable, Change, HoldRequest, Ledger
from slotcache.lifecycle import Hold, HoldState
from slotcache.policy import LONGEST, HoldPolicy, seconds
from slotcache.protocols import Scope, SlotId
from slotcache.worlds import decisive

__all__ = ["Operations"]

T = TypeVar("T")


class Whole(Protocol):
    """How a change and what is told of it are kept together."""

    def __call__(self, work: Coroutine[Any, Any, T], /) -> Awaitable[T]:
        """Return what the work returns."""


_PURGED_AT_ONCE = 1_000


class Operations:
    """What managers do, over one table.

    Args:
        slots: The table.
        hook: Told of each scope in which something changed.
        policy: How long holds last, and how long to wait for a locked slot.
        call: How the hook is called.
        whole: Has a change, and what it is told of, begun and ended.
    """

    def __init__(
        self, slots: AsyncHoldTable, hook: Hook, policy: HoldPolicy, *, call: Call, whole: Whole
    ) -> None:
        self.hook = hook
        self._slots = slots
        self._policy = policy
        self._call = call
        self._whole = whole

    def within(self, transaction: object) -> Operations:
        """Return the same inside a transaction of a user's."""
        joined = self._slots._within(transaction, self.hook)
        return Operations(joined, self.hook, self._policy, call=self._call, whole=self._whole)

    async def create(self, slot_id: SlotId, quantity: int, **how: Any) -> Hold:
        """Promise places of one slot."""
        check_slot_id(slot_id, self._slots.id_type)
        (hold,) = await self.create_many({slot_id: quantity}, **how)
        return hold

    async def create_many(
        self,
        places: Mapping[Any, int],
        *,
        ttl: float | None,
        idempotency_key: str | None,
        owner: str | None,
        replaces: UUID | Iterable[UUID] | None,
    ) -> tuple[Hold, ...]:
        """Promise places of several slots, all or none."""
        request = HoldRequest(
            checked_places(places, self._slots.id_type),
            lasting(ttl, self._policy),
            checked_text("owner", owner),
            checked_text("idempotency_key", idempotency_key),
            checked_ids("replaces", replaces),
        )
        slots = self._slots._here()
        return await self._telling(
            lambda changed: slots._create(request, changed, lock_wait=self._policy.lock_wait)
        )

    async def confirm(self, hold_id: UUID, *, reference: str | None, late: str) -> Hold:
        """Make the promise good."""
        check_hold_id("hold_id", hold_id)
        checked_text("reference", reference)
        if late not in ("refuse", "reacquire"):
            raise ValueError(f"late must be 'refuse' or 'reacquire', not {late!r}")
        revives = late == "reacquire"
        return await self._change(
            lambda ledger: ledger.confirm(hold_id, reference=reference, revives=revives)
        )

    async def cancel(self, hold_id: UUID, *, quantity: int | None, restock: bool) -> Hold:
        """Give places back."""
        check_hold_id("hold_id", hold_id)
        if quantity is not None:
            check_count("quantity", quantity)
        check_flag("restock", restock)
        return await self._change(
            lambda ledger: ledger.cancel(hold_id, quantity=quantity, restock=restock)
        )

    async def extend(self, hold_id: UUID, ttl: float) -> Hold:
        """Let a live hold last longer."""
        check_hold_id("hold_id", hold_id)
        longest = self._policy.max_lifetime
        lasting = min(seconds("ttl", ttl, above_zero=True), longest)
        return await self._change(
            lambda ledger: ledger.extend(hold_id, lasting, max_lifetime=longest)
        )

    async def get(self, hold_id: UUID) -> Hold:
        """Return a hold as it is now."""
        check_hold_id("hold_id", hold_id)
        return await self._read(lambda ledger: ledger.get(hold_id))

    async def find(
        self, *, slot_id: SlotId | None, owner: str | None, state: HoldState | None, limit: int
    ) -> list[Hold]:
        """Return holds of a slot, of an owner, in a state, or any."""
        if slot_id is not None:
            check_slot_id(slot_id, self._slots.id_type)
        checked_text("owner", owner)
        check_state(state)
        check_limit(limit)
        return await self._read(
            lambda ledger: ledger.find(slot_id=slot_id, owner=owner, state=state, limit=limit)
        )

    async def set_capacity(self, slot_id: SlotId, capacity: int) -> None:
        """Make a slot larger or smaller."""
        check_slot_id(slot_id, self._slots.id_type)
        check_capacity(capacity)
        await self._change(lambda ledger: ledger.set_capacity(slot_id, capacity))

    async def expire_due(self, limit: int) -> int:
        """Write EXPIRED on holds that are due."""
        check_limit(limit)
        due = await self._read(lambda ledger: ledger.due(limit))
        return await self._change(lambda ledger: ledger.expire(due)) if due else 0

    async def purge(self, older_than: float) -> int:
        """Forget holds that were cancelled or have expired."""
        age = min(seconds("older_than", older_than, above_zero=False), LONGEST)
        forgotten = 0
        before: Sequence[UUID] = []
        while ended := await self._read(lambda ledger: ledger.ended(age, _PURGED_AT_ONCE)):
            if ended == before:
                break  # a trigger of somebody's keeps them
            forgotten += await self._change(partial(_purge, ended=ended))
            before = ended
        return forgotten

    async def _read(self, work: Callable[[Ledger], T]) -> T:
        return await self._slots._here()._read(work, lock_wait=self._policy.lock_wait)

    async def _change(self, work: Callable[[Ledger], Change[T]]) -> T:
        slots = self._slots._here()
        return await self._telling(
            lambda changed: slots._transact(work, changed, lock_wait=self._policy.lock_wait)
        )

    async def _telling(self, work: Callable[[list[Scope | None]], Awaitable[T]]) -> T:
        """Run work that writes down the scopes that it changed, then tell the hook of them."""

        async def told() -> T:
            changed: list[Scope | None] = []
            try:
                return await work(changed)
            finally:
                # Also when the answer to the commit was lost, or a signal or a cancellation cut in
                # after it (P8).
                with decisive():
                    await tell_all(((self.hook, scope) for scope in changed), self._call)

        return await self._whole(told())


def _purge(ledger: Ledger, *, ended: Sequence[UUID]) -> Change[int]:
    return ledger.purge(ended)
