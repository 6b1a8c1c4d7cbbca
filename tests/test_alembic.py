"""Alembic on the user's metadata: the migration that it makes is right, and there is no second."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate.api import AutogenContext
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from slotcache import HoldManager
from slotcache.sql import HoldMixin, SqlSlots, render_item
from slotcache.sql.columns import ExactText

from .support.sql import ON_SERVERS

on_each = pytest.mark.parametrize("kind", ["sqlite", *ON_SERVERS])

ENVIRONMENT = """
from alembic import context
from slotcache.sql import render_item

given = context.config.attributes
with given["engine"].connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=given["metadata"],
        render_item=render_item,
    )
    with context.begin_transaction():
        context.run_migrations()
"""

TEMPLATE = '''"""${message}"""
from alembic import op
import sqlalchemy as sa
${imports}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}

def upgrade():
    ${upgrades}

def downgrade():
    ${downgrades}
'''


class Base(DeclarativeBase):
    pass


class Window(Base):
    __tablename__ = "windows"
    __table_args__ = (
        sa.CheckConstraint("0 <= remaining AND remaining <= capacity", name="windows_places"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    day: Mapped[str] = mapped_column(sa.String(20))
    capacity: Mapped[int]
    remaining: Mapped[int]


class WindowHold(HoldMixin, Base):
    __tablename__ = "window_holds"

    slot_id = mapped_column(sa.ForeignKey(Window.id))


TABLES = ("windows", "window_holds", "window_holds_keys")
OPTIONS: Mapping[str, Any] = {
    "slots": Window,
    "columns": {"slot_id": "id", "scope": "day"},
    "holds": WindowHold,
}


@pytest.fixture
def new_engine(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[str], sa.Engine]]:
    """Makes engines on empty databases."""
    made: list[sa.Engine] = []

    def new(name: str) -> sa.Engine:
        if kind == "sqlite":
            made.append(sa.create_engine(f"sqlite:///{tmp_path / name}.db"))
        else:
            server = request.getfixturevalue(f"{kind}_server")
            made.append(sa.create_engine(server.new_database()))
        return made[-1]

    yield new
    for engine in made:
        engine.dispose()
        if kind != "sqlite":
            url = engine.url.render_as_string(hide_password=False)
            request.getfixturevalue(f"{kind}_server").drop_database(url)


@on_each
def test_the_migration_makes_what_create_all_makes_and_there_is_no_second(
    kind: str, new_engine: Callable[[str], sa.Engine], tmp_path: Path
) -> None:
    migrated, created = new_engine("migrated"), new_engine("created")
    config = project(tmp_path, migrated)

    command.revision(config, "holds", autogenerate=True)
    command.upgrade(config, "head")
    Base.metadata.create_all(created)

    (migration,) = (tmp_path / "migrations" / "versions").glob("*.py")
    assert "slotcache" not in migration.read_text()
    command.check(config)  # raises if there is anything left to migrate
    assert described(migrated) == described(created)
    check_it_books(migrated)


@on_each
def test_ddl_in_a_migration_by_hand_will_do_for_the_shipped_tables(
    kind: str, new_engine: Callable[[str], sa.Engine], tmp_path: Path
) -> None:
    migrated, created = new_engine("migrated"), new_engine("created")
    config = project(tmp_path, migrated)
    for engine in (migrated, created):
        Window.metadata.create_all(engine, [Base.metadata.tables["windows"]])
    shipped = {"slots": Window, "columns": OPTIONS["columns"]}
    with SqlSlots(migrated, **shipped) as slots:
        statements = slots.ddl().split(";\n\n")
    with SqlSlots(created, **shipped) as slots:
        slots.create_tables()

    (tmp_path / "migrations" / "versions" / "one.py").write_text(
        "from alembic import op\n\nrevision, down_revision = 'one', None\n\n"
        f"def upgrade():\n    for each in {list(filter(None, statements))!r}:\n"
        "        op.execute(each)\n"
    )
    command.upgrade(config, "head")

    tables = "slot_holds", "slot_hold_keys"
    assert described(migrated, tables) == described(created, tables)
    check_it_books(migrated, **shipped)


@pytest.mark.parametrize("prefix", ["sa.", "sqlalchemy.", None])
def test_types_are_written_with_the_prefix_that_is_asked_for(prefix: str | None) -> None:
    context = writing_with(prefix)

    text = render_item("type", ExactText(7), context)

    kept = "String(length=7).with_variant(mysql.VARBINARY(length=28), 'mysql', 'mariadb')"
    assert text == f"{prefix or ''}{kept}"
    assert context.imports == {"from sqlalchemy.dialects import mysql"}


def test_what_is_not_slotcaches_is_left_to_alembic() -> None:
    context = writing_with("sa.")

    assert render_item("type", sa.Integer(), context) is False
    assert render_item("column", WindowHold.__table__.c.owner, context) is False
    assert context.imports == set()


def writing_with(prefix: str | None) -> AutogenContext:
    options = {"sqlalchemy_module_prefix": prefix, "target_metadata": Base.metadata}
    return AutogenContext(MigrationContext.configure(dialect_name="sqlite", opts=options))


def project(folder: Path, engine: sa.Engine) -> Config:
    """Write what `alembic init` does, but for the line that is ours."""
    scripts = folder / "migrations"
    (scripts / "versions").mkdir(parents=True)
    (scripts / "env.py").write_text(ENVIRONMENT)
    (scripts / "script.py.mako").write_text(TEMPLATE)
    settings = folder / "alembic.ini"
    settings.write_text(f"[alembic]\nscript_location = {scripts}\npath_separator = os\n")
    config = Config(settings)
    config.attributes.update(engine=engine, metadata=Base.metadata)
    return config


def described(engine: sa.Engine, tables: Sequence[str] = TABLES) -> dict[str, Any]:
    """What the database says of these tables, as text."""
    inspector = sa.inspect(engine)
    return {table: said_of(inspector, table) for table in tables}


def said_of(inspector: sa.Inspector, table: str) -> dict[str, Any]:
    columns = inspector.get_columns(table)
    indexes = inspector.get_indexes(table)
    checks = inspector.get_check_constraints(table)
    assert indexes or table == "windows"
    assert checks or table.endswith("_keys")
    return {
        "columns": [f"{each['name']} {each['type']!r} {each['nullable']}" for each in columns],
        "key": inspector.get_pk_constraint(table),
        "references": inspector.get_foreign_keys(table),
        "checks": sorted(f"{each['name']}: {each['sqltext']}" for each in checks),
        "indexes": {each["name"]: parts_of(each) for each in indexes},
    }


def parts_of(index: Any) -> list[str]:
    where = {name: str(value) for name, value in index.get("dialect_options", {}).items()}
    return [str(index["column_names"]), str(index["unique"]), str(sorted(where.items()))]


def check_it_books(engine: sa.Engine, **options: Any) -> None:
    with SqlSlots(engine, **(options or OPTIONS)) as slots:
        slots.create_tables()  # finds nothing to do
        slots.add([(1, 4)], scope="Monday")
        holds = HoldManager(slots, on_change=None)
        hold = holds.create(1, owner="Änn", idempotency_key="k")

        assert holds.create(1, owner="Änn", idempotency_key="k").replayed
        holds.confirm(hold.id)
        assert holds.find(owner="Änn")[0].expires_at == hold.expires_at
        assert [tuple(row) for row in slots.load("Monday").availability] == [(1, 4, 3)]
