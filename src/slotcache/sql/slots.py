"""`SqlSlots`: a table of slots, as services and managers use it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateIndex, CreateTable

from slotcache.availability import Scope, SlotId, refused_scope
from slotcache.holds import Change, Ledger
from slotcache.policy import HoldPolicy
from slotcache.protocols import Clock, Loaded
from slotcache.sql.engines import engine_in_memory, engine_on
from slotcache.sql.ledger import SqlLedger
from slotcache.sql.reader import ListReader
from slotcache.sql.rows import SlotRow, rows_to_insert
from slotcache.sql.sqlite import Sqlite
from slotcache.sql.statements import Statements
from slotcache.sql.tables import ColumnNames, holds_of, map_slots, shipped_slots

__all__ = ["SqlSlots"]

T = TypeVar("T")

_LOT = 1_000


class SqlSlots:
    """A table of slots and the holds on it: a `SlotRepository`, and what a `HoldManager` needs.

    Make one for each table when the application starts, and use it from all threads. It reads
    lists on one connection of its own; everything else uses the engine's pool.

    Args:
        engine: A SQLAlchemy engine on a SQLite file. It is not changed, and never closed.
        slots: Your table or mapped class; None: the shipped table `slots`.
        columns: Our names (`slot_id`, `capacity`, `remaining`, `scope`) to yours: names,
            columns or mapped attributes. What is missing is called as here; a table without a
            scope column has one list.
        where: A condition on the slots (open, not deleted, not past) that the list and
            `HoldManager.create` obey. A plain value in it stays what it is now: for the time
            write `bindparam("at", callable_=now)`, which asks `now` at each statement.
        id_type: The type of the ids of the shipped table: int, str or UUID. A table of yours
            has its own.
        clock: The time for tests, read as Unix seconds; None: the database's clock.

    Raises:
        TypeError: A column holds a type that ids or scopes cannot have.
        ValueError: A column is missing; or nothing can be promised on that engine.

    Examples:
        >>> from slotcache.sql import SqlSlots
        >>> with SqlSlots.sqlite(":memory:") as slots:
        ...     slots.create_tables()
        ...     slots.add([(1, 30), (2, 30, 12)])
        ...     slots.load(None).availability
        Availability(1: 30/30, 2: 12/30)
    """

    _ledger: type[SqlLedger] = SqlLedger
    _new_id: Callable[[], UUID] = staticmethod(uuid4)

    def __init__(
        self,
        engine: sa.Engine,
        *,
        slots: sa.Table | type[Any] | None = None,
        columns: ColumnNames | None = None,
        where: sa.ColumnExpressionArgument[bool] | None = None,
        id_type: type[SlotId] = int,
        clock: Clock | None = None,
    ) -> None:
        self._engine = engine
        self._database = Sqlite(engine, clock=clock)
        table = shipped_slots(id_type) if slots is None else slots
        self._slots = map_slots(table, columns, where)
        self._holds = holds_of(self._slots)
        self._shipped = [self._slots.table, self._holds] if slots is None else [self._holds]
        self._statements = Statements(
            self._slots, self._holds, exact_collation=self._database.exact_collation
        )
        self._lists = ListReader(engine, self._statements, now=self._database.now)
        # For tests and scripts, which close nothing. Not at exit, where a load may be running.
        weakref.finalize(self, _close_if_free, self._lists, self._database).atexit = False

    @classmethod
    def sqlite(
        cls,
        path: str | Path,
        *,
        slots: sa.Table | type[Any] | None = None,
        columns: ColumnNames | None = None,
        where: sa.ColumnExpressionArgument[bool] | None = None,
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
            columns: As for the class.
            where: As for the class.
            id_type: As for the class.
            clock: As for the class.
        """
        engine, keeper = engine_in_memory() if path == ":memory:" else (engine_on(path), None)
        try:
            made = cls(
                engine, slots=slots, columns=columns, where=where, id_type=id_type, clock=clock
            )
        except BaseException:
            if keeper is not None:
                keeper.close()
            raise
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

        Raises:
            Busy: Others wrote to the database for too long.
            BackendError: The database failed.
        """
        with self._database.writing(HoldPolicy().lock_wait) as connection:
            for table in self._shipped:
                connection.execute(CreateTable(table, if_not_exists=True))
                for index in _indexes(table):
                    connection.execute(CreateIndex(index, if_not_exists=True))
            connection.commit()

    def ddl(self) -> str:
        """Return the SQL that makes the shipped tables, for a migration tool of your own."""
        statements: list[sa.ExecutableDDLElement] = []
        for table in self._shipped:
            statements += [CreateTable(table), *map(CreateIndex, _indexes(table))]
        dialect = self._engine.dialect
        return "".join(f"{str(each.compile(dialect=dialect)).strip()};\n\n" for each in statements)

    def add(self, rows: Iterable[SlotRow], *, scope: Scope | None = None) -> None:
        """Insert slots, all or none. No cached list is cleared by it.

        In a table of yours, the other columns get their defaults; where that will not do, insert
        the rows yourself.

        Args:
            rows: (slot_id, capacity) or (slot_id, capacity, remaining) each.
            scope: The scope of all of them; None: they are in the whole table's list alone.

        Raises:
            TypeError: A row or the scope is not of the types of the table.
            ValueError: A row cannot be true, or its slot exists already; the message names it.
            Busy: Others wrote to the database for too long.
            BackendError: The database failed.
        """
        self._check_scope(scope)
        inserted = rows_to_insert(self._slots, rows, scope)
        if not inserted:
            return
        with self._database.writing(HoldPolicy().lock_wait) as connection:
            try:
                connection.execute(sa.insert(self._slots.table), inserted)
            except IntegrityError:
                connection.rollback()
                self._refuse_existing(connection, inserted)
                raise
            connection.commit()

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
            sqlalchemy.exc.DBAPIError: What the database raised, unchanged.
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

    def _read(self, work: Callable[[Ledger], T], *, lock_wait: float) -> T:
        with self._database.reading(lock_wait) as connection:
            return work(self._ledger_on(connection))

    def _transact(
        self,
        work: Callable[[Ledger], Change[T]],
        changed: list[Scope | None],
        *,
        lock_wait: float,
    ) -> T:
        with self._database.writing(lock_wait) as connection:
            change = work(self._ledger_on(connection))
            if change.scopes:
                self._database.commit(connection, change.scopes, changed)
            return change.value

    def _ledger_on(self, connection: sa.Connection) -> SqlLedger:
        return self._ledger(
            connection, self._statements, now=self._database.now, new_id=self._new_id
        )

    def _check_scope(self, scope: Scope | None) -> None:
        if scope is not None and type(scope) is not self.scope_type:
            raise refused_scope(scope, self.scope_type)

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


def _indexes(table: sa.Table) -> list[sa.Index]:
    return sorted(table.indexes, key=lambda index: str(index.name))


def _close_if_free(lists: ListReader, database: Sqlite) -> None:
    lists.close_if_free()
    database.close_if_free()
