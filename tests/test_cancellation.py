"""A call on asyncio may be cancelled wherever it waits, and once more while it tidies up."""

import asyncio
import gc
import os
import threading
from time import monotonic

import pytest

from slotcache import (
    AsyncSlotAvailabilityService,
    Availability,
    AvailabilityPolicy,
    Source,
    guard,
    holds,
    hook,
    operations,
    refill,
    service,
    threaded,
    worlds,
)
from slotcache.file import FileCache
from slotcache.memory import MemoryCache, MemoryLocks
from slotcache.protocols import Loaded
from slotcache.sql import AsyncSqlSlots, SqlSlots, waits
from slotcache.sql import slots as sql_slots
from slotcache.testing import ManualClock
from slotcache.worlds import SystemClock

from .support.box_office import OPERATIONS, box_office
from .support.cancelling import (
    AwaitedCache,
    Strike,
    a_while,
    check_flights,
    check_tasks,
    eventually,
    free_in,
    office,
    strike_everywhere,
    strike_twice_everywhere,
)
from .support.points import awaits_in
from .support.shelf import Shelf
from .support.sql import query
from .support.thorough import THOROUGH
from .support.threads import PATIENCE, Gate

LOCK = "slots.availability.lock"


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_open():
    """Were it, the collector of garbage would say so."""
    of_others = set(threading.enumerate())
    yield
    gc.collect()
    # Those of aiosqlite end when they have closed their file.
    for thread in threading.enumerate():
        if "_connection_worker" in thread.name and thread not in of_others:
            thread.join(PATIENCE)
            assert not thread.is_alive()


async def alone(strike):
    async with office() as made:
        await strike.of(made.free())


async def with_followers(strike):
    """If it is the leader who is cancelled, one of them leads anew."""
    async with office() as made:
        strike.begin(made.free())
        readers = made.followed(3)
        await strike.outcome()
        assert await asyncio.gather(*readers) == [10] * 3
        assert made.table.loads <= 2


async def follows(strike):
    """Whoever leads does not notice."""
    async with office() as made:
        leader, *_ = made.followed(1)
        await under_way(made)
        strike.begin(made.free())
        [follower] = made.followed(1)
        await strike.outcome()
        assert await asyncio.gather(leader, follower) == [10, 10]
        assert made.table.loads == 1


async def follows_for_long(strike):
    """Longer than it would wait for a lock; but there is nothing that it could take instead."""
    async with office() as made:
        made.table.open.clear()
        leader, *_ = made.followed(1)
        await under_way(made)
        strike.begin(made.free())
        for _ in range(4):
            await a_while()
        made.clock.time += 1
        await eventually(lambda: strike.points.count > 3 or strike.was_struck)
        made.table.open.set()
        await strike.outcome()
        assert await leader == 10


async def waits_for_a_thread(strike):
    """Nobody can stop a load in a thread, and the table is asked by one at a time."""
    shelf, gate = Shelf(), Gate()
    shelf.during_load = gate
    async with AsyncSlotAvailabilityService(shelf) as readers:
        first = asyncio.create_task(readers.get_availability())
        await asyncio.to_thread(gate.wait_for_somebody)
        first.cancel()
        strike.begin(readers.get_availability())
        for _ in range(3):
            await a_while()
        follower = asyncio.create_task(readers.get_availability())
        await a_while()
        assert shelf.loads == 1
        gate.open()
        await strike.outcome()
        assert free_in(await follower) == 10
        check_flights(readers)
    await check_tasks()


async def leads_anew(strike):
    """The one before it was cancelled while it queried."""
    async with office() as made:
        leader, *_ = made.followed(1)
        await under_way(made)
        strike.begin(made.free())
        [follower] = made.followed(1)
        for _ in range(2):
            await a_while()
        leader.cancel()
        await strike.outcome()
        assert await follower == 10
        assert made.table.loads <= 3


