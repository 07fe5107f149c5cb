"""How a study ends at this hospital: its account goes to the researcher once, and its secrets are destroyed.

The account holds the head of the audit log as it stood then. It is stored before it is sent, and sent as stored, so a
crash or an outage in between can't make a second, different one. As stored it also becomes the output of the study's
job in syft, where a Syft user looks; nothing leaves there that the letter has not told (I16).

The researcher's last letter brings heads of the other hospitals' logs along, which this hospital keeps in its own: so
that each of them, and not the researcher alone, can show that another has rewritten its log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from datasites.hospital.audit.entered import pinned_by_hand
from datasites.hospital.budget import ledger
from datasites.hospital.cases.case import OpenCase
from datasites.hospital.config import Home
from datasites.hospital.models import Case, Round
from datasites.hospital.site import Site
from datasites.study import letters
from datasites.study.audit_chain import Fork, PublicHead
from datasites.study.files import replace_durably
from datasites.study.identity import BadSignature, IdentityError, same_identity
from datasites.study.manifest import MOST_EPOCHS
from datasites.study.roster import Roster

if TYPE_CHECKING:
    from datasites.hospital.rounds.mail import StudyMail

#: Heads of our own audit log that the researcher holds, as it sent them back when it closed the study.
COUNTERPARTY_HEADS = "counterparty-heads.json"
ACCOUNT_FILE = "account.json"


def closing_step(site: Site, case: OpenCase, post: StudyMail, row: Case) -> bool:
    """Close the study when the researcher has said that it is over; True when it is closed now."""
    letter = post.receive(post.researcher, letters.SETUP_ROUND, letters.CLOSE, 0)
    if letter is None:
        return False
    stored = _stored(site.home, row.study_hash)
    if not stored.exists():
        others: Mapping[str, PublicHead] = {}
        try:
            close = letters.Close.model_validate(letter.body)
            held, others = close.heads, close.others
            for head in held:
                head.check()
                if head.public_key != site.identity.public_key:
                    raise BadSignature("a head that was sent back is of another hospital's log")
        except (ValidationError, BadSignature) as error:
            post.note("letter_rejected", (letter.digest,), round=0, reason=error)
            held = ()
        _keep_heads(site, case, post, others)
        held_heads = [{"holder": post.researcher, "head": head.model_dump(mode="json")} for head in held]
        replace_durably(stored.with_name(COUNTERPARTY_HEADS), json.dumps(held_heads).encode())
        ledger.close(site, row.study_hash)
        replace_durably(stored, _account(site, case, row).canonical())
    post.collect_setup(MOST_EPOCHS, over=True)
    if not send_account(site.home, post):
        return False
    # The service then has its end to tell in syft.
    ends = Case.objects.filter(pk=row.pk, state__in=(*Case.ACTIVE, Case.State.STOPPED))
    ends.update(state=Case.State.CLOSED, recorded_in_syft=False)
    return True


def _keep_heads(site: Site, case: OpenCase, post: StudyMail, heads: Mapping[str, PublicHead]) -> None:
    """Keep in our log what the researcher passed on of the other hospitals' logs: each head once, or not at all.

    So the log grows by no more records than the study has hospitals. A head that is not by the pinned key of one of
    them is left out, with a note for people, and costs nobody anything: who passed it on may have made it up.
    """
    good = {}
    for email, head in heads.items():
        try:
            if email not in case.study.cohort.hospitals or same_identity(email, site.home.settings.email):
                raise IdentityError("no other hospital of this study has this address")
            entry = Roster.load(site.home.roster).get(email)
            if by_hand := pinned_by_hand(site.home, [entry]):
                raise IdentityError(by_hand[0])
            if head.public_key != entry.public_key:
                raise BadSignature(f"it is not of the log of the pinned key {entry.fingerprint}")
            head.check()
        except IdentityError as error:
            reason = f"head of the audit log of {email}, which is not kept: {error}"
            post.note("head_not_kept", (email, head.hash), round=0, reason=reason)
        else:
            good[email] = head
    if good:
        site.audit.keep_heads(good)


def send_account(home: Home, post: StudyMail) -> bool:
    """Send the account of a study that was closed, as it was stored; False when it can't be sent now."""
    account = letters.PrivacyStatement.parse(_stored(home, post.study_hash).read_bytes())
    return post.post(post.researcher, letters.SETUP_ROUND, letters.ACCOUNT, account.model_dump(mode="json"))


def results_of(home: Home, study_hash: str) -> dict[str, bytes]:
    """Return what a closed study has as outputs in syft, by name: its account as it was sent; none where it is lost."""
    path = _stored(home, study_hash)
    return {ACCOUNT_FILE: path.read_bytes()} if path.exists() else {}


def _stored(home: Home, study_hash: str) -> Path:
    return home.secagg / study_hash / ACCOUNT_FILE


def _account(site: Site, case: OpenCase, row: Case) -> letters.PrivacyStatement:
    dataset = case.dataset
    released = list(Round.objects.filter(case=row, state__in=(Round.State.RELEASED, Round.State.UNMASKED)))
    charged = ledger.study_charged(dataset, row.study_hash, case.priced_delta)
    # Logged once the database has said all that it is asked, and once where the account is not stored after all.
    site.audit.append_once("closed", study=row.study_hash, rounds=len(released))
    return letters.PrivacyStatement(
        rounds=len(released),
        steps=sum(round.steps for round in released),
        delta=case.study.privacy.delta,
        noise_multiplier=case.plan.noise_multiplier,
        sampling_rate=case.plan.sampling_rate,
        cap=case.study_cap,
        charged=charged,
        head=site.audit.public_head(),
        fork=reported_fork(site.home),
    )


def reported_fork(home: Home) -> Fork | None:
    """Return what others are told of the last restore of this hospital's log; None where there was none."""
    try:
        return Fork.parse(home.fork.read_bytes())
    except FileNotFoundError:
        return None
