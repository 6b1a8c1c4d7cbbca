"""A cache and locks in a directory: for all processes of one host, without a server."""

from __future__ import annotations

from slotcache.file.cache import FileCache
from slotcache.file.locks import FileLocks

__all__ = ["FileCache", "FileLocks"]
