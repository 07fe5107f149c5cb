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

import time
from collections.abc import Callable
from dataclasses import dataclass

from django.contrib.auth import get_user_model
from django.db import transaction

from datasites.hospital import compliance, ledger, withdrawal
from datasites.hospital.abstaining import log_abstention, log_newest
from datasites.hospital.audit import Value
from datasites.hospital.cases import OpenCase, open_case
from datasites.hospital.closing import release_what_is_left
from datasites.hospital.docket import ReviewError, find_case, require_reviewer
from datasites.hospital.failures import Failures
from datasites.hospital.ledger_log import WITHDRAWN
from datasites.hospital.models import Case, Review, Round
from datasites.hospital.owed import log_owed, owe, settle
from datasites.hospital.patients import require_listed
from datasites.hospital.pending import StudyCap
from datasites.hospital.people import REVIEWERS, Acting
from datasites.hospital.population import settle_identity
from datasites.hospital.settle import charge_what_is_reached, require_rounds_left
from datasites.hospital.site import Site
from datasites.hospital.ticks import sleep_to_tick
from datasites.hospital.whereabouts import Place, look_for, looking_ticks, names_patients
from datasites.study import letters
from datasites.study.audit_chain import RELEASED
from datasites.study.errors import InputError


class NobodyToLeaveOut(InputError):
    """No record is under that name, or no column says whose a record is; nothing was entered."""


class OtherSpellings(InputError):
    """Records are under names that may be the same patient's; nothing was entered before people say whether."""


#: Characters of what a researcher is told of a rejection: as many as its record in syft takes.
MOST_TOLD = 1900


def approve(site: Site, number: int, person: Acting, reason: str, seen_hash: str, case: OpenCase | None = None) -> Case:
    """Approve the hash that the person has seen; the second approval reserves the budget and makes the study active.

    case: as it was opened in the same act, for its page; opened here unless given.

    Raises `compliance.Denied` with the controls that deny, `BudgetExceeded`, `FrozenCopyChanged`, `InputError` where
    the list of its patients was lost, or `ReviewError` when the case is not in review or its approval hash is not
    `seen_hash` (any more).
    """
    read = row = find_case(number)
    require_reviewer(person, f"a case is approved by {' and '.join(REVIEWERS)}")
    if row.state != Case.State.REVIEW:
        raise ReviewError(f"case {number}: is {row.state}{': ' + row.note if row.note else ''}; only review is open")
    case = case or open_case(site.home, row)
    if seen_hash != row.approval_hash:
        raise ReviewError(f"case {number}: changed since you read it (now {row.approval_hash[:12]}); read it again")
    told: dict[str, Value] = {"case": number, "study": row.study_hash, "person": person.name, "role": person.role}
    told |= {"hash": row.approval_hash, "reason": reason}
    site.audit.require_fit("approved", **told)
    # Counted before the policies are asked: a review that comes in between was not among their facts.
    before = Review.objects.filter(case=row).count()
    decision = compliance.decide(site, case, "approve", approver=(person.email, person.role))  # type: ignore[arg-type]
    compliance.require(decision, "approve", row.approval_hash)
    # After the policies: what it makes final stays so, also where the ledger refuses below.
    require_listed(site, row, case.terms.population)
    with transaction.atomic():
        row = Case.objects.select_for_update().get(pk=number)
        same = (row.state, row.approval_hash, row.listed_as) == (Case.State.REVIEW, seen_hash, read.listed_as)
        if not same or Review.objects.filter(case=row).count() != before:
            raise ReviewError(f"case {number}: somebody else acted on it just now; read it again")
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
            settle_identity(site, case.terms.population, case.terms.identity)
            row.state = Case.State.APPROVED
            row.save(update_fields=["state"])
        site.audit.append("approved", **told)
    return row


def reject(site: Site, number: int, person: Acting, reason: str, *, told: str) -> Case:
    """Reject a case for good; one person is enough. The researcher is sent `told`, and never the reason."""
    require_reviewer(person, f"a case is rejected by {' or '.join(REVIEWERS)}")
    if not reason.strip():
        raise ReviewError("a rejection needs a reason; it is kept here, and the researcher is not sent it")
    if not 0 < len(told.strip()) <= MOST_TOLD:
        raise ReviewError(f"a rejection needs words for the researcher, {MOST_TOLD} characters at most")
    with transaction.atomic():
        row = Case.objects.select_for_update().get(pk=find_case(number).pk)
        if row.state not in (Case.State.REVIEW, Case.State.INTAKE):
            raise ReviewError(f"case {number}: is {row.state}; use revoke for a study that was approved")
        Review.objects.create(
            case=row,
            person=get_user_model().objects.get(pk=person.pk),
            role=person.role,
            verdict="reject",
            approval_hash=row.approval_hash,
            reason=reason,
        )
        row.state, row.note = Case.State.REJECTED, told
        row.save(update_fields=["state", "note"])
        owe(site, row, "rejected", case=number, person=person.name, role=person.role, reason=reason, told=told)
    settle(site, number)
    # An approval that was killed half-way has left its reservation.
    release_what_is_left(site, row)
    return row


