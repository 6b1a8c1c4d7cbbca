"""What is particular to a cache in files. The laws of all caches are in `test_laws.py`."""

import contextlib
import errno
import gc
import itertools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slotcache import Availability, AvailabilityPolicy, SlotAvailabilityService, Source
from slotcache.file import FileCache, FileLocks
from slotcache.file.folder import file_system
from slotcache.protocols import Entry, Miss
from slotcache.testing import ManualClock
from tests.support.forks import in_child
from tests.support.shelf import Shelf, left

TEN = Availability.of([("slot", 10, 10)])
NINE = Availability.of([("slot", 10, 9)])
TIMES = {"ttl": 10.0, "stale_ttl": 60.0}
HOUR = 3600.0


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def cache(folder):
    with FileCache(folder) as cache:
        yield cache


@pytest.fixture
def elsewhere(folder):
    """What another process would have on the same directory."""
    with FileCache(folder) as cache:
        yield cache


def fill(cache, key="k", availability=TEN, **times):
    return cache.fill(key, cache.look(key), availability, **{**TIMES, **times})


def the_file(folder, suffix):
    [path] = folder.glob(f"*{suffix}")
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def descriptors(folder):
    """What this process has open in a directory, by the names of the files."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            path = fd.readlink()
        except FileNotFoundError:  # the one that the listing itself had open
            continue
        if path.parent == folder:
            found.append(path.name.removesuffix(" (deleted)"))
    return found


class Files:
    """The module `os`, noting what is called."""

    def __init__(self):
        self.called = []

    def __getattr__(self, name):
        operation = getattr(os, name)

        def call(*arguments):
            self.called.append(name)
            return operation(*arguments)

        return call


class Failing:
    """The module `os`, some of whose functions fail from a certain moment on."""

    def __init__(self, code, *failing):
        self.code = code
        self.failing = failing
        self.has_failed = False

    def __getattr__(self, name):
        return self.fail if self.has_failed and name in self.failing else getattr(os, name)

    def fail(self, *_):
        raise OSError(self.code, os.strerror(self.code))


def full_disk():
    return Failing(errno.ENOSPC, "write")


class ReadOnly(Failing):
    """The same, on a file system that was turned read-only."""

    def __init__(self):
        super().__init__(errno.EROFS, "link", "replace", "unlink", "utime", "write")

    def open(self, path, flags, *mode):
        if self.has_failed and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self.fail()
        return os.open(path, flags, *mode)


# The directory.


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_its_user_can_read_or_write_whatever_the_umask(folder, umask):
    before = os.umask(umask)
    try:
        cache = FileCache(folder)
        fill(cache)
        cache.locks().acquire("l", ttl=10)
    finally:
        os.umask(before)
    with cache:
        modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert modes == {".list": 0o600, ".lock": 0o600, ".record": 0o600}


KEYS = [
    "",
    ".",
    "..",
    "../../outside",
    "/etc/passwd",
    "slots\\..\\availability",
    "slots.record",
    "a\0b",
    "a",
    "A",
    "a ",
    "\n",
    "\u00e9t\u00e9",
    "e\u0301te\u0301",
    "\udcff",
    "x" * 10_000,
]


def test_every_key_stays_in_the_directory_and_apart_from_all_others(tmp_path, cache, folder):
    for number, key in enumerate(KEYS):
        fill(cache, key, Availability.of([("slot", 100, number)]))
        cache.locks().acquire(key, ttl=10)

    with FileCache(folder) as elsewhere:
        assert [left(elsewhere.read(key).availability) for key in KEYS] == list(range(len(KEYS)))
        assert not any(elsewhere.locks().acquire(key, ttl=10) for key in KEYS)
    assert list(tmp_path.iterdir()) == [folder]
    stems, suffixes = zip(*((path.stem, path.suffix) for path in folder.iterdir()), strict=True)
    assert all(len(stem) == 64 and set(stem) <= set("0123456789abcdef") for stem in stems)
    assert {suffix: suffixes.count(suffix) for suffix in suffixes} == {
        ".list": len(KEYS),
        ".lock": len(KEYS),
        ".record": len(KEYS),
    }


@pytest.mark.parametrize("kind", [FileCache, FileLocks])
class TestRefused:
    @pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
    def test_a_directory_that_others_may_write_into(self, kind, folder, mode):
        folder.mkdir()
        folder.chmod(mode)
        with pytest.raises(ValueError, match=r"others may write into .*cache: give a directory of"):
            kind(folder)

    def test_a_directory_of_another_user(self, kind, folder, monkeypatch):
        folder.mkdir(mode=0o700)
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
        with pytest.raises(ValueError, match="a directory of this user's own"):
            kind(folder)

    def test_a_file(self, kind, folder):
        folder.touch()
        with pytest.raises(ValueError, match="cache is no directory: give the path of one"):
            kind(folder)

    @pytest.mark.parametrize("directory", [None, 7, b"/tmp/cache"])
    def test_what_is_no_path(self, kind, directory):
        with pytest.raises(TypeError, match="directory must be a path, not"):
            kind(directory)

    def test_a_file_system_that_hosts_share(self, kind, folder, monkeypatch):
        mount(monkeypatch, folder.parent, "nfs4")
        with pytest.raises(ValueError, match=r"hosts share \(nfs4\).*a local directory, or use"):
            kind(folder)

    def test_a_link_to_a_file_system_that_hosts_share(self, kind, folder, monkeypatch):
        far = folder.parent / "far"
        far.mkdir(mode=0o700)
        folder.symlink_to(far)
        mount(monkeypatch, far, "fuse.sshfs")
        with pytest.raises(ValueError, match=r"hosts share \(fuse.sshfs\)"):
            kind(folder)


def mount(monkeypatch, point, kind):
    """Let the system say that a file system is mounted there."""
    text = point.parent / "mountinfo"
    text.write_text(f"21 1 8:1 / / rw - ext4 /dev/sda1 rw\n36 21 0:31 / {point} rw - {kind} far rw")
    monkeypatch.setattr("slotcache.file.folder._MOUNTS", text)


def test_a_local_file_system_is_taken_and_so_is_one_that_the_system_does_not_tell(
    folder, monkeypatch
):
    mount(monkeypatch, folder.parent, "xfs")
    FileCache(folder).close()
    monkeypatch.setattr("slotcache.file.folder._MOUNTS", Path("/nowhere/mountinfo"))
    FileCache(folder).close()


MOUNTS = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:5 / /proc rw shared:2 - proc proc rw
30 21 0:31 / /mnt rw shared:3 master:7 - nfs4 host:/export rw,vers=4.2
31 30 8:17 / /mnt/local rw - xfs /dev/sdb1 rw
32 21 0:40 / /my\040disks/a\134b\011c rw - cifs //host/share rw
33 21 0:41 / /twice rw - ext4 /dev/sdc1 rw
34 33 0:42 / /twice rw - tmpfs tmpfs rw
35 21 0:43 / /été rw - btrfs /dev/sdd1 rw
a line of another kind
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/cache", "ext4"),
        ("/mnt", "nfs4"),
        ("/mnt/x", "nfs4"),
        ("/mntx", "ext4"),
        ("/mnt/local", "xfs"),
        ("/mnt/local/x/y", "xfs"),
        ("/mnt/localhost", "nfs4"),
        ("/my disks/a\\b\tc/x", "cifs"),
        ("/my disks", "ext4"),
        ("/twice/x", "tmpfs"),
        ("/été/x", "btrfs"),
    ],
)
def test_a_path_is_on_the_innermost_mount(path, kind):
    assert file_system(path, MOUNTS) == kind


def test_a_path_is_on_no_mount_that_is_not_told():
    assert file_system("/var", "") is None


def test_a_relative_path_is_the_same_directory_after_a_change_of_directory(tmp_path, monkeypatch):
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path)
    with FileCache("cache") as cache:
        monkeypatch.chdir(tmp_path / "away")
        fill(cache)

        assert isinstance(cache.read("k"), Entry)
    assert list(Path.cwd().iterdir()) == []
    assert len(names(tmp_path / "cache")) == 2


def test_a_link_to_a_directory_is_as_good_as_the_directory(folder):
    real = folder.parent / "real"
    real.mkdir(mode=0o700)
    folder.symlink_to(real)
    with FileCache(folder) as cache:
        fill(cache)
        lock = cache.locks().acquire("l", ttl=10)

        assert isinstance(cache.read("k"), Entry)
        assert cache.locks().release(lock)
        assert cache.locks().acquire("l", ttl=10) is not None


def test_who_lacks_filelock_is_told_what_to_install():
    lacking = "import sys; sys.modules['filelock'] = None; import slotcache.file"
    done = subprocess.run(
        [sys.executable, "-c", lacking], capture_output=True, text=True, check=False
    )

    assert "pip install 'slotcache[file]'" in done.stderr


def test_a_system_without_a_boot_id_is_told_what_to_use(folder, monkeypatch):
    monkeypatch.setattr("slotcache.file.folder._BOOT_ID", Path("/nowhere/boot_id"))
    with pytest.raises(NotImplementedError, match="use a MemoryCache here"):
        FileCache(folder)


def test_a_cache_and_its_locks_look_into_their_directory_once_as_they_start(folder):
    alone, both = Files(), Files()
    FileLocks(folder, files=alone).close()
    FileCache(folder, files=both).close()

    assert both.called == alone.called


# A hit.


def test_an_unchanged_list_costs_a_stat(folder, elsewhere):
    files = Files()
    with FileCache(folder, files=files) as cache:
        fill(elsewhere)
        entry = cache.read("k")
        files.called.clear()

        assert cache.read("k") is entry
        assert files.called == ["fstat", "stat"]


def test_a_list_that_was_filled_here_costs_a_stat_at_once(folder):
    files = Files()
    with FileCache(folder, files=files) as cache:
        entry = fill(cache)
        files.called.clear()

        assert cache.read("k") is entry
        assert files.called == ["fstat", "stat"]


def test_a_look_at_a_list_that_is_known_decodes_nothing(cache, monkeypatch):
    entry = fill(cache)
    monkeypatch.setattr("slotcache.file.cache.decode", None)

    assert cache.look("k").copy is entry


@pytest.mark.parametrize(("late", "is_fresh"), [(9.5, True), (10.0, False)])
def test_a_fill_that_has_no_life_left_is_fresh_for_nobody(folder, late, is_fresh):
    clock = ManualClock(start=0.0)
    with FileCache(folder, clock=clock) as cache:
        miss = cache.look("k")
        clock.advance(late)
        entry = cache.fill("k", miss, TEN, **TIMES)

    assert (entry is not None) is is_fresh


@pytest.mark.parametrize(("generation", "look"), [("its own", None), (None, 0.0)])
def test_a_fill_after_a_look_that_was_no_answer_is_dropped(cache, generation, look):
    generation = generation and cache.look("k").generation

    assert cache.fill("k", Miss(generation, look), TEN, **TIMES) is None
    assert cache.look("k").copy is None


def test_a_list_whose_life_is_over_is_not_asked_for(folder):
    clock = ManualClock(start=0.0)
    with FileCache(folder, clock=clock) as cache:
        fill(cache)
        clock.advance(10)
        assert isinstance(cache.read("k"), Miss)


def test_lists_beyond_maxsize_are_read_right_with_no_more_descriptors_than_that(folder, elsewhere):
    keys = [f"list {number}" for number in range(10)]
    for number, key in enumerate(keys):
        fill(elsewhere, key, Availability.of([("slot", 100, number)]))
    elsewhere.close()

    with FileCache(folder, maxsize=3) as cache:
        for _ in range(2):
            assert [left(cache.read(key).availability) for key in keys] == list(range(10))
        assert len(descriptors(folder)) == 3


def test_closing_gives_all_descriptors_back(folder):
    cache = FileCache(folder)
    fill(cache, "a")
    fill(cache, "b")
    cache.locks().acquire("l", ttl=10)
    assert len(descriptors(folder)) == 3

    cache.close()
    assert descriptors(folder) == []
    assert isinstance(cache.read("a"), Entry), "it may be used again"
    cache.close()


def test_who_lets_go_of_a_cache_lets_go_of_its_descriptors(folder):
    fill(FileCache(folder))
    gc.collect()
    assert descriptors(folder) == []


@pytest.mark.parametrize("maxsize", [0, -1, 1.5, True, None, "9"])
def test_a_maxsize_that_makes_no_sense_is_refused(folder, maxsize):
    with pytest.raises(ValueError, match="maxsize must be a number of lists, 1 or more"):
        FileCache(folder, maxsize=maxsize)


# Records that come back.


def test_a_record_that_was_replaced_in_the_same_instant_is_noticed(cache, elsewhere, folder):
    """As many systems do, ours would give a new file the inode and the size of the last one."""
    for remaining in itertools.chain.from_iterable(itertools.repeat((8, 7), 50)):
        fill(cache)
        the_file(folder, ".record").unlink()
        fill(elsewhere, availability=Availability.of([("slot", 10, remaining)]))

        assert left(cache.read("k").availability) == remaining


def test_a_record_that_is_held_open_keeps_its_inode_to_itself(cache, elsewhere, folder):
    fill(cache)
    inode = the_file(folder, ".record").stat().st_ino
    for _ in range(300):
        the_file(folder, ".record").unlink()
        elsewhere.look("k")
        assert the_file(folder, ".record").stat().st_ino != inode


def test_a_directory_that_was_moved_away_is_not_believed_any_more(cache, elsewhere, folder):
    fill(cache)
    folder.rename(folder.with_name("moved"))
    elsewhere.clear("k")

    assert isinstance(cache.read("k"), Miss)
    assert isinstance(fill(cache, availability=NINE), Entry)
    assert left(elsewhere.read("k").availability) == 9


def test_a_record_that_has_another_name_elsewhere_is_noticed_to_be_gone(cache, folder, tmp_path):
    fill(cache)
    record = the_file(folder, ".record")
    os.link(record, tmp_path / "backup")
    record.unlink()

    assert isinstance(cache.read("k"), Miss)


def test_a_record_that_is_removed_as_it_is_opened_is_not_believed(folder, elsewhere):
    """Its maker was killed halfway, so that the draft is another link to it."""
    fill(elsewhere)
    record = the_file(folder, ".record")
    os.link(record, folder / "a.draft")

    class Removing:
        has_removed = False

        def __getattr__(self, name):
            return getattr(os, name)

        def open(self, path, *how):
            fd = os.open(path, *how)
            if path == str(record) and not self.has_removed:
                self.has_removed = True
                record.unlink()
            return fd

    with FileCache(folder, files=Removing()) as cache:
        before = cache.read("k")
        elsewhere.read("k")
        fill(elsewhere, availability=NINE)

        assert isinstance(before, Miss)
        assert left(cache.read("k").availability) == 9


def test_a_record_with_another_epoch_than_it_was_made_with_is_made_anew(cache, elsewhere, folder):
    made = fill(cache).generation.epoch
    record = the_file(folder, ".record")
    data = bytearray(record.read_bytes())
    data[8] ^= 1
    record.write_bytes(data)

    assert elsewhere.read("k").generation.epoch not in {made, made ^ 1}


def test_a_record_that_grew_too_long_starts_anew(folder, monkeypatch):
    monkeypatch.setattr("slotcache.file.record._LONGEST", 50)
    with FileCache(folder) as cache, FileCache(folder) as elsewhere:
        epochs, longest = set(), 0
        for _ in range(100):
            fill(cache)
            assert isinstance(elsewhere.read("k"), Entry)
            cache.clear("k")
            found = elsewhere.read("k")
            assert isinstance(found, Miss)
            epochs.add(found.generation.epoch)
            longest = max(longest, the_file(folder, ".record").stat().st_size)

    assert longest <= 50
    assert len(epochs) > 3


def test_a_record_from_before_the_last_boot_is_lost(folder, cache, monkeypatch):
    """The clock that its list's life is told by has begun again since."""
    before = fill(cache).generation
    monkeypatch.setattr("slotcache.file.cache.boot_id", lambda: b"another boot ...")
    with FileCache(folder) as rebooted:
        found = rebooted.read("k")

        assert isinstance(found, Miss)
        assert found.copy is None
        assert found.generation.epoch != before.epoch
        assert isinstance(fill(rebooted), Entry)


