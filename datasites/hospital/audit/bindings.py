"""What people entered, bound by the audit log: the contents of agreements, roster entries and people.

The log is what an evidence bundle rests on, and whoever gets one reads all of it. So a record of an entry holds a
commitment to its content, and not the content: HMAC-SHA256 under a salt that is drawn for this record alone. Salt and
content stay in the home's private folder; a bundle opens those that its study rests on (`openings`).

Claim: (hiding) the record shows somebody without its salt nothing of the content beyond what stands beside it in clear,
not even whether two records are of the same content; (binding) nobody can open a record with another content. Proof:
HMAC-SHA256 is a pseudorandom function, and each salt of 32 random bytes is a key that is used once; two contents under
one commitment, of whatever salts of that length, are a collision of SHA-256, since the framing is injective.
Assumptions: HMAC-SHA256 is a PRF, SHA-256 is collision-resistant, the operating system's generator is sound, and the
folder is private. Contents that bundles open are what people type, never of a row (I12), so that a record tells of no
patient (I16); of what people say of a table's findings, a record shows that they said something.
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
from datasites.study.canonical import canonical_json
from datasites.study.files import replace_durably
from datasites.study.roster import RosterEntry
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
    """Return the commitment to a content under a salt; 64 hex digits."""
    return hmac.digest(salt, canonical_json(dict(content)), "sha256").hex()


def openings(home: Home, commitments: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield {"salt": …, "content": …} of each of these commitments that this home can open."""
    for commitment in commitments:
        if not re.fullmatch("[0-9a-f]{64}", commitment):
            continue
        try:
            opening: dict[str, Any] = json.loads(_path(home, commitment).read_bytes())
        except FileNotFoundError:
            continue  # lost with a backup; the verifier says which record is not opened
        yield opening


def agreement_content(agreement: Agreement) -> dict[str, Any]:
    """Return what a record binds of a version of an agreement: who entered and confirmed which text, and when.

    Not its end, which a record of its own states in clear.
    """
    stands = agreement.model_dump(mode="json", exclude={"terminated_by", "terminated_on"})
    return {"kind": "agreement", "agreement": stands}


def party_content(entry: RosterEntry) -> dict[str, Any]:
    """Return what a record binds of a party that was pinned."""
    return {"kind": "party", "entry": entry.model_dump(mode="json")}


def person_content(name: str, role: str, email: str) -> dict[str, Any]:
    """Return what a record binds of a person who was entered."""
    return {"kind": "person", "name": name, "role": role, "email": email}


def proposal_content(kind: str, subject: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record binds of a proposal that waits for a second person."""
    return {"kind": "proposal", "what": kind, "subject": subject, "terms": dict(details)}


def finding_content(
    dataset: str, finding: str, about: str, share: float, *, holds: bool, reason: str
) -> dict[str, Any]:
    """Return what a record binds of a person's answer to a finding on a table.

    The share of the table is a figure of rows. It stays in this home: no bundle opens such a record.
    """
    answer = {"dataset": dataset, "finding": finding, "about": about, "share": share}
    return {"kind": "finding", **answer, "holds": holds, "reason": reason}


def is_bound(home: Home, commitment: str | None, content: Mapping[str, Any]) -> bool:
    """Say whether a record's commitment is to this content; True where a record of an older version has none.

    Only the salt of the opening is used, and the commitment computed again: an edited file of the folder opens
    nothing.
    """
    if commitment is None:
        return True
    try:
        salts = [bytes.fromhex(opening["salt"]) for opening in openings(home, [commitment])]
    except (ValueError, KeyError, TypeError):  # no opening any more, whoever wrote there
        return False
    return [commit(salt, content) for salt in salts if len(salt) == SALT_BYTES] == [commitment]


def _path(home: Home, commitment: str) -> Path:
    return home.bindings / f"{commitment}.json"
