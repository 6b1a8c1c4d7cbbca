"""Other processes: told what to do, halted, stopped and killed, with an end to every wait."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from slotcache import (
    AvailabilityPolicy,
    HoldManager,
    HoldPolicy,
    SlotAvailabilityService,
    Source,
    guard,
)
from slotcache.file import FileCache, FileLocks
from slotcache.protocols import Loaded, Lock, Scope
from slotcache.sql import SqlSlots
from slotcache.worlds import SystemClock
from tests.support.forks import in_child
from tests.support.shelf import left
from tests.support.threads import PATIENCE, spawn

# Workers are forked off a server that has imported all they need and has no threads: they begin
# as new as if they were spawned, in a hundredth of the time.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["slotcache.file", "slotcache.sql", __name__, "tests.support.races"]
)


def eventually(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.002)


class Worker:
    """A process that has made one object and calls its methods for us, one after the other.

    Args:
        make: Makes it, over there. It is first given a function to call with the name of each
            place where the process might be halted, then the arguments.
    """

    def __init__(self, make: Callable[..., object], *arguments: object) -> None:
        self._pipe, theirs = PROCESSES.Pipe()
        self._process = PROCESSES.Process(
            target=_serve, args=(theirs, make, arguments), daemon=True
        )
        self._process.start()
        theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.answer()  # from now on it ends with us, even if it is stopped

    def call(self, method: str, *arguments: object) -> Any:
        """Call a method; return what it returns."""
        self.start(method, *arguments)
        return self.answer()

    def start(self, method: str, *arguments: object, halt: str | None = None) -> None:
        """Begin a call, to be halted when it first comes to the place of this name."""
        self._pipe.send((method, arguments, halt))

    def wait_until_halted(self) -> None:
        """Wait until the call has come to that place."""
        assert self._receive() is _HALTED, "it came to its end, and not to that place"

    def resume(self) -> None:
        """Let it go on from there."""
        self._pipe.send(None)

    def answer(self) -> Any:
        """Wait for the end of the call; return what it returns."""
        answer = self._receive()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def has_answered(self) -> bool:
        """Whether there is anything to be received."""
        return self._pipe.poll()

    def stop(self) -> None:
        """Have the system stop it (SIGSTOP), and wait until it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{self.pid}/stat")
        eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def go_on(self) -> None:
        """Have the system let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, wherever it is (SIGKILL)."""
        self._process.kill()
        self._process.join(PATIENCE)
        assert self._process.exitcode == -signal.SIGKILL
        self._pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if not self._pipe.closed:
            self.kill()

    def _receive(self) -> Any:
        assert self._pipe.poll(PATIENCE), "no answer came"
        kind, value = self._pipe.recv()
        return value if kind == "answer" else _HALTED


_HALTED = object()
_PLACES = 1_000_000
_PR_SET_PDEATHSIG = 1


def _end_with_the_tests() -> None:
    """Have the system end this process when the one that runs the tests is gone, however that is.

    Also if this one is stopped, or has work for an hour. It ends with the server that forked it,
    and that ends when nobody has its pipe open any more: as a rule its workers have.
    """
    alive: int = forkserver._forkserver._forkserver_alive_fd  # type: ignore[attr-defined]
    os.close(alive)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    runner = multiprocessing.parent_process()
    if runner is None or not runner.is_alive():  # the server may have ended before that
        os._exit(1)


def _serve(pipe: Connection, make: Callable[..., object], arguments: tuple[object, ...]) -> None:
    _end_with_the_tests()
    pipe.send(("answer", None))
    # That this machine is busy is no trouble.
    guard.BUDGET = PATIENCE  # type: ignore[attr-defined]
    halt: str | None = None

    def passing(place: str) -> None:
        nonlocal halt
        if place == halt:
            halt = None
            pipe.send(("halted", None))
            pipe.recv()

    made = make(passing, *arguments)
    while True:
        try:
            method, arguments, halt = pipe.recv()
        except EOFError:
            return
        try:
            answer = getattr(made, method)(*arguments)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            answer = error
        pipe.send(("answer", answer))


