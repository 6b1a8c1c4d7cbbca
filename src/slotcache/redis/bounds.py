"""What keeps a call to a server within its time.

The client library's own bounds are not enough. Its time-out is one of each `recv`, so a reply that
trickles in takes as long as it likes, and connecting, greeting and asking have one each. So what a
call does on connections that are made here, from a URL, shares one deadline. Clients that are given
keep their own time-outs, and are refused if those could keep a reader waiting.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

import redis
from redis.connection import parse_url
from redis.sentinel import SentinelConnectionPool

from slotcache.trouble import BUDGET

__all__ = ["Deadline", "bounded_pool", "wrong_with"]


def wrong_with(client: Any) -> list[str]:
    """Return what to make this client with, lest it keep a reader waiting or read what may lag."""
    if isinstance(client, redis.RedisCluster):
        node = client.get_redis_connection(client.get_default_node())
        wrong = [*_wrong_with_cluster(client), *_wrong_with_pool(node.connection_pool)]
    else:
        wrong = list(_wrong_with_pool(client.connection_pool))
        if client.connection is not None:
            wrong.append("single_connection_client=False")
    return list(dict.fromkeys(wrong))


def _wrong_with_cluster(client: redis.RedisCluster) -> Iterator[str]:
    if client.retry.get_retries():
        yield _NO_RETRY
    if client.read_from_replicas or client.load_balancing_strategy is not None:
        yield "read_from_replicas=False, load_balancing_strategy=None"


def _wrong_with_pool(pool: redis.ConnectionPool) -> Iterator[str]:
    like_all = pool.connection_class(**pool.connection_kwargs)  # and not connected to anything
    for name in ("socket_timeout", "socket_connect_timeout"):
        seconds = getattr(like_all, name)
        if seconds is None or not 0 < seconds <= BUDGET:
            yield f"{name}={BUDGET:g}"
    if like_all.retry.get_retries():
        yield _NO_RETRY
    if "NOSCRIPT".encode(like_all.encoder.encoding) != b"NOSCRIPT":
        yield "encoding='utf-8'"
    if isinstance(pool, redis.BlockingConnectionPool) and not 0 <= (pool.timeout or -1) <= BUDGET:
        yield f"BlockingConnectionPool(timeout={BUDGET:g})"
    if isinstance(pool, SentinelConnectionPool) and not pool.is_master:
        yield "Sentinel.master_for"


_NO_RETRY = "retry=Retry(NoBackoff(), 0)"


def bounded_pool(url: str, deadline: Deadline) -> redis.ConnectionPool:
    """Return the connections to the server at this URL; none is made yet.

    Raises:
        ValueError: It is no URL of a server.
    """
    options = parse_url(url)
    kind = _BOUNDED[options.pop("connection_class", redis.Connection)]
    defaults = {
        # Without RESP3 and a name a connection needs no greeting, so no time for one; and no push
        # can lengthen its time-outs.
        "protocol": 2,
        **_NAMELESS,
        "socket_timeout": BUDGET,
        "socket_connect_timeout": BUDGET,
        # As many as there are threads: with fewer, some would be refused in a rush.
        "max_connections": 2**31,
    }
    return redis.ConnectionPool(kind, **{**defaults, **options, "deadline": deadline})


_PARAMETERS = signature(redis.connection.AbstractConnection.__init__).parameters
_NAMELESS = dict.fromkeys({"driver_info"} & _PARAMETERS.keys() or {"lib_name", "lib_version"})


class Deadline(threading.local):
    """When the call that this thread makes has to be over.

    Attributes:
        silent_since: When this thread last waited in vain.
    """

    silent_since = -math.inf
    _instant = math.inf

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Set it, for what is done in this context."""
        self._instant = time.monotonic() + BUDGET
        try:
            yield
        finally:
            self._instant = math.inf

    def left(self) -> float:
        """Return the seconds that are left.

        Raises:
            TimeoutError: None are.
        """
        left = self._instant - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no answer within {BUDGET:g} s")
        return min(left, BUDGET)


if TYPE_CHECKING:
    _Connection = redis.Connection
else:
    _Connection = object


class _Bounded(_Connection):
    """A connection that is made, and used, before a deadline."""

    def __init__(self, *args: Any, deadline: Deadline, **options: Any) -> None:
        self._deadline = deadline
        self._is_connecting = False
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]

    # While it is made, what is left is asked for again and again: a name may have many addresses.

    @property
    def socket_timeout(self) -> Any:
        return self._deadline.left() if self._is_connecting else self._socket_timeout

    @socket_timeout.setter
    def socket_timeout(self, seconds: Any) -> None:
        self._socket_timeout = seconds

    @property
    def socket_connect_timeout(self) -> Any:
        return self._deadline.left() if self._is_connecting else self._socket_connect_timeout

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, seconds: Any) -> None:
        self._socket_connect_timeout = seconds

    def _connect(self) -> Any:
        self._is_connecting = True
        try:
            made = super()._connect()  # type: ignore[no-untyped-call]
        finally:
            self._is_connecting = False
        return _BoundedSocket(made, self._deadline, self.socket_timeout)


class _BoundedSocket:
    """A socket of which each call ends at the deadline, if not before."""

    def __init__(self, made: socket.socket, deadline: Deadline, timeout: float | None) -> None:
        self._socket = made
        self._deadline = deadline
        self._timeout = timeout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def settimeout(self, seconds: float | None) -> None:
        self._timeout = seconds

    def recv(self, *args: Any) -> bytes:
        return self._in_time().recv(*args)

    def recv_into(self, *args: Any) -> int:
        return self._in_time().recv_into(*args)

    def sendall(self, data: Any) -> None:
        self._in_time().sendall(data)

    def _in_time(self) -> socket.socket:
        left = self._deadline.left()
        self._socket.settimeout(left if self._timeout is None else min(self._timeout, left))
        return self._socket


class _BoundedTcp(_Bounded, redis.Connection):
    pass


class _BoundedTls(_Bounded, redis.SSLConnection):
    pass


class _BoundedUnix(_Bounded, redis.UnixDomainSocketConnection):
    pass


_BOUNDED = {
    redis.Connection: _BoundedTcp,
    redis.SSLConnection: _BoundedTls,
    redis.UnixDomainSocketConnection: _BoundedUnix,
}
