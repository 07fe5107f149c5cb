"""An evidence bundle verifies on its own, and each way of tampering with it fails for the right reason."""

import ast
import datetime
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datasites.hospital.audit.log import AuditLog, Head, PublicHead, head_file
from datasites.hospital.evidence import verify_bundle
from datasites.hospital.evidence.bundle import EvidenceError, build_bundle, entry_digest
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.identity import Identity
from policies.engine import Engine
from tests.hospital.evidence_of import (
    STUDY_HASH,
    TERMS,
    Hospital,
    edited,
    failed,
    pack,
    rechain,
    resign,
    unpack,
)
from tests.policies.facts_of import NOW, OFFICER, STEWARD, dua, facts_of, irb, registry
from tests.policies.facts_of import baa as baa_terms


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    ran = Hospital(tmp_path)
    ran.run()
    return ran


@pytest.fixture
def bundle(hospital: Hospital, tmp_path: Path) -> Path:
    path = tmp_path / "bundle.zip"
    assert all(check.ok for check in build_bundle(path, hospital.contents))
    return path


# -- a good bundle


def test_a_bundle_verifies_by_its_own_verifier_alone_and_without_the_key_says_so(
    hospital: Hospital, bundle: Path, tmp_path: Path
) -> None:
    verifier = tmp_path / "elsewhere" / "verify_bundle.py"
    verifier.parent.mkdir()
    verifier.write_bytes(unpack(bundle)["verify_bundle.py"])
    head = tmp_path / "head.json"
    head.write_bytes(hospital.heads[1].canonical())
    command = [sys.executable, "-I", str(verifier), str(bundle)]
    known = [*command, "--key", hospital.identity.fingerprint, "--head", str(head)]
    run = subprocess.run(known, cwd=verifier.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "The bundle verifies." in run.stdout
    assert "NOT COMPARED" not in run.stdout
    assert "4 heads agree with the log\n" in run.stdout
    run = subprocess.run(command, cwd=verifier.parent, capture_output=True, text=True)
    assert run.returncode == 0
    assert "NOT COMPARED" in run.stdout
    assert "NO HEAD FROM ANOTHER PARTY" in run.stdout


def test_the_verifier_needs_nothing_but_cryptography() -> None:
    tree = ast.parse(Path(verify_bundle.__file__).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"cryptography"}


def test_the_same_contents_make_the_same_file(hospital: Hospital, tmp_path: Path) -> None:
    one, two = tmp_path / "one.zip", tmp_path / "two.zip"
    build_bundle(one, hospital.contents)
    build_bundle(two, hospital.contents)
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_mode & 0o777 == 0o600


def test_the_summary_escapes_everything_and_fetches_nothing(bundle: Path) -> None:
    page = unpack(bundle)["summary.html"].decode()
    assert "<script" not in page
    assert "onload='x'" not in page
    assert "\u202e" not in page
    assert "\u27e6U+202E\u27e7" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "http:" not in page
    assert "https:" not in page
    assert "default-src 'none'" in page


def test_what_the_verifier_prints_does_nothing_to_a_terminal(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [verify_bundle.Check("agreements", True, "Clinic\u202e \x1b[2K")]
    monkeypatch.setattr(verify_bundle, "verify", lambda *_: found)
    verify_bundle.main([str(bundle)])
    assert "Clinic<U+202E> <U+001B>[2K" in capsys.readouterr().out


def test_a_bundle_of_a_study_that_never_ran_verifies(tmp_path: Path) -> None:
    only_seen = Hospital(tmp_path)
    only_seen.enter()
    only_seen.decide("intake", code__findings=2)
    checks = build_bundle(tmp_path / "b.zip", replace(only_seen.contents, findings=[{"rule": "import", "line": 1}]))
    assert all(check.ok for check in checks)
    assert "0 allowed, 1 denied" in {check.name: check.found for check in checks}["decisions"]


def test_contents_that_make_no_bundle_are_refused(hospital: Hospital, tmp_path: Path) -> None:
    out = tmp_path / "b.zip"
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"created": datetime.datetime(2026, 1, 1)}, "no time zone"),
        ({"frozen": {"../x": b""}}, "no name of a frozen file"),
        ({"audit": tmp_path / "gone"}, "can't be read"),
        ({"audit": empty}, "holds no records"),
    ]
    for changes, words in cases:
        with pytest.raises(EvidenceError, match=words):
            build_bundle(out, replace(hospital.contents, **changes))
    assert not out.exists()


