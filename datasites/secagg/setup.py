"""The hospital's side of the setup of an epoch: certificate, shares for every round, shares of the peers.

Pure functions behind `Member`. After them each round costs two waves and no further key exchange.
"""

from __future__ import annotations

import datetime
import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from datasites.secagg import shares
from datasites.secagg.epoch import Epoch, check_sender
from datasites.secagg.epoch_terms import EpochTerms
from datasites.secagg.errors import BadMessage, BadTerms, Equivocation, OutOfOrder
from datasites.secagg.messages import Certificate, Enrolment, HeldCommitments, Ready, ShareBundle
from datasites.secagg.shares import SECRET
from datasites.secagg.state import PAIR, Accepted, MemberState, RoundSecrets
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.identity import Identity

#: RFC 9180, base mode; the sender is authenticated by the bundle's signature.
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def certify(identity: Identity, context: EpochTerms, previous: MemberState | None) -> tuple[MemberState, Certificate]:
    """Make fresh keys for every round of the epoch, and the certificate of their public halves."""
    if previous is not None:
        if previous.study != context.study:
            raise BadTerms("certify: the journal belongs to another study; keep one journal per study")
        if context.epoch <= previous.epoch or context.first_round <= previous.last_round:
            raise BadTerms(
                f"certify: this hospital has reached epoch {previous.epoch} and round {previous.last_round}; the offer "
                f"is of epoch {context.epoch} from round {context.first_round}. The next epoch must be "
                f"{previous.epoch + 1} or later, from round {previous.last_round + 1} or later"
            )
    hpke = X25519PrivateKey.generate()
    keys = [X25519PrivateKey.generate() for _ in context.rounds]
    seeds = [os.urandom(SECRET) for _ in context.rounds]
    digest = bytes.fromhex(context.digest_once)
    certificate = Certificate.seal(
        identity,
        context=context.digest_once,
        study=context.study,
        epoch=context.epoch,
        expires=context.expires,
        hpke_key=hpke.public_key().public_bytes_raw(),
        round_keys=b"".join(key.public_key().public_bytes_raw() for key in keys),
        seed_commitments=b"".join(
            shares.commit_seed(digest, round, identity.email, seed)
            for round, seed in zip(context.rounds, seeds, strict=True)
        ),
    )
    start = MemberState(
        context=context.digest_once,
        study=context.study,
        epoch=context.epoch,
        certificate=certificate,
        hpke_private=hpke.private_bytes_raw(),
        secrets=tuple(
            RoundSecrets(round=round, key=key.private_bytes_raw(), seed=seed)
            for round, key, seed in zip(context.rounds, keys, seeds, strict=True)
        ),
    )
    if previous is not None:
        carried = ("last_round", "sequence", "head", "parent")
        start = start.model_copy(update={name: getattr(previous, name) for name in carried})
    return start.step("certify", certificate.content_digest()), certificate


def share(
    identity: Identity, context: EpochTerms, state: MemberState, enrolment: Enrolment, today: datetime.date
) -> tuple[MemberState, dict[str, ShareBundle]]:
    """Make shares of all own secrets for each neighbour, once the enrolment is checked against the pinned keys."""
    epoch = Epoch.enrol(context, enrolment, today)
    if state.enrolment is not None:
        raise Equivocation(
            "share: this epoch's shares were made; send the journal's copies again, or set up a new epoch"
        )
    me = epoch.place(identity.email)
    if epoch.certificates[me] != state.certificate:
        raise Equivocation("share: the enrolment holds another certificate of this hospital than the one it made")
    changes: dict[str, object] = {"enrolment": enrolment, "binding": enrolment.binding()}
    holders = epoch.graph.holders(me)
    secret = b"".join(one.key + one.seed for one in state.secrets)
    pieces = shares.split(secret, epoch.graph.share_threshold, holders)
    leaves = {holder: column(epoch, me, holder, pieces[holder]) for holder in holders}
    columns = b"".join(hashlib.sha256(leaves[holder]).digest() for holder in holders)
    bundles = {}
    for holder in holders:
        if holder == me:
            continue
        peer = epoch.members[holder]
        key = X25519PublicKey.from_public_bytes(epoch.certificates[holder].hpke_key)
        bundles[peer] = ShareBundle.seal(
            identity,
            context=state.context,
            recipient=peer,
            enrolment=enrolment.binding(),
            columns=columns,
            sealed=_SUITE.encrypt(pieces[holder], key, info=_associated(context, epoch, identity.email, peer)),
        )
    changes["own_shares"] = pieces[me]
    changes["commitments"] = b"".join(leaves[holder] for holder in holders)
    return state.step("share", enrolment.binding(), **changes), bundles


