"""Types of columns that mean the same on every database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeDecorator, TypeEngine

__all__ = ["MYSQL", "ExactText", "Instant", "Portable", "uuid_column"]

T = TypeVar("T")

MYSQL = ("mysql", "mariadb")
"""The names of SQLAlchemy's dialect for both."""

_BYTES_A_CHARACTER = 4  # at most, in UTF-8


class Portable(TypeDecorator[T]):
    """A type that means the same everywhere, whichever plain type a database keeps it in.

    Attributes:
        plain: The type of the column.
        plain_in_mysql: The same in MySQL and MariaDB.
    """

    plain: TypeEngine[Any]
    plain_in_mysql: TypeEngine[Any]

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        """Choose the plain type that the database has for it."""
        return dialect.type_descriptor(self.plain_in_mysql if dialect.name in MYSQL else self.plain)


class Instant(Portable[datetime]):
    """An aware UTC `datetime` at the surface; to the microsecond in the table.

    PostgreSQL keeps it with its time zone, MySQL and MariaDB as naive UTC, and SQLite as text of
    one width in UTC, so that comparing text compares instants.
    """

    impl = sa.DateTime
    cache_ok = True
    plain = sa.DateTime(timezone=True)
    plain_in_mysql = mysql.DATETIME(fsp=6)

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Store the instant in UTC."""
        if value is None:
            return None
        return value if dialect.name == "postgresql" else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, _: sa.Dialect) -> datetime | None:
        """Say that what was stored is UTC."""
        if value is None:
            return None
        if isinstance(value, str):  # MySQL hands a bound value back as text
            value = datetime.fromisoformat(value)
        instant: datetime = value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
        return instant


class ExactText(Portable[str]):
    """Text that is equal to itself alone: "a" is neither "A" nor "a " nor "ä".

    MySQL and MariaDB take these for the same by default, so there it is kept as bytes.

    Args:
        length: How many characters it has at most.
    """

    impl = sa.String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length  # SQLAlchemy tells its types apart by what they are made with
        self.plain = sa.String(length)
        self.plain_in_mysql = mysql.VARBINARY(length * _BYTES_A_CHARACTER)

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> Any:
        """Encode it where bytes are kept."""
        return value.encode() if value is not None and dialect.name in MYSQL else value

    def process_result_value(self, value: Any, _: sa.Dialect) -> str | None:
        """Decode it again."""
        return value.decode() if isinstance(value, bytes) else value


def uuid_column() -> TypeEngine[Any]:
    """Return a column of UUIDs.

    In MySQL and MariaDB as 32 characters: SQLAlchemy has MariaDB's own type under the URL
    `mariadb://` alone, and one table has to serve those who write `mysql://`, too.
    """
    return sa.Uuid().with_variant(sa.Uuid(native_uuid=False), *MYSQL)
