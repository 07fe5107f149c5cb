"""A home that is restored from a backup, and what two people enter about the study that it has lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from django.db import connection

from datasites.hospital.audit.log import head_file
from datasites.hospital.budget import ledger
from datasites.hospital.budget.reconcile import require_one_story
from datasites.hospital.doctor import examine as doctor
from datasites.hospital.models import LedgerEntry
from datasites.hospital.people.accounts import ReviewError
from datasites.hospital.proposals import two_people
from datasites.hospital.proposals.restored import LostStudy
from datasites.hospital.site import Site
from datasites.study import letters
from datasites.study.audit_chain import PublicHead
from tests.hospital.budget.accounts import restarted
from tests.hospital.desk import Desk
from tests.hospital.running import Running

#: Another study of the same training, as people enter it from its approval.
LOST = LostStudy(
    study="c" * 64,
    population="heart",
    noise_multiplier=4.0,
    sampling_rate=0.3,
    steps=75,
    rounds=15,
    evaluation_multiplier=100.0,
)


def settled(desk: Desk, site: Site, *lost: LostStudy) -> Site:
    """What two people do after a restore; the site as the next process opens it."""
    entered = two_people.propose_restored(site, desk.login("ann"), lost, "restored from the backup of the night")
    with pytest.raises(ReviewError, match="a different person"):
        two_people.confirm(site, desk.login("cyd"), entered.pk)
    two_people.confirm(site, desk.login("bob"), entered.pk)
    after = restarted(site)
    require_one_story(after.home)
    assert [c.state for c in doctor(after) if c.name == "accounts"] == ["ok"]
    return after


def committed(site: Site) -> float:
    return ledger.state(site.home.dataset("heart"))[0].committed


def no_charges() -> None:
    LedgerEntry.objects.filter(kind="charge").delete()


class WholeHome:
    """A real copy of what a backup of the home holds: the tables' file, the log, the journals; no anchors."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.home, self.folder = site.home, folder
        folder.mkdir()
        self.tables = Path(str(connection.settings_dict["NAME"]))
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        for path in (self.tables, site.home.audit, head_file(site.home.audit)):
            shutil.copy(path, folder / path.name)
        shutil.copytree(site.home.secagg, folder / "secagg")

    def restore_tables(self) -> None:
        connection.close()
        for end in ("-wal", "-shm"):
            Path(f"{self.tables}{end}").unlink(missing_ok=True)
        shutil.copy(self.folder / self.tables.name, self.tables)

    def restore(self) -> None:
        self.restore_tables()
        for path in (self.home.audit, head_file(self.home.audit)):
            shutil.copy(self.folder / path.name, path)
        shutil.rmtree(self.home.secagg)
        shutil.copytree(self.folder / "secagg", self.home.secagg)


on_sqlite = pytest.mark.skipif(connection.vendor != "sqlite", reason="copies the file of the tables")


def a_round(running: Running, number: int) -> None:
    manifest = running.open(number)
    running.steps()
    running.survive(manifest)
    running.steps()
    assert running.heard(number, letters.UNMASK)


def head_of(running: Running, number: int) -> PublicHead:
    """What the researcher got with a release."""
    letter = running.heard(number, letters.MASKED)
    assert letter is not None
    return letters.Masked.model_validate(letter.body).audit


def again(running: Running) -> Site:
    """The hospital's processes end and others start on its home."""
    running.run.close()
    running.site = restarted(running.site)
    return running.site


def nothing_left(running: Running, number: int) -> bool:
    return not any(running.heard(number, kind) for kind in (letters.MASKED, letters.ABSTAINED))
