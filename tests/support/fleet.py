"""Processes of one application, whose lists are on one Redis server."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from slotcache import AvailabilityPolicy, HoldManager, HoldPolicy, SlotAvailabilityService, Source
from slotcache.events import Health
from slotcache.protocols import Loaded, Lock, Scope
from slotcache.redis import RedisCache, RedisLocks, bounds
from slotcache.sql import SqlSlots
from slotcache.worlds import SystemClock
from tests.support.forks import Forked
from tests.support.processes import PROCESSES, Shop
from tests.support.threads import PATIENCE, together

# With all that it imports, and that is all that the workers need: see `PROCESSES`.
PROCESSES.set_forkserver_preload([__name__])


@dataclass(frozen=True, slots=True)
class Served:
    """What some readers saw.

    Attributes:
        answers: How many answers they were given.
        slowest: Seconds that the slowest of them took.
        sources: Where they came from.
    """

    answers: int
    slowest: float
    sources: frozenset[Source]


class Branch(Shop):
    """A `Shop` whose list is on a server; other branches may be on other machines.

    Args:
        passing: As for `Shop`; the others, too, that are not named here.
        url: The server's.
        prefix: Of its keys there.
        query: How many seconds a query takes to come back, once it has read the table.
    """

    def __init__(
        self,
        passing: Callable[[str], None],
        folder: Path,
        policy: AvailabilityPolicy,
        url: str,
        prefix: str,
        query: float,
    ) -> None:
        super().__init__(passing, folder, policy)
        self.bound(PATIENCE)
        self._query = query
        self._loads: list[tuple[float, float]] = []
        self._books = sqlite3.connect(folder / "slots.db", PATIENCE, isolation_level=None)
        self._books.execute("PRAGMA synchronous = OFF")  # no machine is switched off here
        self._commits: list[float] = []
        self._deliveries: list[bool] = []
        self._cache = RedisCache(url, prefix=prefix)
        self._locks = _WatchedLocks(self._cache.locks(), passing)
        self._service = SlotAvailabilityService(
            self, cache=self._cache, locks=self._locks, policy=policy, clock=_Clock(passing)
        )

    def load(self, scope: Scope | None) -> Loaded:
        began = time.monotonic()
        loaded = super().load(scope)
        time.sleep(self._query)
        self._loads.append((began, time.monotonic()))
        return loaded

    def loads(self) -> list[tuple[float, float]]:
        """Return when each of its queries began and ended, by the clock of this machine."""
        return self._loads

    def locks_asked_for(self) -> int:
        """Return how often it has asked for a lock."""
        return self._locks.asked

    def bound(self, seconds: float) -> None:
        """Take a server that has not answered by then for one that does not answer."""
        bounds.BUDGET = seconds

    def health(self) -> Health:
        return self._service.health()

    def clear(self) -> bool:
        return self._service.clear_availability_cache()

    def look(self) -> None:
        """Look at the list, and do no more."""
        self._cache.look(AvailabilityPolicy().key)

    def sell(self) -> tuple[float, list[bool]]:
        """Hold one more place, and confirm that.

        Returns:
            The instant by which the place was gone, and what each clear returned.
        """
        self._commits, self._deliveries = [], []
        self._holds.confirm(self._holds.create(1).id)
        return self._commits[0], self._deliveries

    def rewrite(self) -> None:
        """Sell one more place as some other program would, in no time, and clear the list."""
        self._books.execute("UPDATE slots SET remaining = remaining - 1")
        self.clear()

    def change_and_clear_all(self) -> None:
        """Hold one more place, and clear all that the cache has."""
        HoldManager(self._slots, on_change=lambda _: self._cache.clear_all()).create(1)

    def read_at_once(self, threads: int, start: float, reads: int) -> set[int]:
        """Read in so many threads, all from one instant on, each so many times.

        Returns:
            How many places their answers said were gone.
        """

        def read() -> set[int]:
            _wait_for(start)
            return {self.read()[0] for _ in range(reads)}

        return set().union(*together(threads, read))

    def read_steadily(self, threads: int, start: float, end: float) -> Served:
        """Read again and again, in so many threads, from one instant to another."""
        served = together(threads, partial(self._read_until, start, end))
        return Served(
            sum(each.answers for each in served),
            max(each.slowest for each in served),
            frozenset().union(*(each.sources for each in served)),
        )

    def change_steadily(self, index: int, start: float, end: float, pause: float) -> int:
        """Sell a place at each tick of a clock; return how many.

        Args:
            index: Which of the workers it is.
            start: The first tick.
            end: There are none from then on.
            pause: The seconds between two. Those that are missed come in a row.
        """
        for changes in itertools.count():
            tick = start + changes * pause
            _wait_for(tick)
            if max(tick, time.monotonic()) >= end:
                return changes
            self.rewrite()
            self._acknowledged[index] += 1
        raise AssertionError

    def _read_until(self, start: float, end: float) -> Served:
        answers, slowest, sources = 0, 0.0, set()
        _wait_for(start)
        while (began := time.monotonic()) < end:
            least = self.acknowledged()
            gone, source = self.read()
            assert gone >= least, f"{gone} shown, {least} gone"
            answers, slowest = answers + 1, max(slowest, time.monotonic() - began)
            sources.add(source)
        return Served(answers, slowest, frozenset(sources))

    def _clear(self, scope: Scope | None) -> None:
        self._commits.append(time.monotonic())
        self._passing("committed")
        self._deliveries.append(self._service.clear_availability_cache(scope))


class PreFork:
    """A server that makes its cache, and uses it, before it forks its workers.

    The table has a scope for each process, with a slot whose id is the scope's number.
    """

    def __init__(
        self, _passing: Callable[[str], None], folder: Path, url: str, prefix: str, processes: int
    ) -> None:
        bounds.BUDGET = PATIENCE
        self._processes = processes
        self._slots = SqlSlots.sqlite(folder / "forked.db")
        self._slots.create_tables()
        for number in range(processes):
            self._slots.add([(number, 1_000)], scope=str(number))
        self._service = SlotAvailabilityService(
            self._slots,
            cache=RedisCache(url, prefix=prefix),
            policy=AvailabilityPolicy(ttl=3600, lock_timeout=PATIENCE, lock_ttl=3600),
        )
        self._holds = HoldManager(
            self._slots,
            on_change=self._service.clear_availability_cache,
            policy=HoldPolicy(ttl=3600, lock_wait=PATIENCE),
        )

    def read(self) -> int:
        """Return how many slots there are."""
        return len(self._service.get_availability())

    def fork_and_work(self, rounds: int) -> Health:
        """Fork, and have all processes read and change at once; return how it is then."""
        start = time.monotonic() + 0.1
        children = [
            Forked(partial(self._work, number, start, rounds))
            for number in range(1, self._processes)
        ]
        self._work(0, start, rounds)
        for child in children:
            child.finish()
        return self._service.health()

    def _work(self, number: int, start: float, rounds: int) -> None:
        """Sell the places of one's own slot; whatever is read has to be about what was asked."""
        _wait_for(start)
        for done in range(rounds):
            assert self._shown(str(number)) == {number: done}
            self._holds.create(number)
            assert self._shown(str(number)) == {number: done + 1}
            shown = self._shown(None)
            assert shown.keys() == set(range(self._processes))
            assert shown[number] == done + 1

    def _shown(self, scope: str | None) -> dict[object, int]:
        """How many places of each slot a list says are gone."""
        listed = self._service.get_availability(scope)
        return {slot.slot_id: slot.capacity - slot.remaining for slot in listed}


class _WatchedLocks:
    """Locks that count how often one was asked for, with a place to be halted at."""

    def __init__(self, locks: RedisLocks, passing: Callable[[str], None]) -> None:
        self._locks = locks
        self._passing = passing
        self.asked = 0

    def acquire(self, name: str, *, ttl: float) -> Lock | None:
        self.asked += 1
        self._passing("locking")
        return self._locks.acquire(name, ttl=ttl)

    def release(self, lock: Lock) -> bool:
        return self._locks.release(lock)


class _Clock(SystemClock):
    """The system's clock, with a place to be halted at."""

    def __init__(self, passing: Callable[[str], None]) -> None:
        self._passing = passing

    def sleep(self, seconds: float) -> None:  # type: ignore[override]
        self._passing("waiting")
        time.sleep(seconds)


def _wait_for(instant: float) -> None:
    time.sleep(max(0.0, instant - time.monotonic()))
