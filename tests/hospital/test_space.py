"""A disk that fills up is said to be full, with where to make room; and no record stands before its fact."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from datasites.enclave.sandbox import SandboxUnavailable, find_bwrap

ROOT = Path(__file__).resolve().parents[2]
SIZE = 12 * 2**20


@pytest.mark.slow
@pytest.mark.waits
def test_people_are_entered_once_or_not_at_all_on_a_disk_that_fills_up(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        bwrap = find_bwrap()
    except SandboxUnavailable as error:
        pytest.skip(f"no small disk can be made: {error}")
    small = [str(bwrap), "--dev-bind", "/", "/", "--size", str(SIZE), "--tmpfs", str(disk)]
    script = str(Path(__file__).with_name("on_a_full_disk.py"))
    done = subprocess.run(
        [*small, sys.executable, script, str(disk)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if "Permission denied" in done.stderr and "bwrap" in done.stderr:
        pytest.skip(f"no small disk can be made: {done.stderr[:200]}")
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    refused = {left: words for left, words in seen["said"].items() if words}
    assert {"0", "4"} <= set(refused) < set(seen["said"])
    for words in refused.values():
        assert "no room is left" in words or "No space left on device" in words, words
    assert f"home {disk}/home: room for 0.0 MiB; make room" in seen["space"]["full"][0]
    assert Counter(seen["logged"]) == Counter(seen["entered"])
    assert seen["verifies"]
