"""Mutation testing of the core (T7): would the tests notice if a line of it were wrong?

    python3 dev.py mutate                       everything; writes benchmarks/results/mutants.json
    python3 dev.py mutate flight file.record    these modules
    python3 dev.py mutate --survivors [...]     who survived last time, once more

mutmut changes one place of a module at a time and runs the tests of `[tool.mutmut]` until one of
them fails. It works in `.mutants`, on a copy of the sources, which may change meanwhile. Whoever
survives has to stand in docs/explanation/mutants.md, with a reason.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mutmut.mutation.data import SourceFileMutationData  # type: ignore[import-not-found]
from mutmut.mutation.diff_apply import get_diff_for_mutant  # type: ignore[import-not-found]
from mutmut.stats import status_by_exit_code  # type: ignore[import-not-found]
from mutmut.utils.format_utils import orig_function_and_class_names_from_key  # type: ignore[import-not-found]

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".mutants"
TABLE = ROOT / "docs" / "explanation" / "mutants.md"
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
COPIED = ("src", "tests", "docs", "pyproject.toml")

GOAL = 95.0
"""Percent of the mutants that have to be killed."""

DEAD = {"killed", "timeout", "segfault"}


@dataclass(frozen=True)
class Mutant:
    """One change of one place.

    Attributes:
        module: Where, without the library's name.
        function: In which function, or method.
        before: The lines that it changes.
        after: What it makes of them.
        repeated: How many mutants of that function before it read the same.
    """

    module: str
    function: str
    before: str
    after: str
    repeated: int

    def row(self) -> str:
        """Return it as a row of the table."""
        cells = (self.module, self.function, *map(as_code, (self.before, self.after)))
        again = f" ({self.repeated + 1})" if self.repeated else ""
        return f"| {' | '.join(cells)}{again} |"


@dataclass(frozen=True)
class Tried:
    """The mutants of one module.

    Attributes:
        counts: How many there are by what became of them.
        survivors: Those whom no test noticed, and the difference that each makes.
    """

    module: str
    counts: Counter[str]
    survivors: Mapping[Mutant, str]

    @property
    def percent(self) -> float:
        """How many of a hundred were noticed."""
        dead = sum(self.counts[status] for status in DEAD)
        return 100 * dead / max(1, self.counts.total())


def main() -> int:
    """Try the mutants, compare the survivors with the table, and say what is missing."""
    modules, arguments = modules_to_mutate(), parsed_arguments()
    chosen = [name for name in modules if not arguments.modules or name in arguments.modules]
    if unknown := set(arguments.modules) - set(modules):
        sys.exit(f"there is no {min(unknown)}: choose from {', '.join(modules)}")
    if arguments.survivors:
        again = [each for name in chosen for each in left_to_try(modules[name])]
    else:
        shutil.rmtree(WORK, ignore_errors=True)
        again = [f"slotcache.{name}.*" for name in chosen] if arguments.modules else []
    if again or not arguments.survivors:
        run_mutmut(again)
    tried = [what_became(name, modules[name]) for name in chosen]
    reasons = explained(TABLE.read_text(encoding="utf-8"))
    report(tried, reasons)
    if len(chosen) == len(modules):
        write_results(tried, reasons)
    return 0 if is_good(tried, reasons) else 1


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py mutate")
    parser.add_argument("modules", nargs="*", metavar="module")
    parser.add_argument("--survivors", action="store_true", help="try again who survived")
    return parser.parse_args()


def modules_to_mutate() -> dict[str, str]:
    """Return the names of the modules, without the library's, and their paths."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    paths: list[str] = project["tool"]["mutmut"]["only_mutate"]
    return {path.removeprefix("src/slotcache/")[:-3].replace("/", "."): path for path in paths}


def left_to_try(path: str) -> list[str]:
    """Return mutmut's names of the mutants of a module that nothing has killed yet."""
    return [name for name, status in statuses(path).items() if status not in DEAD]


def statuses(path: str) -> dict[str, str]:
    """Return what became of the mutants of a module, by mutmut's names."""
    with contextlib.chdir(WORK):
        kept = SourceFileMutationData(path=path)
        kept.load()
    return {name: status_by_exit_code[code] for name, code in kept.exit_code_by_key.items()}


