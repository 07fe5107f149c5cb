"""Cases by their numbers, and who may act on one; for commands that look at a case and for those that act on it."""

from __future__ import annotations

from datasites.hospital.models import Case
from datasites.hospital.people import REVIEWERS, Acting
from datasites.study.errors import DatasitesError


class ReviewError(DatasitesError):
    """An action on a case is not possible as asked; the message says what to do instead."""


def require_reviewer(person: Acting, rule: str) -> None:
    """Raise `ReviewError` with the rule unless the person is a steward or a privacy officer."""
    if person.role not in REVIEWERS:
        raise ReviewError(f"{person.name} is {person.role}; {rule}")


def find_case(number: int) -> Case:
    """The case with this number; raises `ReviewError`."""
    try:
        return Case.objects.get(pk=number)
    except Case.DoesNotExist as error:
        raise ReviewError(f"case {number}: not here; see `datasites review list`") from error
