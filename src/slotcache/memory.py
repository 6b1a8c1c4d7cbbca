"""A cache and locks in the memory of one process.

A hit reads a plain dict and takes no lock. cachetools, under a mutex, only decides which record
to drop and when a lock has expired: its containers break for good when threads share them bare.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from cachetools import LRUCache, TLRUCache

from slotcache._fork import forget_after_fork
from slotcache._kept import number_of_lists
from slotcache.availability import Availability
from slotcache.protocols import AsyncClock, Clock, Entry, Generation, Lock, Miss, random_epoch

__all__ = ["MemoryCache", "MemoryLocks"]


@dataclass(slots=True)
class _Record:
    generation: Generation
    copy: Entry | None = None

    def clear(self) -> None:
        """Count a clear; keep only a copy that an earlier clear outran already."""
        current = self.generation
        self.generation = Generation(current.epoch, current.clears + 1)
        if self.copy is not None and self.copy.generation == current:
            self.copy = None


class _Records(LRUCache[str, _Record]):
    """The records, the least recently touched dropped first, and with it its fresh entry.

    A hit touches nothing, but what is read at all is looked at once a `ttl`.
    """

    def __init__(self, maxsize: int, fresh: dict[str, Entry]) -> None:
        super().__init__(maxsize)
        self._fresh = fresh

    def popitem(self) -> tuple[str, _Record]:
        key, record = super().popitem()
        self._fresh.pop(key, None)
        return key, record


class MemoryCache:
    """A `CacheBackend` in this process: keeps P1 for all its threads, and for no other process.

    A forked child starts empty, since no clear of its parent would reach it.

    Args:
        maxsize: How many lists (one a scope, and the whole table's) to keep at most. Dropping
            one costs a query at its next read.
        clock: Where the time comes from; None: `time.monotonic`.
        epoch: Makes the random part of a new record's generation.
    """

    def __init__(
        self,
        *,
        maxsize: int = 10_000,
        clock: Clock | AsyncClock | None = None,
        epoch: Callable[[], int] = random_epoch,
    ) -> None:
        self._now = monotonic if clock is None else clock.now
        self._epoch = epoch
        self._maxsize = number_of_lists(maxsize)
        self._locks = MemoryLocks(clock=clock)
        self._after_fork()
        forget_after_fork(self)

    def _after_fork(self) -> None:
        self._mutex = threading.Lock()
        # Only entries of the current generation, so that a look-up is the whole of a hit. All
        # writing happens under the mutex; a read sees a key before or after it, never between.
        self._fresh: dict[str, Entry] = {}
        self._records = _Records(self._maxsize, self._fresh)

    def read(self, key: str) -> Entry | Miss:
        """Return the fresh entry, or a `Miss` that tells the generation seen."""
        entry = self._fresh.get(key)
        if entry is not None and self._now() < entry.until:
            return entry
        return self.look(key)

    def look(self, key: str) -> Miss:
        """Return a `Miss` although the entry may be fresh. A new key gets a record."""
        with self._mutex:
            record = self._records.get(key)
            if record is None:
                record = self._records[key] = _Record(Generation(self._epoch(), 0))
            return Miss(record.generation, self._now(), record.copy)

    def fill(
        self,
        key: str,
        miss: Miss,
        availability: Availability,
        *,
        ttl: float,
        stale_ttl: float,  # noqa: ARG002  (a copy stays until it is replaced or dropped)
        valid_for: float | None = None,
    ) -> Entry | None:
        """Keep what was loaded after `miss`, as `CacheBackend.fill` says."""
        if miss.generation is None or not isinstance(miss.look, int | float):
            return None
        with self._mutex:
            now = self._now()
            until = miss.look + ttl if valid_for is None else min(miss.look + ttl, now + valid_for)
            entry = Entry(availability, miss.generation, miss.look, until)
            record = self._records.get(key)
            if record is None or not record.generation.covers(entry.generation):
                return None
            if record.copy is not None and record.copy.outranks(entry):
                return None
            record.copy = entry
            if entry.generation != record.generation:
                return None
            self._fresh[key] = entry
            return entry if now < until else None

    def clear(self, key: str) -> None:
        """Count one clear and drop the value it makes wrong. Without a record: do nothing."""
        with self._mutex:
            record = self._records.get(key)
            if record is not None:
                record.clear()
                self._fresh.pop(key, None)

    def clear_all(self) -> None:
        """Count one clear in every record, forgetting none."""
        with self._mutex:
            for record in self._records.values():
                record.clear()
            self._fresh.clear()

    def locks(self) -> MemoryLocks:
        """The locks that all services on this cache share."""
        return self._locks


class MemoryLocks:
    """A `LockProvider` for the threads of one process.

    Args:
        clock: Where the time comes from; None: `time.monotonic`.
    """

    def __init__(self, *, clock: Clock | AsyncClock | None = None) -> None:
        self._now = monotonic if clock is None else clock.now
        self._after_fork()
        forget_after_fork(self)

    def _after_fork(self) -> None:
        self._mutex = threading.Lock()
        self._held: TLRUCache[str, tuple[Lock, float]] = TLRUCache(
            math.inf, ttu=lambda _name, held, now: now + held[1], timer=self._now
        )

    def acquire(self, name: str, *, ttl: float) -> Lock | None:
        """Return the lock, held for at most `ttl` seconds; None: somebody else holds it."""
        with self._mutex:
            if name in self._held:
                return None
            lock = Lock(name, secrets.token_hex(16))
            self._held[name] = (lock, ttl)
            return lock

    def release(self, lock: Lock) -> bool:
        """Give the lock back; False: it had expired, or somebody else holds it by now."""
        with self._mutex:
            held = self._held.get(lock.name)
            if held is None or held[0] != lock:
                return False
            try:
                del self._held[lock.name]
            except KeyError:  # it expired in this very instant
                return False
            return True
