"""Connections of event loops: each loop has its own, for as long as it runs.

The client library's pool belongs to one loop. It also takes connections back in a coroutine, which
a cancellation can keep from its end. So what is idle is kept here, and between the end of a call
and the return, or the end, of its connection nothing waits: there is nothing to interrupt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import redis.asyncio
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.exceptions import MaxConnectionsError, ResponseError

from slotcache.redis.bounds import defaults
from slotcache.redis.given import refuse, wrong_with_options

__all__ = ["Connections"]


@dataclass(slots=True)
class _OfLoop:
    """What one loop has: those that are idle, and how many are not."""

    idle: list[AbstractConnection] = field(default_factory=list)
    taken: int = 0
    end: AsyncIterator[None] | None = None


class Connections:
    """Connections to the server at a URL; none is made yet.

    A forked child has other loops than its parent, so it has other connections.

    Attributes:
        longest: How many seconds the URL lets a call take.

    Raises:
        ValueError: It is no URL of a server, or has options that could keep a reader waiting.
    """

    def __init__(self, url: str) -> None:
        options = {**defaults(AbstractConnection), **parse_url(url)}
        kind = _ABRUPT[options.pop("connection_class", redis.asyncio.Connection)]
        self._most = options.pop("max_connections")
        refuse(wrong_with_options(kind, options), is_url=True)
        self.longest = min(options[name] for name in _TIME_OUTS)
        # None is needed within: a call is bounded from outside, as a whole. And the library waits
        # by `asyncio.wait_for`, which in Python 3.11 may lose a cancellation.
        options.update(dict.fromkeys(_TIME_OUTS))
        self._library = redis.asyncio.ConnectionPool(kind, **options)
        self._of: dict[asyncio.AbstractEventLoop, _OfLoop] = {}

    async def ask(self, *parts: str | bytes) -> Any:
        """Send a command, and return its reply; whatever interrupts that ends the connection."""
        ours = await self._of_this_loop()
        if ours.taken >= self._most:
            raise MaxConnectionsError("Too many connections")
        connection = ours.idle.pop() if ours.idle else self._library.make_connection()
        ours.taken += 1
        is_in_step = False
        try:
            await self._library.ensure_connection(connection)
            await connection.send_command(*parts)
            reply = await connection.read_response(disable_decoding=True)
            is_in_step = True
        except ResponseError:
            is_in_step = True
            raise
        finally:
            ours.taken -= 1
            if is_in_step:
                ours.idle.append(connection)
            else:
                await connection.disconnect(nowait=True)
        return reply

    async def drop_idle(self) -> None:
        """Close those of this loop that nobody is using."""
        await _close((await self._of_this_loop()).idle)

    async def _of_this_loop(self) -> _OfLoop:
        loop = asyncio.get_running_loop()
        ours = self._of.get(loop)
        if ours is None or len(self._of) > 1:
            for other in list(self._of):
                if other.is_closed():
                    self._of.pop(other, None)
        if ours is None:
            ours = self._of[loop] = _OfLoop()
            ours.end = _closed_with_its_loop(ours.idle)
            await anext(ours.end)
        return ours


async def _closed_with_its_loop(idle: list[AbstractConnection]) -> AsyncIterator[None]:
    """Wait for the loop to end: it closes the generators that were begun in it, so this one."""
    try:
        yield
    finally:
        await _close(idle)


async def _close(idle: list[AbstractConnection]) -> None:
    while idle:
        await idle.pop().disconnect(nowait=True)


if TYPE_CHECKING:
    _Connection = AbstractConnection
else:
    _Connection = object


class _Abrupt(_Connection):
    """A connection that ends at once: what was not sent yet does not keep it from closing."""

    async def disconnect(self, *args: Any, **options: Any) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(*args, **options)


class _AbruptTcp(_Abrupt, redis.asyncio.Connection):
    pass


class _AbruptTls(_Abrupt, redis.asyncio.SSLConnection):
    pass


class _AbruptUnix(_Abrupt, redis.asyncio.UnixDomainSocketConnection):
    pass


_ABRUPT = {
    redis.asyncio.Connection: _AbruptTcp,
    redis.asyncio.SSLConnection: _AbruptTls,
    redis.asyncio.UnixDomainSocketConnection: _AbruptUnix,
}

_TIME_OUTS = "socket_timeout", "socket_connect_timeout"
