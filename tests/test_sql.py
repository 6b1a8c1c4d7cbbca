"""The tables: what may be one, what is read from it and put into it, and what that costs."""

from __future__ import annotations

import gc
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from slotcache import BackendError, Busy, HoldManager, HoldPolicy, HoldState, SlotFull, SlotNotFound
from slotcache.sql import SqlSlots
from slotcache.sql.sqlite import Sqlite
from slotcache.testing import ManualClock

from .support.sql import ON_SQLITE, free, metered, on_connect, opened, query, traced, write_lock
from .support.worlds import World, inner_engine, one_world


@pytest.fixture(params=ON_SQLITE)
def slots(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Iterator[SqlSlots]:
    with opened(request.param, tmp_path, world=world, clock=ManualClock()) as slots:
        yield slots


def rows(slots: SqlSlots, scope: Any = None) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in slots.load(scope).availability]


class TestLoad:
    def test_it_lists_all_slots_in_the_order_of_their_ids(self, slots: SqlSlots) -> None:
        slots.add([(3, 5), (1, 4, 2), (2, 7, 0)])

        assert rows(slots) == [(1, 4, 2), (2, 7, 0), (3, 5, 5)]
        assert slots.load().valid_for is None

    def test_an_empty_table_is_an_empty_list(self, slots: SqlSlots) -> None:
        assert rows(slots) == []
        assert slots.load("nowhere").valid_for is None

    def test_a_scope_lists_its_own_slots(self, slots: SqlSlots) -> None:
        slots.add([(1, 4)], scope="a")
        slots.add([(2, 4)], scope="b")
        slots.add([(3, 4)])

        assert rows(slots, "a") == [(1, 4, 4)]
        assert rows(slots, "c") == []
        assert len(rows(slots)) == 3

    def test_live_holds_are_taken_off_and_due_ones_are_not(
        self, world: World, slots: SqlSlots
    ) -> None:
        slots.add([(1, 4), (2, 4)], scope="a")
        holds = world.holds(slots, on_change=None)
        holds.create(1, 2, ttl=5)
        holds.create(1, 1, ttl=9)
        holds.confirm(holds.create(2, 3).id)

        assert rows(slots, "a") == [(1, 4, 1), (2, 4, 1)]
        clock_of(slots).advance(5)
        assert rows(slots, "a") == [(1, 4, 3), (2, 4, 1)]

    def test_it_tells_when_the_first_live_hold_of_that_list_ends(
        self, world: World, slots: SqlSlots
    ) -> None:
        slots.add([(1, 4)], scope="a")
        slots.add([(2, 4)], scope="b")
        holds = world.holds(slots, on_change=None)
        for slot_id, ttl in ((1, 9.0), (1, 5.0), (2, 3.0)):
            holds.create(slot_id, ttl=ttl)
        holds.cancel(holds.create(1, ttl=1).id)

        assert slots.load("a").valid_for == 5
        assert slots.load(None).valid_for == 3
        clock_of(slots).advance(4.9996)
        assert slots.load("a").valid_for == 0.001  # rounded up: by then the hold is due
        clock_of(slots).advance(0.001)
        assert slots.load("a").valid_for == pytest.approx(4, abs=0.001)

    def test_more_promised_than_unsold_shows_as_none_left(
        self, world: World, slots: SqlSlots
    ) -> None:
        slots.add([(1, 4)])
        world.holds(slots, on_change=None).create(1, 3)
        with slots.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE slots SET remaining = 2")

        assert rows(slots) == [(1, 4, 0)]
        with pytest.raises(SlotFull) as refused:
            world.holds(slots, on_change=None).create(1)
        assert refused.value.remaining == 0

    def test_rows_that_cannot_be_true_are_not_listed(self, world: World, tmp_path: Path) -> None:
        """A table without the CHECKs may hold anything."""
        with given(world, tmp_path, bare_table()) as slots:
            slots.add([(1, 4)])
            with slots.engine.begin() as connection:
                connection.exec_driver_sql("UPDATE bare SET remaining = 9")

            with pytest.raises(ValueError, match=r"row 0 \(1, 4, 9\)"):
                slots.load()

    @pytest.mark.parametrize(
        ("id_type", "ids"),
        [(int, [-(2**63), 2**63 - 1]), (str, ["A 1", "ß"]), (UUID, [UUID(int=1), UUID(int=2)])],
    )
    def test_ids_come_back_as_what_they_were(
        self, world: World, tmp_path: Path, id_type: type[Any], ids: list[Any]
    ) -> None:
        with opened("memory", tmp_path, id_type=id_type, world=world) as slots:
            slots.add([(each, 4) for each in reversed(ids)])
            hold = world.holds(slots, on_change=None).create(ids[0])

            assert rows(slots) == [(ids[0], 4, 3), (ids[1], 4, 4)]
            assert hold.slot_id == ids[0]
            assert slots.id_type is id_type

    def test_an_id_is_counted_under_the_spelling_of_its_row(
        self, world: World, tmp_path: Path
    ) -> None:
        """Where the database takes "a" for "A", the promises of both are of one slot."""
        with given(world, tmp_path, bare_table(id_type=sa.String(20))) as slots:
            with slots.engine.begin() as connection:
                connection.exec_driver_sql("DROP TABLE bare")
                connection.exec_driver_sql(
                    "CREATE TABLE bare (slot_id TEXT COLLATE NOCASE PRIMARY KEY,"
                    " capacity INTEGER, remaining INTEGER)"
                )
            slots.add([("A", 1)])
            holds = world.holds(slots, on_change=None)

            hold = holds.create("a")

            assert hold.slot_id == "A"
            assert rows(slots) == [("A", 1, 0)]
            for spelling in ("a", "A"):
                with pytest.raises(SlotFull):
                    holds.create(spelling)
            assert holds.confirm(hold.id).state is HoldState.CONFIRMED

    def test_what_the_database_raises_passes_through(self, world: World, tmp_path: Path) -> None:
        with world.sqlite(tmp_path / "no tables.db") as slots:
            with pytest.raises(sa.exc.OperationalError, match="no such table"):
                slots.load()
            with pytest.raises(BackendError, match="no such table") as failure:
                world.holds(slots, on_change=None).create(1)

            assert isinstance(failure.value.__cause__, sa.exc.OperationalError)

    def test_it_waits_for_no_writer(self, world: World, tmp_path: Path) -> None:
        with opened("file", tmp_path, world=world) as slots:
            slots.add([(1, 4)])
            with write_lock(tmp_path / "slots.db") as other:
                other.execute("UPDATE slots SET remaining = 0")

                assert rows(slots) == [(1, 4, 4)]

    @one_world("has the pool of its own engine in hand")
    def test_callers_who_hold_every_connection_do_not_starve_it(self, tmp_path: Path) -> None:
        engine = sa.create_engine(
            f"sqlite:///{tmp_path / 'slots.db'}", pool_size=1, max_overflow=0, pool_timeout=0.1
        )
        with SqlSlots(engine) as slots:
            slots.create_tables()
            slots.add([(1, 4)])

            with engine.begin() as connection:
                connection.exec_driver_sql("UPDATE slots SET remaining = 0")

                assert rows(slots) == [(1, 4, 4)]  # nor does it read in their transaction (P1)
        engine.dispose()

    @one_world("listens to SQLite's own driver")
    def test_listeners_on_connect_apply_to_its_connection_too(self, tmp_path: Path) -> None:
        engine = sa.create_engine(f"sqlite:///{tmp_path / 'slots.db'}")
        slots = SqlSlots(engine)
        sa.event.listen(
            engine,
            "connect",
            lambda driver, _record: driver.execute("ATTACH ':memory:' AS attached"),
        )
        slots.create_tables()

        assert slots.load().availability == slots.load().availability
        slots.close()
        engine.dispose()

    @one_world("closes a connection of SQLite's own driver")
    def test_a_connection_that_broke_is_replaced(self, tmp_path: Path) -> None:
        with opened("file", tmp_path) as slots:
            made: list[sqlite3.Connection] = []
            on_connect(slots, made.append)
            slots.load()
            made[-1].close()

            assert rows(slots) == []


