"""Clearing lists after transactions that are not slotcache's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import (
    InstanceState,
    ORMExecuteState,
    Session,
    UOWTransaction,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.sql.visitors import iterate

from slotcache.availability import Scope
from slotcache.hook import Hook, check_hook
from slotcache.protocols import AsyncInvalidationHook, InvalidationHook
from slotcache.sql.extension import (
    AsyncConnection,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from slotcache.sql.noted import Noted, noted_in
from slotcache.sql.slots import AsyncSqlSlots, SqlSlots
from slotcache.sql.tables import SlotColumns
from slotcache.sql.transactions import (
    Transactional,
    check_one_phase,
    check_tells,
    connection_of,
    notes_of,
    transaction_of,
)
from slotcache.sql.waits import in_greenlet

__all__ = [
    "async_clear_after",
    "async_clear_on_commit",
    "clear_after",
    "clear_on_commit",
    "clear_on_write",
]

_NO_HOOK = "give SlotAvailabilityService.clear_availability_cache, or what calls it"


@contextmanager
def clear_after(connection: sa.Connection) -> Iterator[sa.Connection]:
    """Commit what was done on a connection, then call the hooks of what was noted in there.

    Inside, `HoldManager.within(connection)` and `clear_on_commit(connection, ...)` work; so they do
    with a `Session` that is bound to the connection, as tests like it.

        with engine.connect() as connection, clear_after(connection):
            hold = holds.within(connection).create(7)
            connection.execute(orders.insert().values(hold_id=hold.id))

    An exception rolls back, and calls nothing. You may commit or roll back in between, too: what
    was committed is told at the end. The connection stays yours.

    Raises:
        TypeError: It is no connection.
        ValueError: It is in here already, or in a savepoint, or commits in two phases.
    """
    _check_is_free(connection)
    noted = Noted(connection)
    try:
        yield connection
        _commit(connection)
    except BaseException:
        with suppress(DBAPIError):
            connection.rollback()
        raise
    finally:
        try:
            noted.end()
        finally:
            noted.waits.tell(noted.take())


@asynccontextmanager
async def async_clear_after(connection: AsyncConnection) -> AsyncIterator[AsyncConnection]:
    """As `clear_after`, for `AsyncHoldManager` and `async_clear_on_commit`.

        async with engine.connect() as connection, async_clear_after(connection):
            hold = await holds.within(connection).create(7)
            await connection.execute(orders.insert().values(hold_id=hold.id))

    The hooks are awaited at its end.
    """
    if not isinstance(connection, AsyncConnection):
        raise TypeError(
            f"async_clear_after takes an AsyncConnection, not {connection!r:.80}: an AsyncSession "
            "needs none"
        )
    inner = transaction_of(connection, on_asyncio=True)
    assert isinstance(inner, sa.Connection)
    clearing = clear_after(inner)
    await in_greenlet(clearing.__enter__)
    try:
        yield connection
    except BaseException as error:
        await in_greenlet(clearing.__exit__, type(error), error, error.__traceback__)
        raise
    await in_greenlet(clearing.__exit__, None, None, None)


def clear_on_commit(
    transaction: Session | scoped_session[Session] | sa.Connection,
    hook: InvalidationHook,
    scope: Scope | None = None,
) -> None:
    """Call the hook when a transaction of yours has been committed: for what you wrote by yourself.

    It is called after the commit, with the connection back in the pool, once for each hook and
    scope; never after a rollback, nor if the savepoint is rolled back in which you said so. What it
    raises is logged, and goes no further (P8).

    Args:
        transaction: The session that is about to commit; or a connection inside of `clear_after`.
        hook: Called with the scope; usually `SlotAvailabilityService.clear_availability_cache`.
        scope: Whose list your write has changed; None: that of every scope.

    Raises:
        TypeError: The transaction or the hook is of another kind.
        ValueError: Nobody could tell when that transaction has been committed.
    """
    check_hook("hook", hook, otherwise=_NO_HOOK)
    _note(transaction_of(transaction), Hook(hook), scope)


async def async_clear_on_commit(
    transaction: AsyncSession | async_scoped_session[Any] | AsyncConnection,
    hook: InvalidationHook | AsyncInvalidationHook,
    scope: Scope | None = None,
) -> None:
    """As `clear_on_commit`. The hook is awaited by whoever awaits the commit."""
    check_hook("hook", hook, otherwise=_NO_HOOK, awaits=True)
    found = transaction_of(transaction, on_asyncio=True)
    await in_greenlet(_note, found, Hook(hook), scope)


def _note(transaction: Transactional, hook: Hook, scope: Scope | None) -> None:
    check_tells(transaction, None)
    notes_of(transaction, connection_of(transaction, None)).add(hook, scope)


def clear_on_write(
    sessions: type[Session]
    | Session
    | sessionmaker[Any]
    | scoped_session[Any]
    | type[AsyncSession]
    | AsyncSession
    | async_sessionmaker[Any],
    slots: SqlSlots | AsyncSqlSlots,
    hook: InvalidationHook | AsyncInvalidationHook,
) -> None:
    """Call the hook whenever sessions commit what they have written to the table of slots.

    Objects that were added, changed or deleted call it with their scope: with the old and the new
    one, if that has changed. An INSERT, UPDATE or DELETE that a session executes calls it with
    None, which clears every list; so does an object whose scope is not known without a query, or is
    generated by the database. Not noticed is what goes past the session: SQL as text, a CTE that
    writes, `lambda_stmt`, `session.connection()`, the old `bulk_*` methods, triggers. Use
    `clear_on_commit` for these.

    It is called as by `clear_on_commit`. Say this once for each class of sessions, at the start.

    Args:
        sessions: What makes the sessions: a `sessionmaker`, a subclass of `Session`, a
            `scoped_session`; or one session. On asyncio an `async_sessionmaker`, a subclass of
            `AsyncSession`, or one.
        slots: The table.
        hook: Called with the scope; usually `SlotAvailabilityService.clear_availability_cache`. It
            may be a coroutine function for sessions on asyncio alone.

    Raises:
        TypeError: An argument is of another kind.
    """
    if not isinstance(slots, SqlSlots | AsyncSqlSlots):
        raise TypeError(f"slots must be a SqlSlots or an AsyncSqlSlots, not {slots!r:.80}")
    inner = _inner_sessions(sessions)
    check_hook("hook", hook, otherwise=_NO_HOOK, awaits=inner is not sessions)
    writes = _Writes(slots._slots, Hook(hook))
    try:
        sa.event.listen(inner, "after_flush", writes.of_objects)
        sa.event.listen(inner, "do_orm_execute", writes.of_statement)
    except (AttributeError, sa.exc.ArgumentError, sa.exc.InvalidRequestError) as error:
        raise TypeError(
            f"sessions must be a sessionmaker, a class of sessions, or a session, not {sessions!r}"
        ) from error


def _inner_sessions(sessions: Any) -> Any:
    """Return the sessions that those of asyncio wrap, in a class of their own; others as they are.

    Else what is heard there would be heard of every `Session`.
    """
    if isinstance(sessions, AsyncSession):
        return sessions.sync_session
    if isinstance(sessions, async_sessionmaker):
        wrapped = sessions.kw.get("sync_session_class") or sessions.class_.sync_session_class
        inner = type("Session", (wrapped,), {})
        sessions.configure(sync_session_class=inner)
        return inner
    if isinstance(sessions, type) and issubclass(sessions, AsyncSession):
        if sessions is AsyncSession:
            raise TypeError("sessions: give an async_sessionmaker, or a subclass of AsyncSession")
        inner = type("Session", (sessions.sync_session_class,), {})
        sessions.sync_session_class = inner
        return inner
    return sessions


class _Writes:
    """Notices what sessions write to one table.

    Args:
        slots: Its columns.
        hook: What is told.
    """

    def __init__(self, slots: SlotColumns, hook: Hook) -> None:
        self._slots = slots
        self._hook = hook

    def of_objects(self, session: Session, flushed: UOWTransaction) -> None:
        """Note the scopes of what was flushed."""
        # The session's own lists lack what was deleted as an orphan, or set to an expression.
        for state, (is_deleted, is_only_listed) in list(flushed.states.items()):
            written = state.obj()
            if is_only_listed or written is None or not self._is_among(state.mapper.tables):
                continue
            is_new = written in session.new
            is_changed = bool(state.expired_attributes) or session.is_modified(written)
            if is_new or is_deleted or is_changed:
                self._note(session, self._scopes_of(state, is_there=not is_new))

    def of_statement(self, state: ORMExecuteState) -> None:
        """Note that anything may have been written."""
        if isinstance(state.statement, sa.UpdateBase):
            mapped = () if state.bind_mapper is None else state.bind_mapper.tables
            if self._is_among((*iterate(state.statement.table), *mapped)):
                self._note(state.session, {None})

    def _is_among(self, elements: Iterable[object]) -> bool:
        """Whether the table of slots is, perhaps as another object: of another metadata, say."""
        name = self._slots.table.fullname
        return any(isinstance(each, sa.Table) and each.fullname == name for each in elements)

    def _scopes_of(self, state: InstanceState[Any], *, is_there: bool) -> set[Scope | None]:
        """Return the scopes that it has, and that it had; None, which is all: nobody knows."""
        scope = self._slots.scope
        generated = scope is not None and scope.server_onupdate is not None
        if scope is None or generated or not state.mapper.columns.contains_column(scope):
            return {None}
        history = state.attrs[state.mapper.get_property_by_column(scope).key].history
        if is_there and not (history.unchanged or history.deleted):
            return {None}  # where it was before was never loaded
        scopes = {*(history.added or ()), *(history.unchanged or ()), *(history.deleted or ())}
        known = all(each is None or type(each) is self._slots.scope_type for each in scopes)
        return scopes if scopes and known else {None}  # it may be an expression

    def _note(self, session: Session, scopes: set[Scope | None]) -> None:
        check_tells(session, self._slots)
        notes = notes_of(session, connection_of(session, self._slots))
        for scope in scopes:
            notes.add(self._hook, scope)


def _commit(connection: sa.Connection) -> None:
    try:
        connection.commit()
    except BaseException:
        connection.invalidate()  # else it may go on, with the transaction still open in it
        raise


def _check_is_free(connection: object) -> None:
    if not isinstance(connection, sa.Connection):
        raise TypeError(
            f"clear_after takes a Connection, not {connection!r:.80}: a Session needs none"
        )
    if noted_in(connection) is not None:
        raise ValueError("this connection is inside of clear_after already, or is a session's")
    if connection.in_nested_transaction():
        raise ValueError("clear_after would commit around this savepoint: write it outside of it")
    check_one_phase(connection)