async def waits_for_the_lock(strike):
    """Another process queries, and fills the cache in the end."""
    async with office() as made:
        other = asyncio.create_task(made.elsewhere().get_availability())
        await under_way(made)
        strike.begin(made.free())
        [follower] = made.followed(1)
        await strike.outcome()
        assert await follower == 10
        await other
        assert made.table.loads == 1


async def waits_in_vain(strike):
    """Nobody fills the cache, so it takes the expired copy, or queries by itself."""
    async with office() as made:
        await made.free()
        made.clock.time += 11
        lock = await made.cache.locks().acquire(LOCK, ttl=60)
        await strike.of(made.free())
        await made.cache.locks().release(lock)


async def queries_directly(strike):
    async with office() as made:
        lock = await made.cache.locks().acquire(LOCK, ttl=60)
        await strike.of(made.free())
        await made.cache.locks().release(lock)


async def the_cache_is_down(strike):
    """It waits for the query that runs, since it cannot know whether that would do."""
    async with office() as made:
        made.cache.failure = OSError()
        first = made.followed(1)
        strike.begin(made.free())
        last = made.followed(2)
        await strike.outcome()
        assert await asyncio.gather(*first, *last) == [10] * 3
        made.cache.failure = None


async def the_cache_breaks_down(strike):
    """After its first look."""
    async with office() as made:
        made.cache.failure, made.cache.good_for = OSError(), 1
        await strike.of(made.free())
        made.cache.failure = None


async def the_table_is_down(strike):
    async with office() as made:
        await made.free()
        made.clock.time += 11
        made.table.failure = OSError()
        strike.begin(made.free())
        readers = made.followed(2)
        await strike.outcome()
        assert await asyncio.gather(*readers) == [10, 10]
        made.table.failure = None


async def tells_more(strike):
    async with office() as made:
        reading = await strike.of(made.service.read())
        assert isinstance(reading, asyncio.CancelledError) or reading.source is Source.LOADED


async def clears(strike):
    async with office() as made:
        await made.free()
        await made.free("hall")
        made.table.remaining = 7
        await strike.of(made.service.clear_availability_cache("hall"))
        made.table.remaining = 7
        assert (await made.free("hall"), await made.free()) == (7, 7)
        await made.service.close()
        assert made.service.health().undelivered == 0


async def closes(strike):
    async with office() as made:
        made.cache.failure = OSError()
        await made.service.clear_availability_cache()
        made.cache.failure = None
        await strike.of(made.service.close())


async def closes_while_it_is_looked_after(strike):
    async with office() as made:
        made.cache.failure = OSError()
        await made.free()
        made.cache.failure = None
        await a_while()
        await strike.of(made.service.close())


async def under_way(made):
    """Wait until somebody queries."""
    while not made.table.loads:  # noqa: ASYNC110
        await asyncio.sleep(0)


READS = (
    alone,
    with_followers,
    follows,
    follows_for_long,
    leads_anew,
    waits_for_the_lock,
    waits_for_a_thread,
    waits_in_vain,
    queries_directly,
    the_cache_is_down,
    the_cache_breaks_down,
    the_table_is_down,
    tells_more,
    clears,
    closes,
    closes_while_it_is_looked_after,
)


@pytest.mark.parametrize("case", READS, ids=lambda case: case.__name__)
def test_a_reader_may_be_cancelled_wherever_it_waits(case, record_property):
    check_everywhere(lambda strike: asyncio.run(case(strike)), case, record_property)


async def in_threads(strike, slots, cache):
    """The table and the cache block: nobody can stop the threads that call them."""
    policy = AvailabilityPolicy(lock_ttl=0.5 if strike.is_double else 60)
    async with AsyncSlotAvailabilityService(slots, cache=cache, policy=policy) as readers:
        strike.begin(readers.get_availability())
        await strike.done_or(lambda: readers._refill._flights._flying)
        follower = asyncio.create_task(readers.get_availability())
        await strike.outcome()
        assert free_in(await follower) == 10
        check_flights(readers)
        await eventually(lambda: is_free(cache.locks()))
        assert (await readers.read()).source is Source.CACHED


