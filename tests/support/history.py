"""Histories: what several processes did, written down as they did it, for a checker to judge.

A process writes a line when an operation begins and one when it ends, each in one piece and past
all buffers of its own: who is killed has lost the line that it was about to write, at most.
Instants are those of CLOCK_MONOTONIC, which all processes of a host share. What the database did
is told by the database, in rows that a trigger writes: its books.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COUNTED = 1000
"""What is added to the number of a slot: that slot counts the changes of the other one.

It has as many places as there were changes. It is listed as any other, so each list tells which
changes it shows, and which it does not.
"""

_within: ContextVar[int | None] = ContextVar("within", default=None)


WHAT = {
    "read": "(scope): source, age, list (slot, capacity, remaining), in_touch (with the cache)",
    "create": "(places, owner, key): holds, replayed",
    "confirm": "(hold): state, replayed",
    "cancel": "(hold): state, replayed",
    "extend": "(hold): replayed",
    "expire_due": "(): count",
    "set_capacity": "(slot, capacity), which is never what it is already",
    "told": "(scope), by the manager, to clear the lists: delivered",
    "load": "(scope), a query: valid_for",
    "lock": "(scope): granted",
    "release": "(scope): was_held, which is False as well if nobody answered",
    "health": "(): undelivered, how many clears are",
    "look": "(), at the books from outside: counts (of each slot), now (by the database's clock)",
    "kill": "(victim)",
}
"""What is done, (with what): and what comes back."""


@dataclass(frozen=True, slots=True)
class Call:
    """One operation of one process.

    Attributes:
        process: Which process.
        number: Which of its operations.
        what: What was done: see `WHAT`.
        asked: With what.
        within: Inside of which other one.
        began: An instant before it did anything.
        ended: An instant after it had returned; infinite: it never did.
        came: What came back; "raised" is the name of an exception.
    """

    process: str
    number: int
    what: str
    asked: Mapping[str, Any]
    within: int | None
    began: float
    ended: float = math.inf
    came: Mapping[str, Any] = field(default_factory=dict)

    @property
    def returned(self) -> bool:
        """Whether it has ended, and well."""
        return self.ended < math.inf and "raised" not in self.came


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the books: a slot or a hold was written.

    Attributes:
        slot: Whose, of the slot.
        count: How many rows there are of this slot by now.
        transaction: In which transaction.
        at: When, by the clock of the database.
        who: Which process.
        capacity: How many places the slot has.
        remaining: What its column says.
        hold: The hold, if that was written.
        owner: Whose it is.
        quantity: How many places it is for.
        state: What it is now.
        created: When it was made.
        expires: When it is due.
    """

    slot: int
    count: int
    transaction: int
    at: float
    who: str
    capacity: int
    remaining: int
    hold: str | None = None
    owner: str | None = None
    quantity: int = 0
    state: str | None = None
    created: float = 0.0
    expires: float = 0.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a history has to be judged by.

    Attributes:
        slots: By the number of a slot: its scope, and its places at the beginning.
        claim: How the column of places is kept.
        ttl: As of the policy of all services, and so are the others.
    """

    slots: Mapping[int, tuple[str, int]]
    claim: str
    ttl: float
    stale_ttl: float
    min_ttl: float
    lock_ttl: float

    def listed(self, scope: str | None) -> list[int]:
        """Which slots a list has."""
        return [slot for slot, (its, _) in self.slots.items() if scope in (None, its)]


@dataclass(frozen=True, slots=True)
class History:
    """All that was done.

    Attributes:
        terms: What it is judged by.
        calls: What the processes wrote down.
        books: What the database wrote down.
        holds: The state of each hold at the end.
        remaining: The column of each slot at the end.
    """

    terms: Terms
    calls: Sequence[Call]
    books: Sequence[Entry]
    holds: Mapping[str, str]
    remaining: Mapping[int, int]


class Journal:
    """Where one process writes down what it does.

    Args:
        path: A file, which is named like the process.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._numbers = itertools.count(1)

    @contextmanager
    def call(self, what: str, **asked: Any) -> Iterator[dict[str, Any]]:
        """Write down that this begins, and how it has ended: what is put into the dict."""
        number = next(self._numbers)
        came: dict[str, Any] = {}
        self._write("+", number, time.monotonic(), what, _within.get(), asked)
        token = _within.set(number)
        try:
            yield came
        except BaseException as error:
            came["raised"] = type(error).__name__
            raise
        finally:
            ended = time.monotonic()
            _within.reset(token)
            self._write("-", number, ended, came)

    def _write(self, *event: Any) -> None:
        os.write(self._file, json.dumps(event, separators=(",", ":")).encode() + b"\n")


def read_journals(folder: Path) -> list[Call]:
    """Return what all processes have written down, by the instants at which it began."""
    calls = [call for path in sorted(folder.iterdir()) for call in _read_journal(path)]
    return sorted(calls, key=lambda call: call.began)


def _read_journal(path: Path) -> Iterator[Call]:
    begun: dict[int, list[Any]] = {}
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        sign, number, *event = json.loads(line)
        if sign == "+":
            begun[number] = event
            continue
        began, what, within, asked = begun.pop(number)
        yield Call(path.name, number, what, asked, within, began, *event)
    for number, (began, what, within, asked) in begun.items():
        yield Call(path.name, number, what, asked, within, began)
