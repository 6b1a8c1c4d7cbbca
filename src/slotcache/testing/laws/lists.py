"""What a cache keeps: contents, keys, time, renewal, and the locks beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from uuid import UUID

from slotcache.availability import Availability
from slotcache.protocols import Entry
from slotcache.testing.laws.subject import (
    KEY,
    LONG,
    NAMES,
    CacheSubject,
    expect_copy,
    expect_fresh,
    expect_lock,
    expect_miss,
    fill,
    free_places,
    generation_of,
    together,
)

# What comes and goes.


def a_new_key_is_a_miss(subject: CacheSubject) -> None:
    """A new key is a miss that tells a generation without clears, and it has no copy."""
    miss = expect_miss(subject.open().read(KEY))
    assert generation_of(miss).clears == 0, f"a new record counts from 0: {miss}"
    assert miss.copy is None, f"a new record has no copy: {miss}"


def epochs_are_random(subject: CacheSubject) -> None:
    """The epochs of new records are far apart: no counter, no time, no number of a row.

    A record that was lost must never come back under an epoch that it had before.
    """
    cache = subject.open()
    epochs = sorted(generation_of(cache.read(str(number))).epoch for number in range(8))
    gaps = [later - earlier for earlier, later in pairwise(epochs)]
    assert min(gaps) > 0, f"two records have one epoch: {epochs}"
    assert max(gaps) > 2**32, f"these are not 64 random bits each: {epochs}"


def everybody_sees_one_generation(subject: CacheSubject) -> None:
    """A key's generation is the same to all, also to those who meet at a new key.

    Reading, filling and expiring leave it as it is.
    """
    caches = [subject.open() for _ in range(4)]
    first, *others = together(*(partial(cache.read, KEY) for cache in caches))
    for found in others:
        assert generation_of(found) == generation_of(first), (
            f"one key, two generations: {first}, {found}"
        )
    ours, theirs, *_ = caches
    fill(ours, expect_miss(first), 10, ttl=subject.unit)
    subject.pass_time(2 * subject.unit)
    for found in (ours.read(KEY), theirs.look(KEY)):
        assert generation_of(found) == generation_of(first), (
            f"it was not cleared: {first}, then {found}"
        )


def everybody_reads_what_was_filled(subject: CacheSubject) -> None:
    """What one has filled is fresh for all, while it lives."""
    ours, theirs = subject.open(), subject.open()
    theirs.read(KEY)
    miss = expect_miss(ours.read(KEY))
    filled = fill(ours, miss, 10)
    for _ in range(2):
        for found in (filled, ours.read(KEY), theirs.read(KEY)):
            entry = expect_fresh(found, 10)
            assert entry.generation == miss.generation, f"filled under {miss}, read {entry}"
        subject.pass_time(subject.unit)


def a_hit_is_one_object(subject: CacheSubject) -> None:
    """A backend returns the very same entry at every hit: a hit makes nothing."""
    ours, theirs = subject.open(), subject.open()
    fill(ours, expect_miss(ours.read(KEY)), 10)
    for cache in (ours, theirs):
        entry = expect_fresh(cache.read(KEY), 10)
        assert all(cache.read(KEY) is entry for _ in range(3)), "each hit makes a new entry"


def a_list_comes_back_as_it_was(subject: CacheSubject) -> None:
    """Lists of any length and ids of any type come back equal, ids as the type that they had."""
    texts = ("", "1", "a\0b", "\u00e9", "e\u0301", "\U0001f4c5", "a" * 10_000)
    lists = (
        Availability.of([]),
        Availability.of([(0, 0, 0), (-(2**63), 2**31 - 1, 2**31 - 1), (2**63 - 1, 300, 7)]),
        Availability.of((number, 3, number % 4) for number in range(1_000)),
        Availability.of((text, 70_000, len(text)) for text in texts),
        Availability.of([(UUID(int=0), 1, 1), (UUID(int=2**128 - 1), 1, 0)]),
    )
    ours, theirs = subject.open(), subject.open()
    for number, availability in enumerate(lists):
        key = str(number)
        ours.fill(key, ours.look(key), availability, ttl=LONG, stale_ttl=LONG)
        for cache in (ours, theirs):
            found = cache.read(key)
            assert isinstance(found, Entry), f"the list {availability} was not kept: {found}"
            assert found.availability == availability, f"{availability} came back as {found}"


def keys_stay_apart(subject: CacheSubject) -> None:
    """Each key has a list of its own, whatever characters it is made of and however long."""
    ours, theirs = subject.open(), subject.open()
    for number, key in enumerate(NAMES):
        found = ours.read(key)
        if isinstance(found, Entry):
            raise AssertionError(f"{key!r:.40} is taken for {NAMES[free_places(found)]!r:.40}")
        fill(ours, found, number, key=key)
    for number, key in enumerate(NAMES):
        expect_fresh(theirs.read(key), number)
    for key in NAMES[::2]:
        theirs.clear(key)
    for number, key in enumerate(NAMES):
        if number % 2:
            expect_fresh(ours.read(key), number)
        else:
            assert generation_of(ours.read(key)).clears == 1, f"{key!r:.40} was cleared once"


# Time.


def instants_are_of_this_process(subject: CacheSubject) -> None:
    """`since` is the look before the load and `until` its end, by the clock of who reads.

    Whoever must convert may take them for a little earlier than they are, never for later.
    """
    ours, theirs = subject.open(), subject.open()
    began = subject.now()
    miss = expect_miss(ours.read(KEY))
    looked = subject.now()
    subject.pass_time(2 * subject.unit)
    fill(ours, miss, 10)
    entries = [expect_fresh(cache.read(KEY), 10) for cache in (ours, theirs)]
    tolerance = subject.unit / 2
    earliest = began - (subject.now() - began) - tolerance
    for entry in entries:
        since = f"since {entry.since}, for a look between {began} and {looked}"
        assert earliest <= entry.since <= looked + tolerance, since
        life = entry.until - entry.since
        assert abs(life - LONG) <= tolerance, f"a life of {life} s, for a ttl of {LONG} s"


def life_counts_from_the_look(subject: CacheSubject) -> None:
    """A list lives for `ttl` from the look before its load, however long the load took."""
    cache = subject.open()
    miss = expect_miss(cache.read(KEY))
    subject.pass_time(2 * subject.unit)
    fill(cache, miss, 10, ttl=3 * subject.unit)
    subject.pass_time(2 * subject.unit)
    expect_miss(cache.read(KEY))


def valid_for_counts_from_the_fill(subject: CacheSubject) -> None:
    """`valid_for` counts from the fill, since the load has just told it."""
    cache = subject.open()
    miss = expect_miss(cache.read(KEY))
    subject.pass_time(2 * subject.unit)
    began = subject.now()
    entry = expect_fresh(fill(cache, miss, 10, ttl=2 * LONG, valid_for=LONG), 10)
    ended = subject.now()
    tolerance = subject.unit / 2 + ended - began
    until = f"until {entry.until}, for {LONG} s from a fill between {began} and {ended}"
    assert began + LONG - tolerance <= entry.until <= ended + LONG + tolerance, until


def life_ends_with_whichever_is_first(subject: CacheSubject) -> None:
    """A life ends with `ttl` or with `valid_for`, whichever ends first."""
    cache = subject.open()
    fill(cache, cache.look("ttl"), 10, key="ttl", ttl=subject.unit, valid_for=LONG)
    fill(cache, cache.look("valid"), 10, key="valid", ttl=LONG, valid_for=subject.unit)
    subject.pass_time(2 * subject.unit)
    expect_miss(cache.read("ttl"))
    expect_miss(cache.read("valid"))


def an_expired_list_is_a_copy(subject: CacheSubject) -> None:
    """After its life a list is not fresh, and all are offered it as a copy, for `stale_ttl`."""
    ours, theirs = subject.open(), subject.open()
    miss = expect_miss(ours.read(KEY))
    fill(ours, miss, 10, ttl=subject.unit)
    theirs.read(KEY)
    subject.pass_time(2 * subject.unit)
    for cache in (ours, theirs):
        copy = expect_copy(cache.read(KEY), 10)
        assert copy.generation == miss.generation, f"filled under {miss}, kept {copy}"
        assert copy.until <= subject.now(), f"over, but until {copy.until}"


def a_fill_without_life_left_is_a_copy(subject: CacheSubject) -> None:
    """A load that took longer than `ttl` brings a copy, and nothing fresh."""
    cache = subject.open()
    miss = expect_miss(cache.read(KEY))
    subject.pass_time(2 * subject.unit)
    filled = fill(cache, miss, 10, ttl=subject.unit)
    assert filled is None, f"its life was over before it was filled: {filled}"
    expect_copy(cache.read(KEY), 10)


# Renewal.


def a_look_is_a_miss(subject: CacheSubject) -> None:
    """`look` is a miss although the list is fresh; it tells the generation and the list."""
    ours, theirs = subject.open(), subject.open()
    miss = expect_miss(ours.read(KEY))
    fill(ours, miss, 10)
    for cache in (ours, theirs):
        look = cache.look(KEY)
        assert generation_of(look) == miss.generation, f"nothing was cleared: {miss}, then {look}"
        expect_copy(look, 10)
        expect_fresh(cache.read(KEY), 10)


def a_renewal_is_fresh(subject: CacheSubject) -> None:
    """A fill under the look of a fresh list takes its place; for all, once the old one ends."""
    ours, theirs = subject.open(), subject.open()
    fill(ours, expect_miss(ours.read(KEY)), 10, ttl=2 * subject.unit)
    theirs.read(KEY)
    subject.pass_time(subject.unit)
    expect_fresh(fill(ours, ours.look(KEY), 9), 9)
    expect_fresh(ours.read(KEY), 9)
    subject.pass_time(2 * subject.unit)
    expect_fresh(theirs.read(KEY), 9)


# The locks of a cache.


def all_share_the_locks_of_a_cache(subject: CacheSubject) -> None:
    """`locks` gives everybody on this storage the same locks."""
    ours, theirs = subject.open(), subject.open()
    lock = expect_lock(ours.locks())
    for locks in (ours.locks(), theirs.locks()):
        assert locks.acquire(KEY, ttl=LONG) is None, "it was granted twice"
    assert theirs.locks().release(lock), "it was held, and is not released"
    expect_lock(ours.locks())


def locks_and_lists_stay_apart(subject: CacheSubject) -> None:
    """A lock that is named as a key leaves the list alone, and no clear releases it."""
    cache = subject.open()
    lock = expect_lock(cache.locks())
    fill(cache, expect_miss(cache.read(KEY)), 10)
    expect_fresh(cache.read(KEY), 10)
    cache.clear(KEY)
    cache.clear_all()
    assert cache.locks().acquire(KEY, ttl=LONG) is None, "a clear released a lock"
    fill(cache, expect_miss(cache.read(KEY)), 9)
    assert cache.locks().release(lock), "it was held, and is not released"
    expect_fresh(cache.read(KEY), 9)


laws: tuple[Callable[[CacheSubject], None], ...] = (
    a_new_key_is_a_miss,
    epochs_are_random,
    everybody_sees_one_generation,
    everybody_reads_what_was_filled,
    a_hit_is_one_object,
    a_list_comes_back_as_it_was,
    keys_stay_apart,
    instants_are_of_this_process,
    life_counts_from_the_look,
    valid_for_counts_from_the_fill,
    life_ends_with_whichever_is_first,
    an_expired_list_is_a_copy,
    a_fill_without_life_left_is_a_copy,
    a_look_is_a_miss,
    a_renewal_is_fresh,
    all_share_the_locks_of_a_cache,
    locks_and_lists_stay_apart,
)
