"""Entering, confirming and terminating agreements, as people of the hospital do it; written to the audit log.

Each version is bound by the log when it is entered and when it is confirmed (`bindings`), so that evidence
distinguishes a version that people entered from one that was typed into the registry's file. Who entered what is
confirmed is read in the log, too (`audit.entered`), and never in the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from datasites.hospital.audit.bindings import agreement_content, bind
from datasites.hospital.audit.entered import require_entered
from datasites.hospital.people.accounts import REVIEWERS, Actor, ReviewError, require_reviewer
from datasites.hospital.site import Site
from datasites.study.dates import today
from datasites.study.errors import InputError
from datasites.study.visible import require_plain
from policies.registry import AgreementTerms, Registry, RegistryError, RegistryFile


def _registry(site: Site) -> RegistryFile:
    return RegistryFile(site.home.registry, site.home.settings.organisation)


def hash_document(path: Path) -> str:
    """Return the SHA-256 of a signed document, which is read in pieces and kept nowhere; raises `InputError`."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _check_role(person: Actor) -> None:
    require_reviewer(person, f"agreements are kept by {' and '.join(REVIEWERS)}")


def _update(site: Site, person: Actor, change: Callable[[Registry], Registry]) -> Registry:
    if len(person.name.split()) != 1:
        raise ReviewError(
            f"{person.name}: agreements are signed with a name of one word; an admin enters you under one, such as "
            "your e-mail address"
        )
    return _registry(site).update(change)


def read_file(file: Path) -> str:
    """Return the text of a TOML file; raises `InputError`."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error


def enter_agreements(site: Site, person: Actor, file: Path) -> list[tuple[str, int]]:
    """Enter all agreements of a TOML file, as `enter_toml` does; raises the same, and where it can't be read."""
    _check_role(person)
    return enter_toml(site, person, read_file(file))


def enter_toml(site: Site, person: Actor, text: str) -> list[tuple[str, int]]:
    """Enter all agreements of a TOML text, unconfirmed; returns (id, version) of those that are new.

    Raises `RegistryError` or `InputError` and enters nothing when one of them is wrong.
    """
    _check_role(person)
    return _enter(site, person, lambda known: known.import_toml(text, person.name, today()))


def enter_terms(site: Site, person: Actor, terms: AgreementTerms, after: int) -> int:
    """Enter one agreement, unconfirmed; returns its version. after: the newest version that the person saw, or 0.

    Raises `RegistryError` where that is not the newest one any more, and as `enter_toml`; enters nothing then.
    """
    _check_role(person)
    ((_, version),) = _enter(site, person, lambda known: with_terms(known, terms, after, person.name))
    return version


def with_terms(known: Registry, terms: AgreementTerms, after: int, by: str) -> Registry:
    """Return the registry with one more version, as `enter_terms` enters it; raises the same."""
    newest = len(known.versions(terms.id))
    if newest != after and after == 0:
        raise RegistryError(
            f"agreement {terms.id}: is known here already, in version {newest}; enter a new version of it, or choose "
            "another id"
        )
    if newest != after:
        raise RegistryError(
            f"agreement {terms.id}: is at version {newest} by now, and not {after}; look at that version, and start "
            "from it"
        )
    require_plain(terms, f"agreement {terms.id}")
    return known.enter(terms, by, today())


def with_toml(known: Registry, text: str) -> tuple[Registry, list[tuple[str, int]]]:
    """Return the registry with what `enter_toml` would enter, and (id, version) of that; raises the same."""
    after = known.import_toml(text, "nobody", today())
    return after, _new(known, after)


def _enter(site: Site, person: Actor, change: Callable[[Registry], Registry]) -> list[tuple[str, int]]:
    entered: list[tuple[str, int]] = []

    def enter(known: Registry) -> Registry:
        after = change(known)
        entered.extend(_new(known, after))
        for id, version in entered:
            _log(site, "agreement_entered", after, id, version, person)
        return after

    _update(site, person, enter)
    return entered


def _new(before: Registry, after: Registry) -> list[tuple[str, int]]:
    known = {(a.terms.id, a.version) for a in before.agreements}
    return [(a.terms.id, a.version) for a in after.agreements if (a.terms.id, a.version) not in known]


def confirm_agreement(site: Site, person: Actor, id: str, version: int, document: str = "") -> Registry:
    """Confirm a version that somebody else entered, as the log says; raises `RegistryError` or `EntryRefused`.

    document: SHA-256 of the document that the person has in hand, if they had it compared; another one is refused.
    """
    _check_role(person)

    def confirm(known: Registry) -> Registry:
        after = known.confirm(id, version, person.name, today())
        if document:
            require_document(known, id, version, document)
        require_entered(site.home, known.latest(id), person.name)
        # Logged before it counts: killed in between, nothing is in force that the log does not know.
        _log(site, "agreement_confirmed", after, id, version, person)
        return after

    return _update(site, person, confirm)


def require_document(registry: Registry, id: str, version: int, document: str) -> None:
    """Raise `RegistryError` unless this version was entered with this SHA-256, or unless it is there."""
    for agreement in registry.versions(id):
        if agreement.version == version and agreement.terms.document == document:
            return
        if agreement.version == version:
            raise RegistryError(
                f"agreement {id} version {version}: was entered from another document (SHA-256 "
                f"{agreement.terms.document}) than yours ({document}); ask who entered it which one was signed, and "
                "don't confirm it before that is clear"
            )
    raise RegistryError(f"agreement {id}: there is no version {version}; look at the agreements again")


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
