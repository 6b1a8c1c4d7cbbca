"""An entry as bytes: what goes in comes out, and in which layout. What else is a miss is P10."""

from __future__ import annotations

import math
import struct
import sys
from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given

from slotcache.availability import Availability
from slotcache.codec import HEADER_SIZE, decode, encode
from slotcache.protocols import Entry, Generation
from tests.support.lists import ABSURD, SAMPLES, Row, each_kind, entries, int_lists, sealed, use

# What goes in comes out


@given(entries)
def test_an_entry_comes_back_equal(entry: Entry) -> None:
    decoded = decode(encode(entry))
    assert decoded == entry
    assert decoded is not None
    assert decoded.availability.etag == entry.availability.etag
    assert decoded.availability.to_json() == entry.availability.to_json()
    use(decoded)


@pytest.mark.parametrize("id_bits", [8, 16, 32, 64])
@pytest.mark.parametrize("capacity", [2**8 - 1, 2**16 - 1, 2**31 - 1])
def test_the_ends_of_every_width_come_back(id_bits: int, capacity: int) -> None:
    end = 2 ** (id_bits - 1)
    rows: list[Row] = [(-end, capacity, 0), (end - 1, capacity, capacity)]
    entry = replace(SAMPLES[0], availability=Availability.of(rows))
    assert decode(encode(entry)) == entry


@pytest.mark.parametrize("length", [0, 2**8 - 1, 2**8, 2**16 - 1, 2**16])
def test_texts_of_every_length_come_back(length: int) -> None:
    rows: list[Row] = [("ü" * length, 2, 1), ("A", 2, 1)]
    entry = replace(SAMPLES[0], availability=Availability.of(rows))
    assert decode(encode(entry)) == entry


@given(entries)
def test_ids_come_back_as_the_type_that_they_were(entry: Entry) -> None:
    decoded = decode(encode(entry))
    assert decoded is not None
    assert [type(row.slot_id) for row in decoded.availability] == [
        type(row.slot_id) for row in entry.availability
    ]


@each_kind
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_may_come_in_any_buffer(entry: Entry, kind: Any) -> None:
    assert decode(kind(encode(entry))) == entry


@each_kind
def test_a_buffer_may_have_gaps(entry: Entry) -> None:
    with_gaps = bytes(byte for each in encode(entry) for byte in (each, 0))
    assert decode(memoryview(with_gaps)[::2]) == entry


def test_a_buffer_may_have_items_of_several_bytes() -> None:
    assert decode(memoryview(encode(SAMPLES[0])).cast("I")) == SAMPLES[0]


def test_changing_the_buffer_afterwards_changes_nothing() -> None:
    buffer = bytearray(encode(SAMPLES[1]))
    decoded = decode(buffer)
    buffer[:] = bytes(len(buffer))
    assert decoded == SAMPLES[1]


def test_infinite_instants_come_back() -> None:
    entry = replace(SAMPLES[1], since=-math.inf, until=math.inf)
    assert decode(encode(entry)) == entry


@pytest.mark.parametrize(
    "generation",
    [Generation(2**64, 0), Generation(0, 2**64), Generation(-1, 0), Generation(0, -1)],
    ids=str,
)
def test_a_generation_outside_64_bits_is_refused(generation: Generation) -> None:
    advice = r"epoch and clears must be from 0 to 2\*\*64 - 1"
    with pytest.raises(ValueError, match=rf"^Generation\(.*\).*: {advice}"):
        encode(replace(SAMPLES[1], generation=generation))


@pytest.mark.parametrize("instant", [None, "1.5", 10**400])
@pytest.mark.parametrize("name", ["since", "until"])
def test_an_instant_that_is_no_float_is_refused(name: str, instant: Any) -> None:
    with pytest.raises(ValueError, match="since and until floats"):
        encode(replace(SAMPLES[1], **{name: instant}))


