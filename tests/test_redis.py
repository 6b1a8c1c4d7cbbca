"""`RedisCache` and `RedisLocks` on a real server: what the laws, and the faults, do not tell."""

import dataclasses
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.cluster import LoadBalancingStrategy
from redis.retry import Retry
from redis.sentinel import Sentinel

from slotcache import BackendError, SlotAvailabilityService, Source
from slotcache.availability import Availability
from slotcache.protocols import Entry, Lock, Miss
from slotcache.redis import RedisCache, RedisLocks, bounds, scripts
from slotcache.redis import cache as cache_module
from slotcache.testing.laws.subject import KEY, LONG, expect_fresh, expect_miss, fill, together
from tests.support.clients import WORLDS, client, cluster_client
from tests.support.forks import in_child
from tests.support.processes import eventually
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer
from tests.support.shelf import Shelf

HOUR = 3_600_000

in_the_blocking_world = pytest.mark.parametrize("world", ["blocking"], indirect=True)


@pytest.fixture(scope="module", params=["blocking", "asyncio, debugged"])
def world(request):
    with WORLDS[request.param]() as world:
        yield world


@pytest.fixture
def open_cache(world, redis_server, redis_prefix, unhurried):
    opened = []

    def open_(**options):
        opened.append(world.cache(redis_server.url, **{"prefix": redis_prefix, **options}))
        return opened[-1]

    yield open_
    for cache in opened:
        cache.close()


@pytest.fixture
def cache(open_cache):
    return open_cache()


@pytest.fixture
def keys(redis_prefix):
    """The two hashes of a list."""
    return f"{{{redis_prefix}}}:list:{KEY}", f"{{{redis_prefix}}}:all"


@pytest.fixture
def proxied(world, redis_server, redis_prefix, unhurried):
    with (
        Proxy(*redis_server.address) as proxy,
        world.cache(proxy.url, prefix=redis_prefix) as cache,
    ):
        cache.read(KEY)  # now the server knows the scripts of a look
        yield proxy, cache


def milliseconds_to_live(server, prefix):
    """The life of each key that begins so."""
    keys = server.command("KEYS", f"{{{prefix}}}:*")
    return {key.decode(): int(server.command("PTTL", key)) for key in keys}


# What is on the server.


def test_each_list_and_each_lock_has_a_key_that_tells_what_it_is(cache, redis_server, redis_prefix):
    fill(cache, expect_miss(cache.read(KEY)), 10)
    cache.locks().acquire("a lock", ttl=LONG)

    assert milliseconds_to_live(redis_server, redis_prefix).keys() == {
        f"{{{redis_prefix}}}:list:{KEY}",
        f"{{{redis_prefix}}}:all",
        f"{{{redis_prefix}}}:lock:a lock",
    }


@pytest.mark.parametrize("change", ["read", "fill", "clear", "clear all"])
def test_a_record_lives_for_an_hour_after_each_change(
    cache, change, redis_server, redis_prefix, keys
):
    miss = expect_miss(cache.read(KEY))
    if change != "read":
        for key in keys:
            redis_server.command("PEXPIRE", key, 60_000)
    if change == "fill":
        cache.fill(KEY, miss, Availability.of([]), ttl=10, stale_ttl=60)
    if change == "clear":
        cache.clear(KEY)
    if change == "clear all":
        cache.clear_all()

    lives = milliseconds_to_live(redis_server, redis_prefix)

    changed = keys[1:] if change == "clear all" else keys
    for key in changed:
        assert HOUR - 60_000 < lives[key] <= HOUR


def test_a_list_that_lives_for_longer_keeps_its_record(cache, redis_server, redis_prefix):
    miss = expect_miss(cache.read(KEY))
    cache.fill(KEY, miss, Availability.of([]), ttl=10_000, stale_ttl=5_000)
    cache.clear(KEY)
    cache.read("another")

    lives = milliseconds_to_live(redis_server, redis_prefix)
    del lives[f"{{{redis_prefix}}}:list:another"]

    assert all(14_900_000 < life <= 15_000_000 for life in lives.values()), lives


def test_a_new_list_has_the_record_of_all_lists_live_on(cache, redis_server, redis_prefix, keys):
    cache.read(KEY)
    redis_server.command("PEXPIRE", keys[1], 60_000)

    cache.read("another")

    assert HOUR - 60_000 < milliseconds_to_live(redis_server, redis_prefix)[keys[1]] <= HOUR


def test_a_clear_takes_away_the_list_that_it_ends(cache, redis_server, keys):
    """Nobody who comes later may be given it: it would be sent, and stored, in vain."""
    fill(cache, expect_miss(cache.read(KEY)), 10)

    cache.clear(KEY)

    assert redis_server.command("HGET", keys[0], "list") is None
    assert expect_miss(cache.read(KEY)).copy is None


