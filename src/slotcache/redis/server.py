"""A Redis or Valkey server, or a cluster, that scripts are sent to."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import deque
from typing import Any, TypeAlias

try:
    import redis
except ImportError as error:
    raise ImportError(
        "slotcache.redis needs redis, 6.4 or later: pip install 'slotcache[redis]'"
    ) from error

from redis.client import NEVER_DECODE, Pipeline
from redis.cluster import ClusterPipeline
from redis.exceptions import (
    AuthenticationError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from slotcache._fork import forget_after_fork
from slotcache.errors import BackendError
from slotcache.redis.bounds import Deadline, bounded_pool, wrong_with
from slotcache.redis.scripts import Call
from slotcache.trouble import BUDGET

__all__ = ["Address", "Server", "as_key", "names"]

_log = logging.getLogger("slotcache")

Address: TypeAlias = "str | redis.Redis | redis.RedisCluster"
"""What a user gives: a URL, or a client."""

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


class Server:
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
        self._deadline = Deadline()
        self._url = address if isinstance(address, str) else None
        self._client: Any = None if self._url is not None else _checked(address)
        self._after_fork()
        _refuse_unbounded(self._client, is_url=self._url is not None)
        forget_after_fork(self)

    def _after_fork(self) -> None:
        self._owed: deque[tuple[float, Call]] = deque()
        self._answered = self._pays_from = -math.inf
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
        began = time.monotonic()
        silent_since = self._deadline.silent_since
        if began - silent_since < _MOMENT and silent_since > self._answered:
            # One time-out a read: the next call of the same flow does not wait for another one.
            raise BackendError("it did not answer a moment ago")
        with self._deadline.ahead():
            try:
                result = self._run(call)
            except Exception as error:  # whatever a library makes of whatever was sent to it
                self._noticed(error, time.monotonic() - began)
                raise BackendError(_told(error)) from error
            self._answered = time.monotonic()
            self._pay(self._answered - began)
        return result

    def owe(self, call: Call) -> None:
        """Have this run as soon as the server answers again, unless that takes too long."""
        self._owed.append((time.monotonic(), call))

    def close(self) -> None:
        """Close the connections that were made here. The next call makes a new one."""
        if self._owned is not None:
            self._owned.disconnect()

    def _pay(self, took: float) -> None:
        """Run one of what is owed, now that the server has answered, if it did so in good time."""
        if took > _MOMENT or self._answered < self._pays_from:
            return
        try:
            since, owed = self._owed.popleft()
        except IndexError:
            return
        try:
            if self._answered - since < _OWED_FOR:
                self._run(owed)
        except Exception as error:
            _log.info("what is owed to a server could not be done yet: %r", error)
            self._owed.append((since, owed))
            self._pays_from = time.monotonic() + _PAUSE

    def _run(self, call: Call) -> Any:
        nonce = secrets.token_bytes(8)
        parts = (b"%d" % len(call.keys), *call.keys, nonce, *call.arguments)
        try:
            reply = self._ask("EVALSHA", call.script.sha, *parts)
        except NoScriptError:  # a new server, a restarted one, or SCRIPT FLUSH
            reply = self._ask("EVAL", call.script.source, *parts)
        if not isinstance(reply, list) or len(reply) != 2 or reply[0] != nonce:
            self._drop_connections()
            raise ValueError(f"this answers no call of ours, or another one: {reply!r:.80}")
        return reply[1]

    def _ask(self, *parts: str | bytes) -> Any:
        if self._owned is None:
            # As its owner sends commands: subclasses and instrumentation see them.
            return self._client.execute_command(*parts, **{NEVER_DECODE: True})
        return _asked(self._owned, parts)

    def _noticed(self, error: Exception, seconds: float) -> None:
        # A cluster client tells of time-outs in other words.
        if isinstance(error, redis.TimeoutError) or seconds >= BUDGET:
            self._deadline.silent_since = time.monotonic()
        if isinstance(error, ReadOnlyError):
            # Its name may lead to another server by now, and a new connection there.
            self._drop_connections()

    def _drop_connections(self) -> None:
        """Close those that nobody is using."""
        if isinstance(self._client, redis.RedisCluster):
            self._client.disconnect_connection_pools()
        else:
            self._client.connection_pool.disconnect(inuse_connections=False)


def _asked(pool: redis.ConnectionPool, parts: tuple[str | bytes, ...]) -> Any:
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


def _checked(client: object) -> object:
    is_pipeline = isinstance(client, Pipeline | ClusterPipeline)
    if isinstance(client, redis.Redis | redis.RedisCluster) and not is_pipeline:
        return client
    raise TypeError(
        "server must be a URL such as 'redis://localhost:6379/0' (of Valkey, too), or a blocking "
        f"client, redis.Redis or redis.RedisCluster, not {client!r:.80}"
    )


def _refuse_unbounded(client: Any, *, is_url: bool) -> None:
    try:
        wrong = wrong_with(client)
    except TypeError as error:
        raise ValueError(f"an option is not known, in the URL or to the pool: {error}") from error
    if not wrong:
        return
    what = "the options in this URL" if is_url else "this client"
    instead = "Leave them out" if is_url else "Give a URL"
    raise ValueError(
        f"{what} could keep a reader waiting, run a command twice, or read from a server that "
        f"lags. {instead}, or make it with {', '.join(wrong)}"
    )


def _told(error: Exception) -> str:
    what = str(error).rstrip(".") or type(error).__name__
    for kind, advice in _ADVICE.items():
        if isinstance(error, kind):
            return f"{what}: {advice}"
    if "WRONGTYPE" in what:
        return f"{what}: delete what is there, or choose another prefix"
    return what
