"""docs/explanation/guarantees.md and its pictures, made from tests/spec.

    python3 -m tests.support.guarantees     writes them anew

Of the page, `_INTRODUCTION` and the captions of `PICTURES` are written by hand; the rest is what
the docstrings, the names and the parameters of tests/spec say, and what `dev.py soak --json` has
counted.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from slotcache.testing import Scenario, Timeline, explore, replay
from tests.support.shelf import NoLocks
from tests.support.twins import TWINS

__all__ = ["PAGE", "PROMISES", "Promise", "page", "pictures", "write"]

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "tests" / "spec"
PAGE = ROOT / "docs" / "explanation" / "guarantees.md"
COUNTED = ROOT / "benchmarks" / "results" / "schedules.json"

_TWINS = {"guard", "program", "twin"}
"""How the parameters are called that say which broken twin a test is run on."""

PROMISES = tuple(f"P{number}" for number in range(1, 12))

_INTRODUCTION = """\
# What is guaranteed, and how that is shown

Eleven promises, each with its limits. Each is shown by properties that run on the code that ships:
through {schedules} schedules, and none of them breaks a promise.

This page is made from `tests/spec/`, one file for each promise, and a test compares them. [The
promises](../promises.md) are the same on one screen, with the rule that carries the first of them.

## How to read it

Each section says what holds, then its *limits*: what is not promised, said as plainly. *Shown*
tells in which ways, and the list below it has every property of the file: the names of its tests,
as sentences. A table has the schedules that were explored. A picture shows a race as it ends
without the guard that closes it; its text, its drawing and the schedule to replay are what
`slotcache.testing` gives for any world that breaks a promise. In a picture, "change 1" is the first
change that was committed, and a list that "shows change 0" is from before it.

## How it is shown

- **Every schedule.** `slotcache.testing.explore` runs the service under a scheduler that decides
  who goes on, which fault strikes, and how time passes, at every call of cache, lock and table:
  before it takes effect, and before its answer arrives. Equal states are merged, so that all means
  all; the docstring of `explore` says what is left out, and why that can show nothing more.
- **Real parts.** The same properties run on each cache (memory, files, Redis), on each database
  (SQLite, PostgreSQL, MariaDB) and in both worlds (threads and asyncio), with data, histories and
  schedules that Hypothesis draws. You can have [your own backend](../how-to/test-your-backend.md)
  explored.