def test_lives_of_any_length_are_kept(cache):
    miss = expect_miss(cache.read(KEY))

    assert cache.fill(KEY, miss, Availability.of([]), ttl=1e300, stale_ttl=1e300) is not None
    assert cache.locks().acquire("forever", ttl=1e300) is not None
    assert cache.locks().acquire("hardly", ttl=1e-300) is not None


def test_services_with_other_prefixes_share_nothing(open_cache, redis_prefix):
    ours, theirs = open_cache(), open_cache(prefix=f"{redis_prefix}:b")
    fill(ours, expect_miss(ours.read(KEY)), 10)

    theirs.read(KEY)
    theirs.clear(KEY)
    theirs.clear_all()

    expect_fresh(ours.read(KEY), 10)
    assert ours.locks().acquire(KEY, ttl=LONG)
    assert theirs.locks().acquire(KEY, ttl=LONG)


# What travels.


def test_the_first_request_on_a_connection_is_the_first_call(proxied):
    """A greeting would take time, and rights."""
    proxy, _ = proxied

    assert proxy.requests
    assert all(request.split(b"\r\n")[2].startswith(b"EVAL") for request in proxy.requests)


def test_each_operation_is_one_round_trip(proxied):
    proxy, cache = proxied
    locks = cache.locks()

    def scripts(*calls):
        """How many commands these calls take, once the server knows their scripts."""
        for call in calls:
            call()
        proxy.requests.clear()
        for call in calls:
            call()
        return len(proxy.requests)

    assert scripts(lambda: cache.read("missing")) == 1
    assert scripts(lambda: fill(cache, cache.look(KEY), 10)) == 2
    assert scripts(lambda: expect_fresh(cache.read(KEY), 10)) == 1
    assert scripts(lambda: cache.clear(KEY)) == 1
    for number in range(20):
        cache.read(str(number))
    assert scripts(cache.clear_all) == 1
    assert scripts(lambda: locks.release(locks.acquire("lock", ttl=LONG))) == 2
    assert proxy.accepted == 1


def test_a_list_is_sent_once_while_it_does_not_change(world, own_redis):
    def sent(act):
        before = output(own_redis)
        act()
        return output(own_redis) - before

    def output(server):
        return int(server.command("INFO", "stats").split(b"net_output_bytes:")[1].split()[0])

    with world.cache(own_redis.url) as ours, world.cache(own_redis.url) as theirs:
        long = Availability.of((number, 5, 1) for number in range(100_000))
        ours.fill(KEY, ours.look(KEY), long, ttl=LONG, stale_ttl=LONG)
        asking = sent(lambda: None)

        assert sent(lambda: ours.read(KEY)) < asking + 1_000
        assert sent(lambda: theirs.read(KEY)) > 100_000
        assert sent(lambda: theirs.read(KEY)) < asking + 1_000
        assert theirs.read(KEY).availability == long


def test_a_list_that_is_too_long_is_not_sent(world, open_cache, monkeypatch):
    source = scripts.LOOK.source.decode()
    limit = f"<= {scripts.LONGEST_LIST}"
    assert source.count(limit) == 1
    monkeypatch.setattr(cache_module, "LOOK", scripts.Script(source.replace(limit, "<= 10")))
    ours, theirs = open_cache(), open_cache()
    fill(ours, expect_miss(ours.read(KEY)), 10)

    assert world.run_script(theirs._server, theirs._looking(KEY).call)[-1] is None
    assert expect_miss(theirs.read(KEY)).copy is None
    expect_fresh(ours.read(KEY), 10)


def test_only_so_many_lists_are_kept_decoded(open_cache):
    cache = open_cache(maxsize=2)
    for key in ("a", "b", "c"):
        fill(cache, cache.look(key), 10, key=key)

    assert len(cache._kept) == 2
    for key in ("a", "b", "c"):
        expect_fresh(cache.read(key), 10)


def test_the_list_that_was_filled_last_is_kept_decoded_longest(open_cache):
    cache = open_cache(maxsize=2)
    for key in ("a", "b", "a", "c"):
        fill(cache, cache.look(key), 10, key=key)

    assert list(cache._kept) == ["a", "c"]


# What is lost or damaged.


@pytest.mark.parametrize("lost", [0, 1])
def test_a_fill_is_dropped_that_looked_before_a_hash_was_lost(cache, lost, redis_server, keys):
    before = expect_miss(cache.read(KEY))
    redis_server.command("DEL", keys[lost])
    assert fill(cache, before, 10) is None

    after = expect_miss(cache.read(KEY))

    assert after.generation is not None
    assert after.generation.epoch != before.generation.epoch
    assert after.generation.clears == 0
    assert fill(cache, before, 10) is None
    assert expect_miss(cache.read(KEY)).copy is None


