"""A plain hold on PostgreSQL is one statement, and no less safe for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from slotcache import (
    BackendError,
    Busy,
    Hold,
    HoldManager,
    HoldPolicy,
    SlotFull,
    SlotNotFound,
)
from slotcache.sql import SqlSlots
from slotcache.sql.shortcut import Shortcut

from .support.processes import eventually
from .support.races import gathered
from .support.sql import CLAIMS, Place, check_books, free, opened
from .support.threads import PATIENCE, spawn

PlaceOf = Callable[[str], Place]


@pytest.fixture(params=CLAIMS)
def claim(request: pytest.FixtureRequest) -> str:
    named: str = request.param
    return named


@pytest.fixture
def slots(claim: str, place_of: PlaceOf) -> Iterator[SqlSlots]:
    with opened("postgres", place_of("postgres"), claim=claim) as slots:
        slots.add([(1, 4)], scope="a")
        yield slots
        check_books(slots)


class TestOneStatement:
    def test_a_plain_hold_takes_no_more(self, slots: SqlSlots) -> None:
        holds = HoldManager(slots, on_change=None)
        sent = statements_of(slots)

        hold = holds.create(1, 3, ttl=60, owner="Ann")

        kinds = [each.split()[0] for each in sent]
        assert kinds == ["SELECT", "WITH"]  # the first sets the patience, the other puts it back
        assert holds.get(hold.id) == hold
        assert (hold.scope, hold.quantity, hold.owner) == ("a", 3, "Ann")
        assert (hold.expires_at - hold.created_at).total_seconds() == 60
        assert free(slots, 1) == 1

    def test_it_tells_the_hook_of_its_scope(self, slots: SqlSlots) -> None:
        told: list[Any] = []

        HoldManager(slots, on_change=told.append).create(1)

        assert told == ["a"]

    def test_whatever_is_not_plain_is_done_step_by_step(self, slots: SqlSlots) -> None:
        holds = HoldManager(slots, on_change=None)
        holds.create(1, 4, ttl=0.000001)

        assert holds.create(1, 4).quantity == 4
        with pytest.raises(SlotFull) as refused:
            holds.create(1, 1)
        assert refused.value.remaining == 0
        with pytest.raises(SlotFull):
            holds.create(1, 2**40)
        with pytest.raises(SlotNotFound):
            holds.create(2)

    def test_a_slot_that_is_not_open_is_not_found(self, claim: str, place_of: PlaceOf) -> None:
        is_open = sa.text("slots.scope <> 'closed'")
        with opened("postgres", place_of("postgres"), claim=claim, where=is_open) as slots:
            slots.add([(1, 4)], scope="closed")
            slots.add([(2, 4)], scope="open")
            holds = HoldManager(slots, on_change=None)

            assert holds.create(2).slot_id == 2
            with pytest.raises(SlotNotFound):
                holds.create(1)


class TestWaiting:
    def test_a_slot_that_stays_locked_is_busy(self, claim: str, place_of: PlaceOf) -> None:
        with gathered("postgres", place_of("postgres"), count=1, claim=claim) as crowd:
            crowd.table.add([(1, 4)])
            told: list[Any] = []
            holds = HoldManager(
                crowd.table, on_change=told.append, policy=HoldPolicy(lock_wait=0.1)
            )

            with crowd.blocked(1), pytest.raises(Busy):
                holds.create(1)

            assert told == []
            assert free(crowd.table, 1) == 4
            with crowd.table.engine.connect() as connection:
                assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "0"

    def test_when_the_answer_is_lost_every_list_is_cleared(self, place_of: PlaceOf) -> None:
        """It is not known whether the hold was made, nor in which scope its slot is."""
        with gathered("postgres", place_of("postgres"), count=1, claim="on_hold") as crowd:
            crowd.table.add([(1, 4)], scope="a")
            told: list[Any] = []
            holds = HoldManager(crowd.table, on_change=told.append)

            with crowd.blocked(1) as blocker:
                call = spawn(lambda: holds.create(1))
                blocker.wait_for(lambda: 1)
                blocker.connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE wait_event_type = 'Lock' AND datname = current_database()"
                )
                error = call.exception(PATIENCE)

            assert isinstance(error, BackendError)
            assert told == [None]
            assert holds.create(1).scope == "a"


class TestBrokenTwins:
    """The check that sees a place sold twice, on the shipped statement and on twins of it."""

    def test_all_who_wait_for_the_last_place_do_not_get_it(self, place_of: PlaceOf) -> None:
        assert sold_behind_a_lock(place_of, Shortcut) == 1

    def test_a_count_from_before_the_wait_is_caught(self, place_of: PlaceOf) -> None:
        assert sold_behind_a_lock(place_of, CountsThenWaits) > 1

    def test_a_sale_between_the_count_and_the_lock_is_noticed(self, place_of: PlaceOf) -> None:
        assert sold_in_between(place_of, Slow) == 1

    def test_a_lock_on_any_version_of_the_row_is_caught(self, place_of: PlaceOf) -> None:
        assert sold_in_between(place_of, SlowAndForAnyVersion) == 2


class CountsThenWaits(Shortcut):
    """Writes the row that it counted, after whatever wait, whichever version it is by then."""

    def _locked(self) -> sa.CTE:
        return self._any_version(sa.true())

    def _any_version(self, condition: sa.ColumnElement[bool]) -> sa.CTE:
        slots = self._slots
        return (
            sa.update(slots.table)
            .values({slots.remaining: slots.remaining})
            .where(self._is_asked_for(), condition)
            .returning(sa.literal_column("ctid").label("version"))
            .cte("locked")
        )

    def _is_version(self, counted: sa.CTE, locked: sa.CTE) -> sa.ColumnElement[bool]:
        return locked.c.version.is_not(None)

    def _written(self, fitting: sa.CTE) -> sa.CTE:
        return sa.select(fitting.c.slot_id).cte("written")


class Slow(Shortcut):
    """Takes its time between the count and the lock."""

    def _is_asked_for(self) -> sa.ColumnElement[bool]:
        wait = sa.select(sa.func.pg_sleep(1).label("slept")).scalar_subquery()
        return sa.and_(super()._is_asked_for(), wait.is_not(None))


class SlowAndForAnyVersion(Slow):
    """Locks the row without waiting, but takes it as it is by then."""

    def _is_version(self, counted: sa.CTE, locked: sa.CTE) -> sa.ColumnElement[bool]:
        return locked.c.version.is_not(None)

    def _written(self, fitting: sa.CTE) -> sa.CTE:
        return sa.select(fitting.c.slot_id).cte("written")


def sold_behind_a_lock(place_of: PlaceOf, shortcut: type[Shortcut]) -> int:
    """How many of eight get the last place."""
    place = place_of("postgres")
    with gathered("postgres", place, count=8, table=with_shortcut(shortcut)) as crowd:
        crowd.table.add([(1, 1)])
        outcomes = crowd.race(crowd.each(lambda holds: holds.create(1)))
        return sum(isinstance(each, Hold) for each in outcomes)


def sold_in_between(place_of: PlaceOf, shortcut: type[Shortcut]) -> int:
    """How many of two get the last place: one begins, the other begins and ends meanwhile."""
    place = place_of("postgres")
    with (
        gathered("postgres", place, count=1, table=with_shortcut(shortcut)) as crowd,
        opened("postgres", place) as other,
    ):
        other.add([(1, 1)])
        slow = spawn(lambda: crowd.holds.create(1))
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        with other.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            eventually(lambda: connection.exec_driver_sql(asleep).scalar())
        HoldManager(other, on_change=None).create(1)
        error = slow.exception(PATIENCE)
        assert error is None or isinstance(error, SlotFull)
        return 1 + (error is None)


def with_shortcut(shortcut: type[Shortcut]) -> type[SqlSlots]:
    return type("SqlSlots", (SqlSlots,), {"_shortcuts": shortcut})


def statements_of(slots: SqlSlots) -> list[str]:
    """Every statement that is sent from now on, by whatever engine."""
    sent: list[str] = []
    sa.event.listen(
        slots.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2])
    )
    return sent
