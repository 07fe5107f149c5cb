"""The people of a hospital and what each may do; passwords are Argon2 hashes in Django's own tables.

Somebody's name is what they sign in with; who they are is their e-mail address, which no two people share. Reviewers
must have one: the policies compare it with the researcher's, so that nobody decides on their own submission under
another name.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast, get_args

from django.contrib.auth import authenticate, get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AbstractUser, Group, User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction
from django.http import HttpRequest

from datasites.hospital.audit.bindings import bind, person_content
from datasites.hospital.audit.entered import people_by_hand, tell
from datasites.hospital.database import this_home
from datasites.hospital.models import FirstPassword
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


def enter_person(
    site: Site, name: str, role: str, password: str | None, email: str = "", by: str = "", *, first: bool = False
) -> None:
    """Call `add_person`, logged and bound by the log (`bindings`); by: the admin, or "" for the command line.

    first: whether somebody else than the person has set the password, as an admin always has (`must_change`).

    Only whom the log knows under that role and e-mail address can act. Whom the database has like that and the log
    does not know (it was lost, or is of a version that did not log the first admin) is entered again, with this
    password: by the command line only, since an admin sets the password of no account that is there.
    """
    with transaction.atomic():
        person = _unknown_to_the_log(site, name, role, email)
        if person is not None and by:
            raise PersonError(f"person {name}: already entered, but not in the audit log; {_again(person)}")
        if person is None:
            person = add_person(name, role, password, email, first=first or bool(by))
        elif password is not None:
            change_password(name, password, first=first)
    # The database first: a record that somebody was entered may never stand without them.
    commitment = bind(site.home, person_content(person.name, person.role, person.email))
    record_fields = {"person": person.name, "role": person.role, "email": person.email, "by": by or "command line"}
    site.audit.append("person_added", **record_fields, commitment=commitment)


def _unknown_to_the_log(site: Site, name: str, role: str, email: str) -> Person | None:
    """Return somebody of the database, active and just like that, whom the log has never entered."""
    user = get_user_model().objects.filter(username=name, is_active=True).first()
    if user is None or (role_of(user), user.email) != (role, identity_key(email or (name if "@" in name else ""))):
        return None
    return None if name in tell(site.home).added else Person(name, user.email, role, active=True)


def _again(person: Person) -> str:
    """Say what to do about somebody whom the log does not know."""
    address = ("--email", person.email) if person.email not in ("", person.name) else ()
    command = shlex.join(("datasites", "person", "add", person.name, "--role", person.role, *address))
    return f"if they are who they should be, enter them again on the datasite's machine: `{command} --home …`"


def add_person(name: str, role: str, password: str | None, email: str = "", *, first: bool = False) -> Person:
    """Enter a person with one role into the database; `enter_person` logs it, too.

    Without a password they can only sign in with the organisation's own sign-in. A name that is an e-mail address is
    the person's e-mail too, unless another is given. first: see `enter_person`. Raises `PersonError` for a taken name
    or address, an unknown role, a reviewer without an address, or a weak password.
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
    if not email and (role in REVIEWERS or password is None):
        raise PersonError(f"person {name}: a {role} needs an e-mail address, which says who they are (--email)")
    try:
        if email:
            validate_email(email)
        if password is not None:
            validate_password(password, users(username=name, email=email))
    except ValidationError as error:
        raise PersonError(f"person {name}: {' '.join(error.messages)}") from error
    with transaction.atomic():
        if any(same_identity(known, name) for known in users.objects.values_list("username", flat=True)):
            raise PersonError(f"person {name}: already entered; choose another name")
        if email and users.objects.filter(email=email).exists():
            raise PersonError(f"person {name}: {email} is entered under another name; each person is entered once")
        user = users.objects.create_user(username=name, email=email, password=password)
        user.email = email  # `create_user` keeps the case of the part before the @
        user.save(update_fields=["email"])
        user.groups.add(Group.objects.get_or_create(name=role)[0])
        if first and password is not None:
            FirstPassword.objects.create(person=user)
    return Person(name, email, role, active=True)


def enter_first_admin(site: Site) -> str:
    """Enter `FIRST_ADMIN` and return the generated password, to be shown once; only its hash is kept."""
    password = secrets.token_urlsafe(18)
    enter_person(site, FIRST_ADMIN, "admin", password, first=True)
    return password


def identify(name: str, password: str, request: HttpRequest | None = None) -> Actor:
    """Return the person with this name and password; raises `PersonError`.

    Over the network `request` says who asks, and too many wrong passwords lock that person out from there for a
    while. On the command line there is no lock-out: whoever has the shell has the database.
    """
    if request is None:
        user = ModelBackend().authenticate(None, username=name, password=password)
    else:
        user = authenticate(request, username=name, password=password)
    if user is None:
        raise WrongPassword(f"person {name}: unknown, or the password is wrong")
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
        raise PersonError(f"{by_hand[0]}; {_again(Person(user.username, user.email, role, active=True))}")
    if by_hand:
        raise PersonError(f"person {user.username}: {by_hand[0]}; `datasites doctor` says what to do")
    return Actor(user.pk, user.username, role, user.email)


def reader(user: AbstractUser) -> Actor | None:
    """Return somebody as one who reads pages, None without a role; who acts is `acting`, whom the log knows."""
    role = role_of(user)
    return Actor(user.pk, user.username, role, user.email) if role else None


def find_reader(name: str) -> Actor:
    """Return the person with this name as one who reads; raises `PersonError`."""
    found = reader(_find(name))
    if found is None:
        raise PersonError(f"person {name}: has no role; an admin must give one")
    return found


def role_of(user: AbstractUser) -> PersonRole | Literal[""]:
    """Return the person's role, or "" for somebody without one."""
    role = user.groups.values_list("name", flat=True).first()
    return cast(PersonRole, role) if role in get_args(PersonRole) else ""


def must_change(user: AbstractUser) -> bool:
    """Say whether somebody else set this person's password, and could sign in under their name until it is changed."""
    return FirstPassword.objects.filter(person_id=user.pk).exists()


@transaction.atomic
def change_password(name: str, password: str, *, first: bool = False) -> None:
    """Set a person's new password; raises `PersonError` for an unknown person or a weak password.

    first: whether somebody else has set it. One who changes such a password may not keep it.
    """
    user = _find(name)
    if not first and must_change(user) and user.check_password(password):
        raise PersonError(f"person {name}: that is the password that was set for you; choose another one")
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise PersonError(f"person {name}: {' '.join(error.messages)}") from error
    user.set_password(password)
    user.save(update_fields=["password"])
    if first:
        FirstPassword.objects.get_or_create(person=user)
    else:
        FirstPassword.objects.filter(person=user).delete()


def deactivate(name: str, by: str) -> None:
    """Keep a person out from now on; their past decisions stand. Raises `PersonError`, also for oneself."""
    if name == by:
        raise PersonError(f"person {name}: nobody can shut themselves out; ask another admin")
    user = _find(name)
    user.is_active = False
    user.save(update_fields=["is_active"])


def _find(name: str) -> User:
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