@pytest.mark.parametrize("lost", [0, 1])
def test_a_list_is_no_longer_fresh_when_a_hash_was_lost(cache, lost, redis_server, keys):
    fill(cache, expect_miss(cache.read(KEY)), 10)
    redis_server.command("DEL", keys[lost])

    assert expect_miss(cache.read(KEY)).copy is None


@pytest.mark.parametrize(("generation", "look"), [("its own", None), (None, 0)])
def test_a_fill_after_a_look_that_was_no_answer_is_dropped(cache, generation, look):
    generation = generation and expect_miss(cache.read(KEY)).generation

    assert fill(cache, Miss(generation, look), 10) is None
    assert expect_miss(cache.read(KEY)).copy is None


@pytest.mark.parametrize("which", [0, 1])
def test_a_record_whose_clears_are_no_number_is_made_anew(cache, which, redis_server, keys):
    fill(cache, expect_miss(cache.read(KEY)), 10)
    redis_server.command("HSET", keys[which], "clears", "many")

    miss = expect_miss(cache.read(KEY))

    assert miss.copy is None
    expect_fresh(fill(cache, miss, 9), 9)


def test_a_record_with_fewer_clears_than_its_list_has_seen_is_made_anew(cache, redis_server, keys):
    """Else as many clears later the list would be fresh again."""
    cache.read(KEY)
    cache.clear_all()
    fill(cache, expect_miss(cache.read(KEY)), 10)
    redis_server.command("HSET", keys[1], "clears", 0)

    expect_miss(cache.read(KEY))
    cache.clear_all()

    expect_miss(cache.read(KEY))


def test_a_fill_that_saw_more_clears_than_there_have_been_is_dropped(cache, redis_server, keys):
    cache.read(KEY)
    cache.clear(KEY)
    miss = expect_miss(cache.read(KEY))
    redis_server.command("HSET", keys[0], "clears", 0)

    assert fill(cache, miss, 10) is None
    cache.clear_all()

    assert expect_miss(cache.read(KEY)).copy is None


def test_what_was_lost_is_not_cleared(cache, redis_server, redis_prefix):
    cache.read(KEY)
    redis_server.command("DEL", f"{{{redis_prefix}}}:all")

    cache.clear(KEY)
    cache.clear_all()

    assert expect_miss(cache.read(KEY)).generation.clears == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
        lambda data: b"",
        lambda data: b"\x80\x04\x95",  # a pickle begins so
        lambda data: b"slot\2" + data[5:],
    ],
    ids=["cut", "longer", "flipped", "empty", "pickled", "of another release"],
)
def test_a_damaged_list_is_a_miss_and_is_filled_anew(open_cache, damage, redis_server, keys):
    ours, theirs = open_cache(), open_cache()
    fill(ours, expect_miss(ours.read(KEY)), 10)
    data = redis_server.command("HGET", keys[0], "list")
    redis_server.command("HSET", keys[0], "list", damage(data))

    miss = expect_miss(theirs.read(KEY))
    assert miss.copy is None

    expect_fresh(fill(theirs, miss, 9), 9)
    expect_fresh(ours.read(KEY), 9)


def test_a_list_of_another_generation_is_a_miss(open_cache, redis_server, keys):
    ours, theirs = open_cache(), open_cache()
    fill(ours, expect_miss(ours.read(KEY)), 10)
    ours.clear(KEY)
    fill(ours, expect_miss(ours.read(KEY)), 9)
    redis_server.command("HSET", keys[0], "under", 0)

    assert expect_miss(theirs.read(KEY)).copy is None


FIELDS = ("epoch", "clears", "all", "stamp", "under", "since", "until", "list")


@in_the_blocking_world
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.integers(0, 1),
    field=st.sampled_from(FIELDS),
    value=st.one_of(
        st.binary(max_size=40),
        st.sampled_from([b"-1", b"1e400", b"nan", b"0x10", b"9" * 30, b"-0", b" 1"]),
        st.none(),
    ),
)
def test_whatever_stands_in_the_hashes_is_a_miss_or_a_backend_error(
    open_cache, redis_server, keys, which, field, value
):
    ours, theirs = open_cache(), open_cache()
    redis_server.command("DEL", *keys)
    miss = expect_miss(ours.read(KEY))
    fill(ours, miss, 10)
    if value is None:
        redis_server.command("HDEL", keys[which], field)
    else:
        redis_server.command("HSET", keys[which], field, value)

    for cache in (ours, theirs):
        for call in (cache.read, cache.look, cache.clear, cache.read):
            try:
                found = call(KEY)
            except BackendError:
                continue
            assert found is None or isinstance(found, Entry | Miss)
    redis_server.command("DEL", *keys)
    expect_miss(ours.read(KEY))


