"""What goes wrong around a statement, on real databases: each test began as a bug that was found.

Connections that die after a commit, exceptions out of signal handlers, tables that somebody has
locked, and tables and engines that are not as shipped.
"""

from __future__ import annotations

import inspect
import itertools
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.mysql import INTEGER
from sqlalchemy.engine.default import DefaultDialect

from slotcache import (
    BackendError,
    Busy,
    HoldManager,
    HoldPolicy,
    HoldState,
    SlotFull,
    SlotNotFound,
)
from slotcache.sql import SqlSlots
from slotcache.sql.tables import shipped_slots
from slotcache.testing import ManualClock

from .support.databases import DatabaseServer
from .support.processes import eventually
from .support.races import gathered
from .support.sql import CLAIMS, KINDS, ON_SERVERS, Place, free, opened, query
from .support.threads import spawn
from .support.worlds import BLOCKING, World, Worlds, inner_engine, one_world

PlaceOf = Callable[[str], Place]

SOON = 6.0  # seconds: longer than any wait that a test asks for

on_each_server = pytest.mark.parametrize(
    ("kind", "world"),
    [(kind, world) for world in Worlds.both for kind in ON_SERVERS],
    indirect=["world"],
)
in_each_claim = pytest.mark.parametrize("claim", CLAIMS)
WITH_CLAIM = [*((claim, "blocking") for claim in CLAIMS), ("counted", "asyncio")]
in_each_claim_and_world = pytest.mark.parametrize(
    ("claim", "world"), WITH_CLAIM, indirect=["world"]
)

the_same_is_sent = one_world("what is sent to tables that are not as shipped: it is the same")

PATIENCE_OF = {
    "postgres": "SHOW lock_timeout",
    "mariadb": "SELECT @@session.lock_wait_timeout, @@session.innodb_lock_wait_timeout",
}
"""How to ask a session how long it waits for locks."""


class Cut(Exception):
    """What a signal handler raises in the middle of anything: a soft time limit, say."""


@pytest.fixture
def server(kind: str, request: pytest.FixtureRequest) -> DatabaseServer:
    found: DatabaseServer = request.getfixturevalue(f"{kind}_server")
    return found


@contextmanager
def table_on(
    world: World, url: str, *, engine_options: dict[str, Any] | None = None, **options: Any
) -> Iterator[SqlSlots]:
    """A table on an engine of its own, with one connection to spare for nobody."""
    given = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1.0} | (engine_options or {})
    engine = sa.create_engine(url, **given)
    with world.table(engine, engine_options=given, **options) as slots:
        slots.create_tables()
        yield slots
    engine.dispose()


def own_table(url: str, name: str = "slots", **types: Any) -> sa.Table:
    """Make a table of slots that is not ours; return it."""
    table = sa.Table(
        name,
        sa.MetaData(),
        sa.Column("slot_id", types.get("number", sa.Integer), primary_key=True),
        sa.Column("scope", types.get("scope", sa.String(20))),
        sa.Column("capacity", types.get("number", sa.Integer), nullable=False),
        sa.Column("remaining", types.get("number", sa.Integer), nullable=False),
    )
    execute(url, *types.get("instead", [str(sa.schema.CreateTable(table).compile(on(url)))]))
    return table


def on(url: str) -> sa.Engine:
    return sa.create_engine(url, poolclass=sa.pool.NullPool)


def execute(url: str, *statements: str) -> None:
    """Execute them on a connection of their own, in one transaction."""
    with on(url).begin() as connection:
        for each in statements:
            connection.exec_driver_sql(each)


def instead_once(slots: SqlSlots, name: str, work: Callable[[Any, Any], object]) -> None:
    """Do this with the connection, and the real thing to call, when SQLAlchemy does `name` next."""
    dialect: Any = inner_engine(slots).dialect
    real = getattr(dialect, name)

    def once(connection: Any) -> None:
        setattr(dialect, name, real)
        work(connection, lambda: real(connection))

    setattr(dialect, name, once)


