"""A cache in trouble: it is left alone, nothing that was cleared is believed, and it comes back."""

import gc
import logging
import time

import pytest

from slotcache import AvailabilityPolicy, SlotAvailabilityService, Source
from slotcache.events import Health, Stats
from slotcache.memory import MemoryCache, MemoryLocks
from slotcache.protocols import Entry
from slotcache.testing import ManualClock
from slotcache.trouble import PAUSE, Trouble
from slotcache.worlds import run
from tests.support.forks import in_child
from tests.support.shelf import ScopedShelf, Shelf, left
from tests.support.threads import Counted, Gate, spawn

KEY = "slots.availability"
WELL = Health(cache=True, locks=True, undelivered=0)


class Gone(Exception):
    pass


class Flaky:
    """Passes calls on to a part, or raises, and counts what it was asked.

    Attributes:
        down: Which methods raise; True: all do.
        slow: Seconds that each call takes.
    """

    def __init__(self, part, clock):
        self.down = frozenset()
        self.slow = 0.0
        self.calls = []
        self._part = part
        self._clock = clock

    def __getattr__(self, name):
        def call(*args, **options):
            self.calls.append(name)
            if self.slow:
                self._clock.advance(self.slow)
            if self.down is True or name in self.down:
                raise Gone(name)
            return getattr(self._part, name)(*args, **options)

        return call


class World:
    def __init__(self, shelf=None, **policy):
        self.clock = ManualClock(start=0.0)
        self.shelf = Shelf() if shelf is None else shelf
        self.memory = MemoryCache(clock=self.clock)
        self.cache = Flaky(self.memory, self.clock)
        self.locks = Flaky(MemoryLocks(clock=self.clock), self.clock)
        self.policy = AvailabilityPolicy(**policy)
        self.service = self.another_service()
        self.trouble = self.service._trouble
        self.mended = self.trouble.mend = Counted(self.trouble.mend)

    def another_service(self):
        return SlotAvailabilityService(
            self.shelf, cache=self.cache, locks=self.locks, policy=self.policy, clock=self.clock
        )

    def read(self):
        return self.service.read()

    def sell_one(self):
        """Change the table, and clear; return whether that was delivered."""
        self.shelf.remaining -= 1
        return self.service.clear_availability_cache()

    def half_a_second_later(self):
        """Let it be time for the recovery's next attempt, if it has begun to wait for that."""
        self.clock.advance(PAUSE)

    def recover(self, mended):
        """Let half seconds pass until an attempt has succeeded."""
        for _ in range(400):
            self.half_a_second_later()
            if mended.is_called_within(0.05):
                return
        raise AssertionError("it did not recover")

    def come_back(self):
        self.cache.down = self.locks.down = frozenset()
        self.recover(self.mended)


def ends(is_alive, clock):
    """Whether a thread ends as half seconds pass; there is nothing to be told of it by."""
    for _ in range(4_000):
        clock.advance(PAUSE)
        if not is_alive():
            return True
        time.sleep(0.005)
    return False


@pytest.fixture
def world():
    world = World()
    yield world
    world.service.close()


def read_together(world, readers):
    """Let one reader lead a query, and all others board while it runs; return their readings."""
    gate = world.shelf.during_load = Gate()
    leader = spawn(world.read)
    gate.wait_for_somebody()
    boarded = Counted(world.service._refill._flights.board)
    world.service._refill._flights.board = boarded
    followers = [spawn(world.read) for _ in range(readers - 1)]
    boarded.wait_for(readers - 1)
    gate.open()
    return [reader.result(20) for reader in (leader, *followers)]


# The breaker.


def test_a_cache_that_failed_is_left_alone(world):
    world.cache.down = True
    world.read()
    assert world.cache.calls == ["read"]

    readings = [world.read() for _ in range(5)]

    assert world.cache.calls == ["read"]
    assert {reading.source for reading in readings} == {Source.DIRECT}
    assert world.service.health() == Health(cache=False, locks=True, undelivered=0)