- **Histories.** Processes read, book, are killed and cut off, and a checker that knows nothing of
  the code judges what each of them wrote down: [all at once](#all-at-once).
- **Broken twins.** An explorer that finds nothing may be blind. So for each guard there is a twin
  that lacks it, and a property that must find it. There are {twins} of the read alone, each found
  within {longest} s of processor time.
- **Mutants.** Each operator, argument and text in the functions of the core is changed, one at a
  time, and the tests must notice. [Those that survive](mutants.md) are listed, with the reason why
  they may.

What no test can show is that there is no bug left. A schedule is explored with two or three
readers, not with a hundred; MySQL 8 is not tested at all; and a promise rests on what is below: on
a database that keeps what it committed, on a file system that renames at once, on a server that
forgets nothing which it has acknowledged.
"""


@dataclass(frozen=True)
class Picture:
    """A picture of a race.

    Attributes:
        promise: In whose section it stands.
        caption: What one sees in it.
        happened: Makes it.
    """

    promise: str
    caption: str
    happened: Callable[[], Timeline]


def _found(twin: str, **others: Any) -> Callable[[], Timeline]:
    """Return what explores a twin, with others who act."""

    def found() -> Timeline:
        scenario = dataclasses.replace(TWINS[twin].scenario, **others)
        counterexample = explore(scenario).counterexample
        assert counterexample is not None, f"{twin}: nothing was found"
        return counterexample

    return found


def _harmless() -> Timeline:
    """Return what becomes of queries side by side, where nothing rests on the lock."""
    schedule = _found("queries side by side")().schedule
    return replay(Scenario(services=2, locks=NoLocks, exclusive=False), schedule)


PICTURES = {
    "race-p1-plain-store": Picture(
        "P1",
        "The textbook, which stores what it loaded. The change is committed and the list cleared "
        "while reader 1 is between its query and its fill; so the old list is stored after the "
        "clear, and stays for a whole `ttl`. slotcache fills under the generation that was seen "
        "before the query, and a clear has made that one old.",
        _found("a plain store"),
    ),
    "race-p1-clear-first": Picture(
        "P1",
        "A clear before the commit. Whoever reads in between puts the old list back. So a change "
        "is complete only when a clear that came *after* its commit has been delivered (P8).",
        _found("a clear before the commit", readers=1),
    ),
    "race-p1-flights": Picture(
        "P1",
        "Single flight as usual, by the key alone. Reader 2 comes after the change, and joins a "
        "query that began before it. slotcache joins a flight only if its query has not begun, or "
        "began under a generation that covers the reader's own look.",
        _found("flights shared by key"),
    ),
    "race-p2": Picture(
        "P2",
        "A hit that does not ask for the time. The writer commits and never gets to its clear; a "
        "`ttl` later the list has to be loaded anew, whatever the record says.",
        _found("a hit that outlives its ttl"),
    ),
    "race-p3": Picture(
        "P3",
        "A lock that excludes nobody, in two processes: their queries run side by side. Where the "
        "lock works, reader 2 is told that another holds it, and waits for the list instead.",
        _found("queries side by side"),
    ),
    "race-p11": Picture(
        "P11",
        "The same schedule, and the same useless lock, judged by what it shows to whom. It costs a "
        "query. What reader 1 fills in late is not fresh, for a clear has outrun it. Reader 1, who "
        "began before the change, may be given it; nobody who comes later is.",
        _harmless,
    ),
}
"""By file name."""


@dataclass(frozen=True)
class Promise:
    """What a file of tests/spec says.

    Attributes:
        name: Its number and name.
        path: Of the file.
        promise: What holds, as paragraphs; the same for its limits, and for how it is shown.
        properties: The tests, as sentences.
    """

    name: str
    path: Path
    promise: str
    limits: str
    shown: str
    properties: tuple[str, ...]

    @classmethod
    def of(cls, number: str) -> Promise:
        """Read the file of a promise."""
        [path] = SPEC.glob(f"test_p{int(number[1:]):02}_*.py")
        module = importlib.import_module(f"tests.spec.{path.stem}")
        name, _, text = str(module.__doc__).partition("\n\n")
        promise, _, text = text.partition("\n\nLimits: ")
        limits, _, shown = text.partition("\n\nShown: ")
        return cls(
            name.removesuffix("."), path, promise, limits, shown.strip(), properties_of(module)
        )


def properties_of(module: ModuleType) -> tuple[str, ...]:
    """Return the tests of a module as sentences."""
    tests = {name: test for name, test in vars(module).items() if name.startswith("test_")}
    return tuple(_sentence(name, list(_twins(test))) for name, test in tests.items())


def _sentence(name: str, twins: list[str]) -> str:
    sentence = name.removeprefix("test_").replace("_", " ").capitalize()
    return f"{sentence}: {'; '.join(twins)}." if twins else f"{sentence}."


def _twins(test: Any) -> Iterator[str]:
    """Yield which broken twins a test is run on."""
    for mark in getattr(test, "pytestmark", ()):
        if mark.name == "parametrize" and not _TWINS.isdisjoint(_names(mark.args[0])):
            yield from map(_words, mark.args[1])


def _names(parameters: str | tuple[str, ...]) -> Iterable[str]:
    return parameters.split(",") if isinstance(parameters, str) else parameters


def _words(parameter: Any) -> str:
    if isinstance(parameter, tuple):
        return _words(getattr(parameter, "values", parameter)[0])
    name = parameter if isinstance(parameter, str) else parameter.__name__
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).replace("_", " ").strip().lower()


@cache
def counted() -> dict[str, dict[str, dict[str, Any]]]:
    """Return what was explored when that was last counted, by promise and title."""
    measured: dict[str, Any] = json.loads(COUNTED.read_text(encoding="utf-8"))["measured"]
    return measured


def page() -> str:
    """Return the page."""
    sections = "\n".join("\n".join(_section(Promise.of(number))) for number in PROMISES)
    rest = "\n".join((*_larger_worlds(), *_all_at_once()))
    return f"{_introduction()}\n{sections}\n{rest}\n"


def _introduction() -> str:
    twins = counted()["twins"]
    longest = max(twin["seconds"] for twin in twins.values())
    explored = sum(
        each["schedules"] for number in PROMISES for each in counted().get(number, {}).values()
    )
    return _INTRODUCTION.format(
        schedules=f"{explored:,}", twins=len(twins), longest=f"{longest:.1f}"
    )


def _section(promise: Promise) -> Iterator[str]:
    number = promise.name.partition(" ")[0]
    yield f"## {promise.name}\n\n{promise.promise}\n"
    yield _filled(f"**Limits.** {promise.limits}") + "\n"
    yield _filled(f"**Shown.** {promise.shown}") + "\n"
    yield _link(promise.path) + "\n"
    yield from _listed(promise.properties)
    yield ""
    yield from _explored(number)
    for name, picture in PICTURES.items():
        if picture.promise == number:
            yield _filled(picture.caption) + "\n"
            yield f"![{_ending(name)}]({name}.svg)\n"


def _explored(number: str) -> Iterator[str]:
    scenarios = counted().get(number, {})
    if not scenarios:
        return
    yield "| explored | schedules | states |\n| --- | ---: | ---: |"
    for title, each in scenarios.items():
        yield f"| {title} | {each['schedules']:,} | {each['states']:,} |"
    yield ""


def _larger_worlds() -> Iterator[str]:
    worlds = counted().get("larger worlds", {})
    if not worlds:
        return
    yield "## Larger worlds\n\nBy `python3 dev.py soak`: in part, where all would take hours.\n"
    yield "| explored | schedules | states | |\n| --- | ---: | ---: | --- |"
    for title, each in worlds.items():
        how = "all" if each["complete"] else "in part"
        yield f"| {title} | {each['schedules']:,} | {each['states']:,} | {how} |"
    yield ""


def _all_at_once() -> Iterator[str]:
    module = importlib.import_module("tests.spec.test_histories")
    yield f"## All at once\n\n{str(module.__doc__).strip()}\n"
    yield _link(SPEC / "test_histories.py") + "\n"
    yield from _listed(properties_of(module))


def _link(path: Path) -> str:
    return f"[tests/spec/{path.name}](../../tests/spec/{path.name}):"


def _listed(sentences: Iterable[str]) -> Iterator[str]:
    for sentence in sentences:
        yield textwrap.fill(f"- {sentence}", 100, subsequent_indent="  ", break_on_hyphens=False)


def _filled(text: str) -> str:
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return "\n\n".join(textwrap.fill(each, 100, break_on_hyphens=False) for each in paragraphs)


def _ending(picture: str) -> str:
    return f"It ends so: {happened(picture).broken or 'no promise is broken'}"


@cache
def happened(picture: str) -> Timeline:
    """Return what a picture shows."""
    return PICTURES[picture].happened()


def pictures() -> dict[Path, str]:
    """Return the pictures of the page, by where they belong."""
    return {PAGE.with_name(f"{name}.svg"): happened(name).svg() for name in PICTURES}


def write() -> None:
    """Write page and pictures."""
    PAGE.write_text(page(), encoding="utf-8")
    for path, picture in pictures().items():
        path.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    write()
