"""The judge of a simulated world: knows what is committed, and holds every read against it."""

from __future__ import annotations

from collections.abc import Hashable

from slotcache.availability import Reading, Source
from slotcache.testing.scenario import Scenario, Violation

__all__ = ["Expected", "Judge"]

Expected = tuple[int, int]
"""How many changes a read must show: in any case, and unless it is marked STALE."""


class Judge:
    """Judges one run.

    Attributes:
        acknowledged: How many changes are complete: every later read must show them (P1).
        loads: How many queries took effect.
        counts: Whether it judges P3: only where the locks work and no fault strikes.
    """

    def __init__(self, scenario: Scenario, ttl: float) -> None:
        self.acknowledged = 0
        self.loads = 0
        self._owed: dict[int, int] = {}
        self.counts = scenario.exclusive and not scenario.faults
        self._scenario = scenario
        self._ttl = ttl
        self._committed_at: list[float] = []
        self._loading: list[str] = []
        self._overlapping: set[str] = set()
        self._under_lock: set[str] = set()

    @property
    def version(self) -> int:
        """How many changes are committed."""
        return len(self._committed_at)

    def state(self) -> Hashable:
        """Return all on which later judgements depend."""
        changes = (self.acknowledged, tuple(self._owed.items()), tuple(self._committed_at))
        return changes, self.loads, tuple(self._loading), frozenset(self._overlapping)

    def commit(self, instant: float) -> int:
        """Note a change that is committed now; return its number."""
        self._committed_at.append(instant)
        return self.version

    def acknowledge(self, version: int) -> None:
        """Note that a change is complete: committed, cleared, returned."""
        self.acknowledged = max(self.acknowledged, version)

    def owe(self, version: int, process: int) -> None:
        """Note that a change is complete in one process, whose clear is not delivered."""
        self._owed[process] = max(self._owed.get(process, 0), version)

    def owing(self) -> list[int]:
        """Return the processes with a clear that is not delivered, as far as is known."""
        return list(self._owed)

    def deliver(self, process: int) -> None:
        """Note that this process has delivered what it owed: it is complete for all."""
        self.acknowledge(self._owed.pop(process, 0))

    def expected_at(self, instant: float, process: int) -> Expected:
        """Return what a read that begins now, in this process, must show."""
        old = sum(1 for committed in self._committed_at if committed + self._ttl < instant)
        return max(self.acknowledged, self._owed.get(process, 0)), old

    def read(self, reader: str, expected: Expected, reading: Reading, shown: int) -> None:
        """Judge what a reader was given: it shows so many changes."""
        acknowledged, old = expected
        if reading.source is Source.LOADED:
            self._under_lock.add(reader)
        if shown < acknowledged:
            raise Violation(f"a read shows change {shown}, {acknowledged} were complete (P1)")
        if shown < old and reading.source is not Source.STALE:
            raise Violation(f"a read is older than its ttl: shows {shown}, not {old} (P2)")

    def begin_load(self, reader: str) -> None:
        """Note whose queries run side by side."""
        if self._loading:
            self._overlapping |= {reader, *self._loading}
        self._loading.append(reader)

    def end_load(self, reader: str) -> None:
        """Note that this one's is over."""
        self._loading.remove(reader)

    def finish(self, *, locked: bool) -> None:
        """Judge P3 when all readers are done."""
        if not self.counts:
            return
        if locked:
            raise Violation("a lock is left held")
        if len(self._overlapping & self._under_lock) > 1:
            raise Violation("two queries ran at a time, both under the lock (P3)")
        most = 1 + self._scenario.writers
        if self._scenario.services == 1 and self.loads > most:
            raise Violation(f"{self.loads} queries where {most} are enough (P3)")
