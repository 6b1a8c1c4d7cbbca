"""What the tests themselves stand on: that nothing they start is left behind, or hangs unseen."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support import forks
from tests.support.processes import eventually

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_a_forked_child_that_does_not_end_is_ended_and_tells_where_it_stood(monkeypatch):
    def wait_for_ever():
        threading.Event().wait()

    child = forks.Forked(wait_for_ever)
    monkeypatch.setattr(forks, "PATIENCE", 0.3)
    with pytest.raises(AssertionError, match=r"did not end; it stood here:[^$]*wait_for_ever"):
        child.finish()


def test_a_forked_child_that_fails_tells_why():
    def fail():
        raise LookupError("nothing there")

    with pytest.raises(AssertionError, match=r"failed \(1\):[^$]*LookupError: nothing there"):
        forks.in_child(fail)


RUNNER = """
import signal, sys
from pathlib import Path
from slotcache import AvailabilityPolicy
from tests.support.processes import Shop, Worker

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    Shop.build(folder)
    workers = [Worker(Shop, folder, AvailabilityPolicy()) for _ in range(3)]
    stopped, halted, busy = workers
    stopped.stop()
    halted.start("read", halt="loaded")
    halted.wait_until_halted()
    busy.start("work", 0, 3600.0, 0.05)
    print(*(worker.pid for worker in workers), flush=True)
    signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of that")
def test_workers_do_not_outlive_tests_that_are_killed(tmp_path):
    script = tmp_path / "runner.py"
    script.write_text(RUNNER)
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, script, tmp_path],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as runner:
        pids = runner.stdout.readline().split()
        assert len(pids) == 3
        runner.send_signal(signal.SIGKILL)

    eventually(lambda: not any(is_running(int(pid)) for pid in pids))


def is_running(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"  # ended; nobody has asked how
