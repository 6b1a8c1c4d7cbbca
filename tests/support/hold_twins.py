"""What holds stand on, with one guard taken out: what shows that the tests of the guards see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from slotcache import Hold, HoldState, Scope
from slotcache.hook import Hook, tell_all
from slotcache.ledger import Change, HoldRequest
from slotcache.operations import Operations
from slotcache.sql.database import Database
from slotcache.sql.ledger import SqlLedger
from slotcache.sql.noted import Noted
from slotcache.sql.places import SlotCount


class CountsOnlyWhatIsSold(SqlLedger):
    """Forgets that live holds are promises."""

    def _count(self, slot_id: Any) -> SlotCount | None:
        slot = super()._count(slot_id)
        return slot and slot._replace(promised=0)


class SellsWithoutTakingOff(SqlLedger):
    """Writes the new state of a hold down, and leaves its slot as it is."""

    def _move_places(self, hold: Hold, before: HoldState | None, after: HoldState) -> None:
        pass


class SellsDeadHolds(SqlLedger):
    """Takes a hold whose time is over for a live one."""

    def _hold(self, hold_id: UUID) -> tuple[Hold, datetime]:
        hold, now = super()._hold(hold_id)
        is_dead = hold.state is HoldState.EXPIRED
        return replace(hold, state=HoldState.HELD) if is_dead else hold, now


class SumsFirst(SqlLedger):
    """Sums the live holds, then writes the slot row: the textbook's read-then-write."""

    def _lock(self, slot_ids: Any) -> None:
        (slot_id,) = slot_ids
        self._summed = super()._count(slot_id)
        super()._lock(slot_ids)

    def _count(self, slot_id: Any) -> SlotCount | None:
        return self._summed


class ForgetsKeys(SqlLedger):
    """Writes no key down."""

    def _use_key(
        self,
        request: HoldRequest,
        slots: Mapping[Any, SlotCount | None],
        ids: Sequence[UUID],
    ) -> list[Hold]:
        return []


class SharesKeys(SqlLedger):
    """Takes the keys of all owners for one another's."""

    def _use_key(
        self,
        request: HoldRequest,
        slots: Mapping[Any, SlotCount | None],
        ids: Sequence[UUID],
    ) -> list[Hold]:
        return super()._use_key(replace(request, owner=None), slots, ids)


class AsksNoQuestions(SqlLedger):
    """Answers another request under a key with the holds of the first."""

    def _use_key(
        self,
        request: HoldRequest,
        slots: Mapping[Any, SlotCount | None],
        ids: Sequence[UUID],
    ) -> list[Hold]:
        first, quantity = 1, 3
        return super()._use_key(replace(request, places={first: quantity}), slots, ids[:1])


class CancelsAgain(SqlLedger):
    """Gives the places of a cancelled hold back once more."""

    def cancel(self, hold_id: UUID, *, quantity: int | None, restock: bool) -> Change[Hold]:
        change = super().cancel(hold_id, quantity=quantity, restock=restock)
        hold = change.value
        if not hold.replayed or hold.state is HoldState.EXPIRED:
            return change
        self._move_places(hold, HoldState.CONFIRMED, HoldState.CANCELLED)
        return Change(hold, (hold.scope,))


async def tell_only_of_answers(operations: Operations, work: Any) -> Any:
    """Stands for `Operations._telling`, without its `finally`."""
    changed: list[Scope | None] = []
    answer = await work(changed)
    await tell_all(((operations.hook, scope) for scope in changed), operations._call)
    return answer


async def tell_and_fail(hook: Hook, scope: Scope | None, call: Any) -> None:
    """Stands for `Hook.tell`, without its `except`."""
    await call(hook._on_change, scope)


def tell_at_once(notes: Noted, _connection: sa.Connection) -> None:
    """Stands for `Noted._commit`: tells when SQLAlchemy is about to send the COMMIT."""
    notes.waits.tell([note for level in notes._levels for note in level])


def commit_untold(
    _database: Database,
    connection: sa.Connection,
    _scopes: tuple[Scope | None, ...],
    _changed: list[Scope | None],
) -> None:
    """Stands for `Database.commit`: does not say where something has changed."""
    connection.commit()
