"""Sell places in slots: a free list that is never stale by a race, and holds that never oversell.

Start at `SlotAvailabilityService` and `HoldManager`, or their `Async` twins; tables are in
`slotcache.sql`.
"""

from __future__ import annotations

import logging

from slotcache.availability import (
    Availability,
    Reading,
    Scope,
    SlotAvailability,
    SlotId,
    Source,
)
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
from slotcache.holds import AsyncHoldManager, HoldManager
from slotcache.lifecycle import TRANSITIONS, Hold, HoldState
from slotcache.policy import AvailabilityPolicy, HoldPolicy
from slotcache.service import AsyncSlotAvailabilityService, SlotAvailabilityService

__all__ = [
    "TRANSITIONS",
    "AsyncHoldManager",
    "AsyncSlotAvailabilityService",
    "Availability",
    "AvailabilityPolicy",
    "BackendError",
    "Busy",
    "CapacityTooLow",
    "Hold",
    "HoldExpired",
    "HoldManager",
    "HoldNotFound",
    "HoldPolicy",
    "HoldState",
    "HoldTooSmall",
    "IdempotencyConflict",
    "IllegalTransition",
    "Reading",
    "Scope",
    "SlotAvailability",
    "SlotAvailabilityService",
    "SlotFull",
    "SlotId",
    "SlotNotFound",
    "SlotcacheError",
    "Source",
]

logging.getLogger("slotcache").addHandler(logging.NullHandler())
