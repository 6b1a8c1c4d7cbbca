"""Extending, finding, resizing, confirming late and forgetting; due holds still off the column."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from slotcache import (
    CapacityTooLow,
    Hold,
    HoldExpired,
    HoldNotFound,
    HoldPolicy,
    HoldState,
    IdempotencyConflict,
    IllegalTransition,
    SlotFull,
    SlotNotFound,
)
from slotcache.testing import ManualClock

from .support.desk import Desk, on_one_desk
from .support.sql import EACH, Place, check_books, free, opened
from .support.worlds import Worlds

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = HoldPolicy(ttl=60, max_lifetime=100)
ON_HOLD = [
    *((kind, claim, "blocking") for kind, claim in EACH if claim == "on_hold"),
    ("postgres", "on_hold", "asyncio"),
]


@pytest.fixture
def hold_policy() -> HoldPolicy:
    return POLICY


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


class TestExtend:
    def test_it_counts_from_now(self, desk: Desk) -> None:
        hold = desk.holds.create(1, ttl=10, owner="ann")
        desk.clock.advance(9)

        extended = desk.holds.extend(hold.id, 10)

        assert extended == replace(hold, expires_at=NEW_YEAR + seconds(19))
        assert desk.holds.get(hold.id) == extended

    def test_its_places_stay_taken_until_the_new_end(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 4, ttl=10)
        desk.holds.extend(hold.id, 20)

        desk.clock.advance(19.999)
        with pytest.raises(SlotFull):
            desk.holds.create(1)

        desk.clock.advance(0.001)
        assert desk.holds.create(1, 4).state is HoldState.HELD
        assert desk.holds.get(hold.id).state is HoldState.EXPIRED

    def test_it_can_be_done_again_and_again(self, desk: Desk) -> None:
        hold = desk.holds.create(1, ttl=10)
        for _ in range(5):
            desk.clock.advance(9)
            hold = desk.holds.extend(hold.id, 10)
            assert not hold.replayed

        assert hold.expires_at == NEW_YEAR + seconds(55)

    def test_no_hold_lasts_longer_than_the_policy_allows(self, desk: Desk) -> None:
        hold = desk.holds.create(1)
        desk.clock.advance(50)

        extended = desk.holds.extend(hold.id, 51)

        assert not extended.replayed
        assert extended.expires_at == NEW_YEAR + seconds(100)
        assert desk.holds.extend(hold.id, 10**9) == replace(extended, replayed=True)

    def test_it_never_shortens(self, desk: Desk) -> None:
        hold = desk.holds.create(1, ttl=50)

        assert desk.holds.extend(hold.id, 49) == replace(hold, replayed=True)
        assert desk.holds.get(hold.id) == hold

    def test_it_never_shortens_what_a_longer_policy_has_made(self, desk: Desk) -> None:
        generous = desk.world.holds(desk.slots, on_change=None, policy=HoldPolicy(ttl=500))
        hold = generous.create(1)

        assert desk.holds.extend(hold.id, 90) == replace(hold, replayed=True)

    def test_to_the_same_end_is_a_replay(self, desk: Desk) -> None:
        hold = desk.holds.create(1, ttl=10)
        desk.clock.advance(5)
        extended = desk.holds.extend(hold.id, 10)

        assert desk.holds.extend(hold.id, 10) == replace(extended, replayed=True)

    def test_it_tells_nobody(self, desk: Desk) -> None:
        """The list's places are the same; that they stay so longer does no harm."""
        hold = desk.holds.create(1, ttl=10)
        desk.told.clear()

        desk.holds.extend(hold.id, 20)
        desk.holds.extend(hold.id, 20)

        assert desk.told == []

    def test_the_list_is_good_until_the_new_end(self, desk: Desk) -> None:
        hold = desk.holds.create(1, ttl=10)
        assert desk.slots.load().valid_for == 10

        desk.holds.extend(hold.id, 25)

        assert desk.slots.load().valid_for == desk.slots.load("a").valid_for == 25

    def test_a_cached_list_is_right_before_and_after_it(self, desk: Desk) -> None:
        service = desk.world.service(desk.slots, clock=desk.clock)
        hold = desk.holds.create(1, ttl=5)
        shown = [service.get_availability().get(1)]

        desk.holds.extend(hold.id, 9)
        for _ in range(2):
            desk.clock.advance(5)
            shown.append(service.get_availability().get(1))

        assert [row and row.remaining for row in shown] == [3, 3, 4]

    @pytest.mark.parametrize("swept", [False, True])
    def test_no_dead_hold_lives_again(self, desk: Desk, swept: bool) -> None:
        hold = desk.swept(1) if swept else desk.due(1)

        with pytest.raises(HoldExpired) as refused:
            desk.holds.extend(hold.id, 10)

        assert refused.value.hold_id == hold.id
        assert refused.value.expires_at == hold.expires_at
        assert desk.holds.get(hold.id) == hold

    def test_what_is_sold_or_cancelled_has_no_end_to_move(self, desk: Desk) -> None:
        for hold in desk.sold(1), desk.cancelled(1):
            with pytest.raises(IllegalTransition, match="cannot extend") as refused:
                desk.holds.extend(hold.id, 10)

            assert (refused.value.hold_id, refused.value.operation) == (hold.id, "extend")
            assert refused.value.state is hold.state
            assert desk.holds.get(hold.id) == hold

    def test_there_is_no_such_hold(self, desk: Desk) -> None:
        with pytest.raises(HoldNotFound):
            desk.holds.extend(uuid4(), 10)

    def test_also_where_the_slot_was_closed(self, desk: Desk) -> None:
        hold = desk.holds.create(1, ttl=10)
        desk.door.closed = 1

        assert desk.holds.extend(hold.id, 20).expires_at == NEW_YEAR + seconds(20)


