"""The ports of a simulated world: real caches and locks, and tables, behind stops."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from slotcache.availability import Availability
from slotcache.protocols import CacheBackend, Entry, Loaded, Lock, LockProvider, Miss, Scope
from slotcache.testing.actors import Actor, ThreadActor
from slotcache.trouble import Trouble

if TYPE_CHECKING:
    from slotcache.testing.world import World

__all__ = [
    "CAPACITY",
    "Alive",
    "Blocking",
    "Failure",
    "Forgetful",
    "HeldLocks",
    "Noticed",
    "NoticedTrouble",
    "SimulatedCache",
    "SimulatedClock",
    "SimulatedLocks",
    "SimulatedTable",
]

CAPACITY = 1_000
"""Of the one slot: each change by a writer takes a place of it."""


class Failure(Exception):
    """What a port raises when the scheduler lets it fail."""


class Noticed:
    """A mutex that tells the world when somebody touches what it guards."""

    def __init__(self, world: World, service: object, mutex: Any) -> None:
        self._world = world
        self._service = service
        self._mutex = mutex

    def __enter__(self) -> None:
        world = self._world
        others = world.cast.others(self._service)
        if not world.touched and any(other.kind == "reader" for other in others):
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
        if self._may_change and not world.touched and any(world.cast.others(self._service)):
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
        self._slotcache_known = Forgetful()


class Alive:
    """Whether an actor still runs; it stands for that actor in the state."""

    def __init__(self, actor: Actor, world: World) -> None:
        self.who = actor.name
        self._actor = actor
        self._world = world

    def __call__(self) -> bool:
        alive = not self._actor.crashed
        self._world.note("alive", alive)
        return alive


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
        return world.now()

    async def sleep(self, seconds: float) -> None:
        await self._world.stop("sleep", self._world.time + seconds)

    def event(self) -> SimulatedEvent:
        return SimulatedEvent(self._world)


class SimulatedCache(Own):
    """A cache as an `AsyncCacheBackend`."""

    def __init__(self, world: World, service: object, real: CacheBackend) -> None:
        super().__init__(world, service)
        self._real = real

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
    """One process's locks as an `AsyncLockProvider`."""

    def __init__(self, world: World, service: object, real: LockProvider) -> None:
        super().__init__(world, service)
        self._real = real

    async def acquire(self, name: str, *, ttl: float) -> Lock | None:
        held = self._world.held

        def granted_twice() -> Lock | None:
            return Lock(name, "another")

        def acquired() -> Lock | None:
            lock = self._real.acquire(name, ttl=ttl)
            if lock is not None:
                held.note(lock, self._real, ttl)
            return lock

        return await self._world.call("lock", acquired, instead=granted_twice)

    async def release(self, lock: Lock) -> bool:
        def released() -> bool:
            self._world.held.forget(lock)
            return self._real.release(lock)

        return await self._world.call("release", released)


class HeldLocks:
    """Who holds which lock of a world, and until when."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._held: dict[Lock, tuple[LockProvider, str, float]] = {}

    def __bool__(self) -> bool:
        return any(until > self._world.time for _, _, until in self._held.values())

    def note(self, lock: Lock, provider: LockProvider, ttl: float) -> None:
        """Note that the current actor holds it."""
        assert self._world.current is not None
        self._held[lock] = provider, self._world.current.name, self._world.time + ttl

    def forget(self, lock: Lock) -> None:
        """Note that it is given back."""
        self._held.pop(lock, None)

    def lose(self) -> None:
        """Let every lock be lost while its holder goes on."""
        for lock, (provider, _, _) in self._held.items():
            provider.release(lock)
        self._held.clear()

    def state(self, names: Mapping[str, str]) -> Hashable:
        """Return which locks are held, by whom, until when."""
        now = self._world.time
        held = [(names[who], until) for _, who, until in self._held.values() if until > now]
        return tuple(sorted(held))


@functools.cache
def _list_at(taken: int) -> Availability:
    return Availability.of([("slot", CAPACITY, CAPACITY - taken)])


class SimulatedTable:
    """An `AsyncSlotRepository` of one slot, which shows how many changes are committed."""

    scope_type = None

    def __init__(self, world: World) -> None:
        self._world = world

    async def load(self, scope: Scope | None) -> Loaded:  # noqa: ARG002  (it has none)
        def effect() -> Loaded:
            judge = self._world.judge
            judge.loads += 1
            if self._world.table is not None:
                return self._world.table.load()
            return Loaded(_list_at(judge.version))

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