def test_one_failure_is_logged_once(world, caplog):
    world.cache.down = True
    for _ in range(5):
        world.read()

    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_cache_that_takes_longer_than_its_budget_is_left_alone(world, caplog):
    world.cache.slow = 0.3
    world.read()
    world.cache.calls.clear()

    assert world.read().source is Source.DIRECT
    assert world.cache.calls == []
    assert "could not be read within 0.25 s, it took 0.3" in caplog.text


def test_what_answers_again_is_asked_again(world):
    world.cache.down = True
    world.read()
    world.come_back()

    assert world.read().source is Source.LOADED
    assert world.read().source is Source.CACHED
    assert world.service.health() == WELL


def test_what_answers_too_late_is_not_taken_for_well(world):
    world.cache.down = True
    world.read()
    world.cache.down = frozenset()
    guarded = world.service._refill._cache

    world.cache.slow = 0.3
    run(guarded.attempt())
    assert not world.service.health().cache
    world.cache.slow = 0.0
    run(guarded.attempt())
    assert world.service.health() == WELL


def test_what_is_still_down_is_asked_by_nobody_but_the_recovery(world):
    world.cache.down = True
    world.read()
    for _ in range(3):
        world.half_a_second_later()
        world.read()

    assert set(world.cache.calls[1:]) <= {"look"}
    assert not world.service.health().cache


def test_a_second_service_on_the_same_cache_shares_its_trouble(world):
    other = world.another_service()
    world.cache.down = True
    world.read()

    assert other.read().source is Source.DIRECT
    assert world.cache.calls == ["read"]
    assert other.health() == world.service.health()


def test_locks_that_failed_are_left_alone_and_the_cache_is_used(world):
    world.locks.down = True

    assert world.read().source is Source.LOADED
    world.clock.advance(10)
    assert world.read().source is Source.LOADED
    assert world.read().source is Source.CACHED
    assert world.locks.calls == ["acquire"]
    assert world.service.health() == Health(cache=True, locks=False, undelivered=0)


def test_locks_come_back(world):
    world.locks.down = True
    world.read()
    trouble = world.service._refill._locks.trouble
    mended = trouble.mend = Counted(trouble.mend)
    world.locks.down = frozenset()
    world.recover(mended)

    assert world.service.health() == WELL


def test_a_lock_that_is_held_is_given_back_in_trouble_too(world):
    world.locks.down = frozenset({"acquire"})
    world.shelf.during_load = lambda: world.service._refill._locks.trouble.fail()
    world.locks.down = frozenset()
    world.read()

    assert world.locks.calls == ["acquire", "release"]


# Undelivered clears (P1, P2): goals S20.


def test_a_clear_that_fails_is_said_and_this_process_is_not_shown_the_old_list(world):
    world.read()
    world.cache.down = frozenset({"clear"})

    assert world.sell_one() is False
    assert left(world.read().availability) == 9
    assert world.service.health() == Health(cache=False, locks=True, undelivered=1)


def test_a_clear_is_replayed_before_the_first_read_after(world):
    world.read()
    world.cache.down = frozenset({"clear"})
    world.sell_one()
    assert isinstance(world.memory.read(KEY), Entry)
    world.come_back()

    assert not isinstance(world.memory.read(KEY), Entry)
    reading = world.read()
    assert (left(reading.availability), reading.source) == (9, Source.LOADED)
    assert world.service.health() == WELL


def test_a_cache_that_answers_reads_is_not_believed_while_it_owes_a_clear(world):
    world.read()
    world.cache.down = frozenset({"clear"})
    world.sell_one()
    for _ in range(3):
        world.half_a_second_later()
        assert left(world.read().availability) == 9
    assert world.service.health().undelivered == 1


def test_a_clear_is_tried_in_trouble_too(world):
    world.cache.down = frozenset({"read"})
    world.read()
    world.cache.calls.clear()

    assert world.sell_one() is True
    assert world.cache.calls == ["clear"]


def test_a_later_clear_of_the_same_key_delivers_the_earlier(world):
    world.cache.down = frozenset({"clear"})
    world.sell_one()
    world.cache.down = frozenset()

    assert world.sell_one() is True
    assert world.service.health().undelivered == 0


