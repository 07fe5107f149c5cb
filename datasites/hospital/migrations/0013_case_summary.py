from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("hospital", "0012_no_first_passwords")]

    operations = [
        migrations.CreateModel(
            name="CaseSummary",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("title", models.CharField(max_length=200)),
                ("organisation", models.CharField(blank=True, max_length=120)),
                ("purpose", models.CharField(blank=True, max_length=64)),
                ("epsilon", models.FloatField(null=True)),
                ("denied_by", models.JSONField(default=list)),
                ("basis", models.CharField(blank=True, max_length=64)),
                ("at", models.DateTimeField(auto_now=True)),
                (
                    "case",
                    models.OneToOneField(on_delete=models.CASCADE, related_name="summary", to="hospital.case"),
                ),
            ],
        ),
    ]
