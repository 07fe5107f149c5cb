"""How this hospital sits a round out: that is decided in the database, then logged, then sent.

Claim (one answer): of a round, this hospital's vector leaves or it sits the round out, never both, and the audit log
holds one record of what it answered: `released`, or `abstained` (policies or a refusal), or `sat_out` (people). Killed
in between, the record is written before the service takes another step of the study, its close among them, and before
people decide on the case again. Proof: a round that is sat out is `FAILED`, and none leaves that state. `RoundReleases`
records a release only of a round that is not, under the row's lock, and sends nothing of one that is, whatever the
journal holds; neither `lifecycle.sit_out` nor `StudyRun` takes one whose release the log holds, under the same lock.
All write the state before they let go of it. The record is written once (`AuditLog.append_once`), and not before the
decision. Assumes the newest log and database (`reconcile`).

What is not said: an abstention that the researcher's mailbox did not take before the next round began. Nobody waits for
it then; it is logged here, and to the researcher this hospital was away in that round. So is an older round that was
left unanswered when the researcher went on, as after a rejoin: it stays charged, and releases and says nothing, since
letters are attended above the rounds that the journal's anchor knows. Where its release was logged and the service was
killed before the database knew, it stays logged, though its vector never left: the log then counts one more.
"""

from __future__ import annotations

from datasites.hospital.models import Case, Round
from datasites.hospital.site import Site
from datasites.study.letters import Abstention


def abstention_of(round: Round) -> Abstention:
    """Return what the researcher is told of a round that is sat out."""
    return Abstention.model_validate({name: round.abstention[name] for name in Abstention.model_fields})


def log_abstention(site: Site, study_hash: str, round: Round) -> None:
    """Write into the audit log, once, that this round is sat out, and by whom or by which controls."""
    found = dict(round.abstention)
    reason = found.pop("told", None)
    if reason is None:
        return  # of an older version, which had logged it by then
    kind = "sat_out" if "person" in found else "abstained"
    site.audit.append_once(kind, study=study_hash, round=round.round, reason=reason, **found)


def log_newest(site: Site, row: Case) -> None:
    """Write into the audit log, once, that the newest round of this case is sat out, if it is."""
    newest = Round.objects.filter(case=row).order_by("-round").first()
    if newest is not None and newest.state == Round.State.FAILED and newest.abstention:
        log_abstention(site, row.study_hash, newest)
