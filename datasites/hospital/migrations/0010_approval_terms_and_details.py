from django.db import migrations, models


class Migration(migrations.Migration):
    """Names in the code only: the columns go on being called `terms`."""

    dependencies = [("hospital", "0009_tell_revocations")]

    operations = [
        migrations.AlterField("case", "terms", models.JSONField(default=dict, db_column="terms")),
        migrations.RenameField("case", "terms", "approval_terms"),
        migrations.AlterField("proposal", "terms", models.JSONField(default=dict, db_column="terms")),
        migrations.RenameField("proposal", "terms", "details"),
    ]
