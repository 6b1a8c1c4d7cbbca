"""A simulated world: the shipped service under a scheduler that decides everything.

Actors (readers, writers) run the code that ships, the asynchronous face as coroutines or the
blocking face in threads that pass a baton. Each port call of theirs stops twice: before it takes
effect and again before its answer arrives; with one of the two, real races stay unseen. At any
stop the scheduler may let somebody else go, or let a fault strike. `slotcache.testing.explore`
goes through the ways in which it can choose.

A state of the world is all that is shared (`World.state`) and all that each actor has observed:
every answer of a port, every look at the clock, what the judge expects of it. An actor is a
deterministic program over its observations, so two worlds in one state have the same futures.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Coroutine, Generator, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from slotcache.availability import Availability, Reading, Source
from slotcache.memory import MemoryCache, MemoryLocks
from slotcache.policy import AvailabilityPolicy
from slotcache.protocols import Entry, Loaded, Lock, LockProvider, Miss, Scope
from slotcache.service import AsyncSlotAvailabilityService, SlotAvailabilityService

__all__ = ["FAULTS", "Choice", "Scenario", "Violation", "World"]

FAULTS = frozenset({"crash", "evict", "expire", "fail fill", "fail release", "lose lock"})
"""What may strike, once, at any stop: an actor never runs again; the record is evicted; the
entry's life ends; a fill or a release raises, before or after it took effect; the lock is lost
while its holder goes on."""

Choice = tuple[str, str]
"""Who goes next (an actor, or `"world"`), and what happens to it (`"go"`, or a fault)."""

ReturnT = TypeVar("ReturnT")
_CAPACITY = 1_000


class Violation(AssertionError):
    """A promise that a schedule broke; its text is the schedule as a timeline."""


class _Failure(Exception):
    """What a port raises when the scheduler lets it fail."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Who does what in a world.

    Attributes:
        readers: How many actors read once each.
        writers: How many actors make one change each: commit, then clear.
        services: Over how many service objects (processes) on one cache the readers are spread.
        faults: Which of `FAULTS` may strike; one of them does, at most once a schedule.
        blocking: Run the blocking face, in threads.
        cache: Makes the cache; a broken twin goes here.
        locks: Makes the locks.
        clear_first: A broken writer: it clears, then commits.
        prepare: Called with each service made; a broken twin can be put into it here.
    """

    readers: int = 2
    writers: int = 1
    services: int = 1
    faults: frozenset[str] = frozenset()
    blocking: bool = False
    cache: Callable[..., MemoryCache] = MemoryCache
    locks: Callable[..., LockProvider] = MemoryLocks
    clear_first: bool = False
    prepare: Callable[[Any], None] = lambda _service: None


@dataclass(frozen=True, slots=True)
class _Request:
    """Why an actor waits: for its turn, for a time, or for an event until a time.

    Sleeping is a turn too: whoever wakes was asleep for as long as it wanted. A wait for an
    event may also give up early, but only so often (`_Actor.patience`): a follower that finds
    its leader alive has changed nothing but the time.
    """

    what: str
    until: float = 0.0
    event: _Event | None = None

    def __await__(self) -> Generator[_Request, str, str]:
        return (yield self)


class _Actor:
    """Somebody who runs the shipped code, from stop to stop."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind = name.split()[0]
        self.reads: object = None
        self.pending = _Request("start")
        self.observed = 0
        self.events = 0
        self.patience = 1
        self.finished = False
        self.crashed = False

    def follows(self, other: _Actor) -> bool:
        """Whether `other` does just the same, so that it may as well be the one to start first."""
        return self.kind == other.kind and self.name > other.name

    def observe(self, what: Hashable) -> None:
        self.observed = hash((self.observed, what))

    def state(self) -> Hashable:
        event = self.pending.event.identity if self.pending.event else None
        place = (self.pending.what, self.pending.until, event)
        return place, self.observed, self.patience, self.finished, self.crashed

    def resume(self, command: str) -> None:
        """Run it to its next stop; what it raises passes through."""
        raise NotImplementedError

    def close(self) -> None:
        """Unwind it, wherever it stopped."""
        raise NotImplementedError


