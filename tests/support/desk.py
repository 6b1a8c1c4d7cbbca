"""A box office for tests of holds, one for each database and claim, cleared for each test.

What it is made of is kept: building and compiling the statements of a table takes longer than most
tests.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from slotcache import Hold, HoldPolicy, HoldState
from slotcache.sql import SqlSlots
from slotcache.testing import ManualClock

from .sql import EACH, Place, check_books, empty, opened, query
from .thorough import THOROUGH
from .worlds import BLOCKING, World, Worlds


class Door:
    """A `where` that keeps one slot out; 0: none."""

    def __init__(self) -> None:
        self.closed = 0
        closed = sa.bindparam("closed", callable_=lambda: self.closed, type_=sa.Integer())
        self.where = sa.literal_column("slots.slot_id", sa.Integer()) != closed


@dataclass
class Desk:
    """A box office: slot 1 has four places in scope "a", slot 2 has one in scope "b".

    Attributes:
        slots: The table.
        clock: The time.
        policy: Of its holds.
        door: Closes one of its slots.
        world: Where it is used.
        told: What the hook was told.
        written_off: How many places of a slot were sold, given up, and are not for sale again.
    """

    slots: SqlSlots
    clock: ManualClock
    policy: HoldPolicy = field(default_factory=HoldPolicy)
    door: Door = field(default_factory=Door)
    world: World = BLOCKING
    told: list[Any] = field(default_factory=list)
    written_off: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.holds = self.world.holds(self.slots, on_change=self.told.append, policy=self.policy)

    def sold(self, slot_id: int, quantity: int = 1, *, owner: str | None = None) -> Hold:
        return self.holds.confirm(self.holds.create(slot_id, quantity, owner=owner).id)

    def cancelled(self, slot_id: int, quantity: int = 1, *, owner: str | None = None) -> Hold:
        return self.holds.cancel(self.holds.create(slot_id, quantity, owner=owner).id)

    def due(self, slot_id: int, quantity: int = 1, *, owner: str | None = None) -> Hold:
        """Return a hold whose time is over, which nobody has written down."""
        hold = self.holds.create(slot_id, quantity, ttl=5, owner=owner)
        self.clock.advance(5)
        return replace(hold, state=HoldState.EXPIRED)

    def swept(self, slot_id: int, quantity: int = 1, *, owner: str | None = None) -> Hold:
        hold = self.due(slot_id, quantity, owner=owner)
        assert self.holds.expire_due() == 1
        return hold

    def row(self, slot_id: int) -> tuple[int, int]:
        """Return what the table says: how many places the slot has, and how many remain."""
        sql = f"SELECT capacity, remaining FROM slots WHERE slot_id = {slot_id}"
        ((capacity, remaining),) = query(self.slots, sql)
        return capacity, remaining

    def written(self) -> dict[UUID, str]:
        """Return the states in the table, whatever the time."""
        rows = query(self.slots, "SELECT id, state FROM slot_holds")
        return {UUID(str(key)): state for key, state in rows}

    def edit(self, sql: str) -> None:
        """Somebody else writes to the table."""
        with self.slots.engine.begin() as connection:
            connection.exec_driver_sql(sql)


ON_FILE = ("file", "counted", "asyncio")

DESKS = [
    ("file", "counted"),
    ("memory", "on_hold"),
    ("postgres", "counted"),
    ("postgres", "on_hold", "asyncio"),
    ("mariadb", "counted", "asyncio"),
    ("mariadb", "on_hold"),
]
"""What `Desks.desk` makes: a database, a claim, and a world, if it is not the blocking one.

Every database with every claim, and each server in both worlds, which send it the same statements.
"""

FEW_DESKS = DESKS if THOROUGH else [DESKS[1], DESKS[2], DESKS[3], DESKS[4]]
"""What details are tried on by default: each database, each claim, each world. The spec, and the
long run, are on all of them."""

on_one_desk = pytest.mark.parametrize("desk", [EACH[0], ON_FILE], ids="-".join, indirect=True)
"""For a test of what is the same with all databases and claims."""


class Desks:
    """All desks that were asked for, kept until the end."""

    def __init__(self, worlds: Worlds) -> None:
        self._kept: dict[tuple[str, str, str], tuple[SqlSlots, Door, World]] = {}
        self._stack = ExitStack()
        self._worlds = worlds

    @contextmanager
    def desk(
        self,
        kind: str,
        claim: str,
        world: str = "blocking",
        *,
        place_of: Callable[[str], Place],
        policy: HoldPolicy,
    ) -> Iterator[Desk]:
        """Lend one, as new; its books balance in the end."""
        if (kind, claim, world) not in self._kept:
            self._kept[kind, claim, world] = self._made(kind, claim, world, place_of)
        slots, door, its_world = self._kept[kind, claim, world]
        empty(slots)
        clock = slots._database._clock = ManualClock()
        desk = Desk(slots, clock, policy, door, its_world)
        slots.add([(1, 4)], scope="a")
        slots.add([(2, 1)], scope="b")
        try:
            yield desk
        finally:
            door.closed = 0
        check_books(slots, written_off=desk.written_off)

    def close(self) -> None:
        self._stack.close()

    def _made(
        self, kind: str, claim: str, world: str, place_of: Callable[[str], Place]
    ) -> tuple[SqlSlots, Door, World]:
        door = Door()
        its_world = self._stack.enter_context(closing(self._worlds.open(world)))
        place = place_of(kind)
        if kind == "file":
            place = self._stack.enter_context(tempfile.TemporaryDirectory())
        options: dict[str, Any] = {"claim": claim, "where": door.where, "clock": ManualClock()}
        table = self._stack.enter_context(opened(kind, place, world=its_world, **options))
        return table, door, its_world
