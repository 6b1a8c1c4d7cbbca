"""The cache and the locks as the flow asks them: an answer always comes, within a budget (P4).

What fails, or overruns its budget, breaks the backend's `Trouble`; from then on nobody asks it but
one recovery, in the background, which delivers the clears that are owed and asks whether it is
back. A clear is tried even then, and so is the release of a lock that is held.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeAlias, TypeVar

from slotcache.events import Counts
from slotcache.policy import AvailabilityPolicy
from slotcache.protocols import (
    AsyncCacheBackend,
    AsyncClock,
    AsyncEvent,
    AsyncLockProvider,
    Entry,
    Generation,
    Loaded,
    Lock,
    Miss,
)
from slotcache.trouble import BUDGET, PAUSE, Trouble

__all__ = ["Background", "Guard", "GuardedCache", "GuardedLocks"]

_log = logging.getLogger("slotcache")

AnswerT = TypeVar("AnswerT")
DefaultT = TypeVar("DefaultT")

Background: TypeAlias = Callable[[Coroutine[Any, Any, None]], Callable[[], bool]]
"""Has a flow run beside the caller; returns a function that tells, later, whether it still runs."""

# Stands for the lock when the provider itself is broken: one query a process, instead of none.
_UNGUARDED = Lock(name="", token="")


class Guard:
    """Asks one backend, and sees to its trouble.

    Args:
        trouble: That backend's.
        clock: Time, and the wait between two attempts.
        background: Has the recovery run beside the readers.
        retry: One attempt of it: returns if the backend has answered, raises if not.
    """

    def __init__(
        self,
        trouble: Trouble,
        clock: AsyncClock,
        background: Background,
        retry: Callable[[], Awaitable[object]],
    ) -> None:
        self.trouble = trouble
        self._clock = clock
        self._now = clock.now
        self._background = background
        self._retry = retry
        self._closing: AsyncEvent | None = None
        self._closed = False

    async def ask(
        self, what: str, name: str, call: Callable[[], Awaitable[AnswerT]], default: DefaultT
    ) -> AnswerT | DefaultT:
        """Return what the call answers, or `default` if it fails, or is better not made."""
        if self.trouble.bypass:
            self.attend()
            return default
        try:
            return await self.timed(what, name, call())
        except Exception:
            self.failed(what, name)
            return default

    async def timed(self, what: str, name: str, call: Awaitable[AnswerT]) -> AnswerT:
        """Return what the call answers; an answer that comes too late is trouble too."""
        began = self._now()
        answer = await call
        took = self._now() - began
        if took > BUDGET:
            _log.warning("%s within %g s, it took %.3g: %r", what, BUDGET, took, name)
            self.trouble.fail()
            self.attend()
        return answer

    def failed(self, what: str, name: str) -> None:
        """Log the exception that is being handled, and have it seen to."""
        _log.warning("%s: %r", what, name, exc_info=True)
        self.trouble.fail()
        self.attend()

    def attend(self) -> None:
        """See to it that somebody sees to the trouble."""
        if self._closed or not self.trouble.attend():
            return
        self._closing = self._clock.event()
        recovery = self._recover(self._closing)
        try:
            self.trouble.attended_while(self._background(recovery))
        except Exception:  # no more threads, at the end of the process for example
            recovery.close()
            self.trouble.leave(unsettled=True)
            _log.warning("nobody sees to a backend in trouble", exc_info=True)

    async def close(self) -> None:
        """End the recovery, with a last attempt if there is anything to deliver."""
        self._closed = True
        if self._closing is not None:
            self._closing.set()
        if self.trouble.undelivered():
            await self._attempt()

    async def _recover(self, closing: AsyncEvent) -> None:
        while not self.trouble.leave():
            if await closing.wait(PAUSE):
                self.trouble.leave(unsettled=True)
                return
            await self._attempt()

    async def _attempt(self) -> None:
        began = self._now()
        try:
            await self._retry()
        except Exception as error:
            _log.info("a backend in trouble has not answered yet: %r", error)
            return
        if self._now() - began <= BUDGET:
            self.trouble.mend()


class GuardedCache:
    """The cache, as the flow asks it.

    Attributes:
        guard: Whether it is asked at all.
    """

    def __init__(
        self,
        cache: AsyncCacheBackend,
        policy: AvailabilityPolicy,
        counts: Counts,
        guard: Callable[[Callable[[], Awaitable[object]]], Guard],
    ) -> None:
        self.guard = guard(self._retry)
        self._cache = cache
        self._policy = policy
        self._counts = counts

    def unanswered(self, key: str) -> Miss:
        """What a look is worth whose exception is being handled."""
        self.guard.failed("the cache could not be read", key)
        return Miss()

    async def look(self, key: str) -> Entry | Miss:
        """Return what the cache has; a Miss without a generation: no answer."""
        found = await self.guard.ask(
            "the cache could not be read", key, lambda: self._cache.read(key), Miss()
        )
        return believable(found)

    async def fill(self, key: str, look: Miss, loaded: Loaded) -> None:
        """Have the cache keep what was loaded after `look`."""
        life = loaded.valid_for
        kept = await self.guard.ask(
            "the cache could not be filled",
            key,
            lambda: self._cache.fill(
                key,
                look,
                loaded.availability,
                ttl=self._policy.ttl,
                stale_ttl=self._policy.stale_ttl,
                valid_for=None if life is None else max(life, self._policy.min_ttl),
            ),
            None,
        )
        if kept is None:
            self._counts.outrun += 1

    async def clear(self, keys: Iterable[str | None]) -> bool:
        """Have the cache count a clear of these keys (None: of every key); False: noted."""
        owed = list(keys)
        delivered = True
        try:
            while owed:
                delivered &= await self._delivered(owed[0])
                del owed[0]
        except BaseException:  # cancelled or interrupted: nobody knows what was taken
            for key in owed:
                self.guard.trouble.note(key)
            self.guard.attend()
            raise
        return delivered

    async def _delivered(self, key: str | None) -> bool:
        trouble = self.guard.trouble
        ticket = trouble.ticket()
        what, name = "the cache could not be cleared", "everything" if key is None else key
        try:
            await self.guard.timed(what, name, self._send(key))
        except Exception:
            trouble.note(key)
            self.guard.failed(what, name)
            return False
        trouble.taken(key, ticket)
        return True

    async def _send(self, key: str | None) -> None:
        await (self._cache.clear_all() if key is None else self._cache.clear(key))

    async def _retry(self) -> None:
        trouble = self.guard.trouble
        for key in trouble.undelivered():
            ticket = trouble.ticket()
            await self._send(key)
            trouble.taken(key, ticket)
        await self._cache.look(self._policy.key)


class GuardedLocks:
    """The locks, as the flow asks them.

    Attributes:
        guard: Whether they are asked at all.
    """

    def __init__(
        self,
        locks: AsyncLockProvider,
        policy: AvailabilityPolicy,
        guard: Callable[[Callable[[], Awaitable[object]]], Guard],
    ) -> None:
        self.guard = guard(self._retry)
        self._locks = locks
        self._prefix = policy.lock_key or f"{policy.key}.lock"
        self._key = policy.key
        self._ttl = policy.lock_ttl

    async def acquire(self, key: str) -> Lock | None:
        """Return the lock of this list; None: somebody else holds it."""
        name = self._prefix + key.removeprefix(self._key)
        lock = await self.guard.ask(
            "the lock could not be asked for",
            name,
            lambda: self._locks.acquire(name, ttl=self._ttl),
            _UNGUARDED,
        )
        return lock if lock is None or isinstance(lock, Lock) else _UNGUARDED

    async def release(self, lock: Lock) -> None:
        """Give it back, also in trouble: as long as it is held, others wait."""
        if lock is _UNGUARDED:
            return
        what = "the lock could not be released"
        try:
            await self.guard.timed(what, lock.name, self._locks.release(lock))
        except Exception:
            self.guard.failed(what, lock.name)

    async def _retry(self) -> None:
        lock = await self._locks.acquire(f"{self._prefix}.probe", ttl=PAUSE)
        if lock is not None:
            await self._locks.release(lock)


def believable(found: object) -> Entry | Miss:
    """Take for no answer what cannot be one: caches may also lie (P4)."""
    if isinstance(found, Entry):
        return found
    if (
        isinstance(found, Miss)
        and isinstance(found.generation, Generation | None)
        and isinstance(found.copy, Entry | None)
    ):
        return found
    return Miss()
