"""S9: a list turned into bytes, and bytes into a list whose rows can be used.

The floor is three arrays joined, and three arrays filled again. The goal is 3 us each way for
1,000 typical slots; wide ones, and 100,000, are measured for information. `_slots.py` tells what
typical and wide are, `_formats.py` what each form is and checks.

Slotcache's list makes its rows when they are asked for. "slotcache.codec, all rows" decodes and
makes all of them, to be compared with the forms that cannot but do that.

    python3 dev.py bench encode_decode [--quick] [--output FILE]
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from _formats import Maker, formats
from _runner import Measured, environment, interleave, options, print_table, verdict, write
from _slots import Rows, typical, wide
from slotcache import SlotAvailability
from slotcache.codec import decode

GOAL = 3.0
GOALS = ("encode, typical, 1000: slotcache.codec", "decode, typical, 1000: slotcache.codec")


def main() -> None:
    """Measure, print a table and write the results."""
    chosen = options("encode_decode", "Measure encoding and decoding against their floors.")
    many = {"rounds": 2, "number": 2} if chosen.quick else {"rounds": 100, "number": 100}
    few = {"rounds": 2, "number": 1} if chosen.quick else {"rounds": 50, "number": 1}

    where = environment("slotcache", "msgspec", "orjson")
    makers = formats()
    measured = {
        **measure("typical, 1000", makers, typical(1_000), **many),
        **measure("wide, 1000", makers, wide(1_000), **many),
        **measure("typical, 100000", makers, typical(100_000), **few),
    }
    verdicts = {name: verdict(measured[name].nanoseconds.median / 1_000, GOAL) for name in GOALS}
    print_table(measured, verdicts)
    write(
        chosen.output,
        {
            "benchmark": "encode_decode",
            "goal": {**dict.fromkeys(GOALS, GOAL), "unit": "microseconds"},
            "environment": where,
            "turns": {"1000": many, "100000": few},
            "measured": measured,
        },
    )


def measure(
    table: str, makers: Mapping[str, Maker], rows: Rows, *, rounds: int, number: int
) -> dict[str, Measured]:
    """Measure all forms of one list, in each direction against the floor of that direction."""
    forms = {name: make(rows) for name, make in makers.items()}
    stored = {name: form.encode(form.value) for name, form in forms.items()}
    encoding = {
        f"encode, {table}: {name}": partial(form.encode, form.value) for name, form in forms.items()
    }
    decoding = {
        f"decode, {table}: {name}": partial(form.decode, stored[name])
        for name, form in forms.items()
    }
    all_rows = partial(decode_all, stored["slotcache.codec"])
    decoding[f"decode, {table}: slotcache.codec, all rows"] = all_rows
    return {
        **interleave(encoding, rounds=rounds, number=number),
        **interleave(decoding, rounds=rounds, number=number),
    }


def decode_all(data: bytes) -> list[SlotAvailability]:
    entry = decode(data)
    assert entry is not None
    return list(entry.availability)


if __name__ == "__main__":
    main()
