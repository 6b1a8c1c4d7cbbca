"""Holds in a simulated world: the managers that ship, on a real table behind stops."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from slotcache.availability import Availability
from slotcache.holds import AsyncHoldManager, HoldManager
from slotcache.hook import Hook
from slotcache.ledger import AsyncHoldTable, Change, HoldRequest, Ledger
from slotcache.lifecycle import Hold
from slotcache.operations import Operations
from slotcache.policy import HoldPolicy
from slotcache.protocols import Loaded, Scope
from slotcache.sql import SqlSlots
from slotcache.testing.clock import ManualClock
from slotcache.testing.ports import CAPACITY

if TYPE_CHECKING:
    from slotcache.testing.world import World

__all__ = ["SimulatedHolds", "SqlTable", "manager_on", "open_table"]

T = TypeVar("T")


class SqlTable:
    """A real table, in which each run has a slot of its own, in a scope of its own."""

    def __init__(self, slots: SqlSlots) -> None:
        self.slots = slots
        self._number = itertools.count(1)
        self._manager = HoldManager(slots, on_change=None)
        self.slot_id = 0

    def begin(self) -> None:
        """Begin a run, all places free."""
        self.slot_id = next(self._number)
        self.slots.add([(self.slot_id, CAPACITY)], scope=str(self.slot_id))

    def hold(self) -> Hold:
        """Make a hold that is there before anything else."""
        return self._manager.create(self.slot_id)

    def sell(self) -> int:
        """Take a place, as somebody does who clears the list by hand; return how many are taken."""
        self._manager.create(self.slot_id)
        return self.taken()

    def load(self) -> Loaded:
        """Return the list of this run; its one slot has the same name in all of them."""
        loaded = self.slots.load(str(self.slot_id))
        (slot,) = loaded.availability
        rows = [("slot", slot.capacity, slot.remaining)]
        return Loaded(Availability.of(rows), loaded.valid_for)

    def taken(self) -> int:
        """Return how many places are not free."""
        return CAPACITY - self.load().availability[0].remaining


@contextmanager
def open_table() -> Iterator[SqlTable]:
    """Yield a table whose time stands still."""
    with closing(SqlSlots.sqlite(":memory:", clock=ManualClock())) as slots:
        slots.create_tables()
        yield SqlTable(slots)


class SimulatedHolds:
    """The table as an `AsyncHoldTable`: a transaction takes effect, with its commit, at once."""

    def __init__(self, world: World, table: SqlTable) -> None:
        self._world = world
        self._table = table
        self.id_type = table.slots.id_type

    def _here(self) -> SimulatedHolds:
        return self

    def _within(self, transaction: object, hook: Hook) -> SimulatedHolds:
        raise NotImplementedError("nobody brings a transaction here")

    async def _read(self, work: Callable[[Ledger], T], *, lock_wait: float) -> T:
        return await self._world.call(
            "find", lambda: self._table.slots._read(work, lock_wait=lock_wait)
        )

    async def _create(
        self, request: HoldRequest, changed: list[Scope | None], *, lock_wait: float
    ) -> tuple[Hold, ...]:
        return await self._changing(
            lambda: self._table.slots._create(request, changed, lock_wait=lock_wait)
        )

    async def _transact(
        self,
        work: Callable[[Ledger], Change[T]],
        changed: list[Scope | None],
        *,
        lock_wait: float,
    ) -> T:
        return await self._changing(
            lambda: self._table.slots._transact(work, changed, lock_wait=lock_wait)
        )

    async def _changing(self, transaction: Callable[[], T]) -> T:
        def effect() -> T:
            done = transaction()
            self._world.cast.committed(self._table.taken())
            return done

        return await self._world.call("change", effect)


def manager_on(port: AsyncHoldTable, told: Callable[[Scope | None], Any]) -> AsyncHoldManager:
    """Return a manager as it is on asyncio, but for the task in which it would run a change."""

    async def call(hook: Callable[[Scope | None], Any], scope: Scope | None) -> None:
        await hook(scope)

    manager = AsyncHoldManager.__new__(AsyncHoldManager)
    manager._operations = Operations(
        port, Hook(told), HoldPolicy(), call=call, whole=lambda work: work
    )
    return manager