def _move(
    site: Site,
    number: int,
    person: Acting,
    reason: str,
    kind: str,
    states: tuple[str, ...],
    to: str,
    also: Callable[[Case], None] = lambda row: None,
) -> Case:
    """Move a case to another state, do `also` in the same transaction, and then log it.

    also: checks first, then does what a kill may leave done; last of all, since what came after it could refuse.
    """
    with transaction.atomic():
        row, before = _moved(site, number, person, reason, kind, states, to)
        owe(site, row, kind, case=number, person=person.name, role=person.role, reason=reason, before=before)
        also(row)
    settle(site, number)
    return row


def _moved(
    site: Site, number: int, person: Acting, reason: str, kind: str, states: tuple[str, ...], to: str
) -> tuple[Case, str]:
    """The case in its new state, and the state before; call it in a transaction."""
    require_reviewer(person, f"{kind} is for {' or '.join(REVIEWERS)}")
    row = Case.objects.select_for_update().get(pk=find_case(number).pk)
    log_owed(site, row)
    log_newest(site, row)
    if row.state not in states:
        raise ReviewError(f"case {number}: is {row.state}; {kind} needs one that is {' or '.join(states)}")
    # Why a study was stopped may have been rows, so it is logged only now that somebody has looked at it.
    before, row.state, row.note = str(row.state), to, reason
    row.save(update_fields=["state", "note"])
    return row, before


def pause(site: Site, number: int, person: Acting, reason: str) -> Case:
    """Stop taking part before the next round; one person is enough (I2)."""
    active = (Case.State.APPROVED, Case.State.RUNNING)
    return _move(site, number, person, reason, "paused", active, Case.State.PAUSED)


def resume(site: Site, number: int, person: Acting, reason: str) -> Case:
    """Go on after a pause or a stop; policies are asked again before the next round.

    A round whose work has failed is tried again, with the same randomness, unless the researcher has begun another.
    Raises `DatasitesError` for a study that was charged in full after a restore.
    """
    halted = (Case.State.PAUSED, Case.State.STOPPED)

    def may_go_on(row: Case) -> None:
        require_rounds_left(site.home, row.study_hash)
        Failures(site.home, row.study_hash).answered()

    return _move(site, number, person, reason, "resumed", halted, Case.State.RUNNING, may_go_on)


def sit_out(site: Site, number: int, person: Acting, reason: str) -> Case:
    """Go on after a stop without the round whose work has failed, and tell the researcher that it is sat out.

    That is the newest round, if it waits for an answer. The researcher reads that this hospital did not take part in
    it, and no reason. Logged once it is decided; where that is interrupted, by the service. A round whose release the
    log holds is refused, since its vector may have left (`abstaining`).
    """
    with transaction.atomic():
        row, _ = _moved(site, number, person, reason, "sat_out", (Case.State.STOPPED,), Case.State.RUNNING)
        require_rounds_left(site.home, row.study_hash)
        newest = Round.objects.select_for_update().filter(case=row).order_by("round").last()
        if newest is None or newest.state not in (Round.State.ACCEPTED, Round.State.CHARGED):
            raise ReviewError(f"case {number}: no round of it waits for an answer; use resume or rejoin")
        if site.audit.holds(RELEASED, study=row.study_hash, round=newest.round):
            raise ReviewError(
                f"case {number}: round {newest.round} is released, as the log says, and can't be sat out; use resume"
            )
        newest.abstain(letters.Abstention(outcome="failed"), reason, (person.name, person.role))
    log_abstention(site, row.study_hash, newest)
    return row


def revoke(site: Site, number: int, person: Acting, reason: str) -> Case:
    """End the study here for good; what it did not use of its budget is free again, what it used is not.

    The researcher is told that this hospital has revoked its approval, and no reason.
    """
    open_states = (Case.State.APPROVED, Case.State.RUNNING, Case.State.PAUSED, Case.State.STOPPED)

    def tell(row: Case) -> None:
        row.recorded_in_syft = False
        row.save(update_fields=["recorded_in_syft"])

    row = _move(site, number, person, reason, "revoked", open_states, Case.State.REVOKED, tell)
    release_what_is_left(site, row)
    return row


