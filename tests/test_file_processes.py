"""Processes that share a directory, halted, stopped and killed at the worst of moments."""

import dataclasses
import random
import time
from collections import Counter, deque
from contextlib import ExitStack

import pytest

from slotcache import AvailabilityPolicy, Source
from slotcache.codec import decode, encode
from tests.support.processes import Shop, Worker, eventually

HOUR = 3600.0

# Nobody goes past a lock because the machine is busy, and nothing expires by itself.
PATIENT = {"ttl": HOUR, "lock_timeout": 15.0, "lock_ttl": HOUR}


@pytest.fixture
def folder(tmp_path):
    Shop.build(tmp_path)
    return tmp_path


@pytest.fixture
def open_shops(folder):
    """Return the function that starts processes which share the table and the directory."""
    with ExitStack() as stack:

        def open_shops(count, **policy):
            policy = AvailabilityPolicy(**{**PATIENT, **policy})
            return [stack.enter_context(Worker(Shop, folder, policy)) for _ in range(count)]

        yield open_shops


def read(shops):
    """How many places each of them is told are gone."""
    return [shop.call("read")[0] for shop in shops]


def queries(shops):
    """How many queries they have run, together."""
    return sum(shop.call("queries") for shop in shops)


def halt(shop, method, place):
    """Have it come to this place in that call, and no further."""
    shop.start(method, halt=place)
    shop.wait_until_halted()


def ask(shops):
    """Have all of them wait for a list."""
    for shop in shops:
        halt(shop, "read", "waiting")
        shop.resume()


def suffixes(folder):
    return sorted(path.suffix for path in (folder / "cache").iterdir())


# The race.


@pytest.mark.parametrize("place", ["loaded", "renaming"])
def test_nobody_is_shown_a_list_from_before_a_change_that_came_in_mid_fill(open_shops, place):
    """The reader is held right after its query, or with its list written but not in its place."""
    shops = reader, writer, _ = open_shops(3, lock_timeout=0.0)
    halt(reader, "read", place)
    writer.call("change")
    assert read([writer]) == [1]
    reader.resume()

    assert reader.answer() == (0, Source.LOADED), "it began before the change"
    assert read(shops) == [1, 1, 1]
    assert read(shops) == [1, 1, 1]


def test_a_list_that_lands_after_a_later_one_brings_nothing_back(open_shops):
    early, late, writer = shops = open_shops(3, lock_timeout=0.0, lock_ttl=0.1)
    halt(early, "read", "renaming")
    writer.call("change")
    eventually(lambda: late.call("read") == (1, Source.LOADED))
    early.resume()

    assert early.answer() == (0, Source.LOADED)
    assert read(shops) == [1, 1, 1]
    assert read(shops) == [1, 1, 1]


def test_every_read_shows_every_change_that_returned_before_it(open_shops):
    """Four processes read and change as fast as they can."""
    shops = open_shops(4)
    for index, shop in enumerate(shops):
        shop.start("work", index, 2.0, 0.05)
    done = [shop.answer() for shop in shops]

    assert all(reads and changes for reads, changes in done)
    assert read(shops) == [sum(changes for _, changes in done)] * 4


# One query.


@pytest.mark.parametrize("has_expired", [False, True])
def test_processes_that_find_nothing_fresh_run_one_query(open_shops, folder, has_expired):
    if has_expired:
        read(open_shops(1))
        expire(folder)
    leader, *others = shops = open_shops(4)
    halt(leader, "read", "loaded")
    ask(others)
    leader.resume()

    assert [shop.answer() for shop in shops] == [(0, Source.LOADED)] + [(0, Source.CACHED)] * 3
    assert queries(shops) == 1


def expire(folder):
    """Let the life of the list be over."""
    [file] = (folder / "cache").glob("*.list")
    entry = decode(file.read_bytes())
    file.write_bytes(encode(dataclasses.replace(entry, until=entry.since)))


# Killed (kill -9).


def test_who_is_killed_in_mid_load_holds_up_nobody(open_shops, folder):
    """Its lock would last for an hour, and the others would wait for a quarter of a minute."""
    killed, *others = open_shops(4)
    halt(killed, "read", "loaded")
    ask(others)
    began = time.monotonic()
    killed.kill()

    assert {shop.answer()[0] for shop in others} == {0}
    assert time.monotonic() - began < PATIENT["lock_timeout"] / 2
    assert queries(others) == 1
    assert suffixes(folder) == [".list", ".record"]