class Shop:
    """One process of an application: a table, and a cache in a directory that all share.

    The table has one slot. Its places are held and never given back, so that the number of those
    that are gone tells the time.
    """

    scope_type = None

    def __init__(
        self, passing: Callable[[str], None], folder: Path, policy: AvailabilityPolicy
    ) -> None:
        self._passing = passing
        self._queries = 0
        self._slots = SqlSlots.sqlite(folder / "slots.db")
        self._service = SlotAvailabilityService(
            self,
            cache=FileCache(folder / "cache", files=_Files(passing)),
            policy=policy,
            clock=_Clock(passing),
        )
        self._holds = HoldManager(
            self._slots, on_change=self._clear, policy=HoldPolicy(ttl=3600, lock_wait=PATIENCE)
        )
        with (folder / "acknowledged").open("r+b") as file:
            # How many changes have returned, of each worker.
            self._acknowledged = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")

    @staticmethod
    def build(folder: Path) -> None:
        """Make what all share."""
        with SqlSlots.sqlite(folder / "slots.db") as slots:
            slots.create_tables()
            slots.add([(1, _PLACES)])
        (folder / "acknowledged").write_bytes(bytes(8 * 8))

    def load(self, scope: Scope | None) -> Loaded:
        self._queries += 1
        loaded = self._slots.load(scope)
        self._passing("loaded")
        return loaded

    def queries(self) -> int:
        """Return how many queries it has begun."""
        return self._queries

    def read(self) -> tuple[int, Source]:
        """Return how many places are said to be gone, and where the answer came from."""
        reading = self._service.read()
        return _PLACES - left(reading.availability), reading.source

    def truth(self) -> int:
        """Return how many places are gone."""
        return _PLACES - left(self._slots.load(None).availability)

    def change(self) -> None:
        """Hold one more place."""
        self._holds.create(1)

    def acknowledged(self) -> int:
        """Return how many changes have returned, in all workers."""
        return sum(self._acknowledged)

    def work(self, index: int, seconds: float, changes: float) -> tuple[int, int]:
        """Read and change at random for some time; return how often it did each.

        Each read has to show every change that had returned, anywhere, before it began.

        Args:
            index: Which of the workers it is.
            seconds: How long.
            changes: The share of changes among all.
        """
        done = [0, 0]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            is_change = random.random() < changes
            done[is_change] += 1
            if is_change:
                self.change()
                self._acknowledged[index] += 1
            else:
                least = self.acknowledged()
                gone, source = self.read()
                assert gone >= least or source is Source.STALE, f"{gone} shown, {least} gone"
        return done[0], done[1]

    def fork_while_busy(self, children: int) -> list[tuple[int, int, float]]:
        """Fork while four threads read and change.

        Returns:
            Of each child how many changes had returned when it was forked, how many its first
            read showed, and how many seconds it took to read, change and read again.
        """
        stop = threading.Event()

        def be_busy(index: int) -> None:
            while not stop.is_set():
                self.work(index, 0.01, 0.3)

        busy = [spawn(partial(be_busy, index)) for index in range(4)]
        try:
            return [self._fork() for _ in range(children)]
        finally:
            stop.set()
            for each in busy:
                each.result(PATIENCE)

    def _fork(self) -> tuple[int, int, float]:
        least = self.acknowledged()
        answer, to_answer = os.pipe()

        def live() -> None:
            began = time.monotonic()
            gone, _ = self.read()
            self.change()
            assert self.read()[0] > gone
            os.write(to_answer, f"{gone} {time.monotonic() - began}".encode())

        try:
            in_child(live)
            gone, seconds = os.read(answer, 100).split()
        finally:
            os.close(answer)
            os.close(to_answer)
        return least, int(gone), float(seconds)

    def _clear(self, scope: Scope | None) -> None:
        self._passing("committed")
        self._service.clear_availability_cache(scope)


class Keeper:
    """One process that takes locks in a directory."""

    def __init__(self, _passing: Callable[[str], None], folder: Path) -> None:
        self._locks = FileLocks(folder)

    def acquire(self, name: str, ttl: float) -> Lock | None:
        return self._locks.acquire(name, ttl=ttl)

    def release(self, lock: Lock) -> bool:
        return self._locks.release(lock)

    def fork(self) -> int:
        """Leave a child behind that does nothing, for a while; return its id."""
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(round(PATIENCE))
            signal.pause()
        return child


class _Files:
    """The module `os`, with places to be halted at."""

    def __init__(self, passing: Callable[[str], None]) -> None:
        self._passing = passing

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def replace(self, source: str, target: str) -> None:
        if target.endswith(".list"):
            self._passing("renaming")
        Path(source).replace(target)


class _Clock(SystemClock):
    """The system's clock, with a place to be halted at."""

    def __init__(self, passing: Callable[[str], None]) -> None:
        self._passing = passing

    def sleep(self, seconds: float) -> None:  # type: ignore[override]
        self._passing("waiting")
        time.sleep(seconds)
