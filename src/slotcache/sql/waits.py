"""How the SQL half waits, in either world.

What it does is written once, as code that blocks. On asyncio it runs in a greenlet, as SQLAlchemy
runs its own: whatever waits in there hands an awaitable to the task outside, and goes on when that
is done. A cancellation of the task is raised at that place, as a signal would be.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.util import await_only, greenlet_spawn

from slotcache.availability import Scope
from slotcache.hook import Hook, call_here, call_on_asyncio, tell_all
from slotcache.worlds import (
    TimedEvent,
    as_a_whole,
    current_task,
    decisive,
    is_in_a_whole,
    run,
    running_loop,
)

__all__ = ["THREADS", "Bell", "Waits", "in_greenlet", "waits_of"]

T = TypeVar("T")

_FOR_EVER = 1e6


class Bell(Protocol):
    """Something that one thread or task waits for."""

    def ring(self) -> None:
        """End the wait, now or later."""

    def wait(self, timeout: float) -> bool:
        """Wait, at most so many seconds (-1: for ever); return whether it has rung."""


class Waits(Protocol):
    """What waits, or has others wait, in one of the worlds."""

    is_blocking: bool
    """Whether any code may wait, and not that in greenlets alone."""

    def bell(self) -> Bell:
        """A new one, that has not rung."""

    def task(self) -> object:
        """Return the task that this is; None: it is a thread."""

    def runner(self) -> Callable[[], bool]:
        """Return what tells, later, whether this thread or task may still go on."""

    def sleep(self, seconds: float) -> None:
        """Let so many seconds pass."""

    def to_its_end(self, call: Callable[[], T]) -> T:
        """Call what has to be known to have happened or not, whoever is cancelled meanwhile.

        In a transaction of a user's it is interrupted all the same, as that is.
        """

    def tell(self, told: Iterable[tuple[Hook, Scope | None]]) -> None:
        """Call hooks with scopes, each once."""


class _ThreadBell:
    """A lock that is released by another thread: the quickest there is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        self._lock.release()

    def wait(self, timeout: float) -> bool:
        return self._lock.acquire(timeout=timeout)


class _TaskBell:
    """An event that a task waits for."""

    def __init__(self) -> None:
        self._event = TimedEvent()

    def ring(self) -> None:
        self._event.set()

    def wait(self, timeout: float) -> bool:
        return await_only(self._event.wait(timeout if timeout >= 0 else _FOR_EVER))


def _for_ever() -> bool:
    return True  # a thread that ends in the midst of anything leaves it by `finally`


class _InThreads:
    """Waits of code that blocks."""

    is_blocking = True
    bell = staticmethod(_ThreadBell)
    sleep = staticmethod(time.sleep)

    def task(self) -> object:
        return None

    def runner(self) -> Callable[[], bool]:
        return _for_ever

    def to_its_end(self, call: Callable[[], T]) -> T:
        return call()

    def tell(self, told: Iterable[tuple[Hook, Scope | None]]) -> None:
        run(tell_all(told, call_here))


class _InGreenlets:
    """Waits of code that a task runs in a greenlet."""

    is_blocking = False
    bell = staticmethod(_TaskBell)

    def task(self) -> object:
        try:
            return asyncio.current_task()
        except RuntimeError:  # who waits for nothing needs no loop
            return None

    def runner(self) -> Callable[[], bool]:
        return _for_ever if self.task() is None else current_task()

    def sleep(self, seconds: float) -> None:
        await_only(asyncio.sleep(seconds))

    def to_its_end(self, call: Callable[[], T]) -> T:
        with decisive():
            return call()

    def tell(self, told: Iterable[tuple[Hook, Scope | None]]) -> None:
        told = list(told)
        if told:
            await_only(as_a_whole(tell_all(told, call_on_asyncio), is_decisive=True))


THREADS: Waits = _InThreads()
"""For code that blocks."""

_GREENLETS: Waits = _InGreenlets()


def waits_of(dialect: sa.Dialect) -> Waits:
    """Return how those wait who use connections of this kind."""
    return _GREENLETS if dialect.is_async else THREADS


async def in_greenlet(call: Callable[..., T], *args: Any, **options: Any) -> T:
    """Return what `call` returns, which may wait as SQLAlchemy does on asyncio.

    It hears of one cancellation: SQLAlchemy does not bear a second one while it tidies up after the
    first. A connection of aiosqlite then has a task that never ends (tried).
    """
    running_loop()
    work = greenlet_spawn(call, *args, **options)
    return await (work if is_in_a_whole() else as_a_whole(work))
