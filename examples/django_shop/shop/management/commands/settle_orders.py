"""What a process that died between the commit and its callback has left undone."""

from __future__ import annotations

from django.core.management.base import BaseCommand

from shop.models import Order
from shop.orders import settle
from slotcache import SlotcacheError


class Command(BaseCommand):
    help = "Settle what is paid and neither sold nor refunded. Run it every minute."

    def handle(self, **_options: object) -> None:
        unsettled = Order.objects.filter(state__in=(Order.State.PAID, Order.State.REFUND))
        for order_id in unsettled.order_by("pk").values_list("pk", flat=True):
            try:
                settle(order_id)
            except SlotcacheError as error:
                self.stderr.write(f"order {order_id} is left to the next run: {error}")
