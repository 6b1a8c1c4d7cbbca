"""An entry as bytes, for backends that keep it outside of the process.

`decode(encode(entry)) == entry`. The two instants travel as they are: they must be of a clock
that all processes of the backend share, which the backend chooses. All numbers are little
endian:

    ======  =====  ==========================================================================
    offset  bytes  content
    ======  =====  ==========================================================================
         0      4  `slot`, in ASCII
         4      1  the version of this layout: 1
         5      1  the kind of ids, in ASCII: `i` int, `s` str, `u` UUID; without slots `i`
         6      1  I, the bytes an id: int 1, 2, 4 or 8; UUID 16; str: the bytes a length, 1, 2
                   or 4
         7      1  C, the bytes a count: 1, 2 or 4
         8      8  the generation's epoch, unsigned
        16      8  the generation's clears, unsigned
        24      8  since, a float
        32      8  until, a float
        40      4  N, the number of slots, unsigned
        44      4  CRC-32 (zlib's) of all other bytes, those before it and those after it
        48    N*I  the ids: an int in two's complement; a UUID in the order of its text; of a
                   str its length in characters, unsigned
               T   of str ids only: their texts in one, as UTF-8; T is what is left
             N*C  the capacities, unsigned
             N*C  the remainings, unsigned
    ======  =====  ==========================================================================

So a slot with an int id takes at most 16 bytes, and 4 to 6 in most tables. A change of the
layout takes a new version; what has another version is a miss, never an error, so that two
releases can share a cache.

The checksum finds what went wrong on the way. It is no signature: whoever can write to the cache
can make `decode` answer anything that has the shape of an entry, a slot listed twice or more
places free than there are. To look for that in each slot would cost what the cache saves; a part
or a copy of such a list, a slice or a pickle, is checked and raises `ValueError`.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate
from math import isnan
from typing import Any
from uuid import UUID
from zlib import crc32

from slotcache.availability import (
    COUNT_TYPECODES,
    ID_TYPECODES,
    Availability,
    Ids,
    little_endian,
    narrowest,
)
from slotcache.protocols import Entry, Generation

__all__ = ["HEADER_SIZE", "decode", "encode"]

HEADER_SIZE = 48
"""How many bytes come before the columns."""

_SIGNATURE = b"slot\1"
_CHECKED = struct.Struct("<5scBBQQddI")  # The checksum is the rest of the header.

_INT, _STR, _UUID = b"i", b"s", b"u"
_INT_TYPECODES = {array(typecode).itemsize: typecode for typecode in ID_TYPECODES}
_COUNT_TYPECODES = {array(typecode).itemsize: typecode for typecode in COUNT_TYPECODES}
_UUID_SIZE = 16


def encode(entry: Entry) -> bytes:
    """Return the entry as bytes, laid out as this module's table says.

    Raises:
        ValueError: The epoch or the clears do not fit into 64 bits, or an instant is NaN.
    """
    generation, since, until = entry.generation, entry.since, entry.until
    ids, capacities, remainings = entry.availability._columns()
    kind, id_size, id_bytes = _id_bytes(ids)
    try:
        checked = _CHECKED.pack(
            *(_SIGNATURE, kind, id_size, capacities.itemsize),
            *(generation.epoch, generation.clears, since, until, len(ids)),
        )
    except (struct.error, OverflowError) as error:
        raise ValueError(
            f"{generation}, since {since}, until {until}: "
            "epoch and clears must be from 0 to 2**64 - 1, since and until floats"
        ) from error
    if isnan(since) or isnan(until):
        raise ValueError(f"since {since}, until {until}: an instant must not be NaN")
    columns = b"".join((id_bytes, little_endian(capacities), little_endian(remainings)))
    checksum = crc32(columns, crc32(checked))
    return b"".join((checked, checksum.to_bytes(4, "little"), columns))


def decode(data: bytes | bytearray | memoryview) -> Entry | None:
    """Return the entry that was encoded; None: the bytes are not those of an entry.

    Bytes are parsed as data (P10). Whatever they are, they raise nothing, here or when the list is
    read, and take no more memory than a small multiple of their own, whatever they claim.
    """
    data = bytes(data)  # Now nobody can change them between the check and the use.
    if len(data) < HEADER_SIZE or not data.startswith(_SIGNATURE):
        return None
    checked, columns = data[: _CHECKED.size], memoryview(data)[HEADER_SIZE:]
    checksum = int.from_bytes(data[_CHECKED.size : HEADER_SIZE], "little")
    if checksum != crc32(columns, crc32(checked)):
        return None
    _, kind, id_size, count_size, epoch, clears, since, until, slots = _CHECKED.unpack(checked)
    availability = _availability(kind, id_size, count_size, slots, columns)
    if availability is None or isnan(since) or isnan(until):
        return None
    return Entry(availability, Generation(epoch, clears), since, until)


def _availability(
    kind: bytes, id_size: int, count_size: int, slots: int, columns: memoryview
) -> Availability | None:
    """Return the list that has these columns; None: they are not as the header says."""
    counts = _COUNT_TYPECODES.get(count_size)
    text_size = len(columns) - slots * (id_size + 2 * count_size)
    # Until here the number of slots is only a claim.
    if counts is None or text_size < 0 or (text_size > 0 and kind != _STR):
        return None
    end = slots * id_size + text_size
    middle = end + slots * count_size
    ids = _ids(kind, id_size, slots, columns[:end])
    if ids is None:
        return None
    capacities, remainings = columns[end:middle], columns[middle:]
    return Availability._of_packed(ids, _column(counts, capacities), _column(counts, remainings))


def _id_bytes(ids: Sequence[Any]) -> tuple[bytes, int, bytes]:
    """Return the kind of ids, the bytes an id, and the bytes of them all."""
    if isinstance(ids, array):
        return _INT, ids.itemsize, little_endian(ids)
    if isinstance(ids[0], UUID):
        return _UUID, _UUID_SIZE, b"".join(each.bytes for each in ids)
    lengths = narrowest(COUNT_TYPECODES, list(map(len, ids)))
    assert lengths is not None, "an id has more than four billion characters"
    return _STR, lengths.itemsize, little_endian(lengths) + "".join(ids).encode()


def _ids(kind: bytes, size: int, slots: int, content: memoryview) -> Ids | None:
    """Return the ids whose bytes these are; None: they cannot be."""
    if kind == _INT and size in _INT_TYPECODES:
        return _column(_INT_TYPECODES[size], content)
    # Every empty list is the same, with ids that are int.
    if not slots:
        return None
    if kind == _UUID and size == _UUID_SIZE:
        return tuple(UUID(bytes=each) for (each,) in struct.iter_unpack("16s", content))
    if kind == _STR and size in _COUNT_TYPECODES:
        middle = slots * size
        return _texts(_column(_COUNT_TYPECODES[size], content[:middle]), content[middle:])
    return None


def _texts(lengths: array[int], content: memoryview) -> tuple[str, ...] | None:
    """Return the texts of these lengths; None: the content is not the UTF-8 of them."""
    try:
        text = str(content, "utf-8")
    except UnicodeDecodeError:
        return None
    if sum(lengths) != len(text):
        return None
    parts = map(slice, accumulate(lengths, initial=0), accumulate(lengths))
    return tuple(map(text.__getitem__, parts))


def _column(typecode: str, content: memoryview) -> array[int]:
    """Return the numbers that `little_endian` made into these bytes."""
    column = array(typecode)
    column.frombytes(content)
    if sys.byteorder == "big":
        column.byteswap()
    return column
