"""What an operation does to the rows, inside one transaction, over any sync `Connection`.

Rules for editors, each closing a race (design and tests: `test_oversell.py`):

- What promises or gives back begins by *writing* the slot row. Everybody else who does so waits
  there, and a writer that was overtaken is told by the database, at every isolation level.
- Counting is a statement of its own after that: it must see what was committed during the wait.
- The time is asked for after the lock too: a hold may fall due while we wait.
- Who stops counting a due hold writes EXPIRED in the same transaction, so that no clock that
  steps back can make its places be promised twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from slotcache.availability import Scope, SlotId
from slotcache.errors import BackendError, HoldNotFound, SlotFull, SlotNotFound
from slotcache.holds import Change, DueHold
from slotcache.lifecycle import Hold, HoldState, next_state
from slotcache.sql.statements import Statements

__all__ = ["SqlLedger"]

PLACES_BACK: Mapping[tuple[HoldState, HoldState], int] = {
    (HoldState.HELD, HoldState.CONFIRMED): -1,
    (HoldState.CONFIRMED, HoldState.CANCELLED): +1,
}
"""Claim `counted`: what a move between two states gives back to `remaining`, for each place. A
live hold is not in that column: it is counted."""


class SlotCount(NamedTuple):
    """One slot, counted.

    Attributes:
        slot_id: Its id as the row spells it: some collations take "a" for "A", and holds under
            two spellings would not be counted together.
        unsold: What is not sold.
        promised: What of that live holds promise.
        some_due: Whether some of its holds are due.
        scope: Its scope.
    """

    slot_id: SlotId
    unsold: int
    promised: int
    some_due: bool
    scope: Scope | None


class SqlLedger:
    """The table inside the transaction of one connection.

    Args:
        connection: A connection in a transaction that somebody else begins and ends.
        statements: The statements of its table.
        now: Reads the time by a clock that moves inside a transaction.
        new_id: Makes the id of a hold.
    """

    def __init__(
        self,
        connection: sa.Connection,
        statements: Statements,
        *,
        now: Callable[[sa.Connection], datetime],
        new_id: Callable[[], UUID],
    ) -> None:
        self._connection = connection
        self._statements = statements
        self._clock = now
        self._new_id = new_id

    def create(
        self, slot_id: SlotId, quantity: int, *, ttl: float, owner: str | None
    ) -> Change[Hold]:
        """Promise `quantity` places, if so many are free."""
        self._lock_open(slot_id)
        now = self._now()
        slot = self._count(slot_id, now)
        free = max(0, slot.unsold - slot.promised)
        if quantity > free:
            raise SlotFull(slot_id, requested=quantity, remaining=free)
        if slot.some_due:
            self._run(self._statements.expire_due_of, p_slot=slot.slot_id, p_now=now)
        hold = Hold(
            id=self._new_id(),
            slot_id=slot.slot_id,
            scope=slot.scope,
            quantity=quantity,
            state=HoldState.HELD,
            created_at=now,
            expires_at=now + timedelta(seconds=ttl),
            owner=owner,
        )
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

    def get(self, hold_id: UUID) -> Hold:
        """Return the hold as it is now."""
        row = self._run(self._statements.find, p_hold=hold_id).one_or_none()
        if row is None:
            raise HoldNotFound(hold_id)
        hold = Hold(
            id=row.id,
            slot_id=row.slot_id,
            scope=row.scope,
            quantity=row.quantity,
            state=HoldState(row.state),
            created_at=row.created_at,
            expires_at=row.expires_at,
            owner=row.owner,
        )
        if hold.state is HoldState.HELD and hold.expires_at <= self._now():
            return replace(hold, state=HoldState.EXPIRED)
        return hold

    def due(self, limit: int) -> Sequence[DueHold]:
        """Return the holds that are due the longest, locking nothing."""
        rows = self._run(self._statements.due, p_now=self._now(), p_limit=limit)
        return [DueHold(row.id, row.slot_id) for row in rows]

    def expire(self, due: Sequence[DueHold]) -> Change[int]:
        """Write down those that are still due: another sweeper may have been faster."""
        slot_ids = sorted({hold.slot_id for hold in due})
        self._connection.execute(
            self._statements.lock, [{"p_slot": slot_id} for slot_id in slot_ids]
        )
        ids = [hold.id for hold in due]
        rows = self._run(self._statements.still_due, p_holds=ids, p_now=self._now()).all()
        self._run(self._statements.expire, p_holds=[row.id for row in rows])
        return Change(len(rows), tuple(dict.fromkeys(row.scope for row in rows)))

    def _move(self, hold_id: UUID, operation: str) -> Change[Hold]:
        self._lock_slot_of(hold_id)
        hold = self.get(hold_id)
        state = next_state(hold, operation)
        if state is hold.state:
            return Change(replace(hold, replayed=True))
        places = hold.quantity * PLACES_BACK.get((hold.state, state), 0)
        if places:
            self._add_places(hold, places)
        moved = self._run(
            self._statements.move, p_hold=hold.id, p_from=hold.state.value, p_to=state.value
        )
        assert moved.rowcount == 1, "the hold changed although its slot is locked"
        return Change(replace(hold, state=state), (hold.scope,))

    def _lock_open(self, slot_id: SlotId) -> None:
        if not self._run(self._statements.lock_open, p_slot=slot_id).rowcount:
            raise SlotNotFound(slot_id)

    def _lock_slot_of(self, hold_id: UUID) -> None:
        # A hold never moves to another slot, so its slot may be looked up before the wait.
        if not self._run(self._statements.lock_slot_of, p_hold=hold_id).rowcount:
            raise HoldNotFound(hold_id)

    def _now(self) -> datetime:
        return self._clock(self._connection)

    def _count(self, slot_id: SlotId, now: datetime) -> SlotCount:
        counted = self._run(self._statements.count, p_slot=slot_id, p_now=now)
        return SlotCount._make(counted.one())

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

    def _add_places(self, hold: Hold, places: int) -> None:
        """Change `remaining`, never out of its bounds, whatever others wrote into the row."""
        changed = self._run(self._statements.add_places, p_slot=hold.slot_id, p_places=places)
        if changed.rowcount:
            return
        if places > 0:
            raise BackendError(
                f"slot {hold.slot_id!r} has no room for {places} places given back: its row was "
                "edited, correct remaining and capacity"
            )
        unsold = self._count(hold.slot_id, self._now()).unsold
        raise SlotFull(hold.slot_id, requested=hold.quantity, remaining=unsold)

    def _run(self, statement: sa.Executable, **parameters: object) -> sa.CursorResult[Any]:
        return self._connection.execute(statement, parameters)
