"""S18 to S20: what a reader notices when the server is killed, says nothing, or is cut off.

refused (S18)
    The server is killed. The goal is 5 ms for every read.
silent (S19)
    The system stops the server: it accepts, and never answers. The goal is 0.25 s for the first
    read, and 5 ms for every other one.
undelivered (S20)
    The server is cut off, and keeps what it has. One process commits a change and clears the list,
    which lives for 3 s, and reads for half a second. Then the server is back, and that process and
    another one read on until the list would have expired. Goals: the clear is reported as not
    delivered, and not one read of that process shows what was before its change. What the other
    process is shown is told for information: nobody can reach it during the outage.

In the first two a process reads 1,000 slots of a SQLite file through its cache: once, then every
5 ms for 3 s, and when the server is back as long as it takes to read without a query again. The
floor is the query itself, in a process of its own: `fetchall` of the driver. "query" is
`SqlSlots.load`, which is what slotcache does in the outage. "raised" is how many reads failed.

Each contender has an outage of its own, since they would be in each other's way. "never" is what
took longer than 10 s. `_contenders.py` tells how each cache is used.

    python3 dev.py bench redis_outage [--quick] [--output FILE]
"""

from __future__ import annotations

import logging
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from _contenders import PACKAGES, Dicts, Loop, SlowTable, contender, installed_of
from _processes import TooLate, Worker
from _redis import Server
from _runner import environment, milliseconds, options, verdict, write
from _sides import List, Read, Side
from _slots import HOUR, typical
from slotcache.protocols import Loaded, Scope
from slotcache.sql import SqlSlots

FIRST, OTHERS = 0.25, 5.0
SLOTS, PAUSE, LIMIT = 1_000, 0.005, 10.0
LIFE = 3.0
CONTENDERS = [
    *("slotcache", "dogpile.cache redis", "cashews", "aiocache"),
    *("Django RedisCache", "cachelib RedisCache", "redis-py"),
]


class FileTable:
    """A table in a SQLite file, queried by each in its own way."""

    scope_type = None

    def __init__(self, path: Path) -> None:
        self.queries = 0
        self._slots = SqlSlots.sqlite(path)
        self._driver = sqlite3.connect(path)

    @staticmethod
    def build(path: Path) -> None:
        with SqlSlots.sqlite(path) as slots:
            slots.create_tables()
            slots.add(typical(SLOTS))

    def fetchall(self) -> list[tuple[int, int, int]]:
        """The least."""
        select = "SELECT slot_id, capacity, remaining FROM slots ORDER BY slot_id"
        return self._driver.execute(select).fetchall()

    def load(self, scope: Scope | None) -> Loaded:
        self.queries += 1
        return self._slots.load(scope)

    def rows(self) -> Dicts:
        self.queries += 1
        names = "slot_id", "capacity", "remaining"
        return [dict(zip(names, row, strict=True)) for row in self.fetchall()]

    async def rows_soon(self) -> Dicts:
        return self.rows()


class Visitor:
    """What runs in the process of one contender."""

    def __init__(self, name: str, url: str, path: Path) -> None:
        warnings.simplefilter("ignore")
        logging.disable()
        self._loop = Loop()
        self._table = FileTable(path)
        without: dict[str, Callable[[], object]] = {
            "floor": self._table.fetchall,
            "query": partial(self._table.load, None),
        }
        self._read = without.get(name) or contender(name, url, self._table, HOUR).read
        for _ in range(20):
            self._loop.call(self._read)

    def visit(self) -> tuple[float, bool]:
        """Read; return the seconds, and whether that raised."""
        began, raised = time.perf_counter(), False
        try:
            self._loop.call(self._read)
        except Exception:
            raised = True
        return time.perf_counter() - began, raised

    def visit_for(self, seconds: float) -> list[tuple[float, bool]]:
        """Read every now and then."""
        visits = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            visits.append(self.visit())
            time.sleep(PAUSE)
        return visits

    def visit_until_cached(self) -> float:
        """Return the seconds until a read needed no query, and did not raise."""
        began = time.monotonic()
        while time.monotonic() < began + LIMIT:
            queries = self._table.queries
            _, raised = self.visit()
            if not raised and self._table.queries == queries:
                break
            time.sleep(PAUSE)
        return time.monotonic() - began


def main() -> None:
    """Measure, print a table and write the results."""
    chosen = options("redis_outage", "Measure reads while the server is out of reach.")
    seconds, life = (0.05, 1.0) if chosen.quick else (3.0, LIFE)

    where = environment(*PACKAGES)
    # Of the others some keep their reader waiting for ten seconds.
    names = ["slotcache"] if chosen.quick else installed_of(CONTENDERS)
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "slots.db")
        FileTable.build(path)
        for name in ("floor", "query"):
            measured[name] = without(name, path, seconds)
        for how in ("refused", "silent"):
            for name in names:
                measured[f"{how}: {name}"] = outage(how, name, path, seconds)
    for name in names:
        measured[f"undelivered: {name}"] = undelivered(name, life)
    said = verdicts(measured)
    print_outages(measured, said)
    write(
        chosen.output,
        {
            "benchmark": "redis_outage",
            "goal": {
                "refused": OTHERS,
                "silent": {"first": FIRST * 1e3, "others": OTHERS},
                "unit": "milliseconds",
                "undelivered": "reported, and no stale read",
            },
            "environment": where,
            "seconds": seconds,
            "given_up_after": LIMIT,
            "measured": measured,
        },
    )


