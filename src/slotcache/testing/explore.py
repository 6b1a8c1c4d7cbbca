"""Running the shipped code through every schedule.

`explore` is complete: it follows every choice from every state, where equal states are merged
(plain search is hopeless: two readers and one writer have more schedules than anybody can run).
It counts the schedules that it covers by adding up the ways through the merged states.
`sample` runs whole schedules drawn at random, for worlds that are too large, or too slow.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from slotcache.testing.scenario import Choice, Scenario, Violation
from slotcache.testing.world import World

__all__ = ["Exploration", "explore", "sample"]

_ROOT = 0


@dataclass(frozen=True, slots=True)
class Exploration:
    """What was explored.

    Attributes:
        schedules: How many different schedules it covers.
        states: How many different states of the world they lead through.
        complete: Whether that is all there are.
        counterexample: The timeline of the first schedule that broke a promise; None: none did.
    """

    schedules: int
    states: int
    complete: bool
    counterexample: str | None


class Run(Protocol):
    """One run of a simulated world, stepped by choices; `World` describes each of these."""

    touched: bool

    def choices(self) -> list[Choice]: ...
    def step(self, choice: Choice) -> None: ...
    def state(self) -> int: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...
    def timeline(self) -> str: ...


def explore(scenario: Scenario, *, most_states: int = 1_000_000) -> Exploration:
    """Run `scenario` through every schedule, or up to the first that breaks a promise.

    What is left out, and why that is sound:

    - A step in which nothing shared was read or changed (`World.touched`) commutes with
      whatever anybody else may do, so it is taken at once.
    - Computing takes no time: a look at the clock tells the instant of the last answer. Time
      passes while calls are on their way, and while somebody sleeps or waits.
    - An actor begins right before its first call takes effect: beginning earlier, it would do
      the same, and less could be expected of it.
    - Of actors that do the same through one service, or each through its own, the first by name
      begins first: renaming them gives the rest.
    - A follower gives up waiting early only once: finding its leader alive changes nothing.

    Args:
        scenario: Who does what, and which faults may strike.
        most_states: Give up, incomplete, after so many states.
    """
    return explore_runs(functools.partial(World, scenario), most_states=most_states)


def explore_runs(begin: Callable[[], Run], *, most_states: int = 1_000_000) -> Exploration:
    """Explore any world that `begin` makes anew."""
    search = _Search(begin)
    counterexample = None
    while counterexample is None and search.branches and len(search.ways) <= most_states:
        counterexample = search.follow(*search.branches.pop())
    complete = counterexample is None and not search.branches
    return Exploration(search.schedules(), len(search.ways), complete, counterexample)


class _Search:
    """A walk through all states, depth first.

    A coroutine cannot be copied, so each branch begins by repeating the schedule that led to it.

    Attributes:
        ways: From each state seen, the states that follow.
        branches: What has still to be followed: a schedule, and the state before its last step.
    """

    def __init__(self, begin: Callable[[], Run]) -> None:
        self.ways: dict[int, list[int]] = {}
        self.branches: list[tuple[int, tuple[Choice, ...]]] = [(_ROOT, ())]
        self._begin = begin

    def follow(self, before: int, schedule: tuple[Choice, ...]) -> str | None:
        """Follow one branch to a state that was seen, or to the end; return a counterexample."""
        world = self._begin()
        try:
            for choice in schedule:
                world.step(choice)
            path = list(schedule)
            while self._is_new(before, state := world.state()):
                choices = world.choices()
                if not choices:
                    world.finish()
                    break
                self._branch(world, state, path, choices)
                before = state
        except Violation as broken:
            return _timeline(world, broken)
        finally:
            world.close()
        return None

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

    def _is_new(self, before: int, state: int) -> bool:
        self.ways.setdefault(before, []).append(state)
        if state in self.ways:
            return False
        self.ways[state] = []
        return True

    def _branch(self, world: Run, state: int, path: list[Choice], choices: list[Choice]) -> None:
        """Take the first choice; keep the others for later."""
        first, *others = choices
        world.step(first)
        if not world.touched:
            others = [choice for choice in others if choice[0] == first[0]]
        self.branches += [(state, (*path, other)) for other in others]
        path.append(first)


def sample(scenario: Scenario, *, runs: int, seed: int) -> Exploration:
    """Run `runs` whole schedules drawn at random, or up to the first that breaks a promise."""
    return sample_runs(functools.partial(World, scenario), runs=runs, seed=seed)


def sample_runs(begin: Callable[[], Run], *, runs: int, seed: int) -> Exploration:
    """Sample any world that `begin` makes anew."""
    dice = random.Random(seed)
    states: set[int] = set()
    for run in range(runs):
        world = begin()
        try:
            while choices := world.choices():
                world.step(dice.choice(choices))
                states.add(world.state())
            world.finish()
        except Violation as broken:
            return Exploration(run + 1, len(states), False, _timeline(world, broken))
        finally:
            world.close()
    return Exploration(runs, len(states), complete=False, counterexample=None)


def _timeline(world: Run, broken: Violation) -> str:
    return f"{world.timeline()}\n=> {broken}"
