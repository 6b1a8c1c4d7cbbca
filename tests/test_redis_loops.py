"""`AsyncRedisCache` in event loops: one after the other, several at once, stalled, and in none."""

import asyncio
import gc
import socket
import time
import weakref
from contextlib import ExitStack, suppress
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.cluster import LoadBalancingStrategy

from slotcache import AsyncSlotAvailabilityService, BackendError
from slotcache.availability import Availability
from slotcache.protocols import Generation, Lock, Miss
from slotcache.redis import AsyncRedisCache, AsyncRedisLocks, RedisCache
from slotcache.testing import LoopThread
from slotcache.testing.laws.subject import KEY, LONG, expect_fresh, fill, together
from tests.support.clients import ASYNC_NO_RETRY, async_client, async_cluster_client
from tests.support.forks import in_child
from tests.support.processes import eventually
from tests.support.proxy import Proxy
from tests.support.shelf import Shelf


@pytest.fixture
def proxy(redis_server):
    with Proxy(*redis_server.address) as proxy:
        yield proxy


@pytest.fixture
def cache(proxy, redis_prefix, unhurried):
    """A cache, behind the proxy, in which a list with ten free places is kept."""
    with RedisCache(proxy.url, prefix=redis_prefix) as elsewhere:
        fill(elsewhere, elsewhere.look(KEY), 10)
    return AsyncRedisCache(proxy.url, prefix=redis_prefix)


new_loops = pytest.mark.parametrize(
    "new_loop",
    [
        pytest.param(asyncio.new_event_loop, id="asyncio"),
        pytest.param(lambda: pytest.importorskip("uvloop").new_event_loop(), id="uvloop"),
    ],
)


def run_in(new_loop, work):
    with asyncio.Runner(loop_factory=new_loop, debug=True) as runner:
        runner.get_loop()  # or skip the test
        runner.run(work())


async def read(cache, times=1):
    for _ in range(times):
        expect_fresh(await cache.read(KEY), 10)


# Loops.


@new_loops
def test_one_object_serves_loop_after_loop_and_leaves_nothing_open(new_loop, cache, proxy):
    before = proxy.accepted
    for _ in range(3):
        run_in(new_loop, partial(read, cache, times=2))
    gc.collect()  # were anything left open, it would say so

    assert proxy.accepted == before + 3
    eventually(lambda: all(link._is_dropped for link in proxy._links))


def test_one_object_serves_loops_in_several_threads_at_once(cache):
    with ExitStack() as stack:
        loops = [stack.enter_context(LoopThread()) for _ in range(2)]

        async def rush():
            await asyncio.gather(*(read(cache, times=10) for _ in range(10)))

        together(*[partial(loop.run, rush()) for loop in loops])


def test_of_a_closed_loop_nothing_is_kept_once_there_is_a_call_in_another_one(cache):
    async def read_and_tell():
        await read(cache)
        return weakref.ref(asyncio.get_running_loop())

    first = asyncio.run(read_and_tell())
    asyncio.run(read(cache))
    gc.collect()

    assert first() is None


@new_loops
def test_what_is_closed_is_closed_at_once_and_made_anew(new_loop, cache, proxy):
    async def use_twice():
        async with cache, cache.locks():
            await read(cache)
        gc.collect()
        await asyncio.to_thread(eventually, lambda: all(link._is_dropped for link in proxy._links))
        await read(cache)

    run_in(new_loop, use_twice)


def test_tasks_have_connections_of_their_own_and_pass_them_on(cache, proxy):
    before = proxy.accepted

    async def rush():
        await asyncio.gather(*(read(cache, times=5) for _ in range(8)))
        await read(cache, times=5)

    asyncio.run(rush())

    assert proxy.accepted - before == 8


def test_no_more_connections_are_made_than_the_url_says(proxy, redis_prefix, unhurried):
    cache = AsyncRedisCache(f"{proxy.url}?max_connections=1", prefix=redis_prefix)

    async def rush():
        await cache.look(KEY)
        return await asyncio.gather(*(cache.look(KEY) for _ in range(2)), return_exceptions=True)

    looks = asyncio.run(rush())

    assert proxy.accepted == 1
    assert [str(look) for look in looks if isinstance(look, BackendError)] == [
        "Too many connections"
    ]


@pytest.mark.parametrize(
    "call",
    [
        lambda cache: cache.read(KEY),
        lambda cache: cache.locks().acquire(KEY, ttl=LONG),
        lambda cache: cache.close(),
    ],
    ids=["read", "acquire", "close"],
)
def test_without_a_loop_of_asyncio_it_says_what_it_needs(call):
    with pytest.raises(RuntimeError, match="runs on asyncio"):
        call(AsyncRedisCache("redis://localhost")).send(None)


