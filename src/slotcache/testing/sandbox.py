"""A whole small service for one test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from slotcache.availability import SlotId
from slotcache.holds import HoldManager
from slotcache.policy import AvailabilityPolicy, HoldPolicy
from slotcache.service import SlotAvailabilityService
from slotcache.sql import SqlSlots
from slotcache.testing.clock import ManualClock

__all__ = ["Sandbox", "sandbox"]


class Sandbox(NamedTuple):
    """What a test of a booking application needs; it unpacks in this order.

    Attributes:
        service: Answers what is free, from memory.
        holds: Takes and gives back places; clears the service's list after each change.
        clock: The one time of both, moved by hand.
    """

    service: SlotAvailabilityService
    holds: HoldManager
    clock: ManualClock


def sandbox(
    capacities: Mapping[SlotId, int],
    *,
    policy: AvailabilityPolicy = AvailabilityPolicy(),
    hold_policy: HoldPolicy = HoldPolicy(),
    claim: str = "counted",
) -> Sandbox:
    """Return a service and its holds over a new table in memory, all places free.

    Args:
        capacities: The slots, and how many places each has. Their ids are all of one type.
        policy: Of the service.
        hold_policy: Of the holds.
        claim: Of the table.

    Examples:
        >>> service, holds, clock = sandbox({"A": 2})
        >>> hold = holds.create("A")
        >>> service.get_availability().get("A").remaining
        1
        >>> clock.advance(600)
        >>> service.get_availability().get("A").remaining
        2
    """
    id_type = type(next(iter(capacities), 0))
    clock = ManualClock()
    slots = SqlSlots.sqlite(":memory:", claim=claim, id_type=id_type, clock=clock)
    slots.create_tables()
    slots.add(capacities.items())
    service = SlotAvailabilityService(slots, policy=policy, clock=clock)
    holds = HoldManager(slots, on_change=service.clear_availability_cache, policy=hold_policy)
    return Sandbox(service, holds, clock)
