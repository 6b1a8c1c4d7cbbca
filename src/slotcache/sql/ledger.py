"""What an operation does to the rows, inside one transaction, over any sync `Connection`.

The rules of `places.py` hold here too. And an idempotency key is tried after the lock, and before
anything is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from slotcache.availability import Scope, SlotId
from slotcache.errors import (
    BackendError,
    CapacityTooLow,
    HoldExpired,
    HoldNotFound,
    HoldTooSmall,
    IdempotencyConflict,
    SlotFull,
    SlotNotFound,
)
from slotcache.ledger import Change, DueHold, HoldRequest
from slotcache.lifecycle import Hold, HoldState, next_state
from slotcache.sql.places import SlotCount, SlotRows

__all__ = ["SqlLedger"]

_KEY_TRIES = 3


class SqlLedger(SlotRows):
    """The table inside the transaction of one connection: a `Ledger`."""

    def create(self, request: HoldRequest) -> Change[tuple[Hold, ...]]:
        """Promise places, if so many are free: a hold for each slot, in the order asked for."""
        ids = [self._new_id() for _ in request.places]
        self._lock_for(request)
        slots = self._counts(request.places)
        if request.idempotency_key is not None:
            earlier = self._use_key(request, slots, ids)
            if earlier:
                return Change(tuple(replace(hold, replayed=True) for hold in earlier))
        scopes = [scope for each in request.replaces for scope in self._give_up(each, request)]
        if scopes:
            slots = self._counts(request.places)
        checked = [
            self._checked(slots[slot_id], slot_id, quantity)
            for slot_id, quantity in request.places.items()
        ]
        _check_distinct(checked)
        made = self._promised(request, checked, ids)
        scopes += [hold.scope for hold in made]
        return Change(made, tuple(dict.fromkeys(scopes)))

    def confirm(self, hold_id: UUID, *, reference: str | None, revives: bool) -> Change[Hold]:
        """Make the promise good; if it `revives`, also one that expired, if there is room."""
        self._lock_slot_of(hold_id)
        hold, now = self._hold(hold_id)
        state = next_state(hold, "reacquire" if revives else "confirm")
        if state is hold.state:
            if reference not in (None, hold.reference):
                raise IdempotencyConflict(hold_id=hold.id, reference=reference)
            return Change(replace(hold, replayed=True))
        if hold.state is HoldState.EXPIRED:
            self._make_room_again(hold)
        return self._move(replace(hold, reference=reference), hold.state, state, now)

    def cancel(self, hold_id: UUID, *, quantity: int | None, restock: bool) -> Change[Hold]:
        """Take the promise, or the places sold under it, back: all of it, or so many places.

        A due hold has expired already: that is a replay, and writing it down is a sweeper's work.
        """
        self._lock_slot_of(hold_id)
        hold, now = self._hold(hold_id)
        state = next_state(hold, "cancel" if restock else "write off")
        if state is hold.state:
            return Change(replace(hold, replayed=True))
        places = hold.quantity if quantity is None else quantity
        if places > hold.quantity:
            raise HoldTooSmall(hold.id, requested=places, quantity=hold.quantity)
        if places < hold.quantity:
            return self._shrink(hold, places, state, restock=restock)
        return self._move(hold, hold.state, state, now, restock=restock)

    def extend(self, hold_id: UUID, ttl: float, *, max_lifetime: float) -> Change[Hold]:
        """Let a live hold end later: `ttl` from now, at most `max_lifetime` after it was made."""
        self._lock_slot_of(hold_id)
        hold, now = self._hold(hold_id)
        next_state(hold, "extend")
        until = min(now + timedelta(seconds=ttl), hold.created_at + timedelta(seconds=max_lifetime))
        if until <= hold.expires_at:
            return Change(replace(hold, replayed=True))
        extended = self._run(self._statements.extend, p_hold=hold.id, p_until=until)
        _check_was_there(extended)
        return Change(replace(hold, expires_at=until), ())

    def get(self, hold_id: UUID) -> Hold:
        """Return the hold as it is now."""
        return _hold_of(self._found(self._statements.get, hold_id))

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
        self._lock([slot_id])
        slot = self._count(slot_id)
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
        """Forget these holds, and the keys of which no hold is left; return how many there were."""
        forgotten = self._run(self._statements.delete_holds, p_holds=ended).rowcount
        rows = self._run(self._statements.keys_of_holds, p_holds=ended).all()
        over: list[UUID] = []
        for _, of_key in groupby(rows, key=lambda row: (row.owner, row.idempotency_key)):
            holds = list(of_key)
            if not any(row.is_there for row in holds):
                over += [row.hold_id for row in holds]
        if over:
            self._run(self._statements.delete_keys, p_holds=over)
        return Change(forgotten, ())

    def _lock_for(self, request: HoldRequest) -> None:
        """Lock the slots that are asked for, and those of the holds to be replaced."""
        if not request.replaces:
            self._lock(request.places)
            return
        if not self._skips_locked:
            self._lock(list(request.places)[:1])  # SQLite lets nobody wait who has read before
        self._lock({*request.places, *self._slots_of(request.replaces)})

    def _counts(self, slot_ids: Iterable[SlotId]) -> dict[SlotId, SlotCount | None]:
        return {slot_id: self._count(slot_id) for slot_id in slot_ids}

    def _checked(self, slot: SlotCount | None, slot_id: SlotId, quantity: int) -> SlotCount:
        """Return the slot if it can be had: it is open, and so many places are free."""
        if slot is None or not slot.is_open:
            raise SlotNotFound(slot_id)
        free = self._free(slot)
        if quantity > free:
            raise SlotFull(slot_id, requested=quantity, remaining=free)
        return slot

    def _promised(
        self, request: HoldRequest, slots: Sequence[SlotCount], ids: Sequence[UUID]
    ) -> tuple[Hold, ...]:
        """Write the holds down; all begin and end at the same instants."""
        now = max(slot.now for slot in slots)
        made = tuple(
            Hold(
                id=hold_id,
                slot_id=slot.slot_id,
                scope=slot.scope,
                quantity=quantity,
                state=HoldState.HELD,
                created_at=now,
                expires_at=now + timedelta(seconds=request.ttl),
                owner=request.owner,
            )
            for hold_id, slot, quantity in zip(ids, slots, request.places.values(), strict=True)
        )
        for slot, hold in zip(slots, made, strict=True):
            self._expire_due_of(slot)
            self._move_places(hold, None, HoldState.HELD)
            self._insert(hold)
        return made

    def _give_up(self, hold_id: UUID, request: HoldRequest) -> Sequence[Scope | None]:
        """End a hold to make room for the request; return where that is to be seen."""
        hold, now = self._hold(hold_id)
        if request.owner not in (None, hold.owner):
            raise HoldNotFound(hold_id, owner=request.owner)
        state = next_state(hold, "replace")
        if state is hold.state:
            return ()
        return self._move(hold, hold.state, state, now).scopes or ()

    def _make_room_again(self, hold: Hold) -> None:
        """See to it that places are free for a hold that has expired, and that this is written."""
        if self._run(self._statements.expire_one, p_hold=hold.id).rowcount:
            self._give_back_expired(hold.slot_id, hold.quantity)
        try:
            slot = self._checked(self._count(hold.slot_id), hold.slot_id, hold.quantity)
        except (SlotFull, SlotNotFound) as error:
            raise HoldExpired(hold.id, expires_at=hold.expires_at, late=True) from error
        self._expire_due_of(slot)

    def _move(
        self,
        hold: Hold,
        before: HoldState,
        after: HoldState,
        now: datetime,
        *,
        restock: bool = True,
    ) -> Change[Hold]:
        if restock:
            self._move_places(hold, before, after)
        moved = self._run(
            self._statements.move,
            p_hold=hold.id,
            p_from=before.value,
            p_to=after.value,
            p_ended=now if after is HoldState.CANCELLED else None,
            p_reference=hold.reference,
        )
        if before is HoldState.EXPIRED and not moved.rowcount:
            raise HoldNotFound(hold.id)  # it was purged meanwhile, which locks no slot
        _check_was_there(moved)
        return Change(replace(hold, state=after), (hold.scope,))

    def _shrink(self, hold: Hold, places: int, after: HoldState, *, restock: bool) -> Change[Hold]:
        """Give up some places of a hold, which stays what it is for the rest."""
        if restock:
            self._move_places(replace(hold, quantity=places), hold.state, after)
        shrunk = self._run(
            self._statements.shrink, p_hold=hold.id, p_from=hold.state.value, p_places=places
        )
        _check_was_there(shrunk)
        return Change(replace(hold, quantity=hold.quantity - places), (hold.scope,))

    def _use_key(
        self,
        request: HoldRequest,
        slots: Mapping[SlotId, SlotCount | None],
        ids: Sequence[UUID],
    ) -> list[Hold]:
        """Take the key for these holds; or return those that it was taken for."""
        digest = _digest_of(request, slots)
        owner, key = request.owner or "", request.idempotency_key
        assert key is not None
        rows = [
            {
                "owner": owner,
                "idempotency_key": key,
                "position": position,
                "request": digest,
                "hold_id": hold_id,
            }
            for position, hold_id in enumerate(ids)
        ]
        for _ in range(_KEY_TRIES):
            if self._run(self._statements.insert_key, **rows[0]).rowcount:
                for row in rows[1:]:
                    self._run(self._statements.insert_key, **row)
                return []
            used = self._run(self._statements.find_key, p_owner=owner, p_key=key).all()
            holds: list[Hold] = []
            for of_key in used:
                with suppress(HoldNotFound):
                    holds.append(self._hold(of_key.hold_id)[0])
            if holds and used[0].request != digest:
                raise IdempotencyConflict(hold_id=holds[0].id, idempotency_key=key)
            if holds:
                return holds
            if used:  # two purges, each of which took the other's holds for alive
                self._run(self._statements.delete_keys, p_holds=[each.hold_id for each in used])
        raise BackendError(f"idempotency key {key!r} comes and goes: look who deletes keys")

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
        """Return the hold as it is once its slot is locked, and the time."""
        row = self._found(self._statements.get_latest, hold_id)
        return _hold_of(row), row.now

    def _found(self, statement: sa.Select[Any], hold_id: UUID) -> sa.Row[Any]:
        row = self._ask(statement, p_hold=hold_id).one_or_none()
        if row is None:
            raise HoldNotFound(hold_id)
        return row


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
        reference=row.reference,
    )


def _digest_of(request: HoldRequest, slots: Mapping[SlotId, SlotCount | None]) -> str:
    """What two requests under one key have to agree on.

    Not the ttl: whoever sends a request again may ask for the time that is left.
    """
    asked = [
        (str(slot_id if (slot := slots[slot_id]) is None else slot.slot_id), quantity)
        for slot_id, quantity in request.places.items()
    ]
    return hashlib.sha256(json.dumps(sorted(asked)).encode()).hexdigest()


def _check_distinct(slots: Sequence[SlotCount]) -> None:
    """Refuse two spellings of one slot: each was counted as if it were the only one."""
    for slot_id, count in Counter(slot.slot_id for slot in slots).items():
        if count > 1:
            raise ValueError(
                f"slot {slot_id!r} is there twice, in two spellings that the database takes for "
                "the same: name it once, as the rows do"
            )


def _check_was_there(changed: sa.CursorResult[Any]) -> None:
    assert changed.rowcount == 1, "the hold changed although its slot is locked"
