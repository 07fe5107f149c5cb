"""What a hospital knows of one epoch: its secrets, its peers' shares, the open round, and its journal chain.

A value that is replaced at each step, never changed. It holds secrets: keep it in files that only the datasite can
read (`Journal` does, as `layout` says). Python can't wipe memory; secrets leave the state and so the files, but copies
may stay in memory until it is reused, and old disk blocks until they are overwritten: use an encrypted disk.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Self

from pydantic import Field

from datasites.secagg.messages import Certificate, Enrolment, MaskedHeader, Octets, UnmaskShares
from datasites.secagg.shares import SECRET
from datasites.study.canonical import Agreed
from datasites.study.identity import Email
from datasites.study.manifest import RoundManifest, Sha256

#: Bytes that a holder keeps per owner and round: a share of the round key, then one of the self-mask seed.
PAIR = 2 * SECRET


class RoundSecrets(Agreed):
    """One unused round: own X25519 private key and self-mask seed, and the shares held, `PAIR` bytes per place."""

    round: int
    key: Octets = Field(repr=False)
    seed: Octets = Field(repr=False)
    held: Octets = Field(default=b"", repr=False)

    def key_share(self, place: int) -> bytes:
        """Return the share held of the round key of the hospital in `place`."""
        return self.held[place * PAIR : place * PAIR + SECRET]

    def seed_share(self, place: int) -> bytes:
        """Return the share held of the self-mask seed of the hospital in `place`."""
        return self.held[place * PAIR + SECRET : (place + 1) * PAIR]


class Accepted(Agreed):
    """One peer's share bundle that was checked and taken in. shares: `PAIR` bytes per round, until "ready"."""

    owner: Email
    bundle: Sha256
    columns: Sha256
    shares: Octets = Field(default=b"", repr=False)


class OpenRound(Agreed):
    """The one round that this hospital has opened last, and what it has released in it.

    secret: what all of the round's own randomness is derived from, sampling, noise and rounding. It is drawn and stored
    with the manifest, before anything is computed, so that work that is repeated after a crash gives the same bytes;
    it is gone once the masked vector is there.
    """

    manifest: RoundManifest
    manifest_hash: Sha256
    secret: Octets = Field(default=b"", repr=False)
    header: MaskedHeader | None = None
    acknowledged: Sha256 | None = None
    answer: UnmaskShares | None = None


class Released(Agreed):
    """Sequence and head of the journal chain at one release."""

    sequence: Annotated[int, Field(ge=1)]
    head: Sha256


class MemberState(Agreed):
    """A hospital's state in one epoch.

    hpke_private: opens the peers' bundles; empty once all have come, and from "ready" on whether they have or not.
    secrets: of rounds that were not answered yet. ready: whether this hospital has said whose shares it holds; from
    then on shares are kept by round in `secrets`, before by peer in `accepted` and `own_shares`.
    sequence and head: length and end of the hash chain of all steps; parent: the head one step before. They, and
    `last_round`, run on over all epochs of the study. released: in this epoch.
    """

    context: Sha256
    study: Sha256
    epoch: int
    certificate: Certificate
    hpke_private: Octets = Field(repr=False)
    enrolment: Enrolment | None = None
    binding: Sha256 | None = None
    secrets: tuple[RoundSecrets, ...] = Field(repr=False)
    own_shares: Octets = Field(default=b"", repr=False)
    commitments: Octets = b""
    accepted: tuple[Accepted, ...] = ()
    ready: bool = False
    open: OpenRound | None = None
    last_round: int = 0
    sequence: int = 0
    head: Sha256 = "0" * 64
    parent: Sha256 = "0" * 64
    released: tuple[Released, ...] = ()

    def of_round(self, round: int) -> RoundSecrets | None:
        """Return the secrets of a round, or None once they are destroyed."""
        return next((secrets for secrets in self.secrets if secrets.round == round), None)

    @property
    def holds(self) -> frozenset[str]:
        """Return the peers whose shares this hospital holds, itself included once it has shared."""
        mine = {self.certificate.sender} if self.enrolment is not None else set()
        return frozenset(mine | {peer.owner for peer in self.accepted})

    def step(self, event: str, detail: str, **changes: object) -> Self:
        """Return the next state: `changes` made, and the event chained into the journal's head."""
        sequence, head = self.next_link(event, detail)
        return self.model_copy(update={**changes, "sequence": sequence, "head": head, "parent": self.head})

    def next_link(self, event: str, detail: str) -> tuple[int, str]:
        """Return the sequence and head that `step` with the same event would give."""
        sequence = self.sequence + 1
        link = f"{self.head}\n{sequence}\n{self.context}\n{event}\n{detail}"
        return sequence, hashlib.sha256(link.encode()).hexdigest()

    def replaced(self, secrets: RoundSecrets) -> tuple[RoundSecrets, ...]:
        """Return `self.secrets` with those of one round replaced."""
        return tuple(secrets if old.round == secrets.round else old for old in self.secrets)

    def without(self, round: int) -> tuple[RoundSecrets, ...]:
        """Return `self.secrets` without those of one round."""
        return tuple(old for old in self.secrets if old.round != round)
