"""P1 fresh.

A read that begins after a change never shows the state before that change: in every thread, task
and process that shares the cache. A change is a call that altered availability and returned: a
hold that was made, confirmed, cancelled; or a commit of your own with the clear after it.

This holds although nobody waits for anybody. A reader may have looked, found nothing, and be in
the middle of its query when the change is committed and the list is cleared; it may store what it
read whenever it likes. What it stores is kept under the generation that it saw before its query,
which the clear has outrun by then, so nobody who comes after the change is given it.

Limits: Answers that are marked stale are excepted (P5). So is, in *other* processes, a change whose
clear the cache has not taken yet (P4), and a cache server that lost a clear which it had taken
(failover to a replica that lags, a restart from an old dump): for these P2 holds. Two reads before
a change is complete need not agree on it.

Shown: The code that ships is run through every order in which two readers and a writer can go on,
between any two calls that they make of cache, lock and table, in one process and in two; with a
record or a list evicted anywhere; with real holds in a real database. The same on real files and on
a real server, in every schedule in which one actor cuts in on another. Then on each backend, in
each world, in random histories of several processes. Broken twins that lack one guard each are all
found.
"""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slotcache.testing import Scenario, explore, sample
from tests.support.exploring import counts, empty_storage, found, no_schedule_breaks
from tests.support.scenarios import SPEC
from tests.support.shelf import Shelf, left
from tests.support.twins import TWINS

explored = pytest.mark.one_world("the explorer runs the flow of both worlds by itself")


@explored
@pytest.mark.parametrize("happening", SPEC["P1"])
def test_no_schedule_shows_the_state_before_a_change(happening, record_property):
    no_schedule_breaks(record_property, f"P1: {happening}", SPEC["P1"][happening])


@explored
def test_no_schedule_of_the_blocking_face_does_either(record_property):
    """Its threads pass a baton: what can be run of it in a second, at random."""
    sampled = sample(Scenario(blocking=True, services=2), runs=200, seed=2013)

    record_property("explored", f"P1: the blocking face, two processes: {counts(sampled)}")
    assert sampled.counterexample is None, sampled.counterexample
    assert sampled.states > 500


@explored
@pytest.mark.parametrize("kind", ["files", pytest.param("redis", marks=pytest.mark.redis)])
def test_no_schedule_of_one_turn_on_a_real_backend_does_either(kind, request, record_property):
    url = request.getfixturevalue("redis_server").url if kind == "redis" else None
    scenario = Scenario(readers=2, services=2, storage=partial(empty_storage, url))
    explored = explore(scenario, most_turns=1)

    record_property("explored", f"P1: {kind}, two processes, one turn: {counts(explored)}")
    assert explored.counterexample is None, explored.counterexample


@settings(max_examples=settings().max_examples // 10)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["read", "change", "wait"]), st.integers(0, 2)), max_size=12
    )
)
def test_no_process_shows_the_state_before_a_change_of_any_other(backend, steps):
    with backend.opened() as storage:
        shelf = Shelf()
        processes = [storage.service(shelf) for _ in range(3)]
        for step, process in steps:
            if step == "read":
                assert left(processes[process].get_availability()) == shelf.remaining
            elif step == "change":
                shelf.remaining -= 1
                assert processes[process].clear_availability_cache()
            else:
                storage.pass_time(5.0)


@explored
@pytest.mark.parametrize("twin", [name for name in TWINS if TWINS[name].breaks == "(P1)"])
def test_a_twin_without_one_of_the_guards_is_found(twin, record_property):
    found(record_property, twin)