def test_a_record_is_noticed_to_be_gone_although_its_maker_was_killed_halfway(folder):
    """The maker leaves its draft behind; the clear on a full disk then removes the record."""

    class Killed(Failing):
        def unlink(self, path):
            if not path.endswith(".draft"):
                Path(path).unlink()

    with FileCache(folder, files=Killed(0)) as killed:
        killed.look("k")
    files = full_disk()
    with FileCache(folder) as reader, FileCache(folder, files=files) as writer:
        fill(reader)
        files.has_failed = True
        writer.clear("k")

        assert isinstance(reader.read("k"), Miss)


# Time.


def test_instants_are_of_this_process_s_clock_however_far_the_host_s_is_ahead(
    folder, cache, monkeypatch
):
    """A host's clock counts through its sleep; the service's, `time.monotonic`, does not."""
    boot_clock = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda which: boot_clock(which) + 5 * HOUR)
    before = time.monotonic()
    filled = fill(cache)
    with FileCache(folder) as elsewhere:
        read = elsewhere.read("k")
    after = time.monotonic()

    for entry in (filled, read):
        assert before - 0.01 <= entry.since <= after + 0.01
        assert entry.until - entry.since == pytest.approx(TIMES["ttl"])


def test_a_list_ages_while_the_machine_sleeps(cache, monkeypatch):
    fill(cache)
    assert isinstance(cache.read("k"), Entry)

    boot_clock = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda which: boot_clock(which) + HOUR)
    found = cache.read("k")
    assert isinstance(found, Miss)
    assert found.copy.until < time.monotonic()