def test_under_trio_it_says_what_it_needs():
    trio = pytest.importorskip("trio")
    with pytest.raises(RuntimeError, match="runs on asyncio"):
        trio.run(AsyncRedisCache("redis://localhost").read, KEY)


def test_a_forked_child_makes_its_own_connections_and_leaves_the_parents_alone(cache, proxy):
    async def read_then_fork():
        await read(cache)
        mine = proxy.accepted
        loop = asyncio.get_running_loop()
        in_child(lambda: (asyncio.run(read(cache)), gc.collect()))
        assert proxy.accepted == mine + 1
        await asyncio.wait_for(read(cache), 5)
        assert proxy.accepted == mine + 1, "it had to make another one"
        assert loop is asyncio.get_running_loop()

    asyncio.run(read_then_fork())


# Time.


def test_a_silent_server_keeps_nobody_but_its_callers(cache, proxy, monkeypatch):
    monkeypatch.setattr("slotcache.redis.bounds.BUDGET", 0.25)
    proxy.silent()

    async def tick(instants):
        while True:
            instants.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def read_in_vain():
        instants = []
        ticker = asyncio.create_task(tick(instants))
        reads = (cache.read(KEY) for _ in range(10))
        found = await asyncio.gather(*reads, return_exceptions=True)
        ticker.cancel()
        return found, instants

    found, instants = asyncio.run(read_in_vain())

    assert all(isinstance(each, BackendError) for each in found)
    assert 0.2 < instants[-1] - instants[0] < 1
    assert max(later - sooner for sooner, later in pairwise(instants)) < 0.2


def test_a_task_does_not_wait_twice_in_vain_and_another_one_asks_for_itself(
    cache, proxy, monkeypatch
):
    monkeypatch.setattr("slotcache.redis.bounds.BUDGET", 0.25)
    monkeypatch.setattr("slotcache.redis.server._MOMENT", 60.0)
    proxy.silent()

    async def read_in_vain():
        with pytest.raises(BackendError, match=r"no answer within 0\.25 s"):
            await cache.read(KEY)
        asked = len(proxy.requests)
        with pytest.raises(BackendError, match="a moment ago"):
            await cache.read(KEY)
        assert await cache.locks().release(Lock("a lock", "a token")) is False
        assert len(proxy.requests) == asked
        proxy.heal()
        await asyncio.create_task(read(cache))
        await read(cache)

    asyncio.run(read_in_vain())


