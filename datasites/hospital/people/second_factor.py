"""The second factor of people who sign in with a password: a time-based code (TOTP, RFC 6238), by django-otp.

Claim: who has set one up signs in, and acts in a command, only with a code of it that was not used before; wrong codes
count towards the same lock-out as wrong passwords, and make the device wait ever longer. The answer to a wrong code is
that to a wrong password. Where `[console] second_factor = "required"`, who signs in with a password does nothing before
they have set one up. Only another admin, or the shell, takes it off, and the log says so. Who signs in at the
organisation's provider has the provider's. Assumes the newest database, which holds the secrets, and clocks that agree
within half a minute. A decision in the console asks for the password alone: its session began with a code.
"""

from __future__ import annotations

import re
from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User
from django.db import transaction
from django_otp.plugins.otp_totp.models import TOTPDevice

from datasites.hospital.database import this_home

_CODE = re.compile(r"[0-9]{6}\Z", re.ASCII)


class PasswordAndCode(ModelBackend):
    """Django's check of name and password, and of the code where the person has a second factor."""

    def authenticate(
        self, request: Any, username: str | None = None, password: str | None = None, **others: Any
    ) -> User | None:
        """Return the person, or None for a wrong password and for a wrong code (`token`) alike."""
        token = str(others.pop("token", ""))
        user = super().authenticate(request, username=username, password=password, **others)
        if user is None or _confirms(request, user):
            return user
        device = device_of(user)
        return user if device is None or takes(device, token) else None


def device_of(user: Any, *, confirmed: bool = True) -> TOTPDevice | None:
    """Return a person's second factor, or that which they are setting up."""
    device: TOTPDevice | None = TOTPDevice.objects.filter(user_id=user.pk, confirmed=confirmed).order_by("-pk").first()
    return device


def has_one(name: str) -> bool:
    """Say whether whoever has this name is asked for a code."""
    return bool(TOTPDevice.objects.filter(user__username=name, confirmed=True).exists())


def with_one() -> frozenset[str]:
    """Return the names of all who are asked for a code."""
    return frozenset(TOTPDevice.objects.filter(confirmed=True).values_list("user__username", flat=True))


def is_required() -> bool:
    """Say whether datasite.toml demands one of everybody who signs in with a password."""
    return this_home().settings.console.second_factor == "required"


def lacks_one(user: Any) -> bool:
    """Say whether datasite.toml demands one of this person, who has none."""
    return is_required() and device_of(user) is None


def takes(device: TOTPDevice, code: str) -> bool:
    """Say whether a code is right and was not used before, which uses it; django-otp makes the next one wait if not."""
    if not _CODE.match(code.strip()):
        return False
    with transaction.atomic():
        held = TOTPDevice.objects.select_for_update().filter(pk=device.pk).first()
        return bool(held is not None and held.verify_token(code.strip()))


def _confirms(request: Any, user: Any) -> bool:
    """Say whether the person is signed in, and only shows again who they are."""
    signed_in = getattr(request, "user", None)
    return bool(signed_in is not None and signed_in.is_authenticated and signed_in.pk == user.pk)
