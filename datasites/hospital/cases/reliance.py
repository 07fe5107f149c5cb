"""Which studies here rest on an agreement, what of them stops when it ends, and what people may pick in a new one.

What a study needs is read from its frozen copy, and what agreements permit of it is asked of `policies.grounds`. For
people's eyes: nothing is decided or stored here, and each gate of a study asks the policies by itself (`compliance`).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from datasites.hospital.audit.entered import agreements_by_hand
from datasites.hospital.cases.freeze import FrozenCopyChanged, open_frozen
from datasites.hospital.config import Home
from datasites.hospital.data.mapping import read_mapping
from datasites.hospital.models import Case
from datasites.study.audit_chain import AuditError
from datasites.study.errors import InputError
from datasites.study.identity import IdentityError, same_identity
from datasites.study.manifest import REQUIRED_SERVICES
from datasites.study.package import StudyPackage
from datasites.study.roster import Roster
from policies.grounds import StudyNeeds, ended, lacks, starts, stops, supports
from policies.registry import NO_SANDBOX, Agreement, Registry, RegistryFile

#: Studies that are looked at for one page, newest first; one takes milliseconds, and a hospital has a few at a time.
MOST_STUDIES = 200
#: States in which a study asks nothing more of the policies.
_DONE = (*Case.ENDED, Case.State.REFUSED)


@dataclass(frozen=True)
class OpenStudy:
    """A study here that is not over, and what it needs agreements for. needs: None where its frozen copy is damaged."""

    case_id: int
    name: str
    state: str
    needs: StudyNeeds | None


@dataclass(frozen=True)
class Reliance:
    """One study that an agreement permits something. stops: what of that ends with it, in sentences.

    Nothing stops where other agreements permit the same.
    """

    study: OpenStudy
    stops: tuple[str, ...]


@dataclass(frozen=True)
class Effect:
    """What a change of the registry does to one study, in sentences. ready: nothing that it needs is lacking then."""

    study: OpenStudy
    stops: tuple[str, ...]
    starts: tuple[str, ...]
    ready: bool


@dataclass(frozen=True)
class Choices:
    """What people may pick in an agreement: whatever the roster, studies, mappings and agreements here name.

    pinned: parties in the roster; parties: others.
    """

    pinned: tuple[str, ...]
    parties: tuple[str, ...]
    services: tuple[str, ...]
    purposes: tuple[str, ...]
    features: tuple[str, ...]


def open_studies(home: Home) -> tuple[OpenStudy, ...]:
    """Return the studies here that are not over, newest first."""
    known: dict[str, StudyNeeds | None] = {}
    rows = Case.objects.exclude(state__in=_DONE).only("pk", "study_hash", "study_name", "state")[:MOST_STUDIES]
    return tuple(OpenStudy(row.pk, row.study_name, row.state, _needs(home, row.study_hash, known)) for row in rows)


def _needs(home: Home, study_hash: str, known: dict[str, StudyNeeds | None]) -> StudyNeeds | None:
    if study_hash not in known:
        try:
            known[study_hash] = needs_of(home, open_frozen(home.frozen, study_hash))
        except (FrozenCopyChanged, ValueError, RecursionError):
            known[study_hash] = None
    return known[study_hash]


def needs_of(home: Home, package: StudyPackage) -> StudyNeeds:
    """Return what a study needs agreements for at this hospital."""
    study, model = package.study, package.data_model
    return StudyNeeds(
        services=study.services,
        irb=study.irb,
        purpose=study.purpose,
        features=tuple(feature.name for feature in (*model.features, model.label)),
        risks=() if home.settings.sandbox.mode == "required" else (NO_SANDBOX,),
    )


def rests_on(registry: Registry, id: str, studies: Iterable[OpenStudy], on: datetime.date) -> tuple[Reliance, ...]:
    """Return the studies that this agreement permits something on that day, those first of which something stops."""
    then = ended(registry, id, on)
    found = [
        Reliance(study, lost)
        for study, needs in _readable(studies)
        if (lost := stops(registry, then, needs, on)) or supports(registry, id, needs, on)
    ]
    return tuple(sorted(found, key=lambda reliance: not reliance.stops))


def effects(now: Registry, then: Registry, studies: Iterable[OpenStudy], on: datetime.date) -> tuple[Effect, ...]:
    """Return the studies of which something stops or starts, where `then` is the registry on that day."""
    found = (
        Effect(study, stops(now, then, needs, on), starts(now, then, needs, on), not lacks(then, needs, on))
        for study, needs in _readable(studies)
    )
    return tuple(effect for effect in found if effect.stops or effect.starts)


def once_confirmed(
    registry: Registry, agreement: Agreement, studies: Iterable[OpenStudy], today: datetime.date
) -> tuple[datetime.date, tuple[Effect, ...]]:
    """Return the first day on which this version counts, were it confirmed today, and what it changes on that day."""
    day = max(today, agreement.terms.effective)
    confirmed = agreement.model_copy(update={"confirmed_by": "nobody-else", "confirmed_on": today})
    others = tuple(a for a in registry.agreements if a != agreement)
    then = Registry(organisation=registry.organisation, agreements=(*others, confirmed))
    return day, effects(registry, then, studies, day)


def by_hand(home: Home, registry: Registry, today: datetime.date) -> list[str]:
    """Say where the registry is not what the audit log says people entered; nothing counts while it isn't."""
    file = RegistryFile(home.registry, home.settings.organisation)
    # The log knows of a change a moment before the file does: looked at again once nobody is at it.
    try:
        found = agreements_by_hand(home, registry.agreements, today)
        return found and agreements_by_hand(home, file.settled().agreements, today)
    except AuditError as error:
        return [str(error)]