# -- tampering by someone without the key


def outsider_edits_code(files: dict[str, bytes]) -> None:
    files["frozen/model.py"] += b"# harmless\n"


def outsider_edits_code_and_index(files: dict[str, bytes]) -> None:
    outsider_edits_code(files)
    index = json.loads(files["index.json"])
    index["files"]["frozen/model.py"] = sha256_hex(files["frozen/model.py"])
    files["index.json"] = canonical_json(index)


def outsider_removes(files: dict[str, bytes]) -> None:
    del files["decisions.json"]


def outsider_adds(files: dict[str, bytes]) -> None:
    files["frozen/extra.py"] = b""


def outsider_signs_with_own_key(files: dict[str, bytes]) -> None:
    files.update(resign(files, Identity.generate("forger@x.example")))


def outsider_drops_signature(files: dict[str, bytes]) -> None:
    del files["index.sig"]


@pytest.mark.parametrize(
    ("tamper", "check", "words"),
    [
        (outsider_edits_code, "index", "frozen/model.py was changed"),
        (outsider_edits_code_and_index, "signature", "the index is not signed by the hospital's key"),
        (outsider_removes, "index", "decisions.json is listed in the index but missing"),
        (outsider_adds, "index", "frozen/extra.py is not listed"),
        (outsider_signs_with_own_key, "signature", "not the one that you gave"),
        (outsider_drops_signature, "signature", "index.sig is missing"),
    ],
)
def test_tampering_without_the_key_fails(
    hospital: Hospital, bundle: Path, tamper: Callable[[dict[str, bytes]], None], check: str, words: str
) -> None:
    files = unpack(bundle)
    tamper(files)
    pack(bundle, files)
    found = failed(bundle, hospital.identity)
    assert set(found) == {check}
    assert words in found[check]


# -- tampering by the hospital, which signs the result again with its own key


def swaps_code(files: dict[str, bytes], _: Identity) -> None:
    files["frozen/model.py"] += b"# harmless\n"


def changes_terms(files: dict[str, bytes], _: Identity) -> None:
    edited(files, "terms.json", lambda terms: terms["plan"].update(noise_multiplier=2.2))


def edits_log(files: dict[str, bytes], _: Identity) -> None:
    files["audit.jsonl"] = files["audit.jsonl"].replace(OFFICER.encode(), STEWARD.encode())


def drops_log_line(files: dict[str, bytes], _: Identity) -> None:
    lines = files["audit.jsonl"].splitlines(keepends=True)
    files["audit.jsonl"] = b"".join(lines[:5] + lines[6:])


def truncates_log(files: dict[str, bytes], identity: Identity) -> None:
    lines = files["audit.jsonl"].splitlines(keepends=True)[:-3]
    last = json.loads(lines[-1])
    files["audit.jsonl"] = b"".join(lines)
    files["audit.head.json"] = Head.sign(identity, last["seq"], last["hash"]).canonical()


def truncates_log_only(files: dict[str, bytes], _: Identity) -> None:
    files["audit.jsonl"] = b"".join(files["audit.jsonl"].splitlines(keepends=True)[:-1])


def turns_denial_into_allow(files: dict[str, bytes], _: Identity) -> None:
    def change(decisions: list[dict[str, Any]]) -> None:
        decisions[1] |= {"allowed": True, "denied_by": []}

    edited(files, "decisions.json", change)


def drops_denial(files: dict[str, bytes], _: Identity) -> None:
    edited(files, "decisions.json", lambda decisions: decisions.pop(1))


def lowers_charge(files: dict[str, bytes], _: Identity) -> None:
    edited(files, "ledger.json", lambda ledger: ledger[0]["charges"]["training"][0].update(count=1))


