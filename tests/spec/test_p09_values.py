"""P9 values.

What a read returns never changes: the `Availability`, its rows and the `Reading` around them are
values. Whatever a caller does with them, every other reader, now and later, in this process and in
others, sees what the table said.

That is why all hits on one entry may be given one and the same object, which costs as little for a
hundred thousand slots as for ten. What is made of it for a caller to change (`to_dicts`, `list`, a
slice, a copy, a pickle) is the caller's own; what it is asked first by several threads at once
(`get`, `to_json`, `etag`) it tells all of them alike.

Limits: Python lets whoever means to break a value do so, by `object.__setattr__`, `ctypes` or the
names that begin with an underscore.

Shown: Of random rows a list is loaded, read from each cache in both worlds, and maltreated by
everything that a caller can do: each attribute is set and deleted, whatever was given out is
emptied. Then it is read again, here and elsewhere, and shows all that the rows said. Twins that
give out their own list, or their own columns, or let themselves be changed, are caught.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
from array import array
from typing import Any

import pytest
from hypothesis import given, settings

from slotcache.availability import Availability, Reading, Source
from tests.support.backends import Backend, Storage, try_out
from tests.support.lists import THREE_KINDS, Row, Table, true_rows
from tests.support.threads import together
from tests.support.worlds import VALUES, one_world

MUTATORS = (
    *("append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"),
    *("__setitem__", "__delitem__", "__iadd__", "__imul__"),
)
"""What a list has to be changed by, and no value."""


def shown(availability: Availability) -> list[object]:
    """Return all that a list tells."""
    rows = list(availability)
    return [
        *(rows, len(availability), availability.to_dicts(), availability.to_json()),
        *(availability.etag, hash(availability), repr(availability)),
        *([availability.get(row.slot_id) for row in rows], list(reversed(availability))),
        *([availability[index] for index in range(len(rows))], availability[:]),
        *([row in availability for row in rows], pickle.loads(pickle.dumps(availability))),
    ]


def maltreat(reading: Reading) -> None:
    """Do whatever a caller can do to a reading, its list, and what they give out."""
    availability = reading.availability
    for value in (reading, availability, *availability[:2]):
        for name in {*dir(value), "anything"}:
            with pytest.raises((AttributeError, TypeError)):
                setattr(value, name, None)
            with pytest.raises((AttributeError, TypeError)):
                delattr(value, name)
    assert not [name for name in MUTATORS if hasattr(availability, name)]
    given_out = availability.to_dicts()
    for each in given_out:
        each.clear()
    given_out.clear()
    list(availability).clear()
    _, columns = availability.__reduce__()
    for column in columns:  # type: ignore[attr-defined]
        if isinstance(column, array):
            del column[:]


def judge(storage: Storage, rows: list[Row]) -> None:
    """Read, maltreat what was read, and read again."""
    here, elsewhere = storage.service(Table(rows)), storage.service(Table(rows))
    expected = shown(Availability.of(rows))
    for service in (here, elsewhere, here):
        maltreat(service.read())
        assert shown(service.read().availability) == expected


@settings(max_examples=settings().max_examples // 8)
@given(rows=true_rows())
def test_whatever_a_caller_does_to_what_a_read_returned_the_next_one_sees_the_same(
    backend: Backend, rows: list[Row]
) -> None:
    with backend.opened() as storage:
        judge(storage, rows)


def test_all_hits_on_one_entry_are_given_the_same_object(storage: Storage) -> None:
    here, elsewhere = storage.service(Table(THREE_KINDS[1])), storage.service(Table([]))
    here.read()
    for service in (here, elsewhere):
        first = service.read().availability
        storage.pass_time(4)
        assert service.read().availability is first
        assert service.get_availability() is first
        assert service.get_availability(None).to_json() is first.to_json()


# The value itself.

of_values = one_world(VALUES)


@of_values
@pytest.mark.parametrize("name", ["_ids", "_etag", "etag", "rows", "__class__"])
def test_an_attribute_that_is_set_or_deleted_says_that_it_never_changes(name: str) -> None:
    availability = Availability.of([("A", 2, 1)])
    with pytest.raises(AttributeError, match="never changes"):
        setattr(availability, name, None)
    with pytest.raises(AttributeError, match="never changes"):
        delattr(availability, name)


@of_values
@pytest.mark.parametrize("rows", THREE_KINDS)
def test_what_it_gives_out_is_the_callers_to_edit(rows: list[Row]) -> None:
    availability = Availability.of(rows)
    expected = copy.deepcopy(availability.to_dicts())
    given_out = availability.to_dicts()
    given_out[0]["remaining"] = 99
    given_out.pop()
    assert availability.to_dicts() == expected
    assert list(availability) == rows


@of_values
def test_editing_the_columns_it_was_made_of_changes_nothing() -> None:
    columns = array("q", [7]), array("i", [2]), array("i", [1])
    availability = Availability._of_columns(*columns)
    for column in columns:
        column[0] = 0
    assert list(availability) == [(7, 2, 1)]


@of_values
@given(true_rows())
def test_copies_and_pickles_are_equal(rows: list[Row]) -> None:
    availability = Availability.of(rows)
    for twin in (
        pickle.loads(pickle.dumps(availability)),
        copy.copy(availability),
        copy.deepcopy(availability),
    ):
        assert twin == availability
        assert twin.etag == availability.etag
        assert twin.to_json() == availability.to_json()


@of_values
def test_threads_that_ask_first_at_once_get_the_same_answers() -> None:
    rows: list[Row] = [(f"slot-{number}", 2, 1) for number in range(1_000)]
    availability = Availability.of(rows)
    answers = together(
        4, lambda: (availability.get("slot-999"), availability.to_json(), availability.etag)
    )
    assert len(set(answers)) == 1


@of_values
def test_a_reading_is_frozen() -> None:
    reading = Reading(Availability.of([]), Source.LOADED, age=0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        reading.age = 1.0  # type: ignore[misc]


# Broken twins.

to_dicts = Availability.to_dicts
kept: dict[int, Any] = {}


TWINS: dict[str, tuple[str, Any]] = {
    "gives out its own dicts": (
        "to_dicts",
        lambda self: kept.setdefault(id(self), (self, to_dicts(self)))[1],
    ),
    "gives out its own columns": (
        "__reduce__",
        lambda self: (Availability._of_columns, self._columns()),
    ),
    "lets itself be changed": ("__setattr__", object.__setattr__),
}


@of_values
@pytest.mark.parametrize("twin", TWINS)
def test_a_twin_is_noticed_that(memory: Backend, monkeypatch: Any, twin: str) -> None:
    monkeypatch.setattr(Availability, *TWINS[twin])

    def judged(rows: list[Row]) -> None:
        with memory.opened() as storage:
            judge(storage, rows)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        try_out(judged, true_rows(min_size=1))