def test_a_list_from_the_servers_future_is_not_fresh(cache, redis_server, keys):
    """Its clock was put back: nobody knows how old the list is."""
    fill(cache, expect_miss(cache.read(KEY)), 10)
    since = int(redis_server.command("HGET", keys[0], "since"))
    redis_server.command("HSET", keys[0], "since", since + 3_600_000_000)

    miss = expect_miss(cache.read(KEY))

    expect_fresh(fill(cache, miss, 9), 9)
    expect_fresh(cache.read(KEY), 9)


def test_a_fill_from_the_servers_future_is_not_fresh(cache):
    miss = expect_miss(cache.read(KEY))

    assert fill(cache, dataclasses.replace(miss, look=miss.look + 3_600_000_000), 10) is None


def test_a_list_is_as_old_as_the_server_tells_although_it_is_known(cache, redis_server, keys):
    """Its clock was put forward."""
    before = fill(cache, expect_miss(cache.read(KEY)), 10)
    for field in ("since", "until"):
        redis_server.command("HINCRBY", keys[0], field, -100_000_000)

    after = expect_fresh(cache.read(KEY), 10)

    assert after.since < before.since - 99
    assert after.until < before.until - 99


def test_a_lock_without_an_end_is_none(cache, redis_server, redis_prefix):
    redis_server.command("SET", f"{{{redis_prefix}}}:lock:a", "somebody else's")

    with pytest.raises(BackendError, match="choose another prefix"):
        cache.locks().acquire("a", ttl=LONG)


def test_something_else_at_the_key_is_told_and_left_alone(cache, redis_server, keys):
    redis_server.command("SET", keys[0], "somebody else's")

    with pytest.raises(BackendError, match="choose another prefix"):
        cache.read(KEY)
    cache.clear(KEY)

    assert redis_server.command("GET", keys[0]) == b"somebody else's"
    redis_server.command("DEL", keys[0])


# What is never too late.


def test_no_instant_is_told_too_late_however_long_an_answer_takes(world, proxied, redis_prefix):
    proxy, cache = proxied
    miss = expect_miss(cache.look(KEY))
    looked = time.monotonic()
    proxy.delay(0.1)

    with world.cache(proxy.url, prefix=redis_prefix) as elsewhere:
        for entry in (fill(cache, miss, 10), elsewhere.read(KEY)):
            assert entry.since <= looked + 0.01
            assert entry.until <= looked + LONG + 0.01


@pytest.mark.parametrize(
    "call",
    [
        lambda made: made.recv(1),
        lambda made: made.recv_into(bytearray(1)),
        lambda made: made.sendall(b"a"),
    ],
    ids=["recv", "recv_into", "sendall"],
)
def test_each_call_on_a_socket_has_the_time_that_is_left(call, unhurried):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"a")
        deadline = bounds.Deadline()
        made = bounds._BoundedSocket(ours, deadline, None)
        with deadline.ahead(bounds.BUDGET):
            call(made)
            assert ours.gettimeout() <= bounds.BUDGET

            deadline._instant = time.monotonic()
            with pytest.raises(TimeoutError):
                call(made)


def test_no_connection_is_begun_when_there_is_no_time_left(redis_server):
    deadline = bounds.Deadline()
    pool = bounds.bounded_pool(redis_server.url, deadline)
    deadline._instant = time.monotonic()

    with pytest.raises(redis.TimeoutError):
        pool.get_connection()


def test_a_time_out_in_the_url_that_is_shorter_than_the_budget_holds(world, proxied, redis_prefix):
    proxy, _ = proxied
    with world.cache(f"{proxy.url}?socket_timeout=0.1", prefix=redis_prefix) as cache:
        proxy.silent()
        began = time.monotonic()
        with pytest.raises(BackendError):
            cache.read(KEY)

    assert time.monotonic() - began < bounds.BUDGET / 2


@in_the_blocking_world
def test_a_call_right_after_one_that_was_not_answered_fails_at_once(proxied, monkeypatch):
    proxy, cache = proxied
    monkeypatch.setattr("slotcache.redis.bounds.BUDGET", 0.25)
    monkeypatch.setattr("slotcache.redis.server._MOMENT", 60.0)
    proxy.silent()
    with pytest.raises(BackendError):
        cache.read(KEY)
    asked = len(proxy.requests)

    with pytest.raises(BackendError, match="a moment ago"):
        cache.read(KEY)
    assert cache.locks().release(Lock("a lock", "a token")) is False

    assert len(proxy.requests) == asked


