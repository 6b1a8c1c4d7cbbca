"""P6 under real threads and processes on SQLite: places are sold exactly, and never twice.

The broken twins at the end fail the same checks, on every run: so the checks see.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import select
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from slotcache import (
    Availability,
    HoldManager,
    HoldPolicy,
    HoldState,
    IllegalTransition,
)
from slotcache.sql import SqlSlots
from slotcache.sql.ledger import SqlLedger
from slotcache.sql.sqlite import Sqlite

from .support.forks import Forked
from .support.hold_twins import SumsFirst
from .support.races import buy
from .support.sql import ON_SQLITE, check_books, free, opened, query, race, write_lock
from .support.threads import PATIENCE
from .support.worlds import World, one_world

THREADS = 16
PATIENT = HoldPolicy(lock_wait=60)


@pytest.fixture(params=ON_SQLITE)
def slots(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Iterator[SqlSlots]:
    with opened(request.param, tmp_path, world=world) as slots:
        yield slots
        check_books(slots)


@pytest.mark.parametrize(
    ("slots", "world"),
    [*((kind, "blocking") for kind in ON_SQLITE), ("file", "asyncio")],
    indirect=True,
)
class TestThreads:
    def test_mixed_quantities_are_sold_out_and_nobody_who_would_fit_is_refused(
        self, world: World, slots: SqlSlots
    ) -> None:
        slots.add([(1, 100)])
        holds = world.holds(slots, on_change=None, policy=PATIENT)
        orders = random.Random(7)
        buyers = [[orders.randint(1, 5) for _ in range(5)] for _ in range(THREADS)]

        outcomes = race(
            [partial(buy, holds, each) for each in buyers], behind=turn(slots), overlaps=THREADS - 1
        )

        sold = [hold.quantity for taken, _ in outcomes for hold in taken]
        refused = [error for _, refusals in outcomes for error in refusals]
        assert refused, "there was enough for everybody: nothing was contested"
        assert all(error.remaining < error.requested for error in refused)
        # Nothing was given back, so whoever was refused would not fit at the end either.
        assert 100 - sum(sold) == free(slots, 1) < min(error.requested for error in refused)

    def test_read_then_write_loses_nothing(self, world: World, slots: SqlSlots) -> None:
        """Eight threads with five orders each: on the driver's defaults 5 of 40 were counted."""
        slots.add([(1, 100)])
        holds = world.holds(slots, on_change=None, policy=PATIENT)

        def order() -> None:
            for _ in range(5):
                holds.confirm(holds.create(1).id)

        assert race([order] * 8, behind=turn(slots), overlaps=7) == [None] * 8
        assert query(slots, "SELECT remaining FROM slots") == [(60,)]

    @pytest.mark.parametrize("confirmed_before", [False, True])
    def test_confirm_against_cancel_ends_cancelled_with_all_places_back(
        self, world: World, slots: SqlSlots, confirmed_before: bool
    ) -> None:
        slots.add([(1, 10)])
        holds = world.holds(slots, on_change=None, policy=PATIENT)
        hold = holds.create(1, 3)
        if confirmed_before:
            holds.confirm(hold.id)
        confirms = [lambda: holds.confirm(hold.id)] * (THREADS // 2)
        cancels = [lambda: holds.cancel(hold.id)] * (THREADS // 2)

        outcomes = race([*confirms, *cancels], behind=turn(slots), overlaps=THREADS - 1)

        confirmed, cancelled = outcomes[: THREADS // 2], outcomes[THREADS // 2 :]
        assert all(
            isinstance(each, IllegalTransition) or each.state is HoldState.CONFIRMED
            for each in confirmed
        )
        assert [each.replayed for each in cancelled].count(False) == 1
        assert query(
            slots, "SELECT remaining, state FROM slots JOIN slot_holds USING (slot_id)"
        ) == [(10, "cancelled")]

    def test_two_sweepers_write_each_hold_once(self, world: World, slots: SqlSlots) -> None:
        slots.add([(n, 1) for n in range(60)])
        holds = world.holds(slots, on_change=None, policy=PATIENT)
        for n in range(60):
            holds.create(n, ttl=0.000001)

        written = race([lambda: holds.expire_due(limit=20)] * 4, behind=turn(slots), overlaps=3)

        assert sum(written) + holds.expire_due() == 60
        assert query(slots, "SELECT DISTINCT state FROM slot_holds") == [("expired",)]

    def test_everybody_is_served_in_the_end(self, world: World, slots: SqlSlots) -> None:
        """64 threads that keep asking: none starves until it is told Busy."""
        slots.add([(1, 10_000)])
        holds = world.holds(slots, on_change=None, policy=PATIENT)

        outcomes = race([lambda: buy(holds, [1] * 4)] * 64, behind=turn(slots), overlaps=63)

        assert sum(len(taken) for taken, _ in outcomes) == 256


def settle(holds: HoldManager) -> None:
    for _ in range(5):
        kept, dropped, returned, _ = (holds.create(1, ttl=ttl) for ttl in (60, 60, 60, 0.000001))
        holds.confirm(kept.id)
        holds.cancel(dropped.id)
        holds.cancel(holds.confirm(returned.id).id)
        holds.expire_due()


def turn(slots: SqlSlots) -> AbstractContextManager[Any]:
    """What the threads on one table wait for."""
    assert isinstance(slots._database, Sqlite)
    return slots._database._turns


without_turns = pytest.mark.parametrize(
    ("kind", "world"),
    [*((kind, "blocking") for kind in ("file", "given", "deferred")), ("given", "asyncio")],
    indirect=["world"],
)


class TestProcesses:
    @without_turns
    def test_tables_that_do_not_share_their_turns_sell_out_together(
        self, world: World, tmp_path: Path, kind: str
    ) -> None:
        """As many processes would be, but all of them really at the database at once."""
        with ExitStack() as stack:
            tables = [stack.enter_context(opened(kind, tmp_path, world=world)) for _ in range(8)]
            tables[0].add([(1, 20)])
            managers = [world.holds(each, on_change=None, policy=PATIENT) for each in tables]

            outcomes = race(
                [partial(buy, each, [1, 2, 1]) for each in managers],
                behind=write_lock(tmp_path / "slots.db"),
                overlaps=7,
            )

            sold = sum(hold.quantity for taken, _ in outcomes for hold in taken)
            refused = [error for _, refusals in outcomes for error in refusals]
            assert refused
            assert 20 - sold == free(tables[0], 1) < min(error.requested for error in refused)
            check_books(tables[0])

    @without_turns
    def test_tables_that_do_not_share_their_turns_settle_together(
        self, world: World, tmp_path: Path, kind: str
    ) -> None:
        """Whatever is read first, no operation is told Busy because others wrote in between."""
        with ExitStack() as stack:
            tables = [stack.enter_context(opened(kind, tmp_path, world=world)) for _ in range(8)]
            tables[0].add([(1, 100)])
            managers = [world.holds(each, on_change=None, policy=PATIENT) for each in tables]

            outcomes = race(
                [partial(settle, each) for each in managers],
                behind=write_lock(tmp_path / "slots.db"),
                overlaps=7,
            )

            assert outcomes == [None] * 8
            assert query(tables[0], "SELECT remaining FROM slots") == [(100 - 8 * 5,)]
            check_books(tables[0])

    @one_world("processes, which share nothing but the file")
    def test_processes_sell_out_together(self, tmp_path: Path) -> None:
        """Two have engines of ours, and two have plain ones."""
        kinds = ["file", "given"] * 2
        with opened("file", tmp_path) as slots:
            slots.add([(1, 30)])
            spawn = multiprocessing.get_context("spawn")

            with ProcessPoolExecutor(4, mp_context=spawn) as pool:
                sold = list(pool.map(buy_ten, kinds, [tmp_path / "slots.db"] * 4))

            assert sum(sold) == 30
            assert free(slots, 1) == 0
            check_books(slots)

    def test_a_new_file_is_turned_to_wal_although_somebody_writes_to_it(
        self, world: World, tmp_path: Path
    ) -> None:
        """There SQLite says "locked" at once, whatever the time-out."""
        path = tmp_path / "slots.db"
        outcome: list[Any] = []

        def set_up() -> None:
            with world.sqlite(path) as slots:
                slots.create_tables()
                outcome.append(slots.load().availability)

        with closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE theirs (n)")
        with write_lock(path):
            thread = threading.Thread(target=set_up)
            thread.start()
            thread.join(0.1)
            assert thread.is_alive()
        thread.join()

        assert outcome == [Availability.of([])]


def buy_ten(kind: str, path: Path) -> int:
    slots = SqlSlots(sa.create_engine(f"sqlite:///{path}")) if kind == "given" else None
    slots = slots or SqlSlots.sqlite(path)
    taken, _ = buy(HoldManager(slots, on_change=None, policy=PATIENT), [1] * 10)
    slots.close()
    return len(taken)


forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@forking
@one_world("a child does not go on with its parent's event loop")
@pytest.mark.parametrize("world", ["blocking"], indirect=True)
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
class TestForks:
    """A child uses, closes and waits for nothing of its parent's."""

    def test_what_a_child_sold_survives_the_parents_close(
        self, world: World, tmp_path: Path
    ) -> None:
        """SQLite would delete the log of a child that took over its notes on locks."""
        slots = SqlSlots.sqlite(tmp_path / "slots.db")
        slots.create_tables()
        slots.add([(1, 10)])
        holds = HoldManager(slots, on_change=None)
        holds.create(1)
        slots.load()

        child = Child(lambda: holds.create(1), then=lambda: holds.create(1))
        child.wait_for_first()
        slots.close()
        child.finish()

        with closing(sqlite3.connect(tmp_path / "slots.db")) as other:
            assert other.execute("SELECT count(*) FROM slot_holds").fetchone() == (3,)

    def test_a_child_forked_while_others_sell_can_sell(self, slots: SqlSlots) -> None:
        slots.add([(1, 10_000)])
        holds = HoldManager(slots, on_change=None, policy=HoldPolicy(lock_wait=5))

        def sell() -> None:
            holds.create(1)
            slots.load()

        with repeated(sell, threads=4):
            for _ in range(5):
                Child(lambda: holds.create(1), then=slots.load).finish()

    def test_a_child_forked_while_others_look_their_holds_up_can_sell(
        self, slots: SqlSlots
    ) -> None:
        """They did so out of turn; the child waited for ever for a mutex inside SQLite."""
        slots.add([(1, 10_000)])
        holds = HoldManager(slots, on_change=None, policy=HoldPolicy(lock_wait=5))
        hold = holds.create(1)

        with repeated(lambda: holds.get(hold.id), threads=4):
            for _ in range(5):
                Child(lambda: holds.create(1), then=slots.load).finish()

    def test_a_child_finds_the_turn_free_that_another_thread_keeps(
        self, slots: SqlSlots, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("slotcache.sql.turns._PATIENCE", 0.05)
        slots.add([(1, 10)])
        holds = HoldManager(slots, on_change=None, policy=HoldPolicy(lock_wait=1))
        taken, done = threading.Event(), threading.Event()

        def keep() -> None:
            with turn(slots), slots._lists._turns:
                taken.set()
                done.wait(30)

        thread = threading.Thread(target=keep)
        thread.start()
        taken.wait(30)
        try:
            Child(lambda: holds.create(1), then=slots.load).finish()
        finally:
            done.set()
            thread.join()
        assert holds.create(1).state is HoldState.HELD


@contextmanager
def repeated(work: Callable[[], object], *, threads: int) -> Iterator[None]:
    """Have threads do it again and again meanwhile."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.is_set():
            work()

    busy = [threading.Thread(target=repeat) for _ in range(threads)]
    for thread in busy:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in busy:
            thread.join()


class Child:
    """A forked process that makes a call, waits for us, and makes another."""

    def __init__(self, first: Callable[[], Any], then: Callable[[], Any]) -> None:
        ready_out, ready_in = os.pipe()
        go_out, go_in = os.pipe()

        def live() -> None:
            first()
            os.write(ready_in, b".")
            os.close(go_in)
            os.read(go_out, 1)
            then()

        self._process = Forked(live)
        os.close(ready_in)
        os.close(go_out)
        self._ready, self._go = ready_out, go_in

    def wait_for_first(self) -> None:
        if not select.select([self._ready], [], [], PATIENCE)[0]:
            self._process.finish()  # it tells where it stands
        assert os.read(self._ready, 1) == b"."

    def finish(self) -> None:
        os.write(self._go, b".")
        try:
            self._process.finish()
        finally:
            os.close(self._ready)
            os.close(self._go)


@one_world("broken twins: the checks see")
class TestBrokenTwins:
    """The same checks on the shipped ledger and on twins with one guard taken out."""

    def test_two_buyers_at_once_do_not_both_get_the_last_place(self, tmp_path: Path) -> None:
        assert sold_to_two_at_once(tmp_path, SqlLedger) == 1

    def test_a_sum_from_before_the_slot_row_is_written_is_caught(self, tmp_path: Path) -> None:
        assert sold_to_two_at_once(tmp_path, SumsFirst) == 2


def sold_to_two_at_once(folder: Path, ledger: type[SqlLedger]) -> int:
    """How many of two buyers, in two processes so to say, get the last place.

    Each has a plain engine of its own on the file, so that neither waits for the other's turn.
    Right before each writes the slot row it waits for the other to come as far.
    """
    meeting = threading.Barrier(2)

    class Meeting(ledger):  # type: ignore[valid-type, misc]
        def _run(self, statement: Any, **parameters: Any) -> Any:
            if statement is self._statements.lock:
                meeting.wait(30)
            return super()._run(statement, **parameters)

    table = with_ledger(Meeting)
    with opened("given", folder, table=table) as one, opened("given", folder, table=table) as two:
        one.add([(1, 1)])
        managers = [HoldManager(each, on_change=None) for each in (one, two)]
        outcomes = race(
            [partial(buy, each, [1]) for each in managers], behind=nullcontext(), overlaps=1
        )
        return sum(len(taken) for taken, _ in outcomes)


def with_ledger(ledger: type[SqlLedger]) -> type[SqlSlots]:
    return type("SqlSlots", (SqlSlots,), {"_ledger": ledger})
