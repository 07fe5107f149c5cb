"""The hospital's register of agreements: BAA, DUA, IRB approval, expert determination, risk acceptance.

An agreement counts only from the day on which a second person confirmed what a first one entered, only while it is
in force, and only if this hospital is one of its parties. `Registry` is an immutable value; `RegistryFile` is the
small edge that stores it (atomic, mode 0600, one writer at a time). The file is read again for each decision, so a
change takes effect at the next round. It holds no patient data and no signatures of the documents, only their hashes.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, field_validator

from datasites.study.canonical import Agreed
from datasites.study.files import held, replace_durably
from datasites.study.identity import identity_key, same_identity, written_twice
from datasites.study.manifest import Name, ServiceEntry
from datasites.study.visible import require_plain
from policies.agreements import (
    FIELD_NAMES,
    KIND_NAMES,
    NO_SANDBOX,
    REQUIRED,
    Agreement,
    AgreementTerms,
    Kind,
    Organisation,
    Person,
    RegistryError,
    TermChange,
    first_problem,
    read_agreements,
    term_changes,
)

__all__ = [
    "FIELD_NAMES",
    "KIND_NAMES",
    "NO_SANDBOX",
    "REQUIRED",
    "SOON_DAYS",
    "STANDING_NAMES",
    "Agreement",
    "Expiry",
    "Kind",
    "Organisation",
    "Person",
    "Registry",
    "RegistryError",
    "RegistryFile",
    "Standing",
    "TermChange",
    "AgreementTerms",
    "first_problem",
    "read_agreements",
    "term_changes",
]

#: Before the end of an agreement people are warned for so many days.
SOON_DAYS = 60

#: How a version stands on a day.
Standing = Literal["in_force", "waiting", "later", "expired", "ended", "replaced", "not_a_party"]

STANDING_NAMES: dict[Standing, str] = {
    "in_force": "in force",
    "waiting": "unconfirmed",
    "later": "not in force yet",
    "expired": "expired",
    "ended": "terminated",
    "replaced": "replaced",
    "not_a_party": "this hospital is not a party",
}


class Expiry(Agreed):
    """A warning: an agreement in force that ends within the days that were asked for."""

    id: Name
    kind: Kind
    parties: tuple[str, ...]
    expires: datetime.date
    days_left: int


class Registry(Agreed):
    """All versions of all agreements that one hospital (`organisation`) holds. Every method returns a new value."""

    format: Literal[1] = 1
    organisation: Organisation
    agreements: tuple[Agreement, ...] = ()

    @field_validator("agreements")
    @classmethod
    def _versions_are_distinct(cls, agreements: tuple[Agreement, ...]) -> tuple[Agreement, ...]:
        keys = [(a.terms.id, a.version) for a in agreements]
        if len(set(keys)) != len(keys):
            raise ValueError("registry: one version of an agreement appears twice")
        kinds: dict[str, str] = {}
        for agreement in agreements:
            if kinds.setdefault(agreement.terms.id, agreement.terms.kind) != agreement.terms.kind:
                raise ValueError(f"registry: agreement {agreement.terms.id} can't change its kind; enter a new one")
        return tuple(sorted(agreements, key=lambda a: (a.terms.id, a.version)))

    def latest(self, id: str) -> Agreement:
        """Return the newest version, confirmed or not; raise `RegistryError` when there is none."""
        versions = [a for a in self.agreements if a.terms.id == id]
        if not versions:
            known = ", ".join(sorted({a.terms.id for a in self.agreements})) or "none"
            raise RegistryError(f"registry: no agreement {id!r}; known: {known}")
        return versions[-1]

    def versions(self, id: str) -> tuple[Agreement, ...]:
        """Return all versions, oldest first; none where there is no such agreement."""
        return tuple(a for a in self.agreements if a.terms.id == id)

    def confirmed_before(self, id: str, version: int | None = None) -> Agreement | None:
        """Return the newest confirmed version before this one (before a next one), or None.

        A version is compared with that and never with one that nobody confirmed: what such a one widened would not
        show in the difference to it, and a second person would confirm it unseen.
        """
        confirmed = [a for a in self.versions(id) if a.confirmed_by is not None]
        return next((a for a in reversed(confirmed) if version is None or a.version < version), None)

    def standing(self, agreement: Agreement, on: datetime.date) -> Standing:
        """Say how one of these versions stands on a day; `in_force` exactly where `in_force` lists it."""
        if agreement in self.in_force(on):
            return "in_force"
        if agreement.terminated_on is not None and agreement.terminated_on <= on:
            return "ended"
        later = [a for a in self.versions(agreement.terms.id) if a.version > agreement.version]
        if not agreement.confirmed(on):
            return "replaced" if later else "waiting"
        begun = max(on, agreement.terms.effective)
        if any(a.confirmed(on) and a.terms.effective <= begun for a in later):
            return "replaced"
        if agreement.terms.expires < on:
            return "expired"
        return "later" if is_party(self.organisation, agreement) else "not_a_party"

    def enter(self, terms: AgreementTerms, by: str, on: datetime.date) -> Registry:
        """Enter a new agreement, or the next version of one. It counts for nothing until somebody else confirms it.

        Raises `RegistryError` when the terms equal the newest version, or name one party in two spellings.
        """
        if twice := written_twice(terms.parties):
            raise RegistryError(
                f"registry: agreement {terms.id} names one party twice, as {twice[0]} and as {twice[1]}; keep one"
            )
        versions = [a for a in self.agreements if a.terms.id == terms.id]
        if versions and versions[-1].terms == terms and versions[-1].terminated_on is None:
            raise RegistryError(f"registry: agreement {terms.id} is already registered like this; nothing to enter")
        version = versions[-1].version + 1 if versions else 1
        return self._with(Agreement(terms=terms, version=version, entered_by=by, entered_on=on))

    def confirm(self, id: str, version: int, by: str, on: datetime.date) -> Registry:
        """Confirm, as a second person, that the newest version says what the document says.

        The version is stated so that nobody confirms another one than they have read. Raises `RegistryError`.
        """
        agreement = self.latest(id)
        if agreement.version != version:
            raise RegistryError(f"registry: agreement {id} is at version {agreement.version}, not {version}; read it")
        if agreement.confirmed_by is not None:
            raise RegistryError(f"registry: agreement {id} version {version} was confirmed by {agreement.confirmed_by}")
        if same_identity(by, agreement.entered_by):
            raise RegistryError(
                f"registry: {by} entered agreement {id} and can't confirm it; ask a second person to compare it "
                "with the document"
            )
        return self._replace(agreement, confirmed_by=by, confirmed_on=on)

    def terminate(self, id: str, by: str, on: datetime.date) -> Registry:
        """End every version of an agreement from that day on. One person is enough: this only narrows.

        Nothing is permitted after it that was not before: no service more is covered, no approval or acceptance of a
        risk more is in force, and no feature more may be used, since a data use agreement that is over goes on to
        narrow (`permitted_features`). So with an agreement that expires.
        """
        self.latest(id)
        registry = self
        for agreement in self.agreements:
            if agreement.terms.id == id and (agreement.terminated_on is None or on < agreement.terminated_on):
                registry = registry._replace(agreement, terminated_by=by, terminated_on=on)
        return registry

    def in_force(self, on: datetime.date, kind: Kind | None = None) -> tuple[Agreement, ...]:
        """Agreements that count on a day: of each, the newest version confirmed and effective by then, if in force.

        A newer version replaces the older one on its first day, even where the older one would have run longer; until
        then a renewal that is confirmed early leaves the older one in force.
        """
        return tuple(agreement for agreement in self._begun(on, kind) if agreement.in_force(on))

    def _begun(self, on: datetime.date, kind: Kind | None = None) -> tuple[Agreement, ...]:
        """Of each agreement of this hospital the newest version confirmed and effective by a day, in force or over."""
        newest: dict[str, Agreement] = {}
        for agreement in self.agreements:
            if agreement.confirmed(on) and agreement.terms.effective <= on:
                newest[agreement.terms.id] = agreement
        return tuple(
            agreement
            for agreement in newest.values()
            if is_party(self.organisation, agreement) and (kind is None or agreement.terms.kind == kind)
        )

    def covers(self, service: str, organisation: str, on: datetime.date) -> Agreement | None:
        """Return the BAA in force under which `organisation` may run `service` for this hospital, or None."""
        for agreement in self.in_force(on, "baa"):
            if is_party(organisation, agreement) and service in agreement.terms.services:
                return agreement
        return None

    def covered(self, services: tuple[ServiceEntry, ...], on: datetime.date) -> tuple[ServiceEntry, ...]:
        """Return those of `services` that may be used: run by this hospital itself, or covered by a BAA in force."""
        return tuple(
            service
            for service in services
            if same_identity(service.organisation, self.organisation)
            or self.covers(service.kind, service.organisation, on) is not None
        )

    def irb_approvals(self, on: datetime.date) -> tuple[tuple[str, str], ...]:
        """Return (number, purpose) of every IRB approval in force, sorted."""
        pairs = {(a.terms.reference, p) for a in self.in_force(on, "irb") for p in a.terms.purposes}
        return tuple(sorted(pairs))

    def permitted_features(self, irb: str, purpose: str, on: datetime.date) -> tuple[str, ...]:
        """Return the features that may be used: those that the IRB approvals with this number and purpose permit.

        Where data use agreements name the purpose (`use_agreements`), only features that one of those in force permits
        too; none once all of them are over. (Without an approval the control `irb` denies whatever stands here.)
        """
        approvals = [a for a in self.in_force(on, "irb") if a.terms.reference == irb and purpose in a.terms.purposes]
        sources = [
            {feature for a in agreements if a.in_force(on) for feature in a.terms.features}
            for agreements in (approvals, self.use_agreements(purpose, on))
            if agreements
        ]
        return tuple(sorted(set.intersection(*sources))) if sources else ()

    def use_agreements(self, purpose: str, on: datetime.date) -> tuple[Agreement, ...]:
        """Return data use agreements that have begun and name the purpose, in force or over; they narrow the features.

        Only a newer version that two people stand for, and that does not name the purpose, takes one out.
        """
        return tuple(a for a in self._begun(on, "dua") if purpose in a.terms.purposes)

    def accepts_risk(self, what: str, on: datetime.date) -> bool:
        """Return whether a risk acceptance in force names `what` (for example `NO_SANDBOX`)."""
        return any(what in a.terms.services for a in self.in_force(on, "risk_acceptance"))

    def relevant(self, services: tuple[ServiceEntry, ...], irb: str, purpose: str) -> tuple[Agreement, ...]:
        """Return agreements that could bear on a study, in force or not: what a decision stores and explains itself by.

        Each with all its versions, also those that say nothing of the study: one of them may have replaced another.
        """
        parties = {identity_key(service.organisation) for service in services}
        bear = {
            a.terms.id
            for a in self.agreements
            if (a.terms.kind == "baa" and parties & set(map(identity_key, a.terms.parties)))
            or (a.terms.kind == "irb" and a.terms.reference == irb)
            or (a.terms.kind in ("dua", "expert_determination") and purpose in a.terms.purposes)
            or a.terms.kind == "risk_acceptance"
        }
        return tuple(a for a in self.agreements if a.terms.id in bear)

    def expiring(self, on: datetime.date, within_days: int = SOON_DAYS) -> tuple[Expiry, ...]:
        """Return agreements in force that end within `within_days`, soonest first."""
        warnings = [
            Expiry(
                id=a.terms.id,
                kind=a.terms.kind,
                parties=a.terms.parties,
                expires=a.terms.expires,
                days_left=(a.terms.expires - on).days,
            )
            for a in self.in_force(on)
            if (a.terms.expires - on).days <= within_days
        ]
        return tuple(sorted(warnings, key=lambda w: (w.days_left, w.id)))

    def unconfirmed(self) -> tuple[Agreement, ...]:
        """Return the newest versions that wait for a second person."""
        ids = sorted({a.terms.id for a in self.agreements})
        return tuple(a for a in map(self.latest, ids) if a.confirmed_by is None and a.terminated_by is None)

    def import_toml(self, text: str, by: str, on: datetime.date) -> Registry:
        """Enter every `[[agreement]]` of a TOML text, unconfirmed; entries that already stand like this are left.

        Raises `RegistryError` naming the entry and the key, or `InputError` for one with a character that people don't
        see; then nothing is entered.
        """
        registry = self
        for terms in read_agreements(text):
            require_plain(terms, f"agreement {terms.id}")
            versions = [a for a in registry.agreements if a.terms.id == terms.id]
            if versions and versions[-1].terms == terms and versions[-1].terminated_on is None:
                continue
            registry = registry.enter(terms, by, on)
        return registry

    def _with(self, agreement: Agreement) -> Registry:
        try:
            return Registry(organisation=self.organisation, agreements=(*self.agreements, agreement))
        except ValidationError as error:
            raise RegistryError(first_problem(error)) from error

    def _replace(self, agreement: Agreement, **changes: Any) -> Registry:
        changed = Agreement(**(dict(agreement) | changes))
        return Registry(
            organisation=self.organisation,
            agreements=tuple(changed if a == agreement else a for a in self.agreements),
        )


def is_party(organisation: str, agreement: Agreement) -> bool:
    """Return whether an agreement names this organisation, however either is written."""
    return any(same_identity(organisation, party) for party in agreement.terms.parties)


class RegistryFile:
    """Where a hospital keeps its registry. Reading never waits for a writer; writers take turns."""

    def __init__(self, path: Path, organisation: str) -> None:
        self.path = path
        self.organisation = organisation

    def load(self) -> Registry:
        """Load the registry as it is now. A missing file is an empty registry, which covers nothing.

        Raises `RegistryError` for a file that is not a registry, is another hospital's, or may be written by others.
        """
        try:
            data = self.path.read_bytes()
            mode = self.path.stat().st_mode & 0o777
        except FileNotFoundError:
            return Registry(organisation=self.organisation)
        if mode & 0o022:
            raise RegistryError(f"{self.path}: mode {mode:o} lets others write it; run `chmod 600 {self.path}`")
        try:
            registry = Registry.parse(data)
        except ValueError as error:
            raise RegistryError(f"{self.path}: not a registry; restore it from a backup: {error}") from error
        if registry.organisation != self.organisation:
            raise RegistryError(
                f"{self.path}: this is the registry of {registry.organisation}, not of {self.organisation}"
            )
        return registry

    def settled(self) -> Registry:
        """Load the registry once nobody is changing it; raise as `load` does."""
        with self._one_writer():
            return self.load()

    def update(self, change: Callable[[Registry], Registry]) -> Registry:
        """Read, apply `change`, write atomically; nothing is written when `change` raises. Returns the new registry."""
        with self._one_writer():
            registry = change(self.load())
            replace_durably(self.path, registry.canonical())
            return registry

    def _one_writer(self) -> AbstractContextManager[None]:
        return held(self.path.with_name(self.path.name + ".lock"))
