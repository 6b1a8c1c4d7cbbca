"""A shop's order and its seat in one transaction: python3 dev.py demo order_in_one_transaction.

The orders are a table of the shop, mapped by SQLAlchemy's ORM, beside the departures. As in
`quickstart.py`, each scene shows one thing, measures it, and returns a claim for the summary.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa
from rich.table import Table
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from _departures import departures, flights, free_seats, open_departures
from _race import LAST_SEAT, SOLD_AT, STEP, STEPS, Course, Look
from _stage import Claim, claim, console, numbers, scene, summary
from _workers import Worker
from slotcache import AvailabilityPolicy, Hold, HoldManager, SlotAvailabilityService, SlotFull
from slotcache.file import FileCache
from slotcache.sql import SqlSlots, clear_on_commit
from slotcache.testing import ManualClock

HOT = flights()[635]  # DL 434 to San Francisco, at 17:30
FROM_JFK = flights()[64]  # B6 318 to Boston, at 6:50
FROM_LGA = flights()[80]  # US 2136 to Boston, at 7:00
TTL = AvailabilityPolicy().ttl
PATIENCE = 10.0


class Base(DeclarativeBase):
    metadata = departures.metadata


class Order(Base):
    """A seat that somebody has bought; `hold_id` is what slotcache knows it by."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    departure_id: Mapped[int] = mapped_column(sa.ForeignKey(departures.c.id))
    hold_id: Mapped[UUID] = mapped_column(unique=True)


