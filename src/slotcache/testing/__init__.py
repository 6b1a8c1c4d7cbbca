"""For tests, yours and ours: a service in one line, time by hand, every schedule, the laws."""

from __future__ import annotations

from slotcache.testing.clock import ManualClock
from slotcache.testing.explore import Exploration, explore, replay, sample
from slotcache.testing.laws import Subject, cache_laws, lock_laws
from slotcache.testing.loops import LoopThread
from slotcache.testing.sandbox import Sandbox, sandbox
from slotcache.testing.scenario import FAULTS, Scenario, Violation
from slotcache.testing.timeline import Event, Timeline

__all__ = [
    "FAULTS",
    "Event",
    "Exploration",
    "LoopThread",
    "ManualClock",
    "Sandbox",
    "Scenario",
    "Subject",
    "Timeline",
    "Violation",
    "cache_laws",
    "explore",
    "lock_laws",
    "replay",
    "sample",
    "sandbox",
]
