"""Sync ports as asyncio calls them: in threads, since they may block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Any, TypeVar

from slotcache._fork import forget_after_fork
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
from slotcache.worlds import is_background, running_loop

__all__ = ["ThreadedCache", "ThreadedClock", "ThreadedLocks", "ThreadedSlots", "Threads"]

ReturnT = TypeVar("ReturnT")

_MOST_THREADS = 64


class Threads:
    """The threads in which a service on asyncio calls sync ports: some, made when they are needed.

    They are its own: those of the loop may all be waiting for something else.
    """

    def __init__(self) -> None:
        self._after_fork()
        forget_after_fork(self)

    def _after_fork(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, call: Callable[..., ReturnT], *args: Any, **options: Any) -> Future[ReturnT]:
        """Have something called; a cancelled future may be too late to prevent it.

        It runs in a copy of this context: whose load it is in, say, or whether a caller waits.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="slotcache")
        return self._pool.submit(copy_context().run, call, *args, **options)

    async def call(self, call: Callable[..., ReturnT], *args: Any, **options: Any) -> ReturnT:
        """Return what it returns."""
        running_loop()
        return await asyncio.wrap_future(self.submit(call, *args, **options))

    def close(self) -> None:
        """End the threads when they have done what they are at; a later call makes others."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)


class ThreadedCache:
    """A `CacheBackend` that is called in threads, as an async port."""

    def __init__(self, cache: CacheBackend, threads: Threads) -> None:
        self._cache = cache
        self._threads = threads

    async def read(self, key: str) -> Entry | Miss:
        return await self._threads.call(self._cache.read, key)

    async def look(self, key: str) -> Miss:
        return await self._threads.call(self._cache.look, key)

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
        times = {"ttl": ttl, "stale_ttl": stale_ttl, "valid_for": valid_for}
        return await self._threads.call(self._cache.fill, key, miss, availability, **times)

    async def clear(self, key: str) -> None:
        await self._threads.call(self._cache.clear, key)

    async def clear_all(self) -> None:
        await self._threads.call(self._cache.clear_all)

    def locks(self) -> ThreadedLocks:
        return ThreadedLocks(self._cache.locks(), self._threads)


class ThreadedLocks:
    """A `LockProvider` that is called in threads, as an async port."""

    def __init__(self, locks: LockProvider, threads: Threads) -> None:
        self._locks = locks
        self._threads = threads

    async def acquire(self, name: str, *, ttl: float) -> Lock | None:
        running_loop()
        asked = self._threads.submit(self._locks.acquire, name, ttl=ttl)
        try:
            return await asyncio.wrap_future(asked)
        except BaseException:
            asked.add_done_callback(self._give_back)
            raise

    async def release(self, lock: Lock) -> bool:
        # Shielded: a call that waits for its thread would not be made, and the lock not be free.
        released = self._threads.submit(self._locks.release, lock)
        return await asyncio.shield(asyncio.wrap_future(released))

    def _give_back(self, asked: Future[Lock | None]) -> None:
        """Release what was granted to somebody who had gone."""
        granted = None if asked.cancelled() or asked.exception() else asked.result()
        if granted is not None:
            self._threads.submit(self._locks.release, granted)


class ThreadedSlots:
    """A `SlotRepository` that is called in threads, as an async port.

    Nobody can stop the thread of a load that was cancelled: the next load of that list waits for
    its end, so that the table is not asked by more and more of them.
    """

    def __init__(self, slots: SlotRepository, threads: Threads) -> None:
        self._slots = slots
        self._threads = threads
        self._abandoned: list[tuple[Scope | None, Future[Loaded]]] = []

    @property
    def scope_type(self) -> type[Scope] | None:
        return self._slots.scope_type

    async def load(self, scope: Scope | None) -> Loaded:
        running_loop()
        while abandoned := self._still_asked(scope):
            ends = map(asyncio.wrap_future, abandoned)
            await asyncio.gather(*ends, return_exceptions=True)
        asked = self._threads.submit(self._slots.load, scope)
        try:
            return await asyncio.wrap_future(asked)
        except BaseException:
            self._abandoned.append((scope, asked))
            raise

    def _still_asked(self, scope: Scope | None) -> list[Future[Loaded]]:
        self._abandoned = [each for each in self._abandoned if not each[1].done()]
        return [asked for of, asked in self._abandoned if of == scope]


class ThreadedClock:
    """A `Clock` whose waits are those of threads, as an async port."""

    def __init__(self, clock: Clock, threads: Threads) -> None:
        self._clock = clock
        self._threads = threads
        self.now = clock.now

    async def sleep(self, seconds: float) -> None:
        await self._threads.call(self._clock.sleep, seconds)

    def event(self) -> ThreadedEvent:
        return ThreadedEvent(self._clock.event(), self._threads)


class ThreadedEvent:
    """An `Event` that threads wait for, as an async port."""

    def __init__(self, event: Event, threads: Threads) -> None:
        self._event = event
        self._threads = threads
        self.set = event.set

    async def wait(self, timeout: float) -> bool:
        if is_background.get():  # by a manual clock that is for ever
            return await asyncio.wrap_future(_submit_beside(self._event.wait, timeout))
        return await self._threads.call(self._event.wait, timeout)


def _submit_beside(call: Callable[..., ReturnT], *args: Any) -> Future[ReturnT]:
    """Have something called in a thread of its own, for which no process waits at its end."""
    future: Future[ReturnT] = Future()
    future.set_running_or_notify_cancel()

    def run(context: Context) -> None:
        try:
            future.set_result(context.run(call, *args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, args=(copy_context(),), name="slotcache", daemon=True).start()
    return future