async def waits_in_threads(strike, slots, cache):
    """Another process has the lock, and the clock blocks, too: in no time, so that it is asked."""
    locks = cache.locks()
    lock = locks.acquire(LOCK, ttl=60)
    policy = AvailabilityPolicy(lock_timeout=0.004)
    async with AsyncSlotAvailabilityService(
        slots, cache=cache, policy=policy, clock=ManualClock()
    ) as readers:
        readers._refill._jitter = lambda: 0.5
        await strike.of(readers.get_availability())
        check_flights(readers)
    locks.release(lock)


async def follows_in_threads(strike, slots, cache):
    async with AsyncSlotAvailabilityService(slots, cache=cache, clock=SystemClock()) as readers:
        leader = asyncio.create_task(readers.get_availability())
        await eventually(lambda: readers._refill._flights._flying)
        strike.begin(readers.get_availability())
        await strike.outcome()
        assert free_in(await leader) == 10


async def clears_in_threads(strike, slots, cache):
    async with AsyncSlotAvailabilityService(slots, cache=cache) as readers:
        await readers.get_availability()
        await strike.of(clear_twice(readers))
        assert (await readers.read()).source is not Source.CACHED or not strike.was_struck


async def clear_twice(readers):
    await readers.clear_availability_cache("hall")
    await readers.clear_availability_cache()


def is_free(locks):
    lock = locks.acquire(LOCK, ttl=1)
    return lock is not None and locks.release(lock)


async def from_a_new_connection(strike, slots):
    cache = MemoryCache()
    readers = AsyncSlotAvailabilityService(slots, cache=cache)
    strike.begin(readers.get_availability())
    follower = asyncio.create_task(readers.get_availability())
    await strike.outcome()
    assert free_in(await follower) == 10
    check_flights(readers)
    assert is_free(cache.locks())
    assert slots._table._lists._engine._engine.pool.checkedout() == 0
    await slots.close()
    await check_tasks()


async def from_the_last_connection(strike, slots):
    await slots.load()
    await from_a_new_connection(strike, slots)


@pytest.fixture
def two_halves(tmp_path):
    """One table, as each half sees it."""
    with SqlSlots.sqlite(tmp_path / "ten.db") as slots:
        slots.create_tables()
        slots.add([(1, 10)])
        yield slots, AsyncSqlSlots.sqlite(tmp_path / "ten.db")


IN_THREADS = (in_threads, waits_in_threads, follows_in_threads, clears_in_threads)


@pytest.mark.parametrize("case", IN_THREADS, ids=lambda case: case.__name__)
def test_a_reader_of_what_blocks_may_be_cancelled_wherever_it_waits(
    case, two_halves, tmp_path, record_property
):
    run = run_in_threads(case, two_halves, tmp_path)
    check_everywhere(run, case, record_property)


def run_in_threads(case, two_halves, folder):
    blocking, _ = two_halves
    cache = FileCache(folder)

    async def emptied(strike):
        cache.clear_all()
        await case(strike, blocking, cache)
        await check_tasks()

    return lambda strike: asyncio.run(emptied(strike))


def test_a_lock_is_given_back_by_who_was_cancelled_before_a_thread_was_free(monkeypatch):
    """Else it would be held until its life is over."""
    monkeypatch.setattr(threaded, "_MOST_THREADS", 1)
    provider = MemoryLocks()

    async def case():
        threads, gate = threaded.Threads(), Gate()
        locks = threaded.ThreadedLocks(provider, threads)
        lock = await locks.acquire(LOCK, ttl=60)
        busy = asyncio.create_task(threads.call(gate))
        await asyncio.to_thread(gate.wait_for_somebody)
        giving_back = asyncio.create_task(locks.release(lock))
        await a_while()
        giving_back.cancel()
        await asyncio.wait([giving_back])
        gate.open()
        await busy
        await eventually(lambda: is_free(provider))
        threads.close()

    asyncio.run(case())


