"""The laws, on every backend that ships; and on broken ones, which they must catch."""

from contextlib import ExitStack, closing
from functools import partial
from itertools import cycle

import pytest

from slotcache.file import FileCache, FileLocks
from slotcache.memory import MemoryCache, MemoryLocks
from slotcache.redis import RedisCache
from slotcache.testing import ManualClock, Subject, cache_laws, lock_laws
from tests.support.broken import MISTAKES
from tests.support.clients import CLIENTS, WORLDS
from tests.support.elsewhere import Elsewhere
from tests.support.thorough import THOROUGH

each_cache_law = pytest.mark.parametrize("law", cache_laws, ids=lambda law: law.__name__)
each_lock_law = pytest.mark.parametrize("law", lock_laws, ids=lambda law: law.__name__)


@pytest.fixture(params=["manual time", "real time"])
def clock(request):
    return ManualClock() if request.param == "manual time" else None


def subject(clock, open_):
    if clock is None:
        return Subject(open_)
    return Subject(open_, now=clock.now, pass_time=clock.advance)


@pytest.fixture
def closed_later():
    with ExitStack() as stack:
        yield lambda backend: stack.enter_context(closing(backend))


@pytest.fixture(scope="module")
def elsewhere():
    with closing(Elsewhere()) as process:
        yield process


@each_cache_law
def test_a_cache_in_memory_obeys(law, clock):
    cache = MemoryCache(clock=clock)
    law(subject(clock, lambda: cache))


@each_lock_law
def test_locks_in_memory_obey(law, clock):
    locks = MemoryLocks(clock=clock)
    law(subject(clock, lambda: locks))


@each_cache_law
def test_a_cache_in_files_obeys(law, clock, tmp_path, closed_later):
    law(subject(clock, lambda: closed_later(FileCache(tmp_path, clock=clock))))


@each_lock_law
def test_locks_in_files_obey(law, clock, tmp_path, closed_later):
    law(subject(clock, lambda: closed_later(FileLocks(tmp_path, clock=clock))))


@each_cache_law
def test_a_cache_in_files_obeys_in_two_processes(law, tmp_path, elsewhere, closed_later):
    here_and_there = cycle([FileCache, partial(elsewhere.make, FileCache)])
    law(Subject(lambda: closed_later(next(here_and_there)(tmp_path))))


@each_lock_law
def test_locks_in_files_obey_in_two_processes(law, tmp_path, elsewhere, closed_later):
    here_and_there = cycle([FileLocks, partial(elsewhere.make, FileLocks)])
    law(Subject(lambda: closed_later(next(here_and_there)(tmp_path))))


BLOCKING = CLIENTS if THOROUGH else ("by URL", "RESP3, texts", "a cluster")
WAYS = [
    *[("blocking", client) for client in BLOCKING],
    *[("asyncio", client) for client in ("RESP3, texts", "a cluster")],
    ("uvloop", "by URL, RESP3"),
]


@pytest.fixture(scope="module", params=WAYS, ids=", ".join)
def way(request):
    """One of the worlds, and what is given there for the URL of a server."""
    name, client = request.param
    with WORLDS[name]() as world:
        yield world, client


@pytest.fixture
def redis_opened(way, redis_server, redis_cluster, redis_prefix, closed_later, unhurried):
    """Opens a cache or locks on a real server, as one kind of client reaches it."""
    world, client = way
    server = redis_cluster if "cluster" in client else redis_server
    address = CLIENTS[client](world, server.url)

    def opened(kind):
        return closed_later(getattr(world, kind)(address, prefix=redis_prefix))

    yield opened
    if not isinstance(address, str):
        world.close(address)


@each_cache_law
def test_a_cache_in_redis_obeys(law, redis_opened):
    law(Subject(lambda: redis_opened("cache")))


@each_lock_law
def test_locks_in_redis_obey(law, redis_opened):
    law(Subject(lambda: redis_opened("locks")))


@pytest.fixture
def in_two_worlds(redis_server, redis_prefix, unhurried):
    """Opens the same one time in the blocking world, and one time on asyncio."""
    with ExitStack() as stack:
        worlds = cycle([stack.enter_context(WORLDS[each]()) for each in ("blocking", "asyncio")])

        def opened(kind):
            made = getattr(next(worlds), kind)
            return stack.enter_context(closing(made(redis_server.url, prefix=redis_prefix)))

        yield opened


@each_cache_law
def test_a_cache_in_redis_obeys_in_two_worlds(law, in_two_worlds):
    law(Subject(lambda: in_two_worlds("cache")))


@each_lock_law
def test_locks_in_redis_obey_in_two_worlds(law, in_two_worlds):
    law(Subject(lambda: in_two_worlds("locks")))


@each_cache_law
def test_a_cache_in_redis_obeys_in_two_processes(
    law, redis_server, redis_prefix, elsewhere, closed_later, unhurried
):
    here_and_there = cycle([RedisCache, partial(elsewhere.make, RedisCache)])
    law(Subject(lambda: closed_later(next(here_and_there)(redis_server.url, prefix=redis_prefix))))


@pytest.mark.parametrize(
    ("law", "opened"),
    [
        pytest.param(law, opened, id=f"{name} breaks {law.__name__}")
        for law, name, opened in MISTAKES
    ],
)
def test_a_law_catches(law, opened):
    clock = ManualClock()
    with pytest.raises(AssertionError):
        law(subject(clock, opened(clock)))


def test_no_law_is_one_that_nothing_can_break():
    assert {law for law, _, _ in MISTAKES} == {*cache_laws, *lock_laws}