class _TaskActor(_Actor):
    """An actor that is a coroutine."""

    def __init__(self, name: str, coroutine: Coroutine[_Request, str, None]) -> None:
        super().__init__(name)
        self._coroutine = coroutine
        self._context = contextvars.copy_context()
        self._send: Callable[[Any], _Request] = coroutine.send

    def resume(self, command: str) -> None:
        first = self.pending.what == "start"
        try:
            self.pending = self._context.run(self._send, None if first else command)
        except StopIteration:
            self.finished = True

    def close(self) -> None:
        self._coroutine.close()


class _ThreadActor(_Actor):
    """An actor that is a thread, which runs only while it holds the baton."""

    def __init__(self, name: str, body: Callable[[], None]) -> None:
        super().__init__(name)
        self._command = ""
        self._mine = threading.Semaphore(0)
        self._theirs = threading.Semaphore(0)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(body,), daemon=True)
        self._thread.start()

    def _run(self, body: Callable[[], None]) -> None:
        self._mine.acquire()
        try:
            if self._command != "close":
                body()
        except BaseException as error:
            self._error = error
        self.finished = True
        self._theirs.release()

    def drive(self, call: Coroutine[_Request, str, ReturnT]) -> ReturnT:
        """Run a simulated port's call, passing the baton at each of its stops."""
        command: Any = None  # the first `send` of a coroutine
        while True:
            try:
                self.pending = call.send(command)
            except StopIteration as end:
                value: ReturnT = end.value
                return value
            self._theirs.release()
            self._mine.acquire()
            command = self._command
            if command == "close":
                call.close()
                raise GeneratorExit

    def resume(self, command: str) -> None:
        self._command = command
        self._mine.release()
        self._theirs.acquire()
        if isinstance(self._error, Exception):
            raise self._error

    def close(self) -> None:
        if not self.finished:
            self._error = None
            self._command = "close"
            self._mine.release()
        self._thread.join(10.0)


