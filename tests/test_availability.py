"""The list of what is free: what may be in it, and how it is asked. That it never changes is P9."""

from __future__ import annotations

import enum
import json
import pickle
import struct
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slotcache.availability import Availability, Reading, SlotAvailability, SlotId, Source
from tests.support.lists import THREE_KINDS, U1, U2, Row, true_rows

# So few that two draws are often equal, or nearly.
few_rows: st.SearchStrategy[list[Row]] = st.lists(
    st.sampled_from([("", 1, 0), ("", 1, 1), ("a", 1, 0), ("aa", 1, 0)]),
    max_size=2,
    unique_by=lambda row: row[0],
)


# What it holds


@given(true_rows())
def test_it_holds_the_rows_it_was_made_of_in_their_order(rows: list[Row]) -> None:
    assert list(Availability.of(rows)) == rows
    assert len(Availability.of(rows)) == len(rows)


@given(true_rows())
def test_ids_come_back_as_the_type_that_they_were(rows: list[Row]) -> None:
    assert [type(row.slot_id) for row in Availability.of(rows)] == [type(row[0]) for row in rows]


def test_rows_come_back_as_named_tuples() -> None:
    first = next(iter(Availability.of([("A", 2, 1)])))
    assert type(first) is SlotAvailability
    assert (first.slot_id, first.capacity, first.remaining) == ("A", 2, 1)


def test_rows_may_be_tuples_named_tuples_lists_or_made_on_the_way() -> None:
    expected = Availability.of([("A", 2, 1)])
    assert Availability.of([SlotAvailability("A", 2, 1)]) == expected
    assert Availability.of([["A", 2, 1]]) == expected  # type: ignore[list-item]
    assert Availability.of(row for row in [("A", 2, 1)]) == expected
    assert Availability.of(expected) == expected


def test_a_list_without_rows_is_a_list() -> None:
    empty = Availability.of([])
    assert len(empty) == 0
    assert not empty
    assert list(empty) == []
    assert empty.to_json() == b"[]"
    assert empty.get("A") is None


@given(true_rows(), st.sampled_from([list, tuple]))
def test_columns_make_the_same_list_as_rows(
    rows: list[Row], kind: Callable[[list[Any]], Sequence[Any]]
) -> None:
    ids, capacities, remainings = (kind([row[column] for row in rows]) for column in range(3))
    assert Availability._of_columns(ids, capacities, remainings) == Availability.of(rows)


def test_arrays_serve_as_columns() -> None:
    made = Availability._of_columns(array("q", [7, -3]), array("i", [2, 5]), array("i", [1, 0]))
    assert made == Availability.of(THREE_KINDS[0])


@pytest.mark.parametrize(
    ("end", "id_size"), [(2**7, 1), (2**15, 2), (2**31, 4), (2**63, 8)], ids=str
)
def test_int_ids_are_kept_in_the_narrowest_array_that_holds_them(end: int, id_size: int) -> None:
    for ids in ([-end, 0], [0, end - 1]):
        made = Availability.of((each, 1, 1) for each in ids)
        assert made._ids.itemsize == id_size  # type: ignore[union-attr]
        assert [row.slot_id for row in made] == ids


@pytest.mark.parametrize(
    ("most", "count_size"), [(2**8 - 1, 1), (2**16 - 1, 2), (2**31 - 1, 4)], ids=str
)
def test_counts_are_kept_in_the_narrowest_array_that_holds_the_capacities(
    most: int, count_size: int
) -> None:
    rows: list[Row] = [("A", most, 0), ("B", 0, 0), ("C", most, most)]
    made = Availability.of(rows)
    assert (made._capacities.itemsize, made._remainings.itemsize) == (count_size, count_size)
    assert list(made) == rows


