"""What the tests of the SQL half share: tables to work on, and ways to look from outside."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import sqlalchemy as sa

from slotcache.sql import SqlSlots

from .worlds import BLOCKING, World

ON_SQLITE = ("file", "memory", "given")
"""A SQLite file on our own engine, a database in memory, a file on a plain engine given to us."""

ON_SERVERS = ("postgres", "mariadb")

KINDS = (*ON_SQLITE, *ON_SERVERS)

CLAIMS = ("counted", "on_hold")

EACH = [
    ("file", "counted"),
    ("memory", "on_hold"),
    *((kind, claim) for kind in ON_SERVERS for claim in CLAIMS),
]
"""Every database with every claim."""

Place: TypeAlias = Path | str
"""Where a table is: the folder of a file, or the URL of a database on a server."""

_have_tables: set[Place] = set()


@contextmanager
def opened(
    kind: str,
    place: Place,
    *,
    world: World = BLOCKING,
    table: type[SqlSlots] | None = None,
    **options: Any,
) -> Iterator[SqlSlots]:
    """An empty table, closed at the end.

    Args:
        kind: The database.
        place: Where it is.
        world: What makes the table.
        table: What is made instead of a `SqlSlots`, in the blocking world.
        options: For the table.
    """
    with engine_for(kind, place) as engine:
        if engine is None:
            path = ":memory:" if kind == "memory" else Path(place) / "slots.db"
            slots = (table or world).sqlite(path, **options)
        else:
            slots = (table or world.table)(engine, **options)
        with slots:
            if place not in _have_tables:
                slots.create_tables()
            if kind in ON_SERVERS:
                _have_tables.add(place)
                empty(slots)
            yield slots


@contextmanager
def engine_for(kind: str, place: Place, **options: Any) -> Iterator[sa.Engine | None]:
    """An engine as a user would make it; None: the library makes one."""
    if kind in ("file", "memory"):
        yield None
        return
    url = str(place) if kind in ON_SERVERS else f"sqlite:///{Path(place) / 'slots.db'}"
    engine = sa.create_engine(url, **options)
    if kind == "deferred":
        begin_deferred(engine)
    yield engine
    engine.dispose()


def empty(slots: SqlSlots) -> None:
    """Delete all rows: faster than a new database."""
    with slots.engine.begin() as connection:
        for name in ("slot_hold_keys", "slot_holds", "slots"):
            connection.exec_driver_sql(f"DELETE FROM {name}")


def begin_deferred(engine: sa.Engine) -> None:
    """Set an engine up as SQLAlchemy's documentation advises for SQLite, and in WAL.

    A transaction that reads before it writes is told "locked" at once when others wrote between.
    """

    def connected(driver: sqlite3.Connection, _record: object) -> None:
        driver.isolation_level = None
        driver.execute("PRAGMA journal_mode = WAL")

    sa.event.listen(engine, "connect", connected)
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))


def query(slots: SqlSlots, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Ask the database itself, past all of the library's statements."""
    with slots.engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(sql, parameters)]


def check_books(slots: SqlSlots, *, written_off: Mapping[Any, int] = MappingProxyType({})) -> None:
    """Check P6 on the rows: what is sold and what is promised fits, and sums up.

    Args:
        slots: The table.
        written_off: By slot, how many places were sold, given up, and are not for sale again.
    """
    rows = query(
        slots,
        """SELECT slot_id, capacity, remaining,
                  (SELECT coalesce(sum(quantity), 0) FROM slot_holds h
                   WHERE h.slot_id = s.slot_id AND state = 'confirmed'),
                  (SELECT coalesce(sum(quantity), 0) FROM slot_holds h
                   WHERE h.slot_id = s.slot_id AND state = 'held')
           FROM slots s""",
    )
    for slot_id, capacity, remaining, confirmed, held in rows:
        sold = confirmed + written_off.get(slot_id, 0)
        taken_off = sold if slots._claim.counts_holds else sold + held
        assert 0 <= remaining <= capacity, f"slot {slot_id}"
        assert taken_off == capacity - remaining, f"slot {slot_id}: the books do not balance"
        assert sold + held <= capacity, f"slot {slot_id} is oversold"


def free(slots: SqlSlots, slot_id: Any) -> int:
    """How many places of a slot the list shows."""
    row = slots.load(None).availability.get(slot_id)
    assert row is not None
    return row.remaining


class Meter:
    """Counts calls that run at the same time: a race that did not happen proves nothing."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._most = 0
        self.overlaps = 0

    @contextmanager
    def call(self) -> Iterator[None]:
        with self._changed:
            self.overlaps += self._running > 0
            self._running += 1
            self._most = max(self._most, self._running)
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1

    def wait_for(self, running: int) -> None:
        """Wait until so many have run at the same time: by now they may have ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._most >= running, timeout=30)


def race(
    calls: Sequence[Callable[[], Any]], *, behind: AbstractContextManager[Any], overlaps: int
) -> list[Any]:
    """Make all calls at once, each in a thread; return what each returned, or raised.

    They gather behind a lock that is let go when all are there. Fails if fewer than `overlaps`
    of them began while another was running.
    """
    meter = Meter()
    outcomes: list[Any] = [None] * len(calls)

    def run(index: int) -> None:
        with meter.call():
            try:
                outcomes[index] = calls[index]()
            except Exception as error:
                outcomes[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    with behind:
        for thread in threads:
            thread.start()
        meter.wait_for(len(calls))
    for thread in threads:
        thread.join()
    assert meter.overlaps >= overlaps, "the calls ran one after the other: nothing was tested"
    return outcomes


@contextmanager
def write_lock(path: Path) -> Iterator[sqlite3.Connection]:
    """Another process's write: the database is locked until the end."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def on_connect(slots: SqlSlots, listen: Callable[[sqlite3.Connection], Any]) -> None:
    """Have every connection to the database passed to `listen`: those in use are replaced."""
    slots._lists.close()
    slots.engine.dispose()
    sa.event.listen(slots.engine, "connect", lambda driver, _record: listen(driver))


def traced(slots: SqlSlots) -> list[str]:
    """Every statement that is run from now on, values and all."""
    statements: list[str] = []
    on_connect(slots, lambda driver: driver.set_trace_callback(statements.append))
    return statements


def metered(slots: SqlSlots) -> Callable[[Callable[[], Any]], int]:
    """Return what tells how many instructions SQLite's machine runs during a call.

    Unlike time, that is the same number in every run.
    """
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    def cost(call: Callable[[], Any]) -> int:
        before = count
        call()
        assert count > before
        return count - before

    on_connect(slots, lambda driver: driver.set_progress_handler(step, 1))
    return cost
