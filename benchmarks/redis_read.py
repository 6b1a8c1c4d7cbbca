"""S4, S5: a list from a cache in Redis: 1,000 slots, and 100,000.

The floor is a GET on a bare socket of the bytes that slotcache stores, which decodes nothing. The
goal is twice that for 1,000 slots, and 1.5 times that for 100,000. `_contenders.py` tells how each
cache is used, and what it promises; those for asyncio read in a loop that runs already.

slotcache, changed
    A read after somebody else cleared and filled the list, through a cache object and connections
    of their own: it is transferred and decoded, as the others do it at each read. This is what to
    compare with them.
slotcache
    A read of a list that nobody has changed since this process read it: the server only says so.

Slotcache's list makes its rows when they are asked for. "slotcache, changed, all rows" makes all
of them at each read, for information.

    python3 dev.py bench redis_read [--quick] [--output FILE]
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

from _contenders import PACKAGES, Dicts, Loop, contender, installed_of
from _redis import Server
from _runner import Measured, environment, options, print_table, take_turns, verdict, write
from _slots import HOUR, Prepared, Rows, as_dicts, typical
from slotcache import Availability
from slotcache.codec import encode
from slotcache.protocols import Entry, Generation

GOALS = {1_000: 2.0, 100_000: 1.5}
PEERS = [
    *("dogpile.cache redis", "aiocache", "cashews, no lock", "cashews"),
    *("Django RedisCache", "cachelib RedisCache", "redis-py"),
]


class Floor:
    """The least: a GET on a bare socket, which takes all bytes of the answer."""

    def __init__(self, server: Server, rows: Rows) -> None:
        entry = Entry(Availability.of(rows), Generation(2**63, 1), since=0.0, until=HOUR)
        stored = encode(entry)
        server.command("SET", "floor", stored)
        self._left = len(b"$%d\r\n" % len(stored)) + len(stored) + 2
        self._answer = memoryview(bytearray(self._left))
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get(self) -> memoryview:
        self._socket.sendall(b"*2\r\n$3\r\nGET\r\n$5\r\nfloor\r\n")
        got = 0
        while got < self._left:
            got += self._socket.recv_into(self._answer[got:])
        return self._answer

    def close(self) -> None:
        self._socket.close()


class Listed(Prepared):
    """A table whose list has been read already, in both forms."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows)
        self._dicts = as_dicts(rows)

    def rows(self) -> Dicts:
        return self._dicts

    async def rows_soon(self) -> Dicts:
        return self._dicts


def main() -> None:
    """Measure, print a table and write the results."""
    chosen = options("redis_read", "Measure a read from a cache in Redis against its floor.")
    turns = {
        1_000: {"rounds": 2, "number": 5} if chosen.quick else {"rounds": 200, "number": 20},
        100_000: {"rounds": 2, "number": 1} if chosen.quick else {"rounds": 30, "number": 3},
    }

    where = environment(*PACKAGES)
    measured: dict[str, Measured] = {}
    peers = installed_of(PEERS)
    with Server() as server:
        for slots, turn in turns.items():
            measured.update(measure(server, peers, slots, **turn))
    goals = {
        f"{slots}: {name}": goal
        for slots, goal in GOALS.items()
        for name in ("slotcache", "slotcache, changed")
    }
    print_table(
        measured, {name: verdict(measured[name].ratio.median, goal) for name, goal in goals.items()}
    )
    write(
        chosen.output,
        {
            "benchmark": "redis_read",
            "goal": {**goals, "unit": "times the floor"},
            "environment": where,
            "turns": {str(slots): turn for slots, turn in turns.items()},
            "measured": measured,
        },
    )


def measure(
    server: Server, peers: list[str], slots: int, *, rounds: int, number: int
) -> dict[str, Measured]:
    """Measure all reads of one list, of which "changed" ones are one a turn."""
    rows = typical(slots)
    table = Listed(rows)
    floor, loop = Floor(server, rows), Loop()
    ours, here, there = (
        contender("slotcache", server.url, table, HOUR, f"{slots} {key}")
        for key in ("kept", "moved", "moved")
    )
    others = {name: contender(name, server.url, table, HOUR, str(slots)).read for name in peers}

    def change() -> None:
        there.clear()
        there.read()

    def read_all_rows() -> object:
        return list(here.read())

    calls = {"floor": floor.get, "slotcache": ours.read, **others}
    for call in calls.values():
        loop.call(call)
        found = loop.call(call)
        assert call in (floor.get, ours.read) or found == table.rows()
    assert ours.read().to_dicts() == table.rows()
    turns: dict[str, Callable[[], float]] = {
        name: partial(per_call, loop, call, number) for name, call in calls.items()
    }
    for name, call in {"changed": here.read, "changed, all rows": read_all_rows}.items():
        turns[f"slotcache, {name}"] = partial(per_change, loop, call, change, number)
    try:
        measured = take_turns(turns, rounds=rounds)
    finally:
        floor.close()
        loop.close()
    return {f"{slots}: {name}": each for name, each in measured.items()}


def per_call(loop: Loop, call: Callable[[], object], number: int) -> float:
    # The one before is not measured: what is in the processor's caches is another contender's.
    return loop.timed(call, partial(loop.call, call), number) / number


def per_change(
    loop: Loop, call: Callable[[], object], change: Callable[[], object], number: int
) -> float:
    return sum(loop.timed(call, change, 1) for _ in range(number)) / number


if __name__ == "__main__":
    main()
