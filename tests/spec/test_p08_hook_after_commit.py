"""P8 hook after commit.

Whoever has a manager call a hook is told of every scope in which a hold or a slot changed its
state: once for each transaction and scope, after the commit, when everybody can see the change and
the connection is back in its pool. That is so for each operation by itself, and inside of a
transaction that the caller owns: then nothing is told before he has committed all of it. Nobody is
told of what was refused or rolled back, by a savepoint too, nor of a replay, which changed nothing.

If the answer to a COMMIT is lost, nobody knows whether it happened, and the hook is called. A hook
that fails does not fail the call, nor the caller's commit: it is logged and counted.

Limits: A process that is killed between its commit and the hook tells nobody; nor does one that
writes to the tables past slotcache: then the `ttl` of the lists bounds the damage (P2). Time that
makes a hold due is no transaction, so nobody is told of that; the lists know when it will be (P1).
Extending a hold and purging ended ones change no list, and are not told. Two-phase commit and bare
connections are refused where the hook could not be called in time (`test_transactions.py`).

Shown: Every operation by itself and in a transaction of the caller, which is committed, rolled
back, taken back by a savepoint, refused, or repeated, on every database in both worlds; savepoints
nested at random; a hook that looks at the tables by a connection of its own; one that fails; and a
COMMIT whose answer is lost. Twins with one guard taken out are noticed; three more, with the events
of SQLAlchemy as they are, in `test_transactions.py`, `TestBrokenTwins`. Processes are killed
before, in and after the commit in `test_transaction_kills.py`, and tasks cancelled in
`test_cancellation.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from hypothesis import given

from slotcache import BackendError, HoldState, SlotcacheError
from slotcache.protocols import Scope
from slotcache.sql.noted import Noted
from tests.support.desk import Desk
from tests.support.every_operation import (
    SLOTS,
    Transaction,
    Witness,
    Work,
    carried_out,
    note_done,
    tasks_at,
    transactions,
)
from tests.support.hold_twins import (
    commit_untold,
    tell_and_fail,
    tell_at_once,
    tell_only_of_answers,
)
from tests.support.joined import Customer, Failure
from tests.support.sql import empty
from tests.support.trials import (
    TWINS,
    effort,
    everywhere,
    in_a_file,
    losing_answers,
    noticed,
    rows_of,
)


@pytest.fixture
def customer(desk: Desk) -> Customer:
    """An application with a manager and sessions of its own."""
    return Customer(desk, None)


@everywhere
def test_each_operation_tells_each_scope_that_it_changed_once_when_everybody_can_see_it(
    customer: Customer,
) -> None:
    witness = Witness(customer)
    holds = customer.manager(witness)

    for task in tasks_at(customer.desk):
        witness.told, witness.saw = [], []
        task.do(holds)
        assert witness.told == task.scopes, task.name
        assert witness.saw == [rows_of(customer.desk)] * len(witness.told), task.name

    assert holds.hook_failures == 0
    note_done(customer.desk)


@everywhere
def test_in_a_callers_transaction_all_is_told_once_after_his_commit_and_nothing_before(
    customer: Customer,
) -> None:
    witness = Witness(customer)
    tasks = tasks_at(customer.desk)

    with customer.session() as session, session.begin():
        holds = customer.manager(witness).within(session)
        for task in tasks:
            task.do(holds)
        holds.create(1)
        holds.create(1)
        assert witness.told == []

    expected = ["a", *(scope for task in tasks for scope in task.scopes)]
    assert sorted(witness.told) == sorted(expected)
    assert witness.saw == [rows_of(customer.desk)] * len(expected)
    note_done(customer.desk)


@everywhere
def test_nobody_is_told_of_what_is_rolled_back(customer: Customer) -> None:
    tasks = tasks_at(customer.desk)

    customer.give_up(lambda holds: [task.do(holds) for task in tasks])

    assert customer.told == []


@everywhere
def test_nobody_is_told_of_what_a_savepoint_took_back(customer: Customer) -> None:
    tasks = tasks_at(customer.desk)

    with customer.transaction() as (session, holds):
        with suppress(Failure), session.begin_nested():
            for task in tasks:
                task.do(holds)
            raise Failure
        holds.create(1)

    assert customer.told == ["a"]


@everywhere
def test_nobody_is_told_of_a_refusal_or_a_look(customer: Customer) -> None:
    desk = customer.desk
    sold, cancelled, due = desk.sold(1), desk.cancelled(1), desk.due(1)
    desk.holds.create(1, 2, idempotency_key="used")
    refused: list[Work] = [
        lambda holds: holds.create(1, 3),
        lambda holds: holds.create(9),
        lambda holds: holds.create_many({1: 1, 2: 2}),
        lambda holds: holds.create(1, idempotency_key="used"),
        lambda holds: holds.create(1, replaces=sold.id),
        lambda holds: holds.confirm(cancelled.id),
        lambda holds: holds.confirm(due.id),
        lambda holds: holds.cancel(sold.id, quantity=2),
        lambda holds: holds.cancel(uuid4()),
        lambda holds: holds.extend(sold.id, 60),
        lambda holds: holds.set_capacity(1, 2),
    ]

    with customer.transaction() as (_, within):
        for holds in customer.holds, within:
            for work in refused:
                with pytest.raises(SlotcacheError):
                    work(holds)
            assert holds.get(sold.id) in holds.find()

    assert customer.told == []


@everywhere
def test_nobody_is_told_of_what_is_repeated(customer: Customer) -> None:
    """Each is called again: a replay, a refusal, or nothing is left to be done."""
    tasks = [task for task in tasks_at(customer.desk) if task.name != "cancel a part"]
    for task in tasks:
        task.do(customer.desk.holds)

    with customer.transaction() as (_, within):
        for holds in customer.holds, within:
            for task in tasks:
                with suppress(SlotcacheError):
                    task.do(holds)

    assert customer.told == []
    note_done(customer.desk)


@everywhere
def test_however_savepoints_are_nested_what_is_committed_is_told_and_nothing_else(
    customer: Customer,
) -> None:
    @effort(customer.desk, in_memory=15, on_a_server=5)
    @given(transactions)
    def check(wanted: list[Transaction]) -> None:
        empty(customer.slots)
        for scope, slot in SLOTS.items():
            customer.slots.add([(slot, 99)], scope=scope)
        for is_kept, todo in wanted:
            customer.told.clear()
            expected: set[str] = set()
            with suppress(Failure), customer.transaction() as (session, holds):
                changed = carried_out(session, holds, todo)
                assert customer.told == []
                if not is_kept:
                    raise Failure
                expected = changed
            assert sorted(customer.told) == sorted(expected)

    check()


@everywhere
def test_a_hook_that_fails_fails_nothing_and_is_counted(customer: Customer) -> None:
    def fail(scope: Scope | None) -> None:
        raise Failure(scope)

    holds = customer.manager(fail)

    alone = holds.create(1)
    with customer.session() as session, session.begin():
        joined = holds.within(session).create(1, 2)

    assert holds.hook_failures == 2
    assert (holds.get(alone.id), holds.get(joined.id)) == (alone, joined)


@everywhere
def test_when_the_answer_to_a_commit_is_lost_the_hook_is_called(customer: Customer) -> None:
    hold, other = customer.desk.holds.create(1), customer.desk.holds.create(2)

    with losing_answers(customer.desk), pytest.raises(BackendError, match="the answer was lost"):
        customer.holds.confirm(hold.id)
    assert customer.told == ["a"]

    with customer.session() as session:
        customer.holds.within(session).confirm(other.id)
        with losing_answers(customer.desk), pytest.raises(sa.exc.DBAPIError):
            session.commit()
    assert customer.told == ["a", "b"]
    for each in hold, other:
        assert customer.holds.get(each.id).state is HoldState.CONFIRMED


GUARDED: dict[str, tuple[str, Any, Callable[[Customer], None]]] = {
    "forgets what changed": (
        "slotcache.sql.database.Database.commit",
        commit_untold,
        test_each_operation_tells_each_scope_that_it_changed_once_when_everybody_can_see_it,
    ),
    "tells before the commit": (
        "slotcache.sql.noted.Noted._commit",
        tell_at_once,
        test_in_a_callers_transaction_all_is_told_once_after_his_commit_and_nothing_before,
    ),
    "tells twice": (
        "slotcache.hook._once",
        list,
        test_in_a_callers_transaction_all_is_told_once_after_his_commit_and_nothing_before,
    ),
    "tells of a rollback": (
        "slotcache.sql.noted.Noted._roll_back",
        Noted._commit,
        test_nobody_is_told_of_what_is_rolled_back,
    ),
    "takes any end of a savepoint for its release": (
        "slotcache.sql.noted.Noted._roll_back_to_savepoint",
        Noted._release_savepoint,
        test_however_savepoints_are_nested_what_is_committed_is_told_and_nothing_else,
    ),
    "fails as its hook does": (
        "slotcache.hook.Hook.tell",
        tell_and_fail,
        test_a_hook_that_fails_fails_nothing_and_is_counted,
    ),
    "tells only of what was answered": (
        "slotcache.operations.Operations._telling",
        tell_only_of_answers,
        test_when_the_answer_to_a_commit_is_lost_the_hook_is_called,
    ),
}


@TWINS
@in_a_file
@pytest.mark.parametrize("guard", GUARDED)
def test_a_twin_without_one_guard_is_noticed(
    customer: Customer, guard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, instead, promise = GUARDED[guard]
    monkeypatch.setattr(what, instead)

    with noticed():
        promise(customer)

    monkeypatch.undo()
    empty(customer.slots)
