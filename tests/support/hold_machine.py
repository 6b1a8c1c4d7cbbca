"""A machine of Hypothesis that does the same to the tables of holds and to a model of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace as but
from datetime import UTC, datetime
from itertools import chain
from typing import Any
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from slotcache import (
    AvailabilityPolicy,
    CapacityTooLow,
    Hold,
    HoldExpired,
    HoldNotFound,
    HoldState,
    HoldTooSmall,
    IdempotencyConflict,
    IllegalTransition,
    Scope,
    SlotcacheError,
    SlotFull,
    SlotNotFound,
)
from slotcache.testing import ManualClock

from .desk import Desk
from .hold_model import (
    CANCELLED,
    CAPACITIES,
    CONFIRMED,
    EXPIRED,
    HELD,
    POLICY,
    SCOPES,
    UNKNOWN,
    Model,
    ModelHold,
    ModelKey,
    Wish,
    orders,
    owners,
    quantities,
    references,
    seconds,
    slot_ids,
    wishes,
)
from .sql import empty, query


class HoldMachine(RuleBasedStateMachine):
    """Does the same to the tables and to the model, and compares after each step.

    Whoever inherits from it may add invariants of his own.

    Attributes:
        slots: The table.
        holds: A manager, whose hook clears the lists.
        service: What shows the lists.
        model: What the rows must be.
    """

    ids = Bundle("ids")

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.desk, self.slots = desk, desk.slots
        self.clock = desk.slots._database._clock = ManualClock()
        self.start = self.clock.now()
        self.told: list[Any] = []
        self.model = Model()
        self.begin()
        empty(self.slots)
        for slot_id, capacity in CAPACITIES.items():
            self.slots.add([(slot_id, capacity)], scope=SCOPES[slot_id])

    def begin(self) -> None:
        """Make all that a process remembers something in."""
        self.made = 0
        world = self.desk.world
        policy = AvailabilityPolicy(min_ttl=0)
        self.service = world.service(self.slots, clock=self.clock, policy=policy)
        self.holds = world.holds(self.slots, on_change=self.changed, policy=POLICY)

    def changed(self, scope: Scope | None) -> None:
        self.told.append(scope)
        self.service.clear_availability_cache(scope)

    def teardown(self) -> None:
        self.service.close()
        self.desk.door.closed = 0
        empty(self.slots)

    @initialize(target=ids, wished=st.lists(wishes, min_size=3, max_size=6))
    def open(self, wished: list[Wish]) -> MultipleResults[UUID]:
        """There are some holds, also where the machine happens to make no others."""
        return multiple(*chain.from_iterable(map(self.made_by, wished)))

    @rule(target=ids, wished=st.lists(wishes, min_size=1, max_size=3))
    def create(self, wished: list[Wish]) -> MultipleResults[UUID]:
        return multiple(*chain.from_iterable(map(self.made_by, wished)))

    @rule(
        target=ids,
        order=orders,
        replaced=st.lists(ids, max_size=2),
        theirs=st.booleans(),
    )
    def order(self, order: Wish, replaced: list[UUID], theirs: bool) -> MultipleResults[UUID]:
        """Several slots at once, perhaps in place of holds that somebody has, or had."""
        if theirs and replaced and (hold := self.model.holds.get(replaced[0])):
            order = order._replace(owner=hold.owner)
        return multiple(*self.made_by(order._replace(replaces=tuple(replaced))))

    @rule(target=ids, hold_id=ids, quantity=quantities)
    def resize(self, hold_id: UUID, quantity: int) -> MultipleResults[UUID]:
        """More of a slot, or fewer."""
        hold = self.model.holds.get(hold_id)
        slot_id, owner = (1, None) if hold is None else (hold.slot_id, hold.owner)
        return multiple(*self.made_by(Wish({slot_id: quantity}, None, owner, None, (hold_id,))))

    def made_by(self, wish: Wish) -> list[UUID]:
        def create() -> tuple[Hold, ...]:
            options: dict[str, Any] = {"ttl": wish.ttl, "owner": wish.owner}
            options["idempotency_key"] = wish.key
            if len(wish.places) == 1 and len(wish.replaces) < 2:
                ((slot_id, quantity),) = wish.places.items()
                replaced = wish.replaces[0] if wish.replaces else None
                return (self.holds.create(slot_id, quantity, replaces=replaced, **options),)
            return self.holds.create_many(wish.places, replaces=wish.replaces, **options)

        earlier = None if wish.key is None else self.model.keys.get((wish.owner, wish.key))
        if earlier is not None:
            self.check_repetition(create, earlier, wish.places)
        elif (refusal := self.refusal_of(wish)) is not None:
            kind, fields = refusal
            self.check_refusal(create, kind, **fields)
        else:
            given_up = {
                hold_id for hold_id in wish.replaces if self.model.holds[hold_id].state is HELD
            }
            scopes = {SCOPES[self.model.holds[hold_id].slot_id] for hold_id in given_up}
            for hold_id in given_up:
                self.model.holds[hold_id].end(self.model.now)
            made = create()
            self.note_made(wish, made)
            self.check_told(*scopes.union(SCOPES[slot_id] for slot_id in wish.places))
            return [hold.id for hold in made]
        return []

    def refusal_of(self, wish: Wish) -> tuple[type[SlotcacheError], dict[str, Any]] | None:
        """What is wrong with it: the first thing that the library says."""
        room = Counter[int]()
        for hold_id in dict.fromkeys(wish.replaces):
            hold = self.model.holds.get(hold_id)
            if hold is None or wish.owner not in (None, hold.owner):
                owner = None if hold is None else wish.owner
                return HoldNotFound, {"hold_id": hold_id, "owner": owner}
            if hold.state in (CONFIRMED, CANCELLED):
                return IllegalTransition, {"hold_id": hold_id, "operation": "replace"}
            room[hold.slot_id] += hold.quantity * (hold.state is HELD)
        for slot_id, quantity in wish.places.items():
            if slot_id not in self.model.listed(None):
                return SlotNotFound, {"slot_id": slot_id}
            free = self.model.free(slot_id) + room[slot_id]
            if quantity > free:
                return SlotFull, {"slot_id": slot_id, "requested": quantity, "remaining": free}
        return None

    def note_made(self, wish: Wish, made: tuple[Hold, ...]) -> None:
        self.note_swept(*wish.places)
        expires_at = self.model.now + (wish.ttl or POLICY.ttl)
        for hold, (slot_id, quantity) in zip(made, wish.places.items(), strict=True):
            self.model.holds[hold.id] = ModelHold(
                slot_id, quantity, self.model.now, expires_at, wish.owner
            )
            assert hold == self.expected(hold.id)
        if wish.key is not None:
            key = ModelKey(wish.places, [hold.id for hold in made])
            self.model.keys[wish.owner, wish.key] = key
        self.made += len(made)

    def note_swept(self, *slot_ids: int) -> None:
        """An operation wrote down all that was due in the slots."""
        for slot_id in slot_ids:
            for due in self.model.unnoted(slot_id):
                due.note()

    @precondition(lambda self: self.model.keys)
    @rule(data=st.data(), ttl=seconds)
    def create_again(self, data: st.DataObject, ttl: float) -> None:
        made = sorted(self.model.keys.items(), key=str)
        (owner, key), (places, _) = data.draw(st.sampled_from(made))
        places = dict(data.draw(st.permutations(list(places.items()))))
        assert self.made_by(Wish(places, ttl, owner, key)) == []

    def check_repetition(
        self, create: Callable[[], tuple[Hold, ...]], earlier: ModelKey, places: dict[int, int]
    ) -> None:
        if places == earlier.places:
            left = [hold_id for hold_id in earlier.holds if hold_id in self.model.holds]
            assert create() == tuple(but(self.expected(hold_id), replayed=True) for hold_id in left)
            self.check_told()
        else:
            self.check_refusal(create, IdempotencyConflict, hold_id=earlier.holds[0])

    @rule(hold_id=ids, reference=references, late=st.booleans())
    def confirm(self, hold_id: UUID, reference: str | None, late: bool) -> None:
        def confirm() -> Hold:
            how: Any = {"late": "reacquire"} if late else {}
            return self.holds.confirm(hold_id, reference=reference, **how)

        hold = self.model.holds.get(hold_id)
        if hold is None:
            self.check_refusal(confirm, HoldNotFound, hold_id=hold_id)
        elif hold.state is CANCELLED:
            self.check_refusal(confirm, IllegalTransition, hold_id=hold_id)
        elif hold.state is EXPIRED and not (late and self.can_be_had(hold)):
            self.check_refusal(confirm, HoldExpired, hold_id=hold_id)
        elif hold.state is CONFIRMED and reference not in (None, hold.reference):
            self.check_refusal(confirm, IdempotencyConflict, hold_id=hold_id, reference=reference)
        elif hold.state is CONFIRMED:
            assert confirm() == but(self.expected(hold_id), replayed=True)
            self.check_told()
        else:
            confirmed = confirm()
            if hold.state is EXPIRED:
                hold.state = CONFIRMED
                self.note_swept(hold.slot_id)
            hold.state, hold.ended_at, hold.reference = CONFIRMED, None, reference
            assert confirmed == self.expected(hold_id)
            self.check_told(SCOPES[hold.slot_id])

    def can_be_had(self, hold: ModelHold) -> bool:
        free = self.model.free(hold.slot_id)
        return hold.slot_id != self.model.closed and hold.quantity <= free

    @rule(
        hold_id=ids, quantity=st.none() | quantities, restock=st.sampled_from([True, True, False])
    )
    def cancel(self, hold_id: UUID, quantity: int | None, restock: bool) -> None:
        def cancel() -> Hold:
            return self.holds.cancel(hold_id, quantity=quantity, restock=restock)

        hold = self.model.holds.get(hold_id)
        if hold is None:
            self.check_refusal(cancel, HoldNotFound, hold_id=hold_id)
        elif hold.state in (CANCELLED, EXPIRED):
            assert cancel() == but(self.expected(hold_id), replayed=True)
            self.check_told()
        elif hold.state is HELD and not restock:
            self.check_refusal(cancel, IllegalTransition, hold_id=hold_id, operation="write off")
        elif (quantity or 1) > hold.quantity:
            fields = {"requested": quantity, "quantity": hold.quantity}
            self.check_refusal(cancel, HoldTooSmall, hold_id=hold_id, **fields)
        else:
            given_up = quantity or hold.quantity
            if not restock:
                self.model.written_off[hold.slot_id] += given_up
            if given_up == hold.quantity:
                hold.end(self.model.now)
            else:
                hold.quantity -= given_up
            assert cancel() == self.expected(hold_id)
            self.check_told(SCOPES[hold.slot_id])

    @rule(slot_id=st.sampled_from(list(CAPACITIES)))
    def restock(self, slot_id: int) -> None:
        """Somebody adds to the row what was written off, and clears the lists, as he has to."""
        places, self.model.written_off[slot_id] = self.model.written_off[slot_id], 0
        with self.slots.engine.begin() as connection:
            connection.exec_driver_sql(
                f"UPDATE slots SET remaining = remaining + {places} WHERE slot_id = {slot_id}"
            )
        self.service.clear_availability_cache()

    @rule(hold_id=ids, ttl=seconds)
    def extend(self, hold_id: UUID, ttl: float) -> None:
        def extend() -> Hold:
            return self.holds.extend(hold_id, ttl)

        hold = self.model.holds.get(hold_id)
        if hold is None:
            self.check_refusal(extend, HoldNotFound, hold_id=hold_id)
        elif hold.state is not HELD:
            refusal = HoldExpired if hold.state is EXPIRED else IllegalTransition
            self.check_refusal(extend, refusal, hold_id=hold_id)
        else:
            before = hold.expires_at
            until = min(self.model.now + ttl, hold.created_at + POLICY.max_lifetime)
            hold.expires_at = max(before, until)
            assert extend() == but(self.expected(hold_id), replayed=until <= before)
            self.check_told()

    @rule(
        hold_id=ids,
        slot_id=slot_ids | st.none(),
        owner=owners,
        limit=st.sampled_from([1, 2, 100]),
        scope=st.sampled_from([None, "a", "b", "elsewhere"]),
    )
    def look(
        self, hold_id: UUID, slot_id: int | None, owner: str | None, limit: int, scope: str | None
    ) -> None:
        if hold_id in self.model.holds:
            assert self.holds.get(hold_id) == self.expected(hold_id)
        else:
            self.check_refusal(lambda: self.holds.get(hold_id), HoldNotFound, hold_id=hold_id)
        for state in (None, *HoldState):
            expected = [
                hold
                for hold in self.expected_holds()
                if slot_id in (None, hold.slot_id)
                and owner in (None, hold.owner)
                and state in (None, hold.state)
            ]
            found = self.holds.find(slot_id=slot_id, owner=owner, state=state, limit=limit)
            assert found == expected[:limit]
        loaded = self.slots.load(scope)
        assert [tuple(row) for row in loaded.availability] == self.model.rows(scope)
        assert loaded.valid_for == self.model.valid_for(scope)
        ((keys,),) = query(self.slots, "SELECT count(*) FROM slot_hold_keys")
        assert keys == sum(len(made.holds) for made in self.model.keys.values())
        self.check_told()

    @rule(slot_id=slot_ids, capacity=st.integers(0, 8))
    def set_capacity(self, slot_id: int, capacity: int) -> None:
        def resize() -> None:
            self.holds.set_capacity(slot_id, capacity)

        lowest = self.model.taken(slot_id)
        if slot_id == UNKNOWN:
            self.check_refusal(resize, SlotNotFound, slot_id=slot_id)
        elif capacity < lowest:
            self.check_refusal(resize, CapacityTooLow, requested=capacity, lowest=lowest)
        elif capacity == self.model.capacities[slot_id]:
            resize()
            self.check_told()
        else:
            resize()
            self.model.capacities[slot_id] = capacity
            self.note_swept(slot_id)
            self.check_told(SCOPES[slot_id])

    @precondition(lambda self: self.model.unnoted())
    @rule(limit=st.integers(1, 4))
    def expire_due(self, limit: int) -> None:
        due = self.model.unnoted()
        due.sort(key=lambda hold: hold.expires_at)
        assert self.holds.expire_due(limit) == min(limit, len(due))
        # Of holds that ended in the same instant any may be written first: ask which.
        expired = query(self.slots, "SELECT id FROM slot_holds WHERE state = 'expired'")
        written = [self.model.holds[UUID(str(key))] for (key,) in expired]
        written = [hold for hold in written if hold.is_unnoted]
        ends = [hold.expires_at for hold in due[:limit]]
        assert sorted(hold.expires_at for hold in written) == ends
        for hold in written:
            hold.note()
        self.check_told(*{SCOPES[hold.slot_id] for hold in written})

    @precondition(lambda self: any(hold.ended_at for hold in self.model.holds.values()))
    @rule(older_than=st.integers(0, 12).map(lambda halves: halves / 2))
    def purge(self, older_than: float) -> None:
        assert self.holds.purge(older_than) == self.model.forget(older_than)
        self.check_told()

    @rule(halves=st.integers(0, 12))
    def pass_time(self, halves: int) -> None:
        self.clock.advance(halves / 2)
        self.model.pass_time(halves / 2)

    @rule(slot_id=st.sampled_from([*CAPACITIES, None]))
    def close(self, slot_id: int | None) -> None:
        """Somebody changes what `where` lets through, and clears the lists, as he has to."""
        self.model.closed = slot_id
        self.desk.door.closed = slot_id or 0
        self.service.clear_availability_cache()

    @precondition(lambda self: self.made >= 3)
    @rule()
    def restart(self) -> None:
        """The process ends, and another begins on the same tables."""
        self.service.close()
        self.begin()

    @invariant()
    def lists_agree(self) -> None:
        """The lists that everybody is shown (P1), also when a hold ended."""
        for scope in (None, "a"):
            shown = self.service.get_availability(scope)
            assert [tuple(row) for row in shown] == self.model.rows(scope)

    @invariant()
    def rows_agree(self) -> None:
        """What is written, as others read it."""
        rows = query(self.slots, "SELECT id, quantity, state FROM slot_holds")
        assert {UUID(str(key)): tuple(written) for key, *written in rows} == {
            key: (hold.quantity, hold.written) for key, hold in self.model.holds.items()
        }
        counted = self.slots._claim.counts_holds
        rows = query(self.slots, "SELECT slot_id, capacity, remaining FROM slots ORDER BY slot_id")
        assert rows == [
            (slot_id, capacity, self.model.column(slot_id, counted=counted))
            for slot_id, capacity in self.model.capacities.items()
        ]

    def expected_holds(self) -> list[Hold]:
        """All of them, the latest first."""
        holds = map(self.expected, self.model.holds)
        return sorted(holds, key=lambda hold: (-hold.created_at.timestamp(), hold.id))

    def expected(self, hold_id: UUID) -> Hold:
        hold = self.model.holds[hold_id]
        return Hold(
            id=hold_id,
            slot_id=hold.slot_id,
            scope=SCOPES[hold.slot_id],
            quantity=hold.quantity,
            state=hold.state,
            created_at=self.instant(hold.created_at),
            expires_at=self.instant(hold.expires_at),
            owner=hold.owner,
            reference=hold.reference,
        )

    def instant(self, seconds: float) -> datetime:
        return datetime.fromtimestamp(self.start + seconds, UTC)

    def check_refusal(
        self, call: Callable[[], object], kind: type[SlotcacheError], /, **fields: object
    ) -> None:
        with pytest.raises(kind) as refused:
            call()
        assert {name: getattr(refused.value, name) for name in fields} == fields
        self.check_told()

    def check_told(self, *scopes: str | None) -> None:
        assert sorted(map(str, self.told)) == sorted(map(str, scopes))
        self.told.clear()
