"""Lists are cleared after what users write by themselves, too (P8)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    defer,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)

from slotcache import AsyncHoldManager, HoldManager, SlotAvailabilityService
from slotcache.sql import (
    AsyncSqlSlots,
    SqlSlots,
    async_clear_after,
    async_clear_on_commit,
    clear_after,
    clear_on_commit,
    clear_on_write,
)

from .support.joined import SessionStandIn, Teller
from .support.worlds import OnAsyncio, StandIn, Worlds, one_world, real


class Base(DeclarativeBase):
    pass


class Venue(Base):
    __tablename__ = "venues"

    name: Mapped[str] = mapped_column(sa.String(20), primary_key=True)
    is_open: Mapped[bool] = mapped_column(default=True)
    seats: Mapped[list[Seats]] = relationship(cascade="all, delete-orphan")


class Seats(Base):
    """A table of slots of the user's, whose scope is a venue."""

    __tablename__ = "seats"

    id: Mapped[int] = mapped_column(primary_key=True)
    venue: Mapped[str | None] = mapped_column(sa.ForeignKey(Venue.name))
    capacity: Mapped[int]
    remaining: Mapped[int]
    kind: Mapped[str] = mapped_column(default="plain")

    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "plain"}  # noqa: RUF012


class Boxes(Seats):
    """Slots with a table more."""

    __tablename__ = "boxes"
    __mapper_args__ = {"polymorphic_identity": "box"}  # noqa: RUF012

    id: Mapped[int] = mapped_column(sa.ForeignKey(Seats.id), primary_key=True)
    waiter: Mapped[str | None]


class Generated(Base):
    """Slots whose scope the database makes."""

    __tablename__ = "generated"

    slot_id: Mapped[int] = mapped_column(primary_key=True)
    day: Mapped[str]
    scope: Mapped[str] = mapped_column(sa.Computed("'on ' || day"))
    capacity: Mapped[int] = mapped_column(default=9)
    remaining: Mapped[int] = mapped_column(default=9)


SEATS: Any = Seats.__table__


class Shop:
    """An application whose sessions write to its slots.

    Attributes:
        slots: Its table.
        engine: The engine, as who blocks sees it.
        hook: What is called.
        sessions: What makes its sessions.
    """

    def __init__(self, slots: SqlSlots) -> None:
        self.slots = slots
        self.engine = slots.engine
        self.hook = Teller(slots)
        self.sessions: Any = sessionmaker(self.engine)

    @property
    def told(self) -> list[Any]:
        return self.hook.told

    def clear_on_commit(self, session: Any, hook: Any, scope: Any = None) -> None:
        """Say that the hook has to be called."""
        clear_on_commit(session, hook, scope)

    def clear_on_write(self, sessions: Any, hook: Any) -> None:
        """Say that it has to be called whenever these write."""
        clear_on_write(sessions, self.slots, hook)

    def service(self) -> SlotAvailabilityService:
        """A list of its slots."""
        return SlotAvailabilityService(self.slots)


class ShopOnAsyncio(Shop):
    """The same on asyncio, with stand-ins for its sessions."""

    def __init__(self, slots: SqlSlots, world: OnAsyncio) -> None:
        super().__init__(slots)
        self.world = world
        self.sessions = SessionsStandIn(async_sessionmaker(real(slots).engine), world)

    def clear_on_commit(self, session: Any, hook: Any, scope: Any = None) -> None:
        self.world.run(async_clear_on_commit(real(session), hook, scope))

    def clear_on_write(self, sessions: Any, hook: Any) -> None:
        clear_on_write(real(sessions), real(self.slots), hook)

    def service(self) -> Any:
        return self.world.service(self.slots)


class SessionsStandIn(StandIn):
    """Stands for what makes sessions of asyncio."""

    def __call__(self) -> Any:
        return SessionStandIn(self._real(), self._world)

    @contextmanager
    def begin(self) -> Iterator[Any]:
        with self() as session, session.begin():
            yield session


