"""A machine that lets nobody make namespaces is named as that, with what to allow; never as a fault of a study."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasites.enclave import escape
from datasites.enclave.allowing import what_to_allow
from datasites.enclave.sandbox import Sandbox, SandboxConfig, SandboxUnavailable
from datasites.enclave.worker_client import WorkerCrashed
from tests.enclave.workers import CRASHING, LIMITS, Unverified, start
from tests.enclave.workers import study as write_study
from tests.no_namespaces import NO_NAMESPACE, without_namespaces


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, ["AppArmor", "Ubuntu", "README"]),
        ({"proc/sys/kernel/unprivileged_userns_clone": "0\n"}, ["Debian", "kernel.unprivileged_userns_clone=1"]),
        ({"proc/sys/user/max_user_namespaces": "0\n"}, ["RHEL", "user.max_user_namespaces=15000"]),
        ({".dockerenv": ""}, ["container", "Docker", "Podman", "Kubernetes"]),
        ({"run/.containerenv": "", "proc/sys/user/max_user_namespaces": "0"}, ["user.max_user_namespaces", "Podman"]),
        ({"proc/sys/kernel/osrelease": "4.4.0-19041-Microsoft\n"}, ["WSL 1", "wsl --set-version"]),
        ({"proc/sys/kernel/osrelease": "5.15.90.1-microsoft-standard-WSL2\n"}, ["nothing here says", "README"]),
        ({}, ["nothing here says", "README"]),
    ],
)  # fmt: skip
def test_what_to_allow_is_said_for_the_machine_at_hand(tmp_path: Path, files: dict[str, str], words: list[str]) -> None:
    for name, content in {"proc/self/ns/user": "", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    said = what_to_allow(tmp_path)
    assert all(word in said for word in words), said


def test_a_kernel_without_user_namespaces_is_named(tmp_path: Path) -> None:
    assert "CONFIG_USER_NS" in what_to_allow(tmp_path)


def test_a_sandbox_that_can_be_made_is_not_refused() -> None:
    Sandbox().require()
    Sandbox(SandboxConfig(mode="off", bwrap="/nonexistent")).require()


def test_one_sentence_names_the_reason_and_what_to_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_namespaces(tmp_path, monkeypatch)
    with pytest.raises(SandboxUnavailable, match="no sandbox can be made here.*No permissions.*; .+") as caught:
        Sandbox().require()
    assert "\n" not in str(caught.value)
    program = tmp_path / "slow" / "bwrap"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'python: cannot open shared object file' >&2\nexit 127\n")
    program.chmod(0o755)
    with pytest.raises(SandboxUnavailable, match="shared object.*repair this Python"):
        Sandbox(SandboxConfig(bwrap=str(program))).require()


def test_a_worker_is_not_blamed_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_namespaces(tmp_path, monkeypatch)
    folder = write_study(tmp_path / "study")
    with pytest.raises(SandboxUnavailable, match=NO_NAMESPACE):
        start(folder, Sandbox())


@pytest.mark.slow
def test_model_code_cannot_make_it_look_so(tmp_path: Path) -> None:
    """It prints what bubblewrap would, and crashes before the first answer."""
    forged = CRASHING.replace('print("row: 63")', 'print("bwrap: No permissions to create new namespace")')
    folder = write_study(tmp_path / "study", forged)
    with pytest.raises(WorkerCrashed, match="SIGSEGV"):
        start(folder, Unverified(SandboxConfig(limits=LIMITS)), config={"crash": True})


def test_an_attempt_that_could_not_be_made_got_neither_out_nor_was_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_namespaces(tmp_path, monkeypatch)
    attempts = escape.escape_check(Sandbox())
    assert len(attempts) >= 23
    assert {attempt.outcome for attempt in attempts} == {"not tried"}
    assert all(not attempt.held for attempt in attempts)


def test_a_check_that_ends_in_the_middle_leaves_the_rest_untried() -> None:
    class Cut(Sandbox):
        def command(self, arguments: list[str], shown: Path | None = None) -> list[str]:  # type: ignore[override]
            code = (
                "import os; import datasites.enclave.attempts as e;"
                "e.BEFORE['reach the network'] = lambda targets: os._exit(3); e.main()"
            )
            return super().command(["-c", code, *arguments[2:]], shown)

    outcomes = {attempt.name: attempt.outcome for attempt in escape.escape_check(Cut())}
    assert outcomes["read a file of the host"] == "held"
    assert outcomes["reach the network"] == outcomes["open a socket"] == "not tried"
