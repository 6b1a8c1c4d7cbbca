"""The shop's own tables."""

import django.db.models.deletion
from django.db import migrations, models

ID = models.BigAutoField("ID", primary_key=True, auto_created=True, serialize=False)


class Migration(migrations.Migration):
    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            "Window",
            fields=[
                ("id", ID),
                ("depot", models.CharField(max_length=40, db_index=True)),
                ("starts_at", models.DateTimeField()),
                ("capacity", models.PositiveIntegerField()),
                ("remaining", models.PositiveIntegerField(editable=False)),
                ("open", models.BooleanField(default=True)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        name="shop_window_places",
                        condition=models.Q(remaining__lte=models.F("capacity")),
                    )
                ]
            },
        ),
        migrations.CreateModel(
            "Order",
            fields=[
                ("id", ID),
                ("payment", models.CharField(max_length=255, unique=True)),
                ("customer", models.CharField(max_length=255, db_index=True)),
                ("window", models.ForeignKey("shop.Window", django.db.models.deletion.PROTECT)),
                ("hold_id", models.UUIDField()),
                (
                    "state",
                    models.CharField(
                        max_length=16,
                        default="paid",
                        choices=[
                            ("paid", "paid, its place is being confirmed"),
                            ("sold", "sold"),
                            ("refund", "the place was gone: to be refunded"),
                            ("refunded", "refunded"),
                        ],
                    ),
                ),
            ],
        ),
    )
