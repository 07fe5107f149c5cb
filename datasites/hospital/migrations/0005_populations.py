"""Budgets belong to populations. Every line of an older ledger is kept, under the population of its dataset's name."""

from __future__ import annotations

from typing import Any

import django.db.models.deletion
from django.db import migrations, models


def name_populations(apps: Any, schema_editor: Any) -> None:
    """Make a population of each dataset that was split; its caps are opened from datasite.toml later."""
    population, split = apps.get_model("hospital", "Population"), apps.get_model("hospital", "Split")
    for old in split.objects.all():
        population.objects.create(name=old.dataset, split_key=bytes(old.salt), fraction=old.fraction)


class Migration(migrations.Migration):
    dependencies = [("hospital", "0004_rejoin_and_abstention")]

    operations = [
        migrations.CreateModel(
            name="Population",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=64, unique=True)),
                ("split_key", models.BinaryField()),
                ("fraction", models.FloatField()),
                ("order", models.PositiveIntegerField(null=True)),
                ("identity", models.CharField(blank=True, max_length=190)),
                ("both_sides", models.BooleanField(default=False)),
                ("at", models.DateTimeField(auto_now_add=True)),
            ],
        ),
        migrations.CreateModel(
            name="BudgetFact",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "what",
                    models.CharField(
                        choices=[
                            ("opened", "opened"),
                            ("narrowed", "narrowed"),
                            ("widened", "widened"),
                            ("delta_accepted", "delta_accepted"),
                        ],
                        max_length=14,
                    ),
                ),
                ("epsilon", models.FloatField(default=0)),
                ("delta", models.FloatField()),
                ("entered_by", models.CharField(blank=True, max_length=190)),
                ("confirmed_by", models.CharField(blank=True, max_length=190)),
                ("reason", models.TextField(blank=True)),
                ("at", models.DateTimeField(auto_now_add=True)),
                (
                    "population",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="facts", to="hospital.population"
                    ),
                ),
            ],
            options={"ordering": ["id"]},
        ),
        migrations.CreateModel(
            name="Proposal",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("kind", models.CharField(max_length=32)),
                ("subject", models.CharField(max_length=200)),
                ("terms", models.JSONField(default=dict)),
                ("reason", models.TextField()),
                ("proposed_by", models.CharField(max_length=190)),
                ("proposed_role", models.CharField(max_length=32)),
                ("proposed_at", models.DateTimeField(auto_now_add=True)),
                ("decided_by", models.CharField(blank=True, max_length=190)),
                ("decided_at", models.DateTimeField(null=True)),
                (
                    "outcome",
                    models.CharField(
                        blank=True, choices=[("confirmed", "confirmed"), ("withdrawn", "withdrawn")], max_length=9
                    ),
                ),
            ],
            options={
                "ordering": ["-proposed_at"],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("outcome", "")),
                        fields=("kind", "subject"),
                        name="one_open_proposal_of_a_kind",
                    )
                ],
            },
        ),
        migrations.RemoveConstraint(model_name="ledgerentry", name="one_entry_per_round"),
        migrations.RenameField(model_name="ledgerentry", old_name="dataset", new_name="population"),
        migrations.AddConstraint(
            model_name="ledgerentry",
            constraint=models.UniqueConstraint(
                fields=("population", "partition", "study_hash", "kind", "round"), name="one_entry_per_round"
            ),
        ),
        migrations.RunPython(name_populations, migrations.RunPython.noop),
        migrations.DeleteModel(name="Split"),
    ]
