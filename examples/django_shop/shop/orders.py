"""An order is Django's, a hold is slotcache's, and no transaction has both: the order leads."""

from __future__ import annotations

from django.db import transaction

from shop.models import Order
from shop.places import places
from slotcache import (
    Hold,
    HoldExpired,
    HoldNotFound,
    HoldState,
    IdempotencyConflict,
    IllegalTransition,
    SlotFull,
)

GONE = (HoldExpired, HoldNotFound, IdempotencyConflict, IllegalTransition, SlotFull)
"""Why no repetition will confirm a hold. After any other error the next one may."""


def pay(hold: Hold, payment: str) -> Order:
    """Save the order of a payment, however often that is told, then settle it."""
    with transaction.atomic():
        order, _ = Order.objects.get_or_create(
            payment=payment,
            defaults={"customer": hold.owner, "window_id": hold.slot_id, "hold_id": hold.id},
        )
        # ... and whatever belongs to it: an invoice, a line in a journal.
        transaction.on_commit(lambda: settle(order.pk), robust=True)
    order.refresh_from_db()
    return order


def settle(order_id: int) -> None:
    """Bring a committed order and its hold together: as often as you like, from anywhere."""
    holds = places().holds
    order = Order.objects.get(pk=order_id)
    if order.state == Order.State.PAID:
        try:
            holds.confirm(order.hold_id, reference=str(order_id), late="reacquire")
            state = Order.State.SOLD
        except GONE:
            state = Order.State.REFUND
        Order.objects.filter(pk=order_id, state=Order.State.PAID).update(state=state)
        order.refresh_from_db()
    if order.state == Order.State.REFUND and has_a_place(order):
        # Two settled it at once, and a place came free between their tries.
        holds.cancel(order.hold_id)


def has_a_place(order: Order) -> bool:
    try:
        hold = places().holds.get(order.hold_id)
    except HoldNotFound:
        return False
    return hold.state is HoldState.CONFIRMED and hold.reference == str(order.pk)
