"""The shipped read, through every schedule: P1 to P5 and P11 on the code itself.

`explore` is complete: whatever two readers and a writer can do to each other in these worlds,
it was done. The broken twins show that it would have been seen.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from slotcache.availability import Source
from slotcache.flight import Answer, Flight, Flights
from slotcache.memory import MemoryCache
from slotcache.protocols import Entry, Miss
from slotcache.testing import FAULTS, Exploration, Scenario, Violation, explore, sample
from slotcache.testing.world import World
from tests.support.shelf import NoLocks


class PlainStore(MemoryCache):
    """The textbook: what was loaded is stored, whatever was cleared meanwhile."""

    def fill(self, key: str, miss: Miss, *args: Any, **times: Any) -> Entry | None:
        current = dataclasses.replace(self.look(key), look=miss.look)
        return super().fill(key, current, *args, **times)


class NoEpoch(MemoryCache):
    """Generations are plain counters: a record that comes back counts from 0 again."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "epoch": lambda: 0})


def believe_a_cache_that_owes_a_clear(service: Any) -> None:
    service._trouble.note = lambda _key: None


def drop_a_note_with_any_answer(service: Any) -> None:
    trouble = service._trouble
    taken = trouble.taken
    trouble.taken = lambda key, _ticket: taken(key, trouble.ticket())


class SharedByKey(Flights):
    """Single flight as usual: whoever asks for the same key joins."""

    def board(self, key: str, seen: object, own: Flight) -> Flight:
        with self._mutex:
            return self._flying.setdefault(key, [own])[0]


def share_flights_by_key(service: Any) -> None:
    service._refill._flights = SharedByKey()


def take_any_kept_copy(service: Any) -> None:
    def kept(_read: object, found: Entry | Miss) -> Answer | None:
        copy = found if isinstance(found, Entry) else found.copy
        if copy is None:
            return None
        return dataclasses.replace(Answer.of(copy, Source.CACHED), found=None)

    service._refill._kept = kept


