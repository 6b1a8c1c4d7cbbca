"""Every branch of the read flow: past the lock, through trouble, and each ending of a flight."""

import contextvars
import logging
import traceback
from contextlib import closing
from functools import partial
from itertools import pairwise

import pytest

from slotcache import Availability, AvailabilityPolicy, Source
from slotcache.events import Stats
from slotcache.flight import Answer, Flight
from slotcache.memory import MemoryCache
from slotcache.protocols import Generation, Lock, Miss
from slotcache.testing import ManualClock
from tests.support.shelf import NoLocks, ScopedShelf, Shelf, left
from tests.support.threads import Counted, Gate, spawn
from tests.support.worlds import BLOCKING, Worlds, one_world

KEY, LOCK = "slots.availability", "slots.availability.lock"


class Stage:
    """A service whose time, table, cache and lock a test holds in its hands."""

    def __init__(self, world, *, locks=None, **policy):
        self.clock = ScriptedClock()
        self.shelf = Shelf()
        self.cache = MemoryCache(clock=self.clock)
        self.policy = AvailabilityPolicy(**policy)
        self.service = world.service(
            self.shelf, cache=self.cache, locks=locks, policy=self.policy, clock=self.clock
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


@pytest.fixture(params=Worlds.for_services)
def world(request, worlds):
    with closing(worlds.open(request.param)) as world:
        yield world


@pytest.fixture
def staged(world):
    return partial(Stage, world)


# P5: no lock in time.


def test_no_lock_and_no_copy_is_a_direct_query_after_lock_timeout(staged):
    stage = staged()
    stage.somebody_holds_the_lock()
    began = stage.clock.now()

    reading = stage.read()

    assert reading.source is Source.DIRECT
    assert stage.clock.now() - began == pytest.approx(5.0)


def test_a_direct_answer_is_not_stored(staged):
    stage = staged()
    stage.somebody_holds_the_lock()
    stage.read()

    assert stage.read().source is Source.DIRECT
    assert stage.shelf.loads == 2


def test_no_lock_serves_the_expired_copy_and_says_so(staged):
    stage = staged()
    stage.read()
    stage.clock.advance(10)
    stage.shelf.remaining = 3
    stage.somebody_holds_the_lock()

    reading = stage.read()

    assert (reading.source, left(reading.availability)) == (Source.STALE, 10)
    assert reading.age == pytest.approx(15.0)
    assert stage.shelf.loads == 1


@pytest.mark.parametrize(("after", "source"), [(69.99, Source.STALE), (70.0, Source.DIRECT)])
def test_an_expired_copy_may_be_served_for_stale_ttl(staged, after, source):
    stage = staged(lock_timeout=0)
    stage.read()
    stage.clock.advance(after)
    stage.somebody_holds_the_lock()

    assert stage.read().source is source


def test_stale_ttl_0_forbids_stale_answers(staged):
    stage = staged(stale_ttl=0, lock_timeout=0)
    stage.read()
    stage.clock.advance(10)
    stage.somebody_holds_the_lock()

    assert stage.read().source is Source.DIRECT


def test_lock_timeout_0_serves_the_copy_without_waiting(staged):
    stage = staged(lock_timeout=0)
    stage.read()
    stage.clock.advance(10)
    stage.somebody_holds_the_lock()
    began = stage.clock.now()

    assert stage.read().source is Source.STALE
    assert stage.clock.now() == began


def test_a_cleared_copy_is_never_served_stale(staged):
    stage = staged(lock_timeout=0)
    stage.read()
    stage.clock.advance(10)
    stage.service.clear_availability_cache()
    stage.somebody_holds_the_lock()

    assert stage.read().source is Source.DIRECT


def test_a_copy_cleared_while_its_reader_waits_may_still_be_served_to_it(staged):
    stage = staged(lock_timeout=1)
    stage.read()
    stage.clock.advance(10)
    stage.somebody_holds_the_lock()
    stage.clock.during_sleep = stage.service.clear_availability_cache

    assert stage.read().source is Source.STALE


# P5: the database fails.


def test_a_failing_database_leaves_the_expired_copy(staged, caplog):
    stage = staged()
    stage.read()
    stage.clock.advance(10)
    stage.shelf.failure = ConnectionError("the database is gone")

    with caplog.at_level(logging.WARNING, "slotcache"):
        assert stage.read().source is Source.STALE
    (record,) = caplog.records
    assert record.message == f"the load of '{KEY}' failed; its expired copy is served"
    assert isinstance(record.exc_info[1], ConnectionError)


def test_a_failing_database_without_a_copy_is_the_database_s_error(staged):
    stage = staged()
    stage.shelf.failure = failure = ConnectionError("the database is gone")

    with pytest.raises(ConnectionError) as raised:
        stage.read()
    assert raised.value is failure


def test_after_a_failure_the_lock_is_free_and_the_next_read_queries(staged):
    stage = staged()
    stage.shelf.failure = ConnectionError("the database is gone")
    with pytest.raises(ConnectionError):
        stage.read()
    stage.shelf.failure = None

    assert stage.read().source is Source.LOADED


# Waiting for the value.


def test_a_waiter_takes_the_value_that_the_holder_of_the_lock_fills(staged):
    stage = staged()
    stage.somebody_holds_the_lock()
    theirs = stage.cache.look(KEY)
    stage.clock.during_sleep = lambda: stage.somebody_fills(theirs, 7)

    reading = stage.read()

    assert (reading.source, left(reading.availability)) == (Source.CACHED, 7)
    assert stage.shelf.loads == 0


def test_a_waiter_takes_a_copy_that_a_clear_outran_if_it_covers_its_first_look(staged):
    stage = staged()
    stage.somebody_holds_the_lock()
    theirs = stage.cache.look(KEY)

    def change_and_fill():
        stage.service.clear_availability_cache()
        assert stage.somebody_fills(theirs, 7) is None

    stage.clock.during_sleep = change_and_fill
    began = stage.clock.now()

    reading = stage.read()

    assert (reading.source, left(reading.availability)) == (Source.CACHED, 7)
    assert stage.clock.now() - began < 0.01


def test_a_reader_from_after_the_clear_does_not_take_that_copy(staged):
    stage = staged()
    stage.somebody_holds_the_lock()
    theirs = stage.cache.look(KEY)
    stage.service.clear_availability_cache()
    stage.clock.during_sleep = lambda: stage.somebody_fills(theirs, 7)

    assert stage.read().source is Source.DIRECT


def test_a_waiter_does_not_take_a_covering_copy_whose_life_is_over(staged):
    stage = staged()
    stage.somebody_holds_the_lock()
    theirs = stage.cache.look(KEY)
    stage.clock.advance(9)

    def change_and_fill():
        stage.service.clear_availability_cache()
        stage.somebody_fills(theirs, 7)
        stage.clock.advance(1)

    stage.clock.during_sleep = change_and_fill

    assert stage.read().source is Source.STALE


def test_pauses_grow_with_the_time_waited_from_half_a_millisecond_to_fifty(staged):
    stage = staged()
    stage.somebody_holds_the_lock()
    instants = [stage.clock.now()]
    stage.clock.during_sleep = lambda: instants.append(stage.clock.now())

    stage.read()

    pauses = [after - before for before, after in pairwise(instants)]
    assert pauses[0] <= 0.0011
    assert 0.020 <= max(pauses) <= 0.0501
    assert 100 < len(pauses) < 400
    waited = [before - instants[0] for before in instants]
    assert all(pause <= 0.001 + before / 10 for before, pause in zip(waited, pauses, strict=False))


def test_pauses_are_jittered_so_that_processes_do_not_look_in_step(staged):
    def pauses(jitter):
        stage = staged()
        stage.service._refill._jitter = lambda: jitter
        stage.somebody_holds_the_lock()
        instants = [stage.clock.now()]
        stage.clock.during_sleep = lambda: instants.append(stage.clock.now())
        stage.read()
        return [after - before for before, after in pairwise(instants)]

    assert pauses(0.0)[0] == pytest.approx(0.0005, rel=0.01)
    assert pauses(1.0)[0] == pytest.approx(0.001, rel=0.01)


def test_a_fill_is_told_the_policy_s_times(staged, monkeypatch):
    stage = staged(ttl=3, stale_ttl=4)
    told = []
    fill = stage.cache.fill

    def listening(*args, **times):
        told.append(times)
        return fill(*args, **times)

    monkeypatch.setattr(stage.cache, "fill", listening)
    stage.read()

    assert told == [{"ttl": 3.0, "stale_ttl": 4.0, "valid_for": None}]


def test_the_second_look_answers_when_somebody_was_faster(staged):
    stage = staged()
    acquire = stage.cache.locks().acquire
    theirs = stage.cache.look(KEY)

    def filled_meanwhile(name, *, ttl):
        stage.somebody_fills(theirs, 7)
        return acquire(name, ttl=ttl)

    stage.cache.locks().acquire = filled_meanwhile
    reading = stage.read()

    assert (reading.source, left(reading.availability)) == (Source.CACHED, 7)
    assert stage.shelf.loads == 0


# The endings of a flight.


def follower_of(stage):
    """Start a follower of a flight that stands in its load; return the gate, leader, follower."""
    gate = stage.shelf.during_load = Gate()
    leader = spawn(stage.read)
    gate.wait_for_somebody()
    boarded = stage.flights.board = Counted(stage.flights.board)
    follower = spawn(stage.read)
    boarded.wait_for(1)
    stage.shelf.during_load = lambda: None
    return gate, leader, follower


def follower_of_a_stranger(stage):
    """Start a follower of a flight that the test leads; return both."""
    flight = Flight(stage.service._refill._clock.event(), alive=lambda: True)
    stage.flights.board(KEY, None, flight)
    boarded = stage.flights.board = Counted(stage.flights.board)
    follower = spawn(stage.read)
    boarded.wait_for(1)
    return flight, follower


def test_followers_share_the_leader_s_answer(staged):
    stage = staged()
    gate, leader, follower = follower_of(stage)
    gate.open()

    assert leader.result(20).availability is follower.result(20).availability
    assert stage.shelf.loads == 1


def test_followers_raise_the_leader_s_exception_itself(staged):
    stage = staged()
    stage.shelf.failure = failure = ConnectionError("the database is gone")
    gate, leader, follower = follower_of(stage)
    gate.open()

    assert leader.exception(20) is failure
    assert follower.exception(20) is failure
    assert stage.shelf.loads == 1


def test_a_follower_leads_anew_when_the_leader_was_interrupted(world, staged):
    check_who_leads_after(world.interrupt, staged())


@one_world("on asyncio they end the event loop")
@pytest.mark.parametrize("ending", [SystemExit, GeneratorExit])
def test_a_follower_leads_anew_when_the_leader_has_ended(ending):
    check_who_leads_after(ending, Stage(BLOCKING))


def check_who_leads_after(ending, stage):
    stage.shelf.failure = ending()
    gate, leader, follower = follower_of(stage)
    stage.shelf.failure = None
    gate.open()

    assert isinstance(leader.exception(20), ending)
    assert follower.result(20).source is Source.LOADED
    assert stage.shelf.loads == 2


def test_an_interrupt_right_after_boarding_leaves_no_flight(world, staged, monkeypatch):
    stage = staged()
    flights = stage.service._refill._flights
    board = flights.board

    def interrupted(*args):
        board(*args)
        raise world.interrupt

    monkeypatch.setattr(flights, "board", interrupted)
    with pytest.raises(world.interrupt):
        stage.read()
    monkeypatch.undo()

    assert flights._flying == {}
    assert stage.read().source is Source.LOADED


def test_an_interrupt_right_before_landing_leaves_no_flight(world, staged, monkeypatch):
    stage = staged()
    land, cut_in = stage.flights.land, []

    def interrupted(*args):
        if not cut_in:
            cut_in.append(True)
            raise world.interrupt
        land(*args)

    monkeypatch.setattr(stage.flights, "land", interrupted)
    with pytest.raises(world.interrupt):
        stage.read()

    assert stage.flights._flying == {}
    assert stage.read().source is Source.CACHED


def test_a_follower_leads_anew_within_a_second_when_the_leader_vanished(staged):
    stage = staged(lock_timeout=1_000)
    vanished = Flight(stage.service._refill._clock.event(), alive=lambda: False)
    assert stage.flights.board(KEY, None, vanished) is vanished
    began = stage.clock.now()

    assert stage.read().source is Source.LOADED
    assert stage.clock.now() - began <= 1.0
    assert stage.flights._flying == {}


def test_past_the_cache_a_query_whose_leader_vanished_is_not_waited_for_twice(staged, monkeypatch):
    stage = staged()
    vanished = Flight(stage.service._refill._clock.event(), alive=lambda: False)
    stage.flights.board(KEY, None, vanished)
    stage.flights.begin(vanished, None)
    monkeypatch.setattr(stage.cache, "read", failing)
    began = stage.clock.now()

    assert stage.read().source is Source.DIRECT
    assert stage.clock.now() - began <= 1.0
    assert stage.flights._flying == {}


def test_a_follower_of_a_failing_load_serves_its_own_expired_copy(staged):
    stage = staged()
    stage.read()
    stage.clock.advance(10)
    flight, follower = follower_of_a_stranger(stage)
    stage.flights.land(KEY, flight, ConnectionError("the database is gone"))

    assert follower.result(20).source is Source.STALE


def test_an_exception_that_many_followers_raise_does_not_grow(staged):
    stage = staged()
    failure = ConnectionError("the database is gone")
    lengths = []
    for _ in range(5):
        flight, follower = follower_of_a_stranger(stage)
        stage.flights.land(KEY, flight, failure)
        raised = follower.exception(20)
        assert raised is failure
        lengths.append(len(traceback.extract_tb(raised.__traceback__)))

    assert len(set(lengths)) == 1


def test_a_stale_answer_is_passed_on_to_followers(staged):
    stage = staged()
    stage.read()
    entry = stage.cache.read(KEY)
    stage.clock.advance(10)
    flight, follower = follower_of_a_stranger(stage)
    stage.flights.land(KEY, flight, Answer.of(entry, Source.STALE))

    assert follower.result(20).source is Source.STALE
    assert stage.shelf.loads == 1


def test_an_answer_whose_load_stood_for_an_hour_is_not_given_to_who_just_came(staged):
    stage = staged()
    gate, leader, _ = follower_of(stage)
    stage.shelf.remaining = 3  # by somebody with psql: nothing is cleared
    stage.clock.advance(3_600)
    boarded = stage.flights.board = Counted(stage.flights.board)
    late = spawn(stage.read)
    boarded.wait_for(1)
    gate.open()

    assert left(leader.result(20).availability) == 10
    assert left(late.result(20).availability) == 3


def test_an_old_answer_is_no_reason_to_serve_an_expired_copy(staged):
    stage = staged(lock_timeout=1_000, stale_ttl=1_000)
    stage.read()
    stage.clock.advance(10)
    flight, follower = follower_of_a_stranger(stage)
    old = Answer(Availability.of([("slot", 10, 7)]), Source.LOADED, since=stage.clock.now() - 10)
    stage.flights.land(KEY, flight, old)

    assert follower.result(20).source is Source.LOADED


def test_a_reader_whose_leader_was_interrupted_late_looks_before_it_goes_past_the_lock(staged):
    stage = staged()
    flight, follower = follower_of_a_stranger(stage)
    theirs = stage.cache.look(KEY)
    stage.somebody_holds_the_lock()
    stage.clock.advance(6)
    stage.somebody_fills(theirs, 7)
    stage.flights.land(KEY, flight, None)

    assert (follower.result(20).source, stage.shelf.loads) == (Source.CACHED, 0)


def test_who_joins_during_a_load_is_judged_by_the_look_right_before_it(staged):
    stage = staged()
    lock = stage.cache.locks().acquire(LOCK, ttl=1_000)

    def change_and_let_go():
        stage.clock.during_sleep = lambda: None
        stage.service.clear_availability_cache()
        stage.cache.locks().release(lock)

    stage.clock.during_sleep = change_and_let_go
    gate, leader, follower = follower_of(stage)
    gate.open()

    assert leader.result(20).availability is follower.result(20).availability
    assert stage.shelf.loads == 1


def test_a_follower_serves_the_expired_copy_after_lock_timeout(staged):
    stage = staged(lock_timeout=0.5)
    stage.read()
    stage.clock.advance(10)
    gate, leader, follower = follower_of(stage)

    assert follower.result(20).source is Source.STALE
    gate.open()
    assert leader.result(20).source is Source.LOADED


@pytest.mark.parametrize("lock_timeout", [0.0, 0.25])
def test_a_follower_waits_no_longer_and_no_shorter_than_lock_timeout(staged, lock_timeout):
    stage = staged(lock_timeout=lock_timeout)
    stage.read()
    stage.clock.advance(10)
    _, follower = follower_of_a_stranger(stage)
    began = stage.clock.now()

    assert follower.result(20).source is Source.STALE
    assert stage.clock.now() - began == pytest.approx(lock_timeout)


def test_a_follower_with_an_expired_copy_is_given_what_its_leader_loads_in_time(staged):
    stage = staged(lock_timeout=1_000)
    stage.read()
    stage.clock.advance(10)
    gate, _, follower = follower_of(stage)
    gate.open()

    assert follower.result(20).source is Source.LOADED


def test_a_value_that_the_leader_found_is_shared_with_a_follower_whom_it_covers(staged):
    stage = staged(lock_timeout=1_000)
    seen = stage.cache.look(KEY)
    flight, follower = follower_of_a_stranger(stage)
    found = Answer.of(stage.somebody_fills(seen, 7), Source.CACHED)
    stage.flights.land(KEY, flight, found)

    assert left(follower.result(20).availability) == 7
    assert stage.service.stats() == Stats(shared=1)


def test_a_follower_without_a_copy_stays_with_its_flight(staged):
    stage = staged(lock_timeout=0.1)
    gate, leader, follower = follower_of(stage)
    stage.clock.advance(60)
    gate.open()

    assert follower.result(20).availability is leader.result(20).availability


def test_a_read_from_inside_its_own_load_raises(staged):
    stage = staged()
    stage.shelf.during_load = stage.read
    advice = "let the load read the table, and nothing else"
    told = f"^a read of '{KEY}' from inside its own load would wait for itself: {advice}$"

    with pytest.raises(RuntimeError, match=told):
        stage.read()
    stage.shelf.during_load = lambda: None
    assert stage.read().source is Source.LOADED


def test_a_read_from_inside_a_load_inside_its_own_load_raises(staged):
    stage, other = staged(), staged()
    stage.shelf.during_load = other.read
    other.shelf.during_load = stage.read

    with pytest.raises(RuntimeError, match="inside its own load"):
        stage.read()


def test_a_context_copied_inside_a_load_may_read_when_that_is_over(staged):
    stage = staged()
    copied = []
    stage.shelf.during_load = lambda: copied.append(contextvars.copy_context())
    stage.read()
    stage.service.clear_availability_cache()

    assert copied[0].run(stage.read).source is Source.LOADED


def test_a_load_may_read_another_service(staged):
    stage, other = staged(), staged()
    stage.shelf.during_load = other.read

    assert stage.read().source is Source.LOADED
    assert other.shelf.loads == 1


def test_a_repository_that_returns_something_else_is_told_what_to_return(staged):
    stage = staged()
    stage.shelf.load = lambda _scope: [("slot", 10, 10)]

    with pytest.raises(TypeError, match=r"load must return Loaded\(availability\), not \["):
        stage.read()


# P4 and P11: trouble with the cache or the lock costs a query.


class Trouble(Exception):
    pass


def failing(*_args, **_options):
    raise Trouble("the cache is gone")


@pytest.mark.parametrize("operation", ["read", "fill"])
def test_a_failing_cache_costs_a_query(staged, operation, monkeypatch, caplog):
    stage = staged()
    monkeypatch.setattr(stage.cache, operation, failing)

    first, second = stage.read(), stage.read()

    assert left(first.availability) == left(second.availability) == 10
    assert stage.shelf.loads == 2
    assert caplog.messages[0].startswith("the cache could not be ")
    assert caplog.messages[0].endswith(f": '{KEY}'")
    assert stage.cache.locks().acquire(LOCK, ttl=1) is not None


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
def test_a_lying_cache_costs_a_query(staged, answer, monkeypatch):
    stage = staged()
    monkeypatch.setattr(stage.cache, "read", lambda _key: answer)

    assert stage.read().source is Source.DIRECT
    assert left(stage.service.get_availability()) == 10


def test_a_lock_provider_that_fails_costs_nothing_while_the_list_is_cached(staged, monkeypatch):
    stage = staged()
    monkeypatch.setattr(stage.cache.locks(), "acquire", failing)
    monkeypatch.setattr(stage.cache.locks(), "release", failing)
    began = stage.clock.now()

    assert stage.read().source is Source.LOADED
    assert stage.read().source is Source.CACHED
    assert stage.clock.now() == began


@pytest.mark.parametrize("answer", [True, False, 1, "token", {}])
def test_a_lying_lock_provider_costs_nothing_while_the_list_is_cached(staged, answer, monkeypatch):
    stage = staged()
    monkeypatch.setattr(stage.cache.locks(), "acquire", lambda name, ttl: answer)

    assert stage.read().source is Source.LOADED
    assert stage.read().source is Source.CACHED


def test_a_release_that_fails_does_not_hide_the_answer(staged, monkeypatch):
    stage = staged()
    monkeypatch.setattr(stage.cache.locks(), "release", failing)

    assert stage.read().source is Source.LOADED


def test_a_cache_that_fails_while_a_reader_waits_sends_it_to_the_database(staged, monkeypatch):
    stage = staged()
    stage.somebody_holds_the_lock()
    stage.clock.during_sleep = lambda: monkeypatch.setattr(stage.cache, "read", failing)
    began = stage.clock.now()

    assert stage.read().source is Source.DIRECT
    assert stage.clock.now() - began < 0.01


def test_without_a_generation_one_query_runs_and_one_waits(staged, monkeypatch):
    stage = staged()
    monkeypatch.setattr(stage.cache, "read", failing)
    gate = stage.shelf.during_load = Gate()
    boarded = stage.flights.board = Counted(stage.flights.board)
    first = spawn(stage.read)
    gate.wait_for_somebody()
    others = [spawn(stage.read) for _ in range(10)]
    boarded.wait_for(11)
    assert stage.shelf.loads == 1
    stage.shelf.remaining = 4
    gate.open()

    assert left(first.result(20).availability) == 10
    assert {left(other.result(20).availability) for other in others} == {4}
    assert stage.shelf.loads == 2


def test_a_second_look_that_fails_waits_for_the_query_that_runs(staged, monkeypatch):
    locks = NoLocks()
    stage = staged(locks=locks)
    gate = stage.shelf.during_load = Gate()
    first = spawn(stage.read)
    gate.wait_for_somebody()
    stage.service.clear_availability_cache()

    def granted_and_the_cache_gone(name, *, ttl):
        monkeypatch.setattr(stage.cache, "read", failing)
        return Lock(name, "granted")

    locks.acquire = granted_and_the_cache_gone
    waits = stage.flights.ahead = Counted(stage.flights.ahead)
    second = spawn(stage.read)
    waits.wait_for(1)
    assert stage.shelf.loads == 1
    gate.open()

    assert second.result(20).source is Source.DIRECT
    assert first.result(20).source is Source.LOADED
    assert stage.shelf.loads == 2


def test_a_clear_that_the_cache_does_not_take_is_said(staged, monkeypatch, caplog):
    stage = staged()
    monkeypatch.setattr(stage.cache, "clear", failing)

    assert stage.service.clear_availability_cache() is False
    assert "could not be cleared" in caplog.text


def test_a_clear_of_which_one_part_failed_is_said(world, monkeypatch):
    service = world.service(ScopedShelf(), cache=(cache := MemoryCache()))
    cleared = []

    def clear(key):
        cleared.append(key)
        if key == KEY:
            raise Trouble

    monkeypatch.setattr(cache, "clear", clear)

    assert service.clear_availability_cache("JFK") is False
    assert cleared == ["slots.availability:str:JFK", KEY]


def test_a_lock_granted_twice_costs_a_query(world, staged, monkeypatch):
    stage = staged()
    monkeypatch.setattr(stage.cache.locks(), "acquire", lambda name, ttl: Lock(name, "again"))
    other = world.service(stage.shelf, cache=stage.cache, clock=stage.clock)
    both = []

    def read_too():
        stage.shelf.during_load = lambda: None
        both.append(other.read())

    stage.shelf.during_load = read_too
    both.append(stage.read())

    assert [left(reading.availability) for reading in both] == [10, 10]
    assert stage.shelf.loads == 2
