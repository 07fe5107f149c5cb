"""The hospital's side of setting up an epoch of the secure sum, over the mailroom.

Per epoch: the researcher's offer, this hospital's certificate, the enrolment, share bundles to and from every peer, and
"ready". `EpochSetup.step` does whatever can be done now and returns whether it did anything; each step is committed to
the journal before its letter is sent, so it may be killed and called again at any point.
"""

from __future__ import annotations

import datetime
import logging
import time
from pathlib import Path

from pydantic import ValidationError

from datasites.hospital.cases import OpenCase
from datasites.hospital.site import Site
from datasites.secagg.context import Context
from datasites.secagg.errors import SecaggError
from datasites.secagg.journal import Journal
from datasites.secagg.member import Member
from datasites.secagg.messages import Certificate, Enrolment, Ready, ShareBundle
from datasites.study import letters
from datasites.study.identity import IdentityError, Roster
from datasites.transport.mailroom import Letter, Mailroom, Rejected

LARGEST_SETUP_LETTER = 64 * 1024 * 1024
#: How long this hospital waits for its peers' bundles before it reports ready with those that have come.
PEER_PATIENCE = 60.0

log = logging.getLogger(__name__)


def read_blob(letter: Letter) -> bytes:
    """The letter's payload, empty when it has none."""
    return bytes(letter.blob or b"")


