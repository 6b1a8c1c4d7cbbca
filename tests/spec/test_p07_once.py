"""P7 once.

A request that is sent under an idempotency key makes one hold, or one set of holds, however often
it is sent and by however many at once: whoever comes later is given the same hold as it is by then,
marked `replayed`. That holds also if the first answer was lost, if the slot is full or closed
meanwhile, and if the hold has ended, until `purge` forgets it. Another request under the same key
is refused and changes nothing. A refusal is not remembered: the same key works once there is room.
A key belongs to its owner; without one it is nobody's, who is one owner like others.

Confirming, cancelling, extending to the same end, resizing to the same size and writing expiry down
have the effect of once, however often they are repeated.

Limits: Without a key each `create` is another hold. Cancelling a part (`cancel(quantity=...)`) is a
step and no state: who says that twice gives up two parts. Which slots and how many places make a
request; the ttl and what it replaces do not. Once `purge` has forgotten the last hold of a key, the
same key makes a new one.

Shown: The same request again, and another under its key, on every database in both worlds; many
callers who meet behind a lock and send one request at once; a COMMIT whose answer is lost; and any
sequence of operations of which each is called twice. Twins with one guard taken out are noticed;
with sixteen callers that share nothing but the database more of them are in `test_races.py`,
`TestBrokenTwins`. What exactly a key is, and keys that only look alike: `test_idempotency.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotcache import (
    BackendError,
    Hold,
    HoldNotFound,
    HoldState,
    IdempotencyConflict,
    SlotFull,
    SlotNotFound,
)
from slotcache.sql.ledger import SqlLedger
from tests.support.desk import Desk
from tests.support.every_operation import Call, as_a_replay, called_twice, calls, with_holds
from tests.support.hold_twins import AsksNoQuestions, CancelsAgain, ForgetsKeys, SharesKeys
from tests.support.sql import free
from tests.support.trials import (
    TWINS,
    at_once,
    effort,
    everywhere,
    in_a_file,
    losing_answers,
    noticed,
    renew,
    rows_of,
    twin_of,
)

CALLERS = 8


def test_the_same_request_under_the_same_key_is_answered_with_the_same_hold(desk: Desk) -> None:
    hold = desk.holds.create(1, 3, owner="ann", idempotency_key="order 7")
    before = rows_of(desk)
    desk.clock.advance(5)
    desk.told.clear()

    again = desk.holds.create(1, 3, owner="ann", idempotency_key="order 7")

    assert not hold.replayed
    assert again == replace(hold, replayed=True)
    assert rows_of(desk) == before
    assert desk.told == []


def test_one_key_covers_all_the_holds_of_a_request(desk: Desk) -> None:
    made = desk.holds.create_many({2: 1, 1: 3}, owner="ann", idempotency_key="k")
    before = rows_of(desk)
    desk.clock.advance(5)
    desk.told.clear()

    again = desk.holds.create_many({1: 3, 2: 1}, owner="ann", ttl=7, idempotency_key="k")

    assert again == tuple(replace(hold, replayed=True) for hold in made)
    assert rows_of(desk) == before
    assert desk.told == []


def sweep(desk: Desk, _: Hold) -> None:
    desk.clock.sleep(5)
    desk.holds.expire_due()


LATER: dict[str, Callable[[Desk, Hold], object]] = {
    "it was confirmed": lambda desk, hold: desk.holds.confirm(hold.id, reference="paid"),
    "it was cancelled": lambda desk, hold: desk.holds.cancel(hold.id),
    "it was extended": lambda desk, hold: desk.holds.extend(hold.id, 60),
    "it has expired": lambda desk, _: desk.clock.sleep(5),
    "that was written down": sweep,
    "the slot is closed": lambda desk, _: setattr(desk.door, "closed", 1),
    "the slot is full": lambda desk, _: desk.holds.create(1, free(desk.slots, 1)),
}


def test_the_answer_is_the_hold_as_it_is_by_then_whatever_has_become_of_it(desk: Desk) -> None:
    desk.holds.set_capacity(1, 9)
    for what, happens in LATER.items():
        hold = desk.holds.create(1, ttl=5, idempotency_key=what)
        happens(desk, hold)

        again = desk.holds.create(1, ttl=5, idempotency_key=what)

        assert again.id == hold.id, what
        assert again == replace(desk.holds.get(hold.id), replayed=True), what
        desk.door.closed = 0


@everywhere
def test_many_who_send_one_request_at_once_are_given_one_hold(desk: Desk) -> None:
    answers = at_once(
        desk, [lambda: desk.holds.create(1, 3, owner="ann", idempotency_key="k")] * CALLERS
    )

    assert Counter(hold.replayed for hold in answers) == {False: 1, True: CALLERS - 1}
    assert len({hold.id for hold in answers}) == 1
    assert desk.told == ["a"]
    assert free(desk.slots, 1) == 1


@everywhere
def test_who_lost_the_answer_sends_the_request_again_and_is_given_the_hold(desk: Desk) -> None:
    with losing_answers(desk), pytest.raises(BackendError):
        desk.holds.create(1, 3, idempotency_key="k")
    before = rows_of(desk)

    again = desk.holds.create(1, 3, idempotency_key="k")

    assert (again.replayed, again.state) == (True, HoldState.HELD)
    assert rows_of(desk) == before


def test_another_request_under_a_used_key_is_refused_and_changes_nothing(desk: Desk) -> None:
    hold = desk.holds.create(1, 3, owner="ann", idempotency_key="order 7")
    before = rows_of(desk)
    desk.told.clear()

    for slot_id, quantity in [(1, 2), (2, 3), (9, 3), (1, 10**30)]:
        with pytest.raises(IdempotencyConflict, match="a new request needs a new key") as refused:
            desk.holds.create(slot_id, quantity, owner="ann", idempotency_key="order 7")
        assert (refused.value.hold_id, refused.value.idempotency_key) == (hold.id, "order 7")
        assert not refused.value.retryable

    assert rows_of(desk) == before
    assert desk.told == []


def test_a_refused_request_leaves_no_record_of_its_key(desk: Desk) -> None:
    before = rows_of(desk)

    with pytest.raises(SlotFull):
        desk.holds.create(1, 5, idempotency_key="k")
    with pytest.raises(SlotFull):
        desk.holds.create_many({1: 4, 2: 2}, idempotency_key="k")
    with pytest.raises(SlotNotFound):
        desk.holds.create(3, idempotency_key="k")

    assert rows_of(desk) == before
    assert not desk.holds.create(1, 4, idempotency_key="k").replayed


def test_a_key_belongs_to_its_owner(desk: Desk) -> None:
    requests: dict[str | None, int] = {"ann": 1, "Ann": 2, None: 1}

    made = {
        owner: desk.holds.create(1, quantity, owner=owner, idempotency_key="k")
        for owner, quantity in requests.items()
    }

    assert len({hold.id for hold in made.values()}) == 3
    for owner, hold in made.items():
        again = desk.holds.create(1, hold.quantity, owner=owner, idempotency_key="k")
        assert again == replace(hold, replayed=True)


def test_a_key_is_forgotten_with_its_hold(desk: Desk) -> None:
    hold = desk.holds.create(1, idempotency_key="k")
    desk.holds.cancel(hold.id)
    assert desk.holds.create(1, idempotency_key="k").id == hold.id

    assert desk.holds.purge(0) == 1
    new = desk.holds.create(1, 2, idempotency_key="k")

    assert not new.replayed
    assert new.id != hold.id
    with pytest.raises(HoldNotFound):
        desk.holds.get(hold.id)


@everywhere
@pytest.mark.parametrize("operation", ["confirm", "cancel"])
def test_of_many_who_settle_a_hold_at_once_one_does_and_the_others_are_replays(
    desk: Desk, operation: str
) -> None:
    hold = desk.holds.create(1, 3)
    desk.told.clear()

    answers = at_once(desk, [lambda: getattr(desk.holds, operation)(hold.id)] * CALLERS)

    assert Counter(each.replayed for each in answers) == {False: 1, True: CALLERS - 1}
    assert desk.told == ["a"]
    assert free(desk.slots, 1) == {"confirm": 1, "cancel": 4}[operation]


def test_any_operation_that_is_called_twice_in_a_row_has_the_effect_of_once(desk: Desk) -> None:
    """And says so: the second answer is the first, `replayed`; or the same refusal."""

    @effort(desk, in_memory=12, on_a_server=4)
    @given(st.lists(calls, min_size=6, max_size=12))
    def check(sequence: list[Call]) -> None:
        renew(desk)
        with_holds(desk)
        for call in sequence:
            first, second = called_twice(desk, call)
            assert second == as_a_replay(first), call
            assert desk.told == [], call

    check()


GUARDED: list[tuple[type[SqlLedger], Callable[[Desk], None]]] = [
    (ForgetsKeys, test_the_same_request_under_the_same_key_is_answered_with_the_same_hold),
    (AsksNoQuestions, test_another_request_under_a_used_key_is_refused_and_changes_nothing),
    (SharesKeys, test_a_key_belongs_to_its_owner),
    (CancelsAgain, test_any_operation_that_is_called_twice_in_a_row_has_the_effect_of_once),
]


@TWINS
@in_a_file
@pytest.mark.parametrize(("twin", "promise"), GUARDED)
def test_a_twin_without_one_guard_is_noticed(
    desk: Desk, twin: type[SqlLedger], promise: Callable[[Desk], None]
) -> None:
    with twin_of(desk, twin), noticed():
        promise(desk)
