"""The life of a hold: its states, and the one table of moves between them.

The SQL, the checks, the tests and the docs read `TRANSITIONS`; nobody repeats it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from uuid import UUID

from slotcache.availability import Scope, SlotId
from slotcache.errors import HoldExpired, IllegalTransition

__all__ = ["TRANSITIONS", "Hold", "HoldState", "next_state"]


class HoldState(enum.Enum):
    """Where a hold stands. The values are what the database stores."""

    HELD = "held"
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TRANSITIONS: Mapping[tuple[HoldState, str], HoldState] = MappingProxyType(
    {
        (HoldState.HELD, "confirm"): HoldState.CONFIRMED,
        (HoldState.HELD, "cancel"): HoldState.CANCELLED,
        (HoldState.HELD, "extend"): HoldState.HELD,
        (HoldState.HELD, "expire"): HoldState.EXPIRED,
        (HoldState.HELD, "reacquire"): HoldState.CONFIRMED,
        (HoldState.HELD, "replace"): HoldState.CANCELLED,
        (HoldState.CONFIRMED, "confirm"): HoldState.CONFIRMED,
        (HoldState.CONFIRMED, "cancel"): HoldState.CANCELLED,
        (HoldState.CONFIRMED, "reacquire"): HoldState.CONFIRMED,
        (HoldState.CONFIRMED, "write off"): HoldState.CANCELLED,
        (HoldState.CANCELLED, "cancel"): HoldState.CANCELLED,
        (HoldState.CANCELLED, "write off"): HoldState.CANCELLED,
        (HoldState.EXPIRED, "cancel"): HoldState.EXPIRED,
        (HoldState.EXPIRED, "expire"): HoldState.EXPIRED,
        (HoldState.EXPIRED, "reacquire"): HoldState.CONFIRMED,
        (HoldState.EXPIRED, "replace"): HoldState.EXPIRED,
        (HoldState.EXPIRED, "write off"): HoldState.EXPIRED,
    }
)
"""State and operation to the next state. What is not here is an `IllegalTransition` (an operation
that wants a live hold, on an expired one: a `HoldExpired`). A move to the same state changes no
list and runs no hook: it is a replay (P7), or `extend`, which moves the end alone. A hold that is
due counts as EXPIRED before anybody wrote it down.

"reacquire" is `confirm(late="reacquire")`, which needs free places; "write off" is
`cancel(restock=False)`; "replace" is what `create(replaces=...)` does to the hold that it names."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A promise of some places in a slot, for a while.

    Attributes:
        id: Its identity, random.
        slot_id: The slot, as the type that the table has.
        scope: The scope of that slot when the hold was read; None: it has none.
        quantity: How many places, at least 1.
        state: Where it stands at the instant it was read; a due hold is EXPIRED.
        created_at: When it was made, an aware UTC instant by the database's clock.
        expires_at: When it ends by itself unless it is confirmed before.
        owner: Whom the application says it belongs to; None: nobody said.
        reference: What the application says has confirmed it; None: it did not say, or it was not
            confirmed.
        replayed: True when this call found the work done already and changed nothing.
    """

    id: UUID
    slot_id: SlotId
    scope: Scope | None
    quantity: int
    state: HoldState
    created_at: datetime
    expires_at: datetime
    owner: str | None = None
    reference: str | None = None
    replayed: bool = False


def next_state(hold: Hold, operation: str) -> HoldState:
    """Return where `operation` leads this hold; the state that it is in: a replay.

    Raises:
        HoldExpired: It expired, and the operation wants a live hold.
        IllegalTransition: The operation leads nowhere from its state.
    """
    state = TRANSITIONS.get((hold.state, operation))
    if state is not None:
        return state
    if hold.state is HoldState.EXPIRED:
        raise HoldExpired(hold.id, expires_at=hold.expires_at)
    raise IllegalTransition(hold.id, state=hold.state, operation=operation)
