"""Driving a flow in the blocking world, and time by hand."""

import asyncio
import threading

import pytest

from slotcache.testing import ManualClock, sandbox
from slotcache.worlds import SystemClock, current_thread, run
from tests.support.threads import spawn


async def answering(value):
    return value


def test_run_returns_what_the_flow_returns():
    assert run(answering(5)) == 5


def test_run_passes_on_what_the_flow_raises():
    async def failing():
        raise LookupError("nothing there")

    with pytest.raises(LookupError, match="nothing there"):
        run(failing())


def test_a_port_that_suspends_is_a_bug_and_the_flow_is_unwound():
    unwound = []

    async def suspending():
        try:
            await asyncio.sleep(0)
        finally:
            unwound.append(True)

    with pytest.raises(AssertionError, match="suspended"):
        run(suspending())
    assert unwound == [True]


def test_a_thread_is_alive_until_it_ends():
    asked = spawn(lambda: (current_thread(), threading.current_thread()))
    alive, thread = asked.result(20)
    thread.join(20)

    assert current_thread()() is True
    assert alive() is False


def test_the_system_clock_waits_for_events_and_no_longer_than_told():
    clock = SystemClock()
    event = clock.event()

    assert event.wait(0.001) is False
    event.set()
    assert event.wait(0.001) is True
    assert clock.now() <= clock.now()


def test_manual_time_moves_when_told_and_when_somebody_sleeps():
    clock = ManualClock(start=100.0)
    clock.advance(1.5)
    clock.sleep(0.5)
    assert clock.now() == 102.0


@pytest.mark.parametrize("by", [-1, float("nan"), "1", True])
def test_manual_time_does_not_go_back(by):
    with pytest.raises((TypeError, ValueError), match="by must be"):
        ManualClock().advance(by)


def test_a_manual_wait_ends_with_its_event():
    clock = ManualClock(start=0.0)
    event = clock.event()
    waiter = spawn(lambda: event.wait(1_000))
    event.set()

    assert waiter.result(20) is True
    assert clock.now() == 0.0


def test_a_manual_wait_ends_when_the_time_comes():
    clock = ManualClock(start=0.0)
    event = clock.event()
    waiter = spawn(lambda: event.wait(10))
    clock.advance(10)

    assert waiter.result(20) is False


def test_a_manual_wait_that_nobody_ends_moves_the_time_to_its_end():
    clock = ManualClock(start=0.0)

    assert clock.event().wait(10) is False
    assert clock.now() == 10.0


def test_a_sandbox_is_a_whole_service_in_one_line():
    service, holds, clock = sandbox({"A": 2, "B": 1})

    hold = holds.create("A")
    holds.create("B")
    holds.confirm(hold.id)
    clock.advance(600)
    free = {slot.slot_id: slot.remaining for slot in service.get_availability()}
    assert free == {"A": 1, "B": 1}


def test_an_empty_sandbox_has_an_empty_list():
    service, _, _ = sandbox({})
    assert len(service.get_availability()) == 0
