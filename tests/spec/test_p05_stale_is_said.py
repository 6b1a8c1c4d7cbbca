"""P5 stale is said.

A reader who cannot have the lock within `lock_timeout` is given the expired list, if that expired
less than `stale_ttl` ago, and else a query of its own, which is not stored. A reader whose query
fails is given the expired list in the same way, and else what the database raised, unchanged.

`read` tells which it was (`Source.STALE`, `Source.DIRECT`), and how old the list is;
`get_availability` is `read(...).availability`. What was cleared is known to be wrong: no reader who
came after the clear is given it, whatever fails. `stale_ttl=0` forbids stale answers;
`lock_timeout=0` gives them without waiting.

Limits: A process that is cut off from the cache, and whose database fails too, serves what it last
knew; it knows its own clears, and not those of other processes. `get_availability` alone does not
tell a stale list from a fresh one.

Shown: A service is driven through random changes, pauses, loads, failures of the table and locks
that somebody holds, under random policies, on each backend and in both worlds; a model in few lines
reckons from this promise what each read has to tell. The sentences after it show one case each. The
code that ships is run through every schedule of two readers and a writer in which a query fails.
Twins that serve what was cleared, serve for too long, hide that a list is stale or store a direct
answer are caught.
"""

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slotcache import AvailabilityPolicy, Source
from slotcache.flight import Answer
from slotcache.refill import Refill
from tests.support.backends import Storage, try_out
from tests.support.exploring import no_schedule_breaks
from tests.support.faults import Faulty
from tests.support.scenarios import SPEC
from tests.support.shelf import Shelf, left
from tests.support.worlds import one_world

LOCK = "slots.availability.lock"


class TableFailed(Exception):
    pass


@dataclass(frozen=True)
class Kept:
    """What the cache has to have kept: places free, its life, and the changes that it shows."""

    free: int
    since: float
    until: float
    changes: int


class Stage:
    """A service, the ways in which things go wrong for it, and what it has to tell."""

    def __init__(self, storage: Storage, **policy) -> None:
        self.storage = storage
        self.clock = storage.clock
        self.shelf = Shelf()
        self.policy = AvailabilityPolicy(**policy)
        self.service = storage.service(self.shelf, **policy)
        self.elsewhere = storage.service(self.shelf, **policy)
        self.locks = storage.seen(storage.cache()).locks()
        self.lock = None
        self.kept = None
        self.changes = 0

    # What happens.

    def waits(self, seconds):
        self.clock.advance(seconds)

    def changes_here(self):
        self.change(self.service)

    def changes_elsewhere(self):
        self.change(self.elsewhere)

    def change(self, service):
        self.shelf.remaining = (self.shelf.remaining - 1) % 11
        assert service.clear_availability_cache()
        self.changes += 1

    def somebody_takes_the_lock(self):
        self.lock = self.lock or self.locks.acquire(LOCK, ttl=1_000_000)

    def somebody_gives_the_lock_back(self):
        if self.lock is not None:
            self.locks.release(self.lock)
            self.lock = None

    def the_table_fails(self):
        self.shelf.failure = TableFailed()

    def the_table_is_back(self):
        self.shelf.failure = None

    def reads(self, load_takes=0.0, valid_for=None, meanwhile=lambda stage: None):
        """Read; what is told is what the promise says."""

        def during_load():
            self.clock.advance(load_takes)
            meanwhile(self)

        self.shelf.during_load, self.shelf.valid_for = during_load, valid_for
        expected = self.expected(load_takes)
        assert self.told() == (self.shelf.failure if expected is None else expected)

    def told(self):
        """Return what a read tells: source, places free and age, or what it raises."""
        try:
            reading = self.service.read()
        except TableFailed as failure:
            return failure
        return reading.source, left(reading.availability), reading.age

    # What it has to tell.

    def expected(self, load_takes):
        """Return the source, the places free and the age that a read has to tell; None: it fails.

        This is P5, and what of P1 and P2 it stands on, for readers who come one by one.
        """
        now, kept = self.clock.now(), self.kept
        if kept is not None and kept.changes == self.changes and now < kept.until:
            return Source.CACHED, kept.free, now - kept.since
        began = now if self.lock is None else now + self.policy.lock_timeout
        if self.lock is not None and self.may_stand_in(began):
            return Source.STALE, kept.free, began - kept.since
        ended = began + load_takes
        if self.shelf.failure is not None:
            is_stale = self.may_stand_in(ended)
            return (Source.STALE, kept.free, ended - kept.since) if is_stale else None
        if self.lock is None:
            until = min(began + self.policy.ttl, ended + self.life())
            self.kept = Kept(self.shelf.remaining, began, until, self.changes)
        source = Source.LOADED if self.lock is None else Source.DIRECT
        return source, self.shelf.remaining, load_takes

    def may_stand_in(self, now):
        """Whether the list that is kept was not cleared, and expired less than `stale_ttl` ago."""
        kept = self.kept
        if kept is None or kept.changes != self.changes:
            return False
        return now < kept.until + self.policy.stale_ttl

    def life(self):
        """How long after its load a list lives that is to change by itself."""
        soon = self.shelf.valid_for
        return math.inf if soon is None else max(soon, self.policy.min_ttl)