def let_a_second_change_s_clear_fail_during_the_next(world):
    """Its key was cleared before that change was."""
    clear = world.memory.clear

    def clear_and_be_overtaken(key):
        world.memory.clear = clear
        clear(key)
        world.cache.down = frozenset({"clear"})
        assert world.sell_one() is False
        world.cache.down = frozenset()

    world.memory.clear = clear_and_be_overtaken


def test_a_clear_does_not_deliver_one_that_failed_while_it_was_under_way(world):
    let_a_second_change_s_clear_fail_during_the_next(world)

    assert world.sell_one() is True
    assert world.trouble.undelivered() == [KEY]


def test_a_repeated_clear_does_not_deliver_one_that_failed_while_it_was_under_way(world):
    world.cache.down = frozenset({"clear"})
    world.sell_one()
    world.cache.down = frozenset()
    let_a_second_change_s_clear_fail_during_the_next(world)
    world.service.close()

    assert world.trouble.undelivered() == [KEY]


class Interrupt(BaseException):
    pass


def interrupted(world, *scope):
    """Have a clear interrupted on its way."""

    def clear(_key):
        del world.memory.clear
        raise Interrupt

    world.memory.clear = clear
    with pytest.raises(Interrupt):
        world.service.clear_availability_cache(*scope)


def test_a_clear_that_was_interrupted_is_noted(world):
    world.read()
    world.shelf.remaining = 9
    interrupted(world)

    assert world.service.health().undelivered == 1
    assert left(world.read().availability) == 9


def test_all_keys_of_a_clear_that_was_interrupted_are_noted():
    world = World(shelf=ScopedShelf())
    interrupted(world, "JFK")

    assert world.service.health().undelivered == 2
    world.service.close()
    assert world.service.health() == WELL


def test_a_clear_of_every_list_is_replayed_as_one(world):
    world = World(shelf=ScopedShelf())
    for scope in ("JFK", "LGA"):
        world.service.read(scope)
    world.cache.down = frozenset({"clear_all"})
    assert world.service.clear_availability_cache() is False
    world.cache.calls.clear()
    world.come_back()

    assert "clear_all" in world.cache.calls
    assert world.service.read("JFK").source is Source.LOADED
    world.service.close()


def test_one_list_that_cannot_be_cleared_holds_back_no_other():
    world = World(shelf=ScopedShelf())
    stubborn = "slots.availability:str:JFK"
    clear = world.memory.clear

    def clear_others(key):
        if key == stubborn:
            raise Gone(key)
        clear(key)

    world.cache.down = frozenset({"clear"})
    for scope in ("JFK", "LGA"):
        world.service.clear_availability_cache(scope)
    world.memory.clear = clear_others
    world.cache.down = frozenset()
    world.service.close()

    assert world.trouble.undelivered() == [stubborn]
    world.memory.clear = clear
    world.service.close()


def test_a_cache_that_is_its_own_lock_provider_has_its_clears_repeated(world):
    class Both(MemoryCache):
        def acquire(self, name, *, ttl):
            raise Gone("acquire")

        def release(self, lock):
            raise Gone("release")

        def locks(self):
            return self

        def clear(self, key):
            if self.down:
                raise Gone("clear")
            super().clear(key)

    both = Both(clock=world.clock)
    both.down = True
    service = SlotAvailabilityService(world.shelf, cache=both, clock=world.clock)
    service.read()
    service.clear_availability_cache()
    both.down = False
    trouble = service._trouble
    mended = trouble.mend = Counted(trouble.mend)
    world.recover(mended)

    assert service.health() == Health(cache=True, locks=False, undelivered=0)
    service.close()


def test_why_a_clear_fails_is_logged_once(world, caplog):
    world.cache.down = True
    for _ in range(3):
        world.sell_one()

    reasons = [bool(record.exc_info) for record in caplog.records if record.levelno >= 30]
    assert reasons == [True, False, False]


# The notes themselves.


def test_a_note_goes_only_with_a_clear_that_was_sent_after_it_was_written():
    trouble = Trouble()
    ticket = trouble.ticket()
    trouble.note("k")
    trouble.taken("k", ticket)
    assert trouble.undelivered() == ["k"]

    trouble.taken("k", trouble.ticket())
    assert trouble.undelivered() == []
    assert not trouble.bypass


