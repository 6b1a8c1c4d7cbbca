"""Four processes that share one list on a server, which fails: python3 dev.py demo many_processes.

The processes are forked on one machine; on four machines all would be the same. The server is a
real one, which the demo starts, kills and stops. As in `quickstart.py`, each scene shows one thing,
measures it, and returns a claim for the summary.
"""

from __future__ import annotations

import logging
import mmap
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from _departures import flights, free_seats, open_departures
from _server import Server
from _stage import Claim, claim, console, numbers, scene, summary
from _workers import Worker
from slotcache import AvailabilityPolicy, HoldManager, SlotAvailabilityService
from slotcache.protocols import Loaded, Scope
from slotcache.redis import RedisCache
from slotcache.sql import SqlSlots

HOT = flights()[635]  # DL 434 to San Francisco, at 17:30
WORKERS, THREADS = 4, 4
POLICY = AvailabilityPolicy(ttl=0.5)


def main() -> int:
    """Play all scenes; return 0 if every claim is true."""
    began = time.monotonic()
    # Each process would say on stderr what it cannot reach: here the scenes tell.
    logging.getLogger("slotcache").addHandler(logging.NullHandler())
    with (
        tempfile.TemporaryDirectory() as name,
        open_departures(Path(name) / "departures.db", left={HOT.id: HOT.seats}) as slots,
        Server() as server,
        RedisCache(server.url) as cache,
        forked(Application(slots, cache)) as workers,
    ):
        claims = [
            a_list_expires(workers),
            one_sells_a_seat(workers),
            *the_server_is_killed(workers, server),
            the_server_is_silent(workers, server),
        ]
    return summary(claims, time.monotonic() - began)


class Counted(NamedTuple):
    """What the readers of one process have counted, or of all.

    Attributes:
        past: How many of the queries were made because the server was not trusted.
    """

    reads: int
    slowest: float
    queries: int
    past: int
    stale: int
    failed: int

    @classmethod
    def of_all(cls, counts: list[Counted]) -> Counted:
        reads, slowest, *others = zip(*counts, strict=True)
        return cls(sum(reads), max(slowest), *map(sum, others))


class Application:
    """What the master builds and each process has a copy of."""

    scope_type = str

    def __init__(self, slots: SqlSlots, cache: RedisCache) -> None:
        self._slots = slots
        self._service = SlotAvailabilityService(self, cache=cache, policy=POLICY)
        self._holds = HoldManager(slots, on_change=self._service.clear_availability_cache)
        self._sold = mmap.mmap(-1, 1)  # one byte that all processes share: the seats sold
        self._seconds: list[float] = []
        self._queries = self._past = self._stale = self._failed = 0

    def load(self, scope: Scope | None) -> Loaded:
        """Query the table: the service calls this, when it has to."""
        self._queries += 1
        self._past += not self.trusts_the_cache()
        time.sleep(0.02)
        return self._slots.load(scope)

    def start_reading(self) -> None:
        for _ in range(THREADS):
            threading.Thread(target=self._read_on, daemon=True).start()

    def count(self) -> Counted:
        """What was counted since this was last asked."""
        seconds, self._seconds = self._seconds, []
        reads = len(seconds), max(seconds, default=0.0)
        counted = Counted(*reads, self._queries, self._past, self._stale, self._failed)
        self._queries = self._past = self._stale = self._failed = 0
        return counted

    def sell(self) -> int:
        """Sell a seat; return how many lists have a clear that the server has not taken."""
        self._holds.confirm(self._holds.create(HOT.id).id)
        self._sold[0] += 1
        return self._service.health().undelivered

    def free(self) -> int:
        """How many seats of the hot flight the list shows."""
        return free_seats(self._service.get_availability(HOT.origin), HOT.id)

    def trusts_the_cache(self) -> bool:
        health = self._service.health()
        return health.cache and health.locks

    def _read_on(self) -> None:
        while True:
            sold, began = self._sold[0], time.monotonic()
            try:
                self._stale += self.free() > HOT.seats - sold
            except Exception:
                self._failed += 1
            self._seconds.append(time.monotonic() - began)
            time.sleep(0.002)


@contextmanager
def forked(application: Application) -> Iterator[list[Worker]]:
    """Fork the processes, have the threads of each read on and on, and end them."""
    with ExitStack() as stack:
        workers = []
        for _ in range(WORKERS):
            workers.append(Worker(application))
            stack.callback(workers[-1].kill)
        for worker in workers:
            worker.call("start_reading")
        yield workers


def all_of(workers: list[Worker], method: str) -> list[Any]:
    """Ask all processes the same, at once."""
    for worker in workers:
        worker.ask(method)
    return [worker.answer() for worker in workers]


def counted(workers: list[Worker]) -> list[Counted]:
    """What each process has counted since this was last asked."""
    return [Counted(*count) for count in all_of(workers, "count")]


