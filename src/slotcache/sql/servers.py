"""PostgreSQL, and MariaDB or MySQL: their waits, their errors, their time, their words.

Both are used in READ COMMITTED, whatever the engine's default: each statement then sees what
was committed before it began, so also what was committed while the one before it waited.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.exc import DBAPIError

from slotcache.errors import Busy
from slotcache.policy import HoldPolicy
from slotcache.protocols import Clock
from slotcache.sql.columns import MYSQL, Instant
from slotcache.sql.database import AUTOCOMMIT, Database

__all__ = ["Mysql", "Postgres", "Turn"]

_CREATING = "slotcache: create_tables"
_PATIENCE = "innodb_lock_wait_timeout", "lock_wait_timeout"
"""For rows, and for tables that somebody alters."""
_PATIENCE_AS_BEFORE = "SET " + ", ".join(
    f"SESSION {name} = @slotcache_{name}" for name in _PATIENCE
)
_LONGEST_WAIT = 365 * 24 * 60 * 60  # of MariaDB's settings, in seconds
_LOST = ("08", "57", "58", "XX")
"""The classes of PostgreSQL's SQLSTATE after which nobody knows: the connection, the server, its
disk, or its wits are lost."""


@dataclass(slots=True)
class Turn:
    """A connection whose session has been told how long to wait for locks.

    Attributes:
        connection: The connection.
        patience_before: How long it would have waited; None: it does so (again).
    """

    connection: sa.Connection
    patience_before: str | None = None


class _Server(Database):
    """What the two have in common."""

    skips_locked = True

    _session_for_lists: ClassVar[Sequence[str]]
    """Set up a session that reads what is committed, and waits for who alters a table as long as
    for a slot."""

    @contextmanager
    def writing(self, lock_wait: float) -> Iterator[sa.Connection]:
        """Lend a connection in a transaction, which is rolled back unless the borrower commits."""
        with (
            self._translated(lock_wait),
            self._transaction(self._engine.connect(), lock_wait) as connection,
        ):
            yield connection

    def reading(self, lock_wait: float) -> AbstractContextManager[sa.Connection]:
        """Lend a connection to read from: it waits for no row, but for who alters a table."""
        return self.writing(lock_wait)

    def list_engine(self) -> sa.Engine:
        """Return an engine for one more connection, set up once for reading without locks."""
        engine = super().list_engine()

        def configure(driver: Any, _record: object) -> None:
            cursor = driver.cursor()
            for statement in self._session_for_lists:
                cursor.execute(statement)
            cursor.close()
            driver.commit()
            self._configure(driver)

        sa.event.listen(engine, "connect", configure)
        return engine

    def _configure(self, driver: Any) -> None:
        """Set up what else a connection for lists needs."""

    def close(self) -> None:
        """Nothing is its own."""

    def close_if_free(self) -> None:
        """Nothing is its own."""

    @abstractmethod
    def _transaction(
        self, connection: sa.Connection, lock_wait: float
    ) -> AbstractContextManager[sa.Connection]:
        """Begin a transaction that waits so long for each lock; leave no trace in the session."""


class Postgres(_Server):
    """PostgreSQL."""

    dialects = ("postgresql",)
    joins_lateral = True

    _session_for_lists = (
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
        f"SET lock_timeout = {round(HoldPolicy().lock_wait * 1000)}",
    )

    # Of the statement; the same for `SELECT` and its sub-queries, however often it is asked for.
    _moment = sa.select(sa.func.clock_timestamp(type_=Instant()).label("now")).cte(
        "slotcache_moment"
    )

    def __init__(self, engine: sa.Engine, *, clock: Clock | None) -> None:
        super().__init__(engine, clock=clock)
        numbered = engine.dialect.paramstyle == "numeric_dollar"  # asyncpg's
        given = "$1, $2" if numbered else "%s, %s"
        self._change_patience = (
            f"SELECT current_setting('lock_timeout'), set_config('lock_timeout', {given})"
        )

    def clock(self) -> sa.ColumnElement[Any] | None:
        """`now()` would be the start of the transaction, before it waited for its lock."""
        if self._clock is not None:
            return None
        return sa.select(self._moment.c.now).scalar_subquery()

    def is_spelled(
        self, column: sa.ColumnElement[Any], text: sa.ColumnElement[Any]
    ) -> sa.ColumnElement[bool]:
        """Collations may be loose, and the type `citext` is under any."""
        return sa.collate(sa.cast(column, sa.Text), "C") == text

    def insert_unless_there(self, table: sa.Table) -> sa.Insert:
        """An error would abort the whole transaction."""
        return postgresql.insert(table).on_conflict_do_nothing()

    @contextmanager
    def creating(self, lock_wait: float) -> Iterator[sa.Connection]:
        """CREATE ... IF NOT EXISTS alone fails if two do it at once."""
        with self.writing(lock_wait) as connection:
            lock = sa.func.pg_advisory_xact_lock(sa.func.hashtext(_CREATING))
            connection.execute(sa.select(lock))
            yield connection

    @contextmanager
    def at_once(self, lock_wait: float) -> Iterator[Turn]:
        """Lend a connection on which each statement is a transaction of its own.

        Its isolation is the engine's default. The wait for locks is set before the statement,
        since a table that somebody alters is waited for before any of it runs.
        """
        with self._translated(lock_wait):
            turn = Turn(self._engine.connect())

            def put_back() -> None:
                if turn.patience_before is not None:
                    self._set_patience(turn.connection, turn.patience_before)

            with self._lent(turn.connection, put_back=put_back):
                # Not of the engine: cancelled in `connect`, nobody would give the connection back.
                turn.connection.execution_options(isolation_level="AUTOCOMMIT")
                patience = self._milliseconds(lock_wait)
                turn.patience_before = self._set_patience(turn.connection, patience)
                yield turn

    @contextmanager
    def _patient_in(self, connection: sa.Connection, lock_wait: float) -> Iterator[None]:
        # asyncpg's itself has no such attribute, only what SQLAlchemy makes of it.
        drivers = connection.connection.driver_connection, connection.connection.dbapi_connection
        if any(getattr(driver, "autocommit", False) is True for driver in drivers):
            raise ValueError(AUTOCOMMIT)
        before = self._set_patience(connection, self._milliseconds(lock_wait), local=True)
        try:
            yield
        finally:
            # Else it is put back with the transaction.
            with suppress(DBAPIError):
                if not connection.invalidated:
                    self._set_patience(connection, before, local=True)

    def put_patience_back(self, before: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
        """What a statement does that puts it back by itself, if it comes to that."""
        return sa.func.set_config("lock_timeout", before, False)

    def _set_patience(self, connection: sa.Connection, value: str, *, local: bool = False) -> str:
        """Set it for the session, or for the transaction alone; return what it was."""
        before: str = connection.exec_driver_sql(self._change_patience, (value, local)).one()[0]
        return before

    def _configure(self, driver: Any) -> None:
        # One statement is a transaction then: no BEGIN and no ROLLBACK are waited for.
        self._engine.dialect.set_isolation_level(driver, "AUTOCOMMIT")

    @contextmanager
    def _transaction(self, connection: sa.Connection, lock_wait: float) -> Iterator[sa.Connection]:
        with self._lent(connection):
            connection.execution_options(isolation_level="READ COMMITTED")
            patience = self._milliseconds(lock_wait)
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {patience}")
            yield connection

    def _milliseconds(self, seconds: float) -> str:
        return str(min(max(1, round(seconds * 1000)), 2**31 - 1))

    def _is_busy(self, error: DBAPIError) -> bool:
        return _sqlstate(error) == "55P03"  # lock_not_available

    def _was_overtaken(self, error: DBAPIError) -> bool:
        return _sqlstate(error) in ("40001", "40P01")  # serialization_failure, deadlock_detected

    def _says_no(self, error: DBAPIError) -> bool:
        return self.answered_no(error)

    def _lacks_a_table(self, error: DBAPIError) -> bool:
        return _sqlstate(error) == "42P01"  # undefined_table

    def answered_no(self, error: BaseException | None) -> bool:
        """Whether the server has said that it did not do what it was told."""
        if not isinstance(error, DBAPIError) or error.connection_invalidated:
            return False
        state = _sqlstate(error)  # 40003 says that it does not know
        return bool(state) and state != "40003" and state[:2] not in _LOST

    def has_forgotten(self, error: BaseException | None) -> bool:
        """Whether this connection's plans are of tables that have changed since."""
        return isinstance(error, DBAPIError) and _sqlstate(error) == "0A000"


