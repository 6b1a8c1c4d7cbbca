"""What the spec of holds puts a desk to: many callers at once, broken calls, lost answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings

from slotcache import SlotcacheError
from slotcache.sql.ledger import SqlLedger
from slotcache.sql.sqlite import Sqlite

from .desk import DESKS, ON_FILE, Desk
from .joined import Failure
from .races import Crowd
from .sql import EACH, ON_SERVERS, empty, query, race
from .worlds import inner_engine, one_world

Failed = pytest.fail.Exception

everywhere = pytest.mark.parametrize("desk", [*DESKS, ON_FILE], ids="-".join, indirect=True)
"""Every database with every claim, and every database on asyncio."""

TWINS = one_world("broken twins: the properties see")

in_a_file = pytest.mark.parametrize("desk", EACH[:1], ids="-".join, indirect=True)
"""For broken twins, on which one database is enough."""

THOROUGH = settings().max_examples > 100
"""Whether there is time: see the task `soak` of dev.py."""

_TABLES = {"slots": "slot_id", "slot_holds": "id", "slot_hold_keys": "owner, hold_id"}


def effort(desk: Desk, *, in_memory: int, on_a_server: int, **options: Any) -> settings:
    """How many examples: a query to a server takes its time, and one on asyncio as well."""
    is_fast = isinstance(desk.slots._database, Sqlite) and desk.world.name == "blocking"
    examples = in_memory if is_fast else on_a_server
    return settings(
        max_examples=examples * 60 if THOROUGH else examples,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        **options,
    )


def at_once(
    desk: Desk, calls: Sequence[Callable[[], Any]], *, slots: Sequence[int] = (1,)
) -> list[Any]:
    """Make all calls at once; return what each returned, or raised.

    They gather behind a lock on these slots, or on the whole of a SQLite database, which is let go
    when all of them are there. A server is asked who waits. There is no race that did not happen.
    """
    database = desk.slots._database
    if isinstance(database, Sqlite):
        return race(calls, behind=database._turns, overlaps=len(calls) - 1)
    outside = sa.create_engine(desk.slots.engine.url, isolation_level="READ COMMITTED")
    kind = {"postgresql": ON_SERVERS[0]}.get(outside.dialect.name, ON_SERVERS[1])
    try:
        return Crowd(kind, desk.world, [desk.slots], outside).race(calls, slots=slots)
    finally:
        outside.dispose()


def renew(desk: Desk) -> None:
    """Have nothing there but the two slots of every desk."""
    empty(desk.slots)
    desk.slots.add([(1, 4)], scope="a")
    desk.slots.add([(2, 1)], scope="b")
    desk.written_off.clear()
    desk.told.clear()


def rows_of(desk: Desk) -> list[tuple[Any, ...]]:
    """All there is in the tables, as others read it."""
    return [
        (table, *row)
        for table, key in _TABLES.items()
        for row in query(desk.slots, f"SELECT * FROM {table} ORDER BY {key}")
    ]


@contextmanager
def breaking_off(desk: Desk, step: int) -> Iterator[list[str]]:
    """Let this step of whatever is done be its end: no statement is sent then, and no COMMIT.

    Yields:
        The steps, as they are come to: statements, and "COMMIT".
    """
    steps: list[str] = []

    def come_to(name: str) -> None:
        steps.append(name)
        if len(steps) == step:
            raise desk.world.interrupt

    def send(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        come_to(statement)

    def commit(_connection: sa.Connection) -> None:
        come_to("COMMIT")

    engine = inner_engine(desk.slots)
    listeners: dict[str, Any] = {"before_cursor_execute": send, "commit": commit}
    for event, listener in listeners.items():
        sa.event.listen(engine, event, listener)
    try:
        yield steps
    finally:
        for event, listener in listeners.items():
            sa.event.remove(engine, event, listener)


@contextmanager
def losing_answers(desk: Desk) -> Iterator[None]:
    """Let each COMMIT take effect, and its answer be lost."""
    dialect: Any = inner_engine(desk.slots).dialect
    commit = dialect.do_commit

    def commit_and_fail(connection: Any) -> None:
        commit(connection)
        raise dialect.loaded_dbapi.OperationalError("the answer was lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialect, "do_commit", commit_and_fail)
        yield


@contextmanager
def twin_of(desk: Desk, ledger: type[SqlLedger]) -> Iterator[None]:
    """Let the table use this ledger, and forget at the end what it did."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(desk.slots, "_ledger", ledger)
        patch.setattr(desk.slots, "_shortcut", None)
        try:
            yield
        finally:
            renew(desk)


@contextmanager
def noticed() -> Iterator[None]:
    """A property that has to fail here: at its first example, of which no smaller one is sought."""
    profile = settings.get_current_profile_name()
    settings.load_profile(_ON_TWINS)
    try:
        with pytest.raises((AssertionError, Failed, Failure, SlotcacheError)) as why:
            yield
        assert "there was no race" not in str(why.value)
    finally:
        settings.load_profile(profile)


_ON_TWINS = "twins"

settings.register_profile(
    _ON_TWINS, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)
