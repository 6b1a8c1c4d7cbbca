"""Engines on SQLite: the ones we make, and the ones on which nothing can be promised."""

from __future__ import annotations

import asyncio
import random
import secrets
import sqlite3
import threading
import weakref
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from slotcache.sql.extension import check_installed, create_async_engine
from slotcache.sql.waits import Waits, waits_of
from slotcache.worlds import running_loop

__all__ = ["READS_ONLY", "OwnEngine", "check_sqlite", "engine_in_memory", "engine_on"]

READS_ONLY = "slotcache_reads_only"
"""The execution option of a transaction that needs no lock."""

_OPENING = 5.0  # seconds to wait for others who write to a new file
_PATIENCE = 1.0


class OwnEngine:
    """An engine of ours, whose connections can be closed also where nobody can wait for that.

    On asyncio these are a fork, the collector of garbage, and the end of an event loop, whose
    connections are not for another one.

    Args:
        engine: The engine, which nobody else closes.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._is_async = engine.dialect.is_async
        self._loop: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._idle: dict[int, Any] = {}
        self._lent: dict[int, Any] = {}
        self._connecting: set[object] = set()
        self._moving = threading.Lock()
        if self._is_async:
            sa.event.listen(engine, "checkout", self._lend)
            sa.event.listen(engine, "checkin", self._take_back)
            sa.event.listen(engine, "close", self._forget)

    def connect(self) -> sa.Connection:
        """Return a connection, in this event loop if there is one.

        Raises:
            RuntimeError: Another loop is using some.
        """
        if not self._is_async:
            return self._engine.connect()
        me = object()
        with self._moving:
            self._move_to(running_loop())
            self._connecting.add(me)
        try:
            # A connection whose making was interrupted would stay open in a thread of aiosqlite.
            return waits_of(self._engine.dialect).to_its_end(self._engine.connect)
        finally:
            self._connecting.discard(me)

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        before = None if self._loop is None else self._loop()
        if before is loop:
            return
        is_in_use = self._lent or self._connecting
        if is_in_use and before is not None and before.is_running():
            raise RuntimeError(
                "this table is used in another event loop at this moment: one loop uses it at a "
                "time, so make an AsyncSqlSlots for each"
            )
        # Also those in the hands of tasks that a loop has left where they are.
        self._idle, self._lent = {**self._idle, **self._lent}, {}
        self._connecting.clear()
        self.close_now()
        self._loop = weakref.ref(loop)

    def close(self) -> None:
        """Close the connections; a later one is a new one."""
        self._engine.dispose()

    def close_now(self) -> None:
        """Close the connections that nobody is using, where nobody can wait."""
        if not self._is_async:
            self._engine.dispose()
            return
        idle, self._idle = self._idle, {}
        self._engine.dispose(close=False)
        if idle:
            # In a thread, which has no event loop: some drivers would make one.
            thread = threading.Thread(target=_hang_up, args=(list(idle.values()),), daemon=True)
            thread.start()
            thread.join(_PATIENCE)

    def forget(self) -> None:
        """Leave the connections to the process that this one was forked from."""
        self._idle, self._lent = {}, {}
        self._engine.dispose(close=False)

    def _lend(self, connection: Any, *_: object) -> None:
        self._lent[id(connection)] = self._idle.pop(id(connection), connection)

    def _take_back(self, connection: Any, _record: object) -> None:
        if connection is not None and self._lent.pop(id(connection), None) is not None:
            self._idle[id(connection)] = connection

    def _forget(self, connection: Any, *_: object) -> None:
        self._idle.pop(id(connection), None)
        self._lent.pop(id(connection), None)


def _hang_up(connections: Iterable[Any]) -> None:
    """Close connections without a word to the server, each in its driver's way."""
    for connection in connections:
        driver = connection.driver_connection
        with suppress(Exception):  # its event loop is closed, for one
            if hasattr(driver, "pgconn"):
                driver.pgconn.finish()
            elif hasattr(driver, "stop"):
                driver.stop()
                driver._thread.join(_PATIENCE)
            else:
                getattr(driver, "terminate", driver.close)()


