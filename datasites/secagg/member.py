"""The hospital's side of the secure sum: one method per message, from a state to the next state and message.

Order: `certify`, `share`, `accept` (once per peer), `ready`; then per round `open`, `mask`, (`acknowledge` with the
consistency wave,) `unmask`. Nothing is sent and nothing is written here: after every step store the new state with
`Journal.commit`, *before* sending the message that came with it. A method that raises has changed nothing.

What this side enforces whatever the aggregator says: one manifest and one masked vector per round (I6), one unmask
answer per round, for one survivor list of at least `threshold` vectors that their senders signed under this very
manifest, with one share per participant (I8), and keys only from the pinned roster (I9).
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from datasites.secagg import masks, ring, setup
from datasites.secagg.epoch import Epoch, check_sender
from datasites.secagg.epoch_terms import EpochTerms
from datasites.secagg.errors import (
    REJOIN,
    AlreadyAnswered,
    AlreadyMasked,
    BadMessage,
    BadTerms,
    Equivocation,
    JournalRolledBack,
    NotASurvivor,
    OutOfOrder,
    RoundUsed,
    TooFew,
    UnknownParty,
)
from datasites.secagg.messages import (
    AckList,
    Certificate,
    Enrolment,
    JournalMark,
    MaskedHeader,
    MaskedVector,
    Ready,
    ShareBundle,
    SignedManifest,
    SurvivorAck,
    SurvivorList,
    UnmaskShares,
)
from datasites.secagg.shares import SECRET
from datasites.secagg.state import MemberState, OpenRound, Released, RoundSecrets
from datasites.study.canonical import sha256_hex
from datasites.study.identity import Identity


class Member:
    """A hospital in one epoch. Holds its identity and the terms; all that changes is in `MemberState`."""

    def __init__(self, identity: Identity, context: EpochTerms) -> None:
        if context.keys.get(identity.email) != identity.public_key:
            raise UnknownParty(f"member: {identity.email} with this key is not a hospital of the epoch's terms")
        self.identity = identity
        self.context = context

    # -- setup ---------------------------------------------------------------------------------------------------

    def certify(self, previous: MemberState | None = None) -> tuple[MemberState, Certificate]:
        """S1: make this epoch's keys. `previous` is the state of the study's last epoch, if there was one.

        Raises `BadTerms` if the epoch or its rounds are not later than everything in `previous`.
        """
        return setup.certify(self.identity, self.context, previous)

    def share(
        self, state: MemberState, enrolment: Enrolment, *, today: datetime.date
    ) -> tuple[MemberState, dict[str, ShareBundle]]:
        """S2: check all certificates and make the share bundles by recipient.

        Raises `BadMessage`, `UnknownParty` or `TooFew` for the enrolment, `Equivocation` for a second one.
        """
        return setup.share(self.identity, self.context, state, enrolment, today)

    def accept(self, state: MemberState, bundle: ShareBundle) -> MemberState:
        """Take in one peer's shares; the same bundle again changes nothing.

        Raises `BadMessage`, `UnknownParty` or `Equivocation`; quarantine that bundle and go on with the others.
        """
        return setup.accept(self.identity, self.context, state, bundle)

    def awaited(self, state: MemberState) -> frozenset[str]:
        """Peers whose shares are meant for this hospital and have not come. Raises `OutOfOrder` before `share`."""
        return setup.awaited(self.identity, self.context, state)

    def ready(self, state: MemberState) -> tuple[MemberState, Ready]:
        """Tell the aggregator whose shares are held, once: make it when the bundles have come.

        Bundles that come later are not taken in any more, and no round is opened before. Raises `OutOfOrder`.
        """
        return setup.ready(self.identity, self.context, state)

    # -- rounds --------------------------------------------------------------------------------------------------

    def open(
        self, state: MemberState, signed: SignedManifest, *, today: datetime.date, secret: bytes | None = None
    ) -> MemberState:
        """Accept a round's manifest, once; earlier rounds are closed for good and their secrets destroyed.

        secret: of the round's own randomness, 32 bytes; drawn from the operating system unless given (tests). The same
        manifest again changes nothing, and the secret stays. Raises `BadMessage`, `BadTerms`, `Equivocation`,
        `RoundUsed`, or `JournalRolledBack` when the marks show a release that this state does not know.
        """
        epoch = setup.enrolled(self.context, state)
        if not state.ready:
            raise OutOfOrder("member: no round is opened before this hospital is `ready`")
        check_sender(self.context, signed, by_aggregator=True)
        self._check_marks(state, signed.marks)
        manifest, digest = signed.manifest, signed.manifest.digest()
        if state.open is not None and state.open.manifest.round == manifest.round:
            if state.open.manifest_hash == digest:
                return state
            raise Equivocation(
                f"round {manifest.round}: a second, different manifest; the aggregator may sign one per round"
            )
        if manifest.round <= state.last_round or state.of_round(manifest.round) is None:
            raise RoundUsed(
                f"round {manifest.round}: used, closed by round {state.last_round}, or not of rounds "
                f"{self.context.first_round}..{self.context.last_round}; open the next round or a new epoch"
            )
        self._check_manifest(state, epoch, signed, today)
        return state.step(
            "open",
            digest,
            open=OpenRound(manifest=manifest, manifest_hash=digest, secret=secret or os.urandom(SECRET)),
            last_round=manifest.round,
            secrets=tuple(one for one in state.secrets if one.round >= manifest.round),
        )

    def mask(
        self,
        state: MemberState,
        vectors: Mapping[str, npt.NDArray[np.generic]],
        *,
        threads: int | None = None,
        rounding: bytes | None = None,
    ) -> tuple[MemberState, MaskedVector]:
        """W1: encode the named vectors of the open round into one masked vector, and destroy the round's own keys.

        Each vector has the shape (length,) of its term in the manifest. Float vectors are clamped to ±bound and rounded
        stochastically, with bits from the key `rounding` (32 bytes of one use; fresh ones unless given); integer
        vectors count as already scaled. The same state, vectors and key give the same bytes. `vectors` are neither kept
        nor changed. Raises `AlreadyMasked` the second time: resend the journal's copy.
        """
        epoch = setup.enrolled(self.context, state)
        opened = self._opened(state)
        manifest = opened.manifest
        if opened.header is not None:
            raise AlreadyMasked(f"round {manifest.round}: masked before; send the journal's copy again")
        secrets = self._secrets(state, manifest.round)
        vector = ring.encode_all(manifest.vectors, vectors, rounding)
        masks.apply(vector, self._masks(epoch, opened, secrets), threads=threads)
        vector.setflags(write=False)  # signed below; nobody may change it on its way out
        payload = vector.astype("<u4", copy=False).data.cast("B")
        hashed = sha256_hex(payload)
        sequence, head = state.next_link("mask", hashed)
        header = MaskedHeader.seal(
            self.identity,
            context=state.context,
            recipient=self.context.aggregator.email,
            round=manifest.round,
            manifest=opened.manifest_hash,
            dimension=len(vector),
            payload=hashed,
            mark=self._mark(state, sequence, head),
        )
        after = state.step(
            "mask",
            hashed,
            open=opened.model_copy(update={"header": header, "secret": b""}),
            secrets=state.replaced(secrets.model_copy(update={"key": b"", "seed": b""})),
            released=(*state.released, Released(sequence=sequence, head=head)),
        )
        return after, MaskedVector(header, payload)

    def acknowledge(self, state: MemberState, survivors: SurvivorList) -> tuple[MemberState, SurvivorAck]:
        """Consistency wave: bind this hospital to one survivor list.

        Raises as `unmask` does; `AlreadyAnswered` for a second, different list.
        """
        if not self.context.consistency:
            raise OutOfOrder("acknowledge: these terms have no consistency wave; call `unmask`")
        opened = self._check_survivors(state, survivors)
        content = survivors.content_digest()
        if opened.acknowledged not in (None, content):
            raise AlreadyAnswered(f"round {opened.manifest.round}: another survivor list was acknowledged")
        ack = SurvivorAck.seal(
            self.identity,
            context=state.context,
            recipient=self.context.aggregator.email,
            round=opened.manifest.round,
            manifest=opened.manifest_hash,
            survivors=content,
        )
        if opened.acknowledged == content:
            return state, ack
        return state.step("acknowledge", content, open=opened.model_copy(update={"acknowledged": content})), ack

    def unmask(
        self, state: MemberState, survivors: SurvivorList, acks: AckList | None = None
    ) -> tuple[MemberState, UnmaskShares]:
        """W2: answer the round's one unmask request, and destroy the round's shares.

        The same list again gives the same bytes. Raises `AlreadyAnswered` for another list, `NotASurvivor`,
        `TooFew` below the threshold (of survivors, or of `acks` with the consistency wave), `BadMessage`.
        """
        opened = self._check_survivors(state, survivors)
        manifest, content = opened.manifest, survivors.content_digest()
        if opened.answer is not None:
            if opened.answer.survivors == content:
                return state, opened.answer
            raise AlreadyAnswered(f"round {manifest.round}: answered for another survivor list; there is no second one")
        if self.context.consistency:
            self._check_acks(opened, survivors, acks)
        epoch = setup.enrolled(self.context, state)
        secrets = self._secrets(state, manifest.round)
        alive = {header.sender for header in survivors.headers}
        me = epoch.place(self.identity.email)
        pieces = []
        for email in manifest.participants:
            place = epoch.place(email)
            if place == me or epoch.graph.are_neighbours(place, me):
                pieces.append(secrets.seed_share(place) if email in alive else secrets.key_share(place))
        sequence, head = state.next_link("unmask", content)
        answer = UnmaskShares.seal(
            self.identity,
            context=state.context,
            recipient=self.context.aggregator.email,
            round=manifest.round,
            manifest=opened.manifest_hash,
            survivors=content,
            shares=b"".join(pieces),
            mark=self._mark(state, sequence, head),
        )
        after = state.step(
            "unmask",
            content,
            open=opened.model_copy(update={"answer": answer}),
            secrets=state.without(manifest.round),
            released=(*state.released, Released(sequence=sequence, head=head)),
        )
        return after, answer

    # -- checks --------------------------------------------------------------------------------------------------

    def _check_manifest(self, state: MemberState, epoch: Epoch, signed: SignedManifest, today: datetime.date) -> None:
        manifest, context = signed.manifest, self.context
        where = f"round {manifest.round}"
        if (manifest.study, manifest.epoch) != (context.study, context.epoch):
            raise BadMessage(f"{where}: the manifest is for another study or epoch")
        if today > context.expires:
            raise BadTerms(f"{where}: the epoch's keys expired on {context.expires}; set up a new epoch")
        if manifest.threshold != context.threshold:
            raise BadTerms(f"{where}: threshold {manifest.threshold}, agreed was {context.threshold}")
        # `RoundManifest` itself can't have fewer participants than its threshold.
        for email in manifest.participants:
            epoch.place(email)
        if self.identity.email not in manifest.participants:
            raise BadTerms(f"{where}: this hospital is not among the participants; wait for the next round")
        me = epoch.place(self.identity.email)
        for email in manifest.participants:
            # Without its shares the peer could not be unmasked, and one lost vector would cost the round.
            if email not in state.holds and epoch.graph.are_neighbours(epoch.place(email), me):
                raise BadTerms(f"{where}: no shares of {email} are held here; leave it out until a new epoch")
        ring.check_fits(manifest.vectors, len(manifest.participants))

    def _check_marks(self, state: MemberState, marks: tuple[JournalMark, ...]) -> None:
        # Marks of others prove nothing about this journal; nor do those of earlier epochs, whose keys are gone: a
        # hospital that lost its journal and rejoined doesn't know them.
        known = {(one.sequence, one.head) for one in state.released}
        for mark in marks:
            if mark.sender != self.identity.email or mark.context != state.context:
                continue
            mark.check_signature(self.identity.public_key)
            if (mark.sequence, mark.head) not in known:
                raise JournalRolledBack(
                    f"journal: this hospital signed release {mark.sequence}, which its journal (at {state.sequence}) "
                    f"does not know: the journal was restored or copied. Release nothing; {REJOIN}"
                )

    def _check_survivors(self, state: MemberState, survivors: SurvivorList) -> OpenRound:
        check_sender(self.context, survivors, by_aggregator=True)
        opened = self._opened(state)
        manifest = opened.manifest
        where = f"survivors of round {survivors.round}"
        if (survivors.round, survivors.manifest) != (manifest.round, opened.manifest_hash):
            raise BadMessage(f"{where}: not of the manifest that this hospital opened (round {manifest.round})")
        if opened.header is None:
            raise OutOfOrder(f"{where}: this hospital has released no masked vector in this round")
        emails = [header.sender for header in survivors.headers]
        if emails != sorted(set(emails)):
            raise BadMessage(f"{where}: must be distinct and sorted; nobody is listed twice")
        if len(emails) < self.context.threshold:
            raise TooFew(f"{where}: {len(emails)} of the {self.context.threshold} that the threshold demands")
        if opened.header not in survivors.headers:
            raise NotASurvivor(f"{where}: this hospital's vector is not in the sum, or another one is")
        for header in survivors.headers:
            if header.sender not in manifest.participants:
                raise UnknownParty(f"{where}: {header.sender} is not a participant")
            binding = (header.recipient, header.round, header.manifest, header.dimension)
            if binding != (
                self.context.aggregator.email,
                manifest.round,
                opened.manifest_hash,
                opened.header.dimension,
            ):
                raise BadMessage(f"{where}: the vector of {header.sender} was signed for another manifest")
            check_sender(self.context, header)
        return opened

    def _check_acks(self, opened: OpenRound, survivors: SurvivorList, acks: AckList | None) -> None:
        where = f"survivor-acks of round {survivors.round}"
        if acks is None:
            raise OutOfOrder(f"{where}: missing; these terms have a consistency wave")
        check_sender(self.context, acks, by_aggregator=True)
        content = survivors.content_digest()
        if opened.acknowledged != content:
            raise OutOfOrder(f"{where}: this hospital has not acknowledged this survivor list")
        emails = [ack.sender for ack in acks.acks]
        if emails != sorted(set(emails)) or not set(emails) <= {header.sender for header in survivors.headers}:
            raise BadMessage(f"{where}: must be distinct, sorted, and by survivors")
        if len(emails) < self.context.threshold:
            raise TooFew(f"{where}: {len(emails)} of the {self.context.threshold} that the threshold demands")
        for ack in acks.acks:
            check_sender(self.context, ack)
            if (ack.round, ack.manifest, ack.survivors) != (opened.manifest.round, opened.manifest_hash, content):
                raise Equivocation(f"{where}: {ack.sender} was shown another survivor list; answer none")

    # -- parts ---------------------------------------------------------------------------------------------------

    def _opened(self, state: MemberState) -> OpenRound:
        if state.context != self.context.digest_once:
            raise BadTerms("member: this state belongs to other terms; load the state of this epoch")
        if state.open is None:
            raise OutOfOrder("member: no round is open; call `open` with the aggregator's manifest first")
        return state.open

    def _secrets(self, state: MemberState, round: int) -> RoundSecrets:
        secrets = state.of_round(round)
        if secrets is None:
            raise RoundUsed(f"round {round}: its secrets are destroyed; open the next round")
        return secrets

    def _masks(self, epoch: Epoch, opened: OpenRound, secrets: RoundSecrets) -> list[masks.Mask]:
        me = epoch.place(self.identity.email)
        bound = {"manifest": bytes.fromhex(opened.manifest_hash), "epoch": epoch.binding}
        own = X25519PrivateKey.from_private_bytes(secrets.key)
        chosen = []
        for email in opened.manifest.participants:
            peer = epoch.place(email)
            if epoch.graph.are_neighbours(me, peer):
                public = epoch.round_key(peer, opened.manifest.round)
                chosen.append(masks.pairwise(own, public, me=me, peer=peer, **bound))
        chosen.append(masks.self_mask(secrets.seed, me=me, **bound))
        return chosen

    def _mark(self, state: MemberState, sequence: int, head: str) -> JournalMark:
        return JournalMark.seal(
            self.identity, context=state.context, study=self.context.study, sequence=sequence, head=head
        )
