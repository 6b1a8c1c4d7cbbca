"""What is free: the list that everybody reads, one row of it, and how a read came by it.

A list is kept as columns, and its rows are made when somebody asks for them: the same object
goes to every reader, so a hit costs the same for ten slots and for a hundred thousand. A column
of integers is the narrowest array that holds it. It never changes (P9); what it computes later
(index, JSON, etag) is the same whichever thread is first, so these are kept without a lock.
"""

from __future__ import annotations

import enum
import json
import operator
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from hashlib import blake2b
from itertools import repeat
from typing import Any, NamedTuple, Never, NoReturn, TypeAlias, final, overload
from uuid import UUID

__all__ = ["Availability", "Reading", "Scope", "SlotAvailability", "SlotId", "Source"]

SlotId = int | str | UUID
"""What names a slot; within one list all of one type. An int has at most 64 bits, with sign."""

Scope = str | int | UUID | date
"""What partitions the list: an event, a day, a venue. `None` stands for the whole table."""

Ids: TypeAlias = "array[int] | tuple[str, ...] | tuple[UUID, ...]"
_Columns: TypeAlias = "tuple[Ids, array[int], array[int]]"

ID_TYPECODES = "bhiq"
"""The arrays of 1, 2, 4 and 8 bytes an item, in which int ids are kept."""

COUNT_TYPECODES = "BHI"
"""The arrays of 1, 2 and 4 bytes an item, without sign, in which counts are kept."""

_MAX_CAPACITY = 2**31 - 1
_ROWS_IN_REPR = 8


class SlotAvailability(NamedTuple):
    """One row of the list.

    Attributes:
        slot_id: The slot, as the type that the table has.
        capacity: How many places it has in all.
        remaining: How many of them are free, from 0 to `capacity`.
    """

    slot_id: SlotId
    capacity: int
    remaining: int


