"""The evidence bundle: everything about one study at this hospital, in one signed file that others can verify.

`build_bundle` takes plain values and bytes, so that it needs no database; it reads nothing but the audit log that it
is given. A bundle holds no rows of patients, no updates and no models. It does hold the whole audit log, since a
chain can't be shown in part: whoever gets it also reads what this datasite logged about other studies. Of agreements,
people and parties the log holds commitments only (`bindings`); the bundle opens those that the study rests on.

Equal contents make one file, byte for byte, on any machine: files are stored and not packed, in the order of their
names, with one fixed time. `verify_bundle.py` checks a bundle, says what its checks prove and what not, and refuses
any other bytes. What ties the files together is the audit log, which must hold for the study:

- `decision`: study, digest = `Decision.digest()`;
- `approved`: study, hash (the approval hash), person, role;
- `reserved`: study, population, charges, local_charges, study_epsilon, study_delta;
- `charged`: study, population, round, charges, local_charges, digest = `entry_digest` of the round's entry in `ledger`;
- `released`: study, round, sha256 of the masked vector;
- `agreement_entered` and `_confirmed`, `person_added`, `pinned`, `initialised`: a commitment to what was entered;
- `budget_opened` and what follows on it: the population's caps and Renyi order.
"""

from __future__ import annotations

import datetime
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasites.hospital.evidence.verify_bundle import Check, Fault, verify, write_archive
from datasites.study.audit_chain import Head, LogRecord, read_record
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.errors import DatasitesError
from datasites.study.files import move_durably, on_disk
from datasites.study.identity import Identity, fingerprint
from datasites.study.visible import visible

DOMAIN = "evidence-index"
_VERIFIER = Path(__file__).with_name("verify_bundle.py")
FORMAT = 3


class EvidenceError(DatasitesError, ValueError):
    """The contents are not what a bundle needs; names the part and the remedy."""


@dataclass(frozen=True)
class EvidenceContents:
    """What goes into a bundle.

    study: study hash; title: for people. approval_terms: canonical bytes of what people approved; their SHA-256 is the
    approval hash. frozen: names and bytes of the frozen copy. findings: of the verifier. decisions: canonical JSON
    values of all policy decisions about the study, as stored. ledger: one entry for each charged round,
    {"round": …, "charges": …, "local_charges": …, anything else}; its `entry_digest` and its charges stand in the
    audit log. registry: canonical bytes of the registry, or of what of it bears on the study. openings: what opens
    the log's commitments to agreements, people and parties of the study, {"salt": …, "content": …}. audit: path of
    the audit log; take a checkpoint first. heads: {"holder": e-mail, "head": head} of this log, as they were sent.
    created: aware time of the export.
    """

    identity: Identity
    hospital: str
    title: str
    study_hash: str
    approval_terms: bytes
    frozen: Mapping[str, bytes]
    findings: Sequence[Mapping[str, Any]]
    decisions: Sequence[Mapping[str, Any]]
    ledger: Sequence[Mapping[str, Any]]
    registry: bytes
    openings: Sequence[Mapping[str, Any]]
    audit: Path
    heads: Sequence[Mapping[str, Any]]
    created: datetime.datetime


def entry_digest(entry: Mapping[str, Any]) -> str:
    """Return SHA-256 over the canonical JSON of one entry, as the audit log states it."""
    return sha256_hex(canonical_json(dict(entry)))


def build_bundle(out: Path, contents: EvidenceContents) -> tuple[Check, ...]:
    """Write the bundle to `out` (atomically, mode 0600) and return what its own verifier says of it.

    A hospital whose records contradict each other gets its bundle all the same, with the failed checks named.
    Raises `EvidenceError` when the contents can't be put into a bundle at all.
    """
    files = _files(contents)
    index = canonical_json(
        {
            "format": FORMAT,
            "study": contents.study_hash,
            "approval": sha256_hex(contents.approval_terms),
            "hospital": contents.hospital,
            "public_key": contents.identity.public_key,
            "created": contents.created.astimezone(datetime.UTC).isoformat(timespec="seconds"),
            "files": {name: sha256_hex(data) for name, data in files.items()},
        }
    )
    files["index.json"] = index
    files["index.sig"] = contents.identity.sign(DOMAIN, index).hex().encode() + b"\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    try:
        with on_disk(temporary) as stream:
            write_archive(stream, files)
    except Fault as fault:
        temporary.unlink()
        raise EvidenceError(
            f"evidence: {fault}; hand over the log itself (`datasites audit export`) and the files of the case"
        ) from fault
    move_durably(temporary, out)
    return tuple(verify(out, contents.identity.public_key))


