"""slotcache at work on one day's departures from New York: python3 dev.py demo.

Each scene shows one thing, measures it, and returns a claim for the summary. If a measurement
does not bear its claim out, the summary says so and the exit status is 1. The table is in
`_departures.py`, the textbook's cache in `_textbook.py`, the race of both in `_race.py`.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import tempfile
import threading
import time
import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from functools import partial
from itertools import groupby
from pathlib import Path

from rich.progress_bar import ProgressBar
from rich.table import Table

from _departures import flights, free_seats, open_departures, queries
from _race import LAST_SEAT, SOLD_AT, STORED_AT, Course, race
from _stage import Claim, claim, console, numbers, scene, summary
from _textbook import TextbookCache
from slotcache import (
    Availability,
    AvailabilityPolicy,
    HoldManager,
    HoldPolicy,
    SlotAvailabilityService,
    SlotFull,
    Source,
)
from slotcache.sql import SqlSlots
from slotcache.testing import ManualClock

FLIGHTS = flights()
HOT = FLIGHTS[635]  # DL 434 to San Francisco, at 17:30
TTL = AvailabilityPolicy().ttl


def main() -> int:
    """Play all scenes; return 0 if every claim is true."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "departures.db"
        claims = [the_race(folder)]
        with open_departures(file, left={HOT.id: HOT.seats}) as slots:
            service = SlotAvailabilityService(slots)
            what_is_free(service)
            claims.append(a_rush(slots))
            claims.append(warm_reads(service))
            claims.append(a_hot_flight(slots, service, file))
        claims.append(a_hold_ends(folder))
    return summary(claims, time.monotonic() - began)


def the_race(folder: Path) -> Claim:
    """Put two caches through one schedule: a sale between a reader's query and its store."""
    scene(
        "1  The race, side by side",
        f"The last seat of {LAST_SEAT.name} to {LAST_SEAT.destination} is sold while a reader is "
        "between its query and its store. Two caches really go through this, on SQLite: the "
        "textbook's (get, lock, get again, query, set; delete on a change) and slotcache. Both "
        f"keep a list for {TTL:g} s. The clock is manual, so that the seconds pass at once.",
    )
    textbook = race(
        folder / "textbook.db", lambda table, clock: TextbookCache(table, ttl=TTL, clock=clock)
    )
    ours = race(
        folder / "slotcache.db", lambda table, clock: SlotAvailabilityService(table, clock=clock)
    )
    console.print(timeline(textbook, ours))
    console.print(
        "slotcache counts the clears of a list. What is stored is good only for the count that "
        "its reader saw before the query, and the sale has raised that."
    )
    return claim(
        f"textbook: shows a sold seat as free for {textbook.stale_seconds:.1f} s; "
        f"slotcache: {len(ours.stale)} stale reads",
        is_true=len(textbook.stale) > 0 and not ours.stale,
    )


def timeline(textbook: Course, ours: Course) -> Table:
    """Draw both courses in one time; reads in a row with the same answers are one line."""
    table = Table("manual clock", "textbook", "slotcache")
    table.add_row("0.00 s", *(f"a reader queries: {c.reader.free} free" for c in (textbook, ours)))
    table.add_row(f"{SOLD_AT:.2f} s", *["[bold]sold, committed, cleared[/]"] * 2)
    table.add_row(
        f"{STORED_AT:.2f} s",
        f"the reader stores: {textbook.reader.free} free",
        "the reader stores: too late",
        end_section=True,
    )
    pairs = zip(textbook.later, ours.later, strict=True)
    for _, group in groupby(pairs, key=lambda pair: [look.free for look in pair]):
        looks = list(group)
        answers = (
            f"{len(looks)} reads: {look.free} free, "
            + ("[bold red]but sold[/]" if look.is_stale else "[green]right[/]")
            for look in looks[0]
        )
        table.add_row(f"{looks[0][0].at:.2f} to {looks[-1][0].at:.2f} s", *answers)
    return table


def what_is_free(service: SlotAvailabilityService) -> None:
    """Show the list of one scope, beside what the application knows of its slots."""
    evening = datetime.fromisoformat("2013-11-27T17:00")
    scene(
        "2  What is free from JFK?",
        f"The next departures at {evening:%H:%M} on 27 November 2013. Flights and seats are real, "
        "the bookings are made up.",
    )
    availability = service.get_availability("JFK")
    departing = [row for row in availability if FLIGHTS[row.slot_id].departs_at >= evening]
    table = Table("departs", "to", "flight", numbers("free"), numbers("of"), "")
    for slot_id, seats, free in departing[:8]:
        flight = FLIGHTS[slot_id]
        table.add_row(
            f"{flight.departs_at:%H:%M}",
            flight.destination,
            flight.name,
            f"{free}" if free else "[red]sold out[/]",
            f"{seats}",
            ProgressBar(total=seats, completed=free, width=30),
        )
    console.print(table)
    console.print(f"All of JFK: {availability!r}")