@pytest.mark.parametrize("waits_for", ["a thread", "an error"])
def test_who_was_granted_no_lock_has_none_to_give_back(waits_for, monkeypatch, caplog):
    monkeypatch.setattr(threaded, "_MOST_THREADS", 1)
    gate = Gate()

    class Locks(MemoryLocks):
        def acquire(self, name, *, ttl):
            gate()
            raise OSError

    async def case():
        threads = threaded.Threads()
        locks = threaded.ThreadedLocks(Locks(), threads)
        first = threads.submit(gate) if waits_for == "a thread" else None
        asking = asyncio.create_task(locks.acquire(LOCK, ttl=60))
        await asyncio.to_thread(gate.wait_for_somebody)
        asking.cancel()
        await asyncio.wait([asking])
        gate.open()
        await threads.call(int)  # the one before it has ended
        assert first is None or first.done()
        threads.close()

    asyncio.run(case())

    assert not caplog.records


class Loads:
    """A table whose loads wait in threads until each is let go; then the first one may fail."""

    scope_type = str

    def __init__(self):
        self.gates = [Gate() for _ in range(4)]
        self.begun = 0
        self.first_fails = False

    def load(self, scope):
        number, self.begun = self.begun, self.begun + 1
        self.gates[number]()
        if self.first_fails and number == 0:
            raise OSError
        return Loaded(Availability.of([(number, 10, 10)]))


class Asking:
    """Asks for loads in threads, and leaves them."""

    def __init__(self):
        self.loads = Loads()
        self._threads = threaded.Threads()
        self._slots = threaded.ThreadedSlots(self.loads, self._threads)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.let_go(0, 1, 2, 3)
        self._threads.close()

    async def begin(self, scope=None):
        """Ask, and go as far as that goes before anything is let go."""
        task = asyncio.create_task(self._slots.load(scope))
        for _ in range(3):
            await a_while()
        return task

    async def is_begun(self, number):
        await asyncio.to_thread(self.loads.gates[number].wait_for_somebody)

    async def leave(self, number, task):
        """Have who asked for this load be cancelled while it runs."""
        await self.is_begun(number)
        task.cancel()
        await asyncio.wait([task])

    def let_go(self, *numbers):
        for number in numbers:
            self.loads.gates[number].open()


def test_a_load_that_was_left_holds_up_no_other_list():
    async def case():
        async with Asking() as asking:
            await asking.leave(0, await asking.begin("hall"))
            other = await asking.begin("yard")
            asking.let_go(1)
            await asyncio.wait([other], timeout=1)
            assert other.done()

    asyncio.run(case())


def test_a_load_that_was_left_and_fails_is_no_error_of_the_next():
    async def case():
        async with Asking() as asking:
            asking.loads.first_fails = True
            await asking.leave(0, await asking.begin())
            following = await asking.begin()
            asking.let_go(0, 1)
            assert free_in((await following).availability) == 10

    asyncio.run(case())


def test_a_load_that_is_left_while_another_one_is_waited_for_is_waited_for_too():
    async def case():
        async with Asking() as asking:
            first = await asking.begin()
            await asking.is_begun(0)
            second = await asking.begin()
            await asking.leave(0, first)
            third = await asking.begin()
            asking.let_go(0)
            await asking.is_begun(2)
            await asking.leave(1, second)
            last = await asking.begin()
            await asking.leave(2, third)
            asking.let_go(1)
            await asyncio.sleep(0.05)
            assert asking.loads.begun == 3
            asking.let_go(2, 3)
            assert free_in((await last).availability) == 10

    asyncio.run(case())


async def was_decisive():
    with worlds.decisive():
        await a_while()
    await asyncio.Event().wait()


async def has_begun_what_is():
    async def beside():
        with worlds.decisive():
            await asyncio.Event().wait()

    task = asyncio.create_task(beside())
    try:
        await asyncio.Event().wait()
    finally:
        task.cancel()


