"""Locks in Redis, for all processes that reach one server.

A lock is a key with a life and the token of who holds it. Who did not hear whether it was granted,
or given back, may hold it all the same: so it is given back as soon as the server answers again.
"""

from __future__ import annotations

import logging
import math
import secrets
from typing import Self

from slotcache.errors import BackendError
from slotcache.protocols import Lock
from slotcache.redis.scripts import ACQUIRE, LONGEST, RELEASE, Call
from slotcache.redis.server import Address, Server, as_key, names

__all__ = ["RedisLocks"]

_log = logging.getLogger("slotcache")


class RedisLocks:
    """A `LockProvider` for all processes that reach one Redis or Valkey server.

    A lock ends with its release, by anybody who has its value, and with its `ttl`, by the server's
    clock. A call takes 0.25 s at most, where the server is given by its URL.

    Args:
        server: A URL such as `redis://localhost:6379/0`, or a client, as for `RedisCache`.
        prefix: What its keys begin with. Who shares server and prefix shares the locks.

    Raises:
        TypeError: The server is none, or the prefix is no str.
        ValueError: The prefix is empty or has braces; or a client could keep a reader waiting, or
            reads from replicas.
    """

    def __init__(self, server: Address | Server, *, prefix: str = "slotcache") -> None:
        (self._prefix,) = names(prefix, "lock:")
        self._server = Server.at(server)

    def acquire(self, name: str, *, ttl: float) -> Lock | None:
        """Return the lock, held for at most `ttl` seconds; None: somebody else holds it.

        Raises:
            BackendError: The server did not say. If it has granted the lock all the same, that is
                given back as soon as the server answers again, or ends with its `ttl`.
        """
        lock = Lock(name, secrets.token_hex(16))
        life = b"%d" % max(1, math.ceil(min(ttl, LONGEST) * 1_000))
        try:
            granted = self._server.run(Call(ACQUIRE, self._keys(lock), (_token(lock), life)))
        except BaseException:
            self._server.owe(self._releasing(lock))
            raise
        return lock if granted == 1 else None

    def release(self, lock: Lock) -> bool:
        """Give the lock back. Never raises; False: it was no longer yours, or nobody knows."""
        call = self._releasing(lock)
        try:
            return bool(self._server.run(call) == 1)
        except BackendError:
            _log.warning("the lock could not be released: %r", lock.name, exc_info=True)
            self._server.owe(call)
            return False

    def close(self) -> None:
        """Close the connections that were made here. Locks that are held stay so."""
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _releasing(self, lock: Lock) -> Call:
        return Call(RELEASE, self._keys(lock), (_token(lock),))

    def _keys(self, lock: Lock) -> tuple[bytes]:
        return (as_key(self._prefix, lock.name),)


def _token(lock: Lock) -> bytes:
    return lock.token.encode()
