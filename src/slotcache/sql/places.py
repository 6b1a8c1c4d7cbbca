"""The rows of slots inside one transaction: locked, counted, and what is left of them changed.

Rules for editors, each closing a race (design and tests: `test_oversell.py`, `test_races.py`):

- What promises or gives back begins by *writing* the slot row. Everybody else who does so waits
  there, and a writer that was overtaken is told by the database, at every isolation level.
- Counting is a statement of its own after that: it must see what was committed during the wait.
- The time is asked for after the lock too: a hold may fall due while we wait.
- Who stops counting a due hold writes EXPIRED in the same transaction, so that no clock that
  steps back can make its places be promised twice.
- Slot rows come before hold rows, and in the order of their ids: no deadlocks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from slotcache.availability import Scope, SlotId
from slotcache.errors import BackendError, SlotFull
from slotcache.lifecycle import Hold, HoldState
from slotcache.sql.claims import Claim
from slotcache.sql.statements import Statements

__all__ = ["SlotCount", "SlotRows"]

_log = logging.getLogger("slotcache")


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


class SlotRows:
    """The slots inside the transaction of one connection.

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

    def _lock(self, slot_ids: Collection[SlotId]) -> None:
        """Lock these slots, waiting for each."""
        if not self._is_alone:
            for slot_id in sorted(slot_ids, key=_rank):
                self._run(self._statements.lock, p_slot=slot_id)

    def _lock_slot_of(self, hold_id: UUID) -> None:
        # A hold never moves to another slot, so its slot may be looked up before the wait.
        if self._is_alone:
            return
        # Where the look itself would lock the hold, two who confirm it came into a deadlock.
        slots = self._slots_of([hold_id]) if self._statements.locks_what_it_reads else []
        if slots:
            self._lock(slots)
        else:
            self._run(self._statements.lock_slot_of, p_hold=hold_id)

    def _slots_of(self, hold_ids: Sequence[UUID]) -> Sequence[SlotId]:
        """Return the slots of these holds, locking nothing."""
        return self._run(self._statements.slots_of, p_holds=hold_ids).scalars().all()

    def _lock_free(self, slot_ids: set[SlotId]) -> set[SlotId]:
        """Lock these slots, but for those that others have locked; return which."""
        if self._skips_locked:
            locked = self._run(self._statements.lock_those_free, p_slots=list(slot_ids))
            return set(locked.scalars())
        self._lock(slot_ids)
        return slot_ids

    def _count(self, slot_id: SlotId) -> SlotCount | None:
        """Count one slot; None: there is none."""
        row = self._ask(self._statements.count, p_slot=slot_id).one_or_none()
        return row and SlotCount._make(row)

    def _free(self, slot: SlotCount) -> int:
        """How many places can be had now."""
        if self._claim.counts_holds:
            return max(0, slot.unsold - slot.promised)
        return min(slot.capacity, slot.unsold + slot.due)

    def _expire_due_of(self, slot: SlotCount) -> None:
        """Write down what is due."""
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

    def _now(self) -> datetime:
        return self._clock(self._connection)

    def _ask(self, statement: sa.Select[Any], **parameters: object) -> sa.CursorResult[Any]:
        """Run a statement that tells the time, or has to be told."""
        if self._statements.binds_time:
            parameters["p_now"] = self._now()
        return self._run(statement, **parameters)

    def _run(self, statement: sa.Executable, **parameters: object) -> sa.CursorResult[Any]:
        return self._connection.execute(statement, parameters)


def _rank(slot_id: SlotId) -> tuple[str, SlotId]:
    """Where it stands among others; two spellings of one, where "a" is "A", at the same place."""
    return (slot_id.casefold() if isinstance(slot_id, str) else "", slot_id)
