"""Cases and studies as people act on them: what is decided stands in database and log, and nothing else is."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from pathlib import Path

import pytest

from datasites.hospital.cases import examination
from datasites.hospital.cases.review import LONGEST_MESSAGE
from datasites.hospital.config import Home
from datasites.hospital.models import Case, LedgerEntry, Review, Round
from datasites.hospital.site import Site
from datasites.privacy.plan import PlanError
from datasites.researcher.study import Study
from datasites.study.package import StudyPackage
from tests.cli.command_line import CommandLine
from tests.hospital.conftest import HEART
from tests.hospital.desk import Desk, job
from tests.study.studies import distributed_package

WHY = ("--reason", "why")


# -- review ------------------------------------------------------------------------------------------------------------


def test_cases_are_listed_for_people_and_for_programs(datasites: CommandLine, desk: Desk) -> None:
    row = datasites.does("review", "list").lines[1].split()
    assert row[:4] == [str(desk.row.pk), "heart-disease", "review", desk.row.approval_hash[:12]]
    (listed,) = json.loads(datasites.does("review", "list", "--json").printed)
    assert listed["hash"] == desk.row.approval_hash
    assert listed["study_hash"] == desk.row.study_hash


def test_all_that_a_decision_rests_on_is_shown_and_nothing_is_changed(datasites: CommandLine, desk: Desk) -> None:
    before = datasites.home.audit.read_bytes()
    done = datasites.does("review", "show", desk.row.pk)
    for wanted in (desk.row.approval_hash, "def build_model", "DENY"):
        assert wanted in done.printed
    assert datasites.home.audit.read_bytes() == before


def test_a_study_runs_after_a_steward_and_a_privacy_officer_approved_what_they_saw(
    datasites: CommandLine, desk: Desk
) -> None:
    desk.agree()
    approve = ("review", "approve", desk.row.pk, *WHY, "--hash")
    assert "changed since you read it" in datasites.refuses(*approve, "ab" * 32, by="ann")
    assert "changed since you read it" in datasites.refuses(*approve, desk.row.approval_hash[:12], by="ann")
    datasites.does(*approve, desk.row.approval_hash, by="ann")
    assert Case.objects.get().state == Case.State.REVIEW
    assert not LedgerEntry.objects.exists()
    done = datasites.does(*approve, desk.row.approval_hash, by="bob")
    assert done.printed == f"case {desk.row.pk}: approved by bob; it is approved"
    assert Case.objects.get().state == Case.State.APPROVED
    assert {entry.kind for entry in LedgerEntry.objects.all()} == {"reserve"}
    by = [(record["person"], record["role"], record["hash"]) for record in datasites.logged("approved")]
    hash = desk.row.approval_hash
    assert by == [("ann", "steward", hash), ("bob", "privacy_officer", hash)]
    assert "only a case in review" in datasites.refuses(*approve, desk.row.approval_hash, by="cyd")


def test_an_approval_that_policies_deny_names_the_controls(datasites: CommandLine, desk: Desk) -> None:
    """Nobody has entered an agreement; that it was denied is logged, and nobody has approved."""
    approve = ("review", "approve", desk.row.pk, *WHY, "--hash", desk.row.approval_hash)
    done = datasites(*approve, by="ann")
    assert done.code == 2
    assert "BAA" in done.error
    assert not Review.objects.exists()
    assert datasites.logged("approved") == []
    desk.nothing_happened()


def test_a_researcher_reads_what_is_told_and_not_the_reason(datasites: CommandLine, desk: Desk) -> None:
    reject = ("review", "reject", desk.row.pk)
    assert "needs a reason" in datasites.refuses(*reject, "--tell", "no", "--reason", " ", by="ann")
    for told in (" ", "x" * (LONGEST_MESSAGE + 1)):
        assert f"{LONGEST_MESSAGE} characters at most" in datasites.refuses(*reject, "--tell", told, *WHY, by="ann")
    datasites.does(*reject, "--tell", "not now", "--reason", "we are few", by="ann")
    row = Case.objects.get()
    assert (row.state, row.note, row.recorded_in_syft) == (Case.State.REJECTED, "not now", False)
    (record,) = datasites.logged("rejected")
    assert {"person": "ann", "reason": "we are few", "told": "not now"}.items() <= record.items()
    assert "use revoke" in datasites.refuses(*reject, "--tell", "no", *WHY, by="bob")


def test_a_case_is_examined_again_before_it_is_approved_and_not_after(datasites: CommandLine, desk: Desk) -> None:
    desk.agree()
    assert datasites.does("review", "recheck", desk.row.pk).printed == f"case {desk.row.pk}: review"
    desk.row.refresh_from_db()
    desk.approve("ann")
    desk.approve("bob")
    assert f"case {desk.row.pk}" in datasites.refuses("review", "recheck", desk.row.pk)


def test_who_waits_for_a_study_is_told_its_case(datasites: CommandLine, desk: Desk) -> None:
    wait, soon = ("review", "wait", desk.row.study_hash), ("--seconds", "0.2")
    assert datasites.does(*wait).printed == str(desk.row.pk)
    Case.objects.update(state=Case.State.INTAKE, note="")
    assert "was not taken in within" in datasites.refuses(*wait, *soon)
    Case.objects.update(note="its table can't be read")
    assert f"case {desk.row.pk}: was not taken in: its table" in datasites.refuses(*wait)


def test_who_waits_for_a_study_is_told_that_it_was_refused_and_of_no_other(datasites: CommandLine, desk: Desk) -> None:
    """A job's name is its submitter's to choose: it says of a refusal, and never which case people are to read."""
    wanted = "ab" * 32
    Case.objects.update(job_name=f"heart-{wanted[:12]}")
    assert "was not taken in within" in datasites.refuses("review", "wait", wanted, "--seconds", "0.2")
    Case.objects.update(state=Case.State.REFUSED, note="it can't be read as a study")
    assert "it can't be read" in datasites.refuses("review", "wait", wanted)


def test_what_a_stranger_wrote_does_nothing_to_a_terminal(
    datasites: CommandLine, furnished: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Escapes could erase what it said above them, bidirectional marks turn it around, line ends forge other lines.

    Such a study is refused now; one that an earlier version has taken in is shown like this.
    """
    monkeypatch.setattr(StudyPackage, "require_plain", lambda package: None)
    Case.objects.all().delete()
    files, evil = job().files, "\\u001b[2K\\u202eevil[degF]\\nPolicies now: allow\\n"
    study, features = (files[name].decode() for name in ("study.toml", "features.toml"))
    for name in ("title", "irb"):
        study = study.replace(f'\n{name} = "', f'\n{name} = "{evil}')
    sent = {"study.toml": study, "features.toml": features.replace('description = "', f'description = "{evil}')}
    row = examination.admit(Site.open(furnished.root), job(**{name: text.encode() for name, text in sent.items()}))
    for command in (["show", str(row.pk)], ["list"]):
        done = datasites.does("review", *command)
        assert "evil[degF]" in done.printed or command == ["list"]
        assert "Policies now: allow" not in done.lines
        assert not [c for line in done.lines for c in line if unicodedata.category(c) in ("Cc", "Cf") and c != "\t"]


