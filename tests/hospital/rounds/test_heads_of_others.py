"""What the researcher passes on of other hospitals' logs is kept in this one: true heads once, others not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from datasites.cli import app
from datasites.hospital.audit.log import AuditLog, head_file
from datasites.hospital.budget import ledger
from datasites.hospital.evidence.bundle import build_bundle
from datasites.hospital.models import Case
from datasites.study import letters
from datasites.study.audit_chain import KEPT_HEAD, PUBLIC_DOMAIN, PublicHead, genesis, records
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.identity import Identity
from datasites.study.manifest import MOST_HOSPITALS
from datasites.study.roster import Roster
from tests.hospital.evidence_of import Hospital
from tests.hospital.running import OWN, RESEARCHER, Running, killed_in


def head(identity: Identity, releases: int = 3) -> PublicHead:
    return PublicHead.sign(identity, releases, "ab" * 32)


def close(running: Running, others: dict[str, PublicHead]) -> None:
    body = letters.Close(rounds=0, others=others).model_dump(mode="json")
    running.tell(0, letters.CLOSE, body)


def ended(running: Running) -> dict[str, PublicHead]:
    """What is kept once the study is over, which it is in any case."""
    running.steps()
    assert running.heard(0, letters.ACCOUNT)
    assert Case.objects.get(pk=running.row.pk).state == Case.State.CLOSED
    fields = [dict(r.fields) for r in records(running.site.home.audit) if r.kind == KEPT_HEAD]
    kept = {fields.pop("email"): PublicHead.model_validate(fields) for fields in fields}
    assert len(kept) == len(fields)
    return kept


def true_heads(running: Running) -> dict[str, PublicHead]:
    hospitals = running.case.study.cohort.hospitals
    return {email: head(running.keys[email]) for email in hospitals if email != OWN}


def test_heads_of_the_other_hospitals_are_kept_once_however_closing_is_killed(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed_on = true_heads(running)
    close(running, passed_on)
    killed_in(running, monkeypatch, "datasites.hospital.rounds.closing.ledger.close")
    assert ended(running) == passed_on
    assert running.logged("head_not_kept") == []


def forged(running: Running, email: str) -> dict[str, PublicHead]:
    """Changed by whoever passes it on."""
    return {email: head(running.keys[email]).model_copy(update={"releases": 7})}


def of_another_key(running: Running, email: str) -> dict[str, PublicHead]:
    return {email: head(Identity.generate(email))}


def of_another_hospital(running: Running, email: str) -> dict[str, PublicHead]:
    other = next(one for one in true_heads(running) if one != email)
    return {email: head(running.keys[other])}


def of_the_researcher(running: Running, _: str) -> dict[str, PublicHead]:
    return {RESEARCHER: head(running.keys[RESEARCHER])}


def of_this_hospital(running: Running, _: str) -> dict[str, PublicHead]:
    return {OWN: running.site.audit.public_head()}


def of_nobody(running: Running, _: str) -> dict[str, PublicHead]:
    return {"nobody@elsewhere.example.org": head(Identity.generate("nobody@elsewhere.example.org"))}


def of_a_hospital_pinned_by_hand(running: Running, email: str) -> dict[str, PublicHead]:
    """Who may write the roster file, and no more, brings no other key in."""
    thief, path = Identity.generate(email), running.site.home.roster
    entries = Roster.load(path).entries
    entries = tuple(
        entry.model_copy(update={"public_key": thief.public_key}) if entry.email == email else entry
        for entry in entries
    )
    Roster(entries=entries).save(path)
    return {email: head(thief)}


def of_a_hospital_that_is_pinned_no_more(running: Running, email: str) -> dict[str, PublicHead]:
    Roster.load(running.site.home.roster).without(email).save(running.site.home.roster)
    return {email: head(running.keys[email])}


@pytest.mark.parametrize(
    "bad",
    [
        forged,
        of_another_key,
        of_another_hospital,
        of_the_researcher,
        of_this_hospital,
        of_nobody,
        of_a_hospital_pinned_by_hand,
        of_a_hospital_that_is_pinned_no_more,
    ],
)
def test_a_head_that_is_not_of_a_pinned_hospital_of_the_study_is_left_out_and_the_others_kept(
    running: Running, bad: Any
) -> None:
    true = true_heads(running)
    email = next(iter(true))
    close(running, {**true, **bad(running, email)})
    del true[email]
    kept = ended(running)
    assert {one: kept[one] for one in true} == true
    if bad in (of_the_researcher, of_this_hospital, of_nobody):
        assert set(kept) == {email, *true}  # that of its own address was a true one
    else:
        assert set(kept) == set(true)
    (note,) = running.logged("head_not_kept")
    assert str(note.fields["reason"]).startswith("head of the audit log of ")
    assert running.logged("stopped") == []


def test_a_roster_that_can_not_be_read_keeps_no_study_from_closing(running: Running) -> None:
    close(running, true_heads(running))
    running.site.home.roster.write_bytes(b"[")
    assert ended(running) == {}


def test_more_heads_than_there_may_be_hospitals_are_refused_and_the_study_closes(running: Running) -> None:
    """Letters of earlier versions pass none on."""
    one = head(running.keys[RESEARCHER]).model_dump(mode="json")
    others = {f"a{number}@x.example.org": one for number in range(MOST_HOSPITALS + 1)}
    running.tell(0, letters.CLOSE, {"rounds": 0, "others": others})
    assert ended(running) == {}
    assert len(running.logged("letter_rejected")) == 1
    assert letters.Close.model_validate({"rounds": 1}).others == {}


def test_a_head_that_no_log_can_take_in_ends_no_service(running: Running) -> None:
    """A hospital signs it, as no honest one does, and whoever passes it on need not lie."""
    email, true = next(iter(true_heads(running).items()))
    fields = {"public_key": true.public_key, "releases": 2**63, "hash": true.hash}
    signature = running.keys[email].sign(PUBLIC_DOMAIN, canonical_json(fields)).hex()
    others = {email: {"format": 2, **fields, "signature": signature}}
    running.tell(0, letters.CLOSE, {"rounds": 0, "others": others})
    assert ended(running) == {}
    assert len(running.logged("letter_rejected")) == 1


def test_an_evidence_bundle_with_such_records_verifies(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    hospital.run()
    hospital.log.keep_heads({"b@x.example.org": head(Identity.generate("b@x.example.org"))})
    assert [check for check in build_bundle(tmp_path / "b.zip", hospital.contents) if not check.ok] == []


class Logs:
    """Two hospitals' logs of one study, and an auditor who has both and one public key, and nothing more."""

    def __init__(self, folder: Path) -> None:
        self.liar, self.honest = Identity.generate("a@x.example.org"), Identity.generate("b@x.example.org")
        self.path, self.other = (folder / name / "audit.jsonl" for name in ("liar", "honest"))
        self.log = AuditLog(self.path, self.liar)
        self.log.append("released", round=1)
        AuditLog(self.other, self.honest).keep_heads({self.liar.email: self.log.public_head()})

    def write_anew(self, key: Identity | None = None) -> None:
        for path in (self.path, head_file(self.path)):
            path.unlink()
        AuditLog(self.path, key or self.liar).append("released", round=2)

    def verified(self, key: Identity | None = None) -> tuple[int, str]:
        line = ["audit", "verify", str(self.path), "--key", (key or self.liar).public_key, "--kept-in", str(self.other)]
        result = CliRunner().invoke(app, line)
        return result.exit_code, f"{result.output}{result.exception or ''}"


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


