"""Facts of a study that every rule allows, for each action; tests change one fact at a time."""

import datetime
from typing import Any

from datasites.study.manifest import ServiceEntry
from policies.facts import (
    Action,
    Approval,
    BudgetFacts,
    CodeFacts,
    CohortFacts,
    Facts,
    ReleaseFacts,
    Reviewer,
    RosterFacts,
    TermFacts,
)
from policies.registry import AgreementTerms, Registry

TODAY = datetime.date(2026, 11, 24)
NOW = datetime.datetime(2026, 11, 24, 9, 30, tzinfo=datetime.UTC)
HOSPITAL = "General Hospital"
APPROVAL, OTHER_APPROVAL = "ab" * 32, "cd" * 32
STUDY, OTHER_STUDY = "12" * 32, "34" * 32
RESEARCHER = "researcher@university.example"
STEWARD, OFFICER = "steward@general.example", "officer@general.example"
HOSPITALS = tuple(f"datasite@{name}.example" for name in ("general", "north", "south", "west"))
FEATURES = ("age", "sex", "chol", "heart_disease")
DOCUMENT = "e3" * 32


def day(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text)


def baa(**changes: Any) -> AgreementTerms:
    return AgreementTerms.model_validate(
        {
            "id": "baa-centre",
            "kind": "baa",
            "parties": (HOSPITAL, "Centre"),
            "services": ("aggregation", "model_distribution", "transport"),
            "effective": day("2026-01-01"),
            "expires": day("2026-12-31"),
            "document": DOCUMENT,
        }
        | changes
    )


def irb(**changes: Any) -> AgreementTerms:
    return AgreementTerms.model_validate(
        {
            "id": "irb-heart",
            "kind": "irb",
            "parties": (HOSPITAL,),
            "reference": "IRB-17",
            "purposes": ("heart-risk",),
            "features": (*FEATURES, "thalach"),
            "effective": day("2026-01-01"),
            "expires": day("2027-01-31"),
            "document": DOCUMENT,
        }
        | changes
    )


def dua(**changes: Any) -> AgreementTerms:
    return AgreementTerms.model_validate(
        {
            "id": "dua-heart",
            "kind": "dua",
            "parties": (HOSPITAL, "University"),
            "purposes": ("heart-risk",),
            "features": (*FEATURES, "bmi"),
            "effective": day("2026-01-01"),
            "expires": day("2027-01-31"),
            "document": DOCUMENT,
        }
        | changes
    )


def registry(*terms: AgreementTerms, on: str = "2026-01-02") -> Registry:
    """All of `terms`, entered and confirmed by two people on one day."""
    value = Registry(organisation=HOSPITAL)
    for each in terms:
        value = value.enter(each, "clerk@general.example", day(on))
        value = value.confirm(each.id, value.latest(each.id).version, OFFICER, day(on))
    return value


SERVICES = tuple(
    ServiceEntry(kind=kind, organisation="Centre") for kind in ("aggregation", "model_distribution", "transport")
)

GROUPS: dict[str, Any] = {
    "terms": TermFacts(
        name="heart",
        purpose="heart-risk",
        irb="IRB-17",
        researcher=RESEARCHER,
        organisation="University",
        ends=day("2026-12-24"),
        services=SERVICES,
    ),
    "features": FEATURES,
    "agreements": registry(baa(), irb(), dua()).agreements,
    "budget": BudgetFacts(
        epsilon_spent=1.0,
        epsilon_reserved=0.5,
        epsilon_asked=2.0,
        epsilon_after=2.9,
        epsilon_cap=2.9,
        study_epsilon_after=2.0,
        study_epsilon_cap=2.0,
        delta=1e-5,
        delta_cap=1e-5,
        release_patients=900,
        declared_patients=900,
    ),
    "cohort": CohortFacts(hospitals=4, threshold=3, colluders=1, patients=300, min_patients=300),
    "code": CodeFacts(findings=0, rehearsal="passed", study=STUDY, frozen=STUDY, approval=APPROVAL),
    "approvals": (
        Approval(person=STEWARD, role="steward", approval=APPROVAL),
        Approval(person=OFFICER, role="privacy_officer", approval=APPROVAL),
    ),
    "state": "active",
    "sandbox": "on",
    "roster": RosterFacts(parties=(RESEARCHER, *HOSPITALS), pinned=(RESEARCHER, *HOSPITALS), aggregator="Centre"),
}


def facts_of(action: Action, **changes: Any) -> Facts:
    """Facts that allow `action`, with `changes`: a whole group, or group__field for one field of a group."""
    groups = dict(GROUPS)
    if action in ("intake", "approve"):
        groups["state"] = "submitted"
    if action == "intake":
        groups |= {"approvals": (), "code": GROUPS["code"].model_copy(update={"rehearsal": "not_run"}), "sandbox": None}
    if action == "approve":
        groups |= {
            "approvals": groups["approvals"][:1],
            "approver": Reviewer(person=OFFICER, role="privacy_officer"),
        }
    if action == "release":
        groups["release"] = ReleaseFacts(
            round=7, masked=True, noised=True, charged=True, dimension=42, expected_dimension=42
        )
    for name, value in changes.items():
        group, _, field = name.partition("__")
        groups[group] = groups[group].model_copy(update={field: value}) if field else value
    return Facts(action=action, approval=APPROVAL, hospital=HOSPITAL, today=groups.pop("today", TODAY), **groups)