class TestFind:
    @pytest.fixture
    def made(self, desk: Desk) -> dict[str, Hold]:
        """One of each kind, the latest last, a second apart and more."""
        made: dict[str, Hold] = {}

        def keep(name: str, hold: Hold) -> None:
            made[name] = hold
            desk.clock.advance(1)

        desk.slots.add([(3, 9)])
        keep("sold", desk.sold(1, owner="ann"))
        keep("cancelled", desk.cancelled(1, owner="ann"))
        keep("swept", desk.swept(1, owner="ann"))
        keep("due", desk.due(1, owner="ben"))
        keep("due of nobody", desk.due(3))
        keep("held", desk.holds.create(1, owner="ann"))
        keep("held elsewhere", desk.holds.create(3, 2, owner="ann"))
        keep("held by another", desk.holds.create(3, owner="ben"))
        desk.told.clear()
        return made

    def test_all_of_them_the_latest_first(self, desk: Desk, made: dict[str, Hold]) -> None:
        assert desk.holds.find() == list(reversed(made.values()))
        assert desk.told == []

    def test_every_combination_of_filters(self, desk: Desk, made: dict[str, Hold]) -> None:
        for slot_id in (None, 1, 2, 3, 99):
            for owner in (None, "ann", "ben", "Ann", "nobody"):
                for state in (None, *HoldState):
                    wanted = [
                        hold
                        for hold in reversed(made.values())
                        if slot_id in (None, hold.slot_id)
                        and owner in (None, hold.owner)
                        and state in (None, hold.state)
                    ]
                    found = desk.holds.find(slot_id=slot_id, owner=owner, state=state)
                    assert found == wanted, (slot_id, owner, state)

    def test_a_due_hold_is_expired_and_never_held(self, desk: Desk, made: dict[str, Hold]) -> None:
        expired = desk.holds.find(state=HoldState.EXPIRED)
        held = desk.holds.find(state=HoldState.HELD)

        assert [made[name] for name in ("due of nobody", "due", "swept")] == expired
        names = ("held by another", "held elsewhere", "held")
        assert [made[name] for name in names] == held

    def test_a_hold_is_found_in_another_state_from_its_last_instant_on(self, desk: Desk) -> None:
        hold = desk.holds.create(1, ttl=5)

        desk.clock.advance(4.999999)
        assert desk.holds.find(state=HoldState.HELD) == [hold]
        assert desk.holds.find(state=HoldState.EXPIRED) == []

        desk.clock.advance(0.000001)
        assert desk.holds.find(state=HoldState.HELD) == []
        assert desk.holds.find(state=HoldState.EXPIRED) == [replace(hold, state=HoldState.EXPIRED)]

    @pytest.mark.parametrize("limit", [1, 3])
    def test_the_latest_ones_up_to_a_limit(
        self, desk: Desk, made: dict[str, Hold], limit: int
    ) -> None:
        assert desk.holds.find(limit=limit) == list(reversed(made.values()))[:limit]
        assert desk.holds.find(owner="ann", limit=limit) == desk.holds.find(owner="ann")[:limit]

    def test_holds_of_one_instant_have_an_order_all_the_same(self, desk: Desk) -> None:
        made = [desk.holds.create(1) for _ in range(4)]

        assert desk.holds.find() == sorted(made, key=lambda hold: hold.id)

    def test_one_hundred_unless_told_otherwise(self, desk: Desk) -> None:
        desk.slots.add([(3, 200)])
        for _ in range(101):
            desk.holds.create(3)

        assert len(desk.holds.find()) == 100
        assert len(desk.holds.find(limit=10_000)) == 101

    def test_none_is_an_empty_list(self, desk: Desk) -> None:
        assert desk.holds.find() == []

    def test_holds_of_a_closed_slot_too(self, desk: Desk) -> None:
        hold = desk.holds.create(1)
        desk.door.closed = 1

        assert desk.holds.find(slot_id=1) == desk.holds.find() == [hold]


