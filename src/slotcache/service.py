"""The two faces of a cached list: thin shells over the one read flow."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any, Self

from slotcache.availability import Availability, Reading, Source, refused_scope
from slotcache.events import Health, Stats
from slotcache.guard import Spawn
from slotcache.memory import MemoryCache, MemoryLocks
from slotcache.policy import AvailabilityPolicy
from slotcache.protocols import (
    AsyncCacheBackend,
    AsyncClock,
    AsyncLockProvider,
    AsyncSlotRepository,
    CacheBackend,
    Clock,
    Entry,
    LockProvider,
    Miss,
    Scope,
    SlotRepository,
)
from slotcache.refill import Ports, Refill
from slotcache.threaded import ThreadedCache, ThreadedClock, ThreadedLocks, ThreadedSlots, Threads
from slotcache.trouble import Trouble, shared
from slotcache.worlds import (
    AsyncSystemClock,
    InlineCache,
    InlineClock,
    InlineLocks,
    InlineSlots,
    SystemClock,
    Tasks,
    current_task,
    current_thread,
    in_background,
    is_async,
    run,
)

__all__ = ["AsyncSlotAvailabilityService", "SlotAvailabilityService"]


class _Keys:
    """The names of a service's lists: the plain key, or the key with the scope and its type."""

    def __init__(self, key: str, scope_type: type[Scope] | None) -> None:
        self._key = key
        self._scope_type = scope_type
        self._prefix = f"{key}:{scope_type.__name__}:" if scope_type else ""

    def of(self, scope: Scope | None) -> str:
        """The key of one list; a scope that no change could ever clear is refused."""
        if scope is None:
            return self._key
        if type(scope) is not self._scope_type:
            raise refused_scope(scope, self._scope_type)
        return f"{self._prefix}{scope}"

    def showing(self, scope: Scope | None) -> tuple[str | None, ...]:
        """The keys of all lists that a change in this scope makes wrong; None: every key."""
        if scope is not None:
            return self.of(scope), self._key
        return (self._key,) if self._scope_type is None else (None,)


def _check_part(name: str, part: object, example: str, *methods: str) -> None:
    """Refuse what is no such part here, and not at the first read."""
    if isinstance(part, type):
        raise TypeError(f"{name} must be an object, not the class: write {part.__name__}(...)")
    missing = [method for method in methods if not hasattr(part, method)]
    if missing:
        raise TypeError(f"{name} must have {missing[0]!r}, as {example} has: not {part!r:.80}")


def _check_parts(slots: object, cache: object, policy: object, clock: object) -> None:
    _check_part("slots", slots, "SqlSlots(engine)", "load", "scope_type")
    example = "MemoryCache() or RedisCache(url)"
    _check_part("cache", cache, example, "read", "look", "fill", "clear", "clear_all")
    _check_part("clock", clock, "ManualClock()", "now", "sleep", "event")
    if not isinstance(policy, AvailabilityPolicy):
        raise TypeError(f"policy must be an AvailabilityPolicy, not {policy!r:.80}")


def _check_blocks(name: str, part: object, method: str) -> None:
    """Refuse a part that only an event loop can wait for."""
    if is_async(part, method):
        kind = type(part).__name__
        raise TypeError(
            f"{name}: {kind} is for asyncio: give AsyncSlotAvailabilityService this one, or this "
            f"service what blocks, such as {kind.removeprefix('Async')}"
        )


