"""Many processes of an application on one cache, simulated: the flow is the one that is shipped.

Time is what the simulation says: there are as many processors as processes, as fast as one likes. A
call of the cache or the locks takes effect after half of its time.
"""

from __future__ import annotations

import contextvars
import dataclasses
import heapq
import itertools
import math
from collections.abc import Callable, Coroutine, Generator
from random import Random
from typing import Any, TypeVar

from slotcache import Availability
from slotcache.memory import MemoryCache, MemoryLocks
from slotcache.protocols import Entry, Loaded, Lock, Miss, Scope
from slotcache.service import AsyncSlotAvailabilityService

T = TypeVar("T")

CALL = 0.0002
"""Seconds that a call of the cache or the locks takes, there and back."""

PLACES = 1_000_000


class Until:
    """What a task that waits gives to the timeline: the instant at which it goes on."""

    def __init__(self, instant: float) -> None:
        self.instant = instant

    def __await__(self) -> Generator[float, None, None]:
        yield self.instant


class Task:
    """Something that goes on when its time comes."""

    def __init__(self, flow: Coroutine[float, None, None]) -> None:
        self._flow = flow
        self._context = contextvars.copy_context()
        self.turn = 0

    def step(self) -> float | None:
        """Run it until it waits; return until when. None: it has ended."""
        try:
            return self._context.run(self._flow.send, None)
        except StopIteration:
            return None


class Timeline:
    """Runs tasks, each in its turn; an `AsyncClock`."""

    def __init__(self) -> None:
        self._time = 0.0
        self._order = itertools.count()
        self._agenda: list[tuple[float, int, int, Task]] = []
        self.current: Task | None = None

    def begin(self, flow: Coroutine[Any, Any, None]) -> None:
        """Have a task begin now."""
        self.wake(Task(flow), self._time)

    def run(self, end: float) -> None:
        """Run all tasks until that instant."""
        while self._agenda and self._agenda[0][0] <= end:
            instant, _, turn, task = heapq.heappop(self._agenda)
            if turn != task.turn:
                continue
            self._time, self.current = instant, task
            until = task.step()
            if until is not None:
                self.wake(task, until)

    def wake(self, task: Task, instant: float) -> None:
        """Have a task go on at that instant, and not at another one."""
        task.turn += 1
        heapq.heappush(self._agenda, (instant, next(self._order), task.turn, task))

    def now(self) -> float:
        return self._time

    async def sleep(self, seconds: float) -> None:
        await Until(self._time + seconds)

    def event(self) -> Event:
        return Event(self)


