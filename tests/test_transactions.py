"""Holds in transactions of their users: whatever becomes of these becomes of them (P6, P7, P8)."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session, sessionmaker

from slotcache import (
    Busy,
    CapacityTooLow,
    Hold,
    HoldExpired,
    HoldManager,
    HoldNotFound,
    HoldPolicy,
    HoldState,
    HoldTooSmall,
    IdempotencyConflict,
    IllegalTransition,
    SlotAvailabilityService,
    SlotFull,
    SlotNotFound,
)
from slotcache.sql import SqlSlots, clear_after, noted
from slotcache.sql.ledger import SqlLedger
from slotcache.sql.waits import THREADS

from .support.desk import Desks
from .support.joined import (
    AT_EACH_LEVEL,
    IN_BOTH,
    LEVELS,
    ON_ASYNCIO,
    ONE_OF_EACH,
    WAYS,
    Customer,
    Failure,
    Round,
    Teller,
    Way,
    engine_of,
)
from .support.orders import Shelf, orders, service_on, with_orders
from .support.processes import Worker
from .support.races import Crowd, cleared, gathered
from .support.sql import (
    ON_SERVERS,
    Place,
    begin_deferred,
    check_books,
    engine_for,
    free,
    opened,
    query,
)
from .support.threads import PATIENCE, Gate, spawn

PlaceOf = Callable[[str], Place]

ROUNDS = int(os.environ.get("SLOTCACHE_TEST_ROUNDS", "1"))
"""How much longer to look for what is rare: see the task `soak` of dev.py."""


@pytest.fixture(params=[*WAYS, *ON_ASYNCIO], ids=str)
def customer(
    request: pytest.FixtureRequest, desks: Desks, place_of: PlaceOf, hold_policy: HoldPolicy
) -> Iterator[Customer]:
    """A customer on each database with each claim at each isolation level."""
    way: Way = request.param
    with desks.desk(way.kind, way.claim, way.world, place_of=place_of, policy=hold_policy) as desk:
        desk.slots.add([(3, 9)], scope="c")
        desk.slots.add([(4, 9)], scope="d")
        yield Customer(desk, way.level)


on_one_of_each = pytest.mark.parametrize("customer", ONE_OF_EACH, indirect=True, ids=str)
on_one_of_each_in_both = pytest.mark.parametrize("customer", IN_BOTH, indirect=True, ids=str)
with_savepoints = pytest.mark.parametrize(
    "customer", [WAYS[0], WAYS[3], *ONE_OF_EACH[2:]], indirect=True, ids=str
)
"""Where a savepoint that comes first is one: left to itself, SQLite's driver begins nothing before
it, and what is released is committed."""
on_sqlite = pytest.mark.parametrize("customer", ONE_OF_EACH[:1], indirect=True, ids=str)
"""What SQLAlchemy does, whatever the database."""
on_sqlite_in_both = pytest.mark.parametrize("customer", IN_BOTH[::4], indirect=True, ids=str)
on_servers_in_both = pytest.mark.parametrize(
    "customer", [*ONE_OF_EACH[2:], *ON_ASYNCIO[1:]], indirect=True, ids=str
)


class TestOutcomes:
    """What becomes of each operation, all of them in one transaction."""

    def test_what_is_committed_is_done_and_told_once_with_the_connection_back(
        self, customer: Customer
    ) -> None:
        everything = Round(customer.desk)

        with customer.transaction() as (_, holds):
            everything.work(holds)
            assert customer.told == []

        everything.check_done(customer)
        everything.check_told(customer.told)
        assert set(customer.hook.lent) == {0}

    def test_what_is_rolled_back_was_never_there_and_nobody_is_told(
        self, customer: Customer
    ) -> None:
        everything = Round(customer.desk)
        before = customer.rows()

        customer.give_up(everything.work)

        assert customer.rows() == before
        assert customer.told == []

    def test_what_a_savepoint_takes_back_leaves_what_was_done_around_it(
        self, customer: Customer
    ) -> None:
        everything = Round(customer.desk)
        before = customer.rows()

        with customer.transaction() as (session, holds):
            first = holds.create(3)
            with suppress(Failure), session.begin_nested():
                everything.work(holds)
                raise Failure
            last = holds.create(4)

        assert customer.told == ["c", "d"]
        for each in first, last:
            customer.desk.edit(f"DELETE FROM slot_holds WHERE slot_id = {each.slot_id}")
        customer.desk.edit("UPDATE slots SET remaining = capacity WHERE slot_id in (3, 4)")
        assert customer.rows() == before

    @on_one_of_each_in_both
    def test_what_is_tried_again_is_done_and_told_once(self, customer: Customer) -> None:
        everything = Round(customer.desk)

        customer.give_up(everything.work)
        with customer.transaction() as (_, holds):
            everything.work(holds)

        everything.check_done(customer)
        everything.check_told(customer.told)


REFUSALS: dict[str, tuple[type[Exception], Callable[[HoldManager, Hold], Any]]] = {
    "no room": (SlotFull, lambda holds, _: holds.create(2, 2, idempotency_key="k")),
    "no room in the second": (
        SlotFull,
        lambda holds, _: holds.create_many({1: 1, 2: 2}, idempotency_key="k"),
    ),
    "no such slot": (SlotNotFound, lambda holds, _: holds.create_many({4: 1, 99: 1})),
    "no room for a replacement": (
        SlotFull,
        lambda holds, hold: holds.create_many({2: 9}, replaces=hold.id),
    ),
    "another request": (
        IdempotencyConflict,
        lambda holds, _: holds.create(2, owner="ann", idempotency_key="used"),
    ),
    "no room for a late payment": (
        HoldExpired,
        lambda holds, _: holds.confirm(holds.find(owner="bob")[0].id, late="reacquire"),
    ),
    "not a live one": (
        IllegalTransition,
        lambda holds, hold: holds.cancel(hold.id, restock=False),
    ),
}


class TestRefusals:
    """What is raised leaves no trace in a transaction that goes on and commits (P6, P7)."""

    @on_one_of_each_in_both
    @pytest.mark.parametrize("refusal", REFUSALS)
    def test_nothing_of_it_is_written_or_told(self, customer: Customer, refusal: str) -> None:
        error, work = REFUSALS[refusal]
        desk = customer.desk
        desk.due(1, 4, owner="bob")
        hold = desk.holds.create(1, 4, owner="ann", idempotency_key="used")
        before = customer.rows(but_of=3)

        with customer.transaction() as (_, holds):
            with pytest.raises(error):
                work(holds, hold)
            holds.create(3)

        assert customer.rows(but_of=3) == before
        assert customer.told == ["c"]

    @on_one_of_each_in_both
    def test_a_key_that_was_refused_is_free_in_the_same_transaction(
        self, customer: Customer
    ) -> None:
        with customer.transaction() as (_, holds):
            with pytest.raises(SlotFull):
                holds.create(2, 2, idempotency_key="k")
            hold = holds.create(1, 2, idempotency_key="k")
            again = holds.create(1, 2, idempotency_key="k")

        assert (hold.replayed, again.replayed, again.id) == (False, True, hold.id)
        assert customer.told == ["a"]

    @on_one_of_each_in_both
    def test_a_replay_tells_nobody(self, customer: Customer) -> None:
        first = customer.desk.holds.create(1, idempotency_key="k")

        with customer.transaction() as (_, holds):
            assert holds.create(1, idempotency_key="k").id == first.id

        assert customer.told == []

    @on_one_of_each_in_both
    def test_after_a_signal_in_the_midst_nothing_can_be_committed(
        self, customer: Customer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody knows what the connection is in the midst of, so what was done before is lost."""
        before = customer.rows()

        def interrupted(ledger: SqlLedger, hold: Hold) -> None:
            raise customer.world.interrupt

        with customer.session() as session:
            holds = customer.holds.within(session)
            holds.create(1)
            monkeypatch.setattr(SqlLedger, "_insert", interrupted)
            with pytest.raises(customer.world.interrupt):
                holds.create(3)
            monkeypatch.undo()
            with pytest.raises(PendingRollbackError):
                session.commit()
            session.rollback()
            assert customer.rows() == before
            assert customer.told == []
            holds.create(4)
            session.commit()

        assert customer.told == ["d"]

    @on_sqlite_in_both
    def test_a_signal_in_a_savepoint_of_the_users_ends_that_without_a_warning(
        self, customer: Customer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As a deadlock on MariaDB does, after which the connection is given up as well."""

        def interrupted(ledger: SqlLedger, hold: Hold) -> None:
            raise customer.world.interrupt

        monkeypatch.setattr(SqlLedger, "_insert", interrupted)
        with customer.session() as session:
            with suppress(customer.world.interrupt), session.begin_nested():
                customer.holds.within(session).create(1)
            session.rollback()

        assert customer.told == []

    @on_one_of_each_in_both
    def test_a_hold_that_falls_due_in_an_open_transaction_is_not_sold(
        self, customer: Customer
    ) -> None:
        with customer.transaction() as (_, holds):
            hold = holds.create(2, ttl=5)
            customer.desk.clock.advance(5)
            assert holds.get(hold.id).state is HoldState.EXPIRED
            with pytest.raises(HoldExpired):
                holds.confirm(hold.id)
            assert holds.create(2).state is HoldState.HELD


class TestTelling:
    """When the hook is called, and what it may do (P8)."""

    @pytest.mark.parametrize("kind", ["file", *ON_SERVERS])
    def test_another_process_never_reads_the_old_list_after_the_commit(
        self, kind: str, place_of: PlaceOf, tmp_path: Path
    ) -> None:
        place, folder = place_of(kind), tmp_path / "cache"
        with opened(kind, place) as slots, Worker(Shelf, kind, place, "counted", folder) as shelf:
            slots.add([(1, 20)])
            service = service_on(slots, folder)
            holds = HoldManager(slots, on_change=service.clear_availability_cache)
            shown = []
            for _ in range(10):
                with Session(slots.engine) as session, session.begin():
                    holds.within(session).create(1)
                    shown.append(shelf.call("free", 1))
                shown.append(shelf.call("free", 1))

        assert shown == [20] + [left for left in range(19, 10, -1) for _ in range(2)] + [10]

    @on_one_of_each_in_both
    def test_it_finds_the_change_committed(self, customer: Customer) -> None:
        shown: list[int] = []
        holds = customer.manager(lambda scope: shown.append(free(customer.slots, 1)))

        with customer.session() as session, session.begin():
            holds.within(session).create(1)

        assert shown == [3]

    @pytest.mark.parametrize("kind", ["given", *ON_SERVERS])
    def test_it_can_read_the_list_when_callers_hold_all_connections(
        self, kind: str, place_of: PlaceOf
    ) -> None:
        place = place_of(kind)
        shown: list[Any] = []
        with ExitStack() as stack:
            stack.enter_context(opened(kind, place)).add([(1, 5)])
            engine = stack.enter_context(engine_for(kind, place, pool_size=1, max_overflow=0))
            assert engine is not None
            slots = stack.enter_context(SqlSlots(engine))
            service = SlotAvailabilityService(slots)

            def show(scope: Any) -> None:
                stack.enter_context(engine.connect())
                service.clear_availability_cache(scope)
                shown.append(service.get_availability().get(1))

            with Session(engine) as session:
                HoldManager(slots, on_change=show).within(session).create(1)
                session.commit()

        assert [row.remaining for row in shown] == [4]

    @on_one_of_each_in_both
    def test_one_that_raises_is_logged_and_counted_where_within_came_from(
        self, customer: Customer, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(scope: Any) -> None:
            raise Failure(scope)

        holds = customer.manager(fail)

        with customer.session() as session, session.begin():
            hold = holds.within(session).create(1)
            holds.within(session).create(2)

        assert holds.get(hold.id) == hold
        assert holds.hook_failures == 2
        assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]

    @on_one_of_each_in_both
    def test_a_slow_one_keeps_neither_lock_nor_connection(self, customer: Customer) -> None:
        gate = Gate()
        slow = customer.manager(gate)

        def buy() -> None:
            with customer.session() as session, session.begin():
                slow.within(session).create(1)

        buying = spawn(buy)
        gate.wait_for_somebody()
        assert customer.pool.checkedout() == 0
        with customer.transaction() as (_, holds):
            holds.create(1)
        gate.open()
        buying.result(PATIENCE)

    @on_sqlite
    def test_a_signal_in_one_keeps_no_other_from_being_told(self, customer: Customer) -> None:
        def interrupted(scope: Any) -> None:
            raise KeyboardInterrupt

        first = HoldManager(customer.slots, on_change=interrupted)

        with customer.session() as session:
            first.within(session).create(1)
            customer.holds.within(session).create(2)
            with pytest.raises(KeyboardInterrupt):
                session.commit()

        assert customer.told == ["b"]
        assert customer.hook.lent == [0]
        assert customer.desk.row(2)[1] in (0, 1)
        assert free(customer.slots, 1) == 3

    @on_sqlite
    def test_one_that_uses_the_same_session_changes_nothing(
        self, customer: Customer, caplog: pytest.LogCaptureFixture
    ) -> None:
        with customer.session() as session:
            holds = HoldManager(
                customer.slots, on_change=lambda scope: session.execute(sa.text("SELECT 1"))
            )
            with session.begin():
                hold = holds.within(session).create(1)

        assert customer.desk.holds.get(hold.id) == hold
        assert holds.hook_failures == 1
        assert "closed transaction inside context manager" in caplog.text

    @on_sqlite_in_both
    def test_two_managers_with_one_hook_tell_it_once_for_each_scope(
        self, customer: Customer
    ) -> None:
        other = customer.manager(customer.hook)

        with customer.transaction() as (session, holds):
            holds.create(1)
            other.within(session).create(1)
            other.within(session).create(2)

        assert customer.told == ["a", "b"]

    @on_sqlite_in_both
    def test_each_transaction_of_a_session_tells_its_own(self, customer: Customer) -> None:
        with customer.session() as session:
            holds = customer.holds.within(session)
            holds.create(1)
            session.commit()
            assert customer.told == ["a"]
            holds.create(2)
            session.rollback()
            assert customer.told == ["a"]
            holds.create(3)
            session.commit()

        assert customer.told == ["a", "c"]
        assert customer.hook.lent == [0, 0]

    @on_sqlite_in_both
    def test_a_session_that_is_closed_without_a_commit_tells_nobody(
        self, customer: Customer
    ) -> None:
        with customer.session() as session:
            customer.holds.within(session).create(1)

        assert customer.told == []
        assert free(customer.slots, 1) == 4

    @on_sqlite_in_both
    def test_a_savepoint_that_is_released_tells_with_the_rest(self, customer: Customer) -> None:
        with customer.transaction() as (session, holds):
            with session.begin_nested():
                holds.create(1)
                with session.begin_nested():
                    holds.create(2)
            assert customer.told == []

        assert customer.told == ["a", "b"]

    @on_sqlite_in_both
    @pytest.mark.parametrize("before", [False, True])
    def test_what_is_released_into_a_savepoint_that_is_taken_back_is_not_told(
        self, customer: Customer, before: bool
    ) -> None:
        """Whether or not anything was noted before the first savepoint."""
        assert told_of_released_and_taken_back(customer, before=before) == ["c"] * before

    @on_sqlite
    def test_an_error_of_another_listener_after_the_commit_does_not_keep_it_untold(
        self, customer: Customer
    ) -> None:
        def fail(session: Session) -> None:
            raise Failure

        with customer.session() as session:
            sa.event.listen(session, "after_commit", fail)
            customer.holds.within(session).create(1)
            with pytest.raises(Failure):
                session.commit()

        assert customer.told == ["a"]
        assert free(customer.slots, 1) == 3

    @on_sqlite
    def test_an_error_of_another_listener_at_the_end_does_not_keep_it_untold(
        self, customer: Customer
    ) -> None:
        def fail(*_: Any) -> None:
            raise Failure

        with customer.session() as session:
            sa.event.listen(session, "after_transaction_end", fail)
            customer.holds.within(session).create(1)
            with pytest.raises(Failure):
                session.commit()
            sa.event.remove(session, "after_transaction_end", fail)

        assert customer.told == ["a"]

    @on_sqlite
    def test_a_commit_whose_answer_was_lost_is_told(
        self, customer: Customer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dialect: Any = customer.engine.dialect
        commit = dialect.do_commit

        def commit_and_fail(connection: Any) -> None:
            commit(connection)
            raise sqlite3.OperationalError("disk I/O error")

        with customer.session() as session:
            customer.holds.within(session).create(1)
            monkeypatch.setattr(dialect, "do_commit", commit_and_fail)
            with pytest.raises(OperationalError):
                session.commit()
            monkeypatch.undo()

        assert customer.told == ["a"]
        assert free(customer.slots, 1) == 3

    @on_servers_in_both
    def test_a_connection_that_is_lost_at_the_commit_is_told(self, customer: Customer) -> None:
        """Nobody could know that it did not happen."""
        with customer.session() as session:
            customer.holds.within(session).create(1)
            end_connection(customer, session)
            with pytest.raises(DBAPIError):
                session.commit()

        assert customer.told == ["a"]
        assert free(customer.slots, 1) == 4

    @on_servers_in_both
    def test_a_connection_that_is_lost_before_it_tells_nobody(self, customer: Customer) -> None:
        with customer.session() as session:
            customer.holds.within(session).create(1)
            end_connection(customer, session)
            with pytest.raises(DBAPIError):
                session.execute(sa.text("SELECT 1"))
            session.rollback()

        assert customer.told == []


def told_of_released_and_taken_back(customer: Customer, *, before: bool = False) -> list[Any]:
    """What the hook is told of a savepoint that was released in one that was rolled back."""
    with customer.transaction() as (session, holds):
        if before:
            holds.create(3)
        with suppress(Failure), session.begin_nested():
            with session.begin_nested():
                holds.create(1)
            holds.create(2)
            raise Failure
    return customer.told


def end_connection(customer: Customer, session: Session) -> None:
    """Have the server end the session's connection."""
    ask, end = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({}, 5000)"),
        "mariadb": ("SELECT connection_id()", "KILL HARD {}"),
    }[customer.engine.dialect.name]
    number = session.execute(sa.text(ask)).scalar_one()
    with customer.slots.engine.connect() as other:
        other.exec_driver_sql(end.format(number))


