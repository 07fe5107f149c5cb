"""One letter: its path in the store, its inner message, what a recipient accepts, and what can be wrong with it.

Pure; `mailroom` sends them.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import Field, JsonValue

from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError
from datasites.study.identity import EMAIL, Email, IdentityError
from datasites.transport.blobs import Pointer
from datasites.transport.store_errors import StoreError

INLINE_BYTES = 64 * 1024
ENVELOPE_OVERHEAD = 16 * 1024
STUDY = re.compile(r"[A-Za-z0-9_-]{1,80}")
KIND = re.compile(r"[a-z0-9_-]{1,40}")
MAX_ROUND = 10_000_000

Blob = bytes | bytearray | memoryview
Expected = tuple[str, str, int, str]
"""(sender, study, round, kind)."""


class Contents(Agreed):
    """The inner message. `inline` is the number of payload bytes that follow this header in the envelope."""

    format: Literal[1] = 1
    sender: Email
    recipient: Email
    study: Annotated[str, Field(pattern=f"^{STUDY.pattern}$")]
    round: Annotated[int, Field(ge=0, le=MAX_ROUND)]
    kind: Annotated[str, Field(pattern=f"^{KIND.pattern}$")]
    body: dict[str, JsonValue]
    inline: Annotated[int, Field(ge=0, le=INLINE_BYTES)] | None = None
    blob: Pointer | None = None


class Sealer(Protocol):
    """Signs and encrypts to one recipient; opens what one sender signed and encrypted to us."""

    def seal(self, to: str, data: bytes) -> bytes:
        """Seal contents in an envelope for `to`."""

    def open(self, sender: str, envelope: bytes) -> bytes:
        """Return the contents of an envelope that `sender` signed for us; raise `BadEnvelope` for anything else."""


class BadEnvelope(DatasitesError):
    """Not an envelope that the stated sender signed and encrypted to us."""


class Rejected(DatasitesError):
    """A letter in our mailbox was refused. It is in quarantine and no longer in the mailbox."""

    def __init__(self, sender: str, study: str, round: int, kind: str, reason: str) -> None:
        super().__init__(f"letter {kind} of round {round} from {sender} in study {study[:16]}: {reason}")
        self.sender, self.study, self.round, self.kind, self.reason = sender, study, round, kind, reason


class AlreadySent(DatasitesError):
    """We were asked to say, under a path, something else than what we have said there."""

    rule = "already-said"


class Undelivered(DatasitesError):
    """A letter to several was sent to all but these; `failures` holds what kept it from each, by recipient."""

    def __init__(self, failures: dict[str, IdentityError | StoreError]) -> None:
        super().__init__("; ".join(f"not sent to {email}: {error}" for email, error in failures.items()))
        self.failures = failures


@dataclass(frozen=True)
class Letter:
    """A letter that passed every check. `digest` (SHA-256 of the inner message) names it in logs and audits."""

    sender: str
    recipient: str
    study: str
    round: int
    kind: str
    body: dict[str, JsonValue]
    blob: bytes | bytearray | None
    digest: str


def read_blob(letter: Letter) -> bytes:
    """Return the letter's payload, empty when it has none."""
    return bytes(letter.blob or b"")


@dataclass(frozen=True)
class LetterLimits:
    """What a recipient accepts, in bytes; checked before anything is read or downloaded."""

    body: int = 1024 * 1024
    blob: int = 4 * 1024**3


def letter_folder(study: str, to: str) -> str:
    """Return the folder of a recipient's letters of one study, all rounds; it is short: finished ones are collected."""
    return f"mail/{study}/{to}"


def letter_name(sender: str, round: int, kind: str) -> str:
    """Return the name of a letter in its recipient's folder."""
    return f"{round:08d}.{kind}.{sender}"


def letter_key(sender: str, study: str, to: str, round: int, kind: str) -> str:
    """Return the store key of one letter; raise `ValueError` for a part that can't be one."""
    for name, value, pattern in (
        ("study", study, STUDY),
        ("kind", kind, KIND),
        ("from", sender, EMAIL),
        ("to", to, EMAIL),
    ):
        if not pattern.fullmatch(value):
            raise ValueError(f"letter: {name} {value[:200]!r} must match {pattern.pattern}")
    if not 0 <= round <= MAX_ROUND:
        raise ValueError(f"letter: round {round} is outside 0..{MAX_ROUND}")
    return f"{letter_folder(study, to)}/{letter_name(sender, round, kind)}"


def kind_of(key: str) -> str:
    """Return the kind of a letter by its key or name."""
    return key.rpartition("/")[2].split(".", 2)[1]


def pack(contents: Contents, inline: bytes | None) -> bytes:
    """Join the header of the inner message and the payload that travels with it."""
    header = contents.canonical()
    return struct.pack(">I", len(header)) + header + (inline or b"")


def unpack(inner: bytes) -> tuple[Contents, bytes | None]:
    """Undo `pack`; raise `ValueError` for anything that it doesn't make."""
    if len(inner) < 4:
        raise ValueError("cut off")
    (length,) = struct.unpack_from(">I", inner)
    contents = Contents.parse(inner[4 : 4 + length])
    rest = inner[4 + length :]
    if len(rest) != (contents.inline or 0):
        raise ValueError(f"{len(rest)} payload bytes where its header says {contents.inline or 0}")
    return contents, None if contents.inline is None else rest
