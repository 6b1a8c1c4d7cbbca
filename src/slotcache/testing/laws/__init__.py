"""The laws of caches and locks, for whoever writes a backend to run on it.

A law is a function of one argument, a `Subject`: a storage that is new and empty, and the time
that passes for it. It raises `AssertionError`, saying what it saw, if the backend breaks it. The
laws ask for what the ports promise (`slotcache.protocols`) and for nothing beyond: a backend may
forget a list at any clear, or keep it as a copy that covers no later look.

In real time a law expects only what is true on the slowest machine: that something is over after
a wait, never that it is not over yet. What must not end meanwhile lives ten minutes.
"""

from __future__ import annotations

from slotcache.testing.laws import generations, lists, locks
from slotcache.testing.laws.subject import Subject

__all__ = ["Subject", "cache_laws", "lock_laws"]

cache_laws = (*lists.laws, *generations.laws)
"""What a `CacheBackend` must obey. Run `lock_laws` on its `locks()` as well."""

lock_laws = locks.laws
"""What a `LockProvider` must obey."""
