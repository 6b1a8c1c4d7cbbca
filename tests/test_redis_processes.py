"""Processes that share a list on a real server: in a rush, cut off, stopped, killed, forked."""

import random
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

import pytest

from slotcache import AvailabilityPolicy, Source
from slotcache.events import Health
from slotcache.trouble import BUDGET
from tests.support.fleet import Branch, PreFork
from tests.support.processes import Shop, Worker, eventually
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.threads import PATIENCE

HOUR = 3600.0
SOON = 0.1
"""Seconds in which processes that were told to do something are ready to do it, as a rule."""

# Nobody goes past a lock because the machine is busy, and nothing expires by itself.
PATIENT = {"ttl": HOUR, "lock_timeout": 15.0, "lock_ttl": HOUR}


@dataclass
class Keys:
    """What the cache has on the server."""

    server: Server
    prefix: str

    @property
    def _list(self):
        return f"{{{self.prefix}}}:list:slots.availability"

    @property
    def _lock(self):
        return f"{{{self.prefix}}}:lock:slots.availability.lock"

    def expire(self):
        """Let the life of the list be over."""
        since = self.server.command("HGET", self._list, "since")
        assert self.server.command("HSET", self._list, "until", since) == 0, "there was none"

    def evict(self):
        """Have the server forget the list and its generation."""
        assert self.server.command("DEL", self._list) == 1

    def lock_left(self):
        """How many seconds the lock still lasts; None: nobody has it."""
        left = self.server.command("PTTL", self._lock)
        assert left != -1, "it would last for ever"
        return None if left == -2 else left / 1000


@pytest.fixture
def folder(tmp_path):
    Shop.build(tmp_path)
    return tmp_path


@pytest.fixture
def keys(redis_server, redis_prefix):
    return Keys(redis_server, redis_prefix)


@pytest.fixture
def open_branches(folder, redis_server, redis_prefix):
    """Return the function that starts processes which share the table and the server."""
    with ExitStack() as stack:

        def open_branches(count, *, url=redis_server.url, query=0.0, **policy):
            policy = AvailabilityPolicy(**{**PATIENT, **policy})
            arguments = folder, policy, url, redis_prefix, query
            return [stack.enter_context(Worker(Branch, *arguments)) for _ in range(count)]

        yield open_branches


def read(branches):
    """How many places each of them is told are gone."""
    return [branch.call("read")[0] for branch in branches]


def queries(branches):
    """How many queries they have run, together."""
    return sum(branch.call("queries") for branch in branches)


def halt(branch, method, place):
    """Have it come to this place in that call, and no further."""
    branch.start(method, halt=place)
    branch.wait_until_halted()


# A rush.


@pytest.mark.parametrize("found", ["nothing", "an expired list", "a cleared list"])
def test_32_readers_in_two_processes_run_one_query(open_branches, keys, found):
    branches = open_branches(2, query=0.05)
    if found != "nothing":
        read(branches)
    if found == "an expired list":
        keys.expire()
    if found == "a cleared list":
        branches[0].call("change")
    before = queries(branches)
    start = time.monotonic() + SOON
    for branch in branches:
        branch.start("read_at_once", 16, start, 1)

    shown = 1 if found == "a cleared list" else 0
    assert [branch.answer() for branch in branches] == [{shown}, {shown}]
    assert queries(branches) - before == 1
    assert keys.lock_left() is None


def test_who_gets_the_lock_when_another_has_just_filled_runs_no_query(open_branches):
    late, other = branches = open_branches(2)
    halt(late, "read", "locking")
    assert other.call("read") == (0, Source.LOADED)
    late.resume()

    assert late.answer() == (0, Source.CACHED)
    assert queries(branches) == 1


def test_readers_of_a_fresh_list_ask_for_no_lock_and_run_no_query(open_branches):
    branches = open_branches(2)
    read(branches)
    asked = [branch.call("locks_asked_for") for branch in branches]
    start = time.monotonic() + SOON
    for branch in branches:
        branch.start("read_at_once", 16, start, 10)

    assert [branch.answer() for branch in branches] == [{0}, {0}]
    assert [branch.call("locks_asked_for") for branch in branches] == asked
    assert queries(branches) == 1


# A storm of changes.


def test_a_storm_of_changes_keeps_no_reader_waiting_and_shows_none_too_little(open_branches):
    """200 changes a second, so that each outruns every query; 32 readers.

    What a reader may have to wait for is the query that was running when it came, and the next,
    whichever process runs it. How long that is on this machine, now, the queries themselves tell.
    """
    writer, *readers = open_branches(3, query=0.02)
    start = time.monotonic() + SOON
    end = start + 2.0
    writer.start("change_steadily", 0, start, end, 1 / 200)
    for branch in readers:
        branch.start("read_steadily", 16, start, end)
    served = [branch.answer() for branch in readers]
    changes = writer.answer()
    loads = sorted(load for branch in readers for load in branch.call("loads"))
    longest = max(end - began for began, end in loads)

    assert changes > len(loads), "this was no storm"
    for each in served:
        assert each.slowest < 10 * longest
        assert each.sources <= {Source.CACHED, Source.LOADED}
    for (_, ended), (began, _) in pairwise(loads):
        assert ended <= began, "two queries ran at once"


