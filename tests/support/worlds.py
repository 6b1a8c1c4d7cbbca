"""The two worlds: a text that works with what a `World` makes, as if it blocked, tests both.

On asyncio that are stand-ins for the async twins, which all run on one event loop in a thread of
its own: the threads of a test are concurrent tasks there. `OF_ONE_WORLD` says which tests are of
one world alone, and why.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from slotcache import (
    AsyncHoldManager,
    AsyncSlotAvailabilityService,
    HoldManager,
    SlotAvailabilityService,
)
from slotcache.sql import AsyncSqlSlots, SqlSlots
from slotcache.testing import LoopThread
from slotcache.worlds import run

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


class World:
    """The blocking one.

    Attributes:
        name: What it is called in the names of tests.
        interrupt: What may end a call of somebody's at any time, and is no error.
    """

    name = "blocking"
    interrupt: type[BaseException] = KeyboardInterrupt

    def service(self, slots: Any, **options: Any) -> SlotAvailabilityService:
        """Return a service."""
        return SlotAvailabilityService(slots, **options)

    def holds(self, slots: Any, **options: Any) -> HoldManager:
        """Return a manager of the holds on a table that this world has made."""
        return HoldManager(slots, **options)

    def table(
        self,
        engine: sa.Engine,
        *,
        engine_options: Mapping[str, Any] = NO_OPTIONS,
        **options: Any,
    ) -> SqlSlots:
        """Return a table on this engine.

        Args:
            engine: On asyncio, the table has a twin of it, and this is for looking from outside.
            engine_options: What that engine was made with, for the twin.
            options: As for `SqlSlots`.
        """
        return SqlSlots(engine, **options)

    def sqlite(self, path: str | Path, **options: Any) -> SqlSlots:
        """Return a table in a file, or in memory."""
        return SqlSlots.sqlite(path, **options)

    def ask(self, slots: SqlSlots, sql: str) -> list[tuple[Any, ...]]:
        """Return what the database says on a connection of the table's own pool."""
        with slots.engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(sql)]

    def run(self, flow: Coroutine[Any, Any, Any]) -> Any:
        """Run what the two halves share, on ports of this world."""
        return run(flow)

    def close(self) -> None:
        """Close what is left of what was made."""

    def __repr__(self) -> str:
        return self.name


BLOCKING = World()