@pytest.fixture
def shop(request: pytest.FixtureRequest, worlds: Worlds, tmp_path: Path) -> Iterator[Shop]:
    """A shop in the world that the test is for."""
    with closing(worlds.open(getattr(request, "param", "blocking"))) as world:
        columns = {"slot_id": "id", "scope": "venue"}
        with world.sqlite(tmp_path / "slots.db", slots=Seats, columns=columns) as slots:
            Base.metadata.create_all(slots.engine)
            slots.create_tables()
            shop = ShopOnAsyncio(slots, world) if isinstance(world, OnAsyncio) else Shop(slots)
            with Session(slots.engine) as session, session.begin():
                session.add_all([Venue(name="hall"), Venue(name="park")])
                session.flush()
                session.add(Seats(id=1, venue="hall", capacity=4, remaining=4))
                session.add(Seats(id=2, venue="park", capacity=4, remaining=4))
                session.add(Boxes(id=3, venue="park", capacity=4, remaining=4))
            yield shop


in_both = pytest.mark.parametrize("shop", Worlds.both, indirect=True)


@pytest.mark.parametrize(
    "bound", [{Base}, {Seats}, {Seats.__table__}], ids=["base", "class", "table"]
)
def test_a_session_goes_where_its_slots_are_bound_to(shop: Shop, bound: set[Any]) -> None:
    elsewhere = sa.create_engine("sqlite://")
    holds = HoldManager(shop.slots, on_change=shop.hook)

    with Session(elsewhere, binds=dict.fromkeys(bound, shop.engine)) as session:
        holds.within(session).create(1)
        session.commit()
    elsewhere.dispose()

    assert shop.told == ["hall"]


