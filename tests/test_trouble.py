"""A cache in trouble: it is left alone, nothing that was cleared is believed, and it comes back."""

import gc
import logging
import time
from contextlib import closing, suppress
from functools import partial
from types import SimpleNamespace

import pytest

from slotcache import AvailabilityPolicy, Source
from slotcache.events import Health, Stats
from slotcache.memory import MemoryCache, MemoryLocks
from slotcache.protocols import Entry
from slotcache.testing import ManualClock
from slotcache.trouble import PAUSE, Trouble, shared
from tests.support.forks import in_child
from tests.support.shelf import ScopedShelf, Shelf, left
from tests.support.threads import Counted, Gate, spawn
from tests.support.worlds import BLOCKING, Worlds, one_world

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


class Stage:
    def __init__(self, world, shelf=None, **policy):
        self.world = world
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
        return self.world.service(
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


@pytest.fixture(params=Worlds.for_services)
def world(request, worlds):
    with closing(worlds.open(request.param)) as world:
        yield world


@pytest.fixture
def staged(world):
    return partial(Stage, world)


@pytest.fixture
def stage(staged):
    stage = staged()
    yield stage
    stage.service.close()


def read_together(stage, readers):
    """Let one reader lead a query, and all others board while it runs; return their readings."""
    gate = stage.shelf.during_load = Gate()
    leader = spawn(stage.read)
    gate.wait_for_somebody()
    boarded = Counted(stage.service._refill._flights.board)
    stage.service._refill._flights.board = boarded
    followers = [spawn(stage.read) for _ in range(readers - 1)]
    boarded.wait_for(readers - 1)
    gate.open()
    return [reader.result(20) for reader in (leader, *followers)]


# The breaker.


def test_a_cache_that_failed_is_left_alone(stage):
    stage.cache.down = True
    stage.read()
    assert stage.cache.calls == ["read"]

    readings = [stage.read() for _ in range(5)]

    assert stage.cache.calls == ["read"]
    assert {reading.source for reading in readings} == {Source.DIRECT}
    assert stage.service.health() == Health(cache=False, locks=True, undelivered=0)


def test_one_failure_is_logged_once(stage, caplog):
    stage.cache.down = True
    for _ in range(5):
        stage.read()

    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_cache_that_takes_longer_than_its_budget_is_left_alone(stage, caplog):
    stage.cache.slow = 0.3
    stage.read()
    stage.cache.calls.clear()

    assert stage.read().source is Source.DIRECT
    assert stage.cache.calls == []
    assert "could not be read within 0.25 s, it took 0.3" in caplog.text


def test_what_answers_again_is_asked_again(stage):
    stage.cache.down = True
    stage.read()
    stage.come_back()

    assert stage.read().source is Source.LOADED
    assert stage.read().source is Source.CACHED
    assert stage.service.health() == WELL


def test_what_answers_too_late_is_not_taken_for_well(stage):
    stage.cache.down = True
    stage.read()
    stage.cache.down = frozenset()
    guarded = stage.service._refill._cache

    stage.cache.slow = 0.3
    stage.world.run(guarded.attempt())
    assert not stage.service.health().cache
    stage.cache.slow = 0.0
    stage.world.run(guarded.attempt())
    assert stage.service.health() == WELL


def test_what_is_still_down_is_asked_by_nobody_but_the_recovery(stage):
    stage.cache.down = True
    stage.read()
    for _ in range(3):
        stage.half_a_second_later()
        stage.read()

    assert set(stage.cache.calls[1:]) <= {"look"}
    assert not stage.service.health().cache


def test_a_second_service_on_the_same_cache_shares_its_trouble(stage):
    other = stage.another_service()
    stage.cache.down = True
    stage.read()

    assert other.read().source is Source.DIRECT
    assert stage.cache.calls == ["read"]
    assert other.health() == stage.service.health()


def test_locks_that_failed_are_left_alone_and_the_cache_is_used(stage):
    stage.locks.down = True

    assert stage.read().source is Source.LOADED
    stage.memory.clear(KEY)  # somebody else's change
    assert stage.read().source is Source.LOADED
    assert stage.read().source is Source.CACHED
    assert stage.locks.calls == ["acquire"]
    assert stage.service.health() == Health(cache=True, locks=False, undelivered=0)


def test_locks_come_back(stage):
    stage.locks.down = True
    stage.read()
    trouble = stage.service._refill._locks.trouble
    mended = trouble.mend = Counted(trouble.mend)
    stage.locks.down = frozenset()
    stage.recover(mended)

    assert stage.service.health() == WELL


def test_a_lock_that_is_held_is_given_back_in_trouble_too(stage):
    stage.locks.down = frozenset({"acquire"})
    stage.shelf.during_load = lambda: stage.service._refill._locks.trouble.fail()
    stage.locks.down = frozenset()
    stage.read()

    assert stage.locks.calls == ["acquire", "release"]


# Undelivered clears (P1, P2): goals S20.


def test_a_clear_that_fails_is_said_and_this_process_is_not_shown_the_old_list(stage):
    stage.read()
    stage.cache.down = frozenset({"clear"})

    assert stage.sell_one() is False
    assert left(stage.read().availability) == 9
    assert stage.service.health() == Health(cache=False, locks=True, undelivered=1)


def test_a_clear_is_replayed_before_the_first_read_after(stage):
    stage.read()
    stage.cache.down = frozenset({"clear"})
    stage.sell_one()
    assert isinstance(stage.memory.read(KEY), Entry)
    stage.come_back()

    assert not isinstance(stage.memory.read(KEY), Entry)
    reading = stage.read()
    assert (left(reading.availability), reading.source) == (9, Source.LOADED)
    assert stage.service.health() == WELL


def test_a_cache_that_answers_reads_is_not_believed_while_it_owes_a_clear(stage):
    stage.read()
    stage.cache.down = frozenset({"clear"})
    stage.sell_one()
    for _ in range(3):
        stage.half_a_second_later()
        assert left(stage.read().availability) == 9
    assert stage.service.health().undelivered == 1


def test_a_clear_is_tried_in_trouble_too(stage):
    stage.cache.down = frozenset({"read"})
    stage.read()
    stage.cache.calls.clear()

    assert stage.sell_one() is True
    assert stage.cache.calls == ["clear"]


def test_a_later_clear_of_the_same_key_delivers_the_earlier(stage):
    stage.cache.down = frozenset({"clear"})
    stage.sell_one()
    stage.cache.down = frozenset()

    assert stage.sell_one() is True
    assert stage.service.health().undelivered == 0


def let_a_second_change_s_clear_fail_during_the_next(stage):
    """Its key was cleared before that change was."""
    clear = stage.memory.clear

    def clear_and_be_overtaken(key):
        stage.memory.clear = clear
        clear(key)
        stage.cache.down = frozenset({"clear"})
        assert stage.sell_one() is False
        stage.cache.down = frozenset()

    stage.memory.clear = clear_and_be_overtaken


def test_a_clear_does_not_deliver_one_that_failed_while_it_was_under_way(stage):
    let_a_second_change_s_clear_fail_during_the_next(stage)

    assert stage.sell_one() is True
    assert stage.trouble.undelivered() == [KEY]


def test_a_repeated_clear_does_not_deliver_one_that_failed_while_it_was_under_way(stage):
    stage.cache.down = frozenset({"clear"})
    stage.sell_one()
    stage.cache.down = frozenset()
    let_a_second_change_s_clear_fail_during_the_next(stage)
    stage.service.close()

    assert stage.trouble.undelivered() == [KEY]


class Interrupt(BaseException):
    pass


def interrupted(stage, *scope):
    """Have a clear interrupted on its way."""

    def clear(_key):
        del stage.memory.clear
        raise Interrupt

    stage.memory.clear = clear
    with pytest.raises(Interrupt):
        stage.service.clear_availability_cache(*scope)


def test_a_clear_that_was_interrupted_is_noted(stage):
    stage.read()
    stage.shelf.remaining = 9
    interrupted(stage)

    assert stage.service.health().undelivered == 1
    assert left(stage.read().availability) == 9


def test_all_keys_of_a_clear_that_was_interrupted_are_noted(staged):
    stage = staged(shelf=ScopedShelf())
    interrupted(stage, "JFK")

    assert stage.service.health().undelivered == 2
    stage.service.close()
    assert stage.service.health() == WELL


def test_a_clear_of_every_list_is_replayed_as_one(staged):
    stage = staged(shelf=ScopedShelf())
    for scope in ("JFK", "LGA"):
        stage.service.read(scope)
    stage.cache.down = frozenset({"clear_all"})
    assert stage.service.clear_availability_cache() is False
    stage.cache.calls.clear()
    stage.come_back()

    assert "clear_all" in stage.cache.calls
    assert stage.service.read("JFK").source is Source.LOADED
    stage.service.close()


def test_one_list_that_cannot_be_cleared_holds_back_no_other(staged):
    stage = staged(shelf=ScopedShelf())
    stubborn = "slots.availability:str:JFK"
    clear = stage.memory.clear

    def clear_others(key):
        if key == stubborn:
            raise Gone(key)
        clear(key)

    stage.cache.down = frozenset({"clear"})
    for scope in ("JFK", "LGA"):
        stage.service.clear_availability_cache(scope)
    stage.memory.clear = clear_others
    stage.cache.down = frozenset()
    stage.service.close()

    assert stage.trouble.undelivered() == [stubborn]
    stage.memory.clear = clear
    stage.service.close()


def test_a_cache_that_is_its_own_lock_provider_has_its_clears_repeated(world, stage):
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

    both = Both(clock=stage.clock)
    both.down = True
    service = world.service(stage.shelf, cache=both, clock=stage.clock)
    service.read()
    service.clear_availability_cache()
    both.down = False
    trouble = service._trouble
    mended = trouble.mend = Counted(trouble.mend)
    stage.recover(mended)

    assert service.health() == Health(cache=True, locks=False, undelivered=0)
    service.close()


def test_why_a_clear_fails_is_logged_once(stage, caplog):
    stage.cache.down = True
    for _ in range(3):
        stage.sell_one()

    reasons = [bool(record.exc_info) for record in caplog.records if record.levelno >= 30]
    assert reasons == [True, False, False]


# The notes themselves.

nothing_waits = one_world("plain state, which both worlds ask")


@nothing_waits
def test_a_note_goes_only_with_a_clear_that_was_sent_after_it_was_written():
    trouble = Trouble()
    ticket = trouble.ticket()
    trouble.note("k")
    trouble.taken("k", ticket)
    assert trouble.undelivered() == ["k"]

    trouble.taken("k", trouble.ticket())
    assert trouble.undelivered() == []
    assert not trouble.bypass


@nothing_waits
def test_the_note_of_a_second_writer_outlives_the_clear_that_was_under_way():
    trouble = Trouble()
    trouble.note("k")
    ticket = trouble.ticket()
    trouble.note("k")
    trouble.taken("k", ticket)
    assert trouble.undelivered() == ["k"]


@nothing_waits
def test_a_clear_of_one_key_stands_for_no_other():
    trouble = Trouble()
    trouble.note("k")
    trouble.taken("l", trouble.ticket())
    assert trouble.undelivered() == ["k"]


@nothing_waits
def test_a_clear_of_every_key_stands_for_each_that_was_noted_before():
    trouble = Trouble()
    trouble.note("k")
    trouble.note("l")
    ticket = trouble.ticket()
    trouble.note("l")
    trouble.taken(None, ticket)
    assert trouble.undelivered() == ["l"]


@nothing_waits
def test_a_note_of_every_key_goes_with_no_clear_of_one():
    trouble = Trouble()
    trouble.note("k")
    trouble.note(None)
    trouble.note("l")
    trouble.taken("k", trouble.ticket())
    assert trouble.undelivered() == [None]


@nothing_waits
def test_a_full_list_of_notes_becomes_one_clear_of_everything():
    trouble = Trouble()
    for number in range(1_001):
        trouble.note(f"key {number}")
    assert trouble.undelivered() == [None]
    trouble.taken(None, trouble.ticket())
    assert not trouble.bypass


@nothing_waits
def test_a_mended_backend_is_still_bypassed_while_it_owes_a_clear():
    trouble = Trouble()
    trouble.fail()
    trouble.note("k")
    trouble.mend()
    assert trouble.bypass


@nothing_waits
def test_one_at_a_time_sees_to_it_and_another_when_that_one_has_died():
    trouble = Trouble()
    alive = True
    assert not trouble.attend(), "there is nothing to see to"
    trouble.fail()
    assert trouble.attend()
    assert not trouble.attend(), "who came first is about to begin"
    trouble.attended_while(lambda: alive)
    assert not trouble.attend()

    alive = False
    assert trouble.attend()


@nothing_waits
def test_who_has_left_before_it_was_noted_that_they_came_is_not_waited_for():
    trouble = Trouble()
    trouble.fail()
    assert trouble.attend()
    trouble.give_up()
    trouble.attended_while(lambda: True)

    assert trouble.attend()


@nothing_waits
def test_who_asks_while_the_first_one_makes_it_is_given_the_same():
    backend, gate = SimpleNamespace(), Gate()

    def made_slowly():
        gate()
        return Trouble()

    first = spawn(lambda: shared(backend, "trouble", Trouble, made_slowly))
    gate.wait_for_somebody()
    second = spawn(lambda: shared(backend, "trouble", Trouble))
    with suppress(TimeoutError):
        second.result(0.05)
    gate.open()

    assert second.result(20) is first.result(20)


@pytest.mark.parametrize("world", Worlds.both, indirect=True)
def test_a_cache_that_can_bear_no_attribute_is_refused(world):
    class Bare(MemoryCache):
        __slots__ = ()

        def __setattr__(self, name, value):
            if name.startswith("_slotcache"):
                raise AttributeError(name)
            super().__setattr__(name, value)

    share = "share what they know: leave __slots__ out, or add '__dict__' to them"
    with pytest.raises(TypeError, match=f"^Bare can bear no attribute, by which .* {share}$"):
        world.service(Shelf(), cache=Bare())


# What this process last knew (P5).


def cut_off(stage):
    """Let the process be cut off from both the cache and the table."""
    stage.cache.down = True
    stage.shelf.failure = Gone("the table")


def test_what_was_last_known_stands_in_when_cache_and_table_fail(stage):
    stage.read()
    cut_off(stage)

    reading = stage.read()

    assert (reading.source, left(reading.availability)) == (Source.STALE, 10)


def test_what_others_filled_is_known_too_once_a_reader_has_waited_for_it(stage):
    # Somebody else holds the lock, and fills while this process waits.
    lock = stage.locks._part.acquire(f"{KEY}.lock", ttl=100)
    miss = stage.memory.read(KEY)
    gate = Gate()
    stage.clock.sleep = lambda _seconds: gate()
    reader = spawn(stage.read)
    gate.wait_for_somebody()
    stage.memory.fill(KEY, miss, stage.shelf.load(None).availability, ttl=10, stale_ttl=60)
    gate.open()
    assert reader.result(20).source is Source.CACHED
    stage.locks._part.release(lock)
    del stage.clock.sleep
    cut_off(stage)

    reading = stage.read()
    assert (reading.source, left(reading.availability)) == (Source.STALE, 10)


def test_a_follower_is_given_what_was_last_known_too(stage):
    stage.read()
    cut_off(stage)

    assert {reading.source for reading in read_together(stage, 4)} == {Source.STALE}


def test_readers_who_are_cut_off_share_the_query_that_fails(stage):
    stage.read()
    cut_off(stage)
    stage.read()
    loads = stage.shelf.loads

    assert {reading.source for reading in read_together(stage, 11)} == {Source.STALE}
    assert stage.shelf.loads == loads + 2


@pytest.mark.parametrize(("after", "served"), [(2.9, True), (3.0, False)])
def test_what_was_last_known_has_no_longer_life_than_it_had(staged, after, served):
    stage = staged(ttl=600, stale_ttl=2)
    stage.shelf.valid_for = 1.0
    stage.read()
    stage.clock.advance(after)
    cut_off(stage)

    if served:
        assert stage.read().source is Source.STALE
    else:
        with pytest.raises(Gone, match="the table"):
            stage.read()
    stage.service.close()


def test_what_was_found_lives_no_longer_than_it_did_in_the_cache(stage):
    miss = stage.memory.read(KEY)
    stage.clock.advance(4)
    stage.memory.fill(KEY, miss, stage.shelf.load(None).availability, ttl=10, stale_ttl=60)
    stage.world.run(stage.service._refill._look(KEY))
    stage.clock.advance(65.9)
    cut_off(stage)
    assert stage.read().source is Source.STALE

    stage.clock.advance(0.1)
    with pytest.raises(Gone, match="the table"):
        stage.read()


def test_what_was_found_ends_as_it_does_in_the_cache_whatever_the_policy_here(stage):
    rows = stage.shelf.load(None).availability
    stage.clock.advance(3)
    stage.memory.fill(KEY, stage.memory.read(KEY), rows, ttl=5, stale_ttl=60)
    stage.world.run(stage.service._refill._look(KEY))
    stage.clock.advance(64.9)
    cut_off(stage)
    assert stage.read().source is Source.STALE

    stage.clock.advance(0.1)
    with pytest.raises(Gone, match="the table"):
        stage.read()


@pytest.mark.parametrize(("after", "served"), [(69.9, True), (70.0, False)])
def test_what_was_last_known_stands_in_for_stale_ttl(stage, after, served):
    stage.read()
    stage.clock.advance(after)
    cut_off(stage)

    if served:
        assert stage.read().source is Source.STALE
    else:
        with pytest.raises(Gone, match="the table"):
            stage.read()


def test_what_this_process_cleared_is_not_known_any_more(stage):
    stage.read()
    cut_off(stage)
    stage.service.clear_availability_cache()

    with pytest.raises(Gone, match="the table"):
        stage.read()


@pytest.mark.parametrize(
    ("cleared", "known"), [(["JFK"], {"LAX"}), (["LAX"], {"JFK"}), ([], set())], ids=str
)
def test_what_was_cleared_is_not_known_any_more_and_the_rest_is(staged, cleared, known):
    stage = staged(ScopedShelf())
    for scope in ("JFK", "LAX"):
        stage.service.read(scope)
    cut_off(stage)
    stage.service.clear_availability_cache(*cleared)

    for scope in ("JFK", "LAX"):
        if scope in known:
            assert stage.service.read(scope).source is Source.STALE
        else:
            with pytest.raises(Gone, match="the table"):
                stage.service.read(scope)
    stage.service.close()


def test_what_a_service_on_the_same_cache_cleared_is_not_known_any_more(stage):
    stage.read()
    other = stage.another_service()
    cut_off(stage)
    other.clear_availability_cache()

    with pytest.raises(Gone, match="the table"):
        stage.read()
    other.close()


def test_what_was_found_while_a_clear_was_failing_is_not_known_after_it(stage):
    lock = stage.locks._part.acquire(f"{KEY}.lock", ttl=100)
    miss = stage.memory.read(KEY)
    old = stage.shelf.load(None).availability
    waiting, clearing = Gate(), Gate()
    stage.clock.sleep = lambda _seconds: waiting()
    reader = spawn(stage.read)
    waiting.wait_for_somebody()

    def clear(_key):
        clearing()
        raise Gone("clear")

    stage.memory.clear = clear
    writer = spawn(stage.service.clear_availability_cache)
    clearing.wait_for_somebody()
    stage.memory.fill(KEY, miss, old, ttl=10, stale_ttl=60)
    waiting.open()
    assert reader.result(20).source is Source.CACHED
    clearing.open()
    assert writer.result(20) is False
    del stage.memory.clear, stage.clock.sleep
    stage.locks._part.release(lock)
    cut_off(stage)

    with pytest.raises(Gone, match="the table"):
        stage.read()


def test_what_was_loaded_before_a_clear_is_not_known_after_it(stage):
    gate = stage.shelf.during_load = Gate()
    reader = spawn(stage.read)
    gate.wait_for_somebody()
    stage.service.clear_availability_cache()
    gate.open()
    reader.result(20)
    stage.shelf.during_load = lambda: None
    cut_off(stage)

    with pytest.raises(Gone, match="the table"):
        stage.read()


def test_stale_ttl_0_forbids_what_was_last_known(staged):
    stage = staged(stale_ttl=0)
    stage.read()
    cut_off(stage)

    with pytest.raises(Gone, match="the table"):
        stage.read()
    stage.service.close()


def test_what_was_last_known_is_not_used_while_the_cache_answers(stage):
    stage.read()
    stage.memory.clear(KEY)  # somebody else's change
    stage.shelf.failure = Gone("the table")

    with pytest.raises(Gone, match="the table"):
        stage.read()


# Stats.


def test_stats_count_how_reads_were_answered(stage):
    stage.read()
    stage.read()
    stage.service.get_availability()
    stage.service.clear_availability_cache()

    assert stage.service.stats() == Stats(hits=2, loads=1, clears=1)


def test_stats_count_queries_that_were_shared(stage):
    read_together(stage, 4)

    assert stage.service.stats() == Stats(loads=1, shared=3)


def test_stats_count_what_was_outrun_stale_direct_and_undelivered(stage):
    stage.shelf.during_load = lambda: stage.memory.clear(KEY)
    stage.read()
    stage.read()
    assert stage.service.stats() == Stats(loads=2, outrun=2)
    stage.shelf.during_load = lambda: None

    stage.read()
    cut_off(stage)
    stage.read()
    stage.read()
    stage.shelf.failure = None
    stage.read()
    stage.read()
    stage.service.clear_availability_cache()
    stage.service.clear_availability_cache()
    assert stage.service.stats() == Stats(
        loads=7, outrun=2, stale=2, direct=2, clears=2, undelivered=2
    )


def test_stats_count_as_hits_what_others_filled_meanwhile(stage):
    acquire = stage.locks._part.acquire

    def filled_meanwhile(name, *, ttl):
        rows = Shelf().load(None).availability
        stage.memory.fill(KEY, stage.memory.look(KEY), rows, ttl=10, stale_ttl=60)
        return acquire(name, ttl=ttl)

    stage.locks._part.acquire = filled_meanwhile
    stage.read()
    stage.memory.clear(KEY)
    stage.read()

    assert stage.service.stats() == Stats(hits=2)


# Closing, and forks.


def test_close_ends_the_recovery_after_one_more_attempt(stage):
    stage.cache.down = True
    stage.sell_one()
    stage.cache.down = frozenset()
    stage.service.close()

    assert stage.cache.calls[-2:] == ["clear", "look"]
    assert stage.service.health() == WELL


def test_a_closed_service_still_answers(stage):
    with stage.service as service:
        service.read()
    stage.cache.down = True

    assert service.read().source is Source.DIRECT
    assert service.read().source is Source.DIRECT


def test_a_service_that_was_closed_sees_to_later_trouble_again(stage):
    stage.service.close()
    stage.cache.down = True
    stage.read()
    stage.come_back()

    assert stage.service.health() == WELL


def test_a_recovery_that_could_not_begin_is_begun_by_the_next_reader(stage):
    spawn_it = stage.service._refill._cache._spawn

    def interrupted_spawn(_flow):
        raise Interrupt

    stage.cache.down = True
    stage.service._refill._cache._spawn = interrupted_spawn
    with pytest.raises(Interrupt):
        stage.read()
    stage.service._refill._cache._spawn = spawn_it
    stage.read()
    stage.come_back()

    assert stage.service.health() == WELL


def test_threads_that_run_out_make_no_read_fail(stage, caplog):
    def no_more_threads(_flow):
        raise RuntimeError("can't start new thread")

    stage.cache.down = True
    stage.service._refill._cache._spawn = no_more_threads

    assert stage.read().source is Source.DIRECT
    assert "nobody sees to" in caplog.text


def test_a_service_that_nobody_uses_any_more_leaves_no_thread_behind(staged, caplog):
    caplog.set_level(logging.CRITICAL)  # what is logged here keeps the service alive
    stage = staged()
    threads = []
    start = stage.service._refill._cache._spawn

    def spawn_and_tell(flow):
        threads.append(start(flow))
        return threads[-1]

    stage.service._refill._cache._spawn = spawn_and_tell
    stage.cache.down = True
    stage.read()
    clock = stage.clock
    del stage
    gc.collect()

    (is_alive,) = threads
    assert ends(is_alive, clock)


def test_a_service_that_nobody_uses_any_more_delivers_what_it_owes(staged, caplog):
    caplog.set_level(logging.CRITICAL)  # what is logged here keeps the service alive
    stage = staged()
    stage.cache.down = frozenset({"clear"})
    stage.sell_one()
    stage.service = None
    gc.collect()
    stage.come_back()

    assert stage.trouble.undelivered() == []


def test_another_service_takes_over_what_a_closed_one_leaves(stage):
    other = stage.another_service()
    stage.cache.down = True
    stage.sell_one()
    left_it = stage.trouble.give_up = Counted(stage.trouble.give_up)
    stage.service.close()
    left_it.wait_for(1)
    other.read()
    stage.come_back()

    assert other.health() == WELL
    other.close()


@one_world("a child does not go on with its parent's event loop")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_owes_what_its_parent_owed_and_delivers_it():
    stage = Stage(BLOCKING)
    stage.read()
    stage.cache.down = frozenset({"clear"})
    stage.sell_one()

    def deliver_it():
        assert left(stage.read().availability) == 9
        assert not stage.service.health().cache
        stage.come_back()
        assert stage.service.health() == WELL

    in_child(deliver_it)
    stage.service.close()
