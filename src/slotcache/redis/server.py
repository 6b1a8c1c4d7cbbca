"""A Redis or Valkey server, or a cluster, that scripts are sent to."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.client import NEVER_DECODE
from redis.exceptions import (
    AuthenticationError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
)

from slotcache._fork import forget_after_fork
from slotcache.errors import BackendError
from slotcache.redis import bounds
from slotcache.redis.bounds import AsyncDeadline, Deadline, bounded_pool
from slotcache.redis.given import (
    Address,
    AsyncAddress,
    async_client,
    blocking_client,
    refuse,
    wrong_with,
    wrong_with_async,
)
from slotcache.redis.loops import Connections
from slotcache.redis.scripts import Call
from slotcache.worlds import run, running_loop

__all__ = ["AsyncServer", "Server", "as_key", "names"]

_log = logging.getLogger("slotcache")

ReturnT = TypeVar("ReturnT")

_ADVICE = {
    AuthenticationError: "give it a user and password that it knows, or none if it has none",
    NoPermissionError: "docs/how-to/share-a-server.md lists the commands and keys that it needs",
    MovedError: "it is one node of a cluster: give a redis.RedisCluster client",
    OutOfMemoryError: "give it more memory, or a maxmemory-policy that evicts",
    ReadOnlyError: "it is a replica: give the address of the primary",
}

_MOMENT = 0.05  # seconds
_OWED_FOR = 60.0
_PAUSE = 1.0


class _Calls:
    """What becomes of calls to a server: one text for both worlds.

    Nothing in it waits but what its heirs do, `_in_time`, `_ask` and `_drop_connections`. Those of
    the blocking world never do.
    """

    _deadline: Deadline | AsyncDeadline

    def __init__(self) -> None:
        self._after_fork()
        forget_after_fork(self)

    def _after_fork(self) -> None:
        self._owed: deque[tuple[float, Call]] = deque()
        self._answered = self._pays_from = -math.inf

    def owe(self, call: Call) -> None:
        """Have this run as soon as the server answers again, unless that takes too long."""
        self._owed.append((time.monotonic(), call))

    async def _call(self, call: Call) -> Any:
        began = time.monotonic()
        silent_since = self._deadline.silent_since
        if began - silent_since < _MOMENT and silent_since > self._answered:
            # One time-out a read: the next call of the same flow does not wait for another one.
            raise BackendError("it did not answer a moment ago")
        try:
            result = await self._in_time(bounds.BUDGET, self._run(call))
        except Exception as error:  # whatever a library makes of whatever was sent to it
            self._noticed(error, time.monotonic() - began)
            raise BackendError(_told(error)) from error
        self._answered = time.monotonic()
        await self._pay(self._answered - began)
        return result

    async def _pay(self, took: float) -> None:
        """Run one of what is owed, now that the server has answered, if it did so in good time."""
        if took > _MOMENT or self._answered < self._pays_from:
            return
        try:
            since, owed = self._owed.popleft()
        except IndexError:
            return
        try:
            if self._answered - since < _OWED_FOR:
                await self._in_time(bounds.BUDGET - took, self._run(owed))
        except BaseException as error:
            self._owed.append((since, owed))
            if not isinstance(error, Exception):
                raise
            _log.info("what is owed to a server could not be done yet: %r", error)
            self._pays_from = time.monotonic() + _PAUSE

    async def _run(self, call: Call) -> Any:
        nonce = secrets.token_bytes(8)
        parts = (b"%d" % len(call.keys), *call.keys, nonce, *call.arguments)
        try:
            try:
                reply = await self._ask("EVALSHA", call.script.sha, *parts)
            except NoScriptError:  # a new server, a restarted one, or SCRIPT FLUSH
                reply = await self._ask("EVAL", call.script.source, *parts)
        except ReadOnlyError:
            # Its name may lead to another server by now, and a new connection there.
            await self._drop_connections()
            raise
        if not isinstance(reply, list) or len(reply) != 2 or reply[0] != nonce:
            await self._drop_connections()
            raise ValueError(f"this answers no call of ours, or another one: {reply!r:.80}")
        return reply[1]

    def _noticed(self, error: Exception, seconds: float) -> None:
        # A cluster client tells of time-outs in other words.
        if isinstance(error, TimeoutError | redis.TimeoutError) or seconds >= bounds.BUDGET:
            self._deadline.silent_since = time.monotonic()

    async def _in_time(self, seconds: float, asking: Coroutine[Any, Any, ReturnT]) -> ReturnT:
        """Ask, within so many seconds."""
        raise NotImplementedError

    async def _ask(self, *parts: str | bytes) -> Any:
        """Send a command, and return its reply."""
        raise NotImplementedError

    async def _drop_connections(self) -> None:
        """Close those that nobody is using."""
        raise NotImplementedError


class Server(_Calls):
    """What scripts and commands are sent to.

    Args:
        address: A URL, or a client; a `Server` is that server.

    Raises:
        TypeError: It is none of these.
        ValueError: A client that could keep a reader waiting, or reads what may lag.
    """

    @classmethod
    def at(cls, address: Address | Server) -> Server:
        """Return the server at this address."""
        return address if isinstance(address, Server) else cls(address)

    def __init__(self, address: Address) -> None:
        self._deadline: Deadline = Deadline()
        self._url = address if isinstance(address, str) else None
        self._client: Any = None if self._url is not None else blocking_client(address)
        super().__init__()
        refuse(wrong_with(self._client), is_url=self._url is not None)

    def _after_fork(self) -> None:
        super()._after_fork()
        self._owned = None
        if self._url is not None:
            # A new pool: another thread may have had the mutex of the old one.
            self._owned = bounded_pool(self._url, self._deadline)
            self._client = redis.Redis(connection_pool=self._owned)

    def run(self, call: Call) -> Any:
        """Run a script, once; return its result, in bytes.

        Raises:
            BackendError: It failed, or may have run and not answered in time.
        """
        return run(self._call(call))

    def close(self) -> None:
        """Close the connections that were made here. The next call makes a new one."""
        if self._owned is not None:
            self._owned.disconnect()

    async def _in_time(self, seconds: float, asking: Coroutine[Any, Any, ReturnT]) -> ReturnT:
        with self._deadline.ahead(seconds):
            return await asking

    async def _ask(self, *parts: str | bytes) -> Any:
        if self._owned is None:
            # As its owner sends commands: subclasses and instrumentation see them.
            return self._client.execute_command(*parts, **{NEVER_DECODE: True})
        return bounds.ask(self._owned, parts)

    async def _drop_connections(self) -> None:
        if isinstance(self._client, redis.RedisCluster):
            self._client.disconnect_connection_pools()
        else:
            self._client.connection_pool.disconnect(inuse_connections=False)


class AsyncServer(_Calls):
    """`Server` on asyncio, for any number of event loops.

    Args:
        address: A URL, or a client of `redis.asyncio`, for the loop that this one belongs to; an
            `AsyncServer` is that server.

    Raises:
        TypeError: It is none of these.
        ValueError: A client that could keep a reader waiting, or reads what may lag.
    """

    @classmethod
    def at(cls, address: AsyncAddress | AsyncServer) -> AsyncServer:
        """As `Server.at`."""
        return address if isinstance(address, AsyncServer) else cls(address)

    def __init__(self, address: AsyncAddress) -> None:
        self._left: set[asyncio.Task[Any]] = set()
        if isinstance(address, str):
            self._owned: Connections | None = Connections(address)
            self._deadline: AsyncDeadline = AsyncDeadline(self._owned.longest)
        else:
            self._owned, self._deadline = None, AsyncDeadline()
            self._client = async_client(address)
            refuse(wrong_with_async(self._client), is_url=False)
        super().__init__()

    async def run(self, call: Call) -> Any:
        """As `Server.run`.

        Raises:
            RuntimeError: No event loop of asyncio runs here.
        """
        running_loop()
        return await self._call(call)

    async def close(self) -> None:
        """As `Server.close`, of those of the running loop."""
        running_loop()
        if self._owned is not None:
            await self._owned.drop_idle()

    async def _in_time(self, seconds: float, asking: Coroutine[Any, Any, ReturnT]) -> ReturnT:
        async with self._deadline.ahead(seconds):
            return await asking

    async def _ask(self, *parts: str | bytes) -> Any:
        if self._owned is not None:
            return await self._owned.ask(*parts)
        return await self._apart(self._client.execute_command(*parts, **{NEVER_DECODE: True}))

    async def _drop_connections(self) -> None:
        if self._owned is not None:
            await self._owned.drop_idle()
        elif isinstance(self._client, redis.asyncio.RedisCluster):
            await self._apart(self._client.aclose())
        else:
            await self._apart(self._client.connection_pool.disconnect(inuse_connections=False))

    async def _apart(self, work: Coroutine[Any, Any, ReturnT]) -> ReturnT:
        """Have a client do this in a task of its own.

        Who is cancelled meanwhile, even twice, cancels that once, and leaves it to tidy up: the
        client may need more than one step for it, and may take a cancellation for nothing.
        """
        task = asyncio.create_task(work)
        self._left.add(task)
        task.add_done_callback(self._has_ended)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
        return task.result()

    def _has_ended(self, task: asyncio.Task[Any]) -> None:
        self._left.discard(task)
        if not task.cancelled():
            task.exception()  # who has left it does not ask for that, and asyncio would complain


def names(prefix: str, *kinds: str) -> tuple[str, ...]:
    """Return what the keys of these kinds begin with: one node of a cluster has them all.

    Raises:
        TypeError: The prefix is no str.
        ValueError: It is empty, or has braces.
    """
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a str, not {prefix!r:.80}")
    if not prefix or "{" in prefix or "}" in prefix:
        raise ValueError(f"prefix must be a name without braces, not {prefix!r:.80}")
    return tuple(f"{{{prefix}}}:{kind}" for kind in kinds)


def as_key(prefix: str, name: str) -> bytes:
    """Return the key of this name. Whatever str it is, it has a key of its own."""
    return f"{prefix}{name}".encode("utf-8", "surrogatepass")


def _told(error: Exception) -> str:
    what = str(error).rstrip(".") or type(error).__name__
    for kind, advice in _ADVICE.items():
        if isinstance(error, kind):
            return f"{what}: {advice}"
    if "WRONGTYPE" in what:
        return f"{what}: delete what is there, or choose another prefix"
    return what
