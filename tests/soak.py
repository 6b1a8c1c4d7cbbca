"""Look for what is rare: `python3 dev.py soak [MINUTES] [--seed N] [--only CAMPAIGN ...]`.

A time-boxed, seeded run, which tells what it does and in the end what it has covered. Each campaign
has its turn, in an order that the seed decides, and another seed each time, until time is up:

- schedules: all of the spec's, and its broken twins; with --json that is written to
  benchmarks/results/schedules.json.
- larger worlds: more readers, more writers, any fault, whole where that is done in a few minutes;
  the others in schedules drawn at random.
- the others: tests, larger: histories of processes, kills, races, cancellations, properties.

It fails with the first violation, and says by which seed that is found again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slotcache.testing import Exploration, explore, sample
from tests.support.exploring import no_logs
from tests.support.scenarios import LONG, SPEC
from tests.support.twins import TWINS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "schedules.json"

_RUNS = 2_000
_MOST_STATES = 400_000

Say = Callable[[str], None]


class Found(Exception):
    """A promise is broken: the text says how."""


class Soak:
    """One run.

    Args:
        seconds: How long to go on.
        seed: Decides all that is left to chance.
    """

    def __init__(self, seconds: float, seed: int) -> None:
        self.covered: Counter[str] = Counter()
        self.measured: dict[str, Any] = {}
        self.dice = random.Random(seed)
        self._began = time.monotonic()
        self._until = self._began + seconds
        self._share = seconds / 4
        self._worlds = itertools.cycle(LONG.items())
        self._whole: set[str] = set()

    def is_over(self) -> bool:
        """Whether its time is."""
        return time.monotonic() >= self._until

    def say(self, line: str) -> None:
        """Tell how far it is."""
        print(f"{time.monotonic() - self._began:6.0f} s  {line}", flush=True)

    def schedules(self) -> None:
        """Explore what the spec explores, and its twins."""
        for promise, scenarios in SPEC.items():
            for title, scenario in scenarios.items():
                began = time.process_time()
                explored = explore(scenario)
                took = time.process_time() - began
                self._note(f"{promise}: {title}", explored, took)
                self.measured.setdefault(promise, {})[title] = _figures(explored, took)
        for name, twin in TWINS.items():
            began = time.process_time()
            found = explore(twin.scenario, most_turns=twin.most_turns).counterexample
            took = time.process_time() - began
            if found is None or not str(found.broken).endswith(twin.breaks):
                raise Found(f"the twin {name!r} was not found: {found}")
            self.say(f"found in {took:.2f} s: {name} {twin.breaks}")
            twins = self.measured.setdefault("twins", {})
            twins[name] = {"breaks": twin.breaks, "seconds": round(took, 2)}
            self.covered["broken twins found"] += 1

    def larger_worlds(self) -> None:
        """Explore the larger ones, for a quarter of the time: whole once, then at random."""
        until = min(self._until, time.monotonic() + self._share)
        for title, scenario in self._worlds:
            began = time.process_time()
            if title in self._whole or scenario.blocking:
                explored = sample(scenario, runs=_RUNS, seed=self.dice.getrandbits(32))
            else:
                self._whole.add(title)
                explored = explore(scenario, most_states=_MOST_STATES)
            took = time.process_time() - began
            self._note(title, explored, took)
            if title not in self.measured.setdefault("larger worlds", {}):
                self.measured["larger worlds"][title] = _figures(explored, took)
            if time.monotonic() >= until:
                return

    def pytest(self, *arguments: str, **environment: str) -> None:
        """Run tests, larger, by another seed."""
        seed = self.dice.getrandbits(32)
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-o", "timeout=1800"]
        command += [f"--hypothesis-seed={seed}", *arguments]
        own = {"HYPOTHESIS_PROFILE": "long", **environment}
        self.say("pytest " + " ".join(arguments) + f" (seed {seed})")
        status, printed = self._run(command, {**os.environ, **own})
        if status is None:
            self.say("broken off: the time is up")
            return
        if status != 0:
            told = " ".join(f"{name}={value}" for name, value in own.items())
            raise Found(f"{printed}\nfound by: {told} {' '.join(command)}")
        for line in _summaries(printed):
            self.say(line)
        self.covered["runs of " + " ".join(arguments)] += 1

    def _run(self, command: list[str], environment: Mapping[str, str]) -> tuple[int | None, str]:
        """Run this until it ends, with a status, or the time is up; a minute at least."""
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        try:
            left = max(60.0, self._until - time.monotonic())
            printed, _ = process.communicate(timeout=left)
            return process.returncode, printed
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            printed, _ = process.communicate()
            return 1 if " failed" in printed else None, printed

    def _note(self, title: str, explored: Exploration, took: float) -> None:
        how = "whole" if explored.complete else "in part"
        self.say(f"{title}: {explored.schedules:,} schedules, {took:.1f} s, {how}")
        if explored.counterexample is not None:
            raise Found(f"{title}\n{explored.counterexample}\n{explored.counterexample.schedule}")
        self.covered["schedules"] += explored.schedules
        self.covered["states"] += explored.states


def _summaries(printed: str) -> Iterator[str]:
    """Yield what tests tell at the end of their run."""
    tells = False
    for line in printed.splitlines():
        if line.startswith("="):
            tells = not any(other in line for other in ("both worlds", "skipped"))
        elif tells or " passed" in line:
            yield line


def _figures(explored: Exploration, took: float) -> dict[str, Any]:
    figures = dataclasses.asdict(dataclasses.replace(explored, counterexample=None))
    del figures["counterexample"]
    return {**figures, "seconds": round(took, 2), "violations": 0}


CAMPAIGNS: dict[str, Callable[[Soak], None]] = {
    "schedules": Soak.schedules,
    "larger-worlds": Soak.larger_worlds,
    "histories": lambda soak: soak.pytest(
        "tests/spec/test_histories.py", SLOTCACHE_TEST_HISTORY="60"
    ),
    "everything": lambda soak: soak.pytest(
        "tests", SLOTCACHE_TEST_ROUNDS="2", HYPOTHESIS_PROFILE="dev"
    ),
    "files": lambda soak: soak.pytest("tests/test_file_schedules.py", SLOTCACHE_TEST_ROUNDS="20"),
    "kills": lambda soak: soak.pytest(
        *("tests/test_hold_kills.py", "tests/test_transaction_kills.py"), SLOTCACHE_TEST_KILLS="20"
    ),
    "races": lambda soak: soak.pytest(
        "tests/test_races.py", SLOTCACHE_TEST_CALLERS="16", SLOTCACHE_TEST_ROUNDS="3"
    ),
    "cancellations": lambda soak: soak.pytest(
        "tests/test_cancellation.py", SLOTCACHE_TEST_ROUNDS="3"
    ),
    "holds": lambda soak: soak.pytest("tests/spec/test_p06_never_oversold.py"),
    "repetitions": lambda soak: soak.pytest(
        "tests/spec/test_p07_once.py", "tests/spec/test_p08_hook_after_commit.py"
    ),
    "transactions": lambda soak: soak.pytest("tests/test_transactions.py"),
    "trouble": lambda soak: soak.pytest("tests/spec/test_p04_trouble.py"),
    "staleness": lambda soak: soak.pytest("tests/spec/test_p05_stale_is_said.py"),
    "bytes": lambda soak: soak.pytest("tests/spec/test_p10_data_only.py"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run campaigns in turns until the time is over."""
    options = _options(arguments)
    soak = Soak(options.minutes * 60, options.seed)
    soak.say(f"{options.minutes:g} minutes, seed {options.seed}")
    chosen = list(options.only)
    soak.dice.shuffle(chosen)
    try:
        with no_logs():
            for name in itertools.cycle(chosen):
                CAMPAIGNS[name](soak)
                if soak.is_over():
                    break
    except Found as found:
        soak.say(f"seed {options.seed}, found:\n{found}")
        return 1
    finally:
        soak.say("covered: " + ", ".join(f"{n:,} {what}" for what, n in soak.covered.items()))
    if options.json:
        _write(soak.measured)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py soak", description=__doc__)
    parser.add_argument("minutes", nargs="?", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--only", nargs="+", choices=list(CAMPAIGNS), default=list(CAMPAIGNS))
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS.name}")
    return parser.parse_args(arguments)


def _write(measured: dict[str, Any]) -> None:
    environment = {"python": platform.python_version(), "processors": os.cpu_count()}
    results = {
        "benchmark": "schedules",
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment,
        "measured": measured,
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
