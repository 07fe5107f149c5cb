"""The datasite itself: made once, served by one process, stopped by one person, and looked after."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datasites.enclave import cgroup
from datasites.hospital import doctor, serving
from datasites.hospital.doctor import examine
from datasites.hospital.evidence.verify_bundle import verify
from datasites.hospital.site import Site
from datasites.study.roster import Roster, RosterEntry
from tests.cli.command_line import CommandLine, facts
from tests.hospital.desk import PASSWORD, Desk
from tests.hospital.invited import enter
from tests.study.entries import entry_of

WHY = ("--reason", "a power failure")
SETTINGS = 'organisation = "General"\nemail = "office@general.example.org"\nstore = "{}"\nrun_as_root = true\n'


# -- init --------------------------------------------------------------------------------------------------------------


def in_another_process(*lines: tuple[str, ...], password: str = "") -> Iterator[dict[str, Any]]:
    """What becomes of these commands in one: no process speaks to the databases of two homes."""
    script = Path(__file__).with_name("run_commands.py")
    asked = json.dumps([[[line, password] for line in lines]])
    done = subprocess.run([sys.executable, script], input=asked, capture_output=True, text=True, check=True)
    yield from map(json.loads, done.stdout.splitlines())


def test_a_datasite_is_made_once_for_people_of_its_own(tmp_path: Path) -> None:
    settings, home = tmp_path / "datasite.toml", tmp_path / "home"
    settings.write_text(SETTINGS.format(tmp_path / "store"))
    at = ("--home", str(home))
    again = ("init", str(settings), *at)
    made, shown, refused = in_another_process(again, ("identity", "show", *at), again)
    assert (made["code"], shown["code"], refused["code"]) == (0, 0, 2)
    assert f"{home}: a datasite is here already; choose another folder" in refused["said"]
    entry = RosterEntry.parse((home / "roster-entry.json").read_bytes())
    assert (entry.organisation, entry.email, entry.role) == ("General", "office@general.example.org", "hospital")
    assert entry.syft_fingerprint
    for said in (made["said"], shown["said"]):
        assert f"fingerprint  {entry.fingerprint}" in said
    assert Roster.load(home / "roster.json").entries == (entry,)
    for private in (home, *home.rglob("*.pem")):
        assert not stat.S_IMODE(private.stat().st_mode) & 0o077, private
    code = made["said"].split("/invitation/#")[1].split()[0]
    kept = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert code.encode() not in kept
    log = [json.loads(line) for line in (home / "audit.jsonl").read_text().splitlines()]
    assert {"initialised", "person_added"} <= {record["kind"] for record in log}
    password = "a phrase of the admin's own"
    (accepted,) = in_another_process(("person", "accept", *at, "--password-stdin"), password=f"{code}\n{password}")
    assert "admin: password set" in accepted["said"]
    stop = ("kill", *at, "--as", "admin", *WHY, "--yes", "--password-stdin")
    (stopped,) = in_another_process(stop, password=password)
    assert (stopped["code"], (home / "KILLED").read_text()) == (0, "admin: a power failure\n")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file; write the datasite's settings first"),
        ('organisation = "Universit\u00e4t"'.encode("latin-1"), "save it as UTF-8"),
        (b"organisation = [", "datasite.toml"),
        (b'organisation = "A"\nemail = "office"\nstore = "s"\n', "email"),
        (b'organisation = "A"\nemail = "a@a.example.org"\nstor = "s"\n', "stor"),
    ],
)
def test_settings_that_can_not_be_used_make_nothing(
    datasites: CommandLine, tmp_path: Path, content: bytes | None, words: str
) -> None:
    settings, home = tmp_path / "datasite.toml", tmp_path / "new"
    if content is not None:
        settings.write_bytes(content)
    assert words in datasites.refuses("init", settings, "--home", home)
    assert not home.exists() or list(home.iterdir()) == []
    before = sorted(tmp_path.iterdir())
    (tmp_path / "mine").write_text("mine")
    settings.write_text(SETTINGS.format(tmp_path / "store"))
    assert f"{tmp_path}: " in datasites.refuses("init", settings, "--home", tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted({*before, settings, tmp_path / "mine"})


# -- serve -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `serve` does of its own, without a service: handlers of signals, and what it has served."""
    seen: dict[str, Any] = {"signals": {}, "served": []}
    monkeypatch.setattr(cgroup, "take_over", lambda: None)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(signal, "signal", seen["signals"].__setitem__)

    def serve_until(stop: threading.Event, root: Path, console: bool) -> None:
        seen["served"].append((root, console))
        ended = seen["signals"][signal.SIGTERM]
        seen["second"] = seen["again"]() if "again" in seen else None
        assert not stop.is_set()
        ended(signal.SIGTERM, None)
        assert stop.is_set()

    monkeypatch.setattr(serving, "serve_until", serve_until)
    return seen


