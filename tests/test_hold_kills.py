"""Whatever is killed, a process or the database, at whatever point: nothing is oversold or locked.

`python3 dev.py soak` runs the same tests with hundreds of kills.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from slotcache import (
    BackendError,
    Hold,
    HoldExpired,
    HoldManager,
    HoldPolicy,
    HoldState,
    IllegalTransition,
    SlotFull,
)
from slotcache.sql import SqlSlots

from .support.databases import OwnServer
from .support.processes import Worker, eventually
from .support.races import (
    ANSWERED,
    CALLS,
    OPERATION,
    PHASE,
    SENT,
    Seller,
    new_notes,
    notes_in,
    order,
)
from .support.sql import CLAIMS, ON_SERVERS, Place, check_books, free, opened, query
from .support.threads import PATIENCE, spawn

KILLS = int(os.environ.get("SLOTCACHE_TEST_KILLS", "1"))
"""How many on each database with each claim; two more end each test."""

PLACES = 6
PlaceOf = Callable[[str], Place]


class Fleet:
    """Processes that sell, and what comes of killing them."""

    def __init__(self, kind: str, place: Place, claim: str, folder: Path) -> None:
        self._make = partial(Worker, Seller, kind, place, claim)
        self._folder = folder
        self._started = 0
        self._workers: list[tuple[Worker, Path]] = []
        self.killed: Counter[str] = Counter()

    def start(self) -> None:
        """Start one more."""
        self._started += 1
        notes = new_notes(self._folder / f"notes-{self._started}")
        worker = self._make(notes)
        worker.start("sell", random.getrandbits(32))
        self._workers.append((worker, notes))

    def kill_one(self) -> memoryview[int]:
        """Kill one that has done something, at a random point; return its notes."""
        worker, path = self._workers.pop(random.randrange(len(self._workers)))
        with worker:
            notes = notes_in(path)
            calls = random.randint(1, 8)
            eventually(lambda: notes[CALLS] >= calls or worker.has_answered())
            time.sleep(random.uniform(0, 0.005))  # anywhere in the next call
            if worker.has_answered():
                worker.answer()  # it raises what went wrong over there
        operation, phase = Seller.operations[notes[OPERATION]], Seller.phases[notes[PHASE]]
        self.killed[phase if notes[PHASE] == 0 else f"{operation} {phase}"] += 1
        return notes

    def __len__(self) -> int:
        return len(self._workers)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for worker, _notes in self._workers:
            worker.__exit__()


@pytest.mark.timeout(120 + KILLS)
@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("kind", ["file", *ON_SERVERS])
def test_who_is_killed_leaves_nothing_locked_oversold_or_made_twice(
    kind: str,
    claim: str,
    place_of: PlaceOf,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    place = place_of(kind)
    with opened(kind, place, claim=claim) as slots, Fleet(kind, place, claim, tmp_path) as fleet:
        slots.add([(slot_id, PLACES) for slot_id in Seller.slots])
        holds = HoldManager(slots, on_change=None, policy=HoldPolicy(lock_wait=PATIENCE))
        fleet.start()
        fleet.start()

        for kill in range(KILLS + 2):
            notes = fleet.kill_one()
            if kill < KILLS:
                fleet.start()
            for slot_id in Seller.slots:
                with suppress(SlotFull):
                    holds.create(slot_id, ttl=0.01)
            if notes[ANSWERED]:
                assert order(holds, notes[ANSWERED]).replayed, "what was answered was lost"
            if notes[SENT]:
                with suppress(SlotFull):
                    first = order(holds, notes[SENT])
                    assert order(holds, notes[SENT]).id == first.id

        check_books(slots)
        made = "SELECT owner FROM slot_holds WHERE owner IS NOT NULL GROUP BY owner"
        assert query(slots, made)
        assert query(slots, f"{made} HAVING count(*) > 1") == []
        # What the killed had on hold comes back when it is due, or is sold by then.
        eventually(lambda: not holds.find(state=HoldState.HELD))
        holds.expire_due()
        assert query(slots, "SELECT id FROM slot_holds WHERE state = 'held'") == []
        check_books(slots)
        for slot_id in Seller.slots:
            sold = holds.find(slot_id=slot_id, state=HoldState.CONFIRMED)
            assert free(slots, slot_id) == PLACES - sum(hold.quantity for hold in sold)
        record_property("killed", told(f"{kind}, {claim}", fleet.killed))


def told(where: str, killed: Counter[str]) -> str:
    """One line of the summary."""
    states = ", ".join(f"{count} {state}" for state, count in killed.most_common())
    return f"{where}: {killed.total()} killed ({states})"


class Clerk:
    """A thread that sells, and writes down what came of it."""

    def __init__(self, holds: HoldManager, index: int, stop: threading.Event) -> None:
        self._holds = holds
        self._index = index
        self._stop = stop
        self.answered: list[Hold] = []
        self.failures = 0

    def work(self) -> None:
        """Sell until it is told to stop; what is not an answer of the library ends it."""
        number = self._index
        while not self._stop.is_set():
            number += 10
            try:
                hold = order(self._holds, number)
                self.answered.append(hold)
                self._holds.confirm(hold.id)
                self._holds.cancel(hold.id)
            except (SlotFull, HoldExpired, IllegalTransition):
                pass
            except BackendError:
                self.failures += 1
                self._stop.wait(0.01)


@pytest.mark.parametrize(
    ("server", "claim"), [("own_postgres", "counted"), ("own_mariadb", "on_hold")]
)
def test_a_database_that_is_killed_is_a_failure_until_it_is_back(
    server: str, claim: str, request: pytest.FixtureRequest
) -> None:
    """Calls neither hang nor raise what is not of the library; nobody has to begin anew."""
    own: OwnServer = request.getfixturevalue(server)
    engine = sa.create_engine(own.url)
    stop = threading.Event()
    with SqlSlots(engine, claim=claim) as slots:
        slots.create_tables()
        slots.add([(slot_id, PLACES) for slot_id in Seller.slots])
        holds = HoldManager(slots, on_change=None, policy=HoldPolicy(lock_wait=PATIENCE))
        clerks = [Clerk(holds, index, stop) for index in range(4)]
        working = [spawn(clerk.work) for clerk in clerks]

        def go_on_until(happened: Callable[[Clerk], bool]) -> None:
            eventually(lambda: any(each.done() for each in working) or all(map(happened, clerks)))

        try:
            go_on_until(lambda clerk: len(clerk.answered) >= 5)
            own.kill()
            go_on_until(lambda clerk: clerk.failures >= 2)
            before = {clerk: len(clerk.answered) for clerk in clerks}
            own.start()
            go_on_until(lambda clerk: len(clerk.answered) >= before[clerk] + 5)
        finally:
            stop.set()
            for each in working:
                each.result(PATIENCE)

        check_books(slots)
        for clerk in clerks:
            assert all(holds.get(hold.id).owner == hold.owner for hold in clerk.answered)
        owners = "SELECT owner FROM slot_holds GROUP BY owner HAVING count(*) > 1"
        assert query(slots, owners) == []
    engine.dispose()


@pytest.fixture(params=ON_SERVERS)
def table(request: pytest.FixtureRequest) -> Iterator[SqlSlots]:
    """In a database of its own, whose connections may be ended."""
    with opened(request.param, request.getfixturevalue(f"{request.param}_url")) as slots:
        slots.add([(1, PLACES)])
        yield slots


OPERATIONS: dict[str, Callable[[HoldManager, Hold], object]] = {
    "create": lambda holds, _: holds.create(1, idempotency_key="k"),
    "confirm": lambda holds, hold: holds.confirm(hold.id),
    "cancel": lambda holds, hold: holds.cancel(hold.id),
    "extend": lambda holds, hold: holds.extend(hold.id, 3000),
    "get": lambda holds, hold: holds.get(hold.id),
    "set_capacity": lambda holds, _: holds.set_capacity(1, 9),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_connection_that_died_in_the_pool_is_not_noticed(table: SqlSlots, operation: str) -> None:
    """As after every restart of the server, and every night where it ends idle connections."""
    holds = HoldManager(table, on_change=None)
    hold = holds.create(1)
    end_connections(table)

    OPERATIONS[operation](holds, hold)


def test_a_plain_create_on_a_connection_that_died_says_so_in_our_words(table: SqlSlots) -> None:
    """Without a key it may not be sent twice unless it is certain that nothing was done."""
    holds = HoldManager(table, on_change=None)
    holds.create(1)
    end_connections(table)

    with suppress(BackendError):
        holds.create(1)

    assert holds.create(1).state is HoldState.HELD


def test_a_connection_that_dies_after_the_commit_leaves_the_answer_alone(
    table: SqlSlots, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    holds = HoldManager(table, on_change=told.append)
    hold = holds.create(1)
    told.clear()
    commit = table._database.commit

    def commit_and_die(*arguments: Any) -> None:
        commit(*arguments)
        end_connections(table)

    monkeypatch.setattr(table._database, "commit", commit_and_die)

    assert holds.confirm(hold.id).state is HoldState.CONFIRMED
    assert told == [None]


def end_connections(table: SqlSlots) -> None:
    """Have the server end all that the table has, as if it had been restarted."""
    ours = {
        "postgresql": "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        "mariadb": "SELECT id FROM information_schema.processlist"
        " WHERE db = database() AND id <> connection_id()",
    }[table.engine.dialect.name]
    other = sa.create_engine(table.engine.url, poolclass=sa.pool.NullPool)
    with other.connect() as connection:
        found = connection.exec_driver_sql(ours).scalars().all()
        assert found
        if table.engine.dialect.name == "mariadb":
            for number in found:
                connection.exec_driver_sql(f"KILL HARD {number}")
            eventually(lambda: not connection.exec_driver_sql(ours).scalars().all())
