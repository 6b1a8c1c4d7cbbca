"""What the service is: five sentences, and what follows from them."""

import threading
import uuid
from contextlib import closing
from datetime import date

import pytest

from slotcache import (
    AvailabilityPolicy,
    BackendError,
    HoldPolicy,
    Source,
)
from slotcache.memory import MemoryCache
from slotcache.testing import ManualClock
from tests.support.shelf import NoLocks, ScopedShelf, Shelf, left
from tests.support.threads import Counted, Gate, spawn, together
from tests.support.worlds import Worlds


@pytest.fixture(params=Worlds.for_services)
def world(request, worlds):
    with closing(worlds.open(request.param)) as world:
        yield world


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def shelf():
    return Shelf()


@pytest.fixture
def service(world, shelf, clock):
    return world.service(shelf, clock=clock)


# The five.


def test_the_first_call_queries_and_caches(service, shelf):
    availability = service.get_availability()

    assert left(availability) == 10
    assert shelf.loads == 1
    assert service.get_availability() is availability


def test_calls_within_the_ttl_do_not_query(service, shelf, clock):
    service.get_availability()
    clock.advance(9.999)
    service.get_availability()
    assert shelf.loads == 1

    clock.advance(0.001)
    service.get_availability()
    assert shelf.loads == 2


def test_concurrent_callers_cause_one_query(world, shelf):
    service = world.service(shelf, locks=NoLocks())
    boarded = service._refill._flights.board = Counted(service._refill._flights.board)
    gate = shelf.during_load = Gate()

    readers = [spawn(service.get_availability) for _ in range(30)]
    boarded.wait_for(30)
    gate.open()

    lists = [reader.result(20) for reader in readers]
    assert shelf.loads == 1
    assert all(each is lists[0] for each in lists)


def test_clearing_makes_the_next_call_query(service, shelf):
    service.get_availability()
    shelf.remaining = 9

    assert service.clear_availability_cache() is True
    assert left(service.get_availability()) == 9
    assert shelf.loads == 2


def test_the_list_follows_every_hold_change(world, clock):
    with world.sqlite(":memory:", clock=clock) as slots:
        slots.create_tables()
        slots.add([(1, 10)])
        service = world.service(slots, clock=clock)
        holds = world.holds(slots, on_change=service.clear_availability_cache)

        def free():
            return service.get_availability().get(1).remaining

        assert free() == 10
        kept, given_up, forgotten = (holds.create(1, quantity) for quantity in (1, 2, 3))
        assert free() == 4
        holds.cancel(given_up.id)
        assert free() == 6
        holds.confirm(kept.id)
        assert free() == 6
        clock.advance(600)
        assert free() == 9
        assert holds.expire_due() == 1
        assert free() == 9
        holds.cancel(kept.id)
        assert free() == 10
        assert holds.get(forgotten.id).state.value == "expired"


# The race that the library exists for.


def test_a_clear_during_a_fill_is_not_lost(service, shelf):
    def sell_one_meanwhile():
        shelf.during_load = lambda: None
        shelf.remaining = 9
        service.clear_availability_cache()

    shelf.during_load = sell_one_meanwhile

    assert left(service.get_availability()) == 10  # its read began before the change
    assert left(service.get_availability()) == 9
    assert shelf.loads == 2


def test_a_reader_does_not_join_a_query_from_before_a_change(world, shelf):
    service = world.service(shelf)
    boarded = service._refill._flights.board = Counted(service._refill._flights.board)
    gate = shelf.during_load = Gate()
    early = spawn(service.get_availability)
    gate.wait_for_somebody()

    shelf.remaining = 9
    service.clear_availability_cache()
    late = spawn(service.get_availability)
    boarded.wait_for(2)
    gate.open()

    assert left(early.result(20)) == 10
    assert left(late.result(20)) == 9
    assert shelf.loads == 2


def test_a_storm_of_changes_starves_no_reader(world, shelf):
    service = world.service(shelf, policy=AvailabilityPolicy(lock_timeout=20))
    stop = threading.Event()

    def change_for_ever():
        while not stop.is_set():
            service.clear_availability_cache()

    storm = spawn(change_for_ever)
    try:
        readings = together(16, service.read)
    finally:
        stop.set()
    storm.result(20)
    assert {reading.source for reading in readings} <= {Source.CACHED, Source.LOADED}


# What a read tells.


