"""A key's record: an epoch, and one byte for each clear.

The number of clears is the length of the file: a clear appends one byte, which the system does
whole and in one order for all processes, with no lock that somebody could be stopped in. So a
count never goes back and none is lost. A record that has to go (too long, damaged, from before
the last boot, out of use) comes back under another random epoch, which is always safe: whoever
looks at the new one does so after every clear that found the old one.

A process that keeps a list holds the record open: as long as it does, the system gives its inode
to no other file, so a `stat` tells whether anything was cleared, or the record replaced. What
counts is the file that stands in the record's place: one that was moved away, or has another link
left somewhere, is open and well, and counts nothing any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable
from zlib import crc32

from slotcache.file.folder import RECORD, FileOperations, Folder, identity, read_all
from slotcache.protocols import Generation

__all__ = ["Record", "Records"]

# A name, a version, the epoch, the boot in which it was made, and a checksum of these.
_HEAD = struct.Struct("<4sB3xQ16s")
_CHECKSUM = struct.Struct("<I")
_SIZE = _HEAD.size + _CHECKSUM.size
_NAME, _VERSION = b"slor", 1

_LONGEST = 64 * 1024
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
_ATTEMPTS = 10


class Record:
    """A record that was found in its place, held open until the last who uses it lets go of it."""

    __slots__ = ("_fd", "_files", "_identity", "_path", "epoch")

    def __init__(self, files: FileOperations, path: str, fd: int, epoch: int) -> None:
        self.epoch = epoch
        self._files = files
        self._path = path
        self._fd = fd
        self._identity: tuple[int, int] | None = None
        self._identity = identity(files.fstat(fd))

    def clears(self) -> int | None:
        """Return how many clears it has counted; None: it is no longer the key's record."""
        try:
            if identity(self._files.fstat(self._fd)) != self._identity:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        except OSError:
            # Somebody closed every descriptor of this process, as daemons do: it is not ours now.
            self._fd = -1
            return None
        try:
            found = self._files.stat(self._path)
        except FileNotFoundError:
            return None
        if identity(found) != self._identity or found.st_size < _SIZE:
            return None
        return found.st_size - _SIZE

    def generation(self) -> Generation | None:
        """Return the generation that it shows; None: as for `clears`."""
        clears = self.clears()
        return None if clears is None else Generation(self.epoch, clears)

    def __del__(
        self,
        fstat: Callable[[int], os.stat_result] = os.fstat,
        close: Callable[[int], None] = os.close,
    ) -> None:
        try:
            if identity(fstat(self._fd)) == self._identity:
                close(self._fd)
        except OSError:
            pass


class Records:
    """The records in a folder."""

    def __init__(self, folder: Folder, boot: bytes, epoch: Callable[[], int]) -> None:
        self._folder = folder
        self._files = folder.files
        self._boot = boot
        self._epoch = epoch

    def current(self, key: str, known: Record | None) -> tuple[Record, Generation]:
        """Return the key's record and its generation now. A key without a record gets one."""
        for _ in range(_ATTEMPTS):
            held = self.held(key, known)
            if held is not None:
                return held
            self._mint(key)
        raise OSError(f"the record of {key!r:.80} is removed again and again")

    def held(self, key: str, known: Record | None) -> tuple[Record, Generation] | None:
        """Return the key's record, `known` if it is that still, and its generation; None: none."""
        generation = None if known is None else known.generation()
        if known is not None and generation is not None:
            return known, generation
        found = self._find(key)
        generation = None if found is None else found.generation()
        return None if found is None or generation is None else (found, generation)

    def _find(self, key: str) -> Record | None:
        """Return the key's record; None: it has none that is of any use."""
        path = self._folder.path_of(key, RECORD)
        fd = self._folder.open(path)
        if fd is None:
            return None
        epoch = self._epoch_in(fd)
        if epoch is None:
            self._files.close(fd)
            return None
        return Record(self._files, path, fd, epoch)

    def count(self, path: str) -> None:
        """Count one clear in the record at this path, if there is one."""
        try:
            fd = self._files.open(path, _APPEND)
        except FileNotFoundError:
            return
        try:
            self._files.write(fd, b".")
            too_long = self._files.fstat(fd).st_size > _LONGEST
        except OSError:
            # No space, for example. Without its record, nothing that is kept is fresh.
            too_long = True
        finally:
            self._files.close(fd)
        if too_long:
            with contextlib.suppress(FileNotFoundError):
                self._files.unlink(path)

    def _epoch_in(self, fd: int) -> int | None:
        try:
            data = read_all(self._files, fd, _SIZE)
        except OSError:  # a directory, say
            return None
        if len(data) < _SIZE or _CHECKSUM.pack(crc32(data[: _HEAD.size])) != data[_HEAD.size :]:
            return None
        name, version, epoch, boot = _HEAD.unpack_from(data)
        of_use = (name, version, boot) == (_NAME, _VERSION, self._boot)
        return int(epoch) if of_use else None

    def _mint(self, key: str) -> None:
        """Make the key's record, if nobody else has just made one."""
        path = self._folder.path_of(key, RECORD)
        head = _HEAD.pack(_NAME, _VERSION, self._epoch(), self._boot)
        with self._folder.draft(head + _CHECKSUM.pack(crc32(head))) as draft:
            try:
                self._files.link(draft, path)
            except FileExistsError:
                if self._find(key) is None:
                    self._files.replace(draft, path)  # damaged, or from before the last boot