def test_a_clock_may_count_in_whole_numbers(folder):
    class Ticks:
        def now(self):
            return 7

    with FileCache(folder, clock=Ticks()) as cache, FileCache(folder, clock=Ticks()) as elsewhere:
        fill(cache)
        assert isinstance(elsewhere.read("k"), Entry)


# Damage.


@st.composite
def damages(draw):
    """A function from the bytes of a file to other bytes."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "replace", "append"]))
    at, bit = draw(st.integers(0, 200)), draw(st.integers(0, 7))
    some = draw(st.binary(max_size=80))

    def damage(content):
        place = at % len(content)
        flipped = bytes([content[place] ^ (1 << bit)])
        return {
            "cut": content[:place],
            "flip": content[:place] + flipped + content[place + 1 :],
            "insert": content[:place] + some + content[place:],
            "replace": some,
            "append": content + some,
        }[kind]

    return damage


@given(damages(), st.sampled_from([".record", ".list"]))
@example(lambda content: b"", ".record")
@example(lambda content: content[:-1], ".record")
@example(lambda content: b"", ".list")
def test_whatever_the_bytes_of_a_file_are_no_wrong_list_comes_of_it(damage, suffix):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with FileCache(folder) as cache:
            cache.look("k")
            for _ in range(3):
                cache.clear("k")
            fill(cache)
        file = the_file(folder, suffix)
        file.write_bytes(damage(file.read_bytes()))

        with FileCache(folder) as cache, FileCache(folder) as elsewhere:
            found = cache.read("k")
            seen = found if isinstance(found, Entry) else found.copy
            assert seen is None or seen.availability == TEN
            cache.clear("k")
            assert isinstance(cache.read("k"), Miss)
            assert isinstance(fill(cache, availability=NINE), Entry), "it does not recover"
            assert elsewhere.read("k").availability == NINE


@pytest.mark.parametrize("size", [0, 10, 35])
def test_a_record_that_is_cut_under_a_running_cache_is_made_anew(cache, elsewhere, folder, size):
    fill(cache)
    os.truncate(the_file(folder, ".record"), size)

    assert isinstance(cache.read("k"), Miss)
    assert isinstance(fill(cache), Entry)
    assert isinstance(elsewhere.read("k"), Entry)


def test_a_fill_from_before_the_clears_that_a_cut_record_has_lost_is_dropped(
    cache, elsewhere, folder
):
    early = cache.look("k")
    size = the_file(folder, ".record").stat().st_size
    elsewhere.clear("k")
    fill(elsewhere, availability=NINE)
    os.truncate(the_file(folder, ".record"), size)

    assert cache.fill("k", early, TEN, ttl=10, stale_ttl=60) is None
    for each in (cache, elsewhere):
        assert isinstance(each.read("k"), Miss)


def test_a_cut_record_that_somebody_removes_first_is_made_anew(folder, elsewhere):
    files = Files()
    with FileCache(folder, files=files) as cache:
        cache.look("k")
        size = the_file(folder, ".record").stat().st_size
        cache.clear("k")
        fill(elsewhere)
        os.truncate(the_file(folder, ".record"), size)
        files.unlink = lambda path: (Path(path).unlink(), Path(path).unlink())

        assert cache.look("k").copy is None


def test_a_look_that_a_clear_and_a_fill_overtake_finds_their_list(folder, elsewhere):
    files = Files()

    def overtaken(path, *how):
        if path.endswith(".list"):
            files.open = os.open
            elsewhere.clear("k")
            fill(elsewhere, availability=NINE)
        return os.open(path, *how)

    with FileCache(folder, files=files) as cache:
        fill(cache)
        files.open = overtaken
        found = cache.look("k")

    assert found.copy.availability == NINE
    assert found.copy.generation.covers(found.generation)
    assert isinstance(elsewhere.read("k"), Entry)


def test_a_record_that_is_never_found_once_it_was_made_is_an_error_that_says_so(folder):
    files = Files()
    with FileCache(folder, files=files) as cache:
        files.link = lambda *_names: None

        with pytest.raises(OSError, match="the record of 'k' is removed again and again"):
            cache.look("k")


def test_the_locks_of_a_cache_end_by_its_clock(folder):
    clock = ManualClock(start=0.0)
    with FileCache(folder, clock=clock) as cache:
        cache.locks().acquire("l", ttl=10)
        clock.advance(10)

        assert cache.locks().acquire("l", ttl=10) is not None


@pytest.mark.parametrize("suffix", [".record", ".list"])
def test_a_file_of_another_key_is_a_miss(cache, elsewhere, folder, suffix):
    fill(cache, "k")
    theirs = the_file(folder, suffix)
    fill(cache, "other", NINE)
    [ours] = set(folder.glob(f"*{suffix}")) - {theirs}
    shutil.copyfile(theirs, ours)

    found = elsewhere.read("other")
    assert isinstance(found, Miss)
    assert found.copy is None


@pytest.mark.parametrize("suffix", [".record", ".list"])
def test_a_file_that_vanished_is_a_miss(cache, elsewhere, folder, suffix):
    fill(cache)
    the_file(folder, suffix).unlink()

    found = elsewhere.read("k")
    assert isinstance(found, Miss)
    assert found.copy is None
    assert isinstance(fill(elsewhere), Entry)
    assert isinstance(cache.read("k"), Entry)


@pytest.mark.parametrize("suffix", [".record", ".list"])
def test_a_huge_file_is_a_miss_and_not_read(cache, elsewhere, folder, suffix):
    fill(cache)
    os.truncate(the_file(folder, suffix), 2**40)

    assert isinstance(elsewhere.read("k"), Miss)
    elsewhere.clear("k")
    assert isinstance(fill(elsewhere), Entry)
    assert isinstance(cache.read("k"), Entry)


PLANTED = {
    "directory": Path.mkdir,
    "pipe": os.mkfifo,
    "link": lambda path: path.symlink_to(path.parent.parent / "outside"),
    "dangling link": lambda path: path.symlink_to("/nowhere/at/all"),
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
}


@pytest.fixture(params=[".record", ".list"])
def planted(request, cache, folder):
    """Return the function that plants something in the place of a file of a filled cache.

    It returns the file's path. A link leads outside, to a good file, which must not be followed.
    """
    fill(cache)
    outside = folder.parent / "outside"
    file = the_file(folder, request.param)
    file.rename(outside)
    content = outside.read_bytes()

    def planted(plant):
        plant(file)
        return file

    yield planted
    assert outside.read_bytes() == content


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_what_is_planted_in_the_place_of_a_file_is_a_miss_or_an_error(planted, elsewhere, plant):
    file = planted(plant)
    with contextlib.suppress(OSError):
        elsewhere.clear("k")
    try:
        assert isinstance(elsewhere.read("k"), Miss)
        assert isinstance(fill(elsewhere), Entry)
    except OSError:
        assert file.is_dir() or file.is_socket()


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_what_is_planted_in_the_place_of_a_file_costs_queries_and_nothing_else(
    planted, elsewhere, plant
):
    planted(plant)
    shelf = Shelf()
    with SlotAvailabilityService(
        shelf, cache=elsewhere, policy=AvailabilityPolicy(key="k")
    ) as service:
        for shelf.remaining in (7, 6, 5):
            service.clear_availability_cache()
            assert left(service.get_availability()) == shelf.remaining


def test_the_directory_may_vanish_under_a_running_cache(cache, elsewhere, folder):
    fill(cache)
    fill(elsewhere)
    shutil.rmtree(folder)

    found = cache.read("k")
    assert isinstance(found, Miss)
    assert found.copy is None
    assert isinstance(fill(cache, availability=NINE), Entry)
    assert elsewhere.read("k").availability == NINE
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    shutil.rmtree(folder)
    cache.clear("k")
    cache.clear_all()
    assert cache.locks().acquire("l", ttl=10) is not None


# Disks that are full, or read-only.


def test_a_fill_on_a_full_disk_fails_and_leaves_nothing(folder):
    files = full_disk()
    with FileCache(folder, files=files) as cache:
        entry = fill(cache)
        before = names(folder)
        files.has_failed = True

        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            fill(cache, availability=NINE)
        assert names(folder) == before
        assert cache.read("k") is entry


def test_a_clear_gets_through_on_a_full_disk(folder, elsewhere):
    """It cannot count, so it takes away the record, and with it the list's right to be fresh."""
    files = full_disk()
    with FileCache(folder, files=files) as cache:
        fill(cache)
        before = elsewhere.read("k").generation
        files.has_failed = True
        cache.clear("k")

        found = elsewhere.read("k")
        assert isinstance(found, Miss)
        assert found.copy is None
        assert found.generation.epoch != before.epoch


