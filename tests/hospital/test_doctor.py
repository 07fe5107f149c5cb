"""What a datasite needs of its machine, and says before it starts: a user of its own, and a sandbox."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from datasites.enclave import cgroup
from datasites.enclave.sandbox import SandboxConfig, SandboxUnavailable
from datasites.hospital.config import CONFIG_FILE, Home
from datasites.hospital.doctor import examine as doctor
from datasites.hospital.service import Service
from datasites.hospital.setup import initialise, require_own_user
from datasites.hospital.site import Site
from datasites.study.errors import InputError
from tests.no_namespaces import NO_NAMESPACE, without_namespaces
from tests.other_user import run_as_other_user

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")


def with_root_allowed(site: Site, allowed: bool) -> Site:
    settings = site.home.settings.model_copy(update={"run_as_root": allowed})
    return dataclasses.replace(site, home=dataclasses.replace(site.home, settings=settings))


@as_root
def test_root_does_not_serve_unless_the_operator_wrote_so(site: Site) -> None:
    with pytest.raises(InputError, match="does not serve as root.*run_as_root = true"):
        Service(with_root_allowed(site, False))
    (check,) = doctor(with_root_allowed(site, False), ["user"])
    assert (check.state, "run_as_root" in check.message) == ("bad", True)


@as_root
def test_allowed_root_is_warned_of(site: Site) -> None:
    require_own_user(with_root_allowed(site, True).home)
    (check,) = doctor(with_root_allowed(site, True), ["user"])
    assert (check.state, "runs as root" in check.message) == ("warn", True)


@pytest.mark.slow
def test_any_other_user_serves_without_a_word() -> None:
    code = """
        from pathlib import Path
        from datasites.hospital.config import DatasiteSettings, Home
        from datasites.hospital.setup import require_own_user
        require_own_user(Home(Path("/"), DatasiteSettings(organisation="A", email="a@a.example.org", store="s")))
        print("may")
    """
    done = run_as_other_user([sys.executable, "-c", textwrap.dedent(code)])
    assert done.stdout == "may\n", done.stderr


def test_the_sandbox_is_examined_and_holds(site: Site) -> None:
    (check,) = [check for check in doctor(site, ["sandbox"]) if check.name == "sandbox"]
    assert (check.state, "were blocked" in check.message) == ("ok", True), check


def test_without_a_sandbox_the_doctor_says_so_and_tries_nothing_on_this_machine(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasites.hospital.doctor.escape_check", None)
    settings = site.home.settings.model_copy(update={"sandbox": SandboxConfig(mode="off")})
    without = dataclasses.replace(site, home=dataclasses.replace(site.home, settings=settings))
    found = list(doctor(without, ["sandbox"]))
    assert [(check.name, check.state) for check in found] == [("sandbox", "warn"), ("workers", "warn")]
    assert "without a sandbox" in found[1].message


def test_the_doctor_looks_at_the_group_of_the_running_service(site: Site) -> None:
    def found() -> str:
        return next(check.message for check in doctor(site, ["cgroup"]))

    assert "not known" in found()
    site.home.run.mkdir(exist_ok=True)
    ready = site.home.ready
    ready.write_text(json.dumps({"pid": os.getpid()}))
    try:
        assert ("groups of their own" if cgroup.delegated() else "Delegate=memory pids") in found()
    finally:
        ready.unlink()


def test_without_namespaces_the_doctor_says_so_in_one_line(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_namespaces(tmp_path, monkeypatch)
    (check,) = doctor(site, ["sandbox"])
    assert check.state == "bad"
    assert "no sandbox can be made here" in check.message
    assert NO_NAMESPACE in check.message
    assert "got out" not in check.message


def test_without_namespaces_nothing_is_served(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_namespaces(tmp_path, monkeypatch)
    with pytest.raises(SandboxUnavailable, match=NO_NAMESPACE):
        Service(site)


def test_without_namespaces_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_namespaces(tmp_path, monkeypatch)
    root = tmp_path / "home"
    text = f'organisation = "A"\nemail = "a@a.example.org"\nstore = "{tmp_path / "store"}"\n'
    with pytest.raises(SandboxUnavailable, match=NO_NAMESPACE):
        initialise(root, text)
    assert list(root.iterdir()) == []
    settings = tmp_path / CONFIG_FILE
    settings.write_text(text)
    command = [sys.executable, "-m", "datasites.cli", "init", str(settings), "--home", str(tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("datasites: no sandbox can be made here")
    assert "Traceback" not in done.stderr


def test_a_home_says_nothing_of_root_by_itself(home: Home) -> None:
    assert type(home.settings).model_fields["run_as_root"].default is False