def test_who_is_killed_in_mid_fill_leaves_a_draft_and_nothing_else(open_shops, folder):
    killed, *others = open_shops(3)
    halt(killed, "read", "renaming")
    killed.kill()

    assert [shop.call("read")[1] for shop in others] == [Source.LOADED, Source.CACHED]
    assert suffixes(folder) == [".draft", ".list", ".record"]


def test_what_a_writer_did_not_come_to_clear_is_shown_a_ttl_later(open_shops):
    ttl = 0.7
    writer, *readers = open_shops(3, ttl=ttl)
    read(readers)
    halt(writer, "change", "committed")
    committed = time.monotonic()
    writer.kill()

    shown = [0]
    while (began := time.monotonic()) < committed + ttl or shown != [1, 1]:
        answers = [reader.call("read") for reader in readers]
        if began > committed + ttl:
            assert all(gone == 1 or source is Source.STALE for gone, source in answers)
        shown = [gone for gone, _ in answers]


def test_kills_at_random_leave_nothing_stale_and_nothing_locked(open_shops, folder):
    """Fifty times one of four processes that read and change is killed, and replaced.

    What returned is shown by every read, throughout. What was committed and perhaps not cleared
    is shown by every read that begins a `ttl` later.
    """
    ttl, kills = 0.5, 50

    def start(index):
        [worker] = open_shops(1, ttl=ttl)
        worker.start("work", index, HOUR, 0.05)
        return worker

    [checker] = open_shops(1, ttl=ttl)
    workers = [start(index) for index in range(4)]
    committed = deque()
    least = 0
    for _ in range(kills):
        pause = time.monotonic() + random.uniform(0.0, 0.08)
        while time.monotonic() < pause:
            committed.append((checker.call("truth"), time.monotonic()))
            began = time.monotonic()
            while committed[0][1] < began - ttl:
                least, _ = committed.popleft()
            gone, source = checker.call("read")
            assert gone >= least or source is Source.STALE
        for worker in workers:
            if worker.has_answered():
                worker.answer()  # it raises: a read showed too little
        index = random.randrange(4)
        workers[index].kill()
        workers[index] = start(index)
    for worker in workers:
        worker.kill()

    truth, end = checker.call("truth"), time.monotonic() + ttl
    assert truth >= checker.call("acknowledged") > 0
    eventually(lambda: time.monotonic() > end)
    assert read([checker]) == [truth]
    checker.call("change")
    assert checker.call("read") == (truth + 1, Source.LOADED), "a lock was left behind"
    files = Counter(suffixes(folder))
    assert files.pop(".draft", 0) <= kills + len(workers)
    assert files == {".list": 1, ".record": 1}


# Stopped (SIGSTOP).


def test_who_is_stopped_in_mid_load_is_passed_by_and_hurts_nobody_afterwards(open_shops):
    """When it goes on, its list is outrun by a change, and its lock is another's by then."""
    [stopped] = open_shops(1, lock_ttl=0.3)
    leader, writer, other = open_shops(3, lock_timeout=0.0)
    halt(stopped, "read", "loaded")
    stopped.stop()
    eventually(lambda: other.call("read") == (0, Source.LOADED))

    writer.call("change")
    halt(leader, "read", "loaded")
    stopped.resume()
    stopped.go_on()
    assert stopped.answer() == (0, Source.LOADED)

    assert other.call("read") == (1, Source.DIRECT), "neither the old list nor the lock"
    leader.resume()
    assert leader.answer() == (1, Source.LOADED)
    assert [shop.call("read") for shop in (stopped, other)] == [(1, Source.CACHED)] * 2


# Forked.


def test_children_forked_in_mid_flight_read_right_and_fast(open_shops):
    """Four threads of the parent read, fill, clear and hold locks at that moment."""
    [parent] = open_shops(1)
    children = parent.call("fork_while_busy", 10)

    assert len(children) == 10
    assert all(gone >= least for least, gone, _ in children)
    longest = max(seconds for _, _, seconds in children)
    assert longest < PATIENT["lock_timeout"] / 2, "it waited for somebody who is not there"
