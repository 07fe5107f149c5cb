"""Entering, confirming and terminating agreements, as people of the hospital do it; written to the audit log.

Each version is bound by the log when it is entered and when it is confirmed (`bindings`), so that evidence
distinguishes a version that people entered from one that was typed into the registry's file. Who entered what is
confirmed is read in the log, too (`audit.entered`), and never in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datasites.hospital.audit.bindings import agreement_content, bind
from datasites.hospital.audit.entered import require_entered
from datasites.hospital.people.accounts import REVIEWERS, Actor, ReviewError, require_reviewer
from datasites.hospital.site import Site
from datasites.study.dates import today
from datasites.study.errors import InputError
from policies.registry import Registry, RegistryFile


def _registry(site: Site) -> RegistryFile:
    return RegistryFile(site.home.registry, site.home.settings.organisation)


def _check_role(person: Actor) -> None:
    require_reviewer(person, f"agreements are kept by {' and '.join(REVIEWERS)}")


def _update(site: Site, person: Actor, change: Callable[[Registry], Registry]) -> Registry:
    if len(person.name.split()) != 1:
        raise ReviewError(
            f"{person.name}: agreements are signed with a name of one word; an admin enters you under one, such as "
            "your e-mail address"
        )
    return _registry(site).update(change)


def enter_agreements(site: Site, person: Actor, file: Path) -> list[tuple[str, int]]:
    """Enter all agreements of a TOML file, unconfirmed; returns (id, version) of those that are new.

    Raises `RegistryError` or `InputError` and enters nothing when one of them is wrong.
    """
    _check_role(person)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    entered: list[tuple[str, int]] = []

    def enter(known: Registry) -> Registry:
        before = {(a.terms.id, a.version) for a in known.agreements}
        after = known.import_toml(text, person.name, today())
        entered.extend((a.terms.id, a.version) for a in after.agreements if (a.terms.id, a.version) not in before)
        for id, version in entered:
            _log(site, "agreement_entered", after, id, version, person)
        return after

    _update(site, person, enter)
    return entered


def confirm_agreement(site: Site, person: Actor, id: str, version: int) -> Registry:
    """Confirm a version that somebody else entered, as the log says; raises `RegistryError` or `EntryRefused`."""
    _check_role(person)

    def confirm(known: Registry) -> Registry:
        after = known.confirm(id, version, person.name, today())
        require_entered(site.home, known.latest(id), person.name)
        # Logged before it counts: killed in between, nothing is in force that the log does not know.
        _log(site, "agreement_confirmed", after, id, version, person)
        return after

    return _update(site, person, confirm)


def _log(site: Site, kind: str, after: Registry, id: str, version: int, person: Actor) -> None:
    (agreement,) = (a for a in after.agreements if (a.terms.id, a.version) == (id, version))
    commitment = bind(site.home, agreement_content(agreement))
    site.audit.append(kind, agreement=id, version=version, person=person.name, commitment=commitment)


def terminate_agreement(site: Site, person: Actor, id: str) -> Registry:
    """End an agreement today; one person is enough, since it only narrows."""
    _check_role(person)

    def terminate(known: Registry) -> Registry:
        after = known.terminate(id, person.name, today())
        # Logged before it counts: killed in between, nothing rests on it until somebody ends it again.
        site.audit.append("agreement_terminated", agreement=id, person=person.name)
        return after

    return _update(site, person, terminate)
