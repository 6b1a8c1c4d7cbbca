"""P10 data only.

What comes out of a cache is data: bytes of one fixed layout, with a checksum. Nothing in them is
code, and none is run. Bytes that do not parse (cut, damaged, somebody else's, of another release, a
pickle that somebody planted) are a miss, not an error: the read queries the table, and its fill
puts a good list in their place.

However many slots the bytes claim to have, reading them takes no more memory than a small multiple
of their own size.

Limits: The checksum finds what went wrong on the way. It is no signature: whoever can write to the
cache can write a well-formed list that is wrong, and it is believed. So keep the directory, and the
server, to yourself. A record of clears that is damaged, and not the list itself, may cost the reads
of half a second a query each.

Shown: On real files and a real server, in both worlds, a list is replaced by damaged, foreign and
hostile bytes; every process then tells the truth, and after one query the list is good again. Each
other thing that is stored is damaged, too. The parser itself is given every truncation, every
flipped bit, bytes at random, and counterfeits whose checksum is right. Twins that unpickle, raise,
or believe any checksum are caught.
"""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slotcache import Availability, Source
from slotcache.codec import HEADER_SIZE, decode, encode
from slotcache.events import Health
from slotcache.protocols import Entry
from tests.support.backends import Backend, Storage, choices, try_out
from tests.support.lists import ABSURD, each_kind, sealed, text, use
from tests.support.shelf import Shelf
from tests.support.worlds import VALUES, Worlds, one_world

WELL = Health(cache=True, locks=True, undelivered=0)

with_bytes = pytest.mark.parametrize("backend", choices("files", "redis"), indirect=True)
of_bytes = one_world(VALUES)


class Bomb:
    """What a pickle can do to whoever loads it."""

    exploded = False

    def __reduce__(self) -> Any:
        return setattr, (Bomb, "exploded", True)


