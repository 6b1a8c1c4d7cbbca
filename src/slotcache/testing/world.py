"""A simulated world: the shipped service under a scheduler that decides everything.

Actors (`slotcache.testing.cast`) run the code that ships, the asynchronous face as coroutines or
the blocking face in threads that pass a baton. Each port call of theirs stops twice: before it
takes effect and again before its answer arrives; with one of the two, real races stay unseen. At
any stop the scheduler may let somebody else go, or let a fault strike. `slotcache.testing.explore`
goes through the ways in which it can choose.

A state of the world is all that is shared (`World.state`) and all that each actor has observed:
every answer of a port, every look at the clock, what the judge expects of it. An actor is a
deterministic program over its observations, so two worlds in one state have the same futures.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from slotcache.availability import Availability
from slotcache.policy import AvailabilityPolicy
from slotcache.testing.actors import Actor, Request
from slotcache.testing.cast import Cast
from slotcache.testing.holding import SqlTable
from slotcache.testing.judge import Judge
from slotcache.testing.ports import Alive, Failure, HeldLocks
from slotcache.testing.scenario import Choice, Scenario, Violation
from slotcache.testing.stores import MemoryStore, OwnStore, Store
from slotcache.testing.timeline import Event, said

__all__ = ["World"]

_POLICY = AvailabilityPolicy(lock_timeout=0.001)
_BACK = 0.002

ReturnT = TypeVar("ReturnT")

_NOTICED_BY = {
    "evict": frozenset({"clear", "fill", "look"}),
    "evict entry": frozenset({"clear", "fill", "look"}),
    "lose lock": frozenset({"lock", "release"}),
}
"""Which calls can tell that a fault has struck."""

_DRAWN = frozenset({"change", "find", "lock"})
"""Which calls answer what is drawn at random."""


class World:
    """One run of a scenario, to be stepped by choices.

    Attributes:
        scenario: What it is a run of.
        table: Where holds are; None: there are none.
        time: For how many simulated seconds it has run.
        judge: Knows what is committed.
        held: Who holds which lock.
        touched: Whether the last step read or changed anything that is shared.
    """

    def __init__(self, scenario: Scenario, table: SqlTable | None = None) -> None:
        self.scenario = scenario
        self.table = table
        self.time = 0.0
        self.touched = True  # so that nobody looks who else there is, until all are there
        self._events: list[tuple[str, str, object]] = []
        self.policy = _POLICY
        self.faults = scenario.faults
        self.judge = Judge(scenario, self.policy.ttl)
        self.current: Actor | None = None
        self.closed = False
        self._struck: frozenset[str] | None = None
        self._raised = ""
        self._stack = ExitStack()
        self.held = HeldLocks(self)
        self.store: Store = OwnStore(self) if scenario.storage else MemoryStore(self)
        if table is not None:
            table.begin()
        self.cast = Cast(self)
        self._stack.callback(self.cast.close)
        if table is not None:
            self.judge.taken_at_first = table.taken()
        self.touched = False

    def now(self) -> float:
        """The time, as caches and locks inside this world see it."""
        return self.store.began + self.time

    def choices(self) -> list[Choice]:
        """Return all that may happen next; nothing: the run is over."""
        idle = [actor for actor in self.cast.actors if not (actor.finished or actor.crashed)]
        ready = [actor for actor in idle if self._is_ready(actor.pending)]
        able = [one for one in idle if one in ready or one.patience] if ready else idle
        if self._struck is not None:
            able = [actor for actor in able if actor.pending.what in self._struck]
        able.sort(key=lambda actor: not actor.pending.what.endswith("answer"))
        moves: list[Choice] = [(actor.name, "go") for actor in able]
        if self.faults:
            moves += [move for actor in able for move in self._misfortunes(actor)]
            moves += [("world", fault) for fault in sorted(self.faults) if self._may(fault, able)]
        return moves

    def step(self, choice: Choice) -> None:
        """Let this happen.

        Raises:
            Violation: The judge saw a promise broken.
        """
        who, command = choice
        self.touched = command != "go"
        self._struck = None
        if command != "go":
            self.faults = frozenset()
            self._events.append((who, f"({command})", ""))
        if who == "world":
            self._strike(command)
            return
        actor = self.cast.by_name[who]
        if command == "crash":
            actor.crashed = True
            return
        if actor.pending.what in ("sleep", "wait"):
            self._let_time_pass(actor)
        self._resume(actor, command)
        if self._raised:  # and the service has made the best of it (P4)
            raise Violation(self._raised)

    def state(self) -> int:
        """Return a digest of everything that the future depends on.

        Which events are set, and how flights ended, follows from what the actors have observed.
        """
        names = self.cast.names()
        shared = (self.time, self.faults, self._struck, self.store.state())
        judged = (self.judge.state(names), self.held.state(names))
        return hash((shared, judged, self.cast.state(names)))

    def role_of(self, who: str) -> str:
        """Return what an actor is called in the state."""
        return self.cast.names().get(who, who)

    def events(self) -> list[Event]:
        """Return what has happened."""
        return [
            Event(who, what, said(what, answer, self.shown)) for who, what, answer in self._events
        ]

    def finish(self) -> None:
        """Judge the end of a run: nothing is left flying or locked, and a last read is right."""
        self.judge.finish(locked=bool(self.held))
        crashed = any(actor.crashed for actor in self.cast.actors)
        reader = self.cast.add_reader("afterwards")
        while not reader.finished:
            self.step(("afterwards", "go"))
        if not crashed and self.cast.is_flying():
            raise Violation("a flight is left in the air")

    def close(self) -> None:
        """Unwind every actor, so that no coroutine or thread is left; the world is gone then."""
        self.closed = True
        self._stack.close()
        vars(self).clear()

    def enter(self, context: Any) -> Any:
        """Enter what is to be left when this world is closed."""
        return self._stack.enter_context(context)

    @types.coroutine
    def stop(
        self, what: str, until: float = 0.0, event: Any = None
    ) -> Generator[Request, str, str]:
        """Wait for the scheduler, and return what it says; fail if it says so."""
        if self.closed:
            raise GeneratorExit
        command = yield Request(what, until, event)
        if command == "fail":
            raise Failure(what)
        return command

    async def call(
        self,
        what: str,
        effect: Callable[[], ReturnT],
        *,
        instead: Callable[[], ReturnT] | None = None,
    ) -> ReturnT:
        """Make a port call that takes effect at one instant between its two stops.

        Args:
            what: What others may know of it.
            effect: Does it.
            instead: What is done where the scheduler has it lie.
        """
        assert self.current is not None
        if self.current.kind == "recovery" and what == "look":
            # Its answer is not used, so that a later answer is the same as a later look.
            return effect()
        command = await self.stop(what)
        self.touched = True
        self.store.asked(what, self.current)
        act = instead if command == "lie" and instead is not None else effect
        try:
            answer = act()
        except Exception as error:
            self._raised = f"{what} raised {error!r}, though no fault struck"
            raise
        self.note(what, answer)
        await self.stop(f"{what} answer")
        return answer

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Note, where that is judged, whose queries run side by side."""
        assert self.current is not None
        if not self.judge.counts:
            yield
            return
        name = self.current.name
        self.judge.begin_load(name)
        self.touched = True
        try:
            yield
        finally:
            self.judge.end_load(name)
            self.touched = True

    def note(self, what: str, answer: object) -> None:
        """Record what the current actor will get to know."""
        actor = self.current
        assert actor is not None
        known = answer is not None if what in _DRAWN else self.store.known(answer)
        actor.observe(known if isinstance(known, Hashable) else repr(known))
        self._events.append((actor.name, what, answer))

    def runner(self) -> Alive:
        """As `Ports.runner`: the current actor, alive until it crashes."""
        assert self.current is not None
        return Alive(self.current, self)

    def _resume(self, actor: Actor, command: str) -> None:
        self.current = actor
        try:
            began = actor.pending.what == "start"
            actor.resume(command)
            if began:
                actor.resume(command)
        except Violation:
            raise
        except Exception as error:
            raise Violation(self._raised or f"{actor.name} raised {error!r}") from error

    def _is_ready(self, request: Request) -> bool:
        event = request.event
        return event is None or event.is_set or request.until <= self.time

    def _let_time_pass(self, actor: Actor) -> None:
        request = actor.pending
        if not self._is_ready(request):
            actor.patience = max(0, actor.patience - 1)
        if request.event is None or not request.event.is_set:
            self._reach(request.until)
        self.touched = True

    def _reach(self, instant: float) -> None:
        if instant > self.time:
            self.store.pass_time(instant - self.time)
            self.time = instant

    def _misfortunes(self, actor: Actor) -> Iterator[Choice]:
        what = actor.pending.what
        if f"fail {what.removesuffix(' answer')}" in self.faults:
            yield actor.name, "fail"
        if "crash" in self.faults and what != "start":
            yield actor.name, "crash"
        if "grant twice" in self.faults and what == "lock" and self.held:
            yield actor.name, "lie"

    def _may(self, fault: str, able: list[Actor]) -> bool:
        """Whether a fault may strike now: right before a call, if there is one, that can tell."""
        next_ones = {actor.pending.what for actor in able}
        if next_ones and next_ones.isdisjoint(_NOTICED_BY.get(fault, next_ones)):
            return False
        if fault == "lose lock":
            return bool(self.held)
        if fault == "a ttl passes":
            loads = any(what.startswith("query") for what in next_ones)
            return loads or self.store.lives()
        if fault == "the clock goes back":
            return self.store.lives()
        return fault.startswith("evict") and self.store.may_evict(fault)

    def _strike(self, fault: str) -> None:
        if fault == "lose lock":
            self.held.lose()
        elif fault == "a ttl passes":
            self._reach(self.time + self.policy.ttl + 1.0)
        elif fault == "the clock goes back":
            self.time -= _BACK
        else:
            self.store.evict(fault)
        self._struck = _NOTICED_BY.get(fault)

    def shown(self, availability: Availability) -> int:
        """Return how many changes a list shows."""
        slot = availability[0]
        return self.judge.shown(slot.capacity - slot.remaining)
