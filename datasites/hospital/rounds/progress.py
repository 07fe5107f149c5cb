"""How far a study has come at this hospital, for people to read: each round, what it cost, who was away, what is next.

The console shows it and the command prints it, so both say the same. Reading only, and nothing is priced here: what a
round cost is the figure on which the policies decided when it was charged, as it was stored with their decision.
"""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db.models import Count, F, IntegerField, Max, Q, QuerySet
from django.db.models.fields.json import KT
from django.db.models.functions import Cast
from django.utils import timezone

from datasites.hospital.cases.compliance import is_killed
from datasites.hospital.cases.freeze import FrozenCopyChanged, open_frozen
from datasites.hospital.config import Home
from datasites.hospital.models import Case, LedgerEntry, PolicyDecision, Round
from datasites.study.errors import DatasitesError
from datasites.study.manifest import StudyTerms
from datasites.study.roster import Roster

#: Rounds on one page.
PAGE = 50
#: Rounds by whose beginnings the next one is foreseen.
RECENT = 8
#: States of a round in which this hospital's masked vector has left.
DONE = (Round.State.RELEASED, Round.State.UNMASKED)
_STATES = {
    Round.State.ACCEPTED: "begun",
    Round.State.CHARGED: "training here",
    Round.State.RELEASED: "sent",
    Round.State.UNMASKED: "in the sum",
    Round.State.FAILED: "sat out",
}
#: Steps of a round as people are shown them (`steps_of`): the one that a round in this state is at, from 1.
_STEP = {Round.State.ACCEPTED: 1, Round.State.CHARGED: 2, Round.State.RELEASED: 5, Round.State.UNMASKED: 6}


@dataclass(frozen=True)
class WayStep:
    """One step on a round's way, in plain English."""

    title: str
    text: str


@dataclass(frozen=True)
class RoundLine:
    """One round at this hospital.

    epsilon: what the study has cost by this round the patients who lose most by it, at the study's delta; None where
    that was not stored. added: what this round added to it, where that is known. away: names of the hospitals that are
    not in the sum; None while this hospital has not been sent the list.
    """

    round: Round
    is_final: bool
    state: str
    charged_at: datetime.datetime | None
    epsilon: float | None
    added: float | None
    away: tuple[str, ...] | None

    @property
    def cost(self) -> str:
        """What the round cost, in words; each figure with two decimals."""
        if self.charged_at is None:
            return "not charged"
        if self.epsilon is None:
            return "charged; the figure was not stored"
        if self.is_final:
            return f"{in_epsilon(self.epsilon)} for held-out patients"
        return in_epsilon(self.epsilon) + (f" (+{in_epsilon(self.added)})" if self.added is not None else "")


@dataclass(frozen=True)
class StudyProgress:
    """A study's rounds here, newest first, `PAGE` at a time, and what happens next.

    planned: rounds that train; after them comes one for the final evaluation. study: None where the frozen copy can't
    be read, so that nobody can say who was to take part. at: the step that the newest round is at, 0 for none.
    """

    planned: int
    trained: int
    evaluation: str
    lines: tuple[RoundLine, ...]
    pages: int
    page: int
    next: str
    study: StudyTerms | None
    at: int = 0
    steps: tuple[WayStep, ...] = field(default=())

    @property
    def summary(self) -> str:
        """Say how far it is, in one line."""
        return counted_in_words(self.trained, self.planned, self.evaluation)


def in_epsilon(value: float) -> str:
    """Return an epsilon with two decimals; what would be 0.00 and is more is said to be below 0.01."""
    return "below 0.01" if 0 < value < 0.005 else f"{value:.2f}"


def with_counts(rows: QuerySet[Case]) -> QuerySet[Case]:
    """Add to each case how many rounds trained, failed and were planned, the final evaluation's, and the last one."""
    final = Q(rounds__round__gt=F("planned"))
    done = Q(rounds__state__in=DONE)
    return rows.annotate(planned=Cast(KT("approval_terms__plan__rounds"), IntegerField())).annotate(
        trained=Count("rounds", filter=done & ~final),
        evaluations=Count("rounds", filter=final),
        evaluated=Count("rounds", filter=final & done),
        failed=Count("rounds", filter=Q(rounds__state=Round.State.FAILED)),
        last=Max("rounds__at"),
    )


def counted(row: Any) -> str:
    """Say how far a case of `with_counts` is, in one line."""
    return counted_in_words(row.trained, row.planned or 0, _evaluation(row.evaluations, row.evaluated))


