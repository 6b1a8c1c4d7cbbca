"""Four worker processes that share one list: python3 dev.py demo worker_processes.

As gunicorn does with `--preload`, the master builds the application and then forks its workers.
Each has a service of its own, and all have one directory. As in `quickstart.py`, each scene
shows one thing, measures it, and returns a claim for the summary.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.table import Table

from _departures import flights, free_seats, open_departures
from _stage import Claim, claim, console, numbers, scene, summary
from _workers import Worker
from slotcache import AvailabilityPolicy, HoldManager, SlotAvailabilityService
from slotcache.file import FileCache
from slotcache.protocols import Loaded, Scope
from slotcache.sql import SqlSlots

HOT = flights()[635]  # DL 434 to San Francisco, at 17:30
WORKERS = 4
POLICY = AvailabilityPolicy(ttl=0.5)


def main() -> int:
    """Play all scenes; return 0 if every claim is true."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            open_departures(folder / "departures.db", left={HOT.id: HOT.seats}) as slots,
            FileCache(folder / "cache") as cache,
            forked(Application(slots, cache, folder)) as workers,
        ):
            claims = [
                a_list_expires(workers),
                one_sells_a_seat(workers),
                one_is_killed(workers, folder / "querying"),
            ]
    return summary(claims, time.monotonic() - began)


class Application:
    """What the master builds and each worker has a copy of."""

    scope_type = str

    def __init__(self, slots: SqlSlots, cache: FileCache, folder: Path) -> None:
        self._slots = slots
        self._folder = folder
        self._queries = 0
        self._query_lasts = 0.02
        self._service = SlotAvailabilityService(self, cache=cache, policy=POLICY)
        self._holds = HoldManager(slots, on_change=self._service.clear_availability_cache)

    def load(self, scope: Scope | None) -> Loaded:
        """Query the table: the service calls this, when it has to."""
        self._queries += 1
        loaded = self._slots.load(scope)
        (self._folder / "querying").touch()
        time.sleep(self._query_lasts)
        return loaded

    def read_for(self, seconds: float) -> tuple[int, int]:
        """Read once, and then as often as possible; return how many reads and queries that was."""
        before, reads, end = self._queries, 0, time.monotonic() + seconds
        while reads == 0 or time.monotonic() < end:
            self._service.get_availability(HOT.origin)
            reads += 1
        return reads, self._queries - before

    def free(self) -> int:
        """How many seats of the hot flight the list shows."""
        return free_seats(self._service.get_availability(HOT.origin), HOT.id)

    def sell(self) -> None:
        self._holds.confirm(self._holds.create(HOT.id).id)

    def clear(self) -> None:
        self._service.clear_availability_cache(HOT.origin)

    def read_with_a_query_that_lasts(self, seconds: float) -> int:
        self._query_lasts = seconds
        return self.free()


@contextmanager
def forked(application: Application) -> Iterator[list[Worker]]:
    """Fork the workers, and end them."""
    with ExitStack() as stack:
        workers = []
        for _ in range(WORKERS):
            workers.append(Worker(application))
            stack.callback(workers[-1].kill)
        yield workers


def a_list_expires(workers: list[Worker]) -> Claim:
    """Let all workers read for a while, and count the queries of them all."""
    seconds = 1.4
    scene(
        "1  A list that expires",
        f"{WORKERS} processes read the departures from {HOT.origin} for {seconds:g} s, as often as "
        f"they can. The list is kept for {POLICY.ttl:g} s in a directory, which all of them share.",
    )
    began = time.monotonic()
    for worker in workers:
        worker.ask("read_for", seconds)
    counts = [worker.answer() for worker in workers]
    took = time.monotonic() - began
    table = Table("process", numbers("reads"), numbers("queries"))
    for worker, (reads, queries) in zip(workers, counts, strict=True):
        table.add_row(f"{worker.pid}", f"{reads:,}", f"{queries}")
    console.print(table)
    reads, queries = map(sum, zip(*counts, strict=True))
    return claim(
        f"{WORKERS} processes, {reads:,} reads in {seconds:g} s, a list that lives for "
        f"{POLICY.ttl:g} s: {queries} queries",
        is_true=1 <= queries <= took / POLICY.ttl + 1,
    )


def one_sells_a_seat(workers: list[Worker]) -> Claim:
    """Let each worker sell in turn, and ask all of them right after it."""
    sales = 20
    scene(
        "2  One sells, all see it",
        f"The workers take turns in selling a seat of {HOT.name}. As soon as a sale has returned, "
        "all of them are asked how many are left.",
    )
    reads = stale = 0
    for sale in range(1, sales + 1):
        workers[sale % WORKERS].call("sell")
        for worker in workers:
            worker.ask("free")
        answers = [worker.answer() for worker in workers]
        reads += len(answers)
        stale += len(answers) - answers.count(HOT.seats - sale)
    console.print(f"{sales} sales later, each of them says that {answers[0]} seats are left.")
    return claim(
        f"{sales} sales, each by another process: "
        f"{stale} of {reads} reads right after them are stale",
        is_true=stale == 0,
    )


def one_is_killed(workers: list[Worker], querying: Path) -> Claim:
    """Kill a worker in the midst of its query, while the others wait for what it reads."""
    killed, *others = workers
    scene(
        "3  One is killed as it loads",
        f"The list is cleared, and worker {killed.pid} queries the table, which is made to take "
        f"it a minute. The others wait for its answer: its lock is good for {POLICY.lock_ttl:g} s. "
        "Then it is killed (kill -9).",
    )
    others[0].call("clear")
    querying.unlink()
    killed.ask("read_with_a_query_that_lasts", 60.0)
    while not querying.exists():
        time.sleep(0.001)
    for worker in others:
        worker.ask("read_for", 0.0)
    time.sleep(0.3)  # by then they wait
    killed.kill()
    began = time.monotonic()
    queries = sum(worker.answer()[1] for worker in others)
    took = time.monotonic() - began
    console.print(
        f"Its lock ended with it. {took * 1000:.0f} ms later all of them had the list, for "
        f"{queries} more query."
    )
    return claim(
        f"a worker is killed in mid-query: the others had their answer {took * 1000:.0f} ms later",
        is_true=queries == 1 and took < POLICY.lock_timeout / 2,
    )


if __name__ == "__main__":
    sys.exit(main())