def choices(home: Home, registry: Registry, studies: Iterable[OpenStudy]) -> Choices:
    """Return what may be picked; a mapping or roster that can't be read offers nothing."""
    needs = [needs for _, needs in _readable(studies)]
    terms = [agreement.terms for agreement in registry.agreements]
    pinned = _parties(home, _pinned(home))
    named = [party for one in terms for party in one.parties]
    named += [service.organisation for need in needs for service in need.services]
    return Choices(
        pinned=pinned,
        parties=tuple(p for p in _parties(home, named) if not any(same_identity(p, other) for other in pinned)),
        services=_names(
            (
                *REQUIRED_SERVICES,
                *(service.kind for need in needs for service in need.services),
                *(service for one in terms if one.kind != "risk_acceptance" for service in one.services),
            )
        ),
        purposes=_names((*(need.purpose for need in needs), *(p for one in terms for p in one.purposes))),
        features=_names((*known_features(home, studies), *(feature for one in terms for feature in one.features))),
    )


def known_features(home: Home, studies: Iterable[OpenStudy]) -> tuple[str, ...]:
    """Return the features that studies here ask for or that a mapping of this hospital makes."""
    asked = [feature for _, needs in _readable(studies) for feature in needs.features]
    return _names((*asked, *_mapped(home)))


def _pinned(home: Home) -> list[str]:
    try:
        return [entry.organisation for entry in Roster.load(home.roster).entries]
    except IdentityError:
        return []


def _mapped(home: Home) -> Iterator[str]:
    for dataset in home.settings.datasets:
        try:
            yield from read_mapping(home.root / dataset.mapping).columns
        except InputError:
            continue


def _readable(studies: Iterable[OpenStudy]) -> Iterator[tuple[OpenStudy, StudyNeeds]]:
    return ((study, study.needs) for study in studies if study.needs is not None)


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


def _parties(home: Home, names: Iterable[str]) -> tuple[str, ...]:
    """Return each party once, without this hospital, in the spelling that comes first by the alphabet."""
    found: list[str] = []
    for name in _names(names):
        if not any(same_identity(name, other) for other in (home.settings.organisation, *found)):
            found.append(name)
    return tuple(found)
