"""P4 cache trouble is not your trouble.

Whatever a cache or its locks do (fail, hang, answer late or nonsense, forget what they were given,
grant what is not theirs to grant), a read raises nothing, shows what is true, and waits no longer
than its budget. It costs a query, and those stay few: while there is no generation by which readers
could tell whose query serves them, one runs and one waits, however many ask.

A cache that failed is left alone: reads go straight to the table, until somebody who asks it in the
background, twice a second, has had an answer. A clear that it did not take is said (`False`), kept,
and delivered before the first read that asks the cache again; until then this process believes
nothing that the cache says. `health()` tells all this.

Limits: A call to a server is ended when its budget of 0.25 s is over. No call of files, or of
somebody's own backend, can be ended from outside: one that takes longer is waited for, and is the
last for a while. A cache that makes up a well-formed list, or acknowledges a clear and loses it, is
believed; nobody could tell. Of a clear that was not delivered, other processes know nothing until
it is: they may show the old list for a `ttl` (P2).

Shown: A service whose every call of cache and locks may fail, in nine ways, is driven through
random reads, changes, changes elsewhere and pauses, and each answer is compared with the table, on
each backend and in both worlds. The code that ships is run through every schedule of readers and a
writer in which one call of the cache fails, before it took effect or after that. Twins are caught
that raise what the cache raises, forget a clear that was not delivered, or believe whatever they
are told. What real servers, disks and links do wrong is tried in `tests/test_redis_faults.py` and
`tests/test_file_cache.py`; damaged bytes are P10's.
"""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slotcache import Source, refill
from slotcache.events import Health
from slotcache.guard import Guard
from slotcache.trouble import Trouble
from tests.support.backends import Storage, choices, try_out
from tests.support.exploring import no_schedule_breaks
from tests.support.faults import FAULTS, LATE, Faulty, Gone
from tests.support.scenarios import SPEC
from tests.support.shelf import ScopedShelf, left
from tests.support.threads import Counted, Gate, spawn
from tests.support.worlds import one_world

LOCK_TIMEOUT, LOCK_TTL = 0.5, 10.0

BUDGET = LOCK_TIMEOUT + 4 * LATE
"""Seconds that a read may take: it waits for the lock, and at most four of its calls overrun, two
looks, the taking of a lock and its release."""

WELL = Health(cache=True, locks=True, undelivered=0)


