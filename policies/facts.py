"""What a decision is based on: facts, gathered once by the caller, and how rules see them.

`Facts` is what is stored with a decision; `context` turns it into the Cedar context that the rules read. Each group
of facts may be absent; a rule that needs an absent group denies. Whatever can be worked out from other facts (which
agreements are in force today, which approvals are of this very hash) is worked out here and not by the caller, so
that a stored decision can be evaluated again from its facts alone.
"""

from __future__ import annotations

import datetime
import decimal
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, model_validator

from datasites.study.canonical import Agreed
from datasites.study.identity import Email, identity_key, same_identity
from datasites.study.manifest import DELTA_OVER_ALL, Name, ServiceEntry, Sha256, StudyTerms
from policies.registry import NO_SANDBOX, Agreement, Organisation, Person, Registry

Action = Literal["intake", "approve", "run_round", "release"]
ReviewerRole = Literal["steward", "privacy_officer"]
State = Literal["submitted", "active", "paused", "revoked", "closed", "killed"]
Amount = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=0, le=10**12)]

ACTIONS: tuple[Action, ...] = ("intake", "approve", "run_round", "release")

#: Units in which rules count: Cedar has 64-bit whole numbers.
EPSILON_UNIT = decimal.Decimal("1e-6")
DELTA_UNIT = decimal.Decimal("1e-12")


class TermFacts(Agreed):
    """The terms of the study that rules look at."""

    name: Name
    purpose: Name
    irb: Annotated[str, Field(min_length=1, max_length=80)]
    researcher: Email
    organisation: Organisation
    ends: datetime.date
    services: tuple[ServiceEntry, ...]

    @classmethod
    def of(cls, study: StudyTerms) -> Self:
        """Take them from the frozen study."""
        return cls(**{name: getattr(study, name) for name in cls.model_fields})


class BudgetFacts(Agreed):
    """Privacy loss of the dataset and of the study at this hospital, from the ledger, before the action.

    epsilon_spent: composed over all rounds charged on the dataset; epsilon_reserved: what other studies hold;
    epsilon_asked: what this action would charge or reserve. epsilon_after: spent, reserved and asked composed by
    the accountant (at most their sum, never less than any one of them, so all four come from one accountant at one
    delta, `delta_cap`). study_*: the same for this study alone, at its own `delta`, against what was approved for it.

    release_patients: whose sum is released, by public declaration: this hospital's patients, or the whole cohort's
    where hospitals share the noise. declared_patients: this hospital's. delta_accepted: the largest delta that two
    people took the risk of for these patients; 0 where nobody did. (Decisions of older versions lack these three.)
    """

    epsilon_spent: Amount
    epsilon_reserved: Amount
    epsilon_asked: Amount
    epsilon_after: Amount
    epsilon_cap: Amount
    study_epsilon_after: Amount
    study_epsilon_cap: Amount
    delta: Annotated[float, Field(ge=0, le=1)]
    delta_cap: Annotated[float, Field(ge=0, le=1)]
    release_patients: Count = 0
    declared_patients: Count = 0
    delta_accepted: Annotated[float, Field(ge=0, le=1)] = 0.0


class CohortFacts(Agreed):
    """Size of the cohort and of this hospital's dataset.

    hospitals: participants of the round, or of the study before it runs. patients: the size that the hospital
    declares for the dataset beside its mock, never a count taken from private rows. min_patients: the larger of the
    study's and this hospital's own minimum.
    """

    hospitals: Count
    threshold: Count
    colluders: Count
    patients: Count
    min_patients: Count


class CodeFacts(Agreed):
    """What is known of what would run, computed again just now.

    study: the study hash under which the submission was frozen; frozen: that of the frozen copy as it lies there.
    approval: the approval hash of all that would run. differs: what of that is not as it was examined, in words; for
    people, and no rule sees it.
    """

    findings: Count
    rehearsal: Literal["passed", "failed", "not_run"]
    study: Sha256
    frozen: Sha256
    approval: Sha256
    differs: Annotated[tuple[str, ...], Field(max_length=64)] = ()


