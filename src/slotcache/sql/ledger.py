"""What an operation does to the rows, inside one transaction, over any sync `Connection`.

Rules for editors, each closing a race (design and tests: `test_oversell.py`):

- What promises or gives back begins by *writing* the slot row. Everybody else who does so waits
  there, and a writer that was overtaken is told by the database, at every isolation level.
- Counting is a statement of its own after that: it must see what was committed during the wait.
- The time is asked for after the lock too: a hold may fall due while we wait.
- Who stops counting a due hold writes EXPIRED in the same transaction, so that no clock that
  steps back can make its places be promised twice.
- An idempotency key is tried after the lock, and before anything is refused.
- Slot rows come before hold rows, and in the order of their ids: no deadlocks.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from slotcache.availability import Scope, SlotId
from slotcache.errors import (
    BackendError,
    CapacityTooLow,
    HoldNotFound,
    IdempotencyConflict,
    SlotFull,
    SlotNotFound,
)
from slotcache.ledger import Change, DueHold, HoldRequest
from slotcache.lifecycle import Hold, HoldState, next_state
from slotcache.sql.claims import Claim
from slotcache.sql.statements import Statements

__all__ = ["SqlLedger"]

_log = logging.getLogger("slotcache")

_KEY_TRIES = 3


class SlotCount(NamedTuple):
    """One slot, counted.

    Attributes:
        slot_id: Its id as the row spells it: some collations take "a" for "A", and holds under
            two spellings would not be counted together.
        capacity: How many places it has in all.
        unsold: What its row says is left.
        promised: The places of live holds.
        due: The places of holds that are due, though nobody has written that down.
        scope: Its scope.
        is_open: Whether the `where` of the table includes it.
        now: When it was counted.
    """

    slot_id: SlotId
    capacity: int
    unsold: int
    promised: int
    due: int
    scope: Scope | None
    is_open: bool
    now: datetime


class SqlLedger:
    """The table inside the transaction of one connection.

    Args:
        connection: A connection in a transaction that somebody else begins and ends.
        statements: The statements of its table.
        claim: How the column `remaining` is kept.
        skips_locked: Whether the database can leave out rows that others have locked.
        is_alone: Whether the transaction has locked everything, so that no row need be.
        now: Reads the time by a clock that moves inside a transaction.
        new_id: Makes the id of a hold.
    """

    def __init__(
        self,
        connection: sa.Connection,
        statements: Statements,
        *,
        claim: Claim,
        skips_locked: bool,
        is_alone: bool,
        now: Callable[[sa.Connection], datetime],
        new_id: Callable[[], UUID],
    ) -> None:
        self._connection = connection
        self._statements = statements
        self._claim = claim
        self._skips_locked = skips_locked
        self._is_alone = is_alone
        self._clock = now
        self._new_id = new_id

    def create(self, request: HoldRequest) -> Change[Hold]:
        """Promise places, if so many are free."""
        hold_id = self._new_id()
        slot = self._lock(request.slot_id)
        if request.idempotency_key is not None:
            earlier = self._use_key(request, slot, hold_id)
            if earlier is not None:
                return Change(replace(earlier, replayed=True))
        if slot is None or not slot.is_open:
            raise SlotNotFound(request.slot_id)
        free = self._free(slot)
        if request.quantity > free:
            raise SlotFull(request.slot_id, requested=request.quantity, remaining=free)
        self._expire_due_of(slot)
        hold = Hold(
            id=hold_id,
            slot_id=slot.slot_id,
            scope=slot.scope,
            quantity=request.quantity,
            state=HoldState.HELD,
            created_at=slot.now,
            expires_at=slot.now + timedelta(seconds=request.ttl),
            owner=request.owner,
        )
        self._move_places(hold, None, HoldState.HELD)
        self._insert(hold)
        return Change(hold, (hold.scope,))

    def confirm(self, hold_id: UUID) -> Change[Hold]:
        """Make the promise good."""
        return self._move(hold_id, "confirm")

    def cancel(self, hold_id: UUID) -> Change[Hold]:
        """Take the promise, or the places sold under it, back.

        A due hold has expired already: that is a replay, and writing it down is a sweeper's work.
        """
        return self._move(hold_id, "cancel")

    def extend(self, hold_id: UUID, ttl: float, *, max_lifetime: float) -> Change[Hold]:
        """Let a live hold end later: `ttl` from now, at most `max_lifetime` after it was made."""
        self._lock_slot_of(hold_id)
        hold, now = self._hold(hold_id)
        next_state(hold, "extend")
        until = min(now + timedelta(seconds=ttl), hold.created_at + timedelta(seconds=max_lifetime))
        if until <= hold.expires_at:
            return Change(replace(hold, replayed=True))
        extended = self._run(self._statements.extend, p_hold=hold.id, p_until=until)
        _check_was_live(extended)
        return Change(replace(hold, expires_at=until), ())

    def get(self, hold_id: UUID) -> Hold:
        """Return the hold as it is now."""
        return self._hold(hold_id)[0]

    def find(
        self, *, slot_id: SlotId | None, owner: str | None, state: HoldState | None, limit: int
    ) -> list[Hold]:
        """Return the latest holds of which all that is not None is true."""
        found = self._statements.holds_found(
            by_slot=slot_id is not None, by_owner=owner is not None, state=state
        )
        wanted = {"p_slot": slot_id, "p_owner": owner}
        given = {name: value for name, value in wanted.items() if value is not None}
        return [_hold_of(row) for row in self._ask(found, p_limit=limit, **given)]

    def set_capacity(self, slot_id: SlotId, capacity: int) -> Change[None]:
        """Resize a slot, if what it has sold and promised still fits."""
        slot = self._lock(slot_id)
        if slot is None:
            raise SlotNotFound(slot_id)
        lowest = slot.capacity - self._free(slot)
        if capacity < lowest:
            raise CapacityTooLow(slot_id, requested=capacity, lowest=lowest)
        if capacity == slot.capacity:
            return Change(None)
        self._expire_due_of(slot)
        self._run(self._statements.resize, p_slot=slot.slot_id, p_capacity=capacity)
        return Change(None, (slot.scope,))

    def due(self, limit: int) -> Sequence[DueHold]:
        """Return the holds that are due the longest, locking nothing."""
        rows = self._ask(self._statements.due, p_limit=limit)
        return [DueHold(row.id, row.slot_id) for row in rows]

    def expire(self, due: Sequence[DueHold]) -> Change[int]:
        """Write down those that are still due and in nobody else's hands; return how many."""
        locked = self._lock_free({hold.slot_id for hold in due})
        ids = [hold.id for hold in due if hold.slot_id in locked]
        rows = self._ask(self._statements.still_due, p_holds=ids).all()
        if not rows:
            return Change(0)
        places: Counter[SlotId] = Counter()
        for row in rows:
            places[row.slot_id] += row.quantity
        for slot_id in sorted(places):
            self._give_back_expired(slot_id, places[slot_id])
        self._run(self._statements.expire, p_holds=[row.id for row in rows])
        return Change(len(rows), tuple(dict.fromkeys(row.scope for row in rows)))

    def ended(self, older_than: float, limit: int) -> Sequence[UUID]:
        """Return holds that ended so many seconds ago, the first to end first, locking nothing."""
        before = self._now() - timedelta(seconds=older_than)
        return self._run(self._statements.ended, p_before=before, p_limit=limit).scalars().all()

    def purge(self, ended: Sequence[UUID]) -> Change[int]:
        """Forget these holds, and their keys; return how many there still were."""
        self._run(self._statements.delete_keys, p_holds=ended)
        return Change(self._run(self._statements.delete_holds, p_holds=ended).rowcount, ())

    def _move(self, hold_id: UUID, operation: str) -> Change[Hold]:
        self._lock_slot_of(hold_id)
        hold, now = self._hold(hold_id)
        state = next_state(hold, operation)
        if state is hold.state:
            return Change(replace(hold, replayed=True))
        self._move_places(hold, hold.state, state)
        moved = self._run(
            self._statements.move,
            p_hold=hold.id,
            p_from=hold.state.value,
            p_to=state.value,
            p_ended=now if state is HoldState.CANCELLED else None,
        )
        _check_was_live(moved)
        return Change(replace(hold, state=state), (hold.scope,))

    def _lock(self, slot_id: SlotId) -> SlotCount | None:
        """Lock the slot, then count it; None: there is none."""
        if not self._is_alone:
            self._run(self._statements.lock, p_slot=slot_id)
        return self._count(slot_id)

    def _lock_slot_of(self, hold_id: UUID) -> None:
        # A hold never moves to another slot, so its slot may be looked up before the wait.
        if not self._is_alone:
            self._run(self._statements.lock_slot_of, p_hold=hold_id)

    def _lock_free(self, slot_ids: set[SlotId]) -> set[SlotId]:
        """Lock these slots, but for those that others have locked; return which."""
        if self._is_alone:
            return slot_ids
        ordered = sorted(slot_ids)
        if self._skips_locked:
            return set(self._run(self._statements.lock_those_free, p_slots=ordered).scalars())
        each = [{"p_slot": slot_id} for slot_id in ordered]
        self._connection.execute(self._statements.lock, each)
        return slot_ids

    def _count(self, slot_id: SlotId) -> SlotCount | None:
        row = self._ask(self._statements.count, p_slot=slot_id).one_or_none()
        return row and SlotCount._make(row)

    def _free(self, slot: SlotCount) -> int:
        if self._claim.counts_holds:
            return max(0, slot.unsold - slot.promised)
        return min(slot.capacity, slot.unsold + slot.due)

    def _use_key(self, request: HoldRequest, slot: SlotCount | None, hold_id: UUID) -> Hold | None:
        """Take the key for this hold; or return the one that it was taken for."""
        slot_id = request.slot_id if slot is None else slot.slot_id
        digest = _digest_of(slot_id, request.quantity)
        owner, key = request.owner or "", request.idempotency_key
        assert key is not None
        for _ in range(_KEY_TRIES):
            inserted = self._run(
                self._statements.insert_key,
                owner=owner,
                idempotency_key=key,
                request=digest,
                hold_id=hold_id,
            )
            if inserted.rowcount:
                return None
            used = self._run(self._statements.find_key, p_owner=owner, p_key=key).one_or_none()
            if used is None:
                continue  # it was purged in between
            if used.request != digest:
                raise IdempotencyConflict(key, hold_id=used.hold_id)
            with suppress(HoldNotFound):  # or since
                return self.get(used.hold_id)
        raise BackendError(f"idempotency key {key!r} comes and goes: look who deletes keys")

    def _expire_due_of(self, slot: SlotCount) -> None:
        if slot.due:
            self._give_back_expired(slot.slot_id, slot.due)
            self._run(self._statements.expire_due_of, p_slot=slot.slot_id, p_now=slot.now)

    def _give_back_expired(self, slot_id: SlotId, places: int) -> None:
        back = places * self._claim.places_back(HoldState.HELD, HoldState.EXPIRED)
        if back and not self._add_places(slot_id, back):
            self._run(self._statements.fill_up, p_slot=slot_id)
            _log.warning(
                "slot %r had no room for all of %d places that expired holds gave back: somebody "
                "has edited its row; remaining was set to its capacity",
                slot_id,
                back,
            )

    def _move_places(self, hold: Hold, before: HoldState | None, after: HoldState) -> None:
        """Change `remaining`, never out of its bounds, whatever others wrote into the row."""
        places = hold.quantity * self._claim.places_back(before, after)
        if not places or self._add_places(hold.slot_id, places):
            return
        if places > 0:
            raise BackendError(
                f"slot {hold.slot_id!r} has no room for {places} places given back: its row was "
                "edited, correct remaining and capacity"
            )
        slot = self._count(hold.slot_id)
        unsold = 0 if slot is None else slot.unsold
        raise SlotFull(hold.slot_id, requested=hold.quantity, remaining=unsold)

    def _add_places(self, slot_id: SlotId, places: int) -> bool:
        added = self._run(self._statements.add_places, p_slot=slot_id, p_places=places)
        return added.rowcount == 1

    def _insert(self, hold: Hold) -> None:
        self._run(
            self._statements.insert,
            id=hold.id,
            slot_id=hold.slot_id,
            quantity=hold.quantity,
            state=hold.state.value,
            created_at=hold.created_at,
            expires_at=hold.expires_at,
            owner=hold.owner,
        )

    def _hold(self, hold_id: UUID) -> tuple[Hold, datetime]:
        row = self._ask(self._statements.get, p_hold=hold_id).one_or_none()
        if row is None:
            raise HoldNotFound(hold_id)
        return _hold_of(row), row.now

    def _now(self) -> datetime:
        return self._clock(self._connection)

    def _ask(self, statement: sa.Select[Any], **parameters: object) -> sa.CursorResult[Any]:
        """Run a statement that tells the time, or has to be told."""
        if self._statements.binds_time:
            parameters["p_now"] = self._now()
        return self._run(statement, **parameters)

    def _run(self, statement: sa.Executable, **parameters: object) -> sa.CursorResult[Any]:
        return self._connection.execute(statement, parameters)


def _hold_of(row: sa.Row[Any]) -> Hold:
    """Return the hold as it is at the time of the row: from its last instant on it is EXPIRED."""
    state = HoldState(row.state)
    if state is HoldState.HELD and row.expires_at <= row.now:
        state = HoldState.EXPIRED
    return Hold(
        id=row.id,
        slot_id=row.slot_id,
        scope=row.scope,
        quantity=row.quantity,
        state=state,
        created_at=row.created_at,
        expires_at=row.expires_at,
        owner=row.owner,
    )


def _digest_of(slot_id: SlotId, quantity: int) -> str:
    """What two requests under one key have to agree on.

    Not the ttl: whoever sends a request again may ask for the time that is left.
    """
    return hashlib.sha256(json.dumps([str(slot_id), quantity]).encode()).hexdigest()


def _check_was_live(changed: sa.CursorResult[Any]) -> None:
    assert changed.rowcount == 1, "the hold changed although its slot is locked"
