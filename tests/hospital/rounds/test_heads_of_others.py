"""What the researcher passes on of other hospitals' logs is kept in this one: true heads once, others not at all."""

from __future__ import annotations

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
from datasites.study.audit_chain import KEPT_HEAD, PublicHead, records
from datasites.study.identity import Identity, Roster
from datasites.study.manifest import MOST_HOSPITALS
from tests.hospital.evidence_of import Hospital
from tests.hospital.rounds.test_run import killed_in
from tests.hospital.running import OWN, RESEARCHER, Running


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


def test_an_evidence_bundle_with_such_records_verifies(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    hospital.run()
    hospital.log.keep_heads({"b@x.example.org": head(Identity.generate("b@x.example.org"))})
    assert [check for check in build_bundle(tmp_path / "b.zip", hospital.contents) if not check.ok] == []


def test_a_hospital_that_writes_its_log_anew_is_caught_by_what_another_keeps(tmp_path: Path) -> None:
    """By one who has both logs and the public key, and nothing from the researcher."""
    liar, honest = Identity.generate("a@x.example.org"), Identity.generate("b@x.example.org")
    paths = [tmp_path / name / "audit.jsonl" for name in ("liar", "honest")]
    first, other = AuditLog(paths[0], liar), AuditLog(paths[1], honest)
    first.append("released", round=1)
    other.keep_heads({liar.email: first.public_head()})

    def verified() -> tuple[int, str]:
        line = ["audit", "verify", str(paths[0]), "--key", liar.public_key, "--kept-in", str(paths[1])]
        result = CliRunner().invoke(app, line)
        return result.exit_code, result.output

    code, said = verified()
    assert (code, "holds 1 head(s) of this log" in said) == (0, True)
    for path in (paths[0], head_file(paths[0])):
        path.unlink()
    AuditLog(paths[0], liar).append("released", round=2)
    code, said = verified()
    assert code == 1
    assert "no record is the one that a counterparty has the signed head of (release 1)" in said
    paths[1].write_bytes(b"[\n")
    assert verified()[0] != 0


def test_closing_waits_for_the_heads_to_be_kept(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The account is stored last: killed before, the same letter is gone through again."""
    close(running, true_heads(running))
    done: list[str] = []
    keep, end = AuditLog.keep_heads, ledger.close
    monkeypatch.setattr(AuditLog, "keep_heads", lambda *a: (done.append("kept"), keep(*a))[1])
    monkeypatch.setattr(ledger, "close", lambda *a: (done.append("closed"), end(*a))[1])
    ended(running)
    assert done == ["kept", "closed"]
