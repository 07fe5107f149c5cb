from django.db import migrations


def tell_again(apps, schema_editor):
    """Earlier versions did not tell researchers of a revocation."""
    apps.get_model("hospital", "Case").objects.filter(state="revoked").update(recorded_in_syft=False)


class Migration(migrations.Migration):
    dependencies = [("hospital", "0008_sign_ins")]

    operations = [migrations.RunPython(tell_again, migrations.RunPython.noop)]
