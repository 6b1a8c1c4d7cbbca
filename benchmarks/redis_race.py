"""S13: a list is cleared while one process queries it, and is stored only after that.

One process finds no list and begins a query, which shows the table of that moment and lasts 50 ms.
Meanwhile another one commits a change and clears the list; then the first stores what it found.
From the clear on, the other process reads until half a second after the list's life of 1 s. The
goal is that not one of these reads is stale. Those that are show a sold place as free.

What that costs is counted in requests, each of which is a round trip, of one reader alone: for a
read of a warm list, a read that has to query, and a clear. A textbook read that is safe from
stampedes needs five of them when it has to query: get, lock, get, set, unlock. The goal is one for
a hit, as without generations, and six at most for a miss.

`_contenders.py` tells how each cache is used. A life is a TTL for all but "cashews early", which
serves what is older once more, and queries then.

    python3 dev.py bench redis_race [--quick] [--output FILE]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import fmean
from typing import Any

from _contenders import PACKAGES, SlowTable, installed_of
from _processes import PATIENCE, Worker
from _redis import Server
from _runner import environment, options, verdict, write
from _sides import List, Side
from _slots import HOUR

HIT, MISS = 1, 6
SLOTS, QUERY, LIFE = 1_000, 0.05, 1.0
CONTENDERS = [
    *("slotcache", "dogpile.cache redis", "cashews", "cashews early", "aiocache"),
    *("Django RedisCache", "cachelib RedisCache"),
]


class Stage:
    """A process that queries, and one that changes and then reads."""

    def __init__(self, server: Server, names: Sequence[str], stack: ExitStack) -> None:
        self._server = server
        self._tables = {name: SlowTable(SLOTS, QUERY) for name in names}
        lists = [List(name, table, LIFE) for name, table in self._tables.items()]
        lists += [List(name, SlowTable(1, 0.0), HOUR, "alone") for name in names]
        self._one, self._other = (
            stack.enter_context(Worker(Side, server.url, lists, 1)) for _ in range(2)
        )

    def race(self, name: str, seconds: float) -> tuple[int, int, float]:
        """Return how many reads were stale, of how many, and until how many seconds after it."""
        table = self._tables[name]
        self._other.call("read", name)
        self._other.call("clear", name)
        loads = table.loads
        self._one.begin("read", name)
        _wait_until(lambda: table.loads > loads)
        version = table.change()
        self._other.call("clear", name)
        table.acknowledge(version)
        self._one.answer()
        began = time.monotonic()
        reads = self._other.call("rush", began, began + seconds, name)
        ends, stale = 0.0, 0.0
        for read in reads:
            ends += read.seconds
            stale = ends if read.stale else stale
        return sum(read.stale for read in reads), len(reads), stale

    def requests(self, name: str, times: int) -> dict[str, float]:
        """Return how many requests a hit, a miss and a clear are, on average."""
        for method in ("read", "clear", "read"):  # it connects, and sends its scripts
            self._one.call(method, name, "alone")
        counted = {"hit": 0, "miss": 0, "clear": 0}
        for _ in range(times):
            for what, method in {"clear": "clear", "miss": "read", "hit": "read"}.items():
                before = self._server.requests()
                self._one.call(method, name, "alone")
                counted[what] += self._server.requests() - before
        return {what: round(count / times, 2) for what, count in counted.items()}


def main() -> None:
    """Measure, print a table and write the results."""
    chosen = options("redis_race", "Count stale reads after a clear that came during a query.")
    races, times, seconds = (1, 2, 0.1) if chosen.quick else (5, 20, LIFE + 0.5)

    where = environment(*PACKAGES)
    names = installed_of(CONTENDERS)
    with Server() as server, ExitStack() as stack:
        stage = Stage(server, names, stack)
        requests = {name: stage.requests(name, times) for name in names}
        raced: dict[str, list[tuple[int, int, float]]] = {name: [] for name in names}
        for _ in range(races):
            for name in names:
                raced[name].append(stage.race(name, seconds))
    measured = {name: summary(raced[name], requests[name]) for name in names}
    print_races(measured)
    write(
        chosen.output,
        {
            "benchmark": "redis_race",
            "goal": {"stale_reads": 0, "requests": {"hit": HIT, "miss": MISS}},
            "environment": where,
            "races": races,
            "measured": measured,
        },
    )


def summary(raced: Sequence[tuple[int, int, float]], requests: dict[str, float]) -> dict[str, Any]:
    stale, reads, seconds = zip(*raced, strict=True)
    return {
        "races_lost": sum(each > 0 for each in stale),
        "stale_reads": sum(stale),
        "reads": sum(reads),
        "stale_seconds": round(fmean(seconds), 3),
        "requests": requests,
    }


def print_races(measured: dict[str, dict[str, Any]]) -> None:
    width = max(map(len, measured))
    line = f"{{:{width}}} {{:>10}} {{:>11}} {{:>8}} {{:>9}}   {{:18}}   {{}}"
    costs = "hit, miss, clear"
    print(line.format("", "races lost", "stale reads", "of", "stale, s", costs, "goal"))
    for name, each in measured.items():
        requests = each["requests"]
        goal = ""
        if name == "slotcache":
            goal = f"stale, {verdict(each['stale_reads'], 0)}; hit, {verdict(requests['hit'], HIT)}"
            goal += f"; miss, {verdict(requests['miss'], MISS)}"
        costs = ", ".join(f"{count:g}" for count in requests.values())
        counts = (each[which] for which in ("races_lost", "stale_reads", "reads"))
        print(line.format(name, *counts, f"{each['stale_seconds']:.2f}", costs, goal).rstrip())


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.001)


if __name__ == "__main__":
    main()
