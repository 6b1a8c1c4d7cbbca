"""What is particular to locks in files. The laws of all locks are in `test_laws.py`."""

import errno
import fcntl
import gc
import os
import signal
import struct
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest

from slotcache.file import FileLocks
from slotcache.testing import ManualClock
from tests.support.forks import in_child
from tests.support.processes import Keeper, Worker, eventually
from tests.support.threads import together

HOUR = 3600.0

forking = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "locks"


@pytest.fixture
def clock():
    return ManualClock(start=0.0)


@pytest.fixture
def locks(folder, clock):
    with closing(FileLocks(folder, clock=clock)) as locks:
        yield locks


@pytest.fixture
def elsewhere(folder, clock):
    """What another process would have on the same directory."""
    with closing(FileLocks(folder, clock=clock)) as locks:
        yield locks


@pytest.fixture
def keeper(folder):
    """Another process."""
    with Worker(Keeper, folder) as keeper:
        yield keeper


def is_held(locks, name="l"):
    """Whether somebody holds it."""
    lock = locks.acquire(name, ttl=1_000)
    return lock is None or not locks.release(lock)


def the_file(folder):
    [path] = folder.iterdir()
    return path


def age(path, seconds):
    last = path.stat().st_mtime - seconds
    os.utime(path, (last, last))


def open_in(folder):
    """How many files of a directory this process has open."""
    count = 0
    for fd in Path("/proc/self/fd").iterdir():
        try:
            count += folder in (fd.readlink(), fd.readlink().parent)
        except FileNotFoundError:  # the one that the listing itself had open
            continue
    return count


# Their end.


def test_no_files_are_left_after_a_release(locks, elsewhere, folder):
    for _ in range(3):
        lock = locks.acquire("l", ttl=10)
        assert elsewhere.acquire("l", ttl=10) is None
        assert [path.suffix for path in folder.iterdir()] == [".lock"]
        assert locks.release(lock)

        assert list(folder.iterdir()) == []
    assert open_in(folder) == 0


def test_a_dead_process_s_lock_is_free_at_once(locks, keeper):
    assert keeper.call("acquire", "l", HOUR) is not None
    assert locks.acquire("l", ttl=10) is None

    keeper.kill()
    assert locks.acquire("l", ttl=10) is not None


def test_a_stopped_process_s_lock_is_replaced_past_its_deadline(keeper, folder):
    """As that process goes on, it has lost the lock, and takes it from nobody."""
    lost = keeper.call("acquire", "l", 0.2)
    keeper.stop()
    with closing(FileLocks(folder)) as locks:
        taken = []
        eventually(lambda: taken.append(locks.acquire("l", ttl=HOUR)) or taken[-1])

        keeper.go_on()
        assert not keeper.call("release", lost)
        assert keeper.call("acquire", "l", HOUR) is None
        assert locks.release(taken[-1])
        assert keeper.call("acquire", "l", HOUR) is not None


def test_a_lock_is_not_replaced_before_its_deadline(locks, elsewhere, clock):
    locks.acquire("l", ttl=10)
    clock.advance(9.9)
    assert elsewhere.acquire("l", ttl=10) is None
    clock.advance(0.1)
    assert elsewhere.acquire("l", ttl=10) is not None


def test_a_lock_whose_time_is_over_is_not_released_under_its_new_holder(locks, elsewhere, clock):
    lost = locks.acquire("l", ttl=10)
    clock.advance(10)
    theirs = elsewhere.acquire("l", ttl=10)

    assert not locks.release(lost)
    assert is_held(locks)
    assert elsewhere.release(theirs)


def acquire_through_next(locks):
    return next(locks).acquire("l", ttl=10)


def test_who_is_gone_can_be_followed_by_one_alone(folder, clock):
    """Of eight who come at once; if the holder's process died, and if its time is over."""
    with ExitStack() as stack:
        everybody = [stack.enter_context(closing(FileLocks(folder, clock=clock))) for _ in range(8)]
        for number in range(30):
            holder = FileLocks(folder, clock=clock)
            holder.acquire("l", ttl=10)
            if number % 2:
                holder.close()
            else:
                clock.advance(10)
            got = together(8, partial(acquire_through_next, iter(everybody)))

            assert len(list(filter(None, got))) == 1
            assert is_held(everybody[0])
            holder.close()
            clock.advance(10)


class Interrupted:
    """The module `os`, with something that happens when a file of this kind was just opened."""

    def __init__(self, suffix, interruption):
        self._suffix = suffix
        self._interruption = interruption

    def __getattr__(self, name):
        return getattr(os, name)

    def open(self, path, flags, *mode):
        fd = os.open(path, flags, *mode)
        if path.endswith(self._suffix):
            self._interruption()
        return fd


