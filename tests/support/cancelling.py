"""Cancelling tasks on asyncio wherever they wait, once and twice, and what they leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from itertools import count
from time import monotonic
from typing import Any, TypeAlias, TypeVar
from unittest.mock import patch

from slotcache import AsyncSlotAvailabilityService, Availability, AvailabilityPolicy, worlds
from slotcache.memory import MemoryCache
from slotcache.protocols import AsyncLockProvider, Entry, Loaded, Lock, Miss, Scope
from slotcache.worlds import TimedEvent

from .points import Points

T = TypeVar("T")

PATIENCE = 10.0


_struck: ContextVar[Strike | None] = ContextVar("struck", default=None)


class Strike:
    """Cancels a task at some of the points where it waits.

    Where it waits for a task that does some work of its as a whole, that one is cancelled, as it
    would do itself; but it is the first one that is cancelled twice, or in what is decisive.

    Args:
        at: At which, counted from 1.
        late: Whether what it waits for is there already.

    Attributes:
        points: Where it has waited.
        is_double: Whether it is cancelled twice.
        whole: The last work that was done as a whole.
    """

    def __init__(self, *at: int, late: bool = False) -> None:
        self._first = min(at, default=0)
        self.is_double = len(at) > 1
        self.points = Points(set(at), self._cancel, late=late)
        self._victim: asyncio.Task[Any] | None = None
        self.whole: worlds._Whole | None = None
        self._counting = patch.object(worlds._Whole, "run", _counted)

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run this in a task, which is going to be cancelled."""
        self._counting.start()
        context = copy_context()
        context.run(_struck.set, self)
        work = self.points.of(coroutine)
        self._victim = asyncio.get_running_loop().create_task(work, context=context)

    async def outcome(self) -> Any:
        """Return what it returned or raised: a CancelledError, if it was struck.

        Some drivers and Python 3.11 lose a cancellation that comes with what was waited for: then
        the call has returned.
        """
        assert self._victim is not None
        _, left = await asyncio.wait([self._victim], timeout=PATIENCE)
        self._counting.stop()
        self.points.end()
        assert not left, "it does not end"
        outcome: Any = None
        [outcome] = await asyncio.gather(self._victim, return_exceptions=True)
        if isinstance(outcome, asyncio.CancelledError):
            assert self.was_struck
        elif isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def of(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run this, alone; return its outcome."""
        self.begin(coroutine)
        return await self.outcome()

    async def done_or(self, is_so: Callable[[], object]) -> None:
        """Wait until it is so, or until the call is over."""
        await eventually(lambda: self._victim is None or self._victim.done() or is_so())

    @property
    def was_struck(self) -> bool:
        """Whether it has come to the point where it is cancelled."""
        return 0 < self._first <= self.points.count

    def _cancel(self) -> None:
        struck = self.points.task
        if self.is_double or (self.whole is not None and self.whole.is_decisive):
            struck = self._victim
        if struck is not None and not struck.done():
            struck.cancel()


_run = worlds._Whole.run


async def _counted(whole: Any, work: Coroutine[Any, Any, Any]) -> Any:
    """Have the points counted in a task that does some work of the struck one as a whole."""
    strike = _struck.get()
    _struck.set(None)
    if strike is None:
        return await _run(whole, work)
    strike.whole = whole
    return await _run(whole, strike.points.of(work))


Case: TypeAlias = Callable[[Strike], Coroutine[Any, Any, None]]
"""Has one call be struck, and checks what that leaves behind."""


def strike_everywhere(
    run: Callable[[Strike], object], *, late: bool = False, once_more: int = 0
) -> int:
    """Cancel a call at each of its points, each in a run of its own; return how many there are.

    Args:
        run: Runs a case.
        late: As for `Strike`.
        once_more: So many points later it is cancelled again; 0: it is not.
    """
    for point in count(1):
        strike = Strike(*{point, point + once_more}, late=late)
        run(strike)
        if strike.points.count < point:
            break
    return point - 1


def strike_twice_everywhere(run: Callable[[Strike], object]) -> int:
    """Cancel it at each point, and again at each of those where it then waits; return how many."""
    pairs = 0
    for point in count(1):
        for later in count(1):
            strike = Strike(point, point + later)
            run(strike)
            if strike.points.count < point + later:
                break
            pairs += 1
        if strike.points.count < point:
            break
    return pairs


class AwaitedCache:
    """A `MemoryCache` that is waited for before each call takes effect, and again for its answer.

    Args:
        cache: The cache.

    Attributes:
        failure: What calls raise, if anything.
        good_for: How many calls there are before they do.
    """

    def __init__(self, cache: MemoryCache) -> None:
        self._cache = cache
        self._locks = AwaitedLocks(cache)
        self.failure: Exception | None = None
        self.good_for = 0

    async def read(self, key: str) -> Entry | Miss:
        return await self._call(partial(self._cache.read, key))

    async def look(self, key: str) -> Miss:
        return await self._call(partial(self._cache.look, key))

    async def fill(
        self, key: str, miss: Miss, availability: Availability, **times: Any
    ) -> Entry | None:
        return await self._call(partial(self._cache.fill, key, miss, availability, **times))

    async def clear(self, key: str) -> None:
        await self._call(partial(self._cache.clear, key))

    async def clear_all(self) -> None:
        await self._call(self._cache.clear_all)

    def locks(self) -> AsyncLockProvider:
        return self._locks

    async def _call(self, call: Callable[[], T]) -> T:
        await a_while()
        if self.failure is not None:
            self.good_for -= 1
            if self.good_for < 0:
                raise self.failure
        answer = call()
        await a_while()
        return answer


class AwaitedLocks:
    """The same with its locks: a cancelled call has no effect, as a provider has to see to."""

    def __init__(self, cache: MemoryCache) -> None:
        self._locks = cache.locks()

    async def acquire(self, name: str, *, ttl: float) -> Lock | None:
        await a_while()
        lock = self._locks.acquire(name, ttl=ttl)
        try:
            await a_while()
        except asyncio.CancelledError:
            if lock is not None:
                self._locks.release(lock)
            raise
        return lock

    async def release(self, lock: Lock) -> bool:
        released = self._locks.release(lock)
        await a_while()
        return released


class AwaitedTable:
    """One slot of ten places; counts its loads.

    Attributes:
        remaining: What a load reads.
        loads: How many were begun.
        most: How many there were at a time, at most.
        failure: What each raises, if anything.
        open: Set, unless loads have to wait.
    """

    scope_type: type[Scope] | None = str

    def __init__(self) -> None:
        self.remaining = 10
        self.loads = 0
        self.most = 0
        self.failure: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()
        self._running = 0

    async def load(self, _scope: Scope | None) -> Loaded:
        self.loads += 1
        self._running += 1
        self.most = max(self.most, self._running)
        try:
            await a_while()
            read = Availability.of([("slot", 10, self.remaining)])
            await self.open.wait()
            await a_while()
            if self.failure is not None:
                raise self.failure
            return Loaded(read)
        finally:
            self._running -= 1


class Ticks:
    """A clock by which time passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await a_while()

    def event(self) -> TimedEvent:
        return TimedEvent()


async def a_while() -> None:
    """Wait once, and not for time."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.call_soon(_let_go, future)
    await future


def _let_go(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Office:
    """A service on parts that are waited for, and another one beside it, as in another process.

    Attributes:
        table: What both of them read.
        cache: Of the service.
        clock: Of all.
        service: Where readers are cancelled.
    """

    def __init__(self) -> None:
        self.clock = Ticks()
        self.table = AwaitedTable()
        self._kept = MemoryCache(clock=self.clock)
        self.cache = AwaitedCache(self._kept)
        self.policy = AvailabilityPolicy(ttl=10, stale_ttl=10, lock_timeout=0.004, lock_ttl=60)
        self.service = self._service(self.cache)

    def _service(self, cache: AwaitedCache) -> AsyncSlotAvailabilityService:
        service = AsyncSlotAvailabilityService(
            self.table, cache=cache, policy=self.policy, clock=self.clock
        )
        service._refill._jitter = lambda: 0.5
        return service

    def elsewhere(self) -> AsyncSlotAvailabilityService:
        """Another process's service, with the same cache and locks."""
        return self._service(AwaitedCache(self._kept))

    async def free(self, scope: str | None = None) -> int:
        """How many places the service shows."""
        return free_in(await self.service.get_availability(scope))

    def followed(self, count: int) -> list[asyncio.Task[int]]:
        """So many more readers."""
        return [asyncio.create_task(self.free()) for _ in range(count)]

    async def check_left(self) -> None:
        """Nothing is left: no flight, no lock, no task; and the list is right, here and there."""
        check_flights(self.service)
        assert await self.free() == self.table.remaining
        lock = await self.cache.locks().acquire(f"{self.policy.key}.lock", ttl=1)
        assert lock is not None, "the lock is still held"
        await self.cache.locks().release(lock)
        assert free_in(await self.elsewhere().get_availability()) == self.table.remaining
        assert self.table.most == 1, "more than one query at a time"


@asynccontextmanager
async def office() -> AsyncIterator[Office]:
    """A new one, of which nothing is left in the end."""
    made = Office()
    yield made
    await made.check_left()
    await made.service.close()
    await check_tasks()


def check_flights(service: AsyncSlotAvailabilityService) -> None:
    """No flight has been left."""
    assert service._refill._flights._flying == {}


async def check_tasks() -> None:
    """No task is left in this loop but the one that asks."""
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})


def free_in(availability: Availability) -> int:
    """How many places a list shows."""
    return sum(slot.remaining for slot in availability)


async def eventually(is_so: Callable[[], object]) -> None:
    """Wait until it is so."""
    end = monotonic() + PATIENCE
    while not is_so():
        assert monotonic() < end, "it never is"
        await asyncio.sleep(0.001)
