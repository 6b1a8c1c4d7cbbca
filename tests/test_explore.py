"""The explorer itself: what it refuses, what it gives back, and that what it leaves out is nothing.

What it explores, and the broken twins that it finds, are in tests/spec.
"""

import functools
import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from typing import Any

import pytest

from slotcache.flight import Answer
from slotcache.memory import MemoryCache
from slotcache.testing import (
    FAULTS,
    Event,
    ManualClock,
    Scenario,
    Subject,
    Timeline,
    Violation,
    explore,
    replay,
    sample,
)
from slotcache.testing.holding import open_table
from slotcache.testing.scenario import Choice
from slotcache.testing.world import World
from tests.support.scenarios import LONG, SPEC
from tests.support.shelf import NoLocks
from tests.support.twins import TWINS, KeepsWhatIsCleared, PlainStore
from tests.support.worlds import EXPLORED

pytestmark = pytest.mark.one_world(EXPLORED)


@pytest.fixture(autouse=True)
def no_logs() -> Iterator[None]:
    """A failing call is logged, and here many calls fail."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@contextmanager
def on_manual_time() -> Iterator[Subject[Any]]:
    """A storage of somebody's own."""
    clock = ManualClock()
    cache = MemoryCache(clock=clock, epoch=itertools.count(1).__next__)
    yield Subject(lambda: cache, now=clock.now, pass_time=clock.advance)


@contextmanager
def in_real_time() -> Iterator[Subject[Any]]:
    cache = MemoryCache()
    yield Subject(lambda: cache)


def turns(schedule: tuple[Choice, ...]) -> int:
    """How often somebody else goes on, or a fault strikes."""
    actors = [who for who, what in schedule if what == "go"]
    changes = sum(one != next_one for one, next_one in itertools.pairwise(actors))
    return changes + len(schedule) - len(actors)


def test_every_fault_there_is_strikes_in_what_the_spec_explores():
    scenarios = [*LONG.values(), *(each for group in SPEC.values() for each in group.values())]

    assert frozenset[str]().union(*(each.faults for each in scenarios)) == FAULTS


@pytest.mark.parametrize("twin", ["no epoch", "a plain store, and holds"])
def test_a_counterexample_is_replayed_to_the_same_timeline(twin):
    scenario = TWINS[twin].scenario
    found = explore(scenario).counterexample

    assert found is not None
    assert replay(scenario, found.schedule) == found


def test_a_replay_of_the_first_steps_stops_there_and_breaks_nothing():
    scenario = TWINS["a plain store"].scenario
    found = explore(scenario).counterexample
    assert found is not None

    begun = replay(scenario, found.schedule[:-1])

    assert begun.broken is None
    assert begun.events == found.events[: len(begun.events)]


def test_a_choice_that_cannot_happen_is_refused_with_those_that_can():
    begun = [("reader 1", "go"), ("writer 1", "crash")]

    with pytest.raises(ValueError, match=r"after 1 steps .*'writer 1', 'crash'.*'writer 1', 'go'"):
        replay(Scenario(), begun)


def test_a_counterexample_has_as_few_turns_as_one_can():
    scenario = Scenario(cache=PlainStore)
    found = explore(scenario).counterexample

    assert found is not None
    assert turns(found.schedule) == 3
    assert explore(scenario, most_turns=0).counterexample is None
    assert explore(scenario, most_turns=1).counterexample == found


def test_a_schedule_drawn_at_random_is_made_as_short():
    scenario = Scenario(cache=PlainStore)

    assert sample(scenario, runs=1_000, seed=2013).counterexample == (
        explore(scenario).counterexample
    )


def test_the_blocking_face_of_a_broken_twin_is_found_as_well():
    found = sample(Scenario(blocking=True, cache=PlainStore), runs=100, seed=4).counterexample

    assert found is not None
    assert str(found.broken).endswith("(P1)")


def test_without_a_turn_actors_run_one_after_the_other():
    """Of two readers it does not matter which of them is which."""
    explored = explore(Scenario(), most_turns=0)

    assert explored.schedules == 6
    assert not explored.complete


def test_what_is_broken_without_a_turn_is_found_without_one():
    found = explore(Scenario(cache=KeepsWhatIsCleared), most_turns=0).counterexample

    assert found is not None
    assert str(found.broken).endswith("(P1)")


def test_after_so_many_states_it_gives_up_and_says_so():
    explored = explore(Scenario(), most_states=50)

    assert not explored.complete
    assert explored.counterexample is None
    assert 50 < explored.states < 100


@pytest.mark.parametrize("what", ["faults", "holds"])
def test_what_nobody_can_do_is_refused_by_name(what):
    with pytest.raises(ValueError, match=r"'levitate'.*choose from"):
        Scenario(**{what: frozenset({"levitate"})})


@pytest.mark.parametrize("fault", ["evict", "evict entry", "the clock goes back"])
def test_a_fault_of_memory_is_refused_on_a_storage_of_ones_own(fault):
    with pytest.raises(ValueError, match=fault):
        Scenario(storage=on_manual_time, faults=frozenset({fault}))


def test_a_ttl_that_passes_is_refused_in_real_time():
    with pytest.raises(ValueError, match="a ttl passes"):
        explore(Scenario(storage=in_real_time, faults=frozenset({"a ttl passes"})))


class Script:
    """A world whose schedule a test writes down."""

    def __init__(self, scenario: Scenario) -> None:
        self.world = World(scenario)

    def run(self, name: str, *, until: str = "the end") -> None:
        """Let one actor go on alone until it is about to make this port call, or is done."""
        actor = self.world.cast.by_name[name]
        while not actor.finished and actor.pending.what != until:
            self.world.step((name, "go"))
        assert actor.finished == (until == "the end"), self.told()

    def finish(self) -> list[Event]:
        """Run whoever is left, judge, and return what has happened."""
        while choices := self.world.choices():
            self.world.step(choices[0])
        self.world.finish()
        return self.world.events()

    def told(self) -> str:
        return str(Timeline((), tuple(self.world.events())))


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
    assert Event("reader 1", "read", "CACHED, shows change 0") in overtaken_fill.finish()


