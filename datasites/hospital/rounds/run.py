"""One approved study at this hospital, from setup to close: check, charge, train, mask, journal, release; then unmask.

The order of a round is fixed, and each line is durable before the next begins: a worker may be taken to have the rows,
before which the letter is not read (`ticks`); policies allow, and the epoch's keys are those that people have pinned
(`rounds.setup`); the journal opens the manifest and keeps the round's secret (one per round, I6); the ledger is charged
(I5); a worker trains in its sandbox, with keys of that secret (`round_keys`); the round's tick comes (`ticks`); the
release policy allows, and the epoch's keys are still those that are pinned; the journal keeps the masked vector; the
audit log records the release (I11); the letter goes out. Killed anywhere, the next `step` goes on from what is durable:
it trains again under the same charge and keys if nothing was masked, and sends the journal's copy if something was,
unless the round was sat out meanwhile (`abstaining`).

**Theorem (what leaves in a round, and when; I16).** The *public record* is what people declare and enter, what others
send, faults, and the clock. Everything that a round lets out (letters, records of the audit log, whose heads go out,
and the moments of both, in ticks) is a function of the public record, of what priced mechanisms gave, and of randomness
that is independent of rows.

Proof. `_attend` looks at no row: an abstention, and the charge with its record, follow from the case's terms (in which
rows stand as a keyed commitment), the letter, the policies' facts, all of them declared, and the ledger. `RowWork`
looks at rows. It runs in a thread that sends nothing, logs nothing into the audit log, and is waited for by nobody
before the tick, so every other letter leaves when it would have left. What it gives comes out through two doors, the
noised gradient and the noised counts. `_end_of_work` begins at the tick and does work of public size on that. Where it
has failed, nothing leaves and nothing is logged; the case is stopped for people, who answer in their own words.

Of all rounds whose letters lie in the mailbox the newest that may be believed is begun, unless the researcher has said
that it is over (`letters.OVER`); it is sat out then. So whoever returns charges only what can still count, as far as
the researcher has said. Which round that is follows from letters and from which rounds are charged already, before rows
are looked at; a round that is charged by then goes on as it would have.

A letter that the store has lost while it waits for its answer is put again, the same bytes: after pauses that are
counted from when this process first put it (`transport.repeats`), and at once after a restart, which is a fault and so
public. So its moments are as public as that one. Which letters are looked at, how many in a step, and how many records
strangers' letters give rise to follow from names and bytes in the store and the clock.

What remains: silence. Whether a round is answered at all depends on whether its work ends, twice at most; that does not
depend on rows as long as no row can make the worker fail, which is the trainer's to see to (`privacy.trainer`): no
exception handler around rows, operations that can raise by a row's values refused, rows that are not finite zeroed. So
an adversary who finds such a row after all learns one bit, once: the study is then stopped until people have looked.
And overruns, in whole ticks (`ticks`). Assumptions: those of `commitments`, `round_keys` and the masks (computational);
the machine's load is not observed otherwise; this process and the worker's confinement work as they should.
"""

from __future__ import annotations

import logging
import math
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from django.db import transaction

from datasites.enclave.sandbox import SandboxUnavailable
from datasites.hospital.budget import ledger
from datasites.hospital.cases import compliance
from datasites.hospital.cases.case import OpenCase, open_case
from datasites.hospital.cases.freeze import FrozenCopyChanged
from datasites.hospital.cases.machine import AtWork, Machine
from datasites.hospital.cases.owed import settle
from datasites.hospital.data.withdrawal import withdrawn
from datasites.hospital.database import DATABASE_AWAY
from datasites.hospital.models import Case, Round
from datasites.hospital.rounds.abstaining import abstention_of, log_abstention
from datasites.hospital.rounds.closing import closing_step
from datasites.hospital.rounds.journals import journal_of, open_journal
from datasites.hospital.rounds.mail import StudyMail
from datasites.hospital.rounds.manifest import RoundRefused, check_manifest
from datasites.hospital.rounds.release import RoundReleases
from datasites.hospital.rounds.round_keys import RoundKeys
from datasites.hospital.rounds.row_work import Computed, RowWork
from datasites.hospital.rounds.setup import EpochSetup, OtherKeys
from datasites.hospital.site import Site
from datasites.hospital.ticks import GRACE, TICK, begins_at, leaves_at
from datasites.secagg.errors import JournalDamaged, JournalRolledBack
from datasites.secagg.journal import NOTHING_REACHED
from datasites.secagg.messages import MaskedVector, SignedManifest
from datasites.secagg.state import MemberState
from datasites.study import letters
from datasites.study.audit_chain import RELEASED, AuditError
from datasites.study.canonical import sha256_hex
from datasites.study.dates import today
from datasites.study.errors import DatasitesError
from datasites.study.manifest import PARAMETER_BOUND, RoundManifest
from datasites.transport.letter import read_blob
from datasites.transport.mailroom import Letter, Mailroom
from datasites.transport.store import StoreError
from policies.facts import ReleaseFacts

