"""Workers that die, and researchers who change things: named for the hospital, bare for the researcher (I1, I5, I7)."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from datasites.researcher import report
from datasites.study import letters
from datasites.study.package import StudyPackage
from tests.e2e.support import LocalDatasites


def charged_rounds(datasites: LocalDatasites, key: str, study_hash: str, kind: str) -> list[int]:
    return [
        record["fields"]["round"]
        for record in datasites.audit_log(key)
        if record["kind"] == kind and record["fields"]["study"] == study_hash
    ]


def sit_out(datasites: LocalDatasites, key: str, study_hash: str) -> str:
    """People see that the study has stopped, and answer for the round; gives the note that they read."""
    deadline = time.monotonic() + 120
    state = ""
    while state != "stopped":
        assert time.monotonic() < deadline, state
        cases = json.loads(datasites.command(key, "review", "list", "--json").stdout)
        (case,) = [case for case in cases if case["study_hash"] == study_hash]
        state = case["state"]
    name, password = next(iter(datasites.consortium.passwords().items()))
    options = ("--as", name, "--reason", "the machine was looked at", "--password-stdin")
    done = datasites.command(key, "study", "sit-out", str(case["case"]), *options, password=password)
    assert done.returncode == 0, done.stderr
    return case["note"]


def test_a_worker_that_dies_or_hangs_stops_its_study_in_silence_and_the_charge_stays(
    datasites: LocalDatasites,
) -> None:
    study = datasites.study("failures", rounds="5")
    va = datasites.email("va")
    datasites.kill("va")
    datasites.start("va", serve=[str(Path(__file__).with_name("failing_datasite.py"))])
    try:
        with datasites.federation() as federation:
            federation.submit(study)
            datasites.approve(study)
            federation.wait(study, timeout=180, progress=False)
            run = federation.start(study)
            notes = {}
            for number in (2, 3):
                run.complete(rounds=number, progress=False)
                notes[number] = sit_out(datasites, "va", study.hash)
                answer = [(va, study.hash, number, letters.ABSTAINED)]
                assert federation.mailroom.wait(answer, 60) == answer, "people have answered"
            run.complete(progress=False)
    finally:
        datasites.kill("va")
        datasites.start("va")
    by_round = {record.round: record for record in run.state.rounds}
    assert [va in by_round[number].survivors for number in range(1, 6)] == [True, False, False, True, True]
    for number in (2, 3):
        assert by_round[number].outcome == "done"
        assert by_round[number].abstained == {}, "nothing answers by itself where rows were at work"
    assert charged_rounds(datasites, "va", study.hash, "charged") == [1, 2, 3, 4, 5, 6]
    assert charged_rounds(datasites, "va", study.hash, "released") == [1, 4, 5, 6]
    kinds = {r["kind"] for r in datasites.audit_log("va") if r["fields"].get("study") == study.hash}
    assert not kinds & {"abstained", "stopped", "worker_ended"}, "heads of the log go out"
    assert "memory" in notes[2], "a SIGKILL that we did not send is most likely the kernel's, for memory"
    assert "wall-time" in notes[3]
    assert run.state.accounts[va].steps == 2 * 3
    assert run.state.accounts[va].charged["training"]["pld"] > 2.9, "charged rounds stay charged"


def test_what_a_researcher_changes_after_submitting_changes_nothing_that_runs(datasites: LocalDatasites) -> None:
    """TOCTOU: other content under the same job name, after approval and between rounds."""
    study = datasites.study("changed", rounds="4")
    with datasites.federation() as federation:
        federation.submit(study)
        datasites.approve(study)
        federation.wait(study, timeout=180, progress=False)
        run = federation.start(study)
        run.complete(rounds=2, progress=False)
        changed = datasites.study("changed-later", rounds="4")
        model = changed.folder / "model.py"
        model.write_text(model.read_text().replace("tanh", "relu"))
        files = StudyPackage.read(changed.folder).files
        with pytest.raises(ValueError, match="other content"):
            federation._control.submit(datasites.email("cleveland"), study.job_name, files)
        # Past the researcher's own software: the files in its SyftBox, which syft would send, are changed by hand.
        box = federation.home / "syftbox"
        for path in box.rglob(f"{study.job_name}/code/model.py"):
            path.chmod(0o600)
            path.write_text("import os\n")
        federation.sync()
        run.complete(progress=False)
        assert all(len(record.survivors) == 4 for record in run.state.rounds)
    for key in ("cleveland", "va"):
        frozen = datasites.consortium.home(key) / "frozen" / study.hash / "model.py"
        assert frozen.read_bytes() == (study.folder / "model.py").read_bytes()


def test_distributed_noise_with_the_consistency_wave(datasites: LocalDatasites) -> None:
    """Noise is shared: the sum's epsilon is the study's, each hospital's own is larger and stands beside it."""
    study = datasites.study(
        "together",
        rounds="10",
        mode='"distributed"\nnoise_multiplier = 2.0',
        steps="1",
        learning_rate="5.0",
        threshold="4\npatients = 920",
        bins="6\nnoise_multiplier = 1.4",
    )
    assert study.terms.consistency_wave
    with datasites.federation() as federation:
        federation.submit(study)
        datasites.approve(study)
        federation.wait(study, timeout=180, progress=False)
        run = federation.run(study, progress=False)
        result = report.result(run)
    assert all(record.outcome == "done" and len(record.survivors) == 4 for record in run.state.rounds)
    for email in result["hospitals"]:
        training = result["privacy"][email]["partitions"]["training"]
        assert training["pld"] <= 3.0
        assert training["local"] > training["pld"]
    assert result["final"]["auc"]["value"] > 0.75
