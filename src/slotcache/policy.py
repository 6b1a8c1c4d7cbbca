"""How long things live and how long anybody waits, in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

__all__ = ["LONGEST", "AvailabilityPolicy", "HoldPolicy"]

LONGEST = 100 * 365.25 * 24 * 60 * 60
"""Seconds that no hold outlives, whatever the policy: a century."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailabilityPolicy:
    """How one list of free places is cached. Frozen, checked when made.

    Attributes:
        key: Name of the list in the cache. Two services on one cache need two keys.
        ttl: Seconds for which an answer may be served, counted from before its query (P2).
        stale_ttl: Seconds after `ttl` for which an expired copy may stand in, marked STALE,
            when no lock can be had or the database fails (P5). 0 forbids stale answers.
        lock_key: Name of the lock; None: the key plus `.lock`.
        lock_timeout: Seconds a reader waits for somebody else's query before it goes past the
            lock (P5). 0 never waits.
        lock_ttl: Seconds after which a lock whose holder vanished is free again; longer than
            the slowest query, or several processes may run it at once (P3, P11).
        min_ttl: Least seconds of life for a list that is about to change by itself because a
            hold ends; it keeps a burst of expiries from becoming a burst of queries.
    """

    key: str = "slots.availability"
    ttl: float = 10.0
    stale_ttl: float = 60.0
    lock_key: str | None = None
    lock_timeout: float = 5.0
    lock_ttl: float = 10.0
    min_ttl: float = 1.0

    def __post_init__(self) -> None:
        _check_name("key", self.key)
        if self.lock_key is not None:
            _check_name("lock_key", self.lock_key)
        _check_seconds(self, "ttl", "lock_ttl", above_zero=True)
        _check_seconds(self, "stale_ttl", "lock_timeout", "min_ttl", above_zero=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldPolicy:
    """How long holds last. Frozen, checked when made.

    Attributes:
        ttl: Seconds a hold lasts unless `create` says otherwise.
        max_lifetime: The longest that any hold may last, in seconds from its creation; at most a
            century.
        lock_wait: Seconds to wait for a slot that others are changing before `Busy` is raised; for
            each of them, if there are several.
    """

    ttl: float = 600.0
    max_lifetime: float = 3600.0
    lock_wait: float = 3.0

    def __post_init__(self) -> None:
        _check_seconds(self, "ttl", "max_lifetime", "lock_wait", above_zero=True)
        if self.max_lifetime > LONGEST:
            raise ValueError(f"max_lifetime={self.max_lifetime:g} is longer than {LONGEST:g} s")
        if self.ttl > self.max_lifetime:
            raise ValueError(
                f"ttl={self.ttl:g} is longer than max_lifetime={self.max_lifetime:g}: "
                "raise max_lifetime, or make ttl shorter"
            )


def seconds(name: str, value: object, *, above_zero: bool) -> float:
    """Return `value` as float seconds, or say what to write instead."""
    least = "above 0" if above_zero else "0 or more"
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = ": write value.total_seconds()" if isinstance(value, timedelta) else ""
        raise TypeError(f"{name} must be a number of seconds, {least}, not {value!r}{hint}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond all floats
        number = math.inf
    if not math.isfinite(number) or number < 0 or (above_zero and number == 0):
        raise ValueError(f"{name} must be a finite number of seconds, {least}, not {value!r}")
    return number


def _check_seconds(policy: object, *names: str, above_zero: bool) -> None:
    for name in names:
        number = seconds(name, getattr(policy, name), above_zero=above_zero)
        object.__setattr__(policy, name, number)


def _check_name(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {value!r}")
    if not value:
        raise ValueError(f"{name} must not be empty: write a name such as 'slots.availability'")