def main() -> int:
    """Play all scenes; return 0 if every claim is true."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        left = {HOT.id: HOT.seats, FROM_JFK.id: FROM_JFK.seats, FROM_LGA.id: 5}
        file = folder / "departures.db"
        with open_departures(file, left=left) as slots, FileCache(folder / "cache") as cache:
            shop = Shop(slots, cache, folder)
            claims = [
                one_commit(shop),
                in_two_transactions(shop, file),
                a_crash_in_between(shop, file),
                too_early(folder),
                two_seats_or_none(shop, file),
            ]
    return summary(claims, time.monotonic() - began)


class Shop:
    """The application, of which each forked process has a copy."""

    def __init__(self, slots: SqlSlots, cache: FileCache, folder: Path) -> None:
        self.slots = slots
        self.stopped = folder / "stopped"
        self.service = SlotAvailabilityService(slots, cache=cache)
        self.holds = HoldManager(slots, on_change=self.service.clear_availability_cache)

    def free(self) -> int:
        """How many seats of the hot flight the list shows."""
        return free_seats(self.service.get_availability(HOT.origin), HOT.id)

    def buy(self, customer: str, passes: Callable[[str], object] = lambda _step: None) -> None:
        """Sell a seat and write the order, in one transaction.

        Args:
            customer: Who buys it.
            passes: Told of each step that is done, while the transaction is open.
        """
        with Session(self.slots.engine) as session, session.begin():
            holds = self.holds.within(session)
            hold = holds.create(HOT.id, owner=customer)
            passes("the hold")
            holds.confirm(hold.id)
            passes("the confirmation")
            session.add(order_for(hold))
            session.flush()
            passes("the order")

    def buy_until(self, step: str) -> None:
        """Buy, and stand still after a step."""
        self.buy("Ann", lambda done: self._stand_still() if done == step else None)

    def buy_in_two_transactions(self) -> None:
        """Sell a seat, and stand still before its order is written: the way that is wrong."""
        hold = self.holds.create(HOT.id, owner="Ann")
        self.holds.confirm(hold.id)
        self._stand_still()
        with Session(self.slots.engine) as session, session.begin():
            session.add(order_for(hold))

    def buy_all(self, customer: str, wanted: Mapping[int, int]) -> bool:
        """Sell seats on several flights, with an order for each; or nothing."""
        try:
            with Session(self.slots.engine) as session, session.begin():
                holds = self.holds.within(session)
                for hold in holds.create_many(wanted, owner=customer):
                    holds.confirm(hold.id)
                    session.add(order_for(hold))
        except SlotFull:
            return False
        return True

    def _stand_still(self) -> None:
        self.stopped.touch()
        time.sleep(60)


def order_for(hold: Hold) -> Order:
    return Order(customer=hold.owner, departure_id=hold.slot_id, hold_id=hold.id)


def books(file: Path, *flight_ids: int) -> tuple[int, int]:
    """What the database itself says of some flights: the seats that are sold, and the orders."""
    of_these = f"IN ({', '.join(map(str, flight_ids))})"
    with closing(sqlite3.connect(file)) as database:
        seats, orders = database.execute(
            "SELECT (SELECT coalesce(sum(seats - seats_left), 0) FROM departures"
            f"        WHERE id {of_these}),"
            f"       (SELECT count(*) FROM orders WHERE departure_id {of_these})"
        ).fetchone()
    return seats, orders


def one_commit(shop: Shop) -> Claim:
    """Sell seat after seat, and have others read before and after each commit."""
    sales = 20
    scene(
        "1  One commit for both",
        f"{sales} people buy a seat on {HOT.name} to {HOT.destination}. Each time the hold, its "
        "confirmation and the order are one transaction. A thread and another process ask how "
        "many are left: in mid-transaction, when nothing is sold yet, and right after the commit.",
    )
    during: list[int] = []
    after: list[int] = []
    worker = Worker(shop)
    try:
        with ThreadPoolExecutor(1) as thread:

            def read(wrong_by: list[int], truth: int, _step: str = "") -> None:
                worker.ask("free")
                wrong_by += [thread.submit(shop.free).result() - truth, worker.answer() - truth]

            for left in range(HOT.seats, HOT.seats - sales, -1):
                shop.buy("Ann", partial(read, during, left))
                read(after, left - 1)
    finally:
        worker.kill()
    table = Table("read", numbers("reads"), numbers("right"))
    for when, wrong_by in (("in mid-transaction", during), ("after the commit", after)):
        table.add_row(when, f"{len(wrong_by)}", f"{wrong_by.count(0)}")
    console.print(table)
    stale, reads = len(after) - after.count(0), len(after)
    return claim(
        f"{sales} orders, each one commit: {stale} of {reads} reads right after them are stale",
        is_true=stale == 0 and not any(during),
    )


def in_two_transactions(shop: Shop, file: Path) -> Claim:
    """Kill a process between the sale and its order."""
    scene(
        "2  In two transactions",
        "A seat is sold, and its order is written in a transaction of its own. In between the "
        "process is killed (kill -9).",
    )
    before = books(file, HOT.id)
    kill_in("buy_in_two_transactions", shop=shop)
    after = books(file, HOT.id)
    seats, orders = (now - then for now, then in zip(after, before, strict=True))
    console.print("Nobody has that seat, nobody has paid for it, and nobody else can buy it.")
    return claim(
        f"in two transactions, killed between them: {seats} seat is sold, with {orders} orders",
        is_true=(seats, orders) == (1, 0),
    )


def a_crash_in_between(shop: Shop, file: Path) -> Claim:
    """End the one transaction in its midst: by an exception, and by killing its process."""
    scene(
        "3  In one transaction",
        "The same in one transaction, which ends early after each of its steps: by an exception, "
        "and by the end of its process (kill -9).",
    )
    before = books(file, HOT.id)
    steps = ["the hold", "the confirmation", "the order"]
    table = Table("ends after", "an exception leaves", "kill -9 leaves")
    left_behind = []
    for step in steps:
        raise_after(step, shop)
        by_exception = books(file, HOT.id)
        kill_in("buy_until", step, shop=shop)
        by_kill = books(file, HOT.id)
        left = [
            tuple(now - then for now, then in zip(books_then, before, strict=True))
            for books_then in (by_exception, by_kill)
        ]
        table.add_row(step, *(f"{seats} seats, {orders} orders" for seats, orders in left))
        left_behind += left
    shop.buy("Bob")
    seats, orders = (now - then for now, then in zip(books(file, HOT.id), before, strict=True))
    console.print(table)
    console.print(f"The next customer buys: {seats} seat, {orders} order.")
    halves, times = sum(left != (0, 0) for left in left_behind), len(left_behind)
    return claim(
        f"in one, ended early {times} times: {halves} have left a seat or an order behind",
        is_true=halves == 0 and (seats, orders) == (1, 1),
    )


def raise_after(step: str, shop: Shop) -> None:
    def passes(done: str) -> None:
        if done == step:
            raise RuntimeError(f"after {step}")

    try:
        shop.buy("Ann", passes)
    except RuntimeError:
        return
    raise AssertionError("the transaction went on")


def kill_in(method: str, *arguments: str, shop: Shop) -> None:
    """Have a new process do something, and kill it where it stands still."""
    shop.stopped.unlink(missing_ok=True)
    worker = Worker(shop)
    try:
        worker.ask(method, *arguments)
        end = time.monotonic() + PATIENCE
        while not shop.stopped.exists():
            assert time.monotonic() < end, "it never came so far"
            time.sleep(0.001)
    finally:
        worker.kill()


def too_early(folder: Path) -> Claim:
    """Clear the list in the transaction, or after it, with a reader before the commit."""
    scene(
        "4  When to clear the list",
        f"The shop sells the last seat of {LAST_SEAT.name} by a statement of its own. One clears "
        "the list in the transaction; the other says clear_on_commit there. A reader comes before "
        f"the commit. A list lives for {TTL:g} s, and the clock is manual.",
    )
    naive = course(folder / "naive.db", clears_on_commit=False)
    ours = course(folder / "on_commit.db", clears_on_commit=True)
    table = Table("manual clock", "clears in the transaction", "clear_on_commit")
    both = (naive, ours)
    table.add_row("0.00 s", "sold, cleared", "sold, noted")
    table.add_row("0.00 s", *(f"a reader: {each.reader.free} free" for each in both))
    table.add_row(f"{SOLD_AT:.2f} s", "committed", "committed, cleared", end_section=True)
    table.add_row(
        f"to {naive.later[-1].at:.2f} s",
        *(f"{len(each.stale)} of {len(each.later)} reads are stale" for each in both),
    )
    console.print(table)
    console.print("The reader was right, but has stored a list that nobody clears any more.")
    return claim(
        f"cleared before the commit: stale for {naive.stale_seconds:.1f} s; "
        f"after it: {len(ours.stale)} stale reads",
        is_true=len(naive.stale) > 0 and not ours.stale,
    )


def course(path: Path, *, clears_on_commit: bool) -> Course:
    """Sell the last seat in a transaction, with a reader in its midst, and read on after it."""
    clock = ManualClock(start=0.0)
    with (
        open_departures(path, left={LAST_SEAT.id: 1}) as slots,
        ThreadPoolExecutor(1) as reader,
        Session(slots.engine) as session,
    ):
        service = SlotAvailabilityService(slots, clock=clock)

        def look() -> Look:
            at, truth = clock.now(), slots.load(LAST_SEAT.origin).availability
            listed = service.get_availability(LAST_SEAT.origin)
            return Look(at, free_seats(listed, LAST_SEAT.id), free_seats(truth, LAST_SEAT.id))

        look()
        row = sa.update(departures).where(departures.c.id == LAST_SEAT.id)
        session.execute(row.values(seats_left=0))
        if clears_on_commit:
            clear_on_commit(session, service.clear_availability_cache, LAST_SEAT.origin)
        else:
            service.clear_availability_cache(LAST_SEAT.origin)
        before = reader.submit(look).result()
        clock.advance(SOLD_AT)
        session.commit()

        later = []
        for step in range(1, STEPS + 1):
            clock.advance(step * STEP - clock.now())
            later.append(look())
    return Course(before, tuple(later))


def two_seats_or_none(shop: Shop, file: Path) -> Claim:
    """Sell two flights together, of which one has fewer seats left than there are buyers."""
    pairs, threads = 12, 4
    scene(
        "5  Two seats or none",
        f"{pairs} times two people want to meet in Boston: one takes {FROM_JFK.name} from JFK, "
        f"which has {FROM_JFK.seats} seats left, the other {FROM_LGA.name} from LaGuardia, which "
        "has 5. Half of them name the one flight first, half the other; "
        f"{threads} buy at a time.",
    )
    before = books(file, FROM_JFK.id, FROM_LGA.id)

    def buy(pair: int) -> bool:
        wanted = [FROM_JFK.id, FROM_LGA.id]
        if pair % 2:
            wanted.reverse()
        return shop.buy_all(f"pair {pair}", dict.fromkeys(wanted, 1))

    with ThreadPoolExecutor(threads) as pool:
        fly = sum(pool.map(buy, range(pairs)))
    orders = {flight.name: books(file, flight.id)[1] for flight in (FROM_JFK, FROM_LGA)}
    after = books(file, FROM_JFK.id, FROM_LGA.id)
    sold = after[0] - before[0]
    console.print(
        f"{fly} pairs have both seats, {pairs - fly} were refused. Orders: "
        + ", ".join(f"{count} for {name}" for name, count in orders.items())
        + f"; {sold} seats are sold in all."
    )
    listed = free_seats(shop.service.get_availability("JFK"), FROM_JFK.id)
    alone = max(orders.values()) - min(orders.values())
    return claim(
        f"{pairs} pairs, 5 seats on one of two flights: {fly} fly, {alone} fly alone",
        is_true=fly == 5
        and alone == 0
        and sold == after[1] - before[1] == 2 * fly
        and listed == FROM_JFK.seats - fly,
    )


if __name__ == "__main__":
    sys.exit(main())
