"""What lists show of each case, stored, so that a list opens no case and prices nothing.

Stored when a case is examined, and anew by the service (`bring_up_to_date`) when what it follows from has changed: the
day, roster, agreements, rules, people, caps, what other studies have reserved, and who has approved. Whether a case
could be approved is asked of the policies as for an approval by each person here who may; no decision is recorded, and
none rests on what is stored here: who approves, asks them again.

Nothing of it depends on a row: facts of decisions are public declarations and what people have entered.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import cast

from django.db import connections

from datasites.hospital.cases import compliance
from datasites.hospital.cases.case import OpenCase, open_case
from datasites.hospital.cases.compliance import Preview
from datasites.hospital.cases.freeze import open_frozen
from datasites.hospital.cases.halt import Halt
from datasites.hospital.cases.threads import in_a_thread
from datasites.hospital.config import Home
from datasites.hospital.database import DATABASE_AWAY
from datasites.hospital.models import BudgetFact, Case, CaseSummary, LedgerEntry
from datasites.hospital.people.accounts import REVIEWERS, list_people
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.dates import today
from datasites.study.errors import DatasitesError
from datasites.study.roster import Roster
from policies.facts import ReviewerRole
from policies.ruleset import SHIPPED

log = logging.getLogger(__name__)


def summarise(home: Home, row: Case, *, looked: Preview | None = None, case: OpenCase | None = None) -> None:
    """Store what lists show of one case as it is now; looked, case: if the caller has gathered facts or opened it."""
    summary = CaseSummary(case=row, title=row.study_name, basis=_basis(home, row))
    summary.organisation = _organisation(home, row)
    try:
        if row.state != Case.State.REFUSED:
            package = case.package if case else open_frozen(home.frozen, row.study_hash)
            summary.title, summary.purpose = package.study.title, package.study.purpose
        if row.approval_terms:
            case = case or open_case(home, row)
            summary.epsilon = case.study_cap
        if case is not None and row.state in Case.OPEN:
            summary.denied_by = _denials(looked or compliance.preview(home, case))
    except DATABASE_AWAY:
        raise
    except Exception as error:
        # A case that can't be opened can't be approved; its page says more.
        reason = str(error) if isinstance(error, DatasitesError) else f"it can't be opened ({type(error).__name__})"
        summary.denied_by = [{"control": "case", "reason": reason, "remedy": "Open the case for what to do."}]
    fields = ("title", "organisation", "purpose", "epsilon", "denied_by", "basis")
    CaseSummary.objects.update_or_create(case=row, defaults={name: getattr(summary, name) for name in fields})


def outdated(home: Home) -> list[int]:
    """Return the cases whose summary is missing, or rests on what has changed since; decided ones keep their last."""
    shared = _shared_basis(home)
    missing = Case.objects.filter(summary=None).exclude(state=Case.State.INTAKE, note="")
    waiting = Case.objects.filter(state=Case.State.REVIEW).select_related("summary").prefetch_related("reviews")
    changed = [
        row.pk for row in waiting if getattr(row, "summary", None) and row.summary.basis != _basis(home, row, shared)
    ]
    return sorted({*missing.values_list("pk", flat=True), *changed})


def bring_up_to_date(home: Home, check: Callable[[], None] = lambda: None) -> int:
    """Store anew what is `outdated`; how many there were. check: raises once this is to end."""
    found = outdated(home)
    for pk in found:
        check()
        summarise(home, Case.objects.get(pk=pk))
    return len(found)


class Upkeep:
    """Brings summaries up to date beside the service's loop, in a thread that is there only while one is outdated."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._halt = Halt()
        self._work: Future[int] | None = None

    def look(self) -> None:
        """Begin if something is outdated and none is at work; raises what Django raises while the database is away."""
        if self._work is not None:
            if not self._work.done():
                return
            work, self._work = self._work, None
            log.debug("%d summaries of cases were stored", work.result())
        if outdated(self._home):
            self._work = in_a_thread(self._on_thread)

    def _on_thread(self) -> int:
        try:
            return bring_up_to_date(self._home, self._halt.check)
        finally:
            connections.close_all()

    def close(self) -> None:
        """End at the next case, and wait for that."""
        self._halt.now()
        if self._work is not None:
            wait([self._work])


def _denials(looked: Preview) -> list[dict[str, str]]:
    """Return why nobody here could approve; empty where somebody could."""
    missing = [role for role in REVIEWERS if not looked.facts.people(cast(ReviewerRole, role))]
    able = [one for one in list_people() if one.active and one.role in missing and one.email]
    decisions = [looked.by(one.email, cast(ReviewerRole, one.role)).decision for one in able]
    if any(decision.allowed for decision in decisions):
        return []
    # Where nobody is entered who could, what else denies is what people can do something about.
    decision = looked.decision
    denials = [
        {"control": denial.control, "reason": denial.reason, "remedy": denial.remedy} for denial in decision.denied_by
    ]
    if denials or not missing:
        return denials
    roles = " or ".join({"steward": "data steward", "privacy_officer": "privacy officer"}[role] for role in missing)
    reason = decisions[0].summary if decisions else f"No {roles} with an e-mail address is entered here."
    return [{"control": "people", "reason": reason, "remedy": "An admin enters somebody who may approve."}]


def _organisation(home: Home, row: Case) -> str:
    try:
        entries = Roster.load(home.roster).entries
    except DatasitesError:
        return ""
    return next((entry.organisation for entry in entries if entry.email == row.submitted_by), "")


def _basis(home: Home, row: Case, shared: str | None = None) -> str:
    reviews = sorted(row.reviews.values_list("pk", flat=True)) if shared is None else [r.pk for r in row.reviews.all()]
    own = [str(row.state), row.approval_hash, row.note, sorted(reviews)]
    return sha256_hex(canonical_json([shared or _shared_basis(home), *own]))


def _shared_basis(home: Home) -> str:
    """Return the digest of what all cases of this hospital are decided on."""
    # Charges lie within what their study has reserved, so that they change nothing for others.
    reserved = LedgerEntry.objects.exclude(kind="charge").order_by("-pk").values_list("pk", flat=True).first()
    caps = BudgetFact.objects.order_by("-pk").values_list("pk", flat=True).first()
    people = [[one.name, one.email, one.role, one.active] for one in list_people()]
    settings = home.settings.model_dump_json()
    files = [home.roster, home.registry, *_rules(SHIPPED), *_rules(home.local_rules)]
    digests = [[path.name, _digest(path)] for path in files]
    killed = compliance.is_killed(home)
    return sha256_hex(canonical_json([str(today()), reserved, caps, people, settings, digests, killed]))


def _rules(folder: Path) -> Iterable[Path]:
    return sorted(folder.glob("*.cedar"))


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return type(error).__name__
