"""Whatever processes do to each other, and whatever is done to them, every promise is kept.

Processes of both worlds read, book and are killed on one Valkey and one PostgreSQL. What each of
them did is written down, and judged by a checker: every read against every change (P1, P2, P4,
P5), every query under the lock (P3), the books (P6), keys (P7) and what was told (P8). A checker
that finds nothing may be blind: so it is shown every promise broken, in a history that was true,
and by programs at work.

`python3 dev.py soak` has the processes run for longer.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import count, islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.books import Violation
from tests.support.case import Case, is_change
from tests.support.checker import judge
from tests.support.databases import DatabaseServer
from tests.support.history import History, Journal, read_journals
from tests.support.offices import AsyncOffice, BlockingOffice, Parts, Plan
from tests.support.seeded import STROKES, ClearsNothing, FillsLate, Stroke
from tests.support.servers import Server
from tests.support.sql import CLAIMS
from tests.support.tale import Tale
from tests.support.town import Town

SECONDS = float(os.environ.get("SLOTCACHE_TEST_HISTORY", "2"))

pytestmark = pytest.mark.one_world("processes of both worlds in one town, and what checks them")

SOUND = Parts()
BROKEN = [(promise, stroke) for promise, strokes in STROKES.items() for stroke in strokes]
PROGRAMS = {
    "clears nothing": (Parts(cache=ClearsNothing), {"P1"}),
    "stores what a clear has outrun": (Parts(cache=FillsLate), {"P1"}),
    "tells nobody, and sends no keys": (Parts(has_hook=False, has_keys=False), {"P7", "P8"}),
}

MakePlan = Callable[..., Plan]


@pytest.fixture
def make_plan(
    tmp_path: Path, redis_server: Server, redis_prefix: str, postgres_server: DatabaseServer
) -> MakePlan:
    """Return the function that plans a day, with its own keys and database."""
    days = count(1)

    def make_plan(seconds: float, seed: int, parts: Parts = SOUND) -> Plan:
        day = next(days)
        folder = tmp_path / f"day {day}"
        folder.mkdir()
        claim = random.Random(seed).choice(CLAIMS)
        return Plan(
            folder=folder,
            redis=redis_server.url,
            prefix=f"{redis_prefix}-{day}",
            database=postgres_server.new_database(),
            claim=claim,
            seed=seed,
            seconds=seconds,
            parts=parts,
        )

    return make_plan


@pytest.mark.timeout(120 + 4 * SECONDS)
def test_who_is_killed_or_cut_off_breaks_no_promise_to_anybody(
    make_plan: MakePlan,
    redis_server: Server,
    record_property: Callable[[str, object], None],
) -> None:
    plan = make_plan(SECONDS, random.getrandbits(32))
    town = Town(plan, redis_server)
    history = town.live(
        {
            "first": BlockingOffice,
            "blocking": BlockingOffice,
            "asyncio": AsyncOffice,
            "cut off": random.Random(plan.seed).choice([AsyncOffice, BlockingOffice]),
        }
    )

    covered = covered_by(history, town.suffered)
    record_property("history", f"{SECONDS:g} s, {plan.claim}, seed {plan.seed}: {covered}")
    assert judge(history) == [], f"seed {plan.seed}; the journals are in {plan.folder}"
    assert town.suffered["kills"]
    assert town.suffered["cuts"]
    assert {"cached", "loaded"} <= {call.came.get("source") for call in history.calls}
    assert any(map(is_change, history.calls))


def covered_by(history: History, suffered: Counter[str]) -> str:
    """What a run has covered, in words."""
    reads = [call for call in history.calls if call.what == "read" and call.returned]
    sources = Counter(str(read.came["source"]) for read in reads)
    changes = sum(map(is_change, history.calls))
    parts = [f"{len(reads)} reads ({told(sources)})", f"{changes} changes", told(suffered)]
    return ", ".join(parts)


def told(counts: Counter[str]) -> str:
    """Counts in words."""
    return ", ".join(f"{number} {what}" for what, number in counts.most_common())


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_checker_catches_a_program_that(
    program: str, make_plan: MakePlan, redis_server: Server
) -> None:
    """At once, as a rule; which race happens when is not in our hands."""
    parts, broken = PROGRAMS[program]
    found: set[str] = set()
    for seed in range(10):
        history = Town(make_plan(0.4, seed, parts), redis_server).live({"first": BlockingOffice})
        found |= promises(judge(history))
        if broken <= found:
            return
    pytest.fail(f"{program}: found {found}, not {broken}")


CHOICES = st.lists(st.integers(0, 2**16 - 1), min_size=20, max_size=200)


@given(CHOICES)
def test_the_checker_accepts_whatever_is_true(choices: list[int]) -> None:
    assert judge(Tale(choices).told()) == []


@pytest.mark.parametrize(
    ("promise", "stroke"),
    BROKEN,
    ids=[f"{promise}-{stroke.__name__}" for promise, stroke in BROKEN],
)
def test_the_checker_names_the_promise_that_one_stroke_breaks(promise: str, stroke: Stroke) -> None:
    broken = 0
    for seed in range(200):
        history, case = tale(seed)
        for each in islice(stroke(case, history), 2):
            broken += 1
            assert promise in promises(judge(each)), f"tale {seed}"
        if broken >= 6:
            return
    pytest.fail(f"there was little to be broken: {broken}")


@cache
def tale(seed: int) -> tuple[History, Case]:
    """A history that is true, and the same put in order."""
    chance = random.Random(seed)
    history = Tale([chance.getrandbits(16) for _ in range(chance.randint(40, 160))]).told()
    return history, Case(history)


def promises(violations: list[Violation]) -> set[str]:
    """Which ones are broken."""
    return {each.promise for each in violations}


def test_a_kill_costs_the_line_that_was_being_written_and_no_more(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "somebody")
    with journal.call("read", scope=None) as came:
        came["age"] = 0.5
    with journal.call("create"):
        pass
    lines = (tmp_path / "somebody").read_bytes()
    (tmp_path / "somebody").write_bytes(lines[:-5])

    read, create = read_journals(tmp_path)
    assert read.returned
    assert read.came == {"age": 0.5}
    assert not create.returned
