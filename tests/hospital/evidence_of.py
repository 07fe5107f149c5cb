"""A hospital's evidence for tests: its log as a study of three rounds leaves it, bundles of it, and changes to them."""

from __future__ import annotations

import datetime
import io
import itertools
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasites.hospital.audit.bindings import agreement_content, commit, party_content, person_content
from datasites.hospital.audit.log import AuditLog, Head, PublicHead
from datasites.hospital.evidence import verify_bundle
from datasites.hospital.evidence.bundle import DOMAIN, EvidenceContents, entry_digest
from datasites.privacy.events import Event
from datasites.privacy.plan import EvaluationPlan, PrivacyPlan
from datasites.privacy.renyi import filter_order
from datasites.study.audit_chain import genesis
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.identity import Identity
from datasites.study.roster import RosterEntry
from policies.engine import Engine
from policies.facts import Facts
from policies.registry import Registry
from tests.policies.facts_of import APPROVAL as ITS_APPROVAL
from tests.policies.facts_of import (
    HOSPITAL,
    HOSPITALS,
    NOW,
    OFFICER,
    RESEARCHER,
    STEWARD,
    STUDY,
    dua,
    facts_of,
    irb,
    registry,
)
from tests.policies.facts_of import baa as baa_terms

HOSTILE = "<script>alert(1)</script>\" onload='x'\u202e"
FROZEN = {
    "model.py": b"def build_model(n_features): ...\n",
    "study.toml": b'name = "heart"\n',
    "features.toml": b"[[features]]\n",
}
STUDY_HASH = sha256_hex(canonical_json({name: sha256_hex(data) for name, data in FROZEN.items()}))
ROUNDS, POPULATION, DELTA = 3, "heart", 1e-5
PLAN = PrivacyPlan(clip=1.0, noise_multiplier=4.0, sampling_rate=0.1, rounds=ROUNDS, steps_per_round=10)
EVALUATION = EvaluationPlan(edges=(0.0, 0.5, 1.0), final_multiplier=5.0)
TERMS = canonical_json(
    {
        "study_hash": STUDY_HASH,
        "plan": PLAN.model_dump(mode="json"),
        "evaluation_plan": EVALUATION.model_dump(mode="json"),
        "population": POPULATION,
        "both_sides": False,
        "data_version": "ef" * 32,
    }
)
APPROVAL = sha256_hex(TERMS)
AGREEMENTS = registry(baa_terms(), irb(), dua())


def priced(**events: Event) -> dict[str, list[dict[str, Any]]]:
    """Charges by partition, as the ledger stores them."""
    return {side: [charge.model_dump(mode="json") for charge in event] for side, event in events.items()}


ROUND = priced(training=PLAN.round_event())
WHOLE = priced(training=PLAN.event(), held_out=EVALUATION.total_event())


