"""Every operation of a manager: each once, on a slot of its own; or any of them at random."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID, uuid4

from hypothesis import strategies as st

from slotcache import Hold, HoldManager, Scope, SlotcacheError

from .desk import Desk
from .joined import OPERATIONS, Customer, Failure, Operation
from .trials import rows_of

Work: TypeAlias = Callable[[HoldManager], Any]

FIRST = 11
"""The first of the slots that are theirs."""


@dataclass(frozen=True)
class Task:
    """An operation to be done once.

    Attributes:
        name: What it is.
        do: Does it by this manager, alone or in a transaction.
        scopes: Where something changes by it.
    """

    name: str
    do: Work
    scopes: list[str]


def tasks_at(desk: Desk) -> list[Task]:
    """Every operation, on a slot of its own in a scope of its own name, with a hold if need be."""
    for slot, operation in enumerate(OPERATIONS, FIRST):
        desk.slots.add([(slot, 4)], scope=operation.name)
    tasks = [_task(desk, slot, operation) for slot, operation in enumerate(OPERATIONS, FIRST)]
    desk.told.clear()
    return tasks


def _task(desk: Desk, slot: int, operation: Operation) -> Task:
    hold = operation.prepare(desk, slot)
    also = ["b"] * (operation.name == "create_many")  # that of slot 2
    scopes = [operation.name] * operation.is_told + also
    return Task(operation.name, partial(_do, operation, slot, hold), scopes)


def _do(operation: Operation, slot: int, hold: Hold, holds: HoldManager) -> None:
    operation.work(holds, slot, hold)


def note_done(desk: Desk) -> None:
    """Have the books know that all of it was committed: something was written off."""
    for slot, operation in enumerate(OPERATIONS, FIRST):
        desk.written_off[slot] = operation.written_off


class Witness:
    """A hook that looks at the tables each time, while no connection of the pool is in use.

    Attributes:
        told: The scopes that it was told.
        saw: What was in the tables then.
    """

    def __init__(self, customer: Customer) -> None:
        self._customer = customer
        self.told: list[Any] = []
        self.saw: list[Any] = []

    def __call__(self, scope: Scope | None) -> None:
        assert self._customer.pool.checkedout() == 0
        self.saw.append(rows_of(self._customer.desk))
        self.told.append(scope)


@dataclass(frozen=True)
class Call:
    """A call at random, and how many seconds pass before it."""

    operation: str
    slot_id: int
    quantity: int
    key: str
    hold: int
    pause: int


_REPEATABLE: dict[str, Callable[[HoldManager, Call, UUID], Any]] = {
    "create": lambda holds, call, _: holds.create(
        call.slot_id, call.quantity, ttl=5, idempotency_key=call.key
    ),
    "create_many": lambda holds, call, _: holds.create_many(
        {1: call.quantity, 2: 1}, ttl=5, idempotency_key=call.key
    ),
    "replace": lambda holds, call, hold: holds.create(
        call.slot_id, call.quantity, replaces=hold, idempotency_key=call.key
    ),
    "confirm": lambda holds, call, hold: holds.confirm(hold, reference=call.key),
    "confirm late": lambda holds, _, hold: holds.confirm(hold, late="reacquire"),
    "cancel": lambda holds, _, hold: holds.cancel(hold),
    "extend": lambda holds, _, hold: holds.extend(hold, 7),
    "set_capacity": lambda holds, call, _: holds.set_capacity(call.slot_id, 6 + call.quantity),
    "expire_due": lambda holds, _call, _hold: holds.expire_due(),
    "purge": lambda holds, _call, _hold: holds.purge(0),
}
"""All that can be said twice: not a create without a key, and not giving up a part."""

calls = st.builds(
    Call,
    operation=st.sampled_from(list(_REPEATABLE)),
    slot_id=st.sampled_from([1, 1, 2]),
    quantity=st.integers(1, 3),
    key=st.sampled_from("kKl"),
    hold=st.integers(0, 9),
    pause=st.sampled_from([0, 0, 0, 3]),
)


def with_holds(desk: Desk) -> None:
    """Have a hold in each state on slot 1, and room for more."""
    desk.holds.set_capacity(1, 9)
    for begin in (desk.swept, desk.cancelled, desk.sold, desk.holds.create):
        begin(1)


def called_twice(desk: Desk, call: Call) -> tuple[Any, Any]:
    """Make the call, and again; return both answers: what came back, or the kind of a refusal.

    What the hook is told, it is told of the second.
    """
    desk.clock.advance(call.pause)
    known = [*(hold.id for hold in desk.holds.find()), uuid4()]
    hold = known[call.hold % len(known)]

    def answer() -> Any:
        try:
            return _REPEATABLE[call.operation](desk.holds, call, hold)
        except SlotcacheError as refusal:
            return type(refusal)

    first, before = answer(), rows_of(desk)
    desk.told.clear()
    second = answer()
    assert rows_of(desk) == before, call
    return first, second


def as_a_replay(answer: Any) -> Any:
    """What the second answer is after this first one."""
    if isinstance(answer, Hold):
        return replace(answer, replayed=True)
    if isinstance(answer, tuple):
        return tuple(map(as_a_replay, answer))
    return 0 if isinstance(answer, int) else answer


SLOTS = {"a": 1, "c": 3, "d": 4}
"""Slots by their scopes."""

Part: TypeAlias = Any
"""A scope, in which a hold is made; or whether a savepoint is kept, and the parts inside of it."""

Transaction: TypeAlias = tuple[bool, list[Part]]
"""Whether it is committed, and its parts."""

_parts: st.SearchStrategy[Part] = st.recursive(
    st.sampled_from(list(SLOTS)),
    lambda inner: st.tuples(st.booleans(), st.lists(inner, min_size=1, max_size=3)),
    max_leaves=8,
)
transactions = st.lists(
    st.tuples(st.booleans(), st.lists(_parts, min_size=1, max_size=4)), min_size=1, max_size=3
)


def carried_out(session: Any, holds: HoldManager, parts: Iterable[Part]) -> set[str]:
    """Do that; return the scopes in which something has changed, if all around it is kept."""
    changed: set[str] = set()
    for part in parts:
        if isinstance(part, str):
            holds.create(SLOTS[part])
            changed.add(part)
            continue
        is_kept, inner = part
        with suppress(Failure), session.begin_nested():
            inside = carried_out(session, holds, inner)
            if not is_kept:
                raise Failure
            changed |= inside
    return changed