@pytest.mark.parametrize("opened", [".draft", "locks"])
def test_who_finds_a_lock_over_and_is_slow_to_replace_it_leaves_it_to_the_quick(
    locks, elsewhere, folder, clock, opened
):
    """He is interrupted as he begins to write the new file, or as he opens the guard."""
    taken = []
    slow = FileLocks(
        folder,
        clock=clock,
        files=Interrupted(opened, lambda: taken.append(elsewhere.acquire("l", ttl=10))),
    )
    locks.acquire("l", ttl=10)
    clock.advance(10)

    assert slow.acquire("l", ttl=10) is None
    assert elsewhere.release(taken[0])


def test_a_stopped_process_can_be_followed_by_one_process_alone(folder):
    with ExitStack() as stack:
        keepers = [stack.enter_context(Worker(Keeper, folder)) for _ in range(4)]
        for number in range(20):
            holder = FileLocks(folder)
            holder.acquire(f"{number}", ttl=1e-6)
            for keeper in keepers:
                keeper.start("acquire", f"{number}", HOUR)

            assert len(list(filter(None, [keeper.answer() for keeper in keepers]))) == 1
            holder.close()


def test_a_lock_can_be_released_through_another_object(locks, elsewhere, folder):
    lock = locks.acquire("l", ttl=10)

    assert elsewhere.release(lock)
    assert list(folder.iterdir()) == []
    assert elsewhere.acquire("l", ttl=10) is not None
    assert not locks.release(lock)
    assert is_held(locks)


def test_a_lock_can_be_released_by_another_process(folder, keeper):
    with closing(FileLocks(folder)) as locks:
        lock = keeper.call("acquire", "l", HOUR)

        assert locks.release(lock)
        assert locks.acquire("l", ttl=10) is not None
        assert not keeper.call("release", lock)


def test_closing_gives_back_what_is_held(locks, elsewhere, folder):
    locks.acquire("l", ttl=10)
    locks.acquire("m", ttl=10)
    assert open_in(folder) == 2

    locks.close()
    assert open_in(folder) == 0
    assert elsewhere.acquire("l", ttl=10) is not None
    assert locks.acquire("m", ttl=10) is not None, "it may be used again"


@pytest.mark.parametrize("end", [FileLocks.release, lambda locks, _: locks.close()])
def test_a_lock_is_given_back_although_a_fork_has_just_copied_its_descriptor(locks, elsewhere, end):
    """The copy shares the system's lock, until the child comes to close it."""
    lock = locks.acquire("l", ttl=10)
    [held] = locks._held.values()
    copy = os.dup(held)
    try:
        end(locks, lock)
        assert elsewhere.acquire("l", ttl=10) is not None
    finally:
        os.close(copy)


# Forks.


@forking
def test_a_child_keeps_no_lock_s_descriptor(locks, folder):
    locks.acquire("l", ttl=10)
    locks.acquire("m", ttl=10)
    assert open_in(folder) == 2

    def work():
        assert open_in(folder) == 0
        assert locks.acquire("l", ttl=10) is None, "it is the parent's"
        assert not is_held(locks, "n")

    in_child(work)
    assert open_in(folder) == 2


@forking
def test_a_child_ends_without_its_parent_s_locks(folder, clock):
    locks = [FileLocks(folder, clock=clock)]
    lock = locks[0].acquire("l", ttl=10)

    def collect():
        locks[0].close()
        locks.clear()
        gc.collect()

    for end in (collect, partial(os._exit, 0)):
        in_child(end)
        with closing(FileLocks(folder, clock=clock)) as elsewhere:
            assert is_held(elsewhere)
    assert locks[0].release(lock)


@forking
def test_a_child_may_release_what_its_parent_holds_if_it_is_told_to(locks, folder):
    """A lock is a value: who has it can give it back, wherever it was taken."""
    lock = locks.acquire("l", ttl=10)

    def work():
        assert locks.release(lock)

    in_child(work)
    assert not is_held(locks)
    assert not locks.release(lock)


def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(locks, keeper):
    keeper.call("acquire", "l", HOUR)
    child = keeper.call("fork")
    try:
        keeper.kill()
        # As soon as the child has run at all: closing is the first that it does.
        eventually(lambda: locks.acquire("l", ttl=10) is not None)
    finally:
        os.kill(child, signal.SIGKILL)


