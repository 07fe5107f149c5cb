"""What agreements permit of what one study needs, and what of it stops when they change.

For people who enter, confirm or end an agreement. It decides nothing and holds no rule of its own: everything is asked
of `Registry` by the functions whose answers the rules see (`policies.facts`), once as things are and once as they would
be.

>>> import datetime
>>> from datasites.study.manifest import ServiceEntry
>>> from policies.grounds import StudyNeeds, grounds, stops
>>> from policies.registry import AgreementTerms, Registry
>>> day = datetime.date(2026, 3, 1)
>>> terms = AgreementTerms(
...     id="baa", kind="baa", parties=("A", "Store Ltd"), services=("transport",), effective=day,
...     expires=datetime.date(2027, 3, 1), document="ab" * 32,
... )
>>> registry = Registry(organisation="A").enter(terms, "ann", day).confirm("baa", 1, "bob", day)
>>> needs = StudyNeeds(services=(ServiceEntry(kind="transport", organisation="Store Ltd"),), irb="", purpose="p")
>>> stops(registry, registry.terminate("baa", "ann", day), needs, day)
('Store Ltd may no longer run transport',)
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from pydantic import Field

from datasites.study.canonical import Agreed
from datasites.study.manifest import Name, ServiceEntry
from policies.registry import Registry

#: Who ends an agreement in thought; written nowhere.
NOBODY = "nobody"


class StudyNeeds(Agreed):
    """What one study needs agreements for: a part of its terms, its features (the label is one), and risks taken here.

    risks: safeguards that this hospital runs the study without, as a risk acceptance names them.
    """

    services: tuple[ServiceEntry, ...]
    irb: Annotated[str, Field(max_length=80)]
    purpose: Name
    features: tuple[Name, ...] = ()
    risks: tuple[Name, ...] = ()


class Grounds(Agreed):
    """What of a study's needs is permitted on a day; each a part of what it needs."""

    services: tuple[ServiceEntry, ...] = ()
    approvals: tuple[tuple[str, str], ...] = ()
    features: tuple[str, ...] = ()
    risks: tuple[str, ...] = ()

    def without(self, other: Grounds) -> Grounds:
        """Return what is permitted here and not there."""
        kept: dict[str, Any] = {
            name: tuple(one for one in getattr(self, name) if one not in getattr(other, name))
            for name in Grounds.model_fields
        }
        return Grounds(**kept)

    def __bool__(self) -> bool:
        """Say whether anything is permitted."""
        return any(getattr(self, name) for name in Grounds.model_fields)


def grounds(registry: Registry, needs: StudyNeeds, on: datetime.date) -> Grounds:
    """Return what the agreements in force on that day permit of what a study needs."""
    permitted = registry.permitted_features(needs.irb, needs.purpose, on)
    asked = (needs.irb, needs.purpose)
    return Grounds(
        services=registry.covered(needs.services, on),
        approvals=tuple(approval for approval in registry.irb_approvals(on) if approval == asked),
        features=tuple(feature for feature in needs.features if feature in permitted),
        risks=tuple(risk for risk in needs.risks if registry.accepts_risk(risk, on)),
    )


def lacks(registry: Registry, needs: StudyNeeds, on: datetime.date) -> bool:
    """Say whether something that the study needs is not permitted on that day."""
    wanted = Grounds(
        services=needs.services, approvals=((needs.irb, needs.purpose),), features=needs.features, risks=needs.risks
    )
    return bool(wanted.without(grounds(registry, needs, on)))


def stops(now: Registry, then: Registry, needs: StudyNeeds, on: datetime.date) -> tuple[str, ...]:
    """Say, one sentence each, what is permitted to a study by the agreements `now` and by those of `then` no more."""
    lost = grounds(now, needs, on).without(grounds(then, needs, on))
    return tuple(
        [f"{party} may no longer run {', '.join(kinds)}" for party, kinds in _by_party(lost.services).items()]
        + [f"IRB approval {number} for {purpose} is over" for number, purpose in lost.approvals]
        + ([f"no longer permitted: {', '.join(lost.features)}"] if lost.features else [])
        + [f"the risk {risk} is no longer accepted" for risk in lost.risks]
    )


def starts(now: Registry, then: Registry, needs: StudyNeeds, on: datetime.date) -> tuple[str, ...]:
    """Say, one sentence each, what is permitted to a study by the agreements of `then` and by those `now` not yet."""
    permitted = grounds(then, needs, on)
    new = permitted.without(grounds(now, needs, on))
    # Features without an approval are of no use to the study, and would read as if they were.
    features = new.features if permitted.approvals else ()
    return tuple(
        [f"{party} may run {', '.join(kinds)}" for party, kinds in _by_party(new.services).items()]
        + [f"IRB approval {number} for {purpose} is in force" for number, purpose in new.approvals]
        + ([f"permitted: {', '.join(features)}"] if features else [])
        + [f"the risk {risk} is accepted" for risk in new.risks]
    )


def ended(registry: Registry, id: str, on: datetime.date) -> Registry:
    """Return the registry as it were if somebody ended this agreement on that day."""
    return registry.terminate(id, NOBODY, on)


def supports(registry: Registry, id: str, needs: StudyNeeds, on: datetime.date) -> bool:
    """Say whether this agreement by itself permits something that the study needs, whatever others permit."""
    none = Registry(organisation=registry.organisation)
    only = Registry(organisation=registry.organisation, agreements=registry.versions(id))
    return bool(grounds(only, needs, on).without(grounds(none, needs, on)))


def _by_party(services: tuple[ServiceEntry, ...]) -> dict[str, list[str]]:
    parties: dict[str, list[str]] = {}
    for service in services:
        parties.setdefault(service.organisation, []).append(service.kind)
    return parties
