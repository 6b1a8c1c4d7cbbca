"""What each operation on holds does, refuses and tells the hook."""

from __future__ import annotations

import functools
import logging
import pickle
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from slotcache import (
    TRANSITIONS,
    BackendError,
    Busy,
    HoldExpired,
    HoldManager,
    HoldNotFound,
    HoldPolicy,
    HoldState,
    IllegalTransition,
    SlotFull,
    SlotNotFound,
)
from slotcache.testing import ManualClock

from .support.desk import DESKS, ON_FILE, Desk, Desks, on_one_desk
from .support.sql import EACH, Place, free, opened, query, write_lock
from .support.worlds import World, one_world

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)

PlaceOf = Callable[[str], Place]


@pytest.fixture(params=[*DESKS, ON_FILE], ids="-".join)
def desk(
    request: pytest.FixtureRequest, desks: Desks, place_of: PlaceOf, hold_policy: HoldPolicy
) -> Iterator[Desk]:
    """As everywhere, and in a file on asyncio."""
    with desks.desk(*request.param, place_of=place_of, policy=hold_policy) as desk:
        yield desk


only_counted = pytest.mark.parametrize(
    "desk", [each for each in DESKS if each[1] == "counted"], ids="-".join, indirect=True
)
on_fewer = pytest.mark.parametrize(
    "desk", [*EACH, ("postgres", "on_hold", "asyncio")], ids="-".join, indirect=True
)


class TestCreate:
    def test_it_promises_places_for_a_while(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 3, ttl=60, owner="Ann")

        assert isinstance(hold.id, UUID)
        assert (hold.slot_id, hold.scope, hold.quantity, hold.owner) == (1, "a", 3, "Ann")
        assert hold.state is HoldState.HELD
        assert hold.created_at == NEW_YEAR
        assert hold.expires_at == NEW_YEAR + timedelta(seconds=60)
        assert not hold.replayed
        assert free(desk.slots, 1) == 1

    def test_it_promises_one_place_for_the_time_of_the_policy(self, desk: Desk) -> None:
        hold = desk.holds.create(1)

        assert hold.quantity == 1
        assert hold.owner is None
        assert hold.expires_at - hold.created_at == timedelta(seconds=HoldPolicy().ttl)

    def test_it_refuses_more_than_is_free_and_says_how_much_that_is(self, desk: Desk) -> None:
        desk.holds.create(1, 3)

        with pytest.raises(SlotFull, match="take fewer") as refused:
            desk.holds.create(1, 2)

        assert (refused.value.slot_id, refused.value.requested) == (1, 2)
        assert refused.value.remaining == 1
        assert free(desk.slots, 1) == 1

    def test_it_sells_the_very_last_place(self, desk: Desk) -> None:
        desk.holds.create(1, 3)
        desk.holds.create(1, 1)

        with pytest.raises(SlotFull) as refused:
            desk.holds.create(1)

        assert refused.value.remaining == 0

    def test_it_counts_what_is_confirmed_as_well(self, desk: Desk) -> None:
        desk.holds.confirm(desk.holds.create(1, 3).id)

        with pytest.raises(SlotFull):
            desk.holds.create(1, 2)

    def test_more_places_than_any_integer_column_holds_are_too_many(self, desk: Desk) -> None:
        with pytest.raises(SlotFull):
            desk.holds.create(1, 10**30)

    def test_there_is_no_such_slot(self, desk: Desk) -> None:
        with pytest.raises(SlotNotFound) as refused:
            desk.holds.create(3)

        assert refused.value.slot_id == 3

    def test_a_due_hold_makes_room_and_is_written_down_at_once(self, desk: Desk) -> None:
        due = desk.holds.create(1, 4, ttl=5)
        desk.clock.advance(5)

        desk.holds.create(1, 4)

        assert desk.written() == {due.id: "expired"} | {other(desk, due.id): "held"}

    def test_no_clock_that_steps_back_revives_what_was_no_longer_counted(self, desk: Desk) -> None:
        due = desk.holds.create(1, 4, ttl=5)
        desk.clock.advance(5)
        desk.holds.create(1, 4)

        set_back(desk.clock, 3)

        with pytest.raises(HoldExpired):
            desk.holds.confirm(due.id)
        with pytest.raises(SlotFull):
            desk.holds.create(1)

    def test_a_hold_ends_exactly_at_its_last_instant(self, desk: Desk) -> None:
        desk.holds.create(2, ttl=0.25)

        desk.clock.advance(0.249)
        with pytest.raises(SlotFull):
            desk.holds.create(2)

        desk.clock.advance(0.001)
        assert desk.holds.create(2).state is HoldState.HELD