def test_the_note_of_a_second_writer_outlives_the_clear_that_was_under_way():
    trouble = Trouble()
    trouble.note("k")
    ticket = trouble.ticket()
    trouble.note("k")
    trouble.taken("k", ticket)
    assert trouble.undelivered() == ["k"]


def test_a_clear_of_one_key_stands_for_no_other():
    trouble = Trouble()
    trouble.note("k")
    trouble.taken("l", trouble.ticket())
    assert trouble.undelivered() == ["k"]


def test_a_clear_of_every_key_stands_for_each_that_was_noted_before():
    trouble = Trouble()
    trouble.note("k")
    trouble.note("l")
    ticket = trouble.ticket()
    trouble.note("l")
    trouble.taken(None, ticket)
    assert trouble.undelivered() == ["l"]


def test_a_note_of_every_key_goes_with_no_clear_of_one():
    trouble = Trouble()
    trouble.note("k")
    trouble.note(None)
    trouble.note("l")
    trouble.taken("k", trouble.ticket())
    assert trouble.undelivered() == [None]


def test_a_full_list_of_notes_becomes_one_clear_of_everything():
    trouble = Trouble()
    for number in range(1_001):
        trouble.note(f"key {number}")
    assert trouble.undelivered() == [None]
    trouble.taken(None, trouble.ticket())
    assert not trouble.bypass


def test_a_mended_backend_is_still_bypassed_while_it_owes_a_clear():
    trouble = Trouble()
    trouble.fail()
    trouble.note("k")
    trouble.mend()
    assert trouble.bypass


def test_one_at_a_time_sees_to_it_and_another_when_that_one_has_died():
    trouble = Trouble()
    alive = True
    assert not trouble.attend(), "there is nothing to see to"
    trouble.fail()
    assert trouble.attend()
    trouble.attended_while(lambda: alive)
    assert not trouble.attend()

    alive = False
    assert trouble.attend()


def test_who_has_left_before_it_was_noted_that_they_came_is_not_waited_for():
    trouble = Trouble()
    trouble.fail()
    assert trouble.attend()
    trouble.give_up()
    trouble.attended_while(lambda: True)

    assert trouble.attend()


def test_a_cache_that_can_bear_no_attribute_is_refused():
    class Bare(MemoryCache):
        __slots__ = ()

        def __setattr__(self, name, value):
            if name.startswith("_slotcache"):
                raise AttributeError(name)
            super().__setattr__(name, value)

    with pytest.raises(TypeError, match="Bare can bear no attribute"):
        SlotAvailabilityService(Shelf(), cache=Bare())


# What this process last knew (P5).


def cut_off(world):
    """Let the process be cut off from both the cache and the table."""
    world.cache.down = True
    world.shelf.failure = Gone("the table")


def test_what_was_last_known_stands_in_when_cache_and_table_fail(world):
    world.read()
    cut_off(world)

    reading = world.read()

    assert (reading.source, left(reading.availability)) == (Source.STALE, 10)


def test_what_others_filled_is_known_too_once_a_reader_has_waited_for_it(world):
    # Somebody else holds the lock, and fills while this process waits.
    lock = world.locks._part.acquire(f"{KEY}.lock", ttl=100)
    miss = world.memory.read(KEY)
    gate = Gate()
    world.clock.sleep = lambda _seconds: gate()
    reader = spawn(world.read)
    gate.wait_for_somebody()
    world.memory.fill(KEY, miss, world.shelf.load(None).availability, ttl=10, stale_ttl=60)
    gate.open()
    assert reader.result(20).source is Source.CACHED
    world.locks._part.release(lock)
    del world.clock.sleep
    cut_off(world)

    assert world.read().source is Source.STALE


def test_a_follower_is_given_what_was_last_known_too(world):
    world.read()
    cut_off(world)

    assert {reading.source for reading in read_together(world, 4)} == {Source.STALE}


def test_readers_who_are_cut_off_share_the_query_that_fails(world):
    world.read()
    cut_off(world)
    world.read()
    loads = world.shelf.loads

    assert {reading.source for reading in read_together(world, 11)} == {Source.STALE}
    assert world.shelf.loads == loads + 2


