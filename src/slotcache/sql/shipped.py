"""The shipped tables in a database, where others may have tables of the same names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable

__all__ = ["create_missing", "ddl_of"]


def ddl_of(tables: Sequence[sa.Table], engine: sa.Engine) -> str:
    """Return the SQL that makes these tables, in the schemas that the engine puts them into."""
    statements: list[sa.ExecutableDDLElement] = []
    for table in tables:
        statements += [CreateTable(table), *map(CreateIndex, _indexes(table))]
    schemas = engine.get_execution_options().get("schema_translate_map")
    options: dict[str, Any] = {"dialect": engine.dialect}
    if schemas:
        options |= {"schema_translate_map": schemas, "render_schema_translate": True}
    return "".join(f"{str(each.compile(**options)).strip()};\n\n" for each in statements)


def create_missing(connection: sa.Connection, tables: Sequence[sa.Table]) -> None:
    """Create those of these tables that are not there; nobody else is at it meanwhile.

    Raises:
        ValueError: One of that name is there, and is somebody else's; nothing was created.
    """
    inspector = sa.inspect(connection)
    missing = []
    for table in tables:
        if inspector.has_table(table.name, schema=connection.schema_for_object(table)):
            _check_columns(connection, table)
            _check_references(connection, inspector, table)
        else:
            missing.append(table)
    for table in missing:
        table.create(connection, checkfirst=False)


def _check_columns(connection: sa.Connection, table: sa.Table) -> None:
    everything: sa.Select[Any] = (
        sa.select(sa.literal_column("*")).select_from(table).where(sa.false())
    )
    there = {name.lower() for name in connection.execute(everything).keys()}  # noqa: SIM118
    lacking = [column for column in table.columns if column.name.lower() not in there]
    if not lacking:
        return
    advice = _advice_on(table)
    if all(column.nullable for column in lacking):
        advice = f"if slotcache made it, run {_addition(connection, table, lacking)}; else {advice}"
    raise ValueError(
        f"nothing was created: there is a table {table.fullname!r} already, which has no column "
        f"{', '.join(column.name for column in lacking)}: {advice}"
    )


def _check_references(connection: sa.Connection, inspector: sa.Inspector, table: sa.Table) -> None:
    """Check that it references what it would if it were made now, or nothing at all."""
    own_schema = connection.schema_for_object(table)
    found = inspector.get_foreign_keys(table.name, schema=own_schema) if table.foreign_keys else []
    for key in table.foreign_keys:
        column, target = key.parent.name, key.column.table
        wanted = _place(inspector, connection.schema_for_object(target), target.name)
        there = [
            _place(inspector, each["referred_schema"], each["referred_table"])
            for each in found
            if [name.lower() for name in each["constrained_columns"]] == [column]
        ]
        if there and wanted not in there:
            raise ValueError(
                f"nothing was created: there is a table {table.fullname!r} already, and its "
                f"{column} references {there[0]}, not {wanted}: {_advice_on(table)}"
            )


def _place(inspector: sa.Inspector, schema: str | None, name: str) -> str:
    """A table's full name, in the spelling that all databases take for the same."""
    return f"{schema or inspector.default_schema_name}.{name}".lower()


def _addition(connection: sa.Connection, table: sa.Table, columns: Sequence[sa.Column[Any]]) -> str:
    quoting = connection.dialect.identifier_preparer
    schema = connection.schema_for_object(table)
    name = f"{quoting.quote_schema(schema)}." if schema else ""
    name += quoting.quote(table.name)
    added = (str(CreateColumn(each).compile(dialect=connection.dialect)) for each in columns)
    return "; ".join(f"ALTER TABLE {name} ADD COLUMN {each.strip()}" for each in added)


def _advice_on(table: sa.Table) -> str:
    if table.name == "slots":
        return "map a table of yours with SqlSlots(engine, slots=..., columns={...})"
    return "make these holds a table of another name with slotcache.sql.HoldMixin"


def _indexes(table: sa.Table) -> list[sa.Index]:
    return sorted(table.indexes, key=lambda index: str(index.name))
