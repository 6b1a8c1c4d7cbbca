"""Ways to create holds, on the shipped tables, and these tables as new for each turn."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from uuid import uuid4

import psycopg
import sqlalchemy as sa

from _holds_tables import HOLDS, LIFE, SLOTS
from slotcache import HoldManager
from slotcache.sql import SqlSlots

THREADS = 16
CAPACITY = 2**30

Create: TypeAlias = "Callable[[int], object]"
"""Takes one place of a slot."""


class Side(Protocol):
    """One way to create holds."""

    def for_a_thread(self) -> Create:
        """Return what one thread calls."""

    def close(self) -> None:
        """Close its connections."""


class Library:
    """slotcache: the whole path of `HoldManager.create`."""

    def __init__(self, slots: SqlSlots, engine: sa.Engine) -> None:
        self._slots, self._engine = slots, engine
        self._holds = HoldManager(slots, on_change=None)

    def for_a_thread(self) -> Create:
        return self._holds.create

    def close(self) -> None:
        self._slots.close()
        self._engine.dispose()


class Core:
    """What many write by hand: SQLAlchemy Core, the slot row locked, checked, counted down."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def for_a_thread(self) -> Create:
        return self._create

    def close(self) -> None:
        self._engine.dispose()

    def _create(self, slot_id: int) -> object:
        slots, hold_id, now = SLOTS.c, uuid4(), datetime.now(UTC)
        with self._engine.begin() as connection:
            remaining = connection.execute(
                sa.select(slots.remaining).where(slots.slot_id == slot_id).with_for_update()
            ).scalar_one()
            if remaining < 1:
                raise LookupError("full")
            connection.execute(
                sa.update(SLOTS)
                .where(slots.slot_id == slot_id)
                .values(remaining=slots.remaining - 1)
            )
            connection.execute(
                sa.insert(HOLDS).values(
                    id=hold_id,
                    slot_id=slot_id,
                    quantity=1,
                    state="held",
                    created_at=now,
                    expires_at=now + LIFE,
                )
            )
        return hold_id


class RawPostgres:
    """The least on PostgreSQL: one statement, committed by itself, a connection for each thread."""

    _STATEMENT = """
        WITH taken AS (
            UPDATE slots SET remaining = remaining - %(quantity)s
            WHERE slot_id = %(slot_id)s AND remaining >= %(quantity)s
            RETURNING slot_id
        )
        INSERT INTO slot_holds (id, slot_id, quantity, state, created_at, expires_at)
        SELECT %(id)s, slot_id, %(quantity)s, 'held', now, now + interval '600 seconds'
        FROM taken, clock_timestamp() AS now
    """

    def __init__(self, url: sa.URL) -> None:
        self._url = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._connections: list[psycopg.Connection[Any]] = []

    def for_a_thread(self) -> Create:
        connection = psycopg.connect(self._url, autocommit=True)
        self._connections.append(connection)
        cursor = connection.cursor()

        def create(slot_id: int) -> object:
            hold_id = uuid4()
            cursor.execute(self._STATEMENT, {"id": hold_id, "slot_id": slot_id, "quantity": 1})
            if cursor.rowcount != 1:
                raise LookupError("full")
            return hold_id

        return create

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


