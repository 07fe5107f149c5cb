"""Codes of second factors, as an app shows them."""

from __future__ import annotations

import time

import pytest
from django.utils import timezone
from django_otp.oath import TOTP
from django_otp.plugins.otp_totp.models import TOTPDevice

from datasites.hospital.people import enrolment
from datasites.hospital.people.accounts import Actor
from datasites.hospital.site import Site

_now, _timezone_now = time.time, timezone.now


def code_of(name: str, *, confirmed: bool = True) -> str:
    """The code that is shown now."""
    device = TOTPDevice.objects.get(user__username=name, confirmed=confirmed)
    totp = TOTP(device.bin_key)
    totp.time = time.time()
    return f"{totp.token():06d}"


def enrolled(site: Site, person: Actor) -> None:
    """Set somebody's second factor up."""
    enrolment.begin(person)
    enrolment.confirm(site, person, code_of(person.name, confirmed=False))


def later(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let so much time pass since the test began, for codes and for how long one has to wait."""
    import datetime

    patch.setattr(time, "time", lambda: _now() + seconds)
    patch.setattr(timezone, "now", lambda: _timezone_now() + datetime.timedelta(seconds=seconds))
