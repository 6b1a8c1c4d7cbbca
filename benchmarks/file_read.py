"""S3: 1,000 slots from a cache in files, unchanged since the last read.

The floor is `os.stat` of a file and a value that was kept, in a method. The goal is 5 us. Each
peer is used as its documentation shows, with its default serializer, for the list of dicts that
its users would store; all of them answer with rows that can be used at once.

slotcache
    Hands out the list that it keeps decoded, once it has seen that nothing was changed. Safe from
    callers' edits: the list is immutable. Sees other processes' changes at the next read, and a
    clear that came during a load is not lost. A miss costs one query for all processes.
Django `FileBasedCache`
    Unpickles the file at every read. Safe from edits, as each read has a copy of its own; sees
    other processes' changes. A miss costs a query for each reader; a clear during a load is lost.
diskcache `Cache`
    Looks up and unpickles a row of SQLite at every read. Safe and seeing as Django's. A miss
    costs a query for each reader; its recipe `memoize_stampede` lets one reload early at random.
dogpile.cache `dbm`
    Opens the file under a lock and unpickles at every read, by `get_or_create`. Safe and seeing
    as Django's. A miss costs one query for all processes; a clear during a load is lost. How fast
    it is depends on which `dbm` this Python was built with; it is told with the figures.
cachelib `FileSystemCache`
    As Django's, without the compression.

"slotcache, changed" is a read after another process cleared and filled the list: it is read and
decoded again. It is measured for information.

    python3 dev.py bench file_read [--quick] [--output FILE]
"""

from __future__ import annotations

import dbm
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from _runner import (
    Measured,
    available,
    environment,
    interleave,
    options,
    print_table,
    verdict,
    write,
)
from _slots import HOUR, Prepared, as_dicts, typical
from slotcache import AvailabilityPolicy, SlotAvailabilityService
from slotcache.file import FileCache

GOAL = 5.0
SLOTS = 1_000
KEY = "slots.availability"

Read = Callable[[], object]
Dicts = list[dict[str, Any]]


class Floor:
    """The least: hands out a kept value while a file is the one that was seen."""

    def __init__(self, path: Path, value: object) -> None:
        path.touch()
        self._path = os.fspath(path)
        self._seen = path.stat().st_mtime_ns
        self._value = value

    def get(self) -> object:
        if os.stat(self._path).st_mtime_ns == self._seen:  # noqa: PTH116  (a Path costs time)
            return self._value
        return None


def django(folder: Path, rows: Dicts) -> Read:
    from django.conf import settings

    backend = "django.core.cache.backends.filebased.FileBasedCache"
    settings.configure(CACHES={"default": {"BACKEND": backend, "LOCATION": folder / "django"}})
    from django.core.cache import cache

    cache.set(KEY, rows, timeout=HOUR)
    return partial(cache.get, KEY)


def diskcache(folder: Path, rows: Dicts) -> Read:
    from diskcache import Cache

    cache = Cache(folder / "diskcache")
    cache.set(KEY, rows, expire=HOUR)
    return partial(cache.get, KEY)


def dogpile(folder: Path, rows: Dicts) -> Read:
    from dogpile.cache import make_region

    region = make_region().configure(
        "dogpile.cache.dbm",
        expiration_time=HOUR,
        arguments={"filename": os.fspath(folder / "dogpile.dbm")},
    )
    return partial(region.get_or_create, KEY, lambda: rows)


def cachelib(folder: Path, rows: Dicts) -> Read:
    from cachelib import FileSystemCache

    cache = FileSystemCache(os.fspath(folder / "cachelib"))
    cache.set(KEY, rows, timeout=int(HOUR))
    return partial(cache.get, KEY)


PEERS = {
    "Django FileBasedCache": django,
    "diskcache Cache": diskcache,
    "dogpile.cache dbm": dogpile,
    "cachelib FileSystemCache": cachelib,
}


def main() -> None:
    """Measure, print a table and write the results."""
    chosen = options("file_read", "Measure a read from a cache in files against its floor.")
    rounds, number, changes = (2, 10, 2) if chosen.quick else (100, 200, 1_000)

    where = environment("slotcache", "filelock", "cachelib", "diskcache", "Django", "dogpile.cache")
    with tempfile.TemporaryDirectory() as scratch:
        measured = measure(Path(scratch), rounds=rounds, number=number, changes=changes)
        where["dbm"] = dbm.whichdb(Path(scratch, "dogpile.dbm"))
    microseconds = measured["slotcache"].nanoseconds.median / 1_000
    print_table(measured, {"slotcache": verdict(microseconds, GOAL)})
    write(
        chosen.output,
        {
            "benchmark": "file_read",
            "goal": {"slotcache": GOAL, "unit": "microseconds"},
            "environment": where,
            "rounds": rounds,
            "calls_a_round": number,
            "changes": changes,
            "measured": measured,
        },
    )


def measure(folder: Path, *, rounds: int, number: int, changes: int) -> dict[str, Measured]:
    """Measure the reads of a list that nobody changes, and those after a change each."""
    rows = typical(SLOTS)
    dicts = as_dicts(rows)
    policy = AvailabilityPolicy(ttl=HOUR)
    with FileCache(folder / "slotcache") as here, FileCache(folder / "slotcache") as elsewhere:
        service = SlotAvailabilityService(Prepared(rows), cache=here, policy=policy)
        another = SlotAvailabilityService(Prepared(rows), cache=elsewhere, policy=policy)
        floor, read = Floor(folder / "floor", rows).get, service.get_availability
        peers = available(PEERS, folder, dicts)
        assert read().to_dicts() == dicts
        assert all(each() == dicts for each in peers.values())

        def change() -> None:
            another.clear_availability_cache()
            another.get_availability()

        calls = {"floor": floor, "slotcache": read, **peers}
        measured = interleave(calls, rounds=rounds, number=number)
        calls = {"floor": floor, "slotcache, changed": read}
        after_changes = interleave(calls, rounds=changes, number=1, before=change)
    return {**measured, "slotcache, changed": after_changes["slotcache, changed"]}


if __name__ == "__main__":
    main()
