"""The ways in which a user may reach a Redis server: in both worlds, with one text for the tests.

What is opened in a `World` is used as if it were blocking.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.retry
from redis._parsers import (
    _RESP2Parser,
    _RESP3Parser,
)
from redis.backoff import NoBackoff
from redis.retry import Retry

from slotcache import AsyncSlotAvailabilityService, SlotAvailabilityService
from slotcache.redis import AsyncRedisCache, AsyncRedisLocks, RedisCache, RedisLocks, bounds
from slotcache.testing import LoopThread

NO_RETRY = Retry(NoBackoff(), 0)
ASYNC_NO_RETRY = redis.asyncio.retry.Retry(NoBackoff(), 0)


def client(url: str, **options: Any) -> redis.Redis:
    """Return a client whose settings are those that are asked for."""
    return redis.Redis.from_url(url, **_in_time(), retry=NO_RETRY, **options)


def cluster_client(url: str, **options: Any) -> redis.RedisCluster:
    return redis.RedisCluster.from_url(url, **_in_time(), retry=NO_RETRY, **options)


def async_client(url: str, **options: Any) -> redis.asyncio.Redis:
    """Return one of asyncio; it is not asked for time-outs."""
    made: redis.asyncio.Redis = redis.asyncio.Redis.from_url(url, retry=ASYNC_NO_RETRY, **options)
    return made


def async_cluster_client(url: str, **options: Any) -> redis.asyncio.RedisCluster:
    return redis.asyncio.RedisCluster.from_url(url, retry=ASYNC_NO_RETRY, **options)


def _in_time() -> dict[str, float]:
    return dict.fromkeys(("socket_timeout", "socket_connect_timeout"), bounds.BUDGET)


class Blocking:
    """The world of `RedisCache`.

    Attributes:
        interrupt: What may end a call at any time.
        backend: What services of this world are given.
    """

    interrupt: type[BaseException] = KeyboardInterrupt
    connection = redis.Connection
    backend = RedisCache
    client = staticmethod(client)
    cluster_client = staticmethod(cluster_client)

    def cache(self, *args: Any, **options: Any) -> Any:
        return self.backend(*args, **options)

    def locks(self, *args: Any, **options: Any) -> Any:
        return RedisLocks(*args, **options)

    def service(self, *args: Any, **options: Any) -> Any:
        return SlotAvailabilityService(*args, **options)

    def run_script(self, server: Any, call: Any) -> Any:
        return server.run(call)

    def close(self, thing: Any) -> None:
        """Close a client, or what is given to a service."""
        thing.close()


class OnAsyncio:
    """The world of `AsyncRedisCache`: an event loop in a thread, and each call a task of it."""

    interrupt: type[BaseException] = asyncio.CancelledError
    connection = redis.asyncio.Connection
    backend = AsyncRedisCache
    client = staticmethod(async_client)
    cluster_client = staticmethod(async_cluster_client)

    def __init__(self, loop: LoopThread) -> None:
        self.loop = loop

    def cache(self, *args: Any, **options: Any) -> Any:
        return self.loop.blocking(self.backend(*args, **options))

    def locks(self, *args: Any, **options: Any) -> Any:
        return self.loop.blocking(AsyncRedisLocks(*args, **options))

    def service(self, *args: Any, **options: Any) -> Any:
        return self.loop.blocking(AsyncSlotAvailabilityService(*args, **options))

    def run_script(self, server: Any, call: Any) -> Any:
        return self.loop.run(server.run(call))

    def close(self, thing: Any) -> None:
        self.loop.run(getattr(thing, "aclose", thing.close)())


World = Blocking | OnAsyncio


@contextmanager
def _on_asyncio(**options: Any) -> Iterator[OnAsyncio]:
    with LoopThread(**options) as loop:
        yield OnAsyncio(loop)


WORLDS: dict[str, Callable[[], AbstractContextManager[World]]] = {
    "blocking": lambda: nullcontext(Blocking()),
    "asyncio": _on_asyncio,
    "asyncio, debugged": lambda: _on_asyncio(debug=True),
    "uvloop": lambda: _on_asyncio(factory=pytest.importorskip("uvloop").new_event_loop),
}

CLIENTS: dict[str, Callable[[World, str], Any]] = {
    "by URL": lambda world, url: url,
    "by URL, RESP3": lambda world, url: f"{url}?protocol=3",
    "RESP2": lambda world, url: world.client(url, protocol=2),
    "RESP2, without hiredis": lambda world, url: world.client(
        url, protocol=2, parser_class=_RESP2Parser
    ),
    "RESP3, texts": lambda world, url: world.client(url, protocol=3, decode_responses=True),
    "RESP3, without hiredis": lambda world, url: world.client(
        url, protocol=3, parser_class=_RESP3Parser, decode_responses=True
    ),
    "a cluster": lambda world, url: world.cluster_client(url),
}
"""By name: what the user gives in this world, for this URL."""
