"""The people of a hospital and what each may do; passwords are Argon2 hashes in Django's own tables."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal, get_args

from django.contrib.auth import authenticate, get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AbstractUser, Group
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest

from datasites.study.errors import DatasitesError

PersonRole = Literal["steward", "privacy_officer", "auditor", "admin"]
REVIEWERS: tuple[PersonRole, ...] = ("steward", "privacy_officer")
FIRST_ADMIN = "admin"


class PersonError(DatasitesError):
    """A person is unknown, has no such role, or gave a wrong password."""


def add_person(name: str, role: str, password: str) -> None:
    """Enter a person with one role; raises `PersonError` for a taken name, unknown role or weak password."""
    if role not in get_args(PersonRole):
        raise PersonError(f"person {name}: role {role!r} is not one of {', '.join(get_args(PersonRole))}")
    users = get_user_model()
    if users.objects.filter(username=name).exists():
        raise PersonError(f"person {name}: already entered; choose another name")
    try:
        validate_password(password)
    except ValidationError as error:
        raise PersonError(f"person {name}: {' '.join(error.messages)}") from error
    with transaction.atomic():
        user = users.objects.create_user(username=name, password=password)
        user.groups.add(Group.objects.get_or_create(name=role)[0])


def add_first_admin() -> str:
    """Enter `FIRST_ADMIN` and return the generated password, to be shown once; only its hash is kept."""
    password = secrets.token_urlsafe(18)
    add_person(FIRST_ADMIN, "admin", password)
    return password


def identify(name: str, password: str, request: HttpRequest | None = None) -> tuple[int, PersonRole]:
    """Check a password; returns the person's database id and role, raises `PersonError`.

    Over the network `request` says who asks, and too many wrong passwords lock that person out from there for a
    while. On the command line there is no lock-out: whoever has the shell has the database.
    """
    if request is None:
        user = ModelBackend().authenticate(None, username=name, password=password)
    else:
        user = authenticate(request, username=name, password=password)
    if user is None:
        raise PersonError(f"person {name}: unknown, or the password is wrong")
    role = role_of(user)
    if not role:
        raise PersonError(f"person {name}: has no role; an admin must give one")
    return user.pk, role


def role_of(user: AbstractUser) -> PersonRole | Literal[""]:
    """The person's role, or "" for somebody without one."""
    role = user.groups.values_list("name", flat=True).first()
    return role if role in get_args(PersonRole) else ""


def change_password(name: str, password: str) -> None:
    """Set a person's new password; raises `PersonError` for an unknown person or a weak password."""
    user = _find(name)
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise PersonError(f"person {name}: {' '.join(error.messages)}") from error
    user.set_password(password)
    user.save(update_fields=["password"])


def deactivate(name: str, by: str) -> None:
    """Keep a person out from now on; their past decisions stand. Raises `PersonError`, also for oneself."""
    if name == by:
        raise PersonError(f"person {name}: nobody can shut themselves out; ask another admin")
    user = _find(name)
    user.is_active = False
    user.save(update_fields=["is_active"])


def _find(name: str) -> AbstractUser:
    user = get_user_model().objects.filter(username=name).first()
    if user is None:
        raise PersonError(f"person {name}: not entered; see `datasites person list`")
    return user


@dataclass(frozen=True)
class Person:
    """Somebody who is entered; `active` is False once an admin has shut them out."""

    name: str
    role: str
    active: bool


def list_people() -> list[Person]:
    """Everybody entered, by name."""
    users = get_user_model().objects.order_by("username").prefetch_related("groups")
    return [Person(u.username, next((group.name for group in u.groups.all()), ""), u.is_active) for u in users]


def people() -> list[tuple[str, str]]:
    """Names and roles of everybody entered."""
    return [(person.name, person.role) for person in list_people()]