def test_who_waited_is_given_what_a_clear_outran_and_who_came_later_is_not(open_branches):
    """So nobody starves, however fast changes follow each other."""
    leader, waiting, later = open_branches(3)
    halt(leader, "read", "loaded")
    halt(waiting, "read", "waiting")
    later.call("change")
    leader.resume()

    assert leader.answer() == (0, Source.LOADED)
    later.call("change")
    waiting.resume()
    assert waiting.answer() == (0, Source.CACHED)
    assert later.call("read") == (2, Source.LOADED)


# Cut off.


@pytest.fixture
def proxy(redis_server):
    with Proxy(*redis_server.address) as proxy:
        yield proxy


def cut(branch, proxy, how):
    """Cut it off, so that it finds out by itself: in a quarter of a second for each call."""
    branch.call("bound", BUDGET)
    getattr(proxy, how)()


def heal(branch, proxy):
    """Let it reach the server again, however long that takes on a busy machine."""
    proxy.heal()
    branch.call("bound", PATIENCE)
    eventually(lambda: branch.call("health").undelivered == 0)


@pytest.mark.parametrize("how", ["refuse", "silent"])
def test_what_a_process_that_is_cut_off_changes_is_shown_by_the_others_a_ttl_later(
    open_branches, proxy, how
):
    ttl = 1.0
    [off] = open_branches(1, url=proxy.url, ttl=ttl)
    [other] = open_branches(1, ttl=ttl)
    assert read([off, other]) == [0, 0]
    cut(off, proxy, how)
    began = time.monotonic()
    committed, delivered = off.call("sell")

    assert delivered == [False, False]
    assert off.call("read") == (1, Source.DIRECT), "itself, it shows that at once"
    assert time.monotonic() - began < 20 * BUDGET, "two calls were made, and had that each"
    assert off.call("health").undelivered == 1
    due = committed + ttl + 0.05  # the server's clock is another one
    began, shown = 0.0, 0
    while not shown:
        assert began <= due
        began = time.monotonic()
        shown, _ = other.call("read")
    assert shown == 1


@pytest.mark.parametrize("how", ["refuse", "silent", "deaf"])
def test_who_was_cut_off_makes_up_for_its_clears_and_is_one_of_all_again(open_branches, proxy, how):
    [off] = open_branches(1, url=proxy.url)
    [other] = open_branches(1)
    assert read([off, other]) == [0, 0]
    cut(off, proxy, how)
    assert off.call("sell")[1] == [False, False]
    assert read([off, off]) == [1, 1]
    assert read([other]) == [1 if how == "deaf" else 0], "the server had heard it, or had not"

    heal(off, proxy)
    assert read([other, off]) == [1, 1]
    eventually(lambda: off.call("health") == Health(cache=True, locks=True, undelivered=0))
    both = [off, other]
    for gone, (writer, reader) in enumerate([(off, other), (other, off)], start=2):
        assert all(writer.call("sell")[1])
        assert reader.call("read") == (gone, Source.LOADED)
        assert [each.call("read") for each in both] == [(gone, Source.CACHED)] * 2


# Killed (kill -9).


def test_who_is_killed_in_mid_load_holds_up_nobody_for_longer_than_its_lock(open_branches, keys):
    [killed] = open_branches(1, lock_ttl=1.0)
    others = open_branches(3)
    halt(killed, "read", "loaded")
    for each in others:
        each.start("read")
    killed.kill()
    began = time.monotonic()
    assert (keys.lock_left() or 0.0) <= 1.0

    assert {branch.answer()[0] for branch in others} == {0}
    assert time.monotonic() - began < PATIENT["lock_timeout"] / 2
    assert queries(others) == 1
    assert keys.lock_left() is None


def test_who_does_not_wait_for_the_lock_of_a_dead_process_has_an_answer_at_once(
    open_branches, keys
):
    """An expired copy is marked. A cleared one is no answer: that costs queries, kept nowhere."""
    killed, other = open_branches(2, lock_timeout=0.0)
    read([other])
    keys.expire()
    halt(killed, "read", "loaded")
    killed.kill()

    assert other.call("read") == (0, Source.STALE)
    other.call("change")
    assert [other.call("read") for _ in range(2)] == [(1, Source.DIRECT)] * 2
    assert keys.lock_left() > 0


