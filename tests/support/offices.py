"""Processes of an application on one Valkey and one PostgreSQL, which write their history down.

Each of them reads, books, tidies up and changes capacities at random, in threads or in tasks, until
its time is over or it is killed. Actors are written once, as coroutines: in a blocking process they
are run on parts that never suspend, as the library runs its own flow.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

# So that each worker is forked with all that the others need, too: see `PROCESSES`.
import tests.support.fleet  # noqa: F401
from slotcache import (
    AsyncHoldManager,
    AsyncSlotAvailabilityService,
    AvailabilityPolicy,
    BackendError,
    HoldManager,
    HoldPolicy,
    SlotAvailabilityService,
    SlotcacheError,
    guard,
)
from slotcache.protocols import Loaded, Lock, Scope
from slotcache.redis import AsyncRedisCache, AsyncRedisLocks, RedisCache, RedisLocks, bounds
from slotcache.sql import AsyncSqlSlots, SqlSlots
from slotcache.worlds import run
from tests.support.history import Journal
from tests.support.processes import PROCESSES
from tests.support.threads import PATIENCE, spawn

PROCESSES.set_forkserver_preload([__name__])

SCOPES = ("north", "south")
SLOTS = {1: ("north", 6), 2: ("north", 3), 3: ("south", 6), 4: ("south", 3)}
CAPACITIES = (2, 3, 4, 5, 6, 7, 8)
POLICY = AvailabilityPolicy(ttl=0.25, stale_ttl=1.0, lock_timeout=0.1, lock_ttl=0.2, min_ttl=0.02)
IMPATIENT = replace(POLICY, lock_timeout=0.0)
LIVES = (0.02, 0.1, 0.3)
"""Seconds for which holds are made."""

REFUSALS = (SlotcacheError, sa.exc.DBAPIError)
"""What may come of anything that is done here, and is written down."""

QUERY = 0.004
"""Seconds that a query takes to come back, at most, once it has read the table."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a process is made of: a seeded fault is another part.

    Attributes:
        cache: Makes the cache of a blocking process.
        has_hook: Whether its managers tell anybody what they change.
        has_keys: Whether its idempotency keys are sent.
    """

    cache: type[RedisCache] = RedisCache
    has_hook: bool = True
    has_keys: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """What all processes are told.

    Attributes:
        folder: For the journals.
        redis: The server's URL.
        prefix: Of the keys there.
        database: The database's URL.
        claim: How the column of places is kept.
        seed: Decides what is decided at random.
        seconds: How long the day is.
        is_cut_off: Whether the way to the server is one that fails.
        parts: What they are made of.
    """

    folder: Path
    redis: str
    prefix: str
    database: str
    claim: str
    seed: int
    seconds: float
    is_cut_off: bool = False
    parts: Parts = field(default_factory=Parts)

    def engine_url(self, who: str) -> sa.URL:
        """The URL for one process, whose name the database writes down."""
        return sa.make_url(self.database).update_query_dict({"application_name": who})


class Office:
    """One process, whose parts are those of its world.

    Attributes:
        services: One that waits for the lock, and one that does not, on one cache.
        holds: The manager.
    """

    services: Sequence[Any]
    holds: Any

    def __init__(self, plan: Plan, name: str) -> None:
        self.plan = plan
        self.journal = Journal(plan.folder / name)
        self._name = name
        self._known: list[str] = []
        self._capacities: dict[int, set[int]] = {slot: {its} for slot, (_, its) in SLOTS.items()}
        guard.BUDGET = bounds.BUDGET = PATIENCE  # type: ignore[attr-defined]
        if plan.is_cut_off:
            guard.BUDGET = bounds.BUDGET = guard.PAUSE = 0.1  # type: ignore[attr-defined]

    def actors(self, until: float, *, builds: bool) -> list[Coroutine[Any, Any, None]]:
        """All who work here until that instant."""
        works = [self._read, self._read, self._read, self._book, self._sweep, self._ask_health]
        if builds:
            works.append(self._build)
        seed = f"{self.plan.seed} {self._name}"
        return [
            self._act(work, random.Random(f"{seed} {index}"), until)
            for index, work in enumerate(works)
        ]

    async def _get_ready(self) -> None:
        with suppress(*REFUSALS):
            await self._call(self.services[0].read)
            await self._call(self.holds.find, limit=1)

    async def _call(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        raise NotImplementedError

    async def _sleep(self, seconds: float) -> None:
        raise NotImplementedError

    async def _act(
        self,
        work: Callable[[random.Random], Awaitable[float]],
        chance: random.Random,
        until: float,
    ) -> None:
        """Do this again and again: a refusal, or a database that fails, is written down."""
        while time.monotonic() < until:
            pause = 0.01
            with suppress(*REFUSALS):
                pause = await work(chance)
            await self._sleep(chance.uniform(0.0, pause))

    async def _read(self, chance: random.Random) -> float:
        for _ in range(4):
            await self._read_once(chance.choice(self.services), chance.choice([None, *SCOPES]))
        return 0.01

    async def _read_once(self, service: Any, scope: str | None) -> None:
        with self.journal.call("read", scope=scope) as came:
            reading = await self._call(service.read, scope)
            came["source"] = reading.source.value
            came["age"] = reading.age
            came["list"] = [list(row) for row in reading.availability]
            came["in_touch"] = not self.plan.is_cut_off and service.health().cache

    async def _book(self, chance: random.Random) -> float:
        what = chance.choices(("create", "order", "confirm", "cancel", "extend"), (5, 3, 4, 6, 1))
        if what == ["create"]:
            slots = chance.sample(list(SLOTS), chance.choice((1, 1, 1, 2)))
            owner, key = f"{self._name} {chance.getrandbits(32)}", chance.choice((None, "form"))
            places = {slot: chance.randint(1, 2) for slot in slots}
            for _ in range(1 if key is None else chance.randint(1, 2)):
                await self._create(places, owner, key, chance)
        elif what == ["order"]:  # others send it, too
            number = int(time.monotonic() * 20) * 3 + chance.randrange(3)
            places = {number % len(SLOTS) + 1: 1 + number % 2}
            await self._create(places, f"order {number}", "order", chance)
        elif self._known:
            await self._move(what[0], chance.choice(self._known[-12:]), chance)
        return 0.02

    async def _create(
        self, places: dict[int, int], owner: str, key: str | None, chance: random.Random
    ) -> None:
        sent = key if self.plan.parts.has_keys else None
        with self.journal.call("create", places=places, owner=owner, key=key) as came:
            made = await self._call(
                self.holds.create_many,
                places,
                owner=owner,
                idempotency_key=sent,
                ttl=chance.choice(LIVES),
            )
            came["holds"] = [str(hold.id) for hold in made]
            came["replayed"] = made[0].replayed
        self._known += came["holds"]

    async def _move(self, what: str, hold: str, chance: random.Random) -> None:
        options = {"ttl": chance.choice(LIVES)} if what == "extend" else {}
        with self.journal.call(what, hold=hold) as came:
            moved = await self._call(getattr(self.holds, what), UUID(hold), **options)
            came["state"] = moved.state.value
            came["replayed"] = moved.replayed

    async def _sweep(self, _: random.Random) -> float:
        with self.journal.call("expire_due") as came:
            came["count"] = await self._call(self.holds.expire_due, 10)
        return 0.1

    async def _build(self, chance: random.Random) -> float:
        slot = chance.choice(list(SLOTS))
        # Where the answer was lost, it may be the new one or the old one.
        may_be = self._capacities[slot]
        capacity = chance.choice([each for each in CAPACITIES if each not in may_be])
        with self.journal.call("set_capacity", slot=slot, capacity=capacity):
            try:
                await self._call(self.holds.set_capacity, slot, capacity)
            except BackendError:
                may_be.add(capacity)
                raise
        self._capacities[slot] = {capacity}
        return 0.05

    async def _ask_health(self, _: random.Random) -> float:
        with self.journal.call("health") as came:
            came["undelivered"] = self.services[0].health().undelivered
        return 0.05


class BlockingOffice(Office):
    """One with threads."""

    def __init__(self, _passing: Callable[[str], None], plan: Plan, name: str) -> None:
        super().__init__(plan, name)
        slots = SqlSlots(sa.create_engine(plan.engine_url(name)), claim=plan.claim)
        cache = plan.parts.cache(plan.redis, prefix=plan.prefix)
        watched, locks = _Slots(slots, self.journal), _Locks(cache.locks(), self.journal)
        self.services = [
            SlotAvailabilityService(watched, cache=cache, locks=locks, policy=policy)
            for policy in (POLICY, IMPATIENT)
        ]
        hook = self._tell if plan.parts.has_hook else None
        self.holds = HoldManager(slots, on_change=hook, policy=HoldPolicy(lock_wait=PATIENCE))

    def get_ready(self) -> None:
        """Have connections, and statements compiled."""
        run(self._get_ready())

    def live(self, until: float, builds: bool) -> None:
        """Have all work until that instant."""
        self.get_ready()
        actors = self.actors(until, builds=builds)
        for working in [spawn(partial(run, actor)) for actor in actors]:
            working.result()

    def _tell(self, scope: Scope | None) -> None:
        with self.journal.call("told", scope=scope) as came:
            came["delivered"] = self.services[0].clear_availability_cache(scope)

    async def _call(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return method(*args, **options)

    async def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  (nothing else runs in this thread)


class AsyncOffice(Office):
    """One with tasks."""

    def __init__(self, _passing: Callable[[str], None], plan: Plan, name: str) -> None:
        super().__init__(plan, name)
        slots = AsyncSqlSlots(create_async_engine(plan.engine_url(name)), claim=plan.claim)
        cache = AsyncRedisCache(plan.redis, prefix=plan.prefix)
        watched, locks = _AsyncSlots(slots, self.journal), _AsyncLocks(cache.locks(), self.journal)
        self.services = [
            AsyncSlotAvailabilityService(watched, cache=cache, locks=locks, policy=policy)
            for policy in (POLICY, IMPATIENT)
        ]
        hook = self._tell if plan.parts.has_hook else None
        self.holds = AsyncHoldManager(slots, on_change=hook, policy=HoldPolicy(lock_wait=PATIENCE))
        self._runner = asyncio.Runner()

    def get_ready(self) -> None:
        """As `BlockingOffice.get_ready`."""
        self._runner.run(self._get_ready())

    def live(self, until: float, builds: bool) -> None:
        """Have all work until that instant."""
        self.get_ready()
        self._runner.run(self._live(until, builds=builds))

    async def _live(self, until: float, *, builds: bool) -> None:
        async with asyncio.TaskGroup() as tasks:
            for actor in self.actors(until, builds=builds):
                tasks.create_task(actor)

    async def _tell(self, scope: Scope | None) -> None:
        with self.journal.call("told", scope=scope) as came:
            came["delivered"] = await self.services[0].clear_availability_cache(scope)

    async def _call(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return await method(*args, **options)

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Slots:
    """A table whose queries take their time, and are written down."""

    def __init__(self, slots: SqlSlots, journal: Journal) -> None:
        self.scope_type = slots.scope_type
        self._slots = slots
        self._journal = journal

    def load(self, scope: Scope | None) -> Loaded:
        with self._journal.call("load", scope=scope) as came:
            loaded = self._slots.load(scope)
            time.sleep(random.uniform(0.0, QUERY))
            came["valid_for"] = loaded.valid_for
        return loaded


class _AsyncSlots:
    def __init__(self, slots: AsyncSqlSlots, journal: Journal) -> None:
        self.scope_type = slots.scope_type
        self._slots = slots
        self._journal = journal

    async def load(self, scope: Scope | None) -> Loaded:
        with self._journal.call("load", scope=scope) as came:
            loaded = await self._slots.load(scope)
            await asyncio.sleep(random.uniform(0.0, QUERY))
            came["valid_for"] = loaded.valid_for
        return loaded


class _Locks:
    """Locks of which all that is asked is written down."""

    def __init__(self, locks: RedisLocks, journal: Journal) -> None:
        self._locks = locks
        self._journal = journal

    def acquire(self, name: str, *, ttl: float) -> Lock | None:
        with self._journal.call("lock", scope=_scope_of(name)) as came:
            lock = self._locks.acquire(name, ttl=ttl)
            came["granted"] = lock is not None
        return lock

    def release(self, lock: Lock) -> bool:
        with self._journal.call("release", scope=_scope_of(lock.name)) as came:
            came["was_held"] = self._locks.release(lock)
        return bool(came["was_held"])


class _AsyncLocks:
    def __init__(self, locks: AsyncRedisLocks, journal: Journal) -> None:
        self._locks = locks
        self._journal = journal

    async def acquire(self, name: str, *, ttl: float) -> Lock | None:
        with self._journal.call("lock", scope=_scope_of(name)) as came:
            lock = await self._locks.acquire(name, ttl=ttl)
            came["granted"] = lock is not None
        return lock

    async def release(self, lock: Lock) -> bool:
        with self._journal.call("release", scope=_scope_of(lock.name)) as came:
            came["was_held"] = await self._locks.release(lock)
        return bool(came["was_held"])


def _scope_of(lock: str) -> str | None:
    """Return of which list a lock is."""
    return lock.removeprefix(f"{POLICY.key}.lock").removeprefix(":str:") or None
