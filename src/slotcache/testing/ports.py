"""The ports of a simulated world: real caches and locks, and a table, behind stops."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from slotcache.availability import Availability
from slotcache.protocols import Entry, Loaded, Lock, Miss, Scope
from slotcache.testing.actors import Actor, ThreadActor
from slotcache.trouble import Trouble

if TYPE_CHECKING:
    from slotcache.testing.world import World

__all__ = [
    "CAPACITY",
    "Alive",
    "Blocking",
    "Forgetful",
    "Noticed",
    "NoticedTrouble",
    "SharedLocks",
    "SimulatedCache",
    "SimulatedClock",
    "SimulatedLocks",
    "SimulatedTable",
]

CAPACITY = 1_000
"""Of the one slot: a list shows as many changes as places are missing from it."""


class Noticed:
    """A mutex that tells the world when somebody touches what it guards."""

    def __init__(self, world: World, service: object, mutex: Any) -> None:
        self._world = world
        self._service = service
        self._mutex = mutex

    def __enter__(self) -> None:
        world = self._world
        if not world.touched and any(a.kind == "reader" for a in world.others(self._service)):
            world.touched = True
        self._mutex.acquire()

    def __exit__(self, *_exception: object) -> None:
        self._mutex.release()


class NoticedTrouble(Trouble):
    """A backend's trouble, which tells the world when somebody looks at it or adds to it."""

    def __init__(self, world: World, service: object) -> None:
        self._world = world
        self._service = service
        self._may_change = world.scenario.calls_may_fail
        super().__init__()

    @property
    def bypass(self) -> bool:
        self._touch()
        return self._bypass

    @bypass.setter
    def bypass(self, bypass: bool) -> None:
        self._touch()
        self._bypass = bypass

    def _touch(self) -> None:
        world = self._world
        if self._may_change and not world.touched and world.others(self._service):
            world.touched = True

    def state(self) -> Hashable:
        """Return all on which later answers depend."""
        return self._broken, tuple(self._notes.items()), self._latest, self._is_attended is None


class Forgetful:
    """Stands for what a process last knew: nothing."""

    _nothing = Miss()

    def look(self, _key: str) -> Miss:
        return self._nothing

    def found(self, *_list: object) -> None: ...

    def loaded(self, *_list: object) -> None: ...

    def clear(self, _key: str) -> None: ...

    def stand_in(self, *_reader: object) -> None: ...


class Own:
    """The object that one service has of a port that all of them share."""

    def __init__(self, world: World, service: object) -> None:
        self._world = world
        self._slotcache_trouble = self._slotcache_lock_trouble = NoticedTrouble(world, service)
        # Never asked: `Forgetful` stands before it.
        self._slotcache_known = world.memory


class Alive:
    """Whether an actor still runs; it stands for that actor in the state."""

    def __init__(self, actor: Actor, world: World) -> None:
        self._actor = actor
        self._world = world

    def __call__(self) -> bool:
        alive = not self._actor.crashed
        self._world.note("alive", alive)
        return alive

    def __hash__(self) -> int:
        return hash(self._actor.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alive) and self._actor is other._actor


class SimulatedEvent:
    """An `AsyncEvent`, known by who made it, and by its number among theirs."""

    def __init__(self, world: World) -> None:
        assert world.current is not None
        world.current.events += 1
        self.identity = (world.current.name, world.current.events)
        self.is_set = False
        self._world = world

    def set(self) -> None:
        self.is_set = True

    async def wait(self, timeout: float) -> bool:
        until = self._world.time + timeout
        await self._world.stop("wait", until, self)
        self._world.note("wait", self.is_set)
        return self.is_set


class SimulatedClock:
    """An `AsyncClock`; each look at it is an observation."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> float:
        world = self._world
        if world.current is not None:
            world.current.observe(world.time)
        return world.time

    async def sleep(self, seconds: float) -> None:
        await self._world.stop("sleep", self._world.time + seconds)

    def event(self) -> SimulatedEvent:
        return SimulatedEvent(self._world)


class SimulatedCache(Own):
    """The world's cache as an `AsyncCacheBackend`."""

    def __init__(self, world: World, service: object) -> None:
        super().__init__(world, service)
        self._real = world.memory

    async def read(self, key: str) -> Entry | Miss:
        return await self._world.call("look", lambda: self._real.read(key))

    async def look(self, key: str) -> Miss:
        return await self._world.call("look", lambda: self._real.look(key))

    async def fill(
        self, key: str, miss: Miss, availability: Availability, **times: Any
    ) -> Entry | None:
        return await self._world.call(
            "fill", lambda: self._real.fill(key, miss, availability, **times)
        )

    async def clear(self, key: str) -> None:
        await self._world.call("clear", lambda: self._real.clear(key))

    async def clear_all(self) -> None:
        await self._world.call("clear", self._real.clear_all)


class SimulatedLocks(Own):
    """The world's locks as an `AsyncLockProvider`."""

    async def acquire(self, name: str, *, ttl: float) -> Lock | None:
        return await self._world.call("lock", lambda: self._world.locks.acquire(name, ttl))

    async def release(self, lock: Lock) -> bool:
        return await self._world.call("release", lambda: self._world.locks.release(lock))


class SharedLocks:
    """The world's locks, of which it is known who holds them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._real = world.scenario.locks(clock=world)
        self._held: dict[str, tuple[str, float]] = {}

    def acquire(self, name: str, ttl: float) -> Lock | None:
        lock = self._real.acquire(name, ttl=ttl)
        if lock is not None and self._world.current is not None:
            self._held[name] = (self._world.current.name, self._world.time + ttl)
        return lock

    def release(self, lock: Lock) -> bool:
        released = self._real.release(lock)
        if released:
            self._held.pop(lock.name, None)
        return released

    def lose(self) -> None:
        """Let every lock be lost while its holder goes on."""
        self._real = self._world.scenario.locks(clock=self._world)
        self._held.clear()

    def state(self) -> tuple[tuple[str, str, float], ...]:
        """Which lock is held, by whom, until when."""
        now = self._world.time
        return tuple((name, *held) for name, held in self._held.items() if held[1] > now)


@functools.cache
def _list_at(version: int) -> Availability:
    return Availability.of([("slot", CAPACITY, CAPACITY - version)])


class SimulatedTable:
    """An `AsyncSlotRepository` of one slot, which shows how many changes are committed."""

    scope_type = None

    def __init__(self, world: World) -> None:
        self._world = world

    async def load(self, scope: Scope | None) -> Loaded:  # noqa: ARG002  (it has none)
        def effect() -> Loaded:
            self._world.judge.loads += 1
            return Loaded(_list_at(self._world.judge.version))

        with self._world.loading():
            return await self._world.call("query", effect)


class Blocking:
    """A simulated port as a blocking one, for an actor that is a thread."""

    def __init__(self, world: World, port: Any) -> None:
        self._world = world
        self._port = port

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        if name == "event":
            return lambda: Blocking(self._world, found())
        if not inspect.iscoroutinefunction(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            actor = self._world.current
            assert isinstance(actor, ThreadActor)
            return actor.drive(found(*args, **options))

        return call
