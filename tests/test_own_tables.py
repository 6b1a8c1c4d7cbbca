"""Tables of the user's own: their models, keys, scopes and schemas, and others' tables in the way.

What `columns`, `where` and a plain table need is in test_sql.py and test_sql_servers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
    registry,
)
from sqlalchemy.schema import CreateIndex, CreateTable

from slotcache import HoldState, SlotFull
from slotcache.sql import HoldMixin, SqlSlots
from slotcache.sql.tables import holds_of, keys_of, map_slots, shipped_slots
from slotcache.testing import ManualClock

from .support.sql import CLAIMS, ON_SERVERS
from .support.threads import together
from .support.worlds import World, one_world

DATABASES = ("sqlite", *ON_SERVERS)
DIALECTS = {
    "sqlite": sqlite.dialect(),
    "postgres": postgresql.dialect(),
    "mariadb": mysql.dialect(is_mariadb=True),
}

on_each = pytest.mark.parametrize(
    ("kind", "world"),
    [
        *((kind, "blocking") for kind in DATABASES),
        ("mariadb", "asyncio"),
    ],
    indirect=["world"],
)
on_sqlite_too = pytest.mark.parametrize(
    ("kind", "world"),
    [*((kind, "blocking") for kind in DATABASES), ("sqlite", "asyncio")],
    indirect=["world"],
)
on_servers = pytest.mark.parametrize(
    ("kind", "world"),
    [*((kind, "blocking") for kind in ON_SERVERS), ("postgres", "asyncio")],
    indirect=["world"],
)
nothing_waits = one_world("how classes and columns are read, before anything waits")


@pytest.fixture
def schema(kind: str, engine: sa.Engine) -> Iterator[str]:
    """An empty schema, which in MariaDB is a database, beside the default one."""
    name = f"{engine.url.database}_shop"
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema(name))
    yield name
    with engine.begin() as connection:
        connection.execute(sa.schema.DropSchema(name, cascade=kind == "postgres"))


class Base(DeclarativeBase):
    pass


class Window(Base):
    __tablename__ = "windows"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    capacity: Mapped[int]
    remaining: Mapped[int]


class WindowHold(HoldMixin, Base):
    __tablename__ = "window_holds"

    slot_id = mapped_column(sa.ForeignKey(Window.id))
    source: Mapped[str] = mapped_column(sa.String(20), default="web")


WINDOWS: Mapping[str, Any] = {"slots": Window, "columns": {"slot_id": "id"}, "holds": WindowHold}


def yard(key_type: sa.types.TypeEngine[Any]) -> Mapping[str, Any]:
    """What `SqlSlots` is given for windows at docks of depots, with keys of that type."""

    class Base(DeclarativeBase):
        pass

    class Dock(Base):
        __tablename__ = "docks"

        key = mapped_column("dock_key", key_type, primary_key=True)
        depot = mapped_column(sa.String(40), nullable=False, server_default="north")
        dock = mapped_column(sa.String(40), nullable=False, server_default="4")
        place = mapped_column(sa.String(81), sa.Computed(depot + "/" + dock, persisted=True))
        capacity = mapped_column(sa.Integer, nullable=False)
        remaining = mapped_column(sa.Integer, nullable=False)

    class DockHold(HoldMixin, Base):
        __tablename__ = "dock_holds"

        slot_id = mapped_column(sa.ForeignKey(Dock.key))

    columns = {"slot_id": Dock.key, "scope": Dock.place}
    return {"slots": Dock, "holds": DockHold, "columns": columns}


KEYS = {
    "str": (sa.String(40), ["9:00", "Ö 1"], "counted"),
    "uuid": (sa.Uuid(), [UUID(int=1), UUID(int=2)], "on_hold"),
}


@on_each
class TestKeysAndGeneratedScopes:
    @pytest.mark.parametrize(("key_type", "ids", "claim"), KEYS.values(), ids=KEYS.keys())
    def test_holds_and_lists_and_the_hook_know_them(
        self,
        world: World,
        kind: str,
        engine: sa.Engine,
        key_type: sa.types.TypeEngine[Any],
        ids: list[Any],
        claim: str,
    ) -> None:
        options = yard(key_type)
        options["slots"].metadata.create_all(engine)
        with world.table(engine, claim=claim, **options) as slots:
            slots.add([(each, 4) for each in ids])
            with engine.begin() as connection:
                south = sa.update(options["slots"]).values(depot="south")
                connection.execute(south.where(options["slots"].key == ids[1]))
            told: list[Any] = []
            holds = world.holds(slots, on_change=told.append)

            hold = holds.create(ids[0], 2, idempotency_key="k")
            holds.create(ids[1], ttl=0.000001)
            assert holds.create(ids[0], 2, idempotency_key="k").id == hold.id
            assert holds.confirm(hold.id).slot_id == ids[0]
            assert holds.expire_due() == 1
            assert holds.find(slot_id=ids[0])[0].state is HoldState.CONFIRMED

            assert told == ["north/4", "south/4", "north/4", "south/4"]
            assert (slots.id_type, slots.scope_type) == (type(ids[0]), str)
            assert listed(slots, "north/4") == [(ids[0], 4, 2)]
            assert listed(slots, "south/4") == [(ids[1], 4, 4)]
            assert listed(slots, None) == [(ids[0], 4, 2), (ids[1], 4, 4)]


def test_a_scope_that_the_table_generates_is_not_given(world: World, tmp_path: Path) -> None:
    with (
        world.sqlite(tmp_path / "yard.db", **yard(sa.String(40))) as slots,
        pytest.raises(ValueError, match=r"'place' is generated .* the scope 'a' cannot be given"),
    ):
        slots.add([("9:00", 4)], scope="a")


@on_each
class TestMixin:
    def test_it_books_as_the_shipped_tables_do(
        self, world: World, kind: str, engine: sa.Engine
    ) -> None:
        Base.metadata.create_all(engine)
        with world.table(engine, clock=ManualClock(), **WINDOWS) as slots:
            slots.add([(1, 2)])
            holds = world.holds(slots, on_change=None)
            hold = holds.create(1, owner="Änn", idempotency_key="k")
            holds.create(1, ttl=5)
            with pytest.raises(SlotFull):
                holds.create(1)
            clock_of(slots).advance(5)

            assert listed(slots) == [(1, 2, 1)]
            assert holds.expire_due() == 1
            holds.cancel(hold.id)
            assert holds.purge(0) == 2
            assert holds.create(1, owner="Änn", idempotency_key="k").id != hold.id

    def test_its_rows_are_objects_with_exact_instants_and_text(
        self, world: World, kind: str, engine: sa.Engine
    ) -> None:
        Base.metadata.create_all(engine)
        with world.table(engine, **WINDOWS) as slots:
            slots.add([(1, 2)])
            hold = world.holds(slots, on_change=None).create(1, owner="Änn")

        with Session(engine) as session:
            row = session.scalars(sa.select(WindowHold).where(WindowHold.owner == "Änn")).one()
            session.add(WindowHold(**copied(row), id=UUID(int=1), state="confirmed"))
            session.flush()

        assert (row.id, row.slot_id, row.state, row.ended_at) == (hold.id, 1, "held", None)
        assert (row.created_at, row.expires_at) == (hold.created_at, hold.expires_at)
        assert row.created_at.tzinfo is UTC
        assert row.source == "web"  # a column of theirs, with a default

    def test_nothing_is_created_where_nothing_is_shipped(
        self, world: World, kind: str, engine: sa.Engine
    ) -> None:
        with world.table(engine, **WINDOWS) as slots:
            slots.create_tables()

            assert slots.ddl() == ""
            assert sa.inspect(engine).get_table_names() == []


def test_columns_of_theirs_may_have_any_name(world: World) -> None:
    """Also one that the library uses in its answers."""
    mapper_registry = registry(metadata=bays().metadata)

    @mapper_registry.mapped
    class BayHold(HoldMixin):
        __tablename__ = "bay_holds"

        slot_id = mapped_column(sa.ForeignKey("bays.slot_id"))
        scope = mapped_column(sa.String(20), default="theirs")
        now = mapped_column(sa.Boolean)

    table = mapper_registry.metadata.tables["bays"]
    with world.sqlite(":memory:", slots=table, holds=BayHold) as slots:
        mapper_registry.metadata.create_all(slots.engine)

        assert books(world, slots) == [(1, 4, 3)]


def copied(row: WindowHold) -> dict[str, Any]:
    names = "slot_id", "quantity", "created_at", "expires_at", "owner"
    return {name: getattr(row, name) for name in names}


@nothing_waits
@pytest.mark.parametrize("kind", DATABASES)
def test_there_is_one_definition_of_a_table_of_holds(kind: str) -> None:
    """The class's tables are the shipped ones, but for the names."""

    class Base(DeclarativeBase):
        metadata = sa.MetaData(naming_convention={"ck": "ck_%(table_name)s_%(constraint_name)s"})

    class Slot(Base):
        __table__ = shipped_slots(int).to_metadata(Base.metadata)

    class SlotHold(HoldMixin, Base):
        __tablename__ = "their_holds"

        slot_id = mapped_column(sa.ForeignKey("slots.slot_id"))

    shipped = holds_of(map_slots(Slot, None, None))
    theirs = sql_of(Base.metadata.tables["their_holds"], kind)
    keys = sql_of(Base.metadata.tables["their_holds_keys"], kind)

    assert theirs.replace("their_holds", "slot_holds") == sql_of(shipped, kind)
    assert keys.replace("their_holds_keys", "slot_hold_keys") == sql_of(keys_of(shipped), kind)


