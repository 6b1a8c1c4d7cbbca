"""Slots and holds in SQL tables, yours or the shipped ones: the only part that knows SQLAlchemy."""

from __future__ import annotations

from slotcache.sql.slots import SqlSlots

__all__ = ["SqlSlots"]