@given(true_rows(), st.slices(12))
def test_equal_lists_are_kept_alike_however_they_were_made(rows: list[Row], part: slice) -> None:
    made = Availability.of(rows[part])
    ids, capacities, remainings = Availability.of(rows)._columns()
    for twin in (
        Availability.of(rows)[part],
        Availability._of_columns(ids[part], capacities[part], remainings[part]),
        pickle.loads(pickle.dumps(made)),
    ):
        assert [kept(column) for column in twin._columns()] == [
            kept(column) for column in made._columns()
        ]


def kept(column: Any) -> str:
    return column.typecode if isinstance(column, array) else type(column).__name__


def test_derived_types_become_plain() -> None:
    class Dock(enum.IntEnum):
        EAST = 7

    class Room(enum.StrEnum):
        BLUE = "blue"

    class DriverUUID(UUID):
        pass

    rows: list[tuple[SlotId, SlotId]] = [
        (Dock.EAST, 7),
        (Room.BLUE, "blue"),
        (DriverUUID(int=1), U1),
    ]
    for given_id, plain in rows:
        [row] = Availability.of([(given_id, Dock.EAST, Dock.EAST)])
        assert row == (plain, 7, 7)
        assert [type(value) for value in row] == [type(plain), int, int]


# What it refuses


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        ((None, 2, 1), "slot_id must be an int, a str or a UUID, not None"),
        ((1.0, 2, 1), "slot_id must be an int, a str or a UUID, not 1.0"),
        ((True, 2, 1), "slot_id must be an int, a str or a UUID, not True"),
        ((b"A", 2, 1), "slot_id must be an int, a str or a UUID, not b'A'"),
        (([], 2, 1), r"slot_id must be an int, a str or a UUID, not \[\]"),
        ((1, 2, 1), "slot_id must be of the type that row 0 has, as 'first', not 1"),
        ((U1, 2, 1), "slot_id must be of the type that row 0 has, as 'first'"),
        (("A", 2.0, 1), "capacity must be an int, not 2.0"),
        (("A", None, 1), "capacity must be an int, not None"),
        (("A", True, 1), "capacity must be an int, not True"),
        (("A", 2, "1"), "remaining must be an int, not '1'"),
        (("A", 2, False), "remaining must be an int, not False"),
    ],
)
def test_a_wrong_type_is_refused_and_its_row_is_named(row: Row, advice: str) -> None:
    with pytest.raises(TypeError, match=rf"^row 1 .*: {advice}"):
        Availability.of([("first", 1, 1), row])


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        ((7, 2, 3), "remaining must be from 0 to the capacity, 2, not 3"),
        ((7, 2, -1), "remaining must be from 0 to the capacity, 2, not -1"),
        ((7, 2**31 - 1, 2**31), "remaining must be from 0 to the capacity, 2147483647, not"),
        ((7, -1, 0), "capacity must be from 0 to 2147483647, not -1"),
        ((7, -1, -1), "capacity must be from 0 to 2147483647, not -1"),
        ((7, 2**31, 0), "capacity must be from 0 to 2147483647, not 2147483648"),
        (
            (2**63, 2, 1),
            r"slot_id must be from -2\*\*63 to 2\*\*63 - 1: write a larger one as a str",
        ),
        ((-(2**63) - 1, 2, 1), "slot_id must be from"),
        ((0, 2, 1), "row 0 is the same slot, list each slot once"),
    ],
)
def test_a_row_that_cannot_be_true_is_refused_and_named(row: Row, advice: str) -> None:
    with pytest.raises(ValueError, match=rf"^row 1 \(.*\): {advice}"):
        Availability.of([(0, 1, 1), row])


@pytest.mark.parametrize("twice", ["A", U1], ids=["str", "UUID"])
def test_a_slot_listed_twice_is_refused(twice: SlotId) -> None:
    with pytest.raises(ValueError, match=r"^row 2 .*: row 0 is the same slot"):
        Availability.of([(twice, 2, 1), (type(twice)(str(U2)), 2, 1), (twice, 5, 5)])


