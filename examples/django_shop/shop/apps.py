"""Changes by Django (the admin, a form, a shell) clear the cached lists once they are committed."""

from __future__ import annotations

from django.apps import AppConfig
from django.db import transaction
from django.db.models.signals import post_delete, post_save


class ShopConfig(AppConfig):
    name = "shop"

    def ready(self) -> None:
        for signal in (post_save, post_delete):
            signal.connect(clear_lists_on_commit, sender="shop.Window")


def clear_lists_on_commit(**_signal: object) -> None:
    transaction.on_commit(clear_lists)


def clear_lists() -> None:
    """All of them: a window may have moved from one depot to another."""
    from shop.places import places

    places().service.clear_availability_cache()
