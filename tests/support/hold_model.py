"""Slots and holds as dicts: a model too simple to be wrong, and what may be asked of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from hypothesis import strategies as st

from slotcache import HoldPolicy, HoldState

HELD, CONFIRMED, CANCELLED, EXPIRED = HoldState

CAPACITIES = {1: 3, 2: 5, 3: 2}
SCOPES = {1: "a", 2: "b", 3: None}
UNKNOWN = 9
POLICY = HoldPolicy(ttl=5, max_lifetime=10)

# Whole and half seconds, so that holds fall due together, and at the instant looked at.
seconds = st.integers(1, 20).map(lambda halves: halves / 2)
slot_ids = st.sampled_from([*CAPACITIES, *CAPACITIES, UNKNOWN])
owners = st.sampled_from([None, "ann", "Ann"])
quantities = st.sampled_from([1, 1, 2, 2, 3, 6])
references = st.sampled_from([None, "paid", "Paid"])


class Wish(NamedTuple):
    """What somebody asks `create` for, or `create_many`."""

    places: dict[int, int]
    ttl: float | None
    owner: str | None
    key: str | None
    replaces: tuple[UUID, ...] = ()


def wishes_for(places: st.SearchStrategy[dict[int, int]]) -> st.SearchStrategy[Wish]:
    return st.builds(
        Wish,
        places=places,
        ttl=seconds | st.none(),
        owner=owners,
        key=st.sampled_from([None, None, "k", "K"]),
        replaces=st.just(()),
    )


wishes = wishes_for(st.builds(lambda slot_id, quantity: {slot_id: quantity}, slot_ids, quantities))
orders = wishes_for(st.dictionaries(slot_ids, quantities, min_size=1, max_size=3))


class ModelKey(NamedTuple):
    """What a key stands for: a request, and the holds that it made."""

    places: dict[int, int]
    holds: list[UUID]


@dataclass
class ModelHold:
    """A hold as the naive model has it. `ended_at`: since when it is over, if that is written."""

    slot_id: int
    quantity: int
    created_at: float
    expires_at: float
    owner: str | None
    state: HoldState = HELD
    ended_at: float | None = None
    reference: str | None = None

    @property
    def is_unnoted(self) -> bool:
        """Whether a sweeper would write it down."""
        return self.state is EXPIRED and self.ended_at is None

    @property
    def written(self) -> str:
        """The state in its row."""
        return (HELD if self.is_unnoted else self.state).value

    def note(self) -> None:
        self.ended_at = self.expires_at

    def end(self, now: float) -> None:
        self.state, self.ended_at = CANCELLED, now


@dataclass
class Model:
    """What the tables must be, in dicts."""

    capacities: dict[int, int] = field(default_factory=lambda: dict(CAPACITIES))
    holds: dict[UUID, ModelHold] = field(default_factory=dict)
    keys: dict[tuple[str | None, str], ModelKey] = field(default_factory=dict)
    written_off: Counter[int] = field(default_factory=Counter)
    closed: int | None = None
    now: float = 0.0

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for hold in self.holds.values():
            if hold.state is HELD and hold.expires_at <= self.now:
                hold.state = EXPIRED

    def places(self, slot_id: int, *states: HoldState) -> int:
        return sum(
            hold.quantity
            for hold in self.holds.values()
            if hold.slot_id == slot_id and hold.state in states
        )

    def taken(self, slot_id: int) -> int:
        return self.places(slot_id, HELD, CONFIRMED) + self.written_off[slot_id]

    def free(self, slot_id: int) -> int:
        return self.capacities[slot_id] - self.taken(slot_id)

    def column(self, slot_id: int, *, counted: bool) -> int:
        """What `remaining` must be: in claim on_hold due holds are off it until they are noted."""
        if counted:
            return self.free(slot_id) + self.places(slot_id, HELD)
        return self.free(slot_id) - sum(hold.quantity for hold in self.unnoted(slot_id))

    def unnoted(self, slot_id: int | None = None) -> list[ModelHold]:
        return [
            hold
            for hold in self.holds.values()
            if hold.is_unnoted and slot_id in (None, hold.slot_id)
        ]

    def listed(self, scope: str | None) -> list[int]:
        return [
            slot_id
            for slot_id in CAPACITIES
            if slot_id != self.closed and scope in (None, SCOPES[slot_id])
        ]

    def rows(self, scope: str | None) -> list[tuple[int, int, int]]:
        return [
            (slot_id, self.capacities[slot_id], self.free(slot_id))
            for slot_id in self.listed(scope)
        ]

    def valid_for(self, scope: str | None) -> float | None:
        listed = self.listed(scope)
        live = [hold for hold in self.holds.values() if hold.state is HELD]
        ends = [hold.expires_at - self.now for hold in live if hold.slot_id in listed]
        return min(ends, default=None)

    def forget(self, older_than: float) -> int:
        old = {
            hold_id
            for hold_id, hold in self.holds.items()
            if hold.ended_at is not None and hold.ended_at <= self.now - older_than
        }
        self.holds = {key: hold for key, hold in self.holds.items() if key not in old}
        self.keys = {
            key: made
            for key, made in self.keys.items()
            if any(hold_id in self.holds for hold_id in made.holds)
        }
        return len(old)