def test_an_id_that_utf_8_cannot_encode_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"^row 0 .*: slot_id must be text that UTF-8 can encode"):
        Availability.of([("\ud800", 2, 1)])


@pytest.mark.parametrize(
    "row", ["A21", b"\x03\x02\x01", ("A", 2), ("A", 2, 1, 0), 7, None, {"A": 0, "B": 1, "C": 2}]
)
def test_a_row_of_another_shape_is_refused_with_the_shape_to_write(row: Any) -> None:
    with pytest.raises(TypeError, match=r"row 1 .*: write it as \(slot_id, capacity, remaining\)"):
        Availability.of([("first", 1, 1), row])


def test_the_first_of_many_wrong_rows_is_named() -> None:
    rows = [(1, 2, 1), (2, 2, 1), (3, 2, 9), (1, 2, 1), (5, 2, None)]
    with pytest.raises(ValueError, match=r"^row 2 \(3, 2, 9\)"):
        Availability.of(rows)  # type: ignore[arg-type]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 ids, 1 capacities and 2 remainings"):
        Availability._of_columns(["A", "B"], [1], [1, 1])


@pytest.mark.parametrize("typecode", ["d", "f"])
def test_an_array_of_floats_is_refused(typecode: str) -> None:
    with pytest.raises(TypeError, match=r"row 0 .*: capacity must be an int, not 2\.0"):
        Availability._of_columns([1], array(typecode, [2]), [1])


def test_calling_the_class_says_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"Availability\.of\(rows\)"):
        Availability([("A", 2, 1)])  # type: ignore[arg-type]


some_ids = st.one_of(
    st.integers(0, 3), st.sampled_from(["", "0", "1"]), st.sampled_from([U1, U2]),
    st.sampled_from([None, True, 1.0, "\ud800", 2**63, -(2**63)]),
)  # fmt: skip
some_counts = st.one_of(
    st.integers(-1, 3), st.sampled_from([2**31 - 1, 2**31, -(2**31) - 1, True, 1.0, None, "1"])
)


def can_be_true(rows: list[tuple[Any, Any, Any]]) -> bool:
    """The rule once more, as naive as it gets."""
    seen = []
    for slot_id, capacity, remaining in rows:
        if type(slot_id) not in (int, str, UUID) or type(slot_id) is not type(rows[0][0]):
            return False
        if slot_id in seen or slot_id in ("\ud800", 2**63):
            return False
        if type(capacity) is not int or type(remaining) is not int:
            return False
        if not 0 <= remaining <= capacity < 2**31:
            return False
        seen.append(slot_id)
    return True


@given(st.lists(st.tuples(some_ids, some_counts, some_counts), max_size=4))
@example([(-(2**63), 2**31 - 1, 2**31 - 1)])
def test_exactly_the_rows_that_can_be_true_are_taken(rows: list[tuple[Any, Any, Any]]) -> None:
    if can_be_true(rows):
        assert list(Availability.of(rows)) == rows
    else:
        with pytest.raises((TypeError, ValueError), match=r"^row \d"):
            Availability.of(rows)


# How it is asked


@given(true_rows(min_size=1), st.data())
def test_an_index_gives_the_row_that_a_plain_list_gives(
    rows: list[Row], data: st.DataObject
) -> None:
    index = data.draw(st.integers(-len(rows), len(rows) - 1))
    assert Availability.of(rows)[index] == rows[index]
    assert type(Availability.of(rows)[index]) is SlotAvailability


@pytest.mark.parametrize("index", [2, -3])
@pytest.mark.parametrize("rows", THREE_KINDS)
def test_an_index_outside_the_list_raises(rows: list[Row], index: int) -> None:
    with pytest.raises(IndexError):
        Availability.of(rows)[index]


@given(true_rows(), st.slices(12))
def test_a_slice_is_the_list_of_those_rows(rows: list[Row], part: slice) -> None:
    assert Availability.of(rows)[part] == Availability.of(rows[part])