def test_one_process_serves_a_home_until_it_is_told_to_stop(datasites: CommandLine, served: dict[str, Any]) -> None:
    served["again"] = lambda: datasites("serve")
    datasites.does("serve", "--no-console")
    assert served["served"] == [(datasites.home.root, False)]
    assert set(served["signals"]) == {signal.SIGINT, signal.SIGTERM}
    assert served["second"].code == 2
    assert f"{datasites.home.root}: a datasite already runs here" in served["second"].error
    del served["again"]
    datasites.does("serve")
    assert served["served"][1:] == [(datasites.home.root, True)], "the first has let go of it"


# -- the kill switch ---------------------------------------------------------------------------------------------------


def test_one_person_stops_all_studies_until_a_reviewer_lets_them_go_on(datasites: CommandLine) -> None:
    switch = datasites.home.root / "KILLED"
    enter(Site.open(datasites.home.root), "eve", "admin", PASSWORD)
    assert "not confirmed, so nothing was stopped" in datasites.refuses("kill", *WHY, by="eve")
    datasites.does("kill", *WHY, "--yes", by="eve")
    assert switch.read_text() == "eve: a power failure\n"
    (record,) = datasites.logged("killed")
    assert record == {"person": "eve", "role": "admin", "reason": "a power failure"}
    assert "eve is admin; the kill switch is taken off by a reviewer" in datasites.refuses("unkill", *WHY, by="eve")
    datasites.does("unkill", *WHY, by="bob")
    assert not switch.exists()
    (record,) = datasites.logged("unkilled")
    assert (record["person"], record["role"]) == ("bob", "privacy_officer")
    assert "was not on; nothing was done" in datasites.does("unkill", *WHY, by="bob").printed
    assert len(datasites.logged("unkilled")) == 1


def test_a_reason_that_the_log_can_not_hold_switches_nothing(datasites: CommandLine) -> None:
    for command in (("kill", "--yes"), ("unkill",)):
        assert "reason" in datasites.refuses(*command, "--reason", "x" * 1_000_000, by="ann")
    assert not (datasites.home.root / "KILLED").exists()


# -- evidence, doctor, identity ----------------------------------------------------------------------------------------


def test_a_bundle_is_written_for_others_and_verifies(datasites: CommandLine, desk: Desk, tmp_path: Path) -> None:
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    bundle, key = tmp_path / "bundle.zip", desk.site.identity.public_key
    done = datasites.does("evidence", desk.row.pk, "--out", bundle)
    assert done.lines[-1] == f"{bundle}: verify with `python verify_bundle.py bundle.zip --key {key}`"
    assert "FAIL" not in done.printed
    assert all(check.ok for check in verify(bundle, key))
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    datasites.home.registry.unlink()
    done = datasites("evidence", desk.row.pk, "--out", bundle)
    assert (done.code, "FAIL" in done.printed) == (1, True)


def test_no_bundle_is_written_over_the_home_or_where_none_can_be(
    datasites: CommandLine, desk: Desk, tmp_path: Path
) -> None:
    evidence = ("evidence", desk.row.pk, "--out")
    assert "lies in the datasite's home" in datasites.refuses(*evidence, datasites.home.audit)
    for target in (tmp_path, tmp_path / "none" / "bundle.zip"):
        assert f"{target}: not a file in a folder that is there" in datasites.refuses(*evidence, target)


def test_what_is_wrong_with_a_datasite_is_said_and_in_the_exit_code(
    datasites: CommandLine, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = facts(datasites.home)
    found = list(examine(desk.site))
    done = datasites("doctor")
    assert [line.split()[0] for line in done.lines] == [check.state for check in found]
    assert done.code == int("bad" in [check.state for check in found])
    assert facts(datasites.home)["audit.jsonl"] == before["audit.jsonl"]
    for state, code in (("ok", 0), ("warn", 0), ("bad", 1)):
        monkeypatch.setattr(doctor, "examine", lambda _, state=state: [doctor.Diagnosis("clock", state, "as it is")])
        done = datasites("doctor")
        assert (done.code, done.printed) == (code, f"{state} clock: as it is")


def test_the_roster_entry_is_shown_or_named_where_it_is_lost(datasites: CommandLine, desk: Desk) -> None:
    file, entry = datasites.home.roster_entry, entry_of(desk.site.identity)
    file.write_bytes(entry.canonical())
    assert f"fingerprint {entry.fingerprint}" in datasites.does("identity", "show").printed
    file.write_bytes(b"{}")
    for _ in range(2):
        assert f"{file}: not this hospital's roster entry; put it back" in datasites.refuses("identity", "show")
        file.unlink(missing_ok=True)


def test_a_home_is_read_from_the_environment(datasites: CommandLine, tmp_path: Path) -> None:
    assert os.environ["DATASITES_HOME"] == str(datasites.home.root)
    assert "holds no datasite.toml" in datasites.refuses("review", "list", "--home", tmp_path)
