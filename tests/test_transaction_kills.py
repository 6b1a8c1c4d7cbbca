"""An order and the confirmation of its hold in one transaction, killed at each statement."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from slotcache import AvailabilityPolicy, HoldManager, HoldState, SlotAvailabilityService
from slotcache.testing import ManualClock

from .support.orders import Till, with_orders
from .support.processes import Worker
from .support.sql import EACH, Place, check_books, free, opened, query

PLACES = 50
TTL = 60.0
ON_DISK = [(kind, claim) for kind, claim in EACH if kind != "memory"]


@pytest.mark.parametrize(("kind", "claim"), ON_DISK)
def test_whoever_is_killed_leaves_both_the_order_and_its_sale_or_neither(
    kind: str,
    claim: str,
    place_of: Callable[[str], Place],
    record_property: Callable[[str, object], None],
) -> None:
    place = place_of(kind)
    with opened(kind, place, claim=claim) as slots, with_orders(slots.engine):
        slots.add([(1, PLACES)])
        holds = HoldManager(slots, on_change=None)
        clock = ManualClock()
        service = SlotAvailabilityService(
            slots, policy=AvailabilityPolicy(ttl=TTL, stale_ttl=0), clock=clock
        )
        steps: list[str] = []
        with Worker(Till, kind, place, claim) as till:
            while not steps or steps[-1]:
                hold = holds.create(1)
                service.clear_availability_cache()
                service.get_availability()
                number = len(steps) + 1

                steps.append(till.call("sell", number, hold.id, number))

                bought = query(slots, f"SELECT is_paid FROM orders WHERE id = {number}")
                is_sold = holds.get(hold.id).state is HoldState.CONFIRMED
                assert bought == [(True,)] * is_sold, f"killed before {steps[-1]!r}"
                assert is_sold == (steps[-1] in ("the hook", "")), f"killed before {steps[-1]!r}"
                clock.advance(TTL)
                shown = service.get_availability().get(1)
                assert shown is not None
                assert shown.remaining == free(slots, 1)
                check_books(slots)

        assert steps[-3:] == ["COMMIT", "the hook", ""]
        assert len(steps) > 8
        # Who was killed has locked nothing.
        with_room = holds.create(1, PLACES - sum(each.quantity for each in holds.find()))
        holds.confirm(with_room.id)
        assert free(slots, 1) == 0
        check_books(slots)
        killed = len(steps) - 1
        record_property("killed", f"{kind}, {claim}: {killed} killed (at each step of an order)")
