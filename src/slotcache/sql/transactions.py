"""Transactions of users: what they hand in, the connection in it, and whether it can be joined."""

from __future__ import annotations

from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session

from slotcache.sql.extension import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
)
from slotcache.sql.noted import Noted, note_at, noted_in
from slotcache.sql.tables import SlotColumns

__all__ = [
    "Transactional",
    "check_one_phase",
    "check_tells",
    "connection_of",
    "notes_of",
    "transaction_of",
]

Transactional: TypeAlias = Session | sa.Connection
"""What the user commits."""

_BLOCKING = (Session, sa.Connection)
_ASYNC = (AsyncSession, AsyncConnection)

_WAY_OUT = (
    "write `with clear_after(connection):` (of an AsyncConnection `async with async_clear_after`) "
    "around it, whose end commits and calls the hook"
)
_TWO_PHASES = "commits in two phases, and it may be somebody else who sends the COMMIT: "


def transaction_of(transaction: object, *, on_asyncio: bool = False) -> Transactional:
    """Return the session or connection that this is, or wraps.

    Raises:
        TypeError: It is neither, or of the other world.
        ValueError: It is a connection that nobody has opened.
    """
    found = transaction
    if isinstance(transaction, scoped_session | async_scoped_session):
        found = transaction()
    if isinstance(found, _ASYNC if on_asyncio else _BLOCKING):
        return _unwrapped(found)
    hint = ""
    if isinstance(found, sa.Engine | AsyncEngine):
        hint = ": the manager itself has transactions of its own"
    elif isinstance(found, _ASYNC):
        hint = ": that is for asyncio, as AsyncHoldManager and async_clear_on_commit are"
    elif isinstance(found, _BLOCKING):
        hint = ": that blocks, as HoldManager and clear_on_commit do"
    kinds = "an AsyncSession or an AsyncConnection" if on_asyncio else "a Session or a Connection"
    raise TypeError(f"{kinds} was expected, not {found!r:.80}{hint}")


def _unwrapped(found: Any) -> Transactional:
    if isinstance(found, AsyncSession):
        return found.sync_session
    if not isinstance(found, AsyncConnection):
        given: Transactional = found
        return given
    if found.sync_connection is None:
        raise ValueError("this connection is not open: write `async with` or `await` before it")
    return found.sync_connection


def connection_of(transaction: Transactional, slots: SlotColumns | None) -> sa.Connection:
    """Return the connection on which it reaches the slots; a transaction is begun by that."""
    if isinstance(transaction, sa.Connection):
        return transaction
    return transaction.connection(bind_arguments=_arguments(slots))


def notes_of(transaction: Transactional, connection: sa.Connection) -> Noted:
    """Return the notes of its connection, which was checked before."""
    if isinstance(transaction, Session):
        return note_at(transaction, connection)
    noted = noted_in(connection)
    assert noted is not None, "check_tells refuses it"
    return noted


def check_tells(transaction: Transactional, slots: SlotColumns | None) -> None:
    """Refuse what does not tell when it has been committed, saying what to do instead.

    Raises:
        ValueError: It commits in two phases, or is a connection, or bound to one, that is not
            inside of `clear_after`.
    """
    bind: Any = transaction
    if isinstance(transaction, Session):
        if transaction.twophase:
            raise ValueError(f"this session {_TWO_PHASES}use one without twophase=True")
        try:
            bind = transaction.get_bind(**_arguments(slots))
        except sa.exc.UnboundExecutionError as error:
            raise ValueError(
                "this session has no engine but for other tables: make it with bind=engine, too"
            ) from error
    if not isinstance(bind, sa.Connection):
        return
    check_one_phase(bind)
    if noted_in(bind) is None:
        what = "a bare connection" if bind is transaction else "a session bound to a connection"
        raise ValueError(
            f"{what} does not tell when its transaction has been committed: {_WAY_OUT}"
        )


def check_one_phase(connection: sa.Connection) -> None:
    """Refuse a connection that commits in two phases."""
    if isinstance(connection.get_transaction(), sa.TwoPhaseTransaction):
        raise ValueError(f"this connection {_TWO_PHASES}begin with connection.begin()")


def _arguments(slots: SlotColumns | None) -> dict[str, Any]:
    # A statement that writes: some sessions send all others to a copy that lags.
    return {} if slots is None else {"clause": sa.update(slots.source)}
