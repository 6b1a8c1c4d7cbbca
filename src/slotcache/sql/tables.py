"""The tables: which columns hold the slots, and the tables that slotcache ships."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, TypeAlias
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.schema import SchemaItem, conv
from sqlalchemy.sql.visitors import iterate
from sqlalchemy.types import TypeEngine

from slotcache.availability import Scope, SlotId
from slotcache.lifecycle import HoldState
from slotcache.sql.columns import ExactText, Instant, uuid_column

__all__ = [
    "HELD",
    "ColumnNames",
    "SlotColumns",
    "hold_table",
    "holds_of",
    "key_table",
    "keys_of",
    "map_slots",
    "python_type",
    "shipped_slots",
]

ColumnNames: TypeAlias = Mapping[str, Any]
"""Our name of a column to theirs: its name, its `Column`, or the attribute of a mapped class."""

HELD = sa.literal_column(f"'{HoldState.HELD.value}'", sa.String)
"""Written into the statements, not bound: only so can SQLite use an index of held rows alone."""

_TRANSACTIONAL: Mapping[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}

_REQUIRED = ("slot_id", "capacity", "remaining")
_ID_COLUMNS: Mapping[type, TypeEngine[Any]] = {
    # BIGINT would not be SQLite's rowid, and cost an index of its own.
    int: sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
    str: sa.String(255),
    UUID: uuid_column(),
}


@dataclass(frozen=True, slots=True, eq=False)
class SlotColumns:
    """A table of slots, as slotcache sees it.

    Attributes:
        table: The table.
        source: The class that is mapped to it, or again the table.
        slot_id: Its key.
        capacity: How many places a slot has in all.
        remaining: How many of them are not sold.
        scope: What partitions the list; None: nothing does.
        where: What a slot has to satisfy to be listed and promised; None: nothing.
    """

    table: sa.Table
    source: sa.Table | type[Any]
    slot_id: sa.Column[Any]
    capacity: sa.Column[Any]
    remaining: sa.Column[Any]
    scope: sa.Column[Any] | None
    where: sa.ColumnExpressionArgument[bool] | None

    @property
    def id_type(self) -> type[SlotId]:
        """The type of the slot ids."""
        return _python_type(self.slot_id, int, str, UUID)

    @property
    def where_is_simple(self) -> bool:
        """Whether `where` is about the slot's own row alone, as far as one can see."""
        if self.where is None:
            return True
        condition = sa.select(self.table).where(self.where).whereclause
        parts = [] if condition is None else iterate(condition)
        return not any(_looks_elsewhere(part, self.table) for part in parts)

    def scope_or_null(self) -> sa.ColumnElement[Any]:
        """The scope of a slot, in a statement."""
        return sa.null() if self.scope is None else self.scope

    @property
    def scope_type(self) -> type[Scope] | None:
        """The type of the scopes; None: there are none."""
        return None if self.scope is None else _python_type(self.scope, str, int, UUID, date)


def shipped_slots(id_type: type[SlotId]) -> sa.Table:
    """Return the table `slots`, for those who have none."""
    if id_type not in _ID_COLUMNS:
        raise TypeError(f"id_type must be int, str or UUID, not {id_type!r}")
    return sa.Table(
        "slots",
        sa.MetaData(),
        sa.Column("slot_id", _ID_COLUMNS[id_type], primary_key=True, autoincrement=False),
        sa.Column("scope", sa.String(255)),
        sa.Column("capacity", sa.Integer, nullable=False),
        sa.Column("remaining", sa.Integer, nullable=False),
        # The last guard of P6: it holds against every writer, slotcache or not.
        sa.CheckConstraint("0 <= remaining AND remaining <= capacity", name="slots_places"),
        sa.Index("slots_by_scope", "scope", "slot_id"),
        **_TRANSACTIONAL,
    )


def holds_of(slots: SlotColumns) -> sa.Table:
    """Return the table `slot_holds` for holds on these slots, in the schema that they are in."""
    key = slots.slot_id
    slot_id = sa.Column("slot_id", key.type, sa.ForeignKey(key), nullable=False)
    return hold_table("slot_holds", sa.MetaData(), slot_id, schema=slots.table.schema)


def keys_of(holds: sa.Table) -> sa.Table:
    """Return the table `slot_hold_keys`, in the schema that the holds are in."""
    return key_table("slot_hold_keys", sa.MetaData(), schema=holds.schema)


