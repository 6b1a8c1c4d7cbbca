"""Holds: places promised for a while, then confirmed, given up or expired.

The two managers are thin shells: what they do is in `operations.py`, once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from slotcache.hook import Hook, call_here, call_on_asyncio, check_hook
from slotcache.ledger import AsyncHoldTable, AwaitedTable, HoldTable
from slotcache.lifecycle import Hold, HoldState
from slotcache.operations import Operations
from slotcache.policy import HoldPolicy
from slotcache.protocols import AsyncInvalidationHook, InvalidationHook, SlotId
from slotcache.worlds import as_a_whole, in_line, is_async, run

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

__all__ = ["AsyncHoldManager", "HoldManager"]

_OTHERWISE = "write None if nothing caches the list"


class HoldManager:
    """Takes, confirms, cancels and expires holds, and never oversells (P6).

    Make one for each table when the application starts, and use it from all threads. Every
    operation is one transaction of its own, finished when the call returns: whatever it raises
    except `BackendError`, nothing was changed. `within` does the same in a transaction of yours.

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
        _check_table(slots, "SqlSlots(engine)", awaited=False)
        if on_change is not None:
            check_hook("on_change", on_change, otherwise=_OTHERWISE)
        self._operations = Operations(
            AwaitedTable(slots), Hook(on_change), policy, call=call_here, whole=in_line
        )

    @property
    def hook_failures(self) -> int:
        """How often the hook has raised: each time a list may have been shown for a `ttl` (P8)."""
        return self._operations.hook.failures

    def within(self, transaction: Session | scoped_session[Session] | Connection) -> HoldManager:
        """Return the same manager inside a transaction of yours.

        What it does is committed or rolled back with all else in there. The hook runs when that
        has been committed, and its connection is back in the pool: once for each scope, and not
        for what a savepoint took back (P8). Nothing is tried again in there. What an operation
        raises leaves no trace of it in the transaction, which goes on; but where the database had
        to end that (`Busy` after a deadlock on MariaDB, a lost connection), the session says so
        until it is rolled back.

        Args:
            transaction: A `Session` that commits by itself, or a `scoped_session` of such; or a
                `Connection` inside of `clear_after(connection)`, or a `Session` that is bound to
                one. It works on the transaction that is open there at each call, and begins one if
                none is.

        Returns:
            A manager to be used wherever that transaction may be.

        Raises:
            TypeError: It is neither.
            ValueError: It commits where nobody can see it: a bare connection, a session that is
                bound to one, two-phase commit, another kind of database; or, at a call, each of
                its statements is a transaction of its own (AUTOCOMMIT).
        """
        joined = copy.copy(self)
        joined._operations = self._operations.within(transaction)
        return joined

    def create(
        self,
        slot_id: SlotId,
        quantity: int = 1,
        *,
        ttl: float | None = None,
        idempotency_key: str | None = None,
        owner: str | None = None,
        replaces: UUID | None = None,
    ) -> Hold:
        """Promise places to somebody for a while.

        Args:
            slot_id: The slot, of the type that the table's ids have.
            quantity: How many places, at least 1.
            ttl: Seconds until the hold expires by itself; None: the policy's.
            idempotency_key: Up to 255 characters that stand for this one attempt of this owner,
                for example a UUID that came with the form. However often it is sent, and by how
                many at once, there is one hold (P7), until `purge` forgets it; once that has
                ended, a new attempt needs a new key. A refusal is not remembered.
            owner: Whom it belongs to, up to 255 characters of your own choice.
            replaces: A live hold that is cancelled by the same stroke, so that its places do not
                count against this one: for whoever wants more of a slot, fewer, or another slot.
                If nothing comes of the new hold, that one stays. One that has expired makes no
                room and no trouble. With an `owner`, it has to be the same one's. It is not part of
                what a key stands for.

        Returns:
            The new hold, HELD; or the one that this key made before, as it is now (it may have
            ended), `replayed`.

        Raises:
            SlotFull: Fewer places are free; it says how many.
            SlotNotFound: There is no such slot, or it is not open.
            IdempotencyConflict: The owner used the key before, for another slot or quantity.
            HoldNotFound: There is no hold to replace, or it is not this owner's.
            IllegalTransition: The hold to replace was confirmed or cancelled.
            Busy: The slot stayed locked for `lock_wait` seconds.
            BackendError: The database failed. If it is not known whether the hold was made, the
                same call with the same idempotency key tells.
        """
        return run(
            self._operations.create(
                slot_id,
                quantity,
                ttl=ttl,
                idempotency_key=idempotency_key,
                owner=owner,
                replaces=replaces,
            )
        )

    def create_many(
        self,
        places: Mapping[int, int] | Mapping[str, int] | Mapping[UUID, int],
        *,
        ttl: float | None = None,
        idempotency_key: str | None = None,
        owner: str | None = None,
        replaces: UUID | Iterable[UUID] | None = None,
    ) -> tuple[Hold, ...]:
        """Promise places in several slots to somebody for a while: all of them, or none.

        It is one transaction, and the slots are locked in the order of their ids, so that two
        requests for the same slots never wait for one another in a circle.

        Args:
            places: How many places of which slots.
            ttl: As for `create`. All the holds begin and end at the same instants.
            idempotency_key: As for `create`. One key covers all of them.
            owner: As for `create`.
            replaces: As for `create`: one hold, or several.

        Returns:
            A hold for each slot, in the order of `places`; or those that this key made before, as
            they are now, each `replayed` (without those that `purge` has forgotten).

        Raises:
            SlotFull: Fewer places of a slot are free; it says of which, and how many.
            SlotNotFound: There is no such slot, or it is not open; it says which.
            IdempotencyConflict: The owner used the key before, for other slots or quantities.
            HoldNotFound: There is no hold to replace, or it is not this owner's.
            IllegalTransition: A hold to replace was confirmed or cancelled.
            Busy: A slot stayed locked for `lock_wait` seconds.
            BackendError: As for `create`.
        """
        return run(
            self._operations.create_many(
                places, ttl=ttl, idempotency_key=idempotency_key, owner=owner, replaces=replaces
            )
        )

    def confirm(
        self,
        hold_id: UUID,
        *,
        reference: str | None = None,
        late: Literal["refuse", "reacquire"] = "refuse",
    ) -> Hold:
        """Make a live hold's places its owner's for good.

        Args:
            hold_id: The hold.
            reference: Up to 255 characters that say what has confirmed it, for example the id of a
                payment or an order. Sent again, it finds its work done; any other is refused, so
                that no two payments are taken for one hold.
            late: What to do if it has expired. "refuse" raises `HoldExpired`. "reacquire" takes
                its places again if they are still free, and the slot is open, and raises
                `HoldExpired` if not: for a payment that came late. That is not remembered: sent
                again, it may find a place that has come free since.

        Returns:
            The hold, CONFIRMED; `replayed` if it was so already (P7).

        Raises:
            HoldExpired: It was not confirmed in time, whether or not anybody wrote that down, and
                was not to be had again. To a payment, this says: give it back.
            IdempotencyConflict: It was confirmed before, not with this reference.
            IllegalTransition: It was cancelled.
            HoldNotFound: There is no such hold.
            SlotFull: The row of the slot was edited by others and has no place left for it.
            Busy: The slot stayed locked for `lock_wait` seconds.
            BackendError: The database failed.
        """
        return run(self._operations.confirm(hold_id, reference=reference, late=late))

    def cancel(self, hold_id: UUID, *, quantity: int | None = None, restock: bool = True) -> Hold:
        """Give a hold's places back to everybody, also those of a confirmed one.

        Args:
            hold_id: The hold.
            quantity: How many of its places; None: all of them. The hold keeps the rest, and its
                state. Whoever sends this twice gives up two parts: only the whole is cancelled
                once.
            restock: Whether they are for sale again. Places of a confirmed hold that are given up
                with False (a seat that is broken, a delivery that is under way) stay off
                `remaining`, until you add them to it.

        Returns:
            The hold, CANCELLED, or with what is left of it. `replayed` if it had ended before:
            then it is returned as it is, CANCELLED or EXPIRED (P7).

        Raises:
            HoldTooSmall: It has fewer places; it says how many.
            IllegalTransition: It is a live hold, and `restock` is False: nothing was sold.
            HoldNotFound: There is no such hold.
            Busy: The slot stayed locked for `lock_wait` seconds.
            BackendError: The database failed.
        """
        return run(self._operations.cancel(hold_id, quantity=quantity, restock=restock))

    def extend(self, hold_id: UUID, ttl: float) -> Hold:
        """Let a live hold last longer: never shorter, and no dead one lives again.

        Args:
            hold_id: The hold.
            ttl: Seconds until it expires, counted from now. It ends at the policy's
                `max_lifetime` after it was created all the same.

        Returns:
            The hold with its new end; `replayed` if it would not have ended later.

        Raises:
            HoldExpired: It ended before.
            IllegalTransition: It was confirmed or cancelled.
            HoldNotFound: There is no such hold.
            Busy: The slot stayed locked for `lock_wait` seconds.
            BackendError: The database failed.
        """
        return run(self._operations.extend(hold_id, ttl))

    def get(self, hold_id: UUID) -> Hold:
        """Return a hold as it is now: EXPIRED from the instant at which it is due.

        Raises:
            HoldNotFound: There is no such hold.
            Busy: Somebody altered the tables for longer than `lock_wait` seconds.
            BackendError: The database failed.
        """
        return run(self._operations.get(hold_id))

    def find(
        self,
        *,
        slot_id: SlotId | None = None,
        owner: str | None = None,
        state: HoldState | None = None,
        limit: int = 100,
    ) -> list[Hold]:
        """Return the holds of a slot, of an owner, in a state, or any: the latest first.

        Args:
            slot_id: Only of this slot.
            owner: Only of this owner.
            state: Only in this state now; a hold that is due is EXPIRED.
            limit: How many at most, from 1 to 10,000.

        Returns:
            New holds in a new list, by the time of their creation.

        Raises:
            Busy: Somebody altered the tables for longer than `lock_wait` seconds.
            BackendError: The database failed.
        """
        return run(self._operations.find(slot_id=slot_id, owner=owner, state=state, limit=limit))

    def set_capacity(self, slot_id: SlotId, capacity: int) -> None:
        """Make a slot larger or smaller, with as many places more or fewer to sell.

        To close a slot, let the table's `where` exclude it.

        Args:
            slot_id: The slot, open or not.
            capacity: How many places it shall have in all.

        Raises:
            CapacityTooLow: More than that is sold or promised; it says how low is possible now.
            SlotNotFound: There is no such slot.
            Busy: The slot stayed locked for `lock_wait` seconds.
            BackendError: The database failed.
        """
        run(self._operations.set_capacity(slot_id, capacity))

    def expire_due(self, limit: int = 500) -> int:
        """Write EXPIRED on holds that are due, those due the longest first.

        Due holds count as expired with or without it, and their places are free: it only keeps
        the table tidy. Any number of processes may do it at once: what one of them has in hand
        the others leave out, where the database can do that.

        Args:
            limit: How many at most, from 1 to 10,000.

        Returns:
            How many were written; fewer than `limit`: no more were due, or others are at it.

        Raises:
            Busy: Their slots stayed locked for `lock_wait` seconds.
            BackendError: The database failed.
        """
        return run(self._operations.expire_due(limit))

    def purge(self, older_than: float) -> int:
        """Forget holds that were cancelled or have expired, and their idempotency keys.

        Confirmed holds are sales, and stay. Those that are due have to be written down before, by
        `expire_due`. It works in batches, each a transaction of its own.

        Args:
            older_than: Seconds since they ended, 0 or more. A key that is sent again later than
                that makes a new hold.

        Returns:
            How many were forgotten here: others may be at it, too.

        Raises:
            Busy: They stayed locked for `lock_wait` seconds; earlier batches are done.
            BackendError: The database failed; earlier batches are done.
        """
        return run(self._operations.purge(older_than))


