"""What the database wrote down of a run, gone through again: what each slot was at each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from tests.support.history import Entry, History, Terms

MOVES = {
    (None, "held"),
    ("held", "held"),
    ("held", "confirmed"),
    ("held", "cancelled"),
    ("held", "expired"),
    ("confirmed", "cancelled"),
}
"""What may become of a hold: not the library's words, which may be what is wrong."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept.

    Attributes:
        promise: Its number.
        text: What was seen.
    """

    promise: str
    text: str


@dataclass(frozen=True, slots=True)
class Promise:
    """What a live hold promises, and until when."""

    quantity: int
    expires: float


@dataclass(frozen=True, slots=True)
class State:
    """A slot from the commit of one transaction to that of the next.

    Attributes:
        count: How many rows the books had of it.
        capacity: How many places it has.
        column: What its column says.
        sold: How many places are confirmed.
        held: The holds that are written down as held.
    """

    count: int
    capacity: int
    column: int
    sold: int
    held: Mapping[str, Promise]

    def promised(self, instant: float) -> int:
        """How many places are promised by holds that are alive."""
        return sum(each.quantity for each in self.held.values() if each.expires > instant)

    def free(self, claim: str, instant: float) -> int:
        """How many places a list shows that is loaded then."""
        live = self.promised(instant)
        if claim == "counted":
            return max(0, self.column - live)
        due = sum(each.quantity for each in self.held.values()) - live
        return min(self.capacity, self.column + due)


@dataclass(slots=True)
class Books:
    """All states of all slots, and where each change stands.

    Attributes:
        states: By slot and count: what was committed.
        moves: By hold and its new state: the slot and the count that show it.
        written: By hold and its new state: the row.
        holds: The state of each hold at the end.
        transactions: Each as its rows, in the order of their slots and counts.
        wrong: What cannot be true.
    """

    terms: Terms
    states: dict[int, dict[int, State]] = field(default_factory=dict)
    moves: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    written: dict[tuple[str, str], Entry] = field(default_factory=dict)
    holds: dict[str, str] = field(default_factory=dict)
    transactions: dict[int, list[Entry]] = field(default_factory=dict)
    wrong: list[Violation] = field(default_factory=list)

    def shown_by(self, transaction: Sequence[Entry]) -> dict[int, int]:
        """By slot: the count that shows this transaction."""
        return {entry.slot: entry.count for entry in transaction}

    def note(self, promise: str, slot: int, count: int, text: str) -> None:
        """Note what cannot be true of a slot."""
        self.wrong.append(Violation(promise, f"slot {slot}, change {count}: {text}"))


def read_books(history: History) -> Books:
    """Go through the books from the first row to the last."""
    books = Books(history.terms)
    entries = sorted(history.books, key=lambda entry: (entry.slot, entry.count))
    for entry in entries:
        books.transactions.setdefault(entry.transaction, []).append(entry)
    for slot, (_, capacity) in history.terms.slots.items():
        books.states[slot] = {0: State(0, capacity, capacity, 0, {})}
    for slot, of_slot in groupby(entries, key=lambda entry: entry.slot):
        _go_through(books, slot, list(of_slot))
    books.wrong += _at_the_end(books, history)
    return books


def _go_through(books: Books, slot: int, entries: Sequence[Entry]) -> None:
    state = books.states[slot][0]
    for _, of_transaction in groupby(entries, key=lambda entry: entry.transaction):
        rows = list(of_transaction)
        state = _after(books, state, rows)
        books.states[slot][state.count] = state
        for row in rows:
            if row.hold is not None and row.state is not None:
                books.moves.setdefault((row.hold, row.state), (slot, state.count))
                books.written.setdefault((row.hold, row.state), row)
        # A hold begins at the instant at which the places were counted, before it was written.
        begun = [row.created for row in rows if row.hold is not None and row.state == "held"]
        _check_places(books, slot, state, max(begun, default=rows[-1].at))


def _after(books: Books, state: State, rows: Sequence[Entry]) -> State:
    """What a slot is after a transaction."""
    sold, held = state.sold, dict(state.held)
    for count, row in enumerate(rows, start=state.count + 1):
        if row.count != count:
            books.note("P6", row.slot, row.count, f"it is number {count}")
        if row.hold is None or row.state is None:
            continue
        before = books.holds.get(row.hold)
        if (before, row.state) not in MOVES:
            books.note("P7", row.slot, row.count, f"hold {row.hold}: {before} to {row.state}")
        books.holds[row.hold] = row.state
        sold += row.quantity * ((row.state == "confirmed") - (before == "confirmed"))
        held.pop(row.hold, None)
        if row.state == "held":
            held[row.hold] = Promise(row.quantity, row.expires)
    return State(rows[-1].count, rows[-1].capacity, rows[-1].remaining, sold, held)


def _check_places(books: Books, slot: int, state: State, instant: float) -> None:
    """No place is sold twice, and none is lost (P6)."""
    promised = state.promised(instant)
    if state.sold + promised > state.capacity:
        text = f"{state.sold} sold and {promised} promised, of {state.capacity}"
        books.note("P6", slot, state.count, text)
    if not 0 <= state.column <= state.capacity:
        books.note("P6", slot, state.count, f"{state.column} places left of {state.capacity}")
    gone = state.sold
    if books.terms.claim == "on_hold":
        gone += sum(each.quantity for each in state.held.values())
    if state.column != state.capacity - gone:
        text = f"{gone} of {state.capacity} places are gone, and {state.column} are left"
        books.note("P6", slot, state.count, text)


def _at_the_end(books: Books, history: History) -> Iterator[Violation]:
    """What the tables say at the end is what the books say."""
    for hold in books.holds.keys() | history.holds.keys():
        state, booked = history.holds.get(hold), books.holds.get(hold)
        if state != booked:
            yield Violation("P6", f"hold {hold} is {state} at the end, and {booked} in the books")
    for slot, states in books.states.items():
        column = states[max(states)].column
        if history.remaining[slot] != column:
            text = (
                f"{history.remaining[slot]} places are left at the end, and {column} in the books"
            )
            yield Violation("P6", f"slot {slot}: {text}")