@given(true_rows())
def test_get_finds_every_slot_by_its_id(rows: list[Row]) -> None:
    availability = Availability.of(rows)
    assert [availability.get(row[0]) for row in rows] == rows


@pytest.mark.parametrize("rows", THREE_KINDS)
@pytest.mark.parametrize("unknown", [99, "99", UUID(int=99)], ids=["int", "str", "UUID"])
def test_get_of_a_slot_that_is_not_listed_is_none(rows: list[Row], unknown: SlotId) -> None:
    assert Availability.of(rows).get(unknown) is None


@pytest.mark.parametrize("lookalike", [True, 1.0, "1", U1, None, [1], (1,)])
def test_get_of_another_type_is_none_even_if_python_calls_it_equal(lookalike: Any) -> None:
    assert Availability.of([(1, 2, 1)]).get(lookalike) is None
    assert Availability.of([]).get(lookalike) is None


@given(true_rows(min_size=1))
def test_in_asks_for_a_whole_row(rows: list[Row]) -> None:
    availability = Availability.of(rows)
    slot_id, capacity, remaining = rows[0]
    assert all(row in availability for row in rows)
    assert (slot_id, capacity, remaining + 1) not in availability
    assert slot_id not in availability


@pytest.mark.parametrize("row", [("A", 2), ["A", 2, 1], ([], 2, 1), (None, 2, 1), None])
def test_in_is_false_for_what_is_no_row(row: object) -> None:
    assert row not in Availability.of([("A", 2, 1)])


def test_the_rest_of_a_sequence_works_as_well() -> None:
    availability = Availability.of([("A", 2, 1), ("B", 5, 0)])
    assert isinstance(availability, Sequence)
    assert list(reversed(availability)) == [("B", 5, 0), ("A", 2, 1)]
    assert availability.index(SlotAvailability("B", 5, 0)) == 1
    assert availability.count(SlotAvailability("B", 5, 0)) == 1


# What it is rendered as


def test_to_dicts_is_the_answer_of_an_http_endpoint() -> None:
    assert Availability.of([(U1, 2, 1), (U2, 5, 0)]).to_dicts() == [
        {"slot_id": U1, "capacity": 2, "remaining": 1},
        {"slot_id": U2, "capacity": 5, "remaining": 0},
    ]


@given(true_rows())
def test_to_json_is_to_dicts_with_uuids_as_text(rows: list[Row]) -> None:
    availability = Availability.of(rows)
    dicts = availability.to_dicts()
    for each in dicts:
        if isinstance(each["slot_id"], UUID):
            each["slot_id"] = str(each["slot_id"])
    assert json.loads(availability.to_json()) == dicts


def test_to_json_is_compact_utf_8() -> None:
    expected = '[{"slot_id":"Zürich","capacity":2,"remaining":1}]'
    assert Availability.of([("Zürich", 2, 1)]).to_json() == expected.encode()


@pytest.mark.parametrize("rows", THREE_KINDS)
def test_to_json_and_etag_are_made_once(rows: list[Row]) -> None:
    availability = Availability.of(rows)
    assert availability.to_json() is availability.to_json()
    assert availability.etag is availability.etag


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ([], "Availability()"),
        ([(7, 2, 1), (-3, 5, 0)], "Availability(7: 1/2, -3: 0/5)"),
        ([("7", 2, 1)], "Availability('7': 1/2)"),
        ([(U1, 2, 1)], "Availability(00000000-0000-0000-0000-000000000001: 1/2)"),
    ],
)
def test_repr_of_a_small_list_shows_what_is_free_of_how_many(rows: list[Row], shown: str) -> None:
    assert repr(Availability.of(rows)) == shown