class NoLink:
    """The module `os` on a disk that has room for no more names."""

    def __getattr__(self, name):
        return getattr(os, name)

    def link(self, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@forking
def test_a_child_closes_nothing_of_others_after_an_acquire_that_failed(folder):
    with closing(FileLocks(folder, files=NoLink())) as locks:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            locks.acquire("l", ttl=10)

        with (folder / "somebody's").open("w") as file:
            in_child(lambda: os.fstat(file.fileno()))


# The guard.


def test_nobody_waits_for_somebody_who_was_stopped_as_he_replaced_a_lock(locks, elsewhere, folder):
    """What is held past its time has to wait until he goes on; all other locks are granted."""
    stopped = os.open(folder, os.O_RDONLY)
    fcntl.flock(stopped, fcntl.LOCK_EX)
    lock = locks.acquire("l", ttl=10)
    assert lock is not None
    assert locks.release(lock)
    assert elsewhere.acquire("l", ttl=0.0) is not None
    assert locks.acquire("l", ttl=10) is None

    os.close(stopped)
    assert locks.acquire("l", ttl=10) is not None


def test_a_link_in_the_place_of_the_directory_stays(locks, folder):
    lock = locks.acquire("l", ttl=10)
    moved = folder.with_name("moved")
    folder.rename(moved)
    folder.symlink_to(moved)

    assert locks.release(lock)
    assert folder.is_symlink()


def test_a_release_closes_nothing_of_others_after_all_descriptors_were_closed(locks, tmp_path):
    lock = locks.acquire("l", ttl=10)
    [fd] = locks._held.values()
    os.close(fd)
    with (tmp_path / "somebody's").open("w") as file:
        assert file.fileno() == fd
        locks.release(lock)
        file.write("still open")


# Damage and litter.


@pytest.mark.parametrize("content", [b"", b"x", bytes(39), bytes(40), b"\xff" * 40, b"x" * 10_000])
def test_a_damaged_file_is_a_lock_as_long_as_its_holder_lives(locks, elsewhere, folder, content):
    lock = locks.acquire("l", ttl=10)
    held = the_file(folder)
    is_said_to_be_over = len(content) >= 40 and struct.unpack_from("<d", content)[0] <= 0
    held.write_bytes(content)

    assert (elsewhere.acquire("l", ttl=10) is None) is not is_said_to_be_over
    assert not locks.release(lock)
    assert is_held(locks) is is_said_to_be_over


@pytest.mark.parametrize("content", [b"", b"x", bytes(40), b"\xff" * 40, b"x" * 10_000])
def test_a_damaged_file_that_nobody_holds_is_replaced(locks, elsewhere, folder, content):
    lock = locks.acquire("l", ttl=10)
    name = the_file(folder)
    locks.release(lock)
    name.write_bytes(content)

    lock = locks.acquire("l", ttl=10)
    assert lock is not None
    assert is_held(elsewhere)
    assert locks.release(lock)
    assert not name.exists()


PLANTED = {
    "directory": Path.mkdir,
    "pipe": os.mkfifo,
    "link": lambda path: path.symlink_to(path.parent.parent / "outside"),
    "dangling link": lambda path: path.symlink_to("/nowhere/at/all"),
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_what_is_planted_in_the_place_of_a_lock_is_replaced_or_told(locks, folder, plant):
    (folder.parent / "outside").touch()
    locks.acquire("l", ttl=10)
    path = the_file(folder)
    locks.close()
    path.unlink()
    plant(path)

    try:
        assert locks.acquire("l", ttl=10) is not None
    except OSError:
        assert path.is_dir() or path.is_symlink()
    assert (folder.parent / "outside").read_bytes() == b""


def test_the_file_of_a_killed_process_is_swept_when_it_is_old(folder, keeper):
    keeper.call("acquire", "killed, a while ago", 10)
    age(the_file(folder), 2 * HOUR)
    keeper.call("acquire", "killed", 10)
    keeper.kill()
    assert len(list(folder.iterdir())) == 2

    FileLocks(folder).close()
    assert the_file(folder).stat().st_mtime > time.time() - HOUR


def test_a_lock_that_is_held_is_not_swept_however_old_it_is(locks, folder, clock):
    lock = locks.acquire("l", ttl=10 * HOUR)
    age(the_file(folder), 5 * HOUR)
    FileLocks(folder, clock=clock).close()

    assert locks.release(lock)


def test_a_lock_that_is_taken_as_its_last_file_is_swept_stays(folder, clock):
    with closing(FileLocks(folder, clock=clock)) as killed:
        killed.acquire("l", ttl=10)
        age(the_file(folder), 2 * HOUR)
    quick = []

    def take():
        quick.append(FileLocks(folder, clock=clock))
        assert quick[0].acquire("l", ttl=10)

    FileLocks(folder, clock=clock, files=Interrupted(".lock", take)).close()

    with closing(quick[0]), closing(FileLocks(folder, clock=clock)) as locks:
        assert is_held(locks)
