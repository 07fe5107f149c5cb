"""The hospital's side of setting up an epoch of the secure sum, over the mailroom.

Per epoch: the researcher's offer, this hospital's certificate, the enrolment, share bundles to and from each neighbour
(all peers, in a cohort of up to 64), and "ready". `EpochSetup.step` does whatever can be done now and returns whether
it did anything; each step is committed to the journal before its letter is sent, so it may be killed and called again
at any point.

Claim (whose keys): a round is charged, and its vector made, only under keys that are pinned at that moment: each key of
the epoch, the researcher's and every hospital's, is the one that the roster holds for that party now, and that entry is
the one that the audit log says people pinned last and have not revoked (`audit.entered`). Looked at when an epoch is
offered, before each round and before each release (`require_pinned_keys`); so a roster that somebody edits for a while
protects nothing for them, nor does the key of a party that was revoked, or pinned anew. Proof: masks are agreed with
the certificates in the journal, which were checked against the epoch's `EpochTerms`, whose digest is in the journal;
and the context is held against roster and log each time. A new key counts from the next epoch on, which the researcher
begins once it is pinned there and at enough hospitals; until then this hospital sits rounds out, and says by which
control. So does one without keys of any epoch, since its journal was given up: that is how the researcher learns of it.
One that never had any answers no round, since an honest researcher calls it to none before the first epoch. Not
claimed: that one says so whose journal and anchor were both lost before any round was charged; it can't be told from
one that never had keys.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from datasites.hospital.audit.entered import pinned_by_hand
from datasites.hospital.cases.case import OpenCase
from datasites.hospital.rounds.mail import StudyMail
from datasites.hospital.site import Site
from datasites.secagg.epoch_terms import EPOCH_DAYS, EPOCH_ROUNDS, EpochTerms, Party, epoch_rounds
from datasites.secagg.errors import SecaggError
from datasites.secagg.journal import Journal
from datasites.secagg.member import Member
from datasites.secagg.messages import Certificate, Enrolment, Ready, ShareBundle
from datasites.study import letters
from datasites.study.dates import today
from datasites.study.errors import DatasitesError, InputError
from datasites.study.files import replace_durably
from datasites.study.identity import IdentityError
from datasites.study.manifest import MOST_EPOCHS
from datasites.study.roster import Roster
from datasites.transport.letter import read_blob
from datasites.transport.mailroom import Letter

LARGEST_SETUP_LETTER = 64 * 1024 * 1024
#: How long this hospital waits for its neighbours' bundles before it reports ready with those that have come.
PEER_PATIENCE = 60.0
#: Offers that are looked at in one step: those of the epochs that come next. A researcher begins one epoch after the
#: other, so further ones concern only a hospital that was away for long, and come nearer with each step.
OFFERS_PER_STEP = 16


class OtherKeys(DatasitesError):
    """An epoch's keys are not those that are pinned now. `controls`: all that others learn of it."""

    controls: tuple[str, ...] = (letters.EPOCH_KEYS,)


class LostKeys(OtherKeys):
    """This hospital has no keys of any epoch: its journal was given up, and no epoch was set up since."""

    controls = (letters.EPOCH_LOST,)