class EpochSetup:
    """Sets epochs up for one study. `member` is the member of the newest epoch that this hospital has certified in."""

    def __init__(self, site: Site, case: OpenCase, mailroom: Mailroom, journal: Journal, folder: Path) -> None:
        self._site, self._case, self._mailroom, self._journal, self._folder = site, case, mailroom, journal, folder
        self._study = case.row.study_hash
        self._researcher = case.study.researcher
        self._enrolled_at: float | None = None
        self._certified: set[int] = set()
        self._reported: set[int] = set()
        self.member: Member | None = None
        state = journal.state
        if state is not None:
            self.member = Member(site.identity, Context.parse(self._context_path(state.epoch).read_bytes()))

    def step(self) -> bool:
        """Do what can be done now; True when something was."""
        return self._offer() or self._resend_certificate() or self._enrol() or self._accept() or self._ready()

    def awaited(self) -> list[tuple[str, str, int, str]]:
        """Letters that could move the setup on."""
        state = self._journal.state
        if state is None or self.member is None:
            return [self._from_researcher(letters.offer_kind(self._next_epoch()))]
        if state.enrolment is None:
            return [self._from_researcher(letters.enrolment_kind(state.epoch))]
        kind = letters.shares_kind(state.epoch)
        return [
            (certificate.sender, self._study, letters.SETUP_ROUND, kind)
            for certificate in state.enrolment.certificates
            if certificate.sender not in state.holds
        ]

    def _from_researcher(self, kind: str) -> tuple[str, str, int, str]:
        return (self._researcher, self._study, letters.SETUP_ROUND, kind)

    def _next_epoch(self) -> int:
        return self._journal.floor[0] + 1

    def _context_path(self, epoch: int) -> Path:
        return self._folder / f"context-{epoch}.json"

    def _receive(self, sender: str, kind: str) -> Letter | None:
        try:
            return self._mailroom.receive(sender, self._study, letters.SETUP_ROUND, kind, max_blob=LARGEST_SETUP_LETTER)
        except (Rejected, IdentityError) as error:
            log.warning("setup: %s", error)
            return None

    def _offer(self) -> bool:
        prefix = letters.offer_kind(0)[:-1]
        offered = [
            int(kind.removeprefix(prefix))
            for _, kind, sender in self._mailroom.mailbox(self._study)
            if sender == self._researcher and kind.startswith(prefix) and kind.removeprefix(prefix).isdecimal()
        ]
        epoch = max(offered, default=-1)
        if epoch < self._next_epoch():
            return False
        letter = self._receive(self._researcher, letters.offer_kind(epoch))
        if letter is None:
            return False
        try:
            context = self._context(letter, epoch)
            member = Member(self._site.identity, context)
            state, certificate = member.certify(self._journal.state)
        except (SecaggError, IdentityError, ValidationError, ValueError) as error:
            self._refuse(f"offer of epoch {epoch}: {error}")
            return False
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._context_path(epoch).write_bytes(context.canonical())
        self._journal.commit(state, certificate)
        self.member = member
        self._send(self._researcher, letters.certificate_kind(epoch), certificate.to_bytes())
        return True

    def _context(self, letter: Letter, epoch: int) -> Context:
        offer = letters.EpochOffer.model_validate(letter.body)
        study = self._case.study
        if offer.epoch != epoch:
            raise ValueError("the offer names another epoch than its letter")
        strangers = set(offer.hospitals) - set(study.cohort.hospitals)
        if strangers:
            raise ValueError(f"{', '.join(sorted(strangers))}: not in the cohort that was approved")
        if offer.last_round > study.rounds + 1:
            raise ValueError(f"rounds up to {offer.last_round}, approved were {study.rounds} and the final evaluation")
        if offer.expires > study.ends:
            raise ValueError(f"keys until {offer.expires}, the study ends on {study.ends}")
        whole = len(offer.hospitals) == len(study.cohort.hospitals)
        return Context.from_roster(
            Roster.load(self._site.home.roster),
            study=self._study,
            epoch=epoch,
            aggregator=self._researcher,
            hospitals=offer.hospitals,
            colluders=study.cohort.colluders,
            rounds=(offer.first_round, offer.last_round),
            expires=offer.expires,
            threshold=study.cohort.survivors_needed if whole else None,
            consistency=study.cohort.consistency_wave,
        )

    def _resend_certificate(self) -> bool:
        # After a crash between commit and send; the mailroom makes a second send of the same letter a no-op.
        state = self._journal.state
        if state is None or state.epoch in self._certified or state.enrolment is not None:
            return False
        self._certified.add(state.epoch)
        certificate = self._journal.sent(Certificate)
        if certificate is not None:
            self._send(self._researcher, letters.certificate_kind(state.epoch), certificate)
        return False

    def _enrol(self) -> bool:
        state = self._journal.state
        if state is None or self.member is None or state.enrolment is not None:
            return False
        letter = self._receive(self._researcher, letters.enrolment_kind(state.epoch))
        if letter is None:
            return False
        try:
            enrolment = Enrolment.from_bytes(read_blob(letter))
            state, bundles = self.member.share(state, enrolment, today=datetime.datetime.now(datetime.UTC).date())
        except SecaggError as error:
            self._refuse(f"enrolment of epoch {state.epoch}: {error}")
            return False
        self._journal.commit(state, *bundles.values())
        self._enrolled_at = time.monotonic()
        self._send_bundles()
        return True

    def _send_bundles(self) -> None:
        state = self._journal.state
        assert state is not None
        assert state.enrolment is not None
        for certificate in state.enrolment.certificates:
            if certificate.sender != self._site.identity.email:
                bundle = self._journal.sent(ShareBundle, certificate.sender)
                if bundle is not None:
                    self._send(certificate.sender, letters.shares_kind(state.epoch), bundle)

    def _accept(self) -> bool:
        state = self._journal.state
        if state is None or self.member is None or state.enrolment is None:
            return False
        if self._enrolled_at is None:
            self._enrolled_at = time.monotonic()
            self._send_bundles()
        came = False
        for sender, _, _, kind in self.awaited():
            letter = self._receive(sender, kind)
            if letter is None:
                continue
            try:
                state = self.member.accept(state, ShareBundle.from_bytes(read_blob(letter)))
                self._journal.commit(state)
                came = True
            except SecaggError as error:
                self._refuse(f"shares of {sender}: {error}")
        return came

    def _ready(self) -> bool:
        state = self._journal.state
        if state is None or self.member is None or state.enrolment is None or state.epoch in self._reported:
            return False
        answer = self._journal.sent(Ready)
        if answer is None:
            everybody = {certificate.sender for certificate in state.enrolment.certificates}
            waited = time.monotonic() - (self._enrolled_at or time.monotonic())
            if state.holds < everybody and waited < PEER_PATIENCE:
                return False
            ready = self.member.ready(state)
            self._journal.commit(state, ready)
            answer = ready.to_bytes()
        self._reported.add(state.epoch)
        self._send(self._researcher, letters.ready_kind(state.epoch), answer)
        return True

    def _send(self, to: str, kind: str, payload: bytes) -> None:
        self._mailroom.send(to, self._study, letters.SETUP_ROUND, kind, {}, payload)

    def _refuse(self, reason: str) -> None:
        log.warning("setup refused: %s", reason)
        self._site.audit.append("setup_refused", study=self._study, reason=reason[:500])
