"""Where the lists of a simulated world are kept: in memory, or in a storage of a user's."""

from __future__ import annotations

import itertools
import time
from collections.abc import Hashable
from typing import TYPE_CHECKING, Protocol

from slotcache.protocols import CacheBackend, Entry, Generation, LockProvider, Miss

if TYPE_CHECKING:
    from slotcache.testing.actors import Actor
    from slotcache.testing.world import World

__all__ = ["MemoryStore", "OwnStore", "Store"]


class Store(Protocol):
    """A storage, of which each process has a cache and locks.

    Attributes:
        began: The instant, by its clock, at which the world began.
    """

    began: float

    def open(self) -> tuple[CacheBackend, LockProvider]:
        """Return a process's cache and locks."""

    def state(self) -> Hashable:
        """Return all that later answers depend on."""

    def asked(self, what: str, by: Actor) -> None:
        """Note that somebody is about to call it."""

    def known(self, answer: object) -> object:
        """Return what an actor gets to know by an answer."""

    def pass_time(self, seconds: float) -> None:
        """Let time pass for it."""

    def lives(self) -> bool:
        """Whether there may be an entry that time would end."""

    def may_evict(self, fault: str, /) -> bool:
        """Whether there is anything to be evicted."""

    def evict(self, fault: str) -> None:
        """Lose a record, or only the list in it."""


class MemoryStore:
    """One `MemoryCache` for all, which can be looked into."""

    began = 0.0

    def __init__(self, world: World) -> None:
        epochs = itertools.count(1)
        self._world = world
        self._cache = world.scenario.cache(clock=world, epoch=lambda: next(epochs))
        self._locks = world.scenario.locks(clock=world)

    def open(self) -> tuple[CacheBackend, LockProvider]:
        """As `Store.open`."""
        return self._cache, self._locks

    def state(self) -> Hashable:
        """As `Store.state`."""
        records = self._cache._records
        kept = tuple((key, records[key].generation, records[key].copy) for key in sorted(records))
        return kept, tuple(self._cache._fresh.items())

    def asked(self, what: str, by: Actor) -> None:
        """As `Store.asked`: it is seen in the records."""

    def known(self, answer: object) -> object:
        """As `Store.known`: all of it."""
        return answer

    def pass_time(self, seconds: float) -> None:
        """As `Store.pass_time`: its clock is the world's."""

    def lives(self) -> bool:
        """As `Store.lives`."""
        return any(entry.until > self._world.time for entry in self._cache._fresh.values())

    def may_evict(self, fault: str, /) -> bool:
        """As `Store.may_evict`."""
        if fault == "evict":
            return bool(self._cache._records)
        return any(record.copy is not None for record in self._cache._records.values())

    def evict(self, fault: str) -> None:
        """As `Store.evict`."""
        if fault == "evict":
            self._cache._records.popitem()
            return
        for record in self._cache._records.values():
            record.copy = None
        self._cache._fresh.clear()


class OwnStore:
    """A storage of a user's, into which nobody can look: its state is what it was asked to do."""

    def __init__(self, world: World) -> None:
        assert world.scenario.storage is not None
        self._subject = world.enter(world.scenario.storage())
        self._world = world
        self._epochs: dict[int, int] = {}
        self._asked = 0
        if "a ttl passes" in world.scenario.faults and self._subject.now is time.monotonic:
            raise ValueError(
                "a storage in real time has no ttl pass: give its Subject a clock, or leave the "
                "fault 'a ttl passes' out"
            )
        self.began = self._subject.now()

    def open(self) -> tuple[CacheBackend, LockProvider]:
        """As `Store.open`: an object of the process's own."""
        cache = self._subject.open()
        return cache, cache.locks()

    def state(self) -> Hashable:
        """As `Store.state`."""
        return self._asked

    def asked(self, what: str, by: Actor) -> None:
        """As `Store.asked`: what somebody asks for follows from what it knows."""
        process = self._world.cast.process_of(by)
        self._asked = hash((self._asked, self._world.time, what, process, by.observed))

    def known(self, answer: object) -> object:
        """As `Store.known`; epochs go by the order in which they came up, instants by nothing."""
        if isinstance(answer, Entry):
            return self.known(answer.generation), answer.availability
        if isinstance(answer, Miss):
            return self.known(answer.generation), self.known(answer.copy)
        if isinstance(answer, Generation):
            epoch = self._epochs.setdefault(answer.epoch, len(self._epochs))
            return epoch, answer.clears
        return answer

    def pass_time(self, seconds: float) -> None:
        """As `Store.pass_time`."""
        self._subject.pass_time(seconds)

    def lives(self) -> bool:
        """As `Store.lives`."""
        return True

    def may_evict(self, _fault: str, /) -> bool:
        """As `Store.may_evict`: it has no way to be told."""
        return False

    def evict(self, fault: str) -> None:
        """As `Store.evict`."""
        raise AssertionError(f"nothing evicts here: {fault}")
