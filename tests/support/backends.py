"""Each cache that ships, in each world, on manual or real time: what the executable spec is run on.

A `Backend` is a kind of cache in one world. It opens a `Storage`, new and empty, which makes caches
and services: any number of them, as so many processes would have them. Spec files get theirs from
the fixtures in `tests/spec/conftest.py`::

    def test_a_change_is_seen_by_every_process(storage):
        shelf = Shelf()
        here, elsewhere = storage.service(shelf), storage.service(shelf)
        elsewhere.read()
        shelf.remaining = 9
        here.clear_availability_cache()
        assert left(elsewhere.get_availability()) == 9

    @given(remaining=st.integers(0, 10))
    def test_the_same_for_every_number(backend, remaining):  # an empty storage for each example
        with backend.opened() as storage:
            ...

On manual time a real server tells the time of the test's clock: its scripts are sent as they are,
but for the line that asks what time it is, and for the end of a lock. Instants that are multiples
of 1/64 s are told exactly. What a server forgets after an hour, it forgets after a real one.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from time import monotonic, sleep
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
from hypothesis import Phase, given, settings
from hypothesis.strategies import SearchStrategy

from slotcache import AvailabilityPolicy
from slotcache.file import FileCache
from slotcache.memory import MemoryCache
from slotcache.redis import AsyncRedisCache, RedisCache, scripts
from slotcache.redis.cache import _Lists
from slotcache.redis.scripts import Call, Script
from slotcache.testing import ManualClock

from .servers import Server
from .worlds import OnAsyncio, StandIn, World, Worlds

__all__ = ["KINDS", "Backend", "Storage", "choices", "try_out"]

KINDS = ("memory", "files", "redis")

T = TypeVar("T")

_PATIENCE = 20.0


def choices(*kinds: str) -> list[Any]:
    """Return what the fixture `backend` may be given: these kinds of caches, in each world."""
    marks = {"redis": [pytest.mark.redis]}
    return [
        pytest.param((kind, world), id=f"{kind}-{world}", marks=marks.get(kind, []))
        for kind in kinds
        for world in Worlds.both
    ]


def try_out(judge: Callable[[T], None], cases: SearchStrategy[T]) -> None:
    """Judge case after case, the same in every run, until one raises: for twins that must fail.

    None is made smaller, as a failing property's would be: a twin is caught within a second.
    """
    once = settings(
        database=None,
        deadline=None,
        derandomize=True,
        max_examples=2_000,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    once(given(cases)(judge))()


@dataclass(frozen=True)
class Backend:
    """One kind of cache in one world.

    Attributes:
        kind: One of `KINDS`.
        world_name: One of `Worlds.both`.
        worlds: Makes that world.
        server: The one that this kind needs, if it does.
    """

    kind: str
    world_name: str
    worlds: Worlds
    server: Server | None = None

    @contextmanager
    def opened(self, *, manual: bool = True) -> Iterator[Storage]:
        """Lend a storage that is empty, and close all that it made.

        Args:
            manual: Whether its time is a `ManualClock`; else it is real, and no call is too slow.
        """
        with ExitStack() as stack:
            world = stack.enter_context(closing(self.worlds.open(self.world_name)))
            clock = ManualClock(start=0.0) if manual else None
            # A busy machine is not in trouble: no call of a server is too slow in real time.
            stack.enter_context(patch("slotcache.redis.bounds.BUDGET", _PATIENCE))
            if not manual:
                stack.enter_context(patch("slotcache.guard.BUDGET", _PATIENCE))
            place = f"spec-{uuid.uuid4().hex[:12]}"
            if self.kind == "files":
                place = stack.enter_context(tempfile.TemporaryDirectory())
            yield Storage(self.kind, world, clock, place, self._maker(world, clock, place), stack)

    def _maker(self, world: World, clock: ManualClock | None, place: str) -> Callable[[], Any]:
        """Return what makes caches on one storage."""
        if self.kind == "memory":
            only = MemoryCache(clock=clock)
            return lambda: only
        if self.kind == "files":
            return partial(FileCache, place, clock=clock)
        assert self.server is not None
        kind: Any = AsyncRedisCache if isinstance(world, OnAsyncio) else RedisCache
        if clock is not None:
            kind = partial(_ON_MANUAL_TIME[kind], clock)
        return partial(kind, self.server.url, prefix=place)

    def __repr__(self) -> str:
        return f"{self.kind}, {self.world_name}"


@dataclass
class Storage:
    """Where lists are kept, until it is closed.

    Attributes:
        kind: One of `KINDS`.
        world: Where its caches and services are used.
        clock: Its time, a `ManualClock`; None: the real one.
        place: The directory of its files; or what its keys on the server begin with, in braces.
    """

    kind: str
    world: World
    clock: Any
    place: str
    _make: Callable[[], Any]
    _stack: ExitStack
    _caches: list[Any] = field(default_factory=list)

    def cache(self) -> Any:
        """Return another cache on this storage, as another process has it; in memory, the only one.

        It is what a service of this world is given: on asyncio, it may have to be awaited.
        """
        made = self._make()
        if made not in self._caches:
            self._caches.append(made)
            if hasattr(made, "close"):
                self._stack.callback(self.seen(made).close)
        return made

    def seen(self, port: Any) -> Any:
        """Return a port of this storage as the test may use it: as if it blocked."""
        return _Port(port, self.world) if isinstance(self.world, OnAsyncio) else port

    def service(self, slots: Any, *, cache: Any = None, locks: Any = None, **policy: Any) -> Any:
        """Return a service, on a cache of its own unless one is given.

        Args:
            slots: The table: one that blocks, in both worlds.
            cache: What `cache` returned, or stands before it.
            locks: None: the cache's own.
            policy: As for `AvailabilityPolicy`.
        """
        service = self.world.service(
            slots,
            cache=self.cache() if cache is None else cache,
            locks=locks,
            policy=AvailabilityPolicy(**policy),
            clock=self.clock,
        )
        self._stack.callback(service.close)
        return service

    def now(self) -> float:
        """Return the instant, as entries tell it."""
        return monotonic() if self.clock is None else self.clock.now()

    def pass_time(self, seconds: float) -> None:
        """Let so many seconds pass: at once on manual time."""
        if self.clock is None:
            sleep(seconds)
        else:
            self.clock.advance(seconds)


class _Port(StandIn):
    """Stands for a cache or locks in a world of asyncio: coroutine or not, it is called at once."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        return (lambda: _Port(value(), self._world)) if name == "locks" else value


