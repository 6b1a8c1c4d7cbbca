"""A call on asyncio may be cancelled wherever it waits, and once more while it tidies up."""

import asyncio
import gc
from itertools import count

import pytest

from slotcache.availability import Availability
from slotcache.redis import AsyncRedisCache, RedisCache
from slotcache.testing.laws.subject import KEY, LONG, expect_lock, fill, free_places
from tests.support.clients import async_client, async_cluster_client
from tests.support.points import Points

LISTS = {KEY: 10, "another": 9}
CALLS = {
    "read": lambda cache, lock: cache.read(KEY),
    "fill": lambda cache, lock: fill_anew(cache),
    "clear": lambda cache, lock: cache.clear("a third"),
    "acquire": lambda cache, lock: cache.locks().acquire("a lock", ttl=LONG),
    "release": lambda cache, lock: cache.locks().release(lock),
}


async def fill_anew(cache):
    looked = await cache.look("a third")
    await cache.fill("a third", looked, Availability.of([]), ttl=LONG, stale_ttl=LONG)


class ByUrl:
    """Connections are made here: each has to be greeted, and to choose its database."""

    def __init__(self, url, prefix):
        self.options = {"prefix": prefix}
        self.server = self.url = f"{url}/1?protocol=3"

    async def through(self, points, cache, coroutine):
        """Run this call so that its points are counted."""
        return await points.of(coroutine)

    def taken(self, cache):
        """How many connections are not idle."""
        return sum(each.taken for each in cache._server._owned._of.values())

    async def close(self):
        pass


class ByClient(ByUrl):
    """The client does each call in a task of its own."""

    def __init__(self, url, prefix):
        super().__init__(url, prefix)
        self.server = async_client(self.url)

    async def through(self, points, cache, coroutine):
        apart = cache._server._apart
        cache._server._apart = lambda work: apart(points.of(work))
        return await coroutine

    def taken(self, cache):
        return len(self.server.connection_pool._in_use_connections)

    async def close(self):
        await self.server.aclose()


class ByCluster(ByClient):
    """So does this one, which has to ask first where everything is."""

    def __init__(self, url, prefix):
        self.options = {"prefix": prefix}
        self.url = url
        self.server = async_cluster_client(url)

    def taken(self, cache):
        made = [each for node in self.server.get_nodes() for each in node._connections]
        idle = [each for node in self.server.get_nodes() for each in node._free]
        # redis-py 6.4 forgets the one that it could not connect, which is not open.
        return sum(each.is_connected for each in made if each not in idle)


WAYS = {
    "a URL": (ByUrl, CALLS, (0, 1)),
    "a URL, later": (ByUrl, ("acquire", "release"), (2, 3)),
    "a client": (ByClient, ("fill", "acquire"), (0, 1)),
    "a cluster": (ByCluster, ("acquire",), (1,)),
}
CASES = [
    pytest.param(way, call, once_more, id=f"{name}, {call}, {once_more}")
    for name, (way, calls, times) in WAYS.items()
    for call in calls
    for once_more in times
]


@pytest.mark.parametrize(("way", "call", "once_more"), CASES)
def test_a_call_may_be_cancelled_wherever_it_waits(
    way, call, once_more, redis_server, redis_cluster, redis_prefix, unhurried, monkeypatch
):
    """And so many points later once more."""
    monkeypatch.setattr("slotcache.redis.server._MOMENT", 10.0)  # what is owed is paid at once
    server = redis_cluster if way is ByCluster else redis_server
    with RedisCache(way(server.url, redis_prefix).url, prefix=redis_prefix) as elsewhere:
        for key, free in LISTS.items():
            fill(elsewhere, elsewhere.look(key), free, key=key)
        for point in count(1):
            server.command("SCRIPT", "FLUSH")  # so each call is two commands
            at = {point, point + once_more}
            how = way(server.url, redis_prefix)
            if asyncio.run(waits_at(at, how, call, elsewhere)) < point:
                break
    gc.collect()  # were anything left open, it would say so

    assert point > 5, "it waits for a connection, a greeting, and two answers"


async def waits_at(at, way, call, elsewhere):
    """Cancel a call there, and use what is left; return at how many points it has waited."""
    held = expect_lock(elsewhere.locks(), "held")
    cache = AsyncRedisCache(way.server, **way.options)
    points = Points(at, lambda: (asyncio.current_task() if task.done() else task).cancel())
    task = asyncio.create_task(way.through(points, cache, CALLS[call](cache, held)))
    [outcome] = await asyncio.gather(task, return_exceptions=True)
    await asyncio.gather(*cache._server._left, return_exceptions=True)
    points.end()

    assert isinstance(outcome, asyncio.CancelledError) == (points.count >= min(at)), outcome
    assert way.taken(cache) == 0
    found = await asyncio.gather(*map(cache.read, LISTS))
    assert list(map(free_places, found)) == list(LISTS.values())
    await cache.read(KEY)  # with each answer, one thing is paid that is owed
    assert not cache._server._owed
    if isinstance(outcome, asyncio.CancelledError):
        ours = {"acquire": "a lock", "release": "held"}.get(call, "another lock")
        elsewhere.locks().release(expect_lock(elsewhere.locks(), ours))
    elsewhere.locks().release(held)
    await cache.close()
    await way.close()
    return points.count
