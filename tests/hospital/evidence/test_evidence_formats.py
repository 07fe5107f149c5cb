"""Bundles of every format that was ever written keep verifying, and only one archive is a bundle of the present one."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from datasites.hospital.evidence import verify_bundle
from datasites.hospital.evidence.bundle import EvidenceError, build_bundle
from tests.adversarial.tampered_archives import Part, assemble
from tests.hospital.evidence_of import Hospital, failed, pack, pack_like_an_older_version, resign, unpack

BUNDLES = Path(__file__).with_name("bundles")
#: Of each older format, what its checks say that it could not prove.
NOT_PROVED = {
    1: {
        "archive": "NOT BOUND BEFORE FORMAT 3",
        "charges": "not in the log in full before format 2",
        "caps": "NOT HELD AGAINST the caps BEFORE FORMAT 3",
        "approvals": "NOT BOUND by the log BEFORE FORMAT 3",
        "agreements": "NOT BOUND by the log BEFORE FORMAT 3",
        "parties": "NOT BOUND by the log BEFORE FORMAT 3",
    },
    2: {
        "archive": "NOT BOUND BEFORE FORMAT 3",
        "charges": "NOT HELD AGAINST the approved plan BEFORE FORMAT 3",
        "caps": "NOT HELD AGAINST the caps BEFORE FORMAT 3",
        "approvals": "NOT BOUND by the log BEFORE FORMAT 3",
        "agreements": "NOT BOUND by the log BEFORE FORMAT 3",
        "parties": "NOT BOUND by the log BEFORE FORMAT 3",
    },
}


@pytest.mark.parametrize("format", [1, 2])
def test_a_bundle_that_an_older_version_wrote_verifies_and_says_what_it_could_not_prove(format: int) -> None:
    kept = json.loads((BUNDLES / f"format_{format}.json").read_text())
    checks = verify_bundle.verify(BUNDLES / f"format_{format}.zip", kept["public_key"], kept["heads"])
    assert [check for check in checks if not check.ok] == []
    found = {check.name: check.found for check in checks}
    for name, words in NOT_PROVED[format].items():
        assert words in found[name]


def test_a_bundle_whose_decisions_call_the_approval_hash_study_verifies_as_ever() -> None:
    """Decisions of format 1, as all were before `code-current` was a control of its own."""
    kept = json.loads((BUNDLES / "format_3.json").read_text())
    decisions = json.loads(unpack(BUNDLES / "format_3.zip")["decisions.json"])
    assert {decision["format"] for decision in decisions} == {1}
    checks = verify_bundle.verify(BUNDLES / "format_3.zip", kept["public_key"], kept["heads"])
    assert [check for check in checks if not check.ok] == []


@pytest.mark.parametrize("format", [1, 2])
@pytest.mark.parametrize("where", ["before", "after", "comment", "again"])
def test_an_older_archive_that_can_be_read_in_two_ways_fails_too(format: int, where: str, tmp_path: Path) -> None:
    kept = json.loads((BUNDLES / f"format_{format}.json").read_text())
    whole, odd = (BUNDLES / f"format_{format}.zip").read_bytes(), tmp_path / "odd.zip"
    odd.write_bytes({"before": b"#!" + whole, "after": whole + b"\n"}.get(where, whole))
    if where == "comment":
        with zipfile.ZipFile(odd, "a") as archive:
            archive.comment = b"reviewed"
    if where == "again":
        with zipfile.ZipFile(odd, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("ledger.json", b"[]")
    checks = {check.name: check for check in verify_bundle.verify(odd, kept["public_key"])}
    assert not checks["archive"].ok


@pytest.mark.parametrize("format", [1, 2])
def test_the_present_log_does_not_pass_for_that_of_an_older_format(format: int, tmp_path: Path) -> None:
    hospital, path = Hospital(tmp_path), tmp_path / "bundle.zip"
    hospital.run()
    build_bundle(path, hospital.contents)
    older = resign({n: d for n, d in unpack(path).items() if n != "openings.json"}, hospital.identity, format=format)
    for written in (pack, pack_like_an_older_version):
        written(path, older)
        assert (
            "whose logs bound no agreement, person or party; this log does"
            in failed(path, hospital.identity)["audit log"]
        )


def test_the_archive_is_what_any_zip_reader_reads_and_any_python_writes(tmp_path: Path) -> None:
    hospital, path = Hospital(tmp_path), tmp_path / "bundle.zip"
    hospital.run()
    assert all(check.ok for check in build_bundle(path, hospital.contents))
    again = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(again, "w", zipfile.ZIP_STORED) as copy:
        assert archive.testzip() is None
        assert archive.namelist() == sorted(archive.namelist())
        for name in archive.namelist():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o100600 << 16
            copy.writestr(entry, archive.read(name))
    assert again.getvalue() == path.read_bytes()


def test_contents_beyond_the_limits_make_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital, path = Hospital(tmp_path), tmp_path / "bundle.zip"
    hospital.run()
    monkeypatch.setattr(verify_bundle, "LARGEST_ARCHIVE", 50_000)
    with pytest.raises(EvidenceError, match=r"at most 50000 bytes, and .* goes beyond that; hand over the log itself"):
        build_bundle(path, hospital.contents)
    monkeypatch.undo()
    monkeypatch.setattr(verify_bundle, "MOST_FILES", 5)
    with pytest.raises(EvidenceError, match="at most 5 files"):
        build_bundle(path, hospital.contents)
    assert list(tmp_path.glob("bundle.zip*")) == []


def test_long_lists_are_read_entry_by_entry(tmp_path: Path) -> None:
    hospital, path = Hospital(tmp_path), tmp_path / "bundle.zip"
    hospital.enter()
    for _ in range(60):  # each of some kilobytes: more than one piece of the file
        hospital.decide("intake")
    checks = {check.name: check for check in build_bundle(path, hospital.contents)}
    assert all(check.ok for check in checks.values())
    assert checks["decisions"].found.startswith("60 allowed")
    assert len(unpack(path)["decisions.json"]) > 4 * 65536


@pytest.mark.parametrize("encoding", ["ascii:strict", "cp437:strict", "utf-8:strict"])
def test_no_verdict_hangs_on_what_a_terminal_can_show(encoding: str) -> None:
    command = [sys.executable, verify_bundle.__file__, str(BUNDLES / "format_2.zip")]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=env, check=False)
    assert done.stdout.endswith(b"The bundle verifies.\n")
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_verifier_is_written_for_old_pythons() -> None:
    ast.parse(Path(verify_bundle.__file__).read_text(), feature_version=(3, 9))


@pytest.mark.parametrize("name", ["ledger.json.", "frozen./model.py", "frozen/x..", "NUL", "frozen/aux.py", "com1.txt"])
def test_a_name_that_windows_reads_as_another_makes_no_bundle(name: str) -> None:
    with pytest.raises(verify_bundle.Fault, match="has the odd name"):
        verify_bundle.write_archive(io.BytesIO(), {name: b""})


@pytest.mark.parametrize("name", ["a..b", "frozen/auxiliary.py", "console.txt", "x-", "_"])
def test_a_name_that_looks_like_one_of_those_does(name: str) -> None:
    verify_bundle.write_archive(io.BytesIO(), {name: b""})


def test_no_archive_has_what_passes_for_a_zip64_locator_before_its_end() -> None:
    # By attributes, which older formats left free: 12 characters of the name follow on their place.
    made = assemble([Part(b"a.txt", b""), Part(b"zzzzzzzz.txt", b"", central={"attributes": 0x07064B50})])
    with pytest.raises(verify_bundle.Fault, match="has a ZIP64 locator before its end record"):
        verify_bundle._Archive(io.BytesIO(made))
    # By the place of the last file, which the builder chooses itself.
    before = 0x07064B50 - verify_bundle._LOCAL.size - len("terms.json")
    with open(os.devnull, "wb") as nowhere, pytest.raises(verify_bundle.Fault, match="has a ZIP64 locator"):
        verify_bundle.write_archive(nowhere, {"terms.json": bytes(before), "verify_bundle.py": b""})
