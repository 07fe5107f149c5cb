"""Groups of workers in the kernel's own hierarchy: entered before anything runs, gone with the worker, or not made.

Controllers are what a machine's service manager gives; where none are given here, the same steps are gone without them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasites.enclave import cgroup
from datasites.enclave.confine import GIB, WorkerLimits
from tests.enclave.workers import SOURCE, study

pytestmark = pytest.mark.waits


@pytest.fixture
def subtree() -> Iterator[Path]:
    """A group of our own below the one of this process, as a service manager would make."""
    own = cgroup.own_group()
    if own is None or not os.access(own / "cgroup.procs", os.W_OK):
        pytest.skip("this user may make no cgroup here")
    folder = own / f"datasites-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    for left in (*sorted(folder.glob("*/"), reverse=True), folder):
        left.rmdir()


def in_group(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as the one process of a group."""
    command = ["/bin/sh", "-c", cgroup._ENTER, str(folder), sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


TAKING_OVER = """
    import os, subprocess, sys
    from pathlib import Path
    from datasites.enclave import cgroup
    began = cgroup.own_group()
    assert cgroup.delegated(None, ()) is None
    subtree = cgroup.take_over(())
    assert subtree == began == cgroup.take_over(()) == cgroup.delegated(os.getpid(), ()), subtree
    assert cgroup.own_group() == began / "datasite"
    with cgroup.around(subtree, {"cgroup.max.depth": "0"}) as group:
        entering = cgroup.entering(group)
        shown = subprocess.run([*entering, "cat", "/proc/self/cgroup"], capture_output=True, text=True, check=True)
        (worker,) = [folder for folder in subtree.iterdir() if folder.name.startswith("worker-")]
        assert (worker / "cgroup.max.depth").read_text() == "0\\n"
        assert f"/{worker.name}\\n" in shown.stdout
        left_behind = subprocess.Popen([*entering, "sleep", "600"])
        while str(left_behind.pid) not in (worker / "cgroup.procs").read_text().split():
            assert left_behind.poll() is None
    assert not worker.exists() and left_behind.wait() == -9
    try:
        with cgroup.around(subtree, {"no.such.file": "1"}):
            raise AssertionError("entered a group without its limits")
    except OSError:
        assert [folder.name for folder in subtree.iterdir() if folder.is_dir()] == ["datasite"]
    print("done")
"""


def test_a_service_takes_its_group_over_and_workers_get_groups_beside_it(subtree: Path) -> None:
    done = in_group(subtree, TAKING_OVER)
    assert done.stdout == "done\n", done.stderr


def test_a_group_that_others_are_in_is_left_alone(subtree: Path) -> None:
    with subprocess.Popen(["/bin/sh", "-c", cgroup._ENTER, str(subtree), "sleep", "600"]) as other:
        code = """
            from datasites.enclave import cgroup
            import sys, time
            while len((cgroup.own_group() / "cgroup.procs").read_text().split()) < 2:
                time.sleep(0.01)
            print(cgroup.take_over(()))
        """
        done = in_group(subtree, code)
        assert done.stdout == "None\n", done.stderr
        other.kill()
    assert [folder for folder in subtree.iterdir() if folder.is_dir()] == []


WORKING = """
    import sys
    from pathlib import Path
    from datasites.enclave import cgroup
    from datasites.enclave.sandbox import Sandbox
    from datasites.enclave.template import Template
    from datasites.enclave.worker_client import Worker, WorkerError
    subtree = cgroup.take_over(())
    cgroup.delegated, given = (lambda: subtree), {}
    cgroup.allowed = lambda limits: given
    code = Path(sys.argv[1], "model.py").read_text()
    groups = lambda: {path for path in subtree.iterdir() if path.name.startswith("worker-")}
    source = Template() if sys.argv[2:] else Sandbox()
    if sys.argv[2:]:
        source.start()
    before = groups()
    with Worker.start(source, code, n_features=5) as worker:
        (group,) = groups() - before
        assert f"/{group.name}\\n" in Path(f"/proc/{worker.pid}/cgroup").read_text()
    assert groups() == before
    given["no.such.file"] = "1"
    try:
        Worker.start(source, code, n_features=5)
    except WorkerError as error:
        print(error)
    assert groups() == before
    given.clear()
    with Worker.start(source, code, n_features=5):
        pass
    if sys.argv[2:]:
        source.close()
    assert groups() == set()
"""


@pytest.mark.slow
@pytest.mark.parametrize("template", [(), ("template",)], ids=["sandbox", "template"])
def test_a_worker_runs_in_its_group_or_not_at_all(subtree: Path, tmp_path: Path, template: tuple[str, ...]) -> None:
    done = in_group(subtree, WORKING, str(study(tmp_path / "study", SOURCE)), *template)
    assert "the sandbox did not start" in done.stdout, done.stderr
    assert "no.such.file" in done.stdout


def test_without_a_subtree_nothing_is_put_before_a_command() -> None:
    with cgroup.around(None, {"memory.max": "1"}) as group:
        assert cgroup.entering(group) == []


def test_a_group_allows_what_the_worker_may_take_and_no_swap() -> None:
    allowed = cgroup.allowed(WorkerLimits(memory=GIB, processes=7))
    assert GIB < int(allowed["memory.max"]) <= 2 * GIB
    assert (allowed["memory.swap.max"], allowed["pids.max"]) == ("0", "7")


@pytest.mark.skipif(cgroup.delegated() is None, reason="no cgroup with memory and pids was delegated to this process")
def test_memory_beyond_the_group_ends_what_is_in_it() -> None:
    with cgroup.around(cgroup.delegated(), cgroup.allowed(WorkerLimits()) | {"memory.max": str(64 << 20)}) as group:
        command = [*cgroup.entering(group), sys.executable, "-c", "held = b'x' * (256 << 20); print(len(held))"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-9, "")