class Stage:
    """A service whose cache and locks may fail, and another, elsewhere, whose do not."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.clock = storage.clock
        self.shelf = ScopedShelf()
        cache = storage.cache()
        self.cache = Faulty(cache, self.clock)
        self.locks = Faulty(cache.locks(), self.clock)
        self.service = storage.service(
            self.shelf,
            cache=self.cache,
            locks=self.locks,
            stale_ttl=0,
            lock_timeout=LOCK_TIMEOUT,
            lock_ttl=LOCK_TTL,
        )
        self.elsewhere = storage.service(self.shelf, stale_ttl=0, lock_timeout=LOCK_TIMEOUT)
        self.guards = self.service._refill._cache, self.service._refill._locks
        for guard in self.guards:
            guard._spawn = self.nobody

    @staticmethod
    def nobody(recovery):
        """Asks in the background whether the backend is back: here, that is a step of its own."""
        recovery.close()
        return lambda: True

    def during(self, step, faults):
        """Take a step while calls fail like that."""
        self.cache.faults = self.locks.faults = faults
        STEPS[step](self)
        self.cache.faults = self.locks.faults = {}

    def reads(self):
        self.judge(lambda: self.service.read().availability)

    def asks_for_a_list(self):
        self.judge(lambda: self.service.get_availability("JFK"))

    def judge(self, ask):
        """Ask; the answer is the truth, in time, for one query at most."""
        began, loads, calls = self.clock.now(), self.shelf.loads, len(self.cache.calls)
        was_well = self.service.health().cache
        assert left(ask()) == self.shelf.remaining
        assert self.clock.now() - began <= BUDGET
        assert self.shelf.loads - loads <= 1
        assert was_well is (len(self.cache.calls) > calls), "health tells whether it is asked"

    def changes(self):
        self.change("JFK")

    def changes_everything(self):
        self.change()

    def change(self, *scope):
        """Change the table and clear; what was delivered is seen elsewhere, too."""
        self.change_the_table()
        delivered = self.service.clear_availability_cache(*scope)
        owed = self.service.health().undelivered
        assert delivered or owed
        if not owed:
            assert left(self.elsewhere.get_availability("JFK")) == self.shelf.remaining
            assert left(self.elsewhere.get_availability()) == self.shelf.remaining

    def is_changed_elsewhere(self):
        self.change_the_table()
        assert self.elsewhere.clear_availability_cache()

    def waits_a_second(self):
        self.clock.advance(1)

    def waits_for_a_life(self):
        self.clock.advance(10)

    def asks_whether_they_are_back(self):
        for guard in self.guards:
            self.storage.world.run(guard.attempt())

    def change_the_table(self):
        self.shelf.remaining = (self.shelf.remaining - 1) % 11


STEPS = {
    "reads": Stage.reads,
    "asks for a list": Stage.asks_for_a_list,
    "changes": Stage.changes,
    "changes everything": Stage.changes_everything,
    "is changed elsewhere": Stage.is_changed_elsewhere,
    "waits a second": Stage.waits_a_second,
    "waits for a life": Stage.waits_for_a_life,
    "asks whether they are back": Stage.asks_whether_they_are_back,
}

MADE_BY = {
    **dict.fromkeys(["read", "fill", "acquire", "release"], "reads"),
    "look": "asks whether they are back",
    "clear": "changes",
    "clear_all": "changes everything",
}
"""By call: a step that makes it."""

faults = st.dictionaries(
    st.sampled_from(list(MADE_BY)),
    st.lists(st.sampled_from(list(FAULTS)), min_size=1, max_size=2),
    max_size=3,
)
histories = st.lists(st.tuples(st.sampled_from(list(STEPS)), faults), max_size=10)


def judge(storage, history):
    """Go through a history of steps; then all is well again."""
    stage = Stage(storage)
    for step, faults in history:
        stage.during(step, faults)
    stage.clock.advance(LOCK_TTL)
    stage.during("asks whether they are back", {})
    assert stage.service.health() == WELL
    stage.during("reads", {})
    assert stage.service.read().source is Source.CACHED
    assert left(stage.elsewhere.get_availability()) == stage.shelf.remaining


@pytest.fixture(autouse=True)
def quiet(caplog):
    """What is logged of so many failures would take longer than the failures."""
    caplog.set_level(logging.CRITICAL, logger="slotcache")


@pytest.fixture
def stage(storage):
    return Stage(storage)


@settings(max_examples=settings().max_examples // 3)
@given(history=histories)
def test_whatever_calls_fail_and_however_every_read_shows_the_truth_in_time(backend, history):
    with backend.opened() as storage:
        judge(storage, history)


@pytest.mark.parametrize("backend", choices("memory"), indirect=True)
@pytest.mark.parametrize(("call", "step"), MADE_BY.items())
def test_each_fault_of_each_call_on_its_own_costs_a_query_at_most(backend, call, step):
    """What is drawn at random above, once through on one backend: none is left out."""
    for fault in FAULTS:
        with backend.opened() as storage:
            judge(storage, [("reads", {}), ("waits for a life", {}), (step, {call: [fault]})])


def test_a_cache_that_failed_is_left_alone_until_it_answers_again(stage):
    stage.during("reads", {"read": ["fails"]})
    asked = len(stage.cache.calls)

    assert stage.service.health() == Health(cache=False, locks=True, undelivered=0)
    assert {stage.service.read().source for _ in range(3)} == {Source.DIRECT}
    assert len(stage.cache.calls) == asked

    stage.asks_whether_they_are_back()
    assert stage.service.health() == WELL
    assert stage.service.read().source is Source.LOADED
    assert stage.service.read().source is Source.CACHED


def test_locks_that_failed_are_left_alone_and_the_cache_is_still_used(stage):
    stage.during("reads", {"acquire": ["fails"]})

    assert stage.service.health() == Health(cache=True, locks=False, undelivered=0)
    assert stage.service.read().source is Source.CACHED
    stage.during("is changed elsewhere", {})
    assert stage.service.read().source is Source.LOADED
    assert stage.locks.calls == ["acquire"]


def test_while_there_is_no_generation_one_query_runs_and_one_waits(stage):
    stage.cache.faults = {"read": ["fails"]}
    gate = stage.shelf.during_load = Gate()
    first = spawn(stage.service.read)
    gate.wait_for_somebody()
    flights = stage.service._refill._flights
    flights.board = Counted(flights.board)
    others = [spawn(stage.service.read) for _ in range(6)]
    flights.board.wait_for(6)

    stage.shelf.remaining = 9  # the query that runs has read already: it is not for the others
    gate.open()

    assert left(first.result(20).availability) == 10
    assert {left(each.result(20).availability) for each in others} == {9}
    assert stage.shelf.loads == 2


def test_a_clear_that_was_not_delivered_is_said_kept_and_delivered_before_the_next_look(stage):
    stage.reads()
    stage.change_the_table()
    stage.cache.faults = {"clear_all": ["fails"]}
    assert stage.service.clear_availability_cache() is False
    assert stage.service.health() == Health(cache=False, locks=True, undelivered=1)
    stage.cache.calls.clear()

    stage.reads()
    stage.asks_whether_they_are_back()
    stage.reads()
    assert set(stage.cache.calls) == {"clear_all"}, "nothing else is asked while a clear is owed"
    assert stage.service.health().undelivered == 1

    stage.cache.faults = {}
    stage.cache.calls.clear()
    stage.asks_whether_they_are_back()
    stage.reads()
    assert stage.cache.calls[:3] == ["clear_all", "look", "read"]
    assert stage.service.health() == WELL
    assert left(stage.elsewhere.get_availability()) == 9


# Broken twins.


async def ask_without_catching(self, what, name, call, default):
    return default if self.trouble.bypass else await call()


TWINS = {
    "raises what the cache raises": (Guard, "ask", ask_without_catching),
    "forgets an undelivered clear": (Trouble, "note", lambda self, key: None),
    "believes whatever it is told": (refill, "believable", lambda found: found),
}


@one_world("twins of what both worlds share")
@pytest.mark.parametrize("twin", TWINS)
def test_a_twin_that_lacks_one_guard_is_noticed(memory, monkeypatch, twin):
    part, guard, without = TWINS[twin]
    monkeypatch.setattr(part, guard, without)

    def judged(history):
        with memory.opened() as storage:
            judge(storage, history)

    with pytest.raises((AssertionError, Gone, TimeoutError)):
        try_out(judged, histories)


@one_world("the explorer runs the flow of both worlds by itself")
@pytest.mark.parametrize("happening", SPEC["P4"])
def test_no_schedule_in_which_a_call_of_the_cache_fails_breaks_a_promise(
    happening, record_property
):
    no_schedule_breaks(record_property, f"P4: {happening}", SPEC["P4"][happening])
