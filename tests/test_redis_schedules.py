"""The one rule, on a real server: whatever reads, fills, clears and losses come in whatever order.

Each operation of `RedisCache` is one script, which the server runs whole: so schedules of
operations are all the schedules that there are, but for what a process does before its request
and after its reply, which are steps of their own here.
"""

from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from random import Random

import pytest

from slotcache.availability import Availability
from slotcache.protocols import Entry, Generation, Miss
from slotcache.redis import RedisCache, scripts
from slotcache.redis import cache as cache_module
from slotcache.testing.laws.subject import LONG

KEYS = ("a list", "another")
HASHES = ("list:a list", "list:another", "all")
PROCESSES = 3


@dataclass
class Reader:
    """A read that is under way.

    Attributes:
        complete: The last change that was complete before it began: it has to show that one.
        first: The generation that its first look saw.
        look: Its last look, after which it may load and fill.
        loaded: The state of the table that it has read.
    """

    cache: RedisCache
    key: str
    complete: int
    first: Generation
    look: Miss
    loaded: int | None = None


@dataclass
class Asked:
    """A request that is under way, or its reply."""

    cache: RedisCache
    key: str
    complete: int
    look: object
    reply: object = None


class World:
    """Three processes, two lists, and a table whose state is a number that only grows."""

    def __init__(self, url: str, prefix: str, random: Random) -> None:
        self.prefix = prefix
        self.random = random
        self.close = ExitStack()
        self.caches = [
            self.close.enter_context(RedisCache(url, prefix=prefix, maxsize=1 + number))
            for number in range(PROCESSES)
        ]
        self.changes = 0
        self.asked: list[Asked] = []
        self.answered: list[Asked] = []
        self.readers: list[Reader] = []

    def run(self, steps: int) -> None:
        """Take so many steps at random, each of which may be taken at any time."""
        trace: deque[str] = deque(maxlen=60)
        choices = [
            *(self.read, self.ask, self.execute, self.hear, self.look, self.look_again),
            *(self.load, self.fill, self.fill, self.change, self.change_a_lot, self.evict),
        ]
        with self.close:
            try:
                for _ in range(steps):
                    step = self.random.choice(choices)
                    trace.append(f"{step.__name__} {step() or ''}")
            except AssertionError as error:
                error.add_note("after " + ", ".join(trace))
                raise

    def process(self) -> RedisCache:
        return self.random.choice(self.caches)

    def one_of(self, those):
        """Take one of those out, if there are any; of many, one of the latest."""
        those[:-8] = []
        return [those.pop(self.random.randrange(len(those)))] if those else []

    def read(self):
        """Look, load and fill, with nobody in between."""
        reader = self.look()
        if reader is not None:
            self.readers.remove(reader)
            reader.loaded = self.changes
            self.filled(reader)

    def ask(self):
        cache, key = self.process(), self.random.choice(KEYS)
        self.asked.append(Asked(cache, key, self.changes, cache._looking(key)))

    def execute(self):
        for asked in self.one_of(self.asked):
            asked.reply = asked.cache._server.run(asked.look.call)
            self.answered.append(asked)

    def hear(self):
        for asked in self.one_of(self.answered):
            miss, is_fresh = asked.cache._looked(asked.look, asked.reply)
            self.found(asked, miss, is_fresh=is_fresh)

    def look(self):
        asked = Asked(self.process(), self.random.choice(KEYS), self.changes, None)
        found = asked.cache.read(asked.key)
        if isinstance(found, Entry):
            return self.found(asked, Miss(found.generation, None, found), is_fresh=True)
        return self.found(asked, found, is_fresh=False)

    def found(self, asked, miss, *, is_fresh):
        """Judge what a first look found; return the reader whom it did not satisfy."""
        if is_fresh:
            assert shown(miss.copy) >= asked.complete, "fresh, and from before a change (P1)"
            return None
        reader = Reader(asked.cache, asked.key, asked.complete, miss.generation, miss)
        self.may_be_given(reader, miss)
        self.readers.append(reader)
        return reader

    def may_be_given(self, reader, miss):
        copy = miss.copy
        if copy is not None and copy.generation.covers(reader.first):
            assert shown(copy) >= reader.complete, "covering, and from before a change (P1)"

    def look_again(self):
        for reader in self.one_of(self.readers):
            reader.look = reader.cache.look(reader.key)
            reader.loaded = None
            self.may_be_given(reader, reader.look)
            self.readers.append(reader)

    def load(self):
        for reader in self.one_of(self.readers):
            reader.loaded = self.changes
            self.readers.append(reader)

    def fill(self):
        for reader in self.one_of(self.readers):
            if reader.loaded is not None:
                self.filled(reader)

    def filled(self, reader):
        rows = Availability.of([(1, 1_000_000, reader.loaded)])
        kept = reader.cache.fill(reader.key, reader.look, rows, ttl=LONG, stale_ttl=LONG)
        if kept is not None:
            assert shown(kept) >= self.changes, "fresh for all, and from before a change (P1)"

    def change(self):
        self.changes += 1
        for key in KEYS:
            self.process().clear(key)

    def change_a_lot(self):
        self.changes += 1
        self.process().clear_all()

    def evict(self):
        lost = self.random.choice(HASHES)
        key = f"{{{self.prefix}}}:{lost}".encode()
        self.caches[0]._server.run(scripts.Call(DELETE, (key,), ()))
        return lost


DELETE = scripts.Script("return {ARGV[1], redis.call('DEL', KEYS[1])}")


def shown(entry):
    """The state of the table that a list shows."""
    return entry.availability[0].remaining


@pytest.fixture
def world(redis_server, redis_prefix, unhurried):
    return lambda seed: World(redis_server.url, redis_prefix, Random(seed))


@pytest.mark.parametrize("seed", range(4))
def test_no_schedule_of_operations_shows_a_list_from_before_a_change(world, seed):
    world(seed).run(5_000)


@pytest.mark.parametrize(
    ("name", "guard", "instead"),
    [
        ("FILL", "kept[1] ~= ARGV[2]", "false"),
        ("FILL", "'under', ARGV[3]", "'under', clears"),
        ("CLEAR", "redis.call('HINCRBY', KEYS[1], 'clears', 1)", ""),
        ("CLEAR_ALL", "redis.call('HINCRBY', KEYS[1], 'clears', 1)", ""),
        ("LOOK", "and kept[3] == all[1]", ""),
    ],
)
def test_a_script_without_a_guard_is_found(world, monkeypatch, name, guard, instead):
    """Else the schedules would see nothing."""
    source = getattr(scripts, name).source.decode()
    assert source.count(guard) == 1
    twin = scripts.Script(source.replace(guard, instead))
    monkeypatch.setattr(cache_module, name, twin)

    with pytest.raises((AssertionError, ValueError), match=r"\(P1\)|clears=-"):
        world(0).run(20_000)
