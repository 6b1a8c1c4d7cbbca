"""Operations of a manager on asyncio, to be cancelled, on a table that is seen from outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from slotcache import (
    AsyncHoldManager,
    AsyncSlotAvailabilityService,
    Hold,
    HoldManager,
    HoldPolicy,
    HoldState,
    Scope,
)
from slotcache.sql import AsyncSqlSlots, SqlSlots

from .cancelling import Strike, check_tasks, eventually
from .sql import Place, check_books, empty, opened

_DRIVERS = {"postgres": "postgresql+psycopg", "mariadb": "mysql+asyncmy"}
_STATE = (
    "SELECT slot_id, capacity, remaining FROM slots ORDER BY slot_id",
    "SELECT slot_id, quantity, state FROM slot_holds ORDER BY slot_id, quantity, state",
    "SELECT count(*) FROM slot_hold_keys",
    "SELECT created_at, expires_at FROM slot_holds ORDER BY created_at",
)
_AT_ONCE = 1.0
_LOCK_WAIT = 4.0


@dataclass(frozen=True)
class Operation:
    """One thing that a manager does.

    Attributes:
        work: Does it, with a hold of two places that Ann has on slot 1.
        prepare: What has become of that before.
        is_told: Whether lists are cleared then.
        has_key: Whether it makes the same holds when it is repeated.
    """

    work: Callable[[Any, Hold], Coroutine[Any, Any, Any]]
    prepare: Callable[[BoxOffice, Hold], object] = lambda office, hold: None
    is_told: bool = True
    has_key: bool = False


OPERATIONS = {
    "create": Operation(lambda holds, _: holds.create(1, 2)),
    "create, with a key": Operation(
        lambda holds, _: holds.create(1, 2, idempotency_key="k"), has_key=True
    ),
    "create_many": Operation(
        lambda holds, _: holds.create_many({1: 1, 2: 2}, idempotency_key="k"), has_key=True
    ),
    "replace": Operation(lambda holds, hold: holds.create(1, 4, owner="ann", replaces=hold.id)),
    "confirm": Operation(lambda holds, hold: holds.confirm(hold.id, reference="order 7")),
    "confirm late": Operation(
        lambda holds, hold: holds.confirm(hold.id, late="reacquire"),
        lambda office, hold: office.let_it_be_due(hold),
    ),
    "cancel": Operation(lambda holds, hold: holds.cancel(hold.id)),
    "cancel a part": Operation(
        lambda holds, hold: holds.cancel(hold.id, quantity=1),
        lambda office, hold: office.blocking.confirm(hold.id),
    ),
    "extend": Operation(lambda holds, hold: holds.extend(hold.id, 3000), is_told=False),
    "get": Operation(lambda holds, hold: holds.get(hold.id), is_told=False),
    "find": Operation(lambda holds, hold: holds.find(owner=hold.owner), is_told=False),
    "set_capacity": Operation(lambda holds, _: holds.set_capacity(1, 12)),
    "expire_due": Operation(
        lambda holds, _: holds.expire_due(), lambda office, hold: office.let_it_be_due(hold)
    ),
    "purge": Operation(
        lambda holds, _: holds.purge(0),
        lambda office, hold: office.blocking.cancel(hold.id),
        is_told=False,
    ),
}


class BoxOffice:
    """Slot 1 with nine places and slot 2 with three, in a table that has an event loop.

    Attributes:
        outside: The table as it is seen from outside.
        slots: The table.
        blocking: A manager of those who come from outside.
        told: What the hook was told.
    """

    def __init__(self, outside: SqlSlots, slots: AsyncSqlSlots) -> None:
        self.outside = outside
        self.slots = slots
        self.blocking: HoldManager = HoldManager(
            outside, on_change=None, policy=HoldPolicy(lock_wait=2.0)
        )
        self.told: list[Scope | None] = []
        self._runner = asyncio.Runner()
        self._done: dict[str, Any] = {}

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run this in the event loop."""
        return self._runner.run(work)

    def close(self) -> None:
        """Close the table and the loop."""
        with self._runner:
            self.run(self._close())

    async def _close(self) -> None:
        await self.slots.close()
        await self.slots.engine.dispose()

    def let_it_be_due(self, hold: Hold) -> None:
        """Let its time be over."""
        with self.outside.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE slot_holds SET expires_at = created_at")
        assert self.blocking.get(hold.id).state is HoldState.EXPIRED

    def state(self) -> list[Any]:
        """All there is, but for what is different each time."""
        with self.outside.engine.connect() as connection:
            found: list[Any] = [
                [tuple(row) for row in connection.exec_driver_sql(sql)] for sql in _STATE
            ]
        *found, lives = found
        return [*found, [_lasts_long(*life) for life in lives]]

    async def strike(
        self, name: str, strike: Strike, *, connects: bool = False, cache: Any = None
    ) -> None:
        """Have the task cancelled that does this, and check what that leaves behind.

        Args:
            name: Which operation.
            strike: When.
            connects: Whether it makes a new connection first; else one is there.
            cache: Where the list is kept that its hook clears.
        """
        operation = OPERATIONS[name]
        hold = self.anew(operation)
        before = self.state()
        async with self.open(cache):
            await self._connect(anew=connects)
            outcome = await strike.of(operation.work(self.holds, hold))
            self.check_given_back()
            after = self.state()
            happened = after != before
            done = self._done.setdefault(name, after)
            if isinstance(outcome, asyncio.CancelledError):
                assert after in (before, done), "it has been done by half"
            else:
                assert after == done
            assert self.told or not (happened and operation.is_told)
            await self.check_list()
            if operation.has_key:
                await self._repeat(operation, was_done=happened)
        self.check_free()

    async def strike_in_a_crowd(self, strike: Strike) -> None:
        """The same with one of three who buy at the same time."""
        operation = OPERATIONS["create, with a key"]
        hold = self.anew(operation)
        async with self.open():
            await self._connect()
            first = asyncio.create_task(self.holds.create(1))
            strike.begin(operation.work(self.holds, hold))
            last = asyncio.create_task(self.holds.create(1))
            outcome = await strike.outcome()
            await asyncio.gather(first, last)
            self.check_given_back()
            await self.check_list()
            was_done = len(self.blocking.find()) == 4
            assert was_done or isinstance(outcome, asyncio.CancelledError)
            await self._repeat(operation, was_done=was_done, beside=2)
        self.check_free()

    async def strike_users_commit(self, strike: Strike) -> None:
        """The same where a user commits the transaction in which it was done."""
        hold = self.anew(OPERATIONS["confirm"])
        async with self.open():
            async with AsyncSession(self.slots.engine) as session:
                await self.holds.within(session).confirm(hold.id)
                assert self.told == []
                outcome = await strike.of(session.commit())
            self.check_given_back()
            is_done = self.blocking.get(hold.id).state is HoldState.CONFIRMED
            assert is_done or isinstance(outcome, asyncio.CancelledError)
            assert self.told == ["hall"] or not is_done
            await self.check_list()
        self.check_free()

    async def strike_before_a_thread(self, strike: Strike) -> None:
        """The same with a hook that blocks, and so is called in a thread, which nobody can stop."""
        hold = self.anew(OPERATIONS["confirm"])
        async with self.open(hook=self.told.append):
            await strike.of(self.holds.confirm(hold.id))
            if self.blocking.get(hold.id).state is HoldState.CONFIRMED:
                await eventually(lambda: self.told == ["hall"])

    @asynccontextmanager
    async def open(self, cache: Any = None, *, hook: Any = None) -> AsyncIterator[None]:
        """Have a manager and a list, which its hook clears, unless there is another one."""
        async with AsyncSlotAvailabilityService(self.slots, cache=cache) as service:
            self._service = service
            self.holds = AsyncHoldManager(
                self.slots, on_change=hook or self._hook, policy=HoldPolicy(lock_wait=_LOCK_WAIT)
            )
            self.told.clear()
            await service.get_availability()
            yield
        await check_tasks()

    async def check_list(self) -> None:
        """The list that is shown is that of the table."""
        shown = await self._service.get_availability()
        assert shown == self.outside.load(None).availability

    def check_free(self) -> None:
        """No slot is locked, and the books balance."""
        began = monotonic()
        self.blocking.create_many({1: 1, 2: 1})
        assert monotonic() - began < _AT_ONCE, "a slot was still locked"
        check_books(self.outside)

    async def _hook(self, scope: Scope | None) -> None:
        self.told.append(scope)
        await self._service.clear_availability_cache(scope)

    async def _connect(self, *, anew: bool = False) -> None:
        async with self.slots.engine.connect():
            pass
        if anew:
            await self.slots.engine.dispose()

    async def _repeat(self, operation: Operation, *, was_done: bool, beside: int = 0) -> None:
        """The key tells whether it was done, and it is done once."""
        again = await operation.work(self.holds, self.blocking.find()[-1])
        made = again if isinstance(again, tuple) else (again,)
        assert {each.replayed for each in made} == {was_done}
        assert len(self.blocking.find()) == 1 + beside + len(made)

    def check_given_back(self) -> None:
        """No connection is in use."""
        pool: Any = self.slots.engine.pool
        assert pool.checkedout() == 0

    def anew(self, operation: Operation) -> Hold:
        """Have nothing there but what it needs."""
        empty(self.outside)
        self.outside.add([(1, 9), (2, 3)], scope="hall")
        hold = self.blocking.create(1, 2, owner="ann")
        operation.prepare(self, hold)
        return hold


@contextmanager
def box_office(kind: str, place: Place, claim: str) -> Iterator[BoxOffice]:
    """One on an empty database."""
    with opened(kind, place, claim=claim) as outside:
        if kind in _DRIVERS:
            url = outside.engine.url.set(drivername=_DRIVERS[kind])
            slots = AsyncSqlSlots(create_async_engine(url), claim=claim)
        else:
            slots = AsyncSqlSlots.sqlite(str(outside.engine.url.database), claim=claim)
        office = BoxOffice(outside, slots)
        try:
            yield office
        finally:
            office.close()


def _lasts_long(since: Any, until: Any) -> bool:
    """Whether so long lies between two instants as an extended hold lasts."""
    if isinstance(since, str):  # SQLite's
        since, until = map(datetime.fromisoformat, (since, until))
    return bool(until - since > timedelta(seconds=2000))
