"""The plan of the textbooks, written with care: get, lock, re-check, query, set; delete on change.

It withstands a rush: however many threads ask, one queries. And yet it can serve the past for a
whole `ttl`: `_race.py` shows when.
"""

from __future__ import annotations

import threading

from slotcache import Availability
from slotcache.protocols import Clock, SlotRepository


class TextbookCache:
    """A list of free places for each scope, kept for `ttl` seconds."""

    def __init__(self, slots: SlotRepository, *, ttl: float, clock: Clock) -> None:
        self._slots = slots
        self._ttl = ttl
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[Availability, float]] = {}

    def get_availability(self, scope: str) -> Availability:
        kept = self._get(scope)
        if kept is not None:
            return kept
        with self._lock:
            kept = self._get(scope)  # somebody else may have stored it while we waited
            if kept is not None:
                return kept
            availability = self._slots.load(scope).availability
            self._kept[scope] = availability, self._clock.now() + self._ttl
            return availability

    def clear_availability_cache(self, scope: str) -> None:
        # Not under the lock, as hardly anybody does: each sale would wait for a running query,
        # and in a cache server, where the lock itself may expire, it would not help.
        self._kept.pop(scope, None)

    def _get(self, scope: str) -> Availability | None:
        availability, until = self._kept.get(scope, (None, 0.0))
        return availability if self._clock.now() < until else None
