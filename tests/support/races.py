"""Races for one table: callers that stand for processes, all behind a lock of the database."""

from __future__ import annotations

import mmap
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

import sqlalchemy as sa

from slotcache import (
    Hold,
    HoldExpired,
    HoldManager,
    HoldNotFound,
    HoldPolicy,
    IllegalTransition,
    SlotFull,
)
from slotcache.sql import SqlSlots

from .processes import eventually
from .sql import ON_SERVERS, Place, empty, engine_for, opened
from .threads import PATIENCE, spawn
from .worlds import BLOCKING, World, current_caller, inner_engine

PATIENT = HoldPolicy(lock_wait=60)

Work: TypeAlias = Callable[[HoldManager], Any]


def buy(holds: HoldManager, quantities: list[int]) -> tuple[list[Hold], list[SlotFull]]:
    """Buy so many places of slot 1, one time after the other; return what came of it."""
    taken: list[Hold] = []
    refused: list[SlotFull] = []
    for quantity in quantities:
        try:
            taken.append(holds.create(1, quantity))
        except SlotFull as error:
            refused.append(error)
    return taken, refused


class Crowd:
    """Tables on one database, each with an engine of its own, as so many processes would be.

    Attributes:
        world: What made them.
        tables: They.
        managers: A manager on each.
    """

    def __init__(
        self, kind: str, world: World, tables: Sequence[SqlSlots], outside: sa.Engine
    ) -> None:
        self.world = world
        self.tables = tables
        self.managers = [world.holds(each, on_change=None, policy=PATIENT) for each in tables]
        self._outside = outside
        self._waits = _waits_of(kind, tables, outside)

    @property
    def table(self) -> SqlSlots:
        """The first of the tables."""
        return self.tables[0]

    @property
    def holds(self) -> HoldManager:
        """The first of the managers."""
        return self.managers[0]

    def each(self, *works: Work) -> list[Callable[[], Any]]:
        """Return a call for each manager: the works in turn."""
        return [
            partial(works[index % len(works)], each) for index, each in enumerate(self.managers)
        ]

    def race(
        self,
        calls: Sequence[Callable[[], Any]],
        *,
        slots: Sequence[int] = (1,),
        meanwhile: Callable[[Blocker], Any] = lambda blocker: None,
        all_wait: bool = True,
    ) -> list[Any]:
        """Make all calls at once, each in a thread; return what each returned, or raised.

        They gather behind the rows of these slots, which another client has locked, until the
        database says that all of them wait.

        Args:
            calls: The calls.
            slots: The slots that are locked.
            meanwhile: What happens in the transaction of that other client while they wait.
            all_wait: Whether each call has to wait. Else some may have ended.
        """
        with self.blocked(*slots) as blocker:
            made = [spawn(call) for call in calls]
            blocker.wait_for(lambda: len(calls) - sum(each.done() for each in made))
            ended = [each.exception() or each.result() for each in made if each.done()]
            assert not (all_wait and ended), f"there was no race: {ended}"
            meanwhile(blocker)
        return [each.exception(PATIENCE * 3) or each.result() for each in made]

    @contextmanager
    def blocked(self, *slots: int) -> Iterator[Blocker]:
        """Another client, in a transaction that has written these slots."""
        with self._outside.connect() as connection:
            columns = self.table._slots
            connection.execute(
                sa.update(columns.table)
                .where(columns.slot_id.in_(slots))
                .values({columns.remaining: columns.remaining})
            )
            with self._waits() as waiting:
                blocker = Blocker(self.table, connection, waiting)
                yield blocker
            # Else the rows are as if they had only been locked: what notices nothing but writes
            # has nothing to notice.
            if blocker.has_changed:
                connection.commit()
            else:
                connection.rollback()


class Blocker:
    """That other client.

    Attributes:
        connection: Its connection.
        waiting: Counts those that wait for a lock.
        has_changed: Whether it commits in the end.
    """

    def __init__(
        self, table: SqlSlots, connection: sa.Connection, waiting: Callable[[], int]
    ) -> None:
        self._table = table
        self.connection = connection
        self.waiting = waiting
        self.has_changed = False

    def wait_for(self, count: Callable[[], int]) -> None:
        """Wait until so many wait for a lock."""
        eventually(lambda: self.waiting() >= count())

    def end(self, hold: Hold) -> None:
        """Let the hold be due at this instant, before the lock is let go."""
        clock = _CLOCKS.get(self.connection.dialect.name)
        now: Any = datetime.now(UTC) if clock is None else sa.literal_column(clock)
        self.has_changed = True
        holds = self._table._holds
        self.connection.execute(
            sa.update(holds).where(holds.c.id == hold.id).values(expires_at=now)
        )


_CLOCKS = {"postgresql": "clock_timestamp()", "mariadb": "UTC_TIMESTAMP(6)"}
"""Not the library's words, which may be what is wrong."""