def test_a_clear_on_a_full_disk_gets_through_when_somebody_removes_the_record_first(folder):
    files = full_disk()
    with FileCache(folder, files=files) as cache:
        fill(cache)
        files.has_failed = True
        files.unlink = lambda path: (Path(path).unlink(), Path(path).unlink())
        cache.clear("k")
        files.has_failed = False

        assert isinstance(cache.read("k"), Miss)


def test_a_clear_of_every_list_gets_through_on_a_full_disk(folder, elsewhere):
    files = full_disk()
    with FileCache(folder, files=files) as cache:
        for key in ("a", "b"):
            fill(cache, key)
        files.has_failed = True
        cache.clear_all()

    assert isinstance(elsewhere.read("a"), Miss)
    assert isinstance(elsewhere.read("b"), Miss)


def test_a_service_on_a_full_disk_shows_every_change(folder):
    files, shelf = full_disk(), Shelf()
    with (
        FileCache(folder, files=files) as cache,
        SlotAvailabilityService(shelf, cache=cache) as service,
    ):
        service.read()
        files.has_failed = True
        for shelf.remaining in (7, 6, 5):
            assert service.clear_availability_cache()
            assert left(service.get_availability()) == shelf.remaining


def test_a_clear_on_a_read_only_disk_says_that_it_failed(folder):
    files = ReadOnly()
    with FileCache(folder, files=files) as cache:
        for key in ("a", "b"):
            fill(cache, key)
        files.has_failed = True

        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            cache.clear("a")
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            cache.clear_all()


