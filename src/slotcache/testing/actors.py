"""Actors of a simulated world: each runs shipped code from one stop to the next.

A stop is a request that reaches the scheduler: by `yield` from a coroutine, by handing over the
baton from a thread.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Coroutine, Hashable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

__all__ = ["Actor", "Request", "TaskActor", "ThreadActor"]

ReturnT = TypeVar("ReturnT")

NO_NAMES: Mapping[str, str] = MappingProxyType({})


class Happening(Protocol):
    """An event that an actor may wait for."""

    identity: tuple[str, int]
    is_set: bool


class Request:
    """Why an actor waits: for its turn, for a time, or for an event until a time.

    Sleeping is a turn too: whoever wakes was asleep for as long as it wanted. A wait for an
    event may also give up early, but only so often (`Actor.patience`): a follower that finds
    its leader alive has changed nothing but the time.
    """

    __slots__ = ("event", "until", "what")

    def __init__(self, what: str, until: float = 0.0, event: Happening | None = None) -> None:
        self.what = what
        self.until = until
        self.event = event


class Actor:
    """Somebody who runs the shipped code, from stop to stop."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind = name.split()[0]
        self.service: object = None
        self.alone = False
        self.pending = Request("start")
        self.observed = 0
        self.events = 0
        self.patience = 1
        self.finished = False
        self.crashed = False

    def is_like(self, other: Actor) -> bool:
        """Whether `other` does just the same, so that it does not matter which of them is which."""
        alike = self.service is other.service or (self.alone and other.alone)
        return alike and self.kind == other.kind

    def progress(self) -> int:
        """How far it is: what tells it from another one that is like it."""
        if self.finished or self.crashed:
            return hash(self.finished)
        return hash((self.pending.what, self.pending.until, self.observed, self.patience))

    def observe(self, what: Hashable) -> None:
        """Add to the digest of all that it has got to know."""
        self.observed = hash((self.observed, what))

    def waits_for(self) -> tuple[str, int] | None:
        """Return the event that it waits for: who made it, and its number among theirs."""
        event = None if self.finished or self.crashed else self.pending.event
        return None if event is None else event.identity

    def state(self, names: Mapping[str, str] = NO_NAMES, *, is_awaited: bool = False) -> Hashable:
        """Return all that its future depends on, beside what is shared.

        Once it is over, that is nothing, unless it is awaited: how it ended is what somebody waits
        to hear.
        """
        if self.finished or self.crashed:
            return self.finished, self.observed if is_awaited else 0
        event = self.waits_for()
        waits_for = None if event is None else (names.get(event[0], event[0]), event[1])
        return self.pending.what, self.pending.until, waits_for, self.observed, self.patience

    def resume(self, command: str) -> None:
        """Run it to its next stop; what it raises passes through."""
        raise NotImplementedError

    def close(self) -> None:
        """Unwind it, wherever it stopped."""
        raise NotImplementedError


class TaskActor(Actor):
    """An actor that is a coroutine."""

    def __init__(self, name: str, coroutine: Coroutine[Request, str, None]) -> None:
        super().__init__(name)
        self._coroutine = coroutine
        self._context = contextvars.copy_context()
        self._send: Callable[[Any], Request] = coroutine.send

    def resume(self, command: str) -> None:
        """As `Actor.resume`."""
        first = self.pending.what == "start"
        try:
            self.pending = self._context.run(self._send, None if first else command)
        except StopIteration:
            self.finished = True

    def close(self) -> None:
        """As `Actor.close`."""
        self._coroutine.close()


class ThreadActor(Actor):
    """An actor that is a thread, which runs only while it holds the baton."""

    def __init__(self, name: str, body: Callable[[], None]) -> None:
        super().__init__(name)
        self._command = ""
        self._mine = threading.Semaphore(0)
        self._theirs = threading.Semaphore(0)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(body,), daemon=True)
        self._thread.start()

    def _run(self, body: Callable[[], None]) -> None:
        self._mine.acquire()
        try:
            if self._command != "close":
                body()
        except BaseException as error:
            self._error = error
        self.finished = True
        self._theirs.release()

    def drive(self, call: Coroutine[Request, str, ReturnT]) -> ReturnT:
        """Run a simulated port's call, passing the baton at each of its stops."""
        command: Any = None  # the first `send` of a coroutine
        while True:
            try:
                self.pending = call.send(command)
            except StopIteration as end:
                value: ReturnT = end.value
                return value
            self._theirs.release()
            self._mine.acquire()
            command = self._command
            if command == "close":
                call.close()
                raise GeneratorExit

    def resume(self, command: str) -> None:
        """As `Actor.resume`."""
        self._command = command
        self._mine.release()
        self._theirs.acquire()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """As `Actor.close`."""
        if not self.finished:
            self._error = None
            self._command = "close"
            self._mine.release()
        self._thread.join(10.0)
        assert not self._thread.is_alive(), f"{self.name} did not end"
