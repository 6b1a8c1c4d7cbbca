"""P6 never oversold.

At every instant a slot has 0 <= remaining <= capacity, and what is confirmed in it and what live
holds promise come to no more than its capacity. That holds whatever operations are called, in
whatever order, by however many threads, tasks and processes at once, and whoever of them is killed
in the midst; in both claims, and on SQLite, PostgreSQL and MariaDB.

It is the database that sees to it, and no cache or lock of slotcache is asked. An operation that
promises places or gives them back begins by writing the row of the slot, so that all others wait
there; it counts, and reads the time, only after that; it is one transaction, of which everything is
done or nothing; and a CHECK of the table holds against every writer.

Limits: A hold promises places until it is due, and no longer: who confirms it later is refused, or
has its places only if they are still free (`late="reacquire"`). What somebody writes to the rows
past slotcache is beyond it: the CHECK keeps `remaining` within its bounds, but whoever lowers it by
hand may take what was promised to somebody, whose confirm is then refused. A table of your own has
the CHECK only if you put it there.

Shown: A machine calls any operations in any order, lets time pass and restarts, and compares
everything with a model in dicts after each step. Then many callers meet behind a lock, and are let
go at once. An order is broken off before each of its statements. And the database is asked to
oversell by its own words. Twins with one guard taken out are noticed; more of them are in
`test_races.py`, `test_oversell.py`, `test_shortcut.py` and `test_transactions.py`, each in
`TestBrokenTwins`, with callers that share nothing but the database. Processes and whole
databases are killed in `test_hold_kills.py` and `test_transaction_kills.py`.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from itertools import count
from typing import Any, cast

import pytest
import sqlalchemy as sa
from hypothesis.stateful import invariant, run_state_machine_as_test

from slotcache import Hold, SlotFull
from slotcache.sql.ledger import SqlLedger
from tests.support.desk import Desk
from tests.support.hold_machine import HoldMachine
from tests.support.hold_twins import (
    CountsOnlyWhatIsSold,
    SellsDeadHolds,
    SellsWithoutTakingOff,
    SumsFirst,
)
from tests.support.sql import free, query
from tests.support.trials import (
    THOROUGH,
    TWINS,
    at_once,
    breaking_off,
    effort,
    everywhere,
    in_a_file,
    noticed,
    rows_of,
    twin_of,
)

BUYERS = 8
BOOKS = """
    SELECT capacity, remaining, (SELECT coalesce(sum(quantity), 0) FROM slot_holds
        WHERE slot_holds.slot_id = slots.slot_id AND state IN ('held', 'confirmed'))
    FROM slots
"""


class Sales(HoldMachine):
    """Any operation on three slots, whose outcome the model knows; and this besides."""

    @invariant()
    def nothing_is_oversold(self) -> None:
        for capacity, remaining, taken in query(self.slots, BOOKS):
            assert 0 <= remaining <= capacity
            assert taken <= capacity


@pytest.mark.timeout(3_600 if THOROUGH else 120)
def test_no_sequence_of_operations_sells_more_than_there_is(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slotcache.operations._PURGED_AT_ONCE", 2)

    machine = cast(Any, lambda: Sales(desk))
    how_much = effort(desk, in_memory=12, on_a_server=4, stateful_step_count=40)
    run_state_machine_as_test(machine, settings=how_much)


@everywhere
@pytest.mark.parametrize("places", [1, BUYERS - 1])
def test_of_many_buyers_as_many_win_as_there_are_places(desk: Desk, places: int) -> None:
    desk.slots.add([(3, places)])

    outcomes = at_once(desk, [lambda: desk.holds.create(3)] * BUYERS, slots=[3])

    assert Counter(map(type, outcomes)) == {Hold: places, SlotFull: BUYERS - places}
    assert free(desk.slots, 3) == 0


@everywhere
def test_orders_that_want_the_same_slots_crosswise_sell_them_out_and_nobody_is_told_busy(
    desk: Desk,
) -> None:
    desk.slots.add([(3, 3), (4, 3)])
    orders = [{3: 1, 4: 1}, {4: 1, 3: 1}]

    outcomes = at_once(
        desk,
        [lambda: desk.holds.create_many(orders[0]), lambda: desk.holds.create_many(orders[1])]
        * (BUYERS // 2),
        slots=[3, 4],
    )

    assert Counter(map(type, outcomes)) == {tuple: 3, SlotFull: BUYERS - 3}
    assert free(desk.slots, 3) == free(desk.slots, 4) == 0


@everywhere
def test_an_order_that_is_broken_off_before_any_of_its_statements_has_done_nothing(
    desk: Desk,
) -> None:
    """It gives a hold up for two new ones, and writes each step of that to the database."""
    old = desk.holds.create(1, 3)
    before = rows_of(desk)

    for step in count(1):
        with breaking_off(desk, step) as steps, suppress(desk.world.interrupt):
            desk.holds.create_many({1: 4, 2: 1}, replaces=old.id, idempotency_key="k")
        if "COMMIT" in steps[: step - 1]:
            break
        assert rows_of(desk) == before, f"broken off before {steps[-1]!r}"

    assert step > 6
    assert free(desk.slots, 1) == free(desk.slots, 2) == 0


def test_the_database_itself_refuses_what_no_code_should_ask_of_it(desk: Desk) -> None:
    before = rows_of(desk)

    for what in ("remaining = -1", "remaining = capacity + 1", "capacity = remaining - 1"):
        with pytest.raises(sa.exc.DBAPIError, match=r"(?i)constraint"):
            desk.edit(f"UPDATE slots SET {what} WHERE slot_id = 1")

    assert rows_of(desk) == before


@TWINS
@in_a_file
@pytest.mark.parametrize("twin", [CountsOnlyWhatIsSold, SellsWithoutTakingOff, SellsDeadHolds])
def test_a_twin_without_one_guard_is_noticed(
    desk: Desk, twin: type[SqlLedger], monkeypatch: pytest.MonkeyPatch
) -> None:
    with twin_of(desk, twin), noticed():
        test_no_sequence_of_operations_sells_more_than_there_is(desk, monkeypatch)


@TWINS
@pytest.mark.parametrize(
    "desk", [("postgres", "counted"), ("mariadb", "counted")], ids="-".join, indirect=True
)
def test_a_twin_that_counts_before_it_locks_is_noticed_where_many_buy(desk: Desk) -> None:
    with twin_of(desk, SumsFirst), noticed():
        test_of_many_buyers_as_many_win_as_there_are_places(desk, 1)
