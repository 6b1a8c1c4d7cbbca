"""What SQLite needs and other databases do not: its lock, its waits, its errors, its time."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import PoolProxiedConnection

from slotcache._fork import forget_after_fork
from slotcache.errors import BackendError, Busy
from slotcache.protocols import Clock
from slotcache.sql.database import AUTOCOMMIT, Database, Disconnected
from slotcache.sql.engines import READS_ONLY, OwnEngine, check_sqlite
from slotcache.sql.turns import Turns

__all__ = ["Sqlite"]

_LONGEST_WAIT = 2**31 - 1  # milliseconds


class Sqlite(Database):
    """Transactions on a SQLite database, through an engine of ours or a given one.

    SQLite lets one connection write at a time and has the others poll for their turn, which
    starves some of them. So the threads that share this object take turns, and only
    other processes are waited for by polling. The threads thereby share one warm connection.

    Args:
        engine: The engine.
        clock: The time for tests, as Unix seconds; None: the database's.
    """

    dialects = ("sqlite",)
    skips_locked = False

    def __init__(self, engine: sa.Engine, *, clock: Clock | None) -> None:
        check_sqlite(engine)
        super().__init__(engine, clock=clock)
        self._own: OwnEngine | None = None
        self._keeper: sqlite3.Connection | None = None
        self._abandoned: list[object] = []
        self._begun: weakref.WeakSet[Any] = weakref.WeakSet()
        self._turns = Turns(before_fork=self._close_now, waits=self.waits)
        forget_after_fork(self)

    def own(self, keeper: sqlite3.Connection | None) -> None:
        """Take over the engine, and the connection that keeps its memory alive, to close them."""
        self._own = OwnEngine(self._engine)
        self.writes_alone = True  # BEGIN IMMEDIATE
        self._keeper = keeper

    def close(self) -> None:
        """Close what is its own."""
        with self._turns:
            if self._own is not None:
                self._own.close()
            self._let_go()

    def close_if_free(self) -> None:
        """Close what is its own, unless the process is forking, which closes it too."""
        if self._turns.take_if_free():
            try:
                self._close_now()
                self._let_go()
            finally:
                self._turns.give()

    def _let_go(self) -> None:
        if self._keeper is not None:
            self._keeper.close()

    def _close_now(self) -> None:
        if self._own is not None:
            self._own.close_now()

    def _after_fork(self) -> None:
        if self._own is not None:
            # Kept, so not closed: what another thread had in use is the parent's.
            self._abandoned.append(self._engine.pool)
            self._own.forget()

    def _connect(self) -> sa.Connection:
        return self._engine.connect() if self._own is None else self._own.connect()

    @contextmanager
    def writing(self, lock_wait: float) -> Iterator[sa.Connection]:
        """Lend a connection in a transaction, which is rolled back unless the borrower commits.

        Raises:
            Busy: The lock was not to be had within `lock_wait` seconds.
            BackendError: The database failed.
        """
        deadline = monotonic() + lock_wait
        if not self._turns.take(lock_wait):
            raise Busy(waited=lock_wait)
        try:
            with (
                self._translated(lock_wait),
                self._patient(self._connect(), deadline - monotonic()) as connection,
            ):
                connection.begin()
                _ensure_transaction(connection)
                yield connection
        finally:
            self._turns.give()

    @contextmanager
    def reading(self, lock_wait: float) -> Iterator[sa.Connection]:
        """Lend a connection to read from, out of turn.

        Raises:
            Busy: The process was forking for `lock_wait` seconds.
            BackendError: The database failed.
        """
        with self._turns.beside(lock_wait) as is_there:
            if not is_there:
                raise Busy(waited=lock_wait)
            with (
                self._translated(lock_wait),
                self._patient(self._connect(), lock_wait) as connection,
            ):
                yield connection.execution_options(**{READS_ONLY: True})

    @contextmanager
    def _patient(self, connection: sa.Connection, seconds: float) -> Iterator[sa.Connection]:
        """Let SQLite wait so long for other connections, and afterwards as long as before."""
        driver = connection.connection
        before: list[int] = []

        def put_back() -> None:
            # Where each statement is a transaction, SQLAlchemy may leave the first one out.
            try:
                driver.rollback()
                for milliseconds in before:
                    _set_patience(driver, milliseconds)
            except sqlite3.Error:
                connection.invalidate()

        with self._lent(connection, put_back=put_back):
            try:
                before.append(_patience(driver))
                _set_patience(driver, _milliseconds(seconds))
            except sqlite3.Error as error:
                raise Disconnected(BackendError(f"the database failed: {error}")) from error
            yield connection

    @contextmanager
    def _patient_in(self, connection: sa.Connection, lock_wait: float) -> Iterator[None]:
        inside = _inside_of(connection)
        _check_begins(inside)
        if inside.isolation_level is None and not inside.in_transaction:
            raise ValueError(AUTOCOMMIT)
        self._check_began(connection, inside)
        driver = connection.connection
        before = _patience(driver)
        try:
            _set_patience(driver, _milliseconds(lock_wait))
            # The driver would begin it at the first statement that writes, after the savepoint.
            if not inside.in_transaction:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            self._begun.add(connection.get_transaction())
            yield
        finally:
            if not connection.invalidated:
                _set_patience(driver, before)

    def _check_began(self, connection: sa.Connection, inside: sqlite3.Connection) -> None:
        """Refuse a savepoint before which, for all one knows, nothing was begun.

        In its default mode the driver sends BEGIN before the first statement that writes, and not
        before a savepoint. SQLite then takes that for the transaction, and its release commits.
        """
        ours = self._own is not None and connection.engine.pool is self._engine.pool
        known = inside.isolation_level is None or connection.get_transaction() in self._begun
        if not (ours or known) and connection.in_nested_transaction() and inside.in_transaction:
            raise ValueError(
                "this savepoint may be the first thing in its transaction, and would commit at its "
                "end: call something of within(...) before it, or begin transactions as the engine "
                "of SqlSlots.sqlite(path) does"
            )

    @contextmanager
    def creating(self, lock_wait: float) -> Iterator[sa.Connection]:
        """Nobody else writes at all."""
        with self.writing(lock_wait) as connection:
            yield connection

    def clock(self) -> None:
        """SQLite runs in this process: Python's clock is the database's."""

    def now(self, connection: sa.Connection) -> datetime:
        """Read the time."""
        return datetime.now(UTC) if self._clock is None else super().now(connection)

    def is_spelled(
        self, column: sa.ColumnElement[Any], text: sa.ColumnElement[Any]
    ) -> sa.ColumnElement[bool]:
        """A column may have the collation NOCASE."""
        return sa.collate(column, "BINARY") == text

    def insert_unless_there(self, table: sa.Table) -> sa.Insert:
        """As PostgreSQL has it."""
        return insert(table).on_conflict_do_nothing()

    def _is_busy(self, error: DBAPIError) -> bool:
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

    def _was_overtaken(self, error: DBAPIError) -> bool:  # noqa: ARG002
        return False  # who has the lock is alone

    def _says_no(self, error: DBAPIError) -> bool:
        return self._is_busy(error) or isinstance(error.orig, sqlite3.IntegrityError)

    def _lacks_a_table(self, error: DBAPIError) -> bool:
        return "no such table" in str(error.orig)


def _milliseconds(seconds: float) -> int:
    return min(max(1, round(seconds * 1000)), _LONGEST_WAIT)


def _patience(driver: PoolProxiedConnection) -> int:
    cursor = driver.cursor()
    cursor.execute("PRAGMA busy_timeout")
    row = cursor.fetchone()
    cursor.close()
    assert row is not None
    return int(row[0])


def _set_patience(driver: PoolProxiedConnection, milliseconds: int) -> None:
    cursor = driver.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {milliseconds}")
    cursor.close()


def _inside_of(connection: sa.Connection) -> sqlite3.Connection:
    """Return what the driver of either world wraps, to be asked what it knows without waiting."""
    driver: Any = connection.connection.driver_connection
    found: sqlite3.Connection = getattr(driver, "_conn", driver)
    return found


def _ensure_transaction(connection: sa.Connection) -> None:
    """Begin one where the driver commits each statement by itself (AUTOCOMMIT).

    Elsewhere the first statement that writes begins it, or the engine's own hook has.
    """
    inside = _inside_of(connection)
    _check_begins(inside)
    if inside.isolation_level is None and not inside.in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _check_begins(inside: sqlite3.Connection) -> None:
    if getattr(inside, "autocommit", None) is True:  # since Python 3.12: commit() does nothing
        raise ValueError(
            "this engine connects with autocommit=True, under which nothing can be promised: "
            "leave it out of connect_args"
        )