def rejoin(site: Site, number: int, person: Acting, reason: str) -> Case:
    """Give up a stopped study's keys, and go on with it in a new epoch of the secure sum once there is one.

    For a journal that may release nothing any more (restored from a backup, or damaged). Every round that its anchor
    knows is charged. The service destroys the old keys before it does anything else; rounds that were opened stay
    closed for good.
    """

    def start_over(row: Case) -> None:
        charge_what_is_reached(site, row.study_hash)
        row.rejoins = True
        row.save(update_fields=["rejoins"])

    return _move(site, number, person, reason, "rejoined", (Case.State.STOPPED,), Case.State.RUNNING, start_over)


@dataclass(frozen=True)
class Withdrawal:
    """A withdrawal that was entered. patients: that have withdrawn by now; places: that were looked at before."""

    patients: int
    places: tuple[Place, ...]
    all_spellings: bool

    def in_words(self) -> list[str]:
        """What it does in each place."""
        return [place.in_words(all_spellings=self.all_spellings) for place in self.places]


def withdraw(
    site: Site,
    person: Acting,
    dataset: str,
    patient: str,
    reason: str,
    *,
    all_spellings: bool | None = None,
    for_later: bool = False,
) -> Withdrawal:
    """Enter a patient's withdrawal of consent (see `withdrawal`).

    all_spellings: whether names that differ in spelling alone are this patient's, too; people must say so where there
    are any now, and in later tables they are unless people have said that they are not. for_later: enter it though
    nobody is found, for tables to come. Raises `ReviewError` for a person who may not, `InputError` for an unknown
    dataset, `OtherSpellings`, or `NobodyToLeaveOut`; nothing is entered then.
    """
    require_reviewer(person, f"withdrawals are entered by {' or '.join(REVIEWERS)}")
    by: dict[str, str] = {"person": person.name, "role": person.role, "reason": reason}
    site.audit.require_fit(WITHDRAWN, dataset=dataset, **by)
    from datasites.hospital.reading import TableReader

    alike = all_spellings is not False
    entry, exact = (withdrawal.entry_of(patient, all_spellings=each) for each in (alike, False))
    with TableReader(site.home) as reader:
        started = time.monotonic()  # of what depends on rows, as the reader's start doesn't
        places = look_for(site.home, reader, dataset, patient)
    if not names_patients(places):
        raise NobodyToLeaveOut(
            f"dataset {dataset}: neither mapping.toml nor the records of an open case name patients, so no pseudonym "
            "says whose a row is and nobody can be left out by name; pause the studies that run on it, name the column "
            "(`patient = …`), or take the patient's rows out of the table, and ask for new submissions"
        )
    if all_spellings is None and (spellings := max(place.spellings for place in places)):
        raise OtherSpellings(
            f"nothing was entered: up to {spellings} other spelling(s) of that name stand in "
            f"{', '.join(place.name for place in places if place.spellings)} (capitals, spaces or invisible "
            "characters, composed letters, or another form of a number); --all-spellings leaves all of them out, "
            "--this-spelling the one that you gave alone"
        )
    found = any(place.left_out(all_spellings=alike) for place in places)
    again = withdrawal.is_withdrawn(site.home, dataset, exact)
    if not (found or for_later or again or withdrawal.is_withdrawn(site.home, dataset, entry)):
        said = "; ".join(place.in_words(all_spellings=alike) for place in places)
        raise NobodyToLeaveOut(
            f"nothing was entered, since nobody is found under that name ({said}). Compare it with the source, letter "
            "by letter and zero by zero; for a patient who may come with a later table add --for-later"
        )
    # What is entered shows in the log and in when a worker starts; how long it took to look must not.
    sleep_to_tick(started, looking_ticks(site.home), lambda: None)
    # The name alone once more, too, where it was entered so: the list may have lost it.
    entries = sorted({entry, exact}) if again else [entry]
    number = max(withdrawal.enter(site, dataset, one, **by) for one in entries)
    return Withdrawal(number, places, alike)


def kill(site: Site, person: Acting, reason: str) -> None:
    """Stop the whole datasite before its next round, until `unkill`."""
    if person.role not in (*REVIEWERS, "admin"):
        raise ReviewError(f"{person.name} is {person.role}; the kill switch is for reviewers and admins")
    site.audit.require_fit("killed", person=person.name, role=person.role, reason=reason)
    (site.home.root / "KILLED").write_text(f"{person.name}: {reason}\n")
    site.audit.append("killed", person=person.name, role=person.role, reason=reason)


def unkill(site: Site, person: Acting, reason: str) -> None:
    """Take the kill switch off."""
    require_reviewer(person, "the kill switch is taken off by a reviewer")
    site.audit.append("unkilled", person=person.name, role=person.role, reason=reason)
    (site.home.root / "KILLED").unlink(missing_ok=True)
