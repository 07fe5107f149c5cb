import hashlib
import secrets

import django.db.models.deletion
from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.db import migrations, models
from django.utils import timezone


def invite_anew(apps, schema_editor):
    """A password that somebody else had set and that was never changed counts no longer: its person is invited anew.

    The invitation of each is over already, so that somebody who may do so issues a link (`datasites person invite`).
    """
    for first in apps.get_model("hospital", "FirstPassword").objects.select_related("person"):
        first.person.password = make_password(None)
        first.person.save(update_fields=["password"])
        digest = hashlib.sha256(secrets.token_bytes(32)).hexdigest()
        invitations = apps.get_model("hospital", "Invitation").objects
        invitations.create(person_id=first.person_id, digest=digest, ends_at=timezone.now())


class Migration(migrations.Migration):
    dependencies = [
        ("hospital", "0010_approval_terms_and_details"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Invitation",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("digest", models.CharField(max_length=64, unique=True)),
                ("ends_at", models.DateTimeField()),
                (
                    "person",
                    models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, to=settings.AUTH_USER_MODEL),
                ),
            ],
        ),
        migrations.RunPython(invite_anew, migrations.RunPython.noop),
    ]
