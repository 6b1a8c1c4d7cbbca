"""Engines on SQLite: the ones we make, and the ones on which nothing can be promised."""

from __future__ import annotations

import random
import secrets
import sqlite3
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import sqlalchemy as sa
from sqlalchemy.pool import SingletonThreadPool, StaticPool

__all__ = ["READS_ONLY", "check_sqlite", "engine_in_memory", "engine_on"]

READS_ONLY = "slotcache_reads_only"
"""The execution option of a transaction that needs no lock."""

_OPENING = 5.0  # seconds to wait for others who write to a new file


def engine_on(path: str | Path) -> sa.Engine:
    """Return an engine on a file, whose transactions are durable and lose no update.

    WAL: readers do not wait for the writer. BEGIN IMMEDIATE: left alone, the driver opens no
    transaction for a SELECT, and whoever reads and then writes loses updates without an error.
    """
    engine = _engine(sa.URL.create("sqlite+pysqlite", database=str(path)))
    sa.event.listen(engine, "connect", _turn_to_wal)
    return engine


def engine_in_memory() -> tuple[sa.Engine, sqlite3.Connection]:
    """Return an engine on a new database in memory, and a connection that keeps it alive.

    All connections share it, as if it were a file. A plain `:memory:` database has only one
    connection, on which everybody sees uncommitted rows; a shared cache answers "locked" at once.
    """
    name = f"file:/slotcache-{secrets.token_hex(8)}"
    keeper = sqlite3.connect(f"{name}?vfs=memdb", uri=True, check_same_thread=False)
    query = {"vfs": "memdb", "uri": "true"}
    return _engine(sa.URL.create("sqlite+pysqlite", database=name, query=query)), keeper


def check_sqlite(engine: sa.Engine) -> None:
    """Refuse an engine on which nothing can be promised, saying what to write instead."""
    in_memory = ":memory:" in str(engine.url.database) or engine.url.query.get("mode") == "memory"
    if in_memory or isinstance(engine.pool, StaticPool | SingletonThreadPool):
        raise ValueError(
            "this engine has one connection for all threads, or a database for each of them, so "
            'nothing can be promised on it: write SqlSlots.sqlite(":memory:"), or give an engine '
            "on a file its default pool"
        )


def _engine(url: sa.URL) -> sa.Engine:
    engine = sa.create_engine(url, pool_use_lifo=True)
    sa.event.listen(engine, "connect", _configure)
    sa.event.listen(engine, "begin", _begin)
    sa.event.listen(engine, "invalidate", _roll_back)
    return engine


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _roll_back(connection: sqlite3.Connection, _record: object, _error: object) -> None:
    """End its transaction: closed in the midst of a statement, it would last, and so its lock."""
    with suppress(sqlite3.Error):
        connection.rollback()


def _turn_to_wal(connection: sqlite3.Connection, _record: object) -> None:
    """Turn the file to WAL, unless it is; its own time-out does not apply to that (tried)."""
    deadline = monotonic() + _OPENING
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or monotonic() > deadline:
                raise
            sleep(random.uniform(0.001, 0.02))
        else:
            return


def _begin(connection: sa.Connection) -> None:
    if not connection.get_execution_options().get(READS_ONLY):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