class TestSetCapacity:
    def test_a_larger_slot_has_more_to_sell(self, desk: Desk) -> None:
        desk.sold(1, 2)
        desk.holds.create(1, 2)

        desk.holds.set_capacity(1, 7)

        assert desk.row(1)[0] == 7
        assert free(desk.slots, 1) == 3
        assert desk.holds.create(1, 3).state is HoldState.HELD

    def test_a_smaller_one_less_down_to_what_is_sold_and_promised(self, desk: Desk) -> None:
        desk.sold(1)
        hold = desk.holds.create(1, 2)

        desk.holds.set_capacity(1, 3)

        assert free(desk.slots, 1) == 0
        with pytest.raises(SlotFull):
            desk.holds.create(1)
        assert desk.holds.confirm(hold.id).state is HoldState.CONFIRMED

    @pytest.mark.parametrize("capacity", [0, 2])
    def test_below_that_it_says_how_low_is_possible(self, desk: Desk, capacity: int) -> None:
        desk.sold(1)
        desk.holds.create(1, 2)
        desk.told.clear()
        before = desk.row(1)

        with pytest.raises(CapacityTooLow, match="set 3 or more") as refused:
            desk.holds.set_capacity(1, capacity)

        assert (refused.value.slot_id, refused.value.requested) == (1, capacity)
        assert refused.value.lowest == 3
        assert desk.row(1) == before
        assert desk.told == []
        desk.holds.set_capacity(1, refused.value.lowest)

    def test_due_holds_promise_nothing_any_more(self, desk: Desk) -> None:
        due = desk.due(1, 3)
        desk.sold(2)

        desk.holds.set_capacity(1, 1)

        assert free(desk.slots, 1) == 1
        assert desk.written()[due.id] == "expired"
        assert desk.row(1) == (1, 1)

    def test_a_refusal_does_not_count_them_either(self, desk: Desk) -> None:
        desk.sold(1)
        due = desk.due(1, 2)

        with pytest.raises(CapacityTooLow) as refused:
            desk.holds.set_capacity(1, 0)

        assert refused.value.lowest == 1
        assert desk.written()[due.id] == "held"

    def test_everybody_who_shows_the_list_is_told(self, desk: Desk) -> None:
        desk.holds.set_capacity(1, 5)
        desk.holds.set_capacity(1, 2)

        assert desk.told == ["a", "a"]

    def test_the_same_capacity_changes_nothing(self, desk: Desk) -> None:
        desk.holds.create(1, 2)
        before = desk.row(1)
        desk.told.clear()

        desk.holds.set_capacity(1, 4)

        assert desk.row(1) == before
        assert desk.told == []

    def test_a_slot_may_have_no_place_at_all_for_a_while(self, desk: Desk) -> None:
        desk.holds.set_capacity(1, 0)

        assert desk.row(1) == (0, 0)
        with pytest.raises(SlotFull) as refused:
            desk.holds.create(1)
        assert refused.value.remaining == 0

        desk.holds.set_capacity(1, 2)
        assert desk.holds.create(1, 2).state is HoldState.HELD

    def test_as_many_as_the_column_holds(self, desk: Desk) -> None:
        desk.holds.create(1, 3)

        desk.holds.set_capacity(1, 2**31 - 1)

        assert free(desk.slots, 1) == 2**31 - 4

    def test_there_is_no_such_slot(self, desk: Desk) -> None:
        with pytest.raises(SlotNotFound) as refused:
            desk.holds.set_capacity(3, 5)

        assert refused.value.slot_id == 3
        assert desk.told == []

    def test_a_closed_slot_can_be_resized(self, desk: Desk) -> None:
        desk.holds.create(1, 3)
        desk.door.closed = 1

        desk.holds.set_capacity(1, 6)
        with pytest.raises(CapacityTooLow):
            desk.holds.set_capacity(1, 2)

        assert desk.told == ["a", "a"]
        desk.door.closed = 0
        assert free(desk.slots, 1) == 3


