"""Transactions of users, in which tests make holds: sessions on each database, at each isolation.

The sessions use the engine of the table itself, and so its pool, as an application does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from slotcache import Hold, HoldManager
from slotcache.sql import SqlSlots

from .desk import Desk
from .sql import CLAIMS, ON_SERVERS, query
from .worlds import OnAsyncio, StandIn, inner_engine, real

LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


class Way(NamedTuple):
    """On which database, with which claim, and how isolated; None: as it is by default.

    And in which world.
    """

    kind: str
    claim: str
    level: str | None = None
    world: str = "blocking"

    def __str__(self) -> str:
        parts = (part for part in self if part and part != "blocking")
        return "-".join(parts).replace(" ", "_")


ON_SQLITE = [
    Way("file", "counted"),
    Way("memory", "on_hold"),
    Way("given", "counted"),
    Way("deferred", "on_hold"),
]
"""Engines of ours, one as the driver begins, and one as SQLAlchemy's documentation advises."""

AT_EACH_LEVEL = [
    Way(kind, claim, level) for kind in ON_SERVERS for claim in CLAIMS for level in LEVELS
]

ON_ASYNCIO = [
    Way("file", "counted", world="asyncio"),
    Way("postgres", "on_hold", "REPEATABLE READ", "asyncio"),
    Way("mariadb", "counted", world="asyncio"),
]
"""Through aiosqlite, psycopg and asyncmy."""

WAYS = [*ON_SQLITE, *AT_EACH_LEVEL]

ONE_OF_EACH = [
    Way("file", "counted"),
    Way("given", "on_hold"),
    Way("postgres", "counted"),
    Way("mariadb", "on_hold"),
]
"""Where what is tested does not depend on how isolated it is."""


IN_BOTH = [*ONE_OF_EACH, ON_ASYNCIO[0]]
"""The same, in both worlds."""


def engine_of(slots: SqlSlots, level: str | None) -> sa.Engine:
    """The same engine, whose transactions are isolated so."""
    return slots.engine if level is None else slots.engine.execution_options(isolation_level=level)


class Failure(Exception):
    """Something else of the user's goes wrong."""


class Teller:
    """A hook that writes down what it was told, and how things stood then.

    Attributes:
        told: The scopes.
        lent: How many connections of the pool were in use, each time.
    """

    def __init__(self, slots: SqlSlots) -> None:
        self._pool: Any = inner_engine(slots).pool
        self.told: list[Any] = []
        self.lent: list[int] = []

    def __call__(self, scope: Any) -> None:
        self.told.append(scope)
        self.lent.append(self._pool.checkedout())


class Customer:
    """An application at a desk: its manager, and sessions of its own.

    Attributes:
        desk: The desk.
        world: Where it is.
        engine: What its sessions are bound to.
        pool: Where its connections come from.
        hook: What its manager tells.
        holds: Its manager.
    """

    def __init__(self, desk: Desk, level: str | None) -> None:
        self.desk = desk
        self.slots = desk.slots
        self.world = desk.world
        self.engine: Any = engine_of(desk.slots, level)
        self._asyncio = self.world if isinstance(self.world, OnAsyncio) else None
        if self._asyncio:
            self.engine = real(desk.slots).engine
            if level is not None:
                self.engine = self.engine.execution_options(isolation_level=level)
        self.pool: Any = inner_engine(desk.slots).pool
        self.hook = Teller(desk.slots)
        self.holds = self.manager(self.hook)

    def manager(self, hook: Any) -> HoldManager:
        """Another manager, with this hook."""
        made: Any = self.world.holds(self.desk.slots, on_change=hook, policy=self.desk.policy)
        if self._asyncio:
            made = ManagerStandIn(real(made), self._asyncio)
        manager: HoldManager = made
        return manager

    def session(self, **options: Any) -> Any:
        """A session of this application: on asyncio a stand-in for one."""
        if self._asyncio:
            return SessionStandIn(AsyncSession(self.engine, **options), self._asyncio)
        return Session(self.engine, **options)

    @contextmanager
    def transaction(self) -> Iterator[tuple[Any, HoldManager]]:
        """A session, and the manager in it, committed at the end."""
        with self.session() as session, session.begin():
            yield session, self.holds.within(session)

    def give_up(self, work: Callable[[HoldManager], Any]) -> None:
        """Do it in a transaction, in which something else then goes wrong."""
        with suppress(Failure), self.transaction() as (_, holds):
            work(holds)
            raise Failure

    @property
    def told(self) -> list[Any]:
        return self.hook.told

    def rows(self, *, but_of: int = -1) -> list[tuple[Any, ...]]:
        """All there is in the tables, but for rows with this number in them."""
        tables = {"slots": "slot_id", "slot_holds": "id", "slot_hold_keys": "owner, hold_id"}
        return [
            (table, *row)
            for table, key in tables.items()
            for row in query(self.slots, f"SELECT * FROM {table} ORDER BY {key}")
            if but_of not in row
        ]

    def holds_of(self, slot_id: int) -> list[str]:
        """What is written of its holds: how many places, in which state."""
        sql = "SELECT quantity, state FROM slot_holds WHERE slot_id ="
        return sorted(
            f"{places} {state}" for places, state in query(self.slots, f"{sql} {slot_id}")
        )


