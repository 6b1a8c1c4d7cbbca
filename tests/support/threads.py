"""Threads that a test can wait for, with an end to every wait."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")
PATIENCE = 20.0


def spawn(work: Callable[[], T]) -> "Future[T]":
    """Run `work` in a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def together(count: int, work: Callable[[], T]) -> list[T]:
    """Run `work` in `count` threads that begin at one instant; return what each returned."""
    start = threading.Barrier(count)

    def run(_: int) -> T:
        start.wait(PATIENCE)
        return work()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count), timeout=PATIENCE))


class Gate:
    """Holds whoever calls it until it is opened, and tells when somebody has come."""

    def __init__(self) -> None:
        self._arrived = threading.Event()
        self._open = threading.Event()

    def __call__(self, *_: Any) -> None:
        self._arrived.set()
        assert self._open.wait(PATIENCE), "nobody opened the gate"

    def wait_for_somebody(self) -> None:
        assert self._arrived.wait(PATIENCE), "nobody came to the gate"

    def open(self) -> None:
        self._open.set()


class Counted(Generic[T]):
    """A function that tells how often it has been called, to whoever waits for that."""

    def __init__(self, function: Callable[..., T]) -> None:
        self._function = function
        self._calls = threading.Semaphore(0)

    def __call__(self, *args: Any, **options: Any) -> T:
        answer = self._function(*args, **options)
        self._calls.release()
        return answer

    def is_called_within(self, seconds: float) -> bool:
        """Whether one call more has returned by then."""
        return self._calls.acquire(timeout=seconds)

    def wait_for(self, calls: int) -> None:
        """Wait until that many calls more have returned."""
        for _ in range(calls):
            assert self._calls.acquire(timeout=PATIENCE), "it was not called so often"
