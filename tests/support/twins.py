"""Broken twins of the read: each lacks one guard, and some schedule must show it.

An explorer that finds nothing may be blind. So each guard of the flow is taken out here, and the
promise that breaks without it is named.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from slotcache.availability import Source
from slotcache.flight import Answer, Flight, Flights
from slotcache.memory import MemoryCache
from slotcache.protocols import Entry, Lock, Miss
from slotcache.testing import Scenario
from tests.support.shelf import NoLocks

__all__ = ["TWINS", "PlainStore", "Twin"]


class Twin(NamedTuple):
    """A twin, and how it is noticed.

    Attributes:
        scenario: Where it is.
        breaks: How the violation ends that must be found.
        most_turns: In how many turns it is looked for; None: in any number.
    """

    scenario: Scenario
    breaks: str
    most_turns: int | None = None


class PlainStore(MemoryCache):
    """The textbook: what was loaded is stored, whatever was cleared meanwhile."""

    def fill(self, key: str, miss: Miss, *args: Any, **times: Any) -> Entry | None:
        current = dataclasses.replace(self.look(key), look=miss.look)
        return super().fill(key, current, *args, **times)


class NoEpoch(MemoryCache):
    """Generations are plain counters: a record that comes back counts from 0 again."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "epoch": lambda: 0})


class KeepsWhatIsCleared(MemoryCache):
    """A clear counts, and goes on showing the list."""

    def clear(self, key: str) -> None:
        kept = self._fresh.get(key)
        super().clear(key)
        if kept is not None:
            self._fresh[key] = kept

    def clear_all(self) -> None:
        for key in list(self._records):
            self.clear(key)


class FirstFillWins(MemoryCache):
    """A list is never replaced by a later one."""

    def fill(self, key: str, miss: Miss, *args: Any, **times: Any) -> Entry | None:
        record = self._records.get(key)
        if record is not None and record.copy is not None:
            return None
        return super().fill(key, miss, *args, **times)


class Immortal(MemoryCache):
    """A hit does not ask for the time."""

    def read(self, key: str) -> Entry | Miss:
        return self._fresh.get(key) or self.look(key)


class SharedByKey(Flights):
    """Single flight as usual: whoever asks for the same key joins."""

    def board(self, key: str, seen: object, own: Flight) -> Flight:
        with self._mutex:
            return self._flying.setdefault(key, [own])[0]


class NeverShared(Flights):
    """Everybody flies alone."""

    def board(self, key: str, seen: object, own: Flight) -> Flight:
        with self._mutex:
            self._flying.setdefault(key, []).append(own)
            return own


class BegunUnnoticed(Flights):
    """A load begins, and those who come later still join."""

    def begin(self, flight: Flight, generation: object) -> None:
        """Say nothing."""


class NeverLanded(Flights):
    """A flight whose leader is answered goes on flying."""

    def land(self, key: str, flight: Flight, outcome: object) -> None:
        flight.outcome = outcome if isinstance(outcome, Answer) else None
        flight.landed.set()


def with_flights(flights: type[Flights]) -> Any:
    def prepare(service: Any) -> None:
        service._refill._flights = flights()

    return prepare


def take_any_kept_copy(service: Any) -> None:
    def kept(_read: object, found: Entry | Miss) -> Answer | None:
        copy = found if isinstance(found, Entry) else found.copy
        if copy is None:
            return None
        return dataclasses.replace(Answer.of(copy, Source.CACHED), found=None)

    service._refill._kept = kept


def pass_answers_on(**changes: Any) -> Any:
    """Have every answer of a flight good for everybody, changed in this way."""

    def prepare(service: Any) -> None:
        refill = service._refill
        lead = refill._locked_answer

        async def answered(flight: Flight, read: Any) -> Answer:
            answer: Answer = dataclasses.replace(await lead(flight, read), **changes)
            return answer

        refill._locked_answer = answered

    return prepare


def query_as_of_the_first_look(service: Any) -> None:
    refill = service._refill

    async def loaded(flight: Flight, read: Any) -> Answer:
        answer: Answer = await refill._query(flight, read, read.first, read.began, fill=True)
        return answer

    refill._loaded_answer = loaded