def hold_table(
    name: str,
    metadata: sa.MetaData,
    *theirs: SchemaItem,
    make: Callable[..., sa.Table] = sa.Table,
    **options: Any,
) -> sa.Table:
    """Return a table of holds; a scope is known from the slot.

    Args:
        name: Its name, with which those of its constraints and indexes begin.
        metadata: Where it belongs.
        theirs: The column `slot_id`, and what else the table shall have.
        make: Makes it.
        options: Other options of the table, as of `sqlalchemy.Table`.
    """
    states = ", ".join(f"'{state.value}'" for state in HoldState)
    holds = make(
        name,
        metadata,
        sa.Column("id", uuid_column(), primary_key=True),
        *(each for each in theirs if isinstance(each, sa.Column)),
        sa.Column("quantity", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("expires_at", Instant, nullable=False),
        sa.Column("ended_at", Instant),
        sa.Column("owner", ExactText(255)),
        sa.Column("reference", ExactText(255)),
        sa.CheckConstraint("quantity >= 1", name=conv(f"{name}_quantity")),
        sa.CheckConstraint(f"state IN ({states})", name=conv(f"{name}_state")),
        *(each for each in theirs if not isinstance(each, sa.Column)),  # may name our columns
        **{**_TRANSACTIONAL, **options},
    )
    # The live holds of one slot without a look at its past ones, or at the rows at all.
    sa.Index(
        conv(f"{name}_by_slot"),
        holds.c.slot_id,
        holds.c.state,
        holds.c.expires_at,
        holds.c.quantity,
    )
    # The due holds of all slots; what to purge; and what somebody has.
    state, ended_at, owner = holds.c.state, holds.c.ended_at, holds.c.owner
    _partial_index(f"{name}_due", state, holds.c.expires_at, where=state == HELD)
    _partial_index(f"{name}_ended", ended_at, where=ended_at.is_not(None))
    _partial_index(f"{name}_by_owner", owner, where=owner.is_not(None))
    return holds


def _partial_index(name: str, *columns: sa.Column[Any], where: sa.ColumnElement[bool]) -> sa.Index:
    """Return an index of some rows alone, where the database has such."""
    return sa.Index(conv(name), *columns, sqlite_where=where, postgresql_where=where)


def key_table(name: str, metadata: sa.MetaData, *, schema: str | None) -> sa.Table:
    """Return a table of idempotency keys: which one made which holds (P7).

    A row for each hold; the first of them, at position 0, is what makes the key unique.
    A key belongs to an owner. Nobody is the owner '', not NULL: a unique index takes any two
    NULLs for different.
    """
    return sa.Table(
        name,
        metadata,
        sa.Column("owner", ExactText(255), primary_key=True),
        sa.Column("idempotency_key", ExactText(255), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("hold_id", uuid_column(), nullable=False),
        sa.Index(conv(f"{name}_by_hold"), "hold_id"),
        schema=schema or sa.BLANK_SCHEMA,  # never what the metadata has for those without
        **_TRANSACTIONAL,
    )


def map_slots(
    source: sa.Table | type[Any],
    columns: ColumnNames | None,
    where: sa.ColumnExpressionArgument[bool] | None,
) -> SlotColumns:
    """Return the slots of a table or mapped class; a name not in `columns` is our own."""
    given = dict(columns or {})
    if unknown := sorted(given.keys() - {*_REQUIRED, "scope"}):
        raise ValueError(
            f"columns has {unknown[0]!r}: it maps slot_id, capacity, remaining and scope"
        )
    table, named = _named_columns(source)
    found = {name: _column(table, named, given.get(name, name)) for name in _REQUIRED}
    scoped = "scope" in given or "scope" in named
    scope = _column(table, named, given.get("scope", "scope")) if scoped else None
    mapped = SlotColumns(table, source, **found, scope=scope, where=where)
    _ = mapped.id_type, mapped.scope_type  # refused now rather than at the first call
    return mapped


def _looks_elsewhere(part: Any, table: sa.Table) -> bool:
    if isinstance(part, sa.SelectBase) or "select" in str(getattr(part, "text", "")).lower():
        return True
    return isinstance(part, sa.Column) and part.table is not table


def _named_columns(source: object) -> tuple[sa.Table, Mapping[str, sa.Column[Any]]]:
    if isinstance(source, sa.Table):
        return source, dict(source.columns.items())
    mapper = sa.inspect(source, raiseerr=False) if isinstance(source, type) else None
    table = getattr(mapper, "local_table", None)
    if mapper is None or not isinstance(table, sa.Table):
        raise TypeError(f"slots must be a Table or a class mapped to one, not {source!r}")
    return table, dict(mapper.columns.items())


def _column(table: sa.Table, named: Mapping[str, sa.Column[Any]], wanted: object) -> sa.Column[Any]:
    found: object
    if isinstance(wanted, str):
        found = named.get(wanted, table.columns.get(wanted))
    else:
        element = getattr(wanted, "__clause_element__", lambda: wanted)()
        found = table.corresponding_column(element) if isinstance(element, sa.Column) else None
    if not isinstance(found, sa.Column):
        raise ValueError(
            f"table {table.name!r} has no column {wanted!r}: map it with columns={{...}}; "
            f"there are {', '.join(named)}"
        )
    return found


def _python_type(column: sa.Column[Any], *allowed: type) -> type[Any]:
    found = python_type(column)
    if found not in allowed:
        names = ", ".join(kind.__name__ for kind in allowed)
        raise TypeError(f"column {column.name!r} is {column.type!r}: it must hold one of {names}")
    return found


def python_type(column: sa.Column[Any]) -> type[Any] | None:
    """Return the type of its values; None: it does not tell."""
    try:
        return column.type.python_type
    except NotImplementedError:
        return None
