"""One approved study at this hospital, from setup to close: check, charge, train, mask, journal, release; then unmask.

The order of a round is fixed, and each line is durable before the next begins: policies allow; the journal opens the
manifest (one per round, I6); the ledger is charged (I5); the worker trains in its sandbox; the release policy allows;
the audit log records the release (I11); the journal keeps the masked vector; the letter goes out. Killed anywhere, the
next `step` goes on from what is durable: it trains again under the same charge if nothing was masked, and sends the
journal's copy if something was.

What leaves is a masked vector, a bare abstention, or shares; never a loss, a count, a log or a time (I7).
"""

from __future__ import annotations

import datetime
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from datasites.enclave.worker import TrainResult, Worker, WorkerError
from datasites.hospital import compliance, ledger
from datasites.hospital.admission import start_worker
from datasites.hospital.cases import OpenCase, open_case, partitions
from datasites.hospital.closing import closing_step, journal_of
from datasites.hospital.correspondence import Correspondence
from datasites.hospital.epochs import EpochSetup, read_blob
from datasites.hospital.leaving import Leaving
from datasites.hospital.models import Case, Round
from datasites.hospital.site import Site
from datasites.hospital.ticks import GRACE, TICK, leaves_at
from datasites.hospital.withdrawal import withdrawn
from datasites.secagg.errors import JournalDamaged, JournalRolledBack
from datasites.secagg.journal import Journal
from datasites.secagg.messages import MaskedVector, SignedManifest
from datasites.secagg.state import MemberState
from datasites.study import letters
from datasites.study.audit_chain import AuditError, records
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.errors import DatasitesError
from datasites.study.manifest import RoundManifest, SharedNoise
from datasites.study.rounds import round_terms
from datasites.transport.mailroom import Letter, Mailroom
from datasites.transport.store import StoreError
from policies.facts import ReleaseFacts

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: What does not cost a round: an outage of the store, after which the round goes on where it was; a journal that may
#: release nothing, which stops the study; and a damaged audit log, which ends the service, since nothing may run that
#: can't be logged (I14). Anything else in a round costs this hospital that round and no more.
NOT_OF_THE_ROUND = (StoreError, JournalRolledBack, JournalDamaged, AuditError)

#: Refusals of the worker after which the study itself can't be trusted: a row's gradient depends on other rows, or the
#: model's code changed the trainer's (I15).
STOPPING_RULES = ("dependent-rows", "monkey-patch")


class RoundRefused(DatasitesError):
    """A manifest does not follow from the approved study; this hospital sits the round out."""


def check_manifest(case: OpenCase, manifest: RoundManifest, dimension: int) -> None:
    """Raise `RoundRefused` unless `manifest` is one that the approved study calls for.

    Rounds 1..n train (and may hold an interim evaluation where the study says so); round n+1 is the final evaluation.
    dimension: number of model parameters.
    """
    study, number = case.study, manifest.round
    if number > study.rounds + 1:
        raise RoundRefused(f"round {number}: the study has {study.rounds} and a final evaluation")
    holds = round_terms(study, number, dimension=dimension, participants=len(manifest.participants))
    for name, wanted, found in (
        ("study", case.row.study_hash, manifest.study),
        ("train", holds.train, manifest.train),
        ("evaluate", holds.evaluate, manifest.evaluate),
        ("threshold", holds.threshold, manifest.threshold),
        ("weight_max", holds.weight_max, manifest.weight_max),
        *_differences("shared", holds.shared, manifest.shared),
        *((f"plan.{name}", planned, said) for name, planned, said in _planned(case, manifest.shared)),
        ("vectors", [(t.name, t.length) for t in holds.vectors], [(t.name, t.length) for t in manifest.vectors]),
        ("bound", [t.bound for t in holds.vectors], [t.bound for t in manifest.vectors]),
        ("scale", [t.scale for t in holds.vectors], [t.scale for t in manifest.vectors]),
    ):
        if wanted != found:
            raise RoundRefused(
                f"round {number}: {name} is {found}, the approved study calls for {wanted}; "
                "run the study as it was approved"
            )