@pytest.mark.parametrize("nan", [{"since": math.nan}, {"until": math.nan}], ids=str)
def test_an_instant_that_is_nan_is_refused(nan: Any) -> None:
    with pytest.raises(ValueError, match="an instant must not be NaN"):
        encode(replace(SAMPLES[1], **nan))


# The layout, which other releases and languages rely on

GENERATION_AND_INSTANTS = (
    "8877665544332211 0300000000000000"  # epoch, clears
    "000000000000f83f 0000000000c04e40"  # since 1.5, until 61.5
)
GOLDEN = [
    # slot, version, kind, bytes an id, bytes a count; number of slots, checksum; the columns
    ("736c6f74 01 69 01 01", "00000000 db5a611a", ""),
    ("736c6f74 01 69 01 01", "02000000 ad633e35", "07fd 0205 0100"),
    (
        "736c6f74 01 73 01 02",
        "02000000 28393c15",
        "0108 415ac3bc7269636820f09f9a9a 02002c01 01000000",
    ),
    (
        "736c6f74 01 75 10 01",
        "02000000 bc9db45f",
        "00000000000000000000000000000001 00000000000000000000000000000002 0205 0100",
    ),
]


@pytest.mark.parametrize(
    ("entry", "golden"),
    list(zip(SAMPLES, GOLDEN, strict=True)),
    ids=["empty", "int", "str", "UUID"],
)
def test_the_layout_is_the_one_that_was_published(
    entry: Entry, golden: tuple[str, str, str]
) -> None:
    start, end, columns = golden
    data = bytes.fromhex(start + GENERATION_AND_INSTANTS + end + columns)
    assert encode(entry) == data
    assert decode(data) == entry


@each_kind
def test_the_columns_come_after_the_header(entry: Entry) -> None:
    header, columns = encode(entry)[:HEADER_SIZE], encode(entry)[HEADER_SIZE:]
    assert header[44:] == struct.pack("<I", crc32(header[:44] + columns))
    assert bool(columns) is bool(entry.availability)


@given(int_lists)
def test_a_slot_with_an_int_id_takes_at_most_16_bytes(availability: Availability) -> None:
    data = encode(replace(SAMPLES[0], availability=availability))
    assert len(data) <= HEADER_SIZE + 16 * len(availability)


def test_small_numbers_take_few_bytes() -> None:
    availability = Availability.of((number, 8, number % 9) for number in range(10_000))
    data = encode(replace(SAMPLES[0], availability=availability))
    assert len(data) == HEADER_SIZE + 4 * len(availability)


def test_equal_lists_have_equal_bytes_however_they_were_made() -> None:
    wide = Availability.of([(7, 2, 1), (2**40, 2**20, 0), (8, 3, 3)])
    made_of_a_wider = replace(SAMPLES[0], availability=wide[::2])
    made_of_rows = replace(SAMPLES[0], availability=Availability.of([(7, 2, 1), (8, 3, 3)]))
    assert encode(made_of_a_wider) == encode(made_of_rows)


def test_a_host_of_the_other_byte_order_swaps_on_both_ways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = replace(SAMPLES[0], availability=Availability.of([(7, 300, 1), (-300, 5, 0)]))
    other_order = {"little": "big", "big": "little"}[sys.byteorder]
    monkeypatch.setattr(sys, "byteorder", other_order)
    swapped = struct.pack(">2h 2H 2H", 7, -300, 300, 5, 1, 0)
    assert encode(entry)[HEADER_SIZE:] == swapped
    assert decode(encode(entry)) == entry


# What is a miss


def test_less_than_a_header_is_a_miss_even_if_its_checksum_is_right() -> None:
    start = b"slot\1"
    to_zero = crc32(start) ^ int.from_bytes(b"\x9d\x0a\xd9\x6d", "little")
    data = start + to_zero.to_bytes(4, "little")
    assert crc32(data) == int.from_bytes(data[44:], "little") == 0
    assert decode(data) is None


