"""Orders of users, in transactions that hold places too, and processes that write and see them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from slotcache import AvailabilityPolicy, HoldManager, HoldPolicy, SlotAvailabilityService
from slotcache.file import FileCache

from .races import table_on
from .sql import Place
from .threads import PATIENCE

orders = sa.Table(
    "orders",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("hold_id", sa.Uuid, unique=True),
    sa.Column("is_paid", sa.Boolean, nullable=False, default=False),
)
"""A table of the user's."""


@contextmanager
def with_orders(engine: sa.Engine) -> Iterator[None]:
    """Have that table there."""
    orders.metadata.drop_all(engine)
    orders.metadata.create_all(engine)
    yield
    orders.metadata.drop_all(engine)


class Shelf:
    """A process that shows the list, from a directory of caches that it shares."""

    def __init__(
        self, _passing: Callable[[str], None], kind: str, place: Place, claim: str, folder: Path
    ) -> None:
        self._service = service_on(table_on(kind, place, claim), folder)

    def free(self, slot_id: int) -> int:
        """How many places it shows."""
        row = self._service.get_availability().get(slot_id)
        assert row is not None
        return row.remaining


def service_on(slots: Any, folder: Path) -> SlotAvailabilityService:
    """A list that lasts, kept in a directory."""
    patient = AvailabilityPolicy(ttl=3600, lock_timeout=PATIENCE, lock_ttl=3600)
    return SlotAvailabilityService(slots, cache=FileCache(folder), policy=patient)


class Till:
    """A process whose children sell: each writes an order and confirms its hold, and is killed."""

    def __init__(
        self, _passing: Callable[[str], None], kind: str, place: Place, claim: str
    ) -> None:
        self._slots = table_on(kind, place, claim)
        self._engine = self._slots.engine
        self._holds = HoldManager(
            self._slots, on_change=self._told, policy=HoldPolicy(lock_wait=PATIENCE)
        )
        with self._engine.connect():
            pass  # what is asked once is not asked by every child
        self._steps_left = 0
        self._answer = -1
        sa.event.listen(self._engine, "before_cursor_execute", self._sends)
        sa.event.listen(self._engine, "commit", lambda _connection: self._comes_to("COMMIT"))

    def sell(self, number: int, hold_id: UUID, step: int) -> str:
        """Have a child sell, and be killed before it takes this step.

        Returns:
            The step; "": it came to its end.
        """
        self._engine.dispose()
        answer, self._answer = os.pipe()
        child = os.fork()
        if child == 0:
            self._live(number, hold_id, step)
        os.close(self._answer)
        with open(answer) as told:  # noqa: PTH123
            words = told.read()
        _, status = os.waitpid(child, 0)
        expected = -signal.SIGKILL if words else 0
        assert os.waitstatus_to_exitcode(status) == expected, words
        return words

    def _live(self, number: int, hold_id: UUID, step: int) -> None:
        status = 1
        try:
            self._steps_left = step
            signal.alarm(round(3 * PATIENCE))
            with Session(self._engine) as session, session.begin():
                session.execute(orders.insert().values(id=number, hold_id=hold_id))
                self._holds.within(session).confirm(hold_id, reference=f"order {number}")
                session.execute(orders.update().where(orders.c.id == number).values(is_paid=True))
            status = 0
        finally:
            os._exit(status)

    def _sends(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self._comes_to(statement)

    def _told(self, _scope: object) -> None:
        self._comes_to("the hook")

    def _comes_to(self, step: str) -> None:
        self._steps_left -= 1
        if self._steps_left == 0:
            os.write(self._answer, step.encode())
            os.kill(os.getpid(), signal.SIGKILL)
