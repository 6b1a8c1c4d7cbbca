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
from typing import TypeVar

from slotcache.availability import Source
from slotcache.events import Counts, Health
from slotcache.flight import Answer, Flight, Flights
from slotcache.guard import GuardedCache, GuardedLocks, Spawn, believable
from slotcache.known import LastKnown
from slotcache.policy import AvailabilityPolicy
from slotcache.protocols import (
    AsyncCacheBackend,
    AsyncClock,
    AsyncLockProvider,
    AsyncSlotRepository,
    CacheBackend,
    Entry,
    Generation,
    Loaded,
    Lock,
    Miss,
    Scope,
)
from slotcache.trouble import Trouble

__all__ = ["Ports", "Refill"]

_log = logging.getLogger("slotcache")

AnswerT = TypeVar("AnswerT", Answer, Answer | None)

_LIVENESS = 1.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.050
_PAUSE_SHARE = 0.1

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
        spawn: Has a flow run beside the readers.
        trouble: The cache's.
        lock_trouble: The locks'.
        known: Where this process keeps what it last knew, for when both cache and table fail.
    """

    cache: AsyncCacheBackend
    locks: AsyncLockProvider
    slots: AsyncSlotRepository
    clock: AsyncClock
    runner: Callable[[], Callable[[], bool]]
    jitter: Callable[[], float]
    spawn: Spawn
    trouble: Trouble
    lock_trouble: Trouble
    known: CacheBackend


@dataclass(frozen=True, slots=True)
class _Read:
    """One reader: what it asks for, what it saw first, when it came and how long it waits.

    Attributes:
        first: What its first look saw.
        known: The generation, at that time, of what this process last knew.
    """

    key: str
    scope: Scope | None
    first: Miss
    known: Generation | None
    began: float
    deadline: float


class Refill:
    """The flow of one service, and its flights."""

    def __init__(self, ports: Ports, policy: AvailabilityPolicy) -> None:
        self.counts = Counts()
        self._cache = GuardedCache(ports.cache, policy, ports.trouble, ports.clock, ports.spawn)
        self._locks = GuardedLocks(
            ports.locks, policy, ports.lock_trouble, ports.clock, ports.spawn
        )
        self._known = LastKnown(ports.known, policy)
        self._slots = ports.slots
        self._clock = ports.clock
        self._runner = ports.runner
        self._jitter = ports.jitter
        self._policy = policy
        self._flights = Flights()

    async def answer(self, key: str, scope: Scope | None, first: object) -> Answer:
        """Answer a reader whose first look at `key` was `first`, which was no fresh entry."""
        if self._flights.is_flying(key, _loading.get()):
            raise RuntimeError(
                f"a read of {key!r} from inside its own load would wait for itself: "
                "let the load read the table, and nothing else"
            )
        seen = believable(first)
        assert isinstance(seen, Miss)
        known = self._known.look(key).generation
        now = self._clock.now()
        read = _Read(key, scope, seen, known, now, now + self._policy.lock_timeout)
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

    async def clear(self, keys: Iterable[str | None]) -> bool:
        """Clear these keys (None: every key); return whether the cache took each of them."""
        keys = list(keys)
        try:
            delivered = await self._cache.clear(keys)
        finally:
            # After it: what was looked up in the cache before it was cleared is forgotten too.
            for key in keys:
                self._known.clear(key)
        self.counts.clears += 1
        self.counts.undelivered += not delivered
        return delivered

    def unanswered(self, key: str) -> Miss:
        """What a first look is worth whose exception is being handled."""
        return self._cache.unanswered(key)

    def unasked(self) -> Miss:
        """What a first look is worth that was not made, because the cache is in trouble."""
        self._cache.attend()
        return Miss()

    def health(self) -> Health:
        """Tell whether cache and locks are asked, and what the cache has not taken."""
        cache, locks = self._cache.trouble, self._locks.trouble
        return Health(
            cache=not cache.bypass,
            locks=not locks.bypass,
            undelivered=len(cache.undelivered()),
        )

    async def close(self) -> None:
        """End what runs in the background."""
        await self._cache.close()
        await self._locks.close()

    async def _lead_or_follow(self, own: Flight, read: _Read) -> Answer | None:
        """Board a flight; None: it ended without an answer for this reader."""
        outcome: Answer | None = None
        try:
            flight = self._flights.board(read.key, read.first.generation, own)
            if flight is not own:
                return self._counted(await self._follow(flight, read), led=False)
            outcome = await self._locked_answer(own, read)
            return self._counted(outcome, led=True)
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
            stale = self._stand_in(read, read.first)
            if stale is None:
                raise outcome.with_traceback(None)
            return stale
        if outcome is None:
            return None
        oldest = read.began - self._policy.ttl
        if outcome.serves(read.first.generation, oldest):
            return outcome
        # The table failed its leader: this one would only be failed in its turn.
        return self._stand_in(read, read.first) if outcome.source is Source.STALE else None

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
                await self._locks.release(got)
        if got.generation is None:
            return await self._answer_past_cache(flight, read)
        stale = self._expired(read, got)
        return stale or await self._query(flight, read, got, self._clock.now())

    async def _lock_or_value(self, read: _Read) -> Lock | Answer | Miss:
        """Wait for the lock, or the value that its holder fills; a Miss: neither in time."""
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
            lock = await self._locks.acquire(read.key)
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
        known = self._known.look(read.key)
        try:
            loaded = await self._load(flight, read.scope)
        except Exception:
            stale = self._stand_in(read, look)
            if stale is None:
                raise
            _log.warning(
                "the load of %r failed; its expired copy is served", read.key, exc_info=True
            )
            return stale
        life = loaded.valid_for
        life = None if life is None else max(life, self._policy.min_ttl)
        self._known.loaded(read.key, known, loaded.availability, life)
        if not fill:
            return Answer(loaded.availability, Source.DIRECT, since)
        kept = await self._cache.fill(read.key, look, loaded.availability, life)
        self.counts.outrun += kept is None
        return Answer(loaded.availability, Source.LOADED, since)

    async def _load(self, flight: Flight, scope: Scope | None) -> Loaded:
        outside = _loading.get()
        _loading.set(outside | {flight})
        self.counts.loads += 1
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

    def _stand_in(self, read: _Read, look: Miss) -> Answer | None:
        """What may stand in for a table that failed; without the cache, what was last known."""
        stale = self._expired(read, look)
        if stale is not None or look.generation is not None:
            return stale
        copy = self._known.stand_in(read.key, read.known, self._clock.now())
        return None if copy is None else Answer.of(copy, Source.STALE)

    async def _look(self, key: str) -> Entry | Miss:
        known = self._known.look(key)
        found = await self._cache.look(key)
        if isinstance(found, Entry):
            self._known.found(key, known, found)
        return found

    def _counted(self, answer: AnswerT, *, led: bool) -> AnswerT:
        """Count how a reader was answered."""
        counts = self.counts
        if answer is None:
            return answer
        if answer.source is Source.STALE:
            counts.stale += 1
        elif answer.source is Source.DIRECT:
            counts.direct += 1
        elif not led:
            counts.shared += 1
        elif answer.source is Source.CACHED:
            counts.hits += 1
        return answer
