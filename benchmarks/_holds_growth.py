"""What a create and a change cost in a table that has grown (S21).

Commits do not wait for the disk here: that takes as long in any table, and would hide the growth.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from time import perf_counter

import sqlalchemy as sa

from _databases import new_database
from _holds_tables import HOLDS, SLOTS, add_live, add_past, insert, tidy
from _runner import Measured, take_turns
from slotcache import HoldManager
from slotcache.sql import SqlSlots

CAPACITY = 2**30
CLAIMS = ("on_hold", "counted")
HELD_OF = 10
"""In a scope, one slot in so many has a live hold."""


@dataclass(frozen=True)
class Sizes:
    """How large is few, and how large is many."""

    few_slots: int = 10
    many_slots: int = 100_000
    past_holds: int = 1_000_000
    slots_of_a_scope: int = 100
    many_scopes: int = 1_000


Place = Callable[[str], "sa.Engine"]
"""Makes an engine on a new and empty database of that name."""


def creates(place: Place, sizes: Sizes, *, rounds: int, number: int) -> dict[str, Measured]:
    """Measure creates, one after the other: the floor of each claim has few slots and no past."""
    few, many = sizes.few_slots, sizes.many_slots
    with ExitStack() as stack:
        tables = {
            "few slots": (few, _filled(stack, place("few"), few)),
            "many slots": (many, _filled(stack, place("slots"), many)),
            "many past holds": (few, _filled(stack, place("past"), few, past=sizes.past_holds)),
        }
        found: dict[str, Measured] = {}
        for claim in CLAIMS:
            turns = {}
            for name, (slots, engine) in tables.items():
                made = stack.enter_context(SqlSlots(engine, claim=claim))
                turns[f"create, {claim}, {name}"] = partial(
                    _create_on, engine, HoldManager(made, on_change=None), slots, number
                )
            found.update(_warm_turns(turns, rounds))
    return found


def loads(place: Place, sizes: Sizes, *, rounds: int, number: int) -> dict[str, Measured]:
    """Measure the load of one scope, which is what a change of it costs the next reader."""
    with ExitStack() as stack:
        tables = {
            "1 other": _scoped(stack, place("one"), 1, sizes.slots_of_a_scope),
            "many others": _scoped(
                stack, place("scopes"), sizes.many_scopes, sizes.slots_of_a_scope
            ),
        }
        found: dict[str, Measured] = {}
        for claim in CLAIMS:
            turns = {}
            for name, engine in tables.items():
                made = stack.enter_context(SqlSlots(engine, claim=claim))
                turns[f"load of a scope, {claim}, {name}"] = partial(
                    _per_call, partial(made.load, "scope 0"), number
                )
            found.update(_warm_turns(turns, rounds))
    return found


def _warm_turns(turns: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Measured]:
    for turn in turns.values():
        turn()
    return take_turns(turns, rounds=rounds)


def _filled(stack: ExitStack, engine: sa.Engine, slots: int, *, past: int = 0) -> sa.Engine:
    stack.callback(engine.dispose)
    with SqlSlots(engine) as made:
        made.create_tables()
        made.add((slot_id, CAPACITY) for slot_id in range(1, slots + 1))
    if past:
        add_past(engine, past, slots)
    tidy(engine)
    return engine


def _scoped(stack: ExitStack, engine: sa.Engine, others: int, each: int) -> sa.Engine:
    stack.callback(engine.dispose)
    with SqlSlots(engine) as made:
        made.create_tables()
    rows = [
        {"slot_id": slot_id, "scope": f"scope {slot_id // each}", "capacity": 50, "remaining": 50}
        for slot_id in range(each * (1 + others))
    ]
    insert(engine, SLOTS, rows)
    add_live(engine, range(0, len(rows), HELD_OF))
    tidy(engine)
    return engine


def _create_on(engine: sa.Engine, holds: HoldManager, slots: int, number: int) -> float:
    """Return the seconds that a create takes; what it made is removed again."""
    random = Random(1)
    chosen = [random.randint(1, slots) for _ in range(number)]
    began = perf_counter()
    for slot_id in chosen:
        holds.create(slot_id)
    took = perf_counter() - began
    with engine.begin() as connection:
        connection.execute(sa.delete(HOLDS).where(HOLDS.c.state == sa.literal_column("'held'")))
    return took / number


def _per_call(call: Callable[[], object], number: int) -> float:
    began = perf_counter()
    for _ in range(number):
        call()
    return (perf_counter() - began) / number


def engine_on_sqlite(folder: Path, name: str) -> sa.Engine:
    """Return an engine on a new SQLite file; its commits do not wait for the disk."""
    engine = SqlSlots.sqlite(folder / f"{name}.db").engine

    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    sa.event.listen(engine, "connect", configure)
    return engine


def engine_on_postgres(url: sa.URL, name: str) -> sa.Engine:
    """Return an engine on a new PostgreSQL database; its commits do not wait for the disk."""
    options = {"options": "-c synchronous_commit=off"}
    return sa.create_engine(new_database(url, name), connect_args=options)