def test_locks_that_may_have_been_granted_are_given_back_one_with_each_answer(proxied):
    proxy, cache = proxied
    locks = cache.locks()
    locks.acquire("c", ttl=LONG)  # now the server knows the script
    for name in ("a", "b"):
        proxy.lose_next_reply()
        with pytest.raises(BackendError):
            locks.acquire(name, ttl=LONG)
    assert locks.acquire("a", ttl=LONG) is None, "it was granted, to nobody"
    assert locks.acquire("b", ttl=LONG) is None

    assert locks.acquire("a", ttl=LONG)
    assert locks.acquire("b", ttl=LONG)


def test_a_lock_is_given_back_whose_acquisition_was_interrupted(world, cache, monkeypatch):
    locks, server = cache.locks(), cache._server
    run = server._run

    async def interrupted(call):
        await run(call)
        raise world.interrupt

    with monkeypatch.context() as patch:
        patch.setattr(server, "_run", interrupted)
        with pytest.raises(world.interrupt):
            locks.acquire("a", ttl=LONG)
    assert locks.acquire("a", ttl=LONG) is None, "it was granted, to nobody"

    assert locks.acquire("a", ttl=LONG)


def test_a_lock_is_given_back_whose_release_was_interrupted(world, cache, monkeypatch):
    locks, server = cache.locks(), cache._server
    lock = locks.acquire("a", ttl=LONG)

    async def interrupted(_call):
        raise world.interrupt

    with monkeypatch.context() as patch:
        patch.setattr(server, "_run", interrupted)
        with pytest.raises(world.interrupt):
            locks.release(lock)
    assert locks.acquire("a", ttl=LONG) is None, "it was not given back"

    assert locks.acquire("a", ttl=LONG)


def test_what_is_owed_stays_so_when_paying_it_is_interrupted(world, cache, monkeypatch):
    locks, server = cache.locks(), cache._server
    lock = locks.acquire("a", ttl=LONG)
    owed = locks._releasing(lock)
    server.owe(owed)
    run = server._run

    async def interrupted(call):
        if call is owed:
            raise world.interrupt
        return await run(call)

    with monkeypatch.context() as patch:
        patch.setattr(server, "_run", interrupted)
        with pytest.raises(world.interrupt):
            cache.read(KEY)
    cache.read(KEY)

    assert locks.acquire("a", ttl=LONG)


def test_what_is_owed_is_tried_until_it_is_done(cache, monkeypatch):
    monkeypatch.setattr("slotcache.redis.server._PAUSE", 0.0)
    locks, server = cache.locks(), cache._server
    lock = locks.acquire("a", ttl=LONG)
    owed = locks._releasing(lock)
    server.owe(owed)
    run = server._run

    async def failing(call):
        if call is owed:
            raise redis.ConnectionError
        return await run(call)

    with monkeypatch.context() as patch:
        patch.setattr(server, "_run", failing)
        cache.read(KEY)
    cache.read(KEY)

    assert locks.acquire("a", ttl=LONG)


def test_what_has_been_owed_for_too_long_is_not_done(cache, monkeypatch):
    monkeypatch.setattr("slotcache.redis.server._OWED_FOR", 0.0)
    locks = cache.locks()
    lock = locks.acquire("a", ttl=LONG)
    cache._server.owe(locks._releasing(lock))

    cache.read(KEY)

    assert not cache._server._owed
    assert locks.release(lock) is True, "it was still held"


def test_threads_pay_what_is_owed_once(cache):
    locks = cache.locks()
    for number in range(40):
        cache._server.owe(locks._releasing(Lock(str(number), "a token")))

    together(*[lambda: [cache.read(KEY) for _ in range(40)]] * 4)

    assert not cache._server._owed


# Who may be given.

GOOD = {"socket_timeout": 0.25, "socket_connect_timeout": 0.1, "retry": Retry(NoBackoff(), 0)}


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({}, ["socket_timeout=0.25", "socket_connect_timeout=0.25", "retry=Retry(NoBackoff(), 0)"]),
        ({**GOOD, "socket_timeout": None}, ["socket_timeout=0.25"]),
        ({**GOOD, "socket_timeout": 0.26}, ["socket_timeout=0.25"]),
        ({**GOOD, "socket_connect_timeout": 5}, ["socket_connect_timeout=0.25"]),
        ({**GOOD, "retry": Retry(NoBackoff(), 1)}, ["retry=Retry(NoBackoff(), 0)"]),
        ({**GOOD, "encoding": "utf-16"}, ["encoding='utf-8'"]),
        ({**GOOD, "retry": Retry(NoBackoff(), -1)}, ["retry=Retry(NoBackoff(), 0)"]),
    ],
)
@pytest.mark.parametrize("kind", [RedisCache, RedisLocks])
def test_a_client_that_could_keep_a_reader_waiting_is_refused(kind, options, advice):
    with pytest.raises(ValueError, match="waiting") as refused:
        kind(redis.Redis(**options))

    assert str(refused.value).split("make it with ")[1] == ", ".join(advice)


