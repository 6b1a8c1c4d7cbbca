"""The read flow, once, for every world: what happens after a look that found nothing fresh.

    join a flight whose load has not begun or whose generation covers mine, else lead one:
        wait for the lock, but look at the key between tries:
            a fresh value, or a copy that covers my first look, ends it
        no lock in time    -> the expired copy, else a direct query that is not stored
        look again; fresh  -> answer
        query the database
        fill under what that second look saw; refused or outrun -> still a good answer
        release

Rules for editors. Nothing here touches a clock, a thread, an event loop or a random source
except through `Ports`. Every value that is handed to a reader passes a test: it is fresh now; or
its generation covers what the reader's own first look saw (`covers`); or it is a query's answer,
whose load began after that look (`Flight.carries`) and not a `ttl` before the reader came. Cache
and lock may fail or lie at any call: each is guarded where it stands, and costs a query (P4). What
the repository raises is the reader's business, unless an expired copy can stand in (P5).

What is not elegant: followers poll (`_LIVENESS`) for a leader that vanished without unwinding,
because neither a thread nor a task tells anybody that it will never run again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass

from slotcache.availability import Source
from slotcache.flight import Answer, Flight, Flights
from slotcache.policy import AvailabilityPolicy
from slotcache.protocols import (
    AsyncCacheBackend,
    AsyncClock,
    AsyncLockProvider,
    AsyncSlotRepository,
    Entry,
    Generation,
    Loaded,
    Lock,
    Miss,
    Scope,
)

__all__ = ["Ports", "Refill", "unanswered"]

_log = logging.getLogger("slotcache")

_LIVENESS = 1.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.050
_PAUSE_SHARE = 0.1

# Stands for the lock when the provider itself is broken: one query a process, instead of none.
_UNGUARDED = Lock(name="", token="")

# The flights whose loads this code runs inside of. A context that was copied in a load may
# outlive it, so what counts is whether they still fly.
_loading: ContextVar[frozenset[Flight]] = ContextVar("slotcache.loading", default=frozenset())


@dataclass(frozen=True, slots=True)
class Ports:
    """All that the flow may touch.

    Attributes:
        cache: Where lists are kept.
        locks: Who may query.
        slots: The table.
        clock: Time, and every wait.
        runner: Called by a leader: returns a function that tells, later, whether it still runs.
        jitter: A random number in [0, 1).
    """

    cache: AsyncCacheBackend
    locks: AsyncLockProvider
    slots: AsyncSlotRepository
    clock: AsyncClock
    runner: Callable[[], Callable[[], bool]]
    jitter: Callable[[], float]


def unanswered(key: str) -> Miss:
    """What a look is worth when the cache raised: log it, and go on without a generation."""
    _log.warning("the cache could not be read: %r", key, exc_info=True)
    return Miss()


def _believable(found: object) -> Entry | Miss:
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


@dataclass(frozen=True, slots=True)
class _Read:
    """One reader: what it asks for, what its first look saw, when it came and how long it waits."""

    key: str
    scope: Scope | None
    first: Miss
    began: float
    deadline: float


class Refill:
    """The flow of one service, and its flights."""

    def __init__(self, ports: Ports, policy: AvailabilityPolicy) -> None:
        self._cache = ports.cache
        self._locks = ports.locks
        self._slots = ports.slots
        self._clock = ports.clock
        self._runner = ports.runner
        self._jitter = ports.jitter
        self._policy = policy
        self._lock_key = policy.lock_key or f"{policy.key}.lock"
        self._flights = Flights()

    async def answer(self, key: str, scope: Scope | None, first: object) -> Answer:
        """Answer a reader whose first look at `key` was `first`, which was no fresh entry."""
        if self._flights.is_flying(key, _loading.get()):
            raise RuntimeError(
                f"a read of {key!r} from inside its own load would wait for itself: "
                "let the load read the table, and nothing else"
            )
        seen = _believable(first)
        assert isinstance(seen, Miss)
        now = self._clock.now()
        read = _Read(key, scope, seen, now, now + self._policy.lock_timeout)
        while True:
            own = Flight(self._clock.event(), self._runner())
            try:
                answer = await self._lead_or_follow(own, read)
            except BaseException:
                # Once more: an interrupt may have cut in before it landed.
                self._flights.land(key, own, None)
                raise
            if answer is not None:
                return answer

    async def clear(self, keys: Iterable[str] | None) -> bool:
        """Clear these keys (None: every key); return whether the cache took each of them."""
        if keys is None:
            return await self._cleared(None)
        return all([await self._cleared(key) for key in keys])

    async def _lead_or_follow(self, own: Flight, read: _Read) -> Answer | None:
        """Board a flight; None: it ended without an answer for this reader."""
        outcome: Answer | None = None
        try:
            flight = self._flights.board(read.key, read.first.generation, own)
            if flight is not own:
                return await self._follow(flight, read)
            outcome = await self._locked_answer(own, read)
            return outcome
        except Exception as error:
            self._flights.land(read.key, own, error)
            raise
        finally:
            # With anything but an Exception (cancelled, interrupted) it lands without an
            # outcome, and one of the followers leads anew.
            self._flights.land(read.key, own, outcome)

    async def _follow(self, flight: Flight, read: _Read) -> Answer | None:
        """Wait for a flight that somebody else leads."""
        if not await self._landing(flight, read.key, read.deadline):
            stale = self._expired(read, read.first)
            if stale is not None:
                return stale
            await self._landing(flight, read.key, math.inf)
        outcome = flight.outcome
        if isinstance(outcome, Exception):
            stale = self._expired(read, read.first)
            if stale is None:
                raise outcome.with_traceback(None)
            return stale
        if outcome is None:
            return None
        oldest = read.began - self._policy.ttl
        return outcome if outcome.serves(read.first.generation, oldest) else None

    async def _landing(self, flight: Flight, key: str, deadline: float) -> bool:
        """Wait until it has landed, and land it if its leader is gone; False: not in time."""
        while True:
            left = deadline - self._clock.now()
            if await flight.landed.wait(max(0.0, min(left, _LIVENESS))):
                return True
            if not flight.alive():
                self._flights.land(key, flight, None)
            elif left <= 0:
                return False

    async def _locked_answer(self, flight: Flight, read: _Read) -> Answer:
        got = await self._lock_or_value(read)
        if isinstance(got, Answer):
            return got
        if isinstance(got, Lock):
            try:
                return await self._loaded_answer(flight, read)
            finally:
                await self._release(got)
        if got.generation is None:
            return await self._answer_past_cache(flight, read)
        stale = self._expired(read, got)
        return stale or await self._query(flight, read, got, self._clock.now())

    async def _lock_or_value(self, read: _Read) -> Lock | Answer | Miss:
        """Wait for the lock, or the value that its holder fills; a Miss: neither in time."""
        name = self._lock_key + read.key.removeprefix(self._policy.key)
        began = self._clock.now()
        seen: Entry | Miss = read.first
        left = math.inf
        while True:
            answer = self._kept(read, seen)
            if answer is not None:
                return answer
            assert isinstance(seen, Miss)
            if seen.generation is None or left <= 0:
                return seen
            lock = await self._acquire(name)
            if lock is not None:
                return lock
            now = self._clock.now()
            left = read.deadline - now
            if left > 0:
                await self._clock.sleep(min(self._pause(now - began), left))
            seen = await self._look(read.key)

    def _pause(self, waited: float) -> float:
        """About a tenth of the time waited, so that the last look is late by no more than that."""
        pause = min(max(waited * _PAUSE_SHARE, _SHORTEST_PAUSE), _LONGEST_PAUSE)
        return pause * (0.5 + 0.5 * self._jitter())

    async def _loaded_answer(self, flight: Flight, read: _Read) -> Answer:
        """Look again, query, fill: the part that at most one holder of the lock is in."""
        since = self._clock.now()
        second = await self._look(read.key)
        answer = self._kept(read, second)
        if answer is not None:
            return answer
        assert isinstance(second, Miss)
        if second.generation is None:
            return await self._answer_past_cache(flight, read)
        return await self._query(flight, read, second, since, fill=True)

    async def _answer_past_cache(self, flight: Flight, read: _Read) -> Answer:
        """Query without a generation to share: per key one runs, and this one waits (P4)."""
        while (running := self._flights.ahead(read.key)) is not None:
            await self._landing(running, read.key, math.inf)
        return await self._query(flight, read, Miss(), self._clock.now())

    async def _query(
        self, flight: Flight, read: _Read, look: Miss, since: float, *, fill: bool = False
    ) -> Answer:
        """Load, after `look`; if the database fails, let the expired copy stand in."""
        self._flights.begin(flight, look.generation)
        try:
            loaded = await self._load(flight, read.scope)
        except Exception:
            stale = self._expired(read, look)
            if stale is None:
                raise
            _log.warning(
                "the load of %r failed; its expired copy is served", read.key, exc_info=True
            )
            return stale
        if not fill:
            return Answer(loaded.availability, Source.DIRECT, since)
        await self._fill(read.key, look, loaded)
        return Answer(loaded.availability, Source.LOADED, since)

    async def _load(self, flight: Flight, scope: Scope | None) -> Loaded:
        outside = _loading.get()
        _loading.set(outside | {flight})
        try:
            loaded = await self._slots.load(scope)
        finally:
            _loading.set(outside)
        if not isinstance(loaded, Loaded):
            raise TypeError(f"load must return Loaded(availability), not {loaded!r:.80}")
        return loaded

    def _kept(self, read: _Read, found: Entry | Miss) -> Answer | None:
        """What a look found, if this reader may have it: fresh, or alive and covering."""
        if isinstance(found, Entry):
            return Answer.of(found, Source.CACHED)
        copy = found.copy
        if copy is None or not copy.generation.covers(read.first.generation):
            return None
        if self._clock.now() >= copy.until:
            return None
        return Answer.of(copy, Source.CACHED)

    def _expired(self, read: _Read, look: Miss) -> Answer | None:
        """The expired copy that may stand in, if its time is not over: STALE (P5)."""
        for copy in (look.copy, read.first.copy):
            if copy is None or not copy.generation.covers(read.first.generation):
                continue
            if self._clock.now() < copy.until + self._policy.stale_ttl:
                return Answer.of(copy, Source.STALE)
        return None

    async def _look(self, key: str) -> Entry | Miss:
        try:
            found = await self._cache.read(key)
        except Exception:
            return unanswered(key)
        return _believable(found)

    async def _fill(self, key: str, look: Miss, loaded: Loaded) -> None:
        policy = self._policy
        life = loaded.valid_for
        try:
            await self._cache.fill(
                key,
                look,
                loaded.availability,
                ttl=policy.ttl,
                stale_ttl=policy.stale_ttl,
                valid_for=None if life is None else max(life, policy.min_ttl),
            )
        except Exception:
            _log.warning("the cache could not be filled: %r", key, exc_info=True)

    async def _cleared(self, key: str | None) -> bool:
        try:
            await (self._cache.clear_all() if key is None else self._cache.clear(key))
        except Exception:
            _log.exception(
                "the cache could not be cleared: %r", "everything" if key is None else key
            )
            return False
        return True

    async def _acquire(self, name: str) -> Lock | None:
        try:
            lock = await self._locks.acquire(name, ttl=self._policy.lock_ttl)
        except Exception:
            _log.warning("the lock could not be asked for: %r", name, exc_info=True)
            return _UNGUARDED
        return lock if lock is None or isinstance(lock, Lock) else _UNGUARDED

    async def _release(self, lock: Lock) -> None:
        if lock is _UNGUARDED:
            return
        try:
            await self._locks.release(lock)
        except Exception:
            _log.warning("the lock could not be released: %r", lock.name, exc_info=True)