@pytest.mark.parametrize(("after", "served"), [(2.9, True), (3.0, False)])
def test_what_was_last_known_has_no_longer_life_than_it_had(after, served):
    world = World(ttl=600, stale_ttl=2)
    world.shelf.valid_for = 1.0
    world.read()
    world.clock.advance(after)
    cut_off(world)

    if served:
        assert world.read().source is Source.STALE
    else:
        with pytest.raises(Gone, match="the table"):
            world.read()
    world.service.close()


def test_what_was_found_lives_no_longer_than_it_did_in_the_cache(world):
    miss = world.memory.read(KEY)
    world.clock.advance(4)
    world.memory.fill(KEY, miss, world.shelf.load(None).availability, ttl=10, stale_ttl=60)
    run(world.service._refill._look(KEY))
    world.clock.advance(65.9)
    cut_off(world)
    assert world.read().source is Source.STALE

    world.clock.advance(0.1)
    with pytest.raises(Gone, match="the table"):
        world.read()


def test_what_was_found_ends_as_it_does_in_the_cache_whatever_the_policy_here(world):
    rows = world.shelf.load(None).availability
    world.memory.fill(KEY, world.memory.read(KEY), rows, ttl=5, stale_ttl=60)
    run(world.service._refill._look(KEY))
    world.clock.advance(64.9)
    cut_off(world)
    assert world.read().source is Source.STALE

    world.clock.advance(0.1)
    with pytest.raises(Gone, match="the table"):
        world.read()


@pytest.mark.parametrize(("after", "served"), [(69.9, True), (70.0, False)])
def test_what_was_last_known_stands_in_for_stale_ttl(world, after, served):
    world.read()
    world.clock.advance(after)
    cut_off(world)

    if served:
        assert world.read().source is Source.STALE
    else:
        with pytest.raises(Gone, match="the table"):
            world.read()


def test_what_this_process_cleared_is_not_known_any_more(world):
    world.read()
    cut_off(world)
    world.service.clear_availability_cache()

    with pytest.raises(Gone, match="the table"):
        world.read()


def test_what_a_service_on_the_same_cache_cleared_is_not_known_any_more(world):
    world.read()
    other = world.another_service()
    cut_off(world)
    other.clear_availability_cache()

    with pytest.raises(Gone, match="the table"):
        world.read()
    other.close()


def test_what_was_found_while_a_clear_was_failing_is_not_known_after_it(world):
    lock = world.locks._part.acquire(f"{KEY}.lock", ttl=100)
    miss = world.memory.read(KEY)
    old = world.shelf.load(None).availability
    waiting, clearing = Gate(), Gate()
    world.clock.sleep = lambda _seconds: waiting()
    reader = spawn(world.read)
    waiting.wait_for_somebody()

    def clear(_key):
        clearing()
        raise Gone("clear")

    world.memory.clear = clear
    writer = spawn(world.service.clear_availability_cache)
    clearing.wait_for_somebody()
    world.memory.fill(KEY, miss, old, ttl=10, stale_ttl=60)
    waiting.open()
    assert reader.result(20).source is Source.CACHED
    clearing.open()
    assert writer.result(20) is False
    del world.memory.clear, world.clock.sleep
    world.locks._part.release(lock)
    cut_off(world)

    with pytest.raises(Gone, match="the table"):
        world.read()


def test_what_was_loaded_before_a_clear_is_not_known_after_it(world):
    gate = world.shelf.during_load = Gate()
    reader = spawn(world.read)
    gate.wait_for_somebody()
    world.service.clear_availability_cache()
    gate.open()
    reader.result(20)
    world.shelf.during_load = lambda: None
    cut_off(world)

    with pytest.raises(Gone, match="the table"):
        world.read()


def test_stale_ttl_0_forbids_what_was_last_known():
    world = World(stale_ttl=0)
    world.read()
    cut_off(world)

    with pytest.raises(Gone, match="the table"):
        world.read()
    world.service.close()


def test_what_was_last_known_is_not_used_while_the_cache_answers(world):
    world.read()
    world.memory.clear(KEY)  # somebody else's change
    world.shelf.failure = Gone("the table")

    with pytest.raises(Gone, match="the table"):
        world.read()


