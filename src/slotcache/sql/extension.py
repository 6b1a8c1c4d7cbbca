"""SQLAlchemy's extension for asyncio; where that is not installed, nothing is an instance of these.

It cannot even be imported without greenlet, which the blocking half does without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    from sqlalchemy.ext.asyncio import (
        AsyncConnection,
        AsyncEngine,
        AsyncSession,
        async_scoped_session,
        async_sessionmaker,
        create_async_engine,
    )
except ImportError as error:
    _missing: ImportError | None = error
    if not TYPE_CHECKING:

        class _Nothing:
            """Of this there are no instances."""

        AsyncConnection = AsyncEngine = AsyncSession = _Nothing
        async_scoped_session = async_sessionmaker = create_async_engine = _Nothing
else:
    _missing = None

__all__ = [
    "AsyncConnection",
    "AsyncEngine",
    "AsyncSession",
    "async_scoped_session",
    "async_sessionmaker",
    "check_installed",
    "create_async_engine",
]


def check_installed() -> None:
    """Say what asyncio needs, if it is not there."""
    if _missing is not None:
        raise ImportError(
            "AsyncSqlSlots needs greenlet, and aiosqlite for SQLite: pip install 'slotcache[async]'"
        ) from _missing
