from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("hospital", "0005_populations")]

    operations = [
        migrations.AddField(model_name="case", name="owed", field=models.JSONField(default=dict)),
    ]
