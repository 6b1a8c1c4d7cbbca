"""Running the shipped code through every schedule.

`explore` is complete: it follows every choice from every state, where equal states are merged
(plain search is hopeless: two readers and one writer have more schedules than anybody can run).
It counts the schedules that it covers by adding up the ways through the merged states.
`sample` runs whole schedules drawn at random, for worlds that are too large, or too slow; `replay`
runs one again.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from slotcache.testing.holding import open_table
from slotcache.testing.scenario import Choice, Scenario, Violation
from slotcache.testing.timeline import Event, Timeline
from slotcache.testing.world import World

__all__ = ["Exploration", "explore", "replay", "sample"]

_ROOT = 0
_MOST_TURNS = 8
_ENOUGH = 100_000


@dataclass(frozen=True, slots=True)
class Exploration:
    """What was explored.

    Attributes:
        schedules: How many different schedules it covers.
        states: How many different states of the world they lead through.
        complete: Whether that is all there are.
        counterexample: A schedule that broke a promise, in as few turns as one can; None: none did.
    """

    schedules: int
    states: int
    complete: bool
    counterexample: Timeline | None


class Run(Protocol):
    """One run of a simulated world, stepped by choices; `World` describes each of these."""

    touched: bool

    def choices(self) -> list[Choice]: ...
    def step(self, choice: Choice) -> None: ...
    def state(self) -> int: ...
    def role_of(self, who: str) -> str: ...
    def events(self) -> list[Event]: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


def explore(
    scenario: Scenario, *, most_states: int = 1_000_000, most_turns: int | None = None
) -> Exploration:
    """Run `scenario` through every schedule, or up to one that breaks a promise.

    What is left out, and why that is sound:

    - A step in which nothing shared was read or changed (`World.touched`) commutes with
      whatever anybody else may do, so it is taken at once.
    - Computing takes no time: a look at the clock tells the instant of the last answer. Time
      passes while calls are on their way, and while somebody sleeps or waits.
    - An actor begins right before its first call takes effect: beginning earlier, it would do
      the same, and less could be expected of it.
    - Of actors that do the same through one service, or each through its own, it does not matter
      which is which: states that differ in that alone are equal.
    - What is over has no future: how a finished actor came to its end is no part of a state, unless
      somebody waits to hear that.
    - A loss (of a record, a list, a lock) strikes right before a call that can tell: it commutes
      with all others.
    - A follower gives up waiting early only once: finding its leader alive changes nothing.

    Of a storage of yours nobody knows what is in it: there, states are equal if it was asked the
    same in the same order. It is deterministic, then, or nothing is proved.

    Args:
        scenario: Who does what, and which faults may strike.
        most_states: Give up, incomplete, after so many states.
        most_turns: Only schedules in which another actor goes on, though the one before could
            have, or a fault strikes, at most so often; None: all. Most bugs need two or three
            (Musuvathi & Qadeer, *Iterative Context Bounding*, PLDI 2007).
    """
    with _worlds_of(scenario) as begin:
        return explore_runs(begin, most_states=most_states, most_turns=most_turns)


def sample(scenario: Scenario, *, runs: int, seed: int) -> Exploration:
    """Run `runs` whole schedules drawn at random, or up to the first that breaks a promise."""
    with _worlds_of(scenario) as begin:
        return sample_runs(begin, runs=runs, seed=seed)


def replay(scenario: Scenario, schedule: Iterable[Choice]) -> Timeline:
    """Run one schedule: that of a counterexample, or one of your own, as far as it goes."""
    with _worlds_of(scenario) as begin:
        return replay_run(begin, schedule)


@contextmanager
def _worlds_of(scenario: Scenario) -> Iterator[Callable[[], World]]:
    """Yield what makes worlds of a scenario, one after the other."""
    with ExitStack() as stack:
        table = stack.enter_context(open_table()) if scenario.holds else None
        yield functools.partial(World, scenario, table)


def explore_runs(
    begin: Callable[[], Run], *, most_states: int = 1_000_000, most_turns: int | None = None
) -> Exploration:
    """Explore any world that `begin` makes anew."""
    search = _Search(begin, most_turns)
    found = search.run(most_states)
    if found is not None and most_turns is None:
        found = _simplest(begin, most_states) or found
    complete = found is None and not search.branches and most_turns is None
    return Exploration(search.schedules(), len(search.ways), complete, found)


def _simplest(begin: Callable[[], Run], most_states: int) -> Timeline | None:
    """Find the schedule that breaks a promise in the fewest turns."""
    for most_turns in range(_MOST_TURNS):
        found = _Search(begin, most_turns).run(most_states)
        if found is not None:
            return found
    return None


class _Branch(NamedTuple):
    """What has still to be followed: a schedule, the state before its last step, turns left."""

    before: int
    schedule: tuple[Choice, ...]
    turns: int


class _Search:
    """A walk through all states, depth first.

    A coroutine cannot be copied, so each branch begins by repeating the schedule that led to it.

    Args:
        begin: Makes a world, when the one before is closed.
        most_turns: As for `explore`.

    Attributes:
        ways: From each state seen, the states that follow.
        branches: What has still to be followed.
    """

    def __init__(self, begin: Callable[[], Run], most_turns: int | None) -> None:
        self.ways: dict[int, list[int]] = {}
        self.branches = [_Branch(_ROOT, (), most_turns or 0)]
        self._begin = begin
        self._is_bound = most_turns is not None

    def run(self, most_states: int) -> Timeline | None:
        """Follow all branches, or up to a counterexample."""
        found = None
        while found is None and self.branches and len(self.ways) <= most_states:
            found = self._follow(*self.branches.pop())
        return found

    def schedules(self) -> int:
        """Count the ways from the root to an end; they form no cycle, for histories grow."""
        counted: dict[int, int] = {}
        stack = [_ROOT]
        while stack:
            after = self.ways.get(stack[-1], [])
            missing = [state for state in after if state not in counted]
            if missing:
                stack += missing
            else:
                counted[stack.pop()] = sum(counted[state] for state in after) or 1
        return counted[_ROOT]

    def _follow(self, before: int, schedule: tuple[Choice, ...], turns: int) -> Timeline | None:
        """Follow one branch to a state that was seen, or to the end; return a counterexample."""
        world = self._begin()
        path = list(schedule)
        try:
            for choice in schedule:
                world.step(choice)
            while self._is_new(before, state := self._state(world, path, turns)):
                choices = self._within(turns, world.choices(), path)
                if not choices:
                    world.finish()
                    break
                turns = self._branch(world, state, path, choices)
                before = state
        except Violation as broken:
            return _timeline(world, path, broken)
        finally:
            world.close()
        return None

    def _state(self, world: Run, path: list[Choice], turns: int) -> int:
        if not self._is_bound:
            return world.state()
        last = next((who for who, _ in reversed(path) if who != "world"), "")
        return hash((world.state(), turns, world.role_of(last)))

    def _is_new(self, before: int, state: int) -> bool:
        self.ways.setdefault(before, []).append(state)
        if state in self.ways:
            return False
        self.ways[state] = []
        return True

    def _within(
        self, turns: int, choices: list[Choice], path: list[Choice]
    ) -> list[tuple[Choice, int]]:
        """Return what may happen next in so many turns, and how many are left then."""
        if not self._is_bound:
            return [(choice, 0) for choice in choices]
        last = next((who for who, _ in reversed(path) if who != "world"), "")
        goes_on = (last, "go") in choices
        costs = [(goes_on and who != last) or what != "go" for who, what in choices]
        left = [(choice, turns - cost) for choice, cost in zip(choices, costs, strict=True)]
        return sorted((each for each in left if each[1] >= 0), key=lambda each: -each[1])

    def _branch(
        self, world: Run, state: int, path: list[Choice], choices: list[tuple[Choice, int]]
    ) -> int:
        """Take the first choice, and return how many turns it leaves; keep the others for later."""
        (first, turns), *others = choices
        before = tuple(path)
        path.append(first)
        world.step(first)
        for other, left in others:
            if world.touched or other[0] == first[0]:
                self.branches.append(_Branch(state, (*before, other), left))
        return turns


def sample_runs(begin: Callable[[], Run], *, runs: int, seed: int) -> Exploration:
    """Sample any world that `begin` makes anew."""
    dice = random.Random(seed)
    states: set[int] = set()
    for run in range(runs):
        found = _run_at_random(begin, dice, states)
        if found is not None:
            simplest = _simplest(begin, _ENOUGH) or found
            return Exploration(run + 1, len(states), complete=False, counterexample=simplest)
    return Exploration(runs, len(states), complete=False, counterexample=None)


def _run_at_random(
    begin: Callable[[], Run], dice: random.Random, states: set[int]
) -> Timeline | None:
    """Run one schedule, noting the states on its way; return it if it breaks a promise."""
    world = begin()
    path: list[Choice] = []
    try:
        while choices := world.choices():
            path.append(dice.choice(choices))
            world.step(path[-1])
            states.add(world.state())
        world.finish()
    except Violation as broken:
        return _timeline(world, path, broken)
    finally:
        world.close()
    return None


def replay_run(begin: Callable[[], Run], schedule: Iterable[Choice]) -> Timeline:
    """Replay a schedule in any world."""
    world = begin()
    path: list[Choice] = []
    try:
        for choice in schedule:
            if choice not in world.choices():
                raise ValueError(
                    f"after {len(path)} steps {choice} cannot happen: {world.choices()}"
                )
            path.append(choice)
            world.step(choice)
        if not world.choices():
            world.finish()
        return _timeline(world, path, None)
    except Violation as broken:
        return _timeline(world, path, broken)
    finally:
        world.close()


def _timeline(world: Run, path: Iterable[Choice], broken: Violation | None) -> Timeline:
    text = None if broken is None else str(broken)
    return Timeline(tuple(path), tuple(world.events()), text)
