"""What a fork must not carry over: the one global of the library (gunicorn `--preload`).

A child inherits mutexes that a vanished thread may hold, flights that nobody leads,
connections that two processes would share, and memory that no clear of the parent reaches. What
cannot be put right in the child has to be put away before the fork.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

__all__ = ["forget_after_fork", "prepare_for_fork"]


class _Forgetful(Protocol):
    def _after_fork(self) -> None:
        """Become as good as new, without waiting for or closing anything of the parent's."""


class _Careful(Protocol):
    def _before_fork(self) -> None:
        """Put away what a fork would break, within a bounded time."""

    def _after_fork_in_parent(self) -> None:
        """Go on."""


_forgetful: weakref.WeakSet[_Forgetful] = weakref.WeakSet()
_careful: set[weakref.ref[_Careful]] = set()
_put_away: dict[int, list[_Careful]] = {}  # by the thread that forks


def forget_after_fork(owner: _Forgetful) -> None:
    """Have `owner._after_fork()` called in every child forked from now on."""
    _forgetful.add(owner)


def prepare_for_fork(owner: _Careful) -> None:
    """Have `_before_fork()` and `_after_fork_in_parent()` called around every fork from now on."""
    _careful.add(weakref.ref(owner, _careful.discard))


def _before() -> None:
    # Copied in one step, since other threads may add some meanwhile; and kept until after the
    # fork, so that no collector of garbage closes anything of theirs in the midst of it.
    owners = [owner for reference in _careful.copy() if (owner := reference()) is not None]
    _put_away[threading.get_ident()] = owners
    for owner in owners:
        owner._before_fork()


def _in_parent() -> None:
    for owner in _put_away.pop(threading.get_ident(), []):
        owner._after_fork_in_parent()


def _in_child() -> None:
    for owner in list(_forgetful):
        owner._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
