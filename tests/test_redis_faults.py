"""Each way in which a server can fail, in the midst of each operation: one table.

A fault strikes right before an operation of the flow, and stays until it is healed, unless it is
one that happens once. The table in docs/explanation/failures.md is this one:

    python3 -m tests.test_redis_faults     writes it
"""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from slotcache import AvailabilityPolicy, SlotAvailabilityService
from slotcache.redis import RedisCache, RedisLocks
from tests.support.clients import WORLDS, World
from tests.support.processes import eventually
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer, free_port
from tests.support.shelf import Shelf, left

PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "failures.md"
BEGIN, END = "<!-- faults -->", "<!-- /faults -->"

BUDGET = 0.5  # twice the real one: a busy machine must not be taken for a slow server
KEY = "slots.availability"
OPERATIONS = {
    "look": "read",
    "fill": "fill",
    "clear": "clear",
    "acquire": "acquire",
    "release": "release",
}


class Stage:
    """A server, a proxy in front of it, a service behind that, and one that is elsewhere."""

    def __init__(self, server: RedisServer, proxy: Proxy, prefix: str) -> None:
        self.server = server
        self.proxy = proxy
        self.list = f"{{{prefix}}}:list:{KEY}"
        self.lock = f"{{{prefix}}}:lock:{KEY}.lock"
        self.prefix = prefix
        self.let_in()

    def let_in(self) -> None:
        self.server.command("ACL", "SETUSER", "shop", "on", "resetpass", ">right", "~*", "+@all")

    def restart(self) -> None:
        self.server.kill()
        self.server.start()
        self.let_in()

    def fill_up(self) -> None:
        self.server.command("CONFIG", "SET", "maxmemory", 1)

    def evict(self) -> None:
        """Have the server make room until the list is gone."""
        used = self.server.command("INFO", "memory").split(b"used_memory:")[1].split(b"\r\n")[0]
        self.server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
        self.server.command("CONFIG", "SET", "maxmemory", int(used) + 500_000)
        for number in range(10_000):
            self.server.command("SET", f"other {number}", b"x" * 50_000)
            if not self.server.command("EXISTS", self.list):
                return
        raise AssertionError("it has not been evicted")

    def demote(self) -> None:
        self.server.command("REPLICAOF", "127.0.0.1", free_port())

    def lock_out(self) -> None:
        self.server.command("ACL", "SETUSER", "shop", "resetpass", ">other")
        self.server.command("CLIENT", "KILL", "USER", "shop")

    def put_a_string(self, *keys: str) -> None:
        for key in keys:
            self.server.command("SET", key, "somebody else's")

    def heal(self) -> None:
        """Put everything right; what was lost stays lost."""
        self.proxy.heal()
        self.server.command("CONFIG", "SET", "maxmemory", 0)
        self.server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        self.server.command("REPLICAOF", "NO", "ONE")
        self.let_in()
        for key in (self.list, self.lock):
            if self.server.command("TYPE", key) == b"string" and not self.holds_a_lock(key):
                self.server.command("DEL", key)

    def holds_a_lock(self, key: str) -> bool:
        return int(self.server.command("PTTL", key)) > 0


@dataclass(frozen=True)
class Row:
    """A fault, and for each operation that it strikes: the answer, and that of the read afterwards.

    Attributes:
        wait: How long the caller may wait, beyond the time of its query.
    """

    fault: str
    strike: Callable[[Stage], object]
    wait: str
    look: str
    fill: str
    clear: str
    acquire: str
    release: str


AT_ONCE, TIME_OUT, SLOWLY = "none", "0.25 s", "under 0.25 s a call"
LIMITS = {AT_ONCE: BUDGET, TIME_OUT: 2 * BUDGET, SLOWLY: 6 * BUDGET}

KEPT = "CACHED, then CACHED"
LOST = "LOADED, then LOADED"
QUERIED = "LOADED, then CACHED"
PAST_IT = "DIRECT, then CACHED"
PAST_IT_AND_EMPTY = "DIRECT, then LOADED"
TAKEN = "True, then LOADED"
OWED = "False, then LOADED"

