"""Processes that do what the benchmark tells them, with an end to every wait."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self

# Forked off a server that has imported what they need and has done nothing with it: they begin as
# new as if they were spawned, and sooner.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["slotcache.redis", "slotcache.sql"])

PATIENCE = 60.0


class TooLate(Exception):
    """There is no answer in time."""


class Worker:
    """A new process that has made one object and calls its methods for us, one after the other.

    Args:
        make: Makes it, over there.
        arguments: What that is given.
    """

    def __init__(self, make: Callable[..., object], *arguments: object) -> None:
        self._pipe, theirs = PROCESSES.Pipe()
        self._process = PROCESSES.Process(
            target=_serve, args=(theirs, make, arguments), daemon=True
        )
        self._process.start()
        theirs.close()
        self.answer()

    def call(self, method: str, *arguments: object) -> Any:
        """Call a method; return what it returns."""
        self.begin(method, *arguments)
        return self.answer()

    def begin(self, method: str, *arguments: object) -> None:
        """Begin a call."""
        self._pipe.send((method, arguments))

    def answer(self, patience: float = PATIENCE) -> Any:
        """Wait for the end of the call; return what it returns.

        Raises:
            TooLate: It has not ended.
            RuntimeError: It raised.
        """
        if not self._pipe.poll(patience):
            raise TooLate(f"no answer within {patience:g} s")
        has_returned, answer = self._pipe.recv()
        if not has_returned:
            raise RuntimeError(answer)
        return answer

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.end()


def _serve(pipe: Connection, make: Callable[..., object], arguments: tuple[object, ...]) -> None:
    try:
        made = make(*arguments)
        pipe.send((True, None))
        while True:
            method, arguments = pipe.recv()
            try:
                pipe.send((True, getattr(made, method)(*arguments)))
            except Exception:
                pipe.send((False, traceback.format_exc()))
    except (EOFError, KeyboardInterrupt):  # the benchmark has ended
        return