SHORT = 1 / 64
"""A wait that all clocks tell exactly, and that takes few looks at the lock."""

SECONDS = st.sampled_from([0.25, 1.0, 10.0, 60.0])

policies = st.fixed_dictionaries(
    {
        "ttl": st.sampled_from([1.0, 10.0]),
        "stale_ttl": st.sampled_from([0.0, SHORT, 60.0]),
        "lock_timeout": st.sampled_from([0.0, SHORT]),
    }
)
meanwhile = st.sampled_from([lambda stage: None, Stage.changes_here, Stage.changes_elsewhere])
plain_reads = st.tuples(st.just(Stage.reads))
long_reads = st.tuples(st.just(Stage.reads), SECONDS, st.none() | SECONDS, meanwhile)
pauses = st.tuples(st.just(Stage.waits), SECONDS)
good = [Stage.somebody_gives_the_lock_back, Stage.the_table_is_back]
bad = [Stage.somebody_takes_the_lock, Stage.the_table_fails]
changes = [Stage.changes_here, Stage.changes_elsewhere]
events = st.tuples(st.sampled_from(bad)) | st.tuples(st.sampled_from(good + changes))
histories = st.lists(plain_reads | long_reads | pauses | events, min_size=3, max_size=12)


def judge(storage, policy, history):
    stage = Stage(storage, **policy)
    stage.reads()
    for step, *arguments in history:
        step(stage, *arguments)


