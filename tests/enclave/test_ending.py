"""A worker ends when it is killed and when its datasite ends, with all its processes, whatever it does against it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from datasites.enclave import processes, protocol
from datasites.enclave.sandbox import Sandbox, SandboxConfig
from datasites.enclave.worker_client import Timeouts, Worker, WorkerCrashed
from tests.enclave.processes import CLEARING, gone, state
from tests.enclave.workers import start, study
from tests.polling import until

Mode = Literal["required", "off"]


#: A datasite with one worker, which it pauses again and again for some seconds before it says its processes.
#: The worker runs the code that is given, if any.
DATASITE = """
import sys, time
from datasites.enclave.processes import family
from datasites.enclave.sandbox import Sandbox, SandboxConfig
from datasites.enclave.worker_client import Timeouts, Worker
mode, seconds, code = sys.argv[1:]
class Given(Sandbox):
    def command(self, arguments, shown=None):
        return super().command(["-c", code] if code else arguments, shown)
worker = Worker(Given(SandboxConfig(mode=mode)), Timeouts())
while code and "cleared" not in worker.log: time.sleep(0.01)
until = time.monotonic() + float(seconds)
while time.monotonic() < until:
    worker.pause()
    time.sleep(0.01)
print(*family(worker.pid), flush=True)
time.sleep(600)
"""


class Hostile(Sandbox):
    """A sandbox whose worker runs `CLEARING`."""

    def __init__(self, mode: Mode, *arguments: str) -> None:
        super().__init__(SandboxConfig(mode=mode))
        self._arguments = arguments

    def command(self, arguments: Sequence[str], shown: Path | None = None) -> list[str]:
        return super().command(["-c", CLEARING, *self._arguments], shown)


def begun(folder: Path, mode: Mode, *arguments: str) -> Worker:
    """A hostile worker that was started a moment ago."""
    return Worker(Hostile(mode, *arguments), Timeouts())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return study(tmp_path / "study")


@pytest.mark.parametrize("mode", ["required", "off"])
@pytest.mark.parametrize("cleared", ["before", "after"])
def test_a_worker_that_lets_go_of_its_parent_is_killed_with_all_its_processes(
    folder: Path, mode: Mode, cleared: str
) -> None:
    """Before: as where no filter is known, and nothing refuses it."""
    worker = begun(folder, mode, cleared)
    until(lambda: "cleared" in worker.log)
    pids = list(processes.family(worker.pid))
    worker.kill()
    assert not worker.alive
    assert gone(pids)
    until(lambda: not worker._process._thread.is_alive())
    assert f"cleared: -1, {0 if cleared == 'before' else None}\n" in worker.log


@pytest.mark.waits
@pytest.mark.parametrize("mode", ["required", "off"])
def test_a_worker_that_lets_go_of_its_parent_ends_with_the_datasite(folder: Path, mode: Mode) -> None:
    assert gone(left_by_a_datasite(folder, mode, 0.0, CLEARING))


@pytest.mark.waits
@pytest.mark.parametrize("mode", ["required", "off"])
@pytest.mark.parametrize("paused", [0.01, 0.5])
def test_a_worker_that_was_paused_as_it_started_ends_with_the_datasite(folder: Path, mode: Mode, paused: float) -> None:
    """Its sandbox is made all the same, and the kernel then knows with whom it ends; or the worker notices."""
    assert gone(left_by_a_datasite(folder, mode, paused), seconds=60)


def left_by_a_datasite(folder: Path, mode: Mode, paused: float, code: str = "") -> list[int]:
    """Processes of a worker that was paused for some seconds and then lost its datasite, by kill -9."""
    command = [sys.executable, "-c", DATASITE, mode, str(paused), code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as datasite:
        assert datasite.stdout is not None
        pids = [int(pid) for pid in datasite.stdout.readline().split()]
        datasite.kill()
    assert pids
    return pids


@pytest.mark.parametrize("mode", ["required", "off"])
def test_a_worker_that_is_killed_while_it_starts_leaves_nothing(folder: Path, mode: Mode) -> None:
    for milliseconds in (0, 1, 2, 3, 4, 5, 6, 8, 10, 20):
        worker = begun(folder, mode, "after")
        time.sleep(milliseconds / 1000)
        worker.pause()
        time.sleep(0.01)
        worker.pause()
        session = worker.pid
        pids = list(processes.family(session))
        worker.kill()
        assert gone(pids)
        until(lambda worker=worker: not worker._process._thread.is_alive())
        assert gone([pid for one in Path("/proc").glob("[0-9]*") if session_of(pid := int(one.name)) == session])


def session_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3])
    except OSError:
        return 0


def test_whoever_kills_a_worker_waits_for_nobody_unless_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = begun(folder, "required", "after")
    until(lambda: "cleared" in worker.log)
    me, wait, join = threading.get_ident(), processes.wait_for, threading.Thread.join
    waited: list[str] = []

    def waits(process: subprocess.Popen[bytes]) -> None:
        if threading.get_ident() == me:
            waited.append("process")
        wait(process)

    def joins(self: threading.Thread, timeout: float | None = None) -> None:
        waited.append("thread")
        join(self, timeout)

    monkeypatch.setattr(processes, "wait_for", waits)
    monkeypatch.setattr(threading.Thread, "join", joins)
    worker.kill()
    assert waited == []
    worker.kill(wait=True)
    assert waited == ["thread"]
    assert not worker._process._thread.is_alive()


def test_the_log_of_a_worker_ends_with_it_though_others_hold_it(folder: Path) -> None:
    """So its group (`cgroup`) is killed then, whoever is left in it."""

    class Held(Sandbox):
        def command(self, arguments: Sequence[str], shown: Path | None = None) -> list[str]:
            return ["/bin/sh", "-c", "sleep 600 & echo $! >&2; setsid sleep 600 & echo $! >&2; wait"]

    worker = Worker(Held(SandboxConfig(mode="off")), Timeouts())
    until(lambda: worker.log.count("\n") == 2)
    left = [int(line) for line in worker.log.split()]
    os.kill(worker.pid, signal.SIGKILL)
    try:
        until(lambda: not worker._process._thread.is_alive())
        assert {state(pid) for pid in left} == {"S"}
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.waits
def test_what_a_datasite_sent_that_has_ended_is_not_begun(folder: Path) -> None:
    request = protocol.LoadCode(source=(folder / "model.py").read_text(), n_features=5)
    sent = b"".join(protocol.encode(request))
    limits = Sandbox().limits.model_dump_json()
    command = Sandbox().command(["-m", "datasites.enclave.worker_process", limits])
    done = subprocess.run(command, input=sent, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr


@pytest.mark.waits
def test_a_worker_that_stands_still_is_not_looked_for_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which costs a file for each of its threads."""
    with start(folder, Sandbox()) as worker:
        worker.pause()
        looked: list[Any] = []
        monkeypatch.setattr(processes, "family", lambda pid: looked.append(pid) or iter([pid]))
        worker.pause()
        assert looked == []
        monkeypatch.undo()
        worker.resume()
        assert worker.initial_parameters().shape == (29,)
        worker.pause()
        until(lambda: {state(pid) for pid in processes.family(worker.pid)} == {"T"})
        worker.kill()
        with pytest.raises(WorkerCrashed):
            worker.initial_parameters()


def test_a_worker_that_ends_while_it_is_being_killed_keeps_its_number(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system could give the number to another process, which would be killed in its place."""
    worker, end, found = start(folder, Sandbox()), processes.end, []

    def ended_before(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        assert not worker.alive
        worker._process._thread.join(1)  # that follows it, and could reap it by then
        found.append(state(pid))
        end(pid)

    monkeypatch.setattr(processes, "end", ended_before)
    worker.kill(wait=True)
    assert found == ["Z"], "ended, and not reaped"
    assert state(worker.pid) == "X"
    worker.kill()
    assert len(found) == 1


def test_a_worker_is_killed_also_where_no_file_can_be_opened() -> None:
    """Who its processes are can't be read then; it must not be left stopped, with its rows."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/dev/null", os.O_RDONLY)
        processes.end(process.pid)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        process.send_signal(signal.SIGCONT)
    try:
        assert process.wait(20) == -signal.SIGKILL
    finally:
        process.kill()
