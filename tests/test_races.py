"""P6 and P7 where many meet at the same rows, on every database.

Each table has an engine of its own and shares nothing with the others, as processes do. They
gather behind a lock that the database holds, and are let go when it says that all of them wait:
there is no race that did not happen. The broken twins at the end fail the same checks, on every
run: so the checks see.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol
from uuid import UUID

import pytest
import sqlalchemy as sa

from slotcache import (
    BackendError,
    Busy,
    CapacityTooLow,
    Hold,
    HoldExpired,
    HoldManager,
    HoldNotFound,
    HoldPolicy,
    HoldState,
    IdempotencyConflict,
    IllegalTransition,
    SlotcacheError,
    SlotFull,
)
from slotcache.ledger import Change, DueHold, HoldRequest
from slotcache.sql import SqlSlots
from slotcache.sql.columns import Instant
from slotcache.sql.database import Database
from slotcache.sql.ledger import SqlLedger
from slotcache.sql.places import SlotCount
from slotcache.sql.servers import Postgres
from slotcache.sql.statements import Statements
from slotcache.sql.tables import keys_of

from .support.races import PATIENT, Crowd, buy, cleared, gathered
from .support.sql import CLAIMS, ON_SERVERS, Place, check_books, free, on_connect, query
from .support.thorough import THOROUGH
from .support.threads import PATIENCE, spawn
from .support.worlds import World, Worlds, inner_engine

CALLERS = int(os.environ.get("SLOTCACHE_TEST_CALLERS", "8"))
"""How many meet in each race; it is even, and more than six."""

RACED = ("given", *ON_SERVERS)
"""On a plain SQLite engine the tables do not share their turns."""

ROUNDS = int(os.environ.get("SLOTCACHE_TEST_ROUNDS", "1"))
"""How often to run each race: see the task `soak` of dev.py."""

PlaceOf = Callable[[str], Place]


RACED_SO = (
    [(kind, claim) for kind in RACED for claim in CLAIMS]
    if THOROUGH
    else [
        ("given", "counted"),
        ("postgres", "counted"),
        ("postgres", "on_hold"),
        ("mariadb", "on_hold"),
    ]
)
"""The database and the claim of what is said of both; in the long run, each with each."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = metafunc.definition.iter_markers("parametrize")
    named = {name.strip() for mark in marks for name in _names(mark.args[0])}
    asked = {"kind", "claim"} & set(metafunc.fixturenames) - named
    if asked == {"kind", "claim"}:
        metafunc.parametrize(("kind", "claim"), RACED_SO, indirect=True, scope="module")
    elif asked:
        (name,) = asked
        params = RACED if name == "kind" else CLAIMS
        metafunc.parametrize(name, params, indirect=True, scope="module")
    if ROUNDS > 1:
        metafunc.fixturenames.append("round_")
        metafunc.parametrize("round_", range(ROUNDS))


def _names(named: Any) -> Sequence[str]:
    return named.split(",") if isinstance(named, str) else named


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    named: str = request.param
    return named


@pytest.fixture(scope="module")
def claim(request: pytest.FixtureRequest) -> str:
    named: str = request.param
    return named


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, worlds: Worlds) -> Iterator[World]:
    """The blocking one, unless a test is for both."""
    with closing(worlds.open(getattr(request, "param", "blocking"))) as world:
        yield world


in_both_worlds = pytest.mark.parametrize(
    ("kind", "claim", "world"),
    [
        *((kind, claim, "blocking") for kind in RACED for claim in CLAIMS),
        ("postgres", "on_hold", "asyncio"),
        ("mariadb", "counted", "asyncio"),
    ],
    indirect=True,
    scope="module",
)


@pytest.fixture(scope="module")
def standing_crowd(
    kind: str, claim: str, world: World, request: pytest.FixtureRequest, tmp_path_factory: Any
) -> Iterator[Crowd]:
    place = tmp_path_factory.mktemp("races")
    if kind in ON_SERVERS:
        place = request.getfixturevalue(f"{kind}_tables")
    with gathered(kind, place, count=CALLERS, world=world, claim=claim) as crowd:
        yield crowd


@pytest.fixture
def crowd(standing_crowd: Crowd) -> Iterator[Crowd]:
    """So many tables, empty, whose books balance in the end."""
    yield cleared(standing_crowd)
    check_books(standing_crowd.table)


only_on_servers = pytest.mark.parametrize("kind", ON_SERVERS, indirect=True, scope="module")


class TestCreate:
    @in_both_worlds
    def test_one_of_many_buyers_gets_the_last_place(self, crowd: Crowd) -> None:
        assert last_place(crowd) == {Hold: 1, SlotFull: CALLERS - 1}

    @only_on_servers  # SQLite has one way to make a hold
    def test_of_many_who_rush_along_the_slots_one_gets_each(self, crowd: Crowd) -> None:
        """Nothing is locked when they come: PostgreSQL then makes a hold in one statement."""
        crowd.table.add([(slot_id, 1) for slot_id in range(1, 11)])

        def rush(holds: HoldManager) -> int:
            taken = 0
            for slot_id in range(1, 11):
                with suppress(SlotFull):
                    holds.create(slot_id)
                    taken += 1
            return taken

        taken = crowd.race(crowd.each(rush))

        assert sum(taken) == 10
        assert query(crowd.table, "SELECT DISTINCT slot_id FROM slot_holds ORDER BY 1") == [
            (slot_id,) for slot_id in range(1, 11)
        ]

    def test_mixed_quantities_are_sold_out_and_nobody_who_would_fit_is_refused(
        self, crowd: Crowd
    ) -> None:
        crowd.table.add([(1, 100)])
        orders = random.Random(7)
        buyers = [[orders.randint(1, 5) for _ in range(5)] for _ in range(CALLERS)]

        outcomes = crowd.race(
            [
                partial(buy, holds, quantities)
                for holds, quantities in zip(crowd.managers, buyers, strict=True)
            ]
        )

        sold = sum(hold.quantity for taken, _ in outcomes for hold in taken)
        refused = [error for _, refusals in outcomes for error in refusals]
        assert refused, "there was enough for everybody: nothing was contested"
        assert all(error.remaining < error.requested for error in refused)
        # Nothing was given back, so whoever was refused would not fit at the end either.
        assert 100 - sold == free(crowd.table, 1) < min(error.requested for error in refused)

    def test_a_hold_that_falls_due_meanwhile_makes_room(self, crowd: Crowd) -> None:
        crowd.table.add([(1, 2)])
        old = crowd.holds.create(1, 2)

        outcomes = crowd.race(
            crowd.each(lambda holds: holds.create(1, 2)),
            meanwhile=lambda blocker: blocker.end(old),
        )

        assert kinds_of(outcomes) == {Hold: 1, SlotFull: CALLERS - 1}
        assert states(crowd) == {"held": 1, "expired": 1}

    @pytest.mark.parametrize("lowered", [0, 2, 4])
    def test_a_capacity_is_lowered_before_the_sales_or_refused_after_them(
        self, crowd: Crowd, lowered: int
    ) -> None:
        crowd.table.add([(1, 5)])
        calls = crowd.each(lambda holds: holds.create(1))
        calls[3] = partial(crowd.managers[3].set_capacity, 1, lowered)

        outcomes = crowd.race(calls)

        refused = outcomes.pop(3)
        capacity = 5 if isinstance(refused, CapacityTooLow) else lowered
        assert refused is None or lowered < refused.lowest <= 5
        assert kinds_of(outcomes)[Hold] == capacity, "sold out, and not oversold"
        assert kinds_of(outcomes)[SlotFull] == CALLERS - 1 - capacity
        assert query(crowd.table, "SELECT capacity FROM slots") == [(capacity,)]


