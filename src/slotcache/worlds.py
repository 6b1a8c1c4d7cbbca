"""The worlds in which the flows run: how each waits, and what it makes of the other one's ports.

A flow is a coroutine over async ports. In the blocking world each sync port is wrapped so that it
never suspends, and the flow runs from start to end in one `send`. On asyncio the ports are async,
and a sync one is called in threads, unless it never waits. In the third world, in
`slotcache.testing`, a scheduler decides everything.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar
from functools import partial
from typing import Any, TypeVar

from slotcache.availability import Availability
from slotcache.protocols import (
    CacheBackend,
    Clock,
    Entry,
    Event,
    Loaded,
    Lock,
    LockProvider,
    Miss,
    Scope,
    SlotRepository,
)

__all__ = [
    "AsyncSystemClock",
    "InlineCache",
    "InlineClock",
    "InlineLocks",
    "InlineSlots",
    "SystemClock",
    "Tasks",
    "TimedEvent",
    "as_a_whole",
    "current_task",
    "current_thread",
    "decisive",
    "in_background",
    "in_line",
    "is_async",
    "is_background",
    "is_in_a_whole",
    "run",
    "running_loop",
]

ReturnT = TypeVar("ReturnT")

is_background: ContextVar[bool] = ContextVar("slotcache.is_background", default=False)
"""Whether this code runs beside the callers, and not for one of them."""

_PATIENCE = 1.0
_GRACE = 1.0
_TIDYING = 2.0


def run(flow: Coroutine[Any, Any, ReturnT]) -> ReturnT:
    """Run a flow whose ports never suspend, to its end; what it raises passes through."""
    try:
        flow.send(None)
    except StopIteration as end:
        value: ReturnT = end.value
        return value
    finally:
        flow.close()
    raise AssertionError("a port of the blocking world suspended the flow")


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that runs here.

    Raises:
        RuntimeError: None does, or not one of asyncio.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "the async half of slotcache runs on asyncio, of which no event loop runs here: under "
            "trio call the blocking half by trio.to_thread.run_sync(service.get_availability)"
        ) from None


def is_async(port: object, method: str) -> bool:
    """Whether a port is one of asyncio, known by one of its methods."""
    return inspect.iscoroutinefunction(getattr(port, method, None))


def in_background(flow: Coroutine[Any, Any, None]) -> Callable[[], bool]:
    """Run a flow whose ports never suspend in a thread; return whether that is alive, for later."""
    context = Context()
    context.run(is_background.set, True)
    thread = threading.Thread(target=context.run, args=(run, flow), name="slotcache", daemon=True)
    thread.start()
    return thread.is_alive


class Tasks:
    """The tasks in which flows run beside the callers, until they end or are ended."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, flow: Coroutine[Any, Any, None]) -> Callable[[], bool]:
        """Run a flow in a task of the running loop; return whether that still runs, for later."""
        context = Context()
        context.run(is_background.set, True)
        loop = running_loop()
        task = loop.create_task(flow, name="slotcache", context=context)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return partial(_is_under_way, task, loop)

    async def end(self) -> None:
        """Wait for those of the running loop, which were told to end, and cancel who does not."""
        loop = running_loop()
        ours = {task for task in self._running if task.get_loop() is loop}
        if not ours:
            return
        _, slow = await asyncio.wait(ours, timeout=_PATIENCE)
        for task in slow:
            task.cancel()
        if slow:
            await asyncio.wait(slow, timeout=_PATIENCE)


class _Whole:
    """Work that is interrupted once at most.

    Attributes:
        is_decisive: Whether what it does now has to be known to have happened or not.
    """

    def __init__(self, is_decisive: bool) -> None:
        self.is_decisive = is_decisive
        self._task: asyncio.Task[Any] | None = None

    def is_here(self) -> bool:
        """Whether this code is part of it, and not of what it has begun elsewhere."""
        try:
            return self._task is asyncio.current_task()
        except RuntimeError:  # a thread
            return False

    async def run(self, work: Coroutine[Any, Any, ReturnT]) -> ReturnT:
        """Do it, in a task that runs nothing else."""
        self._task = asyncio.current_task()
        _whole.set(self)
        return await work

    async def end(self, task: asyncio.Task[Any]) -> None:
        """Interrupt it, and wait until it has ended."""
        loop = asyncio.get_running_loop()
        task.add_done_callback(_look_at)
        self._interrupt(task, _GRACE)
        end = loop.time() + _GRACE + _TIDYING
        while not task.done() and (left := end - loop.time()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task], timeout=left)

    def _interrupt(self, task: asyncio.Task[Any], grace: float) -> None:
        if self.is_decisive and grace:
            asyncio.get_running_loop().call_later(grace, self._interrupt, task, 0.0)
        elif not task.cancelling():  # the end of a loop cancels all tasks, this one, too
            task.cancel()


def _look_at(task: asyncio.Task[Any]) -> None:
    """Take note of what nobody asks for any more, lest asyncio complain."""
    if not task.cancelled():
        task.exception()


_whole: ContextVar[_Whole | None] = ContextVar("slotcache.whole", default=None)


