"""A case as one frozen value for people to read: what a reviewer decides on, in the order in which a reviewer asks.

The command line prints it and the console shows it, so both say the same. Reading only; nothing may rest on it: every
action asks the policies again. `seen` names the state of things that a page showed, so that an action can refuse when
any of it has changed.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasites.hospital.budget import ledger
from datasites.hospital.budget.population import Caps
from datasites.hospital.cases.case import OpenCase, open_case
from datasites.hospital.cases.compliance import Preview, preview
from datasites.hospital.cases.freeze import FrozenCopyChanged, open_frozen
from datasites.hospital.cases.inbox import missing_roles
from datasites.hospital.config import Home
from datasites.hospital.data.sources import in_words
from datasites.hospital.models import Case, PolicyDecision, Review
from datasites.hospital.people.accounts import Actor
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.dates import today
from datasites.study.errors import DatasitesError, InputError
from datasites.study.identity import same_identity
from policies.agreements import Agreement
from policies.engine import Decision, read_decision
from policies.registry import RegistryError, RegistryFile

log = logging.getLogger(__name__)

#: States that only a case can be in that two people approved.
APPROVED_ONCE = (*Case.ACTIVE, Case.State.STOPPED, Case.State.REVOKED, Case.State.CLOSED)
#: States in which a study charges nothing more.
OVER = (Case.State.REVOKED, Case.State.CLOSED, Case.State.REJECTED)


@dataclass(frozen=True)
class BudgetLine:
    """Epsilon over all studies of one side of the patients: spent so far, committed now, with this study on top.

    With one that is over, nothing comes on top.

    Readings of the population's filter, against its cap.
    """

    partition: str
    spent: float
    committed: float
    after: float
    cap: float


@dataclass(frozen=True)
class Charged:
    """What a study has charged: epsilon of each side of the patients, at the delta that its own price is stated at."""

    epsilon: Mapping[str, float]
    rounds: int


@dataclass(frozen=True)
class ServiceLine:
    """A service of the study, who runs it, and the BAA in force that covers it (None where none does)."""

    kind: str
    organisation: str
    own: bool
    agreement: Agreement | None


@dataclass(frozen=True)
class ReviewLine:
    """One person's verdict."""

    person: str
    role: str
    verdict: str
    hash: str
    reason: str
    at: datetime.datetime


@dataclass(frozen=True)
class Examined:
    """What is known of a case once it has been examined. `files`: names and texts of the frozen copy.

    asked: the present facts, as for an approval by who looks, while the case waits for people; after that the last
    decision that was stored, since nobody approves a case that was decided.
    """

    case: OpenCase
    asked: Preview | Decision
    budget: tuple[BudgetLine, ...]
    services: tuple[ServiceLine, ...]
    files: Mapping[str, str]
    caps: Caps
    charged: Charged | None

    @property
    def asked_now(self) -> bool:
        """Say whether `decision` is of the present facts."""
        return isinstance(self.asked, Preview)

    @property
    def decision(self) -> Decision:
        """What the policies say; of the present facts they are asked when somebody looks (`Preview`)."""
        return self.asked.decision if isinstance(self.asked, Preview) else self.asked

    @property
    def is_over(self) -> bool:
        """Say whether the study charges nothing more."""
        return self.case.row.state in OVER

    @property
    def privacy(self) -> tuple[tuple[str, str], ...]:
        """What a patient may lose here by this study, what it costs, and what it has cost, each as (title, words)."""
        study, plan, cap = self.case.study, self.case.study_plan, self.case.study_cap
        here = f"epsilon {cap:g} at delta {plan.delta:g} per {self.case.plan.unit}, at most"
        if (cap, plan.delta) != (study.privacy.epsilon, study.privacy.delta):
            here += f"; the study asks for epsilon {study.privacy.epsilon:g} at delta {study.privacy.delta:g}"
        costs = f"training {plan.epsilon:.3f}, evaluation {plan.evaluation_epsilon:.3f} at delta {plan.delta:g} (PLD)"
        lines = [("Privacy here", here), ("The whole study would cost" if self.is_over else "This study costs", costs)]
        if self.charged is not None:
            lost = ", ".join(f"{name} patients {epsilon:.3f}" for name, epsilon in self.charged.epsilon.items())
            cost = f"{lost} at delta {plan.delta:g} (PLD), in {self.charged.rounds} charged round(s)"
            lines.append(("It cost" if self.is_over else "It has cost so far", cost.replace("held_out", "held-out")))
        return tuple(lines)

    @property
    def unchanged(self) -> bool:
        """Say whether what would run now is what the case's approval hash names."""
        return self.case.approval_hash == self.case.row.approval_hash


