"""The two faces of a cached list: thin shells over the one read flow."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Self

from slotcache.availability import Availability, Reading, Source, refused_scope
from slotcache.events import Health, Stats
from slotcache.guard import Spawn
from slotcache.memory import MemoryCache
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
from slotcache.trouble import Trouble, shared
from slotcache.worlds import (
    InlineCache,
    InlineClock,
    InlineLocks,
    InlineSlots,
    SystemClock,
    current_thread,
    in_background,
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
        _check_part("slots", slots, "SqlSlots(engine)", "load", "scope_type")
        example = "MemoryCache() or RedisCache(url)"
        _check_part("cache", cache, example, "read", "look", "fill", "clear", "clear_all")
        locks = cache.locks() if locks is None else locks
        _check_part("locks", locks, "MemoryLocks()", "acquire", "release")
        if not isinstance(policy, AvailabilityPolicy):
            raise TypeError(f"policy must be an AvailabilityPolicy, not {policy!r:.80}")
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
    """`SlotAvailabilityService` over async ports, with the same methods as coroutines."""

    # What a simulated world decides instead.
    _runner: Callable[[], Callable[[], bool]] = staticmethod(current_thread)
    _jitter: Callable[[], float] = staticmethod(random.random)
    _spawn: Spawn

    def __init__(
        self,
        slots: AsyncSlotRepository,
        *,
        cache: AsyncCacheBackend,
        locks: AsyncLockProvider | None = None,
        policy: AvailabilityPolicy = AvailabilityPolicy(),
        clock: AsyncClock,
    ) -> None:
        locks = cache.locks() if locks is None else locks
        self._cache = cache
        self._clock = clock
        self._keys = _Keys(policy.key, slots.scope_type)
        ports = Ports(
            cache,
            locks,
            slots,
            clock,
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

    async def get_availability(self, scope: Scope | None = None) -> Availability:
        """As `SlotAvailabilityService.get_availability`."""
        key = self._keys.of(scope)
        found = await self._look(key)
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
        """As `SlotAvailabilityService.clear_availability_cache`."""
        return await self._refill.clear(self._keys.showing(scope))

    def health(self) -> Health:
        """As `SlotAvailabilityService.health`."""
        return self._refill.health()

    def stats(self) -> Stats:
        """As `SlotAvailabilityService.stats`."""
        return self._counts.so_far()

    async def close(self) -> None:
        """As `SlotAvailabilityService.close`."""
        await self._refill.close()

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