def sql_of(table: sa.Table, kind: str) -> str:
    indexes = sorted(table.indexes, key=lambda index: str(index.name))
    made: list[sa.ExecutableDDLElement] = [CreateTable(table), *map(CreateIndex, indexes)]
    return "\n".join(str(each.compile(dialect=DIALECTS[kind])) for each in made)


def by_generated_base(metadata: sa.MetaData) -> Any:
    return registry(metadata=metadata).generate_base()


def by_dataclasses(metadata: sa.MetaData) -> Any:
    return type("Base", (MappedAsDataclass, DeclarativeBase), {"metadata": metadata})


@nothing_waits
class TestStyles:
    @pytest.mark.parametrize("base_on", [by_generated_base, by_dataclasses])
    def test_any_base_will_do(self, base_on: Callable[[sa.MetaData], Any]) -> None:
        base = base_on(windows())

        class WindowHold(HoldMixin, base):  # type: ignore[misc, valid-type]
            __tablename__ = "window_holds"

            slot_id: Mapped[int] = mapped_column(sa.ForeignKey("windows.id"))

        assert is_taken(WindowHold)

    def test_a_class_may_be_defined_again(self) -> None:
        """As in a notebook."""
        metadata = windows()
        for _ in range(2):
            base: Any = registry(metadata=metadata).generate_base()

            class WindowHold(HoldMixin, base):  # type: ignore[misc]
                __tablename__ = "window_holds"
                __table_args__ = {"extend_existing": True}  # noqa: RUF012

                slot_id: Mapped[int] = mapped_column(sa.ForeignKey("windows.id"))

        assert is_taken(WindowHold)

    def test_a_class_without_a_base_will_do(self) -> None:
        mapper_registry = registry(metadata=windows())

        @mapper_registry.mapped
        class WindowHold(HoldMixin):
            __tablename__ = "window_holds"
            __table_args__ = (
                sa.Index("by_source", "source", "owner"),
                {"comment": "who wants what"},
            )

            slot_id = mapped_column(sa.ForeignKey("windows.id"))
            source = mapped_column(sa.String(20))

        table: sa.Table = WindowHold.__table__  # type: ignore[attr-defined]
        assert is_taken(WindowHold)
        assert table.comment == "who wants what"
        assert "by_source" in {index.name for index in table.indexes}
        assert not table.c.slot_id.nullable

    @pytest.mark.parametrize(
        ("default", "arguments", "schema"),
        [
            ("day", {}, "day"),
            (None, {"schema": "night"}, "night"),
            ("day", {"schema": sa.BLANK_SCHEMA}, None),
        ],
    )
    def test_its_keys_are_in_its_schema(
        self, default: str | None, arguments: dict[str, Any], schema: str | None
    ) -> None:
        mapper_registry = registry(metadata=sa.MetaData(schema=default))

        @mapper_registry.mapped
        class WindowHold(HoldMixin):
            __tablename__ = "window_holds"
            __table_args__ = arguments

            slot_id = mapped_column(sa.Integer)

        assert {each.schema for each in mapper_registry.metadata.tables.values()} == {schema}
        assert is_taken(WindowHold)

    def test_a_base_may_make_tables_in_its_own_way(self) -> None:
        class Base(DeclarativeBase):
            @classmethod
            def __table_cls__(cls, *arguments: Any, **options: Any) -> sa.Table:
                return sa.Table(*arguments, **options, info={"made by": cls.__name__})

        class WindowHold(HoldMixin, Base):
            __tablename__ = "window_holds"

            slot_id = mapped_column(sa.Integer)

        assert WindowHold.__table__.info == {"made by": "WindowHold"}  # type: ignore[attr-defined]