def test_a_pool_that_could_keep_a_reader_waiting_is_refused():
    def pooled(**options):
        return redis.Redis(connection_pool=redis.BlockingConnectionPool(**GOOD, **options))

    for options in ({}, {"timeout": None}, {"timeout": 1}):
        with pytest.raises(ValueError, match=r"BlockingConnectionPool\(timeout=0.25\)"):
            RedisCache(pooled(**options))
    RedisCache(pooled(timeout=0.2))


def test_a_client_with_one_connection_for_all_threads_is_refused(redis_server):
    with (
        closing(client(redis_server.url, single_connection_client=True)) as one,
        pytest.raises(ValueError, match="single_connection_client=False"),
    ):
        RedisCache(one)


def test_a_client_that_reads_from_replicas_is_refused(redis_cluster):
    sentinel = Sentinel([("127.0.0.1", 1)], **GOOD)
    with pytest.raises(ValueError, match="master_for"):
        RedisCache(sentinel.slave_for("shop", **GOOD))
    RedisCache(sentinel.master_for("shop", **GOOD))
    strategy = LoadBalancingStrategy.ROUND_ROBIN
    with (
        closing(cluster_client(redis_cluster.url, load_balancing_strategy=strategy)) as reads,
        pytest.raises(ValueError, match="load_balancing_strategy=None"),
    ):
        RedisCache(reads)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_cluster_client_that_reads_from_replicas_in_the_old_way_is_refused(redis_cluster):
    with (
        closing(cluster_client(redis_cluster.url, read_from_replicas=True)) as reads,
        pytest.raises(ValueError, match="read_from_replicas=False"),
    ):
        RedisCache(reads)


def test_a_cluster_client_with_retries_is_refused(redis_cluster):
    with (
        closing(redis.RedisCluster.from_url(redis_cluster.url)) as retrying,
        pytest.raises(ValueError, match=r"Retry\(NoBackoff\(\), 0\), socket_timeout=0.25"),
    ):
        RedisCache(retrying)


@pytest.mark.parametrize("option", ["socket_timeout=5", "socket_connect_timeout=1"])
def test_a_url_that_could_keep_a_reader_waiting_is_refused(option):
    with pytest.raises(ValueError, match=r"=0\.25"):
        RedisCache(f"redis://localhost?{option}")


@pytest.mark.parametrize("option", ["retry_on_timeout=yes", "socket_timeout=0"])
def test_a_url_with_options_is_told_to_leave_them_out(option):
    with pytest.raises(ValueError, match=r"this URL.*Leave them out"):
        RedisCache(f"redis://localhost?{option}")


def test_a_url_with_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match="socket_timout"):
        RedisCache("redis://:secret@localhost?socket_timout=0.1")


def test_a_pipeline_is_refused(redis_server, redis_cluster):
    """It would say "done" to each clear, and do nothing."""
    with closing(client(redis_server.url)) as given, pytest.raises(TypeError, match="must be"):
        RedisCache(given.pipeline())
    with (
        closing(cluster_client(redis_cluster.url)) as given,
        pytest.raises(TypeError, match="must be"),
    ):
        RedisCache(given.pipeline())


@pytest.mark.parametrize(
    "answer", [b"+OK\r\n", b"$-1\r\n", b":1\r\n", b"*0\r\n", b"*2\r\n$8\r\nnonsense\r\n:1\r\n"]
)
@pytest.mark.parametrize(
    "call",
    [
        lambda cache: cache.read(KEY),
        lambda cache: cache.clear(KEY),
        lambda cache: cache.clear_all(),
        lambda cache: cache.locks().acquire(KEY, ttl=LONG),
    ],
    ids=["look", "clear", "clear all", "acquire"],
)
def test_what_answers_another_call_is_taken_for_no_answer(proxied, call, answer):
    proxy, cache = proxied
    proxy.garbage(answer, times=1)

    with pytest.raises(BackendError, match="answers no call of ours, or another one"):
        call(cache)
    expect_miss(cache.read("another"))


def interrupted(monkeypatch, world, method):
    """Have one call of this method of a connection be interrupted right before it begins."""
    kind = world.connection
    original = getattr(kind, method)

    def interrupt(*_args, **_options):
        monkeypatch.setattr(kind, method, original)
        raise world.interrupt

    monkeypatch.setattr(kind, method, interrupt)


