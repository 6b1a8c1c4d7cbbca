"""Processes as a pre-forking server has them: the master builds the application, then forks.

What stands here for HTTP is a socket with one line of JSON for each request and each answer.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import Any, NoReturn


class Worker:
    """A forked process that calls methods of its own copy of the application."""

    def __init__(self, application: object) -> None:
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _serve(application, theirs)
        theirs.close()
        self._lines = ours.makefile("rw", encoding="utf-8")
        ours.close()

    def ask(self, method: str, *arguments: object) -> None:
        """Have a method called, without waiting for its answer."""
        print(json.dumps([method, arguments]), file=self._lines, flush=True)

    def answer(self) -> Any:
        """Wait for the answer."""
        return json.loads(self._lines.readline())

    def call(self, method: str, *arguments: object) -> Any:
        """Have a method called, and wait for its answer."""
        self.ask(method, *arguments)
        return self.answer()

    def kill(self) -> None:
        """End it as `kill -9` does: it is not asked, and nothing of it is tidied up."""
        if self._lines.closed:
            return
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._lines.close()


def _serve(application: object, requests: socket.socket) -> NoReturn:
    """Answer until the master is gone; what the master has yet to tidy up is left to it."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the master
        with requests.makefile("rw", encoding="utf-8") as lines:
            for line in lines:
                method, arguments = json.loads(line)
                answer = getattr(application, method)(*arguments)
                print(json.dumps(answer), file=lines, flush=True)
        status = 0
    finally:
        os._exit(status)