@pytest.fixture(autouse=True)
def no_logs() -> Iterator[None]:
    """A failing call is logged, and here calls fail by the hundred thousand."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str, Exploration], None]:
    """Have the end of the test run say what was explored."""

    def tell(title: str, explored: Exploration) -> None:
        how = "all" if explored.complete else "some"
        counts = f"{how} {explored.schedules:,} schedules, {explored.states:,} states"
        record_property("explored", f"{title}: {counts}")

    return tell


ONE_FAULT_OF = {
    "none": frozenset[str](),
    "an actor crashes": frozenset({"crash"}),
    "the record is evicted": frozenset({"evict"}),
    "a ttl passes": frozenset({"a ttl passes"}),
    "the lock is lost": frozenset({"lose lock"}),
    "the lock or a query fails": frozenset({"fail lock", "fail query", "fail release"}),
}
A_CALL_OF_THE_CACHE_FAILS = {
    "a clear fails": frozenset({"fail clear"}),
    "a fill fails": frozenset({"fail fill"}),
    "a look fails": frozenset({"fail look"}),
}
processes = pytest.mark.parametrize("services", [1, 2], ids=["one process", "two processes"])


def test_every_fault_is_tried():
    tried = [*ONE_FAULT_OF.values(), *A_CALL_OF_THE_CACHE_FAILS.values()]
    assert frozenset[str]().union(*tried) == FAULTS


@processes
@pytest.mark.parametrize("fault", ONE_FAULT_OF)
def test_no_schedule_of_two_readers_and_a_writer_breaks_a_promise(services, fault, report):
    explored = explore(Scenario(services=services, faults=ONE_FAULT_OF[fault]))

    report(f"2 readers, 1 writer, {services} services, fault: {fault}", explored)
    assert explored.counterexample is None, explored.counterexample
    assert explored.complete


@pytest.mark.parametrize("fault", A_CALL_OF_THE_CACHE_FAILS)
def test_a_cache_that_fails_and_comes_back_breaks_no_promise(fault, report):
    explored = explore(Scenario(faults=A_CALL_OF_THE_CACHE_FAILS[fault]))

    report(f"2 readers, 1 writer, 1 services, fault: {fault}", explored)
    assert explored.counterexample is None, explored.counterexample
    assert explored.complete


@pytest.mark.parametrize("fault", A_CALL_OF_THE_CACHE_FAILS)
@pytest.mark.parametrize("writers", [1, 2])
def test_a_cache_that_fails_one_of_two_processes_breaks_no_promise(fault, writers, report):
    world = Scenario(services=2, writers=writers, faults=A_CALL_OF_THE_CACHE_FAILS[fault])
    explored = sample(world, runs=1_000, seed=2013)

    report(f"2 readers, {writers} writers, 2 services, fault: {fault}", explored)
    assert explored.counterexample is None, explored.counterexample
    assert explored.states > 1_000


def test_three_readers_of_a_cold_list_cause_one_query(report):
    explored = explore(Scenario(readers=3, writers=0))

    report("3 readers, 1 services", explored)
    assert explored.counterexample is None, explored.counterexample
    assert explored.complete


@processes
def test_without_a_working_lock_no_schedule_shows_an_old_list(services, report):
    explored = explore(Scenario(services=services, locks=NoLocks, exclusive=False))

    report(f"2 readers, 1 writer, {services} services, no lock", explored)
    assert explored.counterexample is None, explored.counterexample
    assert explored.complete


def test_the_blocking_face_keeps_the_promises_in_threads(report):
    explored = sample(Scenario(blocking=True, services=2), runs=300, seed=2013)

    report("blocking face, 2 readers, 1 writer, 2 services", explored)
    assert explored.counterexample is None, explored.counterexample
    assert explored.states > 1_000


TWINS = {
    "plain store": Scenario(cache=PlainStore),
    "plain store in two processes": Scenario(cache=PlainStore, services=2),
    "flights shared by key": Scenario(prepare=share_flights_by_key),
    "no epoch": Scenario(cache=NoEpoch, faults=frozenset({"evict"})),
    "kept copy without the covers check": Scenario(prepare=take_any_kept_copy),
    "clear before commit": Scenario(clear_first=True),
    "a cache that owes a clear is believed": Scenario(
        faults=frozenset({"fail clear"}), prepare=believe_a_cache_that_owes_a_clear
    ),
    "a note goes with any answer": Scenario(
        writers=2, faults=frozenset({"fail clear"}), prepare=drop_a_note_with_any_answer
    ),
}


@pytest.mark.parametrize("twin", TWINS)
def test_the_explorer_finds_the_broken_twin(twin, report):
    explored = explore(TWINS[twin])

    report(f"found in the broken twin, {twin}", explored)
    assert explored.counterexample is not None
    assert explored.counterexample.endswith("(P1)")


def test_the_explorer_finds_readers_who_do_not_share_a_query(monkeypatch):
    monkeypatch.setattr(Flight, "carries", lambda _flight, _seen: False)
    explored = explore(Scenario(readers=3, writers=0))

    assert explored.counterexample is not None
    assert explored.counterexample.endswith("2 queries where 1 are enough (P3)")


def test_the_explorer_finds_an_answer_too_old_for_who_just_came(monkeypatch):
    serves = Answer.serves
    monkeypatch.setattr(Answer, "serves", lambda one, seen, _: serves(one, seen, -math.inf))
    explored = explore(Scenario(faults=ONE_FAULT_OF["a ttl passes"]))

    assert explored.counterexample is not None
    assert explored.counterexample.endswith("(P2)")


def test_the_explorer_finds_queries_that_run_side_by_side():
    explored = explore(Scenario(services=2, locks=NoLocks))

    assert explored.counterexample is not None
    assert explored.counterexample.endswith("both under the lock (P3)")


def test_the_blocking_face_of_a_broken_twin_is_found_too():
    explored = sample(Scenario(blocking=True, cache=PlainStore), runs=2_000, seed=2013)

    assert explored.counterexample is not None
    assert explored.counterexample.endswith("(P1)")


class Script:
    """A world whose schedule a test writes down."""

    def __init__(self, scenario: Scenario) -> None:
        self.world = World(scenario)

    def run(self, name: str, *, until: str = "the end") -> None:
        """Let one actor go on alone until it is about to make this port call, or is done."""
        actor = next(one for one in self.world.actors if one.name == name)
        while not actor.finished and actor.pending.what != until:
            self.world.step((name, "go"))
        assert actor.finished == (until == "the end"), self.world.timeline()

    def finish(self) -> str:
        """Run whoever is left, judge, and return the timeline."""
        while choices := self.world.choices():
            self.world.step(choices[0])
        self.world.finish()
        return self.world.timeline()


@pytest.fixture
def overtaken_fill() -> Iterator[Script]:
    """Reader 2's query begins; reader 1 waits for its lock; a change; reader 3 boards; it fills."""
    script = Script(Scenario(readers=3, services=2))
    script.run("reader 2", until="query answer")
    script.run("reader 1", until="sleep")
    script.run("writer 1")
    script.run("reader 3", until="wait")
    script.run("reader 2", until="release")
    yield script
    script.world.close()


def test_a_waiter_takes_the_copy_that_covers_it_although_a_clear_outran_it(overtaken_fill):
    overtaken_fill.run("reader 1")

    assert overtaken_fill.world.judge.loads == 1
    assert "reader 1   read                         ('CACHED', 0)" in overtaken_fill.finish()


def test_a_copy_that_serves_the_leader_is_not_passed_on_to_who_boarded_after_a_change(
    overtaken_fill,
):
    overtaken_fill.run("reader 1")

    assert "reader 3   read                         ('LOADED', 1)" in overtaken_fill.finish()


def test_passing_every_answer_on_is_noticed(overtaken_fill, monkeypatch):
    monkeypatch.setattr(Answer, "serves", lambda _answer, _seen, _oldest: True)
    overtaken_fill.run("reader 1")

    with pytest.raises(Violation, match="P1"):
        overtaken_fill.finish()
