"""Looks up cases by their numbers."""

from __future__ import annotations

from datasites.hospital.models import Case
from datasites.hospital.people.accounts import ReviewError


def find_case(case_id: int) -> Case:
    """Return the case with this number; raises `ReviewError`."""
    try:
        return Case.objects.get(pk=case_id)
    except Case.DoesNotExist as error:
        raise ReviewError(f"case {case_id}: not here; see `datasites review list`") from error
