"""A checked enrolment: who is in the epoch, in which place, with which keys.

Each role checks every certificate once against the pinned keys in the context: a hospital in `enrol`, the aggregator
when the certificate comes. Pure.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from datasites.secagg.epoch_terms import EpochTerms
from datasites.secagg.errors import BadMessage, TooFew, UnknownParty
from datasites.secagg.graph import Neighbourhood
from datasites.secagg.messages import Certificate, Enrolment, Message
from datasites.secagg.shares import SECRET


def check_sender(context: EpochTerms, message: Message, *, by_aggregator: bool = False) -> None:
    """Raise unless `message` belongs to this epoch's terms and its sender, in the right role, signed it.

    `UnknownParty` for a sender that is not in the context, `BadMessage` for another context or a bad signature.
    """
    if message.context != context.digest_once:
        raise BadMessage(
            f"{message.kind} from {message.sender}: made for other terms (study, epoch, roster or threshold differ) "
            f"than epoch {context.epoch} of this study; compare rosters by telephone"
        )
    if by_aggregator:
        if message.sender != context.aggregator.email:
            raise UnknownParty(f"{message.kind} from {message.sender}: only the aggregator may send it")
        message.check_signature(context.aggregator.public_key)
        return
    if message.sender not in context.keys:
        raise UnknownParty(
            f"{message.kind} from {message.sender}: not a hospital of this epoch; pin it and set up anew"
        )
    message.check_signature(context.keys[message.sender])


def check_certificate(context: EpochTerms, certificate: Certificate, today: datetime.date) -> None:
    """Raise `BadMessage` or `UnknownParty` unless the certificate is by a pinned hospital, for this epoch, in date."""
    check_sender(context, certificate)
    where = f"certificate from {certificate.sender}"
    if (certificate.study, certificate.epoch) != (context.study, context.epoch):
        raise BadMessage(f"{where}: is for another study or epoch")
    if certificate.expires != context.expires or today > certificate.expires:
        raise BadMessage(f"{where}: expired, or with another end ({certificate.expires}) than {context.expires}")
    keys = len(context.rounds) * SECRET
    if (len(certificate.hpke_key), len(certificate.round_keys), len(certificate.seed_commitments)) != (32, keys, keys):
        raise BadMessage(f"{where}: does not hold one key and one commitment for each of {len(context.rounds)} rounds")
    # A key of low order would make every peer's exchange with it fail, in every round: found here, it costs only its
    # owner. The exchange is the library's own test for one.
    probe = X25519PrivateKey.generate()
    for start in range(-SECRET, keys, SECRET):
        key = certificate.hpke_key if start < 0 else certificate.round_keys[start : start + SECRET]
        try:
            probe.exchange(X25519PublicKey.from_public_bytes(key))
        except ValueError as error:
            raise BadMessage(f"{where}: holds a degenerate key; it must make its keys anew") from error


@dataclass(frozen=True)
class Epoch:
    """The enrolled in order, their certificates, and the digest (32 bytes) that binds all keys to them."""

    context: EpochTerms
    certificates: tuple[Certificate, ...]
    binding: bytes

    @classmethod
    def enrol(cls, context: EpochTerms, enrolment: Enrolment, today: datetime.date) -> Epoch:
        """Check an enrolment whole; raises `BadMessage`, `UnknownParty`, or `TooFew` below the threshold."""
        check_sender(context, enrolment, by_aggregator=True)
        epoch = cls.of_checked(context, enrolment)
        for certificate in enrolment.certificates:
            check_certificate(context, certificate, today)
        return epoch

    @classmethod
    def of_checked(cls, context: EpochTerms, enrolment: Enrolment) -> Epoch:
        """As `enrol`, of certificates that were each checked when they came (`check_certificate`)."""
        emails = [certificate.sender for certificate in enrolment.certificates]
        if emails != sorted(set(emails)):
            raise BadMessage("enrolment: certificates must be distinct and sorted by sender")
        if len(emails) < context.threshold:
            raise TooFew(
                f"enrolment: {len(emails)} certificates, the threshold is {context.threshold}; wait for more hospitals"
            )
        for field in ("hpke_key", "round_keys"):
            if len({getattr(certificate, field) for certificate in enrolment.certificates}) != len(emails):
                raise BadMessage(f"enrolment: two hospitals have the same {field}; one has copied the other's")
        return cls(context, enrolment.certificates, bytes.fromhex(enrolment.binding()))

    @cached_property
    def members(self) -> tuple[str, ...]:
        """Return e-mails of the enrolled, sorted; a hospital's place is its index."""
        return tuple(certificate.sender for certificate in self.certificates)

    @cached_property
    def places(self) -> dict[str, int]:
        """Return the place by e-mail."""
        return {email: place for place, email in enumerate(self.members)}

    @cached_property
    def graph(self) -> Neighbourhood:
        """Return who masks with whom and holds whose shares."""
        return self.context.neighbourhood(len(self.certificates))

    def place(self, email: str) -> int:
        """Return the place of an enrolled hospital; raise `UnknownParty`."""
        if email not in self.places:
            raise UnknownParty(f"{email} is not enrolled in epoch {self.context.epoch}; it may join the next one")
        return self.places[email]

    def round_key(self, place: int, round: int) -> bytes:
        """Return the X25519 public key (32 bytes) of the hospital in `place` for a round."""
        start = (round - self.context.first_round) * SECRET
        return self.certificates[place].round_keys[start : start + SECRET]

    def seed_commitment(self, place: int, round: int) -> bytes:
        """Return the SHA-256 commitment (32 bytes) to the self-mask seed of the hospital in `place` for a round."""
        start = (round - self.context.first_round) * SECRET
        return self.certificates[place].seed_commitments[start : start + SECRET]
