"""Every statement that slotcache sends, built once for each table and run many times."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from slotcache.lifecycle import HoldState
from slotcache.sql.tables import HELD, Instant, SlotColumns

__all__ = ["Statements"]


class Statements:
    """The statements over one table of slots and its holds.

    Their parameters begin with `p_`, so that a `where` may bind names of its own. Two rules:
    what locks a slot row writes it, and nothing that locks also counts (a sub-query in a locking
    statement may be evaluated on the snapshot from before the wait).

    Args:
        slots: The table of slots.
        holds: The table of holds on them.
        exact_collation: The collation under which only equal text is equal.
    """

    def __init__(self, slots: SlotColumns, holds: sa.Table, *, exact_collation: str) -> None:
        self._slots = slots
        self._holds = holds.c
        self._exact_collation = exact_collation
        self._slot = sa.bindparam("p_slot", type_=slots.slot_id.type)
        self._hold = sa.bindparam("p_hold", type_=holds.c.id.type)
        self._now = sa.bindparam("p_now", type_=Instant())
        if slots.scope is not None:
            self._listed_scope = sa.bindparam("p_scope", type_=slots.scope.type)
        self._write_slot(holds)
        self._write_holds(holds)
        self.count = self._count()
        self.find = self._find()

    def _write_slot(self, holds: sa.Table) -> None:
        slots = self._slots
        touch = sa.update(slots.table).values({slots.remaining: slots.remaining})
        slot_of_hold = sa.select(holds.c.slot_id).where(holds.c.id == self._hold)
        this_slot = slots.slot_id == self._slot
        self.lock = touch.where(this_slot)
        self.lock_open = self.lock if slots.where is None else self.lock.where(slots.where)
        self.lock_slot_of = touch.where(slots.slot_id == slot_of_hold.scalar_subquery())
        places = slots.remaining + sa.bindparam("p_places", type_=sa.Integer())
        self.add_places = (
            sa.update(slots.table)
            .where(this_slot, places.between(0, slots.capacity))
            .values({slots.remaining: places})
        )

    def _write_holds(self, holds: sa.Table) -> None:
        expired = sa.update(holds).values(state=HoldState.EXPIRED.value)
        ids = sa.bindparam("p_holds", type_=holds.c.id.type, expanding=True)
        self.insert = sa.insert(holds)
        self.move = (
            sa.update(holds)
            .where(holds.c.id == self._hold, holds.c.state == sa.bindparam("p_from"))
            .values(state=sa.bindparam("p_to"))
        )
        self.expire_due_of = expired.where(holds.c.slot_id == self._slot, *self._due_holds())
        self.expire = expired.where(holds.c.id.in_(ids))
        self.due = (
            sa.select(holds.c.id, holds.c.slot_id)
            .where(*self._due_holds())
            .order_by(holds.c.expires_at)
            .limit(sa.bindparam("p_limit", type_=sa.Integer()))
        )
        self.still_due = (
            sa.select(holds.c.id, self._scope())
            .join_from(holds, self._slots.table, holds.c.slot_id == self._slots.slot_id)
            .where(holds.c.id.in_(ids), *self._due_holds())
        )

    def _count(self) -> sa.Select[Any]:
        """The columns of a `SlotCount`."""
        slots, holds = self._slots, self._holds
        of_slot = holds.slot_id == slots.slot_id
        promised = sa.select(sa.func.coalesce(sa.func.sum(holds.quantity), 0))
        return sa.select(
            slots.slot_id.label("slot_id"),
            slots.remaining.label("unsold"),
            promised.where(of_slot, *self._live_holds()).scalar_subquery().label("promised"),
            sa.exists().where(of_slot, *self._due_holds()).label("some_due"),
            self._scope(),
        ).where(slots.slot_id == self._slot)

    def _find(self) -> sa.Select[Any]:
        holds, slots = self._holds, self._slots
        return (
            sa.select(*holds, self._scope())
            .outerjoin_from(holds.id.table, slots.table, holds.slot_id == slots.slot_id)
            .where(holds.id == self._hold)
        )

    def list_of(self, *, scoped: bool) -> sa.Select[Any]:
        """The list: slot_id, capacity, what is free, when the next live hold ends.

        It is one statement, so one snapshot. What it costs depends on the slots listed and on
        their live holds alone: those of other scopes are not even looked at. A list of scopes
        that are text has one more column, the scope where it is spelled differently.
        """
        slots, holds = self._slots, self._holds
        listed: list[sa.ColumnExpressionArgument[bool]] = []
        if slots.where is not None:
            listed.append(slots.where)
        other_spelling: list[sa.ColumnElement[Any]] = []
        if scoped and slots.scope is not None:
            listed.append(slots.scope == self._listed_scope)
            if slots.scope_type is str:
                other_spelling.append(self._other_spelling(slots.scope))
        live = sa.select(
            holds.slot_id,
            sa.func.sum(holds.quantity).label("promised"),
            sa.func.min(holds.expires_at).label("next_end"),
        ).where(*self._live_holds())
        if listed:
            live = live.where(holds.slot_id.in_(sa.select(slots.slot_id).where(*listed)))
        promises = live.group_by(holds.slot_id).subquery("live")
        free = self._free(promises.c.promised)
        return (
            sa.select(slots.slot_id, slots.capacity, free, promises.c.next_end, *other_spelling)
            .outerjoin_from(slots.table, promises, promises.c.slot_id == slots.slot_id)
            .where(*listed)
            .order_by(slots.slot_id)
        )

    def _free(self, promised: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
        unsold = self._slots.remaining
        return sa.case(
            (promised.is_(None), unsold), (unsold > promised, unsold - promised), else_=0
        ).label("free")

    def _other_spelling(self, scope: sa.Column[Any]) -> sa.ColumnElement[Any]:
        """The scope of a row that the database takes for the one asked for, but is not."""
        exact = sa.collate(scope, self._exact_collation) == self._listed_scope
        return sa.case((exact, sa.null()), else_=scope).label("other_spelling")

    def _scope(self) -> sa.ColumnElement[Any]:
        return (sa.null() if self._slots.scope is None else self._slots.scope).label("scope")

    def _live_holds(self) -> tuple[sa.ColumnElement[bool], ...]:
        return self._holds.state == HELD, self._holds.expires_at > self._now

    def _due_holds(self) -> tuple[sa.ColumnElement[bool], ...]:
        return self._holds.state == HELD, self._holds.expires_at <= self._now
