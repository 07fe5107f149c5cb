"""How a study ends at this hospital: its account goes to the researcher once, and its secrets are destroyed.

The account holds the head of the audit log as it stood then. It is stored before it is sent, and sent as stored, so a
crash or an outage in between can't make a second, different one.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from django.db.models import Q
from pydantic import ValidationError

from datasites.hospital import ledger, ledger_log
from datasites.hospital.cases import PREPARED_FILE, OpenCase, records_folder
from datasites.hospital.config import Home
from datasites.hospital.models import Case, Round
from datasites.hospital.reconcile import AccountsDiffer
from datasites.hospital.site import Site
from datasites.secagg.errors import REJOIN, JournalRolledBack
from datasites.study import letters
from datasites.study.audit_chain import Fork
from datasites.study.durable import replace_durably
from datasites.study.identity import BadSignature
from datasites.study.manifest import MOST_EPOCHS

if TYPE_CHECKING:
    from datasites.hospital.correspondence import Correspondence
    from datasites.secagg.journal import Journal

#: Heads of our own audit log that the researcher holds, as it sent them back when it closed the study.
COUNTERPARTY_HEADS = "counterparty-heads.json"
ACCOUNT_FILE = "account.json"
#: States in which a study never runs again.
ENDED = (Case.State.CLOSED, Case.State.REVOKED, Case.State.REJECTED)


def closing_step(site: Site, case: OpenCase, post: Correspondence, row: Case) -> bool:
    """Close the study when the researcher has said that it is over; True when it is closed now."""
    letter = post.receive(post.researcher, letters.SETUP_ROUND, letters.CLOSE, 0)
    if letter is None:
        return False
    folder = site.home.secagg / row.study_hash
    stored = folder / ACCOUNT_FILE
    if not stored.exists():
        try:
            held = letters.Close.model_validate(letter.body).heads
            for head in held:
                head.check()
                if head.public_key != site.identity.public_key:
                    raise BadSignature("a head that was sent back is of another hospital's log")
        except (ValidationError, BadSignature) as error:
            post.note("letter_rejected", (letter.digest,), round=0, reason=error)
            held = ()
        told = [{"holder": post.researcher, "head": head.model_dump(mode="json")} for head in held]
        replace_durably(folder / COUNTERPARTY_HEADS, json.dumps(told).encode())
        ledger.close(site, row.study_hash)
        replace_durably(stored, _account(site, case, row).canonical())
    post.collect_setup(MOST_EPOCHS, over=True)
    if not send_account(site.home, post):
        return False
    Case.objects.filter(pk=row.pk, state__in=(*Case.ACTIVE, Case.State.STOPPED)).update(state=Case.State.CLOSED)
    return True


def send_account(home: Home, post: Correspondence) -> bool:
    """Send the account of a study that was closed, as it was stored; False when it can't be sent now."""
    account = letters.Account.parse((home.secagg / post.study / ACCOUNT_FILE).read_bytes())
    return post.post(post.researcher, letters.SETUP_ROUND, letters.ACCOUNT, account.model_dump(mode="json"))


def _account(site: Site, case: OpenCase, row: Case) -> letters.Account:
    dataset = case.dataset
    records = list(Round.objects.filter(case=row, state__in=(Round.State.RELEASED, Round.State.UNMASKED)))
    charged = ledger.study_charged(dataset, row.study_hash, case.priced_delta)
    # Logged once the database has said all that it is asked, and once where the account is not stored after all.
    site.audit.append_once("closed", study=row.study_hash, rounds=len(records))
    return letters.Account(
        rounds=len(records),
        steps=sum(record.steps for record in records),
        delta=case.study.privacy.delta,
        noise_multiplier=case.plan.noise_multiplier,
        sampling_rate=case.plan.sampling_rate,
        cap=case.study_cap,
        charged=charged,
        head=site.audit.public_head(),
        fork=told_fork(site.home),
    )