def a_rush(slots: SqlSlots) -> Claim:
    """Let many threads find the list cold at the same instant, and count the queries."""
    threads, seconds = 64, 0.05
    scene(
        "3  A rush at a cold list",
        f"{threads} threads ask for all {len(FLIGHTS)} departures at once, and nothing is cached. "
        f"The query is made to last {seconds * 1000:g} ms, so that they all come while it runs.",
    )
    service = SlotAvailabilityService(slots)
    start = threading.Barrier(threads)

    def ask(_: int) -> tuple[Source, float]:
        start.wait()
        began = time.perf_counter()
        return service.read().source, time.perf_counter() - began

    with queries(lasting=seconds) as seen, ThreadPoolExecutor(threads) as pool:
        sources, waits = zip(*pool.map(ask, range(threads)), strict=True)
    console.print(
        f"{sources.count(Source.LOADED)} threads came in time to share its answer; "
        f"the slowest waited {max(waits) * 1000:.0f} ms."
    )
    queried = "1 query" if len(seen) == 1 else f"{len(seen)} queries"
    return claim(
        f"{threads} threads at a cold list: the database saw {queried}", is_true=len(seen) == 1
    )


def warm_reads(service: SlotAvailabilityService) -> Claim:
    """Time reads of a cached list, a short and a long one, and the query that they save."""
    scene(
        "4  A warm read",
        "Everybody is handed the same immutable list, so its length does not matter. To name an "
        "airport costs the making of a key.",
    )
    lists: dict[str, Callable[[], Availability]] = {
        "JFK": partial(service.get_availability, "JFK"),
        "all airports": service.get_availability,
    }
    table = Table("list", numbers("flights"), numbers("its query"), numbers("warm read, median"))
    service.clear_availability_cache()
    medians, missed = [], 0
    for name, read in lists.items():
        cold = timeit.timeit(read, number=1)
        with queries() as seen:
            warm = statistics.median(timeit.repeat(read, number=10_000, repeat=15)) / 10_000
        table.add_row(name, f"{len(read())}", f"{cold * 1e3:.1f} ms", f"{warm * 1e6:.2f} us")
        medians.append(warm)
        missed += len(seen)
    console.print(table)
    short, long = (f"{median * 1e6:.2f} us" for median in medians)
    return claim(
        f"a warm read takes {short} for one airport, {long} for all {len(FLIGHTS)} flights",
        is_true=missed == 0 and max(medians) < 1e-3,
    )


def a_hot_flight(slots: SqlSlots, service: SlotAvailabilityService, file: Path) -> Claim:
    """Sell one flight to more people than it has seats, and let plain SQL count."""
    threads, buyers = 32, 600
    scene(
        "5  A hot flight",
        f"{buyers} people, {threads} at a time, want a seat on {HOT.name} to {HOT.destination}: "
        f"each takes a hold and confirms it. It has {HOT.seats} seats.",
    )
    # A slow disk shall make them wait, rather than be told to try again.
    patient = HoldPolicy(lock_wait=30.0)
    holds = HoldManager(slots, on_change=service.clear_availability_cache, policy=patient)

    def buy(_: int) -> bool:
        try:
            holds.confirm(holds.create(HOT.id).id)
        except SlotFull:
            return False
        return True

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        bought = sum(pool.map(buy, range(buyers)))
    seconds = time.perf_counter() - began
    sold, left = booked(file)
    listed = free_seats(service.get_availability("JFK"), HOT.id)
    refused, oversold = buyers - bought, max(0, sold - HOT.seats)
    console.print(
        f"After {seconds:.1f} s {bought} have a seat, and {refused} were refused. Plain SQL counts "
        f"{sold} seats confirmed, and {left} left. The list shows {listed} free."
    )
    return claim(
        f"{HOT.seats} seats, {buyers} buyers: {sold} sold, {refused} refused, {oversold} oversold",
        is_true=sold == bought == HOT.seats and left == listed == 0,
    )


def booked(file: Path) -> tuple[int, int]:
    """What the database itself says of the hot flight: the seats confirmed, and the seats left."""
    with closing(sqlite3.connect(file)) as database:
        sold, left = database.execute(
            "SELECT (SELECT sum(quantity) FROM slot_holds"
            "        WHERE slot_id = departures.id AND state = 'confirmed'), seats_left"
            " FROM departures WHERE id = ?",
            [HOT.id],
        ).fetchone()
    return sold, left


def a_hold_ends(folder: Path) -> Claim:
    """Let a hold run out with nobody there to sweep, and see when the list shows it."""
    lasting, step = 3.0, 0.25
    scene(
        "6  A hold runs out",
        f"Two seats are held for {lasting:g} s and never paid for. Nobody sweeps, nothing is "
        f"written, and the list is kept for {TTL:g} s. The clock is manual again.",
    )
    clock = ManualClock()
    with open_departures(folder / "holds.db", clock=clock, left={HOT.id: 5}) as slots:
        service = SlotAvailabilityService(slots, clock=clock)
        holds = HoldManager(slots, on_change=service.clear_availability_cache)

        def free() -> int:
            return free_seats(service.get_availability("JFK"), HOT.id)

        before, began = free(), clock.now()
        holds.create(HOT.id, 2, ttl=lasting)
        held, reads = free(), 0
        while free() == held and reads < 100:
            clock.advance(step)
            reads += 1
        after, seconds = free(), clock.now() - began
    table = Table("manual clock", "", "the list shows")
    table.add_row("0.00 s", "before", f"{before} free")
    table.add_row("0.00 s", "two seats are held", f"{held} free")
    table.add_row(f"to {seconds - step:.2f} s", f"{reads} reads", f"{held} free")
    table.add_row(f"{seconds:.2f} s", "nobody has done anything", f"{after} free")
    console.print(table)
    return claim(
        f"a hold of {lasting:g} s runs out: "
        f"a list kept for {TTL:g} s shows it after {seconds:.1f} s",
        is_true=(before, held, after) == (5, 3, 5) and seconds == lasting,
    )


if __name__ == "__main__":
    sys.exit(main())
