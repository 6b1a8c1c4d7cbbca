"""Schedules of single file operations: the real `FileCache`, on a real directory.

Each process is a `FileCache` object of its own, and its threads are actors, which stop before each
file operation takes effect. Not again before its answer arrives, as simulated ports do: the answer
changes nothing but its process until the next operation, so what others do in between they may as
well do after it. Only where a process has several threads, which share its memory, do they stop on
both sides.

What is left out, and why that is sound:

- What nobody else sees or can change commutes with all that others do, so nobody stops before it:
  a draft until it is linked, the content of a list (what is in its place is not written to any
  more), the first bytes of a record (others only append), which file it is that one has open, any
  `close`. Except where it may fail, or the directory be removed.
- A call begins right before its first operation: beginning earlier, it would do the same, and less
  could be expected of it.
- A call that has returned has forgotten all that it saw but its answer; what its process keeps in
  memory is a part of the state.
- Which process is which does not matter, nor what random names and numbers are: a record, and its
  epoch, go by the order in which they were put in place, a list by its content.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from greenlet import GreenletExit, greenlet  # type: ignore[import-untyped]

from slotcache.availability import Availability
from slotcache.codec import decode
from slotcache.file import FileCache
from slotcache.file.folder import DRAFT, RECORD
from slotcache.file.record import _HEAD
from slotcache.protocols import Entry, Generation, Miss
from slotcache.testing import Event, Exploration, Violation
from slotcache.testing.actors import NO_NAMES, Actor, Request
from slotcache.testing.explore import explore_runs, sample_runs
from slotcache.testing.scenario import Choice

CRASH = "a process is killed"
FAIL = "an operation fails"
REMOVE_DIRECTORY = "the directory is removed"
REMOVE_RECORD = "the record is removed"
TTL_PASSES = "a ttl passes"
FAULTS = frozenset({CRASH, FAIL, REMOVE_DIRECTORY, REMOVE_RECORD, TTL_PASSES})

KEY = "slots.availability"
TTL = 10.0
LISTS = [Availability.of([("slot", 9, 9 - changes)]) for changes in range(10)]
"""What the table holds after so many changes: each takes a place."""

Expected = tuple[int, int]
"""How many changes a read must show: because they were complete, because they are so old."""

_FAILED = object()
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, kw_only=True)
class FileScenario:
    """Who does what in a directory.

    Attributes:
        processes: What each of them does: calls one after the other ("read change"), in several
            threads if need be ("read | change"). See `FileRun` for the calls.
        faults: Which of `FAULTS` may strike; one of them does, at most once a schedule.
        cache: Makes a process's cache; a broken twin goes here.
    """

    processes: tuple[str, ...]
    faults: frozenset[str] = frozenset()
    cache: Callable[..., FileCache] = FileCache


def explore_files(scenario: FileScenario) -> Exploration:
    """Run `scenario` through every schedule, or up to the first that breaks a promise."""
    with runs_of(scenario) as begin:
        return explore_runs(begin)


def sample_files(scenario: FileScenario, *, runs: int, seed: int) -> Exploration:
    """Run whole schedules drawn at random, or up to the first that breaks a promise."""
    with runs_of(scenario) as begin:
        return sample_runs(begin, runs=runs, seed=seed)


@contextmanager
def runs_of(scenario: FileScenario) -> Iterator[Callable[[], FileRun]]:
    """Yield what begins a run of `scenario`, when the last one is closed."""
    room = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    directory = tempfile.mkdtemp(prefix="slotcache-", dir=room)
    try:
        yield partial(FileRun, scenario, Host(directory, scenario))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Thread(Actor):
    """An actor in a greenlet.

    Attributes:
        process: The number of its process.
        alone: Whether it is the only thread there.
        calls: What it has still to do.
        looks: The generations that its reads saw, and how many changes these must show; for the
            reads to come, which may be given what covers an earlier look.
        is_noticed: Whether others notice what it is about to do.
        may_fail: Whether that may fail.
    """

    def __init__(self, name: str, process: int, calls: str, body: Callable[[Thread], None]) -> None:
        super().__init__(name)
        self.process = process
        self.alone = True
        self.calls = calls.split()
        self.looks: list[tuple[Generation | None, int]] = []
        self.is_noticed = True
        self.may_fail = False
        self._greenlet = greenlet(lambda _: body(self))

    def stop(self, what: str, *, is_noticed: bool = True, may_fail: bool = False) -> str:
        """Wait for the scheduler; return what it says."""
        self.pending = Request(what)
        self.is_noticed, self.may_fail = is_noticed, may_fail
        command: str = self._greenlet.parent.switch()
        return command

    def state(self, names: Mapping[str, str] = NO_NAMES, *, is_awaited: bool = False) -> Hashable:
        return "killed" if self.crashed else super().state(names, is_awaited=is_awaited)

    def resume(self, command: str) -> None:
        self._greenlet.switch(command)
        self.finished = self._greenlet.dead

    def close(self) -> None:
        if self._greenlet:
            self._greenlet.throw(GreenletExit)


class Status:
    """What `stat` and `fstat` answer: which file it is, and how long.

    The length of an open file is looked up when it is asked for, after a stop: which file it is
    does not change. Whoever wants to know more has to be stopped, and noted, for more.
    """

    def __init__(self, found: os.stat_result, size: Callable[[], int]) -> None:
        self.st_dev, self.st_ino = found.st_dev, found.st_ino
        self._size = size

    @cached_property
    def st_size(self) -> int:
        return self._size()


class Host:
    """What processes have in common: files, a clock, chance. It outlives the runs.

    It is the `files`, the `clock` and the `epoch` of every cache.

    Attributes:
        caches: One a process, and one that comes when all is over.
        run: The present run; without one nobody stops.
    """

    def __init__(self, directory: str, scenario: FileScenario) -> None:
        self.directory = directory
        self.run: FileRun | None = None
        # Of each descriptor the inode, its kind of file, and who opened it; of each draft's path
        # the inode and who made it; what was written into an inode before it was put in place.
        self._opened: dict[int, tuple[int, str, Thread | None]] = {}
        self._drafts: dict[str, tuple[int, Thread | None]] = {}
        self._written: dict[int, bytes] = {}
        # What files and epochs are called in a state; how many records were put in place.
        self._names: dict[int, Hashable] = {}
        self._epochs: dict[int, int] = {}
        self._records: set[int] = set()
        self._placed = 0
        self._drawn = 0
        self.caches = [
            scenario.cache(directory, clock=self, epoch=self.epoch, files=self)
            for _ in range(len(scenario.processes) + 1)
        ]

    def begin(self, run: FileRun) -> None:
        """Begin a run, with an empty directory."""
        Path(self.directory).mkdir(mode=0o700, exist_ok=True)
        for path in Path(self.directory).iterdir():
            path.unlink()
        self.run = run

    def end(self) -> None:
        """End the run, and forget it."""
        for cache in self.caches:
            cache.close()
        for fd, (inode, _, _) in self._opened.items():
            if _is_open(fd, inode):
                os.close(fd)
        self.run = None
        for known in (self._opened, self._drafts, self._written, self._names, self._epochs):
            known.clear()
        self._records.clear()
        self._placed = 0

    def in_place(self) -> tuple[tuple[str, Hashable], ...]:
        """Return all files that can be found in the directory, but the drafts."""
        try:
            found = [file for file in os.scandir(self.directory) if not file.name.endswith(DRAFT)]
        except FileNotFoundError:
            return ()
        return tuple(sorted((file.name, self._seen(file.stat())) for file in found))

    def left_open(self) -> list[int]:
        """Return the descriptors that the living have not closed."""
        return [
            fd
            for fd, (inode, _, by) in self._opened.items()
            if not (by and by.crashed) and _is_open(fd, inode)
        ]

    def held(self) -> dict[Thread | None, list[Hashable]]:
        """Return what each living thread holds: open files, and drafts that are there."""
        held: dict[Thread | None, list[Hashable]] = defaultdict(list)
        for fd in self.left_open():
            held[self._opened[fd][2]].append(self._seen(os.fstat(fd)))
        for path, (_, by) in self._drafts.items():
            if by and not by.crashed and os.access(path, os.F_OK):
                held[by].append("a draft")
        return held

    def memory(self, process: int) -> Hashable:
        """Return what a process keeps in its memory."""
        return tuple(
            (self._seen(os.fstat(kept.record._fd)), self.known(kept.stored), kept.entry.until)
            for kept in self.caches[process]._kept.values()
        )

    def known(self, found: object) -> Hashable:
        """Return what somebody knows, in terms of what is in the directory."""
        if isinstance(found, Entry):
            shown = LISTS.index(found.availability)
            return self.known(found.generation), found.since, found.until, shown
        if isinstance(found, Miss):
            return self.known(found.generation), found.look, self.known(found.copy)
        if isinstance(found, Generation):
            return self._epochs[found.epoch], found.clears
        return None

    def now(self) -> float:
        """The instant. While it may still change, a look at the clock is an operation, too."""
        run = self.run
        if run is None:
            return 0.0
        if TTL_PASSES in run.faults:
            self._do("look at the clock", lambda: run.time, may_fail=False)
        return run.time

    def epoch(self) -> int:
        """Chance: another number each time."""
        self._drawn += 1
        return self._drawn

    def open(self, path: str, flags: int, mode: int = 0o777, /) -> int:
        makes = bool(flags & os.O_CREAT)
        fd: int = self._do(
            f"{'make' if makes else 'open'} {_kind(path)}",
            partial(self._open, path, flags, mode),
            is_noticed=not makes,
            seen=lambda fd: self._names.get(self._opened[fd][0]),
        )
        return fd

    def close(self, fd: int, /) -> None:
        what = f"close {self._opened[fd][1]}"
        self._do(what, partial(os.close, fd), is_noticed=False, may_fail=False)

    def read(self, fd: int, length: int, /) -> bytes:
        inode, kind, _ = self._opened[fd]
        data: bytes = self._do(
            f"read {kind}",
            partial(os.read, fd, length),
            is_noticed=False,
            seen=lambda _: self._names[inode],
        )
        assert len(data) == length, "it sees where others append: here it must be noticed"
        return data

    def write(self, fd: int, data: Any, /) -> int:
        inode, kind, _ = self._opened[fd]
        is_noticed = inode in self._records
        written: int = self._do(f"write {kind}", partial(os.write, fd, data), is_noticed=is_noticed)
        self._written[inode] += bytes(data[:written])
        return written

    def fstat(self, fd: int, /) -> Any:
        inode, kind, _ = self._opened[fd]
        is_noticed = inode in self._records

        def size() -> int:
            found: os.stat_result = self._do(
                f"fstat {kind}", partial(os.fstat, fd), is_noticed=is_noticed, seen=self._seen
            )
            return found.st_size

        return Status(os.fstat(fd), size)

    def stat(self, path: str, /) -> Any:
        found = self._do(f"stat {_kind(path)}", partial(os.stat, path), seen=self._seen)
        return Status(found, lambda: int(found.st_size))

    def utime(self, path: str, times: tuple[float, float], /) -> None:
        self._do(f"utime {_kind(path)}", partial(os.utime, path, times), is_noticed=False)

    def link(self, src: str, dst: str, /) -> None:
        self._do(f"link draft to {_kind(dst)}", partial(self._put, os.link, src, dst))

    def replace(self, src: str, dst: str, /) -> None:
        self._do(f"rename draft to {_kind(dst)}", partial(self._put, os.replace, src, dst))

    def unlink(self, path: str, /) -> None:
        is_noticed = not path.endswith(DRAFT)
        self._do(f"unlink {_kind(path)}", partial(os.unlink, path), is_noticed=is_noticed)

    def listdir(self, path: str, /) -> list[str]:
        found: tuple[tuple[str, Hashable], ...] = self._do("listdir", self.in_place)
        return [name for name, _ in found]

    def _do(
        self,
        what: str,
        operation: Callable[[], Any],
        *,
        is_noticed: bool = True,
        may_fail: bool = True,
        seen: Callable[[Any], Hashable] = lambda answer: answer,
    ) -> Any:
        """Let an operation take effect when the scheduler says so; note what is seen of it."""
        run, actor = self.run, self._actor()
        if run is None or actor is None:
            return operation()
        if run.is_closed:
            raise GreenletExit
        if not actor.alone or REMOVE_DIRECTORY in run.faults:
            is_noticed = True
        if is_noticed or FAIL in run.faults:
            command = actor.stop(what, is_noticed=is_noticed, may_fail=may_fail)
            if command == FAIL:
                run.note(actor, what, "ENOSPC")
                raise OSError(errno.ENOSPC, "no space left, says the scheduler")
        try:
            answer = operation()
            run.note(actor, what, seen(answer))
            return answer
        except OSError as error:
            run.note(actor, what, errno.errorcode[error.errno or 0])
            raise
        finally:
            if not actor.alone:
                actor.stop(f"{what} answer")

    def _actor(self) -> Thread | None:
        return None if self.run is None else self.run.current

    def _open(self, path: str, flags: int, mode: int) -> int:
        fd = os.open(path, flags, mode)
        inode = os.fstat(fd).st_ino
        self._opened[fd] = (inode, _kind(path), self._actor())
        if flags & os.O_CREAT:
            self._drafts[path] = inode, self._actor()
            self._written[inode] = b""
            self._names.pop(inode, None)
            self._records.discard(inode)
        return fd

    def _put(self, operation: Callable[[str, str], None], src: str, dst: str) -> None:
        operation(src, dst)
        inode, _ = self._drafts[src]
        content = self._written[inode]
        if dst.endswith(RECORD):
            epoch = self._epochs.setdefault(_HEAD.unpack_from(content)[2], len(self._epochs))
            self._records.add(inode)
            self._placed += 1
            self._names[inode] = self._placed, epoch
        else:
            self._names[inode] = self.known(decode(content))

    def _seen(self, found: os.stat_result) -> Hashable:
        return self._names.get(found.st_ino), found.st_size


class FileRun:
    """One run of a scenario, to be stepped by choices.

    A reader does what a process without locks and flights does, the most hostile: it loads after
    each `Miss`, and fills. Its calls are `read`; those of a writer, which commits and then clears,
    `change` and, clearing every list, `change_all`.

    Attributes:
        time: The simulated instant, in seconds.
        faults: What may still strike.
        touched: Whether the last step was noticed by others, or by the judge.
        acknowledged: How many changes are complete: every later read must show them (P1).
        committed_at: The instants of all changes.
        actors: All threads, by name.
        current: Who runs.
        is_closed: Whether it is over, so that everybody has to go.
    """

    def __init__(self, scenario: FileScenario, host: Host) -> None:
        self.time = 0.0
        self.faults = scenario.faults
        self.touched = False
        self.acknowledged = 0
        self.committed_at: list[float] = []
        self.current: Thread | None = None
        self.is_closed = False
        self._struck = ""
        self._events: list[tuple[str, str, Hashable]] = []
        self._host = host
        self.actors: dict[str, Thread] = {}
        host.begin(self)
        for process, threads in enumerate(scenario.processes):
            for number, calls in enumerate(threads.split("|")):
                name = f"process {process + 1}" + ("" if "|" not in threads else "abc"[number])
                actor = self.actors[name] = Thread(name, process, calls, self._body)
                actor.alone = "|" not in threads
                self._remember(actor)
                actor.resume("go")

    def choices(self) -> list[Choice]:
        """Return all that may happen next; nothing: the run is over."""
        able = [actor for actor in self.actors.values() if not (actor.finished or actor.crashed)]
        moves = [(actor.name, "go") for actor in able]
        if FAIL in self.faults:
            moves += [(actor.name, FAIL) for actor in able if actor.may_fail]
        if CRASH in self.faults:
            moves += [(actor.name, CRASH) for actor in able if actor.pending.what != "start"]
        if moves:
            moves += [("somebody", fault) for fault in sorted(self.faults - {FAIL, CRASH})]
        return moves

    def step(self, choice: Choice) -> None:
        """Let this happen.

        Raises:
            Violation: A promise was broken.
        """
        who, command = choice
        self.touched = True
        if command != "go":
            self.faults, self._struck = frozenset(), command
            self._events.append((who, f"({command})", ""))
        if who == "somebody":
            self._strike(command)
        elif command == CRASH:
            self._kill(self.actors[who].process)
        else:
            self._go(self.actors[who], command)

    def state(self) -> int:
        """Return a digest of everything that the future depends on."""
        held = self._host.held()
        processes: dict[int, list[Hashable]] = defaultdict(list)
        for actor in self.actors.values():
            processes[actor.process] += [actor.state(), *sorted(map(hash, held[actor]))]
        everybody = sorted(
            hash((self._host.memory(process), *threads)) for process, threads in processes.items()
        )
        judged = (self.time, self.acknowledged, *self.committed_at)
        return hash((*everybody, judged, self.faults, self._struck, *self._host.in_place()))

    def role_of(self, who: str) -> str:
        """Return what an actor is called in the state: that tells them apart by nothing."""
        return who

    def events(self) -> list[Event]:
        """Return what has happened."""
        return [Event(who, what, _said(answer)) for who, what, answer in self._events]

    def finish(self) -> None:
        """Judge the end, when all is quiet: everybody reads again, and nothing lies about."""
        drafts = any(Path(self._host.directory).glob(f"*{DRAFT}"))
        if drafts and self._struck not in (CRASH, FAIL):
            raise Violation("a draft is left")
        self.faults = frozenset()
        newcomer = Thread("afterwards", len(self._host.caches) - 1, "", self._read_everywhere)
        self.actors[newcomer.name] = newcomer
        while not newcomer.finished:
            self._go(newcomer, "go")
        for cache in self._host.caches:
            cache.close()
        if self._host.left_open():
            raise Violation("a file is left open")

    def close(self) -> None:
        """Unwind every actor."""
        self.is_closed = True
        for actor in self.actors.values():
            self.current = actor
            actor.close()
        self._host.end()

    def note(self, actor: Thread, what: str, answer: Hashable) -> None:
        """Record what an actor gets to know."""
        actor.observe(answer)
        self._events.append((actor.name, what, answer))

    def _go(self, actor: Thread, command: str) -> None:
        self.current = actor
        try:
            if actor.pending.what == "start" and FAIL not in self.faults:
                actor.resume("go")
            self.touched = actor.is_noticed
            actor.resume(command)
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"{actor.name} raised {error!r}") from error
        finally:
            self.current = None

    def _kill(self, process: int) -> None:
        self._host.caches[process].close()
        for actor in self.actors.values():
            actor.crashed |= actor.process == process

    def _strike(self, fault: str) -> None:
        if fault == TTL_PASSES:
            self.time += TTL + 1.0
        elif fault == REMOVE_DIRECTORY:
            shutil.rmtree(self._host.directory)
        else:
            for path in Path(self._host.directory).glob(f"*{RECORD}"):
                path.unlink()

    def _body(self, actor: Thread) -> None:
        cache = self._host.caches[actor.process]
        calls = {
            "read": partial(self._read, actor, cache),
            "change": partial(self._change, actor, partial(cache.clear, KEY)),
            "change_all": partial(self._change, actor, cache.clear_all),
        }
        while actor.calls:
            actor.stop("start")
            calls[actor.calls.pop(0)]()
            self._remember(actor)

    def _read(self, actor: Thread, cache: FileCache) -> None:
        expected = self._expected()
        self.note(actor, "read, to show at least", expected)
        found = self._ask(partial(cache.read, KEY))
        if isinstance(found, Entry):
            self._judge(actor.name, expected, found)
            return
        if isinstance(found, Miss):
            self._judge_copy(actor, expected, found)
            found = Miss(found.generation, found.look)
        self._remember(actor, found)
        actor.stop("load")
        loaded = self._table()
        self.note(actor, "load", LISTS.index(loaded))
        if isinstance(found, Miss):
            self._ask(partial(cache.fill, KEY, found, loaded, ttl=TTL, stale_ttl=TTL))

    def _change(self, actor: Thread, clear: Callable[[], None]) -> None:
        actor.stop("commit")
        self.committed_at.append(self.time)
        version = len(self.committed_at)
        self.note(actor, "commit", version)
        if self._ask(clear) is not _FAILED:
            self.touched = True
            self.acknowledged = max(self.acknowledged, version)
            self.note(actor, "change is complete", version)

    def _read_everywhere(self, newcomer: Thread) -> None:
        """Read in all processes that are left and in a new one; what that fills, all must find."""
        killed = {actor.process for actor in self.actors.values() if actor.crashed}
        caches = [cache for n, cache in enumerate(self._host.caches) if n not in killed]
        expected = self._expected()
        for found in [cache.read(KEY) for cache in caches]:
            if isinstance(found, Entry):
                self._judge(newcomer.name, expected, found)
        self._read(newcomer, caches[-1])
        if any(isinstance(cache.read(KEY), Miss) for cache in caches):
            raise Violation("what is filled afterwards is not found by all")

    def _ask(self, call: Callable[[], Any]) -> Any:
        """Call a cache as a service does, which takes trouble for a Miss that it cannot fill."""
        try:
            return call()
        except OSError:
            if self._struck not in (FAIL, REMOVE_DIRECTORY):
                raise
            return _FAILED

    def _remember(self, actor: Thread, found: object = None) -> None:
        """Have an actor forget all that it observed but this, and what judges its later reads."""
        if "read" not in actor.calls:
            actor.looks.clear()
        looks = [(self._host.known(seen), expected) for seen, expected in actor.looks]
        actor.observed = hash((*actor.calls, *looks, self._host.known(found)))

    def _table(self) -> Availability:
        return LISTS[len(self.committed_at)]

    def _expected(self) -> Expected:
        self.touched = True
        old = sum(1 for committed in self.committed_at if committed + TTL < self.time)
        return self.acknowledged, old

    def _judge(self, who: str, expected: Expected, entry: Entry) -> None:
        shown = LISTS.index(entry.availability)
        acknowledged, old = expected
        if shown < acknowledged:
            raise Violation(f"{who} shows change {shown}, {acknowledged} were complete (P1)")
        if shown < old:
            raise Violation(f"{who} shows change {shown}, {old} are older than a ttl (P2)")

    def _judge_copy(self, actor: Thread, expected: Expected, miss: Miss) -> None:
        """Judge a copy by the rule: whoever looked at what it covers may be given it."""
        actor.looks.append((miss.generation, expected[0]))
        copy = miss.copy
        for seen, acknowledged in actor.looks if copy else ():
            if copy and copy.generation.covers(seen):
                self._judge(f"a copy for {actor.name}", (acknowledged, 0), copy)


def _is_open(fd: int, inode: int) -> bool:
    """Whether a descriptor is still open: records close theirs without a word."""
    try:
        return os.fstat(fd).st_ino == inode
    except OSError:
        return False


def _kind(path: str) -> str:
    return path.rpartition(".")[2]


def _said(answer: Hashable) -> str:
    """An answer as a person reads it."""
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], tuple):
        return f"{answer[1]} bytes"
    return "" if answer is None else str(answer)