def _differences(
    name: str, wanted: SharedNoise | None, found: SharedNoise | None
) -> Iterator[tuple[str, object, object]]:
    """Terms of shared noise one by one, so that a refusal names the one."""
    if wanted is None or found is None:
        yield name, wanted, found
        return
    for field in SharedNoise.model_fields:
        yield f"{name}.{field}", getattr(wanted, field), getattr(found, field)


def _planned(case: OpenCase, shared: SharedNoise | None) -> Iterator[tuple[str, object, object]]:
    """What the approved plans, which are charged, rest on, and what the round says it does (I17)."""
    plan, counts = case.plan, case.evaluation
    yield "mode", plan.mode, "local" if shared is None else "distributed"
    if shared is not None:
        yield "noise_multiplier", plan.noise_multiplier, shared.noise_multiplier
        yield "clip", plan.clip, shared.clip
        yield "sampling_rate", plan.sampling_rate, shared.sampling_rate
        yield "honest", plan.honest, shared.honest
        yield "evaluation", counts.final_multiplier, shared.evaluation_noise_multiplier
        yield "honest", counts.honest, shared.honest


def foreseen(error: Exception) -> bool:
    """Whether a room of ours raised it: its words are for people, and hold no value of a row. Others' words may."""
    return type(error).__module__.startswith(("datasites.", "policies."))


def log_charge(site: Site, case: OpenCase, number: int) -> None:
    """Put the charge of a round into the audit log, by the digest of its entry in the ledger."""
    record = Round.objects.get(case=case.row, round=number)
    entry = ledger.round_entry(case.dataset, case.row.study_hash, number)
    site.audit.append(
        "charged",
        study=case.row.study_hash,
        round=number,
        manifest=record.manifest_hash,
        digest=sha256_hex(canonical_json(entry)),
    )


def log_unlogged_charges(site: Site, case: OpenCase) -> None:
    """Log charges that a kill has kept out of the log; no later step would, and evidence needs both to agree."""
    study = case.row.study_hash
    charged = set(Round.objects.filter(case=case.row).values_list("round", flat=True))
    charged &= ledger.charged_rounds(case.dataset, study)
    if charged:
        for record in records(site.home.audit):
            if record.kind == "charged" and record.fields.get("study") == study:
                charged.discard(record.fields.get("round"))
    for number in sorted(charged):
        log_charge(site, case, number)


@dataclass(frozen=True)
class _Held:
    """What a round has computed and not released: it waits for its tick. Times are of the monotonic clock."""

    case: OpenCase
    manifest: RoundManifest
    vectors: dict[str, npt.NDArray[np.generic]]
    steps: int
    started: float
    seconds: float
    due: float


