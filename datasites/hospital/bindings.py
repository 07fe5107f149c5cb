"""What people entered, bound by the audit log: the contents of agreements, roster entries and people.

The log is what an evidence bundle rests on, and whoever gets one reads all of it. So a record of an entry holds a
commitment to its content, and not the content: HMAC-SHA256 under a salt that is drawn for this record alone. Salt and
content stay in the home's private folder; a bundle opens those that its study rests on (`openings`).

Claim: (hiding) the record shows somebody without its salt nothing of the content beyond what stands beside it in clear,
not even whether two records are of the same content; (binding) nobody can open a record with another content. Proof:
HMAC-SHA256 is a pseudorandom function, and each salt of 32 random bytes is a key that is used once; two contents under
one commitment, of whatever salts of that length, are a collision of SHA-256, since the framing is injective.
Assumptions: HMAC-SHA256 is a PRF, SHA-256 is collision-resistant, the operating system's generator is sound, and the
folder is private. Contents are what people type, never of a row (I12), so that a record tells of no patient (I16).
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datasites.hospital.config import Home
from datasites.study.audit_chain import Record, records
from datasites.study.canonical import canonical_json
from datasites.study.durable import replace_durably
from datasites.study.identity import RosterEntry
from policies.agreements import Agreement

SALT_BYTES = 32
#: Of the records that hold a commitment: the field's name.
FIELD = "commitment"


def bind(home: Home, content: Mapping[str, Any]) -> str:
    """Keep `content` with a fresh salt, durably, and return its commitment for the record that is about to be logged.

    Killed in between, a file is left that nothing names.
    """
    salt = secrets.token_bytes(SALT_BYTES)
    commitment = commit(salt, content)
    replace_durably(_path(home, commitment), canonical_json({"salt": salt.hex(), "content": dict(content)}))
    return commitment


def commit(salt: bytes, content: Mapping[str, Any]) -> str:
    """The commitment to a content under a salt; 64 hex digits."""
    return hmac.digest(salt, canonical_json(dict(content)), "sha256").hex()


def openings(home: Home, commitments: Iterable[str]) -> Iterator[dict[str, Any]]:
    """{"salt": …, "content": …} of each of these commitments that this home can open."""
    for commitment in commitments:
        if not re.fullmatch("[0-9a-f]{64}", commitment):
            continue
        try:
            opening: dict[str, Any] = json.loads(_path(home, commitment).read_bytes())
        except FileNotFoundError:
            continue  # lost with a backup; the verifier says which record is not opened
        yield opening


def agreement_content(agreement: Agreement) -> dict[str, Any]:
    """What a record binds of a version of an agreement: who entered and confirmed which words, and when.

    Not its end: that stands in the log in clear, and one in the registry alone only narrows.
    """
    stands = agreement.model_dump(mode="json", exclude={"terminated_by", "terminated_on"})
    return {"kind": "agreement", "agreement": stands}


def party_content(entry: RosterEntry) -> dict[str, Any]:
    """What a record binds of a party that was pinned."""
    return {"kind": "party", "entry": entry.model_dump(mode="json")}


def person_content(name: str, role: str, email: str) -> dict[str, Any]:
    """What a record binds of a person who was entered."""
    return {"kind": "person", "name": name, "role": role, "email": email}


def changed_by_hand(home: Home, agreements: Iterable[Agreement]) -> list[str]:
    """Which of these confirmed versions are not what the log says last of them, in words.

    Changed, replaced or ended: an older copy of the registry brings none back. Nothing for what the log never bound.
    """
    bound: dict[tuple[str, int], tuple[int, str | None]] = {}
    begun: dict[tuple[str, int], int] = {}
    confirmed: dict[str, dict[int, int]] = {}
    ended: dict[str, int] = {}
    for record in records(home.audit):
        if record.kind in ("agreement_entered", "agreement_confirmed"):
            id, version = str(record.fields["agreement"]), int(record.fields["version"])
            bound[id, version] = (record.seq, record.fields.get(FIELD))
            begun.setdefault((id, version), record.seq)
            if record.kind == "agreement_confirmed":
                confirmed.setdefault(id, {})[version] = record.seq
        elif record.kind == "agreement_terminated":
            ended[str(record.fields["agreement"])] = record.seq
    agreements = list(agreements)
    held = {(agreement.terms.id, agreement.version) for agreement in agreements}
    found = []
    for agreement in agreements:
        if agreement.confirmed_on is None or agreement.terminated_on is not None:
            continue
        id, version = agreement.terms.id, agreement.version
        words = f"{id} version {version}"
        seq, commitment = bound.get((id, version), (0, None))
        if not seq:
            found.append(f"{words} was never entered, as far as the log knows")
        elif commitment is not None:
            opened = [opening["content"] for opening in openings(home, [commitment])]
            if opened != [agreement_content(agreement)]:
                found.append(f"{words} is not what record {seq} of the log binds")
        for newer, at in sorted(confirmed.get(id, {}).items()):
            if newer > version and (id, newer) not in held:
                found.append(f"{words} was replaced by version {newer}, which record {at} of the log confirms")
        if seq and ended.get(id, 0) > begun[id, version]:
            found.append(f"{words} was ended by record {ended[id]} of the log")
    return found


def pinned_by_hand(home: Home, entries: Iterable[RosterEntry]) -> list[str]:
    """Which of these parties are not whom the log says was pinned last, in words; so also those that were revoked."""
    pinned: dict[str, Record] = {}
    revoked: dict[str, int] = {}
    for record in records(home.audit):
        if record.kind in ("initialised", "pinned"):
            pinned[str(record.fields["email"])] = record
        elif record.kind == "unpinned":
            revoked[str(record.fields["email"])] = record.seq
    found = []
    for entry in entries:
        pin = pinned.get(entry.email)
        if pin is None:
            found.append(f"{entry.email} was never pinned, as far as the log knows")
        elif revoked.get(entry.email, 0) > pin.seq:
            found.append(f"{entry.email} was revoked by record {revoked[entry.email]} of the log")
        elif pin.fields.get("fingerprint") != entry.fingerprint or not _is_bound(home, pin, party_content(entry)):
            found.append(f"{entry.email} is not the entry that record {pin.seq} of the log pins")
    return found


def entered_by_hand(home: Home, people: Iterable[tuple[str, str, str]]) -> list[str]:
    """Which of these people (name, role, e-mail) are not as the log entered them last, or were shut out, in words."""
    entered: dict[str, Record] = {}
    ended: dict[str, int] = {}
    for record in records(home.audit):
        if record.kind == "person_added":
            entered[str(record.fields["person"])] = record
        elif record.kind == "person_deactivated":
            ended[str(record.fields["person"])] = record.seq
    found = []
    for name, role, email in people:
        added = entered.get(name)
        if added is None:
            found.append(f"{name} was never entered, as far as the log knows")
        elif ended.get(name, 0) > added.seq:
            found.append(f"{name} was shut out by record {ended[name]} of the log")
        elif not _is_bound(home, added, person_content(name, role, email)):
            found.append(f"{name} is not the person that record {added.seq} of the log enters")
    return found


def _is_bound(home: Home, record: Record, content: Mapping[str, Any]) -> bool:
    """Whether a record binds this content; True for one of a version that bound none."""
    commitment = record.fields.get(FIELD)
    return commitment is None or [opening["content"] for opening in openings(home, [commitment])] == [content]


def _path(home: Home, commitment: str) -> Path:
    return home.bindings / f"{commitment}.json"