def after_next_commit(slots: SqlSlots, happens: Callable[[Any], object]) -> None:
    """Do something with the connection when its next COMMIT has been answered, before we know."""
    instead_once(slots, "do_commit", lambda connection, real: (real(), happens(connection)))


def kill(server: DatabaseServer, connection: Any) -> None:
    """Have the server end this connection; return when it has."""
    driver = connection.driver_connection
    if hasattr(driver, "thread_id"):
        number = driver.thread_id()
        server.execute(f"KILL HARD {number}")
        still = "SELECT 1 FROM information_schema.processlist WHERE id = :number"
    else:
        number = driver.info.backend_pid
        server.execute("SELECT pg_terminate_backend(:number)", number=number)
        still = "SELECT 1 FROM pg_stat_activity WHERE pid = :number"
    eventually(lambda: not server.execute(still, number=number))


def die_unanswered(server: DatabaseServer, connection: Any) -> None:
    """Raise what the driver raises when the connection ends before the answer is there."""
    kill(server, connection)
    connection.cursor().execute("SELECT 1")


def inserts_into(slots: SqlSlots) -> list[str]:
    """Every statement that adds slots from now on."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO slots "):
            sent.append(statement)

    sa.event.listen(inner_engine(slots), "before_cursor_execute", note)
    return sent


class Fuse:
    """Blows at the one of so many events that it is for, and only then."""

    def __init__(self, number: int, blow: Callable[..., object], *, at: str = "") -> None:
        self.left = number
        self._blow = blow
        self._at = at

    def __call__(self, connection: object, cursor: object, statement: str, *_: object) -> None:
        self.left -= self._at in statement
        if self.left == -1:
            self.left = -2
            self._blow(connection)


def raising(error: type[BaseException]) -> Callable[..., None]:
    def blow(*_: object) -> None:
        raise error

    return blow


def cut_everywhere(
    slots: SqlSlots, call: Callable[[], object], error: type[BaseException]
) -> Iterator[BaseException | None]:
    """Make the call over and over, with an exception before and after each of its statements.

    Yields what came out each time: who keeps it keeps its traceback, and all that is in there.
    """
    for event in ("before_cursor_execute", "after_cursor_execute"):
        for number in itertools.count():
            fuse, came = Fuse(number, raising(error)), None
            sa.event.listen(inner_engine(slots), event, fuse)
            try:
                call()
            except error as raised:
                came = raised
            finally:
                sa.event.remove(inner_engine(slots), event, fuse)
            if fuse.left >= 0:
                assert number, "it sent no statement at all"
                break
            yield came


@contextmanager
def locked_holds(kind: str, slots: SqlSlots) -> Iterator[None]:
    """Somebody alters the table of holds."""
    lock = {
        "postgres": "LOCK TABLE slot_holds IN ACCESS EXCLUSIVE MODE",
        "mariadb": "LOCK TABLES slot_holds WRITE",
    }
    with on(str(slots.engine.url)).connect() as connection:
        connection.exec_driver_sql(lock[kind])
        try:
            yield
        finally:
            if kind == "mariadb":
                connection.exec_driver_sql("UNLOCK TABLES")


@pytest.mark.parametrize("kind", ["mariadb"])
@in_each_claim_and_world
@pytest.mark.parametrize("moment", ["at once", "at the rollback"])
class TestConnectionsThatDieInTheTidyUp:
    """What is committed has happened: it is not done again, and is not said to have failed."""

    @pytest.fixture
    def slots(self, kind: str, claim: str, world: World, place_of: PlaceOf) -> Iterator[SqlSlots]:
        with opened(kind, place_of(kind), world=world, claim=claim) as slots:
            yield slots

    @pytest.fixture
    def dies(self, slots: SqlSlots, server: DatabaseServer, moment: str) -> Callable[[], None]:
        """Have the connection die after the next commit."""

        def die(connection: Any, go_on: Callable[[], object] = lambda: None) -> None:
            kill(server, connection)
            go_on()

        def die_at_the_rollback(_: object) -> None:
            instead_once(slots, "do_rollback", die)

        return lambda: after_next_commit(slots, die if moment == "at once" else die_at_the_rollback)

    def test_a_hold_is_made_once(
        self, world: World, slots: SqlSlots, dies: Callable[[], None]
    ) -> None:
        slots.add([(1, 4)], scope="a")
        told: list[Any] = []
        holds = world.holds(slots, on_change=told.append)
        dies()

        hold = holds.create(1, 2)

        assert holds.find() == [hold]
        assert told == ["a"]

    def test_a_confirm_is_not_a_replay(
        self, world: World, slots: SqlSlots, dies: Callable[[], None]
    ) -> None:
        slots.add([(1, 4)], scope="a")
        told: list[Any] = []
        holds = world.holds(slots, on_change=told.append)
        hold = holds.create(1)
        dies()

        confirmed = holds.confirm(hold.id)

        assert (confirmed.state, confirmed.replayed) == (HoldState.CONFIRMED, False)
        assert told == ["a", "a"]

    def test_slots_are_added(self, slots: SqlSlots, dies: Callable[[], None]) -> None:
        dies()

        slots.add([(1, 4)])

        assert free(slots, 1) == 4


class TestAnswersThatAreLost:
    @on_each_server
    def test_who_adds_slots_is_told_of_it_and_not_of_slots_that_exist(
        self, world: World, kind: str, place_of: PlaceOf, server: DatabaseServer
    ) -> None:
        with opened(kind, place_of(kind), world=world) as slots:
            sent = inserts_into(slots)
            after_next_commit(slots, lambda connection: die_unanswered(server, connection))

            with pytest.raises(BackendError):
                slots.add([(1, 4)])

            assert len(sent) == 1
            assert free(slots, 1) == 4

    def test_a_connection_that_dies_creating_tables_is_a_backend_error(
        self, world: World, mariadb_url: str, mariadb_server: DatabaseServer
    ) -> None:
        engine = sa.create_engine(mariadb_url)
        slots = world.table(engine)

        def cut(connection: Any, _cursor: object, statement: str, *_: object) -> None:
            if "CREATE TABLE slot_holds" in statement:
                kill(mariadb_server, connection.connection)

        sa.event.listen(inner_engine(slots), "before_cursor_execute", cut)
        with slots, pytest.raises(BackendError):
            slots.create_tables()
        engine.dispose()

    def test_a_commit_that_is_refused_for_a_lock_is_busy(
        self, world: World, place_of: PlaceOf, mariadb_server: DatabaseServer
    ) -> None:
        """Somebody makes a backup, under a lock of the whole server."""
        with (
            opened("mariadb", place_of("mariadb"), world=world) as slots,
            on(mariadb_server.url).connect() as backup,
        ):
            slots.add([(1, 4)], scope="a")
            told: list[Any] = []
            holds = world.holds(slots, on_change=told.append, policy=HoldPolicy(lock_wait=1))

            def lock(_: object) -> None:
                backup.exec_driver_sql("FLUSH TABLES WITH READ LOCK")

            sa.event.listen(inner_engine(slots), "commit", lock)
            try:
                with pytest.raises(Busy):
                    holds.create(1)
            finally:
                sa.event.remove(inner_engine(slots), "commit", lock)
                backup.exec_driver_sql("UNLOCK TABLES")

            assert (told, holds.find()) == ([], [])


@in_each_claim_and_world
class TestExceptionsInAPlainCreate:
    """On PostgreSQL, where it is one statement that commits by itself."""

    def test_one_after_the_commit_has_every_list_cleared(
        self, world: World, claim: str, place_of: PlaceOf
    ) -> None:
        with opened("postgres", place_of("postgres"), claim=claim, world=world) as slots:
            slots.add([(1, 4)], scope="a")
            told: list[Any] = []
            holds = world.holds(slots, on_change=told.append)

            fuse = Fuse(0, raising(Cut), at="INSERT INTO slot_holds")
            sa.event.listen(inner_engine(slots), "after_cursor_execute", fuse)
            with pytest.raises(Cut):
                holds.create(1)

            assert told == [None]

    def test_a_row_that_cannot_be_read_back_has_every_list_cleared(
        self, world: World, claim: str, postgres_url: str
    ) -> None:
        table = own_table(postgres_url, scope=sa.Date)
        execute(postgres_url, "INSERT INTO slots VALUES (1, 'infinity', 4, 4)")
        with table_on(world, postgres_url, slots=table, claim=claim) as slots:
            told: list[Any] = []

            with pytest.raises(BackendError):
                world.holds(slots, on_change=told.append).create(1)

            assert told == [None]


@one_world("signals: on asyncio, a task is cancelled")
def test_a_signal_while_a_plain_create_waits_for_its_slot_leaves_no_connection_half_used(
    postgres_url: str,
) -> None:
    """Its handler raises in the middle of the driver; the server goes on, and may yet commit."""
    with gathered(
        "postgres",
        postgres_url,
        count=1,
        claim="on_hold",
        engine_pool_size=1,
        engine_max_overflow=0,
    ) as crowd:
        crowd.table.add([(1, 4)], scope="a")
        told: list[Any] = []
        holds = HoldManager(crowd.table, on_change=told.append)
        me = threading.get_ident()

        def cut(*_: object) -> None:
            raise Cut

        before = signal.signal(signal.SIGUSR1, cut)
        try:
            with crowd.blocked(1) as blocker:

                def knock() -> None:
                    blocker.wait_for(lambda: 1)
                    signal.pthread_kill(me, signal.SIGUSR1)

                knocked = spawn(knock)
                with pytest.raises(Cut):
                    holds.create(1)
                knocked.result(SOON)
        finally:
            signal.signal(signal.SIGUSR1, before)

        assert told == [None]
        assert holds.create(1).scope == "a"
        assert query(crowd.table, PATIENCE_OF["postgres"]) == [("0",)]


@on_each_server
def test_an_exception_beside_any_statement_leaves_the_patience_of_sessions_alone(
    world: World, kind: str, request: pytest.FixtureRequest
) -> None:
    with table_on(world, request.getfixturevalue(f"{kind}_url")) as slots:
        slots.add([(1, 1000)])
        holds = world.holds(slots, on_change=None, policy=HoldPolicy(lock_wait=7))
        before = world.ask(slots, PATIENCE_OF[kind])

        def work() -> None:
            holds.confirm(holds.create(1).id)

        for _ in cut_everywhere(slots, work, Cut):
            assert world.ask(slots, PATIENCE_OF[kind]) == before


def test_an_interrupt_whose_traceback_lives_on_does_not_keep_sqlite_locked(
    world: World, tmp_path: Path
) -> None:
    """It keeps the cursor, which keeps the transaction."""
    with opened("file", tmp_path, world=world) as slots:
        slots.add([(1, 1000)])
        holds = world.holds(slots, on_change=None, policy=HoldPolicy(lock_wait=0.3))
        kept: list[BaseException | None] = []

        for came in cut_everywhere(slots, lambda: holds.create(1), world.interrupt):
            kept.append(came)
            assert holds.create(1).slot_id == 1


class TestLockedTables:
    @on_each_server
    def test_reads_that_wait_too_long_are_busy(
        self, world: World, kind: str, place_of: PlaceOf
    ) -> None:
        with opened(kind, place_of(kind), world=world) as slots:
            slots.add([(1, 4)])
            holds = world.holds(slots, on_change=None, policy=HoldPolicy(lock_wait=0.1))
            hold = holds.create(1)

            with locked_holds(kind, slots):
                calls: list[Future[Any]] = [
                    spawn(lambda: holds.get(hold.id)),
                    spawn(holds.find),
                    spawn(holds.expire_due),
                    spawn(lambda: holds.purge(0)),
                ]
                errors = [type(each.exception(SOON)) for each in calls]

            assert errors == [Busy] * 4

    def test_lists_that_wait_too_long_raise_what_the_database_says(
        self, world: World, place_of: PlaceOf
    ) -> None:
        """So that the cached copy stands in. Both servers at once: they wait for three seconds."""
        with ExitStack() as stack:
            loads = []
            for kind in ON_SERVERS:
                slots = stack.enter_context(opened(kind, place_of(kind), world=world))
                stack.enter_context(locked_holds(kind, slots))
                loads.append(spawn(slots.load))

            errors = [each.exception(SOON) for each in loads]

        assert [isinstance(each, sa.exc.OperationalError) for each in errors] == [True, True]


class TestOtherTablesOnPostgres:
    @the_same_is_sent
    def test_a_slot_in_one_partition_does_not_wait_for_one_in_another(
        self, postgres_url: str
    ) -> None:
        """Their rows may have the same place, each in its own partition."""
        columns = "slot_id int PRIMARY KEY, scope text, capacity int, remaining int"
        parts = (
            f"CREATE TABLE part_{n} PARTITION OF slots FOR VALUES WITH (MODULUS 4, REMAINDER {n})"
            for n in range(4)
        )
        whole = f"CREATE TABLE slots ({columns}) PARTITION BY HASH (slot_id)"
        table = own_table(postgres_url, instead=[whole, *parts])
        with table_on(BLOCKING, postgres_url, slots=table) as slots:
            slots.add([(n, 4) for n in range(1, 9)])
            holds = HoldManager(slots, on_change=None, policy=HoldPolicy(lock_wait=0.2))
            in_first_place = "SELECT slot_id FROM slots WHERE ctid = '(0,1)' ORDER BY 1"
            (one,), (other,), *_ = query(slots, in_first_place)

            with on(postgres_url).begin() as connection:
                connection.exec_driver_sql(
                    f"SELECT 1 FROM slots WHERE slot_id = {other} FOR UPDATE"
                )

                assert holds.create(one).slot_id == one

    @the_same_is_sent
    @pytest.mark.parametrize(
        ("name", "claim"),
        [("counted", "counted"), ("moment", "counted"), ("moment", "on_hold"), ("held", "on_hold")],
    )
    def test_a_table_may_be_called_what_a_statement_calls_its_parts(
        self, postgres_url: str, name: str, claim: str
    ) -> None:
        table = own_table(postgres_url, name)
        with table_on(BLOCKING, postgres_url, slots=table, claim=claim) as slots:
            slots.add([(1, 4)])

            HoldManager(slots, on_change=None).create(1)

            assert free(slots, 1) == 3

    @the_same_is_sent
    @in_each_claim
    def test_a_view_will_do(self, postgres_url: str, claim: str) -> None:
        with table_on(BLOCKING, postgres_url, claim=claim) as slots:
            slots.add([(1, 4)])
        table = own_table(
            postgres_url, "open_slots", instead=["CREATE VIEW open_slots AS SELECT * FROM slots"]
        )
        engine = sa.create_engine(postgres_url)
        with SqlSlots(engine, slots=table, claim=claim) as slots:
            holds = HoldManager(slots, on_change=None)

            holds.create(1)
            holds.create(1)

            assert free(slots, 1) == 2
        engine.dispose()

    @in_each_claim_and_world
    def test_a_column_may_change_its_type_in_use(
        self, world: World, postgres_url: str, claim: str
    ) -> None:
        """The driver has prepared the statement by then, and the server refuses it as it was."""
        with table_on(world, postgres_url, claim=claim) as slots:
            slots.add([(1, 100)], scope="a")
            holds = world.holds(slots, on_change=None)
            for _ in range(12):
                holds.create(1)

            execute(postgres_url, "ALTER TABLE slots ALTER scope TYPE text")

            assert [holds.create(1).scope for _ in range(4)] == ["a"] * 4

    @the_same_is_sent
    @pytest.mark.parametrize(("claim", "key"), [("on_hold", None), ("counted", "k")])
    def test_a_slot_that_another_table_closes_during_the_wait_is_not_found(
        self, postgres_url: str, claim: str, key: str | None
    ) -> None:
        with opened("postgres", postgres_url):
            pass
        execute(postgres_url, "CREATE TABLE days (slot_id int, is_open bool)")
        execute(postgres_url, "INSERT INTO days VALUES (1, true)")
        table = shipped_slots(int)
        days = sa.table("days", sa.column("slot_id"), sa.column("is_open"))
        is_open = sa.exists().where(days.c.slot_id == table.c.slot_id, days.c.is_open)
        with gathered(
            "postgres", postgres_url, count=1, claim=claim, slots=table, where=is_open
        ) as crowd:
            crowd.table.add([(1, 4)])

            with crowd.blocked(1) as blocker:
                call = spawn(lambda: crowd.holds.create(1, idempotency_key=key))
                blocker.wait_for(lambda: 1)
                blocker.connection.exec_driver_sql("UPDATE days SET is_open = false")
                blocker.has_changed = True

            assert isinstance(call.exception(SOON), SlotNotFound)


@the_same_is_sent
class TestOtherEnginesOnPostgres:
    @in_each_claim
    def test_a_day_has_24_hours_also_when_the_clocks_of_the_session_change(
        self, postgres_url: str, claim: str
    ) -> None:
        """They go forward in Berlin in the night after this noon."""
        options = {"connect_args": {"options": "-c TimeZone=Europe/Berlin"}}
        clock = ManualClock(datetime(2026, 3, 28, 12, tzinfo=UTC).timestamp())
        policy = HoldPolicy(ttl=86_400, max_lifetime=30 * 86_400)
        with table_on(
            BLOCKING, postgres_url, engine_options=options, claim=claim, clock=clock
        ) as slots:
            slots.add([(1, 4)])
            holds = HoldManager(slots, on_change=None, policy=policy)

            made = [holds.create(1, idempotency_key=key) for key in (None, "k")]

            assert [each.expires_at - each.created_at for each in made] == [timedelta(days=1)] * 2

    def test_a_translated_schema_is_that_of_the_lists_too(self, postgres_url: str) -> None:
        with table_on(BLOCKING, postgres_url):
            pass  # the same tables elsewhere, empty
        execute(postgres_url, "CREATE SCHEMA t1")
        options = {"execution_options": {"schema_translate_map": {None: "t1"}}}
        with table_on(BLOCKING, postgres_url, engine_options=options) as slots:
            slots.add([(1, 4)])
            HoldManager(slots, on_change=None).create(1)

            assert free(slots, 1) == 3


class TestUnsignedColumns:
    """On MariaDB, where less than nothing is an error there."""

    @pytest.fixture
    def slots(self, world: World, mariadb_url: str, claim: str) -> Iterator[SqlSlots]:
        table = own_table(mariadb_url, number=INTEGER(unsigned=True))
        with table_on(world, mariadb_url, slots=table, claim=claim) as slots:
            slots.add([(1, 10)], scope="a")
            yield slots

    @in_each_claim_and_world
    def test_a_slot_shrinks(self, world: World, slots: SqlSlots) -> None:
        holds = world.holds(slots, on_change=None)
        holds.create(1, 2)

        holds.set_capacity(1, 5)

        assert free(slots, 1) == 3

    @in_each_claim_and_world
    def test_a_hold_lives_and_ends(self, world: World, slots: SqlSlots) -> None:
        holds = world.holds(slots, on_change=None)
        hold = holds.create(1, 4)
        holds.confirm(hold.id)
        assert free(slots, 1) == 6

        holds.cancel(hold.id)

        assert free(slots, 1) == 10

    @pytest.mark.parametrize("claim", ["counted"])
    def test_a_row_that_was_edited_below_its_promises_is_full(
        self, world: World, slots: SqlSlots, claim: str
    ) -> None:
        holds = world.holds(slots, on_change=None)
        hold = holds.create(1, 3)
        with slots.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE slots SET remaining = 1")

        assert free(slots, 1) == 0
        with pytest.raises(SlotFull):
            holds.confirm(hold.id)
        with pytest.raises(SlotFull):
            holds.create(1)


AUTOCOMMITS: list[dict[str, Any]] = [{"isolation_level": "AUTOCOMMIT"}]
if "skip_autocommit_rollback" in inspect.signature(DefaultDialect).parameters:  # SQLAlchemy 2.1
    AUTOCOMMITS.append({"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True})


@pytest.mark.parametrize("options", AUTOCOMMITS, ids=lambda options: "-".join(options))
def test_a_refusal_does_not_keep_the_lock_of_a_sqlite_engine_that_commits_by_itself(
    world: World, tmp_path: Path, options: dict[str, Any]
) -> None:
    path = tmp_path / "slots.db"
    with table_on(world, f"sqlite:///{path}", engine_options=options) as slots:
        slots.add([(1, 2)])
        with pytest.raises(SlotFull):
            world.holds(slots, on_change=None).create(1, 5)

        with closing(sqlite3.connect(path, timeout=0)) as other:
            other.execute("UPDATE slots SET remaining = remaining")


class TestSweeping:
    def test_due_holds_without_a_slot_do_not_stand_in_the_way_of_others(
        self, world: World, tmp_path: Path
    ) -> None:
        """SQLite keeps no foreign keys unless it is asked to."""
        clock = ManualClock()
        with opened("given", tmp_path, clock=clock, world=world) as slots:
            slots.add([(1, 4), (2, 4)])
            holds = world.holds(slots, on_change=None)
            holds.create(1, ttl=10)
            clock.advance(1)
            holds.create(2, ttl=10)
            clock.advance(20)
            with slots.engine.begin() as connection:
                connection.exec_driver_sql("DELETE FROM slots WHERE slot_id = 1")

            for _ in range(2):
                holds.expire_due(limit=1)

            assert query(slots, "SELECT state FROM slot_holds WHERE slot_id = 2") == [("expired",)]

    def test_an_interrupt_in_the_hook_of_one_scope_does_not_keep_it_from_the_others(
        self, world: World, tmp_path: Path
    ) -> None:
        told: list[Any] = []

        def hook(scope: Any) -> None:
            told.append(scope)
            if len(told) == 1:
                raise world.interrupt

        clock = ManualClock()
        with opened("file", tmp_path, clock=clock, world=world) as slots:
            scopes = ["a", "b", "c"]
            for slot_id, scope in enumerate(scopes):
                slots.add([(slot_id, 4)], scope=scope)
                world.holds(slots, on_change=None).create(slot_id, ttl=10)
            clock.advance(20)

            with pytest.raises(world.interrupt):
                world.holds(slots, on_change=hook).expire_due()

            assert sorted(told) == scopes

    def test_a_purge_ends_though_a_trigger_keeps_every_row(
        self, world: World, tmp_path: Path
    ) -> None:
        clock = ManualClock()
        with opened("given", tmp_path, clock=clock, world=world) as slots:
            slots.add([(1, 4)])
            holds = world.holds(slots, on_change=None)
            holds.cancel(holds.create(1).id)
            clock.advance(1)
            with slots.engine.begin() as connection:
                connection.exec_driver_sql(
                    "CREATE TRIGGER keeps BEFORE DELETE ON slot_holds"
                    " BEGIN SELECT RAISE(IGNORE); END"
                )
            sa.event.listen(
                inner_engine(slots), "before_cursor_execute", Fuse(50, raising(AssertionError))
            )

            holds.purge(0)

            assert len(holds.find()) == 1


@pytest.mark.parametrize(
    ("kind", "world"),
    [
        *((kind, "blocking") for kind in KINDS),
        *((kind, "asyncio") for kind in ("file", *ON_SERVERS)),
    ],
    indirect=["world"],
)
def test_somebody_may_wait_for_months(world: World, kind: str, place_of: PlaceOf) -> None:
    with opened(kind, place_of(kind), world=world) as slots:
        slots.add([(1, 4)])
        holds = world.holds(slots, on_change=None, policy=HoldPolicy(lock_wait=1e7))

        hold = holds.create(1)

        assert holds.confirm(holds.get(hold.id).id).state is HoldState.CONFIRMED
