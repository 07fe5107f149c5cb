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
import json
import logging
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from datasites.enclave.sandbox import SandboxUnavailable
from datasites.enclave.worker import TrainResult, Worker, WorkerError
from datasites.hospital import compliance, ledger
from datasites.hospital.admission import start_worker
from datasites.hospital.cases import OpenCase, open_case, partitions
from datasites.hospital.epochs import EpochSetup, read_blob
from datasites.hospital.leaving import Leaving
from datasites.hospital.models import Case, Round
from datasites.hospital.site import Site
from datasites.hospital.withdrawal import withdrawn
from datasites.secagg.errors import JournalDamaged, JournalRolledBack, SecaggError
from datasites.secagg.journal import Journal
from datasites.secagg.messages import SignedManifest
from datasites.secagg.ring import safe_scale
from datasites.study import letters
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.errors import DatasitesError
from datasites.study.identity import BadSignature
from datasites.study.manifest import COUNTS_BOUND, UPDATE_BOUND, RoundManifest
from datasites.transport.mailroom import Expected, Letter, Mailroom, Rejected
from policies.facts import ReleaseFacts
from policies.registry import RegistryError
from policies.ruleset import RuleError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: What may go wrong in a round and costs this hospital that round. A damaged audit log is not here: it ends the
#: service, since nothing may run that can't be logged (I14).
ROUND_ERRORS = (
    DatasitesError,
    WorkerError,
    SandboxUnavailable,
    SecaggError,
    ValidationError,
    RuleError,
    RegistryError,
)

#: Heads of our own audit log that the researcher holds, as it sent them back when it closed the study.
COUNTERPARTY_HEADS = "counterparty-heads.json"


class RoundRefused(DatasitesError):
    """A manifest does not follow from the approved study; this hospital sits the round out."""


def check_manifest(case: OpenCase, manifest: RoundManifest, dimension: int) -> None:
    """Raise `RoundRefused` unless `manifest` is one that the approved study calls for.

    Rounds 1..n train (and may hold an interim evaluation where the study says so); round n+1 is the final evaluation.
    dimension: number of model parameters.
    """
    study, plan = case.study, case.evaluation
    training = manifest.round <= study.rounds
    every = study.evaluation.every
    interim = training and every > 0 and manifest.round % every == 0 and manifest.round < study.rounds
    evaluate = "no" if training and not interim else "interim" if training else "final"
    expected: dict[str, tuple[int, float]] = {}
    if training:
        expected |= {"update": (dimension, UPDATE_BOUND), "weight": (1, 1.0)}
    if evaluate != "no":
        expected["counts"] = (2 * plan.bins, COUNTS_BOUND)
    said = {term.name: (term.length, term.bound) for term in manifest.vectors}
    scales = {name: safe_scale(bound, len(manifest.participants)) for name, (_, bound) in expected.items()}
    for name, wanted, found in (
        ("study", case.row.study_hash, manifest.study),
        ("train", training, manifest.train),
        ("evaluate", evaluate, manifest.evaluate),
        ("vectors", expected, said),
        ("scale", scales, {term.name: term.scale for term in manifest.vectors}),
        ("weight_max", float(study.cohort.max_patients), manifest.weight_max),
        ("threshold", True, manifest.threshold >= min(study.cohort.survivors_needed, len(manifest.participants))),
    ):
        if wanted != found:
            raise RoundRefused(
                f"round {manifest.round}: {name} is {found}, the approved study calls for {wanted}; "
                "run the study as it was approved"
            )
    if manifest.round > study.rounds + 1:
        raise RoundRefused(f"round {manifest.round}: the study has {study.rounds} and a final evaluation")


def _grid(manifest: RoundManifest) -> float:
    """One step of the secure sum's encoding of the update."""
    return next(1.0 / term.scale for term in manifest.vectors if term.name == "update")