def wait_until(is_so: Callable[[], bool]) -> bool:
    """Wait for it; return False if that took too long."""
    end = time.monotonic() + 5.0
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def a_list_expires(workers: list[Worker]) -> Claim:
    """Count the queries of all processes while the list expires again and again."""
    seconds = 1.4
    scene(
        "1  A list that expires",
        f"{WORKERS} processes with {THREADS} threads each read the departures from {HOT.origin}, "
        f"on and on. The list is kept for {POLICY.ttl:g} s on a Valkey server.",
    )
    counted(workers)
    began = time.monotonic()
    time.sleep(seconds)
    counts = counted(workers)
    took = time.monotonic() - began
    table = Table("process", numbers("reads"), numbers("queries"))
    for worker, each in zip(workers, counts, strict=True):
        table.add_row(f"{worker.pid}", f"{each.reads:,}", f"{each.queries}")
    console.print(table)
    total = Counted.of_all(counts)
    return claim(
        f"{WORKERS} processes, {total.reads:,} reads in {seconds:g} s, a list that lives for "
        f"{POLICY.ttl:g} s: {total.queries} queries",
        # On a machine that is too busy an answer of the server may come too late.
        is_true=1 <= total.queries <= took / POLICY.ttl + 1 + total.past and total.failed == 0,
    )


def one_sells_a_seat(workers: list[Worker]) -> Claim:
    """Let each process sell in turn, and ask all of them right after it."""
    sales = 12
    scene(
        "2  One sells, all see it",
        f"The processes take turns in selling a seat of {HOT.name}. As soon as a sale has "
        "returned, all are asked how many are left, beside the threads that read on.",
    )
    right = 0
    counted(workers)
    for sale in range(1, sales + 1):
        workers[sale % WORKERS].call("sell")
        answers = all_of(workers, "free")
        right += answers.count(HOT.seats - sale)
    total = Counted.of_all(counted(workers))
    console.print(
        f"{sales} sales later, each says that {answers[0]} seats are left. The threads have read "
        f"{total.reads:,} times meanwhile."
    )
    stale = sales * WORKERS - right + total.stale
    return claim(
        f"{sales} sales, each by another process: {stale} of "
        f"{sales * WORKERS + total.reads:,} reads are stale",
        is_true=stale == 0 and total.failed == 0,
    )


def the_server_is_killed(workers: list[Worker], server: Server) -> list[Claim]:
    """Kill the server while all read, sell a seat without it, and start it again."""
    scene(
        "3  The server is killed",
        "The server is killed (kill -9) while all read, and is down for a second. Meanwhile "
        f"process {workers[0].pid} sells a seat. Then it is started again, with nothing in it.",
    )
    left = workers[0].call("free") - 1
    counted(workers)
    time.sleep(0.5)
    before = Counted.of_all(counted(workers))

    server.kill()
    time.sleep(0.3)
    owed = workers[0].call("sell")
    time.sleep(0.7)
    down = Counted.of_all(counted(workers))

    began = time.monotonic()
    server.start()
    is_back = wait_until(lambda: all(all_of(workers, "trusts_the_cache")))
    back = Counted.of_all(counted(workers))
    trusted = time.monotonic()
    time.sleep(0.5)
    after = Counted.of_all(counted(workers))
    # And one of each process that was under way when it began to trust the cache.
    most_queries = (time.monotonic() - trusted) / POLICY.ttl + 1 + WORKERS + after.past
    shown = all_of(workers, "free")

    phases = {"before": before, "it is down": down, "it is started": back, "after that": after}
    table = Table("", *map(numbers, ("reads", "slowest read", "queries", "stale", "failed")))
    for name, each in phases.items():
        slowest = f"{each.slowest * 1000:.0f} ms"
        others = map(str, (each.queries, each.stale, each.failed))
        table.add_row(name, f"{each.reads:,}", slowest, *others)
    console.print(table)
    console.print(
        f"\nThe sale left {owed} lists (the airport's and the whole table's) with a clear that the "
        "server could not take. Until it takes them, that process believes nothing that it says. "
        f"All believed it again {(trusted - began) * 1000:.0f} ms after its start."
    )
    total = Counted.of_all(list(phases.values()))
    return [
        claim(
            f"it is killed: {total.reads:,} reads, {total.failed} failed, {total.stale} are stale, "
            f"the slowest took {total.slowest * 1000:.0f} ms",
            is_true=owed > 0 and total.failed == total.stale == 0 and total.slowest < 1.0,
        ),
        claim(
            f"it is back, empty: all {WORKERS} see the sale; queries for the next "
            f"{after.reads:,} reads: {after.queries}",
            is_true=is_back
            and after.queries - after.past <= most_queries
            and shown == [left] * WORKERS,
        ),
    ]


def the_server_is_silent(workers: list[Worker], server: Server) -> Claim:
    """Have the server accept everything and answer nothing: what does that cost a reader?"""
    silence = 1.2
    scene(
        "4  The server is silent",
        f"It is stopped (kill -STOP) for {silence:g} s: it accepts connections and requests, and "
        "answers none. Each call of it is given up after 0.25 s, and then nobody asks it but one "
        "in the background.",
    )
    counted(workers)
    server.fall_silent()
    time.sleep(silence)
    total = Counted.of_all(counted(workers))
    server.go_on()
    is_back = wait_until(lambda: all(all_of(workers, "trusts_the_cache")))
    total = Counted.of_all([total, *counted(workers)])
    console.print(
        f"{total.reads:,} reads, {total.queries} queries; the slowest read took "
        f"{total.slowest * 1000:.0f} ms, and {total.failed} failed."
    )
    return claim(
        f"it is silent for {silence:g} s: the slowest of {total.reads:,} reads took "
        f"{total.slowest * 1000:.0f} ms",
        is_true=is_back and total.failed == total.stale == 0 and total.slowest < silence,
    )


if __name__ == "__main__":
    sys.exit(main())