def windows() -> sa.MetaData:
    metadata = sa.MetaData()
    sa.Table("windows", metadata, sa.Column("id", sa.Integer, primary_key=True))
    return metadata


def is_taken(holds: Any) -> bool:
    """Whether `SqlSlots` takes the class for holds on slots that an int names."""
    table = sa.Table(
        "windows",
        sa.MetaData(),
        *(sa.Column(name, sa.Integer) for name in ("id", "capacity", "remaining")),
    )
    with SqlSlots.sqlite(":memory:", slots=table, columns={"slot_id": "id"}, holds=holds):
        return True


@nothing_waits
class TestRefusedClasses:
    def test_a_class_that_does_not_say_which_slot(self) -> None:
        with pytest.raises(TypeError, match=r"Nowhere has no column slot_id.*ForeignKey"):

            @registry().mapped
            class Nowhere(HoldMixin):
                __tablename__ = "nowhere"

    @pytest.mark.parametrize("holds", [Window, HoldMixin, WindowHold.__table__, "window_holds"])
    def test_what_was_not_made_with_the_mixin(self, holds: Any) -> None:
        with pytest.raises(TypeError, match="holds must be a class mapped with HoldMixin, not"):
            SqlSlots.sqlite(":memory:", slots=Window, columns={"slot_id": "id"}, holds=holds)

    def test_holds_of_other_slots(self) -> None:
        message = r"window_holds\.slot_id references windows\.id, but .* is bays\.slot_id"
        with pytest.raises(ValueError, match=message):
            SqlSlots.sqlite(":memory:", slots=bays(), holds=WindowHold)

    def test_holds_of_ids_of_another_type(self) -> None:
        @registry().mapped
        class BayHold(HoldMixin):
            __tablename__ = "bay_holds"

            slot_id = mapped_column(sa.String(20))

        message = r"bay_holds\.slot_id is String\(length=20\), and the ids of the slots are int"
        with pytest.raises(TypeError, match=message):
            SqlSlots.sqlite(":memory:", slots=bays(), holds=BayHold)