log = logging.getLogger(__name__)

#: Letters of rounds that are looked at in one step before one is found that may be believed; then others have their
#: turn. An honest researcher has one round open at a time.
LETTERS_PER_STEP = 16
#: What does not cost a round: an outage of store or database, after which the round goes on where it was; a journal
#: that may release nothing, which stops the study; and a damaged audit log, which ends the service, since nothing may
#: run that can't be logged (I14). Anything else before rows are looked at costs this hospital that round and no more.
NOT_OF_THE_ROUND = (StoreError, *DATABASE_AWAY, JournalRolledBack, JournalDamaged, AuditError)


def foreseen(error: Exception) -> bool:
    """Say whether our own code raised it: its message is for people and holds no value of a row; others' may."""
    return isinstance(error, DatasitesError)


def in_words(error: Exception) -> str:
    """Return an error as people here read it; others' text may hold a value of a row."""
    return f"{error.rule}: {error}" if isinstance(error, DatasitesError) else type(error).__name__


@dataclass(frozen=True)
class _RoundAtWork:
    """A round whose rows are worked on, or were and wait for their tick. Times are of the monotonic clock."""

    case: OpenCase
    manifest: RoundManifest
    work: Future[Computed]
    started: float
    due: float


class StudyRun:
    """The running study of one case. `step` does what can be done now.

    machine: what the runs of one datasite share; left out, this run has it to itself.
    """

    def __init__(self, site: Site, mailroom: Mailroom, row: Case, machine: Machine | None = None) -> None:
        self._site = site
        self._pk = row.pk
        self.study_hash = row.study_hash
        self._case = open_case(site.home, row)
        if differs := self._case.differs:
            log.error("case %d: no round will run: %s; `datasites doctor` says what to do", row.pk, "; ".join(differs))
        self._researcher = self._case.study.researcher
        self._post = StudyMail(site, mailroom, row.study_hash, self._researcher)
        folder, _ = journal_of(site.home, row.study_hash)
        self._journal = open_journal(site.home, row.study_hash)
        try:
            self._setup = EpochSetup(site, self._case, self._post, self._journal, folder.parent)
        except BaseException:
            self._journal.close()
            raise
        self._releases = RoundReleases(site, self._case, self._post, self._journal)
        self._machine = machine or Machine()
        self._rows = RowWork(site, self._machine)
        self._announced = AtWork(site.home)
        self._at_work: _RoundAtWork | None = None
        self._halted = self._unread = False
        #: Who had withdrawn when a start of a worker was last due, when that begins, and from when on it has its rows.
        self._loads: frozenset[str] | None = None
        self._load_begins = self._loaded_at = 0.0
        #: Rounds whose letters came before that and are not read yet.
        self._waiting: frozenset[int] = frozenset()
        #: Round whose abstention this process has logged, if it has not sent it yet.
        self._logged_abstention = 0
        #: Epoch whose setup this process has cleared out of the store.
        self._collected_setup = -1

    @property
    def wakes_at(self) -> float | None:
        """When `step` is wanted for a release that waits for its tick, or for a letter that waits for a worker, by the
        monotonic clock; not before.
        """
        if self._halted:
            return None
        if self._at_work is not None:
            return self._at_work.due - TICK
        return self._loaded_at if self._waiting else None

    @property
    def post(self) -> StudyMail:
        """This study's letters."""
        return self._post

    @property
    def looks_at(self) -> float | None:
        """When `step` is wanted for a letter that may be lost or has not been looked at yet, by the monotonic clock."""
        if self._halted:
            return None
        return time.monotonic() if self._unread else self._post.looks_at

    def close(self, *, wait: bool = False) -> None:
        """End the work on rows and close the journal. wait: until no worker of it is left (`RowWork.close`)."""
        self._rows.close(wait=wait)
        self._announced.end()
        self._journal.close()

    def step(self) -> bool:
        """Do one thing that can be done now; True when something was done.

        A letter that is refused raises nothing; a journal that may release nothing stops the case. Raises `StoreError`
        or one of `DATABASE_AWAY` during an outage, after which it may be called again, and anything else only for what
        nobody foresaw.
        """
        try:
            return self._step()
        finally:
            self.stand_aside()

    def stand_aside(self) -> None:
        """Say no longer that a round is at work whose tick is past and whose rows are done; also where no step can do
        anything, since what keeps this study waiting keeps nobody's rehearsal.
        """
        round, now = self._at_work, time.monotonic()
        if round is None or (round.work.done() and now > round.due):
            self._announced.end()
        elif now > round.due:  # it overran, which shows in whole ticks and no finer
            self._at_work = replace(round, due=leaves_at(round.started, round.case.approval_terms.ticks, now))

    def _step(self) -> bool:
        row = Case.objects.get(pk=self._pk)
        if row.owed:
            settle(self._site, self._pk)
        self._post.look_again()
        if self._at_work is None and not compliance.may_run_code(self._site.home, self._case):
            self._rows.unload()  # it was started while that was accepted; none follows (`start_worker`)
        unsaid = self._sat_out(row)
        try:
            ends = (*Case.ACTIVE, Case.State.STOPPED)
            if row.state in ends and closing_step(self._site, self._case, self._post, row):
                return True
            if unsaid is not None and self._say_sat_out(unsaid):
                return True
            runs = row.state in (Case.State.APPROVED, Case.State.RUNNING)
            self._halted = not runs or compliance.is_killed(self._site.home)
            if self._halted:
                return False
            if self._at_work is not None:
                self._announced.begin()  # again, where it stood aside
                return self._end_of_work(row, self._at_work)
            self._load()
            return self._setup.step() or self._releases.step(self._setup.member) or self._round(row)
        except (JournalRolledBack, JournalDamaged) as error:
            self._site.audit.append("stopped", study=self.study_hash, reason=str(error)[:500])
            self._stop(row, str(error))
            return True

    # -- one round ---------------------------------------------------------------------------------------------

    def _round(self, row: Case) -> bool:
        member, state = self._setup.member, self._journal.state
        self._unread, waited, self._waiting = False, self._waiting, frozenset()
        # Without any state the keys were given up, and each new round is sat out by that (`LostKeys`); or there never
        # were any, and then no round can be this hospital's: it takes the first epoch, whatever was sent before.
        if state is None and self._journal.floor == NOTHING_REACHED:
            return False
        if state is not None and (member is None or state.enrolment is None):
            return False
        # A file of any other round is nobody's letter. Nor is one of a round that was reached before this epoch: the
        # journal knows of those, also where a rejoin has begun a new one (`abstaining`).
        first = self._journal.floor[1] + 1 if state is None or state.open is None else state.last_round
        last = self._case.study.rounds + 1
        last = last if member is None else min(member.context.last_round, last)
        sure = [(round, letters.ROUND, self._researcher) for round in range(first, last + 1)]
        open_rounds = set(sure)
        present = self._post.mailbox([*sure, *((round, letters.OVER, self._researcher) for round, _, _ in sure)])
        called = [item for item in present if item in open_rounds]
        for round, _, _ in called[: -LETTERS_PER_STEP - 1 : -1]:
            done = Round.objects.filter(case=row, round=round).first()
            if done is not None and done.state not in (Round.State.ACCEPTED, Round.State.CHARGED):
                return False
            charged = done is not None and done.state == Round.State.CHARGED
            if not charged and (round, letters.OVER, self._researcher) in present and self._is_over(round):
                reason = f"round {round}: was over before this hospital began it; nothing is charged for it"
                self._abstain(row, round, "denied", (letters.ROUND_OVER,), reason)
                return True
            if member is not None and time.monotonic() < self._loaded_at:
                # Nothing is charged or said, and the machine is free for others, until a worker is taken to be there.
                self._waiting = frozenset(round for round, _, _ in called)
                return False
            letter = self._post.receive(self._researcher, round, letters.ROUND, self._largest_model)
            if letter is not None:
                # Reading it may take minutes. Who has withdrawn since is left out, by a worker that starts before.
                if member is None or withdrawn(self._site.home, self._case.dataset.name) == self._loads:
                    self._attend(row, round, letter, waited=round in waited)
                return True
        self._unread = len(called) > LETTERS_PER_STEP
        return False

    def _is_over(self, round: int) -> bool:
        """Say whether the researcher has said that nobody waits for this round's answers any more."""
        return self._post.receive(self._researcher, round, letters.OVER, 0) is not None

    def _load(self) -> None:
        """Let a worker start with the rows of today, in a span that is public (`ticks`)."""
        left_out = withdrawn(self._site.home, self._case.dataset.name)
        if left_out != self._loads:
            self._loads = left_out
            if time.monotonic() >= self._load_begins:  # else the start that is due will leave them out
                self._warm()
                now = time.monotonic()  # a template that had to start takes nothing of the span
                self._load_begins, self._loaded_at = self._machine.load(now, self._case.loading_ticks * TICK)
                self._rows.start(self._case, self._load_begins - now)
        self._rows.revive(self._case)

    def _warm(self) -> None:
        """See to it that a start in a span takes what it took on mock rows: from a template that is there."""
        try:
            self._site.template.start()
        except (OSError, SandboxUnavailable) as error:
            log.warning("no template yet: %s", error)  # the round that needs a worker says why it has none

    def _attend(self, row: Case, round: int, letter: Letter, *, waited: bool) -> None:
        """Check and charge a round, and begin its work. No row is looked at here, so each outcome may be answered.

        waited: for a worker, since before it was taken to have its rows.
        """
        now = time.monotonic()
        begins = begins_at(self._loaded_at, now) if waited else now
        self._post.over(before=round)
        try:
            case = self._case = open_case(self._site.home, row)
            signed = SignedManifest.from_bytes(str(letter.body.get("manifest", "")).encode())
            manifest = signed.manifest
            if manifest.round != round:
                raise RoundRefused(f"round {round}: its letter holds the manifest of round {manifest.round}")
            check_manifest(case, manifest, case.approval_terms.parameters)
            parameters = self._model(letter, manifest, case.approval_terms.parameters)
            decision = compliance.decide(self._site, case, "run_round", manifest=manifest)
            compliance.require(decision, "run_round", row.approval_hash)
            self._setup.require_pinned_keys()
            self._open(row, signed)
            asked = case.round_asked(manifest)
            ledger.charge(self._site, case.dataset, self.study_hash, round, asked, manifest.digest())
            Round.objects.filter(case=row, round=round).update(state=Round.State.CHARGED)
        except (compliance.Denied, OtherKeys, FrozenCopyChanged) as error:
            self._abstain(row, round, "denied", error.controls, str(error))
        except NOT_OF_THE_ROUND:
            raise
        except Exception as error:
            self._abstain(row, round, "failed", (), in_words(error))
        else:
            assert self._loads is not None
            self._announced.begin()
            # Another study's rows may be at work: this round takes its turn when that one leaves, which is public.
            started = max(begins, self._machine.free_at)
            due = leaves_at(started, case.approval_terms.ticks, started)
            work = self._rows.begin(
                case, manifest, parameters, lambda records: self._keys(case, manifest, records), self._loads
            )
            self._machine.free_at, self._at_work = due, _RoundAtWork(case, manifest, work, started, due)

    def _keys(self, case: OpenCase, manifest: RoundManifest, records: str) -> RoundKeys:
        state = self._journal.state
        assert state is not None
        assert state.open is not None
        assert state.open.manifest_hash == manifest.digest()
        return RoundKeys(state.open.secret, state.open.manifest_hash, case.approval_hash, records)

    def _end_of_work(self, row: Case, round: _RoundAtWork) -> bool:
        """Release what was computed, once its tick has come; True when that is over.

        Masks, policies and the log's records all come after the tick, so that no time in them tells how long the work
        on rows took. Work that failed is for people here alone: nothing answers by itself.
        """
        now = time.monotonic()
        if now > round.due + GRACE:  # the service was kept away; that must not show but in whole ticks
            round = self._at_work = replace(round, due=leaves_at(round.started, round.case.approval_terms.ticks, now))
        if now < round.due - TICK:
            return False
        time.sleep(max(0.0, round.due - now))
        if not round.work.done():
            self._at_work = replace(round, due=round.due + TICK)
            self._machine.free_at = max(self._machine.free_at, round.due + TICK)
            return False
        # What was computed is kept while a service is unavailable, and let go of once it is answered or in the journal.
        if Round.objects.filter(case=row, round=round.manifest.round, state=Round.State.CHARGED).exists():
            try:
                masked = self._masked(row, round, round.work.result())
            except (compliance.Denied, OtherKeys) as error:
                self._abstain(row, round.manifest.round, "denied", error.controls, str(error))
            except NOT_OF_THE_ROUND:
                raise
            except Exception as error:
                reason = f"round {round.manifest.round}: {in_words(error)}"
                Round.objects.filter(case=row, round=round.manifest.round).update(reason=reason)
                self._stop(row, reason)
            else:
                # From the journal's commit on the release is made, and no error can turn it into an abstention.
                self._at_work = None
                self._releases.release(*masked)
        # Else people have answered for it meanwhile, and it was said that this hospital sits it out.
        self._at_work = None
        return True

    def _open(self, row: Case, signed: SignedManifest) -> None:
        member, state = self._setup.member, self._journal.state
        assert member is not None
        assert state is not None
        opened = member.open(state, signed, today=today())
        if opened != state:
            self._journal.commit(opened)
        manifest = signed.manifest
        # The aggregator has opened this round, so it needs nothing of earlier ones any more.
        self._post.collect(before=manifest.round)
        if self._collected_setup != state.epoch:
            # All that came at the setup is in the journal, and no bundle is taken in any more.
            self._post.collect_setup(state.epoch)
            self._collected_setup = state.epoch
        Round.objects.get_or_create(
            case=row, round=manifest.round, defaults={"epoch": manifest.epoch, "manifest_hash": manifest.digest()}
        )
        if row.state == Case.State.APPROVED:
            Case.objects.filter(pk=row.pk, state=Case.State.APPROVED).update(state=Case.State.RUNNING)

    def _model(self, letter: Letter, manifest: RoundManifest, dimension: int) -> npt.NDArray[np.float32]:
        blob = read_blob(letter)
        if sha256_hex(blob) != manifest.model_hash or len(blob) != 4 * dimension:
            raise RoundRefused(f"round {manifest.round}: the model is not the one that the manifest names")
        model = np.frombuffer(blob, dtype="<f4").astype(np.float32)
        # Here and not on rows, so that whoever sent such a model is told so.
        if not (np.abs(model) <= PARAMETER_BOUND).all():
            raise RoundRefused(
                f"round {manifest.round}: the model holds numbers that are not finite or beyond +-{PARAMETER_BOUND:g}; "
                "send one that has not diverged"
            )
        return model

    @property
    def _largest_model(self) -> int:
        """Bytes of this study's model, float32."""
        return 4 * self._case.approval_terms.parameters

    def _masked(self, row: Case, round: _RoundAtWork, computed: Computed) -> tuple[MemberState, MaskedVector]:
        """Return the masked vector, allowed to leave; nothing has left before the journal holds it."""
        case, manifest = round.case, round.manifest
        member, state = self._setup.member, self._journal.state
        assert member is not None
        assert state is not None
        after, masked = member.mask(state, computed.vectors, rounding=computed.rounding)
        expected = sum(term.length for term in manifest.vectors)
        facts = ReleaseFacts(
            round=manifest.round,
            masked=after.open is not None and after.open.header == masked.header,
            noised=computed.steps == (case.plan.steps_per_round if manifest.train else 0),
            charged=ledger.is_charged(
                ledger.study_account(case.dataset, self.study_hash), manifest.round, case.round_asked(manifest)
            ),
            dimension=masked.header.dimension,
            expected_dimension=expected,
        )
        decision = compliance.decide(self._site, case, "release", manifest=manifest, release=facts)
        compliance.require(decision, "release", row.approval_hash)
        self._setup.require_pinned_keys()
        # For the hospital alone, and before the one commit that makes the release. Steps were counted by the trainer.
        Round.objects.filter(case=row, round=manifest.round).update(
            steps=computed.steps, seconds=computed.seconds, reason=_noted(round, computed)
        )
        return after, masked

    # -- ends --------------------------------------------------------------------------------------------------

    def _abstain(
        self, row: Case, round: int, outcome: Literal["denied", "failed"], controls: tuple[str, ...], reason: str
    ) -> None:
        log.warning("round %d: %s: %s", round, outcome, reason)
        if not self._abstained(row, round, outcome, controls, reason):
            self._stop(row, f"round {round} is released, as the log says, and can't be sat out; resume or rejoin")
            return
        unsaid = self._sat_out(row)
        if unsaid is not None:
            self._say_sat_out(unsaid)

    def _abstained(
        self, row: Case, round: int, outcome: Literal["denied", "failed"], controls: tuple[str, ...], reason: str
    ) -> bool:
        """Decide that a round is sat out, unless people have; False for one whose release the log holds."""
        with transaction.atomic():
            Round.objects.get_or_create(case=row, round=round, defaults={"epoch": 0, "manifest_hash": ""})
            stored = Round.objects.select_for_update().get(case=row, round=round)
            if stored.state == Round.State.FAILED:
                return True
            if self._site.audit.holds(RELEASED, study=self.study_hash, round=round):
                return False
            # Decided once this is saved: asked again after an outage, policies might allow what they denied before.
            stored.reason = reason
            stored.abstain(letters.Abstention(outcome=outcome, controls=controls), reason)
        return True

    def _sat_out(self, row: Case) -> Round | None:
        """Return the newest round, logged by now, if it is sat out and that has not been sent; see `abstaining`."""
        newest = Round.objects.filter(case=row).order_by("-round").first()
        if newest is None or newest.state != Round.State.FAILED or not newest.abstention:
            return None
        if self._post.posted(self._researcher, newest.round, letters.ABSTAINED):
            return None
        if self._logged_abstention != newest.round:
            log_abstention(self._site, self.study_hash, newest)
            self._logged_abstention = newest.round
        return newest

    def _say_sat_out(self, round: Round) -> bool:
        fields = abstention_of(round).model_dump(mode="json")
        return self._post.post(self._researcher, round.round, letters.ABSTAINED, fields)

    def _stop(self, row: Case, reason: str) -> None:
        """Take part in nothing until people have looked. What rows had a part in is not in the audit log (I16)."""
        log.error("study stopped: %s", reason)
        Case.objects.filter(pk=row.pk, state__in=Case.ACTIVE).update(state=Case.State.STOPPED, note=reason)


def _noted(round: _RoundAtWork, computed: Computed) -> str:
    """Say what the hospital's own people should know of a round that went well."""
    late = math.ceil((round.due - round.started) / TICK - 1e-6) - round.case.approval_terms.ticks
    notes = [f"left {late} ticks of {TICK:g} s late"] if late > 0 else []
    notes += ["its worker crashed, and was started again"] if computed.crashes else []
    return "; ".join(notes)