class TestSessions:
    """Sessions as their users make them."""

    @on_sqlite
    def test_pending_objects_are_flushed_first(self, customer: Customer) -> None:
        statements: list[str] = []
        with with_orders(customer.slots.engine), customer.session() as session:
            session.add(Order(id=1))
            sa.event.listen(
                session.connection(),
                "before_cursor_execute",
                lambda _connection, _cursor, statement, *_: statements.append(statement),
            )
            customer.holds.within(session).create(1)
            session.add(Order(id=2))
            with session.no_autoflush:
                customer.holds.within(session).create(1)
            pending = list(session.new)

        assert statements[0].startswith("INSERT INTO orders")
        assert [order.id for order in pending] == [2]

    @on_sqlite_in_both
    def test_what_is_wrong_with_a_pending_object_is_raised_as_it_is(
        self, customer: Customer
    ) -> None:
        with with_orders(customer.slots.engine), customer.session() as session:
            session.execute(orders.insert().values(id=1))
            session.add(Order(id=1))
            with pytest.raises(sa.exc.IntegrityError):
                customer.holds.within(session).create(1)
            session.rollback()
            customer.holds.within(session).create(2)
            session.commit()

        assert customer.told == ["b"]

    @on_sqlite
    def test_a_sessionmaker_with_a_class_of_its_own_will_do(self, customer: Customer) -> None:
        class Own(Session):
            pass

        with sessionmaker(customer.engine, class_=Own).begin() as session:
            customer.holds.within(session).create(1)

        assert customer.told == ["a"]

    @on_sqlite
    def test_a_scoped_session_is_whichever_is_there_at_each_call(self, customer: Customer) -> None:
        """It begins a new one after `remove`, and in each thread."""
        session = scoped_session(sessionmaker(customer.engine))
        first = session()
        holds = customer.holds.within(session)

        holds.create(1)
        session.commit()
        session.remove()
        holds.create(2)
        session.commit()
        session.remove()
        first.close()

        assert customer.told == ["a", "b"]

    @on_sqlite
    def test_a_session_with_the_info_of_another_one_tells_by_itself(
        self, customer: Customer
    ) -> None:
        with customer.session() as first:
            customer.holds.within(first).create(1)
            first.commit()
        with customer.session(info=first.info) as second:
            customer.holds.within(second).create(2)
            second.commit()

        assert customer.told == ["a", "b"]

    @on_sqlite
    def test_a_session_that_sends_what_it_reads_elsewhere_joins_where_it_writes(
        self, customer: Customer, tmp_path: Path
    ) -> None:
        """As SQLAlchemy's documentation routes between a leader and its followers."""
        follower = sa.create_engine(f"sqlite:///{tmp_path / 'follower.db'}")

        class Routing(Session):
            def get_bind(self, mapper: Any = None, clause: Any = None, **_: Any) -> sa.Engine:
                writes = self._flushing or isinstance(clause, sa.Update | sa.Delete)
                return customer.engine if writes else follower

        with Routing() as session:
            customer.holds.within(session).create(1)
            session.commit()
        follower.dispose()

        assert customer.told == ["a"]

    @on_sqlite
    def test_a_session_with_several_engines_uses_the_one_that_has_the_slots(
        self, customer: Customer
    ) -> None:
        elsewhere = sa.create_engine("sqlite://")
        binds: Any = {customer.slots._slots.table: customer.engine}

        with Session(elsewhere, binds=binds) as session:
            customer.holds.within(session).create(1)
            session.commit()
        elsewhere.dispose()

        assert customer.told == ["a"]

    @on_one_of_each_in_both
    def test_what_is_read_in_it_is_what_the_transaction_sees(self, customer: Customer) -> None:
        with customer.transaction() as (session, holds):
            hold = holds.create(1, owner="ann")
            assert holds.get(hold.id) == hold
            assert holds.find(owner="ann") == [hold]
            session.rollback()