def test_what_a_clear_outran_stands_in_for_nothing_while_a_dead_process_has_the_lock(
    open_branches, keys
):
    killed, leader, other = open_branches(3, lock_timeout=0.0)
    halt(leader, "read", "loaded")
    other.call("change")
    leader.resume()
    assert leader.answer() == (0, Source.LOADED)
    halt(killed, "read", "loaded")
    killed.kill()

    assert other.call("read") == (1, Source.DIRECT)
    keys.expire()
    assert other.call("read") == (1, Source.DIRECT), "not the list from before the change"


def test_kills_at_random_leave_nothing_stale_and_nothing_locked(open_branches, keys):
    """Twenty times one of three processes that read and change is killed, and replaced.

    A fourth one changes the table all the time. What returned is shown by every read, throughout.
    What was committed and perhaps not cleared is shown by every read that begins a `ttl` later.
    """
    policy = {"ttl": 0.5, "lock_ttl": 0.2, "query": 0.01}
    ttl, kills = policy["ttl"], 20

    def start(index):
        [worker] = open_branches(1, **policy)
        worker.start("work", index, HOUR, 0.05)
        return worker

    checker, writer = open_branches(2, **policy)
    writer.start("change_steadily", 3, time.monotonic(), time.monotonic() + HOUR, 1 / 50)
    workers = [start(index) for index in range(3)]
    committed = deque()
    least = 0
    for _ in range(kills):
        pause = time.monotonic() + random.uniform(0.0, 0.1)
        while time.monotonic() < pause:
            committed.append((checker.call("truth"), time.monotonic()))
            acknowledged = checker.call("acknowledged")
            began = time.monotonic()
            while committed[0][1] < began - ttl:
                least, _ = committed.popleft()
            gone, source = checker.call("read")
            assert gone >= max(least, acknowledged) or source is Source.STALE
        for worker in (writer, *workers):
            if worker.has_answered():
                worker.answer()  # it raises: a read showed too little
        index = random.randrange(3)
        workers[index].kill()
        workers[index] = start(index)
    for worker in (writer, *workers):
        worker.kill()

    assert (keys.lock_left() or 0.0) <= policy["lock_ttl"]
    truth, end = checker.call("truth"), time.monotonic() + ttl
    assert truth >= checker.call("acknowledged") > 0
    eventually(lambda: time.monotonic() > end)
    assert read([checker]) == [truth]
    checker.call("change")
    assert checker.call("read") == (truth + 1, Source.LOADED), "a lock was left behind"
    assert keys.lock_left() is None


# Stopped (SIGSTOP).


@pytest.mark.parametrize("clearing", ["change", "change_and_clear_all"])
def test_what_was_loaded_before_a_change_is_shown_to_nobody_who_came_after_it(
    open_branches, clearing
):
    """The reader is stopped between its query and its fill; nobody has read since."""
    branches = stopped, writer, _ = open_branches(3)
    halt(stopped, "read", "loaded")
    stopped.stop()
    writer.call(clearing)
    stopped.resume()
    stopped.go_on()

    assert stopped.answer() == (0, Source.LOADED), "it began before the change"
    assert read(branches) == [1, 1, 1]
    assert read(branches) == [1, 1, 1]


def test_what_was_loaded_before_a_change_replaces_nothing_later(open_branches, keys):
    """Others have loaded a later list, and hold a lock that is not the stopped reader's."""
    [stopped] = open_branches(1, lock_ttl=0.3)
    leader, writer, other = open_branches(3, lock_timeout=0.0)
    halt(stopped, "read", "loaded")
    stopped.stop()
    writer.call("change")
    eventually(lambda: other.call("read") == (1, Source.LOADED))
    keys.expire()
    halt(leader, "read", "loaded")
    stopped.resume()
    stopped.go_on()

    assert stopped.answer() == (0, Source.LOADED)
    assert other.call("read") == (1, Source.STALE), "neither the old list nor the lock"
    leader.resume()
    assert leader.answer() == (1, Source.LOADED)
    assert [branch.call("read") for branch in (stopped, other)] == [(1, Source.CACHED)] * 2


def test_what_was_loaded_before_an_eviction_is_shown_to_nobody_who_came_after_it(
    open_branches, keys
):
    """The server has forgotten that there was a change, and counts from zero again."""
    branches = stopped, writer, other = open_branches(3)
    halt(stopped, "read", "loaded")
    stopped.stop()
    writer.call("change")
    keys.evict()
    other.call("look")
    stopped.resume()
    stopped.go_on()

    assert stopped.answer() == (0, Source.LOADED)
    assert read(branches) == [1, 1, 1]


# Forked.


def test_children_forked_with_a_connection_open_do_not_hear_what_others_asked(
    tmp_path, proxy, redis_prefix
):
    """A server that uses the list, then forks four workers; all five read and change at once.

    Answers take so long that all have asked when the first one comes.
    """
    with Worker(PreFork, tmp_path, proxy.url, redis_prefix, 5) as parent:
        assert parent.call("read") == 5
        proxy.delay(0.01)
        health = parent.call("fork_and_work", 5)

    assert health == Health(cache=True, locks=True, undelivered=0)