class Approval(Agreed):
    """One person's approval, in a role, of what has this approval hash."""

    person: Person
    role: ReviewerRole
    approval: Sha256


class Reviewer(Agreed):
    """Who is about to approve, and in which role."""

    person: Person
    role: ReviewerRole


class RosterFacts(Agreed):
    """parties: e-mail of the researcher and of every hospital of the cohort; pinned: those that are pinned here.

    aggregator: organisation that stands in the pinned entry of the study's researcher, whose key signs every round
    manifest; None when none is pinned.
    """

    parties: tuple[Email, ...]
    pinned: tuple[Email, ...]
    aggregator: Organisation | None = None


class ReleaseFacts(Agreed):
    """What is about to leave: one vector of `dimension` coordinates, of round `round`."""

    round: Annotated[int, Field(ge=1)]
    masked: StrictBool
    noised: StrictBool
    charged: StrictBool
    dimension: Count
    expected_dimension: Count


class Facts(Agreed):
    """All facts of one decision. `approval` is the hash that reviewers approve; `hospital` this hospital's name.

    `features` lists every column that the study reads, the label included. Groups left out are missing facts: the
    rules that need them deny.
    """

    action: Action
    approval: Sha256
    hospital: Organisation
    today: datetime.date
    terms: TermFacts | None = None
    features: tuple[Name, ...] | None = None
    agreements: tuple[Agreement, ...] | None = None
    budget: BudgetFacts | None = None
    cohort: CohortFacts | None = None
    code: CodeFacts | None = None
    approvals: tuple[Approval, ...] | None = None
    approver: Reviewer | None = None
    state: State | None = None
    sandbox: Literal["on", "off"] | None = None
    roster: RosterFacts | None = None
    release: ReleaseFacts | None = None

    @model_validator(mode="after")
    def _approver_only_at_approval(self) -> Self:
        if self.approver is not None and self.action != "approve":
            raise ValueError("approver is a fact of the action approve only")
        if self.release is not None and self.action != "release":
            raise ValueError("release is a fact of the action release only")
        return self

    @property
    def registry(self) -> Registry:
        """Return the registry of the agreements among these facts (empty when they are missing)."""
        return Registry(organisation=self.hospital, agreements=self.agreements or ())

    def people(self, role: ReviewerRole) -> tuple[str, ...]:
        """Return who approved this very hash in that role; approvals of other hashes are left out."""
        return tuple(sorted({a.person for a in self.approvals or () if a.role == role and a.approval == self.approval}))


def context(facts: Facts) -> dict[str, Any]:
    """Return the Cedar context of `facts`: plain JSON, of the type `Facts` in schema.cedarschema."""
    attributes: dict[str, Any] = {"approval": facts.approval, "today": _day(facts.today)}
    if facts.terms is not None:
        attributes["terms"] = {
            "purpose": facts.terms.purpose,
            "irb": facts.terms.irb,
            "researcher": identity_key(facts.terms.researcher),
            "ends": _day(facts.terms.ends),
            "services": [_service(facts, service) for service in facts.terms.services],
        }
    if facts.features is not None:
        attributes["features"] = list(facts.features)
    if facts.agreements is not None:
        attributes["agreements"] = _agreements(facts)
    if facts.budget is not None:
        attributes["budget"] = _budget(facts.budget)
    if facts.cohort is not None:
        cohort = facts.cohort.model_dump()
        attributes["cohort"] = {"minPatients": cohort.pop("min_patients"), **cohort}
    if facts.code is not None:
        attributes["code"] = facts.code.model_dump(exclude={"differs"})
    if facts.approvals is not None:
        attributes["people"] = {
            "stewards": [identity_key(person) for person in facts.people("steward")],
            "privacyOfficers": [identity_key(person) for person in facts.people("privacy_officer")],
        }
    if facts.approver is not None:
        attributes["approver"] = {"person": identity_key(facts.approver.person), "role": facts.approver.role}
    if facts.state is not None:
        attributes["state"] = facts.state
    if facts.sandbox is not None:
        attributes["sandbox"] = facts.sandbox
    if facts.roster is not None:
        attributes["roster"] = facts.roster.model_dump(mode="json", exclude_none=True)
        if facts.roster.aggregator is not None:
            attributes["roster"]["aggregator"] = _written(facts, facts.roster.aggregator)
    if facts.release is not None:
        attributes["release"] = {
            "masked": facts.release.masked,
            "noised": facts.release.noised,
            "charged": facts.release.charged,
            "dimension": facts.release.dimension,
            "expectedDimension": facts.release.expected_dimension,
        }
    return attributes


