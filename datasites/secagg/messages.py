"""The typed, signed messages of the secure sum.

Each message names its kind, sender, and epoch terms; those for one party name the recipient, those of a round the
round and the manifest's hash (I10). The signature is by the sender's institution key over the canonical bytes of
everything else, in a domain of its own per kind. `check_signature` must be called with the *pinned* key; nothing
here knows a key. A masked vector's payload travels beside its signed header, which holds the payload's hash.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import struct
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError

from datasites.secagg.errors import BadMessage
from datasites.secagg.ring import Ring
from datasites.study.canonical import Agreed, canonical_json, sha256_hex
from datasites.study.errors import describe_validation
from datasites.study.identity import BadSignature, Email, Identity, verify_signature
from datasites.study.manifest import RoundManifest, Sha256


def _from_base64(value: object) -> object:
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError("not base64") from error
    return value


Octets = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    PlainSerializer(lambda value: base64.b64encode(value).decode(), return_type=str, when_used="json"),
]
Round = Annotated[int, Field(ge=1)]
Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

_SIZE = struct.Struct(">I")


class Message(Agreed):
    """What all messages share. `context` is the digest of the epoch's `EpochTerms`."""

    kind: ClassVar[str]

    sender: Email
    context: Sha256
    signature: Signature

    @classmethod
    def seal(cls, identity: Identity, **fields: object) -> Self:
        """Make and sign a message from `identity`."""
        draft = cls.model_validate({**fields, "sender": identity.email, "signature": "0" * 128})
        return draft.model_copy(update={"signature": identity.sign(cls._domain(), draft.signed_part()).hex()})

    @classmethod
    def _domain(cls) -> str:
        return f"secagg/{cls.kind}"

    def signed_part(self) -> bytes:
        """Return the canonical bytes of everything but the signature."""
        return canonical_json(self.model_dump(mode="json", exclude={"signature"}))

    def content_digest(self) -> str:
        """Return the SHA-256 of `signed_part()`: one hash for one content, however often it is signed."""
        return sha256_hex(self.signed_part())

    def check_signature(self, public_key: str) -> None:
        """Raise `BadMessage` unless the pinned `public_key` (hex) signed this message."""
        try:
            verify_signature(public_key, bytes.fromhex(self.signature), self._domain(), self.signed_part())
        except BadSignature as error:
            raise BadMessage(f"{self.kind} from {self.sender}: {error}") from error

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, as sent."""
        return self.canonical()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what was sent; raises `BadMessage` on anything but canonical bytes of this kind."""
        try:
            return cls.parse(data)
        except ValidationError as error:
            # Without the input: a message may hold shares.
            raise BadMessage(f"{cls.kind}: {describe_validation(error, quote=False)}") from None
        except ValueError:
            raise BadMessage(f"{cls.kind}: bytes are not in canonical form; send `to_bytes()` of the sender") from None


class Certificate(Message):
    """S1, hospital to aggregator: this hospital's keys for one epoch, signed by its institution key.

    hpke_key: X25519 public key (32 bytes) under which peers encrypt shares. round_keys: one X25519 public key per round
    (32 bytes each, in order). seed_commitments: one SHA-256 per round of the self-mask seed.
    """

    kind: ClassVar[str] = "certificate"

    study: Sha256
    epoch: Annotated[int, Field(ge=0)]
    expires: datetime.date
    hpke_key: Octets
    round_keys: Octets
    seed_commitments: Octets


class Enrolment(Message):
    """Aggregator to all: the certificates of those who take part in the epoch (t or more), sorted by sender.

    A hospital whose certificate didn't come is left out. The aggregator only relays: every hospital checks each
    certificate against its own pinned roster.
    """

    kind: ClassVar[str] = "enrolment"

    certificates: tuple[Certificate, ...]

    def binding(self) -> str:
        """Return the digest of terms and certificates: enters every key, share and commitment of the epoch."""
        return sha256_hex(
            canonical_json([self.context, [certificate.content_digest() for certificate in self.certificates]])
        )


class ShareBundle(Message):
    """S2, hospital to peer: the peer's shares of all round keys and self-mask seeds, HPKE-encrypted to it.

    columns: for each holder in order, the SHA-256 (32 bytes) of that holder's share commitments over all rounds. The
    holder checks its own column; all holders and the aggregator compare the whole.
    """

    kind: ClassVar[str] = "share-bundle"

    recipient: Email
    enrolment: Sha256
    columns: Octets
    sealed: Octets = Field(repr=False)


class HeldCommitments(Agreed):
    """The commitments that a holder got from one owner, as one hash."""

    owner: Email
    columns: Sha256