def test_what_a_server_does_not_take_keeps_no_connection_open(monkeypatch):
    monkeypatch.setattr("slotcache.redis.bounds.BUDGET", 0.1)
    long = Availability.of((f"{number:>10000}", 5, 1) for number in range(600))
    looked = Miss(Generation(1, 0), look=1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        cache = AsyncRedisCache("redis://{}:{}".format(*listener.getsockname()))
        with pytest.raises(BackendError, match="no answer"):
            asyncio.run(cache.fill(KEY, looked, long, ttl=LONG, stale_ttl=LONG))
    gc.collect()  # were anything left open, it would say so


def test_a_loop_that_stands_still_makes_no_clear_fail(redis_server, redis_prefix, monkeypatch):
    """It has no connection yet: what is left to do, it may do in the moment after."""
    monkeypatch.setattr("slotcache.redis.bounds.BUDGET", 0.1)

    async def clear_meanwhile():
        cache = AsyncRedisCache(redis_server.url, prefix=redis_prefix)
        async with AsyncSlotAvailabilityService(Shelf(), cache=cache) as service:
            asyncio.get_running_loop().call_soon(time.sleep, 0.2)
            return await service.clear_availability_cache()

    assert asyncio.run(clear_meanwhile()) is True


# Clients that are given.


class Stubborn(redis.asyncio.Redis):
    """Takes cancellations for nothing, until it is told to end; then it does not end well."""

    def __init__(self, may_end):
        super().__init__(retry=ASYNC_NO_RETRY)
        self.may_end = may_end

    async def execute_command(self, *_args, **_options):
        while not self.may_end.is_set():
            with suppress(asyncio.CancelledError):
                await self.may_end.wait()
        raise RuntimeError


def test_a_client_that_takes_cancellations_for_nothing_keeps_nobody(monkeypatch):
    monkeypatch.setattr("slotcache.redis.bounds.BUDGET", 0.1)
    complaints = []

    async def read_in_vain():
        asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
        may_end = asyncio.Event()
        cache = AsyncRedisCache(Stubborn(may_end))
        with pytest.raises(BackendError, match="no answer"):
            await cache.read(KEY)
        reading = asyncio.create_task(cache.read("another"))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        may_end.set()
        await asyncio.gather(*cache._server._left, return_exceptions=True)

    asyncio.run(read_in_vain())
    gc.collect()

    assert not complaints


@pytest.mark.parametrize("kind", ["a client", "a cluster"])
def test_a_client_that_brings_the_answer_to_another_call_begins_anew(
    kind, redis_server, redis_cluster, redis_prefix, unhurried, monkeypatch
):
    async def answer_of_another_call(*_args, **_options):
        return [b"its nonce", 1]

    def connections(client):
        of = client.connection_pool if kind == "a client" else client.get_nodes()[0]
        all_of_them = of._available_connections if kind == "a client" else of._connections
        return sum(each.is_connected for each in all_of_them)

    async def use():
        is_cluster = kind == "a cluster"
        url = (redis_cluster if is_cluster else redis_server).url
        async with (async_cluster_client if is_cluster else async_client)(url) as client:
            cache = AsyncRedisCache(client, prefix=redis_prefix)
            await cache.look(KEY)
            assert connections(client) >= 1
            with monkeypatch.context() as patch:
                patch.setattr(client, "execute_command", answer_of_another_call)
                with pytest.raises(BackendError, match="answers no call of ours"):
                    await cache.look(KEY)
            assert connections(client) == 0
            await cache.look(KEY)

    asyncio.run(use())


RETRY = "retry=Retry(NoBackoff(), 0)"
SENTINEL = Sentinel([("127.0.0.1", 1)])
GOOD: dict[str, Any] = {"retry": ASYNC_NO_RETRY}
ROUND_ROBIN: dict[str, Any] = {"load_balancing_strategy": LoadBalancingStrategy.ROUND_ROBIN}


UNSAFE = {
    "retries as a default": (lambda: redis.asyncio.Redis(), RETRY),
    "retries": (lambda: redis.asyncio.Redis(retry=Retry(NoBackoff(), 1)), RETRY),
    "encoding": (
        lambda: redis.asyncio.Redis(**GOOD, encoding="utf-16"),
        "encoding='utf-8'",
    ),
    "one connection": (
        lambda: redis.asyncio.Redis(**GOOD, single_connection_client=True),
        "single_connection_client=False",
    ),
    "a replica": (lambda: SENTINEL.slave_for("shop", **GOOD), "Sentinel.master_for"),
    "a cluster, retries": (lambda: redis.asyncio.RedisCluster("127.0.0.1"), RETRY),
    "a cluster, replicas": (
        lambda: redis.asyncio.RedisCluster("127.0.0.1", **GOOD, **ROUND_ROBIN),
        "read_from_replicas=False, load_balancing_strategy=None",
    ),
    "a cluster, encoding": (
        lambda: redis.asyncio.RedisCluster("127.0.0.1", **GOOD, encoding="utf-16"),
        "encoding='utf-8'",
    ),
}


@pytest.mark.parametrize(("client", "advice"), UNSAFE.values(), ids=UNSAFE)
@pytest.mark.parametrize("kind", [AsyncRedisCache, AsyncRedisLocks])
def test_a_client_that_is_not_safe_is_refused(kind, client, advice):
    with pytest.raises(ValueError, match="waiting") as refused:
        kind(client())

    assert str(refused.value).split("make it with ")[1] == advice


def test_a_client_of_the_primary_is_taken():
    AsyncRedisCache(SENTINEL.master_for("shop", **GOOD))


@pytest.mark.parametrize("option", ["socket_timeout=5", "socket_connect_timeout=0"])
def test_a_url_that_could_keep_a_reader_waiting_is_refused(option):
    with pytest.raises(ValueError, match=r"this URL.*Leave them out.*=0\.25"):
        AsyncRedisCache(f"redis://localhost?{option}")


def test_a_url_with_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match="socket_timout"):
        AsyncRedisCache("redis://:secret@localhost?socket_timout=0.1")


@pytest.mark.parametrize("url", ["localhost", "http://localhost", ""])
def test_what_is_no_url_of_a_server_is_refused(url):
    with pytest.raises(ValueError, match="redis://"):
        AsyncRedisCache(url)


@pytest.mark.parametrize(
    "server",
    [
        lambda: None,
        lambda: b"redis://localhost",
        lambda: async_client("redis://localhost").pipeline(),
        lambda: async_cluster_client("redis://localhost").pipeline(),
    ],
    ids=["nothing", "bytes", "a pipeline", "a pipeline of a cluster"],
)
def test_what_is_no_server_is_refused(server):
    with pytest.raises(TypeError, match=r"must be a URL such as .* a client of redis\.asyncio"):
        AsyncRedisCache(server())


@pytest.mark.parametrize(
    ("kind", "client", "instead"),
    [
        (RedisCache, redis.asyncio.Redis, "AsyncRedisCache and AsyncRedisLocks take it"),
        (AsyncRedisCache, redis.Redis, ": RedisCache and RedisLocks take it"),
    ],
    ids=["blocking", "asyncio"],
)
def test_a_client_of_the_other_world_is_told_where_to_go(kind, client, instead):
    with pytest.raises(TypeError, match=instead):
        kind(client())
