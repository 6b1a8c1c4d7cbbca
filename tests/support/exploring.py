"""What the spec explores, and how it reports that."""

from __future__ import annotations

import logging
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from slotcache.file import FileCache
from slotcache.redis import RedisCache
from slotcache.testing import Exploration, Scenario, Subject, explore
from tests.support.twins import TWINS

__all__ = ["counts", "empty_storage", "found", "no_logs", "no_schedule_breaks"]

Record = Callable[[str, object], None]


def no_schedule_breaks(record: Record, title: str, scenario: Scenario) -> None:
    """Run a scenario through every schedule; fail with the timeline of one that breaks it."""
    with no_logs():
        explored = explore(scenario)
    record("explored", f"{title}: {counts(explored)}")
    assert explored.counterexample is None, explored.counterexample
    assert explored.complete


def counts(explored: Exploration) -> str:
    """Say how much that was."""
    how = "all" if explored.complete else "some"
    return f"{how} {explored.schedules:,} schedules, {explored.states:,} states"


@contextmanager
def no_logs() -> Iterator[None]:
    """A failing call is logged, and here calls fail by the hundred thousand."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def found(record: Record, name: str) -> None:
    """Explore a broken twin, and see to it that what it breaks is found."""
    twin = TWINS[name]
    with no_logs():
        explored = explore(twin.scenario, most_turns=twin.most_turns)
    record("explored", f"found in the broken twin, {name}: {counts(explored)}")
    assert explored.counterexample is not None
    assert str(explored.counterexample.broken).endswith(twin.breaks), explored.counterexample


@contextmanager
def empty_storage(url: str | None) -> Iterator[Subject[Any]]:
    """Yield an empty directory, or, by the URL of a real server, some keys there."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        prefix = f"test-{uuid.uuid4().hex}"

        def opened() -> Any:
            cache: Any = RedisCache(url, prefix=prefix) if url else FileCache(directory)
            return stack.enter_context(closing(cache))

        yield Subject(opened)
