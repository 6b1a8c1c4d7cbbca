"""Turns: in order of arrival, and never lost."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from slotcache.sql.turns import Turns


def new_turns(kind: type[Turns] = Turns) -> Turns:
    return kind(before_fork=lambda: None)


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
