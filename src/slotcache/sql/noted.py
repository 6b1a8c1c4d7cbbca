"""What hooks have to be told once somebody else's transaction is over.

SQLAlchemy says that a transaction commits before it does, and while the connection is still in
use; its `Session` says so at the end of each savepoint, too. So what happens is only noted there,
beside the connection on which it did, and told at the end. Three things are followed:

- What was done since a savepoint is forgotten when that is rolled back, and the outer one's when it
  is released.
- When COMMIT is sent, all that is noted will be told: whatever comes of it, its answer may be lost.
- When the transaction is rolled back, what is noted by then is forgotten.
"""

from __future__ import annotations

import weakref
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.orm import Session, SessionTransaction

from slotcache.availability import Scope
from slotcache.hook import Hook
from slotcache.sql.waits import waits_of

__all__ = ["Noted", "note_at", "noted_in"]

_Note: TypeAlias = tuple[Hook, Scope | None]

_NOTED = "slotcache_noted"  # an execution option of the connection, and a key of a session's info


class Noted:
    """The notes of one connection, from now on until its user is done with it.

    Args:
        connection: The connection.

    Attributes:
        waits: How its user waits.
    """

    def __init__(self, connection: sa.Connection) -> None:
        # Since each savepoint that is open, the first: since before there was any.
        self._levels: list[list[_Note]] = [[]]
        self._to_tell: list[_Note] = []
        self.waits = waits_of(connection.dialect)
        self._connection = connection
        self._listeners = {
            "savepoint": self._begin_savepoint,
            "release_savepoint": self._release_savepoint,
            "rollback_savepoint": self._roll_back_to_savepoint,
            "rollback": self._roll_back,
            "commit": self._commit,
        }
        for event, listener in self._listeners.items():
            sa.event.listen(connection, event, listener)
        connection.execution_options(**{_NOTED: self})

    def add(self, hook: Hook, scope: Scope | None) -> None:
        """Note that the hook has to be told of this scope."""
        self._levels[-1].append((hook, scope))

    def end(self) -> None:
        """Leave the connection as it was."""
        for event, listener in self._listeners.items():
            sa.event.remove(self._connection, event, listener)
        self._connection.execution_options(**{_NOTED: None})

    @property
    def has_committed(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._to_tell)

    def close(self) -> None:
        """Give the connection back to its pool."""
        self._connection.close()

    def take(self) -> list[_Note]:
        """Return what was noted and committed, which is then in the caller's hands."""
        taken, self._to_tell = self._to_tell, []
        return taken

    def _begin_savepoint(self, *_: Any) -> None:
        self._levels.append([])

    def _release_savepoint(self, *_: Any) -> None:
        if len(self._levels) > 1:
            released = self._levels.pop()
            self._levels[-1] += released

    def _roll_back_to_savepoint(self, *_: Any) -> None:
        # The only one: then all of it was noted since a savepoint that was there before us.
        self._levels.pop()
        self._levels = self._levels or [[]]

    def _roll_back(self, *_: Any) -> None:
        self._levels = [[]]

    def _commit(self, *_: Any) -> None:
        if not self._connection.invalidated:  # else it is not sent, whatever SQLAlchemy says first
            for level in self._levels:
                self._to_tell += level
        self._levels = [[]]


class _SessionEnd:
    """Tells what was noted on the connections of a session, whenever its transaction is over.

    SQLAlchemy says that only once it has given the connections back, and never if a cancellation,
    or a signal, cuts in there. So after a COMMIT they are given back here.
    """

    def __init__(self, session: Session) -> None:
        self._session = weakref.ref(session)
        self._noted: list[Noted] = []
        sa.event.listen(session, "after_commit", self._committed, insert=True)
        sa.event.listen(session, "after_transaction_end", self._end, insert=True)

    def is_of(self, session: Session) -> bool:
        return self._session() is session

    def add(self, noted: Noted) -> None:
        self._noted.append(noted)

    def _committed(self, _session: Session) -> None:
        if not any(noted.has_committed for noted in self._noted):
            return  # it was a savepoint that was released
        try:
            self._noted[0].waits.to_its_end(self._give_back)
        finally:
            self._tell()

    def _give_back(self) -> None:
        for noted in self._noted:
            noted.close()

    def _end(self, _session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:  # the root's, which has just given its connections back
            self._tell()

    def _tell(self) -> None:
        ended, self._noted = self._noted, []
        if ended:
            ended[0].waits.tell([note for noted in ended for note in noted.take()])


def noted_in(connection: sa.Connection) -> Noted | None:
    """Return the notes of this connection; None: nobody has begun any."""
    noted: Noted | None = connection.get_execution_options().get(_NOTED)
    return noted


def note_at(session: Session, connection: sa.Connection) -> Noted:
    """Return the notes of a connection of this session, which are told when it is over."""
    noted = noted_in(connection)
    if noted is None:
        noted = Noted(connection)
        end = session.info.get(_NOTED)
        if end is None or not end.is_of(session):  # a copy of another one's info
            end = session.info[_NOTED] = _SessionEnd(session)
        end.add(noted)
    return noted