@pytest.fixture(params=["by URL", "given"])
def either_cache(request, world, redis_server, redis_prefix, unhurried):
    url = redis_server.url
    given = world.client(url)
    server = given if request.param == "given" else url
    with world.cache(server, prefix=redis_prefix) as cache:
        yield cache
    world.close(given)


@pytest.mark.parametrize("place", ["send_command", "read_response"])
def test_who_is_interrupted_leaves_no_answer_to_the_next_one(
    world, either_cache, place, monkeypatch
):
    cache = either_cache
    for free, key in ((10, "a"), (9, "b")):
        fill(cache, expect_miss(cache.look(key)), free, key=key)
    interrupted(monkeypatch, world, place)
    with pytest.raises(world.interrupt):
        cache.read("a")

    for _ in range(3):
        try:
            found = cache.read("b")
        except BackendError:  # a client that was given: it is not ours to end its connection
            continue
        expect_fresh(found, 9)
    expect_fresh(cache.read("b"), 9)


@pytest.mark.parametrize("place", ["on_connect", "on_connect_check_health"])
def test_who_is_interrupted_as_the_connection_is_made_leaves_none_half_made(
    world, open_cache, place, monkeypatch
):
    if not hasattr(world.connection, place):
        pytest.skip("this redis-py has no such step")
    cache = open_cache()
    interrupted(monkeypatch, world, place)
    with suppress(world.interrupt):
        cache.read(KEY)

    fill(cache, expect_miss(cache.read(KEY)), 10)
    expect_fresh(cache.read(KEY), 10)


def test_a_child_does_not_wait_for_a_mutex_that_another_thread_had_at_the_fork(
    redis_server, redis_prefix
):
    cache = RedisCache(redis_server.url, prefix=redis_prefix)
    cache.read(KEY)
    pool = cache._server._owned
    forking, forked = threading.Event(), threading.Event()

    def hold():
        with pool._lock:
            forking.set()
            forked.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    forking.wait(60)
    try:
        in_child(lambda: expect_miss(cache.read(KEY)))
    finally:
        forked.set()
        holder.join(60)
        cache.close()


def test_a_clear_is_sent_although_another_thread_has_just_waited_in_vain(proxied, monkeypatch):
    proxy, cache = proxied
    monkeypatch.setattr("slotcache.redis.server._MOMENT", 60.0)
    monkeypatch.setattr("slotcache.redis.bounds.BUDGET", 0.25)
    proxy.silent()

    def wait_in_vain():
        with suppress(BackendError):
            cache.read(KEY)

    thread = threading.Thread(target=wait_in_vain)
    thread.start()
    thread.join(60)
    proxy.heal()

    cache.clear(KEY)

    assert proxy.count(b"list:" + KEY.encode()) >= 2


def test_a_name_with_many_dead_addresses_costs_no_more_than_one(world, monkeypatch):
    monkeypatch.setattr("slotcache.redis.bounds.BUDGET", 0.25)
    with ExitStack() as stack:
        full = [stack.enter_context(a_listener_that_takes_nobody()) for _ in range(4)]
        families = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in full]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: families)
        cache = stack.enter_context(world.cache("redis://many.example"))
        began = time.monotonic()

        with pytest.raises(BackendError):
            cache.read(KEY)

        assert time.monotonic() - began < 0.75, "four times 0.25 s, and not once"


@contextmanager
def a_listener_that_takes_nobody():
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # these fill its backlog
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()


@pytest.mark.parametrize("field", ["since", "until"])
def test_an_instant_beyond_all_floats_is_a_miss(open_cache, field, redis_server, keys):
    ours = open_cache()
    fill(ours, expect_miss(ours.read(KEY)), 10)
    redis_server.command("HSET", keys[0], field, "9" * 400)

    miss = expect_miss(open_cache().read(KEY))

    assert miss.copy is None
    expect_fresh(fill(ours, miss, 9), 9)


@pytest.mark.parametrize("which", [0, 1])
def test_a_clear_of_a_record_that_is_none_does_nothing(cache, which, redis_server, keys):
    cache.read(KEY)
    redis_server.command("HSET", keys[which], "clears", "many")

    cache.clear(KEY)

    expect_miss(cache.read(KEY))


@pytest.mark.parametrize("server", [None, 6379, b"redis://localhost", redis.ConnectionPool()])
def test_what_is_no_server_is_refused(server):
    with pytest.raises(TypeError, match="must be a URL such as"):
        RedisCache(server)


@pytest.mark.parametrize("url", ["localhost", "http://localhost", ""])
def test_what_is_no_url_of_a_server_is_refused(url):
    with pytest.raises(ValueError, match="redis://"):
        RedisCache(url)


