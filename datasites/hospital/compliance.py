"""Gathers the facts of a decision in one place, asks the policy engine, and stores facts and decision (I3).

Every gate of a case goes through `decide`: intake, approval, each round, each release.
"""

from __future__ import annotations

import datetime
import logging
from typing import get_args

from datasites.hospital import ledger
from datasites.hospital.cases import OpenCase
from datasites.hospital.config import Home
from datasites.hospital.models import Case, PolicyDecision, Review
from datasites.hospital.site import Site
from datasites.privacy.accountant import epsilon_rdp
from datasites.study.errors import DatasitesError
from datasites.study.identity import IdentityError, Roster
from datasites.study.manifest import RoundManifest
from policies.engine import Decision, Engine
from policies.facts import (
    Action,
    Approval,
    BudgetFacts,
    CodeFacts,
    CohortFacts,
    Facts,
    ReleaseFacts,
    Reviewer,
    ReviewerRole,
    RosterFacts,
    State,
    StudyTerms,
)
from policies.registry import Agreement, RegistryError, RegistryFile

log = logging.getLogger(__name__)

_STATES: dict[str, State] = {
    Case.State.INTAKE: "submitted",
    Case.State.REVIEW: "submitted",
    Case.State.APPROVED: "active",
    Case.State.RUNNING: "active",
    Case.State.PAUSED: "paused",
    Case.State.STOPPED: "paused",
    Case.State.REVOKED: "revoked",
    Case.State.REJECTED: "revoked",
    Case.State.REFUSED: "revoked",
    Case.State.CLOSED: "closed",
}


class Denied(DatasitesError):
    """A policy denies; the message names every control that does. `controls` is all that others may be told."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"denied: {decision.summary}")
        self.decision = decision
        self.controls = decision.controls


def is_killed(home: Home) -> bool:
    """Whether the kill switch of the datasite is on."""
    return (home.root / "KILLED").exists()


def decide(
    site: Site,
    case: OpenCase,
    action: Action,
    *,
    approver: tuple[str, ReviewerRole] | None = None,
    manifest: RoundManifest | None = None,
    release: ReleaseFacts | None = None,
) -> Decision:
    """Gather facts, decide, store. Returns the decision, allowed or not; never allows on an error."""
    decision = _ask(site.home, case, action, approver, manifest, release)
    PolicyDecision.objects.create(
        case=case.row,
        action=action,
        round=manifest.round if manifest else None,
        allowed=decision.allowed,
        record=decision.model_dump(mode="json"),
    )
    site.audit.append(
        "decision",
        study=case.row.study_hash,
        action=action,
        allowed=decision.allowed,
        controls=list(decision.controls),
        digest=decision.digest(),
    )
    return decision


def preview(home: Home, case: OpenCase) -> Decision:
    """What the policies say of the case as it stands, for its page; nothing is stored and nothing may rest on it."""
    return _ask(home, case, "intake", None, None, None)


def _ask(
    home: Home,
    case: OpenCase,
    action: Action,
    approver: tuple[str, ReviewerRole] | None,
    manifest: RoundManifest | None,
    release: ReleaseFacts | None,
) -> Decision:
    facts = Facts(
        action=action,
        study=case.row.approval_hash or case.approval_hash,
        hospital=home.settings.organisation,
        today=datetime.datetime.now(datetime.UTC).date(),
        terms=StudyTerms.of(case.study),
        features=tuple(feature.name for feature in (*case.package.data_model.features, case.package.data_model.label)),
        agreements=_agreements(home, case),
        budget=_budget(case, manifest),
        cohort=_cohort(case, manifest),
        code=CodeFacts(
            findings=len(case.row.findings),
            rehearsal=case.row.rehearsal.get("outcome", "not_run"),
            frozen=case.approval_hash,
        ),
        approvals=_approvals(case.row),
        approver=Reviewer(person=approver[0], role=approver[1]) if approver else None,
        state="killed" if is_killed(home) else _STATES[case.row.state],
        sandbox="on" if home.settings.sandbox.mode == "required" else "off",
        roster=_roster(home, case),
        release=release,
    )
    # The folder is made with the datasite, so one that is gone is a rule set that shrank: the engine refuses it.
    return Engine(local_dir=home.local_rules).decide(facts)


def require(decision: Decision) -> None:
    """Raise `Denied` unless the decision allows, now, what it was asked about."""
    try:
        decision.require(decision.action, decision.study, datetime.datetime.now(datetime.UTC))
    except PermissionError as error:
        raise Denied(decision) from error


def _approvals(row: Case) -> tuple[Approval, ...]:
    return tuple(
        Approval(person=review.person.email, role=review.role, study=review.approval_hash)
        for review in Review.objects.filter(case=row, verdict="approve").select_related("person")
        if review.role in get_args(ReviewerRole)
    )


def _agreements(home: Home, case: OpenCase) -> tuple[Agreement, ...] | None:
    """Agreements that bear on the study; None (a missing fact, which denies) when the registry can't be read."""
    try:
        registry = RegistryFile(home.registry, home.settings.organisation).load()
    except RegistryError as error:
        log.error("%s", error)
        return None
    return registry.relevant(case.study.services, case.study.irb, case.study.purpose)


def _roster(home: Home, case: OpenCase) -> RosterFacts:
    roster = Roster.load(home.roster)
    parties = (case.study.researcher, *case.study.cohort.hospitals)
    pinned = []
    for email in parties:
        try:
            roster.get(email)
        except IdentityError:
            continue
        pinned.append(email)
    return RosterFacts(parties=parties, pinned=tuple(pinned))


def _cohort(case: OpenCase, manifest: RoundManifest | None) -> CohortFacts:
    cohort = case.study.cohort
    return CohortFacts(
        hospitals=len(manifest.participants) if manifest else len(cohort.hospitals),
        threshold=manifest.threshold if manifest else cohort.survivors_needed,
        colluders=cohort.colluders,
        patients=case.dataset.declared_patients,
        min_patients=max(cohort.min_patients, case.dataset.min_patients),
    )


def _budget(case: OpenCase, manifest: RoundManifest | None) -> BudgetFacts:
    """Figures of the partition that stands worst, field by field; both partitions have the same cap."""
    dataset, study = case.dataset, case.package.digest()
    asked = case.round_asked(manifest) if manifest else case.asked()
    states = ledger.state(dataset)
    charged = ledger.study_charges(dataset, study) if manifest else {}
    own = {
        partition: epsilon_rdp([*charged.get(partition, []), price.event], dataset.delta)
        for partition, price in asked.items()
    }
    # A round is part of the reservation, which is part of what is committed; a new study comes on top.
    after = (
        {state.partition: state.committed_rdp for state in states}
        if manifest
        else ledger.epsilon_after(dataset, asked, study)
    )
    return BudgetFacts(
        epsilon_spent=max(state.spent_rdp for state in states),
        epsilon_reserved=max(ledger.committed_elsewhere(dataset, study).values()),
        epsilon_asked=max(epsilon_rdp([price.event], dataset.delta) for price in asked.values()),
        epsilon_after=max(after.values()),
        epsilon_cap=dataset.epsilon,
        study_epsilon_after=max(own.values()),
        study_epsilon_cap=min(dataset.study_epsilon, case.study.privacy.epsilon),
        delta=dataset.delta,
        delta_cap=dataset.delta,
    )