class TestOnce:
    """P7: the same wish, sent by many at once."""

    @in_both_worlds
    def test_one_key_makes_one_hold(self, crowd: Crowd) -> None:
        holds_made, rows = sent_under_one_key(crowd)

        assert holds_made == {False: 1, True: CALLERS - 1}
        assert rows == 1

    @in_both_worlds
    def test_one_key_on_two_slots_makes_one_hold_and_conflicts(self, crowd: Crowd) -> None:
        crowd.table.add([(1, 5), (2, 5)])
        calls = crowd.each(
            lambda holds: holds.create(1, idempotency_key="k"),
            lambda holds: holds.create(2, idempotency_key="k"),
        )

        outcomes = crowd.race(calls, slots=(1, 2))

        made = [each for each in outcomes if isinstance(each, Hold)]
        conflicts = [each for each in outcomes if isinstance(each, IdempotencyConflict)]
        assert len(made) == len(conflicts) == CALLERS / 2
        assert [each.replayed for each in made].count(False) == 1
        assert {each.id for each in made} == {each.hold_id for each in conflicts}
        assert states(crowd) == {"held": 1}

    def test_a_key_that_is_refused_on_one_slot_is_free_for_another(self, crowd: Crowd) -> None:
        """Those who wait for a key whose owner then takes it back may come into a deadlock."""
        crowd.table.add([(1, 5), (2, 5)])
        crowd.holds.create(1, 5)
        calls = crowd.each(
            lambda holds: holds.create(1, idempotency_key="k"),
            lambda holds: holds.create(2, idempotency_key="k"),
        )

        outcomes = crowd.race(calls, slots=(1, 2))

        refused, made = outcomes[::2], outcomes[1::2]
        assert {type(each) for each in refused} <= {SlotFull, IdempotencyConflict}
        assert [each.replayed for each in made].count(False) == 1
        assert len({each.id for each in made}) == 1
        assert query(crowd.table, "SELECT slot_id FROM slot_holds ORDER BY 1") == [(1,), (2,)]

    @in_both_worlds
    def test_of_many_confirms_one_sells(self, crowd: Crowd) -> None:
        crowd.table.add([(1, 10)])
        hold = crowd.holds.create(1, 3)

        outcomes = crowd.race(crowd.each(lambda holds: holds.confirm(hold.id)))

        assert [each.replayed for each in outcomes].count(False) == 1
        assert remaining(crowd) == 7

    @pytest.mark.parametrize("confirmed", [False, True])
    def test_of_many_cancels_one_gives_the_places_back(self, crowd: Crowd, confirmed: bool) -> None:
        crowd.table.add([(1, 10)])
        hold, other = crowd.holds.create(1, 3), crowd.holds.create(1, 4)
        crowd.holds.confirm(other.id)
        if confirmed:
            crowd.holds.confirm(hold.id)

        outcomes = crowd.race(crowd.each(lambda holds: holds.cancel(hold.id)))

        assert [each.replayed for each in outcomes].count(False) == 1
        assert remaining(crowd) == 6


class TestMoves:
    """Two different moves of one hold."""

    @in_both_worlds
    def test_a_hold_that_falls_due_while_its_confirms_wait_is_not_sold(self, crowd: Crowd) -> None:
        outcomes = confirmed_too_late(crowd)

        assert kinds_of(outcomes) == {HoldExpired: CALLERS}
        assert free(crowd.table, 1) == 5

    def test_a_hold_that_falls_due_while_its_extensions_wait_stays_dead(self, crowd: Crowd) -> None:
        crowd.table.add([(1, 5)])
        hold = crowd.holds.create(1, 2)

        outcomes = crowd.race(
            crowd.each(lambda holds: holds.extend(hold.id, 3000)),
            meanwhile=lambda blocker: blocker.end(hold),
        )

        assert kinds_of(outcomes) == {HoldExpired: CALLERS}
        assert free(crowd.table, 1) == 5

    def test_places_of_a_hold_that_falls_due_are_sold_to_others_or_to_nobody(
        self, crowd: Crowd
    ) -> None:
        crowd.table.add([(1, 2)])
        hold = crowd.holds.create(1, 2)
        calls = crowd.each(
            lambda holds: holds.confirm(hold.id), lambda holds: holds.confirm(holds.create(1, 2).id)
        )

        outcomes = crowd.race(calls, meanwhile=lambda blocker: blocker.end(hold))

        assert kinds_of(outcomes[::2]) == {HoldExpired: CALLERS / 2}
        assert kinds_of(outcomes[1::2]) == {Hold: 1, SlotFull: CALLERS / 2 - 1}
        assert remaining(crowd) == 0

    @in_both_worlds
    def test_confirm_against_cancel_ends_cancelled(self, crowd: Crowd) -> None:
        crowd.table.add([(1, 10)])
        hold = crowd.holds.create(1, 3)
        calls = crowd.each(
            lambda holds: holds.confirm(hold.id), lambda holds: holds.cancel(hold.id)
        )

        outcomes = crowd.race(calls)

        for each in outcomes[::2]:
            assert isinstance(each, IllegalTransition) or each.state is HoldState.CONFIRMED
        assert [each.replayed for each in outcomes[1::2]].count(False) == 1
        assert (states(crowd), remaining(crowd)) == ({"cancelled": 1}, 10)

    def test_confirm_against_extend_ends_confirmed(self, crowd: Crowd) -> None:
        crowd.table.add([(1, 10)])
        hold = crowd.holds.create(1, 3, ttl=60)
        calls = crowd.each(
            lambda holds: holds.confirm(hold.id), lambda holds: holds.extend(hold.id, 3000)
        )

        outcomes = crowd.race(calls)

        assert [each.replayed for each in outcomes[::2]].count(False) == 1
        for each in outcomes[1::2]:
            assert isinstance(each, IllegalTransition) or each.expires_at > hold.expires_at
        assert (states(crowd), remaining(crowd)) == ({"confirmed": 1}, 7)

    @in_both_worlds
    def test_crossed_operations_end_in_business_and_the_books_balance(self, crowd: Crowd) -> None:
        """No deadlock comes out of it, and nobody is told Busy."""
        crowd.table.add([(1, 9), (2, 9)])
        known = [crowd.holds.create(slot_id).id for slot_id in (1, 2)]

        outcomes = crowd.race(
            [
                partial(do_anything, holds, random.Random(seed), known)
                for seed, holds in enumerate(crowd.managers[:8])
            ],
            slots=(1, 2),
            all_wait=False,
        )

        assert outcomes == [None] * 8
        assert len(known) > 2