class TestConfirm:
    def test_it_sells_the_places(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 3)

        confirmed = desk.holds.confirm(hold.id)

        assert confirmed == replace(hold, state=HoldState.CONFIRMED)
        assert desk.row(1)[1] == 1
        assert free(desk.slots, 1) == 1

    def test_what_is_confirmed_does_not_expire(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 3)
        desk.holds.confirm(hold.id)

        desk.clock.advance(10**6)

        assert desk.holds.get(hold.id).state is HoldState.CONFIRMED
        assert desk.holds.expire_due() == 0
        assert free(desk.slots, 1) == 1

    @pytest.mark.parametrize("swept", [False, True])
    def test_too_late_is_refused_whether_or_not_it_was_written_down(
        self, desk: Desk, swept: bool
    ) -> None:
        hold = desk.holds.create(1, ttl=5)
        desk.clock.advance(5)
        if swept:
            desk.holds.expire_due()

        with pytest.raises(HoldExpired) as refused:
            desk.holds.confirm(hold.id)

        assert refused.value.hold_id == hold.id
        assert refused.value.expires_at == hold.expires_at
        assert free(desk.slots, 1) == 4

    def test_what_was_cancelled_stays_so(self, desk: Desk) -> None:
        hold = desk.holds.create(1)
        desk.holds.cancel(hold.id)

        with pytest.raises(IllegalTransition) as refused:
            desk.holds.confirm(hold.id)

        assert refused.value.state is HoldState.CANCELLED
        assert refused.value.operation == "confirm"

    @only_counted
    def test_a_row_that_was_edited_below_its_promises_is_not_oversold(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 3)
        desk.edit("UPDATE slots SET capacity = 2, remaining = 2 WHERE slot_id = 1")

        with pytest.raises(SlotFull) as refused:
            desk.holds.confirm(hold.id)

        assert refused.value.remaining == 2
        desk.holds.cancel(hold.id)


class TestCancel:
    def test_it_gives_promised_places_back(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 3)

        assert desk.holds.cancel(hold.id) == replace(hold, state=HoldState.CANCELLED)
        assert free(desk.slots, 1) == 4

    def test_it_gives_sold_places_back(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 3)
        desk.holds.confirm(hold.id)

        assert desk.holds.cancel(hold.id) == replace(hold, state=HoldState.CANCELLED)
        assert desk.row(1)[1] == 4

    @pytest.mark.parametrize("swept", [False, True])
    def test_what_expired_is_returned_as_it_is(self, desk: Desk, swept: bool) -> None:
        hold = desk.holds.create(1, ttl=5)
        desk.clock.advance(5)
        if swept:
            desk.holds.expire_due()

        late = desk.holds.cancel(hold.id)

        assert late == replace(hold, state=HoldState.EXPIRED, replayed=True)

    def test_places_that_the_row_has_no_room_for_are_the_operators_move(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 3)
        desk.holds.confirm(hold.id)
        desk.edit("UPDATE slots SET remaining = 3 WHERE slot_id = 1")

        with pytest.raises(BackendError, match="correct remaining and capacity"):
            desk.holds.cancel(hold.id)

        assert desk.holds.get(hold.id).state is HoldState.CONFIRMED
        desk.edit("UPDATE slots SET remaining = 1 WHERE slot_id = 1")


class TestGet:
    def test_it_returns_the_hold_as_it_is(self, desk: Desk) -> None:
        hold = desk.holds.create(1, 2, owner="Ann")

        assert desk.holds.get(hold.id) == hold

    def test_a_due_hold_is_expired_from_that_instant_on(self, desk: Desk) -> None:
        hold = desk.holds.create(1, ttl=5)

        desk.clock.advance(4.999999)
        assert desk.holds.get(hold.id).state is HoldState.HELD

        desk.clock.advance(0.000001)
        assert desk.holds.get(hold.id).state is HoldState.EXPIRED

    def test_it_does_not_wait_for_a_writer(self, world: World, tmp_path: Path) -> None:
        with opened("file", tmp_path, world=world) as slots:
            slots.add([(1, 4)])
            holds = world.holds(slots, on_change=None, policy=HoldPolicy(lock_wait=0.001))
            hold = holds.create(1)

            with write_lock(tmp_path / "slots.db"):
                assert holds.get(hold.id) == hold


