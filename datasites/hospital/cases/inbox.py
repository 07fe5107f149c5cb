"""All cases as a person at this hospital sees them: what they must do first, what can't be approved, what is done.

For console and command line. Reads what is stored (`summary`); opens no case, prices nothing and asks no policies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from django.db.models import Exists, F, OuterRef, Q, QuerySet

from datasites.hospital.models import Case, CaseSummary, Review
from datasites.hospital.people.accounts import REVIEWERS

Group = Literal["you", "others", "blocked", "done"]
#: In the order in which they are shown.
GROUPS: tuple[Group, ...] = get_args(Group)
#: How cases can be ordered: the field, and what comes first.
ORDERS = {"newest": "-received_at", "oldest": "received_at", "title": "summary__title", "epsilon": "-summary__epsilon"}


@dataclass(frozen=True)
class InboxLine:
    """One case. missing: roles that have not approved it; mine: whether the person has reviewed its present version."""

    row: Case
    summary: CaseSummary | None
    missing: tuple[str, ...]
    mine: bool
    group: Group

    @property
    def title(self) -> str:
        """The study's title, else the name that it was submitted under."""
        return self.summary.title if self.summary else self.row.study_name

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why it can't be approved, each in one sentence or two; empty where it can, or was decided."""
        if self.group != "blocked":
            return ()
        denied = self.summary.denied_by if self.summary else []
        return tuple(f"{one['reason']} {one['remedy']}" for one in denied) or (self.row.note,)


def cases_for(
    person: int | None, role: str, *, contains: str = "", state: str = "", order: str = "newest"
) -> dict[Group, list[InboxLine]]:
    """Return all cases by group, for the person with this key and role.

    contains: only those whose title, name, organisation, submitter or study hash holds this. state: only those in it.
    order: one of `ORDERS`.
    """
    rows = _rows()
    if state:
        rows = rows.filter(state=state)
    if contains:
        fields = ("summary__title", "study_name", "summary__organisation", "submitted_by", "summary__purpose")
        found = Q(study_hash__startswith=contains.lower())
        for field in fields:
            found |= Q(**{f"{field}__icontains": contains})
        rows = rows.filter(found)
    key = ORDERS[order]
    by = F(key.removeprefix("-"))
    rows = rows.order_by(by.desc(nulls_last=True) if key.startswith("-") else by.asc(nulls_last=True), "-pk")
    groups: dict[Group, list[InboxLine]] = {group: [] for group in GROUPS}
    for line in _lines(rows, person, role):
        groups[line.group].append(line)
    return groups


def waiting_for(person: int | None, role: str) -> int:
    """Return how many cases wait for this person's decision."""
    if role not in REVIEWERS:
        return 0
    present = Review.objects.filter(case=OuterRef("pk"), approval_hash=OuterRef("approval_hash"))
    approvable = Q(summary=None) | Q(summary__denied_by=[])
    rows = Case.objects.filter(approvable, state=Case.State.REVIEW)
    return rows.exclude(Exists(present.filter(Q(person=person) | Q(role=role, verdict="approve")))).count()


def _rows() -> QuerySet[Case]:
    left_out = ("approval_terms", "findings", "readiness", "rehearsal", "owed")
    return Case.objects.defer(*left_out).select_related("summary").prefetch_related("reviews")


def _lines(rows: Iterable[Case], person: int | None, role: str) -> Iterable[InboxLine]:
    for row in rows:
        summary = getattr(row, "summary", None)
        reviews = [one for one in row.reviews.all() if one.approval_hash == row.approval_hash]
        mine = any(one.person_id == person for one in reviews)
        missing = missing_roles(row, [(one.role, one.verdict, one.approval_hash) for one in reviews])
        yield InboxLine(row, summary, missing, mine, _group(row, summary, missing, mine, role))


def _group(row: Case, summary: CaseSummary | None, missing: tuple[str, ...], mine: bool, role: str) -> Group:
    if row.state not in Case.OPEN:
        return "done"
    if row.state == Case.State.INTAKE:
        return "blocked" if row.note else "others"  # without a note, it is being examined
    if summary is not None and summary.denied_by:
        return "blocked"
    return "you" if role in missing and not mine else "others"


def missing_roles(row: Case, reviews: list[tuple[str, str, str]]) -> tuple[str, ...]:
    """Return the reviewer roles without an approval of the present hash; empty unless the case is in review."""
    if row.state != Case.State.REVIEW:
        return ()
    given = {role for role, verdict, hash in reviews if verdict == "approve" and hash == row.approval_hash}
    return tuple(role for role in REVIEWERS if role not in given)
