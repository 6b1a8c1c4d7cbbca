"""S8: how many bytes a slot takes where a list is stored, with its share of the header.

The goal is 16, of typical slots: ids from 1 and up to 255 places. Slotcache stores a column as
narrow as its values allow. So there are wide slots as well, for information: with ids of 63 bits
and more than 65,535 places no column can be narrowed, and a slot takes 16 without the header.
`_formats.py` tells what each form is and checks.

    python3 dev.py bench encoded_size [--quick] [--output FILE]
"""

from __future__ import annotations

from collections.abc import Mapping

from _formats import Maker, formats
from _runner import environment, options, verdict, write
from _slots import Rows, typical, wide

GOAL = 16.0


def main() -> None:
    """Measure, print a table and write the results."""
    chosen = options("encoded_size", "Measure the bytes that a stored slot takes.")
    sizes = (10, 1_000) if chosen.quick else (1_000, 100_000)

    lists = {
        f"{kind.__name__}, {slots}": kind(slots) for kind in (typical, wide) for slots in sizes
    }
    measured = {
        name: {each: bytes_a_slot(make, rows) for each, rows in lists.items()}
        for name, make in formats().items()
    }
    print_sizes(measured)
    write(
        chosen.output,
        {
            "benchmark": "encoded_size",
            "goal": {"slotcache.codec, typical": GOAL, "unit": "bytes a slot"},
            "environment": environment("slotcache", "msgspec", "orjson"),
            "measured": measured,
        },
    )


def bytes_a_slot(make: Maker, rows: Rows) -> float:
    form = make(rows)
    data = form.encode(form.value)
    assert form.decode(data) == form.value
    return round(len(data) / len(rows), 2)


def print_sizes(measured: Mapping[str, Mapping[str, float]]) -> None:
    line = "{:18}" + " {:>16}" * len(measured["columns"]) + "   {}"
    print(line.format("bytes a slot", *measured["columns"], "goal"))
    for name, sizes in measured.items():
        most = max(size for each, size in sizes.items() if each.startswith("typical"))
        goal = verdict(most, GOAL) if name == "slotcache.codec" else ""
        print(line.format(name, *(f"{each:.2f}" for each in sizes.values()), goal).rstrip())


if __name__ == "__main__":
    main()
