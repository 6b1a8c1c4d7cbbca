"""What the cache and the locks in memory do beyond the laws, which they obey in `test_laws.py`."""

import os

import pytest

from slotcache import Availability, SlotAvailabilityService
from slotcache.memory import MemoryCache, MemoryLocks
from slotcache.protocols import Entry, Generation, Miss
from slotcache.testing import ManualClock
from tests.support.forks import in_child
from tests.support.shelf import Shelf, left
from tests.support.threads import together

TEN = Availability.of([("slot", 10, 10)])
TIMES = {"ttl": 10.0, "stale_ttl": 60.0}


@pytest.fixture
def clock():
    return ManualClock(start=0.0)


@pytest.fixture
def cache(clock):
    return MemoryCache(clock=clock)


def test_a_generation_covers_looks_of_its_epoch_with_no_more_clears():
    generation = Generation(epoch=7, clears=3)

    assert generation.covers(Generation(7, 3))
    assert generation.covers(Generation(7, 0))
    assert not generation.covers(Generation(7, 4))
    assert not generation.covers(Generation(8, 0))
    assert not generation.covers(None)


def test_a_filled_value_is_the_same_object_at_every_read(cache, clock):
    entry = cache.fill("k", cache.read("k"), TEN, **TIMES)

    assert isinstance(entry, Entry)
    assert (entry.availability, entry.since, entry.until) == (TEN, 0.0, 10.0)
    clock.advance(9.9)
    assert cache.read("k") is entry is cache.read("k")


def test_life_counts_from_the_look(cache, clock):
    miss = cache.read("k")
    clock.advance(4)
    cache.fill("k", miss, TEN, **TIMES)
    clock.advance(5.9)
    assert isinstance(cache.read("k"), Entry)
    clock.advance(0.1)
    assert isinstance(cache.read("k"), Miss)


def test_a_clear_drops_the_value_that_it_makes_wrong(cache, clock):
    cache.fill("k", cache.read("k"), TEN, **TIMES)
    cache.clear("k")
    assert cache.read("k").copy is None

    cache.fill("k", cache.read("k"), TEN, **TIMES)
    clock.advance(10)
    cache.clear("k")
    assert cache.read("k").copy is None


def test_a_clock_may_count_in_whole_numbers():
    class Ticks:
        def now(self):
            return 7

    cache = MemoryCache(clock=Ticks())
    entry = cache.fill("k", cache.read("k"), TEN, **TIMES)
    assert cache.read("k") is entry is not None


@pytest.mark.parametrize(("late", "is_fresh"), [(9.9, True), (10.0, False)])
def test_a_fill_that_has_no_life_left_is_fresh_for_nobody(cache, clock, late, is_fresh):
    miss = cache.read("k")
    clock.advance(late)

    entry = cache.fill("k", miss, TEN, **TIMES)

    assert (entry is not None) is is_fresh


def test_a_fill_under_a_lost_record_is_dropped(clock):
    cache = MemoryCache(maxsize=1, clock=clock)
    miss = cache.read("k")
    cache.read("another key")

    assert cache.fill("k", miss, TEN, **TIMES) is None
    again = cache.read("k")
    assert again.copy is None
    assert again.generation.epoch != miss.generation.epoch
    assert cache.fill("k", miss, TEN, **TIMES) is None
    assert cache.read("k").copy is None


@pytest.mark.parametrize(("generation", "look"), [("its own", None), (None, 0.0)])
def test_a_fill_after_a_look_that_was_no_answer_is_dropped(cache, generation, look):
    generation = generation and cache.read("k").generation

    assert cache.fill("k", Miss(generation, look), TEN, **TIMES) is None
    assert cache.read("k").copy is None


def test_clearing_a_key_without_a_record_does_nothing(cache):
    cache.clear("k")
    assert len(cache._records) == 0
    assert cache.read("k").generation.clears == 0


def test_it_never_keeps_more_than_maxsize_lists(clock):
    cache = MemoryCache(maxsize=3, clock=clock)
    for number in range(10):
        cache.fill(str(number), cache.read(str(number)), TEN, **TIMES)

    assert len(cache._records) == len(cache._fresh) == 3
    assert isinstance(cache.read("9"), Entry)


@pytest.mark.parametrize("maxsize", [0, -1, 1.5, True, None, "9"])
def test_a_maxsize_that_makes_no_sense_is_refused(maxsize):
    with pytest.raises(ValueError, match="maxsize must be a number of lists, 1 or more"):
        MemoryCache(maxsize=maxsize)


def test_threads_that_mint_fill_and_clear_leave_it_whole():
    cache = MemoryCache(maxsize=4)

    def work():
        for number in range(300):
            key = str(number % 7)
            found = cache.read(key)
            if isinstance(found, Miss):
                cache.fill(key, found, TEN, **TIMES)
            if number % 5 == 0:
                cache.clear(key)
        return True

    assert all(together(8, work))
    assert len(cache._records) <= 4
    assert set(cache._fresh) <= set(cache._records)


# Locks.


@pytest.fixture
def locks(clock):
    return MemoryLocks(clock=clock)


def test_a_lock_whose_holder_vanished_is_free_after_its_ttl(locks, clock):
    locks.acquire("l", ttl=10)
    clock.advance(9.9)
    assert locks.acquire("l", ttl=10) is None
    clock.advance(0.1)
    assert locks.acquire("l", ttl=10) is not None


def test_a_lock_that_expires_while_it_is_released_was_no_longer_yours():
    class Ticking:
        instant = 0.0

        def now(self):
            self.instant += 1.0
            return self.instant

    for ttl in range(1, 12):
        locks = MemoryLocks(clock=Ticking())
        assert locks.release(locks.acquire("l", ttl=ttl)) in (True, False)


def test_the_locks_of_a_cache_end_by_its_clock(cache, clock):
    cache.locks().acquire("l", ttl=10)
    clock.advance(10)
    assert cache.locks().acquire("l", ttl=10) is not None


def test_locks_left_behind_do_not_pile_up(locks, clock):
    for number in range(100):
        locks.acquire(str(number), ttl=1)
    clock.advance(1)
    locks.acquire("l", ttl=1)
    assert len(locks._held) == 1


# Fork.


# Since Python 3.12 a fork beside threads is warned of: that it works is what is shown here.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_starts_empty_and_unlocked():
    shelf = Shelf()
    service = SlotAvailabilityService(shelf)
    service.get_availability()
    service._cache.locks().acquire("slots.availability.lock", ttl=1_000)
    flights = service._refill._flights

    def see_the_change():
        shelf.remaining = 4
        assert left(service.get_availability()) == 4

    with service._cache._mutex, service._cache.locks()._mutex, flights._mutex:
        in_child(see_the_change)
    assert left(service.get_availability()) == 10