class Ready(Message):
    """Hospital to aggregator: whose shares it holds, and the commitments to its own.

    commitments: per holder in order, per round, for key and seed: SHA-256 of the share (32 bytes each). seen: sorted
    by owner, without itself. The commitments are nearly all of it and grow with hospitals times holders, so they are
    sent as they are, after the rest, and signed by their SHA-256.
    """

    kind: ClassVar[str] = "ready"

    recipient: Email
    enrolment: Sha256
    commitments: bytes = Field(default=b"", exclude=True, repr=False)
    seen: tuple[HeldCommitments, ...]

    def signed_part(self) -> bytes:
        """Canonical bytes of everything but the signature, with the SHA-256 of the commitments in their place."""
        rest = self.model_dump(mode="json", exclude={"signature"})
        return canonical_json({**rest, "commitments": sha256_hex(self.commitments)})

    def to_bytes(self) -> bytes:
        """Return the size of the canonical bytes, these without the commitments, and the commitments."""
        rest = self.canonical()
        return b"".join((_SIZE.pack(len(rest)), rest, self.commitments))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what was sent; raises `BadMessage` where all but the commitments is not canonical."""
        if len(data) < _SIZE.size:
            raise BadMessage(f"{cls.kind}: cut off")
        start = _SIZE.size + _SIZE.unpack_from(data)[0]
        return super().from_bytes(data[_SIZE.size : start]).model_copy(update={"commitments": data[start:]})


class JournalMark(Message):
    """How far the sender's journal of a study had come when it released something.

    Whoever receives a release keeps the mark and shows it to the sender at the next round: a journal that has been set
    back can then see what it has forgotten.
    """

    kind: ClassVar[str] = "journal-mark"

    study: Sha256
    sequence: Annotated[int, Field(ge=1)]
    head: Sha256


class SignedManifest(Message):
    """Aggregator to all participants: the round's manifest, and the last journal marks it has from each."""

    kind: ClassVar[str] = "manifest"

    manifest: RoundManifest
    marks: tuple[JournalMark, ...] = ()


class MaskedHeader(Message):
    """W1, hospital to aggregator: what identifies one masked vector (payload: its SHA-256, dimension x 4 bytes)."""

    kind: ClassVar[str] = "masked-vector"

    recipient: Email
    round: Round
    manifest: Sha256
    dimension: Annotated[int, Field(ge=1)]
    payload: Sha256
    mark: JournalMark


@dataclass(frozen=True)
class MaskedVector:
    """A masked vector: the signed header, and the payload (little-endian uint32) which travels as a blob."""

    header: MaskedHeader
    payload: memoryview | bytes = field(repr=False)

    def to_bytes(self) -> bytes:
        """Return the canonical bytes of the header; send `payload` beside it."""
        return self.header.to_bytes()

    @classmethod
    def from_bytes(cls, header: bytes, payload: memoryview | bytes) -> MaskedVector:
        """Read a header and its payload; raises `BadMessage` when they don't belong together."""
        masked = cls(MaskedHeader.from_bytes(header), payload)
        masked.check_payload()
        return masked

    def check_payload(self) -> None:
        """Raise `BadMessage` unless the payload has the size and hash that the header states."""
        size = memoryview(self.payload).nbytes
        if size != 4 * self.header.dimension or sha256_hex(self.payload) != self.header.payload:
            raise BadMessage(
                f"masked-vector from {self.header.sender}: the payload ({size} bytes) is not the one its header signs; "
                "fetch it again"
            )

    def vector(self) -> Ring:
        """Return the payload as uint32 of shape (dimension,), without a copy."""
        return np.frombuffer(self.payload, np.dtype("<u4"))


class SurvivorList(Message):
    """W2, aggregator to all survivors: the signed headers of every vector that is in the sum, sorted by sender."""

    kind: ClassVar[str] = "survivors"

    round: Round
    manifest: Sha256
    headers: tuple[MaskedHeader, ...]


class SurvivorAck(Message):
    """Consistency wave, hospital to aggregator: "this is the only list I answer in this round"."""

    kind: ClassVar[str] = "survivor-ack"

    recipient: Email
    round: Round
    manifest: Sha256
    survivors: Sha256


class AckList(Message):
    """Consistency wave, aggregator to all survivors: acknowledgements of one list by t or more, sorted by sender."""

    kind: ClassVar[str] = "survivor-acks"

    round: Round
    manifest: Sha256
    acks: tuple[SurvivorAck, ...]


class UnmaskShares(Message):
    """W2 answer, hospital to aggregator: one 32-byte share for each participant whose shares the sender holds.

    In the participants' order: the self-mask seed's share of a survivor, or the round key's share of one who is gone,
    never both (I8).
    """

    kind: ClassVar[str] = "unmask-shares"

    recipient: Email
    round: Round
    manifest: Sha256
    survivors: Sha256
    shares: Octets = Field(repr=False)
    mark: JournalMark
