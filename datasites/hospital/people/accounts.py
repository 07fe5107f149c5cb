"""The people of a hospital and what each may do; passwords are Argon2 hashes in Django's own tables.

Somebody's name is what they sign in with; who they are is their e-mail address, which no two people share. Reviewers
must have one: the policies compare it with the researcher's, so that nobody decides on their own submission under
another name.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast, get_args

from django.contrib.auth import authenticate, get_user_model
from django.contrib.auth.models import AbstractUser, Group, User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction
from django.http import HttpRequest

from datasites.hospital.audit.entered import people_by_hand, tell
from datasites.hospital.database import this_home
from datasites.hospital.models import Invitation
from datasites.hospital.people import second_factor
from datasites.hospital.people.second_factor import PasswordAndCode
from datasites.hospital.site import Site
from datasites.study.errors import DatasitesError
from datasites.study.identity import identity_key, same_identity

PersonRole = Literal["steward", "privacy_officer", "auditor", "admin"]
REVIEWERS: tuple[PersonRole, ...] = ("steward", "privacy_officer")
FIRST_ADMIN = "admin"


class PersonError(DatasitesError):
    """A person is unknown, has no such role, or gave a wrong password."""


class WrongPassword(PersonError):
    """Nobody has this name with this password."""


@dataclass(frozen=True)
class Actor:
    """A person who has just shown who they are. `email` is "" for people who don't review and gave none."""

    pk: int
    name: str
    role: PersonRole
    email: str


@dataclass(frozen=True)
class Person:
    """Somebody who is entered; `active` is False once an admin has shut them out."""

    name: str
    email: str
    role: str
    active: bool


@contextmanager
def written_down(site: Site, kind: str, **fields: str) -> Iterator[None]:
    """Change something about a person, and log it once the database has it: no record stands before its fact.

    Killed in between, the change holds and the log lacks it; made again, it is logged.
    """
    site.audit.require_fit(kind, **fields)
    with transaction.atomic():
        yield
    site.audit.append(kind, **fields)


def again_by_the_shell(person: Person) -> str:
    """Say what to do about somebody whom the log does not know."""
    address = ("--email", person.email) if person.email not in ("", person.name) else ()
    command = shlex.join(("datasites", "person", "add", person.name, "--role", person.role, *address))
    return f"if they are who they should be, enter them again on the datasite's machine: `{command} --home …`"


def add_person(name: str, role: str, email: str = "", *, by_provider: bool = False) -> Person:
    """Enter a person with one role into the database; `invitations.enter_person` logs it and invites them, too.

    They have no password yet. by_provider: they sign in with the organisation's own sign-in. A name that is an e-mail
    address is the person's e-mail too, unless another is given. Raises `PersonError` for a taken name or address, an
    unknown role, or a reviewer without an address.
    """
    if role not in get_args(PersonRole):
        raise PersonError(f"person {name}: role {role!r} is not one of {', '.join(get_args(PersonRole))}")
    if len(name.split()) != 1:
        raise PersonError(f"person {name!r}: a name is one word, as agreements are signed with it; try ann.lee")
    users = get_user_model()
    written = email or (name if "@" in name else "")
    if not written.isascii():
        raise PersonError(f"person {name}: {written} has other letters than ASCII, which may be another's; write xn--…")
    email = identity_key(written)
    if not email and (role in REVIEWERS or by_provider):
        raise PersonError(f"person {name}: a {role} needs an e-mail address, which says who they are (--email)")
    try:
        if email:
            validate_email(email)
    except ValidationError as error:
        raise PersonError(f"person {name}: {' '.join(error.messages)}") from error
    with transaction.atomic():
        if any(same_identity(known, name) for known in users.objects.values_list("username", flat=True)):
            raise PersonError(f"person {name}: already entered; choose another name")
        if email and users.objects.filter(email=email).exists():
            raise PersonError(f"person {name}: {email} is entered under another name; each person is entered once")
        user = users.objects.create_user(username=name, email=email, password=None)
        user.email = email  # `create_user` keeps the case of the part before the @
        user.save(update_fields=["email"])
        user.groups.add(Group.objects.get_or_create(name=role)[0])
    return Person(name, email, role, active=True)


