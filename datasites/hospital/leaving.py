"""What leaves a hospital in a round, once the journal has made it: the masked vector, and the shares for unmasking.

The journal decides what a release is (I6); here it is put into audit log and database, sent, and sent again after a
restart, byte for byte. With the consistency wave this hospital first acknowledges one survivor list, and answers only
once enough others have acknowledged the same one (I8).
"""

from __future__ import annotations

from datasites.hospital.cases import OpenCase
from datasites.hospital.epochs import read_blob
from datasites.hospital.models import Round
from datasites.hospital.site import Site
from datasites.secagg.errors import JournalDamaged, JournalRolledBack, SecaggError
from datasites.secagg.journal import Journal
from datasites.secagg.member import Member
from datasites.secagg.messages import AckList, MaskedVector, Message, SurvivorAck, SurvivorList
from datasites.secagg.state import MemberState
from datasites.study import letters
from datasites.study.audit_chain import Head, records
from datasites.transport.mailroom import Letter, Mailroom, Rejected


class Leaving:
    """Sends what the journal of one study has made, and answers for survivor lists."""

    def __init__(self, site: Site, case: OpenCase, mailroom: Mailroom, journal: Journal) -> None:
        self._site, self._case, self._mailroom, self._journal = site, case, mailroom, journal
        self._study = case.row.study_hash
        self._researcher = case.study.researcher
        self._sent: set[int] = set()
        self._refused: set[int] = set()

    def step(self, member: Member | None) -> bool:
        """Send again what a restart may have kept from going out, or answer a survivor list; True when done."""
        state = self._journal.state
        if member is None or state is None or state.open is None or state.open.header is None:
            return False
        return self._resend(state) or self._answer(member, state)

    def release(self, state: MemberState, masked: MaskedVector) -> None:
        """Make the release in the journal, record it, send it."""
        self._journal.commit(state, masked)
        self._send(masked, restarted=False)

    def _resend(self, state: MemberState) -> bool:
        assert state.open is not None
        if state.last_round in self._sent:
            return False
        if state.open.answer is not None:
            self._sent.add(state.last_round)
            self._post(letters.UNMASK, state.open.answer, state.last_round)
        else:
            masked = self._journal.masked()
            assert masked is not None
            self._send(masked, restarted=True)
        return True

    def _send(self, masked: MaskedVector, restarted: bool) -> None:
        number = masked.header.round
        record = Round.objects.get(case=self._case.row, round=number)
        if not record.audit_head:
            self._record(record, masked, restarted)
        plan = self._case.evaluation
        body = letters.Masked(
            header=masked.to_bytes().decode(),
            audit=Head.model_validate(record.audit_head),
            counts_sigma={"final": plan.final_multiplier, "interim": plan.interim_multiplier or 0.0},
        )
        self._mailroom.send(
            self._researcher, self._study, number, letters.MASKED, body.model_dump(mode="json"), masked.payload
        )
        self._sent.add(number)

    def _record(self, record: Round, masked: MaskedVector, restarted: bool) -> None:
        """Put a release into audit log and database, once, before it is sent."""
        state = self._journal.state
        assert state is not None
        assert state.open is not None
        manifest, sha256 = state.open.manifest, masked.header.payload
        head = self._logged_before(manifest.round) if restarted else None
        if head is None:
            head = self._site.audit.append(
                "released",
                study=self._study,
                round=manifest.round,
                manifest=manifest.digest(),
                sha256=sha256,
                bytes=4 * masked.header.dimension,
                vectors=[term.name for term in manifest.vectors],
                steps=record.steps,
            )
        record.state = Round.State.RELEASED
        record.audit_head = head.model_dump(mode="json")
        record.release = {
            "vectors": {term.name: term.length for term in manifest.vectors},
            "bytes": 4 * masked.header.dimension,
            "sha256": sha256,
        }
        record.save(update_fields=["state", "audit_head", "release"])

    def _logged_before(self, number: int) -> Head | None:
        """The present head, if the log already holds this round's release (killed between log and database)."""
        wanted = ("released", self._study, number)
        for record in records(self._site.home.audit):
            if (record.kind, record.fields.get("study"), record.fields.get("round")) == wanted:
                return self._site.audit.head()
        return None

    def _answer(self, member: Member, state: MemberState) -> bool:
        assert state.open is not None
        number = state.last_round
        if state.open.answer is not None:
            return False
        letter = self._receive(number, letters.SURVIVORS)
        if letter is None:
            return False
        try:
            survivors = SurvivorList.from_bytes(read_blob(letter))
            acks = None
            if member.context.consistency:
                if state.open.acknowledged is None:
                    acknowledged, ack = member.acknowledge(state, survivors)
                    self._journal.commit(acknowledged, ack)
                    self._post(letters.ACKNOWLEDGE, ack, number)
                    return True
                acks = self._acknowledged(number)
                if acks is None:
                    return False
            after, answer = member.unmask(state, survivors, acks)
        except SecaggError as error:
            if isinstance(error, JournalRolledBack | JournalDamaged):
                raise
            self._refuse(number, str(error))
            return False
        emails = [header.sender for header in survivors.headers]
        self._site.audit.append("unmasked", study=self._study, round=number, survivors=emails)
        self._journal.commit(after, answer)
        Round.objects.filter(case=self._case.row, round=number).update(state=Round.State.UNMASKED, survivors=emails)
        self._post(letters.UNMASK, answer, number)
        return True

    def _acknowledged(self, number: int) -> AckList | None:
        sent = self._journal.sent(SurvivorAck)
        if sent is not None and number not in self._sent:
            self._post(letters.ACKNOWLEDGE, SurvivorAck.from_bytes(sent), number)
        letter = self._receive(number, letters.ACKNOWLEDGED)
        return None if letter is None else AckList.from_bytes(read_blob(letter))

    def _refuse(self, number: int, reason: str) -> None:
        if number not in self._refused:
            self._refused.add(number)
            self._site.audit.append("survivors_refused", study=self._study, round=number, reason=reason[:500])

    def _post(self, kind: str, message: Message, number: int) -> None:
        self._mailroom.send(self._researcher, self._study, number, kind, {}, message.to_bytes())

    def _receive(self, number: int, kind: str) -> Letter | None:
        try:
            return self._mailroom.receive(self._researcher, self._study, number, kind)
        except Rejected as error:
            self._site.audit.append("letter_rejected", study=self._study, round=number, reason=str(error)[:500])
            return None
