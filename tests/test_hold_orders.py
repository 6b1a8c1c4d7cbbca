"""Several slots in one request, holds that make room for new ones, and parts of holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

import pytest

from slotcache import (
    CapacityTooLow,
    Hold,
    HoldNotFound,
    HoldState,
    HoldTooSmall,
    IdempotencyConflict,
    IllegalTransition,
    SlotFull,
    SlotNotFound,
)

from .support.desk import Desk, on_one_desk
from .support.sql import check_books, free, opened, query
from .support.worlds import World

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


class TestCreateMany:
    def test_it_promises_places_in_each_slot(self, desk: Desk) -> None:
        made = desk.holds.create_many({1: 3, 2: 1}, ttl=60, owner="ann")

        shown = [(hold.slot_id, hold.scope, hold.quantity, hold.owner) for hold in made]
        assert shown == [(1, "a", 3, "ann"), (2, "b", 1, "ann")]
        assert [desk.holds.get(hold.id) for hold in made] == list(made)
        assert not any(hold.replayed for hold in made)
        assert (free(desk.slots, 1), free(desk.slots, 2)) == (1, 0)

    def test_they_come_in_the_order_of_the_request(self, desk: Desk) -> None:
        desk.slots.add([(3, 1)])

        made = desk.holds.create_many({3: 1, 1: 1, 2: 1})

        assert [hold.slot_id for hold in made] == [3, 1, 2]

    def test_all_begin_and_end_at_one_instant(self, desk: Desk) -> None:
        made = desk.holds.create_many({1: 1, 2: 1}, ttl=60)

        assert {hold.created_at for hold in made} == {NEW_YEAR}
        assert {hold.expires_at for hold in made} == {NEW_YEAR + timedelta(seconds=60)}

    def test_each_has_a_life_of_its_own(self, desk: Desk) -> None:
        first, second = desk.holds.create_many({1: 1, 2: 1})

        desk.holds.confirm(first.id)
        desk.holds.cancel(second.id)

        assert desk.written() == {first.id: "confirmed", second.id: "cancelled"}

    def test_each_scope_is_told_once(self, desk: Desk) -> None:
        desk.slots.add([(3, 1), (4, 1)], scope="a")

        desk.holds.create_many({3: 1, 2: 1, 1: 1, 4: 1})

        assert sorted(desk.told) == ["a", "b"]

    def test_one_slot_is_as_good_as_any(self, desk: Desk) -> None:
        (hold,) = desk.holds.create_many({1: 2})

        assert hold == desk.holds.get(hold.id)

    def test_places_of_due_holds_are_free_in_each_slot(self, desk: Desk) -> None:
        due = [desk.due(1, 4), desk.due(2)]

        desk.holds.create_many({1: 4, 2: 1})

        assert [desk.written()[hold.id] for hold in due] == ["expired"] * 2

    @pytest.mark.parametrize("places", [{1: 1, 2: 2}, {2: 2, 1: 1}])
    def test_if_one_slot_is_full_nothing_is_promised(
        self, desk: Desk, places: dict[int, int]
    ) -> None:
        with pytest.raises(SlotFull, match="slot 2 ") as refused:
            desk.holds.create_many(places, idempotency_key="k")

        error = refused.value
        assert (error.slot_id, error.requested, error.remaining) == (2, 2, 1)
        check_nothing_happened(desk)

    @pytest.mark.parametrize("missing", [0, 2, 9])
    def test_if_one_slot_is_closed_or_unknown_nothing_is_promised(
        self, desk: Desk, missing: int
    ) -> None:
        desk.door.closed = 2

        with pytest.raises(SlotNotFound) as refused:
            desk.holds.create_many({1: 1, missing: 1}, idempotency_key="k")

        assert refused.value.slot_id == missing
        check_nothing_happened(desk)

    def test_a_refusal_leaves_due_holds_as_they_are(self, desk: Desk) -> None:
        due, before = desk.due(1, 2), desk.row(1)
        desk.told.clear()

        with pytest.raises(SlotFull):
            desk.holds.create_many({1: 4, 2: 2})

        assert (desk.written(), desk.row(1)) == ({due.id: "held"}, before)
        assert desk.told == []

    def test_any_mapping_will_do(self, desk: Desk) -> None:
        for places in Counter({1: 2}), MappingProxyType({1: 1}):
            desk.holds.create_many(places)

        assert free(desk.slots, 1) == 1


def check_nothing_happened(desk: Desk) -> None:
    assert desk.told == []
    for table in "slot_holds", "slot_hold_keys":
        assert query(desk.slots, f"SELECT count(*) FROM {table}") == [(0,)]


class TestReplaces:
    def test_more_places_of_a_slot_that_is_full(self, desk: Desk) -> None:
        old = desk.holds.create(1, 3)
        desk.sold(1)

        new = desk.holds.create(1, 3, replaces=old.id)

        assert new.state is HoldState.HELD
        assert desk.holds.get(old.id) == replace(old, state=HoldState.CANCELLED)
        assert free(desk.slots, 1) == 0

    @pytest.mark.parametrize("quantity", [1, 3])
    def test_more_or_fewer_places(self, desk: Desk, quantity: int) -> None:
        old = desk.holds.create(1, 2)

        desk.holds.create(1, quantity, replaces=old.id)

        assert free(desk.slots, 1) == 4 - quantity

    @pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
    def test_another_slot(self, desk: Desk, before: int, after: int) -> None:
        old = desk.holds.create(before)
        left = desk.row(before)[0]

        new = desk.holds.create(after, replaces=old.id)

        assert new.slot_id == after
        assert free(desk.slots, before) == left
        assert desk.written() == {old.id: "cancelled", new.id: "held"}

    def test_several_by_one(self, desk: Desk) -> None:
        old = [desk.holds.create(1, 2), desk.holds.create(1, 2), desk.holds.create(2)]
        ids = (hold.id for hold in old)

        (new,) = desk.holds.create_many({1: 4}, replaces=ids)

        assert (free(desk.slots, 1), free(desk.slots, 2)) == (0, 1)
        assert desk.written() == {new.id: "held", **{hold.id: "cancelled" for hold in old}}

    def test_one_by_several(self, desk: Desk) -> None:
        old = desk.holds.create(1, 4)

        desk.holds.create_many({1: 4, 2: 1}, replaces=old.id)

        assert (free(desk.slots, 1), free(desk.slots, 2)) == (0, 0)

    def test_one_that_is_named_twice_makes_room_once(self, desk: Desk) -> None:
        old = desk.holds.create(1)
        desk.sold(1, 2)

        with pytest.raises(SlotFull) as refused:
            desk.holds.create_many({1: 3}, replaces=[old.id, old.id])

        assert refused.value.remaining == 2

    def test_one_in_a_closed_slot(self, desk: Desk) -> None:
        old = desk.holds.create(1)
        desk.door.closed = 1

        desk.holds.create(2, replaces=old.id)

        assert desk.written()[old.id] == "cancelled"

    def test_the_one_that_a_replacement_made(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 4)
        for quantity in 3, 4, 2:
            hold = desk.holds.create(1, quantity, replaces=hold.id)

        assert free(desk.slots, 1) == 2

    @pytest.mark.parametrize("owner", ["ann", None])
    def test_its_owner_may_and_who_names_none(self, desk: Desk, owner: str | None) -> None:
        old = desk.holds.create(1, 4, owner="ann")

        assert desk.holds.create(1, 4, owner=owner, replaces=old.id).owner == owner

    @pytest.mark.parametrize("others", ["ben", None])
    def test_it_is_not_there_for_other_owners(self, desk: Desk, others: str | None) -> None:
        old = desk.holds.create(1, owner=others)

        self.check_refused(desk, HoldNotFound, old, hold_id=old.id, owner="ann")

    def test_there_is_no_such_hold(self, desk: Desk) -> None:
        old = desk.holds.create(1, owner="ann")
        unknown = uuid4()

        self.check_refused(desk, HoldNotFound, old, unknown, hold_id=unknown, owner=None)

    def test_what_is_sold_makes_no_room(self, desk: Desk) -> None:
        sold = desk.sold(1, owner="ann")

        self.check_refused(desk, IllegalTransition, sold, operation="replace", state=sold.state)

    def test_what_is_cancelled_was_replaced_already(self, desk: Desk) -> None:
        gone = desk.cancelled(1, owner="ann")

        self.check_refused(desk, IllegalTransition, gone, operation="replace", state=gone.state)

    @pytest.mark.parametrize("slot_id", [1, 2, 9])
    def test_if_nothing_comes_of_it_the_old_one_lives(self, desk: Desk, slot_id: int) -> None:
        desk.door.closed = 2
        old = desk.holds.create(1, 4, owner="ann", ttl=60)
        refusal = SlotFull if slot_id == 1 else SlotNotFound

        self.check_refused(desk, refusal, old, places={slot_id: 5}, slot_id=slot_id)

        desk.clock.advance(59)
        assert desk.holds.confirm(old.id).state is HoldState.CONFIRMED

    def test_a_refusal_counts_the_places_that_it_would_have_made(self, desk: Desk) -> None:
        old = desk.holds.create(1, 3, owner="ann")

        self.check_refused(desk, SlotFull, old, places={1: 5}, requested=5, remaining=4)

    def check_refused(
        self,
        desk: Desk,
        kind: type[Exception],
        old: Hold,
        *more: UUID,
        places: dict[int, int] = {1: 1},  # noqa: B006
        **fields: object,
    ) -> None:
        """Nothing comes of the replacement: the books are as before, and nobody was told."""
        desk.told.clear()
        before = desk.row(1), desk.row(2), desk.holds.find()

        with pytest.raises(kind) as refused:
            desk.holds.create_many(
                places,
                replaces=[old.id, *more],
                owner=None if more else "ann",
                idempotency_key="k",
            )

        assert {name: getattr(refused.value, name) for name in fields} == fields
        assert (desk.row(1), desk.row(2), desk.holds.find()) == before
        assert query(desk.slots, "SELECT count(*) FROM slot_hold_keys") == [(0,)]
        assert desk.told == []

    @pytest.mark.parametrize("swept", [False, True])
    def test_what_has_expired_makes_no_room_and_no_trouble(self, desk: Desk, swept: bool) -> None:
        old = desk.swept(1, 2) if swept else desk.due(1, 2)
        desk.sold(1, 3)

        with pytest.raises(SlotFull):
            desk.holds.create(1, 2, replaces=old.id)
        desk.holds.create(1, replaces=old.id)

        assert desk.holds.get(old.id) == old
        assert free(desk.slots, 1) == 0

    def test_the_slots_of_both_are_told_once_each(self, desk: Desk) -> None:
        desk.slots.add([(3, 1)], scope="b")
        old = [desk.holds.create(2), desk.holds.create(3)]
        desk.told.clear()

        desk.holds.create_many({1: 1}, replaces=[hold.id for hold in old])

        assert sorted(desk.told) == ["a", "b"]

    def test_one_slot_is_told_once(self, desk: Desk) -> None:
        old = desk.holds.create(1)
        desk.told.clear()

        desk.holds.create(1, 2, replaces=old.id)

        assert desk.told == ["a"]

    def test_where_one_has_expired_before_nothing_has_changed(self, desk: Desk) -> None:
        old = desk.swept(2)
        desk.told.clear()

        desk.holds.create(1, replaces=old.id)

        assert desk.told == ["a"]

    def test_a_retry_with_a_key_finds_the_new_one(self, desk: Desk) -> None:
        old = desk.holds.create(1, 3)
        new = desk.holds.create(1, 4, replaces=old.id, idempotency_key="k")
        desk.told.clear()

        again = desk.holds.create(1, 4, replaces=old.id, idempotency_key="k")

        assert again == replace(new, replayed=True)
        assert desk.told == []

    def test_a_retry_without_a_key_is_told_that_it_is_cancelled(self, desk: Desk) -> None:
        old = desk.holds.create(1, 3)
        desk.holds.create(1, 4, replaces=old.id)

        with pytest.raises(IllegalTransition, match="cancel it yourself"):
            desk.holds.create(1, 4, replaces=old.id)

    def test_a_hold_does_not_replace_itself(self, desk: Desk) -> None:
        """Under its own key, that request was answered before."""
        hold = desk.holds.create(1, idempotency_key="k")

        again = desk.holds.create(1, idempotency_key="k", replaces=hold.id)

        assert again == replace(hold, replayed=True)

    def test_it_can_be_purged_from_then_on(self, desk: Desk) -> None:
        old = desk.holds.create(1)
        desk.clock.advance(5)
        new = desk.holds.create(1, replaces=old.id)
        desk.clock.advance(5)

        assert desk.holds.purge(5.001) == 0
        assert desk.holds.purge(5) == 1
        assert desk.holds.find() == [new]


class TestPartialCancel:
    def test_a_live_hold_keeps_the_rest(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 3, owner="ann")
        desk.clock.advance(5)

        rest = desk.holds.cancel(hold.id, quantity=2)

        assert rest == replace(hold, quantity=1)
        assert desk.holds.get(hold.id) == rest
        assert free(desk.slots, 1) == 3

    def test_so_does_a_confirmed_one(self, desk: Desk) -> None:
        hold = desk.holds.confirm(desk.holds.create(1, 3).id, reference="paid")

        rest = desk.holds.cancel(hold.id, quantity=2)

        assert rest == desk.holds.get(hold.id) == replace(hold, quantity=1)
        assert (desk.row(1), free(desk.slots, 1)) == ((4, 3), 3)

    def test_the_rest_can_be_sold_and_given_back(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 3)
        desk.holds.cancel(hold.id, quantity=1)

        assert desk.holds.confirm(hold.id).quantity == 2
        desk.holds.cancel(hold.id, quantity=1)
        assert desk.holds.cancel(hold.id).quantity == 1
        assert desk.row(1) == (4, 4)

    def test_the_rest_of_a_live_one_expires(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 3, ttl=5)
        desk.holds.cancel(hold.id, quantity=1)
        desk.clock.advance(5)

        assert free(desk.slots, 1) == 4
        desk.holds.expire_due()
        assert desk.row(1) == (4, 4)

    def test_what_is_given_up_is_for_others(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 4)
        desk.holds.cancel(hold.id, quantity=1)

        with pytest.raises(SlotFull):
            desk.holds.create(1, 2)
        desk.holds.create(1)

    @pytest.mark.parametrize("confirmed", [False, True])
    def test_of_all_its_places_it_is_a_whole_one(self, desk: Desk, confirmed: bool) -> None:
        hold = desk.sold(1, 3) if confirmed else desk.holds.create(1, 3)

        cancelled = desk.holds.cancel(hold.id, quantity=3)

        assert cancelled == replace(hold, state=HoldState.CANCELLED)
        assert desk.holds.cancel(hold.id, quantity=3).replayed
        assert desk.holds.purge(0) == 1

    @pytest.mark.parametrize("confirmed", [False, True])
    @pytest.mark.parametrize("quantity", [4, 10**30])
    def test_there_are_not_so_many(self, desk: Desk, confirmed: bool, quantity: int) -> None:
        hold = desk.sold(1, 3) if confirmed else desk.holds.create(1, 3)
        desk.told.clear()

        with pytest.raises(HoldTooSmall, match="cancel fewer") as refused:
            desk.holds.cancel(hold.id, quantity=quantity)

        error = refused.value
        assert (error.hold_id, error.requested, error.quantity) == (hold.id, quantity, 3)
        assert desk.holds.get(hold.id) == hold
        assert desk.told == []

    @pytest.mark.parametrize("how", [{}, {"restock": False}], ids=["back", "written off"])
    def test_of_what_has_ended_it_is_a_replay(self, desk: Desk, how: dict[str, Any]) -> None:
        for hold in desk.cancelled(1, 2), desk.swept(1, 2), desk.due(1, 2):
            desk.told.clear()
            before = desk.row(1)

            for quantity in 1, 2, 3, None:
                again = desk.holds.cancel(hold.id, quantity=quantity, **how)
                assert again == replace(hold, replayed=True)

            assert desk.row(1) == before
            assert desk.told == []

    def test_everybody_who_shows_the_list_is_told_each_time(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 3)
        desk.told.clear()

        desk.holds.cancel(hold.id, quantity=1)
        desk.holds.cancel(hold.id, quantity=1)

        assert desk.told == ["a", "a"]

    def test_its_key_stands_for_the_first_request(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 3, idempotency_key="k")
        rest = desk.holds.cancel(hold.id, quantity=1)

        assert desk.holds.create(1, 3, idempotency_key="k") == replace(rest, replayed=True)
        with pytest.raises(IdempotencyConflict):
            desk.holds.create(1, 2, idempotency_key="k")

    def test_a_shrunken_hold_makes_room_for_what_it_still_has(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 3)
        desk.holds.cancel(hold.id, quantity=2)
        desk.sold(1, 3)

        with pytest.raises(SlotFull) as refused:
            desk.holds.create(1, 2, replaces=hold.id)

        assert refused.value.remaining == 1


class TestWriteOff:
    """Places that were sold, and are not for sale again."""

    def test_the_whole_of_a_sale(self, desk: Desk) -> None:
        sale = desk.sold(1, 3)
        desk.written_off[1] += 3
        desk.told.clear()

        gone = desk.holds.cancel(sale.id, restock=False)

        assert gone == desk.holds.get(sale.id) == replace(sale, state=HoldState.CANCELLED)
        assert (desk.row(1), free(desk.slots, 1)) == ((4, 1), 1)
        assert desk.told == ["a"]

    def test_a_part_of_a_sale(self, desk: Desk) -> None:
        sale = desk.sold(1, 3)
        desk.written_off[1] += 2
        desk.told.clear()

        rest = desk.holds.cancel(sale.id, quantity=2, restock=False)

        assert rest == desk.holds.get(sale.id) == replace(sale, quantity=1)
        assert (desk.row(1), free(desk.slots, 1)) == ((4, 1), 1)
        assert desk.told == ["a"]

    def test_nobody_can_have_them(self, desk: Desk) -> None:
        desk.written_off[1] += 3
        desk.holds.cancel(desk.sold(1, 3).id, restock=False)

        with pytest.raises(SlotFull) as refused:
            desk.holds.create(1, 2)

        assert refused.value.remaining == 1

    def test_a_part_of_each_kind(self, desk: Desk) -> None:
        sale = desk.sold(1, 4)
        desk.written_off[1] += 1

        desk.holds.cancel(sale.id, quantity=1, restock=False)
        desk.holds.cancel(sale.id, quantity=1)
        desk.holds.cancel(sale.id)

        assert desk.row(1) == (4, 3)

    def test_twice_is_once(self, desk: Desk) -> None:
        sale = desk.sold(1, 3)
        desk.written_off[1] += 3
        gone = desk.holds.cancel(sale.id, restock=False)

        for restock in False, True:
            again = desk.holds.cancel(sale.id, restock=restock)
            assert again == replace(gone, replayed=True)

        assert desk.row(1) == (4, 1)

    def test_there_are_not_so_many(self, desk: Desk) -> None:
        sale = desk.sold(1, 3)

        with pytest.raises(HoldTooSmall):
            desk.holds.cancel(sale.id, quantity=4, restock=False)

        assert desk.holds.get(sale.id) == sale

    @pytest.mark.parametrize("quantity", [None, 1, 2, 3])
    def test_nothing_was_sold_under_a_live_hold(self, desk: Desk, quantity: int | None) -> None:
        hold = desk.holds.create(1, 2)
        desk.told.clear()

        with pytest.raises(IllegalTransition, match="without restock=False") as refused:
            desk.holds.cancel(hold.id, quantity=quantity, restock=False)

        error = refused.value
        assert (error.operation, error.state) == ("write off", HoldState.HELD)
        assert desk.holds.get(hold.id) == hold
        assert desk.told == []

    def test_a_slot_is_not_made_smaller_than_what_was_written_off(self, desk: Desk) -> None:
        desk.written_off[1] += 2
        desk.holds.cancel(desk.sold(1, 3).id, quantity=2, restock=False)

        with pytest.raises(CapacityTooLow) as refused:
            desk.holds.set_capacity(1, 2)
        desk.holds.set_capacity(1, 6)

        assert refused.value.lowest == 3
        assert desk.row(1) == (6, 3)

    def test_who_adds_them_to_the_row_sells_them_again(self, desk: Desk) -> None:
        desk.holds.cancel(desk.sold(1, 4).id, restock=False)

        desk.edit("UPDATE slots SET remaining = remaining + 4 WHERE slot_id = 1")

        assert desk.holds.create(1, 4).state is HoldState.HELD

    def test_its_hold_is_forgotten_like_any_other(self, desk: Desk) -> None:
        desk.written_off[1] += 3
        desk.holds.cancel(desk.sold(1, 3).id, restock=False)

        assert desk.holds.purge(0) == 1
        assert desk.row(1) == (4, 1)


BAD_REQUESTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"places": {}}, ValueError, "places is empty: name a slot at least"),
    ({"places": [1, 2]}, TypeError, r"must be a mapping, not \[1, 2\]: write {slot_id: quantity"),
    ({"places": [(1, 2)]}, TypeError, "places must be a mapping"),
    ({"places": 1}, TypeError, "places must be a mapping, not 1"),
    ({"places": None}, TypeError, "places must be a mapping"),
    ({"places": {1: 1, 2: 0}}, ValueError, "quantity must be 1 or more, not 0"),
    ({"places": {1: 1, 2: -1}}, ValueError, "quantity must be 1 or more, not -1"),
    ({"places": {1: 1, 2: True}}, TypeError, "quantity must be an int, 1 or more, not True"),
    ({"places": {1: 1, 2: None}}, TypeError, "quantity must be an int"),
    ({"places": {1: 1, "2": 1}}, TypeError, "slot_id must be int, as in the table, not '2'"),
    ({"places": {1: 1, 2.0: 1}}, TypeError, "slot_id must be int"),
    ({"places": {True: 1}}, TypeError, "slot_id must be int"),
    ({"places": {None: 1}}, TypeError, "slot_id must be int"),
    ({"places": {1: 1, 2**63: 1}}, ValueError, "64 bits"),
    ({"replaces": "7f"}, TypeError, r"replaces must be a UUID, not '7f': write UUID\(text\)"),
    ({"replaces": [str(UUID(int=7))]}, TypeError, r"replaces must be a UUID.*write UUID\(text\)"),
    ({"replaces": 7}, TypeError, "replaces must be a UUID, not 7"),
    ({"replaces": [None]}, TypeError, "replaces must be a UUID, not None"),
    ({"ttl": 0}, ValueError, "above 0"),
    ({"owner": ""}, ValueError, "write None"),
    ({"idempotency_key": 7}, TypeError, r"write str\(idempotency_key\)"),
]


@on_one_desk
@pytest.mark.parametrize(("arguments", "kind", "message"), BAD_REQUESTS)
def test_nonsense_is_refused_with_what_to_write_instead(
    desk: Desk, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        desk.holds.create_many(**{"places": {1: 1}, **arguments})

    check_nothing_happened(desk)


@on_one_desk
@pytest.mark.parametrize("several", [False, True])
def test_who_hands_in_the_hold_itself_is_told_to_write_its_id(desk: Desk, several: bool) -> None:
    made: Any = desk.holds.create_many({1: 1})

    with pytest.raises(TypeError, match=r"not a Hold: write hold\.id"):
        desk.holds.create(1, replaces=made if several else made[0])


@on_one_desk
@pytest.mark.parametrize("slot_id", [[1], {1: 2}])
def test_who_hands_several_slots_to_create_is_told_what_a_slot_is(desk: Desk, slot_id: Any) -> None:
    with pytest.raises(TypeError, match="slot_id must be int, as in the table"):
        desk.holds.create(slot_id)


@on_one_desk
def test_the_request_may_be_changed_once_it_was_made(desk: Desk) -> None:
    places = {1: 1, 2: 1}
    made = desk.holds.create_many(places, idempotency_key="k")

    places[1] = 4

    again = desk.holds.create_many({1: 1, 2: 1}, idempotency_key="k")
    assert [hold.id for hold in again] == [hold.id for hold in made]


class TestSpellings:
    """MariaDB takes "a" for "A", so that a mapping may name one slot twice."""

    @pytest.mark.parametrize("places", [{"a": 1, "A": 1}, {"A": 3, "b": 1, "a ": 3}])
    def test_one_slot_in_two_spellings_is_refused(
        self, world: World, mariadb_url: str, places: dict[str, int]
    ) -> None:
        with opened("mariadb", mariadb_url, id_type=str, world=world) as slots:
            slots.add([("a", 4), ("b", 4)])
            told: list[Any] = []
            holds = world.holds(slots, on_change=told.append)

            with pytest.raises(ValueError, match="slot 'a' is there twice, in two spellings"):
                holds.create_many(places, idempotency_key="k")

            assert (holds.find(), told) == ([], [])
            assert query(slots, "SELECT count(*) FROM slot_hold_keys") == [(0,)]

    def test_another_spelling_is_the_same_request(self, world: World, mariadb_url: str) -> None:
        with opened("mariadb", mariadb_url, id_type=str, world=world) as slots:
            slots.add([("a", 4), ("b", 4)])
            holds = world.holds(slots, on_change=None)
            made = holds.create_many({"A": 1, "b": 2}, idempotency_key="k")

            again = holds.create_many({"B": 2, "a": 1}, idempotency_key="k")

            assert [hold.slot_id for hold in made] == ["a", "b"]
            assert again == tuple(replace(hold, replayed=True) for hold in made)
            check_books(slots)
