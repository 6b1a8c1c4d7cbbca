"""A cache in Redis, for all processes that reach one server.

What is decided is decided inside the server, by the scripts in `scripts.py`. A look tells the name
of the bytes that this process keeps decoded, and is sent those of another list only: one that has
not changed costs a round trip of a hundred bytes, however long it is.

The server's clock tells what is fresh. Instants are converted to this process's clock by the age
that the server tells, counted from before the request: so they may be early, by the time that the
answer took, and never late.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from slotcache._kept import keep_latest, number_of_lists
from slotcache.availability import Availability
from slotcache.codec import decode, encode
from slotcache.errors import BackendError
from slotcache.protocols import Entry, Generation, Miss, random_epoch
from slotcache.redis.given import Address, AsyncAddress
from slotcache.redis.locks import AsyncRedisLocks, RedisLocks
from slotcache.redis.scripts import CLEAR, CLEAR_ALL, FILL, LONGEST, LOOK, Call
from slotcache.redis.server import AsyncServer, Server, as_key, names
from slotcache.trouble import BUDGET

__all__ = ["AsyncRedisCache", "RedisCache"]

_RECORD_LIFE = b"3600000"  # milliseconds: an hour
_SECOND = 1_000_000  # microseconds


@dataclass(frozen=True, slots=True)
class _Kept:
    """A list that this process has decoded, and the name of its bytes on the server."""

    stamp: bytes
    entry: Entry


@dataclass(frozen=True, slots=True)
class _Look:
    """A look that is under way: when it began, and what was kept then."""

    key: str
    began: float
    kept: _Kept | None
    call: Call


@dataclass(frozen=True, slots=True)
class _Fill:
    """A fill that is under way.

    Attributes:
        look: The instant of the look before its load, by the server's clock.
    """

    key: str
    began: float
    stamp: bytes
    look: int
    availability: Availability
    generation: Generation
    call: Call


class _Lists:
    """What is asked about lists, and what the answers mean: without I/O, for both worlds."""

    def __init__(self, prefix: str, maxsize: int, epoch: Callable[[], int]) -> None:
        self._prefix, all_lists = names(prefix, "list:", "all")
        self._all = all_lists.encode()
        self._maxsize = number_of_lists(maxsize)
        self._epoch = epoch
        self._kept: dict[str, _Kept] = {}

    def _keys(self, key: str) -> tuple[bytes, bytes]:
        return as_key(self._prefix, key), self._all

    def _clearing(self, key: str) -> Call:
        return Call(CLEAR, self._keys(key), (_RECORD_LIFE,))

    def _clearing_all(self) -> Call:
        return Call(CLEAR_ALL, (self._all,), (_RECORD_LIFE,))

    def _looking(self, key: str) -> _Look:
        kept = self._kept.get(key)
        stamp = b"" if kept is None else kept.stamp
        call = Call(LOOK, self._keys(key), (_hex(self._epoch()), stamp, _RECORD_LIFE))
        return _Look(key, time.monotonic(), kept, call)

    def _looked(self, look: _Look, reply: Any) -> tuple[Miss, bool]:
        """Return what was found, as a `Miss`, and whether the copy in it is fresh."""
        try:
            epoch, clears, now, stamp, under, since, until, data = reply
            current, now = Generation(int(epoch, 16), int(clears)), int(now)
        except (TypeError, ValueError) as error:
            raise BackendError(f"this is no answer to a look: {reply!r:.80}") from error
        try:
            generation, since, until = Generation(current.epoch, int(under)), int(since), int(until)
            ages = (since - now) / _SECOND, (until - now) / _SECOND
        except (TypeError, ValueError, OverflowError):  # nothing is kept, or it was damaged
            return Miss(current, now), False
        kept = look.kept if look.kept is not None and look.kept.stamp == stamp else None
        availability = _decoded(data, generation) if kept is None else kept.entry.availability
        if availability is None:
            return Miss(current, now), False
        entry = Entry(availability, generation, look.began + ages[0], look.began + ages[1])
        is_fresh = generation == current and since <= now < until
        # The same to within what an answer takes: then it is the same object, too.
        if is_fresh and kept is not None and abs(kept.entry.since - entry.since) <= BUDGET:
            entry = kept.entry
        else:
            self._keep(look.key, stamp, entry)
        return Miss(current, now, entry), is_fresh

    def _filling(
        self,
        key: str,
        miss: Miss,
        availability: Availability,
        ttl: float,
        stale_ttl: float,
        valid_for: float | None,
    ) -> _Fill | None:
        """Return the fill that may follow this look; None: that was not answered by a server."""
        generation, look = miss.generation, miss.look
        if generation is None or not isinstance(look, int):
            return None
        stamp = secrets.token_bytes(8)
        arguments = (
            *(_hex(generation.epoch), b"%d" % generation.clears, b"%d" % look),
            _microseconds(ttl),
            b"" if valid_for is None else _microseconds(valid_for),
            _microseconds(stale_ttl),
            *(stamp, encode(Entry(availability, generation, 0.0, 0.0)), _RECORD_LIFE),
        )
        call = Call(FILL, self._keys(key), arguments)
        return _Fill(key, time.monotonic(), stamp, look, availability, generation, call)

    def _filled(self, fill: _Fill, reply: Any) -> Entry | None:
        """Return the entry that is fresh now; None: it was dropped, outrun, or has no life left."""
        if reply is None:
            return None
        try:
            now, until, is_fresh = map(int, reply)
        except (TypeError, ValueError) as error:
            raise BackendError(f"this is no answer to a fill: {reply!r:.80}") from error
        since = fill.began + (fill.look - now) / _SECOND
        entry = Entry(
            fill.availability, fill.generation, since, fill.began + (until - now) / _SECOND
        )
        self._keep(fill.key, fill.stamp, entry)
        return entry if is_fresh else None

    def _keep(self, key: str, stamp: bytes, entry: Entry) -> None:
        """Have the next looks answered without sending and decoding it, and by one object."""
        keep_latest(self._kept, key, _Kept(stamp, entry), self._maxsize)


class RedisCache(_Lists):
    """A `CacheBackend` on a Redis or Valkey server: keeps P1 for all processes that reach it.

    A call takes 0.25 s at most and is not retried, where the server is given by its URL: then it
    raises, and the service does without the cache until it is back. Nothing is sent before the
    first call. A server that restarts empty, evicts or is flushed costs queries, and so do
    damaged bytes. A forked child shares the server and nothing else.

    Args:
        server: A URL (`redis://`, `rediss://` or `unix://`, with the options of redis-py), or a
            `redis.Redis` or `redis.RedisCluster` client, whose time-outs bound each part of a
            call, not the whole.
        prefix: What its keys begin with. Who shares server and prefix shares the lists, and
            `clear_all` clears those of all. On a cluster, all are on one node.
        maxsize: How many lists (one a scope, and the whole table's) each process keeps decoded.
            Reading another one costs sending and decoding it.
        epoch: Makes the random part of a new record's generation.

    Raises:
        TypeError: The server is none, or the prefix is no str.
        ValueError: A client that could keep a reader waiting, or reads from replicas: the message
            tells what to make it with. Or the prefix is empty or has braces.
    """

    def __init__(
        self,
        server: Address,
        *,
        prefix: str = "slotcache",
        maxsize: int = 100,
        epoch: Callable[[], int] = random_epoch,
    ) -> None:
        super().__init__(prefix, maxsize, epoch)
        self._server = Server.at(server)
        self._locks = RedisLocks(self._server, prefix=prefix)

    def read(self, key: str) -> Entry | Miss:
        """Return the fresh entry, or a `Miss` that tells the generation seen."""
        return _fresh(*self._look(key))

    def look(self, key: str) -> Miss:
        """Return a `Miss` although the entry may be fresh. A new key gets a record."""
        return self._look(key)[0]

    def fill(
        self,
        key: str,
        miss: Miss,
        availability: Availability,
        *,
        ttl: float,
        stale_ttl: float,
        valid_for: float | None = None,
    ) -> Entry | None:
        """Keep what was loaded after `miss`, as `CacheBackend.fill` says."""
        fill = self._filling(key, miss, availability, ttl, stale_ttl, valid_for)
        return None if fill is None else self._filled(fill, self._server.run(fill.call))

    def clear(self, key: str) -> None:
        """Count one clear. Without a record: do nothing."""
        self._server.run(self._clearing(key))

    def clear_all(self) -> None:
        """Count one clear in every record, forgetting none: one command, however many there are."""
        self._server.run(self._clearing_all())

    def locks(self) -> RedisLocks:
        """The locks on the same server, under the same prefix."""
        return self._locks

    def close(self) -> None:
        """Close the connections that were made here. What is on the server stays there."""
        self._kept.clear()
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _look(self, key: str) -> tuple[Miss, bool]:
        look = self._looking(key)
        return self._looked(look, self._server.run(look.call))


class AsyncRedisCache(_Lists):
    """`RedisCache` on asyncio: it shares lists and locks with those of the same server and prefix.

    It may be used in any number of event loops, at once or one after the other, and makes its
    connections in each; they end with the loop, or with `close`. A call takes 0.25 s at most,
    whatever the server is given by, and may be cancelled at any time: what it did then is unknown,
    and the next one is not disturbed.

    Args:
        server: A URL, or a `redis.asyncio.Redis` or `redis.asyncio.RedisCluster` client, which
            belongs to one event loop.
        prefix: What its keys begin with.
        maxsize: How many lists each process keeps decoded.
        epoch: Makes the random part of a new record's generation.

    Raises:
        TypeError: As `RedisCache`.
        ValueError: As `RedisCache`.
    """

    def __init__(
        self,
        server: AsyncAddress,
        *,
        prefix: str = "slotcache",
        maxsize: int = 100,
        epoch: Callable[[], int] = random_epoch,
    ) -> None:
        super().__init__(prefix, maxsize, epoch)
        self._server = AsyncServer.at(server)
        self._locks = AsyncRedisLocks(self._server, prefix=prefix)

    async def read(self, key: str) -> Entry | Miss:
        """As `RedisCache.read`."""
        return _fresh(*await self._look(key))

    async def look(self, key: str) -> Miss:
        """As `RedisCache.look`."""
        return (await self._look(key))[0]

    async def fill(
        self,
        key: str,
        miss: Miss,
        availability: Availability,
        *,
        ttl: float,
        stale_ttl: float,
        valid_for: float | None = None,
    ) -> Entry | None:
        """As `RedisCache.fill`."""
        fill = self._filling(key, miss, availability, ttl, stale_ttl, valid_for)
        return None if fill is None else self._filled(fill, await self._server.run(fill.call))

    async def clear(self, key: str) -> None:
        """As `RedisCache.clear`."""
        await self._server.run(self._clearing(key))

    async def clear_all(self) -> None:
        """As `RedisCache.clear_all`."""
        await self._server.run(self._clearing_all())

    def locks(self) -> AsyncRedisLocks:
        """As `RedisCache.locks`."""
        return self._locks

    async def close(self) -> None:
        """As `RedisCache.close`, of those connections that were made in the running loop."""
        self._kept.clear()
        await self._server.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def _look(self, key: str) -> tuple[Miss, bool]:
        look = self._looking(key)
        return self._looked(look, await self._server.run(look.call))


def _fresh(found: Miss, is_fresh: bool) -> Entry | Miss:
    return found.copy if is_fresh and found.copy is not None else found


def _decoded(data: object, generation: Generation) -> Availability | None:
    """Return the list whose bytes these are; None: they are not those of this generation's."""
    stored = decode(data) if isinstance(data, bytes) else None
    return None if stored is None or stored.generation != generation else stored.availability


def _hex(epoch: int) -> bytes:
    return b"%016x" % epoch


def _microseconds(seconds: float) -> bytes:
    return b"%d" % (min(seconds, LONGEST) * _SECOND)