def without(name: str, path: Path, seconds: float) -> dict[str, Any]:
    """Measure a query as often as a list would be read."""
    with Worker(Visitor, name, "", path) as visitor:
        visits = [visitor.call("visit"), *visitor.call("visit_for", seconds)]
    first, *others = (took for took, _ in visits)
    return {"first": round(first * 1e3, 3), **milliseconds(others), "reads": len(visits)}


def outage(how: str, name: str, path: Path, seconds: float) -> dict[str, Any]:
    """Measure the reads of one contender while the server is away, and until it is used again."""
    with Server() as server, Worker(Visitor, name, server.url, path) as visitor:
        (server.kill if how == "refused" else server.halt)()
        found: dict[str, Any] = {"first": None, "p50": None, "p99": None, "most": None}
        found |= {"reads": 0, "raised": 0, "seconds_until_cached": None}
        try:
            visitor.begin("visit")
            visits = [visitor.answer(LIMIT)]
            found["first"] = round(visits[0][0] * 1e3, 3)
            visitor.begin("visit_for", seconds)
            visits += visitor.answer(seconds + LIMIT)
            found |= milliseconds([took for took, _ in visits[1:]])
            found |= {"reads": len(visits), "raised": sum(raised for _, raised in visits)}
            (server.start if how == "refused" else server.go_on)()
            visitor.begin("visit_until_cached")
            found["seconds_until_cached"] = round(visitor.answer(2 * LIMIT), 3)
        except TooLate:
            pass
    return found


def undelivered(name: str, life: float) -> dict[str, Any]:
    """Count what is stale after a clear that the server could not be told of."""
    table = SlowTable(SLOTS, 0.005)
    lists = [List(name, table, life)]
    with (
        Server() as server,
        Worker(Side, server.url, lists, 1) as one,
        Worker(Side, server.url, lists, 1) as other,
    ):
        for each in (one, other):
            each.call("read", name)
        expires = time.monotonic() + life
        server.cut_off()
        version = table.change()
        told = one.call("clear", name)
        table.acknowledge(version)
        during = one.call("rush", 0.0, time.monotonic() + 0.5, name)
        server.reconnect()
        for each in (one, other):
            each.begin("rush", 0.0, expires + 0.5, name)
        after, others = one.answer(), other.answer()
    reported = told is False if name.startswith("slotcache") else isinstance(told, str)
    return {
        "reported": reported,
        "told": repr(told) if not isinstance(told, str) else f"raised {told.partition(':')[0]}",
        "reads": len(during) + len(after),
        "raised": sum(read.shown is None for read in (*during, *after)),
        "stale_reads": sum(read.stale for read in (*during, *after)),
        "stale_reads_elsewhere": sum(read.stale for read in others),
        "stale_seconds_elsewhere": round(stale_for(others), 3),
    }


def stale_for(reads: list[Read]) -> float:
    """Return how long after the first of these reads the last stale one ended."""
    passed, last = 0.0, 0.0
    for read in reads:
        passed += read.seconds
        last = passed if read.stale else last
    return last


def verdicts(measured: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Say of each goal whether it is met."""
    refused, silent, cut = (
        measured[f"{how}: slotcache"] for how in ("refused", "silent", "undelivered")
    )
    every = verdict(max(refused["first"], refused["most"]), OTHERS)
    first = verdict(round(silent["first"] / 1e3, 2), FIRST)  # to the hundredth, as it is set
    others = verdict(silent["most"], OTHERS)
    reported = "met" if cut["reported"] else "missed"
    return {
        "refused: slotcache": f"every, {every}",
        "silent: slotcache": f"first, {first}; others, {others}",
        "undelivered: slotcache": f"reported: {reported}; stale, {verdict(cut['stale_reads'], 0)}",
    }


def print_outages(measured: dict[str, dict[str, Any]], said: dict[str, str]) -> None:
    def shown(figure: float | None, digits: int) -> str:
        return "never" if figure is None else f"{figure:,.{digits}f}"

    width = max(map(len, measured))
    line = f"{{:{width}}} {{:>9}} {{:>9}} {{:>9}} {{:>9}} {{:>7}} {{:>7}} {{:>9}}   {{}}"
    heads = ["first, ms", "then p50", "p99", "most", "reads", "raised", "cached, s"]
    print(line.format("", *heads, "goal"))
    for name, each in measured.items():
        if "first" in each:
            figures = [shown(each[which], 2) for which in ("first", "p50", "p99", "most")]
            figures += [each["reads"], each.get("raised", "")]
            figures.append(shown(each["seconds_until_cached"], 2) if "raised" in each else "")
            print(line.format(name, *figures, said.get(name, "")).rstrip())
    heads = ["stale", "elsewhere", "for, s", "", "reads", "raised", ""]
    print(line.format("", *heads, "the clear"))
    for name, each in measured.items():
        if "told" in each:
            figures = [each["stale_reads"], each["stale_reads_elsewhere"]]
            figures += [shown(each["stale_seconds_elsewhere"], 2), ""]
            figures += [each["reads"], each["raised"], ""]
            goal = said.get(name, "")
            print(line.format(name, *figures, f"{each['told']}   {goal}").rstrip())


if __name__ == "__main__":
    main()
