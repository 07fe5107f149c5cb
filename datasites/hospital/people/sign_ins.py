"""Signing in, failed attempts and signing out, as the audit log records them.

Claim: whatever strangers send, the log gets of each person, and of all names together that nobody here has, one record
an hour of each kind of failure at most, and one more when somebody signs in. Each failure is counted in one of them:
that of the first is written at once, those that follow are counted in the database, and are written with the next one
after an hour or when anybody signs in, so that whoever signs in to read the log finds all of them there. Names that
nobody has are not kept, since people type passwords there; for a lock-out a keyed digest stands for them. Assumes the
newest database; a kill between a record and its commit counts the same failures once more. Not claimed: on the command
line nothing is counted, since whoever has the shell has the database.
"""

from __future__ import annotations

import datetime
from typing import Literal

from django.contrib.auth import get_user_model
from django.db import transaction
from django.utils import timezone

from datasites.hospital.models import FailedSignIns
from datasites.hospital.site import Site

Failure = Literal["sign_in_failed", "confirmation_failed", "locked_out"]
#: Between two records of one kind of failure, at least.
APART = datetime.timedelta(hours=1)


def failed(site: Site, kind: Failure, name: str) -> None:
    """Count a failure of somebody who gave this name, and write it down unless one was just now."""
    person = name if get_user_model().objects.filter(username=name).exists() else ""
    with transaction.atomic():
        row, _ = FailedSignIns.objects.select_for_update().get_or_create(kind=kind, person=person)
        row.times += 1
        now = timezone.now()
        if row.logged_at is None or not datetime.timedelta(0) <= now - row.logged_at < APART:
            _write(site, row, now)
        row.save()


def signed_in(site: Site, name: str, **by: str) -> None:
    """Write down that somebody has signed in, after all failures that were counted until now."""
    with transaction.atomic():
        for row in FailedSignIns.objects.select_for_update().filter(times__gt=0):
            _write(site, row, timezone.now())
            row.save()
    site.audit.append("signed_in", person=name, **by)


def signed_out(site: Site, name: str) -> None:
    """Write down that somebody has signed out."""
    site.audit.append("signed_out", person=name)


def _write(site: Site, row: FailedSignIns, now: datetime.datetime) -> None:
    site.audit.append(row.kind, person=row.person, times=row.times)
    row.times, row.logged_at = 0, now
