"""The shipped tables, filled past the library, which would take its time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from slotcache.sql.tables import holds_of, map_slots, shipped_slots

SLOTS = shipped_slots(int)
HOLDS = holds_of(map_slots(SLOTS, None, None))
LIFE = timedelta(seconds=600)

_AT_ONCE = 10_000

_PAST_ON_POSTGRES = """
    INSERT INTO slot_holds (id, slot_id, quantity, state, created_at, expires_at, ended_at)
    SELECT gen_random_uuid(), 1 + n % :slots, 1, state, created_at,
        created_at + interval '10 minutes',
        CASE state WHEN 'expired' THEN created_at + interval '10 minutes'
            WHEN 'cancelled' THEN created_at + interval '5 minutes' END
    FROM (
        SELECT n, now() - interval '1 hour' - n * interval '1 second' AS created_at,
            (ARRAY['confirmed', 'cancelled', 'expired'])[1 + n / :slots % 3] AS state
        FROM generate_series(1, :holds) AS n
    ) AS past
"""

_PAST_ON_SQLITE = """
    WITH RECURSIVE series (n) AS (
        SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < :holds
    ), past AS (
        SELECT n, strftime('%s', 'now') - 3600 - n AS created,
            CASE n / :slots % 3 WHEN 0 THEN 'confirmed' WHEN 1 THEN 'cancelled' ELSE 'expired' END
                AS state
        FROM series
    )
    INSERT INTO slot_holds (id, slot_id, quantity, state, created_at, expires_at, ended_at)
    SELECT lower(hex(randomblob(16))), 1 + n % :slots, 1, state,
        datetime(created, 'unixepoch') || '.000000',
        datetime(created + 600, 'unixepoch') || '.000000',
        CASE state WHEN 'expired' THEN datetime(created + 600, 'unixepoch') || '.000000'
            WHEN 'cancelled' THEN datetime(created + 300, 'unixepoch') || '.000000' END
    FROM past
"""


def live_hold(slot_id: int, life: timedelta = LIFE) -> dict[str, Any]:
    """Return a hold of one place."""
    now = datetime.now(UTC)
    return {
        "id": uuid4(),
        "slot_id": slot_id,
        "quantity": 1,
        "state": "held",
        "created_at": now,
        "expires_at": now + life,
    }


def add_live(engine: sa.Engine, slot_ids: Iterable[int]) -> None:
    """Insert a live hold on each slot, which lasts longer than the benchmark."""
    insert(engine, HOLDS, [live_hold(slot_id, timedelta(hours=1)) for slot_id in slot_ids])


def add_past(engine: sa.Engine, holds: int, slots: int) -> None:
    """Insert holds that were confirmed, cancelled or have expired, on the slots from 1.

    Their ids are random as those of the library, so all over the index.
    """
    on_postgres = engine.dialect.name == "postgresql"
    statement = sa.text(_PAST_ON_POSTGRES if on_postgres else _PAST_ON_SQLITE)
    with engine.begin() as connection:
        connection.execute(statement, {"holds": holds, "slots": slots})


def insert(engine: sa.Engine, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows, all or none."""
    with engine.begin() as connection:
        for start in range(0, len(rows), _AT_ONCE):
            connection.execute(sa.insert(table), rows[start : start + _AT_ONCE])


def tidy(engine: sa.Engine) -> None:
    """Get done what would else be done while we measure.

    PostgreSQL tidies up, and learns what is in the tables, by itself: now, and not later. And the
    system writes to the disk what was inserted.
    """
    if engine.dialect.name == "postgresql":
        _vacuum(engine)
    os.sync()


def _vacuum(engine: sa.Engine) -> None:
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for table in (SLOTS, HOLDS):
            connection.exec_driver_sql(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            connection.exec_driver_sql(f"VACUUM ANALYZE {table}")
        connection.exec_driver_sql("CHECKPOINT")
