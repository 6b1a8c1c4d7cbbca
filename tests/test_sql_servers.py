"""Tables on PostgreSQL and MariaDB: what SQLite's tests (test_sql.py) cannot tell of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import date
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from slotcache import BackendError, Busy, HoldManager, HoldPolicy, SlotFull
from slotcache.sql import SqlSlots
from slotcache.testing import ManualClock

from .support.databases import DatabaseServer, OwnServer
from .support.forks import in_child
from .support.sql import CLAIMS, ON_SERVERS, Place, check_books, free, opened, query
from .support.thorough import THOROUGH
from .support.threads import together
from .support.worlds import World, one_world

PlaceOf = Callable[[str], Place]

ON_EACH = [(kind, "blocking") for kind in ON_SERVERS]

on_each = pytest.mark.parametrize(
    ("kind", "world"),
    [*ON_EACH, *((kind, "asyncio") for kind in ON_SERVERS)],
    indirect=["world"],
)
on_one_more = pytest.mark.parametrize(
    ("kind", "world"), [*ON_EACH, ("postgres", "asyncio")], indirect=["world"]
)
on_each_blocking = pytest.mark.parametrize("kind", ON_SERVERS)


class TestTypes:
    @on_one_more
    @pytest.mark.parametrize("claim", CLAIMS if THOROUGH else CLAIMS[1:])
    @pytest.mark.parametrize(
        ("id_type", "ids"),
        [(int, [-(2**63), 2**63 - 1]), (str, ["A 1", "ß"]), (UUID, [UUID(int=1), UUID(int=2)])],
    )
    def test_ids_come_back_as_what_they_were(
        self,
        world: World,
        kind: str,
        engine: sa.Engine,
        id_type: type[Any],
        ids: list[Any],
        claim: str,
    ) -> None:
        with world.table(engine, id_type=id_type, claim=claim) as slots:
            slots.create_tables()
            slots.add([(each, 4) for each in ids])
            holds = world.holds(slots, on_change=None)
            hold = holds.create(ids[0], idempotency_key="k")
            holds.create(ids[1], 2, ttl=0.000001)

            assert [tuple(row) for row in slots.load().availability] == [
                (ids[0], 4, 3),
                (ids[1], 4, 4),
            ]
            assert holds.find(slot_id=ids[0]) == [hold]
            assert holds.expire_due() == 1
            assert holds.create(ids[0], idempotency_key="k").id == hold.id
            assert holds.confirm(hold.id).slot_id == ids[0]
            check_books(slots)

    @on_one_more
    @pytest.mark.parametrize(
        ("column", "scope"),
        [
            (sa.String(20), "a"),
            (sa.Integer(), 5),
            (sa.Uuid(), UUID(int=5)),
            (sa.Date(), date(2026, 1, 1)),
            (None, None),
        ],
        ids=["str", "int", "uuid", "date", "none"],
    )
    def test_scopes_too(
        self,
        world: World,
        kind: str,
        engine: sa.Engine,
        column: sa.types.TypeEngine[Any] | None,
        scope: Any,
    ) -> None:
        table = sa.Table(
            "halls",
            sa.MetaData(),
            sa.Column("slot_id", sa.Integer, primary_key=True, autoincrement=False),
            *([] if column is None else [sa.Column("scope", column)]),
            sa.Column("capacity", sa.Integer, nullable=False),
            sa.Column("remaining", sa.Integer, nullable=False),
        )
        table.metadata.create_all(engine)
        with world.table(engine, slots=table) as slots:
            slots.create_tables()
            slots.add([(1, 4)], scope=scope)
            told: list[Any] = []
            holds = world.holds(slots, on_change=told.append)

            holds.confirm(holds.create(1).id)

            assert told == [scope, scope]
            assert [tuple(row) for row in slots.load(scope).availability] == [(1, 4, 3)]

    @on_each
    def test_another_spelling_of_a_scope_is_refused_or_another_scope(
        self, world: World, kind: str, place_of: PlaceOf
    ) -> None:
        """Never a list under a key that no change clears."""
        with opened(kind, place_of(kind), world=world) as slots:
            slots.add([(1, 4)], scope="Hall")

            for spelling in ("hall", "HALL", "Hall "):
                if kind == "postgres":
                    assert len(slots.load(spelling).availability) == 0
                else:
                    with pytest.raises(ValueError, match="is spelled 'Hall' in the table"):
                        slots.load(spelling)

    @on_each
    def test_an_instant_is_exact_whatever_the_zone_of_the_session(
        self, world: World, kind: str, url: str
    ) -> None:
        zones = {
            "postgres": {"options": "-c timezone=Asia/Kolkata"},
            "mariadb": {"init_command": "SET time_zone = '+05:30'"},
        }
        options = {"connect_args": zones[kind]}
        engine = sa.create_engine(url, **options)
        clock = ManualClock()
        clock.advance(0.123456)
        with world.table(engine, engine_options=options, clock=clock) as slots:
            slots.create_tables()
            slots.add([(1, 4)])
            manual = world.holds(slots, on_change=None)
            hold = manual.create(1, ttl=60)

            assert manual.get(hold.id) == hold
            assert hold.created_at.timestamp() == pytest.approx(clock.now(), abs=1e-6)
            assert slots.load().valid_for == 60
        with world.table(engine, engine_options=options) as slots:
            by_server = world.holds(slots, on_change=None)
            hold = by_server.create(1, ttl=60)

            assert by_server.get(hold.id) == hold
            assert slots.load().valid_for == pytest.approx(60, abs=5)
        engine.dispose()


class TestTables:
    @on_each
    def test_many_may_create_them_at_once(self, world: World, kind: str, url: str) -> None:
        engines = [sa.create_engine(url) for _ in range(6)]
        tables = [world.table(engine) for engine in engines]

        left = iter(tables)
        together(len(tables), lambda: next(left).create_tables())

        tables[0].add([(1, 4)])
        assert free(tables[5], 1) == 4
        for each, engine in zip(tables, engines, strict=True):
            each.close()
            engine.dispose()

    @on_each
    def test_their_ddl_makes_the_same(self, world: World, kind: str, engine: sa.Engine) -> None:
        with world.table(engine) as slots:
            with engine.begin() as connection:
                for statement in slots.ddl().split(";\n\n"):
                    if statement:
                        connection.exec_driver_sql(statement)

            slots.create_tables()  # finds nothing to do
            slots.add([(1, 4)])

            assert world.holds(slots, on_change=None).create(1, idempotency_key="k").slot_id == 1

    @on_each
    def test_who_has_none_is_told_what_makes_them(
        self, world: World, kind: str, engine: sa.Engine
    ) -> None:
        with world.table(engine) as slots, pytest.raises(BackendError, match=r"create_tables\(\)"):
            world.holds(slots, on_change=None).create(1)

    @one_world("the database's own checks")
    @on_each_blocking
    @pytest.mark.parametrize(
        "impossible",
        [
            "UPDATE slots SET remaining = -1",
            "UPDATE slots SET remaining = capacity + 1",
            "UPDATE slot_holds SET quantity = 0",
            "UPDATE slot_holds SET state = 'lost'",
        ],
    )
    def test_the_database_itself_refuses_what_cannot_be(
        self, kind: str, place_of: PlaceOf, impossible: str
    ) -> None:
        with opened(kind, place_of(kind)) as slots:
            slots.add([(1, 4)])
            HoldManager(slots, on_change=None).create(1)

            with (
                pytest.raises(
                    (sa.exc.IntegrityError, sa.exc.OperationalError), match=r"(?i)constraint"
                ),
                slots.engine.begin() as connection,
            ):
                connection.exec_driver_sql(impossible)

    @on_each
    def test_a_slot_that_exists_is_named(self, world: World, kind: str, place_of: PlaceOf) -> None:
        with opened(kind, place_of(kind), world=world) as slots:
            slots.add([(1, 4)])

            with pytest.raises(ValueError, match="slot 1 exists already: no slot was added"):
                slots.add([(2, 4), (1, 4)])

            assert query(slots, "SELECT slot_id FROM slots") == [(1,)]

    @on_each
    def test_a_table_that_somebody_alters_is_busy(
        self, world: World, kind: str, place_of: PlaceOf
    ) -> None:
        lock = {"postgres": "LOCK TABLE slots", "mariadb": "LOCK TABLES slots WRITE"}[kind]
        with opened(kind, place_of(kind), world=world) as slots:
            slots.add([(1, 4)])
            holds = world.holds(slots, on_change=None, policy=HoldPolicy(lock_wait=0.1))

            with slots.engine.begin() as connection:
                connection.exec_driver_sql(lock)
                with pytest.raises(Busy):
                    holds.create(1)
                if kind == "mariadb":
                    connection.exec_driver_sql("UNLOCK TABLES")

            assert holds.create(1).slot_id == 1


class TestConnections:
    @one_world("has the pool of its own engine in hand")
    @on_each_blocking
    def test_callers_who_hold_every_connection_do_not_starve_the_list(
        self, kind: str, place_of: PlaceOf
    ) -> None:
        with opened(kind, place_of(kind)) as made:
            made.add([(1, 4)])
            engine = sa.create_engine(
                str(place_of(kind)), pool_size=1, max_overflow=0, pool_timeout=0.1
            )
            with SqlSlots(engine) as slots, engine.begin() as connection:
                connection.exec_driver_sql("UPDATE slots SET remaining = 0")

                assert free(slots, 1) == 4  # nor does it read in their transaction (P1)
            engine.dispose()

    @on_each
    def test_a_server_that_comes_back_is_found_again(
        self, world: World, kind: str, request: pytest.FixtureRequest
    ) -> None:
        """Every connection of the pool is dead by then, and nobody was told."""
        server: OwnServer = request.getfixturevalue(f"own_{kind}")
        engine = sa.create_engine(server.url)
        with world.table(engine) as slots:
            slots.create_tables()
            slots.add([(1, 4)], scope="a")
            told: list[Any] = []
            holds = world.holds(slots, on_change=told.append)
            hold = holds.create(1)
            calls: list[Callable[[], Any]] = [
                lambda: holds.get(hold.id),
                lambda: holds.confirm(hold.id),
                lambda: holds.create(1),
                lambda: holds.create(1, idempotency_key="k"),
                lambda: slots.load("a"),
            ]
            for call in calls:
                server.kill()
                server.start()
                call()  # has the one connection that is left from before

            assert told == ["a"] * 4
            assert free(slots, 1) == 1
            server.kill()
            for call in calls[:-1]:
                with pytest.raises(BackendError):
                    call()
            with pytest.raises(sa.exc.DBAPIError):
                slots.load("a")
        engine.dispose()

    @one_world("a child does not go on with its parent's event loop")
    @on_each_blocking
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
    @pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
    def test_a_forked_child_reads_on_a_connection_of_its_own(
        self, kind: str, place_of: PlaceOf
    ) -> None:
        with opened(kind, place_of(kind)) as slots:
            slots.add([(1, 4)])
            slots.load()

            def child() -> None:
                slots.engine.dispose(close=False)  # the engine is the user's
                holds = HoldManager(slots, on_change=None)
                while free(slots, 1):
                    holds.create(1)

            in_child(child)

            assert free(slots, 1) == 0
            with pytest.raises(SlotFull):
                HoldManager(slots, on_change=None).create(1)


@one_world("what statements cost, as the server tells: they are the same")
@on_each_blocking
def test_a_create_does_not_scan_past_holds(kind: str, place_of: PlaceOf) -> None:
    """Nor does anything else that has to be quick: the database says how it would go about it."""
    with opened(kind, place_of(kind)) as slots:
        slots.add([(n, 10) for n in range(200)])
        holds = HoldManager(slots, on_change=None)
        for n in range(200):
            holds.cancel(holds.create(n, owner="Ann").id)
        statements = slots._statements
        with slots.engine.begin() as connection:
            analyze = "ANALYZE" if kind == "postgres" else "ANALYZE TABLE slot_holds, slots"
            connection.exec_driver_sql(analyze)
            if kind == "postgres":
                connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            for statement in (statements.count, statements.get, statements.due):
                plan = explained(connection, statement)
                assert "Seq Scan on slot_holds" not in plan, plan
                assert not any(
                    " ALL " in line for line in plan.splitlines() if "slot_holds" in line
                ), plan


def explained(connection: sa.Connection, statement: sa.Select[Any]) -> str:
    dialect = connection.dialect
    compiled = statement.compile(dialect=dialect)
    parameters = {"p_slot": 1, "p_hold": UUID(int=1), "p_limit": 10}
    given = {name: value for name, value in parameters.items() if name in compiled.params}
    bound = statement.params(given).compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    rows = connection.exec_driver_sql(f"EXPLAIN {str(bound).replace('%', '%%')}")
    return "\n".join(" ".join(map(str, row)) for row in rows)


@one_world("what the tests stand on")
def test_a_server_elsewhere_can_be_named(postgres_server: DatabaseServer) -> None:
    """What the tests stand on: each has a database of its own there."""
    one, other = postgres_server.new_database(), postgres_server.new_database()
    assert one != other
    for each in (one, other):
        postgres_server.drop_database(each)