@pytest.mark.parametrize("work", [was_decisive, has_begun_what_is], ids=lambda work: work.__name__)
def test_what_is_not_decisive_itself_is_interrupted_at_once(work):
    async def case():
        call = asyncio.create_task(worlds.as_a_whole(work()))
        for _ in range(5):
            await a_while()
        call.cancel()
        await asyncio.wait([call], timeout=0.5)
        assert call.cancelled()

    asyncio.run(case())


@pytest.mark.parametrize("case", [from_a_new_connection, from_the_last_connection])
def test_a_reader_of_a_database_may_be_cancelled_wherever_it_waits(
    case, two_halves, record_property
):
    _, slots = two_halves
    check_everywhere(lambda strike: asyncio.run(case(strike, slots)), case, record_property)


def check_everywhere(run, case, record_property):
    points = strike_everywhere(run)
    late = strike_everywhere(run, late=True)
    pairs = strike_twice_everywhere(run)

    assert min(points, late) > 0
    name = case.__name__.replace("_", " ")
    record_property("cancelled", f"a read, {name}: {points} points, {pairs} pairs of them")


ROUNDS = int(os.environ.get("SLOTCACHE_TEST_ROUNDS", "1"))
"""How much longer to look for what is rare: see the task `soak` of dev.py."""

TWICE = ("create", "create, with a key", "confirm")
"""Which on servers, too."""

ALIKE = ("confirm late", "cancel a part", "extend", "get", "set_capacity")
"""Which wait where others do that are cancelled twice."""

DONE_SO = [
    *(("file", "counted", name) for name in OPERATIONS),
    *(
        (kind, "counted", name)
        for kind in ("postgres", "mariadb")
        for name in OPERATIONS
        if THOROUGH or name in TWICE or (kind == "postgres" and name not in ALIKE)
    ),
    *(("postgres", "on_hold", name) for name in ("create", "create, with a key", "cancel")),
    *(("file", "on_hold", name) for name in ("create", "confirm")),
]


@pytest.mark.parametrize(("kind", "claim", "name"), DONE_SO)
def test_an_operation_may_be_cancelled_wherever_it_waits(
    kind, claim, name, place_of, record_property
):
    """As soon as it waits; and in the last instant of a wait, and then in that of the next."""
    with box_office(kind, place_of(kind), claim) as tills:

        def run(strike):
            tills.run(tills.strike(name, strike))

        run(Strike())
        points = strike_everywhere(run)
        if name in TWICE or (kind == "file" and name not in ALIKE) or ROUNDS > 1:
            strike_everywhere(run, late=True, once_more=1)
    record_property("cancelled", f"{name}, {kind}, {claim}: {points} points")
    assert points > 1


@pytest.mark.parametrize("kind", ["file", "postgres", "mariadb"])
def test_an_operation_may_be_cancelled_while_it_connects(kind, place_of, record_property):
    with box_office(kind, place_of(kind), "on_hold") as tills:

        def run(strike):
            tills.run(tills.strike("create", strike, connects=True))

        run(Strike())
        points = strike_everywhere(run)
        strike_everywhere(run, late=True, once_more=2)
    record_property("cancelled", f"create, {kind}, with a new connection: {points} points")


@pytest.mark.parametrize("kind", ["file", "postgres"])
def test_an_operation_may_be_cancelled_in_a_crowd(kind, place_of, record_property):
    """Where it waits for the others."""
    with box_office(kind, place_of(kind), "counted") as tills:

        def run(strike):
            tills.run(tills.strike_in_a_crowd(strike))

        run(Strike())
        points = strike_everywhere(run)
        strike_everywhere(run, late=True, once_more=1)
    record_property("cancelled", f"create, {kind}, in a crowd: {points} points")