@final
class Availability(Sequence[SlotAvailability]):
    """An immutable list of slots in the order of its rows, made by `Availability.of(rows)`.

    Two lists are equal, and have one hash and one `etag`, when they have the same rows in the
    same order.
    """

    __slots__ = ("_capacities", "_etag", "_ids", "_json", "_positions", "_remainings")

    _ids: Ids
    _capacities: array[int]
    _remainings: array[int]
    _positions: dict[SlotId, int] | None
    _json: bytes | None
    _etag: str | None

    def __init__(self, *_rows: Never) -> None:
        raise TypeError("an Availability is made by Availability.of(rows): write that instead")

    @classmethod
    def of(cls, rows: Iterable[tuple[SlotId, int, int]]) -> Availability:
        """Return the list of these rows.

        Args:
            rows: `(slot_id, capacity, remaining)` each; none at all is a list as well. An id
                or a number of a derived type (an `IntEnum`, a driver's UUID) becomes plain.

        Raises:
            TypeError: A row has another shape, a count is not an int, or the ids are not all
                int, all str or all UUID. The message names the row.
            ValueError: A row cannot be true: `remaining` outside 0 to `capacity`, a capacity
                above 2,147,483,647, an int id outside 64 bits, a slot listed twice.
        """
        triples = [_triple(index, row) for index, row in enumerate(rows)]
        ids, capacities, remainings = zip(*triples, strict=True) if triples else ((), (), ())
        return cls._of_columns(ids, capacities, remainings)

    @classmethod
    def _of_columns(
        cls, ids: Sequence[SlotId], capacities: Sequence[int], remainings: Sequence[int]
    ) -> Availability:
        """As `of`, from columns (lists, tuples or arrays), which are copied: the same checks."""
        if not len(ids) == len(capacities) == len(remainings):
            raise ValueError(
                f"{len(ids)} ids, {len(capacities)} capacities and {len(remainings)} remainings: "
                "give columns of one length"
            )
        columns = _packed(ids, capacities, remainings)
        if columns is None:
            raise _refusal(ids, capacities, remainings)
        return cls._of_packed(*columns)

    @classmethod
    def _of_packed(cls, ids: Ids, capacities: array[int], remainings: array[int]) -> Availability:
        """As `_of_columns`, from columns as they are kept, which it keeps: no check."""
        self = cls.__new__(cls)
        put = object.__setattr__
        put(self, "_ids", ids)
        put(self, "_capacities", capacities)
        put(self, "_remainings", remainings)
        put(self, "_positions", None)
        put(self, "_json", None)
        put(self, "_etag", None)
        return self

    def get(self, slot_id: SlotId) -> SlotAvailability | None:
        """Return the row of this slot; None: it is not in the list, or ids are of another type."""
        # A dict takes True and 1.0 for 1.
        if not self or type(slot_id) is bool or not isinstance(slot_id, type(self._ids[0])):
            return None
        positions = self._positions
        if positions is None:
            positions = dict(zip(self._ids, range(len(self)), strict=True))
            object.__setattr__(self, "_positions", positions)
        position = positions.get(slot_id)
        return None if position is None else self[position]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return new `{slot_id, capacity, remaining}` dicts, yours to change; UUIDs stay UUIDs."""
        return [
            {"slot_id": row.slot_id, "capacity": row.capacity, "remaining": row.remaining}
            for row in self
        ]

    def to_json(self) -> bytes:
        """Return the same list of objects as compact JSON in UTF-8, UUIDs as text; made once."""
        made = self._json
        if made is None:
            rows = self.to_dicts()
            made = json.dumps(rows, ensure_ascii=False, separators=(",", ":"), default=str).encode()
            object.__setattr__(self, "_json", made)
        return made

    @property
    def etag(self) -> str:
        """A digest of the content in double quotes, as the `ETag` header wants it; made once.

        Equal content has an equal etag in every process, on every platform and after a reload
        (a strong validator for `to_json()`: RFC 9110, 8.8.3).
        """
        made = self._etag
        if made is None:
            digest = blake2b(b"%d " % self._capacities.itemsize, digest_size=16)
            digest.update(_id_bytes(self._ids))
            digest.update(little_endian(self._capacities))
            digest.update(little_endian(self._remainings))
            made = f'"{digest.hexdigest()}"'
            object.__setattr__(self, "_etag", made)
        return made

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> SlotAvailability: ...
    @overload
    def __getitem__(self, index: slice) -> Availability: ...
    def __getitem__(self, index: int | slice) -> SlotAvailability | Availability:
        ids, capacities, remainings = self._columns()
        if isinstance(index, slice):
            return self._of_columns(ids[index], capacities[index], remainings[index])
        return SlotAvailability(ids[index], capacities[index], remainings[index])

    def __iter__(self) -> Iterator[SlotAvailability]:
        rows = zip(*self._columns(), strict=True)
        return map(tuple.__new__, repeat(SlotAvailability), rows)

    def __contains__(self, row: object) -> bool:
        return isinstance(row, tuple) and len(row) == 3 and self.get(row[0]) == row

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Availability):
            return NotImplemented
        return self._columns() == other._columns()

    def __hash__(self) -> int:
        return hash(self.etag)

    def __repr__(self) -> str:
        if len(self) > _ROWS_IN_REPR:
            sold_out = self._remainings.count(0)
            free, places = sum(self._remainings), sum(self._capacities)
            return (
                f"Availability({len(self)} slots, {sold_out} sold out, "
                f"{free} of {places} places free)"
            )
        rows = (f"{_shown(row.slot_id)}: {row.remaining}/{row.capacity}" for row in self)
        return f"Availability({', '.join(rows)})"

    def __reduce__(self) -> tuple[object, ...]:
        # Copies: whoever pickles gets nothing through which the columns could be edited (P9).
        return Availability._of_columns, tuple(column[:] for column in self._columns())

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"cannot set {name}: an Availability never changes, make a new one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"cannot delete {name}: an Availability never changes")

    def _columns(self) -> _Columns:
        return self._ids, self._capacities, self._remainings


class Source(enum.Enum):
    """Where the answer of a read came from."""

    CACHED = "cached"
    """A fresh copy, or one that covers the reader's first look."""
    LOADED = "loaded"
    """A query that this read led or joined in the flow."""
    STALE = "stale"
    """An expired copy, because no lock could be had in time or the database failed (P5)."""
    DIRECT = "direct"
    """A query past the flow, not stored: no lock in time, or the cache in trouble (P4, P5)."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer of a read, and how it came about.

    Attributes:
        availability: The list.
        source: Where it came from.
        age: Seconds since the look before its load, by the service's clock.
    """

    availability: Availability
    source: Source
    age: float

    @property
    def version(self) -> str:
        """The list's `etag`: equal content, equal version."""
        return self.availability.etag


def _kind(values: Sequence[object]) -> type[SlotId] | None:
    """Return which of int, str and UUID all values are; None: not all one of them."""
    # The items of an array have one type: the first tells.
    types = set(map(type, values[:1] if isinstance(values, array) else values))
    for kind in (int, str, UUID):
        if bool not in types and all(issubclass(each, kind) for each in types):
            return kind
    return None


def _packed(
    ids: Sequence[SlotId], capacities: Sequence[int], remainings: Sequence[int]
) -> _Columns | None:
    """Return the columns as they are kept; None: some row cannot be true."""
    slots = _packed_ids(ids)
    places = _packed_counts(COUNT_TYPECODES, capacities)
    if slots is None or places is None:
        return None
    # Of the capacities' width: a count that it cannot hold is below 0 or above its capacity.
    free = _packed_counts(places.typecode, remainings)
    if free is None or any(map(operator.gt, free, places)):
        return None
    if max(places, default=0) > _MAX_CAPACITY or len(set(slots)) < len(slots):
        return None
    return slots, places, free


