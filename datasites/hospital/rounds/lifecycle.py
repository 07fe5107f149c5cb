"""What people do with a study that was approved: pause, resume, sit out, revoke, rejoin; the kill switch.

Each function checks who acts, writes database and audit log together, and raises a `DatasitesError` without any change
when it may not be: all that may refuse, the log for the words among it, is asked before anything is done that the
database can't take back. What people decide is decided first, logged next, and acted on last (`owed`). Where a file is
changed, what widens is logged first and what narrows is done first: killed in between, the log knows of all that was
opened. So are rounds charged in a rejoin.
"""

from __future__ import annotations

from collections.abc import Callable

from django.db import transaction

from datasites.hospital.budget.ledger import release_what_is_left
from datasites.hospital.cases.compliance import is_killed
from datasites.hospital.cases.lookup import find_case
from datasites.hospital.cases.owed import log_owed, owe, settle
from datasites.hospital.models import Case, Round
from datasites.hospital.people.accounts import REVIEWERS, Actor, ReviewError, require_reviewer
from datasites.hospital.proposals.restored import charge_what_is_reached, require_rounds_left
from datasites.hospital.rounds.abstaining import log_abstention, log_newest
from datasites.hospital.rounds.failures import Failures
from datasites.hospital.site import Site
from datasites.study import letters
from datasites.study.audit_chain import RELEASED
from datasites.study.files import replace_durably


def _move(
    site: Site,
    case_id: int,
    person: Actor,
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
        row, before = _moved(site, case_id, person, reason, kind, states, to)
        owe(site, row, kind, case=case_id, person=person.name, role=person.role, reason=reason, before=before)
        also(row)
    settle(site, case_id)
    return row


def _moved(
    site: Site, case_id: int, person: Actor, reason: str, kind: str, states: tuple[str, ...], to: str
) -> tuple[Case, str]:
    """Return the case in its new state, and the state before; call it in a transaction."""
    require_reviewer(person, f"{kind} is for {' or '.join(REVIEWERS)}")
    row = Case.objects.select_for_update().get(pk=find_case(case_id).pk)
    log_owed(site, row)
    log_newest(site, row)
    if row.state not in states:
        raise ReviewError(f"case {case_id}: is {row.state}; {kind} needs one that is {' or '.join(states)}")
    # Why a study was stopped may have been rows, so it is logged only now that somebody has looked at it.
    before, row.state, row.note = str(row.state), to, reason
    row.save(update_fields=["state", "note"])
    return row, before


def pause(site: Site, case_id: int, person: Actor, reason: str) -> Case:
    """Stop taking part before the next round; one person is enough (I2)."""
    active = (Case.State.APPROVED, Case.State.RUNNING)
    return _move(site, case_id, person, reason, "paused", active, Case.State.PAUSED)


def resume(site: Site, case_id: int, person: Actor, reason: str) -> Case:
    """Go on after a pause or a stop; policies are asked again before the next round.

    A round whose work has failed is tried again, with the same randomness, unless the researcher has begun another.
    Raises `DatasitesError` for a study that was charged in full after a restore.
    """
    halted = (Case.State.PAUSED, Case.State.STOPPED)

    def may_go_on(row: Case) -> None:
        require_rounds_left(site.home, row.study_hash)
        Failures(site.home, row.study_hash).answered()

    return _move(site, case_id, person, reason, "resumed", halted, Case.State.RUNNING, may_go_on)


def sit_out(site: Site, case_id: int, person: Actor, reason: str) -> Case:
    """Go on after a stop without the round whose work has failed, and tell the researcher that it is sat out.

    That is the newest round, if it waits for an answer. The researcher reads that this hospital did not take part in
    it, and no reason. Logged once it is decided; where that is interrupted, by the service. A round whose release the
    log holds is refused, since its vector may have left (`abstaining`).
    """
    with transaction.atomic():
        row, _ = _moved(site, case_id, person, reason, "sat_out", (Case.State.STOPPED,), Case.State.RUNNING)
        require_rounds_left(site.home, row.study_hash)
        newest = Round.objects.select_for_update().filter(case=row).order_by("round").last()
        if newest is None or newest.state not in (Round.State.ACCEPTED, Round.State.CHARGED):
            raise ReviewError(f"case {case_id}: no round of it waits for an answer; use resume or rejoin")
        if site.audit.holds(RELEASED, study=row.study_hash, round=newest.round):
            raise ReviewError(
                f"case {case_id}: round {newest.round} is released, as the log says, and can't be sat out; use resume"
            )
        newest.abstain(letters.Abstention(outcome="failed"), reason, (person.name, person.role))
    log_abstention(site, row.study_hash, newest)
    return row


def revoke(site: Site, case_id: int, person: Actor, reason: str) -> Case:
    """End the study here for good; what it did not use of its budget is free again, what it used is not.

    The researcher is told that this hospital has revoked its approval, and no reason.
    """
    open_states = (Case.State.APPROVED, Case.State.RUNNING, Case.State.PAUSED, Case.State.STOPPED)

    def tell(row: Case) -> None:
        row.recorded_in_syft = False
        row.save(update_fields=["recorded_in_syft"])

    row = _move(site, case_id, person, reason, "revoked", open_states, Case.State.REVOKED, tell)
    release_what_is_left(site, row.study_hash)
    return row


def rejoin(site: Site, case_id: int, person: Actor, reason: str) -> Case:
    """Give up a stopped study's keys, and go on with it in a new epoch of the secure sum once there is one.

    For a journal that may release nothing any more (restored from a backup, or damaged). Every round that its anchor
    knows is charged. The service destroys the old keys before it does anything else; rounds that were opened stay
    closed for good.
    """

    def start_over(row: Case) -> None:
        charge_what_is_reached(site, row.study_hash)
        row.rejoins = True
        row.save(update_fields=["rejoins"])

    return _move(site, case_id, person, reason, "rejoined", (Case.State.STOPPED,), Case.State.RUNNING, start_over)


def kill(site: Site, person: Actor, reason: str) -> None:
    """Stop the whole datasite before its next round, until `unkill`, whatever ends it meanwhile."""
    if person.role not in (*REVIEWERS, "admin"):
        raise ReviewError(f"{person.name} is {person.role}; the kill switch is for reviewers and admins")
    site.audit.require_fit("killed", person=person.name, role=person.role, reason=reason)
    replace_durably(site.home.root / "KILLED", f"{person.name}: {reason}\n".encode())
    site.audit.append("killed", person=person.name, role=person.role, reason=reason)


def unkill(site: Site, person: Actor, reason: str) -> bool:
    """Take the kill switch off; where it is not on, nothing is done or logged, and False returned."""
    require_reviewer(person, "the kill switch is taken off by a reviewer")
    site.audit.require_fit("unkilled", person=person.name, role=person.role, reason=reason)
    if not is_killed(site.home):
        return False
    site.audit.append("unkilled", person=person.name, role=person.role, reason=reason)
    (site.home.root / "KILLED").unlink(missing_ok=True)
    return True
