"""Caches for asyncio in the memory of one process, each used as its documentation shows.

slotcache
    `get_availability` and `clear_availability_cache`. All readers get one object, which nobody can
    change.
aiocache
    `cached_stampede`. All readers get one list, which any of them can change.
cashews
    `cache(ttl, lock=True)`: takes a lock at each read, also of a warm list. Each reader gets the
    same list, which any of them can change.
cashews, no lock
    `cache(ttl)`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from _slots import HOUR, as_dicts, typical
from slotcache import AsyncSlotAvailabilityService, Availability, AvailabilityPolicy
from slotcache.protocols import Loaded, Scope

KEY = "slots.availability"


class Table:
    """A table that all tasks of a process share.

    Args:
        slots: How many it has.
        wait: Called in each query, and awaited.
    """

    scope_type = None

    def __init__(self, slots: int, wait: Callable[[], Awaitable[object]]) -> None:
        self.loads = 0
        self._list = Availability.of(typical(slots))
        self._rows = as_dicts(typical(slots))
        self._wait = wait

    async def load(self, scope: Scope | None) -> Loaded:  # noqa: ARG002  (it has none)
        await self._query()
        return Loaded(self._list)

    async def rows(self) -> list[dict[str, Any]]:
        await self._query()
        return list(self._rows)

    async def _query(self) -> None:
        self.loads += 1
        await self._wait()


@dataclass(frozen=True)
class Contender:
    """One list in one cache."""

    read: Callable[[], Awaitable[Any]]
    clear: Callable[[], Awaitable[Any]]


Maker: TypeAlias = Callable[[Table], Contender]


def slotcache(table: Table) -> Contender:
    service = AsyncSlotAvailabilityService(table, policy=AvailabilityPolicy(ttl=HOUR))
    return Contender(service.get_availability, service.clear_availability_cache)


def aiocache(table: Table) -> Contender:
    from aiocache import Cache, cached_stampede

    read = cached_stampede(ttl=int(HOUR), key=KEY, cache=Cache.MEMORY, namespace=str(id(table)))(
        table.rows
    )
    return Contender(read, partial(read.cache.clear, namespace=str(id(table))))


def cashews(table: Table, *, lock: bool = True) -> Contender:
    from cashews import Cache

    cache = Cache()
    cache.setup("mem://")
    read = cache(ttl=HOUR, key=KEY, lock=lock)(table.rows)
    return Contender(read, partial(cache.delete, KEY))


MAKERS: dict[str, Maker] = {
    "slotcache": slotcache,
    "aiocache": aiocache,
    "cashews": cashews,
    "cashews, no lock": partial(cashews, lock=False),
}

PACKAGES = ("slotcache", "cachetools", "aiocache", "cashews")
