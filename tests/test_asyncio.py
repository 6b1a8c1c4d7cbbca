"""What asyncio asks for: no task a hit, none left behind, no loop that stands still or lives on."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.util import await_only

from slotcache import (
    AsyncHoldManager,
    AsyncSlotAvailabilityService,
    Availability,
    AvailabilityPolicy,
    Hold,
    HoldManager,
    SlotAvailabilityService,
    SlotFull,
    Source,
)
from slotcache.file import FileCache, FileLocks
from slotcache.memory import MemoryCache, MemoryLocks
from slotcache.protocols import Entry, Loaded, Miss, Scope
from slotcache.redis import AsyncRedisCache
from slotcache.sql import AsyncSqlSlots, SqlSlots
from slotcache.sql.waits import in_greenlet
from slotcache.testing import LoopThread, ManualClock

from .support.forks import in_child
from .support.shelf import ScopedShelf, Shelf, left
from .support.sql import write_lock
from .support.thorough import THOROUGH
from .support.threads import PATIENCE, Gate

uvloop = pytest.importorskip("uvloop", reason="there is no uvloop for this system")

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}

each_loop = pytest.mark.parametrize("loop", LOOPS)


def run(main: Coroutine[Any, Any, Any], *, loop: str = "asyncio", debug: bool = True) -> Any:
    """Run this in a loop of its own, which checks what it is used for."""
    with asyncio.Runner(loop_factory=LOOPS[loop], debug=debug) as runner:
        runner.get_loop().slow_callback_duration = 1.0  # the machine may be slow
        return runner.run(main)


class AsyncShelf:
    """A table on asyncio, whose loads a test holds up."""

    scope_type: type[Scope] | None = None

    def __init__(self, seconds: float = 0.0) -> None:
        self.remaining = 10
        self.seconds = seconds
        self.loads = self.running = self.most = self.ended = 0

    async def load(self, scope: Scope | None) -> Loaded:
        self.loads += 1
        self.running += 1
        self.most = max(self.most, self.running)
        read = Availability.of([("slot", 10, self.remaining)])
        try:
            await asyncio.sleep(self.seconds)
            self.ended += 1
        finally:
            self.running -= 1
        return Loaded(read)


class BlockingCache:
    """A cache that blocks, and tells in which threads it was called."""

    def __init__(self) -> None:
        self._memory = MemoryCache()
        self.threads: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._memory, name)

        def call(*args: Any, **options: Any) -> Any:
            self.threads.add(threading.current_thread().name)
            return found(*args, **options)

        return call

    def read(self, key: str) -> Entry | Miss:
        self.threads.add(threading.current_thread().name)
        return self._memory.read(key)

    def locks(self) -> MemoryLocks:
        return self._memory.locks()


class Remote:
    """A cache on asyncio that may be down."""

    def __init__(self) -> None:
        self._memory = MemoryCache()
        self.is_down = False

    async def read(self, key: str) -> Entry | Miss:
        return self._answering().read(key)

    async def look(self, key: str) -> Miss:
        return self._answering().look(key)

    async def fill(self, *args: Any, **times: Any) -> Entry | None:
        return self._answering().fill(*args, **times)

    async def clear(self, key: str) -> None:
        self._answering().clear(key)

    async def clear_all(self) -> None:
        self._answering().clear_all()

    def locks(self) -> MemoryLocks:
        return self._memory.locks()

    def _answering(self) -> MemoryCache:
        if self.is_down:
            raise ConnectionError("down")
        return self._memory


@asynccontextmanager
async def ticking(*, longest: float) -> AsyncIterator[None]:
    """Have a ticker of 10 ms go on meanwhile; fail if it stood still for so many seconds."""
    gaps: list[float] = []

    async def tick() -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            gaps.append(time.monotonic() - before)
            before = time.monotonic()

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0.02)
    try:
        yield
    finally:
        ticker.cancel()
    assert max(gaps) < longest, f"the loop stood still for {max(gaps):.3f} s"


@pytest.fixture
def collected_at_once() -> Iterator[None]:
    """Have the collector of garbage come before the next test."""
    yield
    gc.collect()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nobody tells."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def others() -> set[asyncio.Task[Any]]:
    """The tasks that run beside this one."""
    return asyncio.all_tasks() - {asyncio.current_task()}


class TestReads:
    """Reads in one event loop."""

    @each_loop
    def test_two_hundred_tasks_at_a_cold_key_cost_one_load(self, loop: str) -> None:
        async def main() -> None:
            shelf = AsyncShelf(seconds=0.05)
            async with AsyncSlotAvailabilityService(shelf) as service:
                lists = await asyncio.gather(*(service.get_availability() for _ in range(200)))
                assert len({id(each) for each in lists}) == 1
                assert (shelf.loads, shelf.most) == (1, 1)
                assert service.stats().shared == 199

        run(main(), loop=loop)

    def test_two_hundred_tasks_hold_one_connection(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with AsyncSqlSlots.sqlite(tmp_path / "slots.db") as slots:
                await slots.create_tables()
                await slots.add([(1, 30)])
                connected: list[object] = []
                listener = connected.append
                sa.event.listen(sa.Engine, "engine_connect", listener)
                try:
                    async with AsyncSlotAvailabilityService(slots) as service:
                        reads = (service.get_availability() for _ in range(200))
                        await asyncio.gather(*reads)
                        assert service.stats().loads == 1
                finally:
                    sa.event.remove(sa.Engine, "engine_connect", listener)
                assert len(connected) == 1

        run(main())

    def test_a_hit_makes_no_task(self) -> None:
        async def main() -> None:
            made: list[object] = []

            def factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
                made.append(coroutine)
                return asyncio.Task(coroutine, loop=loop, **options)

            async with AsyncSlotAvailabilityService(AsyncShelf()) as service:
                await service.get_availability()
                asyncio.get_running_loop().set_task_factory(factory)
                for _ in range(100):
                    await service.get_availability()
                    await service.read()
                assert service.stats().hits == 200
            assert made == []

        run(main())

    def test_a_hit_in_memory_never_gives_way(self) -> None:
        async def main() -> Availability:
            service = AsyncSlotAvailabilityService(AsyncShelf())
            await service.get_availability()
            read = service.get_availability()
            with pytest.raises(StopIteration) as answered:
                read.send(None)
            found: Availability = answered.value.value
            return found

        assert left(run(main())) == 10

    def test_a_cache_that_blocks_is_never_called_by_the_loop(self) -> None:
        async def main() -> None:
            cache = BlockingCache()
            async with AsyncSlotAvailabilityService(AsyncShelf(), cache=cache) as service:
                await service.get_availability()
                await service.get_availability()
                await service.clear_availability_cache()
                assert service.stats().hits == 1
            assert cache.threads
            assert threading.main_thread().name not in cache.threads

        run(main())

    def test_both_worlds_share_one_cache_and_its_locks(self, tmp_path: Path) -> None:
        """What one fills the other one finds, and what one clears is clear for both."""

        async def main() -> None:
            for cache in (MemoryCache(), FileCache(tmp_path)):
                shelf, same = AsyncShelf(), Shelf()
                service = AsyncSlotAvailabilityService(shelf, cache=cache)
                blocking = SlotAvailabilityService(same, cache=cache)
                await service.get_availability()
                found = await asyncio.to_thread(blocking.read)
                assert (found.source, same.loads) == (Source.CACHED, 0)
                await asyncio.to_thread(blocking.clear_availability_cache)
                shelf.remaining = 9
                assert left(await service.get_availability()) == 9
                await service.clear_availability_cache()
                same.remaining = 8
                assert left(await asyncio.to_thread(blocking.get_availability)) == 8
                await service.close()
                blocking.close()

        run(main())

    def test_a_query_of_the_other_world_is_waited_for(self) -> None:
        async def main() -> None:
            cache, gate = MemoryCache(), Gate()
            same = Shelf()
            same.during_load = gate
            blocking = SlotAvailabilityService(same, cache=cache)
            shelf = AsyncShelf()
            service = AsyncSlotAvailabilityService(shelf, cache=cache)
            theirs = asyncio.create_task(asyncio.to_thread(blocking.read))
            await asyncio.to_thread(gate.wait_for_somebody)
            ours = asyncio.create_task(service.read())
            await asyncio.sleep(0.05)
            gate.open()
            assert (await theirs).source is Source.LOADED
            assert (await ours).source is Source.CACHED
            assert shelf.loads == 0

        run(main())

    def test_two_loops_in_two_threads_share_a_load(self) -> None:
        shelf = AsyncShelf(seconds=0.1)
        service = AsyncSlotAvailabilityService(shelf)
        with LoopThread() as one, LoopThread(factory=LOOPS["uvloop"]) as other:
            first = asyncio.run_coroutine_threadsafe(service.read(), one.loop)
            while not shelf.loads:
                time.sleep(0.001)
            second = asyncio.run_coroutine_threadsafe(service.read(), other.loop)
            answers = first.result(PATIENCE), second.result(PATIENCE)
        assert answers[0].availability is answers[1].availability
        assert shelf.loads == 1

    def test_a_leader_whose_loop_has_stopped_is_not_waited_for(self) -> None:
        shelf = AsyncShelf(seconds=60)
        service = AsyncSlotAvailabilityService(
            shelf, locks=MemoryLocks(), policy=AvailabilityPolicy(lock_timeout=0.05)
        )
        stopped = asyncio.new_event_loop()
        leader = stopped.create_task(service.read())
        while not shelf.loads:
            stopped.run_until_complete(asyncio.sleep(0))
        shelf.seconds = 0

        assert run(service.read()).source in (Source.LOADED, Source.DIRECT)

        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            stopped.run_until_complete(leader)
        stopped.close()

    def test_nothing_but_asyncio(self) -> None:
        trio = pytest.importorskip("trio")
        for ask in (
            AsyncSlotAvailabilityService(AsyncShelf()).get_availability,
            AsyncSlotAvailabilityService(Shelf(), cache=BlockingCache()).read,
            AsyncSqlSlots.sqlite(":memory:").load,
            AsyncHoldManager(AsyncSqlSlots.sqlite(":memory:"), on_change=None).find,
            partial(AsyncRedisCache("redis://localhost:1").read, "slots.availability"),
        ):
            with pytest.raises(RuntimeError, match=r"runs on asyncio.*trio\.to_thread"):
                trio.run(ask)

    def test_a_table_that_hangs_holds_up_no_hit(self) -> None:
        """Threads that wait for the table are not those that ask the cache."""

        async def main() -> None:
            gate, shelf = Gate(), ScopedShelf()
            cache = BlockingCache()
            async with AsyncSlotAvailabilityService(shelf, cache=cache) as service:
                await service.get_availability("free")
                shelf.during_load = gate
                hanging = [
                    asyncio.create_task(service.get_availability(str(number)))
                    for number in range(80)
                ]
                await asyncio.to_thread(gate.wait_for_somebody)
                async with asyncio.timeout(PATIENCE):
                    assert (await service.read("free")).source is Source.CACHED
                    assert await service.clear_availability_cache("free")
                gate.open()
                await asyncio.gather(*hanging)

        run(main())


class TestCancelled:
    """What threads make of tasks that are cancelled: the rest is in test_cancellation.py."""

    def test_a_load_that_nobody_can_stop_is_waited_for(self) -> None:
        async def main() -> None:
            gate, shelf = Gate(), Shelf()
            shelf.during_load = gate
            async with AsyncSlotAvailabilityService(shelf) as service:
                leader = asyncio.create_task(service.read())
                await asyncio.to_thread(gate.wait_for_somebody)
                leader.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await leader
                following = asyncio.create_task(service.read())
                await asyncio.sleep(0.05)
                assert shelf.loads == 1
                gate.open()
                assert left((await following).availability) == 10
                assert shelf.loads == 2

        run(main())

    def test_a_lock_that_a_thread_got_too_late_is_given_back(self) -> None:
        async def main() -> None:
            asked, gate = threading.Event(), Gate()

            class Slow(MemoryLocks):
                def acquire(self, name: str, *, ttl: float) -> Any:
                    lock = super().acquire(name, ttl=ttl)
                    if not asked.is_set():
                        asked.set()
                        gate()
                    return lock

            class Blocking:
                """No `MemoryLocks`, which would be called in line."""

                def __init__(self) -> None:
                    self._locks = Slow()
                    self.acquire, self.release = self._locks.acquire, self._locks.release

            locks = Blocking()
            policy = AvailabilityPolicy(lock_ttl=600)
            service = AsyncSlotAvailabilityService(AsyncShelf(), locks=locks, policy=policy)
            reader = asyncio.create_task(service.read())
            await asyncio.to_thread(asked.wait, PATIENCE)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            gate.open()
            assert (await service.read()).source is Source.LOADED
            await service.close()

        run(main())


class TestTheLoopGoesOn:
    """A ticker of 10 ms keeps its pace."""

    def test_while_a_lock_is_waited_for(self) -> None:
        async def main() -> None:
            locks = MemoryLocks()
            policy = AvailabilityPolicy(lock_timeout=0.5)
            assert locks.acquire(f"{policy.key}.lock", ttl=60)
            service = AsyncSlotAvailabilityService(AsyncShelf(), locks=locks, policy=policy)
            async with ticking(longest=0.45):
                assert (await service.read()).source is Source.DIRECT

        run(main())

    def test_while_a_blocking_table_is_read(self) -> None:
        async def main() -> None:
            shelf = Shelf()
            shelf.during_load = lambda: time.sleep(0.5)
            async with AsyncSlotAvailabilityService(shelf) as service, ticking(longest=0.45):
                assert (await service.read()).source is Source.LOADED

        run(main())

    def test_while_files_are_locked_and_written(self, tmp_path: Path) -> None:
        async def main() -> None:
            policy = AvailabilityPolicy(lock_timeout=0.5)
            assert FileLocks(tmp_path).acquire(f"{policy.key}.lock", ttl=60)
            service = AsyncSlotAvailabilityService(
                AsyncShelf(), cache=FileCache(tmp_path), policy=policy
            )
            async with service, ticking(longest=0.45):
                assert (await service.read()).source is Source.DIRECT
                for _ in range(10):
                    await service.clear_availability_cache()

        run(main())

    def test_while_another_process_writes_to_the_database(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with AsyncSqlSlots.sqlite(tmp_path / "slots.db") as slots:
                await slots.create_tables()
                await slots.add([(1, 30)])
                holds = AsyncHoldManager(slots, on_change=None)
                await holds.create(1)  # its statements are compiled at their first use
                async with ticking(longest=0.45):
                    with write_lock(tmp_path / "slots.db"):
                        waiting = [asyncio.create_task(holds.create(1)) for _ in range(5)]
                        await asyncio.sleep(0.5)
                        assert not any(task.done() for task in waiting)
                    await asyncio.gather(*waiting)

        run(main())

    @pytest.mark.parametrize("server", ["postgres_url", "mariadb_url"])
    def test_while_a_row_is_locked(self, server: str, request: pytest.FixtureRequest) -> None:
        async def main() -> None:
            engine = create_async_engine(on_asyncio(request.getfixturevalue(server)))
            slots = AsyncSqlSlots(engine)
            await slots.create_tables()
            await slots.add([(1, 30)])
            holds = AsyncHoldManager(slots, on_change=None)
            await holds.create(1)  # its statements are compiled at their first use
            async with ticking(longest=0.45), engine.connect() as other:
                await other.execute(sa.text("UPDATE slots SET remaining = remaining"))
                waiting = [asyncio.create_task(holds.create(1)) for _ in range(3)]
                await asyncio.sleep(0.5)
                assert not any(task.done() for task in waiting)
                await other.rollback()
                await asyncio.gather(*waiting)
            await slots.close()
            await engine.dispose()

        run(main())

    def test_while_a_hook_blocks(self) -> None:
        async def main() -> None:
            async with AsyncSqlSlots.sqlite(":memory:") as slots:
                await slots.create_tables()
                await slots.add([(1, 30)])
                holds = AsyncHoldManager(slots, on_change=lambda scope: time.sleep(0.5))
                async with ticking(longest=0.45):
                    await holds.create(1)
                assert holds.hook_failures == 0

        run(main())


class TestLoops:
    """One set of objects in many event loops, one after the other."""

    @each_loop
    @pytest.mark.parametrize("where", ["file", ":memory:"] if THOROUGH else ["file"])
    def test_many_in_one_process(
        self, loop: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("slotcache.guard.BUDGET", PATIENCE)  # the machine may be slow
        slots = AsyncSqlSlots.sqlite(tmp_path / "slots.db" if where == "file" else where)
        cache = FileCache(tmp_path / "lists")
        service = AsyncSlotAvailabilityService(slots, cache=cache)
        holds = AsyncHoldManager(slots, on_change=service.clear_availability_cache)

        async def main(sold: int) -> None:
            if sold == 0:
                await slots.create_tables()
                await slots.add([(1, 30)])
            assert left(await service.get_availability()) == 30 - sold
            # So many that some wait, in the pool of connections too.
            await asyncio.gather(holds.create(1), *(holds.find() for _ in range(40)))
            assert left(await service.get_availability()) == 29 - sold
            assert others() == set()

        for sold in range(3):
            run(main(sold), loop=loop)
        run(close(service, slots), loop=loop)
        cache.close()

    @pytest.mark.parametrize("server", ["postgres_url", "mariadb_url"])
    def test_many_on_a_server(self, server: str, request: pytest.FixtureRequest) -> None:
        """The engine is its user's, who disposes of it; our own connection follows by itself.

        Only that asyncmy cannot close one without its event loop: its user closes the table, too.
        """
        engine = create_async_engine(on_asyncio(request.getfixturevalue(server)))
        slots = AsyncSqlSlots(engine)
        service = AsyncSlotAvailabilityService(slots)
        holds = AsyncHoldManager(slots, on_change=service.clear_availability_cache)

        async def main(sold: int) -> None:
            if sold == 0:
                await slots.create_tables()
                await slots.add([(1, 30)])
            assert left(await service.get_availability()) == 30 - sold
            await asyncio.gather(holds.create(1), *(holds.find() for _ in range(5)))
            assert left(await service.get_availability()) == 29 - sold
            await engine.dispose()
            if engine.driver == "asyncmy":
                await slots.close()

        for sold in range(3):
            run(main(sold))
        run(close(service, slots))

    def test_nothing_is_kept_of_one_that_was_closed(self) -> None:
        slots = AsyncSqlSlots.sqlite(":memory:")
        service = AsyncSlotAvailabilityService(slots)
        holds = AsyncHoldManager(slots, on_change=service.clear_availability_cache)
        dead: list[weakref.ref[asyncio.AbstractEventLoop]] = []

        async def main() -> None:
            dead.append(weakref.ref(asyncio.get_running_loop()))
            await slots.create_tables()
            await asyncio.gather(*(service.get_availability() for _ in range(5)))
            await asyncio.gather(*(holds.find() for _ in range(40)))

        for _ in range(3):
            run(main())
        gc.collect()
        assert [loop() for loop in dead[:-1]] == [None, None]
        run(close(service, slots))

    def test_a_recovery_that_ended_with_its_loop_begins_anew_in_the_next(self) -> None:
        cache: Any = Remote()
        service = AsyncSlotAvailabilityService(AsyncShelf(), cache=cache)

        async def in_trouble() -> None:
            cache.is_down = True
            assert not await service.clear_availability_cache()
            assert len(others()) == 1

        async def back() -> None:
            cache.is_down = False
            await service.get_availability()
            await until(lambda: service.health().cache)
            assert service.health().undelivered == 0

        run(in_trouble())
        run(back())

        async def closed() -> None:
            cache.is_down = True
            await service.clear_availability_cache()
            assert len(others()) == 1
            await service.close()
            assert others() == set()

        run(closed())

    def test_one_that_goes_on_after_all_takes_no_turn_from_another(self) -> None:
        slots = AsyncSqlSlots.sqlite(":memory:")
        turns = slots._table._lists._turns
        event = asyncio.Event()

        def hold() -> None:
            with turns:
                await_only(event.wait())

        def try_once() -> bool:
            if took := turns.take(0.05):
                turns.give()
            return took

        stopped = asyncio.new_event_loop()
        first = stopped.create_task(in_greenlet(hold))
        stopped.run_until_complete(asyncio.sleep(0.01))
        with LoopThread() as other:
            entered = threading.Event()

            async def take_over() -> None:
                def hold_too() -> None:
                    with turns:
                        entered.set()
                        await_only(asyncio.sleep(PATIENCE))

                await in_greenlet(hold_too)

            second = asyncio.run_coroutine_threadsafe(take_over(), other.loop)
            assert entered.wait(PATIENCE)
            event.set()
            stopped.run_until_complete(first)
            assert not other.run(in_greenlet(try_once))
            second.cancel()
        stopped.close()

    # A thread of aiosqlite that was connecting complains of the end of its loop, and leaves what it
    # had opened to the collector of garbage.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_one_that_ends_in_the_midst_of_operations_leaves_nothing_locked(
        self, tmp_path: Path, collected_at_once: None
    ) -> None:
        """Its end cancels all tasks, those too that their callers have cancelled already."""
        slots = AsyncSqlSlots.sqlite(tmp_path / "slots.db")
        holds = AsyncHoldManager(slots, on_change=None)

        async def begin() -> None:
            await slots.create_tables()
            await slots.add([(1, 1_000)])

        async def fail(after: float) -> None:
            await asyncio.sleep(after)
            raise ValueError("a neighbour fails")

        async def job(after: float) -> None:
            await asyncio.gather(holds.create(1), holds.create(1), fail(after))

        run(begin())
        for number in range(15):
            with pytest.raises(ValueError, match="a neighbour fails"):
                run(job(0.0005 * number), debug=False)
            with write_lock(tmp_path / "slots.db"):
                pass
        assert run(holds.create(1)).slot_id == 1
        run(slots.close())

    @pytest.mark.parametrize("steps", [2, 4, 6])
    def test_one_that_stops_in_the_midst_of_a_call_keeps_nothing_from_the_next(
        self, steps: int
    ) -> None:
        slots = AsyncSqlSlots.sqlite(":memory:")
        holds = AsyncHoldManager(slots, on_change=None)

        async def begin() -> None:
            await slots.create_tables()
            await slots.add([(1, 1_000)])

        run(begin())
        stopped = asyncio.new_event_loop()
        left_there = [stopped.create_task(slots.load()), stopped.create_task(holds.create(1))]
        for _ in range(steps):
            stopped.run_until_complete(asyncio.sleep(0))

        async def go_on() -> None:
            async with asyncio.timeout(PATIENCE):
                await slots.load()
                await holds.create(1)

        run(go_on())
        for task in left_there:
            task.cancel()
        stopped.run_until_complete(asyncio.wait(left_there))
        for task in left_there:
            if not task.cancelled():
                task.exception()
        stopped.close()
        run(slots.close())

    @pytest.mark.parametrize("at", ["connect", "commit"])
    def test_one_that_stops_in_the_midst_of_an_operation_is_in_nobodys_way(
        self, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither by what it had locked nor by that it was using the table."""
        monkeypatch.setattr("slotcache.worlds._GRACE", 0.0)
        slots = AsyncSqlSlots.sqlite(tmp_path / "slots.db")
        holds = AsyncHoldManager(slots, on_change=None)
        arrived = asyncio.Event()

        async def begin() -> None:
            await slots.create_tables()
            await slots.add([(1, 5)])

        def stay_there(*_: object) -> None:
            if not arrived.is_set():
                arrived.set()
                await_only(asyncio.Event().wait())

        run(begin())
        sa.event.listen(slots.engine.sync_engine, at, stay_there)
        stopped = asyncio.new_event_loop()
        left_there = stopped.create_task(holds.create(1))
        stopped.run_until_complete(arrived.wait())

        with LoopThread() as one, LoopThread() as other:
            for loop in one, other:
                assert loop.run(holds.create(1)).slot_id == 1

        left_there.cancel()
        stopped.run_until_complete(asyncio.wait([left_there]))
        assert left_there.cancelled() or left_there.exception()
        stopped.close()
        run(slots.close())

    def test_a_second_one_is_refused_while_the_first_uses_the_table(self, tmp_path: Path) -> None:
        slots = AsyncSqlSlots.sqlite(tmp_path / "slots.db")
        holds = AsyncHoldManager(slots, on_change=None)
        arrived, go_on = threading.Event(), asyncio.Event()

        async def begin() -> None:
            await slots.create_tables()
            await slots.add([(1, 5)])

        def stay_there(*_: object) -> None:
            arrived.set()
            await_only(go_on.wait())

        run(begin())
        sa.event.listen(slots.engine.sync_engine, "commit", stay_there)
        with LoopThread() as one, LoopThread() as other:
            creating = asyncio.run_coroutine_threadsafe(holds.create(1), one.loop)
            assert arrived.wait(PATIENCE)
            with pytest.raises(RuntimeError, match="one loop uses it at a time"):
                other.run(holds.find())
            one.loop.call_soon_threadsafe(go_on.set)
            assert creating.result(PATIENCE).slot_id == 1
            one.run(slots.close())

    def test_warnings_and_slow_steps(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The debug mode of asyncio finds nothing to say."""

        async def main() -> None:
            async with AsyncSqlSlots.sqlite(tmp_path / "slots.db") as slots:
                await slots.create_tables()
                await slots.add([(1, 5)])
                cache = FileCache(tmp_path / "lists")
                async with AsyncSlotAvailabilityService(slots, cache=cache) as service:
                    holds = AsyncHoldManager(slots, on_change=service.clear_availability_cache)
                    made = await asyncio.gather(
                        *(holds.create(1) for _ in range(10)), return_exceptions=True
                    )
                    assert {type(each) for each in made} == {Hold, SlotFull}
                    assert left(await service.get_availability()) == 0
                cache.close()

        with caplog.at_level(logging.WARNING, logger="asyncio"):
            run(main())
            gc.collect()
        assert caplog.records == []

    def test_what_nobody_closed_goes_quietly(self, tmp_path: Path) -> None:
        async def main() -> None:
            slots = AsyncSqlSlots.sqlite(tmp_path / "slots.db")
            await slots.create_tables()
            await slots.load()
            await AsyncHoldManager(slots, on_change=None).find()

        run(main())
        gc.collect()


IN_TROUBLE_BY_HAND = """
import asyncio, threading
from slotcache import AsyncSlotAvailabilityService, Availability
from slotcache.memory import MemoryCache
from slotcache.protocols import Loaded
from slotcache.testing import ManualClock

class Gone(MemoryCache):
    def read(self, key):
        raise OSError("gone")

class Table:
    scope_type = None
    async def load(self, scope):
        return Loaded(Availability.of([(1, 2, 2)]))

async def main():
    service = AsyncSlotAvailabilityService(Table(), cache=Gone(), clock=ManualClock())
    print((await service.read()).source.name)
    while not any("slotcache" in thread.name for thread in threading.enumerate()):
        await asyncio.sleep(0)

asyncio.run(main())
"""


def test_a_process_ends_though_trouble_waits_for_a_clock_that_stands_still():
    """Found by a test run that never came to its end."""
    done = subprocess.run(
        [sys.executable, "-c", IN_TROUBLE_BY_HAND],
        capture_output=True,
        check=True,
        text=True,
        timeout=PATIENCE,
    )

    assert done.stdout == "DIRECT\n"


class TestScopedSessions:
    """Whose session it is depends on the task that asks."""

    def test_every_operation_is_in_the_session_of_who_asks(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with AsyncSqlSlots.sqlite(tmp_path / "slots.db") as slots:
                await slots.create_tables()
                await slots.add([(1, 5)])
                holds = AsyncHoldManager(slots, on_change=None)
                maker = async_sessionmaker(slots.engine)
                sessions = async_scoped_session(maker, scopefunc=asyncio.current_task)
                mine = holds.within(sessions)
                hold = await mine.create(1)
                assert await mine.get(hold.id) == hold
                await mine.confirm(hold.id)
                await sessions.remove()
                assert await holds.find() == []

        run(main())


class TestForks:
    """A child has its own."""

    def test_a_child_goes_on_with_the_same_table(self, tmp_path: Path) -> None:
        slots = AsyncSqlSlots.sqlite(tmp_path / "slots.db")
        service = AsyncSlotAvailabilityService(slots)
        holds = AsyncHoldManager(slots, on_change=service.clear_availability_cache)

        async def sell() -> int:
            await holds.create(1)
            return left(await service.get_availability())

        async def main() -> None:
            await slots.create_tables()
            await slots.add([(1, 30)])
            assert await sell() == 29

            def live() -> None:
                with asyncio.Runner() as runner:
                    # The loop of the parent runs in this thread, as far as anybody knows.
                    asyncio._set_running_loop(None)
                    assert runner.run(sell()) == 28

            in_child(live)
            await service.clear_availability_cache()
            assert left(await service.get_availability()) == 28
            assert await sell() == 27

        run(main(), debug=False)
        run(close(service, slots))


class TestHooks:
    """Hooks of both kinds."""

    @pytest.mark.parametrize("kind", ["function", "coroutine function", "lambda of a coroutine"])
    def test_each_is_called_before_the_call_returns(self, kind: str) -> None:
        told: list[Scope | None] = []
        threads: list[threading.Thread] = []

        def function(scope: Scope | None) -> None:
            threads.append(threading.current_thread())
            told.append(scope)

        async def coroutine_function(scope: Scope | None) -> None:
            await asyncio.sleep(0)
            function(scope)

        hooks: dict[str, Any] = {
            "function": function,
            "coroutine function": coroutine_function,
            "lambda of a coroutine": lambda scope: coroutine_function(scope),
        }

        async def main() -> None:
            async with AsyncSqlSlots.sqlite(":memory:") as slots:
                await slots.create_tables()
                await slots.add([(1, 30)], scope="a")
                holds = AsyncHoldManager(slots, on_change=hooks[kind])
                await holds.create(1)
                assert told == ["a"]
                assert (threads[0] is threading.main_thread()) is (kind != "function")
                assert others() == set()

        run(main())

    def test_one_that_blocks_waits_for_no_thread_of_the_loop(self) -> None:
        """They may all be waiting for the very call that tells it."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            async with AsyncSqlSlots.sqlite(":memory:") as slots:
                await slots.create_tables()
                await slots.add([(1, 100)])
                holds = AsyncHoldManager(slots, on_change=lambda scope: None)

                def book() -> Hold:
                    return asyncio.run_coroutine_threadsafe(holds.create(1), loop).result(PATIENCE)

                booked = await asyncio.gather(*(asyncio.to_thread(book) for _ in range(40)))
                assert len({hold.id for hold in booked}) == 40

        run(main())

    def test_one_that_reads_the_table_is_still_told_to_its_end(self) -> None:
        async def main() -> None:
            began, told = asyncio.Event(), []

            async with AsyncSqlSlots.sqlite(":memory:") as slots:

                async def hook(scope: Scope | None) -> None:
                    await slots.load()
                    began.set()
                    await asyncio.sleep(0.05)
                    told.append(scope)

                await slots.create_tables()
                await slots.add([(1, 30)])
                caller = asyncio.create_task(AsyncHoldManager(slots, on_change=hook).create(1))
                await began.wait()
                caller.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await caller
                assert told == [None]

        run(main())

    @pytest.mark.parametrize("waits", [False, True])
    def test_one_that_fails_is_counted(self, waits: bool, caplog: pytest.LogCaptureFixture) -> None:
        def fail(scope: Scope | None) -> None:
            raise ValueError("no")

        async def fail_later(scope: Scope | None) -> None:
            fail(scope)

        async def main() -> None:
            async with AsyncSqlSlots.sqlite(":memory:") as slots:
                await slots.create_tables()
                await slots.add([(1, 30)])
                holds = AsyncHoldManager(slots, on_change=fail_later if waits else fail)
                await holds.create(1)
                assert holds.hook_failures == 1

        run(main())
        assert "out of date" in caplog.text


class TestRefused:
    """Mixtures that cannot work are refused by name."""

    def test_a_blocking_service_of_what_is_for_asyncio(self) -> None:
        slots = AsyncSqlSlots.sqlite(":memory:")
        redis = AsyncRedisCache("redis://localhost:1")
        with pytest.raises(TypeError, match=r"AsyncSqlSlots is for asyncio.*AsyncSlotAvail.*Sql"):
            SlotAvailabilityService(slots)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"cache: AsyncRedisCache is for asyncio.*RedisCache"):
            SlotAvailabilityService(Shelf(), cache=redis)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"locks: AsyncRedisLocks is for asyncio.*RedisLocks"):
            SlotAvailabilityService(Shelf(), locks=redis.locks())  # type: ignore[arg-type]

    def test_managers_of_the_other_table(self) -> None:
        with pytest.raises(TypeError, match="AsyncSqlSlots is for AsyncHoldManager"):
            HoldManager(AsyncSqlSlots.sqlite(":memory:"), on_change=None)  # type: ignore[arg-type]
        slots = SqlSlots.sqlite(":memory:")
        with slots, pytest.raises(TypeError, match="SqlSlots is for HoldManager"):
            AsyncHoldManager(slots, on_change=None)  # type: ignore[arg-type]

    def test_tables_on_the_other_engine(self) -> None:
        asynchronous = create_async_engine("sqlite+aiosqlite:///x.db")
        with pytest.raises(TypeError, match="use AsyncSqlSlots"):
            SqlSlots(asynchronous)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="aiosqlite is for asyncio"):
            SqlSlots(asynchronous.sync_engine)
        with pytest.raises(TypeError, match=r"create_async_engine\(url\); with an Engine use Sql"):
            AsyncSqlSlots(sa.create_engine("sqlite:///x.db"))  # type: ignore[arg-type]

    def test_an_asynchronous_hook_of_a_blocking_manager(self) -> None:
        async def hook(scope: Scope | None) -> None: ...

        slots = SqlSlots.sqlite(":memory:")
        with slots, pytest.raises(TypeError, match="AsyncHoldManager"):
            HoldManager(slots, on_change=hook)


def test_time_by_hand_serves_both_worlds() -> None:
    async def main() -> None:
        clock, shelf = ManualClock(), AsyncShelf()
        async with AsyncSlotAvailabilityService(shelf, clock=clock) as service:
            await service.get_availability()
            clock.advance(9.9)
            assert (await service.read()).source is Source.CACHED
            clock.advance(0.1)
            assert (await service.read()).source is Source.LOADED

    run(main())


async def close(service: AsyncSlotAvailabilityService, slots: AsyncSqlSlots) -> None:
    await service.close()
    await slots.close()


def on_asyncio(url: str) -> str:
    """The same database by the driver for asyncio."""
    return url.replace("+pymysql", "+asyncmy")
