"""The heads of the hospitals' audit logs that came with what they sent: each counts on from the last one (I11).

Claim: the vector of a hospital whose log went back is not in the sum, nor is its account taken, but where the hospital
declares a restore from a backup, once. Not claimed: that a log is seen to have gone back once it has counted at least
as many releases of other studies since; only the hospital can compare heads with its log (`datasites audit held`).
"""

from __future__ import annotations

import logging

from datasites.aggregator.gather import RunError
from datasites.aggregator.run_files import DeclaredFork, Progress, RunState
from datasites.study.audit_chain import Fork, PublicHead
from datasites.study.roster import Roster

log = logging.getLogger(__name__)


def check_head(
    progress: Progress, roster: Roster, sender: str, head: PublicHead, fork: Fork | None, *, of_release: bool
) -> None:
    """Raise unless `head` is signed by the pinned key and counts on from the last head of that hospital.

    of_release: it came with a release, which each head before it lacks; else nothing need have been released since.
    A fork that the hospital declares lets its heads go back to it, once: from then on they go on from there. Each
    is kept for the report, since what came after it in the lost log is in the hospital's log no more.
    """
    if head.public_key != roster.get(sender).public_key:
        raise RunError(f"audit head of {sender}: signed with a key that is not pinned")
    head.check()
    _declare(progress, roster, sender, fork)
    known = newest_head(progress.state, sender)
    if known is not None and head.releases < known.releases + of_release:
        raise RunError(
            f"audit head of {sender}: its log went back: {head.releases} releases, it has said {known.releases}"
        )


def newest_head(state: RunState, email: str) -> PublicHead | None:
    """Return the last head of its log that a hospital has sent; of a log restored since, where it goes on."""
    forks = state.forks.get(email, ())
    since = forks[-1].round if forks else 0
    heads = (r.heads[email] for r in reversed(state.rounds) if email in r.heads and r.round >= since)
    return next(heads, forks[-1].fork.goes_on if forks else None)


def _declare(progress: Progress, roster: Roster, sender: str, fork: Fork | None) -> None:
    """Note the fork that a hospital declares, if it is a new one; raises `BadSignature` for a forged one."""
    known = progress.state.forks.get(sender, ())
    if fork is None or fork in [one.fork for one in known]:
        return
    fork.check(roster.get(sender).public_key)
    log.warning(
        "the audit log of %s was restored from a backup, as it declares: it goes on from release %d",
        sender,
        fork.continues.releases,
    )
    declared = DeclaredFork(fork=fork, round=progress.state.next_round)
    progress.save(forks={**progress.state.forks, sender: (*known, declared)})
