from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("hospital", "0003_sign_in")]

    operations = [
        migrations.AddField(model_name="case", name="rejoins", field=models.BooleanField(default=False)),
        migrations.AddField(model_name="round", name="abstention", field=models.JSONField(default=dict)),
    ]