# -- studies that run --------------------------------------------------------------------------------------------------

#: By action: the state that it needs, the one that it leads to, and the record.
ACTIONS = {
    "pause": (Case.State.RUNNING, Case.State.PAUSED, "paused"),
    "resume": (Case.State.PAUSED, Case.State.RUNNING, "resumed"),
    "sit-out": (Case.State.STOPPED, Case.State.RUNNING, "sat_out"),
    "rejoin": (Case.State.STOPPED, Case.State.RUNNING, "rejoined"),
    "revoke": (Case.State.PAUSED, Case.State.REVOKED, "revoked"),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_one_reviewer_halts_a_study_and_lets_it_go_on(datasites: CommandLine, desk: Desk, action: str) -> None:
    before, after, kind = ACTIONS[action]
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    line = ("study", action, desk.row.pk, "--reason", "as was agreed")
    Case.objects.update(state=Case.State.CLOSED)
    assert f"case {desk.row.pk}: is closed; {kind} needs one that is " in datasites.refuses(*line, by="ann")
    Case.objects.update(state=before)
    Round.objects.create(case=desk.row, round=1, epoch=0, manifest_hash="", state=Round.State.CHARGED)
    assert datasites.does(*line, by="ann").printed == f"case {desk.row.pk}: {after}"
    row = Case.objects.get()
    assert (row.state, row.rejoins) == (after, action == "rejoin")
    assert Round.objects.get().state == (Round.State.FAILED if action == "sit-out" else Round.State.CHARGED)
    (record,) = datasites.logged(kind)
    assert {"person": "ann", "role": "steward", "reason": "as was agreed"}.items() <= record.items()
    reserved = {entry.kind for entry in LedgerEntry.objects.all()}
    assert reserved == ({"reserve", "release"} if action == "revoke" else {"reserve"})


def test_a_study_that_lacks_nothing_does_not_sit_out(datasites: CommandLine, desk: Desk) -> None:
    Case.objects.update(state=Case.State.STOPPED)
    refused = datasites.refuses("study", "sit-out", desk.row.pk, *WHY, by="ann")
    assert "no round of it waits for an answer; use resume or rejoin" in refused


def test_rounds_are_shown_with_what_left(datasites: CommandLine, desk: Desk) -> None:
    assert "before two people have approved" in datasites.does("study", "rounds", desk.row.pk).lines[-1]
    common = {"case": desk.row, "epoch": 0, "manifest_hash": "", "steps": 5, "seconds": 1.25}
    left = {"state": Round.State.UNMASKED, "survivors": ["a", "b", "c"], "release": {"sha256": "ab" * 32}}
    Round.objects.create(round=1, **common, **left)
    Round.objects.create(round=2, **common, state=Round.State.FAILED, reason="denied by irb")
    Case.objects.update(state=Case.State.RUNNING)
    _, first, second, last = datasites.does("study", "rounds", desk.row.pk).lines
    for shown in ("1 ", "in the sum", "not charged", "Cleveland, datasite@", " 5 ", "1.25", "ab" * 6):
        assert shown in first
    for shown in ("2 ", "sat out", "?", "denied by irb"):
        assert shown in second
    assert "1 of 15 training rounds, evaluation to come. Next: The researcher begins round 3 of 15" in last


# -- a folder, before it is submitted ----------------------------------------------------------------------------------


def folder_of(folder: Path, package: StudyPackage) -> Path:
    for name, content in package.files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_plan_shows_what_a_threshold_costs(datasites: CommandLine, tmp_path: Path) -> None:
    done = datasites.does("study", "plan", folder_of(tmp_path, distributed_package(rounds="15")))
    assert "1.414 if all survive, 1.225 if 3 do" in done.printed
    shown = "\n".join(done.lines)
    assert re.search(r"^3\* +1 +2 +1\.414 +1\.225 ", shown, flags=re.MULTILINE)
    assert re.search(r"^4 +0 +3 +1\.155 +1\.155 ", shown, flags=re.MULTILINE)
    as_json = datasites.does("study", "plan", folder_of(tmp_path, distributed_package()), "--json").printed
    assert [choice["threshold"] for choice in json.loads(as_json)] == [3, 4]


def test_a_plan_names_the_noise_that_a_study_leaves_out(datasites: CommandLine, tmp_path: Path) -> None:
    package = distributed_package(mode='"distributed"', rounds="15")
    refused = datasites.refuses("study", "plan", folder_of(tmp_path, package))
    assert re.search(r"privacy.noise_multiplier is missing: [0-9.]+ is the least that fits", refused)
    with pytest.raises(PlanError, match="is missing"):
        Study(tmp_path, distributed_package(mode='"distributed"')).plan()


def test_a_folder_is_clean_or_its_findings_are_shown(datasites: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(HEART / "study", folder)
    assert datasites.does("study", "check", folder).lines[-1].endswith("0 finding(s)")
    assert json.loads(datasites.does("study", "check", folder, "--json").printed) == []
    (folder / "model.py").write_text("import os\n")
    done = datasites("study", "check", folder)
    assert done.code == 1
    assert "os" in done.printed
    done = datasites("study", "check", folder, "--json")
    assert (done.code, len(json.loads(done.printed)) > 0) == (1, True)


@pytest.mark.parametrize("command", ["plan", "check"])
def test_a_folder_that_is_no_study_is_named(datasites: CommandLine, tmp_path: Path, command: str) -> None:
    assert f"{tmp_path / 'missing'}" in datasites.refuses("study", command, tmp_path / "missing")
    assert f"{tmp_path}" in datasites.refuses("study", command, tmp_path)
    folder = folder_of(tmp_path, StudyPackage.read(HEART / "study"))
    (folder / "study.toml").write_bytes(b"rounds = [")
    assert "study.toml" in datasites.refuses("study", command, folder)
