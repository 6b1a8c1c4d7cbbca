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

import functools
import itertools
import types
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from slotcache.availability import Reading
from slotcache.policy import AvailabilityPolicy
from slotcache.protocols import Entry, Loaded, Lock, Miss
from slotcache.service import AsyncSlotAvailabilityService, SlotAvailabilityService
from slotcache.testing.actors import Actor, Request, TaskActor, ThreadActor
from slotcache.testing.judge import Expected, Judge
from slotcache.testing.ports import (
    CAPACITY,
    Alive,
    Blocking,
    Forgetful,
    Noticed,
    NoticedTrouble,
    SharedLocks,
    SimulatedCache,
    SimulatedClock,
    SimulatedLocks,
    SimulatedTable,
)
from slotcache.testing.scenario import Choice, Scenario, Violation
from slotcache.worlds import run

__all__ = ["World"]

_POLICY = AvailabilityPolicy(lock_timeout=0.001)

ReturnT = TypeVar("ReturnT")


class Failure(Exception):
    """What a port raises when the scheduler lets it fail."""


class World:
    """One run of a scenario, to be stepped by choices.

    Attributes:
        scenario: What it is a run of.
        time: The simulated instant, in seconds.
        judge: Knows what is committed; the list shows as many places missing.
        touched: Whether the last step read or changed anything that is shared.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.time = 0.0
        self.touched = False
        self._events: list[tuple[str, str, object]] = []
        self.policy = _POLICY
        self.faults = scenario.faults
        self.judge = Judge(scenario, self.policy.ttl)
        self.current: Actor | None = None
        self.closed = False
        epochs = itertools.count(1)
        self.memory = scenario.cache(clock=self, epoch=lambda: next(epochs))
        self.locks = SharedLocks(self)
        self.actors: list[Actor] = []
        self._by_name: dict[str, Actor] = {}
        self._troubles: list[NoticedTrouble] = []
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
        actor = self._by_name[who]
        if command == "crash":
            actor.crashed = True
            return
        if actor.pending.what in ("sleep", "wait"):
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
        """Return a digest of everything that the future depends on.

        Which events are set, and how flights ended, follows from what the actors have observed.
        """
        records = self.memory._records
        kept = tuple((key, records[key].generation, records[key].copy) for key in sorted(records))
        flying = [
            (index, key, tuple((one.alive, one.begun, one.generation) for one in flights))
            for index, service in enumerate(self.services)
            for key, flights in service._refill._flights._flying.items()
        ]
        actors = tuple(actor.state() for actor in self.actors)
        cached = (kept, tuple(self.memory._fresh.items()), self.locks.state())
        shared = (self.time, self.faults, cached, tuple(flying))
        troubles = tuple(one.state() for one in self._troubles)
        return hash((shared, troubles, self.judge.state(), actors))

    def timeline(self) -> str:
        """Return what happened, a line each."""
        return "\n".join(
            f"{who:10} {what:28} {_said(answer)}" for who, what, answer in self._events
        )

    def finish(self) -> None:
        """Judge the end of a run: nothing is left flying or locked, and a last read is right."""
        self.judge.finish(locked=bool(self.locks.state()))
        crashed = any(actor.crashed for actor in self.actors)
        reader = TaskActor("afterwards", self._read(self._service(blocking=False)))
        self._add(reader)
        while not reader.finished:
            self.step(("afterwards", "go"))
        if not crashed and any(one._refill._flights._flying for one in self.services):
            raise Violation("a flight is left in the air")

    def close(self) -> None:
        """Unwind every actor, so that no coroutine or thread is left; the world is gone then."""
        self.closed = True
        for actor in self.actors:
            actor.close()
        # They refer to each other: cut, they go at once, without a search by the garbage collector.
        for one in (*self.services, self):
            vars(one).clear()

    @types.coroutine
    def stop(
        self, what: str, until: float = 0.0, event: Any = None
    ) -> Generator[Request, str, None]:
        """Wait for the scheduler; fail if it says so."""
        if self.closed:
            raise GeneratorExit
        command = yield Request(what, until, event)
        if command == "fail":
            raise Failure(what)

    async def call(self, what: str, effect: Callable[[], ReturnT]) -> ReturnT:
        """Make a port call that takes effect at one instant between its two stops."""
        assert self.current is not None
        if self.current.kind == "recovery" and what == "look":
            # Its answer is not used, so that a later answer is the same as a later look.
            return effect()
        await self.stop(what)
        self.touched = True
        answer = effect()
        self.note(what, answer)
        await self.stop(f"{what} answer")
        return answer

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Note, where that is judged, whose queries run side by side."""
        assert self.current is not None
        if not self.judge.counts:
            yield
            return
        name = self.current.name
        self.judge.begin_load(name)
        self.touched = True
        try:
            yield
        finally:
            self.judge.end_load(name)
            self.touched = True

    def note(self, what: str, answer: object) -> None:
        """Record what the current actor will get to know."""
        actor = self.current
        assert actor is not None
        known = isinstance(answer, Lock) if what == "lock" else answer
        actor.observe(known if isinstance(known, Hashable) else repr(known))
        self._events.append((actor.name, what, known))

    def others(self, service: object) -> list[Actor]:
        """Who, but the current actor, may still use this service."""
        return [
            actor
            for actor in self.actors
            if actor.service is service and actor is not self.current
            if not (actor.finished or actor.crashed)
        ]

    def runner(self) -> Alive:
        """As `Ports.runner`: the current actor, alive until it crashes."""
        assert self.current is not None
        return Alive(self.current, self)

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
                self._add(self._actor(f"{kind} {n + 1}", body, service))

    def _add(self, actor: Actor) -> None:
        self.actors.append(actor)
        self._by_name[actor.name] = actor

    def _actor(self, name: str, body: Callable[[Any], Any], service: Any) -> Actor:
        if self.scenario.blocking:
            actor: Actor = ThreadActor(name, functools.partial(body, service))
        else:
            actor = TaskActor(name, body(service))
        actor.service = service
        # A failing call concerns one process, so that each is another then.
        if not self.scenario.calls_may_fail:
            actor.alone = actor.kind == "writer" or self.scenario.readers <= self.scenario.services
        return actor

    def _service(self, *, blocking: bool) -> Any:
        face: Any = SlotAvailabilityService if blocking else AsyncSlotAvailabilityService
        service = face.__new__(face)
        # Before `__init__` builds the flow with them: who runs, and chance, are this world's.
        service._runner, service._jitter = self.runner, lambda: 1.0
        service._spawn = functools.partial(self._in_background, service)
        ports: list[Any] = [
            SimulatedTable(self),
            SimulatedCache(self, service),
            SimulatedLocks(self, service),
            SimulatedClock(self),
        ]
        self._troubles += [port._slotcache_trouble for port in ports[1:3]]
        if blocking:
            ports = [Blocking(self, port) for port in ports]
        table, cache, locks, clock = ports
        service.__init__(table, cache=cache, locks=locks, clock=clock, policy=self.policy)
        self.scenario.prepare(service)
        self._leave_out(service._refill)
        flights = service._refill._flights
        flights._mutex = Noticed(self, service, flights._mutex)
        self.services.append(service)
        return service

    def _leave_out(self, refill: Any) -> None:
        """Leave out what more than one fault would have to strike for, and what shows nothing."""
        # Time passes in leaps here: a call that overruns its budget would be the rule.
        for guard in (refill._cache, refill._locks):
            guard._now = lambda: 0.0
        # Locks that failed once may stay away for as long as a run lasts (P11).
        refill._locks.attend = lambda: None
        # Read only when both the cache and the table fail.
        refill._known = Forgetful()

    def _in_background(self, service: Any, flow: Any) -> Callable[[], bool]:
        """Add an actor that sees to a service's trouble."""
        name = f"recovery {len(self.actors)}"
        if self.scenario.blocking:
            actor: Actor = ThreadActor(name, functools.partial(run, flow))
        else:
            actor = TaskActor(name, flow)
        actor.service = service
        self._add(actor)
        return Alive(actor, self)

    async def _read(self, service: Any) -> None:
        with self._database_may_fail():
            expected = self._expected(service)
            self._show(expected, await service.read())

    def _read_blocking(self, service: Any) -> None:
        with self._database_may_fail():
            expected = self._expected(service)
            self._show(expected, service.read())

    @contextmanager
    def _database_may_fail(self) -> Iterator[None]:
        """Let a reader be told the database's error, if that is the fault (P5)."""
        try:
            yield
        except Failure as failure:
            if not str(failure).startswith("query"):
                raise
            self.note("read", "the database's error")

    async def _change(self, service: Any) -> None:
        delivered = True
        if self.scenario.clear_first:
            await service.clear_availability_cache()
            version = await self._commit()
        else:
            version = await self._commit()
            delivered = await service.clear_availability_cache()
        self._complete(version, service, delivered=delivered)

    def _change_blocking(self, service: Any) -> None:
        actor = self.current
        assert isinstance(actor, ThreadActor)
        version = actor.drive(self._commit())
        delivered = service.clear_availability_cache()
        self._complete(version, service, delivered=delivered)

    def _complete(self, version: int, service: Any, *, delivered: bool) -> None:
        self.touched = True
        if delivered:
            self.judge.acknowledge(version)
        else:
            self.judge.owe(version, self.services.index(service))

    async def _commit(self) -> int:
        return await self.call("commit", lambda: self.judge.commit(self.time))

    def _expected(self, service: Any) -> Expected:
        self.touched = True
        process = self.services.index(service)
        for owing in self.judge.owing():
            if not self.services[owing].health().undelivered:
                self.judge.deliver(owing)
        expected = self.judge.expected_at(self.time, process)
        self.note("read, to show at least", expected)
        return expected

    def _show(self, expected: Expected, reading: Reading) -> None:
        assert self.current is not None
        slot = reading.availability[0]
        shown = slot.capacity - slot.remaining
        self.note("read", (reading.source.name, shown))
        self.judge.read(self.current.name, expected, reading, shown)

    def _is_ready(self, request: Request) -> bool:
        event = request.event
        return event is None or event.is_set or request.until <= self.time

    def _let_time_pass(self, actor: Actor) -> None:
        request = actor.pending
        if not self._is_ready(request):
            actor.patience = max(0, actor.patience - 1)
        if request.event is None or not request.event.is_set:
            self.time = max(self.time, request.until)
        self.touched = True

    def _may_strike(self, fault: str) -> bool:
        if fault == "evict":
            return bool(self.memory._records)
        if fault == "lose lock":
            return bool(self.locks.state())
        if fault != "a ttl passes":
            return False
        alive = any(entry.until > self.time for entry in self.memory._fresh.values())
        return alive or any(actor.pending.what.startswith("query") for actor in self.actors)

    def _strike(self, fault: str) -> None:
        if fault == "evict":
            self.memory._records.popitem()
        elif fault == "a ttl passes":
            self.time += self.policy.ttl + 1.0
        else:
            self.locks.lose()


def _said(answer: object) -> str:
    """An answer as a person reads it."""
    if isinstance(answer, Entry):
        return f"fresh, shows change {CAPACITY - answer.availability[0].remaining}"
    if isinstance(answer, Loaded):
        return f"shows change {CAPACITY - answer.availability[0].remaining}"
    if isinstance(answer, Miss):
        clears = answer.generation.clears if answer.generation else "unknown"
        copy = "" if answer.copy is None else f", kept: {_said(answer.copy)}"
        return f"miss, {clears} clears{copy}"
    return str(answer)
