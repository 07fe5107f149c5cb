from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("hospital", "0006_owed")]

    operations = [
        migrations.AddField(model_name="case", name="listed_as", field=models.CharField(blank=True, max_length=32)),
    ]
