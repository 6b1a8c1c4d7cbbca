"""Every branch of the read flow: past the lock, through trouble, and each ending of a flight."""

import contextvars
import logging
import traceback
from itertools import pairwise

import pytest

from slotcache import Availability, AvailabilityPolicy, SlotAvailabilityService, Source
from slotcache.flight import Answer, Flight
from slotcache.memory import MemoryCache
from slotcache.protocols import Generation, Lock, Miss
from slotcache.testing import ManualClock
from slotcache.worlds import InlineEvent, InlineLocks
from tests.support.shelf import NoLocks, ScopedShelf, Shelf, left
from tests.support.threads import Counted, Gate, spawn

KEY, LOCK = "slots.availability", "slots.availability.lock"


class World:
    """A service whose time, table, cache and lock a test holds in its hands."""

    def __init__(self, **policy):
        self.clock = ScriptedClock()
        self.shelf = Shelf()
        self.cache = MemoryCache(clock=self.clock)
        self.policy = AvailabilityPolicy(**policy)
        self.service = SlotAvailabilityService(
            self.shelf, cache=self.cache, policy=self.policy, clock=self.clock
        )

        self.flights = self.service._refill._flights

    def read(self):
        return self.service.read()

    def somebody_holds_the_lock(self):
        assert self.cache.locks().acquire(LOCK, ttl=1_000) is not None

    def somebody_fills(self, miss, remaining):
        filled = Availability.of([("slot", 10, remaining)])
        return self.cache.fill(KEY, miss, filled, ttl=10, stale_ttl=60)


class ScriptedClock(ManualClock):
    """Manual time; `during_sleep` happens while somebody sleeps."""

    during_sleep = staticmethod(lambda: None)

    def sleep(self, seconds):
        super().sleep(seconds)
        self.during_sleep()


# P5: no lock in time.


def test_no_lock_and_no_copy_is_a_direct_query_after_lock_timeout():
    world = World()
    world.somebody_holds_the_lock()
    began = world.clock.now()

    reading = world.read()

    assert reading.source is Source.DIRECT
    assert world.clock.now() - began == pytest.approx(5.0)


def test_a_direct_answer_is_not_stored():
    world = World()
    world.somebody_holds_the_lock()
    world.read()

    assert world.read().source is Source.DIRECT
    assert world.shelf.loads == 2


def test_no_lock_serves_the_expired_copy_and_says_so():
    world = World()
    world.read()
    world.clock.advance(10)
    world.shelf.remaining = 3
    world.somebody_holds_the_lock()

    reading = world.read()

    assert (reading.source, left(reading.availability)) == (Source.STALE, 10)
    assert reading.age == pytest.approx(15.0)
    assert world.shelf.loads == 1


@pytest.mark.parametrize(("after", "source"), [(69.99, Source.STALE), (70.0, Source.DIRECT)])
def test_an_expired_copy_may_be_served_for_stale_ttl(after, source):
    world = World(lock_timeout=0)
    world.read()
    world.clock.advance(after)
    world.somebody_holds_the_lock()

    assert world.read().source is source


def test_stale_ttl_0_forbids_stale_answers():
    world = World(stale_ttl=0, lock_timeout=0)
    world.read()
    world.clock.advance(10)
    world.somebody_holds_the_lock()

    assert world.read().source is Source.DIRECT


def test_lock_timeout_0_serves_the_copy_without_waiting():
    world = World(lock_timeout=0)
    world.read()
    world.clock.advance(10)
    world.somebody_holds_the_lock()
    began = world.clock.now()

    assert world.read().source is Source.STALE
    assert world.clock.now() == began


def test_a_cleared_copy_is_never_served_stale():
    world = World(lock_timeout=0)
    world.read()
    world.clock.advance(10)
    world.service.clear_availability_cache()
    world.somebody_holds_the_lock()

    assert world.read().source is Source.DIRECT


def test_a_copy_cleared_while_its_reader_waits_may_still_be_served_to_it():
    world = World(lock_timeout=1)
    world.read()
    world.clock.advance(10)
    world.somebody_holds_the_lock()
    world.clock.during_sleep = world.service.clear_availability_cache

    assert world.read().source is Source.STALE


# P5: the database fails.