def test_a_copy_that_serves_the_leader_is_not_passed_on_to_who_boarded_after_a_change(
    overtaken_fill,
):
    overtaken_fill.run("reader 1")

    assert Event("reader 3", "read", "LOADED, shows change 1") in overtaken_fill.finish()


def test_passing_every_answer_on_is_noticed(overtaken_fill, monkeypatch):
    monkeypatch.setattr(Answer, "serves", lambda _answer, _seen, _oldest: True)
    overtaken_fill.run("reader 1")

    with pytest.raises(Violation, match="P1"):
        overtaken_fill.finish()


def test_a_storage_of_ones_own_goes_by_its_own_instants():
    """They begin at New Year 2026, and a list that has ended by them is not served."""
    faults = frozenset({"a ttl passes"})
    script = Script(Scenario(services=2, storage=on_manual_time, faults=faults))
    with closing(script.world):
        script.run("reader 1")
        script.run("writer 1", until="clear")
        script.world.step(("world", "a ttl passes"))
        script.run("reader 2")

        assert script.world.events()[-1] == Event("reader 2", "read", "LOADED, shows change 1")


@pytest.mark.parametrize(
    ("scenario", "who"),
    [
        (Scenario(readers=0, writers=0, holds=("create", "create")), "create"),
        (Scenario(writers=0, services=2, storage=on_manual_time), "reader"),
    ],
    ids=["who made which change", "whose process asked first"],
)
def test_what_the_future_depends_on_is_part_of_a_state(scenario, who):
    states = set()
    for answered in (1, 2):
        with ExitStack() as stack:
            table = stack.enter_context(open_table()) if scenario.holds else None
            world = stack.enter_context(closing(World(scenario, table)))
            for number in (1, 2, answered):
                world.step((f"{who} {number}", "go"))
            states.add(world.state())

    assert len(states) == 2


Begin = Callable[[], World]
Schedule = tuple[Choice, ...]

ANY_FAULT = FAULTS - {"fail change"}
MERGED = {
    "three readers": Scenario(readers=3),
    "three readers and a clear, in two processes": Scenario(readers=3, clears=1, services=2),
    "any fault": Scenario(faults=ANY_FAULT),
    "any fault, in two processes": Scenario(faults=ANY_FAULT, writers=2, services=2),
    "locks that exclude nobody": Scenario(
        readers=3, services=3, locks=NoLocks, exclusive=False, faults=frozenset({"crash"})
    ),
    "holds": Scenario(writers=0, holds=("create", "create", "cancel"), faults=frozenset({"crash"})),
    "a storage of ones own": Scenario(
        services=2, storage=on_manual_time, faults=frozenset({"a ttl passes", "crash"})
    ),
    "a broken twin": Scenario(readers=3, cache=PlainStore),
}


@pytest.mark.parametrize("world", MERGED)
def test_schedules_that_lead_to_one_state_have_the_same_futures(world):
    """So it is enough to follow one of them, whichever actor is which, and however it ended."""
    scenario = MERGED[world]
    with ExitStack() as stack:
        table = stack.enter_context(open_table()) if scenario.holds else None
        pairs = merged(lambda: World(scenario, table), random.Random(2013))
        for schedule, other in islice(pairs, 25):
            begin = lambda: World(scenario, table)  # noqa: E731
            assert futures(begin, schedule) == futures(begin, other), (schedule, other)


def merged(begin: Begin, dice: random.Random) -> Iterator[tuple[Schedule, Schedule]]:
    """Yield schedules, drawn at random, with another one each that leads to the same state."""
    led: dict[int, Schedule] = {}
    while True:
        schedule: Schedule = ()
        found: list[tuple[Schedule, Schedule]] = []
        with closing(begin()) as world:
            while choices := world.choices():
                schedule = (*schedule, dice.choice(choices))
                try:
                    world.step(schedule[-1])
                except Violation:
                    break
                other = led.setdefault(world.state(), schedule)
                if other != schedule:
                    found.append((schedule, other))
        if found:
            yield dice.choice(found)


def futures(begin: Begin, schedule: Schedule) -> Counter[object]:
    """What may come next after a schedule, and where that leads."""
    with closing(after(begin, schedule)) as world:
        choices = world.choices()
        if not choices:
            return Counter([outcome(world.finish)])
    found: Counter[object] = Counter()
    for choice in choices:
        with closing(after(begin, schedule)) as world:
            broken = outcome(lambda: world.step(choice))  # noqa: B023
            found[choice[1], broken or whoever_is_who(world)] += 1
    return found


def whoever_is_who(world: World) -> int:
    """The state of a world, the same for worlds in which actors that are alike changed roles."""
    cast = world.cast
    states = []
    for roles in itertools.product(*(itertools.permutations(group) for group in cast._alike)):
        names = {actor.name: actor.name for actor in cast.actors}
        for group, others in zip(cast._alike, roles, strict=True):
            names |= {one.name: other.name for one, other in zip(group, others, strict=True)}
        vars(cast)["names"] = functools.partial(dict, names)
        states.append(world.state())
    return min(states)


def after(begin: Begin, schedule: Schedule) -> World:
    world = begin()
    for choice in schedule:
        world.step(choice)
    return world


def outcome(deed: Callable[[], None]) -> str:
    """Which promise it broke, if any."""
    try:
        deed()
    except Violation as broken:
        return str(broken)
    return ""
