"""A hold in one statement, on PostgreSQL: while its slot is locked, nobody waits for a network.

Most requests are plain: the slot is open, there is room, nothing is due, there is no key, and in
`counted` nobody else is at it. For these the whole transaction is one statement, which commits by
itself. It makes the hold, or it changes nothing; then the ledger does it step by step, and says
why. A `where` that looks at other tables is always the ledger's: a statement that has waited sees
those as they were before.

All that a statement reads is as of its start. What makes that safe differs by claim:

- `on_hold`: the condition is on the slot's row alone, and an UPDATE that had to wait for the row
  looks at it again.
- `counted`: the holds are counted as of the start, so nobody may have made one since. Whoever
  does writes the slot's row before. So the row is locked without waiting, and it has to be the
  very version (`ctid`) that the count saw, which nobody can reuse while it may be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from slotcache.errors import BackendError, Busy
from slotcache.ledger import HoldRequest
from slotcache.lifecycle import Hold, HoldState
from slotcache.protocols import Scope
from slotcache.sql.claims import Claim
from slotcache.sql.columns import Instant
from slotcache.sql.database import Disconnected, Overtaken
from slotcache.sql.servers import Postgres, Turn
from slotcache.sql.statements import Statements
from slotcache.sql.tables import HELD, SlotColumns

__all__ = ["Shortcut"]

_VERSION: sa.ColumnClause[Any] = sa.literal_column("ctid")
_GIVEN_TIME = sa.bindparam("p_now", type_=Instant())
_QUANTITY = sa.bindparam("p_quantity", type_=sa.Integer())
_SECONDS: sa.BindParameter[float] = sa.bindparam("p_seconds", type_=sa.Double())
_MAX_QUANTITY = 2**31 - 1


class Shortcut:
    """Makes plain holds in one statement.

    Args:
        database: The database.
        slots: The table of slots.
        holds: The table of holds on them.
        statements: Its statements.
        claim: How the column `remaining` is kept.
        new_id: Makes the id of a hold.
    """

    def __init__(
        self,
        database: Postgres,
        slots: SlotColumns,
        holds: sa.Table,
        statements: Statements,
        *,
        claim: Claim,
        new_id: Callable[[], UUID],
    ) -> None:
        self._database = database
        self._binds_time = statements.binds_time
        self._new_id = new_id
        self._slots = slots
        slot = self._seen(statements) if claim.counts_holds else self._taken(statements)
        self._statement = self._insert(holds, slot)

    def create(
        self, request: HoldRequest, changed: list[Scope | None], *, lock_wait: float
    ) -> Hold | None:
        """Make a hold; None: it takes more than that. `changed` is as of `HoldTable._transact`.

        If the answer is lost, the scope is not known: then that is None, which is all of them.
        """
        if not _is_plain(request):
            return None
        ((slot_id, quantity),) = request.places.items()
        hold_id = self._new_id()
        parameters = {
            "p_hold": hold_id,
            "p_slot": slot_id,
            "p_quantity": quantity,
            "p_owner": request.owner,
            "p_seconds": request.ttl,
        }
        row = self._sent(parameters, changed, lock_wait)
        changed[:] = [] if row is None else [row.scope]
        if row is None:
            return None
        return Hold(
            id=hold_id,
            slot_id=row.slot_id,
            scope=row.scope,
            quantity=quantity,
            state=HoldState.HELD,
            created_at=row.created_at,
            expires_at=row.expires_at,
            owner=request.owner,
        )

    def _sent(
        self, parameters: dict[str, Any], changed: list[Scope | None], lock_wait: float
    ) -> sa.Row[Any] | None:
        """Return what the statement returned; None: it did nothing, and was not refused for good.

        When this raises, `changed` is empty only if it is certain that it did nothing.
        """
        try:
            with self._database.at_once(lock_wait) as turn:
                return self._run(turn, parameters, changed)
        except Busy:
            changed.clear()
            raise
        except Overtaken:
            return None
        except Disconnected as error:
            if changed:
                raise error.otherwise from error.__cause__
            return None
        except BackendError as error:
            # The ledger may do without what the server refused: "ctid" in a view, for one.
            if changed and self._database.answered_no(error.__cause__):
                return None
            raise

    def _run(
        self, turn: Turn, parameters: dict[str, Any], changed: list[Scope | None]
    ) -> sa.Row[Any] | None:
        connection = turn.connection
        if self._binds_time:
            parameters["p_now"] = self._database.now(connection)
        parameters["p_patience"] = turn.patience_before
        changed.append(None)  # from here on its answer may be lost
        try:
            # It is its own commit.
            row = self._database.waits.to_its_end(
                lambda: connection.execute(self._statement, parameters).one_or_none()
            )
        except DBAPIError as error:
            if self._database.has_forgotten(error):
                connection.invalidate()
            raise
        if row is not None:
            turn.patience_before = None  # the statement has put it back
        return row

    def _taken(self, statements: Statements) -> sa.CTE:
        """The slot, locked, its places taken off: none if it does not fit."""
        slots = self._slots
        taken = (
            sa.update(slots.table)
            .values({slots.remaining: slots.remaining - _QUANTITY})
            .where(
                self._is_asked_for(),
                slots.remaining >= _QUANTITY,
                ~statements.has_due(),
                *self._is_open(),
            )
            .returning(slots.slot_id.label("slot_id"), slots.scope_or_null().label("scope"))
            .cte("taken")
        )
        # Asked for once it is locked, since it needs a row of that.
        now = _GIVEN_TIME if self._binds_time else sa.func.clock_timestamp(type_=Instant())
        return sa.select(taken.c.slot_id, taken.c.scope, now.label("now")).cte("slot")

    def _seen(self, statements: Statements) -> sa.CTE:
        """The slot, counted, then locked: none if that takes waiting, or it does not fit."""
        counted = statements.count.add_columns(_VERSION.label("version")).cte("slotcache_counted")
        locked = self._locked()
        fitting = (
            sa.select(counted)
            .join(locked, self._is_version(counted, locked))
            .where(
                counted.c.is_open == 1,
                counted.c.due == 0,
                counted.c.unsold - counted.c.promised >= _QUANTITY,
            )
            .cte("fitting")
        )
        written = self._written(fitting)
        return (
            sa.select(fitting.c.slot_id, fitting.c.scope, fitting.c.now)
            .join(written, written.c.slot_id == fitting.c.slot_id)
            .cte("slot")
        )

    def _locked(self) -> sa.CTE:
        return (
            sa.select(_VERSION.label("version"))
            .select_from(self._slots.table)
            .where(self._is_asked_for())
            .with_for_update(skip_locked=True)
            .cte("locked")
        )

    def _is_version(self, counted: sa.CTE, locked: sa.CTE) -> sa.ColumnElement[bool]:
        """Whether nobody has written the row since it was counted."""
        condition: sa.ColumnElement[bool] = locked.c.version == counted.c.version
        return condition

    def _written(self, fitting: sa.CTE) -> sa.CTE:
        """The row written: that is how others see that it has been in our hands."""
        slots = self._slots
        return (
            sa.update(slots.table)
            .values({slots.remaining: slots.remaining})
            .where(
                self._is_asked_for(),  # a version is one of a partition
                sa.select(fitting.c.version).scalar_subquery() == _VERSION,
            )
            .returning(slots.slot_id.label("slot_id"))
            .cte("written")
        )

    def _insert(self, holds: sa.Table, slot: sa.CTE) -> Any:
        made = {
            "id": sa.bindparam("p_hold", type_=holds.c.id.type),
            "slot_id": slot.c.slot_id,
            "quantity": _QUANTITY,
            "state": HELD,
            "created_at": slot.c.now,
            # Seconds: a day is not as long as another one where the session's clocks change.
            "expires_at": slot.c.now + sa.func.make_interval(0, 0, 0, 0, 0, 0, _SECONDS),
            "owner": sa.bindparam("p_owner", type_=holds.c.owner.type),
        }
        return (
            sa.insert(holds)
            .from_select(list(made), sa.select(*made.values()))
            .returning(
                holds.c.slot_id,
                holds.c.created_at,
                holds.c.expires_at,
                sa.select(slot.c.scope).scalar_subquery().label("scope"),
                self._database.put_patience_back(sa.bindparam("p_patience")),
            )
        )

    def _is_asked_for(self) -> sa.ColumnElement[bool]:
        return self._slots.slot_id == sa.bindparam("p_slot", type_=self._slots.slot_id.type)

    def _is_open(self) -> list[sa.ColumnExpressionArgument[bool]]:
        return [] if self._slots.where is None else [self._slots.where]


def _is_plain(request: HoldRequest) -> bool:
    """Whether one statement can do it, if the slot is in a plain state, too."""
    if request.idempotency_key is not None or request.replaces or len(request.places) != 1:
        return False
    (quantity,) = request.places.values()
    return quantity <= _MAX_QUANTITY