def test_a_failing_database_leaves_the_expired_copy(caplog):
    world = World()
    world.read()
    world.clock.advance(10)
    world.shelf.failure = ConnectionError("the database is gone")

    with caplog.at_level(logging.WARNING, "slotcache"):
        assert world.read().source is Source.STALE
    assert "expired copy is served" in caplog.text


def test_a_failing_database_without_a_copy_is_the_database_s_error():
    world = World()
    world.shelf.failure = failure = ConnectionError("the database is gone")

    with pytest.raises(ConnectionError) as raised:
        world.read()
    assert raised.value is failure


def test_after_a_failure_the_lock_is_free_and_the_next_read_queries():
    world = World()
    world.shelf.failure = ConnectionError("the database is gone")
    with pytest.raises(ConnectionError):
        world.read()
    world.shelf.failure = None

    assert world.read().source is Source.LOADED


# Waiting for the value.


def test_a_waiter_takes_the_value_that_the_holder_of_the_lock_fills():
    world = World()
    world.somebody_holds_the_lock()
    theirs = world.cache.look(KEY)
    world.clock.during_sleep = lambda: world.somebody_fills(theirs, 7)

    reading = world.read()

    assert (reading.source, left(reading.availability)) == (Source.CACHED, 7)
    assert world.shelf.loads == 0


def test_a_waiter_takes_a_copy_that_a_clear_outran_if_it_covers_its_first_look():
    world = World()
    world.somebody_holds_the_lock()
    theirs = world.cache.look(KEY)

    def change_and_fill():
        world.service.clear_availability_cache()
        assert world.somebody_fills(theirs, 7) is None

    world.clock.during_sleep = change_and_fill

    assert left(world.read().availability) == 7


def test_a_reader_from_after_the_clear_does_not_take_that_copy():
    world = World()
    world.somebody_holds_the_lock()
    theirs = world.cache.look(KEY)
    world.service.clear_availability_cache()
    world.clock.during_sleep = lambda: world.somebody_fills(theirs, 7)

    assert world.read().source is Source.DIRECT


def test_a_waiter_does_not_take_a_covering_copy_whose_life_is_over():
    world = World()
    world.somebody_holds_the_lock()
    theirs = world.cache.look(KEY)
    world.clock.advance(9)

    def change_and_fill():
        world.service.clear_availability_cache()
        world.somebody_fills(theirs, 7)
        world.clock.advance(1)

    world.clock.during_sleep = change_and_fill

    assert world.read().source is Source.STALE


def test_pauses_grow_with_the_time_waited_from_half_a_millisecond_to_fifty():
    world = World()
    world.somebody_holds_the_lock()
    instants = [world.clock.now()]
    world.clock.during_sleep = lambda: instants.append(world.clock.now())

    world.read()

    pauses = [after - before for before, after in pairwise(instants)]
    assert pauses[0] <= 0.0011
    assert 0.020 <= max(pauses) <= 0.0501
    assert 100 < len(pauses) < 400


def test_pauses_are_jittered_so_that_processes_do_not_look_in_step():
    def pauses(jitter):
        world = World()
        world.service._refill._jitter = lambda: jitter
        world.somebody_holds_the_lock()
        instants = [world.clock.now()]
        world.clock.during_sleep = lambda: instants.append(world.clock.now())
        world.read()
        return [after - before for before, after in pairwise(instants)]

    assert pauses(0.0)[0] == pytest.approx(0.0005, rel=0.01)
    assert pauses(1.0)[0] == pytest.approx(0.001, rel=0.01)


def test_a_fill_is_told_the_policy_s_times(monkeypatch):
    world = World(ttl=3, stale_ttl=4)
    told = []
    fill = world.cache.fill

    def listening(*args, **times):
        told.append(times)
        return fill(*args, **times)

    monkeypatch.setattr(world.cache, "fill", listening)
    world.read()

    assert told == [{"ttl": 3.0, "stale_ttl": 4.0, "valid_for": None}]


def test_the_second_look_answers_when_somebody_was_faster():
    world = World()
    acquire = world.cache.locks().acquire
    theirs = world.cache.look(KEY)

    def filled_meanwhile(name, *, ttl):
        world.somebody_fills(theirs, 7)
        return acquire(name, ttl=ttl)

    world.cache.locks().acquire = filled_meanwhile
    reading = world.read()

    assert (reading.source, left(reading.availability)) == (Source.CACHED, 7)
    assert world.shelf.loads == 0


