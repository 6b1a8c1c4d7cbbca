"""docs/explanation/guarantees.md says what tests/spec says, and shows what the explorer finds."""

import re

import pytest

from tests.support.guarantees import PAGE, PICTURES, PROMISES, Promise, happened, page, pictures
from tests.support.worlds import DOCUMENTS

pytestmark = pytest.mark.one_world(DOCUMENTS)

WRITE_IT_ANEW = "write it anew: python3 -m tests.support.guarantees"


@pytest.mark.parametrize("number", PROMISES)
def test_each_promise_has_a_file_that_says_what_holds_and_how_that_is_shown(number):
    promise = Promise.of(number)

    assert promise.name.startswith(f"{number} ")
    assert promise.promise
    assert promise.limits
    assert promise.shown
    assert promise.properties


@pytest.mark.parametrize("number", PROMISES)
def test_the_promises_refer_to_that_file(number):
    rows = PAGE.parents[1].joinpath("promises.md").read_text(encoding="utf-8").splitlines()
    [row] = [row for row in rows if row.startswith(f"| {number} ")]

    assert row.startswith(f"| {Promise.of(number).name} |")
    assert f"(../tests/spec/{Promise.of(number).path.name})" in row


def test_the_page_says_what_the_spec_says():
    assert PAGE.read_text(encoding="utf-8") == page(), WRITE_IT_ANEW


def test_the_page_has_a_section_for_each_promise():
    sections = re.findall(r"^## (P\d+) ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert sections == list(PROMISES)


def test_the_pictures_show_what_the_explorer_finds():
    kept = {path: path.read_text(encoding="utf-8") for path in PAGE.parent.glob("race-*.svg")}

    assert kept == pictures(), WRITE_IT_ANEW


@pytest.mark.parametrize("picture", [name for name in PICTURES if PICTURES[name].promise != "P11"])
def test_a_picture_shows_how_its_promise_breaks(picture):
    broken = happened(picture).broken

    assert broken is not None
    assert broken.endswith(f"({PICTURES[picture].promise})")


def test_without_a_lock_nothing_wrong_is_shown():
    assert happened("race-p11").broken is None


def test_what_the_page_refers_to_is_there():
    text = PAGE.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    named = re.findall(r"`(tests/[\w/]+\.py)`", text)

    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
    assert [name for name in named if not (PAGE.parents[2] / name).exists()] == []
