"""The forms in which a list of slots can leave its process, for benchmarks to compare.

columns
    The floor: three arrays, each as narrow as its values allow. Nothing is checked, and the
    decoder has to know the length and the types.
slotcache.codec
    The same columns, with a generation, a life, a version and a checksum: any bytes whatever are
    a list or a miss. The list that comes back makes its rows when they are asked for.
pickle
    Protocol 5, of dicts and of tuples. No checksum; loading runs the code that the bytes name.
json
    Of dicts, with the separators that its documentation gives for the most compact form.
msgspec
    MessagePack of Structs, with one encoder and one decoder kept, `array_like` and `gc=False`, as
    its performance tips say. Checks the type of each field; no checksum.
orjson
    Of dicts. No checksum, no types.
"""

from __future__ import annotations

import json
import pickle
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

from _runner import available
from _slots import HOUR, Rows, as_dicts
from slotcache import Availability
from slotcache.codec import decode, encode
from slotcache.protocols import Entry, Generation


@dataclass(frozen=True)
class Format:
    """One list in one form.

    Attributes:
        value: The list as its users have it in hand.
        encode: Turns that into bytes.
        decode: Turns the bytes into the like of `value`, with rows that can be used.
    """

    value: Any
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


Maker: TypeAlias = Callable[[Rows], Format]


def formats() -> dict[str, Maker]:
    """Return all forms by name, the floor first, without those that are not installed."""
    return {
        "columns": columns,
        "slotcache.codec": slotcache_codec,
        "pickle of dicts": lambda rows: pickled(as_dicts(rows)),
        "pickle of tuples": pickled,
        "json": json_of_dicts,
        **available({"msgspec": msgspec_structs, "orjson": orjson_dicts}),
    }


class Columns:
    """Three arrays, and how to have them back from their bytes."""

    def __init__(self, rows: Rows) -> None:
        self.arrays = [narrowest(column) for column in zip(*rows, strict=True)]
        sizes = (len(each) * each.itemsize for each in self.arrays)
        self._parts = [
            (each.typecode, slice(*ends))
            for each, ends in zip(self.arrays, pairwise(accumulate(sizes, initial=0)), strict=True)
        ]

    def decode(self, data: bytes) -> list[array[int]]:
        view = memoryview(data)
        found = []
        for typecode, part in self._parts:
            column = array(typecode)
            column.frombytes(view[part])
            found.append(column)
        return found


def columns(rows: Rows) -> Format:
    made = Columns(rows)
    return Format(made.arrays, b"".join, made.decode)


def narrowest(column: tuple[int, ...]) -> array[int]:
    for typecode in "BHI":
        with suppress(OverflowError):
            return array(typecode, column)
    return array("q", column)


def slotcache_codec(rows: Rows) -> Format:
    entry = Entry(Availability.of(rows), Generation(2**63, 1), since=0.0, until=HOUR)
    return Format(entry, encode, decode)


def pickled(rows: object) -> Format:
    return Format(rows, partial(pickle.dumps, protocol=5), pickle.loads)


def json_of_dicts(rows: Rows) -> Format:
    def dumps(dicts: object) -> bytes:
        return json.dumps(dicts, separators=(",", ":")).encode()

    return Format(as_dicts(rows), dumps, json.loads)


def msgspec_structs() -> Maker:
    import msgspec

    class Slot(msgspec.Struct, array_like=True, gc=False):  # type: ignore[call-arg, misc]
        slot_id: int
        capacity: int
        remaining: int

    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(list[Slot])
    return lambda rows: Format([Slot(*row) for row in rows], encoder.encode, decoder.decode)


def orjson_dicts() -> Maker:
    import orjson

    return lambda rows: Format(as_dicts(rows), orjson.dumps, orjson.loads)
