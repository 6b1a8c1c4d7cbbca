"""Locks in Redis, for all processes that reach one server.

A lock is a key with a life and the token of who holds it. Who did not hear whether it was granted,
or given back, may hold it all the same: so it is given back as soon as the server answers again.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from slotcache.errors import BackendError
from slotcache.protocols import Lock
from slotcache.redis.given import Address, AsyncAddress
from slotcache.redis.scripts import ACQUIRE, LONGEST, RELEASE, Call
from slotcache.redis.server import AsyncServer, Server, as_key, names

__all__ = ["AsyncRedisLocks", "RedisLocks"]

_log = logging.getLogger("slotcache")


class _Locks:
    """What is asked about locks: without I/O, for both worlds."""

    _server: Server | AsyncServer

    def __init__(self, prefix: str) -> None:
        (self._prefix,) = names(prefix, "lock:")

    def _acquiring(self, lock: Lock, ttl: float) -> Call:
        life = b"%d" % max(1, math.ceil(min(ttl, LONGEST) * 1_000))
        return Call(ACQUIRE, self._keys(lock), (_token(lock), life))

    def _releasing(self, lock: Lock) -> Call:
        return Call(RELEASE, self._keys(lock), (_token(lock),))

    @contextmanager
    def _or_owed(self, lock: Lock) -> Iterator[None]:
        """Have the lock given back later, if it is not known what became of it."""
        try:
            yield
        except BaseException:
            self._server.owe(self._releasing(lock))
            raise

    def _keys(self, lock: Lock) -> tuple[bytes]:
        return (as_key(self._prefix, lock.name),)


class RedisLocks(_Locks):
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
        super().__init__(prefix)
        self._server: Server = Server.at(server)

    def acquire(self, name: str, *, ttl: float) -> Lock | None:
        """Return the lock, held for at most `ttl` seconds; None: somebody else holds it.

        Raises:
            BackendError: The server did not say. If it has granted the lock all the same, that is
                given back as soon as the server answers again, or ends with its `ttl`.
        """
        lock = _new(name)
        with self._or_owed(lock):
            granted = self._server.run(self._acquiring(lock, ttl))
        return lock if granted == 1 else None

    def release(self, lock: Lock) -> bool:
        """Give the lock back. Never raises; False: it was no longer yours, or nobody knows."""
        try:
            with self._or_owed(lock):
                return bool(self._server.run(self._releasing(lock)) == 1)
        except BackendError:
            _tell(lock)
            return False

    def close(self) -> None:
        """Close the connections that were made here. Locks that are held stay so."""
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class AsyncRedisLocks(_Locks):
    """`RedisLocks` on asyncio: it shares the locks with those of the same server and prefix.

    It may be used in any number of event loops, at once or one after the other, and makes its
    connections in each. A call takes 0.25 s at most, whatever the server is given by. Whoever is
    cancelled in the midst of a call holds no lock: it is given back with the next call.

    Args:
        server: A URL, or a client, as for `AsyncRedisCache`.
        prefix: What its keys begin with.

    Raises:
        TypeError: As `RedisLocks`.
        ValueError: As `RedisLocks`.
    """

    def __init__(self, server: AsyncAddress | AsyncServer, *, prefix: str = "slotcache") -> None:
        super().__init__(prefix)
        self._server: AsyncServer = AsyncServer.at(server)

    async def acquire(self, name: str, *, ttl: float) -> Lock | None:
        """As `RedisLocks.acquire`."""
        lock = _new(name)
        with self._or_owed(lock):
            granted = await self._server.run(self._acquiring(lock, ttl))
        return lock if granted == 1 else None

    async def release(self, lock: Lock) -> bool:
        """As `RedisLocks.release`."""
        try:
            with self._or_owed(lock):
                return bool(await self._server.run(self._releasing(lock)) == 1)
        except BackendError:
            _tell(lock)
            return False

    async def close(self) -> None:
        """As `RedisLocks.close`, of those connections that were made in the running loop."""
        await self._server.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()


def _new(name: str) -> Lock:
    return Lock(name, secrets.token_hex(16))


def _tell(lock: Lock) -> None:
    _log.warning("the lock could not be released: %r", lock.name, exc_info=True)


def _token(lock: Lock) -> bytes:
    return lock.token.encode()
