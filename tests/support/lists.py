"""Lists of free places, and their bytes, for tests of what they hold and what becomes of them."""

from __future__ import annotations

import struct
from typing import Any
from uuid import UUID
from zlib import crc32

import pytest
from hypothesis import strategies as st

from slotcache.availability import Availability, SlotId
from slotcache.codec import decode, encode
from slotcache.protocols import Entry, Generation, Loaded

Row = tuple[SlotId, int, int]

U1, U2 = UUID(int=1), UUID(int=2)
THREE_KINDS: list[list[Row]] = [
    [(7, 2, 1), (-3, 5, 0)],
    [("A", 2, 1), ("Zürich 🚚", 5, 0)],
    [(U1, 2, 1), (U2, 5, 0)],
]

GENERATION = Generation(epoch=0x1122334455667788, clears=3)
SAMPLES = [
    Entry(Availability.of(rows), GENERATION, since=1.5, until=61.5)
    for rows in (
        [],
        [(7, 2, 1), (-3, 5, 0)],
        [("A", 2, 1), ("Zürich 🚚", 300, 0)],
        [(U1, 2, 1), (U2, 5, 0)],
    )
]
each_kind = pytest.mark.parametrize("entry", SAMPLES, ids=["empty", "int", "str", "UUID"])

ABSURD = 2**32 - 1
"""More slots than there can be."""

uint64 = st.integers(0, 2**64 - 1)
int64 = st.integers(-(2**63), 2**63 - 1)
ints_of_each_width = [st.integers(-(2**bits), 2**bits - 1) for bits in (7, 15, 31, 63)]
instants = st.floats(allow_nan=False)
text = st.text(st.characters(codec="utf-8"), max_size=5)


class Table:
    """A table with these rows."""

    scope_type = None

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def load(self, scope: object) -> Loaded:
        return Loaded(Availability.of(self.rows))


@st.composite
def true_rows(draw: st.DrawFn, min_size: int = 0) -> list[Row]:
    """Rows that can be true, with ids of any kind."""
    kinds: list[st.SearchStrategy[SlotId]] = [int64, text, st.uuids()]
    one_kind = draw(st.sampled_from(kinds))
    ids = draw(st.lists(one_kind, min_size=min_size, max_size=12, unique=True))
    capacities = [draw(st.integers(0, 2**31 - 1)) for _ in ids]
    remainings = [draw(st.integers(0, capacity)) for capacity in capacities]
    return list(zip(ids, capacities, remainings, strict=True))


@st.composite
def lists(draw: st.DrawFn, *kinds: st.SearchStrategy[Any]) -> Availability:
    """Lists with ids of one of these kinds, and counts of each width."""
    ids = draw(st.lists(draw(st.sampled_from(kinds)), max_size=8, unique=True))
    most = draw(st.sampled_from([2**8 - 1, 2**16 - 1, 2**31 - 1]))
    capacities = [draw(st.integers(0, most)) for _ in ids]
    remainings = [draw(st.integers(0, capacity)) for capacity in capacities]
    return Availability.of(zip(ids, capacities, remainings, strict=True))


int_lists = lists(*ints_of_each_width)
entries = st.builds(
    Entry,
    int_lists | lists(text, st.uuids()),
    st.builds(Generation, uint64, uint64),
    instants,
    instants,
)


def sealed(
    columns: bytes = b"",
    *,
    signature: bytes = b"slot\1",
    kind: bytes = b"i",
    id_size: int = 1,
    count_size: int = 1,
    slots: int = 0,
    since: float = 1.5,
    until: float = 61.5,
) -> bytes:
    """What anybody can write: any header over any columns, and the right checksum of both."""
    header = signature + kind
    header += struct.pack("<BBQQddI", id_size, count_size, 1, 2, since, until, slots)
    return header + struct.pack("<I", crc32(header + columns)) + columns


def use(entry: Entry) -> None:
    """Ask a list everything that a reader may ask."""
    availability = entry.availability
    rows = list(availability)
    assert len(rows) == len(availability) == len(availability.to_dicts())
    assert all(availability.get(row.slot_id) is not None for row in rows)
    assert all(min(row.capacity, row.remaining) >= 0 for row in rows)
    assert [availability[index] for index in range(len(rows))] == rows
    assert availability.to_json().startswith(b"[")
    assert availability.etag
    assert repr(availability)
    assert hash(availability) == hash(availability.etag)
    assert decode(encode(entry)) == entry