class EpochSetup:
    """Sets epochs up for one study. `member` is the member of the newest epoch that this hospital has certified in."""

    def __init__(self, site: Site, case: OpenCase, post: StudyMail, journal: Journal, folder: Path) -> None:
        self._site, self._case, self._post, self._journal, self._folder = site, case, post, journal, folder
        self._study_hash = case.row.study_hash
        self._researcher = case.study.researcher
        self._enrolled_at: float | None = None
        self._refused: set[int] = set()
        self.member: Member | None = None
        state = journal.state
        if state is not None:
            self.member = Member(site.identity, self._stored(state.epoch))

    def _stored(self, epoch: int) -> EpochTerms:
        path = self._context_path(epoch)
        try:
            return EpochTerms.parse(path.read_bytes())
        except ValidationError as error:
            raise InputError(
                f"{path}: the terms of epoch {epoch} were stored by another version; `datasites study rejoin` gives "
                "its keys up and goes on in a new epoch"
            ) from error

    def step(self) -> bool:
        """Do what can be done now; True when something was."""
        return self._offer() or self._send_certificate() or self._enrol() or self._accept() or self._ready()

    def require_pinned_keys(self) -> None:
        """Raise `OtherKeys` unless each key of the present epoch is its party's, as pinned now and as the log knows.

        Raises `LostKeys` where there is no present epoch here.
        """
        if self.member is None:
            raise LostKeys(
                "this hospital's keys of the secure sum were given up; it takes part again from the next epoch on"
            )
        context = self.member.context
        wrong = self._not_pinned(Roster.load(self._site.home.roster), (context.aggregator, *context.hospitals))
        if wrong:
            raise OtherKeys(
                f"epoch {context.epoch} of the secure sum: {'; '.join(wrong)}. Where a key was replaced, ask the "
                "researcher to pin it too, and a new epoch follows; else `datasites doctor` says what to do"
            )

    def _not_pinned(self, roster: Roster, parties: Iterable[Party]) -> list[str]:
        """Say which of these parties' keys the roster does not hold, or not as the log says it was pinned, in words."""
        pinned = {entry.email: entry for entry in roster.entries}
        wrong, held = [], []
        for party in parties:
            entry = pinned.get(party.email)
            if entry is None:
                wrong.append(f"{party.email} is not pinned any more")
            elif entry.public_key != party.public_key:
                wrong.append(f"{party.email} is pinned with another key than this epoch was set up with")
            else:
                held.append(entry)
        return wrong + pinned_by_hand(self._site.home, held)

    def _next_epoch(self) -> int:
        return self._journal.floor[0] + 1

    def _context_path(self, epoch: int) -> Path:
        return self._folder / f"context-{epoch}.json"

    def _receive(self, sender: str, kind: str) -> Letter | None:
        return self._post.receive(sender, letters.SETUP_ROUND, kind, LARGEST_SETUP_LETTER)

    def _offered(self) -> list[int]:
        """Return epochs of which the mailbox seems to hold an offer: the next ones, the newest first."""
        prefix, first = letters.offer_kind(0)[:-1], self._next_epoch()
        near = range(first, first + OFFERS_PER_STEP)
        sure = [(letters.SETUP_ROUND, letters.offer_kind(epoch), self._researcher) for epoch in near]
        named = [
            int(kind.removeprefix(prefix))
            for round, kind, sender in self._post.mailbox(sure)
            # A file of another round or spelling (offer-07) is no letter, and must not hide one.
            if (sender, round) == (self._researcher, letters.SETUP_ROUND)
            and re.fullmatch(f"{prefix}(0|[1-9][0-9]*)", kind)
        ]
        # One that was refused is tried again (a party may be pinned by now), after those that were not.
        offered = sorted((n in self._refused, n) for n in named if first <= n <= MOST_EPOCHS)
        return sorted((n for _, n in offered[:OFFERS_PER_STEP]), reverse=True)

    def _offer(self) -> bool:
        for epoch in self._offered():
            letter = self._receive(self._researcher, letters.offer_kind(epoch))
            if letter is not None and self._certify(letter, epoch):
                return True
        return False

    def _certify(self, letter: Letter, epoch: int) -> bool:
        """Take part in the epoch that is offered; False when the offer is refused."""
        try:
            context = self._context(letter, epoch)
            member = Member(self._site.identity, context)
            state, certificate = member.certify(self._journal.state)
        except (SecaggError, IdentityError, ValidationError, ValueError) as error:
            self._refused.add(epoch)
            self._refuse(letter, f"offer of epoch {epoch}: {error}")
            return False
        # On the disk before the journal that can't be read without it.
        replace_durably(self._context_path(epoch), context.canonical())
        self._journal.commit(state, certificate)
        self.member = member
        # Before the first letter of this epoch, whose blobs would go as well.
        self._post.collect_setup(epoch - 1, over=True)
        self._post.over(before=letters.SETUP_ROUND + 1)
        self._send(self._researcher, letters.certificate_kind(epoch), certificate.to_bytes())
        return True

    def _context(self, letter: Letter, epoch: int) -> EpochTerms:
        offer = letters.EpochOffer.model_validate(letter.body)
        study = self._case.study
        if offer.epoch != epoch:
            raise ValueError("the offer names another epoch than its letter")
        strangers = set(offer.left_out) - set(study.cohort.hospitals)
        if strangers:
            raise ValueError(f"{', '.join(sorted(strangers))}: not in the cohort that was approved")
        hospitals = [email for email in study.cohort.hospitals if email not in offer.left_out]
        if offer.last_round > study.rounds + 1:
            raise ValueError(f"rounds up to {offer.last_round}, approved were {study.rounds} and the final evaluation")
        if offer.last_round > epoch_rounds(offer.first_round, study.rounds)[1]:
            raise ValueError(
                f"rounds {offer.first_round}..{offer.last_round}: an epoch trains at most {EPOCH_ROUNDS} rounds"
            )
        if offer.expires > study.ends:
            raise ValueError(f"keys until {offer.expires}, the study ends on {study.ends}")
        if offer.expires > today() + datetime.timedelta(days=EPOCH_DAYS):
            raise ValueError(f"keys until {offer.expires}: an epoch lasts at most {EPOCH_DAYS} days; compare clocks")
        needed = study.cohort.survivors_needed
        if len(hospitals) < needed:
            raise ValueError(f"{len(hospitals)} hospitals, every sum of the approved study holds {needed} or more")
        roster = Roster.load(self._site.home.roster)
        context = EpochTerms.from_roster(
            roster,
            study_hash=self._study_hash,
            epoch=epoch,
            aggregator=self._researcher,
            hospitals=hospitals,
            colluders=study.cohort.colluders,
            rounds=(offer.first_round, offer.last_round),
            expires=offer.expires,
            threshold=needed,
            consistency=study.consistency_wave,
        )
        wrong = self._not_pinned(roster, (context.aggregator, *context.hospitals))
        if wrong:
            raise IdentityError(f"{'; '.join(wrong)}; `datasites doctor` says what to do")
        return context

    def _send_certificate(self) -> bool:
        # Owed after a crash or an outage between commit and send.
        state = self._journal.state
        if state is None or state.enrolment is not None:
            return False
        kind = letters.certificate_kind(state.epoch)
        certificate = self._journal.sent(Certificate)
        if certificate is None or self._post.posted(self._researcher, letters.SETUP_ROUND, kind):
            return False
        return self._send(self._researcher, kind, certificate)

    def _enrol(self) -> bool:
        state = self._journal.state
        if state is None or self.member is None or state.enrolment is not None:
            return False
        letter = self._receive(self._researcher, letters.enrolment_kind(state.epoch))
        if letter is None:
            return False
        try:
            enrolment = Enrolment.from_bytes(read_blob(letter))
            state, bundles = self.member.share(state, enrolment, today=today())
        except SecaggError as error:
            self._refuse(letter, f"enrolment of epoch {state.epoch}: {error}")
            return False
        self._journal.commit(state, *bundles.values())
        self._post.answered(letters.SETUP_ROUND, letters.certificate_kind(state.epoch))
        self._enrolled_at = time.monotonic()
        self._send_bundles()
        return True

    def _send_bundles(self) -> None:
        state = self._journal.state
        assert state is not None
        assert state.enrolment is not None
        for certificate in state.enrolment.certificates:
            peer, kind = certificate.sender, letters.shares_kind(state.epoch)
            if peer != self._site.identity.email and not self._post.posted(peer, letters.SETUP_ROUND, kind):
                bundle = self._journal.sent(ShareBundle, peer)
                if bundle is not None:
                    self._send(peer, kind, bundle)

    def _accept(self) -> bool:
        state = self._journal.state
        if state is None or self.member is None or state.enrolment is None:
            return False
        if self._enrolled_at is None:
            self._enrolled_at = time.monotonic()
        self._send_bundles()
        if state.ready:
            return False
        came = False
        kind = letters.shares_kind(state.epoch)
        for sender in sorted(self.member.awaited(state)):
            letter = self._receive(sender, kind)
            if letter is None:
                continue
            try:
                state = self.member.accept(state, ShareBundle.from_bytes(read_blob(letter)))
                self._journal.commit(state)
                came = True
            except SecaggError as error:
                self._refuse(letter, f"shares of {sender}: {error}")
        return came

    def _ready(self) -> bool:
        state = self._journal.state
        if state is None or self.member is None or state.enrolment is None:
            return False
        kind = letters.ready_kind(state.epoch)
        if self._post.posted(self._researcher, letters.SETUP_ROUND, kind):
            return False
        answer = self._journal.sent(Ready)
        if answer is None:
            waited = time.monotonic() - (self._enrolled_at or time.monotonic())
            if waited < PEER_PATIENCE and self.member.awaited(state):
                return False
            after, ready = self.member.ready(state)
            self._journal.commit(after, ready)
            answer = ready.to_bytes()
        return self._send(self._researcher, kind, answer)

    def _send(self, to: str, kind: str, payload: bytes) -> bool:
        return self._post.post(to, letters.SETUP_ROUND, kind, {}, payload)

    def _refuse(self, letter: Letter, reason: str) -> None:
        self._post.note("setup_refused", (letter.digest,), party=letter.sender, reason=reason)
