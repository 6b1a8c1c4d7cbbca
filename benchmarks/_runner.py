"""What benchmarks share: options, calls measured side by side, the table, the file of results.

Absolute figures depend on the machine and on who else is using it. So every round measures all
calls, one after the other, and what is compared are ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """A median, and the tenth and ninetieth percentile around it."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Summarise the figures of all rounds."""
        tenths = statistics.quantiles(figures, n=10, method="inclusive")
        p10, median, p90 = (round(tenths[each], 3) for each in (0, 4, 8))
        return cls(median, p10, p90)


@dataclass(frozen=True)
class Measured:
    """One call: its nanoseconds, and its ratios to the floor of the same rounds."""

    nanoseconds: Spread
    ratio: Spread


def options(benchmark: str, about: str) -> argparse.Namespace:
    """Read `--quick` and `--output` from the command line."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="too short to mean anything")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results" / f"{benchmark}.json",
        help="where the JSON goes",
    )
    return parser.parse_args()


def available(peers: Mapping[str, Callable[..., T]], *args: object) -> dict[str, T]:
    """Make what stands for each peer; leave out, and say so, those that are not installed."""
    made = {}
    for name, make in peers.items():
        try:
            made[name] = make(*args)
        except ModuleNotFoundError as missing:
            print(f"left out: {name} ({missing})")
    return made


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    number: int,
    before: Callable[[], object] = lambda: None,
) -> dict[str, Measured]:
    """Measure calls side by side; the first of them is the floor.

    Args:
        calls: Give bound methods rather than lambdas, which would be measured as well.
        rounds: How often each of them takes its turn, at least 2.
        number: How many calls there are in a turn.
        before: Runs before each turn, and is not measured.
    """
    turns = {
        name: partial(_per_call, timeit.Timer(call, before), number) for name, call in calls.items()
    }
    return take_turns(turns, rounds=rounds)


def _per_call(timer: timeit.Timer, number: int) -> float:
    return timer.timeit(number) / number


def take_turns(turns: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, Measured]:
    """Have all of them take turns; the first of them is the floor.

    Args:
        turns: Each measures one turn, and returns the seconds that a call took in it.
        rounds: How often each of them takes its turn, at least 2.
    """
    took: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            took[name].append(turn() * 1e9)
    floor = next(iter(took.values()))
    return {
        name: Measured(
            Spread.of(figures),
            Spread.of([figure / least for figure, least in zip(figures, floor, strict=True)]),
        )
        for name, figures in took.items()
    }


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Summarise how long something took: the median, the 99th percentile and the most."""
    in_order = sorted(seconds)
    last = len(in_order) - 1
    places = {"p50": 0.5, "p99": 0.99, "most": 1.0}
    return {name: round(in_order[round(last * at)] * 1e3, 3) for name, at in places.items()}


def verdict(figure: float, goal: float) -> str:
    """Say whether a figure is small enough."""
    return f"{goal:g}: " + ("met" if figure <= goal else "missed")


def print_table(measured: Mapping[str, Measured], verdicts: Mapping[str, str]) -> None:
    """Print what was measured, with the verdicts on those calls that have a goal."""
    width = max(map(len, measured))
    line = f"{{:{width}}} {{:>12}} {{:>8}} {{:>18}}   {{}}"
    print(line.format("", "median, ns", "ratio", "p10 to p90", "goal"))
    for name, each in measured.items():
        spread = f"{each.ratio.p10:.2f} to {each.ratio.p90:.2f}"
        nanoseconds, ratio = f"{each.nanoseconds.median:,.0f}", f"{each.ratio.median:.2f}"
        print(line.format(name, nanoseconds, ratio, spread, verdicts.get(name, "")).rstrip())


def environment(*packages: str) -> dict[str, Any]:
    """Tell where this runs: what a reader needs to judge the figures, and nothing of the owner."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: installed(name) for name in packages},
    }


def installed(package: str) -> str | None:
    """Return the version of a package; None: it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Name the processor, as well as the system can."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or "unknown")


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write the results as JSON that a diff can be read of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2, default=asdict) + "\n", encoding="utf-8")
    print(f"written: {path.name}", file=sys.stderr)
