"""The checker: judges a history of a real run by the promises. Plain state, no I/O.

What a list shows can be compared with what was changed, whatever went on at once, because each
list tells how many changes of each slot it shows (`COUNTED`), and the books of the database tell
what a slot was after each of them. So a read that has to show a change shows that count or a
higher one; and what it shows of a slot is what the slot was at that count, no more and no less.

It raises no false alarm: what it is told by `Case` errs to the side of who is accused.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.support.books import Violation
from tests.support.case import (
    AFTERLIFE,
    SLACK,
    Case,
    Timeline,
    counts_of,
    is_change,
    shown_by,
    told_of,
)
from tests.support.history import COUNTED, Call, History


def judge(history: History) -> list[Violation]:
    """Return all that was promised and not kept."""
    case = Case(history)
    found = list(case.books.wrong)
    for rule in RULES:
        found += rule(case)
    return found


def fresh(case: Case) -> Iterator[Violation]:
    """P1, and what P5 says of a list that was cleared."""
    for read in case.reads:
        is_stale = read.came["source"] == "stale"
        knows_all = not is_stale or read.came["in_touch"]
        for slot, count in shown_by(read).items():
            least = case.own[read.process].least(slot, read.began)
            if knows_all:
                least = max(least, case.cleared.least(slot, read.began))
            if count < least:
                text = f"shows change {count} of slot {slot}, and {least} had returned"
                yield Violation("P5" if is_stale else "P1", f"{told_of(read)}: {text}")


def bounded(case: Case) -> Iterator[Violation]:
    """P2: by what was committed, and by what the answer says of itself."""
    for read in case.reads:
        age, took = read.came["age"], read.ended - read.began
        oldest = age if read.came["source"] == "stale" else min(age, case.terms.ttl)
        if age > oldest + took + SLACK:
            yield Violation("P2", f"{told_of(read)}: is {age} s old")
        for slot, count in shown_by(read).items():
            least = case.committed.least(slot, read.began - oldest - SLACK)
            if count < least:
                text = f"shows change {count} of slot {slot}, and {least} was there {oldest} s ago"
                yield Violation("P2", f"{told_of(read)}: {text}")


def true(case: Case) -> Iterator[Violation]:
    """P4: no answer is wrong: each row is what the slot was, when it was loaded."""
    for read in case.reads:
        rows = {slot: (capacity, free) for slot, capacity, free in read.came["list"]}
        slots = case.terms.listed(read.asked["scope"])
        if sorted(rows) != sorted([*slots, *(slot + COUNTED for slot in slots)]):
            yield Violation("P4", f"{told_of(read)}: has the slots {list(rows)}")
            continue
        since, _ = case.database_time(read.began - read.came["age"])
        _, until = case.database_time(read.ended)
        for slot in slots:
            state = case.books.states[slot].get(rows[slot + COUNTED][0])
            if state is None:
                yield Violation("P4", f"{told_of(read)}: what it shows was never committed")
                continue
            capacity, free = rows[slot]
            least, most = (state.free(case.terms.claim, each) for each in (since, until))
            if capacity != state.capacity or not least <= free <= most:
                text = f"{free}/{capacity} in slot {slot}, not {least} to {most}/{state.capacity}"
                yield Violation("P4", f"{told_of(read)}: {text}")


def one_load(case: Case) -> Iterator[Violation]:
    """P3: under the lock one query at a time, and none that nobody needs."""
    turns = sorted(_turns(case), key=lambda turn: turn.load.began)
    for scope in {turn.scope for turn in turns}:
        for one, other in pairwise(turn for turn in turns if turn.scope == scope):
            if other.load.began < one.busy_until:
                text = f"while {told_of(one.load)} ran under the lock"
                yield Violation("P3", f"{told_of(other.load)}: {text}")
            elif _was_needless(case, one, other):
                text = f"nothing had changed since {told_of(one.load)}"
                yield Violation("P3", f"{told_of(other.load)}: {text}")


@dataclass(frozen=True, slots=True)
class Turn:
    """A query by who had the lock.

    Attributes:
        reader: The read that it was for.
        lock: When the lock was granted.
        load: The query.
        release: When the lock was given back; None: it was not.
        busy_until: Until when it is certain that it ran, and had the lock.
    """

    reader: Call
    lock: Call
    load: Call
    release: Call | None
    busy_until: float

    @property
    def scope(self) -> str | None:
        """Of which list it was."""
        scope: str | None = self.load.asked["scope"]
        return scope


def _turns(case: Case) -> Iterator[Turn]:
    for reader in case.by_kind["read"]:
        inner = case.inside[reader.process, reader.number]
        for lock in inner:
            if not (lock.what == "lock" and lock.returned and lock.came["granted"]):
                continue
            release = _first(inner, "release", lock.ended)
            load = _first(inner, "load", lock.ended)
            if load is None or (release is not None and load.began > release.began):
                continue
            ran_until = load.ended if load.ended < math.inf else case.last_sign[load.process]
            has_lock_until = lock.began + case.terms.lock_ttl - SLACK
            if load.began < has_lock_until:
                yield Turn(reader, lock, load, release, min(ran_until, has_lock_until))


def _first(calls: Sequence[Call], what: str, since: float) -> Call | None:
    found = (call for call in calls if call.what == what and call.began >= since)
    return min(found, key=lambda call: call.began, default=None)


def _was_needless(case: Case, one: Turn, other: Turn) -> bool:
    """Whether what the first has loaded was there, and fresh, when the other one loaded."""
    release, reads = one.release, (one.reader, other.reader)
    if release is None or other.lock.began < release.began or not one.load.returned:
        return False
    if not all(read.returned and read.came["in_touch"] for read in reads):
        return False
    if one.reader.came["source"] != "loaded":
        return False
    ends = one.lock.ended + case.terms.ttl
    if one.load.came["valid_for"] is not None:
        changes_in = max(one.load.came["valid_for"], case.terms.min_ttl)
        ends = min(ends, one.load.ended + changes_in)
    if other.load.began > ends - SLACK:
        return False
    return not case.may_have_cleared(one.scope, one.lock.began, other.load.began)


def untroubled(case: Case) -> Iterator[Violation]:
    """P4: nothing but the database makes a read raise."""
    for read in case.by_kind["read"]:
        if "raised" in read.came and not _failed(case, read):
            yield Violation("P4", f"{told_of(read)}: raised {read.came['raised']}")


def said(case: Case) -> Iterator[Violation]:
    """P5: who goes past the lock had to, and says so."""
    longest = case.terms.ttl + case.terms.stale_ttl + SLACK
    for read in case.reads:
        source = read.came["source"]
        if source == "stale" and read.came["age"] > longest + read.ended - read.began:
            yield Violation("P5", f"{told_of(read)}: is {read.came['age']} s old")
        if source not in ("stale", "direct") or not read.came["in_touch"]:
            continue
        may_be = _was_refused(case, read)
        if source == "stale":
            may_be = may_be or _failed(case, read) or _has_waited(case, read)
        if not may_be:
            yield Violation("P5", f"{told_of(read)}: there was no need to go past the lock")


def refused(case: Case) -> Iterator[Violation]:
    """P5: a lock that cannot be had is one that somebody has."""
    asked: dict[str | None, list[Call]] = defaultdict(list)
    for lock in case.by_kind["lock"]:
        asked[lock.asked["scope"]].append(lock)
    timelines = {scope: Timeline(calls) for scope, calls in asked.items()}
    for lock in case.by_kind["lock"]:
        if not lock.returned or lock.came["granted"]:
            continue
        # Whoever may have it was answered so long ago, at most.
        since = lock.began - case.terms.lock_ttl - AFTERLIFE
        others = timelines[lock.asked["scope"]].during(since, lock.ended)
        if not any(_may_have(case, other, lock) for other in others):
            yield Violation("P5", f"{told_of(lock)}: it was refused, and nobody had it")


def _may_have(case: Case, other: Call, lock: Call) -> bool:
    """Whether somebody who asked for a lock may have had it when another one did."""
    if other is lock or (other.returned and not other.came["granted"]):
        return False
    answered = other.ended
    if not other.returned:  # the server may have granted it all the same, and later
        answered = min(answered, case.death.get(other.process, math.inf)) + AFTERLIFE
    if answered + case.terms.lock_ttl + SLACK < lock.began:
        return False
    inner = () if other.within is None else case.inside[other.process, other.within]
    release = _first(inner, "release", other.ended)
    is_over = release is not None and release.came.get("was_held")
    return release is None or not is_over or release.ended >= lock.began


def _others_began(case: Case, read: Call) -> float:
    """When the first began of those whose flight this read may have been on."""
    others = case.during(read.process, "read", read.began, read.ended)
    return min(other.began for other in others)


def _was_refused(case: Case, read: Call) -> bool:
    since = _others_began(case, read)
    asked = case.during(read.process, "lock", since, read.ended)
    return any(
        lock.returned and not lock.came["granted"]
        for lock in asked
        if lock.asked["scope"] == read.asked["scope"]
    )


def _failed(case: Case, read: Call) -> bool:
    since = _others_began(case, read)
    loads = case.during(read.process, "load", since, read.ended)
    return any("raised" in load.came for load in loads)


def _has_waited(case: Case, read: Call) -> bool:
    """Whether another read of this process was at it."""
    others = case.during(read.process, "read", read.began, read.ended)
    return any(
        other.ended == math.inf
        or any(call.what in ("lock", "load") for call in case.inside[other.process, other.number])
        for other in others
        if other is not read and other.asked["scope"] == read.asked["scope"]
    )


def booked(case: Case) -> Iterator[Violation]:
    """P6: what has returned is in the books."""
    yield from case.lost


def once(case: Case) -> Iterator[Violation]:
    """P7: by what was answered, and by what was written."""
    owners = {entry.hold: entry.owner for entry in case.books.written.values()}
    made = Counter(
        (entry.owner, entry.slot)
        for (_, state), entry in case.books.written.items()
        if state == "held"
    )
    for (owner, key), calls in _by_key(case).items():
        answers = [call for call in calls if call.returned]
        if sum(not call.came["replayed"] for call in answers) > 1:
            yield Violation("P7", f"key {key} of {owner} was new to more than one")
        for call in answers:
            if any(owners.get(hold) != owner for hold in call.came["holds"]):
                yield Violation("P7", f"{told_of(call)}: answered with a hold of another one")
        for slot in case.terms.slots:
            if made[owner, slot] > 1:
                text = f"has made {made[owner, slot]} holds on slot {slot}"
                yield Violation("P7", f"key {key} of {owner} {text}")
    yield from _moved_once(case)


def _moved_once(case: Case) -> Iterator[Violation]:
    """What was no replay was done by this call, and by no other one."""
    done: Counter[tuple[str, str]] = Counter()
    for call in case.calls:
        if call.what not in ("create", "confirm", "cancel") or not is_change(call):
            continue
        if case.written_by(call) and not case.has_done(call):
            yield Violation("P7", f"{told_of(call)}: had been done before, and is no replay")
        done[call.asked.get("hold", ""), call.what] += call.what != "create"
    for (hold, what), times in done.items():
        if times > 1:
            yield Violation("P7", f"hold {hold}: {times} times {what} was no replay")


def _by_key(case: Case) -> dict[tuple[str, str], list[Call]]:
    calls: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in case.by_kind["create"]:
        if call.asked["key"] is not None:
            calls[call.asked["owner"], call.asked["key"]].append(call)
    return calls


def hooked(case: Case) -> Iterator[Violation]:
    """P8: after the commit, once for each scope, and for nothing else."""
    shown = {(each.call.process, each.call.number): each.shown for each in case.changes}
    for call in case.calls:
        if call.what not in OPERATIONS or call.ended == math.inf:
            continue
        told = Counter(each.asked["scope"] for each in case.told(call))
        if may_have_committed(case, call):
            if max(told.values(), default=0) > 1:
                yield Violation("P8", f"{told_of(call)}: told {dict(told)}")
            continue
        wanted = Counter(case.scopes(shown.get((call.process, call.number), {})))
        if call.what == "expire_due" and is_change(call):  # it does not say what has expired
            wanted = Counter(set(told) or {"one at least"})
        if told != wanted:
            yield Violation("P8", f"{told_of(call)}: told {dict(told)}, not {dict(wanted)}")


def may_have_committed(case: Case, call: Call) -> bool:
    """Whether a commit of this may be one whose answer was lost, though it has changed nothing."""
    if call.came.get("raised") == "BackendError":
        return True
    return bool(call.came.get("replayed")) and call.what != "extend" and case.has_done(call)


def after_commit(case: Case) -> Iterator[Violation]:
    """P8: who looks at the books after the hook was called sees the change."""
    begins = [look.began for look in case.looks]
    for change in case.changes:
        for told in case.told(change.call):
            next_look = bisect_left(begins, told.began)
            if next_look == len(begins):
                continue
            counts = counts_of(case.looks[next_look])
            if any(counts[slot] < count for slot, count in change.shown.items()):
                yield Violation("P8", f"{told_of(change.call)}: told before it was committed")


OPERATIONS = ("create", "confirm", "cancel", "extend", "expire_due", "set_capacity")

RULES: Sequence[Callable[[Case], Iterator[Violation]]] = (
    fresh,
    bounded,
    true,
    one_load,
    untroubled,
    said,
    refused,
    booked,
    once,
    hooked,
    after_commit,
)
