"""How people get in: an admin, or the shell, enters them and hands over an invitation, with which they set a password.

Claim: nobody but who holds an invitation sets a password by it, and nobody else ever knows that password. An invitation
is a random code of 192 bits; of it only the SHA-256 is kept, neither audit log nor log holds any of it, and in the link
it stands after the #, which browsers send to no server. It is good for 72 hours, until a password was set by it, until
a newer one takes its place, and until its person is deactivated, whichever comes first; to look at it changes nothing.
Who is entered can't sign in before. A newer one leaves the password as it is until it is used: who remembers theirs
goes on. Assumes the newest database. Not claimed: that the person, and not who has issued or read the link, uses it;
the log says who issued it and when it was used, and its person's old password ends then, which they notice.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone

from datasites.hospital.audit.bindings import bind, person_content
from datasites.hospital.audit.entered import tell
from datasites.hospital.config import Home
from datasites.hospital.models import Invitation
from datasites.hospital.people.accounts import (
    FIRST_ADMIN,
    Person,
    PersonError,
    add_person,
    again_by_the_shell,
    find,
    role_of,
    set_password,
    written_down,
)
from datasites.hospital.site import Site
from datasites.study.identity import identity_key

GOOD_FOR = datetime.timedelta(hours=72)
#: Where the console asks for the password; what follows the # is not sent to it.
PAGE = "invitation/"
_NOT_GOOD = (
    "invitation: not good (any more): it was used, a newer one has taken its place, or its 72 hours are over; ask an "
    "admin for a new one"
)


@dataclass(frozen=True)
class Issued:
    """An invitation as it is shown once."""

    name: str
    code: str = field(repr=False)
    ends_at: datetime.datetime

    def link(self, console: str) -> str:
        """Return the link for whoever reaches the console at this address."""
        return f"{console}{PAGE}#{self.code}"

    @property
    def until(self) -> str:
        """Until when it is good, for people."""
        return f"{self.ends_at:%Y-%m-%d %H:%M} UTC"


def enter_person(
    site: Site, name: str, role: str, email: str = "", by: str = "", *, by_provider: bool = False
) -> Issued | None:
    """Call `add_person`, logged and bound by the log (`bindings`), and return the invitation to hand over.

    by: the admin, or "" for the command line. by_provider: they sign in at the organisation's provider, without one.

    Only whom the log knows under that role and e-mail address can act. Whom the database has like that and the log
    does not know (it was lost, or is of a version that did not log the first admin) is entered again, by the command
    line only; the password that the database has for them counts no longer.
    """
    with transaction.atomic():
        person = _unknown_to_the_log(site, name, role, email)
        if person is not None and by:
            raise PersonError(f"person {name}: already entered, but not in the audit log; {again_by_the_shell(person)}")
        if person is None:
            person = add_person(name, role, email, by_provider=by_provider)
        elif not by_provider:
            user = find(name)
            user.set_unusable_password()
            user.save(update_fields=["password"])
        issued = None if by_provider else _issue(find(name))
    # The database first: a record that somebody was entered may never stand without them.
    commitment = bind(site.home, person_content(person.name, person.role, person.email))
    record_fields = {"person": person.name, "role": person.role, "email": person.email, "by": by or "command line"}
    site.audit.append("person_added", **record_fields, commitment=commitment)
    if issued is not None:
        site.audit.append("invited", person=person.name, by=by or "command line")
    return issued


def enter_first_admin(site: Site) -> Issued:
    """Enter `FIRST_ADMIN` and return their invitation."""
    issued = enter_person(site, FIRST_ADMIN, "admin")
    assert issued is not None
    return issued


def invite(site: Site, name: str, by: str = "") -> Issued:
    """Issue a new invitation, as for a forgotten password; the last one ends. Raises `PersonError`.

    Who signs in through the organisation only gets none: it would be a second way in, beside the provider's.
    """
    user = find(name)
    if not user.is_active:
        raise PersonError(f"person {name}: was shut out, so no invitation is issued; enter them under another name")
    if not user.has_usable_password() and not Invitation.objects.filter(person=user).exists():
        raise PersonError(f"person {name}: signs in through the organisation only, which resets what they have there")
    with written_down(site, "invited", person=name, by=by or "command line"):
        return _issue(user)


def accept(site: Site, code: str, password: str) -> Person:
    """Set the password of the person whose invitation this is (the code, or the whole link), which ends it.

    Raises `PersonError`; after that for a weak password the invitation is still good.
    """
    person = invited(code)
    # Held in the transaction that sets it: of two who use it at the same moment, one finds it used.
    with written_down(site, "invitation_accepted", person=person.name), _held(code) as (user, invitation):
        set_password(user, password)
        invitation.delete()
    return person


def invited(code: str) -> Person:
    """Say whose invitation this is, which changes nothing; raises `PersonError`."""
    with _held(code) as (user, _):
        return Person(user.username, user.email, role_of(user), active=True)


def open_invitations() -> dict[str, datetime.datetime]:
    """Return until when whose invitation is good; of those who have not used theirs, also when it is over."""
    return dict(Invitation.objects.values_list("person__username", "ends_at"))


def console_address(home: Home) -> str:
    """Return the address of the console as people reach it, as far as settings and a running service tell it."""
    console = home.settings.console
    if console.https and console.allowed_hosts:
        return f"https://{console.allowed_hosts[0]}/"
    try:
        running = str(json.loads(home.ready.read_bytes())["console"])
    except (OSError, ValueError, KeyError):
        running = ""
    host = f"[{console.host}]" if ":" in console.host else console.host
    return running or f"http://{host}:{console.port}/"


def _issue(user: User) -> Issued:
    code, ends_at = secrets.token_urlsafe(24), timezone.now() + GOOD_FOR
    Invitation.objects.update_or_create(person=user, defaults={"digest": _digest(code), "ends_at": ends_at})
    return Issued(user.username, code, ends_at)


@contextmanager
def _held(code: str) -> Iterator[tuple[User, Invitation]]:
    with transaction.atomic():
        found = Invitation.objects.select_for_update().select_related("person").filter(digest=_digest(code)).first()
        now = timezone.now()
        # Not from the future either: a clock that was put back makes none good for longer.
        if found is None or not now < found.ends_at <= now + GOOD_FOR or not found.person.is_active:
            raise PersonError(_NOT_GOOD)
        yield found.person, found


def _digest(code: str) -> str:
    """Return what is kept of a code, or of a link with it."""
    return hashlib.sha256(code.rpartition("#")[2].strip().encode("utf-8", "surrogatepass")).hexdigest()


def _unknown_to_the_log(site: Site, name: str, role: str, email: str) -> Person | None:
    """Return somebody of the database, active and just like that, whom the log has never entered."""
    user = get_user_model().objects.filter(username=name, is_active=True).first()
    if user is None or (role_of(user), user.email) != (role, identity_key(email or (name if "@" in name else ""))):
        return None
    return None if name in tell(site.home).added else Person(name, user.email, role, active=True)