class OnAsyncio(World):
    """The other one.

    Args:
        loop: Where everything runs.
    """

    name = "asyncio"

    def __init__(self, loop: LoopThread) -> None:
        self.interrupt = asyncio.CancelledError
        self.loop = loop
        self._engines: list[AsyncEngine] = []
        self._services: list[weakref.ref[AsyncSlotAvailabilityService]] = []

    def service(self, slots: Any, **options: Any) -> Any:
        made = AsyncSlotAvailabilityService(real(slots), **options)
        self._services.append(weakref.ref(made))
        return StandIn(made, self)

    def holds(self, slots: Any, **options: Any) -> Any:
        if "on_change" in options:
            options["on_change"] = real(options["on_change"])
        return StandIn(AsyncHoldManager(real(slots), **options), self)

    def table(
        self,
        engine: sa.Engine,
        *,
        engine_options: Mapping[str, Any] = NO_OPTIONS,
        **options: Any,
    ) -> Any:
        twin = create_async_engine(async_url(engine.url), **engine_options)
        self._engines.append(twin)
        if chosen := engine.get_execution_options():
            twin = twin.execution_options(**chosen)
        return TableStandIn(AsyncSqlSlots(twin, **options), self, engine)

    def sqlite(self, path: str | Path, **options: Any) -> Any:
        return TableStandIn(AsyncSqlSlots.sqlite(path, **options), self, None)

    def ask(self, slots: SqlSlots, sql: str) -> list[tuple[Any, ...]]:
        async def asked() -> list[tuple[Any, ...]]:
            async with real(slots).engine.connect() as connection:
                return [tuple(row) for row in await connection.exec_driver_sql(sql)]

        return self.loop.run(asked())

    def run(self, flow: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run(flow)

    def close(self) -> None:
        while self._services:
            service = self._services.pop()()
            if service is not None:
                self.loop.run(service.close())
        while self._engines:
            self.loop.run(self._engines.pop().dispose())


DRIVERS = {"sqlite": "aiosqlite", "postgresql": "psycopg", "mysql": "asyncmy", "mariadb": "asyncmy"}


def async_url(url: sa.URL) -> sa.URL:
    """Return the URL of the same database for an engine of asyncio."""
    name = url.get_backend_name()
    return url.set(drivername=f"{name}+{DRIVERS[name]}")


class StandIn:
    """Stands for an object of asyncio: its coroutine methods run there, and are waited for."""

    def __init__(self, stands_for: Any, world: OnAsyncio) -> None:
        self._real = stands_for
        self._world = world

    def __getattr__(self, name: str) -> Any:
        source = self._real
        if not hasattr(source, name):
            source = source._table  # what a test looks up inside of a table
        value = getattr(source, name)
        if inspect.iscoroutinefunction(value):
            return Waited(value, self._world)
        if name == "within":
            return lambda transaction: StandIn(value(transaction), self._world)
        return value

    def __enter__(self) -> Any:
        self._world.run(self._real.__aenter__())
        return self

    def __exit__(self, *exception: object) -> None:
        self._world.run(self._real.__aexit__(*exception))


class Waited:
    """A coroutine function, called as if it blocked."""

    def __init__(self, stands_for: Callable[..., Any], world: OnAsyncio) -> None:
        self._real = stands_for
        self._world = world

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._world.run(self._real(*args, **options))


class TableStandIn(StandIn):
    """Stands for a table, whose `engine` is a blocking one for looking at it from outside."""

    def __init__(self, stands_for: Any, world: OnAsyncio, engine: sa.Engine | None) -> None:
        super().__init__(stands_for, world)
        self._given = engine
        self._made: sa.Engine | None = None

    @property
    def engine(self) -> sa.Engine:
        if self._given is not None:
            return self._given
        if self._made is None:
            url = self._real.engine.url.set(drivername="sqlite+pysqlite")
            self._made = sa.create_engine(url)
        return self._made

    def __exit__(self, *exception: object) -> None:
        if self._made is not None:
            self._made.dispose()
        super().__exit__(*exception)


def real(thing: Any) -> Any:
    """Return what a stand-in, or a method of one, stands for; anything else as it is."""
    return thing._real if isinstance(thing, StandIn | Waited) else thing


def current_caller() -> object:
    """Return the task that asks, or the thread."""
    with suppress(RuntimeError):
        return asyncio.current_task()
    return threading.get_ident()


def inner_engine(slots: Any) -> sa.Engine:
    """Return the engine that a table itself uses, to listen to."""
    engine: sa.Engine = slots._database._engine
    return engine


class WithAsyncPorts(OnAsyncio):
    """The same, where the table, the cache and the locks of a service are async ports, too."""

    def __init__(self, loop: LoopThread) -> None:
        super().__init__(loop)
        self._ports: dict[int, AsyncPort] = {}

    def service(self, slots: Any, **options: Any) -> Any:
        for name in {"cache", "locks"} & options.keys():
            options[name] = self._awaited(options[name])
        return super().service(self._awaited(slots), **options)

    def _awaited(self, port: Any) -> Any:
        """Return the one that stands for this port, of which services may share what it bears."""
        if port is None or isinstance(port, StandIn):
            return port
        return self._ports.setdefault(id(port), AsyncPort(port))


class AsyncPort:
    """A port as somebody's who awaits what it does."""

    def __init__(self, port: Any) -> None:
        self._port = port

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._port, name)
        if name == "locks":
            return lambda: AsyncPort(value())
        if not inspect.isroutine(value):
            return value

        async def awaited(*args: Any, **options: Any) -> Any:
            return await asyncio.to_thread(getattr(self._port, name), *args, **options)

        return awaited


class Worlds:
    """Makes the worlds of a session, which share one event loop."""

    both = ("blocking", "asyncio")

    for_services = (*both, "asyncio with async ports")

    def __init__(self) -> None:
        self._loop: LoopThread | None = None

    def open(self, name: str) -> World:
        """Return a world whose things are closed with it."""
        if name == "blocking":
            return BLOCKING
        if self._loop is None:
            self._loop = LoopThread()
            self._loop.loop.set_default_executor(ThreadPoolExecutor(64))
        return OnAsyncio(self._loop) if name == "asyncio" else WithAsyncPorts(self._loop)

    def close(self) -> None:
        """End the loop."""
        if self._loop is not None:
            self._loop.close()


def one_world(reason: str) -> pytest.MarkDecorator:
    """Say why a test is of one world, where the others of its module are of both."""
    return pytest.mark.one_world(reason)