def repeats_charge(files: dict[str, bytes], _: Identity) -> None:
    edited(files, "ledger.json", lambda ledger: ledger.append(ledger[0]))


def backdates_agreement(files: dict[str, bytes], _: Identity) -> None:
    edited(files, "agreements.json", lambda book: book["agreements"][0]["terms"].update(effective="2025-01-01"))


def loses_agreement(files: dict[str, bytes], _: Identity) -> None:
    edited(files, "agreements.json", lambda book: book["agreements"].pop(0))


@pytest.mark.parametrize(
    ("tamper", "check", "words"),
    [
        (swaps_code, "study", "this is not the code approved"),
        (changes_terms, "study", "terms.json does not have the approval hash"),
        (edits_log, "audit log", "was edited"),
        (drops_log_line, "audit log", "record 6 of the audit log is missing or moved"),
        (truncates_log, "heads", "rewritten or truncated"),
        (truncates_log_only, "audit log", "the log ends at record"),
        (turns_denial_into_allow, "log and files agree", "decisions.json: entry 2 is not in the audit log"),
        (drops_denial, "log and files agree", "is left out"),
        (lowers_charge, "log and files agree", "ledger.json: entry 1 is not in the audit log"),
        (repeats_charge, "log and files agree", "ledger.json: entry 4 stands twice"),
        (backdates_agreement, "agreements", "the registry does not hold like that"),
        (loses_agreement, "agreements", "the registry does not hold like that"),
    ],
)
def test_tampering_with_the_hospitals_key_fails(
    hospital: Hospital, bundle: Path, tamper: Callable[[dict[str, bytes], Identity], None], check: str, words: str
) -> None:
    files = unpack(bundle)
    tamper(files, hospital.identity)
    approval = json.loads(files["index.json"])["approval"]
    files = resign(files, hospital.identity)
    if check == "study":  # and claims the hash that people approved
        files = resign(files, hospital.identity, approval=approval)
    pack(bundle, files)
    found = failed(bundle, hospital.identity)
    assert check in found
    assert words in found[check]


# -- rewriting the whole log with the hospital's key, bundle and all


def forgets_round_two(bodies: list[dict[str, Any]]) -> None:
    bodies[:] = [b for b in bodies if b["fields"].get("round") != 2 or b["kind"] != "released"]


def test_a_wholly_rewritten_log_is_caught_by_a_head_that_another_party_holds(hospital: Hospital, bundle: Path) -> None:
    files = unpack(bundle)
    rechain(files, hospital.identity, forgets_round_two)
    pack(bundle, resign(files, hospital.identity))
    assert failed(bundle, hospital.identity) == {}  # its own word
    found = failed(bundle, hospital.identity, hospital.heads)
    assert set(found) == {"heads"}
    assert "rewritten or truncated: it lacks the record that the head that you gave knows (release 4)" in found["heads"]
    assert failed(bundle, hospital.identity, hospital.heads[:1]) == {}, "what was true up to its first release"
    # Heads of earlier versions say which record they are of.
    found = failed(bundle, hospital.identity, hospital.numbered)
    assert f"the log was rewritten: record {hospital.numbered[1].seq} is not the one" in found["heads"]
    assert "truncated" in failed(bundle, hospital.identity, hospital.numbered[-1:])["heads"]


def test_a_bundle_with_heads_of_an_earlier_version_still_verifies(hospital: Hospital, bundle: Path) -> None:
    files = unpack(bundle)
    held = [{"holder": "researcher@university.example", "head": h.model_dump()} for h in hospital.numbered]
    files["heads.json"] = canonical_json(held)
    pack(bundle, resign(files, hospital.identity))
    assert failed(bundle, hospital.identity, hospital.numbered) == {}
    assert failed(bundle, hospital.identity, [*hospital.numbered, *hospital.heads]) == {}


