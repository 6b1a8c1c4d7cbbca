"""The slots that benchmarks read: the same at every run."""

from __future__ import annotations

from random import Random
from typing import Any, TypeAlias

from slotcache import Availability
from slotcache.protocols import Loaded, Scope

Rows: TypeAlias = "list[tuple[int, int, int]]"

HOUR = 3600.0
"""A life that no benchmark sees the end of."""


def typical(slots: int) -> Rows:
    """Return slots as a table numbers them, from 1, with up to 255 places each."""
    random = Random(1)
    capacities = [random.randint(20, 255) for _ in range(slots)]
    return [(slot_id, each, random.randint(0, each)) for slot_id, each in enumerate(capacities, 1)]


def wide(slots: int) -> Rows:
    """Return slots of which no column can be narrowed: ids of 63 bits, above 65,535 places."""
    random = Random(1)
    capacities = [random.randint(65_536, 1_000_000) for _ in range(slots)]
    return [(random.getrandbits(63), each, random.randint(0, each)) for each in capacities]


def as_dicts(rows: Rows) -> list[dict[str, Any]]:
    """Return the rows as most caches are given them."""
    return [dict(zip(("slot_id", "capacity", "remaining"), row, strict=True)) for row in rows]


class Prepared:
    """A table whose list has been read already."""

    scope_type = str

    def __init__(self, rows: Rows) -> None:
        self._loaded = Loaded(Availability.of(rows))

    def load(self, scope: Scope | None) -> Loaded:  # noqa: ARG002  (all have the same list)
        return self._loaded
