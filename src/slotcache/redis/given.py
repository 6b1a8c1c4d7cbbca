"""What may be given as a server, and what is refused, lest it keep a reader waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

try:
    import redis
except ImportError as error:
    raise ImportError(
        "slotcache.redis needs redis, 6.4 or later: pip install 'slotcache[redis]'"
    ) from error

import redis.asyncio
from redis.asyncio.client import Pipeline as AsyncPipeline
from redis.asyncio.cluster import ClusterPipeline as AsyncClusterPipeline
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.client import Pipeline
from redis.cluster import ClusterPipeline
from redis.sentinel import SentinelConnectionPool

from slotcache.redis import bounds

__all__ = [
    "Address",
    "AsyncAddress",
    "async_client",
    "blocking_client",
    "refuse",
    "wrong_with",
    "wrong_with_async",
    "wrong_with_options",
]

Address: TypeAlias = "str | redis.Redis | redis.RedisCluster"
"""What a user gives: a URL, or a client."""

AsyncAddress: TypeAlias = "str | redis.asyncio.Redis | redis.asyncio.RedisCluster"
"""`Address` on asyncio."""

_BLOCKING = redis.Redis, redis.RedisCluster
_ASYNC = redis.asyncio.Redis, redis.asyncio.RedisCluster
_PIPELINES = Pipeline, ClusterPipeline, AsyncPipeline, AsyncClusterPipeline

_NO_RETRY = "retry=Retry(NoBackoff(), 0)"


def blocking_client(client: object) -> Any:
    """Return it, if it is one.

    Raises:
        TypeError: It is not.
    """
    if isinstance(client, _BLOCKING) and not isinstance(client, _PIPELINES):
        return client
    instead = ": AsyncRedisCache and AsyncRedisLocks take it" if isinstance(client, _ASYNC) else ""
    raise TypeError(
        "server must be a URL such as 'redis://localhost:6379/0' (of Valkey, too), or a blocking "
        f"client, redis.Redis or redis.RedisCluster, not {client!r:.80}{instead}"
    )


def async_client(client: object) -> Any:
    """As `blocking_client`."""
    if isinstance(client, _ASYNC) and not isinstance(client, _PIPELINES):
        return client
    instead = ": RedisCache and RedisLocks take it" if isinstance(client, _BLOCKING) else ""
    raise TypeError(
        "server must be a URL such as 'redis://localhost:6379/0' (of Valkey, too), or a client of "
        f"redis.asyncio, Redis or RedisCluster, not {client!r:.80}{instead}"
    )


def refuse(wrong: Iterable[str], *, is_url: bool) -> None:
    """Refuse a client, or a URL, if there is anything wrong with it.

    Raises:
        ValueError: There is; it tells what to make it with.
    """
    try:
        instead = list(dict.fromkeys(wrong))
    except TypeError as error:
        raise ValueError(f"an option is not known, in the URL or to the pool: {error}") from error
    if not instead:
        return
    what = "the options in this URL" if is_url else "this client"
    first = "Leave them out" if is_url else "Give a URL"
    raise ValueError(
        f"{what} could keep a reader waiting, run a command twice, or read from a server that "
        f"lags. {first}, or make it with {', '.join(instead)}"
    )


def wrong_with(client: Any) -> Iterator[str]:
    """Yield what to make this client with, lest it keep a reader waiting or read what may lag."""
    if isinstance(client, redis.RedisCluster):
        yield from _wrong_with_cluster(client)
        node = client.get_redis_connection(client.get_default_node())
        yield from _wrong_with_blocking_pool(node.connection_pool)
    else:
        yield from _wrong_with_blocking_pool(client.connection_pool)
        if client.connection is not None:
            yield "single_connection_client=False"


def wrong_with_async(client: Any) -> Iterator[str]:
    """Yield the same for one of asyncio, whose calls are bounded as a whole, whatever it does."""
    if isinstance(client, redis.asyncio.RedisCluster):
        yield from _wrong_with_cluster(client)
        yield from _wrong_with_encoder(client.encoder)
    else:
        yield from _wrong_with_pool(client.connection_pool)
        if client.single_connection_client:
            yield "single_connection_client=False"


def wrong_with_options(kind: Callable[..., Any], options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the same for connections that are made so."""
    like_all = kind(**options)  # and not connected to anything
    for name in ("socket_timeout", "socket_connect_timeout"):
        seconds = getattr(like_all, name)
        if seconds is None or not 0 < seconds <= bounds.BUDGET:
            yield f"{name}={bounds.BUDGET:g}"
    yield from _wrong_with_commands(like_all)


def _wrong_with_cluster(client: Any) -> Iterator[str]:
    if client.retry.get_retries():
        yield _NO_RETRY
    if client.read_from_replicas or client.load_balancing_strategy is not None:
        yield "read_from_replicas=False, load_balancing_strategy=None"


def _wrong_with_blocking_pool(pool: Any) -> Iterator[str]:
    yield from wrong_with_options(pool.connection_class, pool.connection_kwargs)
    is_blocking = isinstance(pool, redis.BlockingConnectionPool)
    if is_blocking and not 0 <= (pool.timeout or -1) <= bounds.BUDGET:
        yield f"BlockingConnectionPool(timeout={bounds.BUDGET:g})"
    yield from _wrong_with_pool(pool)


def _wrong_with_pool(pool: Any) -> Iterator[str]:
    yield from _wrong_with_commands(pool.connection_class(**pool.connection_kwargs))
    is_sentinel = isinstance(pool, SentinelConnectionPool | AsyncSentinelConnectionPool)
    if is_sentinel and not pool.is_master:
        yield "Sentinel.master_for"


def _wrong_with_commands(connection: Any) -> Iterator[str]:
    if connection.retry.get_retries():
        yield _NO_RETRY
    yield from _wrong_with_encoder(connection.encoder)


def _wrong_with_encoder(encoder: Any) -> Iterator[str]:
    if "NOSCRIPT".encode(encoder.encoding) != b"NOSCRIPT":
        yield "encoding='utf-8'"
