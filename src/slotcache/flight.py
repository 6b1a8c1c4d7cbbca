"""Single flight by generation: who waits for whose query.

Sharing a query by key alone is wrong: a reader that arrives after a change would join a load
that began before it. Here a reader joins a flight whose load has not begun, or whose generation
covers what the reader saw, and otherwise leads one of its own.

Plain state behind a mutex that is held for a few instructions; every wait is the caller's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container
from dataclasses import dataclass

from slotcache._fork import forget_after_fork
from slotcache.availability import Availability, Source
from slotcache.protocols import AsyncEvent, Entry, Generation

__all__ = ["Answer", "Flight", "Flights"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a read found out.

    Attributes:
        availability: The list.
        source: Where it came from.
        since: The instant of the look before its load, from which its age counts.
        found: The generation of a kept value: it answers only readers whom that covers. None:
            a query's answer, good for everybody who boarded its flight.
    """

    availability: Availability
    source: Source
    since: float
    found: Generation | None = None

    @classmethod
    def of(cls, kept: Entry, source: Source) -> Answer:
        """Answer with a value that a cache kept."""
        return cls(kept.availability, source, kept.since, kept.generation)

    def serves(self, seen: Generation | None, oldest: float) -> bool:
        """Whether a reader on its flight may be given it.

        Args:
            seen: What the reader's first look saw (P1).
            oldest: A `ttl` before the reader came: the load may have stood for an hour (P2).
        """
        covers = self.found is None or self.found.covers(seen)
        return covers and (self.source is Source.STALE or self.since > oldest)


@dataclass(slots=True, eq=False)
class Flight:
    """One query that several readers may share.

    Attributes:
        landed: Set when it is over; `outcome` is final from then on.
        alive: Whether its leader still runs: followers ask now and then.
        begun: Whether its load has begun.
        generation: The generation seen by the last look before the load began; None: no load
            has begun, or the cache gave no answer.
        outcome: The answer, or the exception that all shall see; None: the leader ended
            without either, and one of the followers leads anew.
    """

    landed: AsyncEvent
    alive: Callable[[], bool]
    begun: bool = False
    generation: Generation | None = None
    outcome: Answer | Exception | None = None

    def carries(self, seen: Generation | None) -> bool:
        """Whether its load shows all that a reader whose first look was `seen` must be shown."""
        return not self.begun or (self.generation is not None and self.generation.covers(seen))


class Flights:
    """The flights of one service: for each key one that has not begun, and those that have."""

    def __init__(self) -> None:
        self._after_fork()
        forget_after_fork(self)

    def _after_fork(self) -> None:
        self._mutex = threading.Lock()
        self._flying: dict[str, list[Flight]] = {}

    def board(self, key: str, seen: Generation | None, own: Flight) -> Flight:
        """Return a flight for a reader whose first look was `seen`: `own` means that it leads."""
        with self._mutex:
            flying = self._flying.setdefault(key, [])
            for flight in flying:
                if flight.carries(seen):
                    return flight
            flying.append(own)
            return own

    def is_flying(self, key: str, flights: Container[Flight]) -> bool:
        """Whether any of these is one of this key's, and has not landed."""
        with self._mutex:
            return any(one in flights for one in self._flying.get(key, ()))

    def ahead(self, key: str) -> Flight | None:
        """Return a flight of this key whose load has begun, if there is one."""
        with self._mutex:
            return next((one for one in self._flying.get(key, ()) if one.begun), None)

    def begin(self, flight: Flight, generation: Generation | None) -> None:
        """Mark its load as begun: from now on it carries only those whom `generation` covers."""
        with self._mutex:
            flight.generation = generation
            flight.begun = True

    def land(self, key: str, flight: Flight, outcome: Answer | Exception | None) -> None:
        """End the flight with this outcome, unless it has landed or never flew."""
        with self._mutex:
            flying = self._flying.get(key, [])
            if flight in flying:
                flight.outcome = outcome
                flying.remove(flight)
                if not flying:
                    del self._flying[key]
        # Also when it had landed: an interrupt may have cut in right here the first time.
        flight.landed.set()