# The endings of a flight.


def follower_of(world):
    """Start a follower of a flight that stands in its load; return the gate, leader, follower."""
    gate = world.shelf.during_load = Gate()
    leader = spawn(world.read)
    gate.wait_for_somebody()
    boarded = world.flights.board = Counted(world.flights.board)
    follower = spawn(world.read)
    boarded.wait_for(1)
    world.shelf.during_load = lambda: None
    return gate, leader, follower


def follower_of_a_stranger(world):
    """Start a follower of a flight that the test leads; return both."""
    flight = Flight(InlineEvent(world.clock.event()), alive=lambda: True)
    world.flights.board(KEY, None, flight)
    boarded = world.flights.board = Counted(world.flights.board)
    follower = spawn(world.read)
    boarded.wait_for(1)
    return flight, follower


def test_followers_share_the_leader_s_answer():
    world = World()
    gate, leader, follower = follower_of(world)
    gate.open()

    assert leader.result(20).availability is follower.result(20).availability
    assert world.shelf.loads == 1


def test_followers_raise_the_leader_s_exception_itself():
    world = World()
    world.shelf.failure = failure = ConnectionError("the database is gone")
    gate, leader, follower = follower_of(world)
    gate.open()

    assert leader.exception(20) is failure
    assert follower.exception(20) is failure
    assert world.shelf.loads == 1


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_follower_leads_anew_when_the_leader_was_interrupted(ending):
    world = World()
    world.shelf.failure = ending()
    gate, leader, follower = follower_of(world)
    world.shelf.failure = None
    gate.open()

    assert isinstance(leader.exception(20), ending)
    assert follower.result(20).source is Source.LOADED
    assert world.shelf.loads == 2


