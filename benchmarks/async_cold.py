"""S12: what 200 tasks wait for a list that is cold, and whose query lasts 50 ms.

In an episode all tasks begin in one turn of the event loop, and read once each. The floor is a task
that sleeps for as long as the query lasts. Goals: exactly one load, and the last of them has it
within 53 ms. The peers are in `_tasks.py`.

    python3 dev.py bench async_cold [--quick] [--output FILE]
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from _runner import available, environment, milliseconds, options, verdict, write
from _tasks import MAKERS, PACKAGES, Contender, Table

GOAL = 53.0
SLOTS, QUERY = 1_000, 0.05


@dataclass
class Episodes:
    """What became of all episodes with one contender."""

    last: list[float] = field(default_factory=list)
    loads: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        return {**milliseconds(self.last), "most_loads": max(self.loads)}


def main() -> None:
    """Measure, print a table and write the results."""
    chosen = options("async_cold", "Measure what 200 tasks wait for a cold list.")
    episodes, tasks = (2, 20) if chosen.quick else (40, 200)

    where = environment(*PACKAGES)
    with asyncio.Runner() as runner:
        measured = runner.run(measure(episodes, tasks))
    print_waits(measured)
    write(
        chosen.output,
        {
            "benchmark": "async_cold",
            "goal": {"slotcache": GOAL, "unit": "ms until the last has it, p50", "loads": 1},
            "environment": where,
            "tasks": tasks,
            "episodes": episodes,
            "measured": measured,
        },
    )


async def measure(episodes: int, tasks: int) -> dict[str, dict[str, Any]]:
    """Have all of them take turns; the first episode is a rehearsal."""
    table = Table(SLOTS, partial(asyncio.sleep, QUERY))
    found = {name: Episodes() for name in ("floor", *MAKERS)}
    contenders = available(MAKERS, table)
    for episode in range(episodes + 1):
        for name in ("floor", *contenders):
            took, loads = await play(contenders.get(name), table, tasks)
            if episode:
                found[name].last.append(took)
                found[name].loads.append(loads)
    return {name: each.summary() for name, each in found.items() if each.last}


async def play(contender: Contender | None, table: Table, tasks: int) -> tuple[float, int]:
    """Return when the last of all tasks had the list, and how many loads that took."""
    if contender is None:
        began = time.perf_counter()
        await asyncio.create_task(asyncio.sleep(QUERY))
        return time.perf_counter() - began, 1
    await contender.clear()
    loads, began = table.loads, time.perf_counter()
    await asyncio.gather(*(contender.read() for _ in range(tasks)))
    return time.perf_counter() - began, table.loads - loads


def print_waits(measured: Mapping[str, Mapping[str, Any]]) -> None:
    line = "{:18} {:>8} {:>8} {:>8} {:>6}   {}"
    print(line.format("ms", "p50", "p99", "most", "loads", "goal"))
    for name, each in measured.items():
        goal = ""
        if name == "slotcache":
            goal = f"{verdict(each['p50'], GOAL)}, loads {verdict(each['most_loads'], 1)}"
        times = (f"{each[which]:.1f}" for which in ("p50", "p99", "most"))
        print(line.format(name, *times, each["most_loads"], goal).rstrip())


if __name__ == "__main__":
    main()