def test_a_read_only_disk_is_read(folder):
    files = ReadOnly()
    with FileCache(folder) as cache:
        fill(cache)
    with FileCache(folder, files=files) as cache:
        files.has_failed = True

        assert isinstance(cache.read("k"), Entry)
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            cache.look("a new key")


def test_a_clear_that_fails_for_one_list_gets_through_for_the_rest(cache, folder):
    for key in ("a", "b", "c"):
        fill(cache, key)
    broken = cache._folder.path_of("b", ".record")
    Path(broken).unlink()
    Path(broken).mkdir()

    with pytest.raises(IsADirectoryError):
        cache.clear_all()
    assert isinstance(cache.read("a"), Miss)
    assert isinstance(cache.read("c"), Miss)


def test_a_service_on_a_read_only_disk_answers_every_read(folder):
    files, shelf = ReadOnly(), Shelf()
    with (
        FileCache(folder, files=files) as cache,
        SlotAvailabilityService(shelf, cache=cache) as service,
    ):
        assert left(service.get_availability()) == 10
        files.has_failed = True
        assert service.read().source is Source.CACHED
        for _ in range(3):
            assert not service.clear_availability_cache()
            assert left(service.get_availability()) == 10


def test_a_service_that_finds_a_read_only_disk_answers_every_read(folder):
    folder.mkdir(mode=0o700)
    files, shelf = ReadOnly(), Shelf()
    files.has_failed = True
    with (
        FileCache(folder, files=files) as cache,
        SlotAvailabilityService(shelf, cache=cache) as service,
    ):
        for shelf.remaining in (7, 6, 5):
            assert left(service.get_availability()) == shelf.remaining
    assert names(folder) == []


