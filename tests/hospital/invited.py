"""People who are entered and have set their password, by an invitation as everybody does."""

from __future__ import annotations

from datasites.hospital.people.accounts import Person
from datasites.hospital.people.invitations import accept, enter_person
from datasites.hospital.site import Site


def enter(site: Site, name: str, role: str, password: str, email: str = "", by: str = "") -> Person:
    """Enter somebody, who then accepts."""
    issued = enter_person(site, name, role, email, by)
    assert issued is not None
    return accept(site, issued.code, password)