class TestClosedSlot:
    def test_it_promises_nothing_and_keeps_its_promises(self, desk: Desk) -> None:
        hold = desk.holds.create(1)
        desk.door.closed = 1

        with pytest.raises(SlotNotFound) as refused:
            desk.holds.create(1)

        assert refused.value.slot_id == 1
        assert desk.slots.load("a").availability.get(1) is None
        assert desk.slots.load("a").valid_for is None
        assert desk.holds.confirm(hold.id).state is HoldState.CONFIRMED
        assert desk.holds.cancel(hold.id).state is HoldState.CANCELLED


class TestReference:
    """What has confirmed a hold, so that no two payments are taken for one."""

    def test_it_is_in_the_hold(self, desk: Desk) -> None:
        hold = desk.holds.create(1, owner="ann")

        sold = desk.holds.confirm(hold.id, reference="payment 7")

        assert hold.reference is None
        assert sold == replace(hold, state=HoldState.CONFIRMED, reference="payment 7")
        assert [desk.holds.get(hold.id)] == desk.holds.find() == [sold]

    @pytest.mark.parametrize("reference", ["payment 7", None])
    def test_the_same_again_or_none_is_a_replay(self, desk: Desk, reference: str | None) -> None:
        sold = desk.holds.confirm(desk.holds.create(1).id, reference="payment 7")
        desk.told.clear()

        again = desk.holds.confirm(sold.id, reference=reference)

        assert again == replace(sold, replayed=True)
        assert desk.told == []

    @pytest.mark.parametrize("late", ["refuse", "reacquire"])
    @pytest.mark.parametrize("first", ["payment 7", "Payment 8", "payment 8 ", None])
    def test_another_is_refused(self, desk: Desk, first: str | None, late: Any) -> None:
        sold = desk.holds.confirm(desk.holds.create(1).id, reference=first)
        desk.told.clear()

        with pytest.raises(IdempotencyConflict, match="not with reference 'payment 8'") as refused:
            desk.holds.confirm(sold.id, reference="payment 8", late=late)

        error = refused.value
        assert (error.hold_id, error.reference) == (sold.id, "payment 8")
        assert error.idempotency_key is None
        assert desk.holds.get(sold.id) == sold
        assert desk.told == []

    def test_two_holds_may_have_the_same(self, desk: Desk) -> None:
        for hold in desk.holds.create_many({1: 1, 2: 1}):
            assert not desk.holds.confirm(hold.id, reference="order 7").replayed

    def test_it_stays_when_the_sale_is_cancelled(self, desk: Desk) -> None:
        sold = desk.holds.confirm(desk.holds.create(1, 2).id, reference="payment 7")
        desk.holds.cancel(sold.id, quantity=1)

        cancelled = desk.holds.cancel(sold.id)

        assert cancelled.reference == desk.holds.get(sold.id).reference == "payment 7"
        with pytest.raises(IllegalTransition):
            desk.holds.confirm(sold.id, reference="payment 7")

    def test_a_refused_confirm_leaves_none(self, desk: Desk) -> None:
        for hold in desk.due(1), desk.cancelled(1):
            with pytest.raises((HoldExpired, IllegalTransition)):
                desk.holds.confirm(hold.id, reference="payment 7")

            assert desk.holds.get(hold.id) == hold

    @pytest.mark.parametrize("reference", ["\N{SAUROPOD}" * 255, "%", "'; --", "\\"])
    def test_any_text_will_do(self, desk: Desk, reference: str) -> None:
        sold = desk.holds.confirm(desk.holds.create(1).id, reference=reference)

        assert desk.holds.get(sold.id).reference == reference
        assert desk.holds.confirm(sold.id, reference=reference).replayed