class TestExpireDue:
    def test_it_writes_down_what_is_due(self, desk: Desk) -> None:
        due = desk.holds.create(1, ttl=5)
        live = desk.holds.create(1, ttl=6)
        desk.clock.advance(5)

        assert desk.holds.expire_due() == 1
        assert desk.holds.expire_due() == 0
        assert desk.written() == {due.id: "expired", live.id: "held"}

    def test_it_takes_those_that_are_due_the_longest(self, desk: Desk) -> None:
        late, later, latest = (desk.holds.create(1, ttl=ttl) for ttl in (1, 2, 3))
        desk.clock.advance(10)

        assert desk.holds.expire_due(limit=2) == 2
        assert desk.written() == {late.id: "expired", later.id: "expired", latest.id: "held"}
        assert desk.holds.expire_due(limit=2) == 1

    def test_it_tells_each_scope_once(self, desk: Desk) -> None:
        for slot_id in (1, 1, 2):
            desk.holds.create(slot_id, ttl=5)
        desk.clock.advance(5)
        desk.told.clear()

        desk.holds.expire_due()

        assert sorted(desk.told) == ["a", "b"]

    def test_a_sweeper_that_comes_second_writes_and_tells_nothing(self, desk: Desk) -> None:
        desk.holds.create(1, ttl=5)
        desk.clock.advance(5)
        due = desk.slots._read(lambda ledger: ledger.due(10), lock_wait=1)
        desk.holds.expire_due()
        told = len(desk.told)

        late = desk.holds._operations._change(lambda ledger: ledger.expire(due))
        slow = desk.world.run(late)

        assert slow == 0
        assert len(desk.told) == told

    @on_fewer
    def test_many_at_once(self, desk: Desk) -> None:
        desk.slots.add([(10 + n, 1) for n in range(600)])
        desk.holds.create_many({10 + n: 1 for n in range(600)}, ttl=1)
        desk.clock.advance(1)

        assert desk.holds.expire_due(limit=10_000) == 600


@pytest.mark.parametrize("operation", ["confirm", "cancel", "get"])
def test_there_is_no_such_hold(desk: Desk, operation: str) -> None:
    unknown = uuid4()

    with pytest.raises(HoldNotFound) as refused:
        getattr(desk.holds, operation)(unknown)

    assert refused.value.hold_id == unknown


@pytest.mark.parametrize("state", HoldState)
@pytest.mark.parametrize("operation", ["confirm", "cancel"])
def test_operations_do_what_the_table_of_transitions_says(
    desk: Desk, state: HoldState, operation: str
) -> None:
    hold = hold_in(desk, state)
    expected = TRANSITIONS.get((state, operation))
    desk.told.clear()

    if expected is None:
        with pytest.raises((HoldExpired, IllegalTransition)):
            getattr(desk.holds, operation)(hold)
        assert desk.holds.get(hold).state is state
    else:
        after = getattr(desk.holds, operation)(hold)
        assert after.state is expected
        assert after.replayed == (expected is state)
    assert desk.told == ([] if expected in {None, state} else ["a"])


class Number(IntEnum):
    ONE = 1