def test_an_unknown_kind_is_a_miss() -> None:
    kinds = [bytes([kind]) for kind in range(256)]
    known = [kind for kind in kinds if decode(sealed(b"\1\2\1", kind=kind, slots=1))]
    assert known == [b"i"]


@pytest.mark.parametrize(
    ("kind", "known"), [(b"i", [1, 2, 4, 8]), (b"s", [1, 2, 4]), (b"u", [16])], ids=str
)
def test_an_unknown_width_is_a_miss(kind: bytes, known: list[int]) -> None:
    def of_width(id_size: int, count_size: int) -> Entry | None:
        columns = bytes(id_size + 2 * count_size)
        return decode(sealed(columns, kind=kind, id_size=id_size, count_size=count_size, slots=1))

    assert [size for size in range(256) if of_width(size, 1)] == known
    assert [size for size in range(256) if of_width(known[0], size)] == [1, 2, 4]


NONSENSE = {
    "str without slots": sealed(kind=b"s"),
    "UUID without slots": sealed(kind=b"u", id_size=16),
    "slots without columns": sealed(slots=1),
    "a byte too few": sealed(b"\7\2", slots=1),
    "a byte too many": sealed(b"\7\2\1\0", slots=1),
    "a byte too few for a UUID": sealed(bytes(17), kind=b"u", id_size=16, slots=1),
    "a byte too many for a UUID": sealed(bytes(19), kind=b"u", id_size=16, slots=1),
    "text without slots": sealed(b"A", kind=b"s"),
    "text left over": sealed(b"\0A\2\1", kind=b"s", slots=1),
    "text too short": sealed(b"\2A\2\1", kind=b"s", slots=1),
    "bytes counted": sealed("\2ü\2\1".encode(), kind=b"s", slots=1),
    "a length above all": sealed(b"\xff\2A\2\2\1\1", kind=b"s", slots=2),
    "lengths that add up in 32 bits": sealed(
        struct.pack("<II", ABSURD, 2) + b"A\2\2\1\1", kind=b"s", id_size=4, slots=2
    ),
    "no UTF-8": sealed(b"\1\xff\2\1", kind=b"s", slots=1),
    "half a character": sealed(b"\1\xc3\2\1", kind=b"s", slots=1),
    "an overlong character": sealed(b"\1\xc0\x80\2\1", kind=b"s", slots=1),
    "a lone surrogate": sealed(b"\1\xed\xa0\x80\2\1", kind=b"s", slots=1),
    "a character beyond Unicode": sealed(b"\1\xf5\x80\x80\x80\2\1", kind=b"s", slots=1),
    "since is NaN": sealed(since=math.nan),
    "until is NaN": sealed(until=math.nan),
}


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_with_a_right_checksum_is_a_miss(data: bytes) -> None:
    assert decode(data) is None


# What may be wrong, but does no harm


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (sealed(b"\7\7\2\2\1\1", slots=2), [(7, 2, 1), (7, 2, 1)]),
        (sealed(b"\7\2\3", slots=1), [(7, 2, 3)]),
        (sealed(b"\7" + b"\xff" * 8, count_size=4, slots=1), [(7, ABSURD, ABSURD)]),
        (sealed(b"\7\0\2\1", id_size=2, slots=1), [(7, 2, 1)]),
        (sealed(b"\1\1AA\2\2\1\1", kind=b"s", slots=2), [("A", 2, 1), ("A", 2, 1)]),
    ],
    ids=["a slot twice", "more free than places", "absurd counts", "wider than need be", "a str"],
)
def test_content_that_cannot_be_true_is_not_looked_for(data: bytes, rows: list[Row]) -> None:
    entry = decode(data)
    assert entry is not None
    assert list(entry.availability) == rows
    use(entry)


def test_a_part_of_a_list_that_cannot_be_true_is_checked() -> None:
    entry = decode(sealed(b"\7\7\2\2\1\1", slots=2))
    assert entry is not None
    with pytest.raises(ValueError, match="row 0 is the same slot"):
        entry.availability[:2]
