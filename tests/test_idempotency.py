"""What exactly a key is, and what it stands for; the promise itself: `spec/test_p07_once.py`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from slotcache import (
    HoldNotFound,
    HoldState,
    IdempotencyConflict,
    SlotNotFound,
)

from .support.desk import Desk, on_one_desk
from .support.sql import opened, query
from .support.worlds import World

LONGEST = "\N{SAUROPOD}" * 255
"""As many characters as are allowed, of four bytes each."""

ALIKE = ["k", "K", "k ", " k", "ä", "a", "A", "a\N{COMBINING DIAERESIS}", "ß", "ss", "1", "01"]
"""Some collation takes each of these for another."""


class TestTheSameRequest:
    def test_is_so_with_another_ttl(self, desk: Desk) -> None:
        """Who sends it again may ask for the time that is left."""
        hold = desk.holds.create(1, ttl=60, idempotency_key="k")

        again = desk.holds.create(1, ttl=30, idempotency_key="k")

        assert again == replace(hold, replayed=True)

    def test_without_a_key_is_another_one(self, desk: Desk) -> None:
        first, second = desk.holds.create(1), desk.holds.create(1)

        assert first.id != second.id
        assert count(desk, "slot_hold_keys") == 0

    def test_is_answered_although_the_slot_is_gone(self, desk: Desk) -> None:
        """Foreign keys forbid that. There are those who do without."""
        hold = desk.holds.create(1, idempotency_key="k")
        delete_slot(desk, 1)

        again = desk.holds.create(1, idempotency_key="k")

        assert again == replace(hold, scope=None, replayed=True)
        with pytest.raises(SlotNotFound):
            desk.holds.create(1, idempotency_key="another")


class TestAnotherRequest:
    def test_is_refused_although_the_hold_has_ended(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 3, idempotency_key="k")
        desk.holds.cancel(hold.id)

        with pytest.raises(IdempotencyConflict):
            desk.holds.create(1, 2, idempotency_key="k")


class TestSeveralSlots:
    """One key covers all the holds of a request."""

    def test_whatever_the_order_it_is_asked_in(self, desk: Desk) -> None:
        """The answer has that of the first request."""
        desk.slots.add([(3, 1)])
        made = desk.holds.create_many({3: 1, 1: 3, 2: 1}, idempotency_key="k")

        again = desk.holds.create_many({1: 3, 2: 1, 3: 1}, idempotency_key="k")

        assert again == tuple(replace(hold, replayed=True) for hold in made)

    def test_they_are_shown_as_they_are_now(self, desk: Desk) -> None:
        first, second = desk.holds.create_many({1: 1, 2: 1}, idempotency_key="k")
        desk.holds.confirm(first.id, reference="paid")
        desk.holds.cancel(second.id)

        again = desk.holds.create_many({1: 1, 2: 1}, idempotency_key="k")

        assert [hold.state for hold in again] == [HoldState.CONFIRMED, HoldState.CANCELLED]
        assert again[0].reference == "paid"

    @pytest.mark.parametrize(
        "places",
        [{1: 2}, {2: 1}, {1: 2, 2: 2}, {1: 1, 2: 1}, {1: 2, 2: 1, 3: 1}, {1: 2, 9: 1}, {1: 12}],
        ids=str,
    )
    def test_another_request_is_refused(self, desk: Desk, places: dict[int, int]) -> None:
        desk.slots.add([(3, 1)])
        made = desk.holds.create_many({1: 2, 2: 1}, idempotency_key="k")
        desk.told.clear()

        with pytest.raises(IdempotencyConflict) as refused:
            desk.holds.create_many(places, idempotency_key="k")

        assert (refused.value.hold_id, refused.value.idempotency_key) == (made[0].id, "k")
        assert refused.value.reference is None
        assert count(desk, "slot_holds") == count(desk, "slot_hold_keys") == 2
        assert desk.told == []

    def test_one_slot_is_the_same_request_by_either_call(self, desk: Desk) -> None:
        one = desk.holds.create(1, 2, idempotency_key="one")
        (other,) = desk.holds.create_many({1: 2}, idempotency_key="other")

        assert desk.holds.create_many({1: 2}, idempotency_key="one") == (
            replace(one, replayed=True),
        )
        assert desk.holds.create(1, 2, idempotency_key="other") == replace(other, replayed=True)

    def test_one_of_several_is_another_request(self, desk: Desk) -> None:
        desk.holds.create_many({1: 2, 2: 1}, idempotency_key="k")

        with pytest.raises(IdempotencyConflict):
            desk.holds.create(1, 2, idempotency_key="k")

    def test_it_is_answered_although_a_slot_is_full_and_one_closed(self, desk: Desk) -> None:
        made = desk.holds.create_many({1: 4, 2: 1}, idempotency_key="k")
        desk.door.closed = 2

        again = desk.holds.create_many({1: 4, 2: 1}, idempotency_key="k")

        assert again == tuple(replace(hold, replayed=True) for hold in made)

    def test_slots_whose_names_run_together_are_told_apart(
        self, world: World, tmp_path: Path
    ) -> None:
        with opened("memory", tmp_path, id_type=str, world=world) as slots:
            slots.add([("1", 22), ("11", 22), ('1", 1], ["2', 22), ("2", 22)])
            holds = world.holds(slots, on_change=None)
            holds.create_many({"1": 1, "2": 1}, idempotency_key="k")

            for places in {"1": 12}, {"11": 2}, {'1", 1], ["2': 1}, {"1": 1, "11": 1}:
                with pytest.raises(IdempotencyConflict):
                    holds.create_many(places, idempotency_key="k")


class TestOwners:
    def test_an_owner_and_a_key_do_not_run_together(self, desk: Desk) -> None:
        first = desk.holds.create(1, owner="ab", idempotency_key="c")

        assert desk.holds.create(1, owner="a", idempotency_key="bc").id != first.id


class TestExactness:
    """Collations do not decide who gets whose hold."""

    def test_keys_that_look_alike_are_different(self, desk: Desk) -> None:
        desk.slots.add([(3, 100)])

        made = {key: desk.holds.create(3, idempotency_key=key) for key in ALIKE}

        assert len({hold.id for hold in made.values()}) == len(ALIKE)
        for key, hold in made.items():
            assert desk.holds.create(3, idempotency_key=key) == replace(hold, replayed=True)

    def test_owners_that_look_alike_are_different(self, desk: Desk) -> None:
        desk.slots.add([(3, 100)])

        made = {owner: desk.holds.create(3, owner=owner, idempotency_key="k") for owner in ALIKE}

        assert len({hold.id for hold in made.values()}) == len(ALIKE)
        for owner, hold in made.items():
            again = desk.holds.create(3, owner=owner, idempotency_key="k")
            assert again == replace(hold, replayed=True)
            assert desk.holds.find(owner=owner) == [hold]

    def test_every_character_counts_of_as_many_as_are_allowed(self, desk: Desk) -> None:
        other = LONGEST[:-1] + "\N{T-REX}"

        hold = desk.holds.create(1, owner=LONGEST, idempotency_key=LONGEST)
        others = [
            desk.holds.create(1, owner=owner, idempotency_key=key)
            for owner, key in [(LONGEST, other), (other, LONGEST)]
        ]

        again = desk.holds.create(1, owner=LONGEST, idempotency_key=LONGEST)
        assert again == replace(hold, replayed=True)
        assert hold.owner == LONGEST
        assert len({hold.id, *(each.id for each in others)}) == 3

    @pytest.mark.parametrize("text", ["%", "_", "'; --", "\\", "\n", "\x01", "\x7f", "\ufffd"])
    def test_no_character_has_a_meaning(self, desk: Desk, text: str) -> None:
        hold = desk.holds.create(1, owner=text, idempotency_key=text)

        again = desk.holds.create(1, owner=text, idempotency_key=text)

        assert again == replace(hold, replayed=True)
        assert again.owner == text


class TestPurge:
    def test_keys_of_other_holds_stay(self, desk: Desk) -> None:
        ended = desk.holds.create(1, owner="ann", idempotency_key="k")
        live = desk.holds.create(1, owner="ben", idempotency_key="k")
        sold = desk.holds.create(1, owner="ann", idempotency_key="K")
        desk.holds.confirm(sold.id)
        desk.holds.cancel(ended.id)

        desk.holds.purge(0)

        assert count(desk, "slot_hold_keys") == 2
        assert desk.holds.create(1, owner="ben", idempotency_key="k").id == live.id
        assert desk.holds.create(1, owner="ann", idempotency_key="K").id == sold.id

    def test_a_key_is_kept_while_one_of_its_holds_is(self, desk: Desk) -> None:
        first, second = desk.holds.create_many({1: 1, 2: 1}, idempotency_key="k")
        desk.holds.cancel(first.id)

        assert desk.holds.purge(0) == 1

        again = desk.holds.create_many({1: 1, 2: 1}, idempotency_key="k")
        assert again == (replace(second, replayed=True),)
        with pytest.raises(IdempotencyConflict):
            desk.holds.create(2, idempotency_key="k")

    @pytest.mark.parametrize("at_once", [1, 2, 1000])
    def test_it_is_forgotten_with_the_last_of_them(
        self, desk: Desk, at_once: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("slotcache.operations._PURGED_AT_ONCE", at_once)
        desk.slots.add([(3, 1)])
        made = desk.holds.create_many({3: 1, 1: 1, 2: 1}, idempotency_key="k")
        other = desk.holds.create(1, idempotency_key="other")
        for hold in made[:2]:
            desk.holds.cancel(hold.id)
        assert desk.holds.purge(0) == 2
        desk.holds.cancel(made[2].id)

        assert desk.holds.purge(0) == 1

        assert count(desk, "slot_hold_keys") == 1
        assert not desk.holds.create(1, 2, idempotency_key="k").replayed
        assert desk.holds.create(1, idempotency_key="other").id == other.id

    def test_keys_of_one_name_and_different_owners_are_not_mixed_up(self, desk: Desk) -> None:
        gone = desk.holds.create_many({1: 1, 2: 1}, owner="ann", idempotency_key="k")
        for hold in gone:
            desk.holds.cancel(hold.id)
        kept = desk.holds.create_many({1: 1, 2: 1}, owner="Ann", idempotency_key="k")

        assert desk.holds.purge(0) == 2

        again = desk.holds.create_many({1: 1, 2: 1}, owner="Ann", idempotency_key="k")
        assert again == tuple(replace(hold, replayed=True) for hold in kept)

    def test_keys_that_two_purges_have_left_to_one_another_block_nothing(self, desk: Desk) -> None:
        orphaned(desk, {1: 1, 2: 1})

        made = desk.holds.create_many({1: 1, 2: 1}, idempotency_key="k")

        assert not any(hold.replayed for hold in made)
        again = desk.holds.create_many({1: 1, 2: 1}, idempotency_key="k")
        assert again == tuple(replace(hold, replayed=True) for hold in made)
        assert count(desk, "slot_hold_keys") == 2

    @pytest.mark.parametrize("places", [{1: 2, 2: 1}, {1: 1}], ids=str)
    def test_not_even_another_request(self, desk: Desk, places: dict[int, int]) -> None:
        orphaned(desk, {1: 1, 2: 1})

        made = desk.holds.create_many(places, idempotency_key="k")

        assert not any(hold.replayed for hold in made)
        assert count(desk, "slot_hold_keys") == len(places)

    def test_a_replacement_is_forgotten_after_what_it_replaced(self, desk: Desk) -> None:
        old = desk.holds.create(1, idempotency_key="k")
        new = desk.holds.create(1, 2, replaces=old.id, idempotency_key="k, more")

        assert desk.holds.purge(0) == 1

        again = desk.holds.create(1, 2, replaces=old.id, idempotency_key="k, more")
        assert again == replace(new, replayed=True)
        with pytest.raises(HoldNotFound):
            desk.holds.create(1, 2, replaces=old.id)

    def test_a_late_sale_keeps_its_key(self, desk: Desk) -> None:
        hold = desk.holds.create(1, ttl=5, idempotency_key="k")
        desk.clock.advance(5)
        desk.holds.expire_due()
        desk.holds.confirm(hold.id, late="reacquire")
        desk.holds.purge(0)

        again = desk.holds.create(1, idempotency_key="k")

        assert again == replace(hold, state=HoldState.CONFIRMED, replayed=True)


def orphaned(desk: Desk, places: dict[int, int]) -> None:
    """Leave a key whose holds are all gone, as two purges may that overlap."""
    desk.holds.create_many(places, idempotency_key="k")
    desk.edit("DELETE FROM slot_holds")
    desk.edit("UPDATE slots SET remaining = capacity")


BAD_KEYS: list[tuple[Any, type[Exception], str]] = [
    ("", ValueError, "1 to 255 characters, not 0: write None"),
    ("x" * 256, ValueError, "1 to 255 characters, not 256"),
    (7, TypeError, r"must be a str or None, not 7: write str\("),
    (b"k", TypeError, "must be a str"),
    ("a\0b", ValueError, "has a NUL"),
    ("\ud83e", ValueError, "half of a surrogate pair"),
    ("a\udc00", ValueError, "half of a surrogate pair"),
]


@on_one_desk
@pytest.mark.parametrize("argument", ["owner", "idempotency_key", "reference"])
@pytest.mark.parametrize(("text", "kind", "message"), BAD_KEYS)
def test_nonsense_is_refused_with_what_to_write_instead(
    desk: Desk, argument: str, text: Any, kind: type[Exception], message: str
) -> None:
    hold = desk.holds.create(2)
    call = partial(desk.holds.create, 1)
    if argument == "reference":
        call = partial(desk.holds.confirm, hold.id)
    arguments: dict[str, Any] = {argument: text}

    with pytest.raises(kind, match=f"^{argument} .*{message}"):
        call(**arguments)

    assert desk.holds.find() == [hold]
    assert count(desk, "slot_hold_keys") == 0


def test_slots_with_names_are_told_apart(world: World, tmp_path: Path) -> None:
    with opened("memory", tmp_path, id_type=str, world=world) as slots:
        slots.add([("dock 4", 2), ("dock 5", 2)])
        holds = world.holds(slots, on_change=None)
        hold = holds.create("dock 4", idempotency_key="k")

        assert holds.create("dock 4", idempotency_key="k") == replace(hold, replayed=True)
        with pytest.raises(IdempotencyConflict):
            holds.create("dock 5", idempotency_key="k")


def count(desk: Desk, table: str) -> int:
    ((number,),) = query(desk.slots, f"SELECT count(*) FROM {table}")
    return int(number)


def delete_slot(desk: Desk, slot_id: int) -> None:
    """Delete a slot that has holds, as an application without foreign keys may."""
    switches = {
        "sqlite": "PRAGMA foreign_keys = OFF",
        "postgresql": "SET session_replication_role = replica",
        "mysql": "SET foreign_key_checks = 0",
    }
    switches["mariadb"] = switches["mysql"]
    connection = desk.slots.engine.raw_connection()
    cursor = connection.cursor()
    cursor.execute(switches[desk.slots.engine.dialect.name])
    cursor.execute(f"DELETE FROM slots WHERE slot_id = {slot_id}")
    connection.commit()
    connection.invalidate()  # the switch goes with it