def test_repr_of_a_large_list_sums_it_up() -> None:
    rows = [(number, 2, number % 2) for number in range(1_000)]
    shown = "Availability(1000 slots, 500 sold out, 500 of 2000 places free)"
    assert repr(Availability.of(rows)) == shown


# Equality, hash, etag


@given(few_rows, few_rows)
def test_lists_are_equal_exactly_when_their_rows_are(one: list[Row], two: list[Row]) -> None:
    assert Availability.of(one) == Availability.of(list(one))
    assert hash(Availability.of(one)) == hash(Availability.of(list(one)))
    assert (Availability.of(one) == Availability.of(two)) is (one == two)


@given(few_rows, few_rows)
def test_etags_are_equal_exactly_when_the_rows_are(one: list[Row], two: list[Row]) -> None:
    assert Availability.of(one).etag == Availability.of(list(one)).etag
    assert (Availability.of(one).etag == Availability.of(two).etag) is (one == two)


def test_the_order_of_rows_is_content() -> None:
    rows = THREE_KINDS[1]
    assert Availability.of(rows) != Availability.of(rows[::-1])
    assert Availability.of(rows).etag != Availability.of(rows[::-1]).etag


def test_ids_that_look_alike_make_different_lists() -> None:
    lists = [Availability.of([(slot_id, 2, 1)]) for slot_id in (1, "1", U1, str(U1))]
    assert len(set(lists)) == 4
    assert len({each.etag for each in lists}) == 4


def test_text_ids_cannot_be_cut_elsewhere_into_the_same_etag() -> None:
    one = Availability.of([("ab", 2, 1), ("c", 2, 1)])
    other = Availability.of([("a", 2, 1), ("bc", 2, 1)])
    assert one.etag != other.etag


def test_every_empty_list_is_the_same() -> None:
    empties = [Availability.of([]), *(Availability.of(rows)[:0] for rows in THREE_KINDS)]
    assert len(set(empties)) == 1
    assert len({each.etag for each in empties}) == 1


def test_a_list_equals_no_other_type() -> None:
    availability = Availability.of([("A", 2, 1)])
    assert availability != [("A", 2, 1)]
    assert availability != (("A", 2, 1),)
    assert availability.__eq__([]) is NotImplemented


COUNTS = bytes([2, 5, 1, 0])
ENCODED = [
    b"1 int 2 of 1 " + struct.pack("<2b", 7, -3) + COUNTS,
    b"1 str 2 " + struct.pack("<2q", 1, 8) + "AZürich 🚚".encode() + COUNTS,
    b"1 uuid 2 " + U1.bytes + U2.bytes + COUNTS,
]


@pytest.mark.parametrize(("rows", "encoded"), list(zip(THREE_KINDS, ENCODED, strict=True)))
def test_the_etag_is_a_digest_of_bytes_that_are_the_same_everywhere(
    rows: list[Row], encoded: bytes
) -> None:
    assert Availability.of(rows).etag == f'"{blake2b(encoded, digest_size=16).hexdigest()}"'


def test_the_etag_of_wide_columns_is_the_same_everywhere_too() -> None:
    encoded = b"4 int 1 of 8 " + struct.pack("<q I I", -(2**63), 2**31 - 1, 65_536)
    made = Availability.of([(-(2**63), 2**31 - 1, 65_536)])
    assert made.etag == f'"{blake2b(encoded, digest_size=16).hexdigest()}"'


def test_the_etag_can_go_into_an_http_header_as_it_is() -> None:
    etag = Availability.of([("Zürich", 2, 1)]).etag
    assert etag == '"60c1cb828bd2b1354f5b3d73e0312442"'


# Readings


def test_a_reading_has_the_version_of_its_list() -> None:
    availability = Availability.of([("A", 2, 1)])
    assert Reading(availability, Source.CACHED, age=1.5).version == availability.etag


def test_sources_are_named_in_lower_case_for_logs_and_headers() -> None:
    assert [source.value for source in Source] == ["cached", "loaded", "stale", "direct"]