BOMBS = [pickle.dumps(Bomb(), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]


@pytest.fixture(autouse=True)
def defused() -> Iterator[None]:
    """Those that a test lets explode are forgotten with it."""
    yield
    Bomb.exploded = False


# Where the bytes are.


class InFiles:
    """What a cache keeps in files."""

    parts = (".list", ".record")

    def __init__(self, backend: Backend, storage: Storage) -> None:
        self._folder = Path(storage.place)

    def read(self, part: str) -> bytes:
        return self._file(part).read_bytes()

    def write(self, part: str, data: bytes) -> None:
        file = self._file(part)
        times = file.stat()
        file.write_bytes(data)
        # By its time a file tells until when somebody may want it: else it would be swept unread.
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    def _file(self, suffix: str) -> Path:
        (path,) = self._folder.glob(f"*{suffix}")
        return path


class OnServer:
    """What a cache keeps on a server: hashes, whose fields are these."""

    parts = (
        *("list", "stamp", "under", "since", "until", "epoch", "clears", "all"),
        *("all/epoch", "all/clears"),
    )

    def __init__(self, backend: Backend, storage: Storage) -> None:
        assert backend.server is not None
        self._command = backend.server.command
        self._prefix = f"{{{storage.place}}}:"

    def read(self, part: str) -> bytes:
        content: bytes = self._command("HGET", *self._field(part))
        return content

    def write(self, part: str, data: bytes) -> None:
        self._command("HSET", *self._field(part), data)

    def _field(self, part: str) -> tuple[str, str]:
        hash_, _, field = part.rpartition("/")
        return self._prefix + (hash_ or "list:slots.availability"), field


STORED: dict[str, Any] = {"files": InFiles, "redis": OnServer}


# What may stand in their place.


@dataclass(frozen=True)
class Damage:
    """What becomes of bytes.

    Attributes:
        kind: One of `KINDS`.
        at: Where it begins; below 0: from the end.
        some: Bytes of somebody else's.
    """

    kind: str
    at: int
    some: bytes

    def done(self, now: bytes, before: bytes) -> bytes:
        """Return what becomes of these bytes, where those stood before them."""
        place = self.at % len(now)
        return KINDS[self.kind](now[:place], now[place:], self.some) or before


KINDS: dict[str, Callable[[bytes, bytes, bytes], bytes]] = {
    "flip": lambda start, end, some: start + bytes([end[0] ^ 1 << len(some) % 8]) + end[1:],
    "cut": lambda start, end, some: start,
    "insert": lambda start, end, some: start + some + end,
    "append": lambda start, end, some: start + end + some,
    "replace": lambda start, end, some: some,
    "another release": lambda start, end, some: b"slot\2" + (start + end)[5:],
    "put back": lambda start, end, some: b"",
}


@st.composite
def counterfeits(draw: st.DrawFn) -> bytes:
    """Any header over columns that often have about the right length."""
    id_size = draw(st.sampled_from([0, 1, 2, 4, 8, 16]))
    count_size = draw(st.sampled_from([0, 1, 2, 4, 8]))
    slots = draw(st.integers(0, 4))
    length = max(0, slots * (id_size + 2 * count_size) + draw(st.sampled_from([0, 0, -1, 1, 7])))
    return sealed(
        draw(st.binary(min_size=length, max_size=length)),
        kind=draw(st.sampled_from([b"i", b"s", b"u", b"?"])),
        id_size=id_size,
        count_size=count_size,
        slots=draw(st.sampled_from([slots, slots, slots, ABSURD])),
        since=draw(st.floats()),
        until=draw(st.floats()),
    )


@st.composite
def counterfeit_texts(draw: st.DrawFn) -> bytes:
    """Lengths, texts and counts that are right on their own and often together."""
    texts = draw(st.lists(text | st.just("\ud800"), min_size=1, max_size=4))
    id_size, typecode = draw(st.sampled_from([(1, "B"), (2, "H"), (4, "I")]))
    lengths = [max(0, len(each) + draw(st.sampled_from([0, 0, 0, 0, -1, 1]))) for each in texts]
    columns = struct.pack(f"<{len(texts)}{typecode}", *lengths)
    columns += "".join(texts).encode(errors="surrogatepass")
    columns += draw(st.binary(min_size=2 * len(texts), max_size=2 * len(texts)))
    return sealed(columns, kind=b"s", id_size=id_size, slots=len(texts))


damages = st.builds(
    Damage,
    st.sampled_from(list(KINDS)),
    st.integers(-12, -1) | st.integers(0, 60),
    st.binary(max_size=60) | st.sampled_from(BOMBS) | counterfeits() | counterfeit_texts(),
)
numbers = st.builds(Damage, st.just("replace"), st.just(0), st.integers(-1, 3).map(b"%d".__mod__))


# What a read makes of them.


class Stage:
    """A list that was stored, cleared and stored anew, and processes that read it."""

    def __init__(self, backend: Backend, storage: Storage) -> None:
        self.storage = storage
        self.stored = STORED[backend.kind](backend, storage)
        self.shelf = Shelf()
        self.first = storage.service(self.shelf)
        self.first.read()
        self.before = self.stored.read(self.stored.parts[0])
        self.change()
        self.first.read()

    def change(self) -> None:
        self.shelf.remaining -= 1
        assert self.first.clear_availability_cache()

    def another_process(self) -> Any:
        return self.storage.service(self.shelf)

    def damage(self, part: str, damage: Damage) -> None:
        self.stored.write(part, damage.done(self.stored.read(part), self.before))

    def expect_truth(self, service: Any) -> Source:
        """It is read, without an error; return where it was found."""
        reading = service.read()
        assert reading.availability == Availability.of([("slot", 10, self.shelf.remaining)])
        source: Source = reading.source
        return source


def judge(stage: Stage, damage: Damage) -> None:
    """The list is damaged: that is a miss at most, which the next fill heals."""
    stage.damage(stage.stored.parts[0], damage)
    finds_it, finds_it_healed = stage.another_process(), stage.another_process()

    assert stage.expect_truth(finds_it) in (Source.LOADED, Source.CACHED)
    assert stage.expect_truth(finds_it_healed) is Source.CACHED
    assert stage.expect_truth(stage.first) is Source.CACHED
    assert finds_it.health() == WELL
    assert not Bomb.exploded


@with_bytes
@settings(max_examples=settings().max_examples // 4)
@given(damage=damages)
def test_whatever_stands_in_place_of_a_list_is_a_miss_at_most_and_is_healed(
    backend: Backend, damage: Damage
) -> None:
    with backend.opened() as storage:
        judge(Stage(backend, storage), damage)


@with_bytes
@settings(max_examples=settings().max_examples // 8)
@given(st.integers(0, 9), damages | numbers)
def test_whatever_else_is_damaged_every_read_shows_the_truth_and_so_it_does_after_a_change(
    backend: Backend, which: int, damage: Damage
) -> None:
    with backend.opened() as storage:
        stage = Stage(backend, storage)
        parts = stage.stored.parts[1:]
        stage.damage(parts[which % len(parts)], damage)

        for service in (stage.another_process(), stage.first):
            stage.expect_truth(service)
        stage.change()
        for service in (stage.first, stage.another_process()):
            stage.expect_truth(service)


@with_bytes
def test_bytes_that_claim_to_be_huge_or_are_take_no_memory_but_their_own(
    backend: Backend,
) -> None:
    for data in (sealed(bytes(64), slots=ABSURD, kind=b"s"), bytes(2**21), sealed(bytes(2**21))):
        with backend.opened() as storage:
            stage = Stage(backend, storage)
            stage.damage(stage.stored.parts[0], Damage("replace", 0, data))
            assert peak(stage.another_process().read) < 2**20 + 6 * len(data)
            stage.expect_truth(stage.another_process())


def peak(work: Callable[[], object]) -> int:
    """Return how many bytes were in use at once while it was done."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# What the parser makes of them.


@of_bytes
@given(st.binary())
@example(b"")
@example(b"slot\1")
@example(bytes(HEADER_SIZE))
def test_foreign_bytes_are_a_miss(data: bytes) -> None:
    assert decode(data) is None


@of_bytes
@given(counterfeits() | counterfeit_texts())
def test_a_counterfeit_is_a_miss_or_a_list_that_can_be_read(data: bytes) -> None:
    entry = decode(data)
    if entry is not None:
        use(entry)


@of_bytes
@each_kind
def test_every_flipped_bit_is_a_miss(entry: Entry) -> None:
    data = bytearray(encode(entry))
    for index, bit in product(range(len(data)), range(8)):
        data[index] ^= 1 << bit
        assert decode(data) is None, f"bit {bit} of byte {index}"
        data[index] ^= 1 << bit
    assert decode(data) == entry


@of_bytes
@each_kind
def test_every_truncation_is_a_miss(entry: Entry) -> None:
    data = encode(entry)
    assert [length for length in range(len(data)) if decode(data[:length]) is not None] == []


@of_bytes
@each_kind
def test_every_extension_is_a_miss(entry: Entry) -> None:
    data = encode(entry)
    assert [byte for byte in range(256) if decode(data + bytes([byte])) is not None] == []
    assert [length for length in range(1, 64) if decode(data + bytes(length)) is not None] == []
    assert decode(data + data) is None


@of_bytes
@pytest.mark.parametrize("version", [0, 2, 255])
def test_what_another_release_wrote_is_a_miss(version: int) -> None:
    assert decode(sealed(signature=b"slot" + bytes([version]))) is None
    assert decode(sealed(signature=b"slot\1")) is not None


@of_bytes
@pytest.mark.parametrize("data", BOMBS, ids=range(len(BOMBS)))
def test_a_pickle_is_a_miss_and_is_not_run(data: bytes) -> None:
    assert decode(data) is None
    assert decode(sealed(data)) is None
    assert decode(sealed(data, kind=b"s", slots=1)) is None
    assert not Bomb.exploded
    pickle.loads(data)
    assert Bomb.exploded, "it is a bomb"


@of_bytes
@pytest.mark.parametrize("count_size", [1, 2, 4])
@pytest.mark.parametrize(("kind", "id_size"), [(b"i", 8), (b"s", 1), (b"s", 4), (b"u", 16)])
def test_a_claim_of_four_billion_slots_takes_no_memory(
    kind: bytes, id_size: int, count_size: int
) -> None:
    data = sealed(bytes(64), kind=kind, id_size=id_size, count_size=count_size, slots=ABSURD)
    assert peak(lambda: decode(data)) < 4_096


@of_bytes
@pytest.mark.parametrize(
    ("data", "times"),
    [
        (sealed(bytes(3 * 50_000), slots=50_000), 3),
        (sealed(bytes(18 * 5_000), kind=b"u", id_size=16, slots=5_000), 12),
        (sealed(bytes(3 * 50_000), kind=b"s", slots=50_000), 12),
        (sealed(b"\1" * 9_000 + "Ā".encode() * 9_000 + bytes(18_000), kind=b"s", slots=9_000), 24),
        (sealed(b"\xff\xff" + b"A" * 65_534 + "🚚\2\1".encode(), kind=b"s", id_size=2, slots=1), 6),
    ],
    ids=["ints", "UUIDs", "empty texts", "short texts", "one wide character"],
)
def test_memory_is_a_small_multiple_of_the_bytes(data: bytes, times: int) -> None:
    assert peak(lambda: decode(data)) < 4_096 + times * len(data)


# Broken twins.


def unpickles(data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except Exception:
        return decode(data)


def raises(data: bytes) -> Any:
    entry = decode(data)
    assert entry is not None, "no entry"
    return entry


def believes_any_checksum(data: bytes) -> Any:
    checksum = crc32(data[HEADER_SIZE:], crc32(data[:44]))
    return decode(data[:44] + struct.pack("<I", checksum) + data[HEADER_SIZE:])


@one_world("twins of the parser, which both worlds share")
@pytest.mark.parametrize("twin", [unpickles, raises, believes_any_checksum])
def test_a_twin_is_noticed_that(worlds: Worlds, monkeypatch: Any, twin: Any) -> None:
    monkeypatch.setattr("slotcache.file.cache.decode", twin)
    backend = Backend("files", "blocking", worlds)

    def judged(damage: Damage) -> None:
        Bomb.exploded = False
        with backend.opened() as storage:
            judge(Stage(backend, storage), damage)

    with pytest.raises((AssertionError, TypeError, AttributeError)):
        try_out(judged, damages)
