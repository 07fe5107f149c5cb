"""Looks up cases by their numbers."""

from __future__ import annotations

from datasites.hospital.models import Case
from datasites.hospital.people.accounts import ReviewError


def find_case(number: int) -> Case:
    """Return the case with this number; raises `ReviewError`."""
    try:
        return Case.objects.get(pk=number)
    except Case.DoesNotExist as error:
        raise ReviewError(f"case {number}: not here; see `datasites review list`") from error