class StudyRun:
    """The running study of one case. `step` does what can be done now; `awaited` says which letters could help."""

    def __init__(self, site: Site, mailroom: Mailroom, row: Case) -> None:
        self._site, self._mailroom = site, mailroom
        self._pk = row.pk
        self.study_hash = row.study_hash
        self._case = open_case(site.home, row)
        self._researcher = self._case.study.researcher
        folder = site.home.secagg / row.study_hash
        self._journal = Journal(folder / "journal", site.home.anchors / row.study_hash)
        self._setup = EpochSetup(site, self._case, mailroom, self._journal, folder)
        self._worker: Worker | None = None
        self._withdrawn: frozenset[str] = frozenset()
        self._leaving = Leaving(site, self._case, mailroom, self._journal)

    def close(self) -> None:
        """End the worker and let go of the journal."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        self._journal.close()

    def step(self) -> bool:
        """Do one thing that can be done now; True when something was done.

        Raises nothing for what another party sent. A damaged journal or frozen copy stops the case.
        """
        row = Case.objects.get(pk=self._pk)
        try:
            if self._closing(row):
                return True
            if row.state not in (Case.State.APPROVED, Case.State.RUNNING) or compliance.is_killed(self._site.home):
                return False
            return self._setup.step() or self._leaving.step(self._setup.member) or self._round(row)
        except (JournalRolledBack, JournalDamaged) as error:
            self._stop(row, str(error))
            return True

    def awaited(self) -> list[Expected]:
        """Letters that could move this study on."""
        items = list(self._setup.awaited())
        state = self._journal.state
        if state is not None:
            items.append((self._researcher, self.study_hash, state.last_round + 1, letters.ROUND))
            if state.open is not None and state.open.answer is None:
                items.append((self._researcher, self.study_hash, state.last_round, letters.SURVIVORS))
                items.append((self._researcher, self.study_hash, state.last_round, letters.ACKNOWLEDGED))
        items.append((self._researcher, self.study_hash, letters.SETUP_ROUND, letters.CLOSE))
        return items

    # -- one round ---------------------------------------------------------------------------------------------

    def _round(self, row: Case) -> bool:
        member, state = self._setup.member, self._journal.state
        if member is None or state is None or state.enrolment is None:
            return False
        for number, kind, sender in reversed(self._mailroom.mailbox(self.study_hash)):
            if number < max(1, state.last_round):
                return False
            if (kind, sender) != (letters.ROUND, self._researcher):
                continue
            done = Round.objects.filter(case=row, round=number).first()
            if done is not None and done.state not in (Round.State.ACCEPTED, Round.State.CHARGED):
                return False
            letter = self._receive(number, letters.ROUND)
            if letter is not None:
                self._attend(row, number, letter)
                return True
        return False

    def _attend(self, row: Case, number: int, letter: Letter) -> None:
        started = time.monotonic()
        try:
            case = self._case = open_case(self._site.home, row)
            signed = SignedManifest.from_bytes(str(letter.body.get("manifest", "")).encode())
            manifest = signed.manifest
            worker = self._started_worker(case)
            check_manifest(case, manifest, worker.description.count)
            parameters = self._model(letter, manifest, worker.description.count)
            compliance.require(compliance.decide(self._site, case, "run_round", manifest=manifest))
            self._open(row, signed)
            ledger.charge(case.dataset, self.study_hash, number, case.round_asked(manifest))
            Round.objects.filter(case=row, round=number).update(state=Round.State.CHARGED)
            entry = ledger.round_entry(case.dataset, self.study_hash, number)
            self._site.audit.append(
                "charged",
                study=self.study_hash,
                round=number,
                manifest=manifest.digest(),
                digest=sha256_hex(canonical_json(entry)),
            )
            vectors, steps = self._compute(case, manifest, parameters)
            self._release(row, case, manifest, vectors, steps, time.monotonic() - started)
        except compliance.Denied as error:
            self._abstain(row, number, "denied", error.controls, str(error))
        except ROUND_ERRORS as error:
            if isinstance(error, JournalRolledBack | JournalDamaged):
                raise
            rule = getattr(error, "rule", "") or type(error).__name__
            self._abstain(row, number, "failed", (), f"{rule}: {error}")

    def _open(self, row: Case, signed: SignedManifest) -> None:
        member, state = self._setup.member, self._journal.state
        assert member is not None
        assert state is not None
        opened = member.open(state, signed, today=datetime.datetime.now(datetime.UTC).date())
        if opened != state:
            self._journal.commit(opened)
        manifest = signed.manifest
        # The aggregator has opened this round, so it needs nothing of earlier ones any more.
        self._mailroom.collect(self.study_hash, before=manifest.round)
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
        return self._worker

    def _compute(
        self, case: OpenCase, manifest: RoundManifest, parameters: npt.NDArray[np.float32]
    ) -> tuple[dict[str, npt.NDArray[np.generic]], int]:
        vectors: dict[str, npt.NDArray[np.generic]] = {}
        steps = 0
        if manifest.train:
            result = self._with_worker(case, lambda worker: self._train(worker, case, manifest, parameters))
            if case.plan.mode == "distributed":
                # Whole grid steps, so that the noise that was priced is the noise that is summed.
                vectors["update"] = np.rint(result.update / _grid(manifest)).astype(np.int64)
                vectors["weight"] = np.ones(1)
            else:
                share = min(1.0, case.dataset.declared_patients / manifest.weight_max)
                vectors["update"] = result.update.astype(np.float64) * share
                vectors["weight"] = np.array([share])
            steps = result.steps
        if manifest.evaluate != "no":
            kind = manifest.evaluate
            counts = self._with_worker(
                case, lambda worker: worker.evaluate(parameters, plan=case.evaluation, kind=kind)
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
            expected_batch=case.expected_batch,
            round=manifest.round,
            grid=_grid(manifest) if case.plan.mode == "distributed" else None,
        )

    def _with_worker(self, case: OpenCase, call: Callable[[Worker], Result]) -> Result:
        """Call the worker; a crash is tried once more with a fresh one, under the same charge (nothing has left)."""
        try:
            return call(self._started_worker(case))
        except WorkerError as error:
            if self._worker is not None and self._worker.alive:
                raise
            log.warning("worker ended (%s); starting another", error)
            self._site.audit.append("worker_ended", study=self.study_hash, rule=error.rule, kind=type(error).__name__)
            return call(self._started_worker(case))

    def _release(
        self,
        row: Case,
        case: OpenCase,
        manifest: RoundManifest,
        vectors: dict[str, npt.NDArray[np.generic]],
        steps: int,
        seconds: float,
    ) -> None:
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
        compliance.require(compliance.decide(self._site, case, "release", manifest=manifest, release=facts))
        # Steps were counted by the trainer; they go into the database before the one commit that makes the release.
        Round.objects.filter(case=row, round=manifest.round).update(steps=steps, seconds=seconds)
        self._leaving.release(after, masked)

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
        record.state, record.reason = Round.State.FAILED, reason
        record.save(update_fields=["state", "reason"])
        body = letters.Abstention(outcome=outcome, controls=controls).model_dump(mode="json")  # type: ignore[arg-type]
        self._mailroom.send(self._researcher, self.study_hash, number, letters.ABSTAINED, body)

    def _closing(self, row: Case) -> bool:
        if row.state not in (*Case.ACTIVE, Case.State.STOPPED):
            return False
        letter = self._receive(letters.SETUP_ROUND, letters.CLOSE)
        if letter is None:
            return False
        try:
            held = letters.Close.model_validate(letter.body).heads
            for head in held:
                head.check()
                if head.public_key != self._site.identity.public_key:
                    raise BadSignature("a head that was sent back is of another hospital's log")
        except (ValidationError, BadSignature) as error:
            self._site.audit.append("letter_rejected", study=self.study_hash, round=0, reason=str(error)[:500])
            held = ()
        (self._site.home.secagg / self.study_hash / COUNTERPARTY_HEADS).write_text(
            json.dumps([{"holder": self._researcher, "head": head.model_dump(mode="json")} for head in held])
        )
        dataset = self._case.dataset
        ledger.close(dataset, self.study_hash)
        records = Round.objects.filter(case=row, state__in=(Round.State.RELEASED, Round.State.UNMASKED))
        head = self._site.audit.append("closed", study=self.study_hash, rounds=records.count())
        account = letters.Account(
            rounds=records.count(),
            steps=sum(record.steps for record in records),
            delta=dataset.delta,
            noise_multiplier=self._case.plan.noise_multiplier,
            sampling_rate=self._case.plan.sampling_rate,
            spent=ledger.study_spent(dataset, self.study_hash),
            head=head,
        )
        self._mailroom.send(
            self._researcher, self.study_hash, letters.SETUP_ROUND, letters.ACCOUNT, account.model_dump(mode="json")
        )
        Case.objects.filter(pk=row.pk).update(state=Case.State.CLOSED)
        return True

    def _stop(self, row: Case, reason: str) -> None:
        log.error("study stopped: %s", reason)
        self._site.audit.append("stopped", study=self.study_hash, reason=reason[:500])
        Case.objects.filter(pk=row.pk).update(state=Case.State.STOPPED, note=reason)

    def _receive(self, number: int, kind: str) -> Letter | None:
        try:
            return self._mailroom.receive(self._researcher, self.study_hash, number, kind)
        except Rejected as error:
            self._site.audit.append("letter_rejected", study=self.study_hash, round=number, reason=str(error)[:500])
            return None
