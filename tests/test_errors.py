"""The errors: one root, fields to read, messages to act on, and all of it survives pickling."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime
from uuid import UUID

import pytest

from slotcache import errors
from slotcache.errors import (
    BackendError,
    Busy,
    CapacityTooLow,
    HoldExpired,
    HoldNotFound,
    HoldTooSmall,
    IdempotencyConflict,
    IllegalTransition,
    SlotcacheError,
    SlotFull,
    SlotNotFound,
)
from slotcache.lifecycle import HoldState

HOLD = UUID(int=7)
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)

EACH = [
    SlotcacheError("something failed"),
    SlotNotFound("A"),
    SlotFull("A", requested=3, remaining=1),
    CapacityTooLow("A", requested=3, lowest=4),
    IdempotencyConflict(hold_id=HOLD, idempotency_key="order 7"),
    IdempotencyConflict(hold_id=HOLD, reference="payment 7"),
    HoldNotFound(HOLD),
    HoldNotFound(HOLD, owner="ada"),
    HoldTooSmall(HOLD, requested=3, quantity=2),
    HoldExpired(HOLD, expires_at=NOON),
    HoldExpired(HOLD, expires_at=NOON, late=True),
    IllegalTransition(HOLD, state=HoldState.CANCELLED, operation="confirm"),
    Busy(waited=3.0),
    BackendError("the database is away"),
]
each_error = pytest.mark.parametrize("error", EACH, ids=str)


def test_these_tests_know_every_error() -> None:
    assert sorted({type(error).__name__ for error in EACH}) == sorted(errors.__all__)


@each_error
def test_every_error_has_the_one_root(error: SlotcacheError) -> None:
    assert isinstance(error, SlotcacheError)
    assert isinstance(error, Exception)


@each_error
def test_no_error_is_one_that_a_programming_mistake_raises(error: SlotcacheError) -> None:
    assert not isinstance(error, TypeError | ValueError | LookupError | OSError)


@each_error
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_type_fields_and_message(error: SlotcacheError, protocol: int) -> None:
    twin = pickle.loads(pickle.dumps(error, protocol))
    assert type(twin) is type(error)
    assert vars(twin) == vars(error)
    assert (twin.args, str(twin)) == (error.args, str(error))


@each_error
def test_copying_keeps_type_fields_and_message(error: SlotcacheError) -> None:
    for twin in (copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert (vars(twin), str(twin)) == (vars(error), str(error))


def test_pickling_keeps_notes() -> None:
    error = SlotNotFound("A")
    error.add_note("while importing line 7")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["while importing line 7"]


def test_an_application_may_derive_its_own_error_with_its_own_fields() -> None:
    twin = pickle.loads(pickle.dumps(DockFull("A", dock="east")))
    assert (type(twin), twin.slot_id, twin.dock) == (DockFull, "A", "east")


class DockFull(SlotFull):
    def __init__(self, slot_id: str, *, dock: str) -> None:
        self.dock = dock
        super().__init__(slot_id, requested=1, remaining=0)


@each_error
def test_only_busy_may_be_retried_as_it_is(error: SlotcacheError) -> None:
    assert error.retryable is (type(error) is Busy)


def test_the_fields_are_those_that_were_given() -> None:
    assert SlotNotFound("A").slot_id == "A"
    full = SlotFull("A", requested=3, remaining=1)
    assert (full.slot_id, full.requested, full.remaining) == ("A", 3, 1)
    assert HoldNotFound(HOLD).hold_id == HOLD
    assert (HoldNotFound(HOLD).owner, HoldNotFound(HOLD, owner="ada").owner) == (None, "ada")
    small = HoldTooSmall(HOLD, requested=3, quantity=2)
    assert (small.hold_id, small.requested, small.quantity) == (HOLD, 3, 2)
    by_key = IdempotencyConflict(hold_id=HOLD, idempotency_key="order 7")
    assert (by_key.hold_id, by_key.idempotency_key, by_key.reference) == (HOLD, "order 7", None)
    by_reference = IdempotencyConflict(hold_id=HOLD, reference="payment 7")
    assert (by_reference.idempotency_key, by_reference.reference) == (None, "payment 7")
    expired = HoldExpired(HOLD, expires_at=NOON)
    assert (expired.hold_id, expired.expires_at) == (HOLD, NOON)
    illegal = IllegalTransition(HOLD, state=HoldState.CANCELLED, operation="confirm")
    assert (illegal.hold_id, illegal.operation) == (HOLD, "confirm")
    assert illegal.state is HoldState.CANCELLED
    assert Busy(waited=3.0).waited == 3.0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SlotNotFound("A"), "slot 'A' does not exist, or is not open: show the list again"),
        (
            SlotFull("A", requested=3, remaining=1),
            "slot 'A' has 1 left, 3 were asked for: take fewer, or another slot",
        ),
        (
            SlotFull(7, requested=1, remaining=0),
            "slot 7 has 0 left, 1 were asked for: take another slot",
        ),
        (HoldNotFound(HOLD), f"hold {HOLD} does not exist: create a new one"),
        (
            HoldExpired(HOLD, expires_at=NOON),
            f"hold {HOLD} expired at 2026-11-22T12:00:00+00:00: create a new one",
        ),
        (
            IllegalTransition(HOLD, state=HoldState.CANCELLED, operation="confirm"),
            f"cannot confirm hold {HOLD}, it is cancelled: show that, or create a new one",
        ),
        (
            HoldNotFound(HOLD, owner="ada"),
            f"hold {HOLD} does not exist, or 'ada' does not own it: create without it",
        ),
        (
            HoldTooSmall(HOLD, requested=3, quantity=2),
            (
                f"hold {HOLD} has 2 left, 3 were to be cancelled: cancel fewer, or all of it by "
                "leaving quantity out"
            ),
        ),
        (
            IdempotencyConflict(hold_id=HOLD, reference="payment 7"),
            (
                f"hold {HOLD} was confirmed before, but not with reference 'payment 7': get() "
                "tells with which; undo what the new one stands for"
            ),
        ),
        (
            IllegalTransition(HOLD, state=HoldState.HELD, operation="write off"),
            (
                f"cannot write off hold {HOLD}, it is held: what was never sold is given back, so "
                "cancel it without restock=False"
            ),
        ),
        (
            IllegalTransition(HOLD, state=HoldState.CONFIRMED, operation="replace"),
            (
                f"cannot replace hold {HOLD}, it is confirmed: only a live hold makes room, so "
                "create without replaces, or cancel it yourself"
            ),
        ),
        (
            Busy(waited=3.0),
            (
                "others had it locked, or changed it meanwhile (waits up to 3 s): try again, and "
                "not beside a transaction of yours that has locked it"
            ),
        ),
    ],
    ids=[
        "no slot",
        "some left",
        "none left",
        "no hold",
        "expired",
        "illegal",
        "no hold of hers",
        "too small",
        "other reference",
        "never sold",
        "sold already",
        "busy",
    ],
)
def test_the_message_says_what_happened_and_what_to_do(error: SlotcacheError, message: str) -> None:
    assert str(error) == message
