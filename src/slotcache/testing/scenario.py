"""What is explored: who does what, and what may go wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from slotcache.memory import MemoryCache, MemoryLocks
from slotcache.protocols import CacheBackend, LockProvider
from slotcache.testing.laws import Subject

__all__ = ["FAULTS", "HOLDS", "Choice", "Scenario", "Storage", "Violation"]

FAULTS = frozenset(
    {
        "a ttl passes",
        "crash",
        "evict",
        "evict entry",
        "fail change",
        "fail clear",
        "fail fill",
        "fail lock",
        "fail look",
        "fail query",
        "fail release",
        "grant twice",
        "lose lock",
        "the clock goes back",
    }
)
"""What may strike, once: so much time passes, while an entry lives or a query runs, that entries
end, and locks; an actor never runs again; a record is evicted, or only the list in it; a call
raises, before it took effect or after that, so that its answer is lost (a `change` is a
transaction of the holds); a lock that is held is granted to another one as well, or is lost while
its holder goes on; the clock stands an hour earlier."""

HOLDS = frozenset({"cancel", "confirm", "create"})
"""What an actor may do to holds."""

_FAULTS_OF_MEMORY = frozenset({"evict", "evict entry", "the clock goes back"})

Choice: TypeAlias = tuple[str, str]
"""Who goes next (an actor, or `"world"`), and what happens to it (`"go"`, or a fault)."""

Storage: TypeAlias = Callable[[], AbstractContextManager[Subject[CacheBackend]]]
"""Makes a new and empty storage, and removes it: the same that the laws are run on."""


class Violation(AssertionError):
    """A promise that a schedule broke; its text says which."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Who does what in a world.

    Attributes:
        readers: How many actors read once each.
        writers: How many actors make one change each: commit, then clear.
        clears: How many actors clear every list, though nothing has changed.
        holds: What further actors do to holds, one each (see `HOLDS`): with the managers that
            ship, on a real table in SQLite, from which the lists are read then.
        services: Over how many service objects (processes) on one cache the actors are spread.
        faults: Which of `FAULTS` may strike; one of them does, at most once a schedule.
        blocking: Run the blocking face, in threads.
        storage: A backend of yours, each process with an object of its own; None: in memory, on
            simulated time.
        cache: Makes the cache in memory; a broken twin goes here.
        locks: Makes the locks in memory.
        exclusive: Whether the locks can be trusted: then the judge counts loads (P3).
        clear_first: A broken writer: it clears, then commits.
        prepare: Called with each service made; a broken twin can be put into it here.
    """

    readers: int = 2
    writers: int = 1
    clears: int = 0
    holds: tuple[str, ...] = ()
    services: int = 1
    faults: frozenset[str] = frozenset()
    blocking: bool = False
    storage: Storage | None = None
    cache: Callable[..., MemoryCache] = MemoryCache
    locks: Callable[..., LockProvider] = MemoryLocks
    exclusive: bool = True
    clear_first: bool = False
    prepare: Callable[[Any], None] = lambda _service: None

    @cached_property
    def calls_may_fail(self) -> bool:
        """Whether a fault may bring a backend into trouble."""
        return any(fault.startswith("fail") for fault in self.faults)

    @cached_property
    def changes(self) -> int:
        """How many generations of the list there can be, but for the first."""
        return self.writers + self.clears + len(self.holds)

    def __post_init__(self) -> None:
        if unknown := self.faults - FAULTS:
            raise ValueError(f"there is no fault {min(unknown)!r}: choose from {sorted(FAULTS)}")
        if strange := set(self.holds) - HOLDS:
            raise ValueError(
                f"nobody can {min(strange)!r} a hold here: choose from {sorted(HOLDS)}"
            )
        if self.storage is not None and not callable(self.storage):
            raise TypeError(
                "storage must be a function that makes a new one for each schedule, a context "
                f"manager of a Subject, not {self.storage!r:.80}"
            )
        if self.storage is not None and (foreign := self.faults & _FAULTS_OF_MEMORY):
            raise ValueError(
                f"a storage of yours is not told to have {min(foreign)!r} struck: have another "
                "actor, or its `storage`, do that"
            )