@dataclass(frozen=True)
class RehearsalFailure:
    """Where a rehearsal failed, what it says in one line, and the text of it as far as it was kept."""

    where: str
    message: str
    text: str


@dataclass(frozen=True)
class RehearsalReport:
    """What a rehearsal on mock data came to, for people. outcome: "passed", "failed" or "not run"."""

    outcome: str
    figures: str
    failures: tuple[RehearsalFailure, ...]

    #: What helps where one failed; each failure says more.
    remedy = (
        "The researcher corrects it and submits a new version; the text may be sent to them, since a rehearsal sees "
        "no patient's row, only mock rows. If it failed for this machine, correct that and recheck the case."
    )

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> RehearsalReport:
        """Read what the case keeps of its rehearsal."""
        outcome = str(found.get("outcome", "not run")).replace("_", " ")
        figures = ""
        if "seconds_per_round" in found:
            figures = f"{found['seconds_per_round']:.2f} s a round, {found['peak_memory_bytes'] / 2**20:.0f} MiB"
        texts = [(str(one.get("where", "")), str(one.get("reason", ""))) for one in found.get("findings", ())]
        if outcome != "passed" and found.get("reason"):
            where, _, rest = str(found["reason"]).partition(": ")
            texts.append((where, rest) if rest and " " not in where else ("", str(found["reason"])))
        failures = tuple(RehearsalFailure(where, _last_line(text), text) for where, text in texts)
        return cls(outcome, figures, failures)

    def __str__(self) -> str:
        failed = "; ".join(f"{one.where}: {one.message}" if one.where else one.message for one in self.failures)
        return ", ".join(filter(None, [self.outcome, self.figures])) + (f": {failed}" if failed else "")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else text


@dataclass(frozen=True)
class CaseView:
    """A case. `examined` is None where it could not be examined; `problem` then says why, or is empty.

    source: that table or mapping are not what the records were made from any more, in words, or "".
    """

    row: Case
    reviews: tuple[ReviewLine, ...]
    examined: Examined | None
    problem: str
    source: str = ""

    @property
    def late_features(self) -> list[dict[str, Any]]:
        """Features for which the hospital's table is not ready."""
        return [report for report in self.row.readiness if not report["ready"]]

    @property
    def rehearsal(self) -> RehearsalReport:
        """What the rehearsal on mock data came to."""
        return RehearsalReport.of(self.row.rehearsal)

    @property
    def missing(self) -> tuple[str, ...]:
        """Roles that have not approved the present hash yet, while the case is in review."""
        return missing_roles(self.row, [(r.role, r.verdict, r.hash) for r in self.reviews])

    @property
    def seen(self) -> str:
        """Digest of everything that a decision rests on, the date included; it changes when any of that does."""
        known: dict[str, Any] = {
            "approval": self.row.approval_hash,
            "state": str(self.row.state),
            "reviews": [[r.person, r.verdict, r.hash] for r in self.reviews],
            "problem": self.problem,
        }
        if self.examined is not None:
            asked = self.examined.asked
            # What the policies say follows from facts and rules; an act asks them itself.
            known["facts"] = asked.facts.model_dump(mode="json") if asked.facts else {}
            known["ruleset"] = asked.engine.ruleset if isinstance(asked, Preview) else asked.ruleset
            known["now"] = self.examined.case.approval_hash
        return sha256_hex(canonical_json(known))


def view_case(home: Home, row: Case, viewer: Actor | None = None) -> CaseView:
    """Return everything about one case, to `viewer` as one who might approve it.

    Raises `FrozenCopyChanged` or `InputError` when it is not what was examined.
    """
    examined = _examined(home, row, viewer) if row.approval_terms else None
    source = in_words(home, row, rows=False)
    return CaseView(row=row, reviews=_reviews(row), examined=examined, problem="", source=source)


