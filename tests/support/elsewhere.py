"""Another process, whose caches and locks a test uses as if they were here."""

import multiprocessing
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from slotcache.protocols import Entry, Miss


class Elsewhere:
    """A process that makes objects and calls their methods for us, until it is closed."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._mutex = threading.Lock()

    def make(self, factory: Callable[..., object], *args: object, **options: object) -> "There":
        """Return what stands here for what `factory` makes over there."""
        return There(self, self.call(None, factory, *args, **options))

    def call(self, number: int | None, what: object, *args: object, **options: object) -> Any:
        """Have it done; return the answer, or raise what was raised there."""
        with self._mutex:
            self._pipe.send((number, what, args, options))
            answer, error = self._pipe.recv()
        if error is not None:
            raise error
        return answer

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


class There:
    """Stands here for a cache, or for locks, over there."""

    def __init__(self, process: Elsewhere, number: int) -> None:
        self._process = process
        self._number = number
        self._hits: dict[str, Entry] = {}

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._process.call, self._number, method)

    def read(self, key: str) -> Entry | Miss:
        """Return one object for all equal hits, of which each came as a copy."""
        found: Entry | Miss = self._process.call(self._number, "read", key)
        if isinstance(found, Miss):
            return found
        if self._hits.get(key) != found:
            self._hits[key] = found
        return self._hits[key]

    def locks(self) -> "There":
        return There(self._process, self._process.call(self._number, "locks"))


def _serve(pipe: Connection) -> None:
    made: list[Any] = []

    def answer(number: int | None, what: Any, args: Any, options: Any) -> object:
        call = what if number is None else getattr(made[number], what)
        result = call(*args, **options)
        if number is not None and what != "locks":
            return result
        made.append(result)
        return len(made) - 1

    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((answer(*request), None))
        except Exception as error:
            pipe.send((None, error))
