"""Histories of a town that is told, not run: a tiny model that keeps all promises.

Numbers decide who goes next and what each of them does. Whatever they are, what comes of it is
true: so the checker has to accept it, and to refuse what one stroke makes of it (`seeded.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.history import COUNTED, Call, Entry, History, Terms

TERMS = Terms(
    {1: ("north", 4), 2: ("south", 3)}, "counted", ttl=0.6, stale_ttl=1.0, min_ttl=0.0, lock_ttl=9.0
)
STEP = 0.01
"""Seconds from one step of anybody to the next."""

DATABASE_CLOCK = 1000.0
LIFE = 1.0

Steps = Generator[None, None, None]


@dataclass
class _Slot:
    capacity: int
    remaining: int
    count: int = 0
    held: dict[str, tuple[int, float]] = field(default_factory=dict)

    def free(self, now: float) -> int:
        return self.remaining - self.promised(now)

    def promised(self, now: float) -> int:
        return sum(quantity for quantity, expires in self.held.values() if expires > now)


@dataclass
class _Copy:
    rows: list[list[int]]
    clears: int
    since: float
    until: float


class Tale:
    """The model: a table, a cache, a lock for each list, and processes of which one is cut off."""

    def __init__(self, choices: Sequence[int]) -> None:
        self._choices = iter(choices)
        self._now = 0.0
        self._calls: list[Call] = []
        self._open: dict[int, Call] = {}
        self._slots = {slot: _Slot(its, its) for slot, (_, its) in TERMS.slots.items()}
        self._holds: dict[str, tuple[int, str, str]] = {}
        self._keys: dict[str, str] = {}
        self._books: list[Entry] = []
        self._copies: dict[str | None, _Copy] = {}
        self._clears: dict[str | None, int] = dict.fromkeys((None, "north", "south"), 0)
        self._locked: dict[str | None, str] = {}
        self._is_cut_off = False
        self._owed: set[str] = set()
        self._lives = {"good": 1, "cut off": 1}
        self._running: list[tuple[str, str, Steps]] = []

    def told(self) -> History:
        """Tell it to the end."""
        for choice in self._choices:
            if choice % 3 and self._running:
                self._go_on(choice // 3 % len(self._running))
            else:
                self._begin(choice // 3)
        while self._running:
            self._go_on(0)
        self._look()
        calls = [*self._calls, *self._open.values()]
        states = {hold: state for hold, (_, _, state) in self._holds.items()}
        remaining = {slot: its.remaining for slot, its in self._slots.items()}
        return History(
            TERMS, sorted(calls, key=lambda call: call.began), self._books, states, remaining
        )

    def _begin(self, choice: int) -> None:
        kind = "cut off" if choice % 2 else "good"
        process = f"{kind} {self._lives[kind]}"
        choice //= 2
        acts: Sequence[Callable[[str, int], Steps | None]] = (
            *(self._read,) * 9,
            *(self._create,) * 2,
            *(self._move,) * 2,
            self._set_capacity,
            self._sweep,
            self._happen,
        )
        act = acts[choice % len(acts)]
        if act.__name__ in ("_sweep", "_set_capacity") and self._is_at(process, act.__name__):
            return
        steps = act(process, choice // len(acts))
        if steps is not None:
            self._running.append((process, act.__name__, steps))
            self._go_on(len(self._running) - 1)

    def _is_at(self, process: str, act: str) -> bool:
        """Whether a process does this already: what has no name it does one after the other."""
        return any((process, act) == running[:2] for running in self._running)

    def _go_on(self, index: int) -> None:
        self._tick()
        try:
            next(self._running[index][2])
        except StopIteration:
            del self._running[index]

    def _tick(self) -> float:
        self._now += STEP
        return self._now

    @contextmanager
    def _call(
        self, process: str, what: str, within: int | None = None, **asked: Any
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        number = len(self._calls) + len(self._open) + 1
        came: dict[str, Any] = {}
        self._open[number] = Call(process, number, what, asked, within, self._tick())
        yield number, came
        self._calls.append(replace(self._open.pop(number), ended=self._tick(), came=came))

    def _happen(self, process: str, choice: int) -> None:
        """Something that is done to processes, in no time."""
        happening = (self._look, self._cut, self._mend, lambda: self._kill(process))
        happening[choice % len(happening)]()

    def _look(self) -> None:
        with self._call("town", "look") as (_, came):
            came["counts"] = {str(slot): its.count for slot, its in self._slots.items()}
            came["now"] = self._now + DATABASE_CLOCK

    def _cut(self) -> None:
        self._is_cut_off = True

    def _mend(self) -> None:
        self._is_cut_off = False
        for scope in self._owed:
            self._clear(scope)
        self._owed.clear()
        with self._call(f"cut off {self._lives['cut off']}", "health") as (_, came):
            came["undelivered"] = 0

    def _kill(self, process: str) -> None:
        with self._call("town", "kill", victim=process):
            self._running = [each for each in self._running if each[0] != process]
            self._locked = {scope: who for scope, who in self._locked.items() if who != process}
        kind = process.rpartition(" ")[0]
        self._lives[kind] += 1
        if kind == "cut off":
            self._owed.clear()

    def _read(self, process: str, choice: int) -> Steps:
        scope = (None, "north", "south")[choice % 3]
        with self._call(process, "read", scope=scope) as (number, came):
            if process.startswith("cut off") and (self._is_cut_off or self._owed):
                yield from self._past(process, number, scope, came)
                came["in_touch"] = False
                return
            came["in_touch"] = not process.startswith("cut off")
            seen = self._clears[scope]
            copy = self._copies.get(scope)
            if copy is not None and copy.clears == seen and self._now < copy.until:
                self._answer(came, "cached", copy)
            elif scope not in self._locked:
                yield from self._lead(process, number, scope, came)
            else:
                with self._call(process, "lock", number, scope=scope) as (_, asked):
                    asked["granted"] = False
                if copy is None or copy.clears < seen or self._now > copy.until + TERMS.stale_ttl:
                    yield from self._past(process, number, scope, came)
                else:
                    self._answer(came, "stale", copy)
            yield

    def _lead(self, process: str, number: int, scope: str | None, came: dict[str, Any]) -> Steps:
        self._locked[scope] = process
        with self._call(process, "lock", number, scope=scope) as (_, asked):
            asked["granted"] = True
        yield
        since, clears = self._now, self._clears[scope]
        with self._call(process, "load", number, scope=scope) as (_, loaded):
            yield
            rows, loaded["valid_for"] = self._load(scope)
            yield
        until = since + TERMS.ttl
        if loaded["valid_for"] is not None:
            until = min(until, self._now + loaded["valid_for"])
        filled = _Copy(rows, clears, since, until)
        kept = self._copies.get(scope)
        if kept is None or kept.clears <= clears:
            self._copies[scope] = filled
        with self._call(process, "release", number, scope=scope) as (_, released):
            released["was_held"] = self._locked.pop(scope) == process
        self._answer(came, "loaded", filled)

    def _past(self, process: str, number: int, scope: str | None, came: dict[str, Any]) -> Steps:
        since = self._now
        with self._call(process, "load", number, scope=scope) as (_, loaded):
            yield
            rows, loaded["valid_for"] = self._load(scope)
            yield
        self._answer(came, "direct", _Copy(rows, 0, since, since))

    def _load(self, scope: str | None) -> tuple[list[list[int]], float | None]:
        rows, ends = [], []
        for slot in TERMS.listed(scope):
            its = self._slots[slot]
            rows.append([slot, its.capacity, its.free(self._now)])
            rows.append([slot + COUNTED, its.count, its.count])
            ends += [expires for _, expires in its.held.values() if expires > self._now]
        return rows, (min(ends) - self._now if ends else None)

    def _answer(self, came: dict[str, Any], source: str, copy: _Copy) -> None:
        came.update(source=source, age=self._now - copy.since, list=copy.rows)

    def _create(self, process: str, choice: int) -> Steps:
        slot, quantity = choice % 2 + 1, choice // 2 % 2 + 1
        key = ("form", "form", None)[choice // 4 % 3]
        owner = f"{slot} {quantity} {choice // 12 % 4}" if key else f"nobody {len(self._books)}"
        places = {str(slot): quantity}
        with self._call(process, "create", places=places, owner=owner, key=key) as (number, came):
            yield
            if key is not None and owner in self._keys:
                came.update(holds=[self._keys[owner]], replayed=True)
                return
            its, hold = self._slots[slot], f"hold {len(self._books)}"
            if its.free(self._now) < quantity:
                came["raised"] = "SlotFull"
                return
            expires = self._now + LIFE
            its.held[hold] = quantity, expires
            self._holds[hold] = slot, owner, "held"
            if key is not None:
                self._keys[owner] = hold
            self._book(process, slot, hold, quantity, expires)
            yield from self._tell(process, number, slot)
            came.update(holds=[hold], replayed=False)

    def _move(self, process: str, choice: int) -> Steps | None:
        if not self._holds:
            return None
        hold = list(self._holds)[choice // 2 % len(self._holds)]
        return self._moved(process, ("confirm", "cancel")[choice % 2], hold)

    def _moved(self, process: str, what: str, hold: str) -> Steps:
        with self._call(process, what, hold=hold) as (number, came):
            yield
            slot, _, before = self._holds[hold]
            quantity, expires = self._slots[slot].held.get(hold, (0, 0.0))
            after = {"confirm": "confirmed", "cancel": "cancelled"}[what]
            came["replayed"] = before == after
            came["state"] = after
            if before == after:
                return
            if before != "held" or expires <= self._now:
                came["raised"] = "HoldExpired"
                return
            self._slots[slot].held.pop(hold)
            if what == "confirm":
                self._slots[slot].remaining -= quantity
            self._write(process, slot, hold, quantity, after)
            yield from self._tell(process, number, slot)

    def _sweep(self, process: str, choice: int) -> Steps:
        slot = choice % 2 + 1
        with self._call(process, "expire_due") as (number, came):
            yield
            due = [
                (hold, quantity)
                for hold, (quantity, expires) in self._slots[slot].held.items()
                if expires <= self._now
            ]
            came["count"] = len(due[:1])
            for hold, quantity in due[:1]:
                self._slots[slot].held.pop(hold)
                self._write(process, slot, hold, quantity, "expired")
                yield from self._tell(process, number, slot)

    def _set_capacity(self, process: str, choice: int) -> Steps:
        slot, capacity = choice % 2 + 1, choice // 2 % 6 + 1
        its = self._slots[slot]
        with self._call(process, "set_capacity", slot=slot, capacity=capacity) as (number, came):
            yield
            sold = its.capacity - its.remaining
            if capacity < sold + its.promised(self._now) or capacity == its.capacity:
                came["raised"] = "CapacityTooLow"
                return
            its.capacity, its.remaining = capacity, capacity - sold
            self._book(process, slot)
            yield from self._tell(process, number, slot)

    def _tell(self, process: str, number: int, slot: int) -> Steps:
        """Call the hook, some time after the commit."""
        yield
        scope, _ = TERMS.slots[slot]
        with self._call(process, "told", number, scope=scope) as (_, came):
            yield
            came["delivered"] = not (self._is_cut_off and process.startswith("cut off"))
            if came["delivered"]:
                self._clear(scope)
            else:
                self._owed.add(scope)
        yield

    def _clear(self, scope: str) -> None:
        for each in (scope, None):
            copy = self._copies.get(each)
            if copy is not None and copy.clears == self._clears[each]:
                del self._copies[each]
            self._clears[each] += 1

    def _write(self, process: str, slot: int, hold: str, quantity: int, state: str) -> None:
        self._holds[hold] = (*self._holds[hold][:2], state)
        self._book(process, slot, hold, quantity)

    def _book(
        self,
        process: str,
        slot: int,
        hold: str | None = None,
        quantity: int = 0,
        expires: float = 0.0,
    ) -> None:
        its, now = self._slots[slot], self._now + DATABASE_CLOCK
        its.count += 1
        entry = Entry(
            slot, its.count, len(self._books) + 1, now, process, its.capacity, its.remaining
        )
        if hold is not None:
            _, owner, state = self._holds[hold]
            ends = expires + DATABASE_CLOCK
            entry = replace(
                entry,
                hold=hold,
                owner=owner,
                quantity=quantity,
                state=state,
                created=now,
                expires=ends,
            )
        self._books.append(entry)
