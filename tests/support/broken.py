"""Caches and locks that are wrong in one way each, for laws to catch."""

import dataclasses
import itertools
import math
import posixpath
import threading
import time
import unicodedata
from collections.abc import Callable
from typing import Any

from slotcache import Availability
from slotcache.memory import MemoryCache, MemoryLocks, _Record
from slotcache.protocols import Clock, Entry, Generation, Lock, Miss
from slotcache.testing.laws import generations, lists, locks
from tests.support.shelf import NoLocks

MISTAKES: list[tuple[Callable[[Any], None], str, Callable[[Clock], Callable[[], Any]]]] = []
"""The law that a mistake breaks; its name; what makes, on a clock, an `open` for that law."""


def breaks(law: Callable[[Any], None]) -> Callable[[Any], Any]:
    """Note that a class breaks this law, in one object that all share."""

    def note(mistake: Any) -> Any:
        def opened(clock: Clock) -> Callable[[], Any]:
            backend = mistake(clock=clock)
            return lambda: backend

        MISTAKES.append((law, mistake.__name__, opened))
        return mistake

    return note


# Records.


@breaks(lists.a_new_key_is_a_miss)
class CountsFromOne(MemoryCache):
    def look(self, key):
        if key not in self._records:
            super().look(key)
            self.clear(key)
        return super().look(key)


@breaks(lists.epochs_are_random)
class NumberedEpochs(MemoryCache):
    def __init__(self, **options):
        super().__init__(epoch=itertools.count().__next__, **options)


@breaks(generations.a_fill_under_another_record_is_dropped)
class NoEpoch(MemoryCache):
    def __init__(self, **options):
        super().__init__(epoch=lambda: 0, **options)


@breaks(generations.a_fill_under_another_record_is_dropped)
class FillMakesRecord(MemoryCache):
    def fill(self, key, miss, *args, **times):
        self._records.setdefault(key, _Record(miss.generation))
        return super().fill(key, miss, *args, **times)


@breaks(lists.everybody_sees_one_generation)
class ForgetsWhatExpired(MemoryCache):
    def look(self, key):
        copy = super().look(key).copy
        if copy is not None and copy.until <= self._now():
            del self._records[key]
        return super().look(key)


@breaks(generations.a_fill_without_a_generation_is_dropped)
class BelievesAnyMiss(MemoryCache):
    def fill(self, key, miss, *args, **times):
        return super().fill(key, self.look(key) if miss == Miss() else miss, *args, **times)


# Hits and contents.


@breaks(lists.a_hit_is_one_object)
class MakesEachHit(MemoryCache):
    def read(self, key):
        found = super().read(key)
        return dataclasses.replace(found)


@breaks(lists.a_list_comes_back_as_it_was)
class IdsBecomeText(MemoryCache):
    def fill(self, key, miss, availability, **times):
        rows = [(str(slot_id), *counts) for slot_id, *counts in availability]
        return super().fill(key, miss, Availability.of(rows), **times)


def under_keys(spelled: Callable[[str], str]) -> type[MemoryCache]:
    """A cache that takes some keys for one."""

    class Takes(MemoryCache):
        def read(self, key):
            return super().read(spelled(key))

        def look(self, key):
            return super().look(spelled(key))

        def fill(self, key, *args, **times):
            return super().fill(spelled(key), *args, **times)

        def clear(self, key):
            super().clear(spelled(key))

    return Takes


SPELLINGS = {
    "whatever their case": str.casefold,
    "whatever their end": lambda key: key[:255],
    "whatever their accents": lambda key: unicodedata.normalize("NFC", key),
    "as C does": lambda key: key.split("\0")[0],
    "without space around": str.strip,
    "as paths": posixpath.normpath,
}
for how, spelled in SPELLINGS.items():
    breaks(lists.keys_stay_apart)(type(f"keys {how}", (under_keys(spelled),), {}))


# Time.


@breaks(lists.instants_are_of_this_process)
class TellsServerTime(MemoryCache):
    def __init__(self, *, clock):
        super().__init__(clock=Ahead(clock))


class Ahead:
    """A clock that is a minute ahead of another."""

    def __init__(self, clock):
        self._clock = clock

    def now(self):
        return self._clock.now() + 60


@breaks(lists.life_counts_from_the_look)
class LivesFromTheFill(MemoryCache):
    def fill(self, key, miss, *args, **times):
        return super().fill(key, dataclasses.replace(miss, look=self._now()), *args, **times)