class Mysql(_Server):
    """MariaDB 10.6 or later, and MySQL 8 (not tested)."""

    dialects = MYSQL
    reads_snapshots = True

    _OVERTAKEN: ClassVar = {1020, 1213}  # ER_CHECKREAD, ER_LOCK_DEADLOCK

    _session_for_lists = (
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        f"SET SESSION lock_wait_timeout = {math.ceil(HoldPolicy().lock_wait)}",
    )

    def clock(self) -> sa.ColumnElement[Any] | None:
        """The start of the statement, which comes after the lock."""
        if self._clock is not None:
            return None
        return sa.literal_column("UTC_TIMESTAMP(6)", Instant())

    def is_spelled(
        self, column: sa.ColumnElement[Any], text: sa.ColumnElement[Any]
    ) -> sa.ColumnElement[bool]:
        """As bytes: also a binary collation takes "a" and "a " for the same."""
        in_utf8 = (sa.cast(each, mysql.CHAR(charset="utf8mb4")) for each in (column, text))
        one, other = (sa.cast(each, mysql.BINARY()) for each in in_utf8)
        return one == other

    def insert_unless_there(self, table: sa.Table) -> sa.Insert:
        """IGNORE forgives more than that, all of which has been checked before."""
        return sa.insert(table).prefix_with("IGNORE")

    @contextmanager
    def creating(self, lock_wait: float) -> Iterator[sa.Connection]:
        """A named lock: a statement that creates anything commits by itself."""
        with self.writing(lock_wait) as connection:
            lock = sa.func.get_lock(_CREATING, math.ceil(lock_wait))
            if not connection.scalar(sa.select(lock)):
                raise Busy(waited=lock_wait)
            try:
                yield connection
            finally:
                # Else it is released with the connection.
                with suppress(DBAPIError):
                    if not connection.invalidated:
                        connection.execute(sa.select(sa.func.release_lock(_CREATING)))

    @contextmanager
    def _transaction(self, connection: sa.Connection, lock_wait: float) -> Iterator[sa.Connection]:
        def put_back() -> None:
            # By hand: where each statement is a transaction, SQLAlchemy may leave that out.
            connection.exec_driver_sql("ROLLBACK")
            connection.exec_driver_sql(_PATIENCE_AS_BEFORE)

        with self._lent(connection, put_back=put_back):
            connection.exec_driver_sql(_less_patience(lock_wait))
            # Of the next transaction alone, which is begun even where each statement would be one.
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            connection.exec_driver_sql("START TRANSACTION")
            yield connection

    @contextmanager
    def _patient_in(self, connection: sa.Connection, lock_wait: float) -> Iterator[None]:
        if connection.exec_driver_sql("SELECT @@SESSION.autocommit").scalar_one():
            raise ValueError(AUTOCOMMIT)
        try:
            connection.exec_driver_sql(_less_patience(lock_wait))
            yield
        finally:
            if not connection.invalidated:
                try:
                    connection.exec_driver_sql(_PATIENCE_AS_BEFORE)
                except DBAPIError:
                    connection.invalidate()

    def _is_busy(self, error: DBAPIError) -> bool:
        return _errno(error) == 1205  # ER_LOCK_WAIT_TIMEOUT

    def _was_overtaken(self, error: DBAPIError) -> bool:
        return _errno(error) in self._OVERTAKEN

    def _says_no(self, error: DBAPIError) -> bool:
        return self._is_busy(error) or self._was_overtaken(error)

    def _lacks_a_table(self, error: DBAPIError) -> bool:
        return _errno(error) == 1146  # ER_NO_SUCH_TABLE


def _less_patience(lock_wait: float) -> str:
    """Have a session of MariaDB wait so long for locks, in whole seconds."""
    seconds = min(math.ceil(lock_wait), _LONGEST_WAIT)
    keep = [f"@slotcache_{name} = @@SESSION.{name}" for name in _PATIENCE]
    shorten = [f"SESSION {name} = {seconds}" for name in _PATIENCE]
    return f"SET {', '.join(keep + shorten)}"


def _sqlstate(error: DBAPIError) -> str:
    """Drivers of PostgreSQL have it under one of two names."""
    found = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return str(found or "")


def _errno(error: DBAPIError) -> int:
    arguments = getattr(error.orig, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else 0