@contextmanager
def gathered(
    kind: str,
    place: Place,
    *,
    count: int,
    world: World = BLOCKING,
    table: type[SqlSlots] | None = None,
    **options: Any,
) -> Iterator[Crowd]:
    """An empty table, and so many to work on it.

    Args:
        kind: The database.
        place: Where it is.
        count: How many.
        world: What makes them.
        table: What is made instead of each `SqlSlots`, in the blocking world.
        options: For each table; what begins with `engine_` for each engine.
    """
    for_engine = {
        name.removeprefix("engine_"): options.pop(name)
        for name in list(options)
        if name.startswith("engine_")
    }
    with ExitStack() as stack:
        stack.enter_context(opened(kind, place, **options))
        engines = [stack.enter_context(engine_for(kind, place, **for_engine)) for _ in range(count)]
        make = table or partial(world.table, engine_options=for_engine)
        tables = [
            stack.enter_context(make(engine, **options)) for engine in engines if engine is not None
        ]
        # MariaDB's default would lock rows that it merely looked at.
        level = {"isolation_level": "READ COMMITTED"} if kind in ON_SERVERS else {}
        outside = stack.enter_context(engine_for(kind, place, **level))
        assert outside is not None
        yield Crowd(kind, world, tables, outside)


def cleared(crowd: Crowd) -> Crowd:
    """The same, with no rows."""
    empty(crowd.table)
    return crowd


_Waits: TypeAlias = Callable[[], Any]


def _waits_of(kind: str, tables: Sequence[SqlSlots], outside: sa.Engine) -> _Waits:
    """What counts those that wait for a lock, from now on."""
    if kind not in ON_SERVERS:
        return _Senders(tables).counted
    question = {
        "postgres": "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()",
        "mariadb": "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'",
    }[kind]

    @contextmanager
    def counted() -> Iterator[Callable[[], int]]:
        with outside.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            yield lambda: int(connection.exec_driver_sql(question).one()[-1])

    return counted


class _Senders:
    """Counts the callers who have come to a statement that writes: SQLite does not tell more.

    While the file is locked, they get no further.
    """

    def __init__(self, tables: Sequence[SqlSlots]) -> None:
        self._callers: set[object] = set()
        for each in tables:
            sa.event.listen(inner_engine(each), "before_cursor_execute", self._note)

    @contextmanager
    def counted(self) -> Iterator[Callable[[], int]]:
        self._callers.clear()
        yield lambda: len(self._callers)

    def _note(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith("SELECT"):
            self._callers.add(current_caller())


class Seller:
    """One process of an application that sells a few slots, without end, until it is killed.

    What it is at stands in a file that outlives it.
    """

    slots = (1, 2, 3)
    operations = ("create", "confirm", "cancel", "extend", "expire_due")
    phases = ("between calls", "waiting for an answer", "in a transaction", "in a commit")

    def __init__(
        self, _passing: Callable[[str], None], kind: str, place: Place, claim: str, notes: Path
    ) -> None:
        self._table = table_on(kind, place, claim)
        self._holds = HoldManager(self._table, on_change=None, policy=PATIENT)
        self._notes = notes_in(notes)
        engine = self._table.engine
        for event, phase in (
            ("before_cursor_execute", 1),
            ("after_cursor_execute", 2),
            ("commit", 3),
        ):
            sa.event.listen(engine, event, partial(self._note_phase, phase))

    def sell(self, seed: int) -> None:
        """Do operations at random."""
        chance = random.Random(seed)
        known = [UUID(int=0)]
        works: Sequence[Callable[[], Any]] = (
            lambda: self._create(chance.randrange(4)),
            lambda: self._holds.confirm(chance.choice(known)),
            lambda: self._holds.cancel(chance.choice(known)),
            lambda: self._holds.extend(chance.choice(known), 0.3),
            lambda: self._holds.expire_due(20),
        )
        while True:
            known[1:] = [hold.id for hold in self._holds.find(limit=10)]
            operation = chance.choices(range(len(works)), (6, 2, 3, 1, 1))[0]
            self._notes[OPERATION] = operation
            with suppress(SlotFull, HoldExpired, HoldNotFound, IllegalTransition):
                works[operation]()
            self._notes[PHASE] = 0
            self._notes[CALLS] += 1

    def _create(self, which: int) -> None:
        """Send one of the keys that all are sending now."""
        number = int(time.time() * 20) * 4 + which
        self._notes[SENT] = number
        order(self._holds, number)
        self._notes[ANSWERED] = number

    def _note_phase(self, phase: int, *_: object, **__: object) -> None:
        self._notes[PHASE] = phase


def table_on(kind: str, place: Place, claim: str) -> SqlSlots:
    """The table that is there already, for the rest of this process's life."""
    if kind in ON_SERVERS:
        return SqlSlots(sa.create_engine(str(place)), claim=claim)
    return SqlSlots.sqlite(Path(place) / "slots.db", claim=claim)


OPERATION, PHASE, SENT, ANSWERED, CALLS = range(5)
"""What is noted of a seller: numbers, of which each is written in one piece."""


def new_notes(path: Path) -> Path:
    """Make the file that a seller writes down in."""
    path.write_bytes(bytes(8 * 5))
    return path


def notes_in(path: Path) -> memoryview[int]:
    """What a seller has written down."""
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("q")


def order(holds: HoldManager, number: int) -> Hold:
    """Send the request that has this number, under its key."""
    return holds.create(
        Seller.slots[number % 3],
        1 + number % 2,
        ttl=0.05 + 0.1 * (number % 3),
        owner=str(number),
        idempotency_key="order",
    )
