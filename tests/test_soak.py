"""The long run, made short: it ends in time, tells what it covered, and fails by what it finds."""

import json

import pytest

from slotcache.testing import Scenario
from tests import soak
from tests.support.twins import TWINS

pytestmark = pytest.mark.one_world("the explorer runs the flow of both worlds by itself")

SMALL = {"one reader": Scenario(readers=1)}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(soak, "LONG", SMALL)
    monkeypatch.setattr(soak, "SPEC", {"P1": SMALL})
    monkeypatch.setattr(soak, "TWINS", {"a plain store": TWINS["a plain store"]})
    monkeypatch.setattr(soak, "RESULTS", tmp_path / "schedules.json")
    monkeypatch.setattr(soak, "_RUNS", 5)


def test_it_ends_in_time_and_tells_what_it_has_covered(capsys):
    assert soak.main(["0.001", "--seed", "7", "--only", "larger-worlds"]) == 0

    printed = capsys.readouterr().out
    assert "0.001 minutes, seed 7" in printed
    assert "one reader: 186 schedules" in printed
    assert "covered: " in printed


def test_a_world_that_was_gone_through_is_drawn_from_at_random(capsys):
    assert soak.main(["0.01", "--only", "larger-worlds"]) == 0

    assert "one reader: 5 schedules" in capsys.readouterr().out


def test_its_figures_can_be_kept():
    assert soak.main(["0", "--only", "schedules", "--json"]) == 0

    measured = json.loads(soak.RESULTS.read_text(encoding="utf-8"))["measured"]
    assert measured["P1"]["one reader"]["schedules"] == 186
    assert measured["P1"]["one reader"]["complete"]
    assert measured["twins"]["a plain store"]["breaks"] == "(P1)"


def test_what_it_finds_ends_it_with_the_timeline(monkeypatch, capsys):
    monkeypatch.setattr(soak, "LONG", {"a broken one": TWINS["a plain store"].scenario})

    assert soak.main(["1", "--seed", "7", "--only", "larger-worlds"]) == 1

    printed = capsys.readouterr().out
    assert "seed 7, found:\na broken one" in printed
    assert "=> a read shows change 0, 1 were complete (P1)" in printed


def test_a_twin_that_is_not_found_ends_it(monkeypatch, capsys):
    sound = TWINS["a plain store"]._replace(scenario=Scenario(readers=1))
    monkeypatch.setattr(soak, "TWINS", {"a plain store": sound})

    assert soak.main(["1", "--only", "schedules"]) == 1
    assert "the twin 'a plain store' was not found" in capsys.readouterr().out


def test_tests_that_fail_end_it_with_what_runs_them_again(monkeypatch, capsys):
    monkeypatch.setitem(
        soak.CAMPAIGNS, "holds", lambda run: run.pytest("-n0", "tests/no_such_test.py", KILLS="2")
    )

    assert soak.main(["1", "--only", "holds"]) == 1

    printed = capsys.readouterr().out
    assert "no_such_test.py" in printed
    assert "KILLS=2" in printed