class StudyRun:
    """The running study of one case. `step` does what can be done now."""

    def __init__(self, site: Site, mailroom: Mailroom, row: Case) -> None:
        self._site = site
        self._pk = row.pk
        self.study_hash = row.study_hash
        self._case = open_case(site.home, row)
        self._researcher = self._case.study.researcher
        log_unlogged_charges(site, self._case)
        self._post = Correspondence(site, mailroom, row.study_hash, self._researcher)
        folder, anchor = journal_of(site.home, row.study_hash)
        self._journal = Journal(folder, anchor)
        try:
            self._setup = EpochSetup(site, self._case, self._post, self._journal, folder.parent)
        except BaseException:
            self._journal.close()
            raise
        self._worker: Worker | None = None
        self._withdrawn: frozenset[str] = frozenset()
        self._dimension: int | None = None
        self._leaving = Leaving(site, self._case, self._post, self._journal)
        self._held: _Held | None = None

    @property
    def wakes_at(self) -> float | None:
        """When `step` is wanted for a release that waits for its tick, by the monotonic clock; not before."""
        return None if self._held is None else self._held.due - TICK

    def close(self) -> None:
        """End the worker and let go of the journal."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        self._journal.close()

    def step(self) -> bool:
        """Do one thing that can be done now; True when something was done.

        A letter that is refused raises nothing; a journal that may release nothing stops the case. Raises `StoreError`
        during an outage, after which it may be called again, and anything else only for what nobody foresaw.
        """
        row = Case.objects.get(pk=self._pk)
        try:
            ends = (*Case.ACTIVE, Case.State.STOPPED)
            if row.state in ends and closing_step(self._site, self._case, self._post, row):
                return True
            if self._send_abstention(row):
                return True
            if row.state not in (Case.State.APPROVED, Case.State.RUNNING) or compliance.is_killed(self._site.home):
                return False
            if self._held is not None:
                return self._release_held(row, self._held)
            return self._setup.step() or self._leaving.step(self._setup.member) or self._round(row)
        except (JournalRolledBack, JournalDamaged) as error:
            self._stop(row, str(error))
            return True

    # -- one round ---------------------------------------------------------------------------------------------

    def _round(self, row: Case) -> bool:
        member, state = self._setup.member, self._journal.state
        if member is None or state is None or state.enrolment is None:
            return False
        for number, kind, sender in reversed(self._post.mailbox()):
            if number < max(1, state.last_round):
                return False
            # The study has one more round than it trains in, so a file of any later one is nobody's letter.
            if (kind, sender) != (letters.ROUND, self._researcher) or number > self._case.study.rounds + 1:
                continue
            done = Round.objects.filter(case=row, round=number).first()
            if done is not None and done.state not in (Round.State.ACCEPTED, Round.State.CHARGED):
                return False
            letter = self._post.receive(self._researcher, number, letters.ROUND, self._largest_model(row))
            if letter is not None:
                self._attend(row, number, letter)
                return True
        return False

    def _attend(self, row: Case, number: int, letter: Letter) -> None:
        started = time.monotonic()
        with self._errors_of(row, number):
            case = self._case = open_case(self._site.home, row)
            signed = SignedManifest.from_bytes(str(letter.body.get("manifest", "")).encode())
            manifest = signed.manifest
            if manifest.round != number:
                raise RoundRefused(f"round {number}: its letter holds the manifest of round {manifest.round}")
            worker = self._started_worker(case)
            check_manifest(case, manifest, worker.description.count)
            parameters = self._model(letter, manifest, worker.description.count)
            decision = compliance.decide(self._site, case, "run_round", manifest=manifest)
            compliance.require(decision, "run_round", row.approval_hash)
            self._open(row, signed)
            ledger.charge(case.dataset, self.study_hash, number, case.round_asked(manifest))
            Round.objects.filter(case=row, round=number).update(state=Round.State.CHARGED)
            log_charge(self._site, case, number)
            vectors, steps = self._compute(case, manifest, parameters)
            now = time.monotonic()
            if now - started > case.terms.ticks * TICK:
                log.warning("round %d: took %.2f s, more than its %d ticks", number, now - started, case.terms.ticks)
            due = leaves_at(started, case.terms.ticks, now)
            self._held = _Held(case, manifest, vectors, steps, started, now - started, due)

    def _release_held(self, row: Case, held: _Held) -> bool:
        """Mask and release what was computed, once its tick has come; True when it has left.

        All of this comes after the tick, the records in the log included, so that no time in them tells how long the
        work on rows took.
        """
        now = time.monotonic()
        if now > held.due + GRACE:  # other studies' work has kept the service away; that must not show either
            held = self._held = replace(held, due=leaves_at(held.started, held.case.terms.ticks, now))
        if now < held.due - TICK:
            return False
        time.sleep(max(0.0, held.due - now))
        self._held, made = None, None
        with self._errors_of(row, held.manifest.round):
            made = self._masked(row, held)
        if made is not None:
            # From the journal's commit on the release is made, and no error can turn it into an abstention.
            self._leaving.release(*made)
        return True

    @contextmanager
    def _errors_of(self, row: Case, number: int) -> Iterator[None]:
        """What an error in a round comes to."""
        try:
            yield
        except compliance.Denied as error:
            self._abstain(row, number, "denied", error.controls, str(error))
        except NOT_OF_THE_ROUND:
            raise
        except Exception as error:
            rule = getattr(error, "rule", "") or type(error).__name__
            if rule in STOPPING_RULES:
                self._stop(row, f"round {number}: {rule}: {error}")
            self._abstain(row, number, "failed", (), f"{rule}: {error}" if foreseen(error) else rule)

    def _open(self, row: Case, signed: SignedManifest) -> None:
        member, state = self._setup.member, self._journal.state
        assert member is not None
        assert state is not None
        opened = member.open(state, signed, today=datetime.datetime.now(datetime.UTC).date())
        if opened != state:
            self._journal.commit(opened)
        manifest = signed.manifest
        # The aggregator has opened this round, so it needs nothing of earlier ones any more.
        self._post.collect(before=manifest.round)
        Round.objects.get_or_create(
            case=row, round=manifest.round, defaults={"epoch": manifest.epoch, "manifest_hash": manifest.digest()}
        )
        if row.state == Case.State.APPROVED:
            Case.objects.filter(pk=row.pk, state=Case.State.APPROVED).update(state=Case.State.RUNNING)

    def _model(self, letter: Letter, manifest: RoundManifest, dimension: int) -> npt.NDArray[np.float32]:
        blob = read_blob(letter)
        if sha256_hex(blob) != manifest.model_hash or len(blob) != 4 * dimension:
            raise RoundRefused(f"round {manifest.round}: the model is not the one that the manifest names")
        return np.frombuffer(blob, dtype="<f4").astype(np.float32)

    def _started_worker(self, case: OpenCase) -> Worker:
        gone = withdrawn(self._site.home, case.dataset.name)
        if self._worker is not None and gone != self._withdrawn:
            self._worker.close()
        if self._worker is None or not self._worker.alive:
            self._worker = start_worker(self._site.home, case, partitions(self._site.home, case))
            self._withdrawn = gone
            self._dimension = self._worker.description.count
        return self._worker

    def _largest_model(self, row: Case) -> int | None:
        """Bytes of this study's model, float32; None when no worker starts, for which `_attend` then abstains."""
        if self._dimension is None:
            try:
                self._started_worker(open_case(self._site.home, row))
            except NOT_OF_THE_ROUND:
                raise
            except Exception as error:
                log.warning("no worker yet: %s", error if foreseen(error) else type(error).__name__)
        return None if self._dimension is None else 4 * self._dimension

    def _compute(
        self, case: OpenCase, manifest: RoundManifest, parameters: npt.NDArray[np.float32]
    ) -> tuple[dict[str, npt.NDArray[np.generic]], int]:
        vectors: dict[str, npt.NDArray[np.generic]] = {}
        steps = 0
        if manifest.train:
            result = self._with_worker(case, lambda worker: self._train(worker, case, manifest, parameters))
            if case.plan.mode == "distributed":
                # Whole grid steps, as they are: the noise that was priced is the noise that is summed.
                vectors["gradient"] = result.update
            else:
                share = min(1.0, case.dataset.declared_patients / manifest.weight_max)
                vectors["update"] = result.update.astype(np.float64) * share
                vectors["weight"] = np.array([share])
            steps = result.steps
        if manifest.evaluate != "no":
            kind = manifest.evaluate
            counts = self._with_worker(
                case,
                lambda worker: worker.evaluate(
                    parameters,
                    plan=case.evaluation,
                    kind=kind,
                    key=os.urandom(32),
                    slots=case.study.training.slots,
                    ring=case.counts_ring(kind),
                ),
            )
            vectors["counts"] = counts.reshape(-1)
        return vectors, steps

    def _train(
        self, worker: Worker, case: OpenCase, manifest: RoundManifest, parameters: npt.NDArray[np.float32]
    ) -> TrainResult:
        return worker.train(
            parameters,
            plan=case.plan,
            training=case.study.training,
            divisor=case.divisor,
            round=manifest.round,
            key=os.urandom(32),
            ring=case.gradient_ring(len(parameters)),
        )

    def _with_worker(self, case: OpenCase, call: Callable[[Worker], Result]) -> Result:
        """Call the worker; a crash is tried once more with a fresh one, under the same charge (nothing has left)."""
        try:
            return call(self._started_worker(case))
        except WorkerError as error:
            if self._worker is not None and self._worker.alive:
                raise
            log.warning("worker ended (%s); starting another", error)
            # Not in the audit log, whose heads leave: a crash may depend on a row (I16).
            return call(self._started_worker(case))

    def _masked(self, row: Case, held: _Held) -> tuple[MemberState, MaskedVector]:
        """The masked vector, allowed to leave; nothing has left before the journal holds it."""
        case, manifest, vectors, steps = held.case, held.manifest, held.vectors, held.steps
        member, state = self._setup.member, self._journal.state
        assert member is not None
        assert state is not None
        after, masked = member.mask(state, vectors)
        expected = sum(term.length for term in manifest.vectors)
        facts = ReleaseFacts(
            round=manifest.round,
            masked=after.open is not None and after.open.header == masked.header,
            noised=steps == (case.plan.steps_per_round if manifest.train else 0),
            charged=ledger.is_charged(case.dataset, self.study_hash, manifest.round, case.round_asked(manifest)),
            dimension=masked.header.dimension,
            expected_dimension=expected,
        )
        decision = compliance.decide(self._site, case, "release", manifest=manifest, release=facts)
        compliance.require(decision, "release", row.approval_hash)
        # Steps were counted by the trainer; they go into the database before the one commit that makes the release.
        Round.objects.filter(case=row, round=manifest.round).update(steps=steps, seconds=held.seconds)
        return after, masked

    # -- ends --------------------------------------------------------------------------------------------------

    def _abstain(self, row: Case, number: int, outcome: str, controls: tuple[str, ...], reason: str) -> None:
        log.warning("round %d: %s: %s", number, outcome, reason)
        self._site.audit.append(
            "abstained",
            study=self.study_hash,
            round=number,
            outcome=outcome,
            controls=list(controls),
            reason=reason[:500],
        )
        record, _ = Round.objects.get_or_create(case=row, round=number, defaults={"epoch": 0, "manifest_hash": ""})
        body = letters.Abstention(outcome=outcome, controls=controls)  # type: ignore[arg-type]
        record.state, record.reason, record.abstention = Round.State.FAILED, reason, body.model_dump(mode="json")
        record.save(update_fields=["state", "reason", "abstention"])
        self._send_abstention(row)

    def _send_abstention(self, row: Case) -> bool:
        """Send what the newest abstention says, unless it is out."""
        newest = Round.objects.filter(case=row).order_by("-round").first()
        if newest is None or newest.state != Round.State.FAILED or not newest.abstention:
            return False
        if self._post.posted(self._researcher, newest.round, letters.ABSTAINED):
            return False
        body: dict[str, JsonValue] = newest.abstention
        return self._post.post(self._researcher, newest.round, letters.ABSTAINED, body)

    def _stop(self, row: Case, reason: str) -> None:
        log.error("study stopped: %s", reason)
        self._site.audit.append("stopped", study=self.study_hash, reason=reason[:500])
        Case.objects.filter(pk=row.pk, state__in=Case.ACTIVE).update(state=Case.State.STOPPED, note=reason)