def test_a_hook_may_be_cancelled_wherever_it_waits(place_of, record_property):
    """What it did not clear is owed, and until it is paid nobody believes the cache."""
    with box_office("file", place_of("file"), "counted") as tills:

        def run(strike):
            cache = AwaitedCache(MemoryCache())
            tills.run(tills.strike("confirm", strike, cache=cache))

        run(Strike())
        points = strike_everywhere(run)
        strike_everywhere(run, late=True, once_more=2)
    record_property("cancelled", f"confirm, with a hook that waits: {points} points")


def test_a_hook_that_blocks_is_told_though_its_caller_is_gone(place_of):
    """Its thread goes on, or will begin: nobody else would clear the list."""
    with box_office("file", place_of("file"), "counted") as tills:
        assert strike_everywhere(lambda strike: tills.run(tills.strike_before_a_thread(strike))) > 1


@pytest.mark.parametrize("kind", ["file", "postgres", "mariadb"])
def test_a_users_commit_may_be_cancelled_wherever_it_waits(kind, place_of, record_property):
    """If it has been committed, the hook has been told (P8)."""
    with box_office(kind, place_of(kind), "counted") as tills:

        def run(strike):
            tills.run(tills.strike_users_commit(strike))

        points = strike_everywhere(run)
        strike_everywhere(run, late=True)
        strike_everywhere(run, once_more=1)
    record_property("cancelled", f"a commit of a user's, {kind}: {points} points")


SLOW = """
CREATE OR REPLACE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN PERFORM pg_sleep({}); RETURN NULL; END$$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT OR UPDATE ON slot_holds
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION be_slow()
"""


def execute(tills, sql):
    with tills.outside.engine.begin() as connection:
        connection.exec_driver_sql(sql)


@pytest.fixture
def slow_commits(place_of):
    """A box office on PostgreSQL, whose COMMITs take a while, as it may be told."""
    with box_office("postgres", place_of("postgres"), "counted") as tills:
        yield tills
        execute(tills, "DROP FUNCTION IF EXISTS be_slow CASCADE")


