"""Verify an evidence bundle: `python verify_bundle.py BUNDLE.zip --key FINGERPRINT [--head HEAD.json ...]`.

Stands alone: Python 3.9 or later and the package `cryptography`, nothing of the software that wrote the bundle. A
copy lies in every bundle for convenience; take yours from a source that you trust, since whoever forges a bundle
would forge that copy too.

--key: the hospital's public key (64 hex digits) or fingerprint (40), which you got from the hospital by another
channel. --head: a signed head of the hospital's audit log that *another* party was sent with a release (JSON). Without
heads from others a hospital could have rewritten its whole log with its own key, and nothing inside could show it.

What is checked: every file is listed, unchanged and signed; the frozen code and the terms are those that the
approved hash covers; the audit log is one chain; every decision and charge of the study is in that log, and none of
the log's is left out here; charges are in the log in full, within what was reserved (bundles of format 1 hold their
digests); two people approved that hash before anything ran; each release was charged and allowed first; each allowed
decision had an agreement in force for every service on its day. Exit status 0 if all checks pass.
"""

from __future__ import annotations  # for Python 3.9, which some auditors have

import argparse
import hashlib
import json
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

LARGEST_FILE = 2 * 1024**3
LARGEST_RECORD = 16 * 1024
_HEX64 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


class Check(NamedTuple):
    """One check: what was looked at, whether it holds, and what was found."""

    name: str
    ok: bool
    found: str


class Fault(Exception):
    """A check does not hold; the text says which thing is wrong."""


