"""A cache in a directory, for all processes of one host.

No method waits for another process: there is no lock that one of them could be stopped in.

- A clear appends a byte to the key's record, whose length is the number of clears.
- A fill writes a draft and renames it over the key's list, with the generation inside.
- A list is fresh while the generation inside it is the record's. So it does not matter when a
  rename lands: what was outrun by a clear, or belongs to a lost record, is recognised by whoever
  reads it. (Trusting what stands there, checked before the rename, breaks P1: the explorer shows
  it.) Of two fills at once the older may land last: that costs a query.
- Who looks reads the record first and the list after it: a list that bears the generation seen,
  or a later one, was loaded after every clear that the look has to show.
- A hit is a `stat` of the record, and an `fstat`: the process holds it open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from slotcache._fork import forget_after_fork
from slotcache._kept import keep_latest, number_of_lists
from slotcache.availability import Availability
from slotcache.codec import HEADER_SIZE, decode, encode
from slotcache.file.folder import (
    IDLE,
    LIST,
    RECORD,
    FileOperations,
    boot_id,
    host_clock,
    read_all,
)
from slotcache.file.locks import FileLocks
from slotcache.file.record import Record, Records
from slotcache.protocols import Clock, Entry, Generation, Miss, random_epoch

__all__ = ["FileCache"]

_LARGEST = 256 * 1024 * 1024
_CLOCKS_APART = 0.001


@dataclass(frozen=True, slots=True)
class _Kept:
    """A list that this process has decoded, and the record that its generation is of.

    Attributes:
        record: The key's record when it was read.
        head: The first bytes of its file, by which it is recognised.
        stored: The entry as in the file, in instants of the host's clock.
        entry: The same in instants of this process's clock.
    """

    record: Record
    head: bytes
    stored: Entry
    entry: Entry

    def is_like(self, other: _Kept) -> bool:
        """Whether it says the same, so that one may stand for the other."""
        same = self.record is other.record and self.head == other.head
        return same and abs(self.entry.until - other.entry.until) < _CLOCKS_APART


class FileCache:
    """A `CacheBackend` in a directory: keeps P1 for all processes of one host that share it.

    It belongs to one user and stands on a local file system. A full or read-only disk costs
    queries, and so do damaged or vanished files. A forked child shares the files and nothing
    else.

    Args:
        directory: Its path; made, for this user alone, if it is not there.
        maxsize: How many lists (one a scope, and the whole table's) each process keeps decoded,
            with one file descriptor each. Reading another one costs decoding it.
        clock: Where the time comes from; None: the host's boot clock, which all processes on it
            read alike. Give one for tests, the same to all who share the directory.
        epoch: Makes the random part of a new record's generation.
        files: What stands in for the module `os`, in tests.

    Raises:
        ValueError: The directory is not private, is none, or is shared by several hosts.
        NotImplementedError: The system has no boot clock (only Linux has been tried).

    Examples:
        >>> import tempfile
        >>> from slotcache import SlotAvailabilityService
        >>> from slotcache.file import FileCache
        >>> from slotcache.sql import SqlSlots
        >>> slots = SqlSlots.sqlite(":memory:")
        >>> slots.create_tables()
        >>> slots.add([(1, 2)])
        >>> directory = tempfile.mkdtemp()
        >>> here = SlotAvailabilityService(slots, cache=FileCache(directory))
        >>> elsewhere = SlotAvailabilityService(slots, cache=FileCache(directory))
        >>> here.read().source, elsewhere.read().source
        (<Source.LOADED: 'loaded'>, <Source.CACHED: 'cached'>)
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        maxsize: int = 100,
        clock: Clock | None = None,
        epoch: Callable[[], int] = random_epoch,
        files: FileOperations = os,
    ) -> None:
        self._maxsize = number_of_lists(maxsize)
        self._files = files
        self._host_now = host_clock(clock)
        self._now = time.monotonic if clock is None else clock.now
        self._locks = FileLocks(directory, clock=clock, files=files)
        self._folder = self._locks._folder
        self._records = Records(self._folder, boot_id(), epoch)
        self._kept: dict[str, _Kept] = {}
        self._swept = self._host_now()
        forget_after_fork(self)

    def _after_fork(self) -> None:
        self._kept = {}

    def read(self, key: str) -> Entry | Miss:
        """Return the fresh entry, or a `Miss` that tells the generation seen."""
        kept = self._kept.get(key)
        if (
            kept is not None
            and self._host_now() < kept.stored.until
            and kept.record.clears() == kept.stored.generation.clears
        ):
            return kept.entry
        now, generation, kept = self._found(key)
        if kept is not None and kept.stored.generation == generation and now < kept.stored.until:
            return kept.entry
        return Miss(generation, now, None if kept is None else kept.entry)

    def look(self, key: str) -> Miss:
        """Return a `Miss` although the entry may be fresh. A new key gets a record."""
        now, generation, kept = self._found(key)
        return Miss(generation, now, None if kept is None else kept.entry)

    def fill(
        self,
        key: str,
        miss: Miss,
        availability: Availability,
        *,
        ttl: float,
        stale_ttl: float,
        valid_for: float | None = None,
    ) -> Entry | None:
        """Keep what was loaded after `miss`, as `CacheBackend.fill` says."""
        if miss.generation is None or not isinstance(miss.look, int | float):
            return None
        now = self._host_now()
        until = miss.look + ttl if valid_for is None else min(miss.look + ttl, now + valid_for)
        stored = Entry(availability, miss.generation, miss.look, until)
        held = self._records.held(key, self._known_record(key))
        if held is None:
            return None
        record, current = held
        if not current.covers(stored.generation) or self._has_better(key, record, stored):
            return None
        data = encode(stored)
        self._write(key, data, wanted_for=max(IDLE, until - now + stale_ttl))
        kept = self._keep(key, _Kept(record, data[:HEADER_SIZE], stored, self._here(stored)))
        is_current = record.clears() == stored.generation.clears
        return kept.entry if is_current and now < until else None

    def clear(self, key: str) -> None:
        """Count one clear. Without a record: do nothing."""
        self._kept.pop(key, None)
        self._records.count(self._folder.path_of(key, RECORD))

    def clear_all(self) -> None:
        """Count one clear in every record, forgetting none."""
        self._kept.clear()
        failure = None
        for path in self._folder.names(RECORD):
            try:
                self._records.count(path)
            except OSError as error:
                failure = error
        if failure is not None:
            raise failure

    def locks(self) -> FileLocks:
        """The locks in the same directory."""
        return self._locks

    def close(self) -> None:
        """Give back descriptors and locks. What is in the directory stays there."""
        self._kept.clear()
        self._locks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _found(self, key: str) -> tuple[float, Generation, _Kept | None]:
        """Look at the time, then at the record, then at the list."""
        now = self._host_now()
        record, generation = self._records.current(key, self._known_record(key))
        kept = self._list_of(key, record)
        if kept is not None and kept.stored.generation.clears > generation.clears:
            counted = record.clears()
            if counted is not None and kept.stored.generation.clears > counted:
                # More than there have been: the record was cut, and would count them once more.
                with contextlib.suppress(FileNotFoundError):
                    self._files.unlink(self._folder.path_of(key, RECORD))
                return self._found(key)
        return now, generation, kept

    def _known_record(self, key: str) -> Record | None:
        kept = self._kept.get(key)
        return None if kept is None else kept.record

    def _has_better(self, key: str, record: Record, stored: Entry) -> bool:
        """Whether a list with more clears, or as many and a later look, is kept.

        If those are more than the record has counted, that was cut: the next look will see it.
        """
        other = self._list_of(key, record)
        return other is not None and other.stored.outranks(stored)

    def _list_of(self, key: str, record: Record) -> _Kept | None:
        """Return the list that is kept under this record; None: there is none, or it is damaged."""
        fd = self._folder.open(self._folder.path_of(key, LIST))
        if fd is None:
            return None
        try:
            size = self._files.fstat(fd).st_size
            head = read_all(self._files, fd, min(size, HEADER_SIZE))
            known = self._kept.get(key)
            if known is not None and known.head == head:
                stored: Entry | None = known.stored
            elif size <= _LARGEST:
                stored = decode(head + read_all(self._files, fd, size - HEADER_SIZE))
            else:
                stored = None
        except OSError:  # what cannot be read is as good as not there
            return None
        finally:
            self._files.close(fd)
        if stored is None or stored.generation.epoch != record.epoch:
            return None
        return self._keep(key, _Kept(record, head, stored, self._here(stored)))

    def _here(self, stored: Entry) -> Entry:
        """Return an entry in instants of this process's clock, which stands still in a sleep."""
        ahead = self._now() - self._host_now()
        return dataclasses.replace(stored, since=stored.since + ahead, until=stored.until + ahead)

    def _keep(self, key: str, kept: _Kept) -> _Kept:
        """Have this process's next reads answered without decoding, by one and the same object."""
        known = self._kept.get(key)
        if known is not None and known.is_like(kept):
            kept = known
        keep_latest(self._kept, key, kept, self._maxsize)
        return kept

    def _write(self, key: str, data: bytes, *, wanted_for: float) -> None:
        """Put a list in the place of the key's last one, at one instant."""
        self._sweep_now_and_then()
        with self._folder.draft(data) as draft:
            wall = time.time()
            self._files.utime(draft, (wall, wall + wanted_for))
            self._files.replace(draft, self._folder.path_of(key, LIST))

    def _sweep_now_and_then(self) -> None:
        now = self._host_now()
        if now - self._swept > IDLE:
            self._swept = now
            self._folder.sweep()
            self._locks.sweep()
