"""Whole studies with four datasite processes: dropouts, rejoining, expiry of an agreement, a killed researcher."""

from __future__ import annotations

import base64
import gzip
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from datasites.aggregator.run import Run
from datasites.researcher import report
from datasites.study.audit_chain import verify_log
from tests.e2e.support import KEYS, ROOT, LocalDatasites


def heads_of(run: Run, email: str) -> list:
    return [record.heads[email] for record in run.state.rounds if email in record.heads]


def check_audit(datasites: LocalDatasites, run: Run, key: str) -> None:
    """The hospital's log holds every head that the researcher was given."""
    federation_key = run._roster.get(datasites.email(key)).public_key
    log = datasites.consortium.home(key) / "audit.jsonl"
    result = verify_log(log, federation_key, tuple(heads_of(run, datasites.email(key))))
    assert result.ok, result.reason


def test_the_notebook_runs_a_whole_study(datasites: LocalDatasites, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebook as shipped, cell by cell, while two people at each hospital approve."""
    import threading

    import nbformat
    from nbclient import NotebookClient

    study = datasites.study("notebook")
    monkeypatch.setenv("RESEARCHER_HOME", str(datasites.consortium.researcher_home))
    monkeypatch.setenv("STUDY_FOLDER", str(study.folder))
    monkeypatch.setenv("APPROVAL_SECONDS", "240")
    people = threading.Thread(target=datasites.approve_by_commands, args=(study,))
    people.start()
    notebook = nbformat.read(ROOT / "notebooks" / "researcher.ipynb", as_version=4)
    NotebookClient(notebook, timeout=400, kernel_name="python3").execute()
    people.join()
    pictures = [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 2
    with datasites.federation() as federation:
        run = federation.start(study)
        result = report.result(run)
    assert result["training_rounds"] == 15
    assert all(len(record["survivors"]) == 4 for record in result["rounds"])
    for email in result["hospitals"]:
        spent = result["privacy"][email]
        assert spent["steps"] == 30
        assert spent["epsilon_charged"] <= spent["epsilon_cap"] == 3.0
    assert result["final"]["auc"]["value"] > 0.8
    for key in KEYS:
        check_audit(datasites, run, key)


def test_the_evidence_of_a_study_verifies_without_this_software(datasites: LocalDatasites, tmp_path: Path) -> None:
    """A bundle, its own verifier, Python and `cryptography`; a head from the researcher; and one changed byte."""
    import json
    import zipfile

    study_folder = datasites.folder / "study-notebook"
    if not study_folder.exists():
        pytest.skip("needs the study that the notebook's test runs")
    bundle = tmp_path / "bundle.zip"
    made = datasites.command("hungary", "evidence", "1", "--out", str(bundle))
    assert made.returncode == 0, made.stdout + made.stderr
    with zipfile.ZipFile(bundle) as archive:
        archive.extract("verify_bundle.py", tmp_path)
    result = json.loads((datasites.consortium.researcher_home / "result.json").read_text())
    head = tmp_path / "head.json"
    head.write_text(json.dumps(result["audit_heads"][datasites.email("hungary")]))
    entry = json.loads((datasites.consortium.home("hungary") / "roster-entry.json").read_text())
    command = [sys.executable, "-I", str(tmp_path / "verify_bundle.py"), str(bundle)]
    command += ["--key", entry["public_key"], "--head", str(head)]
    checked = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    changed = tmp_path / "changed.zip"
    with zipfile.ZipFile(bundle) as source, zipfile.ZipFile(changed, "w") as target:
        for entry_of in source.infolist():
            data = source.read(entry_of)
            is_model = entry_of.filename == "frozen/model.py"
            target.writestr(entry_of, data.replace(b"tanh", b"relu") if is_model else data)
    command[3] = str(changed)
    refused = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode != 0
    assert "model.py" in refused.stdout


def test_the_store_holds_no_plaintext_of_code_updates_or_rows(datasites: LocalDatasites) -> None:
    """Runs after a whole study: the shared folder is somebody else's disk. Canaries raw, in base64, and compressed."""
    study = datasites.study("canary")
    model = study.folder / "model.py"
    canary = "CANARY-e3b0c44298fc1c149afb-in-the-code"
    model.write_text(model.read_text() + f'\nWORDS = "{canary}"\n')
    study = type(study).load(study.folder)
    with datasites.federation() as federation:
        federation.submit(study)
        deadline = time.monotonic() + 120
        while any(state.state == "submitted" for state in federation.states(study)) and time.monotonic() < deadline:
            time.sleep(1)
    secrets = [canary.encode(), b"WORDS = "]
    for key in KEYS:
        table = (datasites.consortium.home(key) / "data" / "table.csv").read_bytes().splitlines()
        secrets += [line.split(b",")[0] for line in table[1:6]]
    store = datasites.consortium.store
    files = [path for path in store.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        forms = unpacked(path.read_bytes())
        for secret in secrets:
            encoded = base64.b64encode(secret)[:-4]
            assert not any(secret in form or encoded in form for form in forms), f"{secret!r} is in {path}"


def unpacked(data: bytes) -> list[bytes]:
    """The bytes as they are and, where they are a gzip or zlib stream, what it holds."""
    forms = [data]
    for unpack in (gzip.decompress, zlib.decompress):
        try:
            forms.append(unpack(data))
        except (OSError, zlib.error, EOFError):
            continue
    return forms


def test_a_hospital_drops_out_and_rejoins(datasites: LocalDatasites) -> None:
    """Killed before round 4: rounds go on without it; started again, it comes back in without a new setup."""
    study = datasites.study("dropout", rounds="40", steps="1", epsilon="3.0")
    with datasites.federation() as federation:
        federation.submit(study)
        datasites.approve(study)
        federation.wait(study, timeout=120, progress=False)
        run = federation.start(study)
        run.complete(rounds=3, progress=False)
        datasites.kill("va")
        va = datasites.email("va")
        run.complete(rounds=6, progress=False)
        assert [va in record.survivors for record in run.state.rounds] == [True] * 3 + [False] * 3
        assert all(record.outcome == "done" for record in run.state.rounds)
        datasites.start("va")
        while va not in run.next_round().survivors:
            assert run.state.next_round < 40, datasites.log("va")
            time.sleep(0.5)
        run.complete(progress=False)
        assert va in run.state.rounds[-1].survivors
        # A vector that came too late for its round has left the hospital all the same, and is accounted for.
        released = [r["fields"]["round"] for r in datasites.audit_log("va") if r["kind"] == "released"
                    and r["fields"]["study"] == study.hash]  # fmt: skip
        assert run.state.accounts[va].rounds == len(released) == len(set(released))
        assert len(released) >= sum(va in record.survivors for record in run.state.rounds)
        check_audit(datasites, run, "va")


def test_a_baa_that_ends_mid_study_stops_one_hospital_until_it_is_renewed(datasites: LocalDatasites) -> None:
    study = datasites.study("expiry", rounds="12")
    passwords = datasites.consortium.passwords()
    hungary = datasites.email("hungary")
    with datasites.federation() as federation:
        federation.submit(study)
        datasites.approve(study)
        federation.wait(study, timeout=120, progress=False)
        run = federation.start(study)
        run.complete(rounds=3, progress=False)
        ended = datasites.command(
            "hungary", "agreements", "terminate", "baa-storage", "--as", "demo-steward", "--password-stdin",
            password=passwords["demo-steward"],
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        record = run.next_round()
        assert record.outcome == "done"
        assert hungary not in record.survivors
        assert record.abstained == {hungary: ("baa",)}
        denied = [r for r in datasites.audit_log("hungary") if r["kind"] == "abstained"]
        assert denied[-1]["fields"]["controls"] == ["baa"]
        renewed = datasites.folder / "renewed.toml"
        agreements = datasites.consortium.agreements_toml(datasites.hospital("hungary"))
        block = next(part for part in agreements.split("[[agreement]]") if "baa-storage" in part)
        renewed.write_text("[[agreement]]" + block.replace("BAA-2026-02", "BAA-2026-09"))
        for arguments, name in (
            (("agreements", "import", str(renewed)), "demo-steward"),
            (("agreements", "confirm", "baa-storage", "2"), "demo-privacy-officer"),
        ):
            done = datasites.command("hungary", *arguments, "--as", name, "--password-stdin", password=passwords[name])
            assert done.returncode == 0, done.stderr
        assert hungary in run.next_round().survivors
        run.complete(progress=False)
        charged = [r["fields"]["round"] for r in datasites.audit_log("hungary") if r["kind"] == "charged"
                   and r["fields"]["study"] == study.hash]  # fmt: skip
        assert 4 not in charged


def test_ready_file_and_lock_keep_a_second_process_out(datasites: LocalDatasites) -> None:
    second = datasites.command("cleveland", "serve")
    assert second.returncode == 2
    assert "already runs here" in second.stderr
    assert Path(datasites.consortium.home("cleveland") / "run" / "ready.json").exists()