@settings(max_examples=settings().max_examples // 3)
@given(policy=policies, history=histories)
def test_source_and_age_are_true_whatever_happens_and_whatever_the_policy(backend, policy, history):
    with backend.opened() as storage:
        judge(storage, policy, history)


@pytest.fixture
def stage(storage):
    stage = Stage(storage, ttl=10, stale_ttl=60, lock_timeout=SHORT)
    stage.reads()
    return stage


def test_without_a_lock_in_time_the_expired_list_is_served_and_said_to_be_stale(stage):
    stage.waits(10)
    stage.somebody_takes_the_lock()

    reading = stage.service.read()

    assert (reading.source, reading.age) == (Source.STALE, 10 + SHORT)
    assert stage.service.get_availability() == reading.availability
    assert stage.shelf.loads == 1


def test_without_a_lock_and_a_list_the_table_is_queried_and_the_answer_is_not_stored(stage):
    stage.changes_here()
    stage.somebody_takes_the_lock()

    assert [stage.service.read().source for _ in range(2)] == [Source.DIRECT] * 2
    assert stage.shelf.loads == 3


def test_a_table_that_fails_is_stood_in_for_and_else_its_own_error_is_raised(stage):
    stage.waits(10)
    stage.the_table_fails()
    assert stage.service.read().source is Source.STALE

    stage.waits(60)
    with pytest.raises(TableFailed) as raised:
        stage.service.read()
    assert raised.value is stage.shelf.failure


@pytest.mark.parametrize("change", [Stage.changes_here, Stage.changes_elsewhere])
def test_what_was_cleared_is_served_to_nobody_who_came_later(stage, change):
    change(stage)
    stage.the_table_fails()
    with pytest.raises(TableFailed):
        stage.service.read()

    stage.somebody_takes_the_lock()
    with pytest.raises(TableFailed):
        stage.service.read()


@pytest.mark.parametrize("stale_ttl", [0.0, 5.0])
def test_a_list_is_served_until_stale_ttl_after_its_end_and_no_longer(storage, stale_ttl):
    stage = Stage(storage, ttl=10, stale_ttl=stale_ttl, lock_timeout=0)
    stage.reads()
    stage.somebody_takes_the_lock()
    stage.waits(10 + stale_ttl - 1 / 64)
    assert stage.service.read().source is (Source.STALE if stale_ttl else Source.CACHED)

    stage.waits(1 / 64)
    assert stage.service.read().source is Source.DIRECT


def test_lock_timeout_0_serves_the_expired_list_without_waiting(storage):
    stage = Stage(storage, lock_timeout=0)
    stage.reads()
    stage.waits(10)
    stage.somebody_takes_the_lock()
    began = stage.clock.now()

    assert stage.service.read().source is Source.STALE
    assert stage.clock.now() == began


def test_get_availability_is_the_availability_of_a_read(stage):
    assert stage.service.get_availability() is stage.service.read().availability  # CACHED
    stage.waits(10)
    stage.somebody_takes_the_lock()
    assert stage.service.get_availability() is stage.service.read().availability  # STALE
    stage.changes_here()
    assert stage.service.get_availability() == stage.service.read().availability  # DIRECT
    stage.the_table_fails()
    for ask in (stage.service.get_availability, stage.service.read):
        with pytest.raises(TableFailed):
            ask()


def test_who_is_cut_off_from_cache_and_table_tells_what_it_last_knew_and_did_not_clear(storage):
    shelf, cache = Shelf(), Faulty(storage.cache(), storage.clock)
    service = storage.service(shelf, cache=cache, locks=storage.cache().locks())
    service.read()
    cache.faults = {call: ["fails"] for call in ("read", "look", "clear")}
    shelf.failure = TableFailed()

    assert service.read().source is Source.STALE
    assert service.clear_availability_cache() is False
    with pytest.raises(TableFailed):
        service.read()


# Broken twins.

expired, query = Refill._expired, Refill._query


def serves_what_was_cleared(self, read, look):
    copy = self._known._memory.look(read.key).copy or look.copy
    return None if copy is None else Answer.of(copy, Source.STALE)


def serves_for_ever(self, read, look):
    copy = look.copy
    if copy is None or not copy.generation.covers(read.first.generation):
        return None
    return Answer.of(copy, Source.STALE)


def hides_that_it_is_stale(self, read, look):
    found = expired(self, read, look)
    return found and replace(found, source=Source.CACHED)


def stores_a_direct_answer(self, flight, read, look, since, *, fill=False):
    return query(self, flight, read, look, since, fill=True)


TWINS = {
    serves_what_was_cleared: "_expired",
    serves_for_ever: "_expired",
    hides_that_it_is_stale: "_expired",
    stores_a_direct_answer: "_query",
}


@one_world("twins of what both worlds share")
@pytest.mark.parametrize("twin", TWINS)
def test_a_twin_is_noticed_that(memory, monkeypatch, twin):
    monkeypatch.setattr(Refill, TWINS[twin], twin)

    def judged(case):
        with memory.opened() as storage:
            judge(storage, *case)

    with pytest.raises((AssertionError, TableFailed)):
        try_out(judged, st.tuples(policies, histories))


@one_world("the explorer runs the flow of both worlds by itself")
@pytest.mark.parametrize("happening", SPEC["P5"])
def test_no_schedule_in_which_a_query_fails_breaks_a_promise(happening, record_property):
    no_schedule_breaks(record_property, f"P5: {happening}", SPEC["P5"][happening])
