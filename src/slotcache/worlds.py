"""The worlds in which the one read flow runs, and their clocks.

The flow is a coroutine over async ports. In the blocking world each sync port is wrapped so that
it never suspends, and the flow runs from start to end in one `send`. On asyncio the ports are
async. In the third world, in `slotcache.testing`, a scheduler decides everything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine
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
    "Background",
    "InlineCache",
    "InlineClock",
    "InlineLocks",
    "InlineSlots",
    "SystemClock",
    "current_thread",
    "in_background",
    "run",
]

ReturnT = TypeVar("ReturnT")


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


class Background(threading.Thread):
    """A thread of slotcache's own, in which a flow runs beside the callers."""

    def __init__(self, flow: Coroutine[Any, Any, None]) -> None:
        super().__init__(name="slotcache", daemon=True)
        self._flow = flow

    def run(self) -> None:
        run(self._flow)


def in_background(flow: Coroutine[Any, Any, None]) -> Callable[[], bool]:
    """Run a flow whose ports never suspend in a thread; return whether that is alive, for later."""
    thread = Background(flow)
    thread.start()
    return thread.is_alive


def current_thread() -> Callable[[], bool]:
    """Return whether the thread that asks now still runs, to be asked later."""
    return threading.current_thread().is_alive


class SystemClock:
    """A `Clock`: `time.monotonic`, and waits of threads."""

    now = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)
    event = threading.Event


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
