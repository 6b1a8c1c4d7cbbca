"""S22: 200 changes a second, of a list whose query lasts 20 ms: it is wrong before it is there.

A reader comes again 20 ms after each answer, on average, at random. The floor is one query: who
comes while one runs that began before the last change has to wait for the next one as well, so 20
to 40 ms is what cannot be beaten by anybody who shows no sold place as free. The goal is a p50 of
32 ms and a p99 of 65 ms, about the same for 16 processes and for 256.

real
    2 processes with 16 readers each, and a third one that changes the table and clears. "stale"
    is how many answers did not show a change that had returned before the read began; whoever
    gives many of them can be as fast as you like. "raised" is how many reads failed.
simulated
    The flow that is shipped, for asyncio, with one shared cache and locks whose calls take 0.1 to
    0.3 ms, in simulated time: no processor is ever busy. `_simulation.py` is all of it. "without
    copies" is the same flow when a fill that a clear outran is dropped, as any cache does it that
    has one lock and one value: then all who wait, wait for a moment between two changes that is
    longer than a query.

`_contenders.py` tells how each cache is used.

    python3 dev.py bench redis_storm [--quick] [--output FILE]
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from _contenders import PACKAGES, SlowTable, installed_of
from _processes import Worker
from _redis import Server
from _runner import environment, milliseconds, options, verdict, write
from _sides import List, Side
from _simulation import Storm
from _slots import HOUR

P50, P99 = 32.0, 65.0
QUERY, RATE, PAUSE = 0.02, 200.0, 0.02
SLOTS, READERS = 10, 16
CONTENDERS = [
    *("slotcache", "dogpile.cache redis", "cashews", "aiocache"),
    *("Django RedisCache", "cachelib RedisCache"),
]
SIMULATED = {
    "slotcache, 2 processes": (2, True, 10.0),
    "slotcache, 16 processes": (16, True, 10.0),
    "slotcache, 256 processes": (256, True, 3.0),
    "without copies, 2 processes": (2, False, 10.0),
    "without copies, 16 processes": (16, False, 10.0),
    "without copies, 256 processes": (256, False, 10.0),
}


def main() -> None:
    """Measure, print a table and write the results."""
    chosen = options(
        "redis_storm", "Measure what readers wait while the list changes all the time."
    )
    seconds = 0.3 if chosen.quick else 10.0

    where = environment(*PACKAGES)
    names = installed_of(CONTENDERS)
    measured = {f"real: {name}": real(name, seconds) for name in names}
    for name, (processes, keeps_copies, lasts) in SIMULATED.items():
        if chosen.quick:
            processes, lasts = min(processes, 4), 0.1
        measured[f"simulated: {name}"] = simulated(processes, lasts, keeps_copies=keeps_copies)
    print_storms(measured)
    write(
        chosen.output,
        {
            "benchmark": "redis_storm",
            "goal": {"p50": P50, "p99": P99, "unit": "milliseconds"},
            "environment": where,
            "readers_a_process": READERS,
            "measured": measured,
        },
    )


def real(name: str, seconds: float) -> dict[str, Any]:
    """Measure one contender in a storm of its own."""
    table = SlowTable(SLOTS, QUERY)
    lists = [List(name, table, HOUR)]
    with Server() as server, ExitStack() as stack:
        sides = [stack.enter_context(Worker(Side, server.url, lists, READERS)) for _ in range(2)]
        writer = stack.enter_context(Worker(Side, server.url, lists, 1))
        for each in (*sides, writer):
            each.call("read", name)
        loads, begin = table.loads, time.monotonic() + 0.05
        writer.begin("change", seconds + 0.05, RATE, name)
        for side in sides:
            side.begin("rush", begin, begin + seconds, name, "", PAUSE)
        reads = [read for side in sides for read in side.answer()]
        changes = writer.answer()
    return {
        "seconds": seconds,
        **milliseconds([read.seconds for read in reads]),
        "reads": len(reads),
        "loads": table.loads - loads,
        "stale": sum(read.stale for read in reads),
        "raised": sum(read.shown is None for read in reads),
        "changes": changes,
    }


def simulated(processes: int, seconds: float, *, keeps_copies: bool) -> dict[str, Any]:
    """Simulate so many processes."""
    storm = Storm(
        *(processes, READERS), rate=RATE, query=QUERY, pause=PAUSE, keeps_copies=keeps_copies
    )
    storm.run(seconds)
    return {
        "seconds": seconds,
        **milliseconds(storm.waits),
        "reads": len(storm.waits),
        "loads": storm.loads,
        "stale": storm.stale,
        "raised": 0,
    }


def print_storms(measured: dict[str, dict[str, Any]]) -> None:
    width = max(map(len, measured))
    line = f"{{:{width}}} {{:>8}} {{:>9}} {{:>9}} {{:>7}} {{:>6}} {{:>6}} {{:>6}}   {{}}"
    heads = ["p50, ms", "p99", "most", "reads", "loads", "stale", "raised"]
    print(line.format("", *heads, "goal"))
    for name, each in measured.items():
        goal = ""
        if ": slotcache" in name:
            goal = f"p50, {verdict(each['p50'], P50)}; p99, {verdict(each['p99'], P99)}"
        figures = [f"{each[which]:,.1f}" for which in ("p50", "p99", "most")]
        figures += [each[which] for which in ("reads", "loads", "stale", "raised")]
        print(line.format(name, *figures, goal).rstrip())


if __name__ == "__main__":
    main()
