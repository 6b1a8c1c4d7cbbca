"""What slotcache needs of a database, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from slotcache.errors import BackendError, Busy, SlotcacheError
from slotcache.protocols import Clock, Scope
from slotcache.sql.waits import waits_of

__all__ = ["AUTOCOMMIT", "Database", "Disconnected", "Overtaken", "TryAgain"]

AUTOCOMMIT = (
    "each statement on this connection is a transaction of its own (AUTOCOMMIT), so there is none "
    "to join: use the manager itself, or an engine without that isolation_level"
)

_EXPECTED = (StatementError, SlotcacheError, ValueError)
"""After these, what a connection is in the midst of is known."""


class TryAgain(Exception):
    """A transaction that was not asked to commit came to nothing; another may well succeed.

    Attributes:
        otherwise: What to raise when it was the last one.
    """

    def __init__(self, otherwise: SlotcacheError) -> None:
        super().__init__(otherwise)
        self.otherwise = otherwise


class Overtaken(TryAgain):
    """The database ended it because of what others did meanwhile."""


class Disconnected(TryAgain):
    """The connection was lost: it may have been so since its last use."""


class Database(ABC):
    """Transactions on one database, through an engine.

    Args:
        engine: The engine.
        clock: The time for tests, as Unix seconds; None: the database's.

    Attributes:
        waits: How those wait who use it.
    """

    dialects: ClassVar[Collection[str]]
    """What SQLAlchemy calls it."""

    skips_locked: ClassVar[bool]
    """Whether a statement can leave out the rows that others have locked."""

    joins_lateral: ClassVar[bool] = False
    """Whether a joined sub-query may look at the row that it is joined to, and has to."""

    reads_snapshots: ClassVar[bool] = False
    """Whether a plain read in somebody's transaction may show what was before a lock was waited
    for, and the lock does not tell."""

    writes_alone = False
    """Whether nobody else writes to anything from the beginning of a transaction to its end."""

    def __init__(self, engine: sa.Engine, *, clock: Clock | None) -> None:
        self.waits = waits_of(engine.dialect)
        self._engine = engine
        self._clock = clock

    @abstractmethod
    def writing(self, lock_wait: float) -> AbstractContextManager[sa.Connection]:
        """Lend a connection in a transaction, which is rolled back unless the borrower commits.

        Raises:
            Busy: A lock was not to be had within `lock_wait` seconds.
            TryAgain: Overtaken or disconnected, but not by a commit.
            BackendError: The database failed.
        """

    @abstractmethod
    def reading(self, lock_wait: float) -> AbstractContextManager[sa.Connection]:
        """Lend a connection to read from; raises what `writing` does."""

    @abstractmethod
    def creating(self, lock_wait: float) -> AbstractContextManager[sa.Connection]:
        """As `writing`, and nobody else is creating tables meanwhile."""

    @contextmanager
    def joining(
        self, connect: Callable[[], sa.Connection], lock_wait: float
    ) -> Iterator[sa.Connection]:
        """Lend the connection of somebody's transaction, which goes on afterwards.

        When this raises, nothing of what was done in it remains. If that cannot be had, the
        connection is invalidated, and its owner has to roll back.

        Raises:
            ValueError: Each statement on it is a transaction of its own.
            Busy: A lock was not to be had within `lock_wait` seconds.
            TryAgain: Overtaken or disconnected.
            BackendError: The database failed.
        """
        with self._translated(lock_wait):
            connection = connect()
            if connection.dialect.name not in self.dialects:
                raise ValueError(
                    f"the slots are on {self._engine.dialect.name}, and the transaction is on "
                    f"{connection.dialect.name}: give one on the database of the slots"
                )
            if not connection.in_transaction():
                connection.begin()
            with self._patient_in(connection, lock_wait):
                savepoint = connection.begin_nested()
                try:
                    yield connection
                    savepoint.commit()
                except BaseException as error:
                    self._undo(connection, savepoint, error)
                    raise

    def _undo(
        self, connection: sa.Connection, savepoint: sa.NestedTransaction, error: BaseException
    ) -> None:
        if not isinstance(error, _EXPECTED):
            connection.invalidate()
        try:
            savepoint.rollback()  # of a connection that is invalidated, it sends nothing
        except DBAPIError:
            connection.invalidate()  # MariaDB has ended the whole transaction, for one

    @abstractmethod
    def _patient_in(
        self, connection: sa.Connection, lock_wait: float
    ) -> AbstractContextManager[None]:
        """Wait so long for locks in somebody's transaction, and afterwards as long as before.

        Raises:
            ValueError: There is no transaction.
        """

    @abstractmethod
    def clock(self) -> sa.ColumnElement[Any] | None:
        """The time, the same wherever in a statement it stands; None: ask `now`, and bind it."""

    @abstractmethod
    def is_spelled(
        self, column: sa.ColumnElement[Any], text: sa.ColumnElement[Any]
    ) -> sa.ColumnElement[bool]:
        """Whether the column is exactly this text, also where it compares loosely."""

    @abstractmethod
    def insert_unless_there(self, table: sa.Table) -> sa.Insert:
        """An insert of a row that counts 0 rows, and is no error, if its key is there already."""

    def now(self, connection: sa.Connection) -> datetime:
        """Read the time by a clock that moves inside a transaction."""
        if self._clock is not None:
            return datetime.fromtimestamp(self._clock.now(), UTC)
        clock = self.clock()
        assert clock is not None, "who has no clock of its own reads another"
        told: datetime = connection.execute(sa.select(clock)).scalar_one()
        return told

    def list_engine(self) -> sa.Engine:
        """Return an engine for one more connection, beside the pool of the first."""
        source = self._engine
        engine = sa.Engine(source.pool.recreate(), source.dialect, source.url)
        options = dict(source.get_execution_options())
        options.pop("isolation_level", None)
        engine.update_execution_options(**options)
        return engine

    def commit(
        self,
        connection: sa.Connection,
        scopes: tuple[Scope | None, ...],
        changed: list[Scope | None],
    ) -> None:
        """Commit; `changed` then holds the scopes in which others may see something new.

        They are in it before the database is asked, since its answer may be lost (P8).
        """
        changed.extend(scopes)
        try:
            self.waits.to_its_end(connection.commit)
        except BaseException as error:
            # SQLAlchemy would hand the connection to its next user with this transaction open.
            connection.invalidate()
            if not isinstance(error, DBAPIError):
                raise
            if self._says_no(error):
                changed.clear()
                raise
            raise self._failure(error) from error

    @abstractmethod
    def close(self) -> None:
        """Close what is its own."""

    @abstractmethod
    def close_if_free(self) -> None:
        """Close what is its own, unless the process is forking, which closes it too."""

    @contextmanager
    def _lent(
        self, connection: sa.Connection, *, put_back: Callable[[], None] = lambda: None
    ) -> Iterator[sa.Connection]:
        """Lend a connection; it goes back to its pool as it came, or not at all.

        After an error of the database, or a refusal of ours, it is put back in order. After
        anything else (what a signal raises) nobody knows what it is in the midst of. And what is
        done to it afterwards never tells on the call: a change may have been committed.
        """
        try:
            try:
                yield connection
            except _EXPECTED:
                self._in_order(connection, put_back)
                raise
            self._in_order(connection, put_back)
        except _EXPECTED:
            raise
        except BaseException:
            connection.invalidate()
            raise
        finally:
            with suppress(DBAPIError):
                self.waits.to_its_end(connection.close)

    def _in_order(self, connection: sa.Connection, put_back: Callable[[], None]) -> None:
        def settle() -> None:
            connection.rollback()
            put_back()
            connection.rollback()

        if connection.invalidated:
            return
        try:
            self.waits.to_its_end(settle)
        except DBAPIError:
            connection.invalidate()

    @contextmanager
    def _translated(self, lock_wait: float) -> Iterator[None]:
        """Say in slotcache's words what the database raises."""
        try:
            yield
        except DBAPIError as error:
            if self._is_busy(error):
                raise Busy(waited=lock_wait) from error
            if self._was_overtaken(error):
                raise Overtaken(Busy(waited=lock_wait)) from error
            if error.connection_invalidated:
                raise Disconnected(self._failure(error)) from error
            raise self._failure(error) from error
        except PoolTimeoutError as error:
            raise BackendError(f"the engine had no connection to spare: {error}") from error

    def _failure(self, error: DBAPIError) -> BackendError:
        hint = ""
        if self._lacks_a_table(error):
            hint = ": create_tables() makes those that are slotcache's, you make yours"
        return BackendError(f"the database failed: {error.orig}{hint}")

    @abstractmethod
    def _is_busy(self, error: DBAPIError) -> bool:
        """Whether a lock was not to be had in time."""

    @abstractmethod
    def _was_overtaken(self, error: DBAPIError) -> bool:
        """Whether the transaction was ended because of what others did meanwhile."""

    @abstractmethod
    def _says_no(self, error: DBAPIError) -> bool:
        """Whether a COMMIT that failed so certainly did not happen."""

    @abstractmethod
    def _lacks_a_table(self, error: DBAPIError) -> bool:
        """Whether a table is missing."""