def accept(identity: Identity, context: EpochTerms, state: MemberState, bundle: ShareBundle) -> MemberState:
    """Take in one peer's shares after checking signature, address, encryption and commitments."""
    epoch = enrolled(context, state)
    check_sender(context, bundle)
    owner, me = epoch.place(bundle.sender), epoch.place(identity.email)
    where = f"share-bundle from {bundle.sender}"
    if bundle.recipient != identity.email or not epoch.graph.are_neighbours(owner, me):
        raise BadMessage(f"{where}: is for {bundle.recipient}, not for this hospital")
    if bundle.enrolment != state.binding:
        raise Equivocation(
            f"{where}: made for another enrolment; the aggregator has shown the hospitals different certificates"
        )
    for known in state.accepted:
        if known.owner == bundle.sender:
            if known.bundle == bundle.content_digest():
                return state
            raise Equivocation(f"{where}: a second, different bundle; the first one stays")
    if state.ready:
        raise OutOfOrder(f"{where}: came after this hospital said whose shares it holds; set up a new epoch with it")
    try:
        piece = _SUITE.decrypt(
            bundle.sealed,
            X25519PrivateKey.from_private_bytes(state.hpke_private),
            info=_associated(context, epoch, bundle.sender, identity.email),
        )
    except (InvalidTag, ValueError) as error:
        raise BadMessage(f"{where}: does not decrypt under this epoch's key; ask for it again") from error
    holders = epoch.graph.holders(owner)
    if len(piece) != PAIR * len(context.rounds) or len(bundle.columns) != SECRET * len(holders):
        raise BadMessage(f"{where}: not one pair of shares for each of {len(context.rounds)} rounds")
    mine = holders.index(me) * SECRET
    if hashlib.sha256(column(epoch, owner, me, piece)).digest() != bundle.columns[mine : mine + SECRET]:
        raise BadMessage(f"{where}: the shares don't match their signed commitments; set up anew without this hospital")
    taken = Accepted(
        owner=bundle.sender, bundle=bundle.content_digest(), columns=sha256_hex(bundle.columns), shares=piece
    )
    accepted = tuple(sorted((*state.accepted, taken), key=lambda one: one.owner))
    opened_all = len(accepted) == len(epoch.graph.neighbours(me))
    return state.step(
        "accept",
        bundle.content_digest(),
        accepted=accepted,
        hpke_private=b"" if opened_all else state.hpke_private,
    )


def awaited(identity: Identity, context: EpochTerms, state: MemberState) -> frozenset[str]:
    """Return the peers whose shares are meant for this hospital and have not come: of its neighbours."""
    epoch = enrolled(context, state)
    neighbours = epoch.graph.neighbours(epoch.place(identity.email))
    return frozenset(epoch.members[place] for place in neighbours) - state.holds


def ready(identity: Identity, context: EpochTerms, state: MemberState) -> tuple[MemberState, Ready]:
    """Return what this hospital tells the aggregator once it has shared: whose shares it holds, its own commitments.

    It takes in no share after that, so the key that opens bundles has done its work and is destroyed, whether all have
    come or not. Left here, it would open the stored ones, and with them past rounds, to whoever seizes it.
    """
    epoch = enrolled(context, state)
    if state.ready:
        raise OutOfOrder("ready: this hospital has said whose shares it holds; send the journal's copy again")
    message = Ready.seal(
        identity,
        context=state.context,
        recipient=context.aggregator.email,
        enrolment=state.binding,
        commitments=state.commitments,
        seen=tuple(HeldCommitments(owner=one.owner, columns=one.columns) for one in state.accepted),
    )
    after = state.step(
        "ready",
        message.content_digest(),
        ready=True,
        hpke_private=b"",
        commitments=b"",
        own_shares=b"",
        accepted=tuple(one.model_copy(update={"shares": b""}) for one in state.accepted),
        secrets=_by_round(context, epoch, identity.email, state),
    )
    return after, message


def enrolled(context: EpochTerms, state: MemberState) -> Epoch:
    """Return the epoch of a state that has shared; its certificates were checked then."""
    if state.context != context.digest_once:
        raise BadTerms("member: this state belongs to other terms; load the state of this epoch")
    if state.enrolment is None or state.binding is None:
        raise OutOfOrder("member: no enrolment yet; call `share` with the aggregator's enrolment first")
    return Epoch(context, state.enrolment.certificates, bytes.fromhex(state.binding))


def column(epoch: Epoch, owner: int, holder: int, piece: bytes) -> bytes:
    """Return commitments to all shares that `holder` gets from `owner`: per round, key then seed, 32 bytes each."""
    leaves = []
    for index, round in enumerate(epoch.context.rounds):
        pair = piece[index * PAIR : (index + 1) * PAIR]
        for kind, share_of in ((b"key", pair[:SECRET]), (b"seed", pair[SECRET:])):
            leaves.append(shares.commit(kind, epoch.binding, round, owner, holder, share_of))
    return b"".join(leaves)


def _associated(context: EpochTerms, epoch: Epoch, owner: str, holder: str) -> bytes:
    return canonical_json(
        ["datasites/1 shares", context.study, context.digest_once, context.epoch, epoch.binding.hex(), owner, holder]
    )


def _by_round(context: EpochTerms, epoch: Epoch, me: str, state: MemberState) -> tuple[RoundSecrets, ...]:
    """Return the rounds' secrets with all shares that are held, which came by peer."""
    columns = {epoch.place(one.owner): one.shares for one in state.accepted} | {epoch.place(me): state.own_shares}
    secrets = []
    for index, one in enumerate(state.secrets):
        held = bytearray(PAIR * len(epoch.members))
        for place, shares_of in columns.items():
            held[place * PAIR : (place + 1) * PAIR] = shares_of[index * PAIR : (index + 1) * PAIR]
        secrets.append(one.model_copy(update={"held": bytes(held)}))
    return tuple(secrets)
