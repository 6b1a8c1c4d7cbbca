"""The ways in which a user may reach a Redis server."""

from collections.abc import Callable
from typing import Any

import redis
from redis._parsers import _RESP2Parser, _RESP3Parser
from redis.backoff import NoBackoff
from redis.retry import Retry

from slotcache.redis import bounds
from slotcache.redis.server import Address

NO_RETRY = Retry(NoBackoff(), 0)


def _options() -> dict[str, Any]:
    within = bounds.BUDGET  # type: ignore[attr-defined]  # where tests put another one
    return {"socket_timeout": within, "socket_connect_timeout": within, "retry": NO_RETRY}


def by_url(url: str) -> str:
    return url


def client(url: str, **options: Any) -> redis.Redis:
    """Return a client whose settings are those that are asked for."""
    return redis.Redis.from_url(url, **_options(), **options)


def cluster_client(url: str, **options: Any) -> redis.RedisCluster:
    return redis.RedisCluster.from_url(url, **_options(), **options)


CLIENTS: dict[str, Callable[[str], Address]] = {
    "by URL": by_url,
    "by URL, RESP3": lambda url: f"{url}?protocol=3",
    "RESP2": lambda url: client(url, protocol=2),
    "RESP2, without hiredis": lambda url: client(url, protocol=2, parser_class=_RESP2Parser),
    "RESP3, texts": lambda url: client(url, protocol=3, decode_responses=True),
    "RESP3, without hiredis": lambda url: client(
        url, protocol=3, parser_class=_RESP3Parser, decode_responses=True
    ),
    "a cluster": cluster_client,
}