ONCE = {
    "wait": AT_ONCE,
    "look": PAST_IT,
    "fill": QUERIED,
    "clear": OWED,
    "acquire": QUERIED,
    "release": QUERIED,
}
AWAY = {
    "look": PAST_IT,
    "fill": LOST,
    "clear": OWED,
    "acquire": PAST_IT_AND_EMPTY,
    "release": QUERIED,
}

ROWS = (
    Row("refuses connections", lambda stage: stage.proxy.refuse(), wait=AT_ONCE, **AWAY),
    Row("does not answer", lambda stage: stage.proxy.silent(), wait=TIME_OUT, **AWAY),
    Row(
        "executes, and its answers are lost",
        lambda stage: stage.proxy.deaf(),
        wait=TIME_OUT,
        **{**AWAY, "fill": QUERIED},
    ),
    Row(
        "answers just in time",
        lambda stage: stage.proxy.delay(BUDGET / 2),
        wait=SLOWLY,
        look=KEPT,
        fill=QUERIED,
        clear=TAKEN,
        acquire=QUERIED,
        release=QUERIED,
    ),
    Row(
        "answers too late",
        lambda stage: stage.proxy.delay(BUDGET * 2),
        wait=TIME_OUT,
        **{**AWAY, "fill": QUERIED},
    ),
    Row(
        "answers byte by byte",
        lambda stage: stage.proxy.trickle(BUDGET * 0.6),
        wait=TIME_OUT,
        **{**AWAY, "fill": QUERIED},
    ),
    Row("breaks off an answer", lambda stage: stage.proxy.cut_after(1, times=1), **ONCE),
    Row(
        "answers something else",
        lambda stage: stage.proxy.garbage(b"HTTP/1.1 400 Bad Request\r\n\r\n", times=1),
        **ONCE,
    ),
    Row("executes, and one answer is lost", lambda stage: stage.proxy.lose_next_reply(), **ONCE),
    Row("resets a connection", lambda stage: stage.proxy.reset(times=1), **ONCE),
    Row(
        "was killed, and starts empty",
        lambda stage: stage.restart(),
        wait=AT_ONCE,
        look=QUERIED,
        fill=LOST,
        clear=TAKEN,
        acquire=QUERIED,
        release=LOST,
    ),
    Row(
        "was flushed",
        lambda stage: stage.server.command("FLUSHALL"),
        wait=AT_ONCE,
        look=QUERIED,
        fill=LOST,
        clear=TAKEN,
        acquire=QUERIED,
        release=LOST,
    ),
    Row(
        "has no memory left",
        lambda stage: stage.fill_up(),
        wait=AT_ONCE,
        look=KEPT,
        fill=LOST,
        clear=TAKEN,
        acquire=LOST,
        release=QUERIED,
    ),
    Row(
        "evicts the list",
        lambda stage: stage.evict(),
        wait=AT_ONCE,
        look=QUERIED,
        fill=LOST,
        clear=TAKEN,
        acquire=QUERIED,
        release=LOST,
    ),
    Row("is read-only", lambda stage: stage.demote(), wait=AT_ONCE, **AWAY),
    Row(
        "has something else at the keys",
        lambda stage: stage.put_a_string(stage.list, stage.lock),
        wait=AT_ONCE,
        look=PAST_IT_AND_EMPTY,
        fill=LOST,
        clear=TAKEN,
        acquire=PAST_IT_AND_EMPTY,
        release=LOST,
    ),
    Row("refuses the password", lambda stage: stage.lock_out(), wait=AT_ONCE, **AWAY),
    Row(
        "has forgotten the scripts",
        lambda stage: stage.server.command("SCRIPT", "FLUSH"),
        wait=AT_ONCE,
        look=KEPT,
        fill=QUERIED,
        clear=TAKEN,
        acquire=QUERIED,
        release=QUERIED,
    ),
)


ON_ASYNCIO = {
    *("refuses connections", "does not answer", "breaks off an answer", "answers something else"),
    *("resets a connection", "was killed, and starts empty", "is read-only"),
}
"""What differs there: how connections are made, waited for, and ended."""

CASES = [
    pytest.param(world, row, id=f"{world}, {row.fault}")
    for world in ("blocking", "asyncio")
    for row in ROWS
    if world == "blocking" or row.fault in ON_ASYNCIO
]