def engine_on(path: str | Path, *, on_asyncio: bool = False) -> sa.Engine:
    """Return an engine on a file, whose transactions are durable and lose no update.

    WAL: readers do not wait for the writer. BEGIN IMMEDIATE: left alone, the driver opens no
    transaction for a SELECT, and whoever reads and then writes loses updates without an error.
    """
    engine = _engine(on_asyncio, database=str(path))
    sa.event.listen(engine, "connect", partial(_turn_to_wal, waits_of(engine.dialect)))
    return engine


def engine_in_memory(*, on_asyncio: bool = False) -> tuple[sa.Engine, sqlite3.Connection]:
    """Return an engine on a new database in memory, and a connection that keeps it alive.

    All connections share it, as if it were a file. A plain `:memory:` database has only one
    connection, on which everybody sees uncommitted rows; a shared cache answers "locked" at once.
    """
    name = f"file:/slotcache-{secrets.token_hex(8)}"
    keeper = sqlite3.connect(f"{name}?vfs=memdb", uri=True, check_same_thread=False)
    query = {"vfs": "memdb", "uri": "true"}
    return _engine(on_asyncio, database=name, query=query), keeper


def check_sqlite(engine: sa.Engine) -> None:
    """Refuse an engine on which nothing can be promised, saying what to write instead."""
    kind = "AsyncSqlSlots" if engine.dialect.is_async else "SqlSlots"
    in_memory = ":memory:" in str(engine.url.database) or engine.url.query.get("mode") == "memory"
    if in_memory or isinstance(engine.pool, StaticPool | SingletonThreadPool):
        raise ValueError(
            "this engine has one connection for all threads, or a database for each of them, so "
            f'nothing can be promised on it: write {kind}.sqlite(":memory:"), or give an engine '
            "on a file its default pool"
        )


def _engine(on_asyncio: bool, **where: Any) -> sa.Engine:
    if on_asyncio:
        check_installed()
        url = sa.URL.create("sqlite+aiosqlite", **where)
        try:
            engine = create_async_engine(url, pool_use_lifo=True).sync_engine
        except ImportError as error:
            raise ImportError(
                "AsyncSqlSlots.sqlite needs aiosqlite: pip install 'slotcache[async]'"
            ) from error
    else:
        engine = sa.create_engine(sa.URL.create("sqlite+pysqlite", **where), pool_use_lifo=True)
    sa.event.listen(engine, "connect", _configure)
    sa.event.listen(engine, "begin", _begin)
    sa.event.listen(engine, "invalidate", _roll_back)
    return engine


def _configure(connection: DBAPIConnection, _record: object) -> None:
    connection.isolation_level = None
    _run(connection, "PRAGMA synchronous = FULL")
    _run(connection, "PRAGMA foreign_keys = ON")


def _run(connection: DBAPIConnection, statement: str) -> None:
    cursor = connection.cursor()
    cursor.execute(statement)
    cursor.close()


def _roll_back(connection: DBAPIConnection, _record: object, _error: object) -> None:
    """End its transaction: closed in the midst of a statement, it would last, and so its lock."""
    with suppress(sqlite3.Error):
        connection.rollback()


def _turn_to_wal(waits: Waits, connection: DBAPIConnection, _record: object) -> None:
    """Turn the file to WAL, unless it is; its own time-out does not apply to that (tried)."""
    deadline = monotonic() + _OPENING
    while True:
        try:
            _run(connection, "PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or monotonic() > deadline:
                raise
            waits.sleep(random.uniform(0.001, 0.02))
        else:
            return


def _begin(connection: sa.Connection) -> None:
    if not connection.get_execution_options().get(READS_ONLY):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