def counted_in_words(trained: int, planned: int, evaluation: str) -> str:
    """Return such as "3 of 3 training rounds, evaluation done"."""
    return f"{trained} of {planned} training rounds, evaluation {evaluation}"


def _evaluation(begun: int, done: int) -> str:
    return "done" if done else "begun" if begun else "to come"


def progress(home: Home, row: Case, page: int = 1) -> StudyProgress:
    """Return how far a study that was approved has come; page: from 1, the newest rounds first."""
    planned = int(row.approval_terms.get("plan", {}).get("rounds", 0))
    rounds = Round.objects.filter(case=row)
    final = Q(round__gt=planned)
    found = rounds.aggregate(
        held=Count("pk"),
        trained=Count("pk", filter=Q(state__in=DONE) & ~final),
        evaluations=Count("pk", filter=final),
        evaluated=Count("pk", filter=Q(state__in=DONE) & final),
    )
    evaluation = _evaluation(found["evaluations"], found["evaluated"])
    pages = max(1, -(-found["held"] // PAGE))
    page = min(max(page, 1), pages)
    start = (page - 1) * PAGE
    # One more than is shown: what a round added is told by the one before it.
    shown = list(rounds.order_by("-round")[start : start + PAGE + 1])
    newest = shown[:RECENT] if page == 1 else list(rounds.order_by("-round")[:RECENT])
    study = _study(home, row)
    ledger = _ledger(row, [r.round for r in shown])
    return StudyProgress(
        planned=planned,
        trained=found["trained"],
        evaluation=evaluation,
        lines=_lines(home, row, planned, shown, study, ledger, newest[0].round if newest else 0)[:PAGE],
        pages=pages,
        page=page,
        next=_next(home, row, planned, newest, study, ledger.get(0)),
        study=study,
        at=_STEP.get(Round.State(newest[0].state), 0) if newest and row.state == Case.State.RUNNING else 0,
        steps=steps_of(study) if study else (),
    )


def steps_of(study: StudyTerms) -> tuple[WayStep, ...]:
    """Return the way of one round in plain words, from one model to the next."""
    least = study.cohort.survivors_needed
    noise = (
        "Each hospital adds its part of the noise. Together it hides whether any one patient took part."
        if study.is_distributed
        else "This hospital adds noise that hides whether any one patient took part."
    )
    return (
        WayStep(
            "The model arrives", "The rules are asked again, and the round is charged to the budget, before all else."
        ),
        WayStep("It trains here", "On this hospital's patients, in a sandbox without network. No record leaves."),
        WayStep("Noise is added", noise),
        WayStep("It is masked", "The list of numbers looks random to everybody who sees it by itself. It is sent."),
        WayStep(
            "The lists are added up",
            f"In the sum the masks cancel. It opens only with {least} hospitals or more, so nobody sees one list.",
        ),
        WayStep("A new model", "The researcher computes it from the sum. With it the next round begins."),
    )


def _study(home: Home, row: Case) -> StudyTerms | None:
    try:
        return open_frozen(home.frozen, row.study_hash).study
    except (FrozenCopyChanged, ValueError, RecursionError):
        return None


def _ledger(row: Case, rounds: Sequence[int]) -> dict[int, datetime.datetime]:
    """Return when each of these rounds was charged, and under 0 when what was left of the reservation was freed."""
    lines = LedgerEntry.objects.filter(study_hash=row.study_hash).filter(
        Q(kind="charge", round__in=rounds) | Q(kind="release")
    )
    return {0 if kind == "release" else round: at for kind, round, at in lines.values_list("kind", "round", "at")}


def _lines(
    home: Home,
    row: Case,
    planned: int,
    shown: Sequence[Round],
    study: StudyTerms | None,
    ledger: Mapping[int, datetime.datetime],
    newest: int,
) -> tuple[RoundLine, ...]:
    figures = _figures(row, [r.round for r in shown])
    names = _names(home) if study is not None else {}
    lines = []
    for place, r in enumerate(shown):
        epsilon, added = figures.get(r.round), None
        before = next((b for b in shown[place + 1 :] if b.round in ledger), None)
        if epsilon is not None and r.round <= planned:
            # Of the very first round all is its own. A round that evaluates too may have cost held-out patients more
            # than training ones, so that a difference would be of two groups of people.
            first = before is None and len(shown) <= PAGE
            other = 0.0 if first else figures.get(before.round) if before is not None else None
            interim = study is None or study.evaluation.every > 0
            added = epsilon - other if other is not None and not interim and epsilon >= other else None
        lines.append(
            RoundLine(
                round=r,
                is_final=r.round > planned,
                state=_state(r, newest),
                charged_at=ledger.get(r.round),
                epsilon=epsilon,
                added=added,
                away=_away(r, study, names),
            )
        )
    return tuple(lines)


def _state(r: Round, newest: int) -> str:
    if r.state == Round.State.RELEASED and r.round < newest:
        return "sent, not added up"
    return _STATES[Round.State(r.state)]


def _figures(row: Case, rounds: Iterable[int]) -> dict[int, float]:
    """Return the study's own epsilon by each of these rounds, as the policies were told it when they allowed it."""
    decisions = PolicyDecision.objects.filter(case=row, action="run_round", allowed=True, round__in=list(rounds))
    known = decisions.order_by("pk").values_list("round", KT("record__facts__budget__study_epsilon_after"))
    found = {}
    for round, value in known:
        try:
            found[round] = float(value)
        except (TypeError, ValueError):
            continue  # of an older format, or without facts of the budget
    return found


def _away(r: Round, study: StudyTerms | None, names: Mapping[str, str]) -> tuple[str, ...] | None:
    if study is None or r.state != Round.State.UNMASKED:
        return None
    return tuple(names.get(email, email) for email in study.cohort.hospitals if email not in r.survivors)


def _names(home: Home) -> dict[str, str]:
    try:
        known = {entry.email: entry.organisation for entry in Roster.load(home.roster).entries}
    except (DatasitesError, OSError, ValueError):
        known = {}
    return known | {home.settings.email: home.settings.organisation}


def _next(
    home: Home,
    row: Case,
    planned: int,
    newest: Sequence[Round],
    study: StudyTerms | None,
    freed: datetime.datetime | None,
) -> str:
    """Say what happens next, who does it, and when that is to be expected."""
    if row.state in (Case.State.REFUSED, Case.State.REJECTED):
        return "Nothing: the study was not approved here."
    if row.state in (Case.State.INTAKE, Case.State.REVIEW):
        return "No round begins before two people have approved the study here."
    if row.state in Case.ENDED:
        when = f" since {freed:%Y-%m-%d %H:%M} UTC" if freed else ""
        return f"Nothing: the study is over here{when}. Budget that it did not use is free again."
    if row.state == Case.State.PAUSED:
        return (
            "Nothing, until a data steward or privacy officer resumes it here. Other hospitals go on without this one."
        )
    if row.state == Case.State.STOPPED:
        return "Nothing, until a data steward or privacy officer decides how it goes on."
    if is_killed(home):
        return "Nothing, until a data steward or privacy officer turns the kill switch off."
    last = newest[0] if newest else None
    if last is not None and last.state in (Round.State.ACCEPTED, Round.State.CHARGED):
        what = "trains" if last.round <= planned else "evaluates the final model"
        return (
            f"This hospital {what} now, for round {last.round}. What it computes is sent once it is noised and masked."
        )
    ends = f" No round begins after {study.ends:%Y-%m-%d}, when the study ends." if study else ""
    if last is not None and last.round > planned and last.state != Round.State.FAILED:
        return (
            f"All rounds are done. The researcher ends the study; what it did not use of its budget is then free.{ends}"
        )
    number = last.round + 1 if last is not None else 1
    if number > planned + 1:
        return f"No round is left. The researcher ends the study; what it did not use of its budget is then free.{ends}"
    what = f"round {number} of {planned}" if number <= planned else "the final evaluation"
    asks = f"The researcher begins {what}"
    if last is None:
        return f"{asks}, once enough hospitals have approved the study. Nothing is to be done here.{ends}"
    if last.state == Round.State.RELEASED:
        asks = f"The researcher adds up round {last.round}, then begins {what}"
    return f"{asks}. {_foreseen(newest)}{ends}".replace("  ", " ")


def _foreseen(newest: Sequence[Round]) -> str:
    """Say when the next round is to be expected, by how far apart the last ones began; "" where nothing tells."""
    gaps = [(later.at - earlier.at).total_seconds() for later, earlier in zip(newest, newest[1:], strict=False)]
    gap = statistics.median(gaps) if gaps else 0.0
    if gap < 1:
        return ""
    at = newest[0].at + datetime.timedelta(seconds=gap)
    apart = (
        f"{gap:.0f} seconds" if gap < 120 else f"{gap / 60:.0f} minutes" if gap < 7200 else f"{gap / 3600:.0f} hours"
    )
    if at < timezone.now():
        return f"The last rounds began about {apart} apart, so it has been due since {at:%Y-%m-%d %H:%M} UTC."
    return f"The last rounds began about {apart} apart, so it is to be expected at about {at:%Y-%m-%d %H:%M} UTC."
