"""Who acts in a simulated world, on which services, and what each of them does."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from slotcache.availability import Reading
from slotcache.holds import HoldManager
from slotcache.protocols import Scope
from slotcache.service import AsyncSlotAvailabilityService, SlotAvailabilityService
from slotcache.testing.actors import Actor, TaskActor, ThreadActor
from slotcache.testing.holding import SimulatedHolds, manager_on
from slotcache.testing.judge import Expected
from slotcache.testing.ports import (
    Alive,
    Blocking,
    Failure,
    Forgetful,
    Noticed,
    NoticedTrouble,
    SimulatedCache,
    SimulatedClock,
    SimulatedLocks,
    SimulatedTable,
)
from slotcache.worlds import run

if TYPE_CHECKING:
    from slotcache.testing.world import World

__all__ = ["Cast"]

Body: TypeAlias = Callable[[Any], Coroutine[Any, Any, None]]
"""What an actor does on a service."""


class Cast:
    """The actors and services of one run.

    Attributes:
        actors: In the order in which they came.
        by_name: The same, by name.
    """

    def __init__(self, world: World) -> None:
        self.actors: list[Actor] = []
        self.by_name: dict[str, Actor] = {}
        self._world = world
        self._services: list[Any] = []
        self._troubles: list[NoticedTrouble] = []
        self._committed: dict[str, int] = {}
        self._flows: list[Any] = []
        scenario = world.scenario
        for _ in range(max(1, scenario.services)):
            self._add_service(blocking=scenario.blocking)
        self._add_all("reader", [self._read] * scenario.readers)
        self._add_all("writer", [self._change] * scenario.writers)
        self._add_all("clearer", [self._clear] * scenario.clears)
        for operation in dict.fromkeys(scenario.holds):
            count = scenario.holds.count(operation)
            self._add_all(operation, [self._change_of(operation) for _ in range(count)])
        self._alike = [group for group in self._groups() if len(group) > 1]

    def close(self) -> None:
        """Unwind every actor."""
        for actor in self.actors:
            actor.close()
        for flow in self._flows:  # of a thread that never had its turn
            flow.close()
        # They refer to each other: cut, they go at once, without a search by the garbage collector.
        for one in (*self._services, self):
            vars(one).clear()

    def names(self) -> dict[str, str]:
        """Call actors that are alike by how far they are, so that it does not matter who is who."""
        names = {actor.name: actor.name for actor in self.actors}
        for group in self._alike:
            by_progress = sorted(group, key=Actor.progress)
            names.update(zip([a.name for a in by_progress], [a.name for a in group], strict=True))
        return names

    def state(self, names: Mapping[str, str]) -> Hashable:
        """Return all that is shared in a process, and where each actor is."""
        flying = frozenset(
            (
                key,
                *(
                    (names[one.alive.who], one.begun, self._world.store.known(one.generation))
                    for one in flights
                ),
            )
            for service in self._services
            for key, flights in service._refill._flights._flying.items()
        )
        troubles = tuple(one.state() for one in self._troubles)
        awaited = {event[0] for actor in self.actors if (event := actor.waits_for())}
        actors = {
            names[actor.name]: actor.state(names, is_awaited=actor.name in awaited)
            for actor in self.actors
        }
        return flying, troubles, tuple(sorted(actors.items()))

    def is_flying(self) -> bool:
        """Whether any flight has not landed."""
        return any(one._refill._flights._flying for one in self._services)

    def process_of(self, actor: Actor) -> int:
        """Return the number of its process."""
        return self._services.index(actor.service)

    def others(self, service: object) -> Iterator[Actor]:
        """Yield who, but the current actor, may still use this service."""
        for actor in self.actors:
            is_there = not (actor.finished or actor.crashed)
            if is_there and actor.service is service and actor is not self._world.current:
                yield actor

    def add_reader(self, name: str) -> Actor:
        """Add one who reads when all is over, in a process that is new."""
        service = self._add_service(blocking=False)
        reader = TaskActor(name, self._read(service))
        reader.service = service
        return self._add(reader)

    def committed(self, taken: int) -> None:
        """Note that the current actor's change is committed, with so many places taken now."""
        world = self._world
        assert world.current is not None
        version = world.judge.commit(world.time, taken)
        world.current.observe(version)
        self._committed[world.current.name] = version

    def _add(self, actor: Actor) -> Actor:
        self.actors.append(actor)
        self.by_name[actor.name] = actor
        return actor

    def _add_all(self, kind: str, bodies: list[Body]) -> None:
        scenario = self._world.scenario
        for number, body in enumerate(bodies):
            service = self._services[number % len(self._services)]
            name = f"{kind} {number + 1}"
            actor = self._actor(name, body, service)
            actor.service = service
            # A failing call concerns one process, and a storage may keep something for each: there
            # it does matter which is which.
            if not scenario.calls_may_fail and scenario.storage is None:
                actor.alone = kind != "reader" or scenario.readers <= scenario.services
            self._add(actor)

    def _actor(self, name: str, body: Body, service: Any) -> Actor:
        if not self._world.scenario.blocking:
            return TaskActor(name, body(service))
        actor = ThreadActor(name, lambda: actor.drive(body(service)))
        return actor

    def _groups(self) -> list[list[Actor]]:
        groups: list[list[Actor]] = []
        for actor in self.actors:
            for group in groups:
                if actor.is_like(group[0]):
                    group.append(actor)
                    break
            else:
                groups.append([actor])
        return groups

    def _add_service(self, *, blocking: bool) -> Any:
        world = self._world
        face: Any = SlotAvailabilityService if blocking else AsyncSlotAvailabilityService
        service = face.__new__(face)
        # Before `__init__` builds the flow with them: who runs, and chance, are this world's.
        service._runner, service._jitter = world.runner, lambda: 1.0
        service._spawn = functools.partial(self._in_background, service, blocking)
        cache, locks = world.store.open()
        ports: list[Any] = [
            SimulatedTable(world),
            SimulatedCache(world, service, cache),
            SimulatedLocks(world, service, locks),
            SimulatedClock(world),
        ]
        self._troubles += [port._slotcache_trouble for port in ports[1:3]]
        if blocking:
            ports = [Blocking(world, port) for port in ports]
        table, cache, locks, clock = ports
        service.__init__(table, cache=cache, locks=locks, clock=clock, policy=world.policy)
        world.scenario.prepare(service)
        _leave_out(service._refill)
        flights = service._refill._flights
        flights._mutex = Noticed(world, service, flights._mutex)
        self._services.append(service)
        return service

    def _in_background(self, service: Any, blocking: bool, flow: Any) -> Callable[[], bool]:
        """Add an actor that sees to a service's trouble."""
        name = f"recovery {len(self.actors)}"
        self._flows.append(flow)
        actor = (
            ThreadActor(name, functools.partial(run, flow)) if blocking else TaskActor(name, flow)
        )
        actor.service = service
        self._add(actor)
        return Alive(actor, self._world)

    async def _read(self, service: Any) -> None:
        with self._failing("query"):
            expected = self._expected(service)
            self._show(expected, await _done(service.read()))

    async def _change(self, service: Any) -> None:
        world = self._world

        def commit() -> int:
            taken = world.judge.version + 1 if world.table is None else world.table.sell()
            return world.judge.commit(world.time, taken)

        if world.scenario.clear_first:
            await _done(service.clear_availability_cache())
        version = await world.call("commit", commit)
        delivered = world.scenario.clear_first or await _done(service.clear_availability_cache())
        self._complete(version, service, delivered=delivered)

    async def _clear(self, service: Any) -> None:
        await _done(service.clear_availability_cache())

    def _change_of(self, operation: str) -> Body:
        """Return what does this to a hold, as a manager whose hook clears the list."""
        table = self._world.table
        assert table is not None
        target = table.slot_id if operation == "create" else table.hold().id

        async def change(service: Any) -> None:
            with self._failing("change"):
                await _done(getattr(self._manager(service), operation)(target))

        return change

    def _manager(self, service: Any) -> Any:
        """Return a manager of the face that is run, whose hook clears this service's list."""
        world = self._world
        assert world.table is not None
        assert world.current is not None
        who = world.current.name
        port = SimulatedHolds(world, world.table)

        def complete(delivered: bool) -> None:
            self._complete(self._committed[who], service, delivered=delivered)

        def told(_scope: Scope | None) -> None:
            complete(service.clear_availability_cache())

        async def told_later(_scope: Scope | None) -> None:
            complete(await service.clear_availability_cache())

        if world.scenario.blocking:
            return HoldManager(Blocking(world, port), on_change=told)
        return manager_on(port, told_later)

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """Let an actor be told the database's error, if that is the fault (P5)."""
        try:
            yield
        except Failure as failure:
            if not str(failure).startswith(what):
                raise
            self._world.note(f"{what} failed", "")

    def _complete(self, version: int, service: Any, *, delivered: bool) -> None:
        self._world.touched = True
        if delivered:
            self._world.judge.acknowledge(version)
        else:
            self._world.judge.owe(version, self._services.index(service))

    def _expected(self, service: Any) -> Expected:
        world = self._world
        world.touched = True
        for owing in world.judge.owing():
            if not self._services[owing].health().undelivered:
                world.judge.deliver(owing)
        expected = world.judge.expected_at(world.time, self._services.index(service))
        world.note("begins to read", expected)
        return expected

    def _show(self, expected: Expected, reading: Reading) -> None:
        world = self._world
        assert world.current is not None
        shown = world.shown(reading.availability)
        world.note("read", (reading.source.name, shown))
        world.judge.read(world.current.name, expected, reading, shown)


async def _done(call: Any) -> Any:
    """Return what a call of either face returns."""
    return await call if inspect.isawaitable(call) else call


def _leave_out(refill: Any) -> None:
    """Leave out what more than one fault would have to strike for, and what shows nothing."""
    # Time passes in leaps here: a call that overruns its budget would be the rule.
    for guard in (refill._cache, refill._locks):
        guard._now = lambda: 0.0
    # Locks that failed once may stay away for as long as a run lasts (P11).
    refill._locks.attend = lambda: None
    # Read only when both the cache and the table fail.
    refill._known = Forgetful()
