"""Gathers the facts of a decision in one place, asks the policy engine, and stores facts and decision (I3).

Every gate of a case goes through `decide`: intake, approval, each round, each release.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar, cast, get_args

from datasites.hospital.audit.entered import agreements_by_hand, people_by_hand, pinned_by_hand, tell
from datasites.hospital.budget import ledger
from datasites.hospital.budget.population import accepted_delta
from datasites.hospital.cases.case import OpenCase
from datasites.hospital.config import Home
from datasites.hospital.database import DATABASE_AWAY
from datasites.hospital.models import Case, PolicyDecision, Review
from datasites.hospital.people.accounts import Actor, PersonError
from datasites.hospital.site import Site
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.dates import today
from datasites.study.errors import DatasitesError
from datasites.study.files import held, replace_durably
from datasites.study.identity import IdentityError
from datasites.study.manifest import RoundManifest
from datasites.study.roster import Roster
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
    TermFacts,
)
from policies.registry import NO_SANDBOX, Agreement, Registry, RegistryError, RegistryFile

log = logging.getLogger(__name__)

Fact = TypeVar("Fact")

#: The rule that speaks of nothing but the person who approves.
ABOUT_APPROVER = "people-approver"
#: In the datasite's home: the decision that is being put into audit log and database.
PENDING = "decision.pending"

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
    """Say whether the kill switch of the datasite is on."""
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
    decision = _engine(site.home).decide(_gather(site.home, case, action, approver, manifest, release))
    _store(site, case.row, action, manifest.round if manifest else None, decision)
    return decision


def finish_interrupted(site: Site) -> None:
    """Store the decision that was in the audit log, but not in the database, when a process was killed."""
    with at_rest(site):
        pass


@contextmanager
def at_rest(site: Site) -> Iterator[None]:
    """Keep others from deciding meanwhile; each decision that was made is in the audit log and in the database."""
    with held(site.home.root / f"{PENDING}.lock"):  # service, console and commands decide in processes of their own
        _finish(site)
        yield


def _store(site: Site, row: Case, action: Action, round: int | None, decision: Decision) -> None:
    # Log and database can't be written at once, and an evidence bundle holds one against the other. So the whole
    # decision lies in a file until it is in both: killed in between, the next one to decide or to export ends it.
    path = site.home.root / PENDING
    content = decision.model_dump(mode="json")
    fields = {"case_id": row.pk, "action": action, "round": round, "allowed": decision.allowed, "record": content}
    with at_rest(site):
        replace_durably(path, canonical_json(fields))
        site.audit.append(
            "decision",
            study=row.study_hash,
            action=action,
            allowed=decision.allowed,
            controls=list(decision.controls),
            digest=decision.digest(),
        )
        PolicyDecision.objects.create(**fields)
        path.unlink()


def _finish(site: Site) -> None:
    path = site.home.root / PENDING
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        return
    digest = sha256_hex(canonical_json(fields["record"]))
    same = PolicyDecision.objects.filter(case_id=fields["case_id"], action=fields["action"], round=fields["round"])
    stored = any(decision.record == fields["record"] for decision in same)
    logged = site.audit.holds("decision", digest=digest)
    # One that was not even logged was never acted on; a case that is gone went with its database.
    if logged and not stored and Case.objects.filter(pk=fields["case_id"]).exists():
        PolicyDecision.objects.create(**fields)
    path.unlink()


@dataclass(frozen=True)
class Preview:
    """The facts of a case as it stands, for its page, and what the policies say of them; nothing may rest on it."""

    facts: Facts
    engine: Engine

    @cached_property
    def decision(self) -> Decision:
        """Decide, once somebody looks; nothing is stored. Where nobody would act, who does is no reason to deny."""
        decision = self.engine.decide(self.facts)
        if self.facts.approver is not None:
            return decision
        # An error of some rule denies by a rule of its own, and so does a fact that is missing.
        denials = tuple(denial for denial in decision.denied_by if denial.rule != ABOUT_APPROVER)
        results = tuple(result for result in decision.results if result.rule != ABOUT_APPROVER)
        return decision.model_copy(update={"denied_by": denials, "results": results, "allowed": not denials})

    def by(self, person: str, role: ReviewerRole) -> Preview:
        """Return the same, as if this person (an e-mail address) were to approve."""
        return Preview(self.facts.model_copy(update={"approver": Reviewer(person=person, role=role)}), self.engine)


def preview(home: Home, case: OpenCase, approver: Actor | None = None) -> Preview:
    """Gather the facts of a case as for an approval, by `approver` where given, and record nothing.

    Raises `RuleError` where the rules can't be used.
    """
    return Preview(_gather(home, case, "approve", _as_reviewer(approver), None, None), _engine(home))


def preview_of(home: Home, decision: Decision) -> Preview | None:
    """Return a preview of an approval by the facts of a decision at intake, just made; None where it had none."""
    if decision.facts is None:
        return None
    return Preview(decision.facts.model_copy(update={"action": "approve"}), _engine(home))


def _as_reviewer(person: Actor | None) -> tuple[str, ReviewerRole] | None:
    if person is None or person.role not in get_args(ReviewerRole):
        return None
    return person.email, cast(ReviewerRole, person.role)


def _engine(home: Home) -> Engine:
    # The folder is made with the datasite, so one that is gone is a rule set that shrank: the engine refuses it.
    return Engine(local_dir=home.local_rules)


def _gather(
    home: Home,
    case: OpenCase,
    action: Action,
    approver: tuple[str, ReviewerRole] | None,
    manifest: RoundManifest | None,
    release: ReleaseFacts | None,
) -> Facts:
    # Another process may have paused or revoked the case since this one opened it; that counts from now on (I2).
    row = Case.objects.get(pk=case.row.pk)
    package, sandbox = case.package, home.settings.sandbox
    day = today()
    return Facts(
        action=action,
        approval=row.approval_hash or case.approval_hash,
        hospital=home.settings.organisation,
        today=day,
        terms=_known("terms", lambda: TermFacts.of(case.study)),
        features=_known(
            "features", lambda: tuple(f.name for f in (*package.data_model.features, package.data_model.label))
        ),
        agreements=_known("agreements", lambda: _agreements(home, case, day)),
        budget=_known("budget", lambda: _budget(case, manifest)),
        cohort=_known("cohort", lambda: _cohort(case, manifest)),
        code=_known("code", lambda: _code(row, case)),
        approvals=_known("approvals", lambda: _approvals(home, row)),
        approver=Reviewer(person=approver[0], role=approver[1]) if approver else None,
        state="killed" if is_killed(home) else _STATES[row.state],
        sandbox="on" if sandbox.mode == "required" else "off",
        roster=_known("roster", lambda: _roster(home, case)),
        release=release,
    )


def _known(group: str, gather: Callable[[], Fact]) -> Fact | None:
    """Return a group of facts, or None where it can't be gathered for any reason: a missing fact denies by name.

    A database that is unavailable is no reason: nothing is decided while it is, and who asked asks again.
    """
    try:
        return gather()
    except DATABASE_AWAY:
        raise
    except Exception:
        log.exception("the facts %r can't be gathered; what needs them is denied", group)
        return None


def require(decision: Decision, action: Action, approval: str) -> None:
    """Raise `Denied` unless the decision allows, now, this action on what people approve under this hash."""
    try:
        decision.require(action, approval, datetime.datetime.now(datetime.UTC))
    except PermissionError as error:
        raise Denied(decision) from error


def _approvals(home: Home, row: Case) -> tuple[Approval, ...]:
    given = [
        review
        for review in Review.objects.filter(case=row, verdict="approve").select_related("person")
        if review.role in get_args(ReviewerRole)
    ]
    people = {(review.person.username, review.role, review.person.email) for review in given}
    by_hand = people_by_hand(home, sorted(people), past=True)
    if by_hand and tell(home).added:
        raise PersonError(f"approvals: {'; '.join(by_hand)}; `datasites doctor` says what to do")
    return tuple(
        Approval(person=one.person.email, role=cast(ReviewerRole, one.role), approval=one.approval_hash)
        for one in given
    )


def _code(row: Case, case: OpenCase) -> CodeFacts:
    rehearsal = row.rehearsal.get("outcome", "not_run")
    return CodeFacts(
        findings=len(row.findings),
        rehearsal=rehearsal,
        study=row.study_hash,
        frozen=case.package.digest(),
        approval=case.approval_hash,
        differs=case.differs,
    )


def _agreements(home: Home, case: OpenCase, today: datetime.date) -> tuple[Agreement, ...]:
    file = RegistryFile(home.registry, home.settings.organisation)
    by_hand: list[str] = []
    # The log knows of a change a moment before the file does: looked at again once nobody is at it.
    for read in (file.load, file.settled):
        registry = read()
        by_hand = agreements_by_hand(home, registry.agreements, today)
        if not by_hand:
            return registry.relevant(case.study.services, case.study.irb, case.study.purpose)
    raise RegistryError(f"{file.path}: {'; '.join(by_hand)}; `datasites doctor` says what to do")


def may_run_code(home: Home, case: OpenCase) -> bool:
    """Whether submitted code may run at all: in a sandbox, or where two people have accepted the risk of having none.

    Rules say the same of approvals and rounds (`site-sandbox`); a rehearsal is asked here, since it comes before them.
    """
    if home.settings.sandbox.mode == "required":
        return True
    day = today()
    agreements = _known("agreements", lambda: _agreements(home, case, day)) or ()
    return Registry(organisation=home.settings.organisation, agreements=agreements).accepts_risk(NO_SANDBOX, day)


def _roster(home: Home, case: OpenCase) -> RosterFacts:
    roster = Roster.load(home.roster)
    parties = (case.study.researcher, *case.study.cohort.hospitals)
    entries = {entry.email: entry for entry in roster.entries if entry.email in parties}
    by_hand = pinned_by_hand(home, entries.values())
    if by_hand:
        raise IdentityError(f"{home.roster}: {'; '.join(by_hand)}; `datasites doctor` says what to do")
    pinned = {email: entries[email].organisation for email in parties if email in entries}
    return RosterFacts(parties=parties, pinned=tuple(pinned), aggregator=pinned.get(case.study.researcher))


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
    """Return the figures of the partition that stands worst, field by field; both partitions have the same cap.

    The study's own figure is by PLD at the study's delta, the dataset's by the Renyi filter at the dataset's.
    """
    dataset, study = case.dataset, case.package.digest()
    now = ledger.Reading.of(dataset)
    budget, account = now.budget, now.account(study)
    asked = case.round_asked(manifest) if manifest else case.asked()
    states, caps = now.state(), budget.caps
    # A round that is done again after a crash is charged already.
    again = manifest is not None and ledger.is_charged(account, manifest.round, asked)
    own = {
        partition: budget.prices.pld(
            [*(account.charged_events(partition) if manifest else []), *([] if again else [price.event])],
            case.priced_delta,
        )
        for partition, price in asked.items()
    }
    # A round is part of the reservation, which is part of what is committed; a new study comes on top.
    after = {state.partition: state.committed for state in states} if manifest else now.after(asked, study)
    return BudgetFacts(
        epsilon_spent=max(state.spent for state in states),
        epsilon_reserved=max(now.elsewhere(study).values()),
        epsilon_asked=max(budget.epsilon([price.event]) for price in asked.values()),
        epsilon_after=max(after.values()),
        epsilon_cap=caps.epsilon,
        study_epsilon_after=max(own.values()),
        study_epsilon_cap=case.study_cap,
        delta=case.study.privacy.delta,
        delta_cap=caps.delta,
        release_patients=case.release_patients,
        declared_patients=dataset.declared_patients,
        delta_accepted=accepted_delta(dataset.population),
    )