class SlotAvailabilityService:
    """Answers "what is still free?" from a cache that no race leaves stale and no rush stampedes.

    Make one for each table when the application starts, and use it from all threads.

    Args:
        slots: The table, for example `slotcache.sql.SqlSlots`.
        cache: Where the lists are kept; None: a `MemoryCache` of its own, which keeps P1
            within this process alone.
        locks: Who may query; None: the cache's own locks.
        policy: How long things live, and how long a reader waits.
        clock: Where the time comes from; None: `time.monotonic`. A cache that is given has a
            clock of its own: give both the same.

    Examples:
        >>> from slotcache import HoldManager, SlotAvailabilityService
        >>> from slotcache.sql import SqlSlots
        >>> slots = SqlSlots.sqlite(":memory:", id_type=str)
        >>> slots.create_tables()
        >>> slots.add([("dock 4, 9:00", 2)])
        >>> service = SlotAvailabilityService(slots)
        >>> holds = HoldManager(slots, on_change=service.clear_availability_cache)
        >>> hold = holds.create("dock 4, 9:00")
        >>> service.get_availability().get("dock 4, 9:00").remaining
        1
    """

    # What a simulated world decides instead.
    _runner: Callable[[], Callable[[], bool]] = staticmethod(current_thread)
    _jitter: Callable[[], float] = staticmethod(random.random)
    _spawn: Spawn = staticmethod(in_background)

    def __init__(
        self,
        slots: SlotRepository,
        *,
        cache: CacheBackend | None = None,
        locks: LockProvider | None = None,
        policy: AvailabilityPolicy = AvailabilityPolicy(),
        clock: Clock | None = None,
    ) -> None:
        clock = SystemClock() if clock is None else clock
        cache = MemoryCache(clock=clock) if cache is None else cache
        _check_parts(slots, cache, policy, clock)
        locks = cache.locks() if locks is None else locks
        _check_part("locks", locks, "MemoryLocks()", "acquire", "release")
        _check_blocks("slots", slots, "load")
        _check_blocks("cache", cache, "read")
        _check_blocks("locks", locks, "acquire")
        _check_blocks("clock", clock, "sleep")
        self._cache = cache
        self._clock = clock
        self._key = policy.key  # the whole table's: a hit on it asks nobody for a key
        self._keys = _Keys(policy.key, slots.scope_type)
        ports = Ports(
            InlineCache(cache),
            InlineLocks(locks),
            InlineSlots(slots),
            InlineClock(clock),
            runner=self._runner,
            jitter=self._jitter,
            spawn=self._spawn,
            trouble=shared(cache, "trouble", Trouble),
            lock_trouble=shared(locks, "lock_trouble", Trouble),
            known=shared(cache, "known", MemoryCache, partial(MemoryCache, clock=clock)),
        )
        self._trouble = ports.trouble
        self._refill = Refill(ports, policy)
        self._counts = self._refill.counts

    def get_availability(self, scope: Scope | None = None) -> Availability:
        """Return the list of free places: `read(scope).availability`, and as fresh (P1 to P5)."""
        key = self._key if scope is None else self._keys.of(scope)
        # As `_look`, written in place: the call would be a fifth of a hit.
        try:
            found = self._refill.unasked() if self._trouble.bypass else self._cache.read(key)
        except Exception:
            found = self._refill.unanswered(key)
        if isinstance(found, Entry):
            self._counts.hits += 1
            return found.availability
        return run(self._refill.answer(key, scope, found)).availability

    def read(self, scope: Scope | None = None) -> Reading:
        """Return the list with its source, age and version.

        It shows every change that was complete before this call (P1) and, unless its source is
        STALE, everything that was committed a `ttl` before it, cleared or not (P2). A miss costs
        one query however many ask (P3).

        Args:
            scope: The part of the table; None: all of it.

        Raises:
            TypeError: The scope is not of the type that the table's scopes have.
            ValueError: The table has no scopes.
            RuntimeError: Called from inside the load of the same list.
            Exception: What the table raised, unchanged, if there is no expired copy (P5).
        """
        key = self._keys.of(scope)
        found = self._look(key)
        if isinstance(found, Entry):
            self._counts.hits += 1
            return Reading(found.availability, Source.CACHED, self._age(found.since))
        answer = run(self._refill.answer(key, scope, found))
        return Reading(answer.availability, answer.source, self._age(answer.since))

    def clear_availability_cache(self, scope: Scope | None = None) -> bool:
        """Make every later read show what is committed now (P1).

        `HoldManager` calls it after each change; call it after a change of your own, once that
        is committed.

        Args:
            scope: Clears the list of this scope, and the whole table's. None: every list in
                the cache, those of other services included (on a table without scopes: its one).

        Returns:
            True: the cache has taken it. False: it could not be reached. This is logged, and the
            clear is repeated in the background until the cache takes it; as long as it has not,
            reads in this process query the table (P1), and other processes may be shown the old
            list, until its `ttl` is over (P2).

        Raises:
            TypeError: The scope is not of the type that the table's scopes have.
            ValueError: The table has no scopes.
        """
        return run(self._refill.clear(self._keys.showing(scope)))

    def health(self) -> Health:
        """Tell whether reads ask the cache and the locks, and what the cache has yet to take."""
        return self._refill.health()

    def stats(self) -> Stats:
        """Tell how the reads and clears of this object have gone so far."""
        return self._counts.so_far()

    def close(self) -> None:
        """End what runs in the background: nothing does, unless the cache or the locks failed.

        A clear that the cache has not taken is tried once more. What was given to this object
        stays open. Lists can still be read, and a read that meets trouble begins anew.
        """
        run(self._refill.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _look(self, key: str) -> Entry | Miss:
        if self._trouble.bypass:
            return self._refill.unasked()
        try:
            return self._cache.read(key)
        except Exception:
            return self._refill.unanswered(key)

    def _age(self, since: float) -> float:
        return max(0.0, self._clock.now() - since)


class AsyncSlotAvailabilityService:
    """`SlotAvailabilityService` on asyncio: the same answers from the same flow, awaited.

    Make one for each table when the application starts, and use it from all tasks. It may share a
    cache with blocking services: keys, generations, entries and locks are the same.

    A task that is cancelled while it waits here leaves the others as they are: if it was the one
    who queries, one of those who wait begins anew, and a lock that it held is given back.

    Args:
        slots: The table, for example `slotcache.sql.AsyncSqlSlots`. One that blocks is called in
            threads; as nobody can stop those, a query that was cancelled is waited for by the next.
        cache: As for `SlotAvailabilityService`. A `MemoryCache` serves both halves; any other one
            that blocks is called in threads, hits too.
        locks: As for `SlotAvailabilityService`.
        policy: As for `SlotAvailabilityService`.
        clock: As for `SlotAvailabilityService`.

    Examples:
        >>> import asyncio
        >>> from slotcache import AsyncHoldManager, AsyncSlotAvailabilityService
        >>> from slotcache.sql import AsyncSqlSlots
        >>> async def main():
        ...     async with AsyncSqlSlots.sqlite(":memory:", id_type=str) as slots:
        ...         await slots.create_tables()
        ...         await slots.add([("dock 4, 9:00", 2)])
        ...         service = AsyncSlotAvailabilityService(slots)
        ...         holds = AsyncHoldManager(slots, on_change=service.clear_availability_cache)
        ...         await holds.create("dock 4, 9:00")
        ...         return (await service.get_availability()).get("dock 4, 9:00").remaining
        >>> asyncio.run(main())
        1
    """

    # What a simulated world decides instead.
    _runner: Callable[[], Callable[[], bool]] = staticmethod(current_task)
    _jitter: Callable[[], float] = staticmethod(random.random)
    _spawn: Spawn | None = None

    def __init__(
        self,
        slots: AsyncSlotRepository | SlotRepository,
        *,
        cache: AsyncCacheBackend | CacheBackend | None = None,
        locks: AsyncLockProvider | LockProvider | None = None,
        policy: AvailabilityPolicy = AvailabilityPolicy(),
        clock: AsyncClock | Clock | None = None,
    ) -> None:
        clock = AsyncSystemClock() if clock is None else clock
        cache = MemoryCache(clock=clock) if cache is None else cache
        _check_parts(slots, cache, policy, clock)
        locks = cache.locks() if locks is None else locks
        _check_part("locks", locks, "MemoryLocks()", "acquire", "release")
        # Two pools: however many loads a slow table holds up, a hit does not wait for them.
        self._threads, self._loading_threads = Threads(), Threads()
        self._tasks = Tasks()
        self._clock = clock
        self._key = policy.key  # the whole table's: a hit on it asks nobody for a key
        self._keys = _Keys(policy.key, slots.scope_type)
        self._cache = _awaited_cache(cache, self._threads)
        # What never waits is read without a coroutine of its own.
        self._read_now = cache.read if isinstance(cache, MemoryCache) else None
        ports = Ports(
            self._cache,
            _awaited_locks(locks, self._threads),
            _awaited_slots(slots, self._loading_threads),
            _awaited_clock(clock, self._threads),
            runner=self._runner,
            jitter=self._jitter,
            spawn=self._spawn or self._tasks.spawn,
            trouble=shared(cache, "trouble", Trouble),
            lock_trouble=shared(locks, "lock_trouble", Trouble),
            known=shared(cache, "known", MemoryCache, partial(MemoryCache, clock=clock)),
        )
        self._trouble = ports.trouble
        self._refill = Refill(ports, policy)
        self._counts = self._refill.counts

    async def get_availability(self, scope: Scope | None = None) -> Availability:
        """As `SlotAvailabilityService.get_availability`."""
        key = self._key if scope is None else self._keys.of(scope)
        # As `_look`, written in place: the call would be a third of a hit.
        try:
            if self._trouble.bypass:
                found: Entry | Miss = self._refill.unasked()
            elif self._read_now is not None:
                found = self._read_now(key)
            else:
                found = await self._cache.read(key)
        except Exception:
            found = self._refill.unanswered(key)
        if isinstance(found, Entry):
            self._counts.hits += 1
            return found.availability
        return (await self._refill.answer(key, scope, found)).availability

    async def read(self, scope: Scope | None = None) -> Reading:
        """As `SlotAvailabilityService.read`."""
        key = self._keys.of(scope)
        found = await self._look(key)
        if isinstance(found, Entry):
            self._counts.hits += 1
            return Reading(found.availability, Source.CACHED, self._age(found.since))
        answer = await self._refill.answer(key, scope, found)
        return Reading(answer.availability, answer.source, self._age(answer.since))

    async def clear_availability_cache(self, scope: Scope | None = None) -> bool:
        """As `SlotAvailabilityService.clear_availability_cache`.

        Cancelled, it may not have reached the cache: then it is repeated in the background, too.
        """
        return await self._refill.clear(self._keys.showing(scope))

    def health(self) -> Health:
        """As `SlotAvailabilityService.health`."""
        return self._refill.health()

    def stats(self) -> Stats:
        """As `SlotAvailabilityService.stats`."""
        return self._counts.so_far()

    async def close(self) -> None:
        """As `SlotAvailabilityService.close`. No task of its own is left in this event loop."""
        await self._refill.close()
        await self._tasks.end()
        self._threads.close()
        self._loading_threads.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def _look(self, key: str) -> Entry | Miss:
        if self._trouble.bypass:
            return self._refill.unasked()
        try:
            return await self._cache.read(key)
        except Exception:
            return self._refill.unanswered(key)

    def _age(self, since: float) -> float:
        return max(0.0, self._clock.now() - since)


def _awaited_cache(cache: Any, threads: Threads) -> AsyncCacheBackend:
    if isinstance(cache, MemoryCache):
        return InlineCache(cache)
    return cache if is_async(cache, "read") else ThreadedCache(cache, threads)


def _awaited_locks(locks: Any, threads: Threads) -> AsyncLockProvider:
    if isinstance(locks, MemoryLocks):
        return InlineLocks(locks)
    return locks if is_async(locks, "acquire") else ThreadedLocks(locks, threads)


def _awaited_slots(slots: Any, threads: Threads) -> AsyncSlotRepository:
    return slots if is_async(slots, "load") else ThreadedSlots(slots, threads)


def _awaited_clock(clock: Any, threads: Threads) -> AsyncClock:
    return clock if is_async(clock, "sleep") else ThreadedClock(clock, threads)