def _files(contents: EvidenceContents) -> dict[str, bytes]:
    if contents.created.tzinfo is None:
        raise EvidenceError("evidence: `created` has no time zone; pass an aware time")
    for name in contents.frozen:
        if "/" in name or name.startswith("."):
            raise EvidenceError(f"evidence: {name!r} is no name of a frozen file")
    try:
        # Up to the last whole record: the datasite may be writing the next one just now.
        audit = contents.audit.read_bytes()
        audit = audit[: audit.rfind(b"\n") + 1]
        log = [read_record(line, seq) for seq, line in enumerate(audit.splitlines(keepends=True), start=1)]
    except (OSError, ValueError) as error:
        raise EvidenceError(f"evidence: the audit log can't be read: {error}") from error
    if not log:
        raise EvidenceError(f"evidence: {contents.audit} holds no records; give the datasite's audit log")
    head = Head.sign(contents.identity, log[-1].seq, log[-1].hash)
    files = {f"frozen/{name}": data for name, data in contents.frozen.items()}
    files |= {
        "terms.json": contents.approval_terms,
        "findings.json": _json(contents.findings),
        "decisions.json": _json(contents.decisions),
        "ledger.json": _json(contents.ledger),
        "agreements.json": contents.registry,
        "audit.jsonl": audit,
        "audit.head.json": head.canonical(),
        "heads.json": _json(contents.heads),
        "openings.json": _json(contents.openings),
        "summary.html": _summary(contents, log).encode(),
        "verify_bundle.py": _VERIFIER.read_bytes(),
    }
    return files


def _json(entries: Sequence[Mapping[str, Any]]) -> bytes:
    return canonical_json([dict(entry) for entry in entries])


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 0.5rem 0 1.5rem; }
th, td { border: 1px solid #767676; padding: 0.3rem 0.5rem; text-align: left; vertical-align: top; }
th { background: #eee; }
code { overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #eee; } th { background: #333; } }
@media print { body { margin: 0; max-width: none; } }
"""


def _summary(contents: EvidenceContents, log: Sequence[LogRecord]) -> str:
    """Return a page for people, with no script, no link to anywhere, and everything from outside escaped."""
    mine = [record for record in log if record.fields.get("study") == contents.study_hash]
    approved = [
        (r.time, r.fields.get("role"), r.fields.get("person"), str(r.fields.get("hash"))[:12], r.fields.get("reason"))
        for r in mine
        if r.kind == "approved"
    ]
    released = [(r.seq, r.time, r.fields.get("round"), r.fields.get("sha256")) for r in mine if r.kind == "released"]
    decisions = [
        (
            d.get("time"),
            d.get("action"),
            "allowed" if d.get("allowed") else "denied",
            " ".join(f"{x['control']}: {x['reason']}" for x in d.get("denied_by", ())),
        )
        for d in contents.decisions
    ]
    registry = json.loads(contents.registry)
    agreements = [
        (
            a["terms"]["id"],
            a["version"],
            a["terms"]["kind"],
            ", ".join(a["terms"]["parties"]),
            f"{a['terms']['effective']} to {a['terms']['expires']}",
            f"entered by {a['entered_by']}, "
            + (f"confirmed by {a['confirmed_by']} on {a['confirmed_on']}" if a["confirmed_by"] else "not confirmed")
            + (f", terminated on {a['terminated_on']}" if a["terminated_on"] else ""),
        )
        for a in registry["agreements"]
    ]
    ledger = [(e.get("round"), json.dumps({k: v for k, v in e.items() if k != "round"})) for e in contents.ledger]
    facts = [
        ("Hospital", contents.hospital),
        ("Study hash", contents.study_hash),
        ("Approval hash", sha256_hex(contents.approval_terms)),
        ("Exported", contents.created.isoformat(timespec="seconds")),
        ("Key fingerprint", fingerprint(contents.identity.public_key)),
        ("Audit log", f"{len(log)} records, the last has hash {log[-1].hash}"),
        ("Verifier's findings on the code", len(contents.findings)),
    ]
    parts = [
        _table("The study", ("", ""), facts),
        _table("Approvals", ("time (UTC)", "role", "person", "of hash", "reason"), approved),
        _table("Policy decisions", ("time (UTC)", "before", "outcome", "denied by"), decisions),
        _table("Agreements", ("id", "version", "kind", "parties", "in force", "people"), agreements),
        _table("Charges to the privacy budget", ("round", "charge"), ledger),
        _table("What left", ("audit record", "time (UTC)", "round", "SHA-256 of the masked vector"), released),
        _table(
            "Heads of this log that others hold",
            ("holder", "after releases"),
            [(h["holder"], h["head"]["releases"]) for h in contents.heads],
        ),
    ]
    title = html.escape(visible(f"Evidence: {contents.title}"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        "<p>This page is for reading. What counts are the files beside it: run <code>python verify_bundle.py "
        "BUNDLE.zip --key FINGERPRINT --head HEAD.json</code> with a fingerprint that you got from the hospital, a "
        "head that you got from another party, and a copy of the verifier from a source that you trust.</p>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _table(title: str, headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    shown = [["" if cell is None else html.escape(visible(str(cell))) for cell in row] for row in rows]
    body = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in shown]
    head = "<tr>" + "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in headings) + "</tr>"
    if not body:
        return f"<h2>{html.escape(title)}</h2><p>None.</p>"
    return f"<h2>{html.escape(title)}</h2><table>{head if any(headings) else ''}{''.join(body)}</table>"