def test_a_reading_tells_source_age_and_version(service, clock):
    loaded = service.read()
    clock.advance(4)
    cached = service.read()

    assert (loaded.source, loaded.age) == (Source.LOADED, 0)
    assert (cached.source, cached.age) == (Source.CACHED, 4)
    assert cached.version == loaded.version == cached.availability.etag


def test_age_counts_from_before_the_query(service, shelf, clock):
    shelf.during_load = lambda: clock.advance(3)

    assert service.read().age == 3
    assert service.read().age == 3
    clock.advance(7)
    service.read()
    assert shelf.loads == 2


def test_the_version_stays_when_a_reload_finds_the_same(service, clock):
    before = service.read()
    clock.advance(10)
    after = service.read()

    assert after.source is Source.LOADED
    assert after.version == before.version


def test_a_list_that_changes_by_itself_lives_no_longer_than_that(service, shelf, clock):
    shelf.valid_for = 4.0
    service.read()
    clock.advance(3.999)
    service.read()
    assert shelf.loads == 1

    clock.advance(0.001)
    service.read()
    assert shelf.loads == 2


@pytest.mark.parametrize("soon", [0.0, 0.001, 0.5])
def test_a_list_that_changes_very_soon_still_lives_for_min_ttl(service, shelf, clock, soon):
    shelf.valid_for = soon
    service.read()
    clock.advance(0.999)
    service.read()
    assert shelf.loads == 1

    clock.advance(0.001)
    service.read()
    assert shelf.loads == 2


def test_no_life_is_longer_than_the_ttl(service, shelf, clock):
    shelf.valid_for = 3_600.0
    service.read()
    clock.advance(10)
    service.read()
    assert shelf.loads == 2


def test_a_hit_takes_no_lock(world, shelf, clock):
    cache = MemoryCache(clock=clock)
    service = world.service(shelf, cache=cache, clock=clock)
    service.read()

    class Untouchable:
        def __enter__(self):
            raise AssertionError("a hit took a lock")

        def __exit__(self, *_):
            raise AssertionError

    cache._mutex = cache._locks._mutex = Untouchable()
    assert service.read().source is Source.CACHED
    assert left(service.get_availability()) == 10


# A cache in trouble: `get_availability` looks by itself, and `read` is in test_trouble.py.


class Failing(MemoryCache):
    """Fails at one of its methods, and counts how often it is read."""

    def __init__(self, method, clock):
        super().__init__(clock=clock)
        self.reads = 0
        self._method = method

    def read(self, key):
        self.reads += 1
        self._fail_at("read")
        return super().read(key)

    def clear(self, key):
        self._fail_at("clear")
        super().clear(key)

    def _fail_at(self, method):
        if method == self._method:
            raise ConnectionError(method)


def test_a_cache_that_failed_is_left_alone_by_get_availability_too(world, shelf, clock):
    cache = Failing("read", clock)
    with closing(world.service(shelf, cache=cache, clock=clock)) as service:
        lists = [service.get_availability() for _ in range(3)]

        assert [left(each) for each in lists] == [10] * 3
        assert cache.reads == 1


def test_a_cache_that_owes_a_clear_is_not_believed_by_get_availability_either(world, shelf, clock):
    cache = Failing("clear", clock)
    with closing(world.service(shelf, cache=cache, clock=clock)) as service:
        service.get_availability()
        shelf.remaining = 9

        assert service.clear_availability_cache() is False
        assert left(service.get_availability()) == 9


# Scopes.


@pytest.fixture
def airports():
    return ScopedShelf()


def test_each_scope_is_a_list_of_its_own(world, airports, clock):
    service = world.service(airports, clock=clock)
    for scope in ("JFK", "EWR", None, "JFK", "EWR", None):
        service.read(scope)

    assert airports.scopes == ["JFK", "EWR", None]


def test_clearing_a_scope_clears_it_and_the_whole_list_and_no_other(world, airports, clock):
    service = world.service(airports, clock=clock)
    for scope in ("JFK", "EWR", None):
        service.read(scope)
    airports.scopes.clear()

    service.clear_availability_cache("JFK")
    for scope in ("JFK", "EWR", None):
        service.read(scope)
    assert airports.scopes == ["JFK", None]


