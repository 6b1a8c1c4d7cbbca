"""Every statement that slotcache sends, built once for each table and run many times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from slotcache.lifecycle import HoldState
from slotcache.sql.claims import Claim
from slotcache.sql.columns import Instant
from slotcache.sql.database import Database
from slotcache.sql.tables import HELD, SlotColumns

__all__ = ["Statements"]


class Statements:
    """The statements over one table of slots, its holds, and their idempotency keys.

    Their parameters begin with `p_`, so that a `where` may bind names of its own. Two rules:
    what locks a slot row writes it, and nothing that locks also counts (a sub-query in a locking
    statement may be evaluated on the snapshot from before the wait).

    Those that read also tell the time, all parts of one statement the same. Those that write are
    given it.

    Args:
        slots: The table of slots.
        holds: The table of holds on them.
        keys: The table of idempotency keys.
        claim: How the column `remaining` is kept.
        database: For what each database says in its own way.
        locks_what_it_reads: Whether what an operation decides on is read with locks, as is needed
            where a plain read would be of a snapshot from before the slot was locked.
    """

    def __init__(
        self,
        slots: SlotColumns,
        holds: sa.Table,
        keys: sa.Table,
        *,
        claim: Claim,
        database: Database,
        locks_what_it_reads: bool = False,
    ) -> None:
        self.locks_what_it_reads = locks_what_it_reads
        self._slots = slots
        self._holds = holds.c
        self._of_slot = holds.c.slot_id == slots.slot_id
        self._claim = claim
        self._database = database
        self._slot = sa.bindparam("p_slot", type_=slots.slot_id.type)
        self._hold = sa.bindparam("p_hold", type_=holds.c.id.type)
        self._given_time = sa.bindparam("p_now", type_=Instant())
        clock = database.clock()
        self._time = self._given_time if clock is None else clock
        self.binds_time = clock is None
        if slots.scope is not None:
            self._listed_scope = sa.bindparam("p_scope", type_=slots.scope.type)
        self._write_slot(holds)
        self._write_holds(holds)
        self._write_keys(keys)
        self._purge(holds, keys)
        self.count = self._count()
        self.get = self._holds_found().where(self._holds.id == self._hold)
        self.get_latest = self._latest(self.get)

    def _write_slot(self, holds: sa.Table) -> None:
        slots = self._slots
        touch = sa.update(slots.table).values({slots.remaining: slots.remaining})
        slot_of_hold = sa.select(holds.c.slot_id).where(holds.c.id == self._hold)
        this_slot = slots.slot_id == self._slot
        self.lock = touch.where(this_slot)
        self.lock_slot_of = touch.where(slots.slot_id == slot_of_hold.scalar_subquery())
        slot_ids = sa.bindparam("p_slots", type_=slots.slot_id.type, expanding=True)
        self.lock_those_free = (
            sa.select(slots.slot_id)
            .where(slots.slot_id.in_(slot_ids))
            .order_by(slots.slot_id)
            .with_for_update(skip_locked=True)
        )
        remaining, capacity = _signed(slots.remaining), _signed(slots.capacity)
        places = remaining + sa.bindparam("p_places", type_=sa.Integer())
        self.add_places = (
            sa.update(slots.table)
            .where(this_slot, places.between(0, capacity))
            .values({slots.remaining: places})
        )
        self.fill_up = (
            sa.update(slots.table).where(this_slot).values({slots.remaining: slots.capacity})
        )
        wanted = sa.bindparam("p_capacity", type_=sa.Integer())
        # In this order: MySQL's second assignment sees what the first has written.
        self.resize = (
            sa.update(slots.table)
            .where(this_slot)
            .ordered_values(
                (slots.remaining, remaining + (wanted - capacity)),
                (slots.capacity, wanted),
            )
        )

    def _write_holds(self, holds: sa.Table) -> None:
        ids = sa.bindparam("p_holds", type_=holds.c.id.type, expanding=True)
        is_due = holds.c.state == HELD, holds.c.expires_at <= self._given_time
        expired = sa.update(holds).values(
            state=HoldState.EXPIRED.value, ended_at=holds.c.expires_at
        )
        self.insert = sa.insert(holds)
        self.move = (
            sa.update(holds)
            .where(holds.c.id == self._hold, holds.c.state == sa.bindparam("p_from"))
            .values(
                state=sa.bindparam("p_to"),
                ended_at=sa.bindparam("p_ended", type_=Instant()),
                reference=sa.bindparam("p_reference", type_=holds.c.reference.type),
            )
        )
        fewer = holds.c.quantity - sa.bindparam("p_places", type_=sa.Integer())
        self.shrink = (
            sa.update(holds)
            .where(holds.c.id == self._hold, holds.c.state == sa.bindparam("p_from"))
            .values(quantity=fewer)
        )
        self.extend = (
            sa.update(holds)
            .where(holds.c.id == self._hold, holds.c.state == HELD)
            .values(expires_at=sa.bindparam("p_until", type_=Instant()))
        )
        self.expire_due_of = expired.where(holds.c.slot_id == self._slot, *is_due)
        self.expire = expired.where(holds.c.id.in_(ids))
        self.expire_one = expired.where(holds.c.id == self._hold, holds.c.state == HELD)
        self.slots_of = sa.select(holds.c.slot_id).where(holds.c.id.in_(ids))
        self.due = (
            sa.select(holds.c.id, holds.c.slot_id)
            .join_from(holds, self._slots.table, self._of_slot)
            .where(*self._due_holds())
            .order_by(holds.c.expires_at)
            .limit(sa.bindparam("p_limit", type_=sa.Integer()))
        )
        self.still_due = self._latest(
            sa.select(holds.c.id, holds.c.slot_id, holds.c.quantity, self._scope())
            .join_from(holds, self._slots.table, self._of_slot)
            .where(holds.c.id.in_(ids), *self._due_holds())
        )

    def _write_keys(self, keys: sa.Table) -> None:
        insert_key = self._database.insert_unless_there(keys)
        self.insert_key = insert_key.execution_options(preserve_rowcount=True)
        self.find_key = self._latest(
            sa.select(keys.c.request, keys.c.hold_id)
            .where(
                keys.c.owner == sa.bindparam("p_owner", type_=keys.c.owner.type),
                keys.c.idempotency_key == sa.bindparam("p_key", type_=keys.c.idempotency_key.type),
            )
            .order_by(keys.c.position)
        )

    def _purge(self, holds: sa.Table, keys: sa.Table) -> None:
        ids = sa.bindparam("p_holds", type_=holds.c.id.type, expanding=True)
        self.ended = (
            sa.select(holds.c.id)
            .where(holds.c.ended_at <= sa.bindparam("p_before", type_=Instant()))
            .order_by(holds.c.ended_at)
            .limit(sa.bindparam("p_limit", type_=sa.Integer()))
        )
        some, of_same_key = keys.alias("some"), keys.alias("of_same_key")
        self.keys_of_holds = (
            sa.select(
                of_same_key.c.owner,
                of_same_key.c.idempotency_key,
                of_same_key.c.hold_id,
                holds.c.id.is_not(None).label("is_there"),
            )
            .distinct()
            .join_from(
                some,
                of_same_key,
                sa.and_(
                    some.c.owner == of_same_key.c.owner,
                    some.c.idempotency_key == of_same_key.c.idempotency_key,
                ),
            )
            .outerjoin(holds, holds.c.id == of_same_key.c.hold_id)
            .where(some.c.hold_id.in_(ids))
            .order_by(of_same_key.c.owner, of_same_key.c.idempotency_key)
        )
        self.delete_keys = sa.delete(keys).where(keys.c.hold_id.in_(ids))
        # One may have been confirmed late since it was found.
        is_over = holds.c.ended_at.is_not(None)
        self.delete_holds = sa.delete(holds).where(holds.c.id.in_(ids), is_over)

    def _count(self) -> sa.Select[Any]:
        """The columns of a `SlotCount`."""
        slots = self._slots
        counted = sa.select(
            slots.slot_id.label("slot_id"),
            slots.capacity.label("capacity"),
            slots.remaining.label("unsold"),
            self._places_of(*self._live_holds()).label("promised"),
            self._places_of(*self._due_holds()).label("due"),
            self._scope(),
            self._is_open().label("is_open"),
            self._now(),
        )
        return self._latest(counted.where(slots.slot_id == self._slot))

    def _places_of(self, *which: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        total = sa.select(_total(self._holds.quantity)).where(self._of_slot, *which)
        return self._latest(total).scalar_subquery()

    def _latest(self, decisive: sa.Select[Any]) -> sa.Select[Any]:
        """What an operation decides on: as it is, not as it was before a lock was waited for."""
        return decisive.with_for_update(read=True) if self.locks_what_it_reads else decisive

    def has_due(self) -> sa.ColumnElement[bool]:
        """Whether holds of a slot are due, though nobody has written that down."""
        return sa.exists().where(self._of_slot, *self._due_holds())

    def _is_open(self) -> sa.ColumnElement[int]:
        if self._slots.where is None:
            return sa.literal_column("1", sa.Integer)
        return sa.case((self._slots.where, 1), else_=0)

    def holds_found(
        self, *, by_slot: bool, by_owner: bool, state: HoldState | None
    ) -> sa.Select[Any]:
        """The holds of a slot, of an owner, in a state at this instant: the latest first."""
        holds = self._holds
        found = self._holds_found()
        if by_slot:
            found = found.where(holds.slot_id == self._slot)
        if by_owner:
            found = found.where(holds.owner == sa.bindparam("p_owner", type_=holds.owner.type))
        if state is HoldState.HELD:
            found = found.where(*self._live_holds())
        elif state is HoldState.EXPIRED:
            expired = holds.state == HoldState.EXPIRED.value
            found = found.where(sa.or_(expired, sa.and_(*self._due_holds())))
        elif state is not None:
            found = found.where(holds.state == state.value)
        return found.order_by(holds.created_at.desc(), holds.id).limit(
            sa.bindparam("p_limit", type_=sa.Integer())
        )

    def _holds_found(self) -> sa.Select[Any]:
        """The columns of a `Hold`, by name: a table of somebody's may have others."""
        holds, slots = self._holds, self._slots
        return sa.select(
            holds.id,
            holds.slot_id,
            holds.quantity,
            holds.state,
            holds.created_at,
            holds.expires_at,
            holds.owner,
            holds.reference,
            self._scope(),
            self._now(),
        ).outerjoin_from(holds.id.table, slots.table, self._of_slot)

    def list_of(self, *, scoped: bool) -> sa.Select[Any]:
        """The list: slot_id, capacity, what is free, when the next live hold ends.

        It is one statement, so one snapshot. What it costs depends on the slots listed and on
        their live holds alone: those of other scopes are not even looked at. A list of scopes
        that are text has one more column, the scope where it is spelled differently.
        """
        slots = self._slots
        listed: list[sa.ColumnExpressionArgument[bool]] = []
        if slots.where is not None:
            listed.append(slots.where)
        other_spelling: list[sa.ColumnElement[Any]] = []
        if scoped and slots.scope is not None:
            listed.append(slots.scope == self._listed_scope)
            if slots.scope_type is str:
                other_spelling.append(self._other_spelling(slots.scope))
        by_slot, is_joined = self._held_by_slot(listed)
        free = self._free(by_slot.c.places)
        return (
            sa.select(slots.slot_id, slots.capacity, free, by_slot.c.next_end, *other_spelling)
            .outerjoin_from(slots.table, by_slot, is_joined)
            .where(*listed)
            .order_by(slots.slot_id)
        )

    def _held_by_slot(
        self, listed: Sequence[sa.ColumnExpressionArgument[bool]]
    ) -> tuple[sa.FromClause, sa.ColumnElement[bool]]:
        """What is held of each slot that is listed, and how it is joined to that."""
        slots, holds, held = self._slots, self._holds, self._held()
        if listed and self._database.joins_lateral:
            # Else PostgreSQL finds it easier to look at the holds of all slots.
            return held.where(self._of_slot).correlate(slots.table).lateral(
                "slotcache_held"
            ), sa.true()
        if listed:
            held = held.where(holds.slot_id.in_(sa.select(slots.slot_id).where(*listed)))
        grouped = held.add_columns(holds.slot_id).group_by(holds.slot_id).subquery("slotcache_held")
        return grouped, grouped.c.slot_id == slots.slot_id

    def _held(self) -> sa.Select[int, Any]:
        """The places by which the column is wrong, and when the first live hold ends."""
        holds = self._holds
        if self._claim.counts_holds:
            places, next_end = _total(holds.quantity), sa.func.min(holds.expires_at)
            which = self._live_holds()
        else:
            is_live = holds.expires_at > self._time
            places = _total(sa.case((is_live, 0), else_=holds.quantity))
            next_end = sa.func.min(sa.case((is_live, holds.expires_at)))
            which = (holds.state == HELD,)
        return sa.select(places.label("places"), next_end.label("next_end")).where(*which)

    def _free(self, places: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
        column, capacity = _signed(self._slots.remaining), _signed(self._slots.capacity)
        if self._claim.counts_holds:
            correct = sa.case((column > places, column - places), else_=0)
        else:
            correct = sa.case((column + places < capacity, column + places), else_=capacity)
        return sa.case((places.is_(None), column), else_=correct).label("free")

    def _other_spelling(self, scope: sa.Column[Any]) -> sa.ColumnElement[Any]:
        """The scope of a row that the database takes for the one asked for, but is not."""
        exact = self._database.is_spelled(scope, self._listed_scope)
        return sa.case((exact, sa.null()), else_=scope).label("other_spelling")

    def _scope(self) -> sa.ColumnElement[Any]:
        return self._slots.scope_or_null().label("scope")

    def _now(self) -> sa.ColumnElement[Any]:
        return self._time.label("now")

    def _live_holds(self) -> tuple[sa.ColumnElement[bool], ...]:
        return self._holds.state == HELD, self._holds.expires_at > self._time

    def _due_holds(self) -> tuple[sa.ColumnElement[bool], ...]:
        return self._holds.state == HELD, self._holds.expires_at <= self._time


def _signed(column: sa.Column[Any]) -> sa.ColumnElement[int]:
    """A column of numbers to reckon with: MySQL may have it UNSIGNED, and fails below zero."""
    return sa.cast(column, sa.BigInteger())


def _total(places: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    """Their sum as a plain integer: MySQL answers a decimal number."""
    return sa.cast(sa.func.coalesce(sa.func.sum(places), 0), sa.BigInteger())