def _packed_ids(ids: Sequence[Any]) -> Ids | None:
    """Return the ids as plain values of one type; None: that cannot be done."""
    kind = _kind(ids)
    if kind is int:
        return narrowest(ID_TYPECODES, ids)
    if kind is UUID:
        return tuple(each if type(each) is UUID else UUID(int=each.int) for each in ids)
    if kind is str:
        with suppress(UnicodeEncodeError):
            "".join(ids).encode()
            return tuple(map(str.__str__, ids))
    return None


def _packed_counts(typecodes: str, counts: Sequence[int]) -> array[int] | None:
    """Return the counts in the first array that holds them; None: not all are such ints."""
    return narrowest(typecodes, counts) if _kind(counts) is int else None


def narrowest(typecodes: str, values: Sequence[int]) -> array[int] | None:
    """Return the values in the first of these arrays that holds them; None: none does."""
    for typecode in typecodes:
        with suppress(OverflowError):
            return array(typecode, values)
    return None


def _triple(index: int, row: object) -> tuple[SlotId, int, int]:
    """Return the row if it has three parts. What they are is checked by the column."""
    # Most rows are tuples: named first, they spare the slow look at an abstract class.
    if isinstance(row, (tuple, Sequence)) and not isinstance(row, (str, bytes)) and len(row) == 3:
        slot_id, capacity, remaining = row
        return slot_id, capacity, remaining
    raise TypeError(f"row {index} {row!r}: write it as (slot_id, capacity, remaining)")


def _refusal(
    ids: Sequence[SlotId], capacities: Sequence[int], remainings: Sequence[int]
) -> Exception:
    """Return what is wrong with the first bad row of columns that `_packed` refused."""
    first_rows: dict[SlotId, int] = {}
    for index, row in enumerate(zip(ids, capacities, remainings, strict=True)):
        where = f"row {index} {row!r}"
        if wrong := _wrong_type(ids[0], *row):
            return TypeError(f"{where}: {wrong}")
        if wrong := _wrong_value(*row):
            return ValueError(f"{where}: {wrong}")
        first = first_rows.setdefault(row[0], index)
        if first != index:
            return ValueError(f"{where}: row {first} is the same slot, list each slot once")
    raise AssertionError("columns were refused, but every row is right")


def _wrong_type(
    first_id: object, slot_id: object, capacity: object, remaining: object
) -> str | None:
    if _kind((slot_id,)) is None:
        return f"slot_id must be an int, a str or a UUID, not {slot_id!r}"
    if _kind((first_id, slot_id)) is None:
        return f"slot_id must be of the type that row 0 has, as {first_id!r}, not {slot_id!r}"
    for name, count in (("capacity", capacity), ("remaining", remaining)):
        if _kind((count,)) is not int:
            return f"{name} must be an int, not {count!r}"
    return None


def _wrong_value(slot_id: SlotId, capacity: int, remaining: int) -> str | None:
    if _packed_ids((slot_id,)) is None:
        if isinstance(slot_id, str):
            return "slot_id must be text that UTF-8 can encode, without lone surrogates"
        return "slot_id must be from -2**63 to 2**63 - 1: write a larger one as a str"
    if not 0 <= capacity <= _MAX_CAPACITY:
        return f"capacity must be from 0 to {_MAX_CAPACITY}, not {capacity}"
    if not 0 <= remaining <= capacity:
        return f"remaining must be from 0 to the capacity, {capacity}, not {remaining}"
    return None


def _id_bytes(ids: Sequence[Any]) -> bytes:
    """Return bytes that tell the type, the number and the content of the ids.

    Equal numbers have equal widths, so the bytes of the arrays are as good as the numbers.
    """
    if isinstance(ids, array):
        return b"int %d of %d " % (len(ids), ids.itemsize) + little_endian(ids)
    if isinstance(ids[0], UUID):
        return b"uuid %d " % len(ids) + b"".join(each.bytes for each in ids)
    lengths = array("q", map(len, ids))
    return b"str %d " % len(ids) + little_endian(lengths) + "".join(ids).encode()


def little_endian(column: array[int]) -> bytes:
    """Return the same bytes on every platform."""
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _shown(slot_id: SlotId) -> str:
    # Quotes tell "1" from 1, and the text of a UUID from a UUID.
    return repr(slot_id) if isinstance(slot_id, str) else str(slot_id)


def refused_scope(scope: object, expected: type[Scope] | None) -> Exception:
    """Return the error for a scope that is not exactly of the type that a table's scopes have.

    Exactly, for a bool is no int here, and a datetime no date. None: the table has no scopes.
    """
    if expected is None:
        return ValueError(f"this table has no scopes: leave the scope {scope!r} out")
    return TypeError(
        f"a scope of this table is {expected.__name__}, not {type(scope).__name__}: {scope!r}"
    )
