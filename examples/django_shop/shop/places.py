"""slotcache on Django's table: one set of objects for each process, made when first used."""

from __future__ import annotations

import os
import threading
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
from django.conf import settings
from django.db import connection

from shop.models import Window
from slotcache import HoldManager, SlotAvailabilityService
from slotcache.file import FileCache
from slotcache.sql import SqlSlots

windows = sa.Table(
    Window._meta.db_table,
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("depot", sa.String),
    sa.Column("capacity", sa.Integer),
    sa.Column("remaining", sa.Integer),
    sa.Column("open", sa.Boolean),
)

DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mariadb+pymysql"}


class Places(NamedTuple):
    slots: SqlSlots
    service: SlotAvailabilityService
    holds: HoldManager


def places() -> Places:
    """Return them, for the database that Django uses now: in tests it is another one."""
    with _making:
        return _make(connection.settings_dict["NAME"])


def close() -> None:
    """Give back all connections, so that a test's database can be dropped."""
    with _making:
        slots = _make(connection.settings_dict["NAME"]).slots
        slots.close()
        slots.engine.dispose()
        _make.cache_clear()


@lru_cache(None)
def _make(name: str | Path) -> Places:
    columns = {"slot_id": "id", "scope": "depot"}
    if connection.vendor == "sqlite":
        slots = SqlSlots.sqlite(name, slots=windows, columns=columns, where=windows.c.open)
    else:
        database = connection.settings_dict
        url = sa.URL.create(
            DRIVERS[connection.vendor],
            username=database["USER"],
            password=database["PASSWORD"],
            host=database["HOST"],
            port=database["PORT"] or None,
            database=str(name),
        )
        engine = sa.create_engine(url)
        os.register_at_fork(after_in_child=partial(engine.dispose, close=False))
        slots = SqlSlots(engine, slots=windows, columns=columns, where=windows.c.open)
    cache = FileCache(settings.LISTS / Path(name).stem)
    service = SlotAvailabilityService(slots, cache=cache)
    return Places(slots, service, HoldManager(slots, on_change=service.clear_availability_cache))


_making = threading.Lock()
