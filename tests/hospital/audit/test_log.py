"""The audit log keeps what was written, survives crashes, and shows every change to it (I11)."""

import datetime
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasites.hospital.audit import log
from datasites.hospital.audit.log import AuditError, AuditLog, Head, PublicHead, head_file, records, verify_log
from datasites.study.audit_chain import KEPT_HEAD, LARGEST_RECORD, LogVerification, genesis
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.identity import BadSignature, Identity

HOSPITAL = Identity.generate("datasite@general.example")
OTHER = Identity.generate("researcher@university.example")
STUDY = "ab" * 32


def filled(folder: Path, count: int = 20) -> tuple[Path, list[Head]]:
    """A log of `count` records after the first, and the head of each of them."""
    path = folder / "audit.jsonl"
    log = AuditLog(path, HOSPITAL)
    return path, [log.append("round_released", study=STUDY, round=n, epsilon=n / 7) for n in range(1, count + 1)]


def check(
    path: Path, heads: Sequence[Head | PublicHead] | None = None, key: str = HOSPITAL.public_key
) -> LogVerification:
    return verify_log(path, key, heads or [])


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def rewritten(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Write the whole chain again after `change`, with correct numbers, hashes and checkpoints: needs the key."""
    bodies = change([json.loads(line) for line in lines(path)])
    previous, out = genesis(HOSPITAL.public_key), []
    for seq, body in enumerate(bodies, start=1):
        body |= {"seq": seq, "previous": previous}
        body.pop("hash", None)
        if body["kind"] == "checkpoint":
            head = Head.sign(HOSPITAL, seq - 1, previous)
            body["fields"] = {"covers": seq - 1, "hash": previous, "signature": head.signature}
        previous = sha256_hex(canonical_json(body))
        out.append(canonical_json({**body, "hash": previous}) + b"\n")
    path.write_bytes(b"".join(out))
    slot = {"head": Head.sign(HOSPITAL, len(out), previous).model_dump(), "offset": len(b"".join(out))}
    head_file(path).write_bytes((canonical_json(slot).ljust(511) + b"\n") * 2)


# -- writing and reading


def test_what_is_appended_reads_back_and_verifies(tmp_path: Path) -> None:
    path, heads = filled(tmp_path)
    found = list(records(path))
    assert found[0].kind == "opened"
    assert found[0].fields == {"email": HOSPITAL.email, "public_key": HOSPITAL.public_key}
    assert [r.fields["round"] for r in found[1:]] == list(range(1, 21))
    assert [(r.seq, r.hash) for r in found[1:]] == [(h.seq, h.hash) for h in heads]
    report = check(path, heads)
    assert report == LogVerification(
        ok=True, checked=21, first_bad=None, reason="sound", checkpoints=0, heads=20, last_hash=heads[-1].hash, notes=()
    )
    assert path.stat().st_mode & 0o777 == head_file(path).stat().st_mode & 0o777 == 0o600


def test_reopening_goes_on_where_the_log_ended(tmp_path: Path) -> None:
    path, heads = filled(tmp_path, 3)
    log = AuditLog(path, HOSPITAL)
    assert log.head() == heads[-1]
    assert log.append("study_paused", by="officer@general.example").seq == heads[-1].seq + 1
    assert check(path, heads).ok


def test_checkpoints_are_written_regularly_and_on_request_and_sign_everything_before(tmp_path: Path) -> None:
    path, _ = filled(tmp_path, log.CHECKPOINT_EVERY + 10)
    AuditLog(path, HOSPITAL).checkpoint()
    report = check(path)
    assert report.checkpoints == 2
    head_file(path).unlink()
    assert check(path).ok
    assert check(path).notes == ()


def test_times_are_utc_and_a_clock_that_goes_back_is_noted(tmp_path: Path) -> None:
    zone = datetime.timezone(datetime.timedelta(hours=5))
    times = iter(datetime.datetime(2026, 11, 24, hour, tzinfo=zone) for hour in (12, 13, 11))
    log = AuditLog(tmp_path / "audit.jsonl", HOSPITAL, clock=lambda: next(times))
    log.append("a")
    log.append("b")
    assert [r.time for r in records(log.path)][0] == "2026-11-24T07:00:00.000+00:00"
    report = check(log.path)
    assert report.ok
    assert report.notes == ("the clock went back at record 3",)


@pytest.mark.parametrize(
    "value",
    [
        b"bytes",
        None,
        {"row": 1},
        float("nan"),
        float("inf"),
        2**63,
        [[1]],
        [None],
        "x" * 4001,
        list(range(129)),
        "\ud800",
        datetime.date(2026, 1, 1),
    ],
)
def test_only_small_plain_values_enter_and_the_error_does_not_repeat_them(tmp_path: Path, value: Any) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", HOSPITAL)
    with pytest.raises(AuditError, match="payload") as error:
        log.append("round_trained", payload=value)
    assert "xxxx" not in str(error.value)
    assert "row" not in str(error.value)
    assert len(lines(log.path)) == 1


def test_too_many_fields_odd_names_and_the_logs_own_kinds_are_refused(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", HOSPITAL)
    for kind in ("opened", "checkpoint", "recovered", "counterparty_head", "Round", "", "a\nb"):
        with pytest.raises(AuditError, match="kind"):
            log.append(kind)
    with pytest.raises(AuditError, match="33 fields"):
        log.append("a", **{f"f{n}": n for n in range(33)})
    with pytest.raises(AuditError, match="no field name"):
        log.append("a", **{"Patient ID": 1})
    with pytest.raises(AuditError, match=f"at most {LARGEST_RECORD}"):
        log.append("a", **{f"f{n}": "x" * 4000 for n in range(5)})
    assert log.append("a").seq == 2
    assert check(log.path).ok


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True),
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
            st.integers(-(2**63) + 1, 2**63 - 1),
            st.floats(allow_nan=False, allow_infinity=False),
            st.booleans(),
            st.lists(st.one_of(st.integers(-9, 9), st.text(st.characters(exclude_categories=["Cs"]), max_size=5))),
        ),
        max_size=6,
    )
)
@settings(max_examples=60)
def test_any_permitted_value_survives_the_chain(fields: dict[str, Any]) -> None:
    LOG.append("anything", **fields)
    assert list(records(LOG.path))[-1].fields == fields
    assert check(LOG.path).ok


@pytest.fixture(scope="module", autouse=True)
def _shared_log(tmp_path_factory: pytest.TempPathFactory) -> None:
    global LOG
    LOG = AuditLog(tmp_path_factory.mktemp("shared") / "audit.jsonl", HOSPITAL)


LOG: AuditLog


# -- attacks by someone without the key


def edit(path: Path, at: int) -> None:
    changed = lines(path)
    changed[at - 1] = changed[at - 1].replace(b'"round":', b'"round":9')
    path.write_bytes(b"".join(changed))


def edit_and_fix_hash(path: Path, at: int) -> None:
    changed = lines(path)
    body = json.loads(changed[at - 1])
    body["fields"]["epsilon"] = 0.0
    del body["hash"]
    changed[at - 1] = canonical_json({**body, "hash": sha256_hex(canonical_json(body))}) + b"\n"
    path.write_bytes(b"".join(changed))


def delete(path: Path, at: int) -> None:
    changed = lines(path)
    del changed[at - 1]
    path.write_bytes(b"".join(changed))


def insert(path: Path, at: int) -> None:
    changed = lines(path)
    before = json.loads(changed[at - 2])
    body = {**before, "seq": at, "previous": before["hash"], "fields": {"round": 99}}
    del body["hash"]
    changed.insert(at - 1, canonical_json({**body, "hash": sha256_hex(canonical_json(body))}) + b"\n")
    path.write_bytes(b"".join(changed))


def swap(path: Path, at: int) -> None:
    changed = lines(path)
    changed[at - 1], changed[at] = changed[at], changed[at - 1]
    path.write_bytes(b"".join(changed))


def repeat(path: Path, at: int) -> None:
    changed = lines(path)
    changed.insert(at - 1, changed[at - 2])
    path.write_bytes(b"".join(changed))


def respace(path: Path, at: int) -> None:
    changed = lines(path)
    changed[at - 1] = changed[at - 1].replace(b'"kind":', b'"kind": ')
    path.write_bytes(b"".join(changed))


def second_key(path: Path, at: int) -> None:
    # A reader that takes the first of two equal keys would see another record than one that takes the last.
    changed = lines(path)
    changed[at - 1] = changed[at - 1].replace(b'{"fields":', b'{"fields":{"round":0},"fields":')
    path.write_bytes(b"".join(changed))


def overwrite(path: Path, at: int) -> None:
    changed = lines(path)
    changed[at - 1] = b"[" * 3000 + b"\n"
    path.write_bytes(b"".join(changed))


@pytest.mark.parametrize("at", [2, 9, 20])
@pytest.mark.parametrize(
    ("attack", "words", "shift"),
    [
        (edit, "was edited: its content does not have its hash", 0),
        (edit_and_fix_hash, "does not follow", 1),
        (delete, "is missing or moved", 0),
        (insert, "is missing or moved", 1),
        (swap, "is missing or moved", 0),
        (repeat, "is missing or moved", 0),
        (respace, "is not in the form", 0),
        (second_key, "is not in the form", 0),
        (overwrite, "is not JSON", 0),
    ],
)
def test_a_change_without_the_key_is_detected_from_the_file_alone(
    tmp_path: Path, attack: Callable[[Path, int], None], words: str, shift: int, at: int
) -> None:
    path, _ = filled(tmp_path)
    AuditLog(path, HOSPITAL).checkpoint()
    head_file(path).unlink()  # the copy that an auditor got
    assert check(path).ok
    attack(path, at)
    report = check(path)
    assert not report.ok
    assert report.first_bad == at + shift
    assert words in report.reason
    assert f"record {report.first_bad}" in report.reason


def test_rechaining_everything_without_the_key_breaks_at_the_first_checkpoint(tmp_path: Path) -> None:
    path, _ = filled(tmp_path, log.CHECKPOINT_EVERY + 5)
    forger = Identity.generate("forger@x.example")
    previous, out = genesis(HOSPITAL.public_key), []
    for line in lines(path):
        body = json.loads(line) | {"previous": previous}
        if body["seq"] == 10:
            body["fields"]["epsilon"] = 0.0
        if body["kind"] == "checkpoint":
            signature = forger.sign(log.Head.__module__, b"").hex()
            body["fields"] = {"covers": body["seq"] - 1, "hash": previous, "signature": signature}
        del body["hash"]
        previous = sha256_hex(canonical_json(body))
        out.append(canonical_json({**body, "hash": previous}) + b"\n")
    path.write_bytes(b"".join(out))
    head_file(path).unlink()
    report = check(path)
    assert (report.ok, report.first_bad) == (False, log.CHECKPOINT_EVERY)
    assert "is a checkpoint that the hospital's key did not sign" in report.reason


def test_the_log_of_another_hospital_does_not_pass(tmp_path: Path) -> None:
    path, _ = filled(tmp_path)
    report = check(path, key=OTHER.public_key)
    assert (report.ok, report.first_bad) == (False, 1)


def test_truncation_is_detected_by_the_head_file_and_by_a_counterparty(tmp_path: Path) -> None:
    path, heads = filled(tmp_path)
    kept = lines(path)[:-3]
    path.write_bytes(b"".join(kept))
    report = check(path)
    assert (report.ok, report.first_bad) == (False, 19)
    assert "its head file has the signed head of record 21" in report.reason
    with pytest.raises(AuditError, match="signed head .record 21. ends at"):
        AuditLog(path, HOSPITAL)
    head_file(path).unlink()
    assert "nothing in the log is signed" in check(path).reason
    assert check(path, heads[15:16]).ok  # nobody was told of more: the file alone can't show it
    report = check(path, heads[17:18])
    assert (report.ok, report.first_bad) == (False, 19)
    assert "a counterparty has the signed head of record 19" in report.reason
    with pytest.raises(AuditError, match="not known to its signed head"):
        AuditLog(path, HOSPITAL)


def test_an_emptied_log_is_refused_and_reported(tmp_path: Path) -> None:
    path, heads = filled(tmp_path)
    path.write_bytes(b"")
    assert check(path).first_bad == 1
    with pytest.raises(AuditError, match="has 0 bytes"):
        AuditLog(path, HOSPITAL)
    head_file(path).unlink()
    assert check(path).reason == "record 1 is missing: the log is empty"
    AuditLog(path, HOSPITAL)  # locally this looks like a new datasite …
    assert check(path, heads).first_bad == 2  # … but not to anyone who was told a head


def rechained(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Write the chain again after `change`, as anybody can who has no key: without checkpoints, nothing signed."""
    bodies = change([body for line in lines(path) if (body := json.loads(line))["kind"] != "checkpoint"])
    previous, out = genesis(HOSPITAL.public_key), []
    for seq, body in enumerate(bodies, start=1):
        body |= {"seq": seq, "previous": previous}
        body.pop("hash", None)
        previous = sha256_hex(canonical_json(body))
        out.append(canonical_json({**body, "hash": previous}) + b"\n")
    path.write_bytes(b"".join(out))


def hides_round_2(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    bodies[2]["fields"]["epsilon"] = 0.0
    return bodies


@pytest.mark.parametrize("head", ["removed", "garbled", "emptied", "old"])
def test_a_log_made_anew_without_the_key_is_not_sound(tmp_path: Path, head: str) -> None:
    path, _ = filled(tmp_path, log.CHECKPOINT_EVERY + 5)
    AuditLog(path, HOSPITAL).checkpoint()
    before = head_file(path).read_bytes()
    rechained(path, hides_round_2)
    if head == "removed":
        head_file(path).unlink()
    elif head != "old":
        head_file(path).write_bytes(b"" if head == "emptied" else b"x" * len(before))
    report = check(path)
    assert not report.ok
    words = {"removed": "nothing in the log is signed", "old": "is missing: its head file has"}
    assert words.get(head, "holds no head that the hospital signed") in report.reason


def test_a_log_that_goes_on_unsigned_is_not_sound_but_one_record_is_named(tmp_path: Path) -> None:
    path, _ = filled(tmp_path, 5)
    head = head_file(path).read_bytes()
    AuditLog(path, HOSPITAL).append("written_and_then_killed")
    head_file(path).write_bytes(head)  # a crash between log and head
    assert check(path).ok
    assert check(path).notes == (
        "record 7 comes after the last signature; a crash right after writing it leaves one like it",
    )

    def goes_on(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [*bodies, {**bodies[-1], "fields": {}}]

    rechained(path, goes_on)
    report = check(path)
    assert (report.ok, report.first_bad) == (False, 7)
    assert "records 7 to 8 come after the last signature" in report.reason


def test_the_first_record_of_a_new_log_needs_its_head(tmp_path: Path) -> None:
    path, _ = filled(tmp_path, 0)
    assert check(path).ok
    head_file(path).write_bytes(b"")
    assert not check(path).ok
    AuditLog(path, HOSPITAL).append("goes_on")  # the datasite knows what it wrote, and signs it
    assert check(path).ok


@pytest.mark.parametrize(
    "changes",
    [{"time": 5}, {"kind": ["checkpoint"]}, {"fields": []}, {"kind": "checkpoint", "fields": []}, {"seq": True}],
)
def test_a_record_of_other_types_is_a_fault_and_no_crash(tmp_path: Path, changes: dict[str, Any]) -> None:
    path, _ = filled(tmp_path, 3)
    body = json.loads(lines(path)[0]) | changes
    del body["hash"]
    first = canonical_json({**body, "hash": sha256_hex(canonical_json(body))}) + b"\n"
    path.write_bytes(b"".join([first, *lines(path)[1:]]))
    report = check(path)
    assert (report.ok, report.first_bad) == (False, 1)
    assert "is not in the form that the log writes" in report.reason


# -- attacks by the hospital, with its key


def test_rewriting_the_whole_chain_with_the_key_is_detected_by_counterparties_heads(tmp_path: Path) -> None:
    path, heads = filled(tmp_path, 300)

    def hide_round_150(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for body in bodies:
            if body["fields"].get("round") == 150:
                body["fields"]["epsilon"] = 0.0
        return bodies

    rewritten(path, hide_round_150)
    assert check(path).ok  # the hospital's own word, signed throughout
    AuditLog(path, HOSPITAL).append("business_as_usual")
    released = [heads[n - 1] for n in (50, 100, 200, 250)]
    report = check(path, released)
    assert not report.ok
    assert report.first_bad == released[2].seq
    assert f"rewritten somewhere in records {released[1].seq + 1} to {released[2].seq}" in report.reason
    exact = check(path, heads)
    assert exact.first_bad == heads[149].seq
    assert next(r for r in records(path) if r.seq == exact.first_bad).fields["round"] == 150


@pytest.mark.parametrize("remove", ["middle", "last"])
def test_leaving_records_out_with_the_key_is_detected_by_counterparties_heads(tmp_path: Path, remove: str) -> None:
    path, heads = filled(tmp_path, 20)
    gone = 10 if remove == "middle" else 20
    rewritten(path, lambda bodies: [b for b in bodies if b["fields"].get("round") != gone])
    assert check(path).ok
    report = check(path, heads)
    assert (report.ok, report.first_bad) == (False, heads[gone - 1].seq)


def test_a_change_before_any_head_left_is_the_documented_limit(tmp_path: Path) -> None:
    path, heads = filled(tmp_path, 20)
    rewritten(path, lambda bodies: [b for b in bodies if b["fields"].get("round") != 20])
    assert check(path, heads[:19]).ok


def test_a_head_that_the_hospital_did_not_sign_proves_nothing_and_is_noted(tmp_path: Path) -> None:
    path, heads = filled(tmp_path)
    smear = heads[5].model_copy(update={"hash": "00" * 32})
    foreign = Head.sign(OTHER, 5, "00" * 32)
    report = check(path, [smear, foreign, heads[7]])
    assert report.ok
    assert report.heads == 1
    assert len(report.notes) == 2


# -- heads that leave: releases are counted, and not records


def released(folder: Path, releases: int = 4) -> tuple[Path, list[PublicHead]]:
    """A log with other records between its releases, and what left with each of them."""
    log, heads = AuditLog(folder / "audit.jsonl", HOSPITAL), []
    for number in range(1, releases + 1):
        for _ in range(number):
            log.append("withdrawn", dataset="heart")
        log.append("released", round=number)
        heads.append(log.public_head())
    return log.path, heads


def test_a_head_that_leaves_counts_releases_and_does_not_move_with_other_records(tmp_path: Path) -> None:
    """The number of records tells of withdrawals, examinations and crashes."""
    path, heads = released(tmp_path)
    assert [head.releases for head in heads] == [1, 2, 3, 4]
    assert set(heads[0].model_dump()) == {"format", "public_key", "releases", "hash", "signature"}
    log = AuditLog(path, HOSPITAL)  # it need not read the whole log for it
    log.append("withdrawn", dataset="heart")
    assert log.public_head().releases == 4
    AuditLog(path, HOSPITAL).append("released", round=5)
    assert log.public_head().releases == 5, "another process's release counts"
    report = check(path, [*heads, log.public_head()])
    assert (report.ok, report.heads) == (True, 5)


def test_a_head_file_without_a_count_is_read_and_counted_anew(tmp_path: Path) -> None:
    path, heads = released(tmp_path)
    file = head_file(path)
    slots = [json.loads(line) for line in file.read_bytes().splitlines()]
    file.write_bytes(
        b"".join(canonical_json({k: v for k, v in s.items() if k != "releases"}).ljust(511) + b"\n" for s in slots)
    )
    assert AuditLog(path, HOSPITAL).public_head() == heads[-1]


@pytest.mark.parametrize("change", ["truncated", "edited", "a release less", "a release more"])
def test_a_log_that_was_changed_with_the_key_contradicts_heads_that_left(tmp_path: Path, change: str) -> None:
    path, heads = released(tmp_path)

    def edit(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        at = next(n for n, body in enumerate(bodies) if body["fields"].get("round") == 3)
        if change == "truncated":
            return bodies[:at]
        if change == "edited":
            bodies[at - 1]["fields"]["dataset"] = "other"
        elif change == "a release less":
            del bodies[at]
        else:
            bodies.insert(at, {**bodies[at], "fields": {"round": 9}})
        return bodies

    rewritten(path, edit)
    assert check(path).ok
    assert check(path, heads[:2]).ok
    report = check(path, heads)
    assert not report.ok
    assert "no record is the one that a counterparty has the signed head of (release 3)" in report.reason
    assert report.first_bad == next(r.seq for r in records(path) if r.fields.get("round") == 2) + 1


def test_a_head_that_says_another_number_of_releases_than_the_log_is_caught(tmp_path: Path) -> None:
    path, heads = released(tmp_path)
    report = check(path, [heads[0], PublicHead.sign(HOSPITAL, 7, heads[1].hash)])
    assert not report.ok
    assert "is the one after 2 releases; a counterparty has 7 signed" in report.reason
    unsigned = heads[1].model_copy(update={"releases": 7})
    assert len(check(path, [unsigned]).notes) == 1


# -- each other's heads


def test_heads_of_counterparties_are_kept_and_checked(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", HOSPITAL)
    theirs = PublicHead.sign(OTHER, 7, "ee" * 32)
    for _ in range(2):
        log.keep_heads({OTHER.email: theirs})
    (kept,) = [record.fields for record in records(log.path) if record.kind == KEPT_HEAD]
    email = kept.pop("email")
    assert email == OTHER.email
    assert PublicHead(**kept) == theirs
    with pytest.raises(BadSignature):
        log.keep_heads({"third@x.org": theirs, OTHER.email: theirs.model_copy(update={"releases": 8})})
    assert log.head().seq == 2
    with pytest.raises(BadSignature):
        PublicHead.parse(theirs.model_copy(update={"public_key": HOSPITAL.public_key}).canonical()).check()


# -- crashes


def test_a_torn_last_record_that_was_never_acknowledged_is_cut_off_and_said_so(tmp_path: Path) -> None:
    path, heads = filled(tmp_path, 5)
    whole = path.read_bytes()
    AuditLog(path, HOSPITAL).append("next", note="never came back")
    line = lines(path)[-1]
    saved_head = tmp_path / "head"
    for cut in (1, len(line) // 2, len(line) - 1):
        path.write_bytes(whole + line[:cut])
        slot = {"head": heads[-1].model_dump(), "offset": len(whole)}
        saved_head.write_bytes(canonical_json(slot).ljust(511) + b"\n")
        shutil.copy(saved_head, head_file(path))
        assert not check(path).ok
        log = AuditLog(path, HOSPITAL)
        last = list(records(path))[-1]
        assert (last.kind, last.fields["bytes_cut"]) == ("recovered", cut)
        assert last.fields["sha256_of_cut"] == sha256_hex(line[:cut])
        assert log.append("goes_on").seq == heads[-1].seq + 2
        assert check(path, heads).ok


def test_a_torn_record_that_was_acknowledged_is_not_cut_off(tmp_path: Path) -> None:
    path, _ = filled(tmp_path, 5)
    torn = path.read_bytes()[:-10]
    path.write_bytes(torn)
    with pytest.raises(AuditError, match="keep both files as evidence"):
        AuditLog(path, HOSPITAL)
    assert path.read_bytes() == torn


def test_one_whole_record_without_a_head_is_taken_and_said_so_but_not_two(tmp_path: Path) -> None:
    path, heads = filled(tmp_path, 5)
    saved = head_file(path).read_bytes()
    log = AuditLog(path, HOSPITAL)
    written = log.append("written_but_not_signed")
    one = path.read_bytes()
    log.append("another")
    two = path.read_bytes()
    path.write_bytes(one)
    head_file(path).write_bytes(saved)
    AuditLog(path, HOSPITAL)
    last = list(records(path))[-1]
    assert (last.kind, last.fields["record"]) == ("recovered", written.seq)
    assert check(path, [*heads, written]).ok
    for content in (two, one + b'{"torn'):
        path.write_bytes(content)
        head_file(path).write_bytes(saved)
        with pytest.raises(AuditError, match="not known to its signed head"):
            AuditLog(path, HOSPITAL)
        assert path.read_bytes() == content


@pytest.mark.parametrize("slot", [0, 1])
def test_a_torn_head_slot_costs_at_most_a_note(tmp_path: Path, slot: int) -> None:
    path, heads = filled(tmp_path, 6)
    data = bytearray(head_file(path).read_bytes())
    data[slot * 512 + 100 : slot * 512 + 300] = b"\0" * 200
    head_file(path).write_bytes(bytes(data))
    log = AuditLog(path, HOSPITAL)
    log.append("goes_on")
    assert check(path, heads).ok


def test_a_log_cut_short_at_its_very_first_record_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"fields":{"ema')
    log = AuditLog(path, HOSPITAL)
    assert [r.kind for r in records(path)] == ["opened"]
    log.append("a")
    assert check(path).ok


def test_a_head_with_a_false_offset_or_of_another_record_is_refused(tmp_path: Path) -> None:
    path, heads = filled(tmp_path, 5)
    size = path.stat().st_size
    for head, offset in ((heads[-1], size - 1), (heads[-1], 0), (heads[-2], size), (heads[-1], size + 1)):
        head_file(path).write_bytes(canonical_json({"head": head.model_dump(), "offset": offset}).ljust(511) + b"\n")
        with pytest.raises(AuditError, match="head"):
            AuditLog(path, HOSPITAL)


def test_a_log_that_shrinks_or_is_replaced_while_open_stops_the_datasite(tmp_path: Path) -> None:
    path, _ = filled(tmp_path, 5)
    log = AuditLog(path, HOSPITAL)
    whole = path.read_bytes()
    path.write_bytes(b"".join(lines(path)[:-1]))
    with pytest.raises(AuditError, match="bytes are missing"):
        log.append("a")
    path.write_bytes(whole + b'{"a":1}\n')
    with pytest.raises(AuditError, match="was edited"):
        log.append("a")


@pytest.mark.parametrize("forged", ["by another key", "without a signature"])
def test_a_head_file_that_the_hospital_did_not_sign_counts_as_none(tmp_path: Path, forged: str) -> None:
    path, heads = filled(tmp_path, 5)
    path.write_bytes(b"".join(lines(path)[:-2]))  # truncated, and the head file made to fit
    last = list(records(path))[-1]
    head = Head.sign(OTHER, last.seq, last.hash)
    if forged == "without a signature":
        head = Head.model_validate({**head.model_dump(), "public_key": HOSPITAL.public_key})
    slot = canonical_json({"head": head.model_dump(), "offset": path.stat().st_size}).ljust(511) + b"\n"
    head_file(path).write_bytes(slot * 2)
    with pytest.raises(AuditError, match="not known to its signed head"):
        AuditLog(path, HOSPITAL)
    assert check(path, heads).first_bad == 5


def test_a_true_checkpoint_in_the_wrong_place_is_refused(tmp_path: Path) -> None:
    path, heads = filled(tmp_path, 5)
    log = AuditLog(path, HOSPITAL)
    early = {"covers": heads[1].seq, "hash": heads[1].hash, "signature": heads[1].signature}
    with log._locked() as file:
        log._write(file, "checkpoint", early)
    report = check(path)
    assert (report.ok, report.first_bad) == (False, 7)
    assert "is a checkpoint of another position" in report.reason


def test_a_last_record_exchanged_for_another_of_its_length_is_refused(tmp_path: Path) -> None:
    path, heads = filled(tmp_path, 5)
    *kept, last = lines(path)
    body = json.loads(last)
    body["fields"]["round"] = 9
    del body["hash"]
    exchanged = canonical_json({**body, "hash": sha256_hex(canonical_json(body))}) + b"\n"
    assert len(exchanged) == len(last)
    path.write_bytes(b"".join(kept) + exchanged)
    with pytest.raises(AuditError, match="record 6 is not the one that its head signs"):
        AuditLog(path, HOSPITAL)
    assert check(path, heads).first_bad == 6


def test_what_another_process_wrote_is_held_against_its_head_too(tmp_path: Path) -> None:
    path, _ = filled(tmp_path, 5)
    log = AuditLog(path, HOSPITAL)
    AuditLog(path, HOSPITAL).append("first", by="another process")
    AuditLog(path, HOSPITAL).append("second", by="another process")
    whole = lines(path)
    path.write_bytes(b"".join(whole[:-1]))
    with pytest.raises(AuditError, match="ends at record 7, but its signed head is record 8"):
        log.append("a")
    body = json.loads(whole[-1])
    body["fields"]["by"] = "somebody else"
    del body["hash"]
    forged = canonical_json({**body, "hash": sha256_hex(canonical_json(body))}) + b"\n"
    path.write_bytes(b"".join(whole[:-1]) + forged)
    with pytest.raises(AuditError, match="record 8 is not the one that its head signs"):
        log.append("a")
    path.write_bytes(b"".join(whole))
    assert log.append("a").seq == 9


def test_a_full_disk_refuses_and_the_log_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, heads = filled(tmp_path, 3)
    log = AuditLog(path, HOSPITAL)
    real = os.write

    def half(file: int, data: bytes) -> int:
        return real(file, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(AuditError, match="took only part"):
        log.append("a")

    monkeypatch.setattr(os, "write", real)
    log.append("b")
    assert [r.kind for r in records(path)][-2:] == ["recovered", "b"]

    def none(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", none)
    with pytest.raises(AuditError, match="No space left on device"):
        log.append("c")
    monkeypatch.setattr(os, "write", real)
    log.append("d")
    assert [r.kind for r in records(path)][-2:] == ["b", "d"]
    assert check(path, heads).ok


WRITER = """
    import sys
    from pathlib import Path
    from datasites.hospital.audit.log import AuditLog
    from datasites.study.identity import Identity

    log = AuditLog(Path(sys.argv[1]), Identity.load(Path(sys.argv[2]), "datasite@general.example"))
    print("ready", flush=True)
    number = 0
    while True:
        number += 1
        head = log.append("tick", number=number, pad="x" * (number % 900))
        print(head.seq, head.hash, flush=True)
"""


@pytest.mark.slow
def test_kill_9_anywhere_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    HOSPITAL.save(key)
    path = tmp_path / "audit.jsonl"
    told: list[tuple[int, str]] = []
    for attempt in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(key)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(5 + 7 * attempt):
            seq, hash = process.stdout.readline().split()
            told.append((int(seq), hash))
        process.send_signal(signal.SIGKILL)
        for line in process.stdout.read().splitlines():
            if len(line.split()) == 2 and len(line.split()[1]) == 64:
                told.append((int(line.split()[0]), line.split()[1]))
        process.wait()
    log = AuditLog(path, HOSPITAL)
    log.append("after")
    by_number = {record.seq: record.hash for record in records(path)}
    assert len(told) > 500
    assert all(by_number[seq] == hash for seq, hash in told)
    assert check(path).ok


# -- threads and processes


def _write_many(path: Path, who: int, count: int) -> None:
    log = AuditLog(path, HOSPITAL)
    for number in range(count):
        log.append("tick", who=who, number=number)


@pytest.mark.waits
def test_a_log_that_is_being_written_verifies(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    AuditLog(path, HOSPITAL)
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_write_many, args=(path, 1, 400))
    process.start()
    seen = set()
    while process.is_alive():
        report = check(path)
        assert report.ok, report.reason
        seen.add(report.checked)
    process.join()
    assert process.exitcode == 0
    assert len(seen) > 5


@pytest.mark.waits
def test_threads_and_processes_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    shared = AuditLog(path, HOSPITAL)

    def with_one_object(who: int) -> None:
        for number in range(40):
            shared.append("tick", who=who, number=number)

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_write_many, args=(path, 100 + n, 40)) for n in range(3)]
    threads = [threading.Thread(target=with_one_object, args=(n,)) for n in range(4)]
    threads += [threading.Thread(target=_write_many, args=(path, 10 + n, 40)) for n in range(2)]
    for process in processes:
        process.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    report = check(path)
    assert report.ok
    ticks = [(r.fields["who"], r.fields["number"]) for r in records(path) if r.kind == "tick"]
    assert len(ticks) == 9 * 40
    for who in {who for who, _ in ticks}:
        assert [number for each, number in ticks if each == who] == list(range(40))
    assert not [r for r in records(path) if r.kind == "recovered"]
