"""A cache, or locks, whose calls fail as a test says: in each way in which a backend can.

`Faulty` stands before a port of either world. What it was asked, it notes in `calls`; what befalls
a call, it takes from `faults`: by the method's name the faults of its next calls, of which the last
one stays.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slotcache.availability import Availability
from slotcache.protocols import Entry, Generation, Lock, Miss
from slotcache.testing import ManualClock
from slotcache.trouble import BUDGET

__all__ = ["CALLS", "FAULTS", "LATE", "Faulty", "Gone"]

CACHE_CALLS = ("read", "look", "fill", "clear", "clear_all")
LOCK_CALLS = ("acquire", "release")
CALLS = CACHE_CALLS + LOCK_CALLS

LATE = BUDGET + 0.25
"""How many seconds a call takes that overruns its budget."""


class Gone(Exception):
    """What a call of a backend raises that is down."""


class Fault:
    """What befalls one call: nothing."""

    def before(self, name: str, clock: ManualClock) -> None:
        """Happen on the way to the backend; what it raises, the call raises."""

    def is_made(self, name: str) -> bool:
        """Whether the backend is asked at all."""
        return True

    def after(self, name: str, clock: ManualClock, answer: Any) -> Any:
        """Happen on the way back; return what the caller is told."""
        return answer


class Fails(Fault):
    """The backend is not reached."""

    def before(self, name: str, clock: ManualClock) -> None:
        raise Gone(name)


class HangsAndFails(Fault):
    """Nothing comes back, until the caller gives up."""

    def before(self, name: str, clock: ManualClock) -> None:
        clock.advance(LATE)
        raise TimeoutError(name)


class LosesTheReply(Fault):
    """It is done, and nobody hears of it."""

    def after(self, name: str, clock: ManualClock, answer: Any) -> Any:
        raise Gone(name)


class AnswersLate(Fault):
    """It is done, and takes longer than its budget."""

    def after(self, name: str, clock: ManualClock, answer: Any) -> Any:
        clock.advance(LATE)
        return answer


class Answers(Fault):
    """The answer is none, or a lie; all but a look and a clear are not even done."""

    def __init__(self, lies: Mapping[str, Callable[[Any], Any]]) -> None:
        self._lies = lies

    def is_made(self, name: str) -> bool:
        # A clear that is acknowledged and lost: P1 excepts that, for nobody could notice.
        return name not in ("fill", "acquire", "release")

    def after(self, name: str, clock: ManualClock, answer: Any) -> Any:
        return self._lies.get(name, lambda _: "OK")(answer)


SOMEBODY_S = Entry(
    Availability.of([("another list's", 99, 99)]), Generation(0xBAD, 99), since=0.0, until=1e9
)
"""A list of another key, which looks fresh and covers nothing here."""


def _with_a_wrong_copy(found: Entry | Miss) -> Miss:
    look = None if isinstance(found, Entry) else found.look
    return Miss(found.generation, look, SOMEBODY_S)


def _of_a_wrong_type(found: Entry | Miss) -> Miss:
    return Miss(generation="generation 5", look=b"\x80\x04N.", copy=())  # type: ignore[arg-type]


def _of_another_record(found: Entry | Miss) -> Miss:
    return Miss(Generation(0xACE, 99), look=0)


def _looks(lie: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    return {"read": lie, "look": lie}


FAULTS: Mapping[str, Fault] = {
    "is well": Fault(),
    "fails": Fails(),
    "hangs, then fails": HangsAndFails(),
    "is done, and the reply is lost": LosesTheReply(),
    "is done, but late": AnswersLate(),
    # Lies: a fill that is not kept, a lock that is held by nobody, or by somebody for ever.
    "answers None": Answers(dict.fromkeys(CALLS, lambda _: None)),
    "answers nonsense": Answers({}),
    "says yes to everything": Answers(
        {
            **_looks(_with_a_wrong_copy),
            "fill": lambda _: SOMEBODY_S,
            "acquire": lambda _: Lock("any", "granted to everybody"),
            "release": lambda _: True,
        }
    ),
    "answers with wrong types": Answers(_looks(_of_a_wrong_type)),
    "answers for another list": Answers(_looks(_of_another_record)),
}
"""By name: what may befall a call."""


class Faulty:
    """Stands before a cache or locks of either world, and lets calls fail.

    Attributes:
        faults: By method: the names, in `FAULTS`, of what befalls its next calls; the last stays.
        calls: The names of the methods that were called.
    """

    def __init__(self, port: Any, clock: ManualClock) -> None:
        self._port = port
        self._clock = clock
        self.faults: dict[str, Sequence[str]] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name not in CALLS:
            raise AttributeError(name)
        method = getattr(self._port, name)
        return self._awaited(name, method) if _is_async(method) else self._called(name, method)

    def _called(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            fault = self._next(name)
            fault.before(name, self._clock)
            answer = method(*args, **options) if fault.is_made(name) else None
            return fault.after(name, self._clock, answer)

        return call

    def _awaited(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **options: Any) -> Any:
            fault = self._next(name)
            fault.before(name, self._clock)
            answer = await method(*args, **options) if fault.is_made(name) else None
            return fault.after(name, self._clock, answer)

        return call

    def _next(self, name: str) -> Fault:
        self.calls.append(name)
        first, *rest = self.faults.get(name) or ["is well"]
        if rest:
            self.faults = {**self.faults, name: rest}
        return FAULTS[first]


def _is_async(method: object) -> bool:
    return inspect.iscoroutinefunction(method)