class Event:
    """An `AsyncEvent`."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._is_set = False
        self._waiting: list[Task] = []

    def set(self) -> None:
        self._is_set = True
        for task in self._waiting:
            self._timeline.wake(task, self._timeline.now())
        self._waiting.clear()

    async def wait(self, timeout: float) -> bool:
        task = self._timeline.current
        if not self._is_set and timeout > 0:
            assert task is not None
            self._waiting.append(task)
            await self._timeline.sleep(timeout)
            if task in self._waiting:
                self._waiting.remove(task)
        return self._is_set


class Table:
    """An `AsyncSlotRepository` that shows how often it was changed when a query began."""

    scope_type = None

    def __init__(self, timeline: Timeline, lasts: float) -> None:
        self._timeline = timeline
        self._lasts = lasts
        self.version = 0
        self.loads = 0

    async def load(self, scope: Scope | None) -> Loaded:  # noqa: ARG002  (it has none)
        self.loads += 1
        found = Availability.of([(1, PLACES, self.version)])
        await self._timeline.sleep(self._lasts)
        return Loaded(found)


class Cache:
    """An `AsyncCacheBackend`, as one process has it; what is kept is kept by all.

    Args:
        keeps_copies: False: a reader who finds nothing fresh is told of nothing else.
    """

    def __init__(
        self, timeline: Timeline, shared: MemoryCache, random: Random, *, keeps_copies: bool
    ) -> None:
        self._timeline = timeline
        self._shared = shared
        self._random = random
        self._keeps_copies = keeps_copies

    async def read(self, key: str) -> Entry | Miss:
        return self._told(await self._call(lambda: self._shared.read(key)))

    async def look(self, key: str) -> Miss:
        found = self._told(await self._call(lambda: self._shared.look(key)))
        assert isinstance(found, Miss)
        return found

    async def fill(
        self, key: str, miss: Miss, availability: Availability, **times: Any
    ) -> Entry | None:
        return await self._call(lambda: self._shared.fill(key, miss, availability, **times))

    async def clear(self, key: str) -> None:
        await self._call(lambda: self._shared.clear(key))

    async def clear_all(self) -> None:
        await self._call(self._shared.clear_all)

    def locks(self) -> Locks:
        return Locks(self._shared.locks(), self._call)

    def _told(self, found: Entry | Miss) -> Entry | Miss:
        if isinstance(found, Entry) or self._keeps_copies:
            return found
        return dataclasses.replace(found, copy=None)

    async def _call(self, effect: Callable[[], T]) -> T:
        half = CALL / 2 * (0.5 + self._random.random())
        await self._timeline.sleep(half)
        answer = effect()
        await self._timeline.sleep(half)
        return answer


class Locks:
    """An `AsyncLockProvider`, as one process has it."""

    def __init__(self, shared: MemoryLocks, call: Callable[..., Any]) -> None:
        self._shared = shared
        self._call = call

    async def acquire(self, name: str, *, ttl: float) -> Lock | None:
        found: Lock | None = await self._call(lambda: self._shared.acquire(name, ttl=ttl))
        return found

    async def release(self, lock: Lock) -> bool:
        released: bool = await self._call(lambda: self._shared.release(lock))
        return released


class Service(AsyncSlotAvailabilityService):
    """One process's service."""

    @staticmethod
    def _runner() -> Callable[[], bool]:
        return lambda: True

    @staticmethod
    def _spawn(flow: Coroutine[Any, Any, None]) -> Callable[[], bool]:
        raise AssertionError(f"nothing fails here: {flow}")


class Storm:
    """Processes whose readers read again and again, and one more that changes the table.

    Args:
        processes: How many of them.
        readers: In each of them.
        rate: Changes a second.
        query: Seconds that a query takes.
        pause: Seconds after which a reader comes again, on average.
        keeps_copies: False: without what readers who were already waiting may take.
    """

    def __init__(
        self,
        processes: int,
        readers: int,
        *,
        rate: float,
        query: float,
        pause: float,
        keeps_copies: bool = True,
    ) -> None:
        self.waits: list[float] = []
        self.stale = 0
        self._random = Random(1)
        self._timeline = Timeline()
        self._table = Table(self._timeline, query)
        self._shared = MemoryCache(clock=self._timeline)
        self._acknowledged = 0
        self._pause = pause
        self._is_over = False
        self._keeps_copies = keeps_copies
        self._timeline.begin(self._change(rate))
        for _ in range(processes):
            service = self._service()
            for _ in range(readers):
                self._timeline.begin(self._read(service))

    @property
    def loads(self) -> int:
        """How many queries have begun."""
        return self._table.loads

    def run(self, seconds: float) -> None:
        """Let it go on for so long, and then end."""
        self._timeline.run(self._timeline.now() + seconds)
        self._is_over = True
        self._timeline.run(math.inf)

    def _service(self) -> Service:
        cache = Cache(self._timeline, self._shared, self._random, keeps_copies=self._keeps_copies)
        return Service(self._table, cache=cache, clock=self._timeline)

    async def _change(self, rate: float) -> None:
        service = self._service()
        while not self._is_over:
            await self._timeline.sleep(1 / rate * (0.5 + self._random.random()))
            self._table.version += 1
            version = self._table.version
            await service.clear_availability_cache()
            self._acknowledged = version

    async def _read(self, service: Service) -> None:
        while not self._is_over:
            await self._timeline.sleep(self._random.expovariate(1 / self._pause))
            least, began = self._acknowledged, self._timeline.now()
            found = await service.get_availability()
            self.waits.append(self._timeline.now() - began)
            self.stale += next(iter(found)).remaining < least