@breaks(lists.valid_for_counts_from_the_fill)
class ValidFromTheLook(MemoryCache):
    def fill(self, *args, ttl, valid_for=None, **times):
        ttl = min(ttl, math.inf if valid_for is None else valid_for)
        return super().fill(*args, ttl=ttl, **times)


@breaks(lists.life_ends_with_whichever_is_first)
class TakesValidForInstead(MemoryCache):
    def fill(self, *args, ttl, valid_for=None, **times):
        ttl = ttl if valid_for is None else math.inf
        return super().fill(*args, ttl=ttl, valid_for=valid_for, **times)


@breaks(lists.life_ends_with_whichever_is_first)
class IgnoresValidFor(MemoryCache):
    def fill(self, *args, valid_for=None, **times):
        return super().fill(*args, **times)


@breaks(lists.an_expired_list_is_a_copy)
class DropsWhatExpired(MemoryCache):
    def look(self, key):
        found = super().look(key)
        if found.copy is not None and found.copy.until <= self._now():
            self._records[key].copy = None
        return super().look(key)


@breaks(lists.a_fill_without_life_left_is_a_copy)
class DropsWhatCameLate(MemoryCache):
    def fill(self, key, miss, *args, ttl, **times):
        late = miss.look is not None and self._now() >= miss.look + ttl
        return None if late else super().fill(key, miss, *args, ttl=ttl, **times)


# Renewal.


@breaks(lists.a_look_is_a_miss)
class LooksAsItReads(MemoryCache):
    def look(self, key):
        return self._fresh.get(key) or super().look(key)


@breaks(lists.a_renewal_is_fresh)
class FillsOnce(MemoryCache):
    def fill(self, key, *args, **times):
        return None if key in self._fresh else super().fill(key, *args, **times)


# Clears.


@breaks(generations.a_clear_adds_one)
class DeletesOnClear(MemoryCache):
    def clear(self, key):
        self._records.pop(key, None)
        self._fresh.pop(key, None)


@breaks(generations.a_clear_ends_what_is_kept)
class ClearsOnlyWhatIsFresh(MemoryCache):
    def clear(self, key):
        if isinstance(self.read(key), Entry):
            super().clear(key)


@breaks(generations.a_clear_makes_no_record)
class ClearMakesRecord(MemoryCache):
    def clear(self, key):
        self.look(key)
        super().clear(key)


@breaks(generations.clear_all_counts_in_every_record)
class ClearAllForgets(MemoryCache):
    def clear_all(self):
        self._records.clear()
        self._fresh.clear()


@breaks(generations.a_clear_spares_an_outrun_copy)
class ClearDropsEveryCopy(MemoryCache):
    def clear(self, key):
        super().clear(key)
        self._records[key].copy = None


# Fills.


@breaks(generations.an_outrun_fill_is_kept_for_those_who_wait)
class PlainStore(MemoryCache):
    """The textbook: what was loaded is stored, whatever was cleared meanwhile."""

    def fill(self, key, miss, *args, **times):
        current = dataclasses.replace(self.look(key), look=miss.look)
        return super().fill(key, current, *args, **times)


@breaks(generations.an_outrun_fill_is_kept_for_those_who_wait)
class DropsWhatWasOutrun(MemoryCache):
    def fill(self, key, miss, *args, **times):
        if self.look(key).generation != miss.generation:
            return None
        return super().fill(key, miss, *args, **times)


@breaks(generations.a_fill_replaces_what_has_fewer_clears)
class KeepsTheFirstCopy(MemoryCache):
    def fill(self, key, *args, **times):
        return None if self.look(key).copy else super().fill(key, *args, **times)


@breaks(generations.a_fill_never_replaces_more_clears)
class LastFillWins(MemoryCache):
    def fill(self, key, *args, **times):
        self._records[key].copy = None
        self._fresh.pop(key, None)
        return super().fill(key, *args, **times)


@breaks(generations.a_fill_never_replaces_a_later_look)
class LastFillOfAGenerationWins(MemoryCache):
    def fill(self, key, miss, *args, **times):
        copy = self.look(key).copy
        if copy is not None and copy.generation == miss.generation:
            self._records[key].copy = None
        return super().fill(key, miss, *args, **times)


# Several objects, and threads.


def of_each_object(clock: Clock) -> Callable[[], Any]:
    """Nothing is shared."""
    return lambda: MemoryCache(clock=clock)


