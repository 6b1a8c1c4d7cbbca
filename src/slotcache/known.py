"""What a process last knew, for when it is cut off from the cache and the table fails too (P5).

It is kept by the same rule as in any cache: what was looked up before this process cleared it is
not told to a reader who came after that. Of other processes' clears it knows nothing.
"""

from __future__ import annotations

import dataclasses

from slotcache.availability import Availability
from slotcache.policy import AvailabilityPolicy
from slotcache.protocols import CacheBackend, Entry, Generation, Miss

__all__ = ["LastKnown"]


class LastKnown:
    """The last lists that one process loaded, or found."""

    def __init__(self, memory: CacheBackend, policy: AvailabilityPolicy) -> None:
        self._memory = memory
        self._policy = policy

    def look(self, key: str) -> Miss:
        """Look here before the cache or the table, and hand that back with what they answered."""
        return self._memory.look(key)

    def found(self, key: str, look: Miss, entry: Entry) -> None:
        """Keep what the cache answered."""
        look = dataclasses.replace(look, look=entry.since)
        self._keep(key, look, entry.availability, entry.until - entry.since, None)

    def loaded(self, key: str, look: Miss, availability: Availability, life: float | None) -> None:
        """Keep what the table answered."""
        self._keep(key, look, availability, self._policy.ttl, life)

    def clear(self, key: str | None) -> None:
        """Forget this list (None: every list), for all who come later."""
        if key is None:
            self._memory.clear_all()
        else:
            self._memory.clear(key)

    def stand_in(self, key: str, seen: Generation | None, now: float) -> Entry | None:
        """Return what may stand in for a reader who looked here first when it was at `seen`."""
        copy = self._memory.look(key).copy
        if copy is None or not copy.generation.covers(seen) or not self._policy.stale_ttl:
            return None
        return copy if now < copy.until + self._policy.stale_ttl else None

    def _keep(
        self, key: str, look: Miss, availability: Availability, ttl: float, life: float | None
    ) -> None:
        stale_ttl = self._policy.stale_ttl
        self._memory.fill(key, look, availability, ttl=ttl, stale_ttl=stale_ttl, valid_for=life)
