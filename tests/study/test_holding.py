"""A folder is held by one at a time, who is named; by nobody after the end of its process; and a share is named."""

from __future__ import annotations

import errno
import fcntl
import logging
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasites.study import holding
from datasites.study.errors import InputError
from datasites.study.holding import Held, Holder, file_system, hold

HOLDS = (
    "import sys, pathlib; from datasites.study.holding import hold\n"
    "held = hold(pathlib.Path(sys.argv[1]), 'x', 'y'); print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "home" / "lock"


@pytest.fixture
def other(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLDS, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def take(lock: Path) -> holding.Hold:
    return hold(lock, "it is open", "close it")


def share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str = "nfs4") -> None:
    """Let the tests' folder lie on a network share."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 8:1 / / rw - ext4 /dev/sda rw\n23 22 0:44 / {tmp_path} rw - {kind} server:/x rw\n")
    monkeypatch.setattr(holding, "MOUNTS", mounts)


def test_who_comes_second_is_told_who_has_it(lock: Path, other: subprocess.Popen[str]) -> None:
    when = r"since \d{4}-\d\d-\d\d \d\d:\d\d UTC"
    host = re.escape(socket.gethostname())
    with pytest.raises(Held, match=rf"it is open \(process {other.pid} on {host} {when}\); close it"):
        take(lock)


def test_what_a_dead_process_left_is_taken_over(lock: Path, other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert f'"process":{other.pid}' in lock.read_text()
    take(lock).release()
    take(lock).release()


def test_a_process_is_told_of_itself_and_what_nobody_refers_to_is_free(lock: Path) -> None:
    held = take(lock)
    with pytest.raises(Held, match="this very process"):
        take(lock)
    del held
    with take(lock), pytest.raises(Held):
        take(lock)


def test_a_damaged_record_hides_no_lock(lock: Path) -> None:
    with take(lock):
        lock.write_text('{"machine":"\x1b[2J","process":1,"since":"now"}')
        with pytest.raises(Held, match=r"it is open \(by another process\)"):
            take(lock)


def test_on_a_share_another_machines_hold_is_left_to_people(
    lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    share(monkeypatch, tmp_path)
    with caplog.at_level(logging.WARNING), take(lock):
        assert "network share (nfs4)" in caplog.text
    own = Holder.here().model_copy(update={"process": 999_999})
    lock.write_bytes(own.canonical())
    take(lock).release()
    lock.write_bytes(own.model_copy(update={"machine": "elsewhere"}).canonical())
    with pytest.raises(Held, match=rf"process 999999 on elsewhere .*\(nfs4\) does not tell.*remove {lock}"):
        take(lock)
    lock.unlink()
    take(lock).release()


def test_on_an_own_disk_another_machines_record_is_an_old_one(lock: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A home that was moved here: the lock itself can be trusted."""
    lock.parent.mkdir()
    lock.write_bytes(Holder.here().model_copy(update={"machine": "elsewhere"}).canonical())
    if file_system(lock.parent) not in holding._OWN:
        pytest.skip("the tests' folder lies on no disk of this machine")
    take(lock).release()
    assert not caplog.records


def test_a_file_system_without_locks_is_named(lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share(monkeypatch, tmp_path, "nfs")

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(InputError, match=r"file system \(nfs\) keeps no locks \(No locks available\); move the folder"):
        take(lock)


def test_a_folder_has_the_file_system_of_the_mount_that_lies_on_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw shared:1 - ext4 /dev/sda rw\n"
        "23 22 8:2 / /no\\040such rw - xfs /dev/sdb rw\n"
        "24 22 0:9 / /no\\040such rw master:2 - cifs //server/x rw\n"
        "25 22 0:9 / /no rw - nfs server:/x rw\n"
    )
    monkeypatch.setattr(holding, "MOUNTS", mounts)
    kinds = [
        file_system(Path(folder)) for folder in ("/", "/no", "/no such", "/no such/home", "/no suches", "/nothing")
    ]
    assert kinds == ["ext4", "nfs", "cifs", "cifs", "ext4", "ext4"]
    monkeypatch.setattr(holding, "MOUNTS", tmp_path / "none")
    assert file_system(Path("/")) == "unknown"
