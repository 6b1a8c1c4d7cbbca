"""The shipped `FileCache`, through every schedule of single file operations: P1 and P2.

As in `spec/`: what is explored is all that these processes can do to each other, and
the broken twins show that a broken promise would have been seen.
"""

import contextlib
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import pytest

from slotcache.file import FileCache, record
from slotcache.file.folder import LIST, RECORD
from slotcache.protocols import Entry, Miss
from slotcache.testing import Exploration
from slotcache.testing.scenario import Choice
from tests.support.files import (
    FAULTS,
    REMOVE_RECORD,
    TTL_PASSES,
    FileRun,
    FileScenario,
    explore_files,
    runs_of,
    sample_files,
)
from tests.support.thorough import THOROUGH

ROUNDS = int(os.environ.get("SLOTCACHE_TEST_ROUNDS", "1"))


class TrustedList(FileCache):
    """Check, then rename: a list that stands there is taken to be fresh."""

    def read(self, key: str) -> Entry | Miss:
        miss = self.look(key)
        return miss.copy or miss

    def fill(self, key: str, miss: Miss, *args: Any, **times: Any) -> Entry | None:
        is_current = self.look(key).generation == miss.generation
        return super().fill(key, miss, *args, **times) if is_current else None

    def clear(self, key: str) -> None:
        super().clear(key)
        with contextlib.suppress(FileNotFoundError):
            self._files.unlink(self._folder.path_of(key, LIST))


class RecordUnasked(FileCache):
    """A hit does not ask the record."""

    def read(self, key: str) -> Entry | Miss:
        kept = self._kept.get(key)
        return super().read(key) if kept is None else kept.entry


class RecordHeldOpen(FileCache):
    """A hit asks the record that is held open, whatever stands in its place."""

    def read(self, key: str) -> Entry | Miss:
        kept = self._kept.get(key)
        if kept is not None:
            cleared = self._files.fstat(kept.record._fd).st_size - record._SIZE
            if cleared == kept.stored.generation.clears:
                return kept.entry
        return super().read(key)


class Immortal(FileCache):
    """A hit asks the record, but not the time."""

    def read(self, key: str) -> Entry | Miss:
        kept = self._kept.get(key)
        if kept is not None and kept.record.clears() == kept.stored.generation.clears:
            return kept.entry
        return super().read(key)


