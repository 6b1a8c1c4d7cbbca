"""What happened in one schedule, as a text and as a picture."""

from xml.etree import ElementTree as ET

import pytest

from slotcache.testing import Event, Scenario, Timeline, explore, replay
from tests.support.twins import PlainStore

pytestmark = pytest.mark.one_world("values")

OUTRUN = """\
writer 1          reader 1
----------------  --------------------------------
commit: change 1
                  begins to read: to show change 0
                  look: miss, 0 clears
                  lock: granted
                  look: miss, 0 clears
clear
                  query: shows change 1
                  fill: not fresh
                  release"""

SCHEDULE = [
    *[("writer 1", "go")] * 2,
    *[("reader 1", "go")] * 6,
    *[("writer 1", "go")] * 2,
    *[("reader 1", "go")] * 5,
]


@pytest.fixture(scope="module")
def small() -> Timeline:
    """A clear overtakes a fill, and there it stops."""
    return replay(Scenario(readers=1), SCHEDULE)


@pytest.fixture(scope="module")
def broken() -> Timeline:
    """A plain store shows what it should not."""
    found = explore(Scenario(cache=PlainStore)).counterexample
    assert found is not None
    return found


def texts(timeline: Timeline) -> list[str]:
    """What stands in the picture of it, from top to bottom."""
    root = ET.fromstring(timeline.svg())
    return [each.text or "" for each in root.iter() if each.tag.endswith("}text")]


def test_as_a_text_it_has_a_column_for_each_actor(small):
    assert str(small) == OUTRUN


def test_the_text_ends_with_the_promise_that_was_broken(broken):
    assert str(broken).splitlines()[-1] == "=> a read shows change 0, 1 were complete (P1)"


def test_the_picture_tells_the_same_in_the_same_order(small):
    heads = ["writer 1", "reader 1", "cache", "lock", "table"]
    assert texts(small)[:5] == heads
    assert texts(small)[5:] == [
        *("commit", "change 1", "begins to read", "to show change 0"),
        *("look", "miss, 0 clears", "lock", "granted", "look", "miss, 0 clears", "clear"),
        *("query", "shows change 1", "fill", "not fresh", "release"),
    ]


def test_every_event_is_in_the_picture_and_the_broken_promise_at_its_end(broken):
    *shown, banner = texts(broken)
    words = [word for event in broken.events for word in (event.what, event.answer) if word]

    assert shown[-len(words) :] == words
    assert banner == broken.broken


def test_the_picture_runs_nothing_and_loads_nothing(broken):
    tags = {each.tag.rpartition("}")[2] for each in ET.fromstring(broken.svg()).iter()}

    assert tags == {"svg", "title", "style", "defs", "marker", "path", "rect", "text"}
    assert "http" not in broken.svg().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "@import" not in broken.svg()


def test_only_what_is_used_has_a_line_in_the_picture():
    assert texts(Timeline((), (Event("clearer 1", "clear"),))) == ["clearer 1", "cache", "clear"]
    assert texts(Timeline((), ())) == []


def test_a_short_note_is_one_line_and_a_long_one_two():
    notes = (Event("reader 1", "wait", "not yet"), Event("world", "(the clock goes back)"))
    read = Event("reader 1", "read", "CACHED, shows change 0")

    assert texts(Timeline((), (*notes, read)))[2:] == [
        "wait: not yet",
        "(the clock goes back)",
        "read",
        "CACHED, shows change 0",
    ]


def test_what_an_error_says_is_text_in_the_picture():
    raised = "reader 1 raised ValueError('<script>&amp;</script>')"

    assert texts(Timeline((), (Event("<b>", "]]>&", "<i>"),), raised)) == [
        "<b>",
        "]]>&: <i>",
        raised,
    ]


def test_a_long_complaint_is_broken_into_lines_within_the_picture():
    complaint = "reader 1 raised " + "no such table " * 30
    lines = texts(Timeline((), (Event("reader 1", "look"),), complaint.strip()))[3:]

    assert len(lines) > 5
    assert " ".join(lines) == complaint.strip()
