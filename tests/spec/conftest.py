"""What the files of the spec share: every backend in every world."""

from collections.abc import Iterator

import pytest

from tests.support.backends import KINDS, Backend, Storage, choices
from tests.support.worlds import Worlds


@pytest.fixture(scope="session", params=choices(*KINDS))
def backend(request: pytest.FixtureRequest, worlds: Worlds) -> Backend:
    """Each kind of cache in each world: it opens empty storages, one for each example."""
    kind, world = request.param
    server = request.getfixturevalue("redis_server") if kind == "redis" else None
    return Backend(kind, world, worlds, server)


@pytest.fixture
def storage(backend: Backend) -> Iterator[Storage]:
    """An empty storage of each kind in each world, on manual time."""
    with backend.opened() as storage:
        yield storage


@pytest.fixture
def memory(worlds: Worlds) -> Backend:
    """A cache in memory in the blocking world: for broken twins of what all have in common."""
    return Backend("memory", "blocking", worlds)