class TestReacquire:
    """A payment that came late: `confirm(late="reacquire")`."""

    def test_of_a_live_hold_it_is_a_plain_confirm(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 3)

        sold = desk.holds.confirm(hold.id, late="reacquire", reference="paid")

        assert sold == replace(hold, state=HoldState.CONFIRMED, reference="paid")
        assert desk.row(1) == (4, 1)

    @pytest.mark.parametrize("swept", [False, True])
    def test_an_expired_one_is_sold_if_there_is_room(self, desk: Desk, swept: bool) -> None:
        hold = desk.swept(1, 3) if swept else desk.due(1, 3)
        desk.told.clear()

        sold = desk.holds.confirm(hold.id, late="reacquire", reference="paid")

        assert sold == replace(hold, state=HoldState.CONFIRMED, reference="paid")
        assert desk.holds.get(hold.id) == sold
        assert (desk.row(1), free(desk.slots, 1)) == ((4, 1), 1)
        assert desk.told == ["a"]

    @pytest.mark.parametrize("swept", [False, True])
    def test_places_of_other_due_holds_count_and_come_back_once(
        self, desk: Desk, swept: bool
    ) -> None:
        hold = desk.holds.create(1, 1, ttl=5)
        other = desk.due(1, 3)
        if swept:
            desk.holds.expire_due(limit=1)

        desk.holds.confirm(hold.id, late="reacquire")

        assert desk.row(1) == (4, 3)
        assert desk.written() == {hold.id: "confirmed", other.id: "expired"}
        assert desk.holds.expire_due() == 0

    def test_it_takes_the_last_place(self, desk: Desk) -> None:
        hold = desk.due(1, 3)
        desk.sold(1)

        desk.holds.confirm(hold.id, late="reacquire")

        assert (desk.row(1), free(desk.slots, 1)) == ((4, 0), 0)

    @pytest.mark.parametrize("swept", [False, True])
    @pytest.mark.parametrize("sold", [False, True])
    def test_without_room_it_stays_expired(self, desk: Desk, swept: bool, sold: bool) -> None:
        hold = desk.swept(1, 3) if swept else desk.due(1, 3)
        other = desk.due(2)
        _ = desk.sold(1, 2) if sold else desk.holds.create(1, 2)
        before, books = desk.written(), [desk.row(1), desk.row(2)]
        desk.told.clear()

        with pytest.raises(HoldExpired) as refused:
            desk.holds.confirm(hold.id, late="reacquire", reference="paid")

        cause = refused.value.__cause__
        assert isinstance(cause, SlotFull)
        assert (cause.slot_id, cause.requested, cause.remaining) == (1, 3, 2)
        assert (refused.value.hold_id, refused.value.expires_at) == (hold.id, hold.expires_at)
        assert [desk.holds.get(each.id) for each in (hold, other)] == [hold, other]
        assert (desk.written(), [desk.row(1), desk.row(2)]) == (before, books)
        assert desk.told == []

    @pytest.mark.parametrize("swept", [False, True])
    def test_a_slot_that_was_closed_sells_nothing_more(self, desk: Desk, swept: bool) -> None:
        hold = desk.swept(1) if swept else desk.due(1)
        before, books = desk.written(), desk.row(1)
        desk.door.closed = 1
        desk.told.clear()

        with pytest.raises(HoldExpired) as refused:
            desk.holds.confirm(hold.id, late="reacquire")

        assert isinstance(refused.value.__cause__, SlotNotFound)
        assert refused.value.__cause__.slot_id == 1
        assert (desk.written(), desk.row(1), desk.told) == (before, books, [])

    def test_without_it_an_expired_one_is_refused_without_a_cause(self, desk: Desk) -> None:
        hold = desk.due(1)

        with pytest.raises(HoldExpired) as refused:
            desk.holds.confirm(hold.id, late="refuse")

        assert refused.value.__cause__ is None

    def test_what_was_cancelled_is_not_had_again(self, desk: Desk) -> None:
        hold = desk.cancelled(1)

        with pytest.raises(IllegalTransition) as refused:
            desk.holds.confirm(hold.id, late="reacquire")

        assert (refused.value.operation, refused.value.state) == ("reacquire", hold.state)
        assert desk.holds.get(hold.id) == hold

    @pytest.mark.parametrize("reference", ["paid", None])
    def test_twice_is_once(self, desk: Desk, reference: str | None) -> None:
        hold = desk.due(1, 2)
        sold = desk.holds.confirm(hold.id, late="reacquire", reference="paid")
        desk.told.clear()

        again = [
            desk.holds.confirm(hold.id, late="reacquire", reference=reference),
            desk.holds.confirm(hold.id, reference=reference),
        ]

        assert again == [replace(sold, replayed=True)] * 2
        assert (desk.row(1), desk.told) == ((4, 2), [])

    def test_it_is_a_sale_like_any_other(self, desk: Desk) -> None:
        hold = desk.swept(1, 3)
        desk.holds.confirm(hold.id, late="reacquire")
        desk.clock.advance(10**6)

        assert desk.holds.expire_due() == desk.holds.purge(0) == 0
        assert desk.holds.cancel(hold.id, quantity=1).quantity == 2
        assert desk.holds.cancel(hold.id).state is HoldState.CANCELLED
        assert desk.row(1) == (4, 4)

    def test_a_purge_that_had_it_on_its_list_leaves_it_there(self, desk: Desk) -> None:
        hold = desk.swept(1, 3)
        ended = desk.slots._read(lambda ledger: ledger.ended(0, 100), lock_wait=1)
        desk.holds.confirm(hold.id, late="reacquire")

        purged = desk.slots._transact(lambda ledger: ledger.purge(ended), [], lock_wait=1)

        desk.written_off[1] += 3 * purged  # so that this alone fails
        assert (purged, desk.written()) == (0, {hold.id: "confirmed"})

    def test_there_is_no_such_hold(self, desk: Desk) -> None:
        with pytest.raises(HoldNotFound):
            desk.holds.confirm(uuid4(), late="reacquire")