def load_before_the_look(service: Any) -> None:
    """Query, and only then look under which generation to fill."""
    refill = service._refill
    fill = refill._cache.fill

    async def filled(key: str, look: Miss, *loaded: Any) -> Entry | None:
        later = await service._cache.look(key)
        entry: Entry | None = await fill(key, later, *loaded)
        return entry

    refill._cache.fill = filled


def keep_the_lock(service: Any) -> None:
    async def release(_lock: Lock) -> bool:
        return True

    service._refill._locks.release = release


def believe_a_cache_that_owes_a_clear(service: Any) -> None:
    service._trouble.note = lambda _key: None


def drop_a_note_with_any_answer(service: Any) -> None:
    trouble = service._trouble
    taken = trouble.taken
    trouble.taken = lambda key, _ticket: taken(key, trouble.ticket())


def say_nothing_of_staleness(service: Any) -> None:
    refill = service._refill
    expired = refill._expired

    def fresh(read: Any, look: Miss) -> Answer | None:
        answer: Answer | None = expired(read, look)
        return answer and dataclasses.replace(answer, source=Source.CACHED)

    refill._expired = fresh


def expect_no_failing_cache(service: Any) -> None:
    async def fill(*args: Any) -> Entry | None:
        availability, life = args[2], args[3]
        policy = service._refill._policy
        times = {"ttl": policy.ttl, "stale_ttl": policy.stale_ttl, "valid_for": life}
        entry: Entry | None = await service._cache.fill(args[0], args[1], availability, **times)
        return entry

    service._refill._cache.fill = fill


def twin(breaks: str, *faults: str, turns: int | None = None, **scenario: Any) -> Twin:
    return Twin(Scenario(faults=frozenset(faults), **scenario), breaks, turns)


TWINS = {
    "a plain store": twin("(P1)", cache=PlainStore),
    "a plain store, in two processes": twin("(P1)", cache=PlainStore, services=2),
    "a plain store, and holds": twin(
        "(P1)", cache=PlainStore, readers=1, writers=0, holds=("create",)
    ),
    "a clear before the commit": twin("(P1)", clear_first=True),
    "a clear that drops nothing": twin("(P1)", cache=KeepsWhatIsCleared),
    "no epoch": twin("(P1)", "evict", cache=NoEpoch),
    "a load before the look": twin("(P1)", prepare=load_before_the_look),
    "a kept copy taken without the rule": twin("(P1)", prepare=take_any_kept_copy),
    "flights shared by key": twin("(P1)", prepare=with_flights(SharedByKey)),
    "a load that begins unnoticed": twin("(P1)", prepare=with_flights(BegunUnnoticed)),
    "a cache believed that owes a clear": twin(
        "(P1)", "fail clear", prepare=believe_a_cache_that_owes_a_clear
    ),
    "a note that goes with any answer": twin(
        "(P1)", "fail clear", turns=2, writers=2, prepare=drop_a_note_with_any_answer
    ),
    "a hit that outlives its ttl": twin("(P2)", "a ttl passes", cache=Immortal),
    "an old answer for who just came": twin(
        "(P2)", "a ttl passes", turns=4, prepare=pass_answers_on(since=math.inf)
    ),
    "a stale answer not called so": twin(
        "(P2)", "a ttl passes", turns=3, readers=3, services=2, prepare=say_nothing_of_staleness
    ),
    "queries side by side": twin("both under the lock (P3)", services=2, locks=NoLocks),
    "readers who share no query": twin(
        "2 queries where 1 are enough (P3)",
        readers=3,
        writers=0,
        locks=NoLocks,
        prepare=with_flights(NeverShared),
    ),
    "no second look": twin("(P3)", writers=0, prepare=query_as_of_the_first_look),
    "a lock that is kept": twin("a lock is left held", writers=0, prepare=keep_the_lock),
    "a flight that does not land": twin(
        "a flight is left in the air", readers=1, writers=0, prepare=with_flights(NeverLanded)
    ),
    "a failing cache that shows": twin(
        "raised Failure('fill answer')", "fail fill", prepare=expect_no_failing_cache
    ),
}
"""By what is wrong with each."""
