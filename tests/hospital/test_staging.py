"""A start of the datasite removes what killed examinations have left, and nothing of one that runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from datasites.hospital import admission
from datasites.hospital.cases import PREPARED_FILE, records_folder
from datasites.hospital.config import Home
from datasites.hospital.datasite import Datasite
from datasites.hospital.models import Case
from datasites.hospital.service import only_process, serve_until
from tests.hospital.test_review import Desk, desk, examined  # noqa: F401 (fixtures)

KILLED = """
import os, signal, sys
from pathlib import Path
from datasites.hospital.config import Home
from datasites.hospital.examining import one_at_a_time
from datasites.hospital.staging import new_staging
home = Home.open(Path(sys.argv[1]))
with one_at_a_time(home, "a submission"):
    (new_staging(home) / "prepared.npz").write_bytes(b"rows")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A start of the service at a home, which ends when all its parts have started."""
    monkeypatch.setattr(
        Datasite, "serve", lambda datasite, stop: (datasite._mailroom.close(), datasite._control.close())
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


def test_a_start_removes_rows_of_a_killed_examination(desk: Desk, started: Any) -> None:  # noqa: F811
    home = desk.site.home
    killed(home)
    assert [folder.stat().st_mode & 0o777 for folder in left(home)] == [0o700]
    started(home)
    assert left(home) == []


def test_a_start_leaves_a_running_examination_its_rows(
    desk: Desk,  # noqa: F811
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

    monkeypatch.setattr(admission, "_rehearse", meanwhile)
    row = admission.recheck(desk.site, desk.row.pk)
    assert row.state == Case.State.REVIEW
    assert kept.exists()
    assert seen == [2], "whose rows are whose is not known as long as one examination runs"
    started(home)
    assert left(home) == []
