"""What happened in one schedule, for people: as columns of text, and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from slotcache.availability import Availability
from slotcache.protocols import Entry, Loaded, Lock, Miss
from slotcache.testing.picture import picture
from slotcache.testing.scenario import Choice

__all__ = ["Event", "Timeline"]


class Event(NamedTuple):
    """Something that happened.

    Attributes:
        who: The actor, or "world".
        what: What it did.
        answer: What it got to know by that, as a person reads it.
    """

    who: str
    what: str
    answer: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.answer}" if self.answer else self.what


@dataclass(frozen=True)
class Timeline:
    """What happened in one schedule; as a text, a column for each actor.

    Attributes:
        schedule: Who went when, and which fault struck: `replay` runs it again.
        events: What happened, in that order.
        broken: The promise that it broke, and how; None: it broke none.
    """

    schedule: tuple[Choice, ...]
    events: tuple[Event, ...]
    broken: str | None = None

    def __str__(self) -> str:
        columns = {who: [who] for who in self.actors()}
        for event in self.events:
            for who, column in columns.items():
                column.append(str(event) if who == event.who else "")
        widths = [max(map(len, column)) for column in columns.values()]
        rows = [_row(row, widths) for row in zip(*columns.values(), strict=True)]
        rows.insert(1, _row(("-" * width for width in widths), widths))
        return "\n".join(rows if self.broken is None else [*rows, f"=> {self.broken}"])

    def svg(self) -> str:
        """Return it as a picture, for a page or a browser: a sequence diagram."""
        return picture(self)

    def actors(self) -> list[str]:
        """Return who did anything, in the order of their first deeds."""
        return list(dict.fromkeys(event.who for event in self.events))


_PLAIN: dict[tuple[str, object], str] = {
    ("alive", False): "no",
    ("alive", True): "yes",
    ("fill", None): "not fresh",
    ("lock", None): "held by another",
    ("release", False): "no longer held",
    ("wait", False): "not yet",
    ("wait", True): "over",
}
"""What an answer means that is no value of its own, by what was done."""


def said(what: str, answer: object, changes: Callable[[Availability], int]) -> str:
    """Return an answer as a person reads it: a list goes by how many changes it shows."""
    if isinstance(answer, Entry):
        return f"fresh, shows change {changes(answer.availability)}"
    if isinstance(answer, Loaded):
        return f"shows change {changes(answer.availability)}"
    if isinstance(answer, Miss):
        return _missed(answer, changes)
    if isinstance(answer, Lock):
        return "granted"
    if what == "begins to read":
        assert isinstance(answer, tuple)
        return f"to show change {max(answer)}"
    if what == "read":
        assert isinstance(answer, tuple)
        source, shown = answer
        return f"{source}, shows change {shown}"
    if what == "commit":
        return f"change {answer}"
    return _PLAIN.get((what, answer), "") if isinstance(answer, Hashable) else ""


def _missed(miss: Miss, changes: Callable[[Availability], int]) -> str:
    """Return what a miss tells: the generation goes by its clears."""
    if miss.generation is None:
        clears = "unknown"
    else:
        clears = f"{miss.generation.clears} clear{'s' * (miss.generation.clears != 1)}"
    kept = "" if miss.copy is None else f", kept change {changes(miss.copy.availability)}"
    return f"miss, {clears}{kept}"


def _row(cells: Iterable[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
