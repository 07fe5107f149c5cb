"""The aggregator over the mailroom: sets up epochs of the secure sum, and opens one sum per round.

State is saved before each message goes out, so a killed researcher goes on where it was: what was sent is sent again
as it was, what came is read again. A letter that the store loses is put again while its answer is waited for. So are
our keys: at each setup, at each round's start, and while answers are waited for. Each epoch has its own files, and is
the present one once they are there and whoever runs the study has saved its number (`new_epoch`). Nothing here knows
what is summed.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from pydantic import JsonValue

from datasites.aggregator.gather import LARGEST_ANSWER, LARGEST_SETUP_LETTER, Question, RunError, gather
from datasites.aggregator.run_files import RunFolder
from datasites.secagg import ring
from datasites.secagg.aggregator import Aggregator
from datasites.secagg.aggregator_state import AggregatorState, OpenedSum
from datasites.secagg.epoch_terms import EPOCH_DAYS, EpochTerms, epoch_rounds
from datasites.secagg.errors import CommitmentsLost, OutOfOrder, SecaggError, TooFew, WrongShare
from datasites.secagg.messages import Certificate, MaskedVector, Message, Ready, SurvivorAck, UnmaskShares
from datasites.study import letters
from datasites.study.dates import today
from datasites.study.identity import Identity, IdentityError
from datasites.study.manifest import RoundManifest, StudyTerms
from datasites.study.roster import Roster
from datasites.transport.letter import read_blob
from datasites.transport.mailroom import Blob, Letter, Mailroom, Rejected, Undelivered
from datasites.transport.store import WHOLE_STORE, StoreError

log = logging.getLogger(__name__)


def _file(epoch: int) -> str:
    return f"aggregator-{epoch}.bin"


@dataclass(frozen=True)
class Wait:
    """How long to wait, in seconds: for the rest once there are enough, and for enough. present: who is waited for."""

    present: frozenset[str]
    patience: float
    timeout: float


@dataclass(frozen=True)
class Survivors:
    """Who is in a round's sum, and which letters were refused, in words."""

    emails: tuple[str, ...]
    refused: tuple[str, ...]


