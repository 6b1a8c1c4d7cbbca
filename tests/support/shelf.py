"""A repository whose list, delays and failures a test decides."""

from collections.abc import Callable

from slotcache import Availability
from slotcache.protocols import Loaded, Lock, Scope


class Shelf:
    """One slot of ten places; counts its loads.

    Attributes:
        remaining: What the next load reads.
        loads: How many loads were begun.
        valid_for: As in `Loaded`.
        failure: What loads raise instead, if anything.
        during_load: Called in every load, after it has read.
    """

    scope_type: type[Scope] | None = None

    def __init__(self) -> None:
        self.remaining = 10
        self.loads = 0
        self.valid_for: float | None = None
        self.failure: BaseException | None = None
        self.during_load: Callable[[], object] = lambda: None

    def load(self, scope: object) -> Loaded:
        self.loads += 1
        read = Availability.of([("slot", 10, self.remaining)])
        failure = self.failure
        self.during_load()
        if failure is not None:
            raise failure
        return Loaded(read, self.valid_for)


class ScopedShelf(Shelf):
    """The same, with scopes."""

    scope_type: type[Scope] | None = str

    def __init__(self) -> None:
        super().__init__()
        self.scopes: list[object] = []

    def load(self, scope: object) -> Loaded:
        self.scopes.append(scope)
        return super().load(scope)


class NoLocks:
    """Grants every lock to everybody."""

    def __init__(self, **_: object) -> None: ...

    def acquire(self, name: str, *, ttl: float) -> Lock | None:
        return Lock(name, "granted")

    def release(self, lock: Lock) -> bool:
        return True


def left(availability: Availability) -> int:
    """How many places a list says are free."""
    return sum(slot.remaining for slot in availability)