def test_a_hospital_that_writes_its_log_anew_is_caught_by_what_another_keeps(logs: Logs) -> None:
    code, said = logs.verified()
    assert (code, "holds 1 head(s) of this log" in said) == (0, True)
    assert f"the log of {logs.honest.email}, under the key {logs.honest.fingerprint}" in said
    logs.write_anew()
    code, said = logs.verified()
    assert code == 1
    assert "no record is the one that a counterparty has the signed head of (release 1)" in said
    logs.other.write_bytes(b"[\n")
    assert logs.verified()[0] != 0


@pytest.mark.parametrize("what", ["left out", "made another"])
def test_a_log_of_another_hospital_that_somebody_has_edited_shows_nothing(logs: Logs, what: str) -> None:
    """By whoever hands it on, and has written their own anew: the chain fits again, and its hospital has not signed."""
    bodies = [json.loads(line) for line in logs.other.read_bytes().splitlines()]
    if what == "left out":
        bodies[1] |= {"kind": "started", "fields": {"pid": 1}}
    else:
        bodies[1]["fields"]["hash"] = "cd" * 32
    previous, lines = genesis(logs.honest.public_key), []
    for body in bodies:
        body["previous"] = previous
        del body["hash"]
        previous = sha256_hex(canonical_json(body))
        lines.append(canonical_json({**body, "hash": previous}) + b"\n")
    logs.other.write_bytes(b"".join(lines))
    logs.write_anew()
    code, said = logs.verified()
    assert code == 1
    assert "ask its hospital for an export" in said
    head_file(logs.other).unlink()
    assert logs.verified()[0] == 1


def test_an_honest_log_that_is_longer_verifies_and_an_older_copy_of_it_is_not_said_to_be_cut(logs: Logs) -> None:
    before = logs.path.read_bytes()[: len(logs.path.read_bytes().splitlines(keepends=True)[0])]
    logs.log.append("released", round=2)
    assert logs.verified()[0] == 0
    head_file(logs.path).unlink()
    logs.path.write_bytes(before)
    code, said = logs.verified()
    assert (code, "or this copy is older than that head: ask for a new one" in said) == (1, True)
    logs.path.unlink()
    AuditLog(logs.path, logs.liar)
    anew = AuditLog(logs.path, logs.liar)
    for number in (1, 2):
        anew.append("released", round=number)
    code, said = logs.verified()
    assert (code, "older than that head" in said) == (1, False), "with more releases it would hold that record"


def test_a_log_that_goes_on_from_a_backup_says_so_where_it_lacks_a_record(logs: Logs) -> None:
    logs.write_anew()
    AuditLog(logs.path, logs.liar).append("restored", continues="ab" * 32, entered_by="ann", confirmed_by="bob")
    code, said = logs.verified()
    assert (code, "record 3 says that it goes on from a backup" in said) == (1, True)


def test_heads_of_a_hospitals_log_under_another_key_are_named_and_are_no_fault_of_this_one(logs: Logs) -> None:
    """It began anew, with a new key; its old log is another."""
    code, said = logs.verified(new := Identity.generate(logs.liar.email))
    assert code == 1, "that key did not sign"
    logs.write_anew(new)
    code, said = logs.verified(new)
    words = " ".join(said.split())
    assert (code, "holds 0 head(s) of this log" in words) == (0, True)
    assert f"holds heads of another log of this address, under the key {logs.liar.fingerprint}" in words


def test_closing_waits_for_the_heads_to_be_kept(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The account is stored last: killed before, the same letter is gone through again."""
    close(running, true_heads(running))
    done: list[str] = []
    keep, end = AuditLog.keep_heads, ledger.close
    monkeypatch.setattr(AuditLog, "keep_heads", lambda *a: (done.append("kept"), keep(*a))[1])
    monkeypatch.setattr(ledger, "close", lambda *a: (done.append("closed"), end(*a))[1])
    ended(running)
    assert done == ["kept", "closed"]