class Struck:
    """A backend to which something happens right before an operation, once it is armed."""

    def __init__(self, backend: object) -> None:
        self._backend = backend
        self._armed: dict[str, Callable[[], object]] = {}

    def arm(self, operation: str, strike: Callable[[], object]) -> None:
        self._armed[operation] = strike

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._backend, name)
        strike = self._armed.pop(name, None)
        if strike is None:
            return method

        def struck(*args: object, **options: object) -> object:
            strike()
            return method(*args, **options)

        async def struck_on_asyncio(*args: object, **options: object) -> object:
            await asyncio.to_thread(strike)
            return await method(*args, **options)

        return struck_on_asyncio if inspect.iscoroutinefunction(method) else struck


@pytest.fixture(scope="module")
def a_server(redis_program) -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def world(request) -> Iterator[World]:
    with WORLDS[request.param]() as world:
        yield world


@pytest.fixture
def stage(a_server, redis_prefix, monkeypatch) -> Iterator[Stage]:
    monkeypatch.setattr("slotcache.redis.bounds.BUDGET", BUDGET)
    monkeypatch.setattr("slotcache.guard.BUDGET", BUDGET)
    monkeypatch.setattr("slotcache.guard.PAUSE", 0.02)
    with Proxy(*a_server.address) as proxy:
        stage = Stage(a_server, proxy, redis_prefix)
        yield stage
        stage.heal()
        a_server.command("FLUSHALL")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("world", "row"), CASES, indirect=["world"])
def test_a_server_that(world, row, operation, stage):
    shelf = Shelf()
    with ExitStack() as close:
        url = f"redis://shop:right@127.0.0.1:{stage.proxy.port}"
        cache = Struck(world.backend(url, prefix=stage.prefix))
        close.callback(world.close, cache)
        locks = Struck(cache.locks())
        policy = AvailabilityPolicy(ttl=600)
        here = close.enter_context(world.service(shelf, cache=cache, locks=locks, policy=policy))
        direct = close.enter_context(RedisCache(stage.server.url, prefix=stage.prefix))
        elsewhere = SlotAvailabilityService(shelf, cache=direct, policy=policy)
        here.clear_availability_cache()  # all scripts have run once, unless they are forgotten
        here.read()
        if operation != "look":
            shelf.remaining = 9
        if operation not in ("look", "clear"):
            here.clear_availability_cache()
        for backend in (cache, locks):
            backend.arm(OPERATIONS[operation], partial(row.strike, stage))

        began = monotonic()
        answer = answered(here, shelf, operation)
        waited = monotonic() - began
        if not here.health().cache:
            assert left(here.get_availability()) == shelf.remaining, "stale in its own process"
        stage.heal()
        eventually(lambda: here.health().cache and here.health().locks)
        afterwards = here.read()

        assert f"{answer}, then {afterwards.source.name}" == getattr(row, operation)
        assert waited < LIMITS[row.wait]
        assert here.health().undelivered == 0
        for service in (here, elsewhere):
            assert left(service.get_availability()) == shelf.remaining, "stale"
        assert RedisLocks(stage.server.url, prefix=stage.prefix).acquire(f"{KEY}.lock", ttl=1), (
            "nobody has it, and it is not free"
        )


def answered(service: SlotAvailabilityService, shelf: Shelf, operation: str) -> str:
    """Do what has this operation in it; return its answer in a word."""
    if operation == "clear":
        return str(service.clear_availability_cache())
    reading = service.read()
    assert left(reading.availability) == shelf.remaining, "stale"
    return reading.source.name


def table() -> str:
    """Return the rows as Markdown."""
    head = ["a server that ...", "longest wait", *OPERATIONS]
    rows = [[row.fault, row.wait, *(getattr(row, each) for each in OPERATIONS)] for row in ROWS]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def test_the_docs_have_this_table():
    page = PAGE.read_text(encoding="utf-8")

    written = page.partition(BEGIN)[2].partition(END)[0].strip()

    assert written == table(), "write it anew: python3 -m tests.test_redis_faults"


def write() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write()
