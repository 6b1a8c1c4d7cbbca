"""The benchmarks run. What they measure is for people to judge: nothing timed is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.thorough import THOROUGH

BENCHMARKS = sorted((Path(__file__).parent.parent / "benchmarks").glob("[!_]*.py"))
SHORT = {"encode_decode", "redis_read", "warm_read"}
"""Which run each time; the others in the long run."""


@pytest.mark.parametrize(
    "script",
    [each for each in BENCHMARKS if THOROUGH or each.stem in SHORT],
    ids=lambda path: path.stem,
)
def test_a_benchmark_runs_and_writes_what_it_printed(script: Path, tmp_path: Path) -> None:
    """Here without its peers, which are installed for benchmarks alone."""
    output = tmp_path / "results.json"

    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--output", str(output)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(output.read_text(encoding="utf-8"))
    assert results["benchmark"] == script.stem
    assert results["environment"]["python"]
    assert results["measured"]
    assert all(name in done.stdout for name in results["measured"])
    assert results["measured"].keys() <= kept_results(script)["measured"].keys()


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmarks_results_are_kept_beside_it(script: Path) -> None:
    kept = kept_results(script)

    assert kept["benchmark"] == script.stem
    assert None not in kept["environment"]["packages"].values(), "measured without a peer"


def kept_results(script: Path):
    kept = script.parent / "results" / f"{script.stem}.json"
    return json.loads(kept.read_text(encoding="utf-8"))