class BackedUpHospital(Hospital):
    """One that keeps a backup of its log from after round 2."""

    def release(self, number: int) -> None:
        super().release(number)
        if number == 2:
            self.kept = {path: path.read_bytes() for path in (self.log.path, head_file(self.log.path))}
            self.known = len(self.decisions), len(self.ledger)

    def put_back(self, officer: str = OFFICER, *, declared: bool = True) -> PublicHead:
        """Restore the log, and let two people declare it; returns the head of the release that it lacks now."""
        for path, content in self.kept.items():
            path.write_bytes(content)
        decisions, charges = self.known
        self.decisions, self.ledger = self.decisions[:decisions], self.ledger[:charges]
        self.log, lost, self.heads = AuditLog(self.log.path, self.identity), self.heads[2], self.heads[:2]
        if declared:
            self.log.append(
                "restored",
                continues=self.heads[-1].hash,
                releases=self.heads[-1].releases,
                entered_by=STEWARD,
                confirmed_by=officer,
                reason="the disk broke",
            )
        self.log.checkpoint()
        return lost


@pytest.fixture
def backed_up(tmp_path: Path) -> BackedUpHospital:
    ran = BackedUpHospital(tmp_path)
    ran.run()
    return ran


def test_a_head_of_a_part_that_was_lost_is_said_where_two_people_declared_it(
    backed_up: BackedUpHospital, tmp_path: Path
) -> None:
    lost, path = backed_up.put_back(), tmp_path / "bundle.zip"
    assert all(check.ok for check in build_bundle(path, backed_up.contents))
    for heads in (backed_up.heads, [*backed_up.heads, lost]):
        checks = verify_bundle.verify(path, backed_up.identity.public_key, [head.model_dump() for head in heads])
        assert all(check.ok for check in checks)
        (found,) = [check.found for check in checks if check.name == "heads"]
        assert ("1 are of a part of the log that was LOST, as two people declared" in found) == (lost in heads)


def test_a_head_of_a_part_that_nobody_declared_lost_fails(backed_up: BackedUpHospital, tmp_path: Path) -> None:
    lost, path = backed_up.put_back(declared=False), tmp_path / "bundle.zip"
    build_bundle(path, backed_up.contents)
    assert "rewritten or truncated" in failed(path, backed_up.identity, [lost])["heads"]


def test_a_restore_explains_no_head_from_before_it(backed_up: BackedUpHospital, tmp_path: Path) -> None:
    backed_up.put_back()
    path = tmp_path / "bundle.zip"
    build_bundle(path, backed_up.contents)
    rewritten = PublicHead.sign(backed_up.identity, 3, "ab" * 32)
    assert "rewritten or truncated" in failed(path, backed_up.identity, [rewritten])["heads"]


def test_a_restore_on_one_persons_word_fails(backed_up: BackedUpHospital, tmp_path: Path) -> None:
    lost, path = backed_up.put_back(STEWARD.upper()), tmp_path / "bundle.zip"
    build_bundle(path, backed_up.contents)
    assert "one person's word" in failed(path, backed_up.identity, [lost])["heads"]


def test_a_restore_on_the_word_of_somebody_whom_nobody_entered_fails(
    backed_up: BackedUpHospital, tmp_path: Path
) -> None:
    lost, path = backed_up.put_back("nobody@hospital.example"), tmp_path / "bundle.zip"
    build_bundle(path, backed_up.contents)
    assert "does not know of it before" in failed(path, backed_up.identity, [lost])["heads"]


def test_a_head_that_counts_other_releases_than_the_log_holds_is_caught(hospital: Hospital, bundle: Path) -> None:
    true = hospital.heads[1]
    false = PublicHead.sign(hospital.identity, true.releases + 1, true.hash)
    found = failed(bundle, hospital.identity, [false])
    assert "says 5 releases" in found["heads"]
    assert "the log holds 4" in found["heads"]
    unsigned = true.model_copy(update={"releases": true.releases + 1})
    assert "not signed" in failed(bundle, hospital.identity, [unsigned])["heads"]


def never_charged(bodies: list[dict[str, Any]]) -> None:
    bodies[:] = [b for b in bodies if b["kind"] != "charged" or b["fields"]["round"] != 2]


def charged_after_release(bodies: list[dict[str, Any]]) -> None:
    at = next(i for i, b in enumerate(bodies) if b["kind"] == "charged" and b["fields"]["round"] == 2)
    bodies.append(bodies.pop(at))