def bays(schema: str | None = None) -> sa.Table:
    return sa.Table(
        "bays",
        sa.MetaData(schema=schema),
        sa.Column("slot_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("scope", sa.String(20)),
        sa.Column("capacity", sa.Integer, nullable=False),
        sa.Column("remaining", sa.Integer, nullable=False),
    )


@on_servers
class TestSchema:
    @pytest.mark.parametrize("claim", CLAIMS)
    def test_the_shipped_holds_are_where_the_slots_are(
        self, world: World, kind: str, engine: sa.Engine, schema: str, claim: str
    ) -> None:
        table = bays(schema)
        table.create(engine)
        with world.table(engine, slots=table, claim=claim) as slots:
            slots.create_tables()
            slots.create_tables()  # finds its own

            assert books(world, slots) == [(1, 4, 3)]
        inspector = sa.inspect(engine)
        assert inspector.get_table_names() == []
        made = set(inspector.get_table_names(schema=schema))
        assert made == {"bays", "slot_holds", "slot_hold_keys"}

    def test_their_ddl_makes_them_there(
        self, world: World, kind: str, engine: sa.Engine, schema: str
    ) -> None:
        table = bays(schema)
        table.create(engine)
        with world.table(engine, slots=table) as slots:
            run(engine, slots.ddl())

            slots.create_tables()
            assert books(world, slots) == [(1, 4, 3)]

    def test_an_engine_may_put_them_all_elsewhere(
        self, world: World, kind: str, engine: sa.Engine, schema: str
    ) -> None:
        """By `schema_translate_map`: lists, too, are read on what the engine is."""
        translated = engine.execution_options(schema_translate_map={None: schema})
        with world.table(translated) as slots:
            slots.create_tables()
            slots.create_tables()

            assert books(world, slots) == [(1, 4, 3)]
            assert f"{schema}.slot_holds" in slots.ddl()
        assert sa.inspect(engine).get_table_names() == []


def books(world: World, slots: SqlSlots) -> list[tuple[Any, ...]]:
    """Sell one of four places, with and without a key, and return the list of their scope."""
    slots.add([(1, 4)], scope="a")
    told: list[Any] = []
    holds = world.holds(slots, on_change=told.append)
    hold = holds.create(1, idempotency_key="k")
    assert holds.create(1, idempotency_key="k").id == hold.id
    holds.cancel(holds.create(1).id)  # on PostgreSQL, that is the shortcut
    holds.confirm(hold.id)
    assert told == ["a"] * 4
    return listed(slots, "a")


@on_sqlite_too
class TestForeignTables:
    def test_slots_of_somebody_else(self, world: World, kind: str, engine: sa.Engine) -> None:
        run(engine, "CREATE TABLE slots (id INTEGER, CAPACITY INTEGER)")

        with world.table(engine) as slots:
            message = (
                r"'slots' already, which has no column slot_id, scope, remaining: map .*slots="
            )
            with pytest.raises(ValueError, match=message):
                slots.create_tables()

        assert sa.inspect(engine).get_table_names() == ["slots"]

    @pytest.mark.parametrize("name", ["slot_holds", "slot_hold_keys"])
    def test_holds_of_somebody_else(
        self, world: World, kind: str, engine: sa.Engine, name: str
    ) -> None:
        run(engine, f"CREATE TABLE {name} (id INTEGER)")

        with (
            world.table(engine) as slots,
            pytest.raises(ValueError, match=rf"'{name}' already.*slotcache\.sql\.HoldMixin"),
        ):
            slots.create_tables()

        assert sa.inspect(engine).get_table_names() == [name]

    def test_holds_of_an_older_slotcache(self, world: World, kind: str, engine: sa.Engine) -> None:
        """What the message says to run is all that it takes."""
        with world.table(engine) as slots:
            slots.create_tables()
            run(engine, "ALTER TABLE slot_holds DROP COLUMN reference")

            with pytest.raises(ValueError, match="no column reference: if slotcache made it") as no:
                slots.create_tables()
            run(engine, str(no.value).partition("run ")[2].partition("; else")[0])

            slots.create_tables()
            assert books(world, slots) == [(1, 4, 3)]

    def test_holds_of_other_slots(self, world: World, kind: str, engine: sa.Engine) -> None:
        with world.table(engine) as shipped:
            shipped.create_tables()
        table = bays()
        table.create(engine)

        with world.table(engine, slots=table) as slots:
            message = r"its slot_id references \S+\.slots, not \S+\.bays: make .*HoldMixin"
            with pytest.raises(ValueError, match=message):
                slots.create_tables()

    def test_all_who_ask_at_once_are_told(self, world: World, kind: str, url: str) -> None:
        engines = [sa.create_engine(url) for _ in range(4)]
        run(engines[0], "CREATE TABLE slot_holds (id INTEGER)")
        tables = [world.table(engine) for engine in engines]
        left, told = iter(tables), []

        def create() -> None:
            with pytest.raises(ValueError, match="nothing was created"):
                next(left).create_tables()
            told.append(True)

        together(len(tables), create)

        assert len(told) == len(tables)
        for each, engine in zip(tables, engines, strict=True):
            each.close()
            engine.dispose()


@on_servers
def test_a_table_of_that_name_in_another_schema_is_not_in_the_way(
    world: World, kind: str, engine: sa.Engine, schema: str
) -> None:
    run(engine, "CREATE TABLE slot_holds (id INTEGER)")
    table = bays(schema)
    table.create(engine)

    with world.table(engine, slots=table) as slots:
        slots.create_tables()

        run(engine, f"ALTER TABLE {schema}.slot_holds DROP COLUMN owner")
        with pytest.raises(ValueError, match=rf"run ALTER TABLE {schema}\.slot_holds ADD .*owner"):
            slots.create_tables()


def run(engine: sa.Engine, script: str) -> None:
    """Run the statements of a script, as somebody else's migration tool would."""
    with engine.begin() as connection:
        for statement in filter(str.strip, script.split(";")):
            connection.exec_driver_sql(statement)


def listed(slots: SqlSlots, scope: Any = None) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in slots.load(scope).availability]


def clock_of(slots: SqlSlots) -> ManualClock:
    clock = slots._database._clock
    assert isinstance(clock, ManualClock)
    return clock