class _Bundle:
    """The files of a bundle, and what the checks so far have made of them."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.index: dict[str, Any] = {}
        self.key = ""
        self.study = ""  # hash of the frozen files; audit records name it
        self.approval = ""  # hash of the terms, which hold the study hash; people approve it
        self.records: list[dict[str, Any]] = []

    def read(self, name: str) -> bytes:
        try:
            return self.archive.read(name)
        except KeyError:
            raise Fault(f"{name} is missing") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise Fault(f"{name} can't be read: {error}") from None

    def json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError):
            raise Fault(f"{name} is not JSON") from None

    def entries(self, name: str) -> list[dict[str, Any]]:
        value = self.json(name)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise Fault(f"{name} is not a list of entries")
        return value

    def logged(self, kind: str) -> list[dict[str, Any]]:
        """Records of one kind about this study."""
        return [r for r in self.records if r["kind"] == kind and r["fields"].get("study") == self.study]

    def place(self, kind: str, entry: dict[str, Any]) -> int:
        """Number of the first audit record that holds the digest of `entry`."""
        digest = _sha256(_canonical(entry))
        for record in self.logged(kind):
            if record["fields"].get("digest") == digest:
                return int(record["seq"])
        raise Fault(f"the log has no {kind} record of an entry that would be needed here")


def verify(path: Path, key: str | None = None, heads: Sequence[dict[str, Any]] = ()) -> list[Check]:
    """All checks in order. A check that needs the result of one that failed is not made and fails too."""
    checks: list[Check] = []
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        return [Check("archive", False, f"{path} is not a readable zip file: {error}")]
    with archive:
        bundle = _Bundle(archive)
        steps: list[tuple[str, Callable[[], str]]] = [
            ("archive", lambda: _archive(bundle)),
            ("index", lambda: _index(bundle)),
            ("signature", lambda: _signature(bundle, key)),
            ("study", lambda: _study(bundle)),
            ("audit log", lambda: _audit(bundle)),
            ("heads", lambda: _heads(bundle, heads)),
            ("log and files agree", lambda: _logged(bundle)),
            ("charges", lambda: _charges(bundle)),
            ("decisions", lambda: _decisions(bundle)),
            ("approvals", lambda: _approvals(bundle)),
            ("releases", lambda: _releases(bundle)),
            ("agreements", lambda: _agreements(bundle)),
        ]
        broken = ""
        for name, step in steps:
            if broken:
                checks.append(Check(name, False, f"not checked, because '{broken}' failed"))
                continue
            try:
                checks.append(Check(name, True, step()))
            except Fault as fault:
                checks.append(Check(name, False, str(fault)))
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
                checks.append(Check(name, False, f"malformed content: {type(error).__name__} {error}"))
            if not checks[-1].ok and name in ("archive", "index", "signature", "audit log"):
                broken = name
    return checks


def _archive(bundle: _Bundle) -> str:
    names = [info.filename for info in bundle.archive.infolist()]
    for info in bundle.archive.infolist():
        if not _NAME.fullmatch(info.filename):
            raise Fault(f"a file has the odd name {info.filename!r}")
        if info.file_size > LARGEST_FILE:
            raise Fault(f"{info.filename} would unpack to {info.file_size} bytes")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Fault(f"{', '.join(twice)} stands twice in the archive")
    return f"{len(names)} files"


def _index(bundle: _Bundle) -> str:
    index = bundle.json("index.json")
    if not isinstance(index, dict) or index.get("format") not in (1, 2) or not isinstance(index.get("files"), dict):
        raise Fault("index.json is not an index of format 1 or 2")
    present = set(bundle.archive.namelist()) - {"index.json", "index.sig"}
    missing, extra = sorted(set(index["files"]) - present), sorted(present - set(index["files"]))
    if missing:
        raise Fault(f"{', '.join(missing)} is listed in the index but missing")
    if extra:
        raise Fault(f"{', '.join(extra)} is not listed in the index")
    for name, digest in sorted(index["files"].items()):
        if _sha256(bundle.read(name)) != digest:
            raise Fault(f"{name} was changed: its content does not have the digest in the index")
    bundle.index, bundle.key, bundle.study = index, index["public_key"], index["study"]
    bundle.approval = index["approval"]
    if not all(_HEX64.fullmatch(value) for value in (bundle.key, bundle.study, bundle.approval)):
        raise Fault("index.json has no valid public key, study hash or approval hash")
    return f"{len(index['files'])} files are listed and unchanged"


def _signature(bundle: _Bundle, key: str | None) -> str:
    text = bundle.read("index.sig").decode("ascii", "replace").strip()
    _check_signature(bundle.key, text, "evidence-index", bundle.read("index.json"), "the index")
    fingerprint = hashlib.sha256(bytes.fromhex(bundle.key)).hexdigest()[:40]
    grouped = " ".join(fingerprint[i : i + 4] for i in range(0, 40, 4))
    if key is None:
        return f"by the key {grouped}; NOT COMPARED with a key that you know (use --key)"
    wanted = re.sub(r"[\s:]", "", key).lower()
    if not wanted or wanted not in (bundle.key, fingerprint):
        raise Fault(f"the bundle is signed by the key {grouped}, which is not the one that you gave")
    return f"by the key that you gave, {grouped}"


def _study(bundle: _Bundle) -> str:
    terms = bundle.read("terms.json")
    if _sha256(terms) != bundle.approval:
        raise Fault("terms.json does not have the approval hash as its digest: these are not the terms approved")
    files = [name for name in bundle.index["files"] if name.startswith("frozen/")]
    digests = {name[len("frozen/") :]: bundle.index["files"][name] for name in files}
    if not files or _sha256(_canonical(digests)) != bundle.study:
        raise Fault("the frozen files do not have the study hash as their digest: this is not the code approved")
    if json.loads(terms)["study_hash"] != bundle.study:
        raise Fault("terms.json is about another study")
    return f"{len(files)} frozen files are study {bundle.study[:12]}…; terms and files are what was approved"


def _audit(bundle: _Bundle) -> str:
    previous = _sha256(b"datasites audit 1\0" + bytes.fromhex(bundle.key))
    checkpoints = 0
    for number, line in enumerate(bundle.read("audit.jsonl").splitlines(keepends=True), start=1):
        record = _record(line, number, previous)
        if record["kind"] == "checkpoint":
            fields = record["fields"]
            if (fields["covers"], fields["hash"]) != (number - 1, previous):
                raise Fault(f"record {number} is a checkpoint of another position")
            _check_head(bundle.key, number - 1, previous, fields["signature"], f"the checkpoint in record {number}")
            checkpoints += 1
        previous = record["hash"]
        bundle.records.append(record)
    if not bundle.records:
        raise Fault("audit.jsonl is empty")
    last = bundle.json("audit.head.json")
    _check_head(bundle.key, last["seq"], last["hash"], last["signature"], "audit.head.json")
    if (last["seq"], last["hash"]) != (len(bundle.records), previous):
        raise Fault(f"the log ends at record {len(bundle.records)}, its signed head is record {last['seq']}")
    return f"{len(bundle.records)} records in one chain, {checkpoints} signed checkpoints, signed head"


def _record(line: bytes, number: int, previous: str) -> dict[str, Any]:
    if not line.endswith(b"\n") or len(line) > LARGEST_RECORD:
        raise Fault(f"record {number} of the audit log is torn or too long")
    try:
        record = json.loads(line)
        same = isinstance(record, dict) and _canonical(record) == line[:-1]
    except (ValueError, RecursionError):
        raise Fault(f"record {number} of the audit log is not JSON") from None
    if not same:
        raise Fault(f"record {number} of the audit log was edited: it is not in the form that the log writes")
    body = {name: value for name, value in record.items() if name != "hash"}
    if record["seq"] != number:
        raise Fault(f"record {number} of the audit log is missing or moved: record {record['seq']} is in its place")
    if record["previous"] != previous:
        raise Fault(f"record {number} of the audit log does not follow the one before it")
    if _sha256(_canonical(body)) != record["hash"]:
        raise Fault(f"record {number} of the audit log was edited: its content does not have its hash")
    return record


def _heads(bundle: _Bundle, others: Sequence[dict[str, Any]]) -> str:
    inside = [entry["head"] for entry in bundle.entries("heads.json")]
    counted = lost = 0
    for head, source in [(h, "heads.json") for h in inside] + [(h, "the head that you gave") for h in others]:
        if head["public_key"] != bundle.key:
            raise Fault(f"{source}: a head is of another hospital's log")
        if head["format"] == 1:
            held = _numbered_head(bundle, head, source)
        elif head["format"] == 2:
            held = _public_head(bundle, head, source)
        else:
            raise Fault(f"{source}: a head is of format {head['format']!r}, known are 1 and 2")
        counted, lost = counted + held, lost + (not held)
    note = "" if others else "; NO HEAD FROM ANOTHER PARTY was given (use --head)"
    if lost:
        note += f"; {lost} are of a part of the log that was LOST, as two people declared after a restore"
    return f"{counted} heads agree with the log{note}"


def _restored(bundle: _Bundle) -> list[tuple[int, int]]:
    """(record, releases up to it) from which the log goes on after each restore that it declares, by two people."""
    found = []
    for record in bundle.records:
        fields = record["fields"]
        if record["kind"] != "restored":
            continue
        if str(fields["entered_by"]).casefold() == str(fields["confirmed_by"]).casefold():
            raise Fault(f"record {record['seq']} declares a restore on one person's word")
        at = next((r["seq"] for r in bundle.records[: record["seq"]] if r["hash"] == fields["continues"]), None)
        if at is None:
            raise Fault(f"record {record['seq']} declares that the log goes on from a record that it lacks")
        found.append((at, sum(r["kind"] == "released" for r in bundle.records[:at])))
    return found


def _numbered_head(bundle: _Bundle, head: dict[str, Any], source: str) -> bool:
    """A head as hospitals sent it in earlier versions: the number of a record, and its hash.

    False for one beyond a record from which the log goes on after a restore: it is of the part that was lost.
    """
    _check_head(bundle.key, head["seq"], head["hash"], head["signature"], source)
    held = bundle.records[head["seq"] - 1]["hash"] if head["seq"] <= len(bundle.records) else ""
    if held != head["hash"] and any(head["seq"] > seq for seq, _ in _restored(bundle)):
        return False
    if head["seq"] > len(bundle.records):
        raise Fault(f"the log was truncated: {source} knows record {head['seq']}, it has {len(bundle.records)}")
    if bundle.records[head["seq"] - 1]["hash"] != head["hash"]:
        raise Fault(f"the log was rewritten: record {head['seq']} is not the one that {source} knows")
    return True


def _public_head(bundle: _Bundle, head: dict[str, Any], source: str) -> bool:
    """A head by the hash of its record and the number of releases up to there, of all studies; else as above."""
    releases, hash = head["releases"], head["hash"]
    signed = _canonical({"public_key": bundle.key, "releases": releases, "hash": hash})
    _check_signature(bundle.key, head["signature"], "audit-head", signed, source)
    at = next((r["seq"] for r in bundle.records if r["hash"] == hash), None)
    if at is None and any(releases >= known for _, known in _restored(bundle)):
        return False
    if at is None:
        raise Fault(f"the log was rewritten or truncated: it lacks the record that {source} knows (release {releases})")
    counted = sum(r["kind"] == "released" for r in bundle.records[:at])
    if counted != releases:
        raise Fault(f"{source} says {releases} releases up to record {at}, the log holds {counted}")
    return True


def _logged(bundle: _Bundle) -> str:
    total = 0
    for kind, name in (("decision", "decisions.json"), ("charged", "ledger.json")):
        logged = [(str(r["fields"].get("digest")), r["seq"]) for r in bundle.logged(kind)]
        digests = [_sha256(_canonical(entry)) for entry in bundle.entries(name)]
        for position, digest in enumerate(digests, start=1):
            if digest not in {other for other, _ in logged}:
                raise Fault(f"{name}: entry {position} is not in the audit log: it was changed or added")
            if digests.count(digest) != 1:
                raise Fault(f"{name}: entry {position} stands twice")
        replaced = _replaced(bundle) if kind == "charged" else set()
        left_out = [seq for digest, seq in logged if digest not in digests and seq not in replaced]
        if left_out:
            raise Fault(f"{name}: what record {left_out[0]} of the audit log is about is left out")
        total += len(digests)
    return f"{total} decisions and charges, each in both"


def _replaced(bundle: _Bundle) -> set[int]:
    """Records of charges in whose place two people settled a larger one after a restore."""
    settled = [r for r in bundle.logged("charged") if r["fields"].get("settled")]
    return {
        r["seq"]
        for r in bundle.logged("charged")
        if any(r["seq"] < s["seq"] and r["fields"]["round"] == s["fields"]["round"] for s in settled)
    }


def _charges(bundle: _Bundle) -> str:
    """Format 2: log and ledger hold every charge in full, each after a reservation, and all within it."""
    if bundle.index["format"] == 1:
        if any("charges" in r["fields"] for r in bundle.logged("charged")):
            raise Fault("index.json says format 1, which had no charges in the log; this log has them")
        return "not in the log in full before format 2; their digests are, see above"
    replaced, reserved = _replaced(bundle), bundle.logged("reserved")
    charged = [r for r in bundle.logged("charged") if r["seq"] not in replaced]
    entries = {entry["round"]: entry for entry in bundle.entries("ledger.json")}
    totals: dict[str, dict[str, int]] = {}
    for record in charged:
        number, fields = record["fields"]["round"], record["fields"]
        for name in ("charges", "local_charges"):
            if json.loads(fields[name]) != entries[number][name]:
                raise Fault(f"record {record['seq']}: {name} of round {number} are others in ledger.json")
        if not any(r["seq"] < record["seq"] for r in reserved):
            raise Fault(f"record {record['seq']}: round {number} was charged without a reservation")
        _add_up(totals, json.loads(fields["charges"]))
    whole: dict[str, dict[str, int]] = {}
    if reserved:
        _add_up(whole, json.loads(reserved[-1]["fields"]["charges"]))
    for partition, counts in totals.items():
        for mechanism, count in counts.items():
            if count > whole.get(partition, {}).get(mechanism, 0):
                raise Fault(f"{partition} patients were charged {count} x {mechanism}, more than was reserved")
    return f"{len(charged)} charges in full, within what was reserved"


def _add_up(totals: dict[str, dict[str, int]], prices: dict[str, list[dict[str, Any]]]) -> None:
    for partition, charges in prices.items():
        counts = totals.setdefault(partition, {})
        for charge in charges:
            mechanism = _canonical({name: value for name, value in charge.items() if name != "count"}).decode()
            counts[mechanism] = counts.get(mechanism, 0) + int(charge["count"])


_RUNNING = ("run_round", "release")


def _decisions(bundle: _Bundle) -> str:
    allowed = denied = 0
    for position, decision in enumerate(bundle.entries("decisions.json"), start=1):
        where = f"decisions.json: entry {position}"
        # Reviews of terms that changed before approval have another hash; nothing may run on them.
        if decision["study"] != bundle.approval and decision["allowed"] and decision["action"] in _RUNNING:
            raise Fault(f"{where} lets something run that is not what people approved")
        facts, outcomes = decision["facts"], [result["outcome"] for result in decision["results"]]
        if facts is not None and _sha256(_canonical(facts)) != decision["facts_digest"]:
            raise Fault(f"{where}: its facts do not have the digest that it states")
        if decision["allowed"]:
            bad = decision["denied_by"] or facts is None or "pass" not in outcomes
            if bad or set(outcomes) - {"pass", "not_applicable"}:
                raise Fault(f"{where} allows although a control denied or could not be evaluated")
        elif not decision["denied_by"]:
            raise Fault(f"{where} denies without naming a control")
        allowed, denied = allowed + bool(decision["allowed"]), denied + (not decision["allowed"])
    return f"{allowed} allowed, {denied} denied, each with its facts"


def _approvals(bundle: _Bundle) -> str:
    approved = [r for r in bundle.logged("approved") if r["fields"]["hash"] == bundle.approval]
    ran = [r["seq"] for kind in ("charged", "released") for r in bundle.logged(kind)]
    if not ran:
        return f"{len(approved)} approvals; nothing ran"
    people: dict[str, set[str]] = {}
    for role in ("steward", "privacy_officer"):
        mine = [r for r in approved if r["fields"]["role"] == role]
        if not mine:
            raise Fault(f"the study ran, but no {role} approved this hash")
        if mine[0]["seq"] > min(ran):
            raise Fault(f"the study ran (record {min(ran)}) before a {role} approved it (record {mine[0]['seq']})")
        people[role] = {r["fields"]["person"].casefold() for r in mine}
    if people["steward"] & people["privacy_officer"]:
        raise Fault("one person approved in both roles")
    return "a data steward and a privacy officer, different people, before anything ran"


def _releases(bundle: _Bundle) -> str:
    released, charges = bundle.logged("released"), bundle.entries("ledger.json")
    allowed = [d for d in bundle.entries("decisions.json") if d["allowed"] and d["study"] == bundle.approval]
    rounds = [r["fields"]["round"] for r in released]
    for record in released:
        number, at = record["fields"]["round"], record["seq"]
        if rounds.count(number) != 1:
            raise Fault(f"round {number} was released more than once")
        charged = [bundle.place("charged", c) for c in charges if c["round"] == number]
        if not charged:
            raise Fault(f"round {number} was released but never charged to the privacy budget")
        if min(charged) > at:
            raise Fault(f"round {number} was released before it was charged")
        runs = [bundle.place("decision", d) for d in allowed if d["action"] == "run_round"]
        # The decision that let this round run lies after the round before it and before its own charge.
        since = max([r["seq"] for r in released if r["seq"] < at], default=0)
        if not any(since < seq < min(charged) for seq in runs):
            raise Fault(f"round {number} was charged and run without a decision that allowed it")
        leaves = [bundle.place("decision", d) for d in allowed if d["action"] == "release" and _round(d) == number]
        if not any(seq < at for seq in leaves):
            raise Fault(f"round {number} was released without a decision that allowed it")
    return f"{len(released)} releases, each charged and allowed before"


def _round(decision: dict[str, Any]) -> int | None:
    release = (decision["facts"] or {}).get("release") or {}
    number: int | None = release.get("round")
    return number


def _agreements(bundle: _Bundle) -> str:
    """Independent of the rule engine: what allowed decisions rested on, checked against the registry by hand."""
    registry = bundle.json("agreements.json")
    known = {(a["terms"]["id"], a["version"]): a for a in registry["agreements"]}
    looked_at = 0
    for position, decision in enumerate(bundle.entries("decisions.json"), start=1):
        if not decision["allowed"]:
            continue
        facts = decision["facts"]
        day, hospital = facts["today"], facts["hospital"]
        for agreement in facts["agreements"]:
            kept = known.get((agreement["terms"]["id"], agreement["version"]))
            if kept is None or kept["terms"] != agreement["terms"]:
                raise Fault(
                    f"decision {position} rests on agreement {agreement['terms']['id']} version "
                    f"{agreement['version']}, which the registry does not hold like that"
                )
        in_force = [a for a in _newest(facts["agreements"], day) if _in_force(a, day, hospital)]
        for service in facts["terms"]["services"]:
            parties = [
                a["terms"]["parties"]
                for a in in_force
                if a["terms"]["kind"] == "baa" and service["kind"] in a["terms"]["services"]
            ]
            if service["organisation"] != hospital and not any(service["organisation"] in p for p in parties):
                raise Fault(
                    f"decision {position} allows on {day}, but no BAA in force covers {service['kind']} by "
                    f"{service['organisation']}"
                )
        irb, purpose = facts["terms"]["irb"], facts["terms"]["purpose"]
        if not any(
            a["terms"]["kind"] == "irb" and a["terms"]["reference"] == irb and purpose in a["terms"]["purposes"]
            for a in in_force
        ):
            raise Fault(f"decision {position} allows on {day}, but IRB approval {irb} is not in force for {purpose}")
        looked_at += 1
    return f"{looked_at} allowed decisions had a BAA for every service and an IRB approval in force on their day"


def _newest(agreements: list[dict[str, Any]], day: str) -> list[dict[str, Any]]:
    newest: dict[str, dict[str, Any]] = {}
    for agreement in sorted(agreements, key=lambda a: int(a["version"])):
        confirmed = agreement["confirmed_on"] is not None and agreement["confirmed_on"] <= day
        if confirmed and agreement["terms"]["effective"] <= day:
            newest[agreement["terms"]["id"]] = agreement
    return list(newest.values())


def _in_force(agreement: dict[str, Any], day: str, hospital: str) -> bool:
    terms = agreement["terms"]
    ended = agreement["terminated_on"] is not None and agreement["terminated_on"] <= day
    two_people = agreement["confirmed_by"].casefold() != agreement["entered_by"].casefold()
    inside: bool = terms["effective"] <= day <= terms["expires"]
    return inside and not ended and two_people and hospital in terms["parties"]


def _check_head(key: str, seq: int, hash: str, signature: str, what: str) -> None:
    signed = _canonical({"public_key": key, "seq": seq, "hash": hash})
    _check_signature(key, signature, "audit-checkpoint", signed, what)


def _check_signature(key: str, signature: str, domain: str, data: bytes, what: str) -> None:
    name = domain.encode()
    framed = b"datasites/1\0" + len(name).to_bytes(2, "big") + name + data
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), framed)
    except (InvalidSignature, ValueError):
        raise Fault(f"{what} is not signed by the hospital's key") from None


def _canonical(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--key", help="the hospital's public key or fingerprint, from another channel")
    parser.add_argument("--head", type=Path, action="append", default=[], help="a head that another party holds (JSON)")
    options = parser.parse_args(arguments)
    try:
        heads = [json.loads(path.read_bytes()) for path in options.head]
    except (OSError, ValueError) as error:
        print(f"--head: can't be read: {error}", file=sys.stderr)
        return 2
    checks = verify(options.bundle, options.key, heads)
    for check in checks:
        print(f"{'ok    ' if check.ok else 'FAILED'}  {check.name}: {check.found}")
    good = all(check.ok for check in checks)
    print("The bundle verifies." if good else "THE BUNDLE DOES NOT VERIFY.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
