"""One schedule for any cache: a seat is sold while a reader is between its query and its store.

    0.00 s   a reader finds nothing cached, and queries the table
    0.01 s   a writer sells the last seat, commits, and clears the cache
    0.02 s   the reader goes on: it stores what it has read
    0.05 s   further readers ask, every 0.05 s

Nothing here is luck. `Interrupted` stops the reader right after its query until the writer, a
thread of its own, is done; and the clock is manual, so that 11 seconds pass at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from _departures import flights, free_seats, open_departures, sell_seat, unsold_seats
from slotcache import Availability
from slotcache.protocols import Clock, Loaded, Scope, SlotRepository
from slotcache.testing import ManualClock

LAST_SEAT = flights()[572]  # VX 27, from JFK to San Francisco
SOLD_AT = 0.01
STORED_AT = 0.02
STEP = 0.05
STEPS = 220


class Cache(Protocol):
    """What the two have in common."""

    def get_availability(self, scope: str, /) -> Availability: ...
    def clear_availability_cache(self, scope: str, /) -> object: ...


@dataclass(frozen=True)
class Look:
    """What a read showed, and what the table held when it began; `at` in seconds."""

    at: float
    free: int
    truth: int

    @property
    def is_stale(self) -> bool:
        return self.free != self.truth


@dataclass(frozen=True)
class Course:
    """How the race went: the reader who was interrupted, and every read after the sale."""

    reader: Look
    later: tuple[Look, ...]

    @property
    def stale(self) -> list[Look]:
        return [look for look in self.later if look.is_stale]

    @property
    def stale_seconds(self) -> float:
        """From the sale to the first read from which on all are right."""
        if not self.stale:
            return 0.0
        last = self.stale[-1].at
        return next((look.at for look in self.later if look.at > last), float("inf")) - SOLD_AT


class Interrupted:
    """The table, with something that happens between a query and what is done with its rows."""

    def __init__(self, slots: SlotRepository) -> None:
        self._slots = slots
        self.interruption: Callable[[], None] | None = None

    @property
    def scope_type(self) -> type[Scope] | None:
        return self._slots.scope_type

    def load(self, scope: Scope | None) -> Loaded:
        loaded = self._slots.load(scope)
        interruption, self.interruption = self.interruption, None
        if interruption is not None:
            interruption()
        return loaded


def race(path: Path, cache_of: Callable[[SlotRepository, Clock], Cache]) -> Course:
    """Run the schedule on a new table, behind the cache that `cache_of` puts in front of it."""
    clock = ManualClock(start=0.0)
    with (
        open_departures(path, clock=clock, left={LAST_SEAT.id: 1}) as slots,
        ThreadPoolExecutor(1) as writer,
    ):
        table = Interrupted(slots)
        cache = cache_of(table, clock)

        def sell() -> None:
            sell_seat(slots, LAST_SEAT.id)
            cache.clear_availability_cache(LAST_SEAT.origin)

        def let_the_writer_through() -> None:
            clock.advance(SOLD_AT)
            writer.submit(sell).result()
            clock.advance(STORED_AT - SOLD_AT)

        def look() -> Look:
            at, truth = clock.now(), unsold_seats(slots, LAST_SEAT.id)
            availability = cache.get_availability(LAST_SEAT.origin)
            return Look(at, free_seats(availability, LAST_SEAT.id), truth)

        table.interruption = let_the_writer_through
        reader = look()
        later = []
        for step in range(1, STEPS + 1):
            clock.advance(step * STEP - clock.now())
            later.append(look())
    return Course(reader, tuple(later))
