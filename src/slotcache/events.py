"""What a service has counted, and how its backends are: values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

__all__ = ["Counts", "Health", "Stats"]


@dataclass(frozen=True, slots=True)
class Stats:
    """How the reads and clears of one service object went, since it was made.

    A read that answered is counted once: in `hits`, `shared`, `stale` or `direct`, or else it ran
    one of the `loads` itself.

    Attributes:
        hits: Reads that were answered by the cache.
        loads: Queries of the table, those that failed included.
        shared: Reads that were answered by what another reader found, or queried.
        stale: Reads that were given an expired copy (P5).
        direct: Reads that ran, or shared, a query past the cache (P4, P5).
        outrun: Queries whose answer the cache did not keep as fresh: cleared meanwhile, or lost.
        clears: Calls of `clear_availability_cache`.
        undelivered: Those of them that returned False, delivered since or not.
    """

    hits: int = 0
    loads: int = 0
    shared: int = 0
    stale: int = 0
    direct: int = 0
    outrun: int = 0
    clears: int = 0
    undelivered: int = 0


@dataclass(frozen=True, slots=True)
class Health:
    """How the backends of one service are, at this moment.

    Attributes:
        cache: Whether reads ask the cache. False: it failed, or has clears to take; they query the
            table, and twice a second somebody asks whether it is back.
        locks: The same of the locks. False: each process queries for itself.
        undelivered: How many lists have a clear that the cache has not taken. Other processes may
            show these as they were, for a `ttl` at most.
    """

    cache: bool
    locks: bool
    undelivered: int


@dataclass(slots=True)
class Counts:
    """`Stats` in the making. An addition is not cut in two where there is a GIL."""

    hits: int = 0
    loads: int = 0
    shared: int = 0
    stale: int = 0
    direct: int = 0
    outrun: int = 0
    clears: int = 0
    undelivered: int = 0

    def so_far(self) -> Stats:
        """Return what has been counted."""
        return Stats(**dataclasses.asdict(self))