# Forks, and descriptors that somebody else closed.


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_keeps_nothing_of_its_parent_s_open(cache, folder):
    fill(cache)
    assert descriptors(folder) != []

    def work():
        assert descriptors(folder) == []
        assert isinstance(cache.read("k"), Entry)

    in_child(work)
    assert isinstance(cache.read("k"), Entry)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_daemon_may_close_all_descriptors_and_use_their_numbers(folder, elsewhere):
    for number, key in enumerate(["a", "b", "c"]):
        fill(elsewhere, key, Availability.of([("slot", 10, number)]))
    cache = FileCache(folder)

    def work():
        assert [left(cache.read(key).availability) for key in "abc"] == [0, 1, 2]
        held = {kept.record._fd for kept in cache._kept.values()}
        size = next(folder.glob("*.record")).stat().st_size
        os.closerange(3, 1_000)
        files = [(folder.parent / f"log {number}").open("w+") for number in range(50)]
        assert held < {file.fileno() for file in files}
        for file in files:
            file.truncate(size)

        assert [left(cache.read(key).availability) for key in "ab"] == [0, 1]
        elsewhere.clear("b")
        assert isinstance(cache.read("b"), Miss)
        del cache._kept
        gc.collect()
        for file in files:
            file.write("still open")
            file.close()

    in_child(work)