class TestScopes:
    @pytest.mark.parametrize(
        ("column", "scope_type", "scope", "others"),
        [
            (sa.String(20), str, "a", [1, UUID(int=1), date(2026, 1, 1), b"a"]),
            (sa.Integer(), int, 5, ["5", True, 5.0]),
            (sa.Uuid(), UUID, UUID(int=5), [str(UUID(int=5)), 5]),
            (sa.Date(), date, date(2026, 1, 1), [datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01"]),
        ],
    )
    def test_a_scope_is_of_the_columns_type_and_of_no_other(
        self,
        world: World,
        tmp_path: Path,
        column: sa.types.TypeEngine[Any],
        scope_type: type[Any],
        scope: Any,
        others: list[Any],
    ) -> None:
        with given(world, tmp_path, bare_table(sa.Column("scope", column))) as slots:
            slots.add([(1, 4)], scope=scope)

            assert slots.scope_type is scope_type
            assert rows(slots, scope) == [(1, 4, 4)]
            assert world.holds(slots, on_change=None).create(1).scope == scope
            for other in others:
                name = type(other).__name__
                with pytest.raises(TypeError, match=rf"{scope_type.__name__}, not {name}"):
                    slots.load(other)
                with pytest.raises(TypeError, match=name):
                    slots.add([(2, 4)], scope=other)

    def test_a_table_without_the_column_has_none(self, world: World, tmp_path: Path) -> None:
        with given(world, tmp_path, bare_table()) as slots:
            slots.add([(1, 4)])

            assert slots.scope_type is None
            assert world.holds(slots, on_change=None).create(1).scope is None
            with pytest.raises(ValueError, match="leave the scope 'a' out"):
                slots.load("a")
            with pytest.raises(ValueError, match="leave the scope 'a' out"):
                slots.add([(2, 4)], scope="a")

    def test_another_spelling_of_the_same_scope_is_refused(
        self, world: World, tmp_path: Path
    ) -> None:
        """Else it would be cached under a key that no change clears."""
        nocase = sa.Column("scope", sa.String(20, collation="NOCASE"))
        with given(world, tmp_path, bare_table(nocase)) as slots:
            slots.add([(1, 4), (2, 4)], scope="Hall")

            assert len(rows(slots, "Hall")) == 2
            with pytest.raises(ValueError, match="'HALL' is spelled 'Hall' in the table"):
                slots.load("HALL")

            slots.add([(3, 4)], scope="hall")
            with pytest.raises(ValueError, match="'Hall' is spelled 'hall'"):
                slots.load("Hall")


class TestAdd:
    def test_all_or_nothing(self, slots: SqlSlots) -> None:
        slots.add([(1, 4)])

        with pytest.raises(ValueError, match="slot 1 exists already: no slot was added"):
            slots.add([(2, 4), (1, 4)])

        assert rows(slots) == [(1, 4, 4)]

    def test_nothing_at_all_is_fine(self, slots: SqlSlots) -> None:
        slots.add([])

    def test_rows_may_come_from_anywhere(self, slots: SqlSlots) -> None:
        slots.add({1: 4, 2: 5}.items())
        slots.add((n, 1, 0) for n in range(3, 5))

        assert rows(slots) == [(1, 4, 4), (2, 5, 5), (3, 1, 0), (4, 1, 0)]

    @pytest.mark.parametrize(
        ("bad", "kind", "message"),
        [
            ((1,), TypeError, r"row 1 \(1,\): write it as \(slot_id, capacity, remaining\)"),
            ((1, 2, 3, 4), TypeError, "row 1"),
            (7, TypeError, "row 1 7"),
            (("1", 4), TypeError, r"row 1 \('1', 4, 4\): slot_id"),
            ((True, 4), TypeError, "row 1"),
            ((1, -1), ValueError, "row 1 .*capacity must be from 0"),
            ((1, 4, 5), ValueError, "row 1 .*remaining must be from 0 to the capacity"),
            ((1, 4.0), TypeError, "row 1 .*must be an int"),
            ((9, 4), ValueError, "row 1 .*row 0 is the same slot"),
            ((2**63, 4), ValueError, "row 1"),
        ],
    )
    def test_a_row_that_cannot_be_is_named(
        self, slots: SqlSlots, bad: Any, kind: type[Exception], message: str
    ) -> None:
        with pytest.raises(kind, match=message):
            slots.add([(9, 1), bad])

        assert rows(slots) == []

    def test_ids_are_of_the_tables_type(self, slots: SqlSlots) -> None:
        with pytest.raises(TypeError, match="slot_id must be int, as in the table"):
            slots.add([("A", 4)])

    def test_a_constraint_of_your_own_is_the_operators_move(
        self, world: World, tmp_path: Path
    ) -> None:
        table = bare_table(sa.Column("hall", sa.String, nullable=False))
        with (
            given(world, tmp_path, table) as slots,
            pytest.raises(BackendError, match=r"NOT NULL .*hall"),
        ):
            slots.add([(1, 4)])


class TestShippedTables:
    def test_creating_them_twice_changes_nothing(self, slots: SqlSlots) -> None:
        slots.add([(1, 4)])

        slots.create_tables()

        assert rows(slots) == [(1, 4, 4)]

    def test_their_ddl_is_what_create_tables_runs(self, slots: SqlSlots, tmp_path: Path) -> None:
        schema = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
        with closing(sqlite3.connect(tmp_path / "migrated.db")) as migrated:
            migrated.executescript(slots.ddl())
            theirs = migrated.execute(schema).fetchall()

        assert theirs == [
            (name, sql.replace("IF NOT EXISTS ", "")) for name, sql in query(slots, schema)
        ]

    @one_world("the database's own checks")
    @pytest.mark.parametrize("world", ["blocking"], indirect=True)
    @pytest.mark.parametrize(
        "impossible",
        [
            "UPDATE slots SET remaining = -1",
            "UPDATE slots SET remaining = capacity + 1",
            "UPDATE slots SET capacity = remaining - 1",
            "UPDATE slot_holds SET quantity = 0",
            "UPDATE slot_holds SET state = 'lost'",
        ],
    )
    def test_the_database_itself_refuses_what_cannot_be(
        self, world: World, slots: SqlSlots, impossible: str
    ) -> None:
        slots.add([(1, 4)])
        world.holds(slots, on_change=None).create(1)

        with (
            pytest.raises(sa.exc.IntegrityError, match="CHECK"),
            slots.engine.begin() as connection,
        ):
            connection.exec_driver_sql(impossible)

    def test_an_instant_is_text_of_one_width(self, world: World, slots: SqlSlots) -> None:
        """Comparing the text compares the instants, also of whole seconds."""
        slots.add([(1, 4)])
        world.holds(slots, on_change=None).create(1)

        times = query(slots, "SELECT created_at, expires_at FROM slot_holds")

        assert times == [("2026-01-01 00:00:00.000000", "2026-01-01 00:10:00.000000")]


class Base(DeclarativeBase):
    pass


class Lesson(Base):
    __tablename__ = "lessons"

    number: Mapped[UUID] = mapped_column("lesson_no", primary_key=True)
    seats: Mapped[int]
    seats_left: Mapped[int] = mapped_column("left")
    day: Mapped[date]
    title: Mapped[str] = mapped_column(default="Pottery")


class TestYourOwnTable:
    @pytest.mark.parametrize(
        ("source", "columns"),
        [
            (
                Lesson,
                {
                    "slot_id": "number",
                    "capacity": "seats",
                    "remaining": "seats_left",
                    "scope": "day",
                },
            ),
            (
                Lesson,
                {
                    "slot_id": Lesson.number,
                    "capacity": Lesson.seats,
                    "remaining": Lesson.seats_left,
                    "scope": Lesson.day,
                },
            ),
            (
                Lesson.__table__,
                {
                    "slot_id": "lesson_no",
                    "capacity": Lesson.__table__.c.seats,
                    "remaining": "left",
                    "scope": "day",
                },
            ),
        ],
        ids=["class and names", "class and attributes", "table and columns"],
    )
    def test_it_is_mapped_by_names_columns_or_attributes(
        self, world: World, tmp_path: Path, source: Any, columns: dict[str, Any]
    ) -> None:
        with given(world, tmp_path, source, columns=columns) as slots:
            lesson, day = UUID(int=7), date(2026, 3, 1)
            slots.add([(lesson, 8, 6)], scope=day)
            holds = world.holds(slots, on_change=None)

            holds.confirm(holds.create(lesson, 2).id)

            assert (slots.id_type, slots.scope_type) == (UUID, date)
            assert rows(slots, day) == [(lesson, 8, 4)]
            assert query(slots, 'SELECT title, "left" FROM lessons') == [("Pottery", 4)]

    def test_only_the_table_of_holds_is_made_beside_it(self, world: World, tmp_path: Path) -> None:
        with given(world, tmp_path, bare_table()) as slots:
            assert "CREATE TABLE slot_holds" in slots.ddl()
            assert "REFERENCES bare (slot_id)" in slots.ddl()
            assert "CREATE TABLE bare" not in slots.ddl()

    @one_world("how columns are read, before anything waits")
    @pytest.mark.parametrize(
        ("table", "columns", "kind", "message"),
        [
            ("bare", {}, TypeError, "must be a Table or a class mapped to one"),
            (dict, {}, TypeError, "must be a Table or a class mapped to one"),
            (Lesson, {}, ValueError, "has no column 'slot_id': map it with columns="),
            (Lesson, {"slot_id": "nr"}, ValueError, "no column 'nr'.*number, seats"),
            (Lesson, {"slot_id": sa.Column("number")}, ValueError, "no column"),
            (Lesson, {"id": "number"}, ValueError, "columns has 'id': it maps slot_id"),
        ],
    )
    def test_a_mapping_that_leads_nowhere_is_refused(
        self,
        tmp_path: Path,
        table: Any,
        columns: dict[str, Any],
        kind: type[Exception],
        message: str,
    ) -> None:
        with pytest.raises(kind, match=message):
            SqlSlots(
                sa.create_engine(f"sqlite:///{tmp_path / 'x.db'}"), slots=table, columns=columns
            )

    @one_world("how columns are read, before anything waits")
    @pytest.mark.parametrize("column", [sa.DateTime(), sa.Float(), sa.JSON(), sa.types.NullType()])
    def test_a_scope_that_could_not_be_a_key_is_refused(
        self, tmp_path: Path, column: sa.types.TypeEngine[Any]
    ) -> None:
        with pytest.raises(TypeError, match=r"column 'scope' is .*: it must hold one of str, int"):
            SqlSlots(
                sa.create_engine(f"sqlite:///{tmp_path / 'x.db'}"),
                slots=bare_table(sa.Column("scope", column)),
            )

    @one_world("how columns are read, before anything waits")
    def test_an_id_type_that_is_none_is_refused(self) -> None:
        with pytest.raises(TypeError, match="id_type must be int, str or UUID"):
            SqlSlots.sqlite(":memory:", id_type=float)  # type: ignore[arg-type]


class TestWhere:
    def test_the_list_and_create_obey_it_and_the_rest_goes_on(
        self, world: World, tmp_path: Path
    ) -> None:
        table = bare_table(sa.Column("is_open", sa.Boolean, server_default="1"))
        with given(world, tmp_path, table, where=table.c.is_open) as slots:
            slots.add([(1, 4), (2, 4)])
            holds = world.holds(slots, on_change=None)
            hold = holds.create(1)
            with slots.engine.begin() as connection:
                connection.execute(table.update().where(table.c.slot_id == 1).values(is_open=False))

            assert rows(slots) == [(2, 4, 4)]
            assert slots.load().valid_for is None
            with pytest.raises(SlotNotFound):
                holds.create(1)
            assert holds.confirm(hold.id).state is HoldState.CONFIRMED

    def test_time_in_it_moves_with_a_bound_call(self, world: World, tmp_path: Path) -> None:
        """Names of its own do not get into the way of the library's."""
        today = [date(2026, 3, 1)]
        upcoming = Lesson.day >= sa.bindparam("now", callable_=lambda: today[0], type_=sa.Date())
        columns = {"slot_id": "number", "capacity": "seats", "remaining": "seats_left"}
        with given(world, tmp_path, Lesson, columns=columns, where=upcoming) as slots:
            with slots.engine.begin() as connection:
                connection.execute(
                    sa.insert(Lesson).values(
                        number=UUID(int=7), seats=8, seats_left=8, day=date(2026, 3, 1)
                    )
                )
            holds = world.holds(slots, on_change=None)
            holds.create(UUID(int=7))
            assert rows(slots) == [(UUID(int=7), 8, 7)]

            today[0] = date(2026, 3, 2)

            assert rows(slots) == []
            with pytest.raises(SlotNotFound):
                holds.create(UUID(int=7))


class TestEngines:
    @one_world("as SQLite's own driver is told")
    @pytest.mark.parametrize(
        ("url", "pool"),
        [
            ("sqlite://", None),
            ("sqlite://", StaticPool),
            ("sqlite:///:memory:", None),
            ("sqlite:///:memory:", QueuePool),
            ("sqlite:///file::memory:?cache=shared&uri=true", QueuePool),
            ("sqlite:///file:name?mode=memory&cache=shared&uri=true", QueuePool),
        ],
    )
    def test_memory_that_cannot_be_shared_is_refused(self, url: str, pool: Any) -> None:
        with pytest.raises(ValueError, match=r'SqlSlots\.sqlite\(":memory:"\)'):
            SqlSlots(sa.create_engine(url, poolclass=pool))

    def test_one_connection_for_everybody_is_refused_for_files_too(
        self, world: World, tmp_path: Path
    ) -> None:
        options = {"poolclass": StaticPool}
        engine = sa.create_engine(f"sqlite:///{tmp_path / 'x.db'}", **options)
        with pytest.raises(ValueError, match="default pool"):
            world.table(engine, engine_options=options)

    @one_world("the other half takes other engines")
    def test_what_is_no_engine_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"must be a sqlalchemy\.Engine"):
            SqlSlots("sqlite:///x.db")  # type: ignore[arg-type]

    @one_world("the other half takes other engines")
    def test_another_database_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = sa.create_engine(f"sqlite:///{tmp_path / 'x.db'}")
        monkeypatch.setattr(engine.dialect, "name", "oracle")

        with pytest.raises(ValueError, match="mariadb, not on oracle"):
            SqlSlots(engine)

    def test_a_pool_that_keeps_nothing_will_do(self, world: World, tmp_path: Path) -> None:
        options = {"poolclass": NullPool}
        engine = sa.create_engine(f"sqlite:///{tmp_path / 'slots.db'}", **options)
        with world.table(engine, engine_options=options) as slots:
            slots.create_tables()
            slots.add([(1, 4)])
            world.holds(slots, on_change=None).create(1)

            assert rows(slots) == [(1, 4, 3)]

    def test_two_databases_in_memory_are_two(self, world: World, tmp_path: Path) -> None:
        with (
            opened("memory", tmp_path, world=world) as one,
            opened("memory", tmp_path, world=world) as two,
        ):
            one.add([(1, 4)])

            assert rows(two) == []

    def test_a_path_may_hold_any_characters(self, world: World, tmp_path: Path) -> None:
        path = tmp_path / "a?b#c%20&d=é.db"

        with world.sqlite(str(path)) as slots:
            slots.create_tables()

        assert path.is_file()

    def test_our_own_is_durable_and_checks_references(self, world: World, tmp_path: Path) -> None:
        with opened("file", tmp_path, world=world) as slots:
            assert world.ask(slots, "PRAGMA journal_mode") == [("wal",)]
            assert world.ask(slots, "PRAGMA synchronous") == [(2,)]
            assert world.ask(slots, "PRAGMA foreign_keys") == [(1,)]

    @one_world("has the pool of its own engine in hand")
    def test_your_own_transactions_on_our_engine_lose_no_update(self, tmp_path: Path) -> None:
        with opened("file", tmp_path) as slots:
            slots.add([(1, 40)])

            def take_one() -> None:
                with slots.engine.begin() as connection:
                    (left,) = connection.exec_driver_sql("SELECT remaining FROM slots").one()
                    connection.exec_driver_sql("UPDATE slots SET remaining = ?", (left - 1,))

            threads = [threading.Thread(target=take_one) for _ in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

            assert free(slots, 1) == 24

    @pytest.mark.parametrize("how", ["option", "create_engine", "hook"])
    def test_autocommit_is_given_a_transaction_all_the_same(
        self, world: World, tmp_path: Path, how: str
    ) -> None:
        options = {"isolation_level": "AUTOCOMMIT"} if how == "create_engine" else {}
        engine = sa.create_engine(f"sqlite:///{tmp_path / 'slots.db'}", **options)
        if how == "option":
            engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        with world.table(engine, engine_options=options) as slots:
            if how == "hook":
                sa.event.listen(
                    inner_engine(slots),
                    "connect",
                    lambda driver, _record: setattr(driver, "isolation_level", None),
                )
            slots.create_tables()
            slots.add([(1, 4)])
            holds = world.holds(slots, on_change=None, policy=HoldPolicy(lock_wait=0.01))
            hold = holds.create(1)

            assert lock_is_held_during(lambda: holds.confirm(hold.id), slots, tmp_path / "slots.db")
            assert rows(slots) == [(1, 4, 3)]
        engine.dispose()

    @one_world("a mode of SQLite's own driver")
    def test_autocommit_as_of_python_3_12_is_refused(self, tmp_path: Path) -> None:
        class Committing(sqlite3.Connection):
            autocommit = True

        engine = sa.create_engine(
            f"sqlite:///{tmp_path / 'slots.db'}", connect_args={"factory": Committing}
        )

        with pytest.raises(ValueError, match="leave it out of connect_args"):
            SqlSlots(engine).create_tables()
        engine.dispose()


def lock_is_held_during(call: Callable[[], Any], slots: SqlSlots, path: Path) -> bool:
    """Whether the database is locked for writing from the first statement to the last."""
    locked: list[bool] = []

    def look(*_: object) -> None:
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                locked.append(True)
            else:
                locked.append(False)

    engine = inner_engine(slots)
    sa.event.listen(engine, "after_cursor_execute", look)
    call()
    sa.event.remove(engine, "after_cursor_execute", look)
    return len(locked) > 2 and all(locked)


class TestWaiting:
    @pytest.mark.parametrize("kind", ["file", "given"])
    def test_busy_is_said_when_another_process_keeps_the_lock(
        self, world: World, tmp_path: Path, kind: str
    ) -> None:
        with opened(kind, tmp_path, world=world) as slots:
            slots.add([(1, 4)])
            holds = world.holds(slots, on_change=None, policy=HoldPolicy(lock_wait=0.05))

            with write_lock(tmp_path / "slots.db"), pytest.raises(Busy) as busy:
                holds.create(1)

            assert busy.value.waited == 0.05
            assert busy.value.retryable
            assert holds.create(1).state is HoldState.HELD

    @one_world("a thread of the blocking half has its turn")
    @pytest.mark.parametrize("world", ["blocking"], indirect=True)
    def test_busy_is_said_when_another_thread_keeps_its_turn(self, slots: SqlSlots) -> None:
        slots.add([(1, 4)])
        holds = HoldManager(slots, on_change=None, policy=HoldPolicy(lock_wait=0.05))

        with slots._database.writing(1):
            outcome: list[Any] = []
            thread = threading.Thread(target=lambda: outcome.append(caught(holds.create, 1)))
            thread.start()
            thread.join()

        assert isinstance(outcome[0], Busy)
        assert holds.create(1).state is HoldState.HELD

    def test_a_given_engine_keeps_its_own_patience(self, world: World, tmp_path: Path) -> None:
        with opened("given", tmp_path, world=world) as slots:
            slots.add([(1, 4)])
            before = world.ask(slots, "PRAGMA busy_timeout")

            world.holds(slots, on_change=None, policy=HoldPolicy(lock_wait=0.05)).create(1)

            assert world.ask(slots, "PRAGMA busy_timeout") == before == [(5000,)]

    @one_world("has the pool of its own engine in hand")
    def test_a_pool_without_a_free_connection_is_the_operators_move(self, tmp_path: Path) -> None:
        engine = sa.create_engine(
            f"sqlite:///{tmp_path / 'slots.db'}", pool_size=1, max_overflow=0, pool_timeout=0.01
        )
        slots = SqlSlots(engine)
        slots.create_tables()

        with engine.connect(), pytest.raises(BackendError, match="no connection to spare"):
            HoldManager(slots, on_change=None).create(1)
        slots.close()
        engine.dispose()


@one_world("what statements cost, as SQLite's own driver tells: they are the same")
@pytest.mark.parametrize("world", ["blocking"], indirect=True)
class TestCost:
    """S21, in instructions of SQLite's machine: not in time, which varies."""

    def test_create_does_not_grow_with_the_slots_past_holds(self, slots: SqlSlots) -> None:
        slots.add([(1, 10**6)])
        holds = HoldManager(slots, on_change=None)
        cost = metered(slots)
        holds.create(1)
        before = cost(lambda: holds.create(1))

        for state in ("confirmed", "cancelled", "expired"):
            past_holds(slots, 1, 7_000, state=state)

        assert cost(lambda: holds.create(1)) <= before * 1.05

    def test_expire_due_does_not_grow_with_past_or_live_holds(self, slots: SqlSlots) -> None:
        slots.add([(1, 10**6)])
        cost = metered(slots)
        holds = HoldManager(slots, on_change=None)
        past_holds(slots, 1, 10, state="held", expires_at="2025-12-31 23:00:00.000000")
        holds.expire_due(limit=5)
        before = cost(lambda: holds.expire_due(limit=5))

        past_holds(slots, 1, 7_000, state="expired")
        past_holds(slots, 1, 7_000, state="held", expires_at="2026-01-01 01:00:00.000000")
        past_holds(slots, 1, 5, state="held", expires_at="2025-12-31 23:00:00.000000")

        assert cost(lambda: holds.expire_due(limit=5)) <= before * 1.05

    def test_a_scopes_list_costs_what_is_in_that_scope(self, slots: SqlSlots) -> None:
        slots.add([(n, 10**6) for n in range(10)], scope="a")
        slots.add([(10 + n, 10**6) for n in range(10)], scope="b")
        cost = metered(slots)
        HoldManager(slots, on_change=None).create(1)
        slots.load("a")
        before = cost(lambda: slots.load("a"))

        slots.add([(100 + n, 5) for n in range(1_000)], scope="b")
        past_holds(slots, 10, 7_000, state="held", expires_at="2026-01-01 01:00:00.000000")
        past_holds(slots, 1, 7_000, state="confirmed")

        assert cost(lambda: slots.load("a")) <= before * 1.05

    def test_the_whole_list_looks_at_live_holds_alone(self, slots: SqlSlots) -> None:
        slots.add([(1, 10**6)])
        cost = metered(slots)
        HoldManager(slots, on_change=None).create(1)
        slots.load()
        before = cost(slots.load)

        past_holds(slots, 1, 20_000, state="confirmed")

        assert cost(slots.load) <= before * 1.05

    def test_no_operation_scans_the_table_of_holds(self, slots: SqlSlots) -> None:
        slots.add([(1, 4)], scope="a")
        holds = HoldManager(slots, on_change=None)
        statements = traced(slots)

        due = holds.create(1, ttl=1)
        clock_of(slots).advance(1)
        holds.get(due.id)
        holds.cancel(holds.confirm(holds.create(1, ttl=1).id).id)
        holds.create(1, ttl=1)
        clock_of(slots).advance(1)
        holds.expire_due()
        slots.load("a")
        slots.load()

        explained = [
            plan(slots, each) for each in statements if each.startswith(("SELECT", "UPDATE"))
        ]
        assert len(explained) > 15
        assert not [
            lines for lines in explained if any("SCAN slot_holds" in each for each in lines)
        ]

    def test_create_sends_few_statements_inside_its_transaction(self, slots: SqlSlots) -> None:
        """On an engine of ours BEGIN has locked all that there is."""
        slots.add([(1, 4)])
        holds = HoldManager(slots, on_change=None)
        statements = traced(slots)
        holds.create(1)
        statements.clear()

        holds.create(1)

        kinds = [each.split()[0] for each in statements if not each.startswith("PRAGMA")]
        lock = [] if slots._database.writes_alone else ["UPDATE"]
        assert kinds == ["BEGIN", *lock, "SELECT", "INSERT", "COMMIT"]


def plan(slots: SqlSlots, statement: str) -> list[str]:
    return [detail for *_, detail in query(slots, f"EXPLAIN QUERY PLAN {statement}")]


def past_holds(
    slots: SqlSlots,
    slot_id: int,
    count: int,
    *,
    state: str,
    expires_at: str = "2025-12-31 23:00:00.000000",
) -> None:
    """Put holds into the table as they would be after years."""
    with slots.engine.begin() as connection:
        connection.exec_driver_sql(
            """WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
               INSERT INTO slot_holds (id, slot_id, quantity, state, created_at, expires_at)
               SELECT lower(hex(randomblob(16))), ?, 1, ?, '2025-12-31 22:00:00.000000', ?
               FROM n""",
            (count, slot_id, state, expires_at),
        )


class TestClosing:
    def test_it_closes_what_it_made(self, world: World, tmp_path: Path) -> None:
        with opened("file", tmp_path, world=world) as slots:
            slots.add([(1, 4)])
            slots.load()

        assert not (tmp_path / "slots.db-wal").exists()  # the last connection to close drops it

    @one_world("has the pool of its own engine in hand")
    def test_it_leaves_a_given_engine_open(self, tmp_path: Path) -> None:
        with opened("given", tmp_path) as slots:
            slots.load()
            slots.engine.connect().close()
            slots.close()

            assert isinstance(slots.engine.pool, QueuePool)
            assert slots.engine.pool.checkedin() == 1

    def test_what_nobody_closed_is_closed_with_the_last_reference(self, world: World) -> None:
        slots = world.sqlite(":memory:")
        slots.create_tables()
        slots.load()
        assert isinstance(slots._database, Sqlite)
        keeper = slots._database._keeper
        assert keeper is not None

        del slots
        gc.collect()

        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            keeper.execute("SELECT 1")


def clock_of(slots: SqlSlots) -> ManualClock:
    clock = slots._database._clock
    assert isinstance(clock, ManualClock)
    return clock


def caught(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as error:
        return error


def bare_table(*columns: sa.Column[Any], id_type: Any = sa.Integer) -> sa.Table:
    """A table such as others have, without any CHECK."""
    return sa.Table(
        "bare",
        sa.MetaData(),
        sa.Column("slot_id", id_type, primary_key=True),
        sa.Column("capacity", sa.Integer),
        sa.Column("remaining", sa.Integer),
        *columns,
    )


@contextmanager
def given(world: World, folder: Path, table: Any, **options: Any) -> Iterator[SqlSlots]:
    """A table of somebody else's, on an engine of theirs."""
    engine = sa.create_engine(f"sqlite:///{folder / 'given.db'}")
    with world.table(engine, slots=table, **options) as slots:
        made = table if isinstance(table, sa.Table) else table.__table__
        made.metadata.create_all(engine)
        slots.create_tables()
        yield slots
    engine.dispose()
