"""What is known of a backend in trouble: plain state, without I/O or time, for all worlds.

A breaker: whatever a call fails by, or takes too long for, breaks it; only an answer of the
backend mends it. And the clears that were not delivered, as notes with numbers: while there is
one, nobody in this process may believe the cache. A note goes only when a clear that was sent
*after* it was written has been acknowledged: to drop "the key's note" at any answer would lose
the one that a second writer wrote meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from slotcache._fork import forget_after_fork

__all__ = ["BUDGET", "PAUSE", "Trouble", "shared"]

BUDGET = 0.25
"""Seconds that one call of a backend may take before it counts as failed."""

PAUSE = 0.5
"""Seconds between two attempts to find out whether a backend is back."""

_MOST_NOTES = 1_000
_PATIENCE = 1.0
_one_at_a_time = threading.Lock()

SharedT = TypeVar("SharedT")


def shared(
    backend: object, role: str, kind: type[SharedT], make: Callable[[], SharedT] | None = None
) -> SharedT:
    """Return what all services on one backend share: the first of them makes it.

    It is an attribute of the backend. (Not by `vars`, which would make every other attribute of
    that object slower to read.)

    Raises:
        TypeError: The backend can bear no attribute.
    """
    name = f"_slotcache_{role}"
    # In a child that was forked right here the lock is never released.
    locked = _one_at_a_time.acquire(timeout=_PATIENCE)
    try:
        found = getattr(backend, name, None)
        if not isinstance(found, kind):
            found = (make or kind)()
            setattr(backend, name, found)
        return found
    except AttributeError:
        raise TypeError(
            f"{type(backend).__name__} can bear no attribute, by which the services on it share "
            "what they know: leave __slots__ out, or add '__dict__' to them"
        ) from None
    finally:
        if locked:
            _one_at_a_time.release()


class Trouble:
    """The trouble of one backend, shared by all who use that object.

    Attributes:
        bypass: Whether reads have to do without it. Read at each hit, so it is no property.
    """

    def __init__(self) -> None:
        self.bypass = False
        self._broken = False
        self._notes: dict[str | None, int] = {}
        self._latest = 0
        self._after_fork()
        forget_after_fork(self)

    def _after_fork(self) -> None:
        # The notes stay: the child, too, began after the changes that they stand for.
        self._mutex = threading.Lock()
        self._is_attended: Callable[[], bool] | None = None

    def fail(self) -> None:
        """Note that a call failed."""
        with self._mutex:
            self._broken = True
            self._settle()

    def mend(self) -> None:
        """Note that the backend answers again."""
        with self._mutex:
            self._broken = False
            self._settle()

    def ticket(self) -> int:
        """Return the number of the latest note, to be asked for before a clear is sent."""
        return self._latest

    def note(self, key: str | None) -> None:
        """Note a clear of this key (None: of every key) that may not have been taken."""
        with self._mutex:
            self._latest += 1
            if key is None or None in self._notes or len(self._notes) >= _MOST_NOTES:
                key = None
                self._notes.clear()
            self._notes[key] = self._latest
            self._settle()

    def taken(self, key: str | None, ticket: int) -> None:
        """Drop the notes for which a clear that was acknowledged can stand.

        Args:
            key: What was cleared; None: every key.
            ticket: The number of the latest note when it was sent.
        """
        with self._mutex:
            for noted in [key] if key is not None else list(self._notes):
                if self._notes.get(noted, ticket + 1) <= ticket:
                    del self._notes[noted]
            self._settle()

    def undelivered(self) -> list[str | None]:
        """Return the keys that have a note."""
        with self._mutex:
            return list(self._notes)

    def attend(self) -> bool:
        """Return whether the caller is the one who has to see to it: one at a time does."""
        with self._mutex:
            if not self.bypass or (self._is_attended is not None and self._is_attended()):
                return False
            self._is_attended = _yes
            return True

    def attended_while(self, alive: Callable[[], bool]) -> None:
        """Note who sees to it, by a function that tells whether they still do."""
        with self._mutex:
            if self._is_attended is not None:
                self._is_attended = alive

    def leave_if_settled(self) -> bool:
        """End seeing to it, if there is nothing left to see to."""
        with self._mutex:
            if self.bypass:
                return False
            self._is_attended = None
            return True

    def give_up(self) -> None:
        """End seeing to it, although there is something left."""
        with self._mutex:
            self._is_attended = None

    def _settle(self) -> None:
        self.bypass = self._broken or bool(self._notes)


def _yes() -> bool:
    return True
