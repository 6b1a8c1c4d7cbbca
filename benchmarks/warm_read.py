"""S1: a warm read, against the least that a cache with a life can do.

The floor is `dict.get`, `time.monotonic()` and the comparison, in a method. The goal is twice
that, for a list of any length. `read()` and a read with a scope are measured for information.

    python3 dev.py bench warm_read [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import monotonic

from _runner import Measured, environment, interleave, write
from slotcache import Availability, AvailabilityPolicy, SlotAvailabilityService
from slotcache.protocols import Loaded, Scope

GOAL = 2.0
SIZES = (10, 1_000, 100_000)
HOUR = 3600.0
RESULTS = Path(__file__).parent / "results" / "warm_read.json"


class Floor:
    """The least: keeps a value for a while, and hands out that very object."""

    def __init__(self, value: object) -> None:
        self._kept = {"slots.availability": (value, monotonic() + HOUR)}

    def get(self, key: str = "slots.availability") -> object:
        kept = self._kept.get(key)
        if kept is not None and monotonic() < kept[1]:
            return kept[0]
        return None


class Prepared:
    """A table whose list has been read already."""

    scope_type = str

    def __init__(self, slots: int) -> None:
        rows = ((slot_id, 30, slot_id % 31) for slot_id in range(slots))
        self._loaded = Loaded(Availability.of(rows))

    def load(self, scope: Scope | None) -> Loaded:  # noqa: ARG002  (all have the same list)
        return self._loaded


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(description="Measure a warm read against its floor.")
    parser.add_argument("--quick", action="store_true", help="too short to mean anything")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    options = parser.parse_args()
    rounds, number = (2, 100) if options.quick else (100, 20_000)

    where = environment("slotcache", "cachetools")
    measured = interleave(calls(), rounds=rounds, number=number)
    print_table(measured)
    write(
        options.output,
        {
            "benchmark": "warm_read",
            "goal": {"get_availability": GOAL, "unit": "times the floor"},
            "environment": where,
            "rounds": rounds,
            "calls_a_round": number,
            "measured": {name: asdict(figures) for name, figures in measured.items()},
        },
    )


def calls() -> dict[str, Callable[[], object]]:
    """All that is measured by name, the floor first; every list is warm."""
    found: dict[str, Callable[[], object]] = {"floor": Floor(Availability.of([])).get}
    for size in SIZES:
        service = SlotAvailabilityService(Prepared(size), policy=AvailabilityPolicy(ttl=HOUR))
        found[f"get_availability, {size} slots"] = service.get_availability
        found[f"get_availability(scope), {size} slots"] = partial(service.get_availability, "JFK")
        found[f"read, {size} slots"] = service.read
    for call in found.values():
        call()
    return found


def print_table(measured: dict[str, Measured]) -> None:
    line = "{:38} {:>10} {:>6} {:>13}   {}"
    print(line.format("", "median, ns", "ratio", "p10 to p90", "goal"))
    for name, each in measured.items():
        spread = f"{each.ratio.p10:.2f} to {each.ratio.p90:.2f}"
        nanoseconds, ratio = f"{each.nanoseconds.median:.0f}", f"{each.ratio.median:.2f}"
        goal = verdict(each) if name.startswith("get_availability,") else ""
        print(line.format(name, nanoseconds, ratio, spread, goal).rstrip())


def verdict(each: Measured) -> str:
    return f"{GOAL:g}: " + ("met" if each.ratio.median <= GOAL else "missed")


if __name__ == "__main__":
    main()