@dataclass
class Hospital:
    """One hospital that ran a study of three rounds: its log, and what its database would hold."""

    folder: Path
    identity: Identity = field(default_factory=lambda: Identity.generate("datasite@general.example"))
    decisions: list[dict[str, Any]] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    heads: list[PublicHead] = field(default_factory=list)
    #: The same positions as earlier versions sent them.
    numbered: list[Head] = field(default_factory=list)
    openings: list[dict[str, Any]] = field(default_factory=list)
    registry: Registry = AGREEMENTS
    #: Of the population, as it was promised when its budget was opened.
    cap: float = 2.9

    def __post_init__(self) -> None:
        ticks = itertools.count()

        def clock() -> datetime.datetime:
            return NOW + datetime.timedelta(seconds=next(ticks))

        self.log = AuditLog(self.folder / "audit.jsonl", self.identity, clock)
        self.engine = Engine(clock=clock)

    def bound(self, content: Mapping[str, Any]) -> dict[str, str]:
        """The field that binds a content; it can be opened from now on."""
        salt = sha256_hex(b"salt %d" % len(self.openings))
        self.openings.append({"salt": salt, "content": dict(content)})
        return {"commitment": commit(bytes.fromhex(salt), content)}

    def enter(self) -> None:
        """Open the budget, and enter people, parties and agreements."""
        order = filter_order(self.cap, DELTA)
        promise: dict[str, Any] = {
            "epsilon": self.cap,
            "delta": DELTA,
            "order": order,
            "fraction": 0.5,
            "split": "ab" * 32,
        }
        self.log.append("budget_opened", population=POPULATION, **promise)
        self.add_person(STEWARD, "steward")
        self.add_person(OFFICER, "privacy_officer")
        for email in (RESEARCHER, *HOSPITALS):
            self.pin(email)
        for agreement in self.registry.agreements:
            self.agree(agreement.terms.id, agreement.version)

    def add_person(self, name: str, role: str) -> None:
        self.log.append(
            "person_added", person=name, role=role, email=name, **self.bound(person_content(name, role, name))
        )

    def pin(self, email: str) -> None:
        own = RosterEntry(
            organisation="Centre" if email == RESEARCHER else email,
            email=email,
            role="researcher" if email == RESEARCHER else "hospital",
            public_key=sha256_hex(email.encode()),
        )
        self.log.append(
            "pinned", email=email, fingerprint=own.fingerprint, person=STEWARD, **self.bound(party_content(own))
        )

    def agree(self, id: str, version: int) -> None:
        """Log both steps of a version of the registry."""
        (agreement,) = (a for a in self.registry.agreements if (a.terms.id, a.version) == (id, version))
        entered = agreement.model_copy(update={"confirmed_by": None, "confirmed_on": None})
        for kind, state, person in (
            ("agreement_entered", entered, agreement.entered_by),
            ("agreement_confirmed", agreement, agreement.confirmed_by),
        ):
            fields = {"agreement": id, "version": version, "person": person}
            self.log.append(kind, **fields, **self.bound(agreement_content(state)))  # type: ignore[arg-type]

    def decide(self, action: Any, **changes: Any) -> None:
        raw = facts_of(action, **changes).canonical().replace(ITS_APPROVAL.encode(), APPROVAL.encode())
        raw = raw.replace(STUDY.encode(), STUDY_HASH.encode())
        decision = self.engine.decide(Facts.parse(raw))
        self.decisions.append(decision.model_dump(mode="json"))
        self.log.append("decision", study=STUDY_HASH, action=action, digest=decision.digest(), allowed=decision.allowed)

    def approve(self, person: str, role: str) -> None:
        self.log.append("approved", study=STUDY_HASH, hash=APPROVAL, person=person, role=role, reason=HOSTILE)

    def reserve(self, charges: Mapping[str, Any] = WHOLE, **fields: Any) -> None:
        text = canonical_json(charges).decode()
        caps = {"study_epsilon": 2.0, "study_delta": DELTA}
        record = {"study": STUDY_HASH, "population": POPULATION, "charges": text, "local_charges": text}
        self.log.append("reserved", **(record | caps | fields))

    def charge(self, number: int, charges: Mapping[str, Any] = ROUND, **fields: Any) -> None:
        entry = {"round": number, "population": POPULATION, "charges": charges, "local_charges": charges}
        self.ledger.append(entry)
        text = canonical_json(charges).decode()
        record: dict[str, Any] = {
            "study": STUDY_HASH,
            "population": POPULATION,
            "round": number,
            "digest": entry_digest(entry),
        }
        self.log.append("charged", **(record | {"charges": text, "local_charges": text} | fields))

    def release(self, number: int) -> None:
        vector = sha256_hex(b"vector %d" % number)
        self.numbered.append(self.log.append("released", study=STUDY_HASH, round=number, sha256=vector))
        self.heads.append(self.log.public_head())

    def a_round(self, number: int) -> None:
        """One round with its decisions, and before it a release of another study."""
        self.log.append("released", study="99" * 32, round=number, sha256="00" * 32)
        self.decide("run_round")
        self.charge(number)
        self.decide("release", release__round=number)
        self.release(number)

    def run(self, rounds: int = ROUNDS) -> None:
        self.enter()
        self.decide("intake")
        self.decide("approve", state="revoked")
        self.decide("approve")
        self.approve(STEWARD, "steward")
        self.reserve()
        self.approve(OFFICER, "privacy_officer")
        for number in range(1, rounds + 1):
            self.a_round(number)
        self.log.checkpoint()

    @property
    def contents(self) -> EvidenceContents:
        return EvidenceContents(
            identity=self.identity,
            hospital=HOSPITAL,
            title=f"Heart disease {HOSTILE}",
            study_hash=STUDY_HASH,
            approval_terms=TERMS,
            frozen=FROZEN,
            findings=[],
            decisions=self.decisions,
            ledger=self.ledger,
            registry=self.registry.canonical(),
            openings=self.openings,
            audit=self.log.path,
            heads=[{"holder": "researcher@university.example", "head": h.model_dump()} for h in self.heads],
            created=NOW,
        )


def unpack(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, files: Mapping[str, bytes]) -> None:
    """The archive that the builder would write of these files."""
    packed = io.BytesIO()
    verify_bundle.write_archive(packed, files)
    path.write_bytes(packed.getvalue())


def pack_like_an_older_version(path: Path, files: Mapping[str, bytes]) -> None:
    """As versions before format 3 wrote their archives."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), files[name], zipfile.ZIP_DEFLATED)


def resign(files: dict[str, bytes], identity: Identity, **changes: Any) -> dict[str, bytes]:
    """What the hospital itself can do to its bundle: list the changed files and sign again."""
    index = json.loads(files["index.json"])
    index["files"] = {n: sha256_hex(d) for n, d in files.items() if n not in ("index.json", "index.sig")}
    index |= {"public_key": identity.public_key, "approval": sha256_hex(files["terms.json"]), **changes}
    signed = canonical_json(index)
    return files | {"index.json": signed, "index.sig": identity.sign(DOMAIN, signed).hex().encode() + b"\n"}


def rechain(files: dict[str, bytes], identity: Identity, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Rewrite the whole audit log with the hospital's own key."""
    bodies = [json.loads(line) for line in files["audit.jsonl"].splitlines()]
    change(bodies)
    previous, out = genesis(identity.public_key), bytearray()
    for seq, body in enumerate(bodies, start=1):
        body |= {"seq": seq, "previous": previous}
        body.pop("hash", None)
        if body["kind"] == "checkpoint":
            signature = Head.sign(identity, seq - 1, previous).signature
            body["fields"] = {"covers": seq - 1, "hash": previous, "signature": signature}
        previous = sha256_hex(canonical_json(body))
        out += canonical_json({**body, "hash": previous}) + b"\n"
    files["audit.jsonl"] = bytes(out)
    files["audit.head.json"] = Head.sign(identity, len(bodies), previous).canonical()
    files["heads.json"] = b"[]"


def edited(files: dict[str, bytes], name: str, change: Callable[[Any], Any]) -> None:
    value = json.loads(files[name])
    change(value)
    files[name] = canonical_json(value)


def failed(path: Path, identity: Identity, heads: Sequence[Head | PublicHead] | None = None) -> dict[str, str]:
    """Checks that fail, and why."""
    checks = verify_bundle.verify(path, identity.public_key, [head.model_dump() for head in heads or []])
    return {check.name: check.found for check in checks if not check.ok and "not checked" not in check.found}
