"""The shop's tables, and two of slotcache's, as Django sees them."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

SOLD_BY_SLOTCACHE = {"capacity", "remaining"}


class Window(models.Model):
    """A slot: so many vans can leave this depot then. slotcache sells from this table."""

    depot = models.CharField(max_length=40, db_index=True)
    starts_at = models.DateTimeField()
    capacity = models.PositiveIntegerField()
    remaining = models.PositiveIntegerField(editable=False)
    open = models.BooleanField(default=True)

    class Meta:
        constraints = (
            models.CheckConstraint(
                name="shop_window_places", condition=Q(remaining__lte=F("capacity"))
            ),
        )

    def __str__(self) -> str:
        return f"{self.depot}, {self.starts_at:%d %B %H:%M}"

    def save(self, *args: object, **options: object) -> None:
        """Leave what slotcache sells from alone, once it is there.

        This object was read some time ago. A save of all its fields would write back the places
        that have been sold since.
        """
        if self._state.adding and self.remaining is None:
            self.remaining = self.capacity
        elif not self._state.adding and options.get("update_fields") is None:
            names = {field.name for field in self._meta.concrete_fields if not field.primary_key}
            options["update_fields"] = names - SOLD_BY_SLOTCACHE
        super().save(*args, **options)


class Order(models.Model):
    """A payment for a hold. Its row decides what becomes of the hold, never the other way."""

    class State(models.TextChoices):
        PAID = "paid", "paid, its place is being confirmed"
        SOLD = "sold", "sold"
        REFUND = "refund", "the place was gone: to be refunded"
        REFUNDED = "refunded", "refunded"

    payment = models.CharField(max_length=255, unique=True)
    customer = models.CharField(max_length=255, db_index=True)
    window = models.ForeignKey(Window, models.PROTECT)
    hold_id = models.UUIDField()
    state = models.CharField(max_length=16, choices=State.choices, default=State.PAID)


class Hold(models.Model):
    """slotcache's table of holds, to look at. `HoldManager` alone writes it."""

    id = models.UUIDField(primary_key=True)
    window = models.ForeignKey(
        Window, models.PROTECT, db_column="slot_id", db_index=False, related_name="+"
    )
    quantity = models.IntegerField()
    state = models.CharField(max_length=16)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    owner = models.CharField(max_length=255, null=True)
    reference = models.CharField(max_length=255, null=True)

    class Meta:
        db_table = "slot_holds"


class HoldKey(models.Model):
    """slotcache's table of idempotency keys: here so that Django empties it, too, after a test."""

    hold_id = models.UUIDField(primary_key=True)

    class Meta:
        db_table = "slot_hold_keys"
