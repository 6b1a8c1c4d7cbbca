"""Any sequence of operations and times, against a model that is too simple to be wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
)

from slotcache import (
    AvailabilityPolicy,
    Hold,
    HoldExpired,
    HoldManager,
    HoldState,
    IllegalTransition,
    Scope,
    SlotAvailabilityService,
    SlotFull,
)
from slotcache.sql import SqlSlots
from slotcache.testing import ManualClock

from .support.sql import query

CAPACITIES = {1: 3, 2: 1, 3: 5, 4: 2}
SCOPES = {1: "a", 2: "a", 3: "b", 4: None}


@dataclass
class ModelHold:
    """A hold as the naive model has it. `noted`: EXPIRED stands in the table."""

    slot_id: int
    quantity: int
    expires_at: float
    state: HoldState = HoldState.HELD
    noted: bool = False


@dataclass
class Model:
    """What the table must be, in dicts."""

    holds: dict[UUID, ModelHold] = field(default_factory=dict)
    now: float = 0.0

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for hold in self.holds.values():
            if hold.state is HoldState.HELD and hold.expires_at <= self.now:
                hold.state = HoldState.EXPIRED

    def live(self, slot_id: int) -> list[ModelHold]:
        return [
            hold
            for hold in self.holds.values()
            if hold.slot_id == slot_id and hold.state is HoldState.HELD
        ]

    def free(self, slot_id: int) -> int:
        taken = (HoldState.HELD, HoldState.CONFIRMED)
        return CAPACITIES[slot_id] - sum(
            hold.quantity
            for hold in self.holds.values()
            if hold.slot_id == slot_id and hold.state in taken
        )

    def unnoted(self) -> list[ModelHold]:
        """The due holds that a sweeper would write down."""
        return [
            hold
            for hold in self.holds.values()
            if hold.state is HoldState.EXPIRED and not hold.noted
        ]

    def rows(self, scope: str | None) -> list[tuple[int, int, int]]:
        return [(slot_id, CAPACITIES[slot_id], self.free(slot_id)) for slot_id in listed(scope)]

    def next_end(self, scope: str | None) -> float | None:
        ends = [hold.expires_at for slot_id in listed(scope) for hold in self.live(slot_id)]
        return min(ends, default=None)


def listed(scope: str | None) -> list[int]:
    return [slot_id for slot_id in CAPACITIES if scope in (None, SCOPES[slot_id])]


class HoldMachine(RuleBasedStateMachine):
    """Does the same to the table and to the model, and compares after each step."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.start = self.clock.now()
        self.slots = SqlSlots.sqlite(":memory:", clock=self.clock)
        self.slots.create_tables()
        for slot_id, capacity in CAPACITIES.items():
            self.slots.add([(slot_id, capacity)], scope=SCOPES[slot_id])
        self.told: list[Any] = []
        self.service = SlotAvailabilityService(
            self.slots, clock=self.clock, policy=AvailabilityPolicy(min_ttl=0)
        )
        self.holds = HoldManager(self.slots, on_change=self.changed)
        self.model = Model()

    def changed(self, scope: Scope | None) -> None:
        self.told.append(scope)
        self.service.clear_availability_cache(scope)

    def teardown(self) -> None:
        self.slots.close()

    @rule(
        target=ids,
        slot_id=st.sampled_from(list(CAPACITIES)),
        quantity=st.integers(1, 6),
        # Whole and half seconds, so that holds fall due together, and at the instant looked at.
        ttl=st.integers(1, 20).map(lambda halves: halves / 2),
    )
    def create(self, slot_id: int, quantity: int, ttl: float) -> Any:
        free = self.model.free(slot_id)
        if quantity > free:
            with pytest.raises(SlotFull) as refused:
                self.holds.create(slot_id, quantity, ttl=ttl)
            assert refused.value.remaining == free
            self.expect_told()
            return multiple()
        hold = self.holds.create(slot_id, quantity, ttl=ttl)
        for due in self.model.unnoted():
            due.noted = due.noted or due.slot_id == slot_id
        self.model.holds[hold.id] = ModelHold(slot_id, quantity, self.model.now + ttl)
        self.compare(hold)
        self.expect_told(SCOPES[slot_id])
        return hold.id

    @rule(hold_id=ids)
    def confirm(self, hold_id: UUID) -> None:
        expected = self.model.holds[hold_id]
        refusal = {HoldState.EXPIRED: HoldExpired, HoldState.CANCELLED: IllegalTransition}
        if expected.state in refusal:
            with pytest.raises(refusal[expected.state]):
                self.holds.confirm(hold_id)
            self.expect_told()
        else:
            self.moved(self.holds.confirm(hold_id), expected, HoldState.CONFIRMED)

    @rule(hold_id=ids)
    def cancel(self, hold_id: UUID) -> None:
        expected = self.model.holds[hold_id]
        to = expected.state if expected.state is HoldState.EXPIRED else HoldState.CANCELLED
        self.moved(self.holds.cancel(hold_id), expected, to)

    @rule(hold_id=ids)
    def get(self, hold_id: UUID) -> None:
        self.compare(self.holds.get(hold_id))
        self.expect_told()

    @rule(limit=st.integers(1, 4))
    def expire_due(self, limit: int) -> None:
        due = self.model.unnoted()
        due.sort(key=lambda hold: hold.expires_at)
        assert self.holds.expire_due(limit) == min(limit, len(due))
        # Of holds that ended in the same instant any may be written first: ask which.
        expired = query(self.slots, "SELECT id FROM slot_holds WHERE state = 'expired'")
        written = [self.model.holds[UUID(key)] for (key,) in expired]
        written = [hold for hold in written if not hold.noted]
        ends = [hold.expires_at for hold in due[:limit]]
        assert sorted(hold.expires_at for hold in written) == ends
        for hold in written:
            hold.noted = True
        self.expect_told(*{SCOPES[hold.slot_id] for hold in written})

    @rule(halves=st.integers(0, 12))
    def pass_time(self, halves: int) -> None:
        self.clock.advance(halves / 2)
        self.model.pass_time(halves / 2)

    @invariant()
    def lists_agree(self) -> None:
        """The table's list, and the one that everybody is shown (P1), also when a hold ended."""
        for scope in (None, "a", "b", "elsewhere"):
            loaded = self.slots.load(scope)
            end = self.model.next_end(scope)
            assert [tuple(row) for row in loaded.availability] == self.model.rows(scope)
            assert self.service.get_availability(scope) == loaded.availability
            assert loaded.valid_for == (None if end is None else end - self.model.now)

    @invariant()
    def books_balance(self) -> None:
        for slot_id in CAPACITIES:
            assert 0 <= self.model.free(slot_id) <= CAPACITIES[slot_id]
        rows = query(self.slots, "SELECT slot_id, capacity, remaining FROM slots")
        assert all(0 <= remaining <= capacity for _, capacity, remaining in rows)

    def moved(self, hold: Hold, expected: ModelHold, to: HoldState) -> None:
        replayed = expected.state is to
        assert hold.replayed == replayed
        expected.state = to
        self.compare(hold)
        self.expect_told(*([] if replayed else [SCOPES[expected.slot_id]]))

    def compare(self, hold: Hold) -> None:
        expected = self.model.holds[hold.id]
        assert (hold.slot_id, hold.quantity) == (expected.slot_id, expected.quantity)
        assert hold.scope == SCOPES[expected.slot_id]
        assert hold.state is expected.state
        assert hold.expires_at.timestamp() == self.start + expected.expires_at

    def expect_told(self, *scopes: str | None) -> None:
        assert sorted(map(str, self.told)) == sorted(map(str, scopes))
        self.told.clear()


HoldMachine.TestCase.settings = settings(stateful_step_count=40)
TestHoldMachine = HoldMachine.TestCase