def released_twice(bodies: list[dict[str, Any]]) -> None:
    again = next(b for b in bodies if b["kind"] == "released" and b["fields"]["study"] == STUDY_HASH)
    bodies.append(json.loads(json.dumps(again)))


def one_person(bodies: list[dict[str, Any]]) -> None:
    for body in bodies:
        if body["kind"] == "approved":
            body["fields"]["person"] = STEWARD.upper() if body["fields"]["role"] == "steward" else STEWARD


def one_role(bodies: list[dict[str, Any]]) -> None:
    for body in bodies:
        if body["kind"] == "approved":
            body["fields"]["role"] = "steward"


def approved_other_hash(bodies: list[dict[str, Any]]) -> None:
    for body in bodies:
        if body["kind"] == "approved" and body["fields"]["role"] == "steward":
            body["fields"]["hash"] = "77" * 32


def approved_afterwards(bodies: list[dict[str, Any]]) -> None:
    at = next(i for i, b in enumerate(bodies) if b["kind"] == "approved")
    bodies.append(bodies.pop(at))


def decided_afterwards(action: str) -> Callable[[list[dict[str, Any]]], None]:
    def change(bodies: list[dict[str, Any]]) -> None:
        at = next(i for i, b in enumerate(bodies) if b["kind"] == "decision" and b["fields"]["action"] == action)
        bodies.append(bodies.pop(at))

    return change


@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        (never_charged, "log and files agree", "ledger.json: entry 2 is not in the audit log"),
        (charged_after_release, "releases", "round 2 was released before it was charged"),
        (released_twice, "releases", "round 1 was released more than once"),
        (one_person, "approvals", "one person approved in both roles"),
        (one_role, "approvals", "no privacy_officer approved this hash"),
        (approved_other_hash, "approvals", "no steward approved this hash"),
        (approved_afterwards, "approvals", "before a steward approved it"),
        (decided_afterwards("run_round"), "releases", "round 1 was charged and run without a decision"),
        (decided_afterwards("release"), "releases", "round 1 was released without a decision"),
    ],
)
def test_a_history_that_breaks_a_rule_fails_even_if_signed_throughout(
    hospital: Hospital, bundle: Path, change: Callable[[list[dict[str, Any]]], None], check: str, words: str
) -> None:
    files = unpack(bundle)
    rechain(files, hospital.identity, change)
    pack(bundle, resign(files, hospital.identity))
    found = failed(bundle, hospital.identity)
    assert words in found[check]


