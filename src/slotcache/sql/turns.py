"""Taking turns, also with a fork: one thread at a time, and none while the process forks.

SQLite does not survive a fork while a file is open. The child inherits its notes on the file
locks of the parent, but not the locks, and every connection that the child opens later believes
the notes. When the parent closes its last connection it then deletes the log under the child,
and bookings that the child has committed are gone (tried); a transaction that was open in the
parent locks the child out for ever (tried). So a fork waits for the turn that is running, what
is open is closed before it, and opened again by whoever needs it next.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable

from slotcache._fork import forget_after_fork

__all__ = ["Turns"]

_PATIENCE = 0.5


class Turns:
    """A mutex that is handed over in order of arrival.

    A plain lock goes to whoever is quick: of 64 threads that kept asking, some waited ten times
    as long as with turns, for as many turns a second. A fork takes its turn too, if it comes
    soon, and a forked child finds the mutex free.

    Args:
        before_fork: Closes what must not be open in a fork.
    """

    def __init__(self, *, before_fork: Callable[[], None]) -> None:
        self._close = before_fork
        self._mutex = threading.Lock()
        self._taken = False
        self._queue: deque[threading.Lock] = deque()
        self._forking_thread: int | None = None
        forget_after_fork(self)
        _registered.add(self)

    def take(self, timeout: float = -1) -> bool:
        """Wait for a turn, at most `timeout` seconds (-1: for ever); return whether it came."""
        with self._mutex:
            if not self._taken:
                self._taken = True
                return True
            turn = threading.Lock()
            turn.acquire()
            self._queue.append(turn)
        try:
            return turn.acquire(timeout=timeout) or not self._leave(turn)
        except BaseException:
            if not self._leave(turn):
                self.give()
            raise

    def give(self) -> None:
        """End the turn: it is the next one's."""
        with self._mutex:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._taken = False

    def _leave(self, turn: threading.Lock) -> bool:
        """Wait no longer; return False if the turn came in the same instant."""
        with self._mutex:
            if turn not in self._queue:
                return False
            self._queue.remove(turn)
            return True

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_: object) -> None:
        self.give()

    def _before_fork(self) -> None:
        # A turn that lasts, or our own: the child has to live with what is open in it.
        if self.take(_PATIENCE):
            self._forking_thread = threading.get_ident()
        self._close()

    def _after_fork_in_parent(self) -> None:
        if self._forking_thread == threading.get_ident():
            self._forking_thread = None
            self.give()

    def _after_fork(self) -> None:
        self._mutex = threading.Lock()
        self._taken = False
        self._queue = deque()
        self._forking_thread = None


_registered: weakref.WeakSet[Turns] = weakref.WeakSet()


def _before_fork() -> None:
    for turns in list(_registered):
        turns._before_fork()


def _after_fork_in_parent() -> None:
    for turns in list(_registered):
        turns._after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
