from django.db import migrations


class Migration(migrations.Migration):
    """Apart from the one before, which writes rows: PostgreSQL alters no table with rows that it has yet to check."""

    dependencies = [("hospital", "0011_invitations")]

    operations = [migrations.DeleteModel("FirstPassword")]