def test_a_release_without_any_charge_fails(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    hospital.enter()
    hospital.decide("run_round")
    hospital.approve(STEWARD, "steward")
    hospital.approve(OFFICER, "privacy_officer")
    hospital.decide("release", release__round=1)
    hospital.release(1)
    checks = build_bundle(tmp_path / "b.zip", hospital.contents)
    assert {c.name: c.found for c in checks if not c.ok} == {
        "releases": "round 1 was released but never charged to the privacy budget"
    }


def test_a_round_that_was_let_run_on_other_terms_fails(hospital: Hospital, tmp_path: Path) -> None:
    other = Engine(clock=lambda: NOW).decide(facts_of("run_round"))
    hospital.decisions.append(other.model_dump(mode="json"))
    hospital.log.append("decision", study=STUDY_HASH, digest=other.digest())
    found = {c.name: c.found for c in build_bundle(tmp_path / "b.zip", hospital.contents) if not c.ok}
    assert "lets something run that is not what people approved" in found["decisions"]


def test_an_allowed_decision_without_a_baa_in_force_fails_whatever_the_engine_said(tmp_path: Path) -> None:
    # The check is made again in plain Python from the stored facts, so that it does not rest on the rule engine.
    hospital = Hospital(tmp_path)
    expired = registry(baa_terms(expires=datetime.date(2026, 11, 1)), irb(), dua())
    hospital.registry = expired
    hospital.enter()
    hospital.decide("intake", agreements=expired.agreements)
    forged = hospital.decisions.pop()
    for result in forged["results"]:
        result["outcome"] = "pass" if result["outcome"] == "deny" else result["outcome"]
    forged |= {"allowed": True, "denied_by": []}
    hospital.decisions.append(forged)
    hospital.log.append("decision", study=STUDY_HASH, digest=entry_digest(forged))
    found = {c.name: c.found for c in build_bundle(tmp_path / "b.zip", hospital.contents) if not c.ok}
    assert "no BAA in force covers aggregation by Centre" in found["agreements"]


def test_a_renewal_that_is_confirmed_early_leaves_the_agreement_in_force(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    renewal = baa_terms(effective=datetime.date(2027, 1, 1), expires=datetime.date(2027, 12, 31))
    today = NOW.date()
    renewed = registry(baa_terms(), irb(), dua()).enter(renewal, "clerk@general.example", today)
    renewed = renewed.confirm(renewal.id, 2, OFFICER, today)
    hospital.registry = renewed
    hospital.enter()
    hospital.decide("intake", agreements=renewed.agreements)
    assert hospital.decisions[-1]["allowed"]
    assert all(check.ok for check in build_bundle(tmp_path / "b.zip", hospital.contents))


def audit_lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[dict[str, bytes], Identity], None]:
    def tamper(files: dict[str, bytes], _: Identity) -> None:
        files["audit.jsonl"] = b"".join(change(files["audit.jsonl"].splitlines(keepends=True)))

    return tamper


def rehashed(line: bytes) -> bytes:
    body = json.loads(line)
    body["fields"]["reason"] = "another"
    del body["hash"]
    return canonical_json({**body, "hash": sha256_hex(canonical_json(body))}) + b"\n"


def terms_of_another_study(files: dict[str, bytes], _: Identity) -> None:
    files["terms.json"] = canonical_json({**json.loads(TERMS), "study_hash": "12" * 32})


def checkpoint_elsewhere(files: dict[str, bytes], identity: Identity) -> None:
    # A true checkpoint of an earlier position, put where it hides what lies between.
    rechain(files, identity, lambda bodies: None)
    *lines, last = files["audit.jsonl"].splitlines(keepends=True)
    body, early = json.loads(last), json.loads(lines[3])
    signature = Head.sign(identity, early["seq"], early["hash"]).signature
    body["fields"] = {"covers": early["seq"], "hash": early["hash"], "signature": signature}
    del body["hash"]
    digest = sha256_hex(canonical_json(body))
    files["audit.jsonl"] = b"".join(lines) + canonical_json({**body, "hash": digest}) + b"\n"
    files["audit.head.json"] = Head.sign(identity, body["seq"], digest).canonical()


def unsigned_checkpoint(files: dict[str, bytes], identity: Identity) -> None:
    rechain(files, identity, lambda bodies: None)
    *lines, last = files["audit.jsonl"].splitlines(keepends=True)
    body = json.loads(last)
    body["fields"]["signature"] = "00" * 64
    del body["hash"]
    digest = sha256_hex(canonical_json(body))
    files["audit.jsonl"] = b"".join(lines) + canonical_json({**body, "hash": digest}) + b"\n"
    files["audit.head.json"] = Head.sign(identity, body["seq"], digest).canonical()


def foreign_head(files: dict[str, bytes], _: Identity) -> None:
    head = Head.sign(Identity.generate("north@x.example"), 3, json.loads(files["audit.jsonl"].splitlines()[2])["hash"])
    files["heads.json"] = canonical_json([{"holder": "north@x.example", "head": head.model_dump()}])


def redecided(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, bytes], Identity], None]:
    """Change the first decision in the file and in the log alike."""

    def tamper(files: dict[str, bytes], identity: Identity) -> None:
        decisions = json.loads(files["decisions.json"])
        before = entry_digest(decisions[0])
        change(decisions[0])
        files["decisions.json"] = canonical_json(decisions)

        def relog(bodies: list[dict[str, Any]]) -> None:
            for body in bodies:
                if body["fields"].get("digest") == before:
                    body["fields"]["digest"] = entry_digest(decisions[0])

        rechain(files, identity, relog)

    return tamper


def no_control_named(decision: dict[str, Any]) -> None:
    decision["allowed"] = False


