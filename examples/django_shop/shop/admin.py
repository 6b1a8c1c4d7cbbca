"""The admin: windows are edited, a new capacity goes through slotcache, holds are looked at."""

from __future__ import annotations

from functools import partial

from django.contrib import admin, messages
from django.db import transaction
from django.forms import ModelForm
from django.http import HttpRequest

from shop.models import Hold, Order, Window
from shop.places import places
from slotcache import SlotcacheError


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    list_display = ("payment", "window", "state")
    list_filter = ("state",)


@admin.register(Window)
class WindowAdmin(admin.ModelAdmin):
    list_display = ("depot", "starts_at", "capacity", "remaining", "open")
    readonly_fields = ("remaining",)

    def save_model(self, request: HttpRequest, obj: Window, form: ModelForm, change: bool) -> None:
        super().save_model(request, obj, form, change)  # all but the capacity
        if change and "capacity" in form.changed_data:
            transaction.on_commit(partial(set_capacity, request, obj.pk, obj.capacity))


def set_capacity(request: HttpRequest, window_id: int, capacity: int) -> None:
    """After the commit: the admin's transaction may have this row, or the whole SQLite file."""
    try:
        places().holds.set_capacity(window_id, capacity)
    except SlotcacheError as refused:
        messages.error(request, f"The capacity is as it was: {refused}.")


@admin.register(Hold)
class HoldAdmin(admin.ModelAdmin):
    list_display = ("id", "window", "quantity", "state", "expires_at", "owner", "reference")
    list_filter = ("state",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Hold | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Hold | None = None) -> bool:
        return False
