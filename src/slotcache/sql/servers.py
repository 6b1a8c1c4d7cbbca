"""PostgreSQL, and MariaDB or MySQL: their waits, their errors, their time, their words.

Both are used in READ COMMITTED, whatever the engine's default: each statement then sees what
was committed before it began, so also what was committed while the one before it waited.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.exc import DBAPIError

from slotcache.errors import Busy
from slotcache.protocols import Clock
from slotcache.sql.columns import Instant
from slotcache.sql.database import Database

__all__ = ["Mysql", "Postgres"]

_CREATING = "slotcache: create_tables"


@dataclass(slots=True)
class Turn:
    """A connection whose session has been told how long to wait for locks.

    Attributes:
        connection: The connection.
        patience_before: How long it would have waited.
        patience_is_back: Whether it does so again.
    """

    connection: sa.Connection
    patience_before: str
    patience_is_back: bool = False


class _Server(Database):
    """What the two have in common."""

    skips_locked = True

    _reads_in_session: ClassVar[str]
    """Sets the isolation of the transactions of a session."""

    @contextmanager
    def writing(self, lock_wait: float) -> Iterator[sa.Connection]:
        """Lend a connection in a transaction, which is rolled back unless the borrower commits."""
        with (
            self._translated(lock_wait),
            self._engine.connect() as connection,
            self._transaction(connection, lock_wait),
        ):
            yield connection

    @contextmanager
    def reading(self, lock_wait: float) -> Iterator[sa.Connection]:
        """Lend a connection to read from: no lock is waited for."""
        with self._translated(lock_wait), self._engine.connect() as connection:
            self._read_without_locks(connection)
            yield connection

    def list_engine(self) -> sa.Engine:
        """Return an engine for one more connection, set up once for reading without locks."""
        engine = super().list_engine()

        def configure(driver: Any, _record: object) -> None:
            cursor = driver.cursor()
            cursor.execute(self._reads_in_session)
            cursor.close()
            driver.commit()
            self._configure(driver)

        sa.event.listen(engine, "connect", configure)
        return engine

    def _read_without_locks(self, connection: sa.Connection) -> None:
        """See to it where it is not so by itself."""

    def _configure(self, driver: Any) -> None:
        """Set up what else a connection for lists needs."""

    def close(self) -> None:
        """Nothing is its own."""

    def close_if_free(self) -> None:
        """Nothing is its own."""

    @abstractmethod
    def _transaction(
        self, connection: sa.Connection, lock_wait: float
    ) -> AbstractContextManager[None]:
        """Begin a transaction that waits so long for each lock; leave no trace in the session."""


class Postgres(_Server):
    """PostgreSQL."""

    joins_lateral = True

    _reads_in_session = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED"

    # Of the statement; the same for `SELECT` and its sub-queries, however often it is asked for.
    _moment = sa.select(sa.func.clock_timestamp(type_=Instant()).label("now")).cte("moment")

    def __init__(self, engine: sa.Engine, *, clock: Clock | None) -> None:
        super().__init__(engine, clock=clock)
        self._at_once = engine.execution_options(isolation_level="AUTOCOMMIT")

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
        with self._translated(lock_wait), self._at_once.connect() as connection:
            turn = Turn(connection, self._set_patience(connection, self._milliseconds(lock_wait)))
            try:
                yield turn
            finally:
                # Tidying up must not make a change that is committed look failed.
                with suppress(DBAPIError):
                    if not (turn.patience_is_back or connection.invalidated):
                        self._set_patience(connection, turn.patience_before)

    def put_patience_back(self, before: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
        """What a statement does that puts it back by itself, if it comes to that."""
        return sa.func.set_config("lock_timeout", before, False)

    def _set_patience(self, connection: sa.Connection, value: str) -> str:
        """Set it for the session; return what it was."""
        change = "SELECT current_setting('lock_timeout'), set_config('lock_timeout', %s, false)"
        before: str = connection.exec_driver_sql(change, (value,)).one()[0]
        return before

    def _configure(self, driver: Any) -> None:
        # One statement is a transaction then: no BEGIN and no ROLLBACK are waited for.
        self._engine.dialect.set_isolation_level(driver, "AUTOCOMMIT")

    @contextmanager
    def _transaction(self, connection: sa.Connection, lock_wait: float) -> Iterator[None]:
        connection.execution_options(isolation_level="READ COMMITTED")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {self._milliseconds(lock_wait)}")
        yield

    def _milliseconds(self, seconds: float) -> str:
        return str(max(1, round(seconds * 1000)))

    def _is_busy(self, error: DBAPIError) -> bool:
        return _sqlstate(error) == "55P03"  # lock_not_available

    def _was_overtaken(self, error: DBAPIError) -> bool:
        return _sqlstate(error) in ("40001", "40P01")  # serialization_failure, deadlock_detected

    def _says_no(self, error: DBAPIError) -> bool:
        return _sqlstate(error)[:2] in ("23", "40")  # a constraint, or a rollback

    def _lacks_a_table(self, error: DBAPIError) -> bool:
        return _sqlstate(error) == "42P01"  # undefined_table


class Mysql(_Server):
    """MariaDB 10.6 or later, and MySQL 8 (not tested)."""

    _OVERTAKEN: ClassVar = {1020, 1213}  # ER_CHECKREAD, ER_LOCK_DEADLOCK

    _reads_in_session = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"

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

    def _read_without_locks(self, connection: sa.Connection) -> None:
        # A SELECT in a transaction that is SERIALIZABLE locks what it reads.
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")

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
                connection.execute(sa.select(sa.func.release_lock(_CREATING)))

    @contextmanager
    def _transaction(self, connection: sa.Connection, lock_wait: float) -> Iterator[None]:
        # Whole seconds only. The second one is for tables that somebody alters.
        names = "innodb_lock_wait_timeout", "lock_wait_timeout"
        keep = [f"@slotcache_{name} = @@SESSION.{name}" for name in names]
        shorten = [f"SESSION {name} = {math.ceil(lock_wait)}" for name in names]
        restore = [f"SESSION {name} = @slotcache_{name}" for name in names]
        connection.exec_driver_sql(f"SET {', '.join(keep + shorten)}")
        # Of the next transaction alone, which is begun even where each statement would be one.
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        connection.exec_driver_sql("START TRANSACTION")
        try:
            yield
        finally:
            # Tidying up must not make a change that is committed look failed.
            with suppress(DBAPIError):
                if not connection.invalidated:
                    connection.exec_driver_sql("ROLLBACK")
                    connection.exec_driver_sql(f"SET {', '.join(restore)}")

    def _is_busy(self, error: DBAPIError) -> bool:
        return _errno(error) == 1205  # ER_LOCK_WAIT_TIMEOUT

    def _was_overtaken(self, error: DBAPIError) -> bool:
        return _errno(error) in self._OVERTAKEN

    def _says_no(self, error: DBAPIError) -> bool:
        return _errno(error) in self._OVERTAKEN

    def _lacks_a_table(self, error: DBAPIError) -> bool:
        return _errno(error) == 1146  # ER_NO_SUCH_TABLE


def _sqlstate(error: DBAPIError) -> str:
    """Drivers of PostgreSQL have it under one of two names."""
    found = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return str(found or "")


def _errno(error: DBAPIError) -> int:
    arguments = getattr(error.orig, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else 0
