"""Slots and holds in SQL tables, yours or the shipped ones: the only part that knows SQLAlchemy."""

from __future__ import annotations

from slotcache.sql.clearing import clear_after, clear_on_commit, clear_on_write
from slotcache.sql.migrations import render_item
from slotcache.sql.mixin import HoldMixin
from slotcache.sql.slots import SqlSlots

__all__ = [
    "HoldMixin",
    "SqlSlots",
    "clear_after",
    "clear_on_commit",
    "clear_on_write",
    "render_item",
]