class TestPurge:
    def test_it_forgets_what_was_cancelled_or_has_expired(self, desk: Desk) -> None:
        gone = [desk.cancelled(1), desk.swept(1), desk.holds.cancel(desk.sold(1).id)]
        desk.clock.advance(1)

        assert desk.holds.purge(1) == 3
        assert desk.holds.purge(0) == 0
        assert desk.holds.find() == []
        for hold in gone:
            with pytest.raises(HoldNotFound):
                desk.holds.get(hold.id)

    def test_sales_and_promises_stay_and_what_is_not_written_down(self, desk: Desk) -> None:
        kept = {desk.due(1).id, desk.sold(2).id}
        desk.clock.advance(10**6)

        assert desk.holds.purge(0) == 0
        assert set(desk.written()) == kept

    def test_a_promise_is_not_forgotten(self, desk: Desk) -> None:
        hold = desk.holds.create(1)

        assert desk.holds.purge(0) == 0
        assert desk.holds.get(hold.id) == hold

    def test_the_age_of_what_was_cancelled_counts_from_then(self, desk: Desk) -> None:
        hold = desk.holds.create(1)
        desk.clock.advance(30)
        desk.holds.cancel(hold.id)

        desk.clock.advance(9.999)
        assert desk.holds.purge(10) == 0

        desk.clock.advance(0.001)
        assert desk.holds.purge(10) == 1

    def test_the_age_of_what_has_expired_counts_from_when_it_was_due(self, desk: Desk) -> None:
        """Not from when somebody came to write that down, nor from when it was made."""
        for slot_id in 1, 2:
            desk.holds.create(slot_id, ttl=20)
        desk.clock.advance(29.999)
        desk.holds.expire_due()
        assert desk.holds.purge(10) == 0

        desk.clock.advance(0.001)
        assert desk.holds.purge(10) == 2

    def test_what_create_or_set_capacity_wrote_down_has_the_same_age(self, desk: Desk) -> None:
        for slot_id in 1, 2:
            desk.holds.create(slot_id, ttl=20)
        desk.clock.advance(30)
        desk.holds.create(1, 4)
        desk.holds.set_capacity(2, 5)

        assert desk.holds.purge(10.001) == 0
        assert desk.holds.purge(10) == 2

    def test_it_takes_as_many_batches_as_it_needs(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("slotcache.operations._PURGED_AT_ONCE", 2)
        for _ in range(5):
            desk.cancelled(1)
        kept = desk.holds.create(1)

        assert desk.holds.purge(0) == 5
        assert desk.written() == {kept.id: "held"}

    def test_it_tells_nobody_and_frees_nothing(self, desk: Desk) -> None:
        desk.sold(1)
        desk.cancelled(1)
        desk.swept(1)
        desk.told.clear()
        before = desk.row(1)

        desk.holds.purge(0)

        assert desk.told == []
        assert desk.row(1) == before


@pytest.mark.parametrize(("kind", "claim", "world_name"), ON_HOLD)
class TestDueHoldsInTheColumn:
    """In claim "on_hold" a due hold's places come back to the column when somebody notices."""

    @pytest.fixture
    def desk(
        self,
        kind: str,
        claim: str,
        world_name: str,
        place_of: Callable[[str], Place],
        worlds: Worlds,
    ) -> Iterator[Desk]:
        clock = ManualClock()
        with (
            closing(worlds.open(world_name)) as world,
            opened(kind, place_of(kind), world=world, clock=clock, claim=claim) as slots,
        ):
            slots.add([(1, 4)], scope="a")
            yield Desk(slots, clock, POLICY, world=world)

    def test_the_list_shows_them_at_once(self, desk: Desk) -> None:
        desk.due(1, 3)

        assert desk.row(1) == (4, 1)
        assert free(desk.slots, 1) == 4
        assert desk.row(1) == (4, 1)

    def test_no_slot_is_full_for_lack_of_a_sweeper(self, desk: Desk) -> None:
        desk.due(1, 3)
        desk.told.clear()

        desk.holds.create(1, 4)

        assert desk.row(1) == (4, 0)
        assert desk.told == ["a"]
        check_books(desk.slots)

    def test_a_refusal_counts_them_and_writes_nothing(self, desk: Desk) -> None:
        due = desk.due(1, 3)

        with pytest.raises(SlotFull) as refused:
            desk.holds.create(1, 5)

        assert refused.value.remaining == 4
        assert desk.row(1) == (4, 1)
        assert desk.written() == {due.id: "held"}

    @pytest.mark.parametrize("operation", ["create", "set_capacity", "expire_due"])
    def test_they_come_back_once(self, desk: Desk, operation: str) -> None:
        desk.due(1, 3)

        for _ in range(2):
            if operation == "create":
                desk.cancelled(1, 4)
            elif operation == "set_capacity":
                desk.holds.set_capacity(1, 5)
                desk.holds.set_capacity(1, 4)
            else:
                desk.holds.expire_due()

        assert desk.row(1) == (4, 4)
        check_books(desk.slots)

    @pytest.mark.parametrize("operation", ["confirm", "cancel", "extend"])
    def test_what_comes_too_late_gives_nothing_back_twice(self, desk: Desk, operation: str) -> None:
        due = desk.due(1, 3)

        for _ in range(2):
            if operation == "cancel":
                assert desk.holds.cancel(due.id) == replace(due, replayed=True)
            else:
                arguments = (10,) if operation == "extend" else ()
                with pytest.raises(HoldExpired):
                    getattr(desk.holds, operation)(due.id, *arguments)
            desk.holds.expire_due()

        assert desk.row(1) == (4, 4)

    @pytest.mark.parametrize("operation", ["create", "expire_due", "set_capacity"])
    def test_a_row_without_room_for_them_is_filled_up_and_that_is_logged(
        self, desk: Desk, operation: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        due = desk.due(1, 3)
        desk.edit("UPDATE slots SET remaining = 2 WHERE slot_id = 1")

        assert free(desk.slots, 1) == 4
        if operation == "create":
            desk.holds.create(1, 4)
        elif operation == "expire_due":
            assert desk.holds.expire_due() == 1
        else:
            desk.holds.set_capacity(1, 6)

        after = {"create": (4, 0), "expire_due": (4, 4), "set_capacity": (6, 6)}
        assert desk.row(1) == after[operation]
        assert desk.written()[due.id] == "expired"
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("slotcache", logging.WARNING)
        assert "slot 1 had no room for all of 3 places" in record.getMessage()

    def test_a_row_with_room_is_not_worth_a_line(
        self, desk: Desk, caplog: pytest.LogCaptureFixture
    ) -> None:
        desk.swept(1, 4)

        assert caplog.records == []


BAD_ARGUMENTS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("extend", {"hold_id": str(uuid4()), "ttl": 5}, TypeError, r"write UUID\(text\)"),
    ("extend", {"hold_id": None, "ttl": 5}, TypeError, "hold_id must be a UUID"),
    ("extend", {"ttl": 0}, ValueError, "ttl must be a finite number of seconds, above 0, not 0"),
    ("extend", {"ttl": -1}, ValueError, "above 0"),
    ("extend", {"ttl": float("nan")}, ValueError, "finite"),
    ("extend", {"ttl": float("inf")}, ValueError, "finite"),
    ("extend", {"ttl": None}, TypeError, "ttl must be a number of seconds"),
    ("extend", {"ttl": True}, TypeError, "number of seconds"),
    ("extend", {"ttl": timedelta(seconds=5)}, TypeError, "number of seconds"),
    ("find", {"slot_id": "1"}, TypeError, "slot_id must be int"),
    ("find", {"slot_id": True}, TypeError, "slot_id must be int"),
    ("find", {"slot_id": 2**63}, ValueError, "64 bits"),
    ("find", {"owner": 7}, TypeError, r"write str\(owner\)"),
    ("find", {"owner": ""}, ValueError, "1 to 255 characters, not 0: write None"),
    ("find", {"owner": "x" * 256}, ValueError, "1 to 255 characters, not 256"),
    ("find", {"owner": "a\0"}, ValueError, "has a NUL"),
    ("find", {"state": "held"}, TypeError, "state must be a HoldState or None, not 'held'"),
    ("find", {"limit": 0}, ValueError, "limit must be 1 or more"),
    ("find", {"limit": 10_001}, ValueError, "limit must be at most 10000"),
    ("find", {"limit": None}, TypeError, "limit must be an int"),
    ("set_capacity", {"slot_id": "1", "capacity": 5}, TypeError, "slot_id must be int"),
    ("set_capacity", {"slot_id": None, "capacity": 5}, TypeError, "slot_id must be int"),
    ("set_capacity", {"capacity": -1}, ValueError, "capacity must be 0 or more, not -1"),
    ("set_capacity", {"capacity": 2**31}, ValueError, "capacity must be at most 2147483647"),
    ("set_capacity", {"capacity": 5.0}, TypeError, "capacity must be an int, 0 or more"),
    ("set_capacity", {"capacity": True}, TypeError, "capacity must be an int"),
    ("set_capacity", {"capacity": "5"}, TypeError, "capacity must be an int"),
    ("confirm", {"late": "other"}, ValueError, "late must be 'refuse' or 'reacquire', not 'other'"),
    ("confirm", {"late": None}, ValueError, "late must be 'refuse' or 'reacquire', not None"),
    ("confirm", {"late": True}, ValueError, "late must be"),
    ("cancel", {"quantity": 0}, ValueError, "quantity must be 1 or more, not 0"),
    ("cancel", {"quantity": -1}, ValueError, "quantity must be 1 or more, not -1"),
    ("cancel", {"quantity": True}, TypeError, "quantity must be an int, 1 or more, not True"),
    ("cancel", {"quantity": 1.0}, TypeError, "quantity must be an int"),
    ("purge", {"older_than": -1}, ValueError, "older_than must be a finite .* 0 or more, not -1"),
    ("purge", {"older_than": float("nan")}, ValueError, "finite"),
    ("purge", {"older_than": float("inf")}, ValueError, "finite"),
    ("purge", {"older_than": None}, TypeError, "older_than must be a number of seconds"),
    ("purge", {"older_than": timedelta(days=1)}, TypeError, "number of seconds"),
    ("purge", {"older_than": NEW_YEAR}, TypeError, "number of seconds"),
]


@on_one_desk
@pytest.mark.parametrize(("operation", "arguments", "kind", "message"), BAD_ARGUMENTS)
def test_nonsense_is_refused_with_what_to_write_instead(
    desk: Desk, operation: str, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    hold = desk.holds.create(1)
    before = desk.row(1)
    if operation in ("extend", "confirm", "cancel"):
        arguments = {"hold_id": hold.id, **arguments}
    if operation == "set_capacity":
        arguments = {"slot_id": 1, **arguments}

    with pytest.raises(kind, match=message):
        getattr(desk.holds, operation)(**arguments)

    assert desk.holds.find() == [hold]
    assert desk.row(1) == before


@on_one_desk
class TestSecondsBeyondAllCalendars:
    """Who means "for ever" cannot write infinity."""

    @pytest.mark.parametrize("ttl", [1e12, 1e300])
    def test_a_hold_is_extended_by_as_much_as_the_policy_allows(
        self, desk: Desk, ttl: float
    ) -> None:
        hold = desk.holds.create(1)

        assert desk.holds.extend(hold.id, ttl).expires_at == NEW_YEAR + seconds(100)

    def test_a_policy_may_allow_a_century_and_no_more(self, desk: Desk) -> None:
        century = 100 * 365.25 * 86_400
        holds = desk.world.holds(
            desk.slots, on_change=None, policy=HoldPolicy(max_lifetime=century)
        )
        hold = holds.create(1, ttl=5)

        assert holds.extend(hold.id, 60).expires_at == NEW_YEAR + seconds(60)
        assert holds.extend(hold.id, 1e300).expires_at == NEW_YEAR + seconds(century)
        assert holds.create(1, ttl=century).expires_at == NEW_YEAR + seconds(century)
        with pytest.raises(ValueError, match="max_lifetime"):
            HoldPolicy(max_lifetime=century + 1)

    @pytest.mark.parametrize("age", [1e12, 1e300])
    def test_nothing_is_old_enough_to_be_forgotten(self, desk: Desk, age: float) -> None:
        desk.cancelled(1)

        assert desk.holds.purge(age) == 0
