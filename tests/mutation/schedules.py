"""Small worlds for mutants: every schedule of them, in a second or so each.

No `test_` in the name: `dev.py mutate` alone runs it, for `tests/spec` does the same
on more and larger worlds.
"""

import logging
from collections.abc import Iterator

import pytest

from slotcache.testing import Scenario, explore
from tests.support.files import FAULTS as FAULTS_OF_FILES
from tests.support.files import FileScenario, explore_files

pytestmark = [
    pytest.mark.one_world("the explorer runs the flow by itself"),
    pytest.mark.timeout(20),
]

SMALL = {
    "two readers and a change": Scenario(),
    "two processes": Scenario(services=2, writers=0),
    "a reader and two changes": Scenario(readers=1, writers=2),
    **{
        f"{fault}, one reader": Scenario(readers=1, faults=frozenset({fault}))
        for fault in ("crash", "fail clear", "fail fill", "fail look", "fail release")
    },
    **{
        f"{fault}, two readers": Scenario(readers=2, writers=0, faults=frozenset({fault}))
        for fault in ("a ttl passes", "crash", "evict", "fail lock", "fail query", "lose lock")
    },
}


@pytest.fixture(autouse=True)
def no_logs() -> Iterator[None]:
    """A failing call is logged, and here calls fail by the thousand."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("small", SMALL.values(), ids=SMALL)
def test_no_schedule_of_a_small_world_breaks_a_promise(small):
    explored = explore(small, most_states=20_000)

    assert explored.counterexample is None, explored.counterexample
    assert explored.complete


@pytest.mark.parametrize(
    "small",
    [
        FileScenario(processes=("read", "change change")),
        FileScenario(processes=("read read",), faults=FAULTS_OF_FILES),
    ],
    ids=["a reader and two changes", "a reader and any fault"],
)
def test_no_schedule_of_file_operations_breaks_a_promise(small):
    explored = explore_files(small)

    assert explored.counterexample is None, explored.counterexample
    assert explored.complete
