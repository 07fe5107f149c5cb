"""What leaves a hospital in a round, once the journal has made it: the masked vector, and the shares for unmasking.

The journal decides what a release is (I6); here it is put into audit log and database, sent, and sent again after a
restart, byte for byte. With the consistency wave this hospital first acknowledges one survivor list, and answers only
once enough others have acknowledged the same one (I8).

**Theorem (letters; I16).** Each letter of a round is a function of the public record, of the masked vector, and of keys
drawn without regard to rows. `Masked` holds the signed header (sizes from the manifest, the vector's hash), the number
of releases and a hash of the audit log, in whose records rows stand as keyed commitments only, and public noise levels.
Acknowledgement and shares follow from the survivor list and from shares that were dealt before the first round. An
`Abstention` names the controls that denied on declared facts, or nothing. Proof: by what each is made of, below; the
masked vector is the noised one plus masks (computationally uniform to who lacks t shares, `secagg`), so under fewer
than t colluding holders it adds nothing, and with them it is the output of the priced mechanism. Sizes are those of the
manifest's vectors and of public words. When: the vector at the round's tick (`rounds.run`), everything else when the
letter that it answers is read, which no work on rows delays. A letter that the store has lost while it waited for its
answer is sent again, the same bytes, after pauses counted from when this process first put it (`transport.repeats`),
and at once after a restart: a function of that moment, of faults, of the store and of the clock. Of a round that is sat
out nothing leaves here, also where the journal had made its vector by then (`abstaining`).
"""

from __future__ import annotations

from django.db import transaction

from datasites.hospital.audit.log import Value
from datasites.hospital.cases.case import OpenCase
from datasites.hospital.models import Round
from datasites.hospital.rounds.closing import reported_fork
from datasites.hospital.rounds.mail import StudyMail
from datasites.hospital.site import Site
from datasites.secagg.errors import JournalDamaged, JournalRolledBack, SecaggError
from datasites.secagg.journal import Journal
from datasites.secagg.member import Member
from datasites.secagg.messages import AckList, MaskedVector, Message, SurvivorAck, SurvivorList
from datasites.secagg.state import MemberState
from datasites.study import letters
from datasites.study.audit_chain import RELEASED, PublicHead
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.manifest import EvaluationKind
from datasites.transport.letter import read_blob
from datasites.transport.mailroom import Letter

#: A survivor list and a list of acknowledgements: some KB for each hospital.
LARGEST_LIST = 16 * 1024 * 1024


