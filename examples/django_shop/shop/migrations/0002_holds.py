"""slotcache's two tables: in slotcache's words, and known to Django."""

import django.db.models.deletion
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def create_tables(_apps: object, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """On Django's connection, in the migration's transaction; slotcache opens none for this."""
    from shop.places import places

    ddl = places().slots.ddl()
    for statement in schema_editor.connection.ops.prepare_sql_script(ddl):
        schema_editor.execute(statement, params=None)


def drop_tables(_apps: object, schema_editor: BaseDatabaseSchemaEditor) -> None:
    for table in ("slot_hold_keys", "slot_holds"):
        schema_editor.execute(f"DROP TABLE {table}")


class Migration(migrations.Migration):
    dependencies = (("shop", "0001_initial"),)
    operations = (
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunPython(create_tables, drop_tables)],
            state_operations=[
                migrations.CreateModel(
                    "Hold",
                    fields=[
                        ("id", models.UUIDField(primary_key=True, serialize=False)),
                        ("quantity", models.IntegerField()),
                        ("state", models.CharField(max_length=16)),
                        ("created_at", models.DateTimeField()),
                        ("expires_at", models.DateTimeField()),
                        ("ended_at", models.DateTimeField(null=True)),
                        ("owner", models.CharField(max_length=255, null=True)),
                        ("reference", models.CharField(max_length=255, null=True)),
                        (
                            "window",
                            models.ForeignKey(
                                "shop.Window",
                                django.db.models.deletion.PROTECT,
                                db_column="slot_id",
                                db_index=False,
                                related_name="+",
                            ),
                        ),
                    ],
                    options={"db_table": "slot_holds"},
                ),
                migrations.CreateModel(
                    "HoldKey",
                    fields=[("hold_id", models.UUIDField(primary_key=True, serialize=False))],
                    options={"db_table": "slot_hold_keys"},
                ),
            ],
        ),
    )