def do_anything(holds: HoldManager, chance: random.Random, known: list[UUID]) -> None:
    """Do thirty operations at random, on two slots and everybody's holds."""
    holds_lived = (0.001, 0.03, 60)
    operations: list[Callable[[], Any]] = [
        lambda: known.append(
            holds.create(
                chance.randint(1, 2), chance.randint(1, 3), ttl=chance.choice(holds_lived)
            ).id
        ),
        lambda: holds.confirm(chance.choice(known)),
        lambda: holds.cancel(chance.choice(known), quantity=chance.choice((None, 1))),
        lambda: holds.extend(chance.choice(known), chance.choice(holds_lived)),
        lambda: holds.expire_due(chance.randint(1, 10)),
        lambda: holds.set_capacity(chance.randint(1, 2), chance.randint(3, 9)),
        lambda: holds.create(
            chance.randint(1, 2), ttl=0.02, idempotency_key=str(chance.randint(1, 20))
        ),
        lambda: known.extend(
            hold.id
            for hold in holds.create_many(
                dict.fromkeys(chance.sample((1, 2), 2), 1), replaces=chance.choice(known)
            )
        ),
        lambda: holds.confirm(chance.choice(known), late="reacquire", reference="paid"),
        lambda: holds.purge(0),
    ]
    refusals = (
        *(SlotFull, HoldExpired, HoldNotFound, IllegalTransition),
        *(CapacityTooLow, IdempotencyConflict),
    )
    for _ in range(30):
        operation = chance.choices(operations, (6, 3, 3, 2, 2, 1, 2, 2, 3, 1))[0]
        with suppress(*refusals):
            operation()


