"""What a list costs on its way from the database into Python (S17)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from _holds_tables import add_live, tidy
from _runner import Measured, interleave
from _slots import typical
from slotcache.sql import SqlSlots

HELD_OF = 10
"""One slot in so many has a live hold."""


class Listed:
    """What an ORM makes of a row of the list."""

    slot_id: int
    capacity: int
    free: int
    next_end: object


_LISTED = sa.Table(
    "listed",
    sa.MetaData(),
    sa.Column("slot_id", sa.BigInteger, primary_key=True),
    sa.Column("capacity", sa.Integer),
    sa.Column("free", sa.Integer),
    sa.Column("next_end", sa.String),
)
orm.registry().map_imperatively(Listed, _LISTED)


def compare(engine: sa.Engine, sizes: dict[int, dict[str, int]]) -> dict[str, Measured]:
    """Measure all ways to read the same list; the driver alone is the floor.

    Args:
        engine: On an empty database, with an ordinary pool.
        sizes: How many slots are listed, in ascending order: how many rounds, of how many calls.
    """
    found = {}
    with SqlSlots(engine) as slots, _kept_connection(engine) as driver:
        slots.create_tables()
        there = 0
        for size, turn in sizes.items():
            _add(engine, slots, there, size)
            there = size
            calls = _calls(engine, slots, driver)
            _check(calls, size)
            measured = interleave(calls, rounds=turn["rounds"], number=turn["number"])
            found.update({f"{size:,} slots: {name}": each for name, each in measured.items()})
    return found


def _calls(engine: sa.Engine, slots: SqlSlots, driver: Any) -> dict[str, Callable[[], Any]]:
    """All that is measured, the floor first; all of them send the very same statement."""
    statement, parameters = _sent_by(slots.load)
    plain = _as_text(statement, parameters)
    entities = sa.select(Listed).from_statement(plain.columns(*_LISTED.columns))

    def fetchall() -> Any:
        cursor = driver.cursor()
        cursor.execute(statement, parameters)
        rows = cursor.fetchall()
        cursor.close()
        return rows

    def core() -> list[dict[str, Any]]:
        with engine.connect() as connection:
            found = connection.execute(plain)
            names = tuple(found.keys())
            return [dict(zip(names, row, strict=True)) for row in found]

    def objects() -> Any:
        with orm.Session(engine) as session:
            return session.scalars(entities).all()

    return {
        "driver, fetchall": fetchall,
        "slotcache, load": slots.load,
        "SQLAlchemy Core, dicts": core,
        "SQLAlchemy ORM, objects": objects,
    }


def _sent_by(call: Callable[[], object]) -> tuple[str, Any]:
    """Return the statement by which a call reads the list, and its parameters."""
    sent: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: object) -> None:
        sent.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        call()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    *_, last = (each for each in sent if "slot_holds" in each[0])
    return last


def _as_text(statement: str, parameters: Any) -> sa.TextClause:
    """Return the statement as one that SQLAlchemy sends as it stands."""
    named = isinstance(parameters, dict)
    bound = parameters if named else {f"p{at}": value for at, value in enumerate(parameters)}
    names = iter(bound)

    def name(mark: re.Match[str]) -> str:
        return f":{mark[1] if named else next(names)} "

    return sa.text(re.sub(r"%\((\w+)\)s|\?", name, statement)).bindparams(**bound)


def _check(calls: dict[str, Callable[[], Any]], size: int) -> None:
    """All of them have read the same."""
    rows, loaded, dicts, objects = (call() for call in calls.values())
    least = [tuple(row[:3]) for row in rows]
    assert len(least) == size
    assert [tuple(row) for row in loaded.availability] == least
    assert loaded.valid_for is not None
    assert [(row["slot_id"], row["capacity"], row["free"]) for row in dicts] == least
    assert [(each.slot_id, each.capacity, each.free) for each in objects] == least


def _add(engine: sa.Engine, slots: SqlSlots, there: int, size: int) -> None:
    """Add slots until there are so many, and a live hold on a tenth of them."""
    more = typical(size)[there:]
    slots.add(more)
    add_live(engine, [slot_id for slot_id, _, remaining in more[::HELD_OF] if remaining])
    tidy(engine)


@contextmanager
def _kept_connection(engine: sa.Engine) -> Iterator[Any]:
    """Lend the driver's own connection, on which each statement is a transaction."""
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        yield connection.connection.driver_connection