def run_mutmut(names: Iterable[str]) -> None:
    """Try these mutants, all if there are none; one at a time."""
    WORK.mkdir(exist_ok=True)
    for name in COPIED:
        copy(ROOT / name, WORK / name)
    command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", "1", *names]
    if subprocess.call(command, cwd=WORK) != 0:
        sys.exit("mutmut gave up: the tests have to pass on what is not changed")


def copy(path: Path, to: Path) -> None:
    """Have a file, or a folder, be the same there; what did not change keeps its time."""
    if path.is_dir():
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(path, to, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(path, to)


def what_became(module: str, path: str) -> Tried:
    """Return the figures of a module, and its survivors."""
    found = statuses(path)
    survivors: dict[Mutant, str] = {}
    repeated: Counter[tuple[str, ...]] = Counter()
    for name, status in found.items():
        with contextlib.chdir(WORK):
            difference = get_diff_for_mutant(name, path=path)
        function, kind = orig_function_and_class_names_from_key(name)
        lines = changed(difference, "-"), changed(difference, "+")
        function = f"{kind}.{function}" if kind else function
        mutant = Mutant(module, function, *lines, repeated[function, *lines])
        repeated[function, *lines] += 1
        if status not in DEAD:
            survivors[mutant] = difference
    return Tried(module, Counter(found.values()), survivors)


def changed(difference: str, sign: str) -> str:
    """Return the lines with this sign as one."""
    lines = (line[1:].strip() for line in difference.splitlines()[2:] if line.startswith(sign))
    return " ".join(lines)


def as_code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text else "nothing"


def explained(page: str) -> dict[str, str]:
    """Return the rows of the page, and under which heading each stands: that is its reason."""
    reasons = {}
    heading = ""
    for line in page.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif re.match(r"\| \S+ \| \S+ \| (`|nothing)", line):
            reasons[line] = heading
    return reasons


def report(tried: Iterable[Tried], reasons: Mapping[str, str]) -> None:
    """Print every survivor with its reason, then the figures."""
    for each in tried:
        for mutant, difference in each.survivors.items():
            reason = reasons.get(mutant.row())
            print(f"\n{mutant.row()}\n{difference}\n=> {reason or 'NOT EXPLAINED'}")
    print()
    for each in tried:
        told = ", ".join(f"{count} {status}" for status, count in each.counts.most_common())
        print(f"{each.module:14}{each.counts.total():5} mutants, {each.percent:5.1f} %: {told}")
    survivors = {mutant.row() for each in tried for mutant in each.survivors}
    modules = {each.module for each in tried}
    for row in reasons:
        if row not in survivors and row.split()[1] in modules:
            print(f"in the table, but it is killed, or gone: {row}")


def is_good(tried: Iterable[Tried], reasons: Mapping[str, str]) -> bool:
    """Say what is missing; answer whether nothing is."""
    tried = list(tried)
    unexplained = sum(mutant.row() not in reasons for each in tried for mutant in each.survivors)
    percent = percent_of(tried)
    print(f"{percent:.1f} % are killed (the goal: {GOAL} %), {unexplained} are not explained")
    return percent >= GOAL and not unexplained


def percent_of(tried: Iterable[Tried]) -> float:
    """How many of a hundred mutants were noticed, over all modules."""
    counts = sum((each.counts for each in tried), Counter[str]())
    return Tried("", counts, {}).percent


def write_results(tried: list[Tried], reasons: Mapping[str, str]) -> None:
    """Write the figures where those of the benchmarks are."""
    results = {
        "benchmark": "mutants",
        "goal": {"T7": GOAL, "unit": "percent of the mutants killed, at least"},
        "environment": {
            "system": f"{platform.system()} {platform.machine()}",
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "packages": {name: version(name) for name in ("slotcache", "mutmut", "pytest")},
        },
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "measured": {each.module: figures(each, reasons) for each in tried},
        "percent": round(percent_of(tried), 1),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def figures(tried: Tried, reasons: Mapping[str, str]) -> dict[str, Any]:
    """Return what is told of one module."""
    timed_out = tried.counts["timeout"]
    return {
        "mutants": tried.counts.total(),
        "killed": sum(tried.counts[status] for status in DEAD) - timed_out,
        "timed out": timed_out,
        "survived": len(tried.survivors),
        "explained": sum(mutant.row() in reasons for mutant in tried.survivors),
        "percent": round(tried.percent, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
