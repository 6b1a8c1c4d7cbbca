"""What the files of the spec share: every backend in every world."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slotcache import HoldPolicy
from tests.support.backends import KINDS, Backend, Storage, choices
from tests.support.desk import DESKS, Desk, Desks
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


@pytest.fixture(params=DESKS, ids="-".join)
def desk(
    request: pytest.FixtureRequest,
    desks: Desks,
    place_of: Callable[[str], Path | str],
    hold_policy: HoldPolicy,
) -> Iterator[Desk]:
    """A desk on each database with each claim: here always, elsewhere in the long run."""
    with desks.desk(*request.param, place_of=place_of, policy=hold_policy) as desk:
        yield desk