class RoundReleases:
    """Sends what the journal of one study has made, and answers for survivor lists."""

    def __init__(self, site: Site, case: OpenCase, post: StudyMail, journal: Journal) -> None:
        self._site, self._case, self._post, self._journal = site, case, post, journal
        self._study_hash = case.row.study_hash
        self._researcher = case.study.researcher
        #: Whether a record may be in the log whose journal entry was never made: since a start, or since an error.
        self._unsure = True

    def step(self, member: Member | None) -> bool:
        """Send what an outage or a restart has kept from going out, or answer a survivor list; True when done."""
        state = self._journal.state
        if member is None or state is None or state.open is None or state.open.header is None:
            return False
        # What people have answered stands, also for a vector that the journal had made by then (`abstaining`).
        if Round.objects.filter(case=self._case.row, round=state.last_round, state=Round.State.FAILED).exists():
            return False
        return self._send_owed(state) or self._answer(member, state)

    def release(self, state: MemberState, masked: MaskedVector) -> None:
        """Make the release in the journal, record it, send it."""
        self._journal.commit(state, masked)
        self._send(masked, restarted=False)

    def _send_owed(self, state: MemberState) -> bool:
        assert state.open is not None
        round = state.last_round
        if state.open.answer is not None:
            return not self._is_out(letters.UNMASK, round) and self._reply(letters.UNMASK, state.open.answer, round)
        if not self._is_out(letters.MASKED, round):
            masked = self._journal.masked()
            assert masked is not None
            return self._send(masked, restarted=True)
        if state.open.acknowledged is not None and not self._is_out(letters.ACKNOWLEDGE, round):
            ack = self._journal.sent(SurvivorAck)
            return ack is not None and self._reply(letters.ACKNOWLEDGE, SurvivorAck.from_bytes(ack), round)
        return False

    def _is_out(self, kind: str, round: int) -> bool:
        return self._post.posted(self._researcher, round, kind)

    def _send(self, masked: MaskedVector, restarted: bool) -> bool:
        round = masked.header.round
        row = self._record(masked, restarted)
        if row is None:
            return False
        body = letters.Masked(
            header=masked.to_bytes().decode(),
            audit=PublicHead.model_validate(row.audit_head),
            counts_sigma=self._counts_sigma(),
            # As it was then: a letter that is sent again says the same, or it would be another letter (I6).
            fork=row.release.get("fork"),
        )
        fields = body.model_dump(mode="json")
        return self._post.post(self._researcher, round, letters.MASKED, fields, bytes(masked.payload))

    def _counts_sigma(self) -> dict[EvaluationKind, float]:
        """Return the public sd of this hospital's noise on a count, by kind; 0 for one that the study has not."""
        plan = self._case.evaluation
        kinds: tuple[EvaluationKind, ...] = ("final", "interim") if plan.interim else ("final",)
        sigmas: dict[EvaluationKind, float] = {"final": 0.0, "interim": 0.0}
        for kind in kinds:
            ring = self._case.counts_ring(kind)
            sigmas[kind] = plan.multiplier(kind) if ring is None else ring.deviation
        return sigmas

    def _record(self, masked: MaskedVector, restarted: bool) -> Round | None:
        """Record the release in audit log and database, once, before it is sent; None for a round that is sat out."""
        with transaction.atomic():
            row = Round.objects.select_for_update().get(case=self._case.row, round=masked.header.round)
            if row.state == Round.State.FAILED:
                return None
            if not row.audit_head:
                self._write(row, masked, restarted)
        return row

    def _write(self, row: Round, masked: MaskedVector, restarted: bool) -> None:
        state = self._journal.state
        assert state is not None
        assert state.open is not None
        manifest, sha256 = state.open.manifest, masked.header.payload
        wanted: dict[str, Value] = {"study": self._study_hash, "round": manifest.round, "sha256": sha256}
        if not (restarted and self._site.audit.holds(RELEASED, **wanted)):
            self._site.audit.append(
                RELEASED,
                **wanted,
                manifest=manifest.digest(),
                bytes=4 * masked.header.dimension,
                vectors=[term.name for term in manifest.vectors],
                steps=row.steps,
            )
        row.state = Round.State.RELEASED
        row.audit_head = self._site.audit.public_head().model_dump(mode="json")
        fork = reported_fork(self._site.home)
        row.release = {
            "fork": None if fork is None else fork.model_dump(mode="json"),
            "vectors": {term.name: term.length for term in manifest.vectors},
            "bytes": 4 * masked.header.dimension,
            "sha256": sha256,
        }
        row.save(update_fields=["state", "audit_head", "release"])

    def _answer(self, member: Member, state: MemberState) -> bool:
        assert state.open is not None
        round = state.last_round
        if state.open.answer is not None:
            return False
        letter = self._receive(round, letters.SURVIVORS)
        if letter is None:
            return False
        try:
            survivors = SurvivorList.from_bytes(read_blob(letter))
            acks = None
            if member.context.consistency:
                if state.open.acknowledged is None:
                    acknowledged, ack = member.acknowledge(state, survivors)
                    self._journal.commit(acknowledged, ack)
                    self._post.answered(round, letters.MASKED)
                    self._reply(letters.ACKNOWLEDGE, ack, round)
                    return True
                acks = self._acknowledged(round)
                if acks is None:
                    return False
            after, answer = member.unmask(state, survivors, acks)
        except SecaggError as error:
            if isinstance(error, JournalRolledBack | JournalDamaged):
                raise
            self._post.note("survivors_refused", (letter.digest,), round=round, reason=error)
            return False
        emails = [header.sender for header in survivors.headers]
        # First, since once the journal has the answer nothing brings this up again.
        Round.objects.filter(case=self._case.row, round=round).update(state=Round.State.UNMASKED, survivors=emails)
        # A list of any length must not be able to break the log: their number, and what the names hash to.
        audit = self._site.audit
        write, self._unsure = (audit.append_once if self._unsure else audit.append), True
        write(
            "unmasked",
            study=self._study_hash,
            round=round,
            survivors=len(emails),
            digest=sha256_hex(canonical_json(emails)),
        )
        self._journal.commit(after, answer)
        self._unsure = False
        self._post.answered(round, letters.MASKED, letters.ACKNOWLEDGE)
        self._reply(letters.UNMASK, answer, round)
        return True

    def _acknowledged(self, round: int) -> AckList | None:
        letter = self._receive(round, letters.ACKNOWLEDGED)
        return None if letter is None else AckList.from_bytes(read_blob(letter))

    def _reply(self, kind: str, message: Message, round: int) -> bool:
        return self._post.post(self._researcher, round, kind, {}, message.to_bytes())

    def _receive(self, round: int, kind: str) -> Letter | None:
        return self._post.receive(self._researcher, round, kind, LARGEST_LIST)
