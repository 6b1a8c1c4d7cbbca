"""P2 bounded.

Whatever fails, an answer that is not marked stale is never older than `ttl` after the commit that
it does not show. A writer may be killed between its commit and its clear, a cache cut off, a reader
stopped for an hour in the middle of its query, a row changed by hand with nobody told: ten seconds
later, by default, every read shows it.

Limits: Time is the backend's: the server's clock, or the boot clock of a host. A life counts from
the look before a query, so a slow query shortens it.

Shown: The code that ships is run through every schedule in which an actor never runs again,
wherever it was; in which a `ttl` passes, while an entry lives or a query runs; in which the clock
goes back. On each backend, in each world, a list that nobody clears is shown for less than a `ttl`,
at whatever instants it is asked for. Processes that are really killed are in `test_histories.py`,
and in `tests/test_file_processes.py` and `tests/test_redis_processes.py`.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.exploring import found, no_schedule_breaks
from tests.support.scenarios import SPEC
from tests.support.shelf import Shelf, left
from tests.support.twins import TWINS

TTL = 8.0

explored = pytest.mark.one_world("the explorer runs the flow of both worlds by itself")
instants = st.integers(0, 128).map(lambda eighths: eighths / 8)


@explored
@pytest.mark.parametrize("happening", SPEC["P2"])
def test_no_schedule_shows_what_is_older_than_a_ttl(happening, record_property):
    no_schedule_breaks(record_property, f"P2: {happening}", SPEC["P2"][happening])


@settings(max_examples=settings().max_examples // 5)
@given(pauses=st.lists(instants, max_size=8))
def test_a_change_of_which_nobody_is_told_is_shown_a_ttl_later(backend, pauses):
    with backend.opened() as storage:
        shelf = Shelf()
        service = storage.service(shelf, ttl=TTL)
        service.read()
        shelf.remaining = 9
        age = 0.0
        for pause in pauses:
            storage.pass_time(pause)
            age += pause
            shown = left(service.get_availability())
            assert shown in ((9, 10) if age < TTL else (9,))


def test_a_query_that_was_slow_leaves_a_shorter_life(storage):
    shelf = Shelf()
    service = storage.service(shelf, ttl=TTL)
    shelf.during_load = lambda: storage.pass_time(3.0)
    service.read()
    shelf.during_load = lambda: None
    shelf.remaining = 9
    storage.pass_time(4.0)
    assert left(service.get_availability()) == 10
    storage.pass_time(1.0)
    assert left(service.get_availability()) == 9


@explored
@pytest.mark.parametrize("twin", [name for name in TWINS if TWINS[name].breaks == "(P2)"])
def test_a_twin_without_one_of_the_guards_is_found(twin, record_property):
    found(record_property, twin)
