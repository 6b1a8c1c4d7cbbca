"""The directory that the processes of one host share: whose it is, its files, and what goes.

    NAME.record   a key's generation           NAME.list   the value kept for it
    NAME.lock     who holds a lock             ANY.draft   what is being written

NAME is a digest, so any key stays inside the directory and apart from every other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from slotcache.protocols import Clock

__all__ = ["FileOperations", "Folder", "boot_id", "host_clock", "identity", "read_all"]

DRAFT, LIST, LOCK, RECORD = ".draft", ".list", ".lock", ".record"

IDLE = 3600.0
"""Seconds after which nobody is taken to want a file any more."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a planted FIFO must not block
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MOUNTS = Path("/proc/self/mountinfo")
_SHARED_BY_HOSTS = (
    "9p afs beegfs ceph cifs davfs fuse.ceph fuse.glusterfs fuse.gcsfuse fuse.rclone fuse.s3fs "
    "fuse.sshfs gfs2 glusterfs lustre ncpfs nfs nfs4 ocfs2 orangefs smb3 smbfs virtiofs"
)


class FileOperations(Protocol):
    """What is asked of `os`; the tests stop a process between any two of these."""

    def open(self, path: str, flags: int, mode: int = ..., /) -> int: ...
    def close(self, fd: int, /) -> None: ...
    def read(self, fd: int, length: int, /) -> bytes: ...
    def write(self, fd: int, data: Any, /) -> int: ...
    def fstat(self, fd: int, /) -> os.stat_result: ...
    def stat(self, path: str, /) -> os.stat_result: ...
    def utime(self, path: str, times: tuple[float, float], /) -> None: ...
    def link(self, src: str, dst: str, /) -> None: ...
    def replace(self, src: str, dst: str, /) -> None: ...
    def unlink(self, path: str, /) -> None: ...
    def listdir(self, path: str, /) -> list[str]: ...


def host_clock(clock: Clock | None) -> Callable[[], float]:
    """Return the clock that all processes of this host read alike, or the one that is given.

    The system's counts from the boot, also while the machine sleeps, and is never set.
    """
    if clock is not None:
        return clock.now
    boot = time.CLOCK_BOOTTIME
    return lambda: time.clock_gettime(boot)


def boot_id() -> bytes:
    """Return 16 bytes that are others after the next boot, when the boot clock starts again."""
    try:
        return UUID(_BOOT_ID.read_text(encoding="ascii").strip()).bytes
    except (OSError, ValueError):
        raise NotImplementedError(
            f"files can be shared on Linux only, which has {_BOOT_ID}: use a MemoryCache here"
        ) from None


class Folder:
    """A private directory on a local file system; made if it is not there.

    Args:
        directory: Its path.
        files: The module `os`, or what stands in for it.

    Raises:
        ValueError: Others may write into it, it is no directory, or hosts share it.
    """

    def __init__(self, directory: str | os.PathLike[str], files: FileOperations) -> None:
        if not isinstance(directory, str | os.PathLike):
            raise TypeError(f"directory must be a path, not {directory!r:.80}")
        if not os.fspath(directory):
            raise ValueError(
                "directory must not be empty: write a path, such as /var/lib/shop/cache"
            )
        self.path = os.path.realpath(directory)
        self.files = files
        self._make()
        _refuse_what_others_write(self.path)
        _refuse_what_hosts_share(self.path)
        self.sweep()

    def path_of(self, name: str, suffix: str) -> str:
        """Return the path of a key's, or a lock's, file."""
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()
        return f"{self.path}{os.sep}{digest}{suffix}"

    def open(self, path: str) -> int | None:
        """Open a file of the folder for reading; None: there is none."""
        try:
            return self.files.open(path, _READ)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            self.files.unlink(path)  # a symbolic link is nothing of ours
            return None

    @contextmanager
    def draft(self, content: bytes) -> Iterator[str]:
        """Write a new file and yield its path, to be linked or renamed; at the end it is gone."""
        path = f"{self.path}{os.sep}{secrets.token_hex(16)}{DRAFT}"
        try:
            fd = self.files.open(path, _NEW, 0o600)
        except FileNotFoundError:  # somebody removed the whole directory
            self._make()
            fd = self.files.open(path, _NEW, 0o600)
        try:
            try:
                left = memoryview(content)
                while left:
                    left = left[self.files.write(fd, left) :]
            finally:
                self.files.close(fd)
            yield path
        finally:
            with contextlib.suppress(OSError):
                self.files.unlink(path)

    def names(self, suffix: str) -> list[str]:
        """Return the paths of all files with this suffix."""
        try:
            found = self.files.listdir(self.path)
        except FileNotFoundError:
            return []
        return [f"{self.path}{os.sep}{name}" for name in found if name.endswith(suffix)]

    def idle(self, suffix: str, seconds: float = IDLE) -> list[str]:
        """Return those that were last touched so many seconds ago, or longer."""
        before = time.time() - seconds
        found = []
        for path in self.names(suffix):
            with contextlib.suppress(OSError):
                if self.files.stat(path).st_mtime < before:
                    found.append(path)
        return found

    def sweep(self) -> None:
        """Remove what nobody wants: drafts of killed writers, lists and records out of use.

        A list's `mtime` is the instant up to which somebody may want it. Removing one too many
        costs a query.
        """
        for path in self.idle(DRAFT) + self.idle(LIST, 0.0):
            self._remove(path)
        wanted = {path.removesuffix(LIST) for path in self.names(LIST)}
        for path in self.idle(RECORD):
            if path.removesuffix(RECORD) not in wanted:
                self._remove(path)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(OSError):
            self.files.unlink(path)

    def _make(self) -> None:
        try:
            Path(self.path).mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ValueError(f"{self.path} is no directory: give the path of one") from None


def identity(found: os.stat_result) -> tuple[int, int]:
    """Return what tells an open file from all others."""
    return found.st_dev, found.st_ino


def read_all(files: FileOperations, fd: int, size: int) -> bytes:
    """Return the next `size` bytes of a file, or what there is of them."""
    parts = []
    while size > 0 and (part := files.read(fd, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _refuse_what_others_write(path: str) -> None:
    found = Path(path).stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(
            f"others may write into {path}: give a directory of this user's own, "
            "which is made, with mode 0700, if it is not there"
        )


def _refuse_what_hosts_share(path: str) -> None:
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    kind = file_system(os.path.realpath(path), mounts)
    if kind in _SHARED_BY_HOSTS.split():
        raise ValueError(
            f"{path} is on a file system that hosts share ({kind}), where neither locks nor the "
            "boot clock can be relied on: give a local directory, or use Redis"
        )


def file_system(path: str, mounts: str) -> str | None:
    """Return the type of the file system that a path is on, by the text of `mountinfo`."""
    longest, found = -1, None
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        fields = mount.split(" ")
        if len(fields) < 5:
            continue
        # The kernel writes blanks and backslashes of a path in octal.
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        inside = point == "/" or path == point or path.startswith(point + "/")
        if inside and len(point) >= longest:
            longest, found = len(point), source.partition(" ")[0]
    return found