def test_after_its_descriptors_were_closed_a_hit_costs_a_stat_again(folder):
    files = Files()
    with FileCache(folder, files=files) as cache:
        fill(cache)
        os.close(cache._kept["k"].record._fd)
        cache.read("k")
        cache.read("k")
        files.called.clear()

        assert isinstance(cache.read("k"), Entry)
        assert files.called == ["fstat", "stat"]


def test_a_record_with_the_inode_of_one_that_is_not_open_any_more_is_noticed(folder):
    with FileCache(folder) as cache:
        fill(cache)
        os.close(cache._kept["k"].record._fd)
        FileCache(folder).clear("k")
        the_file(folder, ".record").unlink()
        FileCache(folder).read("k")

        assert isinstance(cache.read("k"), Miss)


def test_a_record_that_could_not_be_made_closes_nothing_afterwards(folder):
    files = Failing(errno.ENOSPC, "link", "replace")
    files.has_failed = True
    with (
        FileCache(folder, files=files) as cache,
        pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as raised,
    ):
        cache.look("k")

    # As a rule the system gives its inode and its descriptor to the next file.
    with (folder / "somebody's").open("w") as file:
        del raised
        gc.collect()
        file.write("still open")


# Litter.


def test_what_killed_writers_left_is_swept_when_it_is_old(folder):
    folder.mkdir(mode=0o700)
    for name, age in {
        "old.draft": 2 * HOUR,
        "young.draft": HOUR / 2,
        "old.record": 2 * HOUR,
        "young.record": HOUR / 2,
        "listed.record": 20 * HOUR,
        "listed.list": -HOUR,
        "over.list": 1,
        "old.txt": 2 * HOUR,
    }.items():
        (folder / name).touch()
        os.utime(folder / name, times=(time.time() - age,) * 2)

    FileCache(folder).close()

    assert names(folder) == [
        "listed.list",
        "listed.record",
        "old.txt",
        "young.draft",
        "young.record",
    ]


