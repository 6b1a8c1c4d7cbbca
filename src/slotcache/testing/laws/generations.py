"""What clears do to lists, and what becomes of fills that come late: the heart of P1."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from slotcache.protocols import CacheBackend, Generation, Miss
from slotcache.testing.laws.lists import a_new_key_is_a_miss
from slotcache.testing.laws.subject import (
    KEY,
    LONG,
    PATIENCE,
    ROUNDS,
    CacheSubject,
    expect_copy,
    expect_fresh,
    expect_miss,
    expect_nothing_old,
    fill,
    generation_of,
    together,
)

# Clears.


def a_clear_adds_one(subject: CacheSubject) -> None:
    """A clear adds one to the clears, under the same epoch, for all to see."""
    ours, theirs = subject.open(), subject.open()
    before = generation_of(ours.read(KEY))
    for clears in (1, 2, 3):
        theirs.clear(KEY)
        for found in (ours.read(KEY), theirs.look(KEY)):
            expected = Generation(before.epoch, clears)
            assert generation_of(found) == expected, f"{clears} clears after {before}: {found}"


def a_clear_ends_what_is_kept(subject: CacheSubject) -> None:
    """After a clear nobody is offered what was kept before, fresh or expired (P1)."""
    ours, theirs = subject.open(), subject.open()
    for key, ttl in (("fresh", LONG), ("expired", subject.unit)):
        fill(ours, ours.look(key), 10, key=key, ttl=ttl)
        theirs.read(key)
    subject.pass_time(2 * subject.unit)
    for key in ("fresh", "expired"):
        theirs.clear(key)
        for cache in (ours, theirs):
            expect_nothing_old(cache.read(key))
            expect_nothing_old(cache.look(key))


def a_clear_makes_no_record(subject: CacheSubject) -> None:
    """Clearing what has no record does nothing: there is no list that it could make wrong."""
    cache = subject.open()
    cache.clear(KEY)
    cache.clear_all()
    a_new_key_is_a_miss(subject)


def clear_all_counts_in_every_record(subject: CacheSubject) -> None:
    """Clearing everything adds one to each record, forgets none, and ends what is kept."""
    ours, theirs = subject.open(), subject.open()
    keys = [str(number) for number in range(5)]
    before = {key: generation_of(ours.read(key)) for key in keys}
    for key in keys[::2]:
        fill(ours, ours.look(key), 10, key=key)
        theirs.read(key)
    theirs.clear_all()
    for key, generation in before.items():
        for cache in (ours, theirs):
            found = cache.read(key)
            expected = Generation(generation.epoch, generation.clears + 1)
            assert generation_of(found) == expected, f"{generation}, then all cleared: {found}"
            expect_nothing_old(found)


def each_quick_change_is_seen(subject: CacheSubject) -> None:
    """However fast clears and fills follow each other, whoever reads sees each of them."""
    ours, theirs = subject.open(), subject.open()
    theirs.read(KEY)
    for free in range(ROUNDS):
        theirs.clear(KEY)
        expect_nothing_old(ours.read(KEY))
        expect_fresh(fill(theirs, expect_miss(theirs.read(KEY)), free), free)
        expect_fresh(ours.read(KEY), free)


# Fills that come late.


def an_outrun_fill_is_kept_for_those_who_wait(subject: CacheSubject) -> None:
    """What a clear outran is fresh for nobody, and a copy for who looked before the clear."""
    ours, theirs = subject.open(), subject.open()
    early = expect_miss(ours.read(KEY))
    theirs.clear(KEY)
    filled = fill(ours, early, 10)
    assert filled is None, f"a clear outran it: {filled}"
    for cache in (ours, theirs):
        found = cache.read(KEY)
        expect_nothing_old(found)
        copy = expect_copy(found, 10)
        assert copy.generation == early.generation, f"looked at {early}, kept {copy}"


def a_clear_spares_an_outrun_copy(subject: CacheSubject) -> None:
    """A clear leaves a copy that an earlier clear outran: whoever may take it waits still."""
    cache = subject.open()
    early = expect_miss(cache.read(KEY))
    cache.clear(KEY)
    fill(cache, early, 10)
    cache.clear(KEY)
    cache.clear_all()
    copy = expect_copy(cache.read(KEY), 10)
    assert copy.generation == early.generation, f"looked at {early}, kept {copy}"


def a_fill_replaces_what_has_fewer_clears(subject: CacheSubject) -> None:
    """A fill takes the place of a copy with fewer clears, be it outrun as well or fresh."""
    cache = subject.open()
    first = expect_miss(cache.read(KEY))
    cache.clear(KEY)
    second = expect_miss(cache.read(KEY))
    cache.clear(KEY)
    fill(cache, first, 10)
    fill(cache, second, 9)
    expect_copy(cache.read(KEY), 9)
    expect_fresh(fill(cache, expect_miss(cache.read(KEY)), 8), 8)
    expect_fresh(cache.read(KEY), 8)


def a_fill_never_replaces_more_clears(subject: CacheSubject) -> None:
    """A fill is dropped when what is kept has more clears, be that fresh or a copy."""
    ours, theirs = subject.open(), subject.open()
    early = expect_miss(ours.read(KEY))
    theirs.clear(KEY)
    outrun = expect_miss(theirs.read(KEY))
    theirs.clear(KEY)
    fill(theirs, outrun, 9)
    assert fill(ours, early, 10) is None, "it is older than the copy that is kept"
    expect_copy(theirs.read(KEY), 9)
    fill(theirs, expect_miss(theirs.read(KEY)), 8)
    assert fill(ours, early, 10) is None, "it is older than the list that is fresh"
    expect_fresh(ours.read(KEY), 8)
    expect_fresh(theirs.read(KEY), 8)


def a_fill_never_replaces_a_later_look(subject: CacheSubject) -> None:
    """Of two fills under one generation, that of the later look stays, whichever comes last."""
    ours, theirs = subject.open(), subject.open()
    early = ours.look(KEY)
    subject.pass_time(subject.unit)
    fill(theirs, theirs.look(KEY), 9)
    assert fill(ours, early, 10) is None, "a list of a later look is kept"
    expect_fresh(ours.read(KEY), 9)
    expect_fresh(theirs.read(KEY), 9)


def a_fill_under_another_record_is_dropped(subject: CacheSubject) -> None:
    """A fill is dropped when its look saw another record, as it has when one was lost since."""
    cache = subject.open()
    other = expect_miss(cache.read("another key"))
    assert fill(cache, other, 10) is None, "its look saw another record, and this key has none"
    a_new_key_is_a_miss(subject)
    fill(cache, expect_miss(cache.read(KEY)), 9)
    assert fill(cache, other, 10) is None, "its look saw another record"
    expect_fresh(cache.read(KEY), 9)


def a_fill_without_a_generation_is_dropped(subject: CacheSubject) -> None:
    """A fill under a look that the cache never answered is dropped, and raises nothing."""
    cache = subject.open()
    assert fill(cache, Miss(), 10) is None, "there is no generation to keep it under"
    a_new_key_is_a_miss(subject)
    assert fill(cache, Miss(), 10) is None, "there is no generation to keep it under"
    a_new_key_is_a_miss(subject)


# Races.


def no_race_leaves_an_old_list(subject: CacheSubject) -> None:
    """However loads, fills, changes and clears race, no read after a clear is stale (P1)."""
    ours, theirs = subject.open(), subject.open()
    changes = cleared = 0
    loading = threading.Semaphore(0)
    over = threading.Event()

    def read_and_fill(cache: CacheBackend) -> None:
        while not over.is_set():
            due = cleared
            found = cache.read(KEY)
            expect_nothing_old(found, below=due)
            if isinstance(found, Miss):
                loaded = changes
                loading.release()
                fill(cache, found, loaded)
            time.sleep(0)

    def change_and_clear() -> None:
        nonlocal changes, cleared
        while changes < ROUNDS and not over.is_set():
            # Each change waits for a load: without one beside it there is no race.
            assert loading.acquire(timeout=PATIENCE), "what was cleared is never a miss"
            changes += 1
            theirs.clear(KEY)
            cleared = changes
            for cache in (ours, theirs):
                expect_nothing_old(cache.read(KEY), below=changes)

    def until_one_ends(work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            over.set()
            loading.release()

    works = (change_and_clear, partial(read_and_fill, ours), partial(read_and_fill, theirs))
    together(*(partial(until_one_ends, work) for work in works))


def clears_at_once_are_all_counted(subject: CacheSubject) -> None:
    """Of many clears at once each counts: two that add one would hide a change (P1)."""
    caches = [subject.open() for _ in range(4)]
    early = expect_miss(caches[0].read(KEY))

    def clear_often(cache: CacheBackend) -> None:
        for _ in range(ROUNDS):
            cache.clear(KEY)

    together(*(partial(clear_often, cache) for cache in caches))
    clears = generation_of(caches[0].read(KEY)).clears
    assert clears == 4 * ROUNDS, f"{4 * ROUNDS} clears were counted as {clears}"
    assert fill(caches[0], early, 10) is None, f"{clears} clears outran it"
    expect_nothing_old(caches[1].read(KEY))


laws: tuple[Callable[[CacheSubject], None], ...] = (
    a_clear_adds_one,
    a_clear_ends_what_is_kept,
    a_clear_makes_no_record,
    clear_all_counts_in_every_record,
    each_quick_change_is_seen,
    an_outrun_fill_is_kept_for_those_who_wait,
    a_clear_spares_an_outrun_copy,
    a_fill_replaces_what_has_fewer_clears,
    a_fill_never_replaces_more_clears,
    a_fill_never_replaces_a_later_look,
    a_fill_under_another_record_is_dropped,
    a_fill_without_a_generation_is_dropped,
    no_race_leaves_an_old_list,
    clears_at_once_are_all_counted,
)