# A server on manual time.


_TIME = "redis.call('TIME')"
_GIVEN_TIME = "{ARGV[#ARGV - 1], ARGV[#ARGV]}"
_GRANT = "redis.call('SET', KEYS[1], ARGV[2], 'NX', 'PX', ARGV[3])"
_LOCK_THAT_ENDS = f"""#!lua flags=allow-oom
local time = {_GIVEN_TIME}
local now = time[1] * 1000000 + time[2]
local ends = KEYS[1] .. ':ends'
if tonumber(redis.call('GET', ends) or now + 1) <= now then
    redis.call('DEL', KEYS[1], ends)
end
local function granted()
    local set = redis.call('SET', KEYS[1], ARGV[2], 'NX', 'PX', 3600000)
    if set then
        redis.call('SET', ends, string.format('%.0f', now + ARGV[3] * 1000), 'PX', 3600000)
    end
    return set
end
"""


@cache
def _told_the_time(script: Script) -> Script:
    """Return a script that takes the time from its last two arguments."""
    source = script.source.decode()
    if script in (scripts.ACQUIRE, scripts.RELEASE):
        rest = source.removeprefix("#!lua flags=allow-oom\n").replace(_GRANT, "granted()")
        return Script(_LOCK_THAT_ENDS + rest)
    return Script(source.replace(_TIME, _GIVEN_TIME))


class _TimedServer:
    """A server whose scripts are told the time."""

    def __init__(self, server: Any, clock: ManualClock) -> None:
        self._server = server
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    def run(self, call: Call) -> Any:
        """Return the answer, or what is to be awaited for it."""
        seconds, microseconds = divmod(round(self._clock.now() * 1_000_000), 1_000_000)
        time = b"%d" % seconds, b"%d" % microseconds
        script = _told_the_time(call.script)
        return self._server.run(replace(call, script=script, arguments=call.arguments + time))


class _ManualTime(_Lists):
    """What makes a Redis cache one on manual time."""

    _server: Any
    _locks: Any

    def __init__(self, clock: ManualClock, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._clock = clock
        self._server = self._locks._server = _TimedServer(self._server, clock)

    def _looking(self, key: str) -> Any:
        return replace(super()._looking(key), began=self._clock.now())

    def _filling(self, *args: Any) -> Any:
        fill = super()._filling(*args)
        return None if fill is None else replace(fill, began=self._clock.now())


class _ManualRedisCache(_ManualTime, RedisCache):
    pass


class _AsyncManualRedisCache(_ManualTime, AsyncRedisCache):
    pass


_ON_MANUAL_TIME = {RedisCache: _ManualRedisCache, AsyncRedisCache: _AsyncManualRedisCache}
