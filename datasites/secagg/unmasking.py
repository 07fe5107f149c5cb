"""How the aggregator rebuilds the secrets of one round from the survivors' answers, and finds who sent wrong shares.

Every rebuilt secret is checked against its owner's certificate. Only when one fails are single shares compared with
the owner's signed commitments, so an honest round pays nothing for it. Pure; used by `Aggregator` only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from datasites.secagg import masks, shares
from datasites.secagg.epoch import Epoch
from datasites.secagg.errors import CommitmentsLost, TooFew, WrongShare
from datasites.secagg.messages import UnmaskShares
from datasites.secagg.shares import SECRET
from datasites.study.manifest import RoundManifest


@dataclass(frozen=True)
class Unmasking:
    """What removes the masks from the sum, and the hospitals whose wrong shares were left out."""

    masks: tuple[masks.Mask, ...]
    wrong: tuple[str, ...]


def shares_expected(epoch: Epoch, manifest: RoundManifest, holder: str) -> tuple[int, ...]:
    """Return the places of the participants whose shares `holder` answers with, in the answer's order."""
    own = epoch.place(holder)
    places = [epoch.place(email) for email in manifest.participants]
    return tuple(place for place in places if place == own or epoch.graph.are_neighbours(place, own))


def gather_shares(
    epoch: Epoch, manifest: RoundManifest, answers: Iterable[UnmaskShares]
) -> dict[int, dict[int, bytes]]:
    """Return the shares by owner's place, then by holder's place."""
    gathered: dict[int, dict[int, bytes]] = {epoch.place(email): {} for email in manifest.participants}
    for answer in answers:
        holder = epoch.place(answer.sender)
        for index, owner in enumerate(shares_expected(epoch, manifest, answer.sender)):
            gathered[owner][holder] = answer.shares[index * SECRET : (index + 1) * SECRET]
    return gathered


def solve(
    epoch: Epoch,
    manifest: RoundManifest,
    survivors: frozenset[str],
    answers: Iterable[UnmaskShares],
    commitments: Callable[[str], bytes | None],
) -> Unmasking:
    """Return the masks that are left in the survivors' sum, with the sign that removes them.

    commitments: what a hospital committed to, None where that can't be had; asked for only where a share is wrong.
    Raises `TooFew` when a secret has fewer shares than the threshold, `WrongShare` naming the senders of wrong shares
    when the right ones don't suffice, or the owner whose right shares don't give its certified secret, and
    `CommitmentsLost` where it can't be told which.
    """
    gathered = gather_shares(epoch, manifest, answers)
    alive = {epoch.place(email) for email in survivors}
    threshold = epoch.graph.share_threshold
    for owner, pieces in gathered.items():
        if len(pieces) < threshold:
            raise TooFew(
                f"round {manifest.round}: {len(pieces)} shares for {epoch.members[owner]}, {threshold} rebuild its "
                "secret; wait for more survivors to answer"
            )
    secrets = _rebuild(gathered, threshold)
    wrong: set[str] = set()
    for owner, secret in secrets.items():
        if not _certified(epoch, manifest.round, owner, secret, seed=owner in alive):
            name = epoch.members[owner]
            committed = commitments(name)
            if committed is None:
                raise CommitmentsLost(
                    f'round {manifest.round}: a share for {name} is wrong, and its "ready" letter, which would show '
                    "whose, is no longer in the store; nobody is blamed; set up a new epoch"
                )
            good = _right(epoch, manifest.round, owner, gathered[owner], committed, seed=owner in alive)
            bad = {epoch.members[holder] for holder in gathered[owner].keys() - good.keys()}
            wrong |= bad
            if len(good) < threshold:
                raise WrongShare(
                    f"round {manifest.round}: wrong shares for {name} from {', '.join(sorted(bad))}; "
                    f"{len(good)} right ones are left of {threshold}; wait for more answers",
                    tuple(sorted(bad)),
                )
            secrets[owner] = shares.combine(good, threshold)
            if not _certified(epoch, manifest.round, owner, secrets[owner], seed=owner in alive):
                raise WrongShare(
                    f"round {manifest.round}: the shares that {name} signed don't give its certified secret; "
                    "set up a new epoch without it",
                    (name,),
                )
    return Unmasking(tuple(_leftover(epoch, manifest, alive, secrets)), tuple(sorted(wrong)))


def _rebuild(gathered: dict[int, dict[int, bytes]], threshold: int) -> dict[int, bytes]:
    # Owners with the same holders are rebuilt in one pass: sharing works byte by byte.
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for owner, pieces in gathered.items():
        groups[tuple(sorted(pieces)[:threshold])].append(owner)
    secrets: dict[int, bytes] = {}
    for holders, owners in groups.items():
        joined = {holder: b"".join(gathered[owner][holder] for owner in owners) for holder in holders}
        whole = shares.combine(joined, threshold)
        for index, owner in enumerate(owners):
            secrets[owner] = whole[index * SECRET : (index + 1) * SECRET]
    return secrets


def _certified(epoch: Epoch, round: int, owner: int, secret: bytes, *, seed: bool) -> bool:
    if seed:
        digest = bytes.fromhex(epoch.context.digest_once)
        return shares.commit_seed(digest, round, epoch.members[owner], secret) == epoch.seed_commitment(owner, round)
    public = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    return public == epoch.round_key(owner, round)


def _right(
    epoch: Epoch, round: int, owner: int, pieces: dict[int, bytes], committed: bytes, *, seed: bool
) -> dict[int, bytes]:
    """Return the shares that match what their owner committed to."""
    holders = epoch.graph.holders(owner)
    rounds = len(epoch.context.rounds)
    good = {}
    for holder, piece in pieces.items():
        leaf = (holders.index(holder) * rounds + round - epoch.context.first_round) * 2 + seed
        kind = b"seed" if seed else b"key"
        commitment = shares.commit(kind, epoch.binding, round, owner, holder, piece)
        if commitment == committed[leaf * SECRET : (leaf + 1) * SECRET]:
            good[holder] = piece
    return good


def _leftover(
    epoch: Epoch, manifest: RoundManifest, alive: set[int], secrets: dict[int, bytes]
) -> Iterable[masks.Mask]:
    bound = {"manifest": bytes.fromhex(manifest.digest()), "epoch": epoch.binding}
    for owner, secret in secrets.items():
        if owner in alive:
            yield masks.self_mask(secret, me=owner, **bound).opposite()
            continue
        key = X25519PrivateKey.from_private_bytes(secret)
        for peer in sorted(alive):
            if epoch.graph.are_neighbours(owner, peer):
                # What the lost hospital would have added cancels what the survivor added.
                yield masks.pairwise(key, epoch.round_key(peer, manifest.round), me=owner, peer=peer, **bound)
