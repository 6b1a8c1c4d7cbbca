"""A history put in order: what a read has to show, by when and where it began; who ran when.

Where the history leaves open when something happened, it is taken to have happened when that is
allowed. So a commit whose answer nobody lived to see counts from when somebody, a reader or the one
who looks at the books, is known to have seen it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from tests.support.books import Books, Violation, read_books
from tests.support.history import COUNTED, Call, Entry, History

SLACK = 0.02
"""Seconds by which the clocks of cache, database and processes may run apart."""

AFTERLIFE = 1.0
"""Seconds within which a server has done what a process had sent that is dead by now."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change that was acknowledged.

    Attributes:
        call: What has returned.
        shown: By slot: the count from which on it is shown.
        delivered: When its clear is known to have reached the cache.
    """

    call: Call
    shown: Mapping[int, int]
    delivered: float


class Marks:
    """From which instant on which count of a slot has to be shown."""

    def __init__(self) -> None:
        self._marks: dict[int, list[tuple[float, int]]] = defaultdict(list)
        self._sorted: dict[int, tuple[list[float], list[int]]] = {}

    def add(self, instant: float, shown: Mapping[int, int]) -> None:
        """From then on, these."""
        for slot, count in shown.items():
            self._marks[slot].append((instant, count))

    def least(self, slot: int, instant: float) -> int:
        """The highest count of all marks until then."""
        if slot not in self._sorted:
            marks = sorted(self._marks[slot])
            counts = list(accumulate((count for _, count in marks), max))
            self._sorted[slot] = [each for each, _ in marks], counts
        instants, counts = self._sorted[slot]
        before = bisect_right(instants, instant)
        return counts[before - 1] if before else 0


class Timeline:
    """Calls of one kind, to be found by when they ran."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = [call for call in calls if call.ended < math.inf]
        self._endless = [call for call in calls if call.ended == math.inf]
        self._begins = [call.began for call in self._calls]
        self._longest = max((call.ended - call.began for call in self._calls), default=0.0)

    def during(self, began: float, ended: float) -> Iterator[Call]:
        """Those that ran at any time of this."""
        first = bisect_left(self._begins, began - self._longest)
        last = bisect_right(self._begins, ended)
        yield from (call for call in self._calls[first:last] if call.ended >= began)
        yield from (call for call in self._endless if call.began <= ended)


class Case:
    """A history, put in order."""

    def __init__(self, history: History) -> None:
        self.calls = sorted(history.calls, key=lambda call: call.began)
        self.terms = history.terms
        self.books: Books = read_books(history)
        self.by_kind: dict[str, list[Call]] = defaultdict(list)
        self.inside: dict[tuple[str, int], list[Call]] = defaultdict(list)
        self.last_sign: dict[str, float] = defaultdict(float)
        by_process: dict[tuple[str, str], list[Call]] = defaultdict(list)
        for call in self.calls:
            self.by_kind[call.what].append(call)
            by_process[call.process, call.what].append(call)
            signs = (self.last_sign[call.process], call.began, call.ended)
            self.last_sign[call.process] = max(each for each in signs if each < math.inf)
            if call.within is not None:
                self.inside[call.process, call.within].append(call)
        self._timelines = {key: Timeline(calls) for key, calls in by_process.items()}
        self.death = {call.asked["victim"]: call.ended for call in self.by_kind["kill"]}
        self.reads = [call for call in self.by_kind["read"] if call.returned]
        self.looks = [call for call in self.by_kind["look"] if call.returned]
        self.lost: list[Violation] = []
        self.changes = list(self._changes())
        self._mark()
        self._set_clock()
        self._clears = {scope: self._clears_of(scope) for scope in (None, *self._scopes())}

    def during(self, process: str, what: str, began: float, ended: float) -> Iterator[Call]:
        """What of this kind a process had in hand at any time of this."""
        timeline = self._timelines.get((process, what))
        return iter(()) if timeline is None else timeline.during(began, ended)

    def told(self, call: Call) -> list[Call]:
        """What the hook was told by this operation."""
        return [each for each in self.inside[call.process, call.number] if each.what == "told"]

    def written_by(self, call: Call) -> list[Entry]:
        """The rows of the books that say what this has done, if it has done it."""
        if call.what == "create":
            keys = [(hold, "held") for hold in call.came["holds"]]
        else:
            keys = [(call.asked["hold"], call.came["state"])]
        return [self.books.written[key] for key in keys if key in self.books.written]

    def has_done(self, call: Call) -> bool:
        """Whether its process has written, while it ran, what this has done."""
        since, until = self.database_time(call.began)[0], self.database_time(call.ended)[1]
        written = self.written_by(call)
        mine = [entry for entry in written if entry.who == call.process]
        return bool(mine) and all(since <= entry.at <= until for entry in mine)

    def database_time(self, instant: float) -> tuple[float, float]:
        """What the clock of the database said then: no less than, and no more than."""
        return instant + self._offset[0] - SLACK, instant + self._offset[1] + SLACK

    def scopes(self, shown: Mapping[int, int]) -> set[str]:
        """Of which scopes these slots are."""
        return {self.terms.slots[slot][0] for slot in shown}

    def delivered(self, told: Call) -> float:
        """When what the hook sent had reached the cache, or could not reach it any more."""
        if told.returned and told.came["delivered"]:
            return told.ended
        death = self.death.get(told.process, math.inf) + AFTERLIFE
        since = told.ended if told.returned else math.inf
        for health in self.during(told.process, "health", since, math.inf):
            if health.began >= since and health.returned and not health.came["undelivered"]:
                return min(death, health.ended)
        return death

    def may_have_cleared(self, scope: str | None, since: float, until: float) -> bool:
        """Whether a clear of this list may have reached the cache at any time of this."""
        begins, latest = self._clears[scope]
        begun = bisect_right(begins, until)
        return begun > 0 and latest[begun - 1] >= since

    def _scopes_of(self, told: Sequence[Call]) -> frozenset[str]:
        return frozenset(each.asked["scope"] for each in told)

    def _scopes(self) -> set[str]:
        return {scope for scope, _ in self.terms.slots.values()}

    def _clears_of(self, scope: str | None) -> tuple[list[float], list[float]]:
        """When the clears of a list began, and until when those that had begun may have come."""
        clears = [
            told
            for told in self.by_kind["told"]
            if scope is None or told.asked["scope"] in (None, scope)
        ]
        latest = list(accumulate((self.delivered(told) for told in clears), max))
        return [told.began for told in clears], latest

    def _changes(self) -> Iterator[Change]:
        located = _Located(self)
        for call in self.calls:
            if not is_change(call):
                continue
            told = self.told(call)
            shown = located.find(call, self._scopes_of(told))
            if shown is None:
                self.lost.append(
                    Violation("P6", f"{told_of(call)}: returned, and is not in the books")
                )
                continue
            done = [each.returned and each.came["delivered"] for each in told]
            known = [self.delivered(each) for each in told if not each.came.get("delivered")]
            delivered = call.ended if all(done) else max(known)
            if not told or delivered > self.death.get(call.process, math.inf):
                delivered = math.inf
            yield Change(call, shown, delivered)

    def _mark(self) -> None:
        """Note which changes a read has to show, by when and where it began."""
        self.cleared, self.committed = Marks(), Marks()
        self.own: dict[str, Marks] = defaultdict(Marks)
        for change in self.changes:
            self.cleared.add(change.delivered, change.shown)
            self.committed.add(change.call.ended, change.shown)
            self.own[change.call.process].add(change.call.ended, change.shown)
        for read in self.reads:
            self.committed.add(read.ended, shown_by(read))
        for look in self.looks:
            self.committed.add(look.ended, counts_of(look))

    def _set_clock(self) -> None:
        lows = [look.came["now"] - look.ended for look in self.looks]
        highs = [look.came["now"] - look.began for look in self.looks]
        self._offset = max(lows, default=-math.inf), min(highs, default=math.inf)


