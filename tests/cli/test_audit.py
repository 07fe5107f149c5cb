"""The audit log for whoever reads it, exports it, or holds a part of it against it: what was changed is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datasites.hospital.audit.log import AuditLog, head_file
from datasites.hospital.cases.replay import Replay
from datasites.hospital.models import PolicyDecision
from datasites.study.audit_chain import PublicHead, records, verify_log
from datasites.study.identity import Identity
from tests.cli.command_line import CommandLine
from tests.hospital.desk import Desk

KEY = "ab" * 32


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    """The log of another hospital, with a release in it."""
    log = AuditLog(tmp_path / "theirs" / "audit.jsonl", Identity.generate("a@x.example.org"))
    log.append("released", round=1)
    log.checkpoint()
    return log


def key_of(log: AuditLog) -> str:
    return log.public_head().public_key


# -- verify ------------------------------------------------------------------------------------------------------------


def test_whether_a_log_is_sound_is_said_by_the_exit_code(datasites: CommandLine, log: AuditLog) -> None:
    line = ("audit", "verify", log.path, "--key", key_of(log))
    assert '"ok": true' in datasites.does(*line).printed
    whole = log.path.read_bytes()
    for changed in (whole.replace(b'"round":1', b'"round":2'), whole[: whole.index(b"\n") + 1], b"", b"\xff\n" + whole):
        log.path.write_bytes(changed)
        done = datasites(*line)
        assert (done.code, '"ok": false' in done.printed) == (1, True)
    log.path.write_bytes(whole)
    assert datasites("audit", "verify", log.path, "--key", KEY).code == 1, "another hospital's"


def test_a_hospital_that_writes_its_log_anew_is_caught_by_what_others_keep(
    datasites: CommandLine, log: AuditLog, tmp_path: Path
) -> None:
    """By one who has a head, or another hospital's log, and the public key; and nothing from the researcher."""
    head, keeps = tmp_path / "head.json", AuditLog(tmp_path / "keeps.jsonl", Identity.generate("b@x.example.org"))
    head.write_bytes(log.public_head().canonical())
    keeps.keep_heads({"a@x.example.org": log.public_head()})
    line = ("audit", "verify", log.path, "--key", key_of(log))
    by_head, by_log = (*line, "--head", head), (*line, "--kept-in", keeps.path)
    datasites.does(*by_head)
    assert "holds 1 head(s) of this log" in datasites.does(*by_log).printed
    identity = log._identity
    for path in (log.path, head_file(log.path)):
        path.unlink()
    AuditLog(log.path, identity).append("released", round=2)
    datasites.does(*line)
    for held in (by_head, by_log):
        done = datasites(*held)
        assert done.code == 1
        assert "no record is the one that a counterparty has the signed head of (release 1)" in done.printed


def test_what_is_no_log_no_key_and_no_head_is_named(datasites: CommandLine, log: AuditLog, tmp_path: Path) -> None:
    missing, wrong = tmp_path / "missing", tmp_path / "wrong"
    wrong.write_bytes(b"[\n")
    line = ("audit", "verify", log.path, "--key", key_of(log))
    assert f"{missing}: no such file; name the audit log" in datasites.refuses("audit", "verify", missing, "--key", KEY)
    assert f"{tmp_path}: no such file" in datasites.refuses("audit", "verify", tmp_path, "--key", KEY)
    for key in ("mine", KEY.upper(), KEY[:-1]):
        assert "not a public key of 64 hex digits" in datasites.refuses("audit", "verify", log.path, "--key", key)
    for path in (missing, wrong, tmp_path):
        assert "--head: not a signed head of a log" in datasites.refuses(*line, "--head", path)
        assert f"--kept-in {path}: not an audit log" in datasites.refuses(*line, "--kept-in", path)


# -- tail and export ---------------------------------------------------------------------------------------------------


def test_the_last_records_are_shown_oldest_first(datasites: CommandLine, desk: Desk) -> None:
    for round in (1, 2, 3):
        desk.site.audit.append("charged", round=round, reason="a\n9 2026-01-01 approved person=bob")
    last = desk.site.audit.head().seq
    lines = datasites.does("audit", "tail", "-n", 2).lines
    assert [line.split()[0] for line in lines] == [str(last - 1), str(last)], "no record passes for another"
    shown = datasites.does("audit", "tail", "--kind", "charged", "--contains", '"round":2')
    assert shown.printed.startswith(f"{last - 1} ")
    assert "round=2" in shown.printed
    assert datasites.does("audit", "tail", "--kind", "nothing").lines == []
    assert datasites("audit", "tail", "-n", 0).code == 2


def test_a_log_that_is_gone_is_named(datasites: CommandLine) -> None:
    log = datasites.home.audit
    content = log.read_bytes()
    log.unlink()
    try:
        assert f"{log}: no such file" in datasites.refuses("audit", "tail")
    finally:
        log.write_bytes(content)


