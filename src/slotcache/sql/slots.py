"""`SqlSlots`: a table of slots, as services and managers use it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from slotcache.arguments import check_storable
from slotcache.availability import Scope, SlotId, refused_scope
from slotcache.hook import Hook
from slotcache.ledger import AsyncHoldTable, AwaitedTable, Change, HoldRequest, Ledger
from slotcache.lifecycle import Hold
from slotcache.policy import HoldPolicy
from slotcache.protocols import Clock, Loaded
from slotcache.sql.claims import CLAIMS
from slotcache.sql.columns import MYSQL
from slotcache.sql.database import Database, TryAgain
from slotcache.sql.engines import engine_in_memory, engine_on
from slotcache.sql.extension import AsyncEngine, check_installed
from slotcache.sql.joined import JoinedSlots
from slotcache.sql.ledger import SqlLedger
from slotcache.sql.mixin import HoldMixin, map_holds
from slotcache.sql.reader import ListReader
from slotcache.sql.rows import SlotRow, rows_to_insert
from slotcache.sql.servers import Mysql, Postgres
from slotcache.sql.shipped import create_missing, ddl_of
from slotcache.sql.shortcut import Shortcut
from slotcache.sql.sqlite import Sqlite
from slotcache.sql.statements import Statements
from slotcache.sql.tables import (
    ColumnNames,
    SlotColumns,
    holds_of,
    keys_of,
    map_slots,
    shipped_slots,
)
from slotcache.sql.waits import in_greenlet

__all__ = ["AsyncSqlSlots", "SqlSlots"]

T = TypeVar("T")

_LOT = 1_000
_TRIES = 5


class SqlSlots:
    """A table of slots and the holds on it: a `SlotRepository`, and what a `HoldManager` needs.

    Make one for each table when the application starts, and use it from all threads. It reads
    lists on one connection of its own; everything else uses the engine's pool. Its transactions
    are READ COMMITTED, whatever the engine's default.

    Args:
        engine: A SQLAlchemy engine on PostgreSQL, MariaDB (10.6 or later), MySQL 8 (not tested)
            or a SQLite file. It is not changed, and never closed.
        slots: Your table or mapped class; None: the shipped table `slots`.
        holds: Your class of holds, made with `HoldMixin`; None: the shipped tables `slot_holds` and
            `slot_hold_keys`, in the schema of the slots.
        columns: Our names (`slot_id`, `capacity`, `remaining`, `scope`) to yours: names,
            columns or mapped attributes. What is missing is called as here; a table without a
            scope column has one list.
        where: A condition on the slots (open, not deleted, not past) that the list and
            `HoldManager.create` obey. A plain value in it stays what it is now: for the time
            write `bindparam("at", callable_=now)`, which asks `now` at each statement.
        claim: What `remaining` is. "counted": the places that are not sold; live holds are
            counted, and one that expires gives its places back without a write. "on_hold": the
            places that are neither sold nor on hold, for code of yours that reads the column; a
            hold that expires gives its places back when somebody notices. All who use a table
            have to say the same.
        id_type: The type of the ids of the shipped table: int, str or UUID. A table of yours
            has its own.
        clock: The time for tests, read as Unix seconds; None: the database's clock.

    Raises:
        TypeError: A column holds a type that ids or scopes cannot have; or `holds` is no class
            made with `HoldMixin`, or one for ids of another type.
        ValueError: A column is missing; `holds` references other slots; there is no such claim;
            or nothing can be promised on that engine.

    Examples:
        >>> from slotcache.sql import SqlSlots
        >>> with SqlSlots.sqlite(":memory:") as slots:
        ...     slots.create_tables()
        ...     slots.add([(1, 30), (2, 30, 12)])
        ...     slots.load(None).availability
        Availability(1: 30/30, 2: 12/30)
    """

    _ledger: type[SqlLedger] = SqlLedger
    _shortcuts: type[Shortcut] = Shortcut
    _new_id: Callable[[], UUID] = staticmethod(uuid4)
    _on_asyncio = False

    def __init__(
        self,
        engine: sa.Engine,
        *,
        slots: sa.Table | type[Any] | None = None,
        holds: type[HoldMixin] | None = None,
        columns: ColumnNames | None = None,
        where: sa.ColumnExpressionArgument[bool] | None = None,
        claim: str = "counted",
        id_type: type[SlotId] = int,
        clock: Clock | None = None,
    ) -> None:
        if claim not in tuple(CLAIMS):
            raise ValueError(f"claim must be {' or '.join(map(repr, CLAIMS))}, not {claim!r}")
        self._engine = engine
        self._claim = CLAIMS[claim]
        self._database = _database_of(engine, on_asyncio=self._on_asyncio)(engine, clock=clock)
        table = shipped_slots(id_type) if slots is None else slots
        self._slots = map_slots(table, columns, where)
        self._shipped = [] if slots is not None else [self._slots.table]
        if holds is None:
            self._holds = holds_of(self._slots)
            keys = keys_of(self._holds)
            self._shipped += [self._holds, keys]
        else:
            self._holds, keys = map_holds(holds, self._slots)
        statements = partial(
            Statements, self._slots, self._holds, keys, claim=self._claim, database=self._database
        )
        self._statements = statements()
        self._statements_anywhere = (
            statements(locks_what_it_reads=True)
            if self._database.reads_snapshots
            else self._statements
        )
        self._shortcut = self._shortcut_on(self._database)
        self._lists = ListReader(self._database, self._statements)
        # For tests and scripts, which close nothing. Not at exit, where a load may be running.
        weakref.finalize(self, _close_if_free, self._lists, self._database).atexit = False

    @classmethod
    def sqlite(
        cls,
        path: str | Path,
        *,
        slots: sa.Table | type[Any] | None = None,
        holds: type[HoldMixin] | None = None,
        columns: ColumnNames | None = None,
        where: sa.ColumnExpressionArgument[bool] | None = None,
        claim: str = "counted",
        id_type: type[SlotId] = int,
        clock: Clock | None = None,
    ) -> Self:
        """Return slots in a SQLite file, on an engine made for them; `close` closes it.

        Its transactions are durable when they return (WAL, `synchronous=FULL`) and lose no
        update (`BEGIN IMMEDIATE`), yours on `engine` too.

        Args:
            path: The file, made when it is first used. ":memory:" is a new database in memory,
                which all threads of this process share and which ends with `close`.
            slots: As for the class; the other arguments too.
            holds: As for the class.
            columns: As for the class.
            where: As for the class.
            claim: As for the class.
            id_type: As for the class.
            clock: As for the class.
        """
        if "://" in str(path) or str(path).startswith("file:"):
            raise ValueError("path is a file, not a URL: write SqlSlots(create_engine(url))")
        keeper = None
        if path == ":memory:":
            engine, keeper = engine_in_memory(on_asyncio=cls._on_asyncio)
        else:
            engine = engine_on(path, on_asyncio=cls._on_asyncio)
        try:
            made = cls(
                engine,
                slots=slots,
                holds=holds,
                columns=columns,
                where=where,
                claim=claim,
                id_type=id_type,
                clock=clock,
            )
        except BaseException:
            if keeper is not None:
                keeper.close()
            raise
        assert isinstance(made._database, Sqlite)
        made._database.own(keeper)
        return made

    @property
    def engine(self) -> sa.Engine:
        """The engine that it was given, or made.

        Lists are read on an engine of their own: a listener on this one does not see them, one
        on the class `sqlalchemy.Engine` does.
        """
        return self._engine

    @property
    def id_type(self) -> type[SlotId]:
        """The type of its slot ids."""
        return self._slots.id_type

    @property
    def scope_type(self) -> type[Scope] | None:
        """The type of its scopes; None: it has none, and there is one list."""
        return self._slots.scope_type

    def create_tables(self) -> None:
        """Create the shipped tables that do not exist yet; a table of yours is left to you.

        Any number of processes may do it at once. If both slots and holds are yours, it does
        nothing.

        Raises:
            ValueError: There is a table of such a name already that is not slotcache's, or of an
                older slotcache, or whose holds are of other slots. Nothing was created; the
                message says what to do.
            Busy: Others wrote to the database, or created tables, for too long.
            BackendError: The database failed.
        """
        if not self._shipped:
            return

        def once() -> None:
            with self._database.creating(HoldPolicy().lock_wait) as connection:
                create_missing(connection, self._shipped)
                self._database.commit(connection, (), [])

        _tried_again(once)

    def ddl(self) -> str:
        """Return the SQL that makes the shipped tables, for a migration tool of your own.

        A table of yours is left to you: if both slots and holds are, there is no text.
        """
        return ddl_of(self._shipped, self._engine)

    def add(self, rows: Iterable[SlotRow], *, scope: Scope | None = None) -> None:
        """Insert slots, all or none. No cached list is cleared by it.

        In a table of yours, the other columns get their defaults; where that will not do, insert
        the rows yourself.

        Args:
            rows: (slot_id, capacity) or (slot_id, capacity, remaining) each.
            scope: The scope of all of them; None: they are in the whole table's list alone, or in
                the scope that the table generates.

        Raises:
            TypeError: A row or the scope is not of the types of the table.
            ValueError: A row cannot be true, or its slot exists already; the message names it. Or
                the table generates its scopes, and one was given.
            Busy: Others wrote to the database for too long.
            BackendError: The database failed.
        """
        self._check_scope(scope)
        inserted = rows_to_insert(self._slots, rows, scope)
        if not inserted:
            return

        def once() -> None:
            with self._database.writing(HoldPolicy().lock_wait) as connection:
                try:
                    connection.execute(sa.insert(self._slots.table), inserted)
                except IntegrityError:
                    connection.rollback()
                    self._refuse_existing(connection, inserted)
                    raise
                self._database.commit(connection, (), [])

        _tried_again(once)

    def load(self, scope: Scope | None = None) -> Loaded:
        """Read the list of one scope, or of the whole table, as last committed.

        Each call is one statement in a transaction of its own, on a connection of its own. What
        it costs depends on that list alone.

        Returns:
            The slots in the order of their ids, each with what is neither sold nor promised,
            and the seconds until the first of their live holds ends.

        Raises:
            TypeError: The scope is not of the type that the table's scopes have.
            ValueError: The table has no scopes, or spells this one differently; or a row cannot
                be true.
            sqlalchemy.exc.DBAPIError: What the database raised, unchanged; also when somebody
                altered the tables for more than three seconds.
        """
        self._check_scope(scope)
        return self._lists.load(scope)

    def close(self) -> None:
        """Close the connections that it opened; an engine that it was given stays open."""
        self._lists.close()
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _within(self, transaction: object, hook: Hook) -> JoinedSlots:
        return JoinedSlots(
            transaction,
            self._slots,
            database=self._database,
            ledger_on=partial(self._ledger_on, in_transaction_of_users=True),
            hook=hook,
        )

    def _read(self, work: Callable[[Ledger], T], *, lock_wait: float) -> T:
        def once() -> T:
            with self._database.reading(lock_wait) as connection:
                return work(self._ledger_on(connection))

        return _tried_again(once)

    def _transact(
        self,
        work: Callable[[Ledger], Change[T]],
        changed: list[Scope | None],
        *,
        lock_wait: float,
    ) -> T:
        def once() -> T:
            with self._database.writing(lock_wait) as connection:
                change = work(self._ledger_on(connection))
                if change.scopes is not None:
                    self._database.commit(connection, change.scopes, changed)
                return change.value

        return _tried_again(once)

    def _create(
        self, request: HoldRequest, changed: list[Scope | None], *, lock_wait: float
    ) -> tuple[Hold, ...]:
        if self._shortcut is not None:
            hold = self._shortcut.create(request, changed, lock_wait=lock_wait)
            if hold is not None:
                return (hold,)
        return self._transact(lambda ledger: ledger.create(request), changed, lock_wait=lock_wait)

    def _shortcut_on(self, database: Database) -> Shortcut | None:
        if not isinstance(database, Postgres) or not self._slots.where_is_simple:
            return None
        if self._ledger is not SqlLedger:  # a broken twin of the tests is to see every hold
            return None
        return self._shortcuts(
            database,
            self._slots,
            self._holds,
            self._statements,
            claim=self._claim,
            new_id=self._new_id,
        )

    def _ledger_on(
        self, connection: sa.Connection, *, in_transaction_of_users: bool = False
    ) -> SqlLedger:
        return self._ledger(
            connection,
            self._statements_anywhere if in_transaction_of_users else self._statements,
            claim=self._claim,
            skips_locked=self._database.skips_locked,
            is_alone=self._database.writes_alone and not in_transaction_of_users,
            now=self._database.now,
            new_id=self._new_id,
        )

    def _check_scope(self, scope: Scope | None) -> None:
        if scope is not None and type(scope) is not self.scope_type:
            raise refused_scope(scope, self.scope_type)
        if isinstance(scope, str):
            check_storable("scope", scope)

    def _refuse_existing(
        self, connection: sa.Connection, inserted: Sequence[Mapping[str, Any]]
    ) -> None:
        """Say which slot was there already, if that is why the insert failed."""
        key = self._slots.slot_id
        for start in range(0, len(inserted), _LOT):
            ids = [row[key.key] for row in inserted[start : start + _LOT]]
            existing = connection.scalar(sa.select(key).where(key.in_(ids)).limit(1))
            if existing is not None:
                raise ValueError(f"slot {existing!r} exists already: no slot was added")


class _InGreenlets(SqlSlots):
    """What an `AsyncSqlSlots` runs in greenlets."""

    _on_asyncio = True


class _AsyncTable(AwaitedTable):
    """A `HoldTable` that runs in greenlets."""

    async def _call(self, method: Callable[..., T], *args: Any, **options: Any) -> T:
        return await in_greenlet(method, *args, **options)

    def _within(self, transaction: object, hook: Hook) -> AsyncHoldTable:
        return _AsyncTable(self._table._within(transaction, hook))

    def _here(self) -> AsyncHoldTable:
        if isinstance(self._table, JoinedSlots):
            return _AsyncTable(self._table.of_this_task())
        return self


class AsyncSqlSlots(_AsyncTable):
    """`SqlSlots` on asyncio: an `AsyncSlotRepository`, and what an `AsyncHoldManager` needs.

    It is the same code on the same tables, through SQLAlchemy's asyncio extension: psycopg, asyncmy
    and aiosqlite are tested. Make one for each table when the application starts, and use it from
    all tasks of one event loop. Whether another loop may follow depends on your engine: dispose of
    it at the end of the first. The connections that are made here follow by themselves.

    Args:
        engine: An `AsyncEngine` on such a database. It is not changed, and never closed.
        slots: As for `SqlSlots`.
        holds: As for `SqlSlots`.
        columns: As for `SqlSlots`.
        where: As for `SqlSlots`.
        claim: As for `SqlSlots`.
        id_type: As for `SqlSlots`.
        clock: As for `SqlSlots`.

    Raises:
        TypeError: As for `SqlSlots`.
        ValueError: As for `SqlSlots`.

    Examples:
        >>> import asyncio
        >>> from slotcache.sql import AsyncSqlSlots
        >>> async def main():
        ...     async with AsyncSqlSlots.sqlite(":memory:") as slots:
        ...         await slots.create_tables()
        ...         await slots.add([(1, 30), (2, 30, 12)])
        ...         return (await slots.load(None)).availability
        >>> asyncio.run(main())
        Availability(1: 30/30, 2: 12/30)
    """

    _kind: type[SqlSlots] = _InGreenlets
    _table: SqlSlots

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        slots: sa.Table | type[Any] | None = None,
        holds: type[HoldMixin] | None = None,
        columns: ColumnNames | None = None,
        where: sa.ColumnExpressionArgument[bool] | None = None,
        claim: str = "counted",
        id_type: type[SlotId] = int,
        clock: Clock | None = None,
    ) -> None:
        check_installed()
        if not isinstance(engine, AsyncEngine):
            hint = "; with an Engine use SqlSlots" if isinstance(engine, sa.Engine) else ""
            raise TypeError(
                f"engine must be an AsyncEngine, not {engine!r}: write "
                f"create_async_engine(url){hint}"
            )
        self._engine = engine
        self._table = self._kind(
            engine.sync_engine,
            slots=slots,
            holds=holds,
            columns=columns,
            where=where,
            claim=claim,
            id_type=id_type,
            clock=clock,
        )

    @classmethod
    def sqlite(
        cls,
        path: str | Path,
        *,
        slots: sa.Table | type[Any] | None = None,
        holds: type[HoldMixin] | None = None,
        columns: ColumnNames | None = None,
        where: sa.ColumnExpressionArgument[bool] | None = None,
        claim: str = "counted",
        id_type: type[SlotId] = int,
        clock: Clock | None = None,
    ) -> Self:
        """As `SqlSlots.sqlite`, through aiosqlite."""
        made = cls.__new__(cls)
        made._table = cls._kind.sqlite(
            path,
            slots=slots,
            holds=holds,
            columns=columns,
            where=where,
            claim=claim,
            id_type=id_type,
            clock=clock,
        )
        made._engine = AsyncEngine(made._table.engine)
        return made

    @property
    def engine(self) -> AsyncEngine:
        """As `SqlSlots.engine`."""
        return self._engine

    @property
    def id_type(self) -> type[SlotId]:
        """As `SqlSlots.id_type`."""
        return self._table.id_type

    @property
    def scope_type(self) -> type[Scope] | None:
        """As `SqlSlots.scope_type`."""
        return self._table.scope_type

    async def create_tables(self) -> None:
        """As `SqlSlots.create_tables`."""
        await in_greenlet(self._table.create_tables)

    def ddl(self) -> str:
        """As `SqlSlots.ddl`."""
        return self._table.ddl()

    async def add(self, rows: Iterable[SlotRow], *, scope: Scope | None = None) -> None:
        """As `SqlSlots.add`."""
        await in_greenlet(self._table.add, rows, scope=scope)

    async def load(self, scope: Scope | None = None) -> Loaded:
        """As `SqlSlots.load`."""
        return await in_greenlet(self._table.load, scope)

    async def close(self) -> None:
        """As `SqlSlots.close`."""
        await in_greenlet(self._table.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def _slots(self) -> SlotColumns:
        return self._table._slots


def _database_of(engine: object, *, on_asyncio: bool) -> type[Database]:
    if isinstance(engine, AsyncEngine):
        raise TypeError(f"engine: {engine!r} is for asyncio: use AsyncSqlSlots")
    if not isinstance(engine, sa.Engine):
        raise TypeError(
            f"engine must be a sqlalchemy.Engine, not {engine!r}: write create_engine(url)"
        )
    if engine.dialect.is_async is not on_asyncio:
        raise TypeError(
            f"engine: the driver {engine.dialect.driver} is for asyncio: use AsyncSqlSlots on "
            "create_async_engine(url), or a driver that blocks"
        )
    name = engine.dialect.name
    kinds: Mapping[str, type[Database]] = {
        "sqlite": Sqlite,
        "postgresql": Postgres,
        **dict.fromkeys(MYSQL, Mysql),
    }
    if name not in kinds:
        raise ValueError(f"slotcache runs on {', '.join(kinds)}, not on {name}")
    return kinds[name]


def _tried_again(once: Callable[[], T]) -> T:
    """Do it, and again if others made the database give it up: its locks are in order by then."""
    for _ in range(_TRIES - 1):
        with suppress(TryAgain):
            return once()
    try:
        return once()
    except TryAgain as last:
        raise last.otherwise from last.__cause__


def _close_if_free(lists: ListReader, database: Database) -> None:
    lists.close_if_free()
    database.close_if_free()
