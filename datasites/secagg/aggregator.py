"""The aggregator's side of the secure sum: collects signed messages, adds vectors as they come, opens the sum.

It holds no secret and learns only sums. A hospital that sends a false message is refused and named where the message
shows it. Two kinds of false message are detected late or not at all, at the cost of the others: shares of another
secret than the certified one are found only when a sum doesn't open, after all were charged (`WrongShare` names the
owner; `leave_out` keeps it out of later rounds); and where one hospital says that it never got another's shares, either
may lie (see `available`).

Every method takes one message and a state and returns the next state; nothing is sent or written here. Vectors are
added at once and not kept: memory is one vector whatever the number of hospitals, and a second one while a sum opens.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from datasites.secagg import masks, ring
from datasites.secagg.aggregator_state import AggregatorState, EpochRecord, OpenedSum, ReceivedRound, RunningSum
from datasites.secagg.epoch import Epoch, check_certificate, check_sender
from datasites.secagg.epoch_terms import EpochTerms
from datasites.secagg.errors import (
    BadMessage,
    BadTerms,
    Equivocation,
    JournalRolledBack,
    LateVector,
    OutOfOrder,
    RoundUsed,
    SpentState,
    TooFew,
    UnknownParty,
)
from datasites.secagg.messages import (
    AckList,
    Certificate,
    Enrolment,
    JournalMark,
    MaskedVector,
    Ready,
    SignedManifest,
    SurvivorAck,
    SurvivorList,
    UnmaskShares,
)
from datasites.secagg.reports import columns_digest
from datasites.secagg.shares import SECRET
from datasites.secagg.unmasking import gather_shares, shares_expected, solve
from datasites.study.canonical import sha256_hex
from datasites.study.identity import Identity
from datasites.study.manifest import RoundManifest


class Aggregator:
    """The party that adds. Holds its identity and the terms; all that changes is in `AggregatorState`."""

    def __init__(self, identity: Identity, context: EpochTerms) -> None:
        if (identity.email, identity.public_key) != (context.aggregator.email, context.aggregator.public_key):
            raise UnknownParty(f"aggregator: {identity.email} with this key is not the aggregator of these terms")
        self.identity = identity
        self.context = context

    # -- setup ---------------------------------------------------------------------------------------------------

    def start(self) -> AggregatorState:
        """Return the state before any message has come."""
        return AggregatorState(EpochRecord(context=self.context.digest_once))

    def receive_certificate(
        self, state: AggregatorState, certificate: Certificate, *, today: datetime.date
    ) -> AggregatorState:
        """Keep a certificate; the same one again changes nothing. Raises `Equivocation` for a second one."""
        check_certificate(self.context, certificate, today)
        enrolled = () if state.enrolment is None else state.enrolment.certificates
        for known in (*state.record.certificates, *enrolled):
            if known.sender == certificate.sender:
                if known == certificate:
                    return state
                raise Equivocation(f"certificate from {known.sender}: a second, different one; set up a new epoch")
        if state.enrolment is not None:
            raise LateVector(f"certificate from {certificate.sender}: enrolment is closed; it joins the next epoch")
        certificates = sorted((*state.record.certificates, certificate), key=lambda one: one.sender)
        return state.with_record(certificates=tuple(certificates))

    def enrol(self, state: AggregatorState, *, today: datetime.date) -> tuple[AggregatorState, Enrolment]:
        """Close enrolment with those whose certificates came; raises `TooFew` below the threshold."""
        if state.enrolment is not None:
            return state, state.enrolment
        enrolment = Enrolment.seal(
            self.identity, context=self.context.digest_once, certificates=state.record.certificates
        )
        if today > self.context.expires:
            raise BadMessage(f"enrolment: its certificates expired on {self.context.expires}; set up a new epoch")
        # Each certificate was checked when it came; every hospital checks them all.
        binding = Epoch.of_checked(self.context, enrolment).binding.hex()
        digest = sha256_hex(enrolment.to_bytes())
        closed = state.with_record(enrolment=digest, binding=binding, certificates=())
        return replace(closed, enrolment=enrolment), enrolment

    def receive_ready(self, state: AggregatorState, ready: Ready) -> AggregatorState:
        """Keep whose shares a hospital holds, and a digest of its commitments. Its letter must stay: see `result`.

        Raises `BadMessage`, or `Equivocation` when its own commitments change.
        """
        epoch = self._epoch(state)
        check_sender(self.context, ready)
        place = epoch.place(ready.sender)
        where = f"ready from {ready.sender}"
        if (ready.recipient, ready.enrolment) != (self.identity.email, epoch.binding.hex()):
            raise BadMessage(f"{where}: is for another enrolment or recipient")
        holders = epoch.graph.holders(place)
        if len(ready.commitments) != len(holders) * len(self.context.rounds) * 2 * SECRET:
            raise BadMessage(f"{where}: not one commitment for each holder, round and secret")
        reports, columns = state.record.reports, columns_digest(epoch, ready)
        if reports.own(epoch, ready.sender) not in (None, columns):
            raise Equivocation(f"{where}: other commitments than before")
        return state.with_record(reports=reports.with_report(epoch, ready.sender, columns, ready.seen))

    def available(self, state: AggregatorState) -> tuple[str, ...]:
        """Hospitals that can take part: all that are ready and hold each other's shares where they are neighbours.

        A share counts as held if its holder saw the commitments that the aggregator has from its owner; else one of
        the two lies or lost a letter, and a wrong share could be blamed on the other. The hospital with most such gaps
        is left out, until the rest agrees. Who lies can't be told from one gap alone: with as many gaps on both sides,
        the first by e-mail address is left out, be it the honest one.
        """
        epoch = self._epoch(state)
        holds = state.record.reports.holds(epoch)
        able = set(holds)
        while True:
            lacking = dict.fromkeys(able, 0)
            for one in able:
                for other in able - holds[one] - {one}:
                    if epoch.graph.are_neighbours(epoch.place(one), epoch.place(other)):
                        lacking[one] += 1
                        lacking[other] += 1
            if not any(lacking.values()):
                break
            able.remove(max(sorted(able), key=lambda email: lacking[email]))
        return tuple(sorted(able))

    # -- rounds --------------------------------------------------------------------------------------------------

    def open_round(self, state: AggregatorState, manifest: RoundManifest) -> tuple[AggregatorState, SignedManifest]:
        """Sign a round's manifest and begin its sum; the same manifest again gives the same message.

        Raises `BadTerms`, `TooFew`, `UnknownParty` for terms that the hospitals would refuse, and `RoundUsed`.
        """
        epoch, open_round = self._epoch(state), state.record.round
        if open_round is not None and open_round.signed.manifest == manifest:
            return state, open_round.signed
        where = f"round {manifest.round}"
        if manifest.round not in self.context.rounds or manifest.round <= state.record.last_round:
            raise RoundUsed(f"{where}: used, or not one of this epoch's rounds; open the next, or a new epoch")
        if (manifest.study, manifest.epoch) != (self.context.study, self.context.epoch):
            raise BadTerms(f"{where}: the manifest is for another study or epoch")
        if manifest.threshold != self.context.threshold:
            raise BadTerms(f"{where}: threshold {manifest.threshold}, agreed was {self.context.threshold}")
        for email in manifest.participants:
            epoch.place(email)
        absent = set(manifest.participants) - set(self.available(state))
        if absent:
            raise BadTerms(f"{where}: {', '.join(sorted(absent))} did not complete the setup; go on without")
        ring.check_fits(manifest.vectors, len(manifest.participants))
        signed = SignedManifest.seal(
            self.identity, context=self.context.digest_once, manifest=manifest, marks=state.record.marks
        )
        opened = state.with_record(round=ReceivedRound(signed=signed), last_round=manifest.round)
        total = RunningSum(np.zeros(ring.dimension(manifest.vectors), np.uint32))
        return replace(opened, total=total), signed

    def receive(self, state: AggregatorState, masked: MaskedVector) -> AggregatorState:
        """Check a masked vector and add it to the sum; the same one again changes nothing.

        Raises `BadMessage`, `UnknownParty`, `Equivocation` for a second vector, `LateVector` once the survivors are
        fixed, `JournalRolledBack` when the sender's journal went backwards.
        """
        open_round, total = self._round(state)
        header, manifest = masked.header, open_round.signed.manifest
        where = f"masked-vector from {header.sender}"
        check_sender(self.context, header)
        if header.sender not in manifest.participants:
            raise UnknownParty(f"{where}: not a participant of round {manifest.round}")
        binding = (header.recipient, header.round, header.manifest, header.dimension)
        if binding != (self.identity.email, manifest.round, manifest.digest(), len(total.vector)):
            raise BadMessage(f"{where}: made for another manifest than that of round {manifest.round}")
        for known in open_round.headers:
            if known.sender == header.sender:
                if known == header:
                    return state
                raise Equivocation(f"{where}: a second, different vector in round {manifest.round}; the first stays")
        if open_round.survivors is not None:
            raise LateVector(f"{where}: the survivors of round {manifest.round} are fixed; it joins at the next round")
        marks = self._marked(state, header.sender, header.mark)
        masked.check_payload()
        total.add(masked.vector())
        headers = tuple(sorted((*open_round.headers, header), key=lambda one: one.sender))
        return state.with_record(marks=marks).with_round(headers=headers)

    def survivors(self, state: AggregatorState) -> tuple[AggregatorState, SurvivorList]:
        """Fix who is in the sum and tell them; asked again, the same list. Raises `TooFew` below the threshold."""
        open_round, _ = self._round(state)
        manifest = open_round.signed.manifest
        if open_round.survivors is not None:
            return state, open_round.survivors
        needed = self.context.threshold
        if len(open_round.headers) < needed:
            raise TooFew(
                f"round {manifest.round}: {len(open_round.headers)} masked vectors of {needed} needed; wait, or give "
                "the round up and open the next one"
            )
        survivors = SurvivorList.seal(
            self.identity,
            context=self.context.digest_once,
            round=manifest.round,
            manifest=manifest.digest(),
            headers=open_round.headers,
        )
        return state.with_round(survivors=survivors), survivors

    def receive_ack(self, state: AggregatorState, ack: SurvivorAck) -> AggregatorState:
        """Consistency wave: keep one survivor's acknowledgement, until `acknowledged` has told of them.

        Raises `BadMessage` for another list or round.
        """
        open_round, survivors = self._answerable(state, ack)
        if ack.survivors != survivors.content_digest():
            raise BadMessage(f"survivor-ack from {ack.sender}: acknowledges another list")
        if open_round.acknowledged is not None:
            return state
        others = tuple(one for one in open_round.acks if one.sender != ack.sender)
        acks = tuple(sorted((*others, ack), key=lambda one: one.sender))
        return state.with_round(acks=acks)

    def acknowledged(self, state: AggregatorState) -> tuple[AggregatorState, AckList]:
        """Consistency wave: all acknowledgements, to every survivor; asked again, the same list.

        Raises `TooFew` below the threshold.
        """
        open_round, _ = self._round(state)
        if open_round.acknowledged is not None:
            return state, open_round.acknowledged
        if len(open_round.acks) < self.context.threshold:
            raise TooFew(f"survivor-acks: {len(open_round.acks)} of {self.context.threshold}; wait for more")
        manifest = open_round.signed.manifest
        acks = AckList.seal(
            self.identity,
            context=self.context.digest_once,
            round=manifest.round,
            manifest=manifest.digest(),
            acks=open_round.acks,
        )
        return state.with_round(acknowledged=acks), acks

    def receive_shares(self, state: AggregatorState, answer: UnmaskShares) -> AggregatorState:
        """Keep a survivor's answer; the same again changes nothing. Raises `BadMessage` or `Equivocation`."""
        open_round, survivors = self._answerable(state, answer)
        manifest = open_round.signed.manifest
        expected = shares_expected(self._epoch(state), manifest, answer.sender)
        if answer.survivors != survivors.content_digest() or len(answer.shares) != SECRET * len(expected):
            raise BadMessage(f"unmask-shares from {answer.sender}: for another survivor list, or not {len(expected)}")
        for known in open_round.answers:
            if known.sender == answer.sender:
                if known == answer:
                    return state
                raise Equivocation(f"unmask-shares from {answer.sender}: a second, different answer")
        marks = self._marked(state, answer.sender, answer.mark)
        answers = tuple(sorted((*open_round.answers, answer), key=lambda one: one.sender))
        return state.with_record(marks=marks).with_round(answers=answers)

    def can_open(self, state: AggregatorState) -> bool:
        """Return whether enough has come to call `result` (wrong shares may still ask for more)."""
        open_round, _ = self._round(state)
        epoch = self._epoch(state)
        gathered = gather_shares(epoch, open_round.signed.manifest, open_round.answers)
        return all(len(pieces) >= epoch.graph.share_threshold for pieces in gathered.values())

    def result(
        self,
        state: AggregatorState,
        *,
        ready_again: Callable[[str], Ready | None] = lambda owner: None,
        threads: int | None = None,
    ) -> OpenedSum:
        """Open the sum. May be called again, also after an interrupt.

        ready_again: the "ready" letter of a hospital once more, asked for only where a share is wrong; it is compared
        with the digest that was kept. Raises `OutOfOrder`, `TooFew`, `WrongShare`, or `CommitmentsLost` when a share is
        wrong and there is no such letter; then nothing is open.
        """
        open_round, total = self._round(state)
        manifest = open_round.signed.manifest
        if open_round.survivors is None:
            raise OutOfOrder(f"round {manifest.round}: fix the survivors first")
        emails = tuple(header.sender for header in open_round.survivors.headers)
        epoch = self._epoch(state)

        def commitments(owner: str) -> bytes | None:
            return self._commitments(state, epoch, ready_again(owner), owner)

        solved = solve(epoch, manifest, frozenset(emails), open_round.answers, commitments)
        if not total.opened:
            # In a copy: half the masks taken off, and then all of them once more, would be a wrong sum.
            plain = total.vector.copy()
            masks.apply(plain, solved.masks, threads=threads)
            total.open(plain)
        signed = total.vector.view(np.int32)
        integers = {name: signed[place] for name, place in ring.offsets(manifest.vectors).items()}
        return OpenedSum(manifest, emails, integers, solved.wrong)

    # -- parts ---------------------------------------------------------------------------------------------------

    def _epoch(self, state: AggregatorState) -> Epoch:
        if state.record.context != self.context.digest_once:
            raise BadTerms("aggregator: this state belongs to other terms; load the state of this epoch")
        if state.enrolment is None or state.record.binding is None:
            raise OutOfOrder("aggregator: enrolment is still open; call `enrol` first")
        return Epoch(self.context, state.enrolment.certificates, bytes.fromhex(state.record.binding))

    def _commitments(self, state: AggregatorState, epoch: Epoch, ready: Ready | None, owner: str) -> bytes | None:
        """Return those that a hospital once gave, from its letter; None where that is not the one that was received."""
        if ready is None or ready.sender != owner:
            return None
        if columns_digest(epoch, ready) != state.record.reports.own(epoch, owner):
            return None
        return ready.commitments

    def _round(self, state: AggregatorState) -> tuple[ReceivedRound, RunningSum]:
        open_round, total = state.record.round, state.total
        if open_round is None or total is None:
            raise OutOfOrder("aggregator: no round is open; call `open_round` first")
        if total.added != len(open_round.headers):
            raise SpentState("aggregator: this state is older than the running sum; use the newest one")
        return open_round, total

    def _answerable(
        self, state: AggregatorState, message: SurvivorAck | UnmaskShares
    ) -> tuple[ReceivedRound, SurvivorList]:
        open_round, _ = self._round(state)
        check_sender(self.context, message)
        manifest = open_round.signed.manifest
        if open_round.survivors is None:
            raise OutOfOrder(f"{message.kind} from {message.sender}: the survivors are not fixed yet")
        binding = (message.recipient, message.round, message.manifest)
        if binding != (self.identity.email, manifest.round, manifest.digest()):
            raise BadMessage(f"{message.kind} from {message.sender}: not for round {manifest.round}")
        if message.sender not in {header.sender for header in open_round.survivors.headers}:
            raise UnknownParty(f"{message.kind} from {message.sender}: not a survivor of round {manifest.round}")
        return open_round, open_round.survivors

    def _marked(self, state: AggregatorState, sender: str, mark: JournalMark) -> tuple[JournalMark, ...]:
        if mark.sender != sender or mark.study != self.context.study:
            raise BadMessage(f"journal-mark from {mark.sender}: not by {sender}, or of another study")
        check_sender(self.context, mark)
        others = []
        for known in state.record.marks:
            if known.sender != sender:
                others.append(known)
            elif mark.sequence <= known.sequence:
                raise JournalRolledBack(
                    f"{sender}: its journal stood at {known.sequence} and now at {mark.sequence}: restored or copied; "
                    "it must rejoin in a new epoch"
                )
        return tuple(sorted((*others, mark), key=lambda one: one.sender))
