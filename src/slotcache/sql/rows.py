"""Slots to be added, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from slotcache.availability import Availability, Scope, SlotId
from slotcache.sql.tables import SlotColumns

__all__ = ["SlotRow", "rows_to_insert"]

SlotRow: TypeAlias = tuple[SlotId, int] | tuple[SlotId, int, int]
"""(slot_id, capacity), nothing of it sold, or (slot_id, capacity, remaining)."""


def rows_to_insert(
    slots: SlotColumns, rows: Iterable[SlotRow], scope: Scope | None
) -> list[dict[str, Any]]:
    """Return the rows by the names of their columns.

    Raises:
        TypeError: A row is of another shape or type; the message names it.
        ValueError: A row cannot be true, or lists a slot again; the message names it. Or the scope
            is not ours to give.
    """
    checked = Availability.of(_full(rows))
    if checked and not isinstance(checked[0].slot_id, slots.id_type):
        raise TypeError(
            f"row 0 {tuple(checked[0])!r}: slot_id must be {slots.id_type.__name__}, "
            "as in the table"
        )
    common = _common(slots, scope)
    names = slots.slot_id.key, slots.capacity.key, slots.remaining.key
    return [{**common, **dict(zip(names, row, strict=True))} for row in checked]


def _common(slots: SlotColumns, scope: Scope | None) -> dict[str, Any]:
    if slots.scope is None:
        return {}
    if slots.scope.computed is None:
        return {slots.scope.key: scope}
    if scope is not None:
        raise ValueError(
            f"column {slots.scope.name!r} is generated from others of its row, so the scope "
            f"{scope!r} cannot be given: insert the rows yourself, with what it is generated from"
        )
    return {}


def _full(rows: Iterable[Any]) -> Iterator[Any]:
    for row in rows:
        yield (*row, row[1]) if isinstance(row, tuple | list) and len(row) == 2 else row
