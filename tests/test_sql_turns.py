"""Turns: in order of arrival, and never lost."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy.dialects.sqlite import aiosqlite
from sqlalchemy.util import await_only

from slotcache.sql.turns import Turns
from slotcache.sql.waits import THREADS, Waits, in_greenlet, waits_of

ON_ASYNCIO = waits_of(aiosqlite.dialect())


def new_turns(kind: type[Turns] = Turns, waits: Waits = THREADS) -> Turns:
    return kind(before_fork=lambda: None, waits=waits)


def wait_for_queue(turns: Turns, length: int) -> None:
    while len(turns._queue) < length:
        pass


def test_they_come_in_the_order_of_arrival() -> None:
    turns = new_turns()
    served: list[int] = []

    def wait(number: int) -> None:
        with turns:
            served.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(8)]
    with turns:
        for number, thread in enumerate(threads, start=1):
            thread.start()
            wait_for_queue(turns, number)
    for thread in threads:
        thread.join()

    assert served == list(range(8))


def test_one_who_does_not_wait_any_longer_is_passed_over() -> None:
    turns = new_turns()

    with turns:
        assert not turns.take(0.001)

    assert turns.take(0)


def test_a_turn_that_comes_in_the_instant_of_giving_up_is_taken() -> None:
    class JustInTime(Turns):
        def _leave(self, turn: Any) -> bool:
            self.give()
            return super()._leave(turn)

    turns = new_turns(JustInTime)

    assert turns.take()
    assert turns.take(0.001)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no such signal")
@pytest.mark.parametrize("given_in_that_instant", [False, True])
def test_a_wait_that_a_signal_ends_loses_no_turn(given_in_that_instant: bool) -> None:
    turns = new_turns()
    waiting = threading.get_ident()
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        if interrupted.is_set():
            return
        interrupted.set()
        if given_in_that_instant:
            turns.give()
        raise KeyboardInterrupt

    def send() -> None:
        wait_for_queue(turns, 1)
        # To that very thread: a wait is not ended by a signal that another thread was sent. And
        # again: nor by one that came in the instant before it.
        while not interrupted.wait(0.01):
            signal.pthread_kill(waiting, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=send)
    turns.take()
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            turns.take(30)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    if not given_in_that_instant:
        turns.give()

    assert turns.take(0)


def test_who_is_beside_waits_for_no_turn_and_holds_none_up() -> None:
    turns = new_turns()

    with turns, turns.beside(0) as is_there:
        assert is_there
    with turns.beside(0):
        assert turns.take(0)


def test_a_fork_waits_for_who_is_beside_and_keeps_others_from_it() -> None:
    closed: list[int] = []
    turns = Turns(before_fork=lambda: closed.append(len(turns._beside)))
    answers: list[bool] = []

    def come() -> None:
        with turns.beside(30) as is_there:
            answers.append(is_there)

    forking = threading.Thread(target=turns._before_fork)
    with turns.beside(0):
        forking.start()
        while turns._forking_thread is None:
            pass
        assert not closed
    forking.join()
    assert closed == [0]
    with turns.beside(0.001) as is_there:
        assert not is_there

    late = threading.Thread(target=come)
    late.start()
    turns._forking_thread = threading.get_ident()
    turns._after_fork_in_parent()
    late.join()
    assert answers == [True]
    assert turns.take(0)


def test_a_fork_waits_for_nobody_longer_than_it_is_patient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slotcache.sql.turns._PATIENCE", 0.01)
    turns = new_turns()

    with turns.beside(0):
        turns._before_fork()
    turns._after_fork_in_parent()

    assert turns.take(0)


def test_a_finalizer_takes_a_turn_only_if_it_need_not_wait() -> None:
    """It may run in a thread that is in the midst of taking a turn."""
    turns = new_turns()

    with turns._mutex:
        assert not turns.take_if_free()
    with turns:
        assert not turns.take_if_free()
    assert turns.take_if_free()
    assert not turns.take(0)


class Turn:
    """A task's turn, in a loop that runs only as long as this waits for something.

    Args:
        turns: Of which it takes one at once.
        loop: Where.
    """

    def __init__(self, turns: Turns, loop: asyncio.AbstractEventLoop) -> None:
        self._turns = turns
        self._loop = loop
        self._begun, self._over = asyncio.Event(), asyncio.Event()
        self._task = loop.create_task(in_greenlet(self._last))
        loop.run_until_complete(self._begun.wait())

    def end(self) -> None:
        self._over.set()
        self._loop.run_until_complete(self._task)

    def _last(self) -> None:
        with self._turns:
            self._begun.set()
            await_only(self._over.wait())


async def take_if_free(turns: Turns) -> bool:
    return turns.take_if_free()


def test_the_turn_of_a_loop_that_has_stopped_is_anybodys() -> None:
    turns = new_turns(waits=ON_ASYNCIO)
    with closing(asyncio.new_event_loop()) as stopped:
        turn = Turn(turns, stopped)

        assert turns.take_if_free()

        turn.end()


def test_a_loop_that_goes_on_after_all_ends_nobody_elses_turn() -> None:
    turns = new_turns(waits=ON_ASYNCIO)
    with closing(asyncio.new_event_loop()) as stopped, closing(asyncio.new_event_loop()) as other:
        lost = Turn(turns, stopped)
        turn = Turn(turns, other)
        lost.end()

        assert not other.run_until_complete(take_if_free(turns))
        turn.end()
        assert turns.take_if_free()


def test_who_waits_in_a_loop_that_has_stopped_is_passed_over() -> None:
    turns = new_turns(waits=ON_ASYNCIO)

    async def until_queued(length: int) -> None:
        while len(turns._queue) < length:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def wait_behind() -> bool:
        waiting = asyncio.create_task(in_greenlet(turns.take, 5))
        await until_queued(2)
        turns.give()
        return await waiting

    with closing(asyncio.new_event_loop()) as stopped:
        assert turns.take_if_free()
        left_there = stopped.create_task(in_greenlet(turns.take))
        stopped.run_until_complete(until_queued(1))

        assert asyncio.run(wait_behind())

        left_there.cancel()
        stopped.run_until_complete(asyncio.wait([left_there]))


def test_a_fork_in_an_event_loop_gives_its_turn_back() -> None:
    """It is no task's."""
    turns = new_turns(waits=ON_ASYNCIO)

    async def fork() -> None:
        turns._before_fork()
        assert not turns.take_if_free()
        turns._after_fork_in_parent()

    asyncio.run(fork())

    assert turns.take_if_free()
