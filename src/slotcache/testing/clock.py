"""Time that moves when a test says so."""

from __future__ import annotations

import threading

from slotcache.policy import seconds
from slotcache.worlds import is_background

__all__ = ["ManualClock"]

_NEW_YEAR_2026 = 1_767_225_600.0
_PATIENCE = 0.25


class ManualClock:
    """A `Clock` that stands still until `advance` or `sleep` moves it.

    Its `sleep` returns at once, with the time moved on. A wait for an event ends when the event
    happens, when the time reaches its end, or, so that every wait ends, when nothing of the kind
    came for a quarter of a real second: then the time jumps to its end. What slotcache does in the
    background does not move the time: it waits until somebody else does. A cache that is being
    called while the time is moved by more than a quarter of a second was too slow (P4).

    Args:
        start: The first instant, in seconds; as Unix time it is New Year 2026 UTC, which is how
            `SqlSlots` reads it.
    """

    def __init__(self, start: float = _NEW_YEAR_2026) -> None:
        self._time = start
        self._moved = threading.Condition()

    def now(self) -> float:
        """Return the instant that it stands at."""
        return self._time

    def advance(self, by: float) -> None:
        """Move on by so many seconds."""
        by = seconds("by", by, above_zero=False)
        with self._moved:
            self._reach(self._time + by)

    def sleep(self, seconds: float) -> None:
        """Move on, instead of waiting."""
        with self._moved:
            self._reach(self._time + seconds)

    def event(self) -> _ManualEvent:
        """A new event that has not happened."""
        return _ManualEvent(self)

    def _reach(self, instant: float) -> None:
        with self._moved:
            self._time = max(self._time, instant)
            self._moved.notify_all()


class _ManualEvent:
    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._is_set = False

    def set(self) -> None:
        with self._clock._moved:
            self._is_set = True
            self._clock._moved.notify_all()

    def wait(self, timeout: float) -> bool:
        clock = self._clock
        with clock._moved:
            end = clock.now() + timeout
            patience = None if is_background.get() else _PATIENCE
            while not self._is_set and clock.now() < end:
                if not clock._moved.wait(patience):
                    clock._reach(end)
            return self._is_set
