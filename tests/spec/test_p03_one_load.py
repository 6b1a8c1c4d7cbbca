"""P3 one load.

All processes that share a lock provider run one query at a time for a missing or expired list, and
one in all if nothing changes meanwhile: the others wait for its answer. Within one service object
there is never more than one query at a time for one generation, lock or no lock.

A warm read takes no lock, and readers of different lists do not wait for each other.

Limits: Waiting has an end. Whoever gets no lock within `lock_timeout`, because a query takes longer
than that, follows P5; and a lock ends with its `lock_ttl`. A change while a query runs makes a
second one necessary: those who come after it may not be given the first one's answer.

Shown: In every schedule without a fault the judge of the explorer counts queries, and which of them
ran side by side under the lock; that is so for all of P1's, and for three readers of a cold list
here. On each backend, in each world, any number of real threads, or tasks, in several services read
a cold list while its only query runs. Twins that share no query, exclude nobody or keep a lock are
found.
"""

import pytest

from slotcache import Source
from tests.support.exploring import found, no_schedule_breaks
from tests.support.scenarios import SPEC
from tests.support.shelf import Shelf
from tests.support.threads import Gate, spawn
from tests.support.twins import TWINS

explored = pytest.mark.one_world("the explorer runs the flow of both worlds by itself")


@explored
@pytest.mark.parametrize("happening", SPEC["P3"])
def test_no_schedule_runs_a_query_too_many(happening, record_property):
    no_schedule_breaks(record_property, f"P3: {happening}", SPEC["P3"][happening])


@explored
@pytest.mark.parametrize(
    "twin", [name for name in TWINS if not TWINS[name].breaks.startswith("(P")]
)
def test_a_twin_without_one_of_the_guards_is_found(twin, record_property):
    found(record_property, twin)


def test_a_cold_list_is_queried_once_however_many_ask(backend):
    with backend.opened(manual=False) as storage:
        shelf, gate = Shelf(), Gate()
        shelf.during_load = gate
        services = [storage.service(shelf), storage.service(shelf)]
        readers = [spawn(service.read) for service in services * 4]
        gate.wait_for_somebody()
        gate.open()
        answers = [reader.result(20) for reader in readers]

    assert shelf.loads == 1
    assert {answer.source for answer in answers} <= {Source.LOADED, Source.CACHED}
