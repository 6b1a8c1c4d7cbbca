"""A Redis or Valkey server, or a cluster, that scripts are sent to."""

from __future__ import annotations

import logging
import math
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
)

from slotcache._fork import forget_after_fork
from slotcache.errors import BackendError
from slotcache.redis.bounds import Deadline, bounded_pool, wrong_with
from slotcache.redis.scripts import Call

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
        self._owned = None
        if isinstance(address, str):
            self._owned = bounded_pool(address, self._deadline)
            self._client: Any = redis.Redis(connection_pool=self._owned)
        else:
            self._client = _checked(address)
        _refuse_unbounded(self._client, is_url=self._owned is not None)
        self._after_fork()
        forget_after_fork(self)

    def _after_fork(self) -> None:
        self._silent_since = -math.inf
        self._owed: deque[tuple[float, Call]] = deque()

    def run(self, call: Call) -> Any:
        """Run a script, once; return its reply, in bytes.

        Raises:
            BackendError: It failed, or may have run and not answered in time.
        """
        if time.monotonic() - self._silent_since < _MOMENT:
            # One time-out a read: the next call of the same flow does not wait for another one.
            raise BackendError("it did not answer a moment ago")
        with self._deadline.ahead():
            try:
                reply = self._run(call)
            except Exception as error:  # whatever a library makes of whatever was sent to it
                raise self._translated(error) from error
            self._pay()
        return reply

    def owe(self, call: Call) -> None:
        """Have this run as soon as the server answers again, unless that takes too long."""
        self._owed.append((time.monotonic(), call))

    def _pay(self) -> None:
        """Run one of what is owed, now that the server answers: in the time that the call left."""
        try:
            since, owed = self._owed.popleft()
        except IndexError:
            return
        try:
            if time.monotonic() - since < _OWED_FOR:
                self._run(owed)
        except Exception as error:
            _log.info("what is owed to a server could not be done yet: %r", error)
            self._owed.append((since, owed))

    def close(self) -> None:
        """Close the connections that were made here. The next call makes a new one."""
        if self._owned is not None:
            self._owned.disconnect()

    def _run(self, call: Call) -> Any:
        script, parts = call.script, (b"%d" % len(call.keys), *call.keys, *call.arguments)
        try:
            return self._ask("EVALSHA", script.sha, *parts)
        except NoScriptError:  # a new server, a restarted one, or SCRIPT FLUSH
            return self._ask("EVAL", script.source, *parts)

    def _ask(self, *parts: str | bytes) -> Any:
        if self._owned is None:
            # As its owner sends commands: subclasses and instrumentation see them.
            return self._client.execute_command(*parts, **{NEVER_DECODE: True})
        connection = self._owned.get_connection()
        try:
            connection.send_command(*parts)
            return connection.read_response(disable_decoding=True)
        finally:
            self._owned.release(connection)

    def _translated(self, error: Exception) -> BackendError:
        if isinstance(error, redis.TimeoutError):
            self._silent_since = time.monotonic()
        if isinstance(error, ReadOnlyError) and isinstance(self._client, redis.Redis):
            # Its name may lead to another server by now, and a new connection there.
            self._client.connection_pool.disconnect(inuse_connections=False)
        return BackendError(_told(error))


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