@pytest.mark.parametrize(
    ("tamper", "check", "words"),
    [
        (audit_lines(lambda lines: []), "audit log", "audit.jsonl is empty"),
        (audit_lines(lambda lines: [*lines[:-1], lines[-1][:-1]]), "audit log", "is torn"),
        (audit_lines(lambda lines: [lines[0].replace(b":", b": ", 1), *lines[1:]]), "audit log", "record 1 .*edited"),
        (audit_lines(lambda lines: [lines[0], rehashed(lines[1]), *lines[2:]]), "audit log", "record 3 .*not follow"),
        (audit_lines(lambda lines: [b"{}\n", *lines[1:]]), "audit log", "malformed"),
        (terms_of_another_study, "study", "terms.json is about another study"),
        (checkpoint_elsewhere, "audit log", "is a checkpoint of another position"),
        (unsigned_checkpoint, "audit log", "the checkpoint in record .* is not signed"),
        (foreign_head, "heads", "a head is of another hospital's log"),
        (redecided(lambda d: d["facts"].update(state="active")), "decisions", "entry 1: its facts do not have the"),
        (redecided(lambda d: d["results"][0].update(outcome="deny")), "decisions", "entry 1 allows although"),
        (redecided(lambda d: d["denied_by"].append({"control": "baa"})), "decisions", "entry 1 allows although"),
        (redecided(no_control_named), "decisions", "entry 1 denies without naming"),
    ],
)
def test_finer_tampering_with_the_hospitals_key_fails(
    hospital: Hospital, bundle: Path, tamper: Callable[[dict[str, bytes], Identity], None], check: str, words: str
) -> None:
    files = unpack(bundle)
    tamper(files, hospital.identity)
    pack(bundle, resign(files, hospital.identity))
    assert re.search(words, failed(bundle, hospital.identity)[check])


# -- contents that are not what they seem


def test_an_index_of_another_format_is_not_guessed_at(hospital: Hospital, bundle: Path) -> None:
    files = unpack(bundle)
    pack(bundle, resign(files, hospital.identity, format=4))
    found = failed(bundle, hospital.identity)
    assert found == {"index": "index.json is not an index of format 1, 2, 3; get a newer verifier"}


def test_junk_in_place_of_any_file_fails_and_does_not_raise(hospital: Hospital, bundle: Path, tmp_path: Path) -> None:
    files, odd = unpack(bundle), tmp_path / "odd.zip"
    for name in sorted(name for name in files if name.endswith(".json")):
        for junk in (b"", b"[]", b"{}", b"null", b"[1]", b"\xff", b"[" * 100_000, b"[{}]", b"9" * 100_000):
            broken = files | {name: junk}
            if name != "index.json":
                broken = resign(broken, hospital.identity)
            pack(odd, broken)
            assert failed(odd, hospital.identity) or (name, junk) in (("heads.json", b"[]"), ("findings.json", junk))


def test_a_flipped_byte_anywhere_is_noticed(hospital: Hospital, bundle: Path, tmp_path: Path) -> None:
    files = unpack(bundle)
    flipped = tmp_path / "flipped.zip"
    for name, data in files.items():
        for at in {0, len(data) // 2, len(data) - 1}:
            changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            if name == "index.sig" and changed.strip() == data.strip():
                continue
            pack(flipped, files | {name: changed})
            assert failed(flipped, hospital.identity), (name, at)


def test_the_command_line_says_what_failed(bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert verify_bundle.main([str(bundle), "--key", "00" * 20]) == 1
    assert "FAILED  signature" in capsys.readouterr().out
    assert verify_bundle.main([str(bundle), "--head", str(tmp_path / "gone.json")]) == 2
    assert "--head" in capsys.readouterr().err


def test_an_export_while_the_datasite_writes_holds_whole_records(hospital: Hospital, tmp_path: Path) -> None:
    with hospital.log.path.open("ab") as file:
        file.write(b'{"fields":')
    assert all(check.ok for check in build_bundle(tmp_path / "b.zip", hospital.contents))
    assert head_file(hospital.log.path).exists()