class RawSqlite:
    """The least on SQLite: one connection, and a lock around each transaction."""

    _TAKE = "UPDATE slots SET remaining = remaining - ? WHERE slot_id = ? AND remaining >= ?"
    _INSERT = """
        INSERT INTO slot_holds (id, slot_id, quantity, state, created_at, expires_at)
        VALUES (?, ?, ?, 'held', ?, ?)
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._lock = threading.Lock()

    def for_a_thread(self) -> Create:
        return self._create

    def close(self) -> None:
        self._connection.close()

    def _create(self, slot_id: int) -> object:
        hold_id, run = uuid4(), self._connection.execute
        with self._lock:
            run("BEGIN IMMEDIATE")
            try:
                now = datetime.now(UTC).replace(tzinfo=None)
                if run(self._TAKE, (1, slot_id, 1)).rowcount != 1:
                    raise LookupError("full")
                until = (now + LIFE).isoformat(" ", "microseconds")
                run(
                    self._INSERT,
                    (hold_id.hex, slot_id, 1, now.isoformat(" ", "microseconds"), until),
                )
            except BaseException:
                run("ROLLBACK")
                raise
            run("COMMIT")
        return hold_id


class PostgresTables:
    """The shipped tables on PostgreSQL, as new before each turn."""

    def __init__(self, url: sa.URL, slots: int) -> None:
        self._engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        self._url, self._slots = url, slots
        with SqlSlots(self._engine) as made:
            made.create_tables()
            made.add((slot_id, CAPACITY) for slot_id in range(1, slots + 1))

    def sides(self) -> dict[str, Side]:
        """Return all that takes turns, the floor first."""
        on_hold, counted, core = (
            sa.create_engine(self._url, pool_size=THREADS, max_overflow=0) for _ in range(3)
        )
        return {
            "psycopg, one statement": RawPostgres(self._url),
            "slotcache, on_hold": Library(SqlSlots(on_hold, claim="on_hold"), on_hold),
            "slotcache, counted": Library(SqlSlots(counted, claim="counted"), counted),
            "SQLAlchemy Core": Core(core),
        }

    def renew(self) -> None:
        """Forget all holds, and what they left behind."""
        with self._engine.connect() as connection:
            connection.exec_driver_sql("TRUNCATE slot_holds")
            connection.exec_driver_sql("UPDATE slots SET remaining = capacity")
            connection.exec_driver_sql("VACUUM ANALYZE slots")
            connection.exec_driver_sql("CHECKPOINT")

    def taken(self) -> tuple[int, int]:
        """Return how many holds live, and how many places the column `remaining` has lost."""
        return _taken(self._engine)

    def close(self) -> None:
        self._engine.dispose()


class SqliteTables:
    """The shipped tables in a SQLite file (WAL, `synchronous=FULL`), as new before each turn."""

    def __init__(self, path: Path, slots: int) -> None:
        self._path = path
        with SqlSlots.sqlite(path) as made:
            made.create_tables()
            made.add((slot_id, CAPACITY) for slot_id in range(1, slots + 1))
        self._engine = sa.create_engine(f"sqlite:///{path}")

    def sides(self) -> dict[str, Side]:
        """Return all that takes turns, the floor first."""
        on_hold = SqlSlots.sqlite(self._path, claim="on_hold")
        counted = SqlSlots.sqlite(self._path, claim="counted")
        return {
            "sqlite3 and a lock": RawSqlite(self._path),
            "slotcache, on_hold": Library(on_hold, on_hold.engine),
            "slotcache, counted": Library(counted, counted.engine),
            "SQLAlchemy Core": Core(_ordinary_engine(self._path)),
        }

    def renew(self) -> None:
        """Forget all holds, and what they left behind."""
        with closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            connection.execute("DELETE FROM slot_holds")
            connection.execute("UPDATE slots SET remaining = capacity")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def taken(self) -> tuple[int, int]:
        """Return how many holds live, and how many places the column `remaining` has lost."""
        return _taken(self._engine)

    def close(self) -> None:
        self._engine.dispose()


def _ordinary_engine(path: Path) -> sa.Engine:
    """Return an engine as SQLAlchemy's documentation has it for BEGIN IMMEDIATE, and patient."""
    engine = sa.create_engine(
        f"sqlite:///{path}", pool_size=THREADS, max_overflow=0, connect_args={"timeout": 60}
    )

    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    sa.event.listen(engine, "connect", configure)
    sa.event.listen(engine, "begin", begin)
    return engine


def _taken(engine: sa.Engine) -> tuple[int, int]:
    count = sa.select(sa.func.count()).select_from(HOLDS).where(HOLDS.c.state == "held")
    lost = sa.select(sa.func.sum(SLOTS.c.capacity - SLOTS.c.remaining))
    with engine.connect() as connection:
        return connection.execute(count).scalar_one(), int(connection.execute(lost).scalar_one())
