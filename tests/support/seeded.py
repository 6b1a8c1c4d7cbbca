"""Seeded violations: what one stroke makes of a history that is true, and parts that do it at work.

The checker has to name the promise that is broken: else it is the checker that is broken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from slotcache import Availability
from slotcache.protocols import Entry as CachedList
from slotcache.protocols import Miss
from slotcache.redis import RedisCache
from tests.support.books import read_books
from tests.support.case import Case, Change, is_change, shown_by
from tests.support.checker import OPERATIONS, may_have_committed
from tests.support.history import COUNTED, Call, History

Stroke = Callable[[Case, History], Iterator[History]]
"""Returns each history that it can make: no one, where there is nothing to be broken."""

_EPSILON = 1e-6


def with_call(history: History, old: Call, new: Call) -> History:
    """The same history, but for one call."""
    return replace(history, calls=[new if call is old else call for call in history.calls])


def came(history: History, call: Call, **other: Any) -> History:
    """The same history, where something else came of a call."""
    return with_call(history, call, replace(call, came={**call.came, **other}))


def without(history: History, gone: Call) -> History:
    """The same history without one call."""
    return replace(history, calls=[call for call in history.calls if call is not gone])


def added(history: History, *more: Call) -> History:
    """The same history with more calls."""
    return replace(history, calls=sorted([*history.calls, *more], key=lambda call: call.began))


def _rows_at(history: History, read: Call, slot: int, count: int) -> list[list[int]]:
    """What a read has shown, but one slot as it was at another count."""
    state = read_books(history).states[slot][count]
    free = state.free(history.terms.claim, math.inf)
    before = {slot: [slot, state.capacity, free], slot + COUNTED: [slot + COUNTED, count, count]}
    return [before.get(row[0], row) for row in read.came["list"]]


def _with_old_list(
    case: Case, history: History, change: Change, read: Call, **other: Any
) -> Iterator[History]:
    """Let a read show a slot as it was before a change."""
    for slot, count in change.shown.items():
        if slot in shown_by(read):
            before = max(each for each in case.books.states[slot] if each < count)
            rows = _rows_at(history, read, slot, before)
            yield came(history, read, list=rows, **other)


def _pairs(case: Case, sources: tuple[str, ...]) -> Iterator[tuple[Change, Call]]:
    """Changes, and reads that began after them."""
    for change in case.changes:
        for read in case.reads:
            if read.began >= change.call.ended and read.came["source"] in sources:
                yield change, read


def shows_old_list(case: Case, history: History) -> Iterator[History]:
    """P1: a list from before a change that was acknowledged, and cleared."""
    for change, read in _pairs(case, ("cached", "loaded", "direct")):
        if change.delivered <= change.call.ended:
            yield from _with_old_list(case, history, change, read)


def forgets_own_change(case: Case, history: History) -> Iterator[History]:
    """P1: a process that is cut off shows a list from before its own change."""
    for change, read in _pairs(case, ("cached", "loaded", "direct")):
        if change.delivered > read.began and read.process == change.call.process:
            yield from _with_old_list(case, history, change, read)


def is_too_old(_: Case, history: History) -> Iterator[History]:
    """P2: an answer that says so itself."""
    for read in history.calls:
        if read.came.get("source") in ("cached", "loaded", "direct"):
            age = history.terms.ttl + read.ended - read.began + 0.1
            yield came(history, read, age=age)


def ignores_a_commit(case: Case, history: History) -> Iterator[History]:
    """P2: a list from before a change that nobody was told of, a ttl ago."""
    for change, read in _pairs(case, ("cached", "loaded", "direct")):
        is_known = change.delivered <= read.began or read.process == change.call.process
        is_late = read.began > change.call.ended + history.terms.ttl + 0.1
        if is_late and not is_known:
            yield from _with_old_list(case, history, change, read)


def says_it_is_fresh(_: Case, history: History) -> Iterator[History]:
    """P2: a stale list that is not marked."""
    for read in history.calls:
        age = history.terms.ttl + read.ended - read.began + 0.1
        if read.came.get("source") == "stale" and read.came["age"] > age:
            yield came(history, read, source="cached")


def says_it_is_young(case: Case, history: History) -> Iterator[History]:
    """P2: a list that is older than it says."""
    for change, read in _pairs(case, ("cached", "stale")):
        if read.began > change.call.ended + 0.1:
            yield from _with_old_list(case, history, change, read, age=0.0)


def loads_twice_at_once(case: Case, history: History) -> Iterator[History]:
    """P3: somebody else has the same lock meanwhile, and queries."""
    for load in case.by_kind["load"]:
        began = load.began + _EPSILON
        if load.returned and load.ended - began > _EPSILON and _has_lock(case, load):
            yield added(history, *_turn(load.asked["scope"], began, load.ended))


def loads_for_nothing(case: Case, history: History) -> Iterator[History]:
    """P3: a query right after another one, though nothing has changed."""
    for read in case.reads:
        inner = {call.what: call for call in case.inside[read.process, read.number]}
        if read.came["source"] != "loaded" or not read.came["in_touch"] or "release" not in inner:
            continue
        scope, release = read.asked["scope"], inner["release"].ended
        valid_for, since = inner["load"].came["valid_for"], inner["lock"].began
        ends = [inner["lock"].ended + history.terms.ttl]
        ends += [] if valid_for is None else [inner["load"].ended + valid_for]
        if min(ends) > release + 0.05 and not case.may_have_cleared(scope, since, release + 0.01):
            began, ended = release + _EPSILON, release + 2 * _EPSILON
            needless, *rest = _turn(scope, began, ended)
            answer = {**read.came, "age": 0.0}
            yield added(history, replace(needless, ended=ended, came=answer), *rest)


def _has_lock(case: Case, load: Call) -> bool:
    inner = [] if load.within is None else case.inside[load.process, load.within]
    return any(call.what == "lock" and call.came.get("granted") for call in inner)


def _turn(scope: str | None, began: float, ended: float) -> list[Call]:
    """Somebody takes a lock and queries; whatever comes of that, nobody has noted it."""
    asked = {"scope": scope}
    lock = Call("other", 2, "lock", asked, 1, began, began, {"granted": True})
    load = Call("other", 3, "load", asked, 1, began, ended, {"valid_for": None})
    return [Call("other", 1, "read", asked, None, began), lock, load]


def raises(_: Case, history: History) -> Iterator[History]:
    """P4: a read that fails because of the cache."""
    for read in history.calls:
        if read.came.get("source") == "cached":
            yield with_call(history, read, replace(read, came={"raised": "ConnectionError"}))


def shows_what_never_was(_: Case, history: History) -> Iterator[History]:
    """P4: a list with a wrong number."""
    for read in history.calls:
        for row in read.came.get("list", ()):
            if row[0] < COUNTED:
                wrong = [row[0], row[1] + 1, row[2] + 1]
                rows = [wrong if each is row else each for each in read.came["list"]]
                yield came(history, read, list=rows)


def leaves_a_slot_out(_: Case, history: History) -> Iterator[History]:
    """P4: a list that is not whole."""
    for read in history.calls:
        if rows := read.came.get("list"):
            yield came(history, read, list=rows[1:])


def cries_stale(case: Case, history: History) -> Iterator[History]:
    """P5: a list that is marked although nobody had the lock."""
    for read in case.reads:
        others = case.during(read.process, "read", read.began, read.ended)
        if read.came["source"] == "cached" and read.came["in_touch"] and [*others] == [read]:
            yield came(history, read, source="stale")


def shows_what_was_cleared(case: Case, history: History) -> Iterator[History]:
    """P5: a stale list from before a clear."""
    for change, read in _pairs(case, ("stale",)):
        if change.delivered <= change.call.ended and read.came["in_touch"]:
            yield from _with_old_list(case, history, change, read)


def is_stale_for_ever(_: Case, history: History) -> Iterator[History]:
    """P5: a stale list whose time is over."""
    for read in history.calls:
        if read.came.get("source") == "stale":
            age = history.terms.ttl + history.terms.stale_ttl + read.ended - read.began + 0.1
            yield came(history, read, age=age)


def refuses_a_free_lock(case: Case, history: History) -> Iterator[History]:
    """P5: a lock that nobody has, and nobody gets."""
    began = min((call.began for call in history.calls), default=0.0) - 1.0
    asked = {"scope": None}
    lock = Call("other", 1, "lock", asked, None, began, began + 0.1, {"granted": False})
    yield added(history, lock)


def sells_one_too_many(_: Case, history: History) -> Iterator[History]:
    """P6: a hold for more than there is."""
    for entry in history.books:
        if entry.state == "held":
            sold = replace(entry, quantity=entry.capacity + 1)
            yield replace(
                history, books=[sold if each is entry else each for each in history.books]
            )


def loses_a_place(_: Case, history: History) -> Iterator[History]:
    """P6: a place that is neither free nor sold."""
    for entry in history.books:
        if entry.remaining > 0:
            less = replace(entry, remaining=entry.remaining - 1)
            yield replace(
                history, books=[less if each is entry else each for each in history.books]
            )


def loses_what_was_sold(_: Case, history: History) -> Iterator[History]:
    """P6: a confirmed hold that is gone at the end."""
    for hold, state in history.holds.items():
        if state == "confirmed":
            holds = {each: its for each, its in history.holds.items() if each != hold}
            yield replace(history, holds=holds)


def answers_and_does_nothing(_: Case, history: History) -> Iterator[History]:
    """P6: a hold that was answered, and never made."""
    for call in history.calls:
        if call.what == "create" and is_change(call):
            yield came(history, call, holds=["another hold"])


def makes_two_by_one_key(_: Case, history: History) -> Iterator[History]:
    """P7: a replay that is answered with another hold."""
    for call in history.calls:
        if call.what == "create" and call.came.get("replayed"):
            yield came(history, call, holds=["another hold"])


def does_it_again(case: Case, history: History) -> Iterator[History]:
    """P7: a replay that has made, confirmed or cancelled a hold."""
    for call in history.calls:
        if call.came.get("replayed") and call.what in ("create", "confirm", "cancel"):
            again = replace(call, came={**call.came, "replayed": False})
            since, _ = case.database_time(call.began)
            if all(entry.at < since for entry in case.written_by(again)):
                yield with_call(history, call, again)


def revives_the_dead(_: Case, history: History) -> Iterator[History]:
    """P7: what was cancelled or has expired is written once more."""
    for entry in history.books:
        if entry.state in ("cancelled", "expired"):
            last = max(each.count for each in history.books if each.slot == entry.slot)
            again = replace(entry, count=last + 1, transaction=0, state="confirmed")
            yield replace(history, books=[*history.books, again])


def tells_nobody(case: Case, history: History) -> Iterator[History]:
    """P8: a clear that was never told."""
    for change in case.changes:
        for told in case.told(change.call):
            yield without(history, told)


def tells_twice(case: Case, history: History) -> Iterator[History]:
    """P8: a clear that was told again."""
    for change in case.changes:
        for told in case.told(change.call):
            yield added(history, replace(told, number=0))


def tells_of_nothing(case: Case, history: History) -> Iterator[History]:
    """P8: a clear for a refusal, or a replay."""
    for call in history.calls:
        is_over = call.what in OPERATIONS and call.ended < math.inf
        if is_over and not is_change(call) and not may_have_committed(case, call):
            told = {"delivered": True}
            asked = {"scope": "north"}
            yield added(
                history,
                Call(call.process, 0, "told", asked, call.number, call.began, call.ended, told),
            )


def tells_too_soon(case: Case, history: History) -> Iterator[History]:
    """P8: a clear before the commit, which somebody has seen who looked at the books."""
    for change in case.changes:
        for told in case.told(change.call):
            look = next((each for each in case.looks if each.began >= told.began), None)
            if look is not None:
                counts = {str(slot): count - 1 for slot, count in change.shown.items()}
                yield came(history, look, counts={**look.came["counts"], **counts})


STROKES: dict[str, list[Stroke]] = {
    "P1": [shows_old_list, forgets_own_change],
    "P2": [is_too_old, ignores_a_commit, says_it_is_fresh, says_it_is_young],
    "P3": [loads_twice_at_once, loads_for_nothing],
    "P4": [raises, shows_what_never_was, leaves_a_slot_out],
    "P5": [cries_stale, shows_what_was_cleared, is_stale_for_ever, refuses_a_free_lock],
    "P6": [sells_one_too_many, loses_a_place, loses_what_was_sold, answers_and_does_nothing],
    "P7": [makes_two_by_one_key, does_it_again, revives_the_dead],
    "P8": [tells_nobody, tells_twice, tells_of_nothing, tells_too_soon],
}
"""By promise: how it is broken."""


class ClearsNothing(RedisCache):
    """Answers that it has cleared a list, and has not."""

    def clear(self, key: str) -> None:
        self.look(key)

    def clear_all(self) -> None:
        self.look("")


class FillsLate(RedisCache):
    """Stores what was loaded, whatever was cleared since, as who knows no generations.

    That takes it some time: so the race is one that happens.
    """

    def fill(
        self, key: str, miss: Miss, availability: Availability, **lives: Any
    ) -> CachedList | None:
        time.sleep(0.01)
        return super().fill(key, self.look(key), availability, **lives)