def view_case_or_problem(home: Home, row: Case, viewer: Actor | None = None) -> CaseView:
    """Return `view_case`; an error becomes the view's `problem` instead, for a page that must show something."""
    try:
        return view_case(home, row, viewer)
    except DatasitesError as error:
        return problem_view(row, str(error))
    except Exception as error:
        # One bad case must not take its page, and so its rejection, from people.
        log.exception("case %d", row.pk)
        return problem_view(row, f"it can't be shown ({type(error).__name__}); the datasite's log says why")


def problem_view(row: Case, problem: str) -> CaseView:
    """Return a view of a case of which no more can be shown than that it is there."""
    return CaseView(row=row, reviews=_reviews(row), examined=None, problem=problem)


def approved_before(home: Home, row: Case) -> tuple[Case, Mapping[str, str]] | None:
    """Return the last version of this study from this researcher that was approved here earlier, with its files.

    Earlier by its number, so that a version submitted later never serves as the yardstick of an older one. None when
    there is none, or its frozen copy can't be trusted any more.
    """
    earlier = (
        Case.objects.filter(
            study_name=row.study_name, submitted_by=row.submitted_by, state__in=APPROVED_ONCE, pk__lt=row.pk
        )
        .order_by("-pk")
        .first()
    )
    if earlier is None:
        return None
    try:
        return earlier, open_frozen(home.frozen, earlier.study_hash).texts
    except (FrozenCopyChanged, ValueError, RecursionError):
        return None


def decisions_of(row: Case) -> list[PolicyDecision]:
    """Return the stored policy decisions about a case, newest first."""
    return list(PolicyDecision.objects.filter(case=row).order_by("-at")[:200])


def _reviews(row: Case) -> tuple[ReviewLine, ...]:
    return tuple(
        ReviewLine(r.person.username, r.role, r.verdict, r.approval_hash, r.reason, r.at)
        for r in Review.objects.filter(case=row).select_related("person")
    )


def _examined(home: Home, row: Case, viewer: Actor | None) -> Examined:
    case = open_case(home, row)
    reading = ledger.Reading.of(case.dataset)
    waits = row.state in Case.OPEN
    stored = None if waits else PolicyDecision.objects.filter(case=row).last()
    return Examined(
        case=case,
        asked=_read(stored) if stored is not None else preview(home, case, viewer),
        budget=_budget(case, reading),
        services=_services(home, case),
        files=case.package.texts,
        caps=reading.budget.caps,
        charged=_charged(case, reading) if row.state in APPROVED_ONCE else None,
    )


def _read(stored: PolicyDecision) -> Decision:
    try:
        return read_decision(json.dumps(stored.record).encode())
    except ValueError as error:
        raise InputError(
            f"policy decision {stored.pk}: can't be read as one; restore the datasite's database from a backup"
        ) from error


def _budget(case: OpenCase, reading: ledger.Reading) -> tuple[BudgetLine, ...]:
    now = reading.state()
    if case.row.state in OVER:
        after = {s.partition: s.committed for s in now}
    else:
        after = reading.after(case.asked(), case.row.study_hash)
    return tuple(BudgetLine(s.partition, s.spent, s.committed, after[s.partition], s.cap) for s in now)


def _charged(case: OpenCase, reading: ledger.Reading) -> Charged:
    study = case.row.study_hash
    figures = reading.charged(study, case.study_plan.priced_delta)
    epsilon = {partition: figure["pld"] for partition, figure in figures.items()}
    return Charged(epsilon, len(reading.account(study).charged))


def _services(home: Home, case: OpenCase) -> tuple[ServiceLine, ...]:
    day = today()
    own = home.settings.organisation
    try:
        registry = RegistryFile(home.registry, own).load()
    except RegistryError:
        registry = None
    return tuple(
        ServiceLine(
            service.kind,
            service.organisation,
            same_identity(service.organisation, own),
            registry.covers(service.kind, service.organisation, day) if registry else None,
        )
        for service in case.study.services
    )