class Base(DeclarativeBase):
    pass


class Order(Base):
    __table__ = orders


@on_sqlite
def test_the_slot_is_locked_first_also_by_a_session_that_may_have_locked_nothing(
    customer: Customer,
) -> None:
    """Those of the table's own engine lock the whole file as they begin; of others, who knows?"""
    sent: list[str] = []
    other = sa.create_engine(customer.engine.url)
    begin_deferred(other)
    sa.event.listen(other, "before_cursor_execute", lambda *given: sent.append(given[2]))

    with Session(other) as session:
        customer.holds.within(session).create(1)
        session.rollback()
    other.dispose()

    of_the_table = [statement for statement in sent if "slots" in statement]
    assert of_the_table[0].startswith("UPDATE slots SET remaining=slots.remaining")


class TestRefused:
    """What could not keep the promises, and what to write instead."""

    @pytest.mark.parametrize("customer", ONE_OF_EACH[1:2], indirect=True, ids=str)
    def test_a_savepoint_that_sqlite_would_take_for_the_transaction(
        self, customer: Customer
    ) -> None:
        """SQLite's driver begins nothing before it, so its release would commit."""
        before = customer.rows()
        with customer.session() as session:
            with (
                session.begin_nested(),
                pytest.raises(ValueError, match="would commit at its end"),
            ):
                customer.holds.within(session).create(1)
            session.rollback()
        assert customer.rows() == before

        with customer.session() as session:
            customer.holds.within(session).create(1)
            with session.begin_nested():
                customer.holds.within(session).create(2)
            session.rollback()
        assert (customer.rows(), customer.told) == (before, [])

    @on_sqlite
    @pytest.mark.parametrize(
        ("given", "way_out"),
        [
            (lambda engine: engine, "the manager itself has transactions of its own"),
            (lambda engine: None, "a Session or a Connection was expected"),
            (lambda engine: Session, "a Session or a Connection was expected"),
            (lambda engine: sessionmaker(engine), "a Session or a Connection was expected"),
            (lambda engine: AsyncSession(), "that is for asyncio, as AsyncHoldManager"),
        ],
        ids=["engine", "None", "class", "sessionmaker", "async"],
    )
    def test_what_is_no_transaction(
        self, customer: Customer, given: Callable[[Any], Any], way_out: str
    ) -> None:
        with pytest.raises(TypeError, match=way_out):
            customer.holds.within(given(customer.engine))

    @on_sqlite
    def test_a_bare_connection(self, customer: Customer) -> None:
        with (
            customer.engine.connect() as connection,
            pytest.raises(
                ValueError, match=r"bare connection .* `with clear_after\(connection\):`"
            ),
        ):
            customer.holds.within(connection)

    @on_sqlite
    @pytest.mark.parametrize("mode", ["conditional_savepoint", "create_savepoint", "control_fully"])
    def test_a_session_that_is_bound_to_one(self, customer: Customer, mode: Any) -> None:
        with (
            customer.engine.connect() as connection,
            Session(connection, join_transaction_mode=mode) as session,
            pytest.raises(ValueError, match=r"bound to a connection .* `with clear_after\("),
        ):
            customer.holds.within(session)

    @on_sqlite
    def test_a_session_that_was_bound_to_one_since(self, customer: Customer) -> None:
        with customer.engine.connect() as connection, customer.session() as session:
            holds = customer.holds.within(session)
            session.bind = connection
            with pytest.raises(ValueError, match="clear_after"):
                holds.create(1)

    @on_sqlite
    def test_two_phases(self, customer: Customer) -> None:
        with (
            customer.session(twophase=True) as session,
            pytest.raises(ValueError, match="use one without twophase=True"),
        ):
            customer.holds.within(session)

    @pytest.mark.parametrize("customer", ONE_OF_EACH[2:], indirect=True, ids=str)
    def test_two_phases_of_a_connection(self, customer: Customer) -> None:
        with customer.engine.connect() as connection, clear_after(connection):
            holds = customer.holds.within(connection)
            connection.begin_twophase()
            with pytest.raises(ValueError, match=r"begin with connection.begin\(\)"):
                holds.create(1)
            connection.rollback()

    @pytest.mark.parametrize("customer", ONE_OF_EACH[1:], indirect=True, ids=str)
    @pytest.mark.parametrize("by", ["engine", "session"])
    def test_autocommit(self, customer: Customer, by: str) -> None:
        engine = customer.slots.engine
        if by == "engine":
            engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        before = customer.rows()
        with Session(engine) as session:
            if by == "session":
                session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
            with pytest.raises(ValueError, match=r"AUTOCOMMIT.*: use the manager itself"):
                customer.holds.within(session).create(1)
            session.commit()

        assert customer.rows() == before
        assert customer.told == []

    @on_sqlite
    def test_an_engine_of_ours_begins_a_transaction_even_so(self, customer: Customer) -> None:
        before = customer.rows()
        with Session(customer.engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
            customer.holds.within(session).create(1)
            session.rollback()
            assert customer.rows() == before
            customer.holds.within(session).create(2)
            session.commit()

        assert customer.told == ["b"]
        assert free(customer.slots, 2) == 0

    @pytest.mark.parametrize("customer", ONE_OF_EACH[2:], indirect=True, ids=str)
    def test_another_kind_of_database(self, customer: Customer) -> None:
        other = sa.create_engine("sqlite://")
        with (
            Session(other) as session,
            pytest.raises(ValueError, match="give one on the database of the slots"),
        ):
            customer.holds.within(session).create(1)
        other.dispose()

    @on_sqlite
    def test_a_manager_that_is_inside_already(self, customer: Customer) -> None:
        with (
            customer.session() as session,
            pytest.raises(ValueError, match="inside a transaction already"),
        ):
            customer.holds.within(session).within(session)


class TestClearAfter:
    """Connections without a session."""

    @on_one_of_each
    def test_it_commits_at_the_end_and_then_tells(self, customer: Customer) -> None:
        with customer.engine.connect() as connection:
            with clear_after(connection) as same:
                assert same is connection
                hold = customer.holds.within(connection).create(1)
                customer.holds.within(connection).confirm(hold.id)
                assert customer.told == []
            assert customer.told == ["a"]
            assert not connection.in_transaction()

        assert customer.desk.holds.get(hold.id).state is HoldState.CONFIRMED

    @on_one_of_each
    def test_an_exception_rolls_back_and_tells_nobody(self, customer: Customer) -> None:
        before = customer.rows()

        with (
            customer.engine.connect() as connection,
            suppress(Failure),
            clear_after(connection),
        ):
            customer.holds.within(connection).create(1)
            raise Failure

        assert customer.rows() == before
        assert customer.told == []

    @on_sqlite
    def test_a_connection_that_is_closed_inside_tells_nobody(self, customer: Customer) -> None:
        before = customer.rows()

        with suppress(sa.exc.SQLAlchemyError), clear_after(customer.engine.connect()) as connection:
            customer.holds.within(connection).create(1)
            connection.close()

        assert customer.rows() == before
        assert customer.told == []

    @on_one_of_each
    def test_a_savepoint_inside_is_forgotten_if_it_is_taken_back(self, customer: Customer) -> None:
        with customer.engine.connect() as connection, clear_after(connection):
            holds = customer.holds.within(connection)
            holds.create(1)
            with suppress(Failure), connection.begin_nested():
                holds.create(2)
                raise Failure
            with connection.begin_nested():
                holds.create(3)

        assert customer.told == ["a", "c"]
        assert customer.desk.row(2) == (1, 1)

    @on_sqlite
    def test_what_is_committed_in_between_is_told_at_the_end(self, customer: Customer) -> None:
        with (
            suppress(Failure),
            customer.engine.connect() as connection,
            clear_after(connection),
        ):
            holds = customer.holds.within(connection)
            holds.create(1)
            connection.commit()
            holds.create(2)
            connection.rollback()
            with connection.begin():
                holds.create(3)
            assert customer.told == []
            holds.create(4)
            raise Failure

        assert customer.told == ["a", "c"]

    @on_sqlite
    def test_afterwards_the_connection_is_plain_again(self, customer: Customer) -> None:
        with customer.engine.connect() as connection:
            with clear_after(connection):
                holds = customer.holds.within(connection)
                holds.create(1)
            with pytest.raises(ValueError, match="clear_after"):
                holds.create(1)
            with clear_after(connection):
                holds.create(2)

        assert customer.told == ["a", "b"]

    @on_sqlite
    def test_it_may_stand_inside_of_what_begins_and_commits(self, customer: Customer) -> None:
        with customer.engine.begin() as connection, clear_after(connection):
            customer.holds.within(connection).create(1)

        assert customer.told == ["a"]

    @pytest.mark.parametrize("customer", [Way("given", "counted")], indirect=True, ids=str)
    def test_what_could_not_be_committed_is_not_by_whoever_commits_next(
        self, customer: Customer
    ) -> None:
        """SQLite says "locked" to a COMMIT as long as others read, and the transaction stays."""
        before = customer.rows()
        path = str(customer.engine.url.database)
        other = sqlite3.connect(path, isolation_level=None)
        with customer.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout = 1")
            with suppress(OperationalError), clear_after(connection):
                customer.holds.within(connection).create(1)
                other.execute("BEGIN")
                other.execute("SELECT * FROM slots").fetchall()
            other.close()
            with connection.begin():
                connection.exec_driver_sql("SELECT 1")
            connection.exec_driver_sql("PRAGMA busy_timeout = 5000")

        assert customer.rows() == before

    @with_savepoints
    def test_a_test_suite_may_bind_a_session_and_take_all_of_it_back(
        self, customer: Customer
    ) -> None:
        before = customer.rows()

        with customer.engine.connect() as connection, clear_after(connection):
            transaction = connection.begin()
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                holds = customer.holds.within(session)
                hold = holds.create(1)
                session.commit()
                assert holds.get(hold.id) == hold
                holds.create(2)
                session.rollback()
                assert holds.find() == [hold]
            transaction.rollback()

        assert customer.rows() == before
        assert customer.told == []

    @on_sqlite
    def test_a_bound_session_tells_when_the_outer_transaction_is_committed(
        self, customer: Customer
    ) -> None:
        assert told_of_a_joined_session(customer) == ([], ["a"])

    @on_sqlite
    def test_it_takes_a_free_connection(self, customer: Customer) -> None:
        with customer.session() as session:
            customer.holds.within(session).create(1)
            its_own: Any = session.connection()
            with pytest.raises(ValueError, match="or is a session's"), clear_after(its_own):
                pass
            with pytest.raises(TypeError, match="a Session needs none"), clear_after(session):
                pass
        with customer.engine.connect() as connection:
            with (
                clear_after(connection),
                pytest.raises(ValueError, match="inside of clear_after already"),
                clear_after(connection),
            ):
                pass
            with (
                connection.begin_nested(),
                pytest.raises(ValueError, match="write it outside of it"),
                clear_after(connection),
            ):
                pass


def told_of_a_joined_session(customer: Customer) -> tuple[list[Any], list[Any]]:
    """What the hook is told until a session is done, and until the transaction is that it joins."""
    with customer.engine.connect() as connection:
        with clear_after(connection):
            transaction = connection.begin()
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                customer.holds.within(session).create(1)
                session.commit()
            early = list(customer.told)
            transaction.commit()
        return early, customer.told


CROWDED = [Way("given", "counted"), Way("deferred", "on_hold"), *AT_EACH_LEVEL]
"""On engines of which others know nothing."""

COUNT = 3


class Crowds:
    """Tables that share nothing but the database: three for each database and claim, kept."""

    def __init__(self, place_of: Callable[[str], Place]) -> None:
        self._place_of = place_of
        self._kept: dict[tuple[str, str], Crowd] = {}
        self.stack = ExitStack()

    def crowd(self, kind: str, claim: str) -> Crowd:
        """Return that crowd, with no rows."""
        if (kind, claim) not in self._kept:
            options: dict[str, Any] = {}
            if kind == "postgres":
                options["engine_connect_args"] = {"options": "-c deadlock_timeout=50ms"}
            gathering = gathered(kind, self._place_of(kind), count=COUNT, claim=claim, **options)
            self._kept[kind, claim] = self.stack.enter_context(gathering)
        return cleared(self._kept[kind, claim])


@pytest.fixture(scope="module")
def crowds(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Crowds]:
    def place(kind: str) -> Any:
        if kind in ON_SERVERS:
            return request.getfixturevalue(f"{kind}_tables")
        return tmp_path_factory.mktemp("crowds")

    made = Crowds(place)
    with made.stack:
        yield made


class Contest:
    """Customers whose transactions are isolated so, at one table.

    Attributes:
        crowd: What they work on.
        level: How.
    """

    def __init__(self, crowd: Crowd, level: str | None) -> None:
        self.crowd = crowd
        self.level = level
        self.table = crowd.table
        self.others = crowd.managers[1]
        self.kind = crowd.table.engine.dialect.name

    def session(self, index: int = 0) -> Session:
        return Session(engine_of(self.crowd.tables[index], self.level))

    def look_around(self, session: Session) -> None:
        """Read the tables: from now on the transaction may see them as they are now."""
        session.execute(sa.text("SELECT * FROM slots WHERE slot_id = 99")).all()
        if (self.kind, self.level) != ("mariadb", "SERIALIZABLE"):  # there, it locks what it reads
            for table in "slots", "slot_holds", "slot_hold_keys":
                session.execute(sa.text(f"SELECT * FROM {table}")).all()

    def on_an_old_snapshot(
        self, meanwhile: Callable[[HoldManager], Any], work: Callable[[HoldManager], Any]
    ) -> Any:
        """Return what comes of work in a transaction that began before others did something."""
        with self.session() as session:
            self.look_around(session)
            meanwhile(self.others)
            try:
                outcome = work(self.crowd.holds.within(session))
                session.commit()
            except Exception as error:
                return error
        return outcome

    def transact(self, index: int, work: Callable[[HoldManager], Any]) -> Any:
        """Do it in a transaction, which is committed."""
        with self.session(index) as session, session.begin():
            return work(self.crowd.managers[index].within(session))


@pytest.fixture(params=CROWDED, ids=str)
def contest(request: pytest.FixtureRequest, crowds: Crowds) -> Iterator[Contest]:
    """Customers on each database with each claim at each isolation level."""
    way: Way = request.param
    crowd = crowds.crowd(way.kind, way.claim)
    yield Contest(crowd, way.level)
    check_books(crowd.table)


on_one_engine_of_each = pytest.mark.parametrize("contest", ONE_OF_EACH[1:], indirect=True, ids=str)


class TestOldSnapshots:
    """Others change the slot after the transaction has looked, and before it acts (P6)."""

    def test_the_last_place_is_not_sold_twice(self, contest: Contest) -> None:
        assert isinstance(last_place_on_an_old_snapshot(contest), SlotFull | Busy)

    def test_a_hold_that_was_given_up_is_not_sold(self, contest: Contest) -> None:
        contest.table.add([(1, 1)])
        hold = contest.others.create(1)

        outcome = contest.on_an_old_snapshot(
            lambda others: (others.cancel(hold.id), others.create(1)),
            lambda holds: holds.confirm(hold.id),
        )

        assert isinstance(outcome, IllegalTransition | Busy)

    def test_a_place_that_was_sold_since_is_not_to_be_had_again(self, contest: Contest) -> None:
        contest.table.add([(1, 1)])
        hold = contest.others.create(1, ttl=1e-6)

        outcome = contest.on_an_old_snapshot(
            lambda others: others.create(1),
            lambda holds: holds.confirm(hold.id, late="reacquire"),
        )

        assert isinstance(outcome, HoldExpired | Busy)

    def test_a_key_that_was_used_since_makes_no_second_hold(self, contest: Contest) -> None:
        contest.table.add([(1, 5)])
        made: list[Hold] = []

        outcome = contest.on_an_old_snapshot(
            lambda others: made.append(others.create(1, idempotency_key="k")),
            lambda holds: holds.create(1, idempotency_key="k"),
        )

        assert isinstance(outcome, Busy) or (outcome.id, outcome.replayed) == (made[0].id, True)
        assert query(contest.table, "SELECT count(*) FROM slot_holds") == [(1,)]

    def test_a_hold_that_was_sold_since_makes_no_room_for_another(self, contest: Contest) -> None:
        contest.table.add([(1, 1)])
        hold = contest.others.create(1)

        outcome = contest.on_an_old_snapshot(
            lambda others: others.confirm(hold.id),
            lambda holds: holds.create(1, replaces=hold.id),
        )

        assert isinstance(outcome, IllegalTransition | Busy)

    def test_a_hold_that_was_made_since_is_replaced_or_not_found(self, contest: Contest) -> None:
        """A snapshot does not show it, nor on which slot it is."""
        contest.table.add([(1, 1), (2, 1)])
        made: list[Hold] = []

        outcome = contest.on_an_old_snapshot(
            lambda others: made.append(others.create(1)),
            lambda holds: holds.create(2, replaces=made[0].id),
        )

        assert isinstance(outcome, Hold | HoldNotFound | Busy)
        is_replaced = isinstance(outcome, Hold)
        assert [free(contest.table, slot_id) for slot_id in (1, 2)] == [
            is_replaced,
            not is_replaced,
        ]

    def test_a_slot_that_was_made_smaller_is_not_oversold(self, contest: Contest) -> None:
        contest.table.add([(1, 5)])

        outcome = contest.on_an_old_snapshot(
            lambda others: others.set_capacity(1, 1), lambda holds: holds.create(1, 2)
        )

        assert isinstance(outcome, SlotFull | Busy)

    def test_a_slot_is_not_made_smaller_than_what_was_sold_since(self, contest: Contest) -> None:
        contest.table.add([(1, 5)])

        outcome = contest.on_an_old_snapshot(
            lambda others: others.create(1, 3), lambda holds: holds.set_capacity(1, 2)
        )

        assert isinstance(outcome, CapacityTooLow | Busy)

    def test_what_was_swept_since_gives_its_places_back_once(self, contest: Contest) -> None:
        contest.table.add([(1, 5)])
        contest.others.create(1, 3, ttl=1e-6)

        outcome = contest.on_an_old_snapshot(
            lambda others: others.expire_due(), lambda holds: holds.expire_due()
        )

        assert outcome == 0 or isinstance(outcome, Busy)

    def test_a_late_sale_since_is_not_forgotten(self, contest: Contest) -> None:
        contest.table.add([(1, 5)])
        hold = contest.others.create(1, 3, ttl=1e-6)
        contest.others.expire_due()

        contest.on_an_old_snapshot(
            lambda others: others.confirm(hold.id, late="reacquire"),
            lambda holds: holds.purge(0),
        )

        assert contest.others.get(hold.id).state is HoldState.CONFIRMED

    @on_one_engine_of_each
    def test_a_late_sale_after_it_was_chosen_is_not_forgotten(self, contest: Contest) -> None:
        """Those to forget are looked for in a transaction of their own, which locks nothing."""
        contest.table.add([(1, 5)])
        hold = contest.others.create(1, 3, ttl=1e-6)
        contest.others.expire_due()
        contest.others.confirm(hold.id, late="reacquire")

        forgotten = contest.table._transact(lambda ledger: ledger.purge([hold.id]), [], lock_wait=1)

        assert forgotten == 0
        assert contest.others.get(hold.id).state is HoldState.CONFIRMED

    def test_what_was_sold_since_is_cancelled_with_its_places(self, contest: Contest) -> None:
        contest.table.add([(1, 5)])
        hold = contest.others.create(1, 3)

        outcome = contest.on_an_old_snapshot(
            lambda others: others.confirm(hold.id), lambda holds: holds.cancel(hold.id)
        )

        assert isinstance(outcome, Hold | Busy)
        assert free(contest.table, 1) == (5 if isinstance(outcome, Hold) else 2)


def last_place_on_an_old_snapshot(contest: Contest) -> Any:
    """What comes of the wish for a place that others have bought since."""
    contest.table.add([(1, 1)])
    return contest.on_an_old_snapshot(
        lambda others: others.create(1), lambda holds: holds.create(1)
    )


class TestWaiting:
    """Others have the slot when the transaction wants it."""

    def test_one_of_many_gets_the_last_place(self, contest: Contest) -> None:
        contest.table.add([(1, 1)])
        calls = [
            partial(contest.transact, index, lambda holds: holds.create(1))
            for index in range(COUNT)
        ]

        outcomes = contest.crowd.race(calls)

        assert sum(isinstance(each, Hold) for each in outcomes) == 1
        assert all(isinstance(each, Hold | SlotFull | Busy) for each in outcomes)

    def test_a_hold_that_falls_due_meanwhile_is_not_sold(self, contest: Contest) -> None:
        """Nor has who waits for a slot locked the hold: others write that after the slot, too."""
        if (contest.kind, contest.level) == ("mariadb", "SERIALIZABLE"):
            pytest.skip("there each SELECT locks what it reads")
        contest.table.add([(1, 5)])
        hold = contest.others.create(1, 2)

        (outcome,) = contest.crowd.race(
            [partial(contest.transact, 0, lambda holds: holds.confirm(hold.id))],
            meanwhile=lambda blocker: blocker.end(hold),
        )

        assert isinstance(outcome, HoldExpired | Busy)
        assert free(contest.table, 1) == 5

    def test_the_same_slots_in_another_order_end_in_no_deadlock(self, contest: Contest) -> None:
        contest.table.add([(1, 2), (2, 2)])
        wishes: list[Any] = [{1: 1, 2: 1}, {2: 1, 1: 1}]

        def buy(index: int) -> Any:
            return contest.transact(index, lambda holds: holds.create_many(wishes[index]))

        calls = [partial(buy, index) for index in range(2)]

        outcomes = contest.crowd.race(calls, slots=(1, 2))

        assert sum(isinstance(each, tuple) for each in outcomes) >= 1
        if contest.level in (None, "READ COMMITTED"):
            assert [isinstance(each, tuple) for each in outcomes] == [True, True]
        assert all(isinstance(each, tuple | Busy) for each in outcomes)

    @pytest.mark.parametrize("contest", AT_EACH_LEVEL[::2], indirect=True, ids=str)
    def test_of_two_in_a_deadlock_one_is_told_busy_and_keeps_nothing(
        self, contest: Contest
    ) -> None:
        contest.table.add([(1, 1), (2, 1)])
        hold_ids = [contest.others.create(slot_id).id for slot_id in (1, 2)]
        met = threading.Barrier(2)

        def buy(index: int) -> list[Hold]:
            with contest.session(index) as session:
                holds = contest.crowd.managers[index].within(session)
                first = holds.confirm(hold_ids[index], reference=str(index))
                met.wait(PATIENCE)
                try:
                    second = holds.confirm(hold_ids[1 - index], reference=str(index))
                except Busy:
                    if contest.kind == "mariadb":  # which has rolled all of it back
                        with pytest.raises(PendingRollbackError):
                            session.commit()
                    session.rollback()
                    raise
                session.commit()
                return [first, second]

        buying = [spawn(partial(buy, index)) for index in range(2)]
        outcomes = [each.exception(PATIENCE) for each in buying]

        assert sorted(type(each).__name__ for each in outcomes) == ["Busy", "NoneType"]
        winner = str(outcomes.index(None))
        assert [contest.others.get(each).reference for each in hold_ids] == [winner, winner]

    @pytest.mark.parametrize("contest", ONE_OF_EACH[2:], indirect=True, ids=str)
    def test_a_late_payment_for_what_is_being_forgotten_is_told_so(self, contest: Contest) -> None:
        contest.table.add([(1, 5)])
        hold = contest.others.create(1, 3, ttl=1e-6)
        contest.others.expire_due()

        with contest.crowd.blocked() as blocker:
            blocker.connection.exec_driver_sql("DELETE FROM slot_holds")
            blocker.has_changed = True
            paying = spawn(lambda: contest.others.confirm(hold.id, late="reacquire"))
            blocker.wait_for(lambda: 1)

        assert isinstance(paying.exception(PATIENCE), HoldNotFound)
        assert free(contest.table, 1) == 5

    @on_one_engine_of_each
    def test_busy_comes_in_time_and_the_transaction_goes_on(self, contest: Contest) -> None:
        contest.table.add([(1, 1), (2, 1)])
        lock_wait = 1.0 if contest.kind == "mariadb" else 0.1
        hook = Teller(contest.table)
        hurried = HoldManager(contest.table, on_change=hook, policy=HoldPolicy(lock_wait=lock_wait))
        with contest.session() as session:
            holds = hurried.within(session)
            be_patient(session)
            with contest.crowd.blocked(1):
                if contest.kind != "sqlite":  # which locks the whole file
                    holds.create(2)
                began = monotonic()
                with pytest.raises(Busy):
                    holds.create(1)
                took = monotonic() - began
                patience_then = patience_of(session)
            assert holds.create(1).state is HoldState.HELD
            patience_after = patience_of(session)
            session.commit()
            assert patience_of(session) == patience_then == patience_after == PATIENCE_BEFORE

        assert lock_wait <= took < lock_wait + 2
        assert hook.told == [None]
        assert free(contest.table, 1) == 0

    @pytest.mark.parametrize(
        "contest",
        [
            way
            for way in AT_EACH_LEVEL
            if way.level == LEVELS[0] or way[::2] == ("postgres", LEVELS[1])
        ],
        indirect=True,
        ids=str,
    )
    def test_nobody_waits_for_who_has_another_slot(self, contest: Contest) -> None:
        """MariaDB locks gaps between entries in other levels, and SERIALIZABLE gives one up."""
        contest.table.add([(1, 1), (2, 1)])

        with contest.session() as session:
            contest.crowd.holds.within(session).create(1)
            bought = contest.transact(1, lambda holds: holds.create(2))
            session.commit()

        assert bought.state is HoldState.HELD


class TestAnything:
    @pytest.mark.parametrize(
        "contest",
        [
            *CROWDED[:2],
            Way("postgres", "counted", LEVELS[0]),
            Way("postgres", "on_hold", LEVELS[1]),
            Way("mariadb", "on_hold", LEVELS[0]),
            Way("mariadb", "counted", LEVELS[1]),
        ],
        indirect=True,
        ids=str,
    )
    def test_the_books_balance_after_many_transactions_of_anything(self, contest: Contest) -> None:
        """Nobody is told of anything but a refusal, or of what others did meanwhile."""
        contest.table.add([(1, 9), (2, 9), (3, 9)])
        known = [contest.others.create(slot_id).id for slot_id in (1, 2)]

        working = [
            spawn(partial(do_anything, contest, index, random.Random(index), known))
            for index in range(COUNT)
        ]

        assert [each.exception(ROUNDS * PATIENCE) for each in working] == [None] * COUNT
        assert len(known) > 5


REFUSED = (
    CapacityTooLow,
    HoldExpired,
    HoldNotFound,
    HoldTooSmall,
    IdempotencyConflict,
    IllegalTransition,
    SlotFull,
)


def do_anything(contest: Contest, index: int, chance: random.Random, known: list[UUID]) -> None:
    """Do up to four operations at random in each of some transactions, on everybody's holds."""
    operations: list[Callable[[HoldManager], Any]] = [
        lambda holds: known.append(
            holds.create(
                chance.randint(1, 3), chance.randint(1, 3), ttl=chance.choice((0.001, 0.03, 60))
            ).id
        ),
        lambda holds: holds.create(
            chance.randint(1, 3), ttl=0.02, idempotency_key=str(chance.randint(1, 20))
        ),
        lambda holds: known.extend(
            each.id for each in holds.create_many({1: 1, 3: 1}, replaces=chance.choice(known))
        ),
        lambda holds: holds.confirm(chance.choice(known), late="reacquire"),
        lambda holds: holds.cancel(chance.choice(known)),
        lambda holds: holds.cancel(chance.choice(known), quantity=1),
        lambda holds: holds.extend(chance.choice(known), 0.03),
        lambda holds: holds.expire_due(chance.randint(1, 10)),
        lambda holds: holds.set_capacity(chance.randint(1, 3), chance.randint(3, 9)),
        lambda holds: holds.purge(0),
    ]
    for _ in range(15 * ROUNDS):
        # What others did meanwhile; and, at a commit or a read of the user's own, SQLAlchemy's.
        with suppress(Busy, OperationalError), contest.session(index) as session, session.begin():
            holds = contest.crowd.managers[index].within(session)
            if chance.random() < 0.5:
                session.execute(sa.text("SELECT count(*) FROM slot_hold_keys")).all()
            for _ in range(chance.randint(1, 4)):
                with suppress(*REFUSED):
                    chance.choices(operations, (6, 3, 1, 4, 2, 2, 2, 2, 1, 1))[0](holds)
            if chance.random() < 0.2:
                session.rollback()


PATIENCE_BEFORE = 7
"""In seconds."""

PATIENCES = {
    "sqlite": ("PRAGMA busy_timeout = 7000", "PRAGMA busy_timeout", 7000),
    "postgresql": ("SET lock_timeout = 7000", "SHOW lock_timeout", "7s"),
    "mariadb": (
        "SET innodb_lock_wait_timeout = 7",
        "SELECT @@SESSION.innodb_lock_wait_timeout",
        7,
    ),
}


def be_patient(session: Session) -> None:
    """Have its connection wait so long for locks, in what the user does."""
    session.execute(sa.text(PATIENCES[session.get_bind().dialect.name][0]))
    session.commit()


def patience_of(session: Session) -> int:
    """How long its connection would wait now, in seconds."""
    _, ask, as_set = PATIENCES[session.get_bind().dialect.name]
    found = session.execute(sa.text(ask)).scalar_one()
    return PATIENCE_BEFORE if found == as_set else found


class TestBrokenTwins:
    """The same checks on the shipped code and on twins with one guard taken out."""

    @on_sqlite
    def test_the_events_of_a_session_as_they_are_tell_of_what_is_taken_back(
        self, customer: Customer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SQLAlchemy's `after_commit` fires at the release of each savepoint."""
        assert told_of_released_and_taken_back(customer) == []

        monkeypatch.setattr(noted, "_SessionEnd", TellsAfterCommit)

        assert "a" in told_of_released_and_taken_back(customer)

    @on_one_of_each
    def test_the_event_of_a_connection_as_it_is_tells_before_the_commit(
        self, customer: Customer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert seen_when_told(customer) == {"places free": 3, "connections lent": 0}

        monkeypatch.setattr(noted.Noted, "_commit", tell_at_once)

        assert seen_when_told(customer) == {"places free": 4, "connections lent": 1}

    @on_sqlite
    def test_who_joins_a_transaction_tells_before_it_is_committed(
        self, customer: Customer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert told_of_a_joined_session(customer) == ([], ["a"])
        customer.told.clear()

        monkeypatch.setattr("slotcache.sql.joined.notes_of", notes_of_the_session)

        early, _ = told_of_a_joined_session(customer)
        assert early == ["a"]

    @pytest.mark.parametrize(
        "contest", [Way("mariadb", "counted", LEVELS[1])], indirect=True, ids=str
    )
    def test_a_sum_that_is_read_without_locks_oversells(
        self, contest: Contest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert isinstance(last_place_on_an_old_snapshot(contest), SlotFull)
        cleared(contest.crowd)

        monkeypatch.setattr(contest.table, "_statements_anywhere", contest.table._statements)

        outcome = last_place_on_an_old_snapshot(contest)
        cleared(contest.crowd)
        assert isinstance(outcome, Hold)

    @pytest.mark.parametrize(
        "contest", [Way("postgres", "counted", LEVELS[1])], indirect=True, ids=str
    )
    def test_a_slot_that_is_only_locked_is_oversold_in_repeatable_read(
        self, contest: Contest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert isinstance(last_place_on_an_old_snapshot(contest), Busy)
        cleared(contest.crowd)

        for table in contest.crowd.tables:
            monkeypatch.setattr(table, "_ledger", OnlyLocks)
            monkeypatch.setattr(table, "_shortcut", None)

        outcome = last_place_on_an_old_snapshot(contest)
        cleared(contest.crowd)
        assert isinstance(outcome, Hold)


class TellsAfterCommit:
    """Tells whenever SQLAlchemy says that a session has committed."""

    def __init__(self, session: Session) -> None:
        self._noted: list[noted.Noted] = []
        sa.event.listen(session, "after_commit", self._tell)

    def add(self, notes: noted.Noted) -> None:
        self._noted.append(notes)

    def _tell(self, session: Session) -> None:
        for each in self._noted:
            each.waits.tell([note for level in each._levels for note in level])


def tell_at_once(notes: noted.Noted, _connection: sa.Connection) -> None:
    """Tell as the COMMIT is about to be sent."""
    notes.waits.tell([note for level in notes._levels for note in level])


def notes_of_the_session(session: Session, connection: sa.Connection) -> Any:
    """Begin notes of the session's own, whoever commits the connection."""
    end = TellsAfterCommit(session)
    notes = noted.Noted.__new__(noted.Noted)
    notes._levels, notes._to_tell, notes.waits = [[]], [], THREADS
    end.add(notes)
    return notes


def seen_when_told(customer: Customer) -> dict[str, int]:
    """What a hook sees: how many places the list shows, how many connections are in use."""
    seen: dict[str, int] = {}
    pool: Any = customer.engine.pool

    def see(scope: Any) -> None:
        seen["connections lent"] = pool.checkedout()
        seen["places free"] = free(customer.slots, 1)

    holds = HoldManager(customer.slots, on_change=see)
    with customer.session() as session, session.begin():
        hold = holds.within(session).create(1)
    customer.desk.holds.cancel(hold.id)
    return seen


class OnlyLocks(SqlLedger):
    """Locks the slot row with SELECT ... FOR UPDATE, instead of writing it."""

    def _lock(self, slot_ids: Any) -> None:
        lock = sa.text("SELECT 1 FROM slots WHERE slot_id = :slot FOR UPDATE")
        for slot_id in slot_ids:
            self._run(lock, slot=slot_id)