BAD_ARGUMENTS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("create", {"slot_id": True}, TypeError, "slot_id must be int"),
    ("create", {"slot_id": "1"}, TypeError, "slot_id must be int"),
    ("create", {"slot_id": None}, TypeError, "slot_id must be int"),
    ("create", {"slot_id": 2**63}, ValueError, "64 bits"),
    ("create", {"quantity": 0}, ValueError, "quantity must be 1 or more, not 0"),
    ("create", {"quantity": -1}, ValueError, "quantity must be 1 or more"),
    ("create", {"quantity": True}, TypeError, "quantity must be an int, 1 or more, not True"),
    ("create", {"quantity": 1.5}, TypeError, "quantity must be an int"),
    ("create", {"quantity": "2"}, TypeError, "quantity must be an int, 1 or more, not '2'"),
    ("create", {"ttl": 0}, ValueError, "above 0"),
    ("create", {"ttl": -1}, ValueError, "above 0"),
    ("create", {"ttl": float("nan")}, ValueError, "finite"),
    ("create", {"ttl": float("inf")}, ValueError, "finite"),
    ("create", {"ttl": True}, TypeError, "number of seconds"),
    ("create", {"ttl": timedelta(seconds=5)}, TypeError, "number of seconds"),
    ("create", {"ttl": 3601}, ValueError, r"HoldPolicy\(max_lifetime="),
    ("create", {"owner": ""}, ValueError, "write None"),
    ("create", {"owner": "x" * 256}, ValueError, "1 to 255 characters"),
    ("create", {"owner": 7}, TypeError, r"write str\(owner\)"),
    ("confirm", {"hold_id": str(uuid4())}, TypeError, r"write UUID\(text\)"),
    ("cancel", {"hold_id": None}, TypeError, r"hold_id must be a UUID"),
    ("get", {"hold_id": 5}, TypeError, r"hold_id must be a UUID"),
    ("expire_due", {"limit": 0}, ValueError, "limit must be 1 or more"),
    ("expire_due", {"limit": 10_001}, ValueError, "limit must be at most 10000"),
    ("expire_due", {"limit": 5.0}, TypeError, "limit must be an int"),
]


