"""Forked processes, with an end to every wait for them, that tell where they stood."""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from tests.support.threads import PATIENCE


def in_child(work: Callable[[], object]) -> None:
    """Do the work in a forked process, and fail if it fails there."""
    Forked(work).finish()


class Forked:
    """A forked process that does some work and ends.

    If it does not end in time it is killed, and the test that waits for it shows where it stood.
    faulthandler tells that from C: a handler in Python (pytest-timeout has one for SIGALRM, which
    a child inherits) is never come to by a child that waits for a mutex of SQLite's.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  (`finish` closes it)
        # From before the fork, so that it also tells of what the library does in it. Having told
        # it ends the child: that is what the signal does by itself.
        faulthandler.register(signal.SIGUSR2, self._words, chain=True)
        self.pid = os.fork()
        if self.pid == 0:
            self._live(work)
        faulthandler.unregister(signal.SIGUSR2)

    def _live(self, work: Callable[[], object]) -> NoReturn:
        status = 1
        try:
            # For a child that nobody waits for any more.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(round(3 * PATIENCE))
            work()
            status = 0
        except BaseException:
            self._words.write(traceback.format_exc().encode())
            self._words.flush()
        finally:
            os._exit(status)

    def finish(self) -> None:
        """Wait for its end, and fail if it fails."""
        status = self._end(PATIENCE)
        if status is None:
            os.kill(self.pid, signal.SIGUSR2)
            if self._end(PATIENCE) is None:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        with self._words:
            self._words.seek(0)
            words = self._words.read().decode(errors="replace")
        assert status is not None, f"the child did not end; it stood here:\n{words}"
        assert status == 0, f"the child failed ({status}):\n{words}"

    def _end(self, patience: float) -> int | None:
        """Wait for its end; return its exit code, None: it has not come."""
        end = time.monotonic() + patience
        while (ended := os.waitpid(self.pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > end:
                return None
            time.sleep(0.002)
        return os.waitstatus_to_exitcode(ended[1])