def test_a_copy_is_the_log_signed_to_its_end(datasites: CommandLine, desk: Desk, tmp_path: Path) -> None:
    desk.site.audit.append("started", pid=1)
    target = tmp_path / "copy.jsonl"
    done = datasites.does("audit", "export", target)
    assert target.read_bytes() == datasites.home.audit.read_bytes()
    *_, last = records(target)
    assert last.kind == "checkpoint"
    key = desk.site.identity.public_key
    assert done.printed == f"{target}: {last.seq} records, verify with --key {key}"
    assert verify_log(target, key).ok, "without the head file that lies beside the log"


def test_no_copy_is_written_over_the_home_or_where_none_can_be(datasites: CommandLine, tmp_path: Path) -> None:
    """A log that was written over while a service appends to it would lack a record."""
    for target in (datasites.home.audit, datasites.home.root / "data" / "new.jsonl"):
        refused = datasites.refuses("audit", "export", target)
        assert f"{target}: lies in the datasite's home, among its own files; name a place outside of it" in refused
    (tmp_path / "link").symlink_to(datasites.home.audit)
    assert "lies in the datasite's home" in datasites.refuses("audit", "export", tmp_path / "link")
    for target in (tmp_path, tmp_path / "none" / "log"):
        assert f"{target}: not a file in a folder that is there" in datasites.refuses("audit", "export", target)
    done = datasites("audit", "export", "/dev/full")
    assert (done.code, "/dev/full: cannot be written (No space left on device)" in done.error) == (2, True)


# -- held and replay ---------------------------------------------------------------------------------------------------


def test_a_head_that_the_log_lacks_stops_everything(datasites: CommandLine, desk: Desk, tmp_path: Path) -> None:
    ours, lost = tmp_path / "ours.json", tmp_path / "lost.json"
    ours.write_bytes(desk.site.audit.public_head().canonical())
    assert datasites.does("audit", "held", ours).printed == "all 1 are in this log"
    assert not datasites.home.unknown_heads.exists()
    lost.write_bytes(PublicHead.sign(desk.site.identity, 3, KEY).canonical())
    done = datasites("audit", "held", ours, lost)
    assert done.code == 1
    assert f"not in this log: the record with hash {KEY}" in done.printed
    assert "datasites budget restored" in done.printed
    assert datasites.home.unknown_heads.exists()
    desk.agree()
    approve = ("review", "approve", desk.row.pk, "--hash", desk.row.approval_hash, "--reason", "why")
    datasites.does(*approve, by="ann")
    done = datasites(*approve, by="bob")
    assert (done.code, "other parties hold heads" in done.error) == (2, True)


def test_what_is_no_head_of_this_log_is_named(datasites: CommandLine, tmp_path: Path) -> None:
    head = tmp_path / "head.json"
    assert "not a signed head of a log" in datasites.refuses("audit", "held", head)
    head.write_bytes(b"{}")
    assert "not a signed head of a log" in datasites.refuses("audit", "held", head)
    head.write_bytes(PublicHead.sign(Identity.generate("b@x.example.org"), 3, KEY).canonical())
    assert "another hospital's log" in datasites.refuses("audit", "held", head)


def _allow(row: PolicyDecision) -> None:
    row.record["allowed"] = row.allowed = True


def _forget(row: PolicyDecision) -> None:
    row.record.clear()


@pytest.mark.parametrize("tamper", [_allow, _forget])
def test_decisions_are_replayed_and_one_that_was_changed_is_named(
    datasites: CommandLine, desk: Desk, tamper: Callable[[PolicyDecision], None]
) -> None:
    datasites("review", "approve", desk.row.pk, "--hash", desk.row.approval_hash, "--reason", "why", by="ann")
    for case in ((), ("--case", desk.row.pk)):
        assert datasites.does("audit", "replay", *case).lines == [
            "1 stored decision(s) decide alike when they are evaluated again",
            "none differs",
        ]
    row = PolicyDecision.objects.get()
    tamper(row)
    row.save()
    done = datasites("audit", "replay")
    assert done.code == 1
    assert f"decision {row.pk} of case {desk.row.pk}: " in done.printed
    assert done.lines[-1].endswith("differ(s)")
    assert PolicyDecision.objects.count() == 1


def test_decisions_that_are_not_evaluated_again_are_counted(
    datasites: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Replay(alike=4, other_rules=3, older=1, differs=())
    monkeypatch.setattr("datasites.hospital.cases.replay.replay", lambda *_: found)
    printed = datasites.does("audit", "replay").printed
    assert "3 made under another rule set than the present one: not evaluated again" in printed
    assert "1 of an older format: can be shown but not evaluated again" in printed
