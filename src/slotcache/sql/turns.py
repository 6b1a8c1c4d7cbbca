"""Taking turns, also with a fork: one thread at a time, and none while the process forks.

SQLite does not survive a fork while a file is open. The child inherits its notes on the file
locks of the parent, but not the locks, and every connection that the child opens later believes
the notes. When the parent closes its last connection it then deletes the log under the child,
and bookings that the child has committed are gone (tried); a transaction that was open in the
parent locks the child out for ever (tried). And a mutex inside SQLite that another thread has in
that instant, if only to close a connection, is locked in the child for ever (tried). So a fork
waits for the turn that is running, and for who is beside it; what is open is closed before it, and
opened again by whoever needs it next.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from slotcache._fork import forget_after_fork, prepare_for_fork
from slotcache.sql.waits import THREADS, Waits

__all__ = ["Turns"]

_PATIENCE = 3.0  # seconds that a fork waits: a broken child is worse than a late one


class _Waiter:
    """Somebody who waits for a turn."""

    def __init__(self, waits: Waits) -> None:
        self.called = waits.bell()
        self.task = waits.task()
        self.is_alive = waits.runner()
        self.is_next = False


class Turns:
    """A mutex that is handed over in order of arrival.

    A plain lock goes to whoever is quick: of 64 threads that kept asking, some waited ten times
    as long as with turns, for as many turns a second. A fork takes its turn too, if it comes
    soon, and a forked child finds the mutex free.

    Args:
        before_fork: Closes what must not be open in a fork.
        waits: How to wait for a turn.
    """

    def __init__(self, *, before_fork: Callable[[], None], waits: Waits = THREADS) -> None:
        self._waits = waits
        self._close = before_fork
        self._holder: _Waiter | None = None
        self._queue: deque[_Waiter] = deque()
        self._beside: set[object] = set()
        self._forking_thread: int | None = None
        self._after_fork()
        forget_after_fork(self)
        prepare_for_fork(self)

    def take(self, timeout: float = -1) -> bool:
        """Wait for a turn, at most `timeout` seconds (-1: for ever); return whether it came."""
        waiter = _Waiter(self._waits)
        try:
            with self._mutex:
                if not self._is_taken():
                    self._holder, waiter.is_next = waiter, True
                    return True
                self._queue.append(waiter)
            return waiter.called.wait(timeout) or not self._leave(waiter)
        except BaseException:
            # A signal's, at any point above: neither the place nor the turn may be lost.
            if not self._leave(waiter) and waiter.is_next:
                self.give()
            raise

    def give(self) -> None:
        """End the turn: it is the next one's."""
        with self._mutex:
            if self._holder is not None and self._holder.task not in (None, self._waits.task()):
                return  # a loop that had stopped goes on: the turn is somebody else's by now
            self._holder = None
            while self._queue and self._holder is None:
                waiter = self._queue.popleft()
                if waiter.is_alive():
                    self._holder, waiter.is_next = waiter, True
                    waiter.called.ring()

    def take_if_free(self) -> bool:
        """Take a turn only if there is nothing to wait for; return whether there was not.

        For finalizers: they run wherever a thread happens to be, also inside of these methods.
        """
        if not self._mutex.acquire(blocking=False):
            return False
        try:
            if self._is_taken():
                return False
            self._holder = _Waiter(THREADS)
            return True
        finally:
            self._mutex.release()

    @contextmanager
    def beside(self, timeout: float) -> Iterator[bool]:
        """Be there out of turn: nobody waits for that but a fork, which is all that is waited for.

        Yields:
            False: the process was forking for longer than `timeout` seconds.
        """
        me = object()
        try:
            with self._changed:
                if self._changed.wait_for(lambda: self._forking_thread is None, timeout):
                    self._beside.add(me)
            yield me in self._beside
        finally:
            with self._changed:
                self._beside.discard(me)
                self._changed.notify_all()

    def _is_taken(self) -> bool:
        # A task that was left where it is, by a loop that has stopped, never gives it.
        return self._holder is not None and self._holder.is_alive()

    def _leave(self, waiter: _Waiter) -> bool:
        """Wait no longer; return False if it does not stand in the queue (any more)."""
        with self._mutex:
            if waiter not in self._queue:
                return False
            self._queue.remove(waiter)
            return True

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_: object) -> None:
        self.give()

    def _before_fork(self) -> None:
        end = monotonic() + _PATIENCE
        # A turn that lasts, or our own: the child has to live with what is open in it. So it has
        # with a task's, which cannot end while its event loop forks.
        waits = self._waits.is_blocking
        if self.take(_PATIENCE) if waits else self.take_if_free():
            with self._changed:
                self._forking_thread = threading.get_ident()
                if waits:
                    self._changed.wait_for(lambda: not self._beside, end - monotonic())
        self._close()

    def _after_fork_in_parent(self) -> None:
        if self._forking_thread == threading.get_ident():
            with self._changed:
                self._forking_thread = None
                self._changed.notify_all()
            self.give()

    def _after_fork(self) -> None:
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._holder = None
        self._queue = deque()
        self._beside = set()
        self._forking_thread = None