VALUES = "values and plain state: nothing waits in them"
EXPLORED = "the explorer runs the flow of both worlds by itself"
FILES = "the adapter of files, which blocks: asyncio calls it in threads"
KILLED = "processes that are killed or forked"
STATEMENTS = "what is sent to the database, which is the same"
SESSIONS = "the sessions and transactions of users who block"
SERVER = "what Redis and its clients do, of which the flow knows nothing"
HALVES = "the two halves side by side"
ASYNC = "of the async half alone"
DOCUMENTS = "documents, examples and packaging"
SUPPORT = "what the tests stand on"

OF_ONE_WORLD = {
    "test_alembic": STATEMENTS,
    "test_asyncio": ASYNC,
    "test_availability": VALUES,
    "test_benchmarks": DOCUMENTS,
    "test_cancellation": ASYNC,
    "test_clearing": SESSIONS,
    "test_codec": VALUES,
    "test_database_servers": SUPPORT,
    "test_django": SESSIONS,
    "test_docs": DOCUMENTS,
    "test_errors": VALUES,
    "test_examples": DOCUMENTS,
    "test_fastapi": ASYNC,
    "test_file_cache": FILES,
    "test_file_locks": FILES,
    "test_file_processes": FILES,
    "test_file_schedules": EXPLORED,
    "test_hold_kills": KILLED,
    "test_laws": "laws of backends that block, and broken ones",
    "test_lifecycle": VALUES,
    "test_memory": "caches and locks in memory: they never wait, in either half",
    "test_package": DOCUMENTS,
    "test_policy": VALUES,
    "test_races": "races of many more kinds, for the database to decide",
    "test_redis": SERVER,
    "test_redis_cancellation": ASYNC,
    "test_redis_faults": SERVER,
    "test_redis_loops": ASYNC,
    "test_redis_processes": KILLED,
    "test_redis_schedules": EXPLORED,
    "test_servers": SUPPORT,
    "test_shortcut": STATEMENTS,
    "test_sql_turns": "turns of threads",
    "test_support": SUPPORT,
    "test_transaction_kills": KILLED,
    "test_transactions": SESSIONS,
    "test_twins": HALVES,
    "test_wheel": DOCUMENTS,
    "test_worlds": "the worlds themselves",
}
"""By module: why those of its tests that do not run in both worlds are of one.

A test may have a reason of its own (`one_world`). One that has neither fails.
"""

BOTH, UNSAID = "both", "nobody says why"

_OTHERS = ("asyncio", "uvloop")
"""How the names of worlds begin that are not the blocking one."""

_OF_BOTH = {"in_two_worlds"}
"""Fixtures in which the two worlds meet."""


def worlds_of(item: pytest.Item) -> str:
    """Return `BOTH`, or why a test is of one world, or `UNSAID`."""
    if not isinstance(item, pytest.Function):
        return DOCUMENTS
    if not _OF_BOTH.isdisjoint(item.fixturenames) or any(map(_has_both, _choices_of(item))):
        return BOTH
    marker = item.get_closest_marker("one_world")
    return marker.args[0] if marker else OF_ONE_WORLD.get(item.path.stem, UNSAID)


def _choices_of(item: pytest.Function) -> Iterator[Iterable[Any]]:
    """All that each parameter of a test may be: its own come before those of its fixtures."""
    named: set[str] = set()
    for marker in item.iter_markers("parametrize"):
        given = dict(zip(("argnames", "argvalues"), marker.args, strict=False))
        given.update(marker.kwargs)
        names, values = given["argnames"], given["argvalues"]
        named.update(names.replace(",", " ").split() if isinstance(names, str) else names)
        yield values
    for name, definitions in item._fixtureinfo.name2fixturedefs.items():
        if name not in named and definitions[-1].params:
            yield definitions[-1].params


def _has_both(choices: Iterable[Any]) -> bool:
    """Whether there is one that is of asyncio, and one that is not."""
    return len({_is_on_asyncio(each) for each in choices}) > 1


def _is_on_asyncio(choice: Any) -> bool:
    """Whether this is, or has in it, the name of a world that is not the blocking one."""
    if isinstance(choice, str):
        return choice.startswith(_OTHERS)
    parts = getattr(choice, "values", choice)  # a pytest.param, for one
    return isinstance(parts, tuple) and any(map(_is_on_asyncio, parts))