class _Located:
    """Finds in the books what has returned.

    Holds have names; what has none, a process does one after the other. If the books also have one
    that did not return, it may be taken for that: it was before it, so no more is asked of a read.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._books = case.books
        self._nameless: dict[tuple[object, ...], deque[dict[int, int]]] = defaultdict(deque)
        for rows in sorted(self._books.transactions.values(), key=lambda rows: rows[0].at):
            if (name := self._name_of(rows)) is not None:
                self._nameless[name].append(self._books.shown_by(rows))

    def find(self, call: Call, scopes: frozenset[str]) -> dict[int, int] | None:
        """By slot: the count from which on the change is shown; None: there is none.

        Args:
            call: What has returned.
            scopes: Which the hook was told.
        """
        if call.what == "create":
            found = [self._books.moves.get((hold, "held")) for hold in call.came["holds"]]
            return None if None in found else dict(each for each in found if each is not None)
        if call.what in ("confirm", "cancel"):
            move = self._books.moves.get((call.asked["hold"], call.came["state"]))
            return None if move is None else dict([move])
        if call.what == "set_capacity":
            name: tuple[object, ...] = call.process, call.asked["slot"], call.asked["capacity"]
        elif not scopes:
            return {}
        else:
            name = call.process, call.came["count"], scopes
        return self._nameless[name].popleft() if self._nameless[name] else None

    def _name_of(self, rows: Sequence[Entry]) -> tuple[object, ...] | None:
        expired = sum(row.state == "expired" for row in rows)
        slot_rows = [row for row in rows if row.hold is None]
        if expired + len(slot_rows) < len(rows):
            return None
        resized = [row for row in slot_rows if self._is_resized(row)]
        if resized:
            return rows[0].who, resized[-1].slot, resized[-1].capacity
        scopes = self._case.scopes(self._books.shown_by(rows))
        return (rows[0].who, expired, frozenset(scopes)) if expired else None

    def _is_resized(self, row: Entry) -> bool:
        states = self._books.states[row.slot]
        before = max((count for count in states if count < row.count), default=0)
        return states[before].capacity != row.capacity


def is_change(call: Call) -> bool:
    """Whether this has returned, and has changed what is free."""
    if not call.returned:
        return False
    if call.what == "expire_due":
        return bool(call.came["count"])
    if call.what in ("create", "confirm", "cancel"):
        return not call.came["replayed"]
    return call.what == "set_capacity"


def shown_by(read: Call) -> dict[int, int]:
    """By slot: how many changes of it the list shows."""
    return {slot - COUNTED: count for slot, count, _ in read.came["list"] if slot > COUNTED}


def counts_of(look: Call) -> dict[int, int]:
    """By slot: how many changes of it were committed."""
    return {int(slot): count for slot, count in look.came["counts"].items()}


def told_of(call: Call) -> str:
    """What to look for in the journals."""
    asked = ", ".join(f"{name} {value}" for name, value in call.asked.items())
    source = call.came.get("source", "")
    return (
        f"{call.process} {call.number} ({call.what} {asked}) at {call.began:.6f} {source}".strip()
    )
