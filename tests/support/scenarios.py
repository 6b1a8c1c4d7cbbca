"""What is explored of the read: by the spec in each run, and by `dev.py soak` for longer."""

from __future__ import annotations

from typing import Any

from slotcache.testing import Scenario
from tests.support.shelf import NoLocks

__all__ = ["LONG", "SPEC"]


def scenario(*faults: str, **who: Any) -> Scenario:
    return Scenario(faults=frozenset(faults), **who)


def in_processes(title: str, *faults: str, **who: Any) -> dict[str, Scenario]:
    """The same in one process, and in two."""
    return {
        f"{title}, one process": scenario(*faults, **who),
        f"{title}, two processes": scenario(*faults, services=2, **who),
    }


SPEC: dict[str, dict[str, Scenario]] = {
    "P1": {
        **in_processes("no fault"),
        "a record is evicted, one process": scenario("evict"),
        "a list is evicted, one process": scenario("evict entry"),
        "two changes, one reader": scenario(readers=1, writers=2),
        "everything is cleared as well, one reader": scenario(readers=1, clears=1),
        "a hold is made, one reader": scenario(readers=1, writers=0, holds=("create",)),
        "a hold is cancelled, one reader": scenario(readers=1, writers=0, holds=("cancel",)),
        "a hold is confirmed, and its transaction fails, one reader": scenario(
            "fail change", readers=1, writers=0, holds=("confirm",)
        ),
    },
    "P2": {
        "somebody is killed, one process": scenario("crash"),
        "a ttl passes, one process": scenario("a ttl passes"),
        "the clock goes back, one process": scenario("the clock goes back"),
        "somebody is killed beside a hold, one reader": scenario(
            "crash", readers=1, writers=0, holds=("cancel",)
        ),
    },
    "P3": {"three readers of a cold list": scenario(readers=3, writers=0)},
    "P4": {
        "a clear fails, one process": scenario("fail clear"),
        "a fill fails, one process": scenario("fail fill"),
        "a look fails, one process, one reader": scenario("fail look", readers=1),
    },
    "P5": {"a query fails, one process": scenario("fail query")},
    "P11": {
        **in_processes("no lock excludes anybody", locks=NoLocks, exclusive=False),
        "a lock is lost, one process": scenario("lose lock"),
        "a lock is granted twice, one process": scenario("grant twice"),
        "the lock fails, one process": scenario("fail lock"),
        "its release fails, one process": scenario("fail release"),
    },
}
"""By promise, and what happens: two readers and a writer, where nothing else is said."""

LONG = {
    "a record is evicted, two processes": scenario("evict", services=2),
    "a lock is lost, two processes": scenario("lose lock", services=2),
    "somebody is killed, two processes": scenario("crash", services=2),
    "a ttl passes, two processes": scenario("a ttl passes", services=2),
    "a lock is granted twice, two processes": scenario("grant twice", services=2),
    "its release fails, two processes": scenario("fail release", services=2),
    "a look fails": scenario("fail look"),
    "a query fails, two processes": scenario("fail query", services=2),
    "the lock fails, two processes": scenario("fail lock", services=2),
    "three readers, one writer": scenario(readers=3),
    "two readers, two writers": scenario(writers=2),
    "two readers, two writers, two processes": scenario(writers=2, services=2),
    "three readers, one writer, two processes": scenario(readers=3, services=2),
    "three readers, one writer, any fault": scenario(
        "a ttl passes", "crash", "evict", "fail fill", "fail lock", "fail release", readers=3
    ),
    "two readers, two writers, any fault": scenario(
        "a ttl passes", "crash", "evict", "fail clear", "fail fill", "lose lock", writers=2
    ),
    "two processes, a call of the cache fails": scenario(
        "fail clear", "fail fill", "fail look", services=2
    ),
    "a hold is made, another is cancelled": scenario(
        readers=1, writers=0, holds=("create", "cancel")
    ),
    "a hold is made, two readers": scenario(writers=0, holds=("create",)),
    "holds of all kinds, two readers": scenario(
        "crash", "fail change", "fail clear", writers=0, holds=("cancel", "confirm", "create")
    ),
    "the blocking face, two processes, any fault": scenario(
        "crash", "evict", "fail clear", "fail fill", "lose lock", blocking=True, services=2
    ),
}
"""Too large to be run whole in a few minutes."""