def _service(facts: Facts, service: ServiceEntry) -> dict[str, str]:
    return {"kind": service.kind, "organisation": _written(facts, service.organisation)}


def _written(facts: Facts, organisation: str) -> str:
    """Write an organisation as this hospital does, so that a rule that names it holds however a study writes it."""
    known = [facts.hospital, *(party for agreement in facts.agreements or () for party in agreement.terms.parties)]
    known += [service.organisation for service in facts.terms.services] if facts.terms else []
    return next((name for name in known if same_identity(name, organisation)), organisation)


def _agreements(facts: Facts) -> dict[str, Any]:
    registry, today, terms = facts.registry, facts.today, facts.terms
    covered = registry.covered(terms.services, today) if terms else ()
    permitted = registry.permitted_features(terms.irb, terms.purpose, today) if terms else ()
    return {
        "covered": [_service(facts, service) for service in covered],
        "irbApprovals": [{"number": n, "purpose": p} for n, p in registry.irb_approvals(today)],
        "permittedFeatures": list(permitted),
        "sandboxWaived": registry.accepts_risk(NO_SANDBOX, today),
    }


def _budget(budget: BudgetFacts) -> dict[str, int]:
    up, down = decimal.ROUND_CEILING, decimal.ROUND_FLOOR
    parts = max(budget.epsilon_spent, budget.epsilon_reserved, budget.epsilon_asked)
    return {
        "after": _units(budget.epsilon_after, EPSILON_UNIT, up),
        "cap": _units(budget.epsilon_cap, EPSILON_UNIT, down),
        "parts": _units(parts, EPSILON_UNIT, down),
        "studyAfter": _units(budget.study_epsilon_after, EPSILON_UNIT, up),
        "studyCap": _units(budget.study_epsilon_cap, EPSILON_UNIT, down),
        "delta": _units(budget.delta, DELTA_UNIT, up),
        "deltaCap": _units(budget.delta_cap, DELTA_UNIT, down),
        "deltaCapUp": _units(budget.delta_cap, DELTA_UNIT, up),
        "releaseDelta": _units(most_delta(budget.release_patients), DELTA_UNIT, down),
        "declaredDelta": _units(most_delta(budget.declared_patients), DELTA_UNIT, down),
        "acceptedDelta": _units(budget.delta_accepted, DELTA_UNIT, down),
    }


def most_delta(patients: int) -> float:
    """Return the largest delta for a release on so many patients that needs no acceptance of the risk; 0 for none."""
    return DELTA_OVER_ALL / patients if patients else 0.0


def counted_delta(limit: float) -> float:
    """Return the largest delta within `limit` in the rules' whole units: what a denial may name as allowed."""
    return float(_units(limit, DELTA_UNIT, decimal.ROUND_FLOOR) * DELTA_UNIT)


def _units(amount: float, unit: decimal.Decimal, rounding: str) -> int:
    # Through repr, so that a cap of 2.9 and a loss of 2.9 are the same number of units.
    return int((decimal.Decimal(repr(amount)) / unit).to_integral_value(rounding=rounding))


def _day(date: datetime.date) -> dict[str, Any]:
    return {"__extn": {"fn": "datetime", "arg": date.isoformat()}}
