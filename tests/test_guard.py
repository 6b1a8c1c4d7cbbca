"""The guards of a cache and of locks: what they take for an answer, log and try again (P4)."""

import logging
from functools import partial
from types import SimpleNamespace

import pytest

from slotcache import Availability, AvailabilityPolicy
from slotcache.guard import GuardedCache, GuardedLocks, believable
from slotcache.protocols import Entry, Generation, Lock, Miss
from slotcache.testing import ManualClock
from slotcache.trouble import BUDGET, Trouble
from slotcache.worlds import InlineClock, run
from tests.support.threads import Gate, spawn

pytestmark = pytest.mark.one_world("one call at a time, whoever waits for it")

KEY, LOCK = "slots.availability", "slots.availability.lock"
TEN = Availability.of([("slot", 10, 10)])
SEEN = Generation(epoch=7, clears=3)


class Gone(Exception):
    pass


class Port:
    """A backend that writes down what it is asked, and does what a test says.

    Attributes:
        asked: The calls: a name, then what was given by position.
        answers: By name, what to answer.
        down: What raises: calls as in `asked`, or the names of some.
        takes: Seconds that each call takes.
    """

    def __init__(self, clock):
        self.asked = []
        self.answers = {"acquire": Lock(f"{LOCK}.probe", "a token"), "release": True}
        self.down = set()
        self.takes = 0.0
        self._clock = clock

    def __getattr__(self, name):
        async def call(*given, **_options):
            self.asked.append((name, *given))
            self._clock.advance(self.takes)
            if not self.down.isdisjoint({name, (name, *given)}):
                raise Gone(name)
            return self.answers.get(name)

        return call


class Bench:
    """Both guards on one port; their recoveries are begun, and never go on."""

    def __init__(self):
        self.clock = ManualClock(start=0.0)
        self.port = Port(self.clock)
        self.begun = 0
        ports = AvailabilityPolicy(), Trouble(), InlineClock(self.clock), self.begin
        self.cache = GuardedCache(self.port, *ports)
        ports = AvailabilityPolicy(), Trouble(), InlineClock(self.clock), self.begin
        self.locks = GuardedLocks(self.port, *ports)

    def begin(self, recovery):
        self.begun += 1
        recovery.close()
        return lambda: True


@pytest.fixture
def bench():
    return Bench()


CALLS = {
    "read": lambda bench: bench.cache.look(KEY),
    "fill": lambda bench: bench.cache.fill(KEY, Miss(SEEN, 0.0), TEN, None),
    "clear": lambda bench: bench.cache.clear([KEY]),
    "clear_all": lambda bench: bench.cache.clear([None]),
    "acquire": lambda bench: bench.locks.acquire(KEY),
    "release": lambda bench: bench.locks.release(Lock(LOCK, "a token")),
}


