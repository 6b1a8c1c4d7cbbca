"""Holds in a class of yours, beside your other models, for one migration tool to see them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.schema import SchemaItem

from slotcache.sql.tables import SlotColumns, hold_table, key_table, python_type

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.orm import Mapped

__all__ = ["HoldMixin", "map_holds"]


class HoldMixin:
    """Makes a declarative class of yours the table of holds that `SqlSlots(holds=...)` takes.

    Write it before your `Base`, and give the class a `__tablename__` and a column `slot_id` with
    the type and the foreign key of your slots; it cannot be NULL. All other columns, the CHECKs and
    the indexes come from here, and with them the table of idempotency keys, named like this one
    with `_keys` at its end, in the same schema. Create both as you do your other tables:
    `SqlSlots.create_tables` leaves them to you.

    Columns of your own need a default, or may be NULL: only `HoldManager` inserts rows.

    Attributes:
        id: What `Hold.id` is.
        quantity: How many places.
        state: The value of a `HoldState`, as it was written down: a hold that is "held" has
            expired all the same once it is due.
        created_at: When it was made, in UTC.
        expires_at: When it ends, or would have ended, in UTC.
        ended_at: When it was cancelled or expired, in UTC; None: neither is written down.
        owner: Whose it is.
        reference: What it was confirmed with.

    Raises:
        TypeError: The class has no column `slot_id`.

    Examples:
        >>> import sqlalchemy as sa
        >>> from sqlalchemy.orm import DeclarativeBase, mapped_column
        >>> from slotcache.sql import HoldMixin
        >>> class Base(DeclarativeBase):
        ...     pass
        >>> class Window(Base):
        ...     __tablename__ = "windows"
        ...     id = mapped_column(sa.Integer, primary_key=True)
        >>> class WindowHold(HoldMixin, Base):
        ...     __tablename__ = "window_holds"
        ...     slot_id = mapped_column(sa.ForeignKey(Window.id))
        >>> list(Base.metadata.tables)
        ['windows', 'window_holds', 'window_holds_keys']
    """

    if TYPE_CHECKING:
        id: Mapped[UUID]
        quantity: Mapped[int]
        state: Mapped[str]
        created_at: Mapped[datetime]
        expires_at: Mapped[datetime]
        ended_at: Mapped[datetime | None]
        owner: Mapped[str | None]
        reference: Mapped[str | None]

    @classmethod
    def __table_cls__(
        cls, name: str, metadata: sa.MetaData, *theirs: SchemaItem, **options: Any
    ) -> sa.Table:
        """Make the two tables, when SQLAlchemy maps the class."""
        columns = {each.key: each for each in theirs if isinstance(each, sa.Column)}
        if "slot_id" not in columns:
            raise TypeError(
                f"{cls.__name__} has no column slot_id, by which a hold knows its slot: write "
                "slot_id = mapped_column(ForeignKey(...)) with the key of your slots"
            )
        columns["slot_id"].nullable = False
        make = getattr(super(), "__table_cls__", sa.Table)
        holds = hold_table(name, metadata, *theirs, make=make, **options)
        if not (options.get("extend_existing") and _keys_beside(holds.key) in metadata.tables):
            key_table(_keys_beside(name), metadata, schema=holds.schema)
        return holds


def map_holds(source: object, slots: SlotColumns) -> tuple[sa.Table, sa.Table]:
    """Return the table of a class that was made with the mixin, and the one of its keys.

    Raises:
        TypeError: It was not made so; or its `slot_id` is not of the type that the slots' ids are.
        ValueError: Its `slot_id` references something else.
    """
    holds = getattr(source, "__table__", None)
    keys = None
    if isinstance(source, type) and issubclass(source, HoldMixin) and holds is not None:
        keys = holds.metadata.tables.get(_keys_beside(holds.key))
    if holds is None or keys is None:
        raise TypeError(f"holds must be a class mapped with HoldMixin, not {source!r}")
    _check_slot_id(holds.c.slot_id, slots)
    return holds, keys


def _check_slot_id(slot_id: sa.Column[Any], slots: SlotColumns) -> None:
    referenced = {_full_name(key.column) for key in slot_id.foreign_keys}
    if referenced and _full_name(slots.slot_id) not in referenced:
        raise ValueError(
            f"{_full_name(slot_id)} references {min(referenced)}, but the key of the slots is "
            f"{_full_name(slots.slot_id)}: give each table of slots holds of its own"
        )
    if python_type(slot_id) is not slots.id_type:
        raise TypeError(
            f"{_full_name(slot_id)} is {slot_id.type!r}, and the ids of the slots are "
            f"{slots.id_type.__name__}: write slot_id = mapped_column(ForeignKey(...)), which "
            "takes over their type"
        )


def _full_name(column: sa.Column[Any]) -> str:
    return f"{column.table.fullname}.{column.name}"


def _keys_beside(name: str) -> str:
    return f"{name}_keys"