def test_clearing_without_a_scope_clears_every_list_of_the_cache(world, airports, clock):
    cache = MemoryCache(clock=clock)
    service = world.service(airports, cache=cache, clock=clock)
    other_shelf = Shelf()
    policy = AvailabilityPolicy(key="other")
    other = world.service(other_shelf, cache=cache, policy=policy, clock=clock)
    for scope in ("JFK", "EWR", None):
        service.read(scope)
    other.read()
    airports.scopes.clear()

    service.clear_availability_cache()
    for scope in ("JFK", "EWR", None):
        service.read(scope)
    other.read()
    assert airports.scopes == ["JFK", "EWR", None]
    assert other_shelf.loads == 2


def test_a_table_without_scopes_clears_its_own_list_alone(world, airports, clock):
    cache = MemoryCache(clock=clock)
    service = world.service(airports, cache=cache, clock=clock)
    policy = AvailabilityPolicy(key="other")
    other = world.service(Shelf(), cache=cache, policy=policy, clock=clock)
    service.read("JFK")

    other.clear_availability_cache()
    assert service.read("JFK").source is Source.CACHED


@pytest.mark.parametrize("call", ["read", "get_availability", "clear_availability_cache"])
def test_a_scope_that_no_change_would_clear_is_refused(world, airports, call):
    by_text = world.service(airports)
    for scope in (5, b"JFK", uuid.uuid4(), date(2013, 11, 27), True):
        with pytest.raises(TypeError, match=r"a scope of this table is str, not"):
            getattr(by_text, call)(scope)

    without = world.service(Shelf())
    with pytest.raises(ValueError, match="this table has no scopes: leave the scope 'JFK' out"):
        getattr(without, call)("JFK")


def test_a_scope_of_an_int_table_must_be_an_int(world):
    shelf = ScopedShelf()
    shelf.scope_type = int
    service = world.service(shelf)

    service.read(5)
    for scope in ("5", True, 5.0):
        with pytest.raises(TypeError, match="a scope of this table is int"):
            service.clear_availability_cache(scope)


def test_the_keys_and_locks_carry_the_scope_and_its_type(world, airports, clock):
    cache = MemoryCache(clock=clock)
    asked = []

    class Listening:
        def acquire(self, name, *, ttl):
            asked.append((name, ttl))
            return cache.locks().acquire(name, ttl=ttl)

        def release(self, lock):
            return cache.locks().release(lock)

    service = world.service(airports, cache=cache, locks=Listening(), clock=clock)
    service.read()
    service.read("JFK")

    assert asked == [
        ("slots.availability.lock", 10.0),
        ("slots.availability.lock:str:JFK", 10.0),
    ]
    assert list(cache._records) == ["slots.availability", "slots.availability:str:JFK"]


def test_two_services_on_one_cache_share_lists_and_clears(world, shelf, clock):
    cache = MemoryCache(clock=clock)
    one, two = (world.service(shelf, cache=cache, clock=clock) for _ in range(2))
    one.read()

    assert two.read().source is Source.CACHED
    shelf.remaining = 3
    two.clear_availability_cache()
    assert left(one.get_availability()) == 3


# Parts that are none.


@pytest.mark.parametrize("world", Worlds.both, indirect=True)
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"slots": "sqlite:///slots.db"}, r"slots must have 'load', as SqlSlots\(engine\) has"),
        (
            {"cache": {}},
            r"cache must have 'read', as MemoryCache\(\) or RedisCache\(url\) has: not \{\}",
        ),
        ({"locks": []}, r"locks must have 'acquire', as MemoryLocks\(\) has: not \[\]"),
        (
            {"cache": MemoryCache},
            r"not the class: write MemoryCache\(...\)",
        ),
        ({"policy": HoldPolicy()}, "policy must be an AvailabilityPolicy, not HoldPolicy"),
    ],
)
def test_a_part_that_is_none_is_refused_where_it_is_given(world, parts, message):
    with pytest.raises(TypeError, match=message):
        world.service(**{"slots": Shelf(), **parts})


def test_a_manager_needs_a_table(world):
    with pytest.raises(
        TypeError, match=r"slots must be a table such as \w*SqlSlots\(engine\), not 5"
    ):
        world.holds(5, on_change=None)


def test_holds_without_their_table_are_told_how_it_is_made(world):
    with world.sqlite(":memory:") as slots:
        holds = world.holds(slots, on_change=None)
        with pytest.raises(BackendError, match="no such table: slots: create_tables"):
            holds.create(1)
