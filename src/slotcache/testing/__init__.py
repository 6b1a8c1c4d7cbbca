"""For tests, yours and ours: a whole service in one line, time by hand, every schedule."""

from __future__ import annotations

from slotcache.testing.clock import ManualClock
from slotcache.testing.explore import Exploration, explore, sample
from slotcache.testing.sandbox import Sandbox, sandbox
from slotcache.testing.scenario import FAULTS, Scenario, Violation

__all__ = [
    "FAULTS",
    "Exploration",
    "ManualClock",
    "Sandbox",
    "Scenario",
    "Violation",
    "explore",
    "sample",
    "sandbox",
]