class TestOnCommit:
    """What somebody says about a transaction of theirs."""

    @in_both
    def test_the_hook_is_called_after_the_commit_with_the_connection_back(self, shop: Shop) -> None:
        with shop.sessions.begin() as session:
            session.execute(sa.text("UPDATE seats SET remaining = 3 WHERE id = 1"))
            shop.clear_on_commit(session, shop.hook, "hall")
            assert shop.told == []

        assert (shop.told, shop.hook.lent) == (["hall"], [0])

    @in_both
    def test_without_a_scope_it_is_that_of_all(self, shop: Shop) -> None:
        with shop.sessions.begin() as session:
            shop.clear_on_commit(session, shop.hook)

        assert shop.told == [None]

    def test_it_is_called_once_for_each_scope_whoever_said_so(self, shop: Shop) -> None:
        holds = HoldManager(shop.slots, on_change=shop.hook)
        clear_on_write(shop.sessions, shop.slots, shop.hook)

        with shop.sessions.begin() as session:
            clear_on_commit(session, shop.hook, "hall")
            holds.within(session).create(1)
            session.get_one(Seats, 1).capacity = 5
            clear_on_commit(session, shop.hook, "park")
            clear_on_commit(session, shop.hook, "hall")

        assert shop.told == ["hall", "park"]

    @in_both
    def test_what_was_read_before_the_commit_is_not_kept(self, shop: Shop) -> None:
        service = shop.service()
        with shop.sessions.begin() as session:
            session.execute(sa.text("UPDATE seats SET remaining = 3 WHERE id = 1"))
            shop.clear_on_commit(session, real(service.clear_availability_cache), "hall")
            before = service.get_availability("hall").get(1)
        after = service.get_availability("hall").get(1)

        assert [row and row.remaining for row in (before, after)] == [4, 3]

    @in_both
    def test_a_rollback_calls_nobody(self, shop: Shop) -> None:
        with shop.sessions() as session:
            shop.clear_on_commit(session, shop.hook, "hall")
            session.rollback()
            session.execute(sa.text("UPDATE seats SET remaining = 3 WHERE id = 1"))
            session.commit()

        assert shop.told == []

    @in_both
    def test_what_was_said_in_a_savepoint_is_taken_back_with_it(self, shop: Shop) -> None:
        with shop.sessions.begin() as session:
            shop.clear_on_commit(session, shop.hook, "hall")
            with session.begin_nested() as savepoint:
                shop.clear_on_commit(session, shop.hook, "park")
                savepoint.rollback()

        assert shop.told == ["hall"]

    @in_both
    def test_what_was_said_in_a_savepoint_that_came_first_is_taken_back_too(
        self, shop: Shop
    ) -> None:
        with shop.sessions.begin() as session:
            with session.begin_nested() as savepoint:
                shop.clear_on_commit(session, shop.hook, "park")
                savepoint.rollback()
            shop.clear_on_commit(session, shop.hook, "hall")

        assert shop.told == ["hall"]

    def test_a_connection_will_do_inside_of_clear_after(self, shop: Shop) -> None:
        with shop.engine.connect() as connection, clear_after(connection):
            clear_on_commit(connection, shop.hook, "hall")
            connection.execute(sa.text("UPDATE seats SET remaining = 3 WHERE id = 1"))
            assert shop.told == []

        assert shop.told == ["hall"]

    def test_a_scoped_session_will_do(self, shop: Shop) -> None:
        session = scoped_session(shop.sessions)
        clear_on_commit(session, shop.hook, "hall")
        session.commit()
        session.remove()

        assert shop.told == ["hall"]

    def test_a_session_needs_an_engine_beside_those_of_its_tables(self, shop: Shop) -> None:
        binds: Any = {Seats: shop.engine}
        with (
            Session(binds=binds) as session,
            pytest.raises(ValueError, match="make it with bind=engine, too"),
        ):
            clear_on_commit(session, shop.hook, "hall")

        with Session(shop.engine, binds=binds) as session:
            session.get_one(Seats, 1).remaining = 3
            session.flush()
            clear_on_commit(session, shop.hook, "hall")
            session.commit()

        assert shop.told == ["hall"]

    @in_both
    def test_a_hook_that_raises_is_logged(
        self, shop: Shop, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(scope: object) -> None:
            raise RuntimeError

        with shop.sessions.begin() as session:
            shop.clear_on_commit(session, fail, "hall")
            shop.clear_on_commit(session, shop.hook, "hall")

        assert "the hook that clears the list failed for scope 'hall'" in caplog.text
        assert shop.told == ["hall"]

    @pytest.mark.parametrize(
        ("given", "error", "way_out"),
        [
            (lambda engine: engine, TypeError, "a Session or a Connection was expected"),
            (lambda engine: None, TypeError, "a Session or a Connection was expected"),
            (lambda engine: engine.connect(), ValueError, r"`with clear_after\(connection\):`"),
            (lambda engine: Session(engine, twophase=True), ValueError, "without twophase=True"),
        ],
        ids=["engine", "None", "connection", "two phases"],
    )
    def test_what_does_not_tell_is_refused(
        self,
        shop: Shop,
        given: Callable[[sa.Engine], Any],
        error: type[Exception],
        way_out: str,
    ) -> None:
        transaction = given(shop.engine)
        with pytest.raises(error, match=way_out):
            clear_on_commit(transaction, shop.hook)
        if isinstance(transaction, sa.Connection):
            transaction.close()

    @pytest.mark.parametrize("say", ["clear_on_commit", "clear_on_write"])
    def test_a_hook_is_something_to_be_called(self, shop: Shop, say: str) -> None:
        async def later(scope: object) -> None: ...

        def call(hook: Any) -> None:
            with shop.sessions() as session:
                if say == "clear_on_commit":
                    clear_on_commit(session, hook)
                else:
                    clear_on_write(session, shop.slots, hook)

        with pytest.raises(TypeError, match=r"hook must be callable .*clear_availability_cache"):
            call(None)
        with pytest.raises(TypeError, match="asynchronous"):
            call(later)


@pytest.fixture
def watched(shop: Shop) -> Shop:
    """A shop whose sessions notice what they write."""
    shop.clear_on_write(shop.sessions, shop.hook)
    return shop


STATEMENTS: dict[str, Callable[[Session], Any]] = {
    "update of a class": lambda session: session.execute(sa.update(Seats).values(remaining=2)),
    "update of a table": lambda session: session.execute(sa.update(SEATS).values(remaining=2)),
    "updates by key": lambda session: session.execute(
        sa.update(Seats), [{"id": 1, "remaining": 2}]
    ),
    "insert of a class": lambda session: session.execute(
        sa.insert(Seats), [{"id": 9, "capacity": 2, "remaining": 2}]
    ),
    "insert into a table": lambda session: session.execute(
        sa.insert(SEATS).values(id=9, capacity=2, remaining=2, kind="plain")
    ),
    "insert that returns": lambda session: session.scalars(
        sa.insert(Seats).returning(Seats), [{"id": 9, "capacity": 2, "remaining": 2}]
    ).all(),
    "delete of a class": lambda session: session.execute(sa.delete(Seats).where(Seats.id == 1)),
    "delete from a table": lambda session: session.execute(sa.delete(SEATS).where(Seats.id == 1)),
    "query.update": lambda session: session.query(Seats).update({"remaining": 2}),
    "query.delete": lambda session: session.query(Seats).filter(Seats.id == 1).delete(),
    "update of a subclass": lambda session: session.execute(
        sa.insert(Boxes), [{"id": 9, "capacity": 2, "remaining": 2}]
    ),
}


class TestOnWrite:
    """What sessions notice by themselves."""

    @in_both
    def test_an_object_that_was_added_clears_its_scope(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            session.add(Seats(id=9, venue="hall", capacity=1, remaining=1))

        assert (watched.told, watched.hook.lent) == (["hall"], [0])

    @in_both
    @pytest.mark.parametrize("value", [3, Seats.remaining - 1], ids=["value", "expression"])
    def test_an_object_that_was_changed_clears_its_scope(self, watched: Shop, value: Any) -> None:
        with watched.sessions.begin() as session:
            session.get_one(Seats, 1).remaining = value

        assert watched.told == ["hall"]

    def test_a_scope_that_is_set_to_an_expression_clears_all(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            session.get_one(Seats, 1).venue = sa.literal("park")

        assert watched.told == [None]

    @in_both
    def test_an_object_that_was_deleted_clears_its_scope(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            session.delete(session.get_one(Seats, 1))

        assert watched.told == ["hall"]

    def test_one_that_is_deleted_with_its_parent_clears_its_scope(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            session.delete(session.get_one(Venue, "hall"))

        assert watched.told == ["hall"]

    def test_one_that_is_deleted_as_an_orphan_clears_its_scope(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            hall = session.get_one(Venue, "hall")
            hall.seats.pop()

        assert watched.told == ["hall"]

    @in_both
    def test_one_that_moves_clears_its_old_and_its_new_scope(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            session.get_one(Seats, 1).venue = "park"

        assert sorted(watched.told) == ["hall", "park"]

    def test_one_that_is_moved_by_a_relationship_clears_both(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            seats, park = session.get_one(Seats, 1), session.get_one(Venue, "park")
            park.seats.append(seats)

        assert sorted(watched.told) == ["hall", "park"]

    def test_one_that_is_moved_through_several_scopes_clears_all_of_them(
        self, watched: Shop
    ) -> None:
        with watched.sessions.begin() as session:
            session.add(Venue(name="barn"))
            seats = session.get_one(Seats, 1)
            for name in "park", "barn":
                seats.venue = name
                session.flush()

        assert sorted(watched.told) == ["barn", "hall", "park"]

    def test_one_whose_old_scope_was_not_loaded_clears_all(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            seats = session.get_one(Seats, 1, options=[defer(Seats.venue)])
            seats.venue = "park"

        assert watched.told == [None]

    def test_one_whose_scope_is_not_loaded_clears_all(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            session.get_one(Seats, 1, options=[defer(Seats.venue)]).remaining = 3

        assert watched.told == [None]

    def test_one_whose_new_scope_only_the_database_knows_clears_all(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            session.get_one(Seats, 1).venue = sa.func.lower("PARK")

        assert watched.told == [None]

    def test_one_without_a_scope_clears_all(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            session.add(Seats(id=9, capacity=1, remaining=1))

        assert watched.told == [None]

    @pytest.mark.parametrize(
        ("shop", "statement"),
        [
            *(("blocking", statement) for statement in STATEMENTS),
            *(("asyncio", statement) for statement in STATEMENTS if "query" not in statement),
        ],
        indirect=["shop"],
    )
    def test_a_statement_clears_all(self, watched: Shop, statement: str) -> None:
        with watched.sessions.begin() as session:
            STATEMENTS[statement](session)

        assert watched.told == [None]

    def test_an_object_of_a_subclass_clears_its_scope(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            session.add(Boxes(id=9, venue="hall", capacity=1, remaining=1, waiter="Bo"))
            session.get_one(Boxes, 3).remaining = 3

        assert sorted(watched.told) == ["hall", "park"]

    def test_what_is_written_to_other_tables_is_nobodys_business(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            session.add(Venue(name="barn"))
            session.get_one(Venue, "hall").is_open = False
            session.execute(sa.update(Venue).values(is_open=False))
            session.execute(sa.select(Seats)).all()

        assert watched.told == []

    def test_what_is_as_it_was_is_nobodys_business(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            seats = session.get_one(Seats, 1)
            seats.remaining = 4
            seats.venue = "hall"
            session.get_one(Venue, "hall").is_open = False

        assert watched.told == []

    @in_both
    def test_a_rollback_calls_nobody(self, watched: Shop) -> None:
        with watched.sessions() as session:
            session.get_one(Seats, 1).remaining = 3
            session.flush()
            session.execute(sa.update(SEATS).values(remaining=2))
            session.rollback()
            session.get_one(Venue, "hall").is_open = False
            session.commit()

        assert watched.told == []

    @in_both
    def test_what_is_flushed_in_a_savepoint_is_taken_back_with_it(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            session.get_one(Seats, 2).remaining = 3
            with session.begin_nested() as savepoint:
                session.get_one(Seats, 1).remaining = 3
                session.flush()
                savepoint.rollback()

        assert watched.told == ["park"]

    @in_both
    def test_what_is_flushed_twice_is_told_once(self, watched: Shop) -> None:
        with watched.sessions.begin() as session:
            for remaining in 3, 2:
                session.get_one(Seats, 1).remaining = remaining
                session.flush()

        assert watched.told == ["hall"]

    @in_both
    def test_each_transaction_of_a_session_tells_its_own(self, watched: Shop) -> None:
        with watched.sessions() as session:
            for remaining in 3, 2:
                session.get_one(Seats, 1).remaining = remaining
                session.commit()

        assert watched.told == ["hall", "hall"]

    @pytest.mark.parametrize("changed", [False, True])
    def test_a_scope_that_the_database_makes_clears_all(
        self, tmp_path: Path, changed: bool
    ) -> None:
        with SqlSlots.sqlite(tmp_path / "generated.db", slots=Generated) as slots:
            Generated.__table__.create(slots.engine)  # type: ignore[attr-defined]
            shop = Shop(slots)
            if changed:
                with shop.sessions.begin() as session:
                    session.add(Generated(slot_id=1, day="monday"))
            clear_on_write(shop.sessions, slots, shop.hook)

            with shop.sessions.begin() as session:
                if changed:
                    session.get_one(Generated, 1).day = "tuesday"
                else:
                    session.add(Generated(slot_id=1, day="monday"))

            assert shop.told == [None]

    def test_a_table_without_scopes_has_one_list(self, tmp_path: Path) -> None:
        with SqlSlots.sqlite(
            tmp_path / "slots.db", slots=Seats, columns={"slot_id": "id"}
        ) as slots:
            Base.metadata.create_all(slots.engine)
            shop = Shop(slots)
            clear_on_write(shop.sessions, slots, shop.hook)

            with shop.sessions.begin() as session:
                session.add(Seats(id=1, capacity=1, remaining=1))
                session.add(Seats(id=2, capacity=1, remaining=1))

            assert shop.told == [None]

    def test_a_session_that_could_not_tell_may_not_write(self, watched: Shop) -> None:
        with watched.engine.connect() as connection, watched.sessions(bind=connection) as session:
            session.get_one(Seats, 1).remaining = 3
            with pytest.raises(ValueError, match=r"`with clear_after\(connection\):`"):
                session.commit()
            session.rollback()

        assert watched.told == []


class Own(Session):
    """A class of sessions."""


class TestSessions:
    """Which sessions notice."""

    @pytest.mark.parametrize(
        "made",
        [
            lambda own, engine: (own, own(engine)),
            lambda own, engine: (own, type("Derived", (own,), {})(engine)),
            lambda own, engine: (session := own(engine), session),
            lambda own, engine: (maker := sessionmaker(engine, class_=own), maker()),
            lambda own, engine: (scoped := scoped_session(sessionmaker(engine)), scoped()),
        ],
        ids=["class", "class derived from it", "session", "sessionmaker", "scoped_session"],
    )
    def test_those_for_which_it_was_said(
        self, shop: Shop, made: Callable[[type[Session], sa.Engine], tuple[Any, Session]]
    ) -> None:
        named, session = made(type("Fresh", (Own,), {}), shop.engine)

        clear_on_write(named, shop.slots, shop.hook)

        with session:
            session.get_one(Seats, 1).remaining = 3
            session.commit()
        assert shop.told == ["hall"]

    def test_no_other_ones(self, shop: Shop) -> None:
        with shop.sessions() as one, shop.sessions() as other:
            clear_on_write(one, shop.slots, shop.hook)
            other.get_one(Seats, 1).remaining = 3
            other.commit()

        assert shop.told == []

    def test_of_two_tables_each_has_its_hook(self, shop: Shop) -> None:
        clear_on_write(shop.sessions, shop.slots, shop.hook)
        with SqlSlots(shop.engine, slots=Generated) as slots:
            other = Teller(slots)
            clear_on_write(shop.sessions, slots, other)

            with shop.sessions.begin() as session:
                session.add(Generated(slot_id=1, day="monday"))

        assert (shop.told, other.told) == ([], [None])

    @pytest.mark.parametrize(
        "named",
        [
            lambda engine: engine,
            lambda engine: None,
            lambda engine: Session(engine).get_bind,
            lambda engine: object,
            lambda engine: scoped_session(partial(Session, engine)),  # type: ignore[arg-type]
        ],
        ids=["engine", "None", "method", "class", "scoped_session of a function"],
    )
    def test_what_makes_no_sessions_is_refused(
        self, shop: Shop, named: Callable[[sa.Engine], Any]
    ) -> None:
        with pytest.raises(TypeError, match="sessions must be a sessionmaker, a class of sessions"):
            clear_on_write(named(shop.engine), shop.slots, shop.hook)

    def test_what_is_no_table_of_slots_is_refused(self, shop: Shop) -> None:
        with pytest.raises(TypeError, match="slots must be a SqlSlots"):
            clear_on_write(shop.sessions, Seats, shop.hook)  # type: ignore[arg-type]


class AsyncShop:
    """A shop in an event loop.

    Attributes:
        slots: Its table.
        engine: The engine.
        told: What its hook was told.
        in_use: How many connections were in use then.
    """

    def __init__(self, slots: AsyncSqlSlots) -> None:
        self.slots = slots
        self.engine = slots.engine
        self.told: list[Any] = []
        self.in_use: list[int] = []
        self.holds = AsyncHoldManager(slots, on_change=self.hook)

    async def hook(self, scope: Any) -> None:
        await asyncio.sleep(0.01)
        pool: Any = self.engine.pool
        self.in_use.append(pool.checkedout())
        self.told.append(scope)

    async def write(self, session: AsyncSession) -> None:
        (await session.get_one(Seats, 1)).remaining = 3
        await session.commit()


@asynccontextmanager
async def async_shop(path: Path) -> AsyncIterator[AsyncShop]:
    columns = {"slot_id": "id", "scope": "venue"}
    async with AsyncSqlSlots.sqlite(path, slots=Seats, columns=columns) as slots:
        async with slots.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await slots.create_tables()
        await slots.add([(1, 4)], scope=None)
        async with slots.engine.begin() as connection:
            await connection.execute(sa.insert(Venue).values(name="hall", is_open=True))
            await connection.execute(sa.update(SEATS).values(venue="hall"))
        yield AsyncShop(slots)


@pytest.fixture
def on_asyncio(
    tmp_path: Path,
) -> Callable[[Callable[[AsyncShop], Coroutine[Any, Any, None]]], None]:
    """Do something in a shop, in an event loop."""

    def do(work: Callable[[AsyncShop], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with async_shop(tmp_path / "async.db") as shop:
                await work(shop)

        asyncio.run(main())

    return do


InShop = Callable[[Callable[[AsyncShop], Coroutine[Any, Any, None]]], None]


@one_world("of the async half alone")
class TestOnAsyncio:
    """What has no twin among those who block, or is another type there."""

    def test_the_hook_is_awaited_by_who_awaits_the_commit(self, on_asyncio: InShop) -> None:
        async def work(shop: AsyncShop) -> None:
            async with AsyncSession(shop.engine) as session:
                await async_clear_on_commit(session, shop.hook, "hall")
                assert shop.told == []
                await session.commit()
                assert (shop.told, shop.in_use) == (["hall"], [0])

        on_asyncio(work)

    def test_a_hook_that_blocks_is_called_in_a_thread(self, on_asyncio: InShop) -> None:
        async def work(shop: AsyncShop) -> None:
            threads: list[int] = []
            async with AsyncSession(shop.engine) as session:
                await async_clear_on_commit(
                    session, lambda _: threads.append(threading.get_ident())
                )
                await session.commit()
            assert threads
            assert threads != [threading.get_ident()]

        on_asyncio(work)

    def test_a_connection_will_do_inside_of_async_clear_after(self, on_asyncio: InShop) -> None:
        async def work(shop: AsyncShop) -> None:
            async with shop.engine.connect() as connection:
                async with async_clear_after(connection) as inside:
                    assert inside is connection
                    await shop.holds.within(connection).create(1)
                    await async_clear_on_commit(connection, shop.hook, "park")
                    await connection.execute(sa.update(SEATS).values(remaining=3))
                    assert shop.told == []
                assert shop.told == ["hall", "park"]
                with pytest.raises(ValueError, match="a bare connection does not tell"):
                    await async_clear_on_commit(connection, shop.hook)

        on_asyncio(work)

    def test_an_exception_inside_of_async_clear_after_rolls_back(self, on_asyncio: InShop) -> None:
        async def work(shop: AsyncShop) -> None:
            async with shop.engine.connect() as connection:
                with suppress(RuntimeError):
                    async with async_clear_after(connection):
                        await shop.holds.within(connection).create(1)
                        raise RuntimeError
            assert shop.told == []
            assert await shop.holds.find() == []

        on_asyncio(work)

    def test_async_clear_after_takes_an_open_connection_once(self, on_asyncio: InShop) -> None:
        async def work(shop: AsyncShop) -> None:
            for given in shop.engine, AsyncSession(shop.engine), None, shop.engine.sync_engine:
                with pytest.raises(TypeError, match="takes an AsyncConnection"):
                    await async_clear_after(given).__aenter__()  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="this connection is not open"):
                await async_clear_after(shop.engine.connect()).__aenter__()
            async with shop.engine.connect() as connection, async_clear_after(connection):
                with pytest.raises(ValueError, match="inside of clear_after already"):
                    await async_clear_after(connection).__aenter__()

        on_asyncio(work)

    def test_a_scoped_session_is_whichever_is_there(self, on_asyncio: InShop) -> None:
        async def work(shop: AsyncShop) -> None:
            sessions = async_scoped_session(
                async_sessionmaker(shop.engine), scopefunc=asyncio.current_task
            )
            await async_clear_on_commit(sessions, shop.hook, "hall")
            await sessions.commit()
            await sessions.remove()
            await shop.holds.within(sessions).create(1)
            await sessions.commit()
            await sessions.remove()
            assert shop.told == ["hall", "hall"]

        on_asyncio(work)

    @pytest.mark.parametrize(
        ("given", "error", "way_out"),
        [
            (lambda engine: engine, TypeError, "has transactions of its own"),
            (lambda engine: Session(engine.sync_engine), TypeError, "as HoldManager and clear_on_"),
            (lambda engine: engine.connect(), ValueError, "is not open"),
            (lambda engine: AsyncSession(engine, twophase=True), ValueError, "without twophase"),
            (lambda engine: None, TypeError, "AsyncSession or an? AsyncConnection was expected"),
        ],
        ids=["engine", "blocking session", "closed connection", "two phases", "None"],
    )
    def test_what_does_not_tell_is_refused(
        self,
        given: Callable[[AsyncEngine], Any],
        error: type[Exception],
        way_out: str,
        on_asyncio: InShop,
    ) -> None:
        async def work(shop: AsyncShop) -> None:
            with pytest.raises(error, match=way_out):
                await async_clear_on_commit(given(shop.engine), shop.hook)
            with pytest.raises(error, match=way_out):
                shop.holds.within(given(shop.engine))

        on_asyncio(work)

    def test_those_who_block_refuse_sessions_of_asyncio(
        self, shop: Shop, on_asyncio: InShop
    ) -> None:
        holds = HoldManager(shop.slots, on_change=None)

        async def work(other: AsyncShop) -> None:
            for given in AsyncSession(other.engine), other.engine.connect():
                with pytest.raises(TypeError, match="for asyncio, as AsyncHoldManager"):
                    holds.within(given)  # type: ignore[arg-type]
                with pytest.raises(TypeError, match="for asyncio, as AsyncHoldManager"):
                    clear_on_commit(given, shop.hook)  # type: ignore[arg-type]
            assert isinstance(other.engine.connect(), AsyncConnection)

        on_asyncio(work)

    @pytest.mark.parametrize(
        "made",
        [
            lambda own, engine: (own, own(engine)),
            lambda own, engine: (own, type("Derived", (own,), {})(engine)),
            lambda own, engine: (session := own(engine), session),
            lambda own, engine: (maker := async_sessionmaker(engine, class_=own), maker()),
        ],
        ids=["class", "class derived from it", "session", "async_sessionmaker"],
    )
    def test_sessions_notice_for_which_it_was_said_and_no_other_ones(
        self, made: Callable[[Any, AsyncEngine], tuple[Any, AsyncSession]], on_asyncio: InShop
    ) -> None:
        async def work(shop: AsyncShop) -> None:
            named, session = made(type("Fresh", (AsyncSession,), {}), shop.engine)
            clear_on_write(named, shop.slots, shop.hook)
            async with AsyncSession(shop.engine) as other:
                await shop.write(other)
            assert shop.told == []
            if isinstance(named, type | async_sessionmaker):
                session = named(shop.engine) if isinstance(named, type) else named()
            async with session:
                (await session.get_one(Seats, 1)).remaining = 2
                await session.commit()
            assert shop.told == ["hall"]

        on_asyncio(work)

    def test_not_all_sessions_of_asyncio_can_be_meant(self, on_asyncio: InShop) -> None:
        async def work(shop: AsyncShop) -> None:
            with pytest.raises(TypeError, match="or a subclass of AsyncSession"):
                clear_on_write(AsyncSession, shop.slots, shop.hook)

        on_asyncio(work)