def identify(
    name: str, password: str, request: HttpRequest | None = None, code: str = "", *, enrolling: bool = False
) -> Actor:
    """Return the person with this name and password; raises `PersonError`.

    Over the network `request` says who asks, and too many wrong passwords lock that person out from there for a
    while. On the command line there is no lock-out: whoever has the shell has the database. There, who has a second
    factor gives a code of it, too, and where datasite.toml demands one, who has none can only set it up (enrolling).
    """
    credentials = {"username": name, "password": password, "token": code}
    if request is None:
        user = PasswordAndCode().authenticate(None, **credentials)
    else:
        user = authenticate(request, **credentials)
    if user is None:
        with_code = " or the code" if second_factor.has_one(name) else ""
        raise WrongPassword(f"person {name}: unknown, or the password{with_code} is wrong")
    if request is None and not enrolling and second_factor.lacks_one(user):
        raise PersonError(
            f"person {name}: has no second factor, which datasite.toml demands; set it up with `datasites person "
            f"second-factor --as {shlex.quote(name)}`, or in the console"
        )
    return acting(user)


def acting(user: AbstractUser) -> Actor:
    """Return somebody who has proved who they are as one who acts; raises `PersonError` for somebody without a role.

    So too for one whom the log did not enter like that, or has shut out: the database was edited, or is older. A log
    that knows nobody was lost, and those of the database are to settle that.
    """
    role = role_of(user)
    if not role:
        raise PersonError(f"person {user.username}: has no role; an admin must give one")
    entered = tell(this_home()).added
    by_hand = people_by_hand(this_home(), [(user.username, role, user.email)]) if entered else []
    if by_hand and user.username not in entered:
        raise PersonError(f"{by_hand[0]}; {again_by_the_shell(Person(user.username, user.email, role, active=True))}")
    if by_hand:
        raise PersonError(f"person {user.username}: {by_hand[0]}; `datasites doctor` says what to do")
    return Actor(user.pk, user.username, role, user.email)


def reader(user: AbstractUser) -> Actor | None:
    """Return somebody as one who reads pages, None without a role; who acts is `acting`, whom the log knows."""
    role = role_of(user)
    return Actor(user.pk, user.username, role, user.email) if role else None


def find_reader(name: str) -> Actor:
    """Return the person with this name as one who reads; raises `PersonError`."""
    found = reader(find(name))
    if found is None:
        raise PersonError(f"person {name}: has no role; an admin must give one")
    return found


def role_of(user: AbstractUser) -> PersonRole | Literal[""]:
    """Return the person's role, or "" for somebody without one."""
    role = user.groups.values_list("name", flat=True).first()
    return cast(PersonRole, role) if role in get_args(PersonRole) else ""


def set_password(user: User, password: str) -> None:
    """Set a person's new password; raises `PersonError` with the reasons for a weak one. Ends their other sessions."""
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise PersonError(f"person {user.username}: {' '.join(error.messages)}") from error
    user.set_password(password)
    user.save(update_fields=["password"])


def change_password(site: Site, person: Actor, password: str) -> None:
    """Set the new password of somebody who has just shown who they are, and log that; raises `PersonError`."""
    with written_down(site, "password_changed", person=person.name):
        set_password(find(person.name), password)


def deactivate(name: str, by: str) -> None:
    """Keep a person out from now on; their past decisions stand. Raises `PersonError`, also for oneself."""
    if name == by:
        raise PersonError(f"person {name}: nobody can shut themselves out; ask another admin")
    user = find(name)
    user.is_active = False
    user.save(update_fields=["is_active"])
    Invitation.objects.filter(person=user).delete()


def find(name: str) -> User:
    """Return the account of this name; raises `PersonError`."""
    user = User.objects.filter(username=name).first()
    if user is None:
        raise PersonError(f"person {name}: not entered; see `datasites person list`")
    return user


def list_people() -> list[Person]:
    """Return everybody entered, by name."""
    users = get_user_model().objects.order_by("username").prefetch_related("groups")
    return [Person(u.username, u.email, next((g.name for g in u.groups.all()), ""), u.is_active) for u in users]


class ReviewError(DatasitesError):
    """An action on a case is not possible as asked; the message says what to do instead."""


def require_reviewer(person: Actor, rule: str) -> None:
    """Raise `ReviewError` with the rule unless the person is a steward or a privacy officer."""
    if person.role not in REVIEWERS:
        raise ReviewError(f"{person.name} is {person.role}; {rule}")
