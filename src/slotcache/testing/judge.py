"""The judge of a simulated world: knows what is committed, and holds every read against it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

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
        taken_at_first: How many places are not free before the first change.
    """

    def __init__(self, scenario: Scenario, ttl: float) -> None:
        self.acknowledged = 0
        self.loads = 0
        self.taken_at_first = 0
        self._past_the_lock = 0
        self._owed: dict[int, int] = {}
        self.counts = scenario.exclusive and not scenario.faults
        self._scenario = scenario
        self._ttl = ttl
        self._changes: list[tuple[float, int]] = []
        self._loading: list[str] = []
        self._overlapping: set[str] = set()
        self._under_lock: set[str] = set()

    @property
    def version(self) -> int:
        """How many changes are committed."""
        return len(self._changes)

    def state(self, names: Mapping[str, str]) -> Hashable:
        """Return all on which later judgements depend, the actors called by these names."""
        changes = (self.acknowledged, tuple(self._owed.items()), tuple(self._changes))
        if not self.counts:
            return changes
        groups = (self._loading, self._overlapping, self._under_lock)
        loads = self.loads, self._past_the_lock
        return changes, loads, *(frozenset(names[one] for one in each) for each in groups)

    def commit(self, instant: float, taken: int) -> int:
        """Note a change that is committed now, with so many places taken; return its number."""
        self._changes.append((instant, taken))
        return self.version

    def taken(self, version: int) -> int:
        """Return how many places are taken after so many changes."""
        return self._changes[version - 1][1] if version else self.taken_at_first

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
        old = sum(1 for committed, _ in self._changes if committed + self._ttl < instant)
        return max(self.acknowledged, self._owed.get(process, 0)), old

    def shown(self, taken: int) -> int:
        """Return how many changes a list shows: of several with so many taken, the last."""
        for version in range(self.version, -1, -1):
            if self.taken(version) == taken:
                return version
        raise Violation(f"a list shows {taken} places taken, which they never were")

    def read(self, reader: str, expected: Expected, reading: Reading, shown: int) -> None:
        """Judge what a reader was given: it shows so many changes."""
        acknowledged, old = expected
        if reading.source is Source.LOADED:
            self._under_lock.add(reader)
        self._past_the_lock += reading.source is Source.DIRECT
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
        # Who got no lock in time queries without one (P5), and the others not less often for that.
        most = 1 + self._scenario.changes + self._past_the_lock
        if self._scenario.services == 1 and self.loads > most:
            raise Violation(f"{self.loads} queries where {most} are enough (P3)")
