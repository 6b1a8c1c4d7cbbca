"""The ports: what slotcache asks of a cache, a lock, a table of slots and a clock.

A backend is any object with these methods; nothing is registered and nothing inherited. Each
port has an asynchronous twin right below it, with the same methods as coroutines. The values
that they exchange (`Generation`, `Entry`, `Miss`, `Lock`, `Loaded`) are frozen.

One rule carries the library (P1, see `docs/promises.md`): *a reader may be given any value
whose generation covers the generation that its own first look saw.*
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from slotcache.availability import Availability, Scope, SlotId

__all__ = [
    "AsyncCacheBackend",
    "AsyncClock",
    "AsyncEvent",
    "AsyncInvalidationHook",
    "AsyncLockProvider",
    "AsyncSlotRepository",
    "CacheBackend",
    "Clock",
    "Entry",
    "Event",
    "Generation",
    "InvalidationHook",
    "Loaded",
    "Lock",
    "LockProvider",
    "Miss",
    "Scope",
    "SlotId",
    "SlotRepository",
    "random_epoch",
]


@dataclass(frozen=True, slots=True)
class Generation:
    """Which clears a key has seen.

    Attributes:
        epoch: Random, made with the key's record. A record that was lost comes back with
            another one, under which every fill from before is refused.
        clears: How many clears this record has counted.
    """

    epoch: int
    clears: int

    def covers(self, seen: Generation | None) -> bool:
        """Whether a load begun under this generation shows all that a look at `seen` must show."""
        return seen is not None and self.epoch == seen.epoch and self.clears >= seen.clears


def random_epoch() -> int:
    """Return 64 random bits: a record that was lost never comes back under its old epoch."""
    return secrets.randbits(64)


@dataclass(frozen=True, slots=True)
class Entry:
    """A list as a cache keeps it: one object, the same at every hit.

    Attributes:
        availability: The list.
        generation: The generation that was current at the look before its load.
        since: The instant of that look, by this process's clock. Age counts from here.
        until: The instant at which its life ends; from then on it is only a copy.
    """

    availability: Availability
    generation: Generation
    since: float
    until: float

    def outranks(self, other: Entry) -> bool:
        """Whether it stays where both were filled: it has more clears, or as many and looked later.

        Both are of one record.
        """
        ours, theirs = self.generation.clears, other.generation.clears
        return (ours, self.since) > (theirs, other.since)


@dataclass(frozen=True, slots=True)
class Miss:
    """The answer of a cache that has nothing fresh.

    Attributes:
        generation: The key's generation now; None: the cache gave no answer.
        look: The backend's own note of this look (its instant, say), handed back to `fill`.
        copy: The one kept value that is not fresh, expired or outrun by a clear; of several
            the one with the most clears, then the latest.
    """

    generation: Generation | None = None
    look: object = None
    copy: Entry | None = None


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that was granted: a value, to be passed back to `release` by anybody."""

    name: str
    token: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a repository read.

    Attributes:
        availability: The list.
        valid_for: Seconds from the end of the load until it changes by itself (the next live
            hold ends); None: it does not.
    """

    availability: Availability
    valid_for: float | None = None


class CacheBackend(Protocol):
    """Keeps one list a key, with its generation.

    Whatever it raises costs a query and nothing else (P4); then it is left alone for a while. What
    services know of its trouble they keep in attributes of it, so that all on one object share it.
    `slotcache.memory.MemoryCache` is the shortest complete example, and the laws that it obeys
    are in `slotcache.testing`.
    """

    def read(self, key: str) -> Entry | Miss:
        """Return the fresh entry, or a `Miss` that tells the generation seen.

        A key without a record gets one, under a new random epoch.
        """

    def look(self, key: str) -> Miss:
        """Return a `Miss` although the entry may be fresh: what a renewal begins with."""

    def fill(
        self,
        key: str,
        miss: Miss,
        availability: Availability,
        *,
        ttl: float,
        stale_ttl: float,
        valid_for: float | None = None,
    ) -> Entry | None:
        """Keep what was loaded after `miss`, under the generation that `miss` saw.

        It is dropped when the record is another one (the epochs differ), and when a value with
        more clears, or as many and a later look, is kept. Outrun by a clear, it is kept as a copy
        for those who were already waiting, but it is not fresh.

        Args:
            key: Whose list it is.
            miss: The look that came before the load.
            availability: What the load read.
            ttl: Seconds of life, from that look.
            stale_ttl: Seconds for which the copy is worth keeping after its life.
            valid_for: Seconds of life from now, where that ends sooner.

        Returns:
            The entry that is now fresh for everybody; None if it was dropped or outrun, or has no
            life left.
        """

    def clear(self, key: str) -> None:
        """Count one clear: what is kept is fresh for nobody now, and covers no later look.

        It may be dropped, unless a clear outran it before. Without a record: do nothing.
        """

    def clear_all(self) -> None:
        """Count one clear in every record, forgetting none."""

    def locks(self) -> LockProvider:
        """The locks that everybody who shares this cache shares."""


class AsyncCacheBackend(Protocol):
    """`CacheBackend` on asyncio."""

    async def read(self, key: str) -> Entry | Miss:
        """As `CacheBackend.read`."""

    async def look(self, key: str) -> Miss:
        """As `CacheBackend.look`."""

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
        """As `CacheBackend.fill`."""

    async def clear(self, key: str) -> None:
        """As `CacheBackend.clear`."""

    async def clear_all(self) -> None:
        """As `CacheBackend.clear_all`."""

    def locks(self) -> AsyncLockProvider:
        """As `CacheBackend.locks`."""


class LockProvider(Protocol):
    """Tries, and never waits. An optimisation: a lock lost or granted twice costs a query (P11)."""

    def acquire(self, name: str, *, ttl: float) -> Lock | None:
        """Return the lock, held for at most `ttl` seconds; None: somebody else holds it."""

    def release(self, lock: Lock) -> bool:
        """Give the lock back. Never raises; False: it was no longer yours, and is untouched."""


class AsyncLockProvider(Protocol):
    """`LockProvider` on asyncio."""

    async def acquire(self, name: str, *, ttl: float) -> Lock | None:
        """As `LockProvider.acquire`."""

    async def release(self, lock: Lock) -> bool:
        """As `LockProvider.release`."""


class SlotRepository(Protocol):
    """Where the truth is: the table."""

    @property
    def scope_type(self) -> type[Scope] | None:
        """The type of its scopes; None: it has none, and there is one list."""

    def load(self, scope: Scope | None) -> Loaded:
        """Read the list of one scope, or of the whole table, as last committed.

        Each call reads in a transaction of its own that begins after the call does, never in
        one that was open already and never from a replica that may lag: else P1 is lost unseen.
        It reads the table and no cached list: two loads that read each other's would wait for ever.
        What it raises reaches the reader unchanged, unless there is an expired copy.
        """


class AsyncSlotRepository(Protocol):
    """`SlotRepository` on asyncio."""

    @property
    def scope_type(self) -> type[Scope] | None:
        """As `SlotRepository.scope_type`."""

    async def load(self, scope: Scope | None) -> Loaded:
        """As `SlotRepository.load`."""


class InvalidationHook(Protocol):
    """Called after a change was committed, with the scope whose list changed."""

    def __call__(self, scope: Scope | None, /) -> object:
        """Clear the lists of that scope. What it returns is ignored, what it raises is logged."""


class AsyncInvalidationHook(Protocol):
    """`InvalidationHook` as a coroutine function."""

    def __call__(self, scope: Scope | None, /) -> Awaitable[object]:
        """As `InvalidationHook.__call__`."""


class Event(Protocol):
    """Something that happens once."""

    def set(self) -> None:
        """Let it have happened: every wait, now or later, ends."""

    def wait(self, timeout: float) -> bool:
        """Wait until it has happened, at most `timeout` seconds; return whether it has."""


class AsyncEvent(Protocol):
    """`Event` for tasks; it may be set from any thread or loop."""

    def set(self) -> None:
        """As `Event.set`."""

    async def wait(self, timeout: float) -> bool:
        """As `Event.wait`."""


class Clock(Protocol):
    """Time. Every wait of the library is one of these, so manual time drives them all."""

    def now(self) -> float:
        """Seconds since some fixed instant; never goes back."""

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""

    def event(self) -> Event:
        """A new event that has not happened."""


class AsyncClock(Protocol):
    """`Clock` for tasks."""

    def now(self) -> float:
        """As `Clock.now`."""

    async def sleep(self, seconds: float) -> None:
        """As `Clock.sleep`."""

    def event(self) -> AsyncEvent:
        """As `Clock.event`."""
