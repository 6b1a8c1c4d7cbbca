"""A table of slots inside a transaction of its user's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from slotcache.availability import Scope, SlotId
from slotcache.hook import Hook
from slotcache.ledger import Change, HoldRequest, HoldTable, Ledger
from slotcache.lifecycle import Hold
from slotcache.sql.database import Database, TryAgain
from slotcache.sql.extension import async_scoped_session
from slotcache.sql.ledger import SqlLedger
from slotcache.sql.tables import SlotColumns
from slotcache.sql.transactions import (
    Transactional,
    check_tells,
    connection_of,
    notes_of,
    transaction_of,
)

__all__ = ["JoinedSlots"]

T = TypeVar("T")


class JoinedSlots:
    """A `HoldTable` on the connection of a session, or on a given one.

    Args:
        transaction: What the user commits.
        slots: The columns of the table.
        database: What kind of database it is on.
        ledger_on: Makes the ledger on a connection.
        hook: Told of each scope in which something changed, after the user's commit.

    Raises:
        TypeError: `transaction` is no session and no connection.
        ValueError: Nobody could tell when it has been committed.
    """

    def __init__(
        self,
        transaction: object,
        slots: SlotColumns,
        *,
        database: Database,
        ledger_on: Callable[[sa.Connection], SqlLedger],
        hook: Hook,
    ) -> None:
        self._given = transaction
        self._slots = slots
        self._database = database
        self._ledger_on = ledger_on
        self._hook = hook
        check_tells(self._transaction, slots)

    @property
    def _transaction(self) -> Transactional:
        # Of a `scoped_session`: the one that is there now.
        return transaction_of(self._given, on_asyncio=not self._database.waits.is_blocking)

    @property
    def id_type(self) -> type[SlotId]:
        """The type of its slot ids."""
        return self._slots.id_type

    def of_this_task(self) -> JoinedSlots:
        """Return the same table in the session that is here now, of a scoped one."""
        here = copy.copy(self)
        if isinstance(self._given, async_scoped_session):
            here._given = self._given()
        return here

    def _within(self, transaction: object, hook: Hook) -> HoldTable:  # noqa: ARG002
        raise ValueError("this manager is inside a transaction already: use the one it came from")

    def _read(self, work: Callable[[Ledger], T], *, lock_wait: float) -> T:
        with self._joined(lock_wait) as connection:
            return work(self._ledger_on(connection))

    def _transact(
        self, work: Callable[[Ledger], Change[T]], _: list[Scope | None], *, lock_wait: float
    ) -> T:
        with self._joined(lock_wait) as connection:
            change = work(self._ledger_on(connection))
            for scope in change.scopes or ():
                # In here, where it is forgotten again if anything cuts in.
                notes_of(self._transaction, connection).add(self._hook, scope)
            return change.value

    def _create(
        self, request: HoldRequest, changed: list[Scope | None], *, lock_wait: float
    ) -> tuple[Hold, ...]:
        return self._transact(lambda ledger: ledger.create(request), changed, lock_wait=lock_wait)

    @contextmanager
    def _joined(self, lock_wait: float) -> Iterator[sa.Connection]:
        transaction = self._transaction
        check_tells(transaction, self._slots)
        if isinstance(transaction, Session) and transaction.autoflush:
            transaction.flush()  # as each statement of the session's own would
        try:
            with self._database.joining(
                lambda: connection_of(transaction, self._slots), lock_wait
            ) as connection:
                yield connection
        except TryAgain as over:
            raise over.otherwise from over.__cause__