class SessionStandIn(StandIn):
    """Stands for an `AsyncSession`, or for a transaction of its."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if name in ("begin", "begin_nested"):
            return lambda: SessionStandIn(value(), self._world)
        return value


class ManagerStandIn(StandIn):
    """Stands for an `AsyncHoldManager`, within what the other one stands for."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        return (lambda session: value(real(session))) if name == "within" else value


@dataclass(frozen=True)
class Operation:
    """One thing that a manager does, to a slot of its own, whose scope has its name.

    Attributes:
        name: What it is.
        work: Does it, to a slot and a hold on that.
        after: What is written of the holds of the slot afterwards.
        prepare: Makes the hold.
        is_told: Whether a list looks different then.
        written_off: How many places are never for sale again.
    """

    name: str
    work: Callable[[HoldManager, int, Hold], Any]
    after: Sequence[str]
    prepare: Callable[[Desk, int], Hold] = lambda desk, slot: desk.holds.create(
        slot, 2, owner="ann"
    )
    is_told: bool = True
    written_off: int = 0


OPERATIONS = [
    Operation(
        "purge",
        lambda holds, slot, _: holds.purge(0),
        [],
        lambda desk, slot: desk.cancelled(slot),
        is_told=False,
    ),
    Operation(
        "create",
        lambda holds, slot, _: holds.create(slot, idempotency_key="one"),
        ["1 held", "2 held"],
    ),
    Operation(
        "create_many",
        lambda holds, slot, _: holds.create_many({slot: 1, 2: 1}, idempotency_key="many"),
        ["1 held", "2 held"],
    ),
    Operation(
        "replaces",
        lambda holds, slot, hold: holds.create(slot, 4, owner="ann", replaces=hold.id),
        ["2 cancelled", "4 held"],
    ),
    Operation(
        "confirm",
        lambda holds, _, hold: holds.confirm(hold.id, reference="order 7"),
        ["2 confirmed"],
    ),
    Operation(
        "reacquire",
        lambda holds, _, hold: holds.confirm(hold.id, late="reacquire"),
        ["3 confirmed"],
        lambda desk, slot: desk.due(slot, 3),
    ),
    Operation("cancel", lambda holds, _, hold: holds.cancel(hold.id), ["2 cancelled"]),
    Operation(
        "cancel a part",
        lambda holds, _, hold: holds.cancel(hold.id, quantity=2),
        ["1 confirmed"],
        lambda desk, slot: desk.sold(slot, 3),
    ),
    Operation(
        "write off",
        lambda holds, _, hold: holds.cancel(hold.id, restock=False),
        ["3 cancelled"],
        lambda desk, slot: desk.sold(slot, 3),
        written_off=3,
    ),
    Operation(
        "extend",
        lambda holds, _, hold: holds.extend(hold.id, 3000),
        ["2 held"],
        is_told=False,
    ),
    Operation("set_capacity", lambda holds, slot, _: holds.set_capacity(slot, 9), ["2 held"]),
    Operation(
        "expire_due",
        lambda holds, _slot, _hold: holds.expire_due(),
        ["2 expired"],
        lambda desk, slot: desk.due(slot, 2),
    ),
]


class Round:
    """Every operation, each with a hold to do it to, on slots from 11 on."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._holds: list[Hold] = []
        for slot, each in enumerate(OPERATIONS, 11):
            desk.slots.add([(slot, 4)], scope=each.name)
        for slot, each in enumerate(OPERATIONS, 11):
            self._holds.append(each.prepare(desk, slot))

    def work(self, holds: HoldManager) -> None:
        """Do them all."""
        for slot, (each, hold) in enumerate(zip(OPERATIONS, self._holds, strict=True), 11):
            each.work(holds, slot, hold)

    def check_told(self, told: list[Any]) -> None:
        """Each scope once: "b" is that of slot 2."""
        expected = sorted(["b", *(each.name for each in OPERATIONS if each.is_told)])
        assert sorted(told) == expected

    def check_done(self, customer: Customer) -> None:
        for slot, each in enumerate(OPERATIONS, 11):
            assert customer.holds_of(slot) == each.after, each.name
            self._desk.written_off[slot] = each.written_off