@pytest.mark.parametrize("prefix", ["", "{a}", "a}", 5, None])
def test_a_prefix_is_a_name(prefix):
    for kind in (RedisCache, RedisLocks):
        with pytest.raises((TypeError, ValueError), match="prefix must be"):
            kind("redis://localhost", prefix=prefix)


@pytest.mark.parametrize("maxsize", [0, -1, True, 1.5, None])
def test_maxsize_is_a_number_of_lists(maxsize):
    with pytest.raises(ValueError, match="maxsize must be a number of lists"):
        RedisCache("redis://localhost", maxsize=maxsize)


# What is told.


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (b"-MOVED 1 127.0.0.1:7001\r\n", "give a redis.RedisCluster"),
        (b"-READONLY You can't write against a read only replica.\r\n", "address of the primary"),
        (b"-OOM command not allowed\r\n", "more memory"),
        (b"-NOPERM this user has no permissions\r\n", "share-a-server.md"),
        (b"-NOAUTH Authentication required.\r\n", "a user and password that it knows"),
        (b"-WRONGTYPE Operation against a key\r\n", "choose another prefix"),
    ],
)
def test_an_error_tells_what_to_do(proxied, answer, advice):
    proxy, cache = proxied
    proxy.garbage(answer, times=1)

    with pytest.raises(BackendError, match=advice):
        cache.read(KEY)


def test_no_error_tells_the_password(world, redis_server):
    with (
        world.cache(f"redis://shop:secret@127.0.0.1:{redis_server.port}") as cache,
        pytest.raises(BackendError, match="a user and password that it knows") as failed,
    ):
        cache.read(KEY)

    assert "secret" not in f"{failed.value!r} {failed.value.__cause__!r}"


def test_a_user_needs_few_rights(own_redis):
    own_redis.command(
        *("ACL", "SETUSER", "shop", "on", ">right", "~{slotcache}:*", "-@all"),
        *("+eval", "+evalsha", "+time", "+type", "+get", "+set", "+del", "+pttl", "+pexpire"),
        *("+hget", "+hmget", "+hset", "+hdel", "+hincrby", "+hstrlen"),
    )
    shelf = Shelf()
    with RedisCache(f"redis://shop:right@127.0.0.1:{own_redis.port}") as cache:
        service = SlotAvailabilityService(shelf, cache=cache)
        assert service.read().source is Source.LOADED
        assert service.read().source is Source.CACHED
        assert service.clear_availability_cache()
        cache.clear_all()
        assert service.read().source is Source.LOADED
        assert service.health().cache
        assert service.health().locks


# Connections.


def test_a_server_is_reached_by_a_unix_socket(world, redis_program):
    with tempfile.TemporaryDirectory() as folder:  # a short path: 108 bytes at most
        path = f"{folder}/socket"
        with RedisServer("--unixsocket", path), world.cache(f"unix://{path}") as cache:
            fill(cache, expect_miss(cache.read(KEY)), 10)
            expect_fresh(cache.read(KEY), 10)


def test_who_lacks_redis_is_told_what_to_install():
    lacking = "import sys; sys.modules['redis'] = None; import slotcache.redis"
    done = subprocess.run(
        [sys.executable, "-c", lacking], capture_output=True, text=True, check=False
    )

    assert "pip install 'slotcache[redis]'" in done.stderr


def test_closing_closes_what_was_made(world, own_redis):
    def connections():
        return int(own_redis.command("INFO", "clients").split(b"connected_clients:")[1].split()[0])

    given = world.client(own_redis.url)
    with world.cache(given) as cache:
        cache.read(KEY)
    with world.cache(own_redis.url) as another:
        another.read(KEY)
        another.locks().acquire(KEY, ttl=LONG)
        eventually(lambda: connections() == 3)

    eventually(lambda: connections() == 2)
    world.close(given)
    eventually(lambda: connections() == 1)


def test_after_a_replica_has_refused_the_next_call_makes_a_connection(proxied):
    """Its name may lead to another server by now."""
    proxy, cache = proxied
    before = proxy.accepted
    proxy.garbage(b"-READONLY You can't write against a read only replica.\r\n", times=1)
    with pytest.raises(BackendError):
        cache.read(KEY)

    cache.read(KEY)

    assert proxy.accepted == before + 1


def test_threads_have_connections_of_their_own(proxied):
    proxy, cache = proxied
    fill(cache, cache.look(KEY), 10)
    together = threading.Barrier(8)

    def read():
        together.wait(60)
        return [expect_fresh(cache.read(KEY), 10) for _ in range(20)]

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert 1 <= proxy.accepted <= 9