# Stats.


def test_stats_count_how_reads_were_answered(world):
    world.read()
    world.read()
    world.service.get_availability()
    world.service.clear_availability_cache()

    assert world.service.stats() == Stats(hits=2, loads=1, clears=1)


def test_stats_count_queries_that_were_shared(world):
    read_together(world, 4)

    assert world.service.stats() == Stats(loads=1, shared=3)


def test_stats_count_what_was_outrun_stale_direct_and_undelivered(world):
    world.shelf.during_load = lambda: world.memory.clear(KEY)
    world.read()
    assert world.service.stats() == Stats(loads=1, outrun=1)
    world.shelf.during_load = lambda: None

    world.read()
    cut_off(world)
    world.read()
    world.shelf.failure = None
    world.read()
    world.service.clear_availability_cache()
    assert world.service.stats() == Stats(
        loads=4, outrun=1, stale=1, direct=1, clears=1, undelivered=1
    )


# Closing, and forks.


def test_close_ends_the_recovery_after_one_more_attempt(world):
    world.cache.down = True
    world.sell_one()
    world.cache.down = frozenset()
    world.service.close()

    assert world.cache.calls[-2:] == ["clear", "look"]
    assert world.service.health() == WELL


def test_a_closed_service_still_answers(world):
    with world.service as service:
        service.read()
    world.cache.down = True

    assert service.read().source is Source.DIRECT
    assert service.read().source is Source.DIRECT


def test_a_service_that_was_closed_sees_to_later_trouble_again(world):
    world.service.close()
    world.cache.down = True
    world.read()
    world.come_back()

    assert world.service.health() == WELL


def test_a_recovery_that_could_not_begin_is_begun_by_the_next_reader(world):
    spawn_it = world.service._refill._cache._spawn

    def interrupted_spawn(_flow):
        raise Interrupt

    world.cache.down = True
    world.service._refill._cache._spawn = interrupted_spawn
    with pytest.raises(Interrupt):
        world.read()
    world.service._refill._cache._spawn = spawn_it
    world.read()
    world.come_back()

    assert world.service.health() == WELL


def test_threads_that_run_out_make_no_read_fail(world, caplog):
    def no_more_threads(_flow):
        raise RuntimeError("can't start new thread")

    world.cache.down = True
    world.service._refill._cache._spawn = no_more_threads

    assert world.read().source is Source.DIRECT
    assert "nobody sees to" in caplog.text


def test_a_service_that_nobody_uses_any_more_leaves_no_thread_behind(caplog):
    caplog.set_level(logging.CRITICAL)  # what is logged here keeps the service alive
    world = World()
    threads = []
    start = world.service._refill._cache._spawn

    def spawn_and_tell(flow):
        threads.append(start(flow))
        return threads[-1]

    world.service._refill._cache._spawn = spawn_and_tell
    world.cache.down = True
    world.read()
    clock = world.clock
    del world
    gc.collect()

    (is_alive,) = threads
    assert ends(is_alive, clock)


def test_a_service_that_nobody_uses_any_more_delivers_what_it_owes(caplog):
    caplog.set_level(logging.CRITICAL)  # what is logged here keeps the service alive
    world = World()
    world.cache.down = frozenset({"clear"})
    world.sell_one()
    world.service = None
    gc.collect()
    world.come_back()

    assert world.trouble.undelivered() == []


def test_another_service_takes_over_what_a_closed_one_leaves(world):
    other = world.another_service()
    world.cache.down = True
    world.sell_one()
    left_it = world.trouble.give_up = Counted(world.trouble.give_up)
    world.service.close()
    left_it.wait_for(1)
    other.read()
    world.come_back()

    assert other.health() == WELL
    other.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_owes_what_its_parent_owed_and_delivers_it(world):
    world.read()
    world.cache.down = frozenset({"clear"})
    world.sell_one()

    def deliver_it():
        assert left(world.read().availability) == 9
        assert not world.service.health().cache
        world.come_back()
        assert world.service.health() == WELL

    in_child(deliver_it)
