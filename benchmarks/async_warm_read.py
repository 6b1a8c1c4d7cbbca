"""S2: a warm read on asyncio, against the least that a cache with a life can do without awaiting.

The floor is that of `warm_read`: `dict.get`, `time.monotonic()` and the comparison, in a method
that nobody awaits. The goal is three times that, for a list of any length, with no task for a read
(a test counts them). The peers are in `_tasks.py`.

    python3 dev.py bench async_warm_read [--quick] [--output FILE]
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from functools import partial
from timeit import Timer

from _runner import (
    Measured,
    available,
    environment,
    options,
    print_table,
    take_turns,
    verdict,
    write,
)
from _tasks import MAKERS, PACKAGES, Contender, Table
from slotcache import Availability
from warm_read import Floor

GOAL = 3.0
SIZES = (10, 1_000, 100_000)
PEERS_AT = 1_000


def main() -> None:
    """Measure, print a table and write the results."""
    chosen = options("async_warm_read", "Measure a warm read on asyncio against its floor.")
    rounds, number = (2, 100) if chosen.quick else (60, 10_000)

    where = environment(*PACKAGES)
    with asyncio.Runner() as runner:
        measured = measure(runner, rounds, number)
    verdicts = {
        name: verdict(each.ratio.median, GOAL)
        for name, each in measured.items()
        if name.startswith("slotcache")
    }
    print_table(measured, verdicts)
    write(
        chosen.output,
        {
            "benchmark": "async_warm_read",
            "goal": {"slotcache": GOAL, "unit": "times the floor"},
            "environment": where,
            "rounds": rounds,
            "calls_a_round": number,
            "measured": measured,
        },
    )


def measure(runner: asyncio.Runner, rounds: int, number: int) -> dict[str, Measured]:
    """Have all of them take turns, the floor first; every list is warm."""
    floor = Timer(Floor(Availability.of([])).get)
    turns: dict[str, Callable[[], float]] = {"floor": lambda: floor.timeit(number) / number}
    for name, contender in contenders().items():
        runner.run(calls(contender.read, 2))
        turns[name] = partial(_turn, runner, contender, number)
    return take_turns(turns, rounds=rounds)


def contenders() -> dict[str, Contender]:
    """All that is measured, by name."""
    found = {
        f"slotcache, {size} slots": MAKERS["slotcache"](Table(size, _at_once)) for size in SIZES
    }
    peers = {name: make for name, make in MAKERS.items() if name != "slotcache"}
    made = available(peers, Table(PEERS_AT, _at_once))
    return found | {f"{name}, {PEERS_AT} slots": each for name, each in made.items()}


def _turn(runner: asyncio.Runner, contender: Contender, number: int) -> float:
    return runner.run(calls(contender.read, number))


async def calls(read: Callable[[], Awaitable[object]], number: int) -> float:
    """Return the seconds that one of so many reads takes, as `timeit` tells them."""
    gc.disable()
    try:
        began = time.perf_counter()
        for _ in range(number):
            await read()
        return (time.perf_counter() - began) / number
    finally:
        gc.enable()


async def _at_once() -> None:
    """The table answers."""


if __name__ == "__main__":
    main()
