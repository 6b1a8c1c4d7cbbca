"""What a forked child must forget: the one global of the library (gunicorn `--preload`).

A child inherits mutexes that a vanished thread may hold, flights that nobody leads,
connections that two processes would share, and memory that no clear of the parent reaches.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class _Forgetful(Protocol):
    def _after_fork(self) -> None:
        """Become as good as new, without waiting for or closing anything of the parent's."""


_registered: weakref.WeakSet[_Forgetful] = weakref.WeakSet()


def forget_after_fork(owner: _Forgetful) -> None:
    """Have `owner._after_fork()` called in every child forked from now on."""
    _registered.add(owner)


def _in_child() -> None:
    for owner in list(_registered):
        owner._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