class NoEpoch(FileCache):
    """Generations are plain counters: a record that comes back counts from 0 again."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "epoch": lambda: 0})


class RewrittenCount(FileCache):
    """A clear reads the count, adds one and writes it."""

    def clear(self, key: str) -> None:
        self._kept.pop(key, None)
        path = self._folder.path_of(key, RECORD)
        fd = self._folder.open(path)
        if fd is None:
            return
        counted = self._files.read(fd, self._files.fstat(fd).st_size)
        self._files.close(fd)
        with self._folder.draft(counted + b".") as draft:
            self._files.replace(draft, path)


class Litter(FileCache):
    """A clear leaves a draft behind."""

    def clear(self, key: str) -> None:
        super().clear(key)
        path = self._folder.path_of(key, ".draft")
        self._files.close(self._files.open(path, os.O_RDWR | os.O_CREAT, 0o600))


class Leak(FileCache):
    """A clear leaves a file open."""

    def clear(self, key: str) -> None:
        super().clear(key)
        self._folder.open(self._folder.path_of(key, RECORD))


class Choosy(FileCache):
    """A clear wants a record."""

    def clear(self, key: str) -> None:
        self._files.stat(self._folder.path_of(key, RECORD))
        super().clear(key)


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str, Exploration], None]:
    """Have the end of the test run say what was explored."""

    def tell(title: str, explored: Exploration) -> None:
        how = "all" if explored.complete else "some"
        counts = f"{how} {explored.schedules:,} schedules, {explored.states:,} states"
        record_property("explored", f"files, {title}: {counts}")

    return tell


PROCESSES = [
    ("read", "read"),
    ("read read", "change"),
    ("read", "read", "change"),
    ("read", "change", "change"),
    ("read read", "change", "change"),
    ("read read", "change_all"),
    ("read read | change",),
]


LARGE = [("read", "read", "change"), ("read read", "change", "change")]


@pytest.mark.parametrize(
    "processes", [each for each in PROCESSES if THOROUGH or each not in LARGE], ids=" + ".join
)
def test_no_schedule_breaks_a_promise(processes, report):
    explored = explore_files(FileScenario(processes=processes))

    report(" + ".join(processes), explored)
    assert explored.counterexample is None, explored.counterexample
    assert explored.complete


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_no_fault_at_any_instant_breaks_a_promise(fault, report):
    explored = explore_files(
        FileScenario(processes=("read read", "change"), faults=frozenset({fault}))
    )

    report(f"read read + change, fault: {fault}", explored)
    assert explored.counterexample is None, explored.counterexample
    assert explored.complete


@pytest.mark.parametrize(
    "processes",
    [("read read", "change"), *[("read", "change", "change")] * THOROUGH],
    ids=" + ".join,
)
def test_no_schedule_in_which_records_get_too_long_breaks_a_promise(processes, monkeypatch, report):
    monkeypatch.setattr(record, "_LONGEST", record._SIZE)
    explored = explore_files(FileScenario(processes=processes))

    report(f"{' + '.join(processes)}, each clear one too many", explored)
    assert explored.counterexample is None, explored.counterexample
    assert explored.complete


@pytest.mark.parametrize(
    "processes",
    [
        ("read read", "read read", "change read", "change"),
        ("read read | change read", "read"),
    ],
    ids=" + ".join,
)
def test_larger_worlds_keep_the_promises_in_schedules_drawn_at_random(processes, report):
    scenario = FileScenario(processes=processes, faults=FAULTS)
    explored = sample_files(scenario, runs=400 * ROUNDS, seed=2013)

    report(f"{' + '.join(processes)}, any fault", explored)
    assert explored.counterexample is None, explored.counterexample
    assert explored.states > 4_000


READ_TWICE = ("read read", "change")
TWINS = {
    "trusted list": FileScenario(processes=READ_TWICE, cache=TrustedList),
    "trusted list, read once": FileScenario(
        processes=("read", "read", "change"), cache=TrustedList
    ),
    "record unasked": FileScenario(processes=READ_TWICE, cache=RecordUnasked),
    "record held open": FileScenario(
        processes=READ_TWICE, cache=RecordHeldOpen, faults=frozenset({REMOVE_RECORD})
    ),
    "no epoch": FileScenario(
        processes=READ_TWICE, cache=NoEpoch, faults=frozenset({REMOVE_RECORD})
    ),
    "rewritten count": FileScenario(
        processes=("read read", "change change", "change"), cache=RewrittenCount
    ),
}


@pytest.mark.parametrize("twin", TWINS)
def test_the_explorer_finds_the_broken_twin(twin, report):
    explored = explore_files(TWINS[twin])

    report(f"found in the broken twin, {twin}", explored)
    assert explored.counterexample is not None
    assert explored.counterexample.broken.endswith("(P1)")


def test_the_explorer_finds_a_list_that_outlives_its_ttl():
    explored = explore_files(
        FileScenario(processes=READ_TWICE, cache=Immortal, faults=frozenset({TTL_PASSES}))
    )

    assert explored.counterexample is not None
    assert explored.counterexample.broken.endswith("(P2)")


@pytest.mark.parametrize(
    ("cache", "found"),
    [(Litter, "a draft is left"), (Leak, "a file is left open"), (Choosy, "raised FileNotFound")],
)
def test_the_explorer_finds_what_is_left_or_raised(cache, found):
    explored = explore_files(FileScenario(processes=READ_TWICE, cache=cache))

    assert explored.counterexample is not None
    assert found in explored.counterexample.broken


def after(begin: Callable[[], FileRun], schedule: tuple[Choice, ...]) -> FileRun:
    run = begin()
    for choice in schedule:
        run.step(choice)
    return run


def futures(begin: Callable[[], FileRun], schedule: tuple[Choice, ...]) -> Counter[object]:
    """What may come next after a schedule, and the states to which that leads."""
    with closing(after(begin, schedule)) as run:
        choices = run.choices()
    found: Counter[object] = Counter()
    for choice in choices:
        with closing(after(begin, (*schedule, choice))) as run:
            found[choice[1], run.state()] += 1
    return found


def merged(begin: Callable[[], FileRun], dice: random.Random) -> Iterator[tuple[Any, Any]]:
    """Yield schedules, drawn at random, with another one each that leads to the same state."""
    led: dict[int, tuple[Choice, ...]] = {}
    while True:
        schedule: tuple[Choice, ...] = ()
        other = schedule
        with closing(begin()) as run:
            while other == schedule and (choices := run.choices()):
                schedule = (*schedule, dice.choice(choices))
                run.step(schedule[-1])
                other = led.setdefault(run.state(), schedule)
        if other != schedule:
            yield schedule, other


def test_schedules_that_lead_to_one_state_have_the_same_futures():
    scenario = FileScenario(processes=("read read", "change", "read | read"), faults=FAULTS)
    with runs_of(scenario) as begin:
        for schedule, other in islice(merged(begin, random.Random(2013)), 200):
            assert futures(begin, schedule) == futures(begin, other), (schedule, other)


def test_a_record_is_gone_when_it_is_removed_though_its_draft_is_still_there():
    """Found here: what was linked anywhere was taken to be in its place, so P1 was broken."""

    def go(name: str, *, until: str) -> None:
        actor = run.actors[name]
        run.step((name, "go"))
        while not actor.finished and actor.pending.what != until:
            run.step((name, "go"))
        assert actor.finished == (until == "the end"), run.events()

    scenario = FileScenario(processes=("read", "read read", "change"), faults=FAULTS)
    with runs_of(scenario) as begin:
        run = begin()
        go("process 1", until="unlink draft")
        go("process 2", until="load")
        go("process 2", until="read record")
        run.step(("somebody", REMOVE_RECORD))
        go("process 3", until="the end")
        go("process 2", until="the end")
        go("process 1", until="the end")
        run.finish()
        run.close()
