"""Reading lists: one connection of our own, and from its cursor straight into columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from slotcache._fork import forget_after_fork
from slotcache.availability import Availability, Scope
from slotcache.protocols import Loaded
from slotcache.sql.database import Database
from slotcache.sql.engines import OwnEngine
from slotcache.sql.statements import Statements
from slotcache.sql.turns import Turns

__all__ = ["ListReader"]

_LOT = 256
_MILLISECOND = timedelta(milliseconds=1)


class ListReader:
    """Reads lists on one connection, beside the pool of its callers.

    Callers who hold every connection of the pool while they wait for the list would otherwise
    starve the one of them who loads it. And it never reads in anybody's open transaction, where
    a list could be older than the look before it (P1).

    Args:
        database: Where to connect to; the connect listeners of its engine apply, the pool of that
            is left alone.
        statements: The statements of its table.
    """

    def __init__(self, database: Database, statements: Statements) -> None:
        self._database = database
        self._binds_time = statements.binds_time
        self._whole = statements.list_of(scoped=False)
        self._scoped = statements.list_of(scoped=True)
        self._engine: OwnEngine | None = None
        self._abandoned: list[object] = []
        self._turns = Turns(before_fork=self._close_now, waits=database.waits)
        forget_after_fork(self)

    def _after_fork(self) -> None:
        # Kept, so not closed: a load that another thread was in is the parent's.
        self._abandoned.append(self._engine)
        self._engine = None

    def close(self) -> None:
        """Close the connection; a later load opens another."""
        with self._turns:
            engine, self._engine = self._engine, None
            if engine is not None:
                engine.close()

    def close_if_free(self) -> None:
        """Close the connection, unless the process is forking, which closes it too."""
        if self._turns.take_if_free():
            try:
                self._close_now()
            finally:
                self._turns.give()

    def _close_now(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close_now()

    def load(self, scope: Scope | None) -> Loaded:
        """Read one list, as last committed.

        Raises:
            ValueError: The rows spell the scope differently; or a row cannot be true.
            sqlalchemy.exc.DBAPIError: What the database raised.
        """
        with self._turns:
            try:
                return self._load(scope)
            except DBAPIError as error:
                # The connection had died since the last load, and nobody could know.
                if not error.connection_invalidated:
                    raise
                return self._load(scope)

    def _load(self, scope: Scope | None) -> Loaded:
        if self._engine is None:
            self._engine = OwnEngine(self._database.list_engine())
        statement = self._whole if scope is None else self._scoped
        connection = self._engine.connect()
        try:
            parameters: dict[str, object] = {} if scope is None else {"p_scope": scope}
            if self._binds_time:
                parameters["p_now"] = self._database.now(connection)
            columns = _columns(connection, statement, parameters)
            ids, capacities, free, ends, *other_spellings = columns
            next_end = min(filter(None, ends.values), default=None)
            valid_for = None
            if next_end is not None:
                valid_for = _seconds_until(ends.one(next_end), self._database.now(connection))
        finally:
            self._database.waits.to_its_end(connection.close)
        for column in other_spellings:
            _check_spelling(scope, column.values)
        availability = Availability._of_columns(ids.all(), capacities.all(), free.all())
        return Loaded(availability, valid_for)


class _Column(NamedTuple):
    """The driver's values of one column, and how SQLAlchemy reads them."""

    values: list[Any]
    convert: Callable[[Any], Any] | None

    def one(self, value: Any) -> Any:
        """Return one of them as a Python value."""
        return value if self.convert is None else self.convert(value)

    def all(self) -> Sequence[Any]:
        """Return all of them as Python values, which as a rule they are already."""
        return self.values if self.convert is None else list(map(self.convert, self.values))


def _columns(
    connection: sa.Connection, statement: sa.Select[Any], parameters: dict[str, object]
) -> list[_Column]:
    """Fetch columns past SQLAlchemy's rows, which cost more than the query.

    In small lots: the driver's tuples are then used again while they are in the processor's
    cache, which takes half the time of turning 100,000 of them at once.
    """
    dialect = connection.dialect
    cursor = connection.execute(statement, parameters).cursor
    columns = [
        _Column([], column.type.dialect_impl(dialect).result_processor(dialect, described[1]))
        for column, described in zip(statement.selected_columns, cursor.description, strict=True)
    ]
    while rows := cursor.fetchmany(_LOT):
        for column, values in zip(columns, zip(*rows, strict=True), strict=True):
            column.values.extend(values)
    return columns


def _check_spelling(scope: Scope | None, other_spellings: Sequence[Any]) -> None:
    """Refuse a list under a name that no change would clear: rows clear their own spelling."""
    others = set(other_spellings) - {None}
    if others:
        raise ValueError(
            f"scope {scope!r} is spelled {min(others)!r} in the table, which the database takes "
            "for the same: write it as the rows do"
        )


def _seconds_until(instant: datetime, now: datetime) -> float:
    """Return how long from `now`, rounded up to the millisecond: by then it is past."""
    return max(0, -((now - instant) // _MILLISECOND)) / 1000
