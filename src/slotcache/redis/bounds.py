"""What keeps a call to a server within its time.

The client library's own bounds are not enough. Its time-out is one of each `recv`, so a reply that
trickles in takes as long as it likes, and connecting, greeting and asking have one each. So what a
call does on connections that are made here, from a URL, shares one deadline. Clients that are given
keep their own time-outs, and are refused if those could keep a reader waiting. On asyncio none of
this is needed: whatever a call does there can be ended from outside.
"""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import redis
from redis.connection import parse_url
from redis.exceptions import ResponseError

from slotcache.trouble import BUDGET

__all__ = ["BUDGET", "AsyncDeadline", "Deadline", "ask", "bounded_pool", "defaults"]


def bounded_pool(url: str, deadline: Deadline) -> redis.ConnectionPool:
    """Return the connections to the server at this URL; none is made yet.

    Raises:
        ValueError: It is no URL of a server.
    """
    options = parse_url(url)
    kind = _BOUNDED[options.pop("connection_class", redis.Connection)]
    pool = {**defaults(redis.connection.AbstractConnection), **options, "deadline": deadline}
    return redis.ConnectionPool(kind, **pool)


def ask(pool: redis.ConnectionPool, parts: tuple[str | bytes, ...]) -> Any:
    """Send a command, and return its reply; whatever interrupts that ends the connection."""
    try:
        connection = pool.get_connection()
    except BaseException:
        pool.disconnect(inuse_connections=False)  # it may have been left there half made
        raise
    is_in_step = False
    try:
        connection.send_command(*parts)
        reply = connection.read_response(disable_decoding=True)
        is_in_step = True
    except ResponseError:
        is_in_step = True
        raise
    finally:
        if not is_in_step:
            connection.disconnect()
        pool.release(connection)
    return reply


def defaults(kind: type) -> dict[str, Any]:
    """Return the options of connections of this kind, where a URL has no others."""
    known = signature(kind).parameters
    return {
        # Without RESP3 and a name a connection needs no greeting, so no time for one; and no push
        # can lengthen its time-outs.
        "protocol": 2,
        **dict.fromkeys({"driver_info"} & known.keys() or {"lib_name", "lib_version"}),
        "socket_timeout": BUDGET,
        "socket_connect_timeout": BUDGET,
        # As many as there are callers: with fewer, some would be refused in a rush.
        "max_connections": 2**31,
    }


class Deadline(threading.local):
    """When the call that this thread makes has to be over.

    Attributes:
        silent_since: When this thread last waited in vain.
    """

    silent_since = -math.inf
    _instant = math.inf

    @contextmanager
    def ahead(self, seconds: float) -> Iterator[None]:
        """Set it, for what is done in this context."""
        self._instant = time.monotonic() + seconds
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


class AsyncDeadline:
    """`Deadline` of the call that this task makes.

    Args:
        longest: How many seconds a call may take at most, whoever makes it.
    """

    def __init__(self, longest: float = math.inf) -> None:
        self._longest = longest
        self._silent: WeakKeyDictionary[asyncio.Task[Any], float] = WeakKeyDictionary()

    @property
    def silent_since(self) -> float:
        """When this task last waited in vain."""
        return self._silent.get(_this_task(), -math.inf)

    @silent_since.setter
    def silent_since(self, instant: float) -> None:
        self._silent[_this_task()] = instant

    @asynccontextmanager
    async def ahead(self, seconds: float) -> AsyncIterator[None]:
        """As `Deadline.ahead`; what is done in this context is ended by it.

        Raises:
            TimeoutError: It was.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + min(seconds, self._longest)
        try:
            async with asyncio.timeout(None) as limit:
                alarm = loop.call_at(end, _expire, limit, end)
                try:
                    yield
                finally:
                    alarm.cancel()
        except TimeoutError:
            raise TimeoutError(f"no answer within {BUDGET:g} s") from None


_LATE = 0.05  # seconds: then it was the loop that stood still


def _expire(limit: asyncio.Timeout, end: float) -> None:
    """End it; but if it was the loop that stood still, the answer may be there, and unread."""
    now = asyncio.get_running_loop().time()
    limit.reschedule(now if now - end < _LATE else now + _LATE)


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "asyncio runs every coroutine in a task"
    return task


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
