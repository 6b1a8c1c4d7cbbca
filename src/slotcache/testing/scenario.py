"""What is explored: who does what, and what may go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from slotcache.memory import MemoryCache, MemoryLocks
from slotcache.protocols import LockProvider

__all__ = ["FAULTS", "Choice", "Scenario", "Violation"]

FAULTS = frozenset(
    {
        "a ttl passes",
        "crash",
        "evict",
        "fail clear",
        "fail fill",
        "fail lock",
        "fail look",
        "fail query",
        "fail release",
        "lose lock",
    }
)
"""What may strike, once: an actor never runs again; the record is evicted; so much time passes,
while an entry lives or a query runs, that entries end, and locks; a call raises, before or after
it took effect; the lock is lost while its holder goes on."""

Choice = tuple[str, str]
"""Who goes next (an actor, or `"world"`), and what happens to it (`"go"`, or a fault)."""


class Violation(AssertionError):
    """A promise that a schedule broke; its text is the schedule as a timeline."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Who does what in a world.

    Attributes:
        readers: How many actors read once each.
        writers: How many actors make one change each: commit, then clear.
        services: Over how many service objects (processes) on one cache the readers are spread.
        faults: Which of `FAULTS` may strike; one of them does, at most once a schedule.
        blocking: Run the blocking face, in threads.
        cache: Makes the cache; a broken twin goes here.
        locks: Makes the locks.
        exclusive: Whether the locks can be trusted: then the judge counts loads (P3).
        clear_first: A broken writer: it clears, then commits.
        prepare: Called with each service made; a broken twin can be put into it here.
    """

    readers: int = 2
    writers: int = 1
    services: int = 1
    faults: frozenset[str] = frozenset()
    blocking: bool = False
    cache: Callable[..., MemoryCache] = MemoryCache
    locks: Callable[..., LockProvider] = MemoryLocks
    exclusive: bool = True
    clear_first: bool = False
    prepare: Callable[[Any], None] = lambda _service: None

    @cached_property
    def calls_may_fail(self) -> bool:
        """Whether a fault may bring a backend into trouble."""
        return any(fault.startswith("fail") for fault in self.faults)

    def __post_init__(self) -> None:
        if unknown := self.faults - FAULTS:
            raise ValueError(f"there is no fault {min(unknown)!r}: choose from {sorted(FAULTS)}")