def test_an_interrupt_right_after_boarding_leaves_no_flight(monkeypatch):
    world = World()
    flights = world.service._refill._flights
    board = flights.board

    def interrupted(*args):
        board(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(flights, "board", interrupted)
    with pytest.raises(KeyboardInterrupt):
        world.read()
    monkeypatch.undo()

    assert flights._flying == {}
    assert world.read().source is Source.LOADED


def test_an_interrupt_right_before_landing_leaves_no_flight(monkeypatch):
    world = World()
    land, cut_in = world.flights.land, []

    def interrupted(*args):
        if not cut_in:
            cut_in.append(True)
            raise KeyboardInterrupt
        land(*args)

    monkeypatch.setattr(world.flights, "land", interrupted)
    with pytest.raises(KeyboardInterrupt):
        world.read()

    assert world.flights._flying == {}
    assert world.read().source is Source.CACHED


def test_a_follower_leads_anew_within_a_second_when_the_leader_vanished():
    world = World(lock_timeout=1_000)
    vanished = Flight(InlineEvent(world.clock.event()), alive=lambda: False)
    assert world.flights.board(KEY, None, vanished) is vanished
    began = world.clock.now()

    assert world.read().source is Source.LOADED
    assert world.clock.now() - began <= 1.0
    assert world.flights._flying == {}


def test_a_follower_of_a_failing_load_serves_its_own_expired_copy():
    world = World()
    world.read()
    world.clock.advance(10)
    flight, follower = follower_of_a_stranger(world)
    world.flights.land(KEY, flight, ConnectionError("the database is gone"))

    assert follower.result(20).source is Source.STALE


def test_an_exception_that_many_followers_raise_does_not_grow():
    world = World()
    failure = ConnectionError("the database is gone")
    lengths = []
    for _ in range(5):
        flight, follower = follower_of_a_stranger(world)
        world.flights.land(KEY, flight, failure)
        raised = follower.exception(20)
        assert raised is failure
        lengths.append(len(traceback.extract_tb(raised.__traceback__)))

    assert len(set(lengths)) == 1


def test_a_stale_answer_is_passed_on_to_followers():
    world = World()
    world.read()
    entry = world.cache.read(KEY)
    world.clock.advance(10)
    flight, follower = follower_of_a_stranger(world)
    world.flights.land(KEY, flight, Answer.of(entry, Source.STALE))

    assert follower.result(20).source is Source.STALE
    assert world.shelf.loads == 1


def test_an_answer_whose_load_stood_for_an_hour_is_not_given_to_who_just_came():
    world = World()
    gate, leader, _ = follower_of(world)
    world.shelf.remaining = 3  # by somebody with psql: nothing is cleared
    world.clock.advance(3_600)
    boarded = world.flights.board = Counted(world.flights.board)
    late = spawn(world.read)
    boarded.wait_for(1)
    gate.open()

    assert left(leader.result(20).availability) == 10
    assert left(late.result(20).availability) == 3


def test_a_reader_whose_leader_was_interrupted_late_looks_before_it_goes_past_the_lock():
    world = World()
    flight, follower = follower_of_a_stranger(world)
    theirs = world.cache.look(KEY)
    world.somebody_holds_the_lock()
    world.clock.advance(6)
    world.somebody_fills(theirs, 7)
    world.flights.land(KEY, flight, None)

    assert (follower.result(20).source, world.shelf.loads) == (Source.CACHED, 0)


def test_who_joins_during_a_load_is_judged_by_the_look_right_before_it():
    world = World()
    lock = world.cache.locks().acquire(LOCK, ttl=1_000)

    def change_and_let_go():
        world.clock.during_sleep = lambda: None
        world.service.clear_availability_cache()
        world.cache.locks().release(lock)

    world.clock.during_sleep = change_and_let_go
    gate, leader, follower = follower_of(world)
    gate.open()

    assert leader.result(20).availability is follower.result(20).availability
    assert world.shelf.loads == 1


def test_a_follower_serves_the_expired_copy_after_lock_timeout():
    world = World(lock_timeout=0.5)
    world.read()
    world.clock.advance(10)
    gate, leader, follower = follower_of(world)

    assert follower.result(20).source is Source.STALE
    gate.open()
    assert leader.result(20).source is Source.LOADED


def test_a_follower_without_a_copy_stays_with_its_flight():
    world = World(lock_timeout=0.1)
    gate, leader, follower = follower_of(world)
    world.clock.advance(60)
    gate.open()

    assert follower.result(20).availability is leader.result(20).availability


def test_a_read_from_inside_its_own_load_raises():
    world = World()
    world.shelf.during_load = world.read

    with pytest.raises(RuntimeError, match="inside its own load"):
        world.read()
    world.shelf.during_load = lambda: None
    assert world.read().source is Source.LOADED


def test_a_read_from_inside_a_load_inside_its_own_load_raises():
    world, other = World(), World()
    world.shelf.during_load = other.read
    other.shelf.during_load = world.read

    with pytest.raises(RuntimeError, match="inside its own load"):
        world.read()


def test_a_context_copied_inside_a_load_may_read_when_that_is_over():
    world = World()
    copied = []
    world.shelf.during_load = lambda: copied.append(contextvars.copy_context())
    world.read()
    world.service.clear_availability_cache()

    assert copied[0].run(world.read).source is Source.LOADED


def test_a_load_may_read_another_service():
    world, other = World(), World()
    world.shelf.during_load = other.read

    assert world.read().source is Source.LOADED
    assert other.shelf.loads == 1


def test_a_repository_that_returns_something_else_is_told_what_to_return():
    world = World()
    world.shelf.load = lambda _scope: [("slot", 10, 10)]

    with pytest.raises(TypeError, match=r"load must return Loaded\(availability\), not \["):
        world.read()


# P4 and P11: trouble with the cache or the lock costs a query.


class Trouble(Exception):
    pass


def failing(*_args, **_options):
    raise Trouble("the cache is gone")


@pytest.mark.parametrize("operation", ["read", "fill"])
def test_a_failing_cache_costs_a_query(operation, monkeypatch, caplog):
    world = World()
    monkeypatch.setattr(world.cache, operation, failing)

    first, second = world.read(), world.read()

    assert left(first.availability) == left(second.availability) == 10
    assert world.shelf.loads == 2
    assert "the cache could not be" in caplog.text
    assert world.cache.locks().acquire(LOCK, ttl=1) is not None


@pytest.mark.parametrize(
    "answer",
    [
        None,
        5,
        {"slot": 10},
        Miss(),
        Miss("a generation"),  # type: ignore[arg-type]
        Miss(Generation(1, 0), None, "a copy"),  # type: ignore[arg-type]
    ],
)
def test_a_lying_cache_costs_a_query(answer, monkeypatch):
    world = World()
    monkeypatch.setattr(world.cache, "read", lambda _key: answer)

    assert world.read().source is Source.DIRECT
    assert left(world.service.get_availability()) == 10


def test_a_lock_provider_that_fails_costs_nothing_while_the_list_is_cached(monkeypatch):
    world = World()
    monkeypatch.setattr(world.cache.locks(), "acquire", failing)
    monkeypatch.setattr(world.cache.locks(), "release", failing)
    began = world.clock.now()

    assert world.read().source is Source.LOADED
    assert world.read().source is Source.CACHED
    assert world.clock.now() == began


@pytest.mark.parametrize("answer", [True, False, 1, "token", {}])
def test_a_lying_lock_provider_costs_nothing_while_the_list_is_cached(answer, monkeypatch):
    world = World()
    monkeypatch.setattr(world.cache.locks(), "acquire", lambda name, ttl: answer)

    assert world.read().source is Source.LOADED
    assert world.read().source is Source.CACHED


def test_a_release_that_fails_does_not_hide_the_answer(monkeypatch):
    world = World()
    monkeypatch.setattr(world.cache.locks(), "release", failing)

    assert world.read().source is Source.LOADED


def test_a_cache_that_fails_while_a_reader_waits_sends_it_to_the_database(monkeypatch):
    world = World()
    world.somebody_holds_the_lock()
    world.clock.during_sleep = lambda: monkeypatch.setattr(world.cache, "read", failing)
    began = world.clock.now()

    assert world.read().source is Source.DIRECT
    assert world.clock.now() - began < 0.01


def test_without_a_generation_one_query_runs_and_one_waits(monkeypatch):
    world = World()
    monkeypatch.setattr(world.cache, "read", failing)
    gate = world.shelf.during_load = Gate()
    boarded = world.flights.board = Counted(world.flights.board)
    first = spawn(world.read)
    gate.wait_for_somebody()
    others = [spawn(world.read) for _ in range(10)]
    boarded.wait_for(11)
    assert world.shelf.loads == 1
    world.shelf.remaining = 4
    gate.open()

    assert left(first.result(20).availability) == 10
    assert {left(other.result(20).availability) for other in others} == {4}
    assert world.shelf.loads == 2


def test_a_second_look_that_fails_waits_for_the_query_that_runs(monkeypatch):
    world = World()
    locks = NoLocks()
    world.service._refill._locks._locks = InlineLocks(locks)
    gate = world.shelf.during_load = Gate()
    first = spawn(world.read)
    gate.wait_for_somebody()
    world.service.clear_availability_cache()

    def granted_and_the_cache_gone(name, *, ttl):
        monkeypatch.setattr(world.cache, "read", failing)
        return Lock(name, "granted")

    locks.acquire = granted_and_the_cache_gone
    waits = world.flights.ahead = Counted(world.flights.ahead)
    second = spawn(world.read)
    waits.wait_for(1)
    assert world.shelf.loads == 1
    gate.open()

    assert second.result(20).source is Source.DIRECT
    assert first.result(20).source is Source.LOADED
    assert world.shelf.loads == 2


def test_a_clear_that_the_cache_does_not_take_is_said(monkeypatch, caplog):
    world = World()
    monkeypatch.setattr(world.cache, "clear", failing)

    assert world.service.clear_availability_cache() is False
    assert "could not be cleared" in caplog.text


def test_a_clear_of_which_one_part_failed_is_said(monkeypatch):
    service = SlotAvailabilityService(ScopedShelf(), cache=(cache := MemoryCache()))
    cleared = []

    def clear(key):
        cleared.append(key)
        if key == KEY:
            raise Trouble

    monkeypatch.setattr(cache, "clear", clear)

    assert service.clear_availability_cache("JFK") is False
    assert cleared == ["slots.availability:str:JFK", KEY]


def test_a_lock_granted_twice_costs_a_query(monkeypatch):
    world = World()
    monkeypatch.setattr(world.cache.locks(), "acquire", lambda name, ttl: Lock(name, "again"))
    other = SlotAvailabilityService(world.shelf, cache=world.cache, clock=world.clock)
    both = []

    def read_too():
        world.shelf.during_load = lambda: None
        both.append(other.read())

    world.shelf.during_load = read_too
    both.append(world.read())

    assert [left(reading.availability) for reading in both] == [10, 10]
    assert world.shelf.loads == 2
