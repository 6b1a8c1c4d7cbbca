"""Slots and holds in SQL tables, yours or the shipped ones: the only part that knows SQLAlchemy."""

from __future__ import annotations

from slotcache.sql.clearing import (
    async_clear_after,
    async_clear_on_commit,
    clear_after,
    clear_on_commit,
    clear_on_write,
)
from slotcache.sql.migrations import render_item
from slotcache.sql.mixin import HoldMixin
from slotcache.sql.slots import AsyncSqlSlots, SqlSlots

__all__ = [
    "AsyncSqlSlots",
    "HoldMixin",
    "SqlSlots",
    "async_clear_after",
    "async_clear_on_commit",
    "clear_after",
    "clear_on_commit",
    "clear_on_write",
    "render_item",
]
