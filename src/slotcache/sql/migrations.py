"""What a migration tool is told about the types of our columns."""

from __future__ import annotations

from typing import Any, Literal

from slotcache.sql.columns import MYSQL, Portable

__all__ = ["render_item"]


def render_item(kind: str, item: Any, autogen_context: Any) -> str | Literal[False]:
    """Write the types of slotcache's columns as plain SQLAlchemy types, for Alembic.

    Give it to `context.configure(..., render_item=render_item)` in your `env.py`. A migration that
    Alembic then makes does not import slotcache, and can be run long after it has changed. If you
    have such a function already, let it return what this one returns, unless that is False.

    Args:
        kind: What is to be written: "type" is of interest here.
        item: The type.
        autogen_context: Alembic's; the import that the text needs is added to it.

    Returns:
        The text; False: it is nothing of ours, so Alembic writes it.
    """
    if kind != "type" or not isinstance(item, Portable):
        return False
    autogen_context.imports.add("from sqlalchemy.dialects import mysql")
    prefix = autogen_context.opts["sqlalchemy_module_prefix"] or ""
    names = ", ".join(map(repr, MYSQL))
    return f"{prefix}{item.plain!r}.with_variant(mysql.{item.plain_in_mysql!r}, {names})"