class SecureSum:
    """The secure sum of one study, over all its epochs."""

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        mailroom: Mailroom,
        files: RunFolder,
        study_hash: str,
        epoch: int,
        publish: Callable[[], None] = lambda: None,
    ) -> None:
        """Go on in `epoch`; -1 when none was set up yet. publish: puts our keys where the store has lost them."""
        self._publish = publish
        self._identity, self._roster, self._mailroom, self._files, self._study_hash = (
            identity,
            roster,
            mailroom,
            files,
            study_hash,
        )
        self.epoch = epoch
        self._question: Question | None = None
        self._aggregator: Aggregator | None = None
        self._state: AggregatorState | None = None
        context = files.read(f"context-{epoch}.json") if epoch >= 0 else None
        if context is not None:
            try:  # it may be damaged, or be of a key that this researcher had before
                self._aggregator = Aggregator(identity, EpochTerms.parse(context))
            except (SecaggError, ValueError) as error:
                log.warning("%s", error)
        self.forget_unsaved()

    @property
    def is_lost(self) -> bool:
        """Return whether the epoch's state can't be read, or is of our last key, so that its rounds can't go on."""
        return self.epoch >= 0 and self._state is None

    @property
    def is_set_up(self) -> bool:
        """Return whether rounds can be opened: enough hospitals hold each other's shares."""
        return self.is_enrolled and len(self.available()) >= self.context.threshold

    @property
    def is_enrolled(self) -> bool:
        """Return whether it is fixed who is in the present epoch; others can join the next one only."""
        return self._state is not None and self._state.enrolment is not None

    def is_over(self, round: int) -> bool:
        """Return whether `round` needs another epoch: the present one has not begun it and can't open it now."""
        covered = round in self.context.rounds and today() <= self.context.expires
        return not covered and not self.has_begun(round)

    def has_begun(self, round: int) -> bool:
        """Return whether `round` was opened, so that hospitals may have taken its manifest and take no other."""
        return self._state is not None and self._state.record.last_round >= round

    def late(self) -> set[str]:
        """Hospitals of the present epoch that came too late to take part in it, and are there now, as they signed."""
        _, state = self._parts()
        assert state.enrolment is not None
        enrolled = {certificate.sender for certificate in state.enrolment.certificates}
        awaited = [
            (email, self._study_hash, letters.SETUP_ROUND, kind(self.context.epoch))
            for email in set(self.hospitals) - set(self.available())
            for kind in [letters.ready_kind if email in enrolled else letters.certificate_kind]
        ]
        return {email for email, *_ in self._mailroom.signed(awaited)}

    def replaced(self) -> set[str]:
        """Return parties of the present epoch for which another key is pinned here now than it was set up with."""
        pinned = {entry.email: entry.public_key for entry in self._roster.entries}
        parties = (self.context.aggregator, *self.context.hospitals)
        return {party.email for party in parties if pinned.get(party.email, party.public_key) != party.public_key}

    def forget_unsaved(self) -> None:
        """Go back to what is on disk. After an interruption a sum in memory may be half opened, and so be wrong."""
        self._state = None
        if self._aggregator is None:
            return
        stored = self._files.read(self._file)
        try:
            if stored is not None:
                self._state = AggregatorState.from_bytes(stored, self._files.read(self._enrolment_file))
        except SecaggError as error:
            log.warning("%s", error)

    @property
    def context(self) -> EpochTerms:
        """Return the terms of the present epoch."""
        return self._parts()[0].context

    @property
    def hospitals(self) -> list[str]:
        """Return the hospitals of the present epoch."""
        return [party.email for party in self.context.hospitals]

    def available(self) -> tuple[str, ...]:
        """Return hospitals that hold each other's shares, and so can take part."""
        aggregator, state = self._parts()
        return aggregator.available(state)

    def collect_setup(self, before: int) -> None:
        """Remove from the store what the setups of epochs before this one have left there."""

        def is_over(kind: str) -> bool:
            setup = letters.setup_epoch(kind)
            return setup is not None and setup[1] < before

        self._mailroom.collect_kinds(self._study_hash, letters.SETUP_ROUND, is_over, blobs_too=True)

    # -- setup -----------------------------------------------------------------------------------------------------

    def new_epoch(
        self,
        terms: StudyTerms,
        hospitals: Iterable[str],
        first_round: int,
        save: Callable[[int], None] = lambda epoch: None,
    ) -> None:
        """Begin the next epoch among `hospitals`, for the rounds from `first_round` on that one epoch may hold.

        `save` makes its number durable, once its files are. Where it is refused (`SecaggError`, `IdentityError`), or
        anything fails up to then, the last epoch is still the present one.
        """
        emails, epoch = tuple(sorted(hospitals)), self.epoch + 1
        context = EpochTerms.from_roster(
            self._roster,
            study_hash=self._study_hash,
            epoch=epoch,
            aggregator=self._identity.email,
            hospitals=emails,
            colluders=terms.cohort.colluders,
            rounds=epoch_rounds(first_round, terms.rounds),
            # A day less than hospitals allow, in case their clocks have not come as far.
            expires=min(terms.ends, today() + datetime.timedelta(days=EPOCH_DAYS - 1)),
            threshold=terms.cohort.survivors_needed,
            consistency=terms.consistency_wave,
        )
        aggregator = Aggregator(self._identity, context)
        state = aggregator.start()
        self._files.write(f"context-{epoch}.json", context.canonical())
        self._files.write(_file(epoch), state.to_bytes())
        save(epoch)
        self.epoch, self._aggregator, self._state = epoch, aggregator, state

    def set_up(
        self, cohort: Collection[str], patience: float, present: Collection[str] | None = None
    ) -> tuple[str, ...]:
        """Exchange certificates and shares in the present epoch; returns who can take part.

        cohort: hospitals of the approved study. Waits for `present` (everybody when None) for at most `patience`
        seconds, twice; raises `RunError` when fewer than the threshold have come.
        """
        aggregator, state = self._parts()
        context, epoch = aggregator.context, self.epoch
        self._publish()
        if state.enrolment is None:
            self.collect_setup(epoch)
        offer = letters.EpochOffer(
            epoch=epoch,
            left_out=tuple(sorted(set(cohort) - set(self.hospitals))),
            first_round=context.first_round,
            last_round=context.last_round,
            expires=context.expires,
        )
        self._post(self.hospitals, letters.SETUP_ROUND, letters.offer_kind(epoch), offer.model_dump(mode="json"))
        day = today()
        if self._parts()[1].enrolment is None:

            def certified(letter: Letter) -> None:
                certificate = Certificate.from_bytes(read_blob(letter))
                self._state = aggregator.receive_certificate(self._parts()[1], certificate, today=day)

            self._await_all(letters.certificate_kind(epoch), certified, self.hospitals, patience, present)
            try:
                state, closed = aggregator.enrol(self._parts()[1], today=day)
            except TooFew as error:
                raise RunError(f"setup: {error}; are the datasites running, and did they approve?") from error
            # Once, and before the state that needs it: that is written again at every step.
            self._files.write(self._enrolment_file, closed.to_bytes())
            self._save(state)
        enrolment = self._parts()[1].enrolment
        assert enrolment is not None
        enrolled = [certificate.sender for certificate in enrolment.certificates]
        self._send(enrolled, letters.SETUP_ROUND, letters.enrolment_kind(epoch), enrolment)

        def ready(letter: Letter) -> None:
            self._state = aggregator.receive_ready(self._parts()[1], Ready.from_bytes(read_blob(letter)))

        self._await_all(letters.ready_kind(epoch), ready, enrolled, patience, present)
        available = self.available()
        if len(available) < context.threshold:
            raise RunError(
                f"setup: {len(available)} hospitals hold each other's shares, the threshold is {context.threshold}; "
                "start the datasites that are missing and run again"
            )
        self._save(self._parts()[1])
        self._files.remove_but(self._file, "aggregator-*.bin")
        self._files.remove_but(self._enrolment_file, "enrolment-*.json")
        return available

    def _await_all(
        self,
        kind: str,
        take: Callable[[Letter], None],
        emails: Iterable[str],
        patience: float,
        present: Collection[str] | None,
    ) -> None:
        everybody = set(emails)
        came: set[str] = set()

        def taken(letter: Letter) -> None:
            take(letter)
            came.add(letter.sender)

        gather(
            self._mailroom,
            self._study_hash,
            letters.SETUP_ROUND,
            {kind: taken},
            max_blob={kind: LARGEST_SETUP_LETTER},
            wanted=everybody,
            present=everybody if present is None else everybody & set(present),
            patience=patience,
            timeout=patience,
            question=self._question,
            enough=lambda: present is None or len(came) >= self.context.threshold,
        )

    # -- one round -------------------------------------------------------------------------------------------------

    def opened(self, round: int) -> RoundManifest | None:
        """Return the manifest of `round` if it was opened before a restart."""
        open_round = self._parts()[1].record.round
        if open_round is None or open_round.signed.manifest.round != round:
            return None
        return open_round.signed.manifest

    def broadcast(self, manifest: RoundManifest, model: bytes) -> None:
        """Open the round (or go on with it) and send manifest and model to its participants."""
        aggregator, state = self._parts()
        state, signed = aggregator.open_round(state, manifest)
        self._save(state)
        self._publish()
        body: dict[str, JsonValue] = {"manifest": signed.to_bytes().decode()}
        self._post(manifest.participants, manifest.round, letters.ROUND, body, model)

    def collect(
        self,
        round: int,
        wait: Wait,
        masked: Callable[[Letter, letters.Masked], None],
        other: Mapping[str, Callable[[Letter], None]],
    ) -> Survivors:
        """Wave 1: add masked vectors up, fix the survivors, tell them. Other kinds of letters count as answers too.

        A vector whose letter `masked` refuses (by raising) is not added. Raises `RunError` when there are fewer
        survivors than the threshold; where too many have sent other letters, the rest is waited for with patience only.
        """
        aggregator, state = self._parts()
        assert state.record.round is not None
        came, declined = set[str](), set[str]()
        survivors = state.record.round.survivors
        wanted = set(state.record.round.signed.manifest.participants)
        if survivors is not None:
            wanted = {header.sender for header in survivors.headers}

        def take(letter: Letter) -> None:
            body = letters.Masked.model_validate(letter.body)
            vector = MaskedVector.from_bytes(body.header.encode(), memoryview(letter.blob or b""))
            masked(letter, body)
            if survivors is None:
                self._state = aggregator.receive(self._parts()[1], vector)
            came.add(letter.sender)

        def declines(taken: Callable[[Letter], None], letter: Letter) -> None:
            taken(letter)
            declined.add(letter.sender)

        threshold = aggregator.context.threshold
        refused = gather(
            self._mailroom,
            self._study_hash,
            round,
            {letters.MASKED: take, **{kind: partial(declines, taken) for kind, taken in other.items()}},
            max_blob={letters.MASKED: 4 * ring.dimension(state.record.round.signed.manifest.vectors)},
            wanted=wanted,
            present=set(wait.present) & wanted,
            patience=wait.patience,
            timeout=wait.timeout,
            question=self._question,
            enough=lambda: len(came) >= threshold or len(wanted - declined) < threshold,
        )
        try:
            state, survivors = aggregator.survivors(self._parts()[1])
        except TooFew as error:
            raise RunError(str(error), tuple(refused)) from error
        self._save(state)
        emails = tuple(header.sender for header in survivors.headers)
        self._send(emails, round, letters.SURVIVORS, survivors)
        if aggregator.context.consistency:
            refused += self._acknowledge(round, emails, wait)
        return Survivors(emails, tuple(refused))

    def _acknowledge(self, round: int, emails: tuple[str, ...], wait: Wait) -> list[str]:
        """Consistency wave: every survivor has seen one and the same list before any answers it."""
        aggregator = self._parts()[0]
        came: set[str] = set()

        def take(letter: Letter) -> None:
            self._state = aggregator.receive_ack(self._parts()[1], SurvivorAck.from_bytes(read_blob(letter)))
            came.add(letter.sender)

        refused = gather(
            self._mailroom,
            self._study_hash,
            round,
            {letters.ACKNOWLEDGE: take},
            max_blob={letters.ACKNOWLEDGE: LARGEST_ANSWER},
            wanted=set(emails),
            present=set(emails),
            patience=wait.patience,
            timeout=wait.timeout,
            question=self._question,
            enough=lambda: len(came) >= aggregator.context.threshold,
        )
        try:
            state, acks = aggregator.acknowledged(self._parts()[1])
        except TooFew as error:
            raise RunError(str(error)) from error
        self._save(state)
        self._send(emails, round, letters.ACKNOWLEDGED, acks)
        return refused

    def unmask(self, round: int, survivors: Survivors, wait: Wait) -> tuple[OpenedSum, tuple[str, ...]]:
        """Wave 2: gather shares until the sum opens; returns it, and what was refused, in words.

        Raises `RunError` when too few survivors answer, or when shares are wrong: it blames whose they are. Then
        nothing was learnt.
        """
        aggregator = self._parts()[0]
        opened: list[OpenedSum] = []
        wrong: list[WrongShare] = []
        shut = ["too few survivors answered"]

        def answered(letter: Letter) -> None:
            self._state = aggregator.receive_shares(self._parts()[1], UnmaskShares.from_bytes(read_blob(letter)))
            if aggregator.can_open(self._parts()[1]):
                try:
                    opened.append(aggregator.result(self._parts()[1], ready_again=self._ready_again))
                except WrongShare as error:
                    log.warning("%s", error)
                    wrong.append(error)
                except CommitmentsLost as error:
                    log.warning("%s", error)
                    shut.append(str(error))
                except (TooFew, OutOfOrder) as error:
                    log.warning("round %d: %s", round, error)

        refused = gather(
            self._mailroom,
            self._study_hash,
            round,
            {letters.UNMASK: answered},
            max_blob={letters.UNMASK: LARGEST_ANSWER},
            wanted=set(survivors.emails),
            present=set(survivors.emails),
            patience=wait.patience,
            timeout=wait.timeout,
            question=self._question,
            done=lambda: bool(opened),
        )
        if wrong and not opened:
            raise RunError(
                f"the sum could not be opened: {wrong[-1]}. The next round goes on from the same model, without "
                f"{', '.join(wrong[-1].members)}",
                tuple(refused),
                wrong[-1].members,
            )
        if not opened:
            raise RunError(
                f"round {round}: the sum could not be opened: {shut[-1]}. The next round goes on from the same model",
                tuple(refused),
            )
        refused += [f"{email}: sent wrong shares, which were left out" for email in opened[-1].wrong_shares_from]
        return opened[-1], tuple(refused)

    def _ready_again(self, owner: str) -> Ready | None:
        """Return a hospital's "ready" letter, which the store keeps as long as its epoch; None if it can't be read."""
        kind = letters.ready_kind(self.context.epoch)
        try:
            letter = self._mailroom.receive(
                owner, self._study_hash, letters.SETUP_ROUND, kind, max_blob=LARGEST_SETUP_LETTER
            )
            return None if letter is None else Ready.from_bytes(read_blob(letter))
        except WHOLE_STORE:
            raise
        except (Rejected, IdentityError, StoreError, SecaggError) as error:
            log.warning("%s of %s: %s", kind, owner, error)
            return None

    # -- parts -----------------------------------------------------------------------------------------------------

    def _parts(self) -> tuple[Aggregator, AggregatorState]:
        if self._aggregator is None or self._state is None:
            raise RunError("the secure sum is not set up, or its state is lost; `set_up` begins an epoch")
        return self._aggregator, self._state

    @property
    def _file(self) -> str:
        return _file(self.epoch)

    @property
    def _enrolment_file(self) -> str:
        return f"enrolment-{self.epoch}.json"

    def _save(self, state: AggregatorState) -> None:
        """Go on to this state; where it can't be written, the last one stays."""
        self._files.write(self._file, state.to_bytes())
        self._state = state

    def _send(self, to: Iterable[str], round: int, kind: str, message: Message) -> None:
        self._post(to, round, kind, {}, message.to_bytes())

    def _post(
        self, to: Iterable[str], round: int, kind: str, body: dict[str, JsonValue], payload: Blob | None = None
    ) -> None:
        """Send to all; one that can't be reached (its keys in the store are others, say) is as good as absent.

        Answers are waited for next: until then the letters can be sent again, as they are.
        """

        def send(emails: Collection[str]) -> None:
            try:
                self._mailroom.send_all(list(emails), self._study_hash, round, kind, body, payload)
            except Undelivered as error:
                log.warning("%s %d: %s", kind, round, error)

        send(list(to))
        self._question = Question(kind, send, self._publish)