class World:
    """One run of a scenario, to be stepped by choices.

    Attributes:
        scenario: What it is a run of.
        time: The simulated instant, in seconds.
        version: How many changes are committed; the list shows `1000 - version` as remaining.
        acknowledged: How many of them are complete: every later read must show them (P1).
        loads: How many queries were begun.
        touched: Whether the last step read or changed anything that is shared.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.time = 0.0
        self.version = 0
        self.acknowledged = 0
        self.loads = 0
        self.touched = False
        self._events: list[tuple[str, str, object]] = []
        self.policy = AvailabilityPolicy(lock_timeout=0.001)
        self.faults = scenario.faults
        self.committed_at: list[float] = []
        self.current: _Actor | None = None
        self.closed = False
        epochs = itertools.count(1)
        self.memory = scenario.cache(clock=self, epoch=lambda: next(epochs))
        self.locks = _Locks(self, scenario.locks(clock=self))
        self.actors: list[_Actor] = []
        self.services: list[Any] = []
        self._populate()

    def now(self) -> float:
        """The time, as the real cache and locks inside this world see it."""
        return self.time

    def choices(self) -> list[Choice]:
        """Return all that may happen next; nothing: the run is over."""
        idle = [actor for actor in self.actors if not (actor.finished or actor.crashed)]
        waiting = [actor for actor in idle if actor.pending.what == "start"]
        idle = [one for one in idle if not any(one.follows(other) for other in waiting)]
        ready = [actor for actor in idle if self._is_ready(actor.pending)]
        able = [one for one in idle if one in ready or one.patience] if ready else idle
        able.sort(key=lambda actor: not actor.pending.what.endswith("answer"))
        moves: list[Choice] = [(actor.name, "go") for actor in able]
        for actor in able if self.faults else ():
            if f"fail {actor.pending.what.removesuffix(' answer')}" in self.faults:
                moves.append((actor.name, "fail"))
            if "crash" in self.faults and actor.pending.what != "start":
                moves.append((actor.name, "crash"))
        moves += [("world", fault) for fault in sorted(self.faults) if self._may_strike(fault)]
        return moves

    def step(self, choice: Choice) -> None:
        """Let this happen.

        Raises:
            Violation: The judge saw a promise broken.
        """
        who, command = choice
        self.touched = command != "go"
        if command != "go":
            self.faults = frozenset()
            self._events.append((who, f"({command})", ""))
        if who == "world":
            self._strike(command)
            return
        actor = next(one for one in self.actors if one.name == who)
        if command == "crash":
            actor.crashed = True
            return
        self._let_time_pass(actor)
        self.current = actor
        try:
            began = actor.pending.what == "start"
            actor.resume(command)
            if began:
                actor.resume(command)
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"{who} raised {error!r}") from error

    def state(self) -> int:
        """Return a digest of everything that the future depends on."""
        records = self.memory._records
        kept = tuple((key, records[key].generation, records[key].copy) for key in sorted(records))
        flying = [
            (index, key, tuple((one.alive, one.begun, one.generation) for one in flights))
            for index, service in enumerate(self.services)
            for key, flights in service._refill._flights._flying.items()
        ]
        shared = (self.time, self.version, self.acknowledged, self.loads, self.faults, kept)
        actors = tuple(actor.state() for actor in self.actors)
        return hash((shared, self.locks.state(), tuple(flying), actors))

    def timeline(self) -> str:
        """Return what happened, a line each."""
        return "\n".join(
            f"{who:10} {what:28} {_said(answer)}" for who, what, answer in self._events
        )

    def finish(self) -> None:
        """Judge the end of a run: nothing is left flying or locked, and a last read is right."""
        crashed = any(actor.crashed for actor in self.actors)
        reader = _TaskActor("afterwards", self._read(self._service(blocking=False)))
        self.actors.append(reader)
        while not reader.finished:
            self.step(("afterwards", "go"))
        left = [service for service in self.services if service._refill._flights._flying]
        if left and not crashed:
            raise Violation("a flight is left in the air")
        undisturbed = not self.scenario.faults and self.scenario.locks is MemoryLocks
        if undisturbed and self.locks.state():
            raise Violation("a lock is left held")
        most = 2 + self.scenario.writers
        if undisturbed and self.scenario.services == 1 and self.loads > most:
            raise Violation(f"{self.loads} queries where {most} are enough (P3)")

    def close(self) -> None:
        """Unwind every actor, so that no coroutine or thread is left."""
        self.closed = True
        for actor in self.actors:
            actor.close()

    async def stop(self, what: str, until: float = 0.0, event: _Event | None = None) -> None:
        """Wait for the scheduler; fail if it says so."""
        if self.closed:
            raise GeneratorExit
        command = await _Request(what, until, event)
        if command == "fail":
            raise _Failure(what)

    async def call(self, what: str, effect: Callable[[], ReturnT]) -> ReturnT:
        """Make a port call that takes effect at one instant between its two stops."""
        await self.stop(what)
        self.touched = True
        answer = effect()
        self.note(what, answer)
        await self.stop(f"{what} answer")
        return answer

    def note(self, what: str, answer: object) -> None:
        """Record what the current actor will get to know."""
        actor = self.current
        assert actor is not None
        known = isinstance(answer, Lock) if what == "lock" else answer
        actor.observe(known if isinstance(known, Hashable) else repr(known))
        self._events.append((actor.name, what, known))

    def is_shared(self, service: object) -> bool:
        """Whether anybody but the current actor may still read through this service."""
        return any(
            actor.reads is service and actor is not self.current
            for actor in self.actors
            if not (actor.finished or actor.crashed)
        )

    def runner(self) -> _Alive:
        """As `Ports.runner`: the current actor, alive until it crashes."""
        assert self.current is not None
        return _Alive(self.current, self)

    def _populate(self) -> None:
        scenario = self.scenario
        blocking = scenario.blocking
        services = [self._service(blocking=blocking) for _ in range(max(1, scenario.services))]
        read = self._read_blocking if blocking else self._read
        change = self._change_blocking if blocking else self._change
        for kind, body, count in (
            ("reader", read, scenario.readers),
            ("writer", change, scenario.writers),
        ):
            for n in range(count):
                service = services[n % len(services)]
                self.actors.append(self._actor(f"{kind} {n + 1}", body, service))

    def _actor(self, name: str, body: Callable[[Any], Any], service: Any) -> _Actor:
        if self.scenario.blocking:
            actor: _Actor = _ThreadActor(name, functools.partial(body, service))
        else:
            actor = _TaskActor(name, body(service))
        actor.reads = service if actor.kind == "reader" else None
        return actor

    def _service(self, *, blocking: bool) -> Any:
        kind: Any = SlotAvailabilityService if blocking else AsyncSlotAvailabilityService
        service = kind.__new__(kind)
        service._runner, service._jitter = self.runner, lambda: 1.0
        ports: list[Any] = [_Table(self), _Cache(self), self.locks, _Clock(self)]
        if blocking:
            ports = [_Blocking(self, port) for port in ports]
        table, cache, locks, clock = ports
        service.__init__(table, cache=cache, locks=locks, clock=clock, policy=self.policy)
        self.scenario.prepare(service)
        flights = service._refill._flights
        flights._mutex = _Noticed(self, service, flights._mutex)
        self.services.append(service)
        return service

    async def _read(self, service: Any) -> None:
        expected = self._expected()
        self._judge(expected, await service.read())

    def _read_blocking(self, service: Any) -> None:
        expected = self._expected()
        self._judge(expected, service.read())

    async def _change(self, service: Any) -> None:
        if self.scenario.clear_first:
            await service.clear_availability_cache()
            version = await self._commit()
        else:
            version = await self._commit()
            await service.clear_availability_cache()
        self._acknowledge(version)

    def _change_blocking(self, service: Any) -> None:
        actor = self.current
        assert isinstance(actor, _ThreadActor)
        version = actor.drive(self._commit())
        service.clear_availability_cache()
        self._acknowledge(version)

    def _acknowledge(self, version: int) -> None:
        self.touched = True
        self.acknowledged = max(self.acknowledged, version)

    async def _commit(self) -> int:
        def effect() -> int:
            self.version += 1
            self.committed_at.append(self.time)
            return self.version

        return await self.call("commit", effect)

    def _expected(self) -> tuple[int, int]:
        """What a read that begins now must show: in any case, and unless it is marked STALE."""
        self.touched = True
        ttl = self.policy.ttl
        old = sum(1 for instant in self.committed_at if instant + ttl < self.time)
        expected = (self.acknowledged, old)
        self.note("read, to show at least", expected)
        return expected

    def _judge(self, expected: tuple[int, int], reading: Reading) -> None:
        acknowledged, old = expected
        slot = reading.availability[0]
        shown = slot.capacity - slot.remaining
        self.note("read", (reading.source.name, shown))
        if shown < acknowledged:
            raise Violation(f"a read shows change {shown}, {acknowledged} were complete (P1)")
        if shown < old and reading.source is not Source.STALE:
            raise Violation(f"a read is older than its ttl: shows {shown}, not {old} (P2)")

    def _is_ready(self, request: _Request) -> bool:
        event = request.event
        return event is None or event.is_set or request.until <= self.time

    def _let_time_pass(self, actor: _Actor) -> None:
        request = actor.pending
        if not self._is_ready(request):
            actor.patience = max(0, actor.patience - 1)
        if request.event is None or not request.event.is_set:
            self.time = max(self.time, request.until)
        self.touched = request.what in ("sleep", "wait")

    def _may_strike(self, fault: str) -> bool:
        if fault == "evict":
            return bool(self.memory._records)
        if fault == "expire":
            return any(entry.until > self.time for entry in self.memory._fresh.values())
        return fault == "lose lock" and bool(self.locks.state())

    def _strike(self, fault: str) -> None:
        if fault == "evict":
            self.memory._records.popitem()
        elif fault == "expire":
            self.time += self.policy.ttl
        else:
            self.locks.lose()


class _Noticed:
    """A mutex that tells the world when somebody touches what it guards."""

    def __init__(self, world: World, service: object, mutex: Any) -> None:
        self._world = world
        self._service = service
        self._mutex = mutex

    def __enter__(self) -> None:
        if self._world.is_shared(self._service):
            self._world.touched = True
        self._mutex.acquire()

    def __exit__(self, *_exception: object) -> None:
        self._mutex.release()


class _Alive:
    """Whether an actor still runs; it stands for that actor in the state."""

    def __init__(self, actor: _Actor, world: World) -> None:
        self._actor = actor
        self._world = world

    def __call__(self) -> bool:
        alive = not self._actor.crashed
        self._world.note("alive", alive)
        return alive

    def __hash__(self) -> int:
        return hash(self._actor.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Alive) and self._actor is other._actor


class _Event:
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


class _Clock:
    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> float:
        world = self._world
        if world.current is not None:
            world.current.observe(world.time)
        return world.time

    async def sleep(self, seconds: float) -> None:
        await self._world.stop("sleep", self._world.time + seconds)

    def event(self) -> _Event:
        return _Event(self._world)


class _Cache:
    def __init__(self, world: World) -> None:
        self._world = world
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

    def locks(self) -> _Locks:
        return self._world.locks


class _Locks:
    def __init__(self, world: World, real: LockProvider) -> None:
        self._world = world
        self._real = real
        self._held: dict[str, tuple[str, float]] = {}

    async def acquire(self, name: str, *, ttl: float) -> Lock | None:
        def effect() -> Lock | None:
            lock = self._real.acquire(name, ttl=ttl)
            if lock is not None and self._world.current is not None:
                self._held[name] = (self._world.current.name, self._world.time + ttl)
            return lock

        return await self._world.call("lock", effect)

    async def release(self, lock: Lock) -> bool:
        def effect() -> bool:
            released = self._real.release(lock)
            if released:
                self._held.pop(lock.name, None)
            return released

        return await self._world.call("release", effect)

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
    return Availability.of([("slot", _CAPACITY, _CAPACITY - version)])


class _Table:
    scope_type = None

    def __init__(self, world: World) -> None:
        self._world = world

    async def load(self, scope: Scope | None) -> Loaded:  # noqa: ARG002  (it has none)
        def effect() -> Loaded:
            self._world.loads += 1
            return Loaded(_list_at(self._world.version))

        return await self._world.call("query", effect)


class _Blocking:
    """A simulated port as a blocking one, for an actor that is a thread."""

    def __init__(self, world: World, port: Any) -> None:
        self._world = world
        self._port = port

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        if name == "event":
            return lambda: _Blocking(self._world, found())
        if not inspect.iscoroutinefunction(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            actor = self._world.current
            assert isinstance(actor, _ThreadActor)
            return actor.drive(found(*args, **options))

        return call


def _said(answer: object) -> str:
    """An answer as a person reads it."""
    if isinstance(answer, Entry):
        return f"fresh, shows change {_CAPACITY - answer.availability[0].remaining}"
    if isinstance(answer, Loaded):
        return f"shows change {_CAPACITY - answer.availability[0].remaining}"
    if isinstance(answer, Miss):
        clears = answer.generation.clears if answer.generation else "unknown"
        copy = "" if answer.copy is None else f", kept: {_said(answer.copy)}"
        return f"miss, {clears} clears{copy}"
    return str(answer)
