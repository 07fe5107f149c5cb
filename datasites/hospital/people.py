"""The people of a hospital and what each may do; passwords are Argon2 hashes in Django's own tables."""

from __future__ import annotations

from typing import Literal, get_args

from django.contrib.auth import authenticate, get_user_model
from django.contrib.auth.models import Group
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import transaction

from datasites.study.errors import DatasitesError

PersonRole = Literal["steward", "privacy_officer", "auditor", "admin"]
REVIEWERS: tuple[PersonRole, ...] = ("steward", "privacy_officer")


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


def identify(name: str, password: str) -> tuple[int, PersonRole]:
    """Check a password; returns the person's database id and role, raises `PersonError`."""
    user = authenticate(username=name, password=password)
    if user is None:
        raise PersonError(f"person {name}: unknown, or the password is wrong")
    role = user.groups.values_list("name", flat=True).first()
    if role not in get_args(PersonRole):
        raise PersonError(f"person {name}: has no role; an admin must give one")
    return user.pk, role


def people() -> list[tuple[str, str]]:
    """Names and roles of everybody entered."""
    return [
        (user.username, user.groups.values_list("name", flat=True).first() or "")
        for user in get_user_model().objects.order_by("username")
    ]
