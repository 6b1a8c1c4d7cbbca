"""The cache and the locks as the flow asks them: an answer always comes, within a budget (P4).

What fails, or overruns its budget, breaks the backend's `Trouble`; from then on nobody asks it but
one recovery, in the background, which delivers the clears that are owed and asks whether it is
back. A clear is tried even then, and so is the release of a lock that is held.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeAlias, TypeVar

from slotcache._fork import forget_after_fork
from slotcache.availability import Availability
from slotcache.policy import AvailabilityPolicy
from slotcache.protocols import (
    AsyncCacheBackend,
    AsyncClock,
    AsyncEvent,
    AsyncLockProvider,
    Entry,
    Generation,
    Lock,
    Miss,
)
from slotcache.trouble import BUDGET, PAUSE, Trouble

__all__ = ["GuardedCache", "GuardedLocks", "Spawn", "believable"]

_log = logging.getLogger("slotcache")

AnswerT = TypeVar("AnswerT")
DefaultT = TypeVar("DefaultT")

Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], Callable[[], bool]]
"""Has a flow run beside the caller; returns a function that tells, later, whether it still runs."""

# Stands for the lock when the provider itself is broken: one query a process, instead of none.
_UNGUARDED = Lock(name="", token="")


class Guard:
    """Asks one backend, and sees to its trouble.

    Args:
        trouble: That backend's.
        clock: Time, and the wait between two attempts.
        spawn: Has the recovery run beside the readers.
    """

    def __init__(self, trouble: Trouble, clock: AsyncClock, spawn: Spawn) -> None:
        self.trouble = trouble
        self._clock = clock
        self._now = clock.now
        self._spawn = spawn
        self._after_fork()
        forget_after_fork(self)

    def _after_fork(self) -> None:
        self._closing: AsyncEvent | None = None

    async def retry(self) -> None:
        """Make one attempt of the recovery: it has succeeded unless it raises."""
        raise NotImplementedError

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
        self.log(what, name)
        self.trouble.fail()
        self.attend()

    def log(self, what: str, name: str) -> None:
        """Log the exception that is being handled."""
        # Clears are tried again and again: the first tells why, the others only that.
        _log.warning("%s: %r", what, name, exc_info=not self.trouble.bypass)

    def attend(self) -> None:
        """See to it that somebody sees to the trouble."""
        if not self.trouble.attend():
            return
        recovery = None
        try:
            self._closing = self._clock.event()
            recovery = _recover(weakref.ref(self), self._closing)
            self.trouble.attended_while(self._spawn(recovery))
        except BaseException as error:  # interrupted, or no more threads
            self.trouble.give_up()
            with contextlib.suppress(ValueError):  # it has just begun to run
                if recovery is not None:
                    recovery.close()
            if not isinstance(error, Exception):
                raise
            _log.warning("nobody sees to a backend in trouble", exc_info=True)

    async def attempt(self) -> None:
        """Find out whether the backend is back."""
        began = self._now()
        try:
            await self.retry()
        except Exception as error:
            _log.info("a backend in trouble has not answered yet: %r", error)
            return
        if self._now() - began <= BUDGET:
            self.trouble.mend()

    async def close(self) -> None:
        """End the recovery, with a last attempt if there is anything to deliver."""
        if self._closing is not None:
            self._closing.set()
        if self.trouble.undelivered():
            await self.attempt()


async def _recover(whose: weakref.ref[Guard], closing: AsyncEvent) -> None:
    """Make attempts until one succeeds, or until nobody uses the guard and it owes nothing."""
    guard = whose()
    while guard is not None and not guard.trouble.leave_if_settled():
        owes = guard if guard.trouble.undelivered() else None
        del guard
        is_over = await closing.wait(PAUSE)
        guard = owes or whose()
        del owes
        if guard is None:
            return
        if is_over:
            guard.trouble.give_up()
            return
        await guard.attempt()


class GuardedCache(Guard):
    """The cache, as the flow asks it."""

    def __init__(
        self,
        cache: AsyncCacheBackend,
        policy: AvailabilityPolicy,
        trouble: Trouble,
        clock: AsyncClock,
        spawn: Spawn,
    ) -> None:
        super().__init__(trouble, clock, spawn)
        self._cache = cache
        self._policy = policy

    def unanswered(self, key: str) -> Miss:
        """What a look is worth whose exception is being handled."""
        self.failed("the cache could not be read", key)
        return Miss()

    async def look(self, key: str) -> Entry | Miss:
        """Return what the cache has; a Miss without a generation: no answer."""
        found = await self.ask(
            "the cache could not be read", key, lambda: self._cache.read(key), Miss()
        )
        return believable(found)

    async def fill(
        self, key: str, look: Miss, availability: Availability, valid_for: float | None
    ) -> Entry | None:
        """Have the cache keep what was loaded after `look`; None: it is not fresh there."""
        return await self.ask(
            "the cache could not be filled",
            key,
            lambda: self._cache.fill(
                key,
                look,
                availability,
                ttl=self._policy.ttl,
                stale_ttl=self._policy.stale_ttl,
                valid_for=valid_for,
            ),
            None,
        )

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
                self.trouble.note(key)
            self.attend()
            raise
        return delivered

    async def _delivered(self, key: str | None) -> bool:
        ticket = self.trouble.ticket()
        what, name = "the cache could not be cleared", "everything" if key is None else key
        try:
            await self.timed(what, name, self._send(key))
        except Exception:
            self.log(what, name)
            self.trouble.fail()
            # Before a recovery begins: it keeps this guard alive as long as anything is owed.
            self.trouble.note(key)
            self.attend()
            return False
        self.trouble.taken(key, ticket)
        return True

    async def _send(self, key: str | None) -> None:
        await (self._cache.clear_all() if key is None else self._cache.clear(key))

    async def retry(self) -> None:
        """Deliver what is owed, each for itself, and ask for a list."""
        failure = None
        for key in self.trouble.undelivered():
            ticket = self.trouble.ticket()
            try:
                await self._send(key)
            except Exception as error:
                failure = error
            else:
                self.trouble.taken(key, ticket)
        if failure is not None:
            raise failure
        await self._cache.look(self._policy.key)


class GuardedLocks(Guard):
    """The locks, as the flow asks them."""

    def __init__(
        self,
        locks: AsyncLockProvider,
        policy: AvailabilityPolicy,
        trouble: Trouble,
        clock: AsyncClock,
        spawn: Spawn,
    ) -> None:
        super().__init__(trouble, clock, spawn)
        self._locks = locks
        self._prefix = policy.lock_key or f"{policy.key}.lock"
        self._key = policy.key
        self._ttl = policy.lock_ttl

    async def acquire(self, key: str) -> Lock | None:
        """Return the lock of this list; None: somebody else holds it."""
        name = self._prefix + key.removeprefix(self._key)
        lock = await self.ask(
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
            await self.timed(what, lock.name, self._locks.release(lock))
        except Exception:
            self.failed(what, lock.name)

    async def retry(self) -> None:
        """Take a lock of no list, and give it back."""
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
