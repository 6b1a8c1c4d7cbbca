"""S1: a warm read, against the least that a cache with a life can do.

The floor is `dict.get`, `time.monotonic()` and the comparison, in a method. The goal is twice
that, for a list of any length. `read()` and a read with a scope are measured for information.

    python3 dev.py bench warm_read [--quick] [--output FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic

from _runner import environment, interleave, options, print_table, verdict, write
from _slots import HOUR, Prepared, typical
from slotcache import Availability, AvailabilityPolicy, SlotAvailabilityService

GOAL = 2.0
SIZES = (10, 1_000, 100_000)


class Floor:
    """The least: keeps a value for a while, and hands out that very object."""

    def __init__(self, value: object) -> None:
        self._kept = {"slots.availability": (value, monotonic() + HOUR)}

    def get(self, key: str = "slots.availability") -> object:
        kept = self._kept.get(key)
        if kept is not None and monotonic() < kept[1]:
            return kept[0]
        return None


def main() -> None:
    """Measure, print a table and write the results."""
    chosen = options("warm_read", "Measure a warm read against its floor.")
    rounds, number = (2, 100) if chosen.quick else (100, 20_000)

    where = environment("slotcache", "cachetools")
    measured = interleave(calls(), rounds=rounds, number=number)
    verdicts = {
        name: verdict(each.ratio.median, GOAL)
        for name, each in measured.items()
        if name.startswith("get_availability,")
    }
    print_table(measured, verdicts)
    write(
        chosen.output,
        {
            "benchmark": "warm_read",
            "goal": {"get_availability": GOAL, "unit": "times the floor"},
            "environment": where,
            "rounds": rounds,
            "calls_a_round": number,
            "measured": measured,
        },
    )


def calls() -> dict[str, Callable[[], object]]:
    """All that is measured by name, the floor first; every list is warm."""
    found: dict[str, Callable[[], object]] = {"floor": Floor(Availability.of([])).get}
    for size in SIZES:
        slots = Prepared(typical(size))
        service = SlotAvailabilityService(slots, policy=AvailabilityPolicy(ttl=HOUR))
        found[f"get_availability, {size} slots"] = service.get_availability
        found[f"get_availability(scope), {size} slots"] = partial(service.get_availability, "JFK")
        found[f"read, {size} slots"] = service.read
    for call in found.values():
        call()
    return found


if __name__ == "__main__":
    main()
