"""What people do with a case: approve, reject, pause, resume, sit out, revoke; the kill switch. For console and CLI.

Each function checks who acts, asks the policies where they have a say, writes database and audit log together, and
raises a `DatasitesError` without any change when it may not be: all that may refuse, the log for the words among it, is
asked before anything is done that the database can't take back. The one exception: where the ledger refuses an
approval, a list of patients that lacked somebody does so for good (`patients.require_listed`). What people decide on a
case that runs or waits is decided first, logged next, and acted on last (`owed`): killed anywhere, no study lacks its
reservation that people have not ended. Where a file is changed, and in an approval, what widens is logged first and
what narrows is done first: killed in between, the log knows of all that was opened. So are rounds charged in a rejoin.
"""

from __future__ import annotations

from django.contrib.auth import get_user_model
from django.db import transaction

from datasites.hospital.audit.log import Value
from datasites.hospital.budget import ledger
from datasites.hospital.budget.ledger import release_what_is_left
from datasites.hospital.budget.pending import StudyCap
from datasites.hospital.budget.population import settle_identity
from datasites.hospital.cases import compliance
from datasites.hospital.cases.case import OpenCase, open_case
from datasites.hospital.cases.lookup import find_case
from datasites.hospital.cases.owed import owe, settle
from datasites.hospital.data.patients import require_listed
from datasites.hospital.models import Case, Review
from datasites.hospital.people.accounts import REVIEWERS, Actor, ReviewError, require_reviewer
from datasites.hospital.site import Site

#: Characters of what a researcher is told of a rejection: as many as its record in syft takes.
LONGEST_MESSAGE = 1900


def approve(site: Site, case_id: int, person: Actor, reason: str, seen_hash: str, case: OpenCase | None = None) -> Case:
    """Approve the hash that the person has seen; the second approval reserves the budget and makes the study active.

    case: as it was opened in the same act, for its page; opened here unless given.

    Raises `compliance.Denied` with the controls that deny, `BudgetExceeded`, `FrozenCopyChanged`, `InputError` where
    the list of its patients was lost, or `ReviewError` when the case is not in review or its approval hash is not
    `seen_hash` (any more).
    """
    read = row = find_case(case_id)
    require_reviewer(person, f"a case is approved by {' and '.join(REVIEWERS)}")
    if row.state != Case.State.REVIEW:
        raise ReviewError(
            f"case {case_id}: is {row.state}{': ' + row.note if row.note else ''}; "
            "only a case in review can be approved"
        )
    case = case or open_case(site.home, row)
    if seen_hash != row.approval_hash:
        raise ReviewError(f"case {case_id}: changed since you read it (now {row.approval_hash[:12]}); read it again")
    record_fields: dict[str, Value] = {
        "case": case_id,
        "study": row.study_hash,
        "person": person.name,
        "role": person.role,
    }
    record_fields |= {"hash": row.approval_hash, "reason": reason}
    site.audit.require_fit("approved", **record_fields)
    # Counted before the policies are asked: a review that comes in between was not among their facts.
    before = Review.objects.filter(case=row).count()
    decision = compliance.decide(site, case, "approve", approver=(person.email, person.role))  # type: ignore[arg-type]
    compliance.require(decision, "approve", row.approval_hash)
    # After the policies: what it makes final stays so, also where the ledger refuses below.
    require_listed(site, row, case.approval_terms.population)
    with transaction.atomic():
        row = Case.objects.select_for_update().get(pk=case_id)
        same = (row.state, row.approval_hash, row.listed_as) == (Case.State.REVIEW, seen_hash, read.listed_as)
        if not same or Review.objects.filter(case=row).count() != before:
            raise ReviewError(f"case {case_id}: somebody else acted on it just now; read it again")
        Review.objects.create(
            case=row,
            person=get_user_model().objects.get(pk=person.pk),
            role=person.role,
            verdict="approve",
            approval_hash=row.approval_hash,
            reason=reason,
        )
        roles = set(
            Review.objects.filter(case=row, verdict="approve", approval_hash=row.approval_hash).values_list(
                "role", flat=True
            )
        )
        if roles >= set(REVIEWERS):
            cap = StudyCap(case.study_cap, case.study.privacy.delta)
            ledger.reserve(site, case.dataset, row.study_hash, case.asked(), cap=cap)
            # After the ledger, which may refuse; nothing is charged before the approval counts.
            settle_identity(site, case.approval_terms.population, case.approval_terms.identity)
            row.state = Case.State.APPROVED
            row.save(update_fields=["state"])
        site.audit.append("approved", **record_fields)
    return row


def reject(site: Site, case_id: int, person: Actor, reason: str, *, message: str) -> Case:
    """Reject a case for good; one person is enough. The researcher is sent `message`, and never the reason."""
    require_reviewer(person, f"a case is rejected by {' or '.join(REVIEWERS)}")
    if not reason.strip():
        raise ReviewError("a rejection needs a reason; it is kept here, and the researcher is not sent it")
    if not 0 < len(message.strip()) <= LONGEST_MESSAGE:
        raise ReviewError(f"a rejection needs a message for the researcher, {LONGEST_MESSAGE} characters at most")
    with transaction.atomic():
        row = Case.objects.select_for_update().get(pk=find_case(case_id).pk)
        if row.state not in (Case.State.REVIEW, Case.State.INTAKE):
            raise ReviewError(f"case {case_id}: is {row.state}; use revoke for a study that was approved")
        Review.objects.create(
            case=row,
            person=get_user_model().objects.get(pk=person.pk),
            role=person.role,
            verdict="reject",
            approval_hash=row.approval_hash,
            reason=reason,
        )
        row.state, row.note = Case.State.REJECTED, message
        row.save(update_fields=["state", "note"])
        owe(site, row, "rejected", case=case_id, person=person.name, role=person.role, reason=reason, told=message)
    settle(site, case_id)
    # An approval that was killed half-way has left its reservation.
    release_what_is_left(site, row.study_hash)
    return row