class TestOrders:
    """Requests for several slots, and those that give something up for it."""

    @in_both_worlds
    def test_crossed_requests_for_several_slots_sell_out_and_lose_no_deadlock(
        self, crowd: Crowd
    ) -> None:
        outcomes, overtaken = crossed(crowd, places=5)

        assert outcomes == {tuple: 5, SlotFull: CALLERS - 5}
        assert overtaken == 0

    def test_crossed_replacements_lose_no_deadlock(self, crowd: Crowd) -> None:
        """Half of them move from slot 1 to slot 2, and the other half the other way."""
        crowd.table.add([(1, CALLERS // 2 + 1), (2, CALLERS // 2 + 1)])
        calls = [
            partial(holds.create, 2 - index % 2, replaces=holds.create(1 + index % 2).id)
            for index, holds in enumerate(crowd.managers)
        ]

        with overtaken_in(crowd) as overtaken:
            outcomes = crowd.race(calls, slots=(1, 2))

        kinds = kinds_of(outcomes)
        assert kinds[Hold] + kinds[SlotFull] == CALLERS
        assert kinds[Hold] >= 2, "one place more than was taken, in each"
        assert states(crowd) == {"held": CALLERS, "cancelled": kinds[Hold]}
        assert overtaken == []

    def test_of_many_replacements_of_one_hold_one_is_made(self, crowd: Crowd) -> None:
        assert replaced_by_many(crowd) == {Hold: 1, IllegalTransition: CALLERS - 1}
        assert states(crowd) == {"held": 1, "cancelled": 1}

    def test_of_many_with_one_key_the_others_are_replays(self, crowd: Crowd) -> None:
        crowd.table.add([(1, 5), (2, 5)])
        old = crowd.holds.create(1, 5)
        works: list[Callable[[HoldManager], Any]] = [
            lambda holds: holds.create_many({1: 3, 2: 5}, replaces=old.id, idempotency_key="k"),
            lambda holds: holds.create_many({2: 5, 1: 3}, replaces=old.id, idempotency_key="k"),
        ]

        outcomes = crowd.race(crowd.each(*works), slots=(1, 2))

        made = Counter(hold.replayed for holds in outcomes for hold in holds)
        assert made == {False: 2, True: 2 * (CALLERS - 1)}
        assert len({tuple(hold.id for hold in holds) for holds in outcomes}) == 1
        assert states(crowd) == {"held": 2, "cancelled": 1}

    def test_of_a_replacement_and_a_confirm_one_has_the_hold(self, crowd: Crowd) -> None:
        crowd.table.add([(1, 3)])
        old = crowd.holds.create(1, 2)
        calls = crowd.each(
            lambda holds: holds.create(1, 3, replaces=old.id),
            lambda holds: holds.confirm(old.id),
        )

        outcomes = crowd.race(calls)

        replacements, confirms = outcomes[::2], outcomes[1::2]
        if crowd.holds.get(old.id).state is HoldState.CONFIRMED:
            assert kinds_of(replacements) == {IllegalTransition: CALLERS / 2}
        else:
            assert kinds_of(replacements) == {Hold: 1, IllegalTransition: CALLERS / 2 - 1}
            assert kinds_of(confirms) == {IllegalTransition: CALLERS / 2}

    @pytest.mark.parametrize("confirmed", [False, True])
    def test_parts_that_are_cancelled_at_once_add_up(self, crowd: Crowd, confirmed: bool) -> None:
        crowd.table.add([(1, CALLERS + 4)])
        hold = crowd.holds.create(1, CALLERS + 1)
        if confirmed:
            crowd.holds.confirm(hold.id)

        outcomes = crowd.race(crowd.each(lambda holds: holds.cancel(hold.id, quantity=1)))

        assert sorted(each.quantity for each in outcomes) == list(range(1, CALLERS + 1))
        assert crowd.holds.get(hold.id).quantity == 1
        assert free(crowd.table, 1) == CALLERS + 3


def test_replacements_wait_also_where_a_transaction_may_not_read_first(tmp_path: Path) -> None:
    """With BEGIN, SQLite tells whoever has read "locked" at once, if others write meanwhile."""
    with gathered("deferred", tmp_path, count=4) as crowd:
        crowd.table.add([(1, 8)])
        calls = [
            partial(holds.create, 1, 2, replaces=holds.create(1).id) for holds in crowd.managers
        ]

        assert kinds_of(crowd.race(calls)) == {Hold: 4}


class TestLatePayments:
    """Those who confirm what has expired, if its places are still free."""

    def test_of_many_one_sells(self, crowd: Crowd) -> None:
        crowd.table.add([(1, 5)])
        hold, other = (crowd.holds.create(1, 2, ttl=0.000001) for _ in range(2))

        outcomes = crowd.race(crowd.each(lambda holds: confirm_late(holds, hold)))

        assert Counter(each.replayed for each in outcomes) == {False: 1, True: CALLERS - 1}
        assert {each.state for each in outcomes} == {HoldState.CONFIRMED}
        assert remaining(crowd) == 3
        assert crowd.holds.get(other.id).state is HoldState.EXPIRED

    def test_a_hold_that_falls_due_while_they_wait_is_sold_all_the_same(self, crowd: Crowd) -> None:
        crowd.table.add([(1, 5)])
        hold = crowd.holds.create(1, 2)

        outcomes = crowd.race(
            crowd.each(lambda holds: confirm_late(holds, hold)),
            meanwhile=lambda blocker: blocker.end(hold),
        )

        assert Counter(each.replayed for each in outcomes) == {False: 1, True: CALLERS - 1}
        assert remaining(crowd) == 3

    @pytest.mark.parametrize("swept", [False, True])
    def test_one_of_them_or_one_buyer_gets_the_last_place(self, crowd: Crowd, swept: bool) -> None:
        crowd.table.add([(1, 1)])
        hold = crowd.holds.create(1, ttl=0.000001)
        if swept:
            assert crowd.holds.expire_due() == 1
        calls = crowd.each(lambda holds: confirm_late(holds, hold), lambda holds: holds.create(1))

        outcomes = crowd.race(calls)

        payments, buyers = outcomes[::2], outcomes[1::2]
        if kinds_of(buyers)[Hold]:
            assert kinds_of(buyers) == {Hold: 1, SlotFull: CALLERS / 2 - 1}
            assert kinds_of(payments) == {HoldExpired: CALLERS / 2}
            assert {type(each.__cause__) for each in payments} == {SlotFull}
        else:
            assert kinds_of(buyers) == {SlotFull: CALLERS / 2}
            assert [each.replayed for each in payments].count(False) == 1

    def test_of_two_payments_for_one_hold_one_is_refused(self, crowd: Crowd) -> None:
        crowd.table.add([(1, 5)])
        hold = crowd.holds.create(1)
        calls = crowd.each(
            lambda holds: holds.confirm(hold.id, reference="payment 1"),
            lambda holds: holds.confirm(hold.id, reference="payment 2"),
        )

        outcomes = crowd.race(calls)

        taken = {each.reference for each in outcomes if isinstance(each, Hold)}
        refused = {each.reference for each in outcomes if isinstance(each, IdempotencyConflict)}
        assert kinds_of(outcomes) == {Hold: CALLERS / 2, IdempotencyConflict: CALLERS / 2}
        assert taken | refused == {"payment 1", "payment 2"}
        assert taken == {crowd.holds.get(hold.id).reference}

    @only_on_servers  # SQLite locks the whole file
    def test_what_a_purge_forgets_in_the_midst_of_it_is_not_there(self, crowd: Crowd) -> None:
        crowd.table.add([(1, 5)])
        hold = crowd.holds.create(1, ttl=0.000001)
        assert crowd.holds.expire_due() == 1
        purging = crowd.managers[1]

        class PurgedMeanwhile(SqlLedger):
            def _make_room_again(self, hold: Hold) -> None:
                super()._make_room_again(hold)
                assert purging.purge(0) == 1

        late = HoldManager(with_ledger(crowd.table, PurgedMeanwhile), on_change=None)
        with pytest.raises((HoldNotFound, HoldExpired)):
            confirm_late(late, hold)


def with_ledger(table: SqlSlots, ledger: type[SqlLedger]) -> SqlSlots:
    """Return a twin of the table, on the same engine."""
    return twin(ledger, None)(
        table.engine, claim="counted" if table._claim.counts_holds else "on_hold"
    )


def confirm_late(holds: HoldManager, hold: Hold) -> Hold:
    return holds.confirm(hold.id, late="reacquire")


MIXED = (1, 9, 17)
"""Three slots whose order in a set of Python's is the one that they were put in."""


def crossed(crowd: Crowd, *, places: int) -> tuple[Counter[type], int]:
    """What comes of requests for slots in opposite order, and how often one was given up."""
    crowd.table.add([(slot_id, places) for slot_id in MIXED])
    calls = crowd.each(
        lambda holds: holds.create_many(dict.fromkeys(MIXED, 1)),
        lambda holds: holds.create_many(dict.fromkeys(reversed(MIXED), 1)),
    )
    with overtaken_in(crowd) as overtaken:
        outcomes = crowd.race(calls, slots=MIXED)
    return kinds_of(outcomes), len(overtaken)


@contextmanager
def overtaken_in(crowd: Crowd) -> Iterator[list[Any]]:
    """What the database ended because of what others did meanwhile."""
    overtaken: list[Any] = []

    def note(context: Any) -> None:
        if crowd.table._database._was_overtaken(context.sqlalchemy_exception):
            overtaken.append(context)

    for table in crowd.tables:
        sa.event.listen(inner_engine(table), "handle_error", note)
    try:
        yield overtaken
    finally:
        for table in crowd.tables:
            sa.event.remove(inner_engine(table), "handle_error", note)


def replaced_by_many(crowd: Crowd) -> Counter[type]:
    """What comes of many who want a slot's only places for the hold that has them."""
    crowd.table.add([(1, 2)])
    old = crowd.holds.create(1, 2)
    return kinds_of(crowd.race(crowd.each(lambda holds: holds.create(1, 2, replaces=old.id))))


class TestSweepers:
    def test_each_hold_is_written_once_and_its_places_come_back_once(
        self, kind: str, claim: str, crowd: Crowd
    ) -> None:
        """All sweepers have the same list in hand when they begin to write."""
        crowd.table.add([(slot_id, 3) for slot_id in range(30)])
        for slot_id in range(30):
            crowd.holds.create(slot_id, 2, ttl=0.000001)

        written = together_on(crowd.tables[:4], lambda holds: holds.expire_due())

        assert sum(written) == 30
        assert states(crowd) == {"expired": 30}
        assert query(crowd.table, "SELECT DISTINCT remaining FROM slots") == [(3,)]

    def test_a_hold_that_turns_out_to_live_is_not_swept(self, crowd: Crowd) -> None:
        """When it was looked for, it was due by another clock, say."""
        crowd.table.add([(1, 3)])
        hold = crowd.holds.create(1, 2)

        swept = crowd.table._transact(
            lambda ledger: ledger.expire([DueHold(hold.id, 1)]), [], lock_wait=1
        )

        assert swept == 0
        assert crowd.holds.confirm(hold.id).state is HoldState.CONFIRMED

    @only_on_servers  # SQLite locks the whole file
    def test_a_slot_in_other_hands_is_left_out(self, crowd: Crowd) -> None:
        crowd.table.add([(slot_id, 1) for slot_id in range(5)])
        for slot_id in range(5):
            crowd.holds.create(slot_id, ttl=0.000001)

        with crowd.blocked(1, 3):
            assert crowd.holds.expire_due() == 3
        assert crowd.holds.expire_due() == 2

    @in_both_worlds
    def test_sales_and_sweepers_of_the_same_slots_balance(self, crowd: Crowd) -> None:
        """A sale writes the due holds of its slot down, too."""
        crowd.table.add([(slot_id, 1) for slot_id in range(CALLERS)])
        for slot_id in range(CALLERS):
            crowd.holds.create(slot_id, ttl=0.000001)
        calls = [
            partial(holds.expire_due) if index % 4 == 0 else partial(holds.create, index)
            for index, holds in enumerate(crowd.managers)
        ]

        outcomes = crowd.race(calls, slots=range(1, CALLERS), all_wait=False)

        sales = [each for index, each in enumerate(outcomes) if index % 4]
        assert kinds_of(sales) == {Hold: len(sales)}
        crowd.holds.expire_due()
        assert states(crowd) == {"expired": CALLERS, "held": len(sales)}


def together_on(tables: Sequence[SqlSlots], work: Callable[[HoldManager], Any]) -> list[Any]:
    """Do it on each table in a thread; nobody begins to write before all have found what is due."""
    meeting = threading.Barrier(len(tables))
    met: set[int] = set()

    class Meeting(SqlLedger):
        def expire(self, due: Any) -> Change[int]:
            if threading.get_ident() not in met:  # else it is tried again
                met.add(threading.get_ident())
                meeting.wait(PATIENCE)
            return super().expire(due)

    for table in tables:
        table._ledger = Meeting
    try:
        managers = [HoldManager(each, on_change=None, policy=PATIENT) for each in tables]
        working = [spawn(partial(work, holds)) for holds in managers]
        return [each.result(PATIENCE) for each in working]
    finally:
        for table in tables:
            del table._ledger


def confirmed_too_late(crowd: Crowd) -> list[Any]:
    """What comes of many confirms that wait while the hold falls due."""
    crowd.table.add([(1, 5)])
    hold = crowd.holds.create(1, 2)
    return crowd.race(
        crowd.each(lambda holds: holds.confirm(hold.id)),
        meanwhile=lambda blocker: blocker.end(hold),
    )


def sent_under_one_key(crowd: Crowd) -> tuple[Counter[bool], int]:
    """How many answers to one request were replays or not, and how many holds there are then."""
    crowd.table.add([(1, 50)])
    outcomes = crowd.race(crowd.each(lambda holds: holds.create(1, 2, idempotency_key="k")))
    rows = query(crowd.table, "SELECT id FROM slot_holds")
    return Counter(each.replayed for each in outcomes), len(rows)


class TestLockWait:
    """Somebody else keeps the slot for longer than `lock_wait`."""

    @in_both_worlds
    def test_it_says_busy_in_about_that_time_and_changes_nothing(
        self, kind: str, crowd: Crowd
    ) -> None:
        crowd.table.add([(1, 5)])
        hold = crowd.holds.create(1, 2)
        lock_wait = 1.0 if kind == "mariadb" else 0.2
        policy = HoldPolicy(lock_wait=lock_wait)
        hurried = [
            crowd.world.holds(each, on_change=None, policy=policy) for each in crowd.tables[:5]
        ]
        works: list[Callable[[HoldManager], Any]] = [
            lambda holds: holds.create(1, 5),  # more than is free: that is not known
            lambda holds: holds.create(1, idempotency_key="k"),
            lambda holds: holds.confirm(hold.id),
            lambda holds: holds.cancel(hold.id),
            lambda holds: holds.set_capacity(1, 50),
        ]
        began = monotonic()

        with crowd.blocked(1):
            waiting = [
                spawn(partial(work, holds)) for work, holds in zip(works, hurried, strict=True)
            ]
            outcomes = [each.exception(PATIENCE) for each in waiting]
        took = monotonic() - began

        assert kinds_of(outcomes) == {Busy: 5}
        assert lock_wait <= took < lock_wait + 2
        assert (states(crowd), query(crowd.table, "SELECT capacity FROM slots")) == (
            {"held": 1},
            [(5,)],
        )
        assert hurried[1].create(1, idempotency_key="k").replayed is False

    @in_both_worlds
    def test_a_list_and_a_hold_are_read_without_waiting(self, crowd: Crowd) -> None:
        crowd.table.add([(1, 5)])
        hold = crowd.holds.create(1, 2)

        with crowd.blocked(1):
            assert free(crowd.table, 1) == 3
            assert crowd.holds.get(hold.id) == hold
            assert crowd.holds.find(slot_id=1) == [hold]
            assert crowd.holds.expire_due() == 0


ISOLATIONS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT")


@pytest.fixture(scope="module", params=ON_SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    named: str = request.param
    return named


@pytest.fixture(scope="module", params=ISOLATIONS)
def isolation(request: pytest.FixtureRequest) -> str:
    named: str = request.param
    return named


@pytest.fixture(scope="module")
def standing_isolated(
    server: str, isolation: str, request: pytest.FixtureRequest
) -> Iterator[Crowd]:
    place = request.getfixturevalue(f"{server}_tables")
    with gathered(
        server,
        place,
        count=6,
        engine_isolation_level=isolation,
        engine_pool_size=1,
        engine_max_overflow=0,
    ) as crowd:
        yield crowd


@pytest.fixture
def isolated(standing_isolated: Crowd) -> Iterator[Crowd]:
    """Six tables on engines of that isolation."""
    yield cleared(standing_isolated)
    check_books(standing_isolated.table)


class TestIsolation:
    """Whatever the engine's default is."""

    def test_one_gets_the_last_place(self, isolated: Crowd) -> None:
        assert last_place(isolated) == {Hold: 1, SlotFull: 5}

    def test_one_key_makes_one_hold(self, isolated: Crowd) -> None:
        assert sent_under_one_key(isolated) == ({False: 1, True: 5}, 1)

    def test_a_hold_that_falls_due_meanwhile_is_not_sold(self, isolated: Crowd) -> None:
        assert kinds_of(confirmed_too_late(isolated)) == {HoldExpired: 6}

    def test_reading_waits_for_nobody(self, isolated: Crowd) -> None:
        """Not even where each SELECT locks what it reads, as MariaDB's SERIALIZABLE has it."""
        isolated.table.add([(1, 5)])
        hold = isolated.holds.create(1, 2)

        with isolated.blocked(1) as blocker:
            blocker.connection.exec_driver_sql("UPDATE slot_holds SET quantity = quantity")
            reads: list[Future[Any]] = [
                spawn(lambda: free(isolated.table, 1)),
                spawn(lambda: isolated.managers[1].get(hold.id).state),
                spawn(lambda: isolated.managers[2].find(slot_id=1)[0].state),
                spawn(lambda: isolated.managers[3].expire_due()),
            ]
            with suppress(AssertionError):
                eventually_soon(lambda: all(each.done() for each in reads))
            answered = [each.done() for each in reads]

        assert answered == [True] * 4, "of load, get, find, expire_due"
        assert [each.result() for each in reads] == [3, HoldState.HELD, HoldState.HELD, 0]

    def test_a_connection_goes_back_to_its_pool_as_it_came(
        self, server: str, isolated: Crowd
    ) -> None:
        table = isolated.tables[1]
        isolated.table.add([(1, 1)])
        lock_wait = 1.0 if server == "mariadb" else 0.1
        holds = HoldManager(table, on_change=None, policy=HoldPolicy(lock_wait=lock_wait))
        before = session_of(server, table)

        with isolated.blocked(1), pytest.raises(Busy):
            holds.create(1)
        after_busy = session_of(server, table)
        holds.create(1)
        after_success = session_of(server, table)
        with pytest.raises(SlotFull):
            holds.create(1)
        holds.expire_due()
        after_refusal = session_of(server, table)

        assert after_busy == after_success == after_refusal == before


def eventually_soon(condition: Callable[[], object]) -> None:
    """Wait until it holds, for less than any of the database's own patience."""
    end = monotonic() + 2
    while not condition():
        assert monotonic() < end
        sleep(0.002)


def session_of(server: str, table: SqlSlots) -> list[Any]:
    """What a user of the pool's only connection finds set on it, and which connection it is."""
    settings = {
        "postgres": ["pg_backend_pid()"]
        + [
            f"current_setting('{name}')"
            for name in ("lock_timeout", "transaction_isolation", "statement_timeout")
        ],
        "mariadb": ["connection_id()"]
        + [
            f"@@SESSION.{name}"
            for name in (
                "innodb_lock_wait_timeout",
                "lock_wait_timeout",
                "tx_isolation",
                "autocommit",
            )
        ],
    }[server]
    with table.engine.connect() as connection:
        found = connection.exec_driver_sql(f"SELECT {', '.join(settings)}").one()
        return [*found, connection.get_isolation_level()]


class TestDeadlocks:
    @pytest.mark.parametrize("world", Worlds.both, indirect=True, scope="module")
    def test_whoever_loses_one_tries_again(
        self, server: str, world: World, place_of: PlaceOf
    ) -> None:
        """Another client takes the hold first, then its slot: the wrong way round."""
        options: dict[str, Any] = {}
        if server == "postgres":
            # So that it is we who notice first: the other one's is a second.
            options["engine_connect_args"] = {"options": "-c deadlock_timeout=400ms"}
        with gathered(server, place_of(server), count=1, world=world, **options) as crowd:
            crowd.table.add([(slot_id, 5) for slot_id in range(1, 30)])
            hold = crowd.holds.create(1, 2)
            lost: list[Any] = []
            sa.event.listen(inner_engine(crowd.table), "handle_error", lost.append)

            with crowd.blocked(*range(2, 30)) as other:
                # MariaDB ends the one that has changed less.
                other.connection.exec_driver_sql("UPDATE slots SET capacity = 6 WHERE slot_id > 1")
                other.connection.exec_driver_sql("UPDATE slot_holds SET quantity = quantity")
                confirm = spawn(lambda: crowd.holds.confirm(hold.id))
                other.wait_for(lambda: 1)
                other.connection.exec_driver_sql(
                    "UPDATE slots SET remaining = remaining WHERE slot_id = 1"
                )

            assert confirm.result(PATIENCE).state is HoldState.CONFIRMED
            assert lost
            overtaken = crowd.table._database._was_overtaken
            assert all(overtaken(context.sqlalchemy_exception) for context in lost)
            check_sold(crowd, 2)


def check_sold(crowd: Crowd, places: int) -> None:
    [(capacity, left)] = query(
        crowd.table, "SELECT capacity, remaining FROM slots WHERE slot_id = 1"
    )
    assert capacity - left == places


class TestBrokenTwins:
    """The same checks on the shipped code and on twins with one guard taken out."""

    def test_a_slot_that_is_only_locked_is_oversold_in_repeatable_read(self, two_on: TwoOn) -> None:
        """PostgreSQL notices a row that was written, and none that was locked (FOR UPDATE)."""
        sold = {Hold: 1, SlotFull: 1}
        assert two_on("postgres", last_place) == sold
        assert two_on("postgres", last_place, database=RepeatableRead) == sold
        assert two_on("postgres", last_place, ledger=OnlyLocks) == sold

        both = two_on("postgres", last_place, ledger=OnlyLocks, database=RepeatableRead)

        assert both == {Hold: 2}

    def test_a_sum_inside_the_locking_statement_oversells(self, two_on: TwoOn) -> None:
        """It is that of the snapshot from before the wait."""
        assert two_on("postgres", last_place) == {Hold: 1, SlotFull: 1}

        assert two_on("postgres", last_place, ledger=SumsWhileItLocks) == {Hold: 2}

    def test_the_time_of_the_transactions_start_sells_dead_holds(self, two_on: TwoOn) -> None:
        assert kinds_of(two_on("postgres", confirmed_too_late)) == {HoldExpired: 2}

        outcomes = two_on("postgres", confirmed_too_late, database=TimeStandsStill)

        assert kinds_of(outcomes) == {Hold: 2}

    @pytest.mark.parametrize("where", RACED)
    def test_a_time_from_before_the_lock_sells_dead_holds(self, where: str, two_on: TwoOn) -> None:
        assert kinds_of(two_on(where, confirmed_too_late)) == {HoldExpired: 2}

        outcomes = two_on(where, confirmed_too_late, ledger=LooksBeforeItLocks)

        assert HoldExpired not in kinds_of(outcomes)

    @pytest.mark.parametrize("where", RACED)
    def test_a_key_that_is_looked_up_before_the_lock_makes_two_holds(
        self, where: str, two_on: TwoOn
    ) -> None:
        assert two_on(where, sent_under_one_key) == ({False: 1, True: 1}, 1)

        assert two_on(where, sent_under_one_key, ledger=LooksKeysUpFirst) == ({False: 2}, 2)

    @pytest.mark.parametrize("where", RACED)
    def test_keys_that_are_not_unique_make_two_holds(self, where: str, two_on: TwoOn) -> None:
        outcome = two_on(where, sent_under_one_key, without="unique keys")

        assert outcome == ({False: 2}, 2)

    @pytest.mark.parametrize(
        ("where", "claim"), [("given", "on_hold"), ("postgres", "on_hold"), ("mariadb", "counted")]
    )
    def test_either_the_check_or_the_bounds_keep_an_edited_row_in_range(
        self, where: str, claim: str, two_on: TwoOn
    ) -> None:
        on = partial(two_on, where, after_an_edit, claim=claim)
        assert on() == [SlotFull if claim == "counted" else BackendError]
        assert on(ledger=KeepsNoBounds) == [BackendError]
        assert on(without="check") == on()

        assert on(ledger=KeepsNoBounds, without="check") == [Hold, "out of range"]

    @pytest.mark.parametrize("where", ON_SERVERS)
    def test_moves_without_lock_and_condition_sell_a_hold_twice(
        self, where: str, two_on: TwoOn
    ) -> None:
        assert two_on(where, left_after_two_confirms) == 7

        assert two_on(where, left_after_two_confirms, ledger=MovesUnconditionally) == 4

    def test_moves_without_lock_and_condition_sell_what_was_given_up(self, two_on: TwoOn) -> None:
        """Not on MariaDB: there even such a move locks the slot, to look at its foreign key."""
        assert two_on("postgres", left_after_confirm_and_cancel) == 10

        left = two_on("postgres", left_after_confirm_and_cancel, ledger=MovesUnconditionally)

        assert left == 7

    @pytest.mark.parametrize("where", ON_SERVERS)
    def test_slots_locked_in_the_order_given_come_into_a_deadlock(
        self, where: str, two_on: TwoOn
    ) -> None:
        on = partial(two_on, where, partial(crossed, places=2))
        assert on() == ({tuple: 2}, 0)

        outcomes, overtaken = on(ledger=LocksAsItIsTold)

        assert (outcomes, overtaken > 0) == ({tuple: 2}, True)

    @pytest.mark.parametrize("where", RACED)
    def test_a_late_sale_without_a_look_at_the_room_oversells(
        self, where: str, two_on: TwoOn
    ) -> None:
        assert two_on(where, taken_by_a_buyer_and_a_late_payment) == 1

        assert two_on(where, taken_by_a_buyer_and_a_late_payment, ledger=SellsLateUnseen) == 2

    @pytest.mark.parametrize("where", RACED)
    def test_a_late_sale_that_gives_back_what_was_swept_leaves_too_many(
        self, where: str, two_on: TwoOn
    ) -> None:
        on = partial(two_on, where, left_after_a_late_sale, claim="on_hold")
        assert on() == 1

        assert on(ledger=GivesBackTwice) == 2

    @pytest.mark.parametrize("where", RACED)
    def test_a_replacement_of_what_was_there_before_the_lock_oversells(
        self, where: str, two_on: TwoOn
    ) -> None:
        on = partial(two_on, where, replaced_by_many, claim="on_hold")
        assert on() == {Hold: 1, IllegalTransition: 1}

        assert on(ledger=ReplacesWhatItSaw) == {Hold: 2}


class TwoOn(Protocol):
    """Runs a check on two tables of a twin, on a database where the guard is really missing."""

    def __call__(
        self,
        where: str,
        check: Callable[[Crowd], Any],
        *,
        ledger: type[SqlLedger] = SqlLedger,
        database: type[Database] | None = None,
        without: str | None = None,
        claim: str = "counted",
    ) -> Any:
        """Return what the check returns."""


@pytest.fixture
def two_on(request: pytest.FixtureRequest, tmp_path: Path) -> TwoOn:
    """What runs a check on a twin."""

    def run(
        where: str,
        check: Callable[[Crowd], Any],
        *,
        ledger: type[SqlLedger] = SqlLedger,
        database: type[Database] | None = None,
        without: str | None = None,
        claim: str = "counted",
    ) -> Any:
        place: Place = tmp_path
        if where in ON_SERVERS:
            # One of its own, if guards are to be taken out of the database.
            name = f"{where}_tables" if without is None else f"{where}_url"
            place = request.getfixturevalue(name)
        elif without is not None:
            place = tmp_path / without
            place.mkdir(exist_ok=True)
        table = twin(ledger, database)
        with gathered(where, place, count=2, table=table, claim=claim) as crowd:
            if without is not None:
                WITHOUT[without](crowd)
            return check(cleared(crowd))

    return run


def twin(ledger: type[SqlLedger], database: type[Database] | None) -> type[SqlSlots]:
    class Twin(SqlSlots):
        _ledger = ledger

        def __init__(self, engine: sa.Engine, **options: Any) -> None:
            super().__init__(engine, **options)
            if database is not None:
                self._database = database(engine, clock=None)
                self._statements = Statements(
                    self._slots,
                    self._holds,
                    keys_of(self._holds),
                    claim=self._claim,
                    database=self._database,
                )

    return Twin


def without_unique_keys(crowd: Crowd) -> None:
    """Make the table of keys anew, without its primary key."""
    keys = keys_of(crowd.table._holds)
    bare = sa.Table(keys.name, sa.MetaData())
    for each in keys.columns:
        bare.append_column(sa.Column(each.name, each.type, nullable=False))
    with crowd.table.engine.begin() as connection:
        keys.drop(connection)
        bare.create(connection)


def without_check(crowd: Crowd) -> None:
    """Take the CHECK off the table of slots."""
    if crowd.table.engine.dialect.name != "sqlite":
        with crowd.table.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE slots DROP CONSTRAINT IF EXISTS slots_places")
        return
    for each in crowd.tables:
        on_connect(each, lambda driver: driver.execute("PRAGMA ignore_check_constraints = ON"))


WITHOUT = {"check": without_check, "unique keys": without_unique_keys}


class OnlyLocks(SqlLedger):
    """Locks the slot row with SELECT ... FOR UPDATE, instead of writing it."""

    def _lock(self, slot_ids: Any) -> None:
        lock = sa.text("SELECT 1 FROM slots WHERE slot_id = :slot FOR UPDATE")
        for slot_id in slot_ids:
            self._run(lock, slot=slot_id)


class RepeatableRead(Postgres):
    """Leaves its transactions in REPEATABLE READ."""

    @contextmanager
    def writing(self, lock_wait: float) -> Iterator[sa.Connection]:
        with self._translated(lock_wait), self._engine.connect() as connection:
            connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection


class SumsWhileItLocks(SqlLedger):
    """Locks and sums in one statement."""

    def _lock(self, slot_ids: Any) -> None:
        (slot_id,) = slot_ids
        lock = sa.text(
            """UPDATE slots SET remaining = remaining WHERE slot_id = :slot
            RETURNING slot_id, capacity, remaining,
                (SELECT coalesce(sum(quantity), 0) FROM slot_holds
                 WHERE slot_id = :slot AND state = 'held'),
                0, scope, 1, clock_timestamp()"""
        )
        self._summed = SlotCount._make(self._run(lock, slot=slot_id).one())

    def _count(self, slot_id: Any) -> SlotCount | None:
        return self._summed


class TimeStandsStill(Postgres):
    """Takes `now()` for the time: the start of the transaction."""

    _moment = sa.select(sa.func.now(type_=Instant()).label("now")).cte("moment")


class LooksBeforeItLocks(SqlLedger):
    """Reads the hold and the time, then waits for the slot."""

    def _lock_slot_of(self, hold_id: UUID) -> None:
        self._seen = super()._hold(hold_id)
        super()._lock_slot_of(hold_id)

    def _hold(self, hold_id: UUID) -> Any:
        return self._seen


class LooksKeysUpFirst(SqlLedger):
    """Looks whether the key is there, then waits for the slot."""

    def create(self, request: HoldRequest) -> Change[tuple[Hold, ...]]:
        found = self._run(
            self._statements.find_key, p_owner="", p_key=request.idempotency_key
        ).one_or_none()
        if found is not None:
            return Change((replace(self.get(found.hold_id), replayed=True),))
        change = super().create(replace(request, idempotency_key=None))
        self._run(
            self._statements.insert_key,
            owner="",
            idempotency_key=request.idempotency_key,
            position=0,
            request="",
            hold_id=change.value[0].id,
        )
        return change


class KeepsNoBounds(SqlLedger):
    """Adds places whatever comes of it."""

    def _add_places(self, slot_id: Any, places: int) -> bool:
        add = sa.text("UPDATE slots SET remaining = remaining + :places WHERE slot_id = :slot")
        self._run(add, slot=slot_id, places=places)
        return True


class MovesUnconditionally(SqlLedger):
    """Writes the new state over any, without the lock on the slot."""

    def _lock_slot_of(self, hold_id: UUID) -> None:
        pass

    def _run(self, statement: Any, **parameters: Any) -> Any:
        if statement is self._statements.move:
            holds = statement.table
            parameters = {"state": parameters["p_to"]}
            statement = sa.update(holds).where(holds.c.id == self._moved)
        return super()._run(statement, **parameters)

    def _move(self, hold: Hold, *moves: Any, **options: Any) -> Change[Hold]:
        self._moved = hold.id
        return super()._move(hold, *moves, **options)


class LocksAsItIsTold(SqlLedger):
    """Locks the slots in the order of the request."""

    def create(self, request: HoldRequest) -> Change[tuple[Hold, ...]]:
        self._asked_for = request.places
        return super().create(request)

    def _lock(self, slot_ids: Any) -> None:
        for slot_id in self._asked_for:
            super()._lock([slot_id])


class SellsLateUnseen(SqlLedger):
    """Takes the places of an expired hold again, as if they were free."""

    def _checked(self, slot: SlotCount | None, *asked_for: Any) -> SlotCount:
        assert slot is not None
        return slot


class GivesBackTwice(SqlLedger):
    """Gives the places of an expired hold back, whether or not somebody else has."""

    def _make_room_again(self, hold: Hold) -> None:
        self._give_back_expired(hold.slot_id, hold.quantity)
        super()._make_room_again(hold)


class ReplacesWhatItSaw(SqlLedger):
    """Reads the hold to be replaced, then waits for the slots."""

    def create(self, request: HoldRequest) -> Change[tuple[Hold, ...]]:
        self._seen = {
            hold_id: super(type(self), self)._hold(hold_id) for hold_id in request.replaces
        }
        return super().create(request)

    def _hold(self, hold_id: UUID) -> Any:
        return self._seen[hold_id]

    def _move(self, hold: Hold, *moves: Any, **options: Any) -> Change[Hold]:
        self._move_places(hold, *moves[:2])
        return Change(hold, (hold.scope,))


def taken_by_a_buyer_and_a_late_payment(crowd: Crowd) -> int:
    """How often the only place is taken after a late payment for it, which a buyer outran."""
    crowd.table.add([(1, 1)])
    hold = crowd.holds.create(1, ttl=0.000001)
    crowd.holds.create(1)
    with suppress(HoldExpired):
        confirm_late(crowd.holds, hold)
    return sum(states(crowd).get(state, 0) for state in ("held", "confirmed"))


def left_after_a_late_sale(crowd: Crowd) -> int:
    """How many of four places are left after a sale of two, and a late one of one."""
    crowd.table.add([(1, 4)])
    hold = crowd.holds.create(1, ttl=0.000001)
    assert crowd.holds.expire_due() == 1
    crowd.holds.confirm(crowd.holds.create(1, 2).id)
    confirm_late(crowd.holds, hold)
    return remaining(crowd)


def after_an_edit(crowd: Crowd) -> list[Any]:
    """What comes of one more move after somebody has edited the row of its slot."""
    crowd.table.add([(1, 3)])
    hold = crowd.holds.create(1, 2)
    left, move = (1, crowd.holds.confirm) if remaining(crowd) == 3 else (3, crowd.holds.cancel)
    with crowd.table.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE slots SET remaining = {left}")
    try:
        outcome: list[Any] = [type(move(hold.id))]
    except SlotcacheError as error:
        outcome = [type(error)]
    return outcome if 0 <= remaining(crowd) <= 3 else [*outcome, "out of range"]


def left_after_two_confirms(crowd: Crowd) -> int:
    """How many of ten places are left after two clients have confirmed a hold of three."""
    crowd.table.add([(1, 10)])
    hold = crowd.holds.create(1, 3)
    crowd.race(crowd.each(lambda holds: holds.confirm(hold.id)))
    return remaining(crowd)


def left_after_confirm_and_cancel(crowd: Crowd) -> int:
    """How many of ten places are left after one client confirms three, and another cancels."""
    crowd.table.add([(1, 10)])
    hold = crowd.holds.create(1, 3)
    confirming, cancelling = crowd.managers
    with crowd.blocked(1) as blocker:
        confirm = spawn(lambda: confirming.confirm(hold.id))
        blocker.wait_for(lambda: 1)
        cancel = spawn(lambda: cancelling.cancel(hold.id))
        blocker.wait_for(lambda: 2 - cancel.done())
    confirm.exception(PATIENCE)
    assert cancel.result(PATIENCE).state is HoldState.CANCELLED
    return remaining(crowd)


def last_place(crowd: Crowd) -> Counter[type]:
    """What comes of many buyers for one place."""
    crowd.table.add([(1, 1)])
    return kinds_of(crowd.race(crowd.each(lambda holds: holds.create(1))))


def kinds_of(outcomes: Sequence[Any]) -> Counter[type]:
    return Counter(map(type, outcomes))


def states(crowd: Crowd) -> dict[str, int]:
    """How many holds stand in each state, as it is written."""
    rows = query(crowd.table, "SELECT state, count(*) FROM slot_holds GROUP BY state")
    return {state: count for state, count in rows}  # noqa: C416


def remaining(crowd: Crowd) -> int:
    [(places,)] = query(crowd.table, "SELECT remaining FROM slots")
    assert isinstance(places, int)
    return places
