"""Setting up a second factor, and taking it off: each is in the audit log.

Claim: a secret counts only once a code of it was given by who has just shown who they are, by their password and by a
code of the one before it if there is one; nobody but another admin, or the shell, takes one off. It is shown while it
is set up, and never again.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from django.db import transaction
from django_otp.plugins.otp_totp.models import TOTPDevice

from datasites.hospital.people.accounts import Actor, PersonError, find, written_down
from datasites.hospital.people.second_factor import device_of, takes
from datasites.hospital.site import Site


@dataclass(frozen=True)
class NewSecret:
    """A second factor that is being set up: its secret, for the person's eyes only, as text and as a picture."""

    secret: str = field(repr=False)
    address: str = field(repr=False)

    def picture(self) -> str:
        """Return a QR code as SVG, which is dark on light in every theme and as large as its place."""
        import segno  # which few commands need

        code = segno.make(self.address, micro=False, error="m")
        return str(code.svg_inline(border=4, dark="#000", light="#fff", omitsize=True))


def begin(person: Actor) -> NewSecret:
    """Make a new secret for somebody who has just shown who they are; the old one counts until `confirm`."""
    with transaction.atomic():
        TOTPDevice.objects.filter(user_id=person.pk, confirmed=False).delete()
        device = TOTPDevice.objects.create(user_id=person.pk, name="totp", confirmed=False)
    return enrolment(device)


def enrolment(device: TOTPDevice) -> NewSecret:
    """Return what a person puts into their app."""
    secret = base64.b32encode(device.bin_key).decode().rstrip("=")
    return NewSecret(" ".join(secret[i : i + 4] for i in range(0, len(secret), 4)), device.config_url)


def confirm(site: Site, person: Actor, code: str) -> int:
    """Make the secret count that `begin` made, once its first code shows that it has arrived; returns its number.

    Raises `PersonError`. The one before it counts no longer.
    """
    device = device_of(person, confirmed=False)
    if device is None:
        raise PersonError(f"person {person.name}: has no second factor to confirm; begin with a new secret")
    if not takes(device, code):
        raise PersonError(
            f"person {person.name}: the code is wrong, or tried too soon after a wrong one; wait for the next "
            "code, and compare the clocks if it is wrong, too"
        )
    with written_down(site, "second_factor_set_up", person=person.name):
        TOTPDevice.objects.filter(user_id=person.pk).exclude(pk=device.pk).delete()
        TOTPDevice.objects.filter(pk=device.pk).update(confirmed=True)
    return int(device.pk)


def require_code(person: Actor, code: str) -> None:
    """Raise `PersonError` unless this is a new code of the person's second factor, if they have one."""
    device = device_of(person)
    if device is not None and not takes(device, code):
        raise PersonError("The code of your present second factor is wrong or was used before. Wait for the next one.")


def reset(site: Site, name: str, by: str = "") -> None:
    """Take off the second factor of somebody who has lost it; by: the admin, or "" for the command line.

    Raises `PersonError` for one's own, for a stranger, and for somebody who has none.
    """
    if name == by:
        raise PersonError(f"person {by}: nobody takes off their own second factor; ask another admin")
    user = find(name)
    with written_down(site, "second_factor_reset", person=name, by=by or "command line"):
        if not TOTPDevice.objects.filter(user_id=user.pk).delete()[0]:
            raise PersonError(f"person {name}: has no second factor")
