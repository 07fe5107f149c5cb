"""What killed examinations have left: a start removes it, leaves a running one its rows, and none of it is approved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from datasites.hospital.cases import examination
from datasites.hospital.cases.case import open_case, records_folder
from datasites.hospital.cases.compliance import Denied
from datasites.hospital.cases.encoded import PREPARED_FILE, partitions
from datasites.hospital.config import Home
from datasites.hospital.models import Case
from datasites.hospital.service import Service
from datasites.hospital.serving import only_process, serve_until
from tests.hospital.desk import Desk, without_rehearsal
from tests.kills import Killed

KILLED = """
import os, signal, sys
from pathlib import Path
from datasites.hospital.config import Home
from datasites.hospital.cases.examination_lock import one_at_a_time
from datasites.hospital.cases.staging import new_staging
home = Home.open(Path(sys.argv[1]))
with one_at_a_time(home, "a submission"):
    (new_staging(home) / "prepared.npz").write_bytes(b"rows")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A start of the service at a home, which ends when all its parts have started."""
    # Private, since it is `serve` that closes both.
    monkeypatch.setattr(
        Service, "serve", lambda datasite, stop: (datasite._mailroom.close(), datasite._control.close())
    )

    def start(home: Home) -> None:
        with only_process(home):
            serve_until(threading.Event(), home.root, console=False)

    return start


def left(home: Home) -> list[Path]:
    return sorted(home.prepared.glob(".staging-*"))


def killed(home: Home) -> None:
    """An examination whose process is killed while its rows are staged."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(home.root)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_start_removes_rows_of_a_killed_examination(desk: Desk, started: Any) -> None:
    home = desk.site.home
    killed(home)
    assert [folder.stat().st_mode & 0o777 for folder in left(home)] == [0o700]
    started(home)
    assert left(home) == []


def test_a_start_leaves_a_running_examination_its_rows(
    desk: Desk,
    started: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where somebody rechecks a case in a terminal while the service starts."""
    home, seen = desk.site.home, list[int]()
    killed(home)
    kept = records_folder(home, desk.row.study_hash) / PREPARED_FILE
    os.unlink(kept)

    def meanwhile(*_: Any) -> dict[str, object]:
        started(home)
        seen.append(len(left(home)))
        return {"outcome": "passed", "ticks": 1, "parameters": 9}

    monkeypatch.setattr(examination, "rehearse_once", meanwhile)
    row = examination.recheck(desk.site, desk.row.pk)
    assert row.state == Case.State.REVIEW
    assert kept.exists()
    assert seen == [2], "whose rows are whose is not known as long as one examination runs"
    started(home)
    assert left(home) == []


@pytest.mark.slow
@pytest.mark.parametrize("done", range(5))  # 4: after the files, and before the case's row
def test_records_that_a_kill_left_half_kept_are_never_approved_as_whole(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    done: int,
) -> None:
    """Killed after so many of the files that an examination puts in place: what is approved is there to be run."""
    home, replace, steps = desk.site.home, os.replace, list[str]()
    passed = {"outcome": "passed", "ticks": 20, "parameters": desk.row.approval_terms["parameters"]}
    without_rehearsal(monkeypatch, **passed)
    desk.row = examination.recheck(desk.site, desk.row.pk)
    table, folder = home.root / "data/table.csv", records_folder(home, desk.row.study_hash)
    before = {path: path.read_bytes() for path in (table, *folder.iterdir())}

    def killed_before(source: Path, target: Path) -> None:
        if Path(target).parent in (folder, home.identities):
            if len(steps) == done:
                raise Killed
            steps.append(Path(target).name)
        replace(source, target)

    def killed_before_the_row(*_: Any, **__: Any) -> None:
        raise Killed

    try:
        table.write_bytes(b"\n".join(before[table].splitlines()[:-1]) + b"\n")
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed_before)
            patch.setattr(Case, "save", killed_before_the_row)
            with pytest.raises(Killed):
                examination.recheck(desk.site, desk.row.pk)
        table.write_bytes(before[table])
        desk.row.refresh_from_db()
        desk.agree()
        if done in (0, 1):  # patients alone were kept
            desk.approve("ann")
            assert partitions(home, open_case(home, desk.approve("bob")))
        else:
            with pytest.raises(Denied) as denied:
                desk.approve("ann")
            assert denied.value.controls == ("code",)
    finally:
        for path, content in before.items():
            path.write_bytes(content)
