"""The demo's table: one day's real departures, each a slot, its seats the places.

It is a table as an application has it, with columns and names of its own: `COLUMNS` tells
slotcache which of them it needs. The flights and their seats are real, the bookings are made up.
"""

from __future__ import annotations

import csv
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from slotcache import Availability
from slotcache.protocols import Clock, SlotId
from slotcache.sql import SqlSlots

DATA = Path(__file__).parent / "data" / "departures-2013-11-27.csv"

departures = sa.Table(
    "departures",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("departs_at", sa.DateTime, nullable=False),
    sa.Column("origin", sa.String(3), nullable=False, index=True),
    sa.Column("destination", sa.String(3), nullable=False),
    sa.Column("carrier", sa.String(2), nullable=False),
    sa.Column("flight", sa.Integer, nullable=False),
    sa.Column("seats", sa.Integer, nullable=False),
    sa.Column("seats_left", sa.Integer, nullable=False),
    sa.CheckConstraint("0 <= seats_left AND seats_left <= seats"),
)

COLUMNS = {"slot_id": "id", "scope": "origin", "capacity": "seats", "remaining": "seats_left"}


class Flight(NamedTuple):
    """One row of the data."""

    id: int
    departs_at: datetime
    origin: str
    destination: str
    carrier: str
    flight: int
    seats: int

    @property
    def name(self) -> str:
        return f"{self.carrier} {self.flight}"


def flights() -> dict[SlotId, Flight]:
    """All departures of the day by their ids, earliest first."""
    with DATA.open(newline="", encoding="utf-8") as file:
        rows = [
            Flight(
                int(row["slot_id"]),
                datetime.fromisoformat(row["departs_at"]),
                row["origin"],
                row["destination"],
                row["carrier"],
                int(row["flight"]),
                int(row["seats"]),
            )
            for row in csv.DictReader(file)
        ]
    return {row.id: row for row in rows}


def open_departures(
    path: Path, *, clock: Clock | None = None, left: Mapping[int, int] | None = None
) -> SqlSlots:
    """Make a SQLite file with all departures in it, half or more of the seats booked.

    Args:
        path: Where to make it.
        clock: The time for holds; None: the database's.
        left: The seats left on a flight, where the story needs a certain number.
    """
    bookings = random.Random(2013)
    rows = []
    for flight in flights().values():
        unsold = max(0, bookings.randint(-flight.seats // 10, flight.seats // 2))
        rows.append({**flight._asdict(), "seats_left": (left or {}).get(flight.id, unsold)})
    slots = SqlSlots.sqlite(path, slots=departures, columns=COLUMNS, clock=clock)
    departures.metadata.create_all(slots.engine)
    slots.create_tables()
    with slots.engine.begin() as connection:
        connection.execute(sa.insert(departures), rows)
    return slots


def free_seats(availability: Availability, flight_id: int) -> int:
    """How many seats of a flight a list shows as free."""
    row = availability.get(flight_id)
    assert row is not None, "the flight is in the table"
    return row.remaining


def unsold_seats(slots: SqlSlots, flight_id: int) -> int:
    """How many seats of a flight the table has, asked in plain SQL."""
    row = sa.select(departures.c.seats_left).where(departures.c.id == flight_id)
    with slots.engine.connect() as connection:
        return int(connection.execute(row).scalar_one())


def sell_seat(slots: SqlSlots, flight_id: int) -> None:
    """Sell one seat in plain SQL, and commit."""
    row = sa.update(departures).where(departures.c.id == flight_id)
    with slots.engine.begin() as connection:
        connection.execute(row.values(seats_left=departures.c.seats_left - 1))


@contextmanager
def queries(*, lasting: float = 0.0) -> Iterator[list[str]]:
    """Collect the queries that any engine sends meanwhile; each takes `lasting` seconds longer."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT"):
            seen.append(statement)
            time.sleep(lasting)

    # Of all engines: slotcache reads lists through one of its own, beside `slots.engine`.
    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
