"""What a law examines, and the words in which laws are written.

An `expect` raises `AssertionError` if things are not as its docstring says.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from slotcache.availability import Availability
from slotcache.protocols import CacheBackend, Entry, Generation, Lock, LockProvider, Miss

T = TypeVar("T")
BackendT_co = TypeVar("BackendT_co", covariant=True)


@dataclass(frozen=True)
class Subject(Generic[BackendT_co]):
    """What one law examines. Each law needs one of its own, on a new and empty storage.

    Attributes:
        open: Returns a backend on this storage: another one at each call, as another process
            has it; or the same one, if there cannot be two.
        now: The clock of this process, by which entries tell their instants.
        pass_time: Lets so many seconds pass, for the storage as for `now`.
        unit: Seconds. Laws wait for a few of these, and the storage must tell one from none.

    Examples:
        >>> from slotcache.memory import MemoryCache
        >>> from slotcache.testing import ManualClock, Subject, cache_laws
        >>> for law in cache_laws:
        ...     clock = ManualClock()
        ...     cache = MemoryCache(clock=clock)
        ...     law(Subject(lambda: cache, now=clock.now, pass_time=clock.advance))
    """

    open: Callable[[], BackendT_co]
    now: Callable[[], float] = time.monotonic
    pass_time: Callable[[float], None] = time.sleep
    unit: float = 0.05


CacheSubject: TypeAlias = Subject[CacheBackend]
LockSubject: TypeAlias = Subject[LockProvider]

KEY = "slots.availability"
LONG = 600.0
ROUNDS = 40
PATIENCE = 60.0

# Pairs that some storage takes for one: paths, patterns, numbers, C strings, cases, accents.
NAMES = (
    *("", " ", ".", "..", "/", "a", "A", "a ", " a", "a.", "a/", "/a", "./a", "../a", "a/../a"),
    *("a\\b", "a/b", "a:b", "a.b", "a*", "a?", "a%", "a_", "a%2Fb", "a'b", 'a"b', "$a", "{a}"),
    *("1", "01", "1.0", "1e0", "None", "nul", "\n", "a\n", "a\r\n", "\0", "a\0", "a\0b", "\x7f"),
    *("\u00e9", "e\u0301", "\u00df", "ss", "i", "I", "\u0130", "\u0131", "\u200b", "\U0001f4c5"),
    *(f"{KEY}:str:", f"{KEY}:str::", f"{KEY}:str:1", f"{KEY}:int:1", f"{KEY}.lock"),
    *("a" * 10_000, "a" * 9_999 + "b", "b" + "a" * 9_999, "\u00e9" * 10_000),
)


def fill(
    cache: CacheBackend,
    miss: Miss,
    free: int,
    *,
    key: str = KEY,
    ttl: float = LONG,
    valid_for: float | None = None,
) -> Entry | None:
    """Fill in a list that shows so many free places, worth keeping as a copy for long."""
    loaded = Availability.of([("a slot", 1_000, free)])
    return cache.fill(key, miss, loaded, ttl=ttl, stale_ttl=LONG, valid_for=valid_for)


def free_places(entry: Entry) -> int:
    """Return how many free places a list of `fill` shows."""
    return entry.availability[0].remaining


def expect_miss(found: Entry | Miss) -> Miss:
    """Nothing is fresh, and the generation is told."""
    assert isinstance(found, Miss), f"a miss was due, and this is fresh: {found}"
    assert found.generation is not None, f"a miss tells the key's generation: {found}"
    return found


def generation_of(found: Entry | Miss) -> Generation:
    """Return the generation that a miss tells."""
    generation = expect_miss(found).generation
    assert generation is not None
    return generation


def expect_fresh(found: Entry | Miss | None, free: int) -> Entry:
    """A list that shows so many free places is fresh."""
    assert isinstance(found, Entry), f"a fresh list was due, with {free} free: {found}"
    assert free_places(found) == free, (
        f"{free} are free, and it shows {free_places(found)}: {found}"
    )
    return found


def expect_copy(found: Entry | Miss, free: int) -> Entry:
    """Nothing is fresh, and a list that shows so many free places is the copy."""
    copy = expect_miss(found).copy
    assert copy is not None, f"a copy was due, with {free} free: {found}"
    assert free_places(copy) == free, (
        f"{free} were free, and the copy shows {free_places(copy)}: {found}"
    )
    return copy


def expect_nothing_old(found: Entry | Miss, *, below: float = math.inf) -> None:
    """Nothing is fresh, and no copy covers this look, that shows fewer places than these."""
    if isinstance(found, Entry):
        assert free_places(found) >= below, f"it was cleared, and this is fresh: {found}"
    elif found.copy is not None and found.copy.generation.covers(found.generation):
        assert free_places(found.copy) >= below, f"it was cleared, and this copy covers: {found}"


def expect_lock(locks: LockProvider, name: str = KEY) -> Lock:
    """The lock is granted, for long."""
    lock = locks.acquire(name, ttl=LONG)
    assert lock is not None, f"it is free, and was not granted: {name!r:.40}"
    return lock


def together(*works: Callable[[], T]) -> list[T]:
    """Do all of these at once, in a thread each; return what each returned."""
    start = threading.Barrier(len(works))

    def begin(work: Callable[[], T]) -> T:
        start.wait(PATIENCE)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(begin, works))
