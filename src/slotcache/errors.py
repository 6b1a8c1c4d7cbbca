"""What can go wrong, by whose move it is: one root, and fields instead of strings to parse.

A value of the wrong type or range is a plain `TypeError` or `ValueError`; everything that a
correct program can meet is below. All of them survive pickling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from slotcache.availability import SlotId
    from slotcache.lifecycle import HoldState

__all__ = [
    "BackendError",
    "Busy",
    "CapacityTooLow",
    "HoldExpired",
    "HoldNotFound",
    "HoldTooSmall",
    "IdempotencyConflict",
    "IllegalTransition",
    "SlotFull",
    "SlotNotFound",
    "SlotcacheError",
]


class SlotcacheError(Exception):
    """The root of slotcache's errors.

    Attributes:
        retryable: Whether the same call, made again later, can succeed without anything
            else being done first.
    """

    retryable: ClassVar[bool] = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    kind: type[SlotcacheError], args: tuple[Any, ...], fields: dict[str, Any]
) -> SlotcacheError:
    """Unpickle an error without calling its `__init__`, whose arguments are fields."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class SlotNotFound(SlotcacheError):
    """There is no such slot, or the `where` of the table excludes it. Nothing was changed.

    Attributes:
        slot_id: The slot that was asked for.
    """

    def __init__(self, slot_id: SlotId) -> None:
        self.slot_id = slot_id
        super().__init__(f"slot {slot_id!r} does not exist, or is not open: show the list again")


class SlotFull(SlotcacheError):
    """Fewer places are left than were asked for. Nothing was changed.

    Attributes:
        slot_id: The slot that was asked for.
        requested: How many places were asked for.
        remaining: How many were left at that instant: ask for no more than these.
    """

    def __init__(self, slot_id: SlotId, *, requested: int, remaining: int) -> None:
        self.slot_id = slot_id
        self.requested = requested
        self.remaining = remaining
        advice = "take fewer, or another slot" if remaining else "take another slot"
        super().__init__(
            f"slot {slot_id!r} has {remaining} left, {requested} were asked for: {advice}"
        )


class CapacityTooLow(SlotcacheError):
    """More places are sold or promised than the slot would have. Nothing was changed.

    Attributes:
        slot_id: The slot.
        requested: The capacity that was asked for.
        lowest: The lowest that was possible at that instant.
    """

    def __init__(self, slot_id: SlotId, *, requested: int, lowest: int) -> None:
        self.slot_id = slot_id
        self.requested = requested
        self.lowest = lowest
        super().__init__(
            f"slot {slot_id!r} cannot have a capacity of {requested}, {lowest} are sold or "
            f"promised: set {lowest} or more, or cancel holds first"
        )


class HoldNotFound(SlotcacheError):
    """There is no hold with this id (it was never made, or it was purged).

    Or it was made since a transaction of yours began that shows what was then: on PostgreSQL, above
    READ COMMITTED.

    Attributes:
        hold_id: The id that was asked for.
        owner: Whose hold it had to be; None: anybody's.
    """

    def __init__(self, hold_id: UUID, *, owner: str | None = None) -> None:
        self.hold_id = hold_id
        self.owner = owner
        super().__init__(
            f"hold {hold_id} does not exist: create a new one"
            if owner is None
            else f"hold {hold_id} does not exist, or {owner!r} does not own it: create without it"
        )


class HoldTooSmall(SlotcacheError):
    """More of the hold's places were to be cancelled than it has. Nothing was changed.

    Attributes:
        hold_id: The hold.
        requested: How many were to be cancelled.
        quantity: How many it had at that instant.
    """

    def __init__(self, hold_id: UUID, *, requested: int, quantity: int) -> None:
        self.hold_id = hold_id
        self.requested = requested
        self.quantity = quantity
        super().__init__(
            f"hold {hold_id} has {quantity} left, {requested} were to be cancelled: cancel fewer, "
            "or all of it by leaving quantity out"
        )


class HoldExpired(SlotcacheError):
    """The hold ended before it was confirmed; its places are free for others. Nothing was changed.

    Attributes:
        hold_id: The hold.
        expires_at: When it ended, an aware UTC instant.
        late: Whether it was to take its places again (`late="reacquire"`); then the `__cause__`
            says why that failed.
    """

    def __init__(self, hold_id: UUID, *, expires_at: datetime, late: bool = False) -> None:
        self.hold_id = hold_id
        self.expires_at = expires_at
        self.late = late
        advice = "its places are gone, give back what was paid" if late else "create a new one"
        super().__init__(f"hold {hold_id} expired at {expires_at.isoformat()}: {advice}")


class IdempotencyConflict(SlotcacheError):
    """What makes a call happen once stands for another call already. Nothing was changed.

    Either the owner used the idempotency key before, for other slots or quantities; or the hold
    was confirmed before, under another reference or none.

    Attributes:
        hold_id: The (first) hold that was made under the key; or that was to be confirmed.
        idempotency_key: The key that was sent; None: a reference was.
        reference: The reference that was sent; None: a key was.
    """

    def __init__(
        self, *, hold_id: UUID, idempotency_key: str | None = None, reference: str | None = None
    ) -> None:
        self.hold_id = hold_id
        self.idempotency_key = idempotency_key
        self.reference = reference
        super().__init__(
            f"idempotency key {idempotency_key!r} has made hold {hold_id} for another slot or "
            "quantity: a new request needs a new key"
            if reference is None
            else f"hold {hold_id} was confirmed before, but not with reference {reference!r}: "
            "get() tells with which; undo what the new one stands for"
        )


class IllegalTransition(SlotcacheError):
    """The hold is in a state from which this operation leads nowhere. Nothing was changed.

    Attributes:
        hold_id: The hold.
        state: The state that it is in.
        operation: What was asked for, for example `"confirm"`.
    """

    def __init__(self, hold_id: UUID, *, state: HoldState, operation: str) -> None:
        self.hold_id = hold_id
        self.state = state
        self.operation = operation
        advice = _ADVICE.get(operation, "show that, or create a new one")
        super().__init__(f"cannot {operation} hold {hold_id}, it is {state.value}: {advice}")


_ADVICE = {
    "reacquire": "a payment for it has to be given back",
    "replace": "only a live hold makes room, so create without replaces, or cancel it yourself",
    "write off": "what was never sold is given back, so cancel it without restock=False",
}


class Busy(SlotcacheError):
    """The slot stayed locked by others for longer than `lock_wait`. Nothing was changed.

    It does not say that the slot is full. Calling again is right.

    Attributes:
        waited: How long it may have waited for each lock, in seconds.
    """

    retryable = True

    def __init__(self, *, waited: float) -> None:
        self.waited = waited
        super().__init__(
            f"others had it locked, or changed it meanwhile (waits up to {waited:g} s): try again, "
            "and not beside a transaction of yours that has locked it"
        )


class BackendError(SlotcacheError):
    """The database failed, or its rows contradict each other: the operator's move.

    `RedisCache` raises it too, to who asks it directly: a service answers from the table instead.
    The error below it, if there is one, is the `__cause__`: SQLAlchemy's, with the driver's in its
    `orig`, or redis-py's. If the answer to a COMMIT was lost, the change may have happened.
    """
