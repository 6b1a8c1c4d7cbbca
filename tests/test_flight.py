"""Flights as plain state: whom one carries, and whom its answer serves."""

import pytest

from slotcache import Availability, Source
from slotcache.flight import Answer, Flights
from slotcache.protocols import Entry, Generation

pytestmark = pytest.mark.one_world("plain state: nothing waits in it")

TEN = Availability.of([("slot", 10, 10)])


@pytest.mark.parametrize(
    ("seen", "serves"),
    [
        (Generation(epoch=7, clears=3), True),
        (Generation(epoch=7, clears=4), False),
        (Generation(epoch=8, clears=3), False),
        (None, False),
    ],
    ids=str,
)
def test_a_value_that_a_cache_kept_serves_only_readers_whom_it_covers(seen, serves):
    kept = Entry(TEN, Generation(epoch=7, clears=3), since=0.0, until=60.0)

    assert Answer.of(kept, Source.CACHED).serves(seen, oldest=-60.0) is serves


def test_what_a_query_answered_serves_whoever_boarded_its_flight():
    assert Answer(TEN, Source.LOADED, since=0.0).serves(None, oldest=-60.0)


@pytest.mark.parametrize(
    ("source", "since", "serves"),
    [
        (Source.LOADED, 0.1, True),
        (Source.LOADED, 0.0, False),
        (Source.STALE, 0.0, True),
    ],
)
def test_an_answer_as_old_as_a_ttl_serves_nobody_unless_it_is_marked_stale(source, since, serves):
    assert Answer(TEN, source, since).serves(None, oldest=0.0) is serves


def test_ahead_of_the_first_who_asks_for_a_list_is_nobody():
    assert Flights().ahead("a list") is None