class AsyncHoldManager:
    """`HoldManager` on asyncio: the same operations on the same rows, awaited.

    Make one for each table when the application starts, and use it from all tasks. A call that is
    cancelled has changed nothing, or it was too late: then its change is whole, and the hook has
    been told. A COMMIT that has been sent is waited for, a second at most. If the cancellation left
    open which it was, the same call with the same idempotency key tells.

    Args:
        slots: The table, for example `slotcache.sql.AsyncSqlSlots`.
        on_change: As for `HoldManager`. A coroutine function is awaited in line; any other one is
            called in a thread, since it may block.
        policy: As for `HoldManager`.

    Raises:
        TypeError: `on_change` cannot be called, or the table blocks.

    Examples:
        >>> import asyncio
        >>> from slotcache import AsyncHoldManager
        >>> from slotcache.sql import AsyncSqlSlots
        >>> async def main():
        ...     async with AsyncSqlSlots.sqlite(":memory:") as slots:
        ...         await slots.create_tables()
        ...         await slots.add([(1, 30)])
        ...         holds = AsyncHoldManager(slots, on_change=None)
        ...         hold = await holds.create(1, quantity=2)
        ...         return (await holds.confirm(hold.id)).state
        >>> asyncio.run(main())
        <HoldState.CONFIRMED: 'confirmed'>
    """

    def __init__(
        self,
        slots: AsyncHoldTable,
        *,
        on_change: InvalidationHook | AsyncInvalidationHook | None,
        policy: HoldPolicy = HoldPolicy(),
    ) -> None:
        _check_table(slots, "AsyncSqlSlots(engine)", awaited=True)
        if on_change is not None:
            check_hook("on_change", on_change, otherwise=_OTHERWISE, awaits=True)
        self._operations = Operations(
            slots, Hook(on_change), policy, call=call_on_asyncio, whole=as_a_whole
        )

    @property
    def hook_failures(self) -> int:
        """As `HoldManager.hook_failures`."""
        return self._operations.hook.failures

    def within(
        self,
        transaction: AsyncSession | async_scoped_session[Any] | AsyncConnection,
    ) -> AsyncHoldManager:
        """As `HoldManager.within`, in an `AsyncSession`, or an `AsyncConnection`.

        The hook is awaited by whoever awaits the commit. A connection has to be inside of
        `async_clear_after(connection)`.
        """
        joined = copy.copy(self)
        joined._operations = self._operations.within(transaction)
        return joined

    async def create(
        self,
        slot_id: SlotId,
        quantity: int = 1,
        *,
        ttl: float | None = None,
        idempotency_key: str | None = None,
        owner: str | None = None,
        replaces: UUID | None = None,
    ) -> Hold:
        """As `HoldManager.create`."""
        return await self._operations.create(
            slot_id,
            quantity,
            ttl=ttl,
            idempotency_key=idempotency_key,
            owner=owner,
            replaces=replaces,
        )

    async def create_many(
        self,
        places: Mapping[int, int] | Mapping[str, int] | Mapping[UUID, int],
        *,
        ttl: float | None = None,
        idempotency_key: str | None = None,
        owner: str | None = None,
        replaces: UUID | Iterable[UUID] | None = None,
    ) -> tuple[Hold, ...]:
        """As `HoldManager.create_many`."""
        return await self._operations.create_many(
            places, ttl=ttl, idempotency_key=idempotency_key, owner=owner, replaces=replaces
        )

    async def confirm(
        self,
        hold_id: UUID,
        *,
        reference: str | None = None,
        late: Literal["refuse", "reacquire"] = "refuse",
    ) -> Hold:
        """As `HoldManager.confirm`."""
        return await self._operations.confirm(hold_id, reference=reference, late=late)

    async def cancel(
        self, hold_id: UUID, *, quantity: int | None = None, restock: bool = True
    ) -> Hold:
        """As `HoldManager.cancel`."""
        return await self._operations.cancel(hold_id, quantity=quantity, restock=restock)

    async def extend(self, hold_id: UUID, ttl: float) -> Hold:
        """As `HoldManager.extend`."""
        return await self._operations.extend(hold_id, ttl)

    async def get(self, hold_id: UUID) -> Hold:
        """As `HoldManager.get`."""
        return await self._operations.get(hold_id)

    async def find(
        self,
        *,
        slot_id: SlotId | None = None,
        owner: str | None = None,
        state: HoldState | None = None,
        limit: int = 100,
    ) -> list[Hold]:
        """As `HoldManager.find`."""
        return await self._operations.find(slot_id=slot_id, owner=owner, state=state, limit=limit)

    async def set_capacity(self, slot_id: SlotId, capacity: int) -> None:
        """As `HoldManager.set_capacity`."""
        await self._operations.set_capacity(slot_id, capacity)

    async def expire_due(self, limit: int = 500) -> int:
        """As `HoldManager.expire_due`."""
        return await self._operations.expire_due(limit)

    async def purge(self, older_than: float) -> int:
        """As `HoldManager.purge`."""
        return await self._operations.purge(older_than)


def _check_table(slots: object, example: str, *, awaited: bool) -> None:
    """Refuse what is no table, or a table of the other world."""
    if not hasattr(slots, "_transact"):
        raise TypeError(f"slots must be a table such as {example}, not {slots!r:.80}")
    if is_async(slots, "_transact") is not awaited:
        other = "HoldManager" if awaited else "AsyncHoldManager"
        raise TypeError(
            f"slots: {type(slots).__name__} is for {other}: use that, or give {example}"
        )