async def as_a_whole(work: Coroutine[Any, Any, ReturnT], *, is_decisive: bool = False) -> ReturnT:
    """Do work in a task that hears of one cancellation, and is waited for, however often it comes.

    So it can tidy up: libraries do not bear a second cancellation while they do, and a cancel scope
    of anyio sends one at each wait. In the midst of what is decisive it does not hear of that one
    before a second is over. When this returns, or raises, the work has ended, unless it took two
    seconds to tidy up.
    """
    whole = _Whole(is_decisive)
    task = running_loop().create_task(whole.run(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await whole.end(task)
        raise


@contextmanager
def decisive() -> Iterator[None]:
    """Say that what is done in this context is decisive, if it is part of a whole."""
    whole = _whole.get()
    if whole is None or not whole.is_here():
        yield
        return
    before, whole.is_decisive = whole.is_decisive, True
    try:
        yield
    finally:
        whole.is_decisive = before


def is_in_a_whole() -> bool:
    """Whether this is work that hears of one cancellation."""
    whole = _whole.get()
    return whole is not None and whole.is_here()


async def in_line(work: Coroutine[Any, Any, ReturnT]) -> ReturnT:
    """Do work where nobody can cancel it."""
    return await work


def current_thread() -> Callable[[], bool]:
    """Return whether the thread that asks now still runs, to be asked later."""
    return threading.current_thread().is_alive


def current_task() -> Callable[[], bool]:
    """Return whether the task that asks now is still under way, to be asked later."""
    loop = running_loop()
    return partial(_is_under_way, asyncio.current_task(loop), loop)


def _is_under_way(task: asyncio.Task[Any] | None, loop: asyncio.AbstractEventLoop) -> bool:
    # A loop that was stopped, or closed, may leave its tasks where they are for ever.
    return loop.is_running() and (task is None or not task.done())


class SystemClock:
    """A `Clock`: `time.monotonic`, and waits of threads."""

    now = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)
    event = threading.Event


class AsyncSystemClock:
    """An `AsyncClock`: `time.monotonic`, and waits of tasks."""

    now = staticmethod(time.monotonic)
    sleep = staticmethod(asyncio.sleep)

    def event(self) -> TimedEvent:
        return TimedEvent()


class TimedEvent:
    """An `AsyncEvent` of any loops: neither made for one, nor left with one that is closed."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._is_set = False
        self._waiting: list[asyncio.Future[None]] = []

    def set(self) -> None:
        with self._mutex:
            self._is_set = True
            waiting, self._waiting = self._waiting, []
        for future in waiting:
            _wake(future)

    async def wait(self, timeout: float) -> bool:
        if self._is_set or timeout <= 0:
            return self._is_set
        loop = running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._mutex:
            if self._is_set:
                return True
            self._waiting.append(future)
        alarm = loop.call_later(timeout, _end, future)
        try:
            await future
        finally:
            alarm.cancel()
            with self._mutex:
                if future in self._waiting:
                    self._waiting.remove(future)
        return self._is_set


def _wake(future: asyncio.Future[None]) -> None:
    loop = future.get_loop()
    if loop is asyncio._get_running_loop():
        _end(future)
    elif not loop.is_closed():
        try:
            loop.call_soon_threadsafe(_end, future)
        except RuntimeError:  # it was closed in this very instant: nobody waits there
            return


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class InlineCache:
    """A `CacheBackend` as an async port that never suspends."""

    def __init__(self, cache: CacheBackend) -> None:
        self._cache = cache

    async def read(self, key: str) -> Entry | Miss:
        return self._cache.read(key)

    async def look(self, key: str) -> Miss:
        return self._cache.look(key)

    async def fill(
        self,
        key: str,
        miss: Miss,
        availability: Availability,
        *,
        ttl: float,
        stale_ttl: float,
        valid_for: float | None = None,
    ) -> Entry | None:
        return self._cache.fill(
            key, miss, availability, ttl=ttl, stale_ttl=stale_ttl, valid_for=valid_for
        )

    async def clear(self, key: str) -> None:
        self._cache.clear(key)

    async def clear_all(self) -> None:
        self._cache.clear_all()

    def locks(self) -> InlineLocks:
        return InlineLocks(self._cache.locks())


class InlineLocks:
    """A `LockProvider` as an async port that never suspends."""

    def __init__(self, locks: LockProvider) -> None:
        self._locks = locks

    async def acquire(self, name: str, *, ttl: float) -> Lock | None:
        return self._locks.acquire(name, ttl=ttl)

    async def release(self, lock: Lock) -> bool:
        return self._locks.release(lock)


class InlineSlots:
    """A `SlotRepository` as an async port that never suspends."""

    def __init__(self, slots: SlotRepository) -> None:
        self._slots = slots

    @property
    def scope_type(self) -> type[Scope] | None:
        return self._slots.scope_type

    async def load(self, scope: Scope | None) -> Loaded:
        return self._slots.load(scope)


class InlineClock:
    """A `Clock` as an async port that never suspends."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.now = clock.now

    async def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds)

    def event(self) -> InlineEvent:
        return InlineEvent(self._clock.event())


class InlineEvent:
    """An `Event` as an async port that never suspends."""

    def __init__(self, event: Event) -> None:
        self._event = event
        self.set = event.set

    async def wait(self, timeout: float) -> bool:
        return self._event.wait(timeout)