TOLD = {
    "read": ("the cache could not be read", KEY),
    "fill": ("the cache could not be filled", KEY),
    "clear": ("the cache could not be cleared", KEY),
    "clear_all": ("the cache could not be cleared", "everything"),
    "acquire": ("the lock could not be asked for", LOCK),
    "release": ("the lock could not be released", LOCK),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_failed_is_logged_with_its_name_and_why_and_seen_to(bench, caplog, call):
    what, name = TOLD[call]
    bench.port.down = {call}

    run(CALLS[call](bench))

    (record,) = caplog.records
    assert (record.levelno, record.message) == (logging.WARNING, f"{what}: '{name}'")
    assert isinstance(record.exc_info[1], Gone)
    assert bench.begun == 1


def test_a_first_look_that_failed_is_logged_with_its_list(bench, caplog):
    try:
        raise Gone("read")
    except Gone:
        assert bench.cache.unanswered(KEY) == Miss()

    assert caplog.messages == [f"the cache could not be read: '{KEY}'"]


@pytest.mark.parametrize("call", CALLS)
def test_an_answer_is_in_time_until_the_budget_is_over(bench, caplog, call):
    bench.port.takes = BUDGET
    run(CALLS[call](bench))
    assert not bench.cache.trouble.bypass
    assert not bench.locks.trouble.bypass
    assert caplog.messages == []

    bench.port.takes = 0.375
    run(CALLS[call](bench))
    assert bench.cache.trouble.bypass or bench.locks.trouble.bypass
    assert bench.begun == 1
    what, name = TOLD[call]
    assert caplog.messages == [f"{what} within 0.25 s, it took 0.375: '{name}'"]


@pytest.mark.parametrize("part", ["_spawn", "_clock"])
def test_a_recovery_that_cannot_begin_is_logged_and_begun_at_the_next_look(bench, caplog, part):
    def cannot(*_given):
        raise Gone(part)

    bench.port.down = {"read"}
    works = getattr(bench.cache, part)
    setattr(bench.cache, part, cannot if part == "_spawn" else SimpleNamespace(event=cannot))
    run(bench.cache.look(KEY))
    setattr(bench.cache, part, works)
    run(bench.cache.look(KEY))

    told = caplog.records[-1]
    assert told.message == "nobody sees to a backend in trouble"
    assert isinstance(told.exc_info[1], Gone)
    assert bench.begun == 1


class Interrupt(BaseException):
    pass


def test_an_interrupt_right_after_the_recovery_has_begun_passes_through(bench):
    gate = Gate()
    bench.clock.event = lambda: SimpleNamespace(wait=gate, set=gate.open)

    def begun(recovery):
        spawn(partial(run, recovery))
        gate.wait_for_somebody()
        raise Interrupt

    bench.port.down = {"read"}
    bench.cache._spawn = begun
    with pytest.raises(Interrupt):
        run(bench.cache.look(KEY))
    gate.open()


@pytest.mark.parametrize("failing", ["one list", "another"])
def test_a_clear_of_several_lists_is_delivered_when_each_of_them_was(bench, failing):
    bench.port.down = {("clear", failing)}

    assert run(bench.cache.clear(["one list", "another"])) is False
    assert bench.cache.trouble.undelivered() == [failing]


def test_a_clear_that_was_delivered_stands_for_no_other_list(bench):
    bench.cache.trouble.note("another")

    assert run(bench.cache.clear(["one list"])) is True
    assert bench.cache.trouble.undelivered() == ["another"]


@pytest.mark.parametrize(("takes", "mended"), [(BUDGET, True), (0.375, False)])
def test_what_answers_within_the_budget_is_back(bench, takes, mended):
    bench.cache.trouble.fail()
    bench.port.takes = takes

    run(bench.cache.attempt())

    assert bench.cache.trouble.bypass is not mended


def test_a_recovery_asks_for_a_list_once_everything_is_delivered(bench, caplog):
    caplog.set_level(logging.INFO, "slotcache")
    bench.cache.trouble.note("one list")
    bench.cache.trouble.note("another")
    bench.port.down = {"clear"}
    run(bench.cache.attempt())
    assert bench.port.asked == [("clear", "one list"), ("clear", "another")]
    assert caplog.messages == ["a backend in trouble has not answered yet: Gone('clear')"]

    bench.port.asked.clear()
    bench.port.down = set()
    run(bench.cache.attempt())
    assert bench.port.asked == [("clear", "one list"), ("clear", "another"), ("look", KEY)]
    assert not bench.cache.trouble.bypass


def test_a_recovery_of_locks_takes_one_of_no_list_and_gives_it_back(bench):
    run(bench.locks.attempt())

    probe = f"{LOCK}.probe"
    assert bench.port.asked == [("acquire", probe), ("release", Lock(probe, "a token"))]


def test_a_recovery_of_locks_gives_nothing_back_where_another_one_holds_it(bench):
    bench.port.answers["acquire"] = None

    run(bench.locks.attempt())

    assert bench.port.asked == [("acquire", f"{LOCK}.probe")]


# What a backend answers.


@pytest.mark.parametrize(
    "lie",
    [
        None,
        "a list",
        Miss("a generation"),  # type: ignore[arg-type]
        Miss(SEEN, copy="a list"),  # type: ignore[arg-type]
        Miss(None, copy=TEN),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_an_answer_is_taken_for_none(lie):
    assert believable(lie) == Miss()


@pytest.mark.parametrize(
    "answer",
    [Entry(TEN, SEEN, 0.0, 60.0), Miss(SEEN, 0.0), Miss(SEEN, 0.0, Entry(TEN, SEEN, 0.0, 60.0))],
    ids=["an entry", "a miss", "a miss with a copy"],
)
def test_an_answer_is_taken_as_it_is(answer):
    assert believable(answer) is answer
