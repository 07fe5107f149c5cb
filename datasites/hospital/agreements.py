"""Entering, confirming and terminating agreements, as people of the hospital do it; written to the audit log."""

from __future__ import annotations

import datetime
from pathlib import Path

from datasites.hospital.people import REVIEWERS, Acting
from datasites.hospital.review import ReviewError
from datasites.hospital.site import Site
from datasites.study.errors import InputError
from policies.registry import Registry, RegistryFile


def _registry(site: Site) -> RegistryFile:
    return RegistryFile(site.home.registry, site.home.settings.organisation)


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def _check_role(person: Acting) -> None:
    if person.role not in REVIEWERS:
        raise ReviewError(f"{person.name} is {person.role}; agreements are kept by {' and '.join(REVIEWERS)}")


def enter_agreements(site: Site, person: Acting, file: Path) -> list[tuple[str, int]]:
    """Enter all agreements of a TOML file, unconfirmed; returns (id, version) of those that are new.

    Raises `RegistryError` or `InputError` and enters nothing when one of them is wrong.
    """
    _check_role(person)
    try:
        text = file.read_text()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    before = {(a.terms.id, a.version) for a in _registry(site).load().agreements}
    after = _registry(site).update(lambda registry: registry.import_toml(text, person.name, _today()))
    entered = [(a.terms.id, a.version) for a in after.agreements if (a.terms.id, a.version) not in before]
    for id, version in entered:
        site.audit.append("agreement_entered", agreement=id, version=version, person=person.name)
    return entered


def confirm_agreement(site: Site, person: Acting, id: str, version: int) -> Registry:
    """Confirm a version that somebody else entered; raises `RegistryError`."""
    _check_role(person)
    registry = _registry(site).update(lambda known: known.confirm(id, version, person.name, _today()))
    site.audit.append("agreement_confirmed", agreement=id, version=version, person=person.name)
    return registry


def terminate_agreement(site: Site, person: Acting, id: str) -> Registry:
    """End an agreement today; one person is enough, since it only narrows."""
    _check_role(person)
    registry = _registry(site).update(lambda known: known.terminate(id, person.name, _today()))
    site.audit.append("agreement_terminated", agreement=id, person=person.name)
    return registry