@on_one_desk
@pytest.mark.parametrize(("operation", "arguments", "kind", "message"), BAD_ARGUMENTS)
def test_nonsense_is_refused_with_what_to_write_instead(
    desk: Desk, operation: str, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    given = {"slot_id": 1, **arguments} if operation == "create" else arguments

    with pytest.raises(kind, match=message):
        getattr(desk.holds, operation)(**given)

    assert query(desk.slots, "SELECT count(*) FROM slot_holds") == [(0,)]


def test_what_is_just_allowed(desk: Desk) -> None:
    hold = desk.holds.create(Number.ONE, ttl=3600, owner="x" * 255)

    assert type(hold.slot_id) is int
    assert desk.holds.get(hold.id).owner == "x" * 255
    assert desk.holds.expire_due(limit=1) == 0


def test_holds_and_refusals_survive_pickling(desk: Desk) -> None:
    hold = desk.holds.create(1)

    assert pickle.loads(pickle.dumps(hold)) == hold


async def async_hook(scope: object) -> None:
    """Cannot be awaited by a blocking manager."""


class AsyncHook:
    async def __call__(self, scope: object) -> None:
        """Nor can this."""


@pytest.mark.parametrize("hook", ["clear", 5])
def test_a_hook_that_cannot_be_called_is_refused_at_once(
    world: World, hook: Any, tmp_path: Path
) -> None:
    with (
        opened("memory", tmp_path, world=world) as slots,
        pytest.raises(TypeError, match="on_change"),
    ):
        world.holds(slots, on_change=hook)


@one_world("on asyncio such hooks are awaited")
@pytest.mark.parametrize(
    "hook",
    [async_hook, AsyncHook(), AsyncHook().__call__, functools.partial(async_hook)],
)
def test_a_hook_that_nobody_here_can_await_is_refused_at_once(hook: Any, tmp_path: Path) -> None:
    with opened("memory", tmp_path) as slots, pytest.raises(TypeError, match="on_change"):
        HoldManager(slots, on_change=hook)


def test_nobody_forgets_to_say_who_is_told(world: World, tmp_path: Path) -> None:
    with (
        opened("memory", tmp_path, world=world) as slots,
        pytest.raises(TypeError, match="on_change"),
    ):
        world.holds(slots)


class TestHook:
    """When it is called, and of what it is told: `spec/test_p08_hook_after_commit.py`."""

    def test_a_create_that_also_expires_others_tells_once(self, desk: Desk) -> None:
        desk.holds.create(1, 4, ttl=1)
        desk.clock.advance(1)
        desk.told.clear()

        desk.holds.create(1, 4)

        assert desk.told == ["a"]

    def test_a_slot_without_a_scope_tells_of_none(self, desk: Desk) -> None:
        desk.slots.add([(5, 1)])

        desk.holds.create(5)

        assert desk.told == [None]

    def test_it_sees_the_change_and_has_every_connection_to_itself(
        self, world: World, tmp_path: Path
    ) -> None:
        one_connection: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.1}
        engine = sa.create_engine(f"sqlite:///{tmp_path / 'slots.db'}", **one_connection)
        with world.table(engine, engine_options=one_connection) as slots:
            slots.create_tables()
            slots.add([(1, 4)])
            seen: list[Any] = []

            def hook(_scope: object) -> None:
                held = query(slots, "SELECT id FROM slot_holds")
                nested = world.holds(slots, on_change=None).create(1)
                seen.append((len(held), nested.state, free(slots, 1)))

            world.holds(slots, on_change=hook).create(1)

            assert seen == [(1, HoldState.HELD, 2)]
        engine.dispose()

    def test_a_hook_that_raises_is_logged_with_its_scope(
        self, world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        def hook(_scope: object) -> None:
            raise RuntimeError("the cache is on fire")

        with opened("memory", tmp_path, world=world) as slots:
            slots.add([(1, 4)], scope="a")
            world.holds(slots, on_change=hook).create(1)
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("slotcache", logging.ERROR)
        assert "scope 'a'" in record.getMessage()
        assert record.exc_info is not None
        assert "on fire" in str(record.exc_info[1])

    @one_world("on asyncio what a hook returns is awaited")
    def test_a_hook_that_turns_out_to_be_asynchronous_is_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with opened("memory", tmp_path) as slots:
            slots.add([(1, 4)])
            HoldManager(slots, on_change=lambda scope: async_hook(scope)).create(1)

        assert "coroutine" in caplog.text


class Answerless(sqlite3.Connection):
    """A connection on which the answer to a COMMIT gets lost after it took effect."""

    error: BaseException | None = None

    def commit(self) -> None:
        super().commit()
        if self.error is not None:
            raise self.error


class TestCommit:
    def test_an_interrupt_right_after_it_does_not_keep_the_hook_from_running(
        self, answerless: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        interrupt = answerless.world.interrupt
        monkeypatch.setattr(Answerless, "error", interrupt())

        with pytest.raises(interrupt):
            answerless.holds.create(1)

        assert answerless.told == ["a"]

    def test_one_that_did_not_happen_is_not_told(self, world: World, tmp_path: Path) -> None:
        """In SQLite's older journal mode a reader keeps a writer from committing."""
        with opened("given", tmp_path, world=world) as slots:
            slots.add([(1, 4), (2, 4)])
            told: list[Any] = []
            holds = world.holds(slots, on_change=told.append, policy=HoldPolicy(lock_wait=0.05))
            reader = sqlite3.connect(tmp_path / "slots.db")
            rows = reader.execute("SELECT * FROM slots")
            rows.fetchone()

            with pytest.raises(Busy):
                holds.create(1)

            rows.close()
            reader.close()
            assert told == []
            assert free(slots, 1) == 4
            assert holds.create(1).state is HoldState.HELD

    @pytest.fixture
    def answerless(self, world: World, tmp_path: Path) -> Iterator[Desk]:
        options: dict[str, Any] = {"connect_args": {"factory": Answerless}}
        engine = sa.create_engine(f"sqlite:///{tmp_path / 'slots.db'}", **options)
        with world.table(engine, engine_options=options) as slots:
            slots.create_tables()
            slots.add([(1, 4)], scope="a")
            yield Desk(slots, ManualClock(), world=world)
        engine.dispose()


def other(desk: Desk, hold_id: UUID) -> UUID:
    (found,) = desk.written().keys() - {hold_id}
    return found


def set_back(clock: ManualClock, seconds: float) -> None:
    clock._time -= seconds


def hold_in(desk: Desk, state: HoldState) -> UUID:
    """Bring a hold on slot 1 into a state."""
    hold = desk.holds.create(1, ttl=5)
    if state is HoldState.CONFIRMED:
        desk.holds.confirm(hold.id)
    if state is HoldState.CANCELLED:
        desk.holds.cancel(hold.id)
    if state is HoldState.EXPIRED:
        desk.clock.advance(5)
    return hold.id