@pytest.mark.parametrize("name", ["create", "create, with a key", "confirm"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_commit_that_was_sent_is_waited_for(name, times, slow_commits):
    """Its outcome is known when the call is over, and the hook was told after it (P8)."""
    tills = slow_commits

    async def case():
        hold = tills.anew(OPERATIONS[name])
        before = tills.state()
        told_of = []
        async with tills.open(hook=lambda scope: told_of.append(tills.state())):
            execute(tills, SLOW.format(0.3))
            call = asyncio.create_task(OPERATIONS[name].work(tills.holds, hold))
            await eventually(lambda: sleeping(tills))
            for _ in range(times):
                call.cancel()
                await asyncio.sleep(0.01)
            await asyncio.wait([call])
            assert call.cancelled()
            assert not sleeping(tills)
            after = tills.state()
            assert after != before
            assert told_of == [after]

    tills.run(case())


def sleeping(tills):
    sql = (
        "SELECT 1 FROM pg_stat_activity"
        " WHERE wait_event = 'PgSleep' AND datname = current_database()"
    )
    return query(tills.outside, sql)


def test_a_commit_that_does_not_end_is_given_up_and_told_of(slow_commits):
    """Nobody knows what becomes of it, but that it is over."""
    tills = slow_commits

    async def case():
        hold = tills.anew(OPERATIONS["confirm"])
        async with tills.open():
            execute(tills, SLOW.format(60))
            call = asyncio.create_task(tills.holds.confirm(hold.id))
            await eventually(lambda: sleeping(tills))
            began = monotonic()
            call.cancel()
            await asyncio.wait([call])
            assert 0.9 < monotonic() - began < 5
            assert not sleeping(tills)
            assert tills.told == ["hall"]
            assert tills.blocking.get(hold.id) == hold
            await tills.check_list()
        execute(tills, "DROP FUNCTION be_slow CASCADE")
        tills.check_free()

    tills.run(case())


@pytest.mark.parametrize(
    ("kind", "claim", "name"),
    [
        ("postgres", "counted", "create, with a key"),
        ("postgres", "counted", "confirm"),
        ("postgres", "on_hold", "create"),
        ("mariadb", "counted", "create"),
        ("file", "counted", "create"),
    ],
)
def test_who_is_cancelled_while_a_slot_is_locked_does_nothing_later(kind, claim, name, place_of):
    """Neither at once nor when the lock is let go, and nobody waits for it any more."""
    with box_office(kind, place_of(kind), claim) as tills:

        async def case():
            hold = tills.anew(OPERATIONS[name])
            before = tills.state()
            async with tills.open():
                with tills.outside.engine.connect() as blocker:
                    blocker.exec_driver_sql("UPDATE slots SET remaining = remaining")
                    call = asyncio.create_task(OPERATIONS[name].work(tills.holds, hold))
                    await waiting_for_lock(kind, tills)
                    call.cancel()
                    if kind != "file":  # whose thread waits until then
                        await asyncio.wait([call], timeout=5)
                        assert call.cancelled()
                    if kind == "postgres":
                        assert not query(tills.outside, WAITING)
                    blocker.rollback()
                await asyncio.wait([call], timeout=5)
                assert call.cancelled()
                tills.check_given_back()
                assert tills.state() == before
                await tills.check_list()
            tills.check_free()

        tills.run(case())


WAITING = "SELECT 1 FROM pg_locks WHERE NOT granted"


async def waiting_for_lock(kind, tills):
    if kind == "postgres":
        await eventually(lambda: query(tills.outside, WAITING))
    elif kind == "mariadb":
        sql = (
            "SELECT 1 FROM information_schema.processlist"
            " WHERE command = 'Query' AND info LIKE 'UPDATE slots %%' AND time_ms > 50"
        )
        await eventually(lambda: query(tills.outside, sql))
    else:
        await asyncio.sleep(0.1)


NOT_A_CALLERS = {
    ("service", "__aexit__"),
    ("sql/slots", "__aexit__"),
    ("sql/slots", "close"),
    ("sql/slots", "create_tables"),
    ("sql/slots", "add"),
    ("guard", "_recover"),
    ("guard", "retry"),
    ("threaded", "look"),
    ("threaded", "wait"),  # for a clock that blocks: whether anybody is that far is its threads'
    ("refill", "close"),
    ("worlds", "end"),
    ("worlds", "in_line"),
    ("worlds", "run"),
}
"""Nobody reads or books by these, or they never wait, or the count stands in their place."""


def test_no_await_is_left_out(two_halves, tmp_path, place_of):
    """Every one that is written in the half is a point at which some case above is cancelled."""
    visited = set()

    def go(run, *at):
        strike = Strike(*at)
        run(strike)
        visited.update(strike.points.places)
        return strike.points.count

    for case in READS:
        go(lambda strike: asyncio.run(case(strike)))  # noqa: B023
    for case in IN_THREADS:
        go(run_in_threads(case, two_halves, tmp_path))
    go(lambda strike: asyncio.run(from_a_new_connection(strike, two_halves[1])))
    with box_office("file", place_of("file"), "counted") as tills:
        for name in OPERATIONS:
            go(lambda strike: tills.run(tills.strike(name, strike)))  # noqa: B023
        go(lambda strike: tills.run(tills.strike_in_a_crowd(strike)))
        go(lambda strike: tills.run(tills.strike_before_a_thread(strike)))
        cache = AwaitedCache(MemoryCache())
        points = go(lambda strike: tills.run(tills.strike("confirm", strike, cache=cache)))
        for point in range(1, points):
            go(lambda strike: tills.run(tills.strike("confirm", strike)), point, point + 1)
    modules = [guard, holds, hook, operations, refill, service, sql_slots, threaded, waits, worlds]

    left_out = {place for place in awaits_in(modules) - visited if place[:2] not in NOT_A_CALLERS}
    assert not left_out, sorted(left_out)