@pytest.mark.parametrize(
    ("times", "wanted_for"),
    [
        ({"ttl": 10, "stale_ttl": 60}, HOUR),
        ({"ttl": 5 * HOUR, "stale_ttl": 0}, 5 * HOUR),
        ({"ttl": 10, "stale_ttl": 5 * HOUR}, 5 * HOUR + 10),
        ({"ttl": 5 * HOUR, "stale_ttl": 60, "valid_for": 10}, HOUR),
    ],
)
def test_a_list_is_swept_when_nobody_can_want_it_any_more(folder, times, wanted_for):
    now = time.time()
    with FileCache(folder) as cache:
        fill(cache, **times)
    file = the_file(folder, ".list")
    assert file.stat().st_mtime == pytest.approx(now + wanted_for, abs=60)

    age(folder, wanted_for - 100)
    FileCache(folder).close()
    assert [path.suffix for path in sorted(folder.iterdir())] == [".list", ".record"]

    age(folder, HOUR + 200)
    FileCache(folder).close()
    assert names(folder) == []


def age(folder, seconds):
    """Let all files there be so much older than they are."""
    for path in folder.iterdir():
        last = path.stat().st_mtime - seconds
        os.utime(path, (last, last))


def test_a_running_cache_sweeps_once_an_hour(folder):
    clock = ManualClock(start=10 * HOUR)
    with FileCache(folder, clock=clock) as cache:
        for _ in range(2):
            fill(cache, "out of use")
            age(folder, 2 * HOUR)
            clock.advance(HOUR - 1)
            fill(cache)
            assert len(names(folder)) == 4
            clock.advance(2)
            fill(cache)

            assert len(names(folder)) == 2
            assert isinstance(cache.read("k"), Entry)


def test_a_list_that_was_swept_too_early_costs_a_query(folder):
    with FileCache(folder) as cache, FileCache(folder) as elsewhere:
        fill(cache)
        elsewhere.read("k")
        age(folder, 10 * HOUR)
        FileCache(folder).close()

        assert isinstance(elsewhere.read("k"), Miss)
        assert isinstance(fill(elsewhere, availability=NINE), Entry)
        assert cache.read("k").availability == NINE
