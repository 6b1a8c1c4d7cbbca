"""Locks in a directory, for all processes of one host.

Who holds a lock has its file locked (flock), which ends with the process, however that ends. A
stopped process does not end: so the file also bears a deadline, and past it others replace the
file by theirs. Whoever locked a file that is no longer in its place holds nothing.

A file is complete before it can be seen, and is replaced or removed only by who holds the guard,
a lock of the directory itself that lasts for two system calls. Nobody waits for the guard.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

try:
    from filelock import lock_descriptor, unlock_descriptor
except ImportError as error:
    raise ImportError(
        "slotcache.file needs filelock, 3.30 or later: pip install 'slotcache[file]'"
    ) from error

from slotcache._fork import forget_after_fork
from slotcache.file.folder import LOCK, FileOperations, Folder, host_clock, identity, read_all
from slotcache.protocols import Clock, Lock

__all__ = ["FileLocks"]

# The deadline, by the host's clock, and the token.
_HOLDER = struct.Struct("<d32s")


class FileLocks:
    """A `LockProvider` for all processes of one host that share a directory.

    A lock ends with its release, by anybody who has its value; with the process that holds it;
    and past its `ttl`, if that process is stopped. A forked child holds none of its parent's.

    Args:
        directory: Its path, as for `FileCache`.
        clock: Where the time comes from; None: the host's boot clock.
        files: What stands in for the module `os`, in tests.

    Raises:
        ValueError: The directory is not private, is none, or is shared by several hosts.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        files: FileOperations = os,
    ) -> None:
        self._files = files
        self._host_now = host_clock(clock)
        self._folder = Folder(directory, files)
        self._held: dict[Lock, int] = {}
        # All descriptors that are, or may become, locked: a child must not keep them open.
        self._open: dict[int, tuple[int, int]] = {}
        self.sweep()
        forget_after_fork(self)

    def _after_fork(self) -> None:
        # Closing is enough, and no more than that: unlocking would unlock the parent's.
        for fd in list(self._open):
            self._close(fd, unlock=False)
        self._held = {}

    def acquire(self, name: str, *, ttl: float) -> Lock | None:
        """Return the lock, held for at most `ttl` seconds; None: somebody else holds it."""
        path = self._folder.path_of(name, LOCK)
        with self._opened(path) as other:
            if other is not None and not self._is_abandoned(other):
                return None
            lock = Lock(name, secrets.token_hex(16))
            deadline = self._host_now() + ttl
            with self._folder.draft(_HOLDER.pack(deadline, lock.token.encode())) as draft:
                own = self._put(draft, path, other)
        if own is None:
            return None
        self._held[lock] = own
        return lock

    def release(self, lock: Lock) -> bool:
        """Give the lock back; False: it had expired, or somebody else holds it by now."""
        fd = self._held.pop(lock, None)
        try:
            return self._remove(lock)
        except OSError:
            return False
        finally:
            if fd is not None:
                self._close(fd)

    def close(self) -> None:
        """Give back all locks that were acquired through this object."""
        for lock in list(self._held):
            fd = self._held.pop(lock, None)
            if fd is not None:
                self._close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _is_abandoned(self, fd: int) -> bool:
        """Whether the holder's process is gone, or its time is over."""
        return lock_descriptor(fd, blocking=False) or self._is_over(fd)

    def _is_over(self, fd: int) -> bool:
        """Whether the holder's deadline is past; asked once of each descriptor."""
        deadline, _ = self._holder(fd)
        return self._host_now() >= deadline

    def _holder(self, fd: int) -> tuple[float, str]:
        """Return the deadline in a lock's file, and whose it is."""
        data = read_all(self._files, fd, _HOLDER.size)
        if len(data) < _HOLDER.size:  # damaged: as long as it is locked, it is held
            return math.inf, ""
        deadline, token = _HOLDER.unpack(data)
        return deadline, token.decode("ascii", "replace")

    def _put(self, draft: str, path: str, other: int | None) -> int | None:
        """Lock a draft and put it in its place; None: somebody else was first."""
        own = self._folder.open(draft)
        if own is None:
            return None
        self._register(own)
        placed = False
        try:
            lock_descriptor(own, blocking=False)
            placed = (
                self._linked(draft, path) if other is None else self._replaced(draft, path, other)
            )
        finally:
            if not placed:
                self._close(own)
        return own if placed else None

    def _linked(self, draft: str, path: str) -> bool:
        try:
            self._files.link(draft, path)
        except FileExistsError:
            return False
        return True

    def _replaced(self, draft: str, path: str, other: int) -> bool:
        if self._files.fstat(other).st_nlink == 0:  # given back since it was opened
            return self._linked(draft, path)
        with self._guard() as guarded:
            # Its holder is gone, before its time: nobody else will replace what we have locked.
            early = lock_descriptor(other, blocking=False) and not self._is_over(other)
            if not (guarded or early):
                return False
            if not self._is_in_place(other, path):
                return False
            self._files.replace(draft, path)
            return True

    def _remove(self, lock: Lock) -> bool:
        path = self._folder.path_of(lock.name, LOCK)
        with self._opened(path) as fd:
            if fd is None:
                return False
            deadline, token = self._holder(fd)
            if token != lock.token:
                return False
            with self._guard() as guarded:
                # Without the guard the file stays, unlocked, and the next to ask replaces it.
                if guarded and self._is_in_place(fd, path):
                    self._files.unlink(path)
            return self._host_now() < deadline

    def sweep(self) -> None:
        """Remove the files of holders that were killed, where nobody came to replace them."""
        for path in self._folder.idle(LOCK):
            with contextlib.suppress(OSError), self._opened(path) as fd, self._guard() as guarded:
                if fd is None or not guarded or not self._is_abandoned(fd):
                    continue
                if self._is_in_place(fd, path):
                    self._files.unlink(path)

    def _is_in_place(self, fd: int, path: str) -> bool:
        try:
            placed, opened = self._files.stat(path), self._files.fstat(fd)
        except FileNotFoundError:
            return False
        return identity(placed) == identity(opened)

    @contextmanager
    def _opened(self, path: str) -> Iterator[int | None]:
        fd = self._folder.open(path)
        if fd is None:
            yield None
            return
        self._register(fd)
        try:
            yield fd
        finally:
            self._close(fd)

    @contextmanager
    def _guard(self) -> Iterator[bool]:
        """Be the only one who replaces or removes lock files; False: somebody else is."""
        fd = self._files.open(self._folder.path, os.O_RDONLY)
        self._register(fd)
        try:
            yield lock_descriptor(fd, blocking=False)
        finally:
            self._close(fd)

    def _register(self, fd: int) -> None:
        self._open[fd] = identity(self._files.fstat(fd))

    def _close(self, fd: int, *, unlock: bool = True) -> None:
        """Unlock and close: a child that was forked a moment ago may still have it open."""
        ours = self._open.pop(fd, None)
        with contextlib.suppress(OSError):
            # Unless somebody closed every descriptor of this process, as daemons do.
            if identity(self._files.fstat(fd)) == ours:
                if unlock:
                    unlock_descriptor(fd)
                self._files.close(fd)
