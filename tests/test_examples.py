"""Each room's opening has an example, and it runs; so does that of each room inside `hospital`."""

import doctest
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.rooms import HOSPITAL_ROOMS, MAY_IMPORT, ROOT

ROOMS = [
    *("policies" if room == "policies" else f"datasites.{room}" for room in MAY_IMPORT),
    *(f"datasites.hospital.{room}" for room in HOSPITAL_ROOMS),
]


@pytest.mark.parametrize("room", ROOMS)
def test_the_example_of_a_room_runs(room: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = importlib.import_module(room)
    assert ">>> " in (module.__doc__ or ""), f"{room}: its opening has no example"
    if "hospital.database import connect" in (module.__doc__ or ""):
        _run_alone(room, tmp_path)
        return
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert doctest.testmod(module).failed == 0


def _run_alone(room: str, folder: Path) -> None:
    """In a process of its own: this one may be connected to another home."""
    code = f"import doctest, sys, {room} as room; sys.exit(doctest.testmod(room).failed)"
    environment = os.environ | {"TMPDIR": str(folder)}
    environment.pop("DATASITES_HOME", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
