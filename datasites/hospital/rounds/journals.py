"""The journal of a study's secure sum with its keys and shares: where it is kept, opened, given up and destroyed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from django.db.models import Q

from datasites.hospital.budget import ledger_log
from datasites.hospital.cases.case import records_folder
from datasites.hospital.cases.encoded import PREPARED_FILE
from datasites.hospital.config import Home
from datasites.hospital.models import Case, Round
from datasites.hospital.site import Site
from datasites.secagg.errors import REJOIN, JournalRolledBack
from datasites.study.files import replace_durably

if TYPE_CHECKING:
    from datasites.secagg.journal import Journal


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

    Its journal must not be open. Where its anchor is missing, what was reached is taken from ledger and database, which
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
    """Open the journal of a study that runs; a new one for a study of which no round is known.

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
    """Return the epoch (-1: not known) and number of each round that was charged or opened, as ledger or database know.

    None that was only sat out: it names no manifest, and no epoch that was ever reached; nothing of it leaves any more.
    """
    sat_out = Q(state=Round.State.FAILED, manifest_hash="", abstention__has_key="outcome")
    rounds = list(Round.objects.filter(case__study_hash=study_hash).exclude(sat_out).values_list("epoch", "round"))
    accounts = ledger_log.tell(home).accounts_of_study(study_hash)
    return rounds + [(-1, round) for account in accounts for round in account.charged]


def journal_of(home: Home, study_hash: str) -> tuple[Path, Path]:
    """Return the folder and anchor of a study's journal."""
    return home.secagg / study_hash / "journal", home.anchors / study_hash