def told_fork(home: Home) -> Fork | None:
    """What others are told of the last restore of this hospital's log; None where there was none."""
    try:
        return Fork.parse(home.fork.read_bytes())
    except FileNotFoundError:
        return None


def release_what_is_left(site: Site, row: Case) -> None:
    """Release what an ended study reserved and did not charge, if that is still to be done.

    Whoever ended it does so, or the service where that was interrupted; while accounts differ it stays reserved, until
    two people have settled that.
    """
    accounts = ledger_log.tell(site.home).accounts_of_study(row.study_hash)
    if any(account.reserved and not account.released for account in accounts):
        with suppress(AccountsDiffer):
            ledger.close(site, row.study_hash)


def destroy_secrets(site: Site, row: Case) -> bool:
    """Destroy an ended study's keys, peers' shares and encoded rows; True when there were any.

    What stays is what evidence needs: the frozen copy, the data version, the account, and the journal's floor, so
    that no round of this study can ever be opened again. The caller has closed the study's journal.
    """
    home = site.home
    journal, _ = journal_of(home, row.study_hash)
    rows = records_folder(home, row.study_hash) / PREPARED_FILE
    record = journal / "record"
    if not rows.exists() and not record.exists():
        return False
    if record.exists():
        # Of rows nothing is logged: a case that was never approved has them only where the table fits (I16).
        site.audit.append_once("secrets_destroyed", study=row.study_hash)
        give_up_keys(home, row.study_hash)
    rows.unlink(missing_ok=True)
    return True


def give_up_keys(home: Home, study_hash: str) -> None:
    """Destroy the keys and shares of a study's epoch; rounds and epochs that it reached stay closed for good.

    Its journal must not be open. Where its anchor is gone, what was reached is taken from ledger and database, which
    are the newest: else nothing would run (`reconcile`).
    """
    from datasites.secagg.journal import Anchor, Journal  # the secure sum, for whoever has keys to give up

    journal, anchor = journal_of(home, study_hash)
    try:
        Anchor.parse(anchor.read_bytes())
    except (FileNotFoundError, ValueError):
        rounds = _known_rounds(home, study_hash)
        contexts = journal.parent.glob("context-*.json")
        epochs = [int(path.stem.removeprefix("context-")) for path in contexts]
        floor = Anchor(
            epoch=max([-1, *epochs, *(epoch for epoch, _ in rounds)]), last_round=max([0, *(n for _, n in rounds)])
        )
        replace_durably(anchor, floor.canonical())
    Journal.start_over(journal, anchor)


def open_journal(home: Home, study_hash: str) -> Journal:
    """The journal of a study that runs; a new one for a study of which no round is known.

    Raises `JournalRolledBack` where a round was charged or opened and neither journal nor anchor is there any more: a
    new journal would release that round once more.
    """
    from datasites.secagg.journal import NOTHING_REACHED, Journal

    folder, anchor = journal_of(home, study_hash)
    journal = Journal(folder, anchor)
    if journal.state is None and journal.floor == NOTHING_REACHED and _known_rounds(home, study_hash):
        journal.close()
        raise JournalRolledBack(
            f"{folder}: the journal and its anchor are missing, and rounds of this study were opened; release nothing; "
            f"{REJOIN}"
        )
    return journal


def _known_rounds(home: Home, study_hash: str) -> list[tuple[int, int]]:
    """Epoch (-1: not known) and number of each round that was charged or opened, as ledger or database know.

    None that was only sat out: it names no manifest, and no epoch that was ever reached; nothing of it leaves any more.
    """
    sat_out = Q(state=Round.State.FAILED, manifest_hash="", abstention__has_key="outcome")
    rounds = list(Round.objects.filter(case__study_hash=study_hash).exclude(sat_out).values_list("epoch", "round"))
    accounts = ledger_log.tell(home).accounts_of_study(study_hash)
    return rounds + [(-1, number) for account in accounts for number in account.charged]


def journal_of(home: Home, study_hash: str) -> tuple[Path, Path]:
    """Folder and anchor of a study's journal."""
    return home.secagg / study_hash / "journal", home.anchors / study_hash