class TrustsInstants:
    """Takes for unchanged what is as old as what it knows, as by the time of a file."""

    def __init__(self, shared):
        self._shared = shared
        self._known = {}

    def __getattr__(self, name):
        return getattr(self._shared, name)

    def read(self, key):
        found = self._shared.read(key)
        if isinstance(found, Miss):
            return found
        known = self._known.setdefault(key, found)
        if known.since != found.since:
            self._known[key] = found
        return self._known[key]


def with_instants_trusted(clock: Clock) -> Callable[[], Any]:
    shared = MemoryCache(clock=clock)
    return lambda: TrustsInstants(shared)


MISTAKES += [
    (lists.everybody_reads_what_was_filled, "of each object", of_each_object),
    (generations.each_quick_change_is_seen, "with instants trusted", with_instants_trusted),
]


@breaks(generations.no_race_leaves_an_old_list)
class ChecksThenFills(MemoryCache):
    def fill(self, key, miss, *args, **times):
        if self.look(key).generation != miss.generation:
            return super().fill(key, miss, *args, **times)
        time.sleep(0.001)
        current = dataclasses.replace(self.look(key), look=miss.look)
        return super().fill(key, current, *args, **times)


@breaks(generations.clears_at_once_are_all_counted)
class ReadsThenCounts(MemoryCache):
    def clear(self, key):
        seen = self.look(key).generation
        time.sleep(0)
        self._records[key] = _Record(Generation(seen.epoch, seen.clears + 1))
        self._fresh.pop(key, None)


@breaks(lists.all_share_the_locks_of_a_cache)
class LocksOfEachCall(MemoryCache):
    def locks(self):
        return MemoryLocks()


@breaks(lists.locks_and_lists_stay_apart)
class ClearReleases(MemoryCache):
    def clear_all(self):
        super().clear_all()
        self._locks._held.clear()


# Locks.


breaks(locks.a_lock_has_one_holder)(NoLocks)


@breaks(locks.a_lock_has_one_holder)
class Reentrant(MemoryLocks):
    def acquire(self, name, *, ttl):
        granted = super().acquire(name, ttl=ttl)
        held, holder = self._held[name][0], threading.get_ident()
        self.holder = holder if granted else self.holder
        return held if self.holder == holder else None


@breaks(locks.a_released_lock_is_free)
class NeverReleases(MemoryLocks):
    def release(self, lock):
        return True


@breaks(locks.a_second_release_answers_false)
class AlwaysSaysReleased(MemoryLocks):
    def release(self, lock):
        super().release(lock)
        return True


@breaks(locks.a_second_release_answers_false)
@breaks(locks.a_late_release_frees_nobody_elses_lock)
@breaks(locks.a_made_up_lock_is_not_released)
class ReleasesByName(MemoryLocks):
    def release(self, lock):
        return self._held.pop(lock.name, None) is not None


@breaks(locks.a_made_up_lock_is_not_released)
class RaisesWhatItDoesNotKnow(MemoryLocks):
    def release(self, lock):
        assert super().release(lock)
        return True


@breaks(locks.a_lock_ends_with_its_ttl)
class NeverEnds(MemoryLocks):
    def acquire(self, name, *, ttl):
        return super().acquire(name, ttl=math.inf)


@breaks(locks.an_expired_lock_is_no_longer_yours)
class ReleasesWhatExpired(MemoryLocks):
    def release(self, lock):
        return super().release(lock) or self.acquire(lock.name, ttl=0.0) is not None


@breaks(locks.names_stay_apart)
class LocksInAnyCase(MemoryLocks):
    def acquire(self, name, *, ttl):
        return super().acquire(name.casefold(), ttl=ttl)


@breaks(locks.anybody_may_release)
class ThreadsRelease(MemoryLocks):
    def acquire(self, name, *, ttl):
        self.holder = threading.get_ident()
        return super().acquire(name, ttl=ttl)

    def release(self, lock):
        return self.holder == threading.get_ident() and super().release(lock)


@breaks(locks.acquire_never_waits)
class Waits(MemoryLocks):
    def __init__(self, *, clock):
        super().__init__(clock=clock)
        self._clock = clock

    def acquire(self, name, *, ttl):
        lock = super().acquire(name, ttl=ttl)
        if lock is None:
            self._clock.sleep(2.0)
        return lock


@breaks(locks.no_two_hold_a_lock_at_once)
class LooksThenGrants(MemoryLocks):
    def acquire(self, name, *, ttl):
        if name in self._held:
            return None
        time.sleep(0)
        lock = Lock(name, str(time.perf_counter_ns()))
        self._held[name] = (lock, ttl)
        return lock
