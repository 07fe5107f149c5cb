"""The part of a round that looks at rows: one worker that is kept warm, keys of the round, one retry (`failures`).

Runs in a thread of its own, so that everything else that this datasite sends goes on meanwhile: else the moment at
which another letter leaves would reveal how long the work took (I16). One datasite works on one study's rows at a time
(`machine`).
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from django.db import connections

from datasites.enclave.partition import Partition
from datasites.enclave.protocol import PartitionName
from datasites.enclave.worker_client import TrainResult, Worker, WorkerCrashed, WorkerError
from datasites.hospital.audit.commitments import Commitments
from datasites.hospital.cases.case import OpenCase
from datasites.hospital.cases.encoded import partitions
from datasites.hospital.cases.halt import Halt
from datasites.hospital.cases.machine import Machine
from datasites.hospital.cases.worker import start_worker
from datasites.hospital.config import Home
from datasites.hospital.data.withdrawal import withdrawn
from datasites.hospital.database import DATABASE_AWAY, let_go, name_of, reason_of
from datasites.hospital.outages import RETRY, away
from datasites.hospital.rounds.failures import MOST, Failures
from datasites.hospital.rounds.round_keys import RoundKeys
from datasites.hospital.site import Site
from datasites.study.manifest import RoundManifest

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Vectors = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Computed:
    """What the work gave: vectors for the secure sum by name, noised; and the key of their rounding.

    steps: counted by the trainer. seconds, crashes: for the hospital only.
    """

    vectors: Vectors
    steps: int
    rounding: bytes
    seconds: float
    crashes: int


class RowWork:
    """Work on the rows of one study, one round at a time."""

    def __init__(self, site: Site, machine: Machine) -> None:
        self._site, self._home, self._machine = site, site.home, machine
        self._thread = ThreadPoolExecutor(1, "datasites-rows")
        self._worker: Worker | None = None
        self._withdrawn: frozenset[str] = frozenset()
        self._records = ""
        self._starting: Future[None] | None = None
        self._revived = False
        self._closing, self._halt = threading.Event(), Halt()

    def begin(
        self,
        case: OpenCase,
        manifest: RoundManifest,
        parameters: npt.NDArray[np.float32],
        keys: Callable[[str], RoundKeys],
        left_out: frozenset[str],
    ) -> Future[Computed]:
        """Compute what the round releases, from the model `parameters` (d,), in this study's thread.

        keys: the round's keys, given the commitment to the rows. left_out: who must not be among them; whoever
        withdraws after that is left out of the next round. The result raises what went wrong; no row is in it.
        """
        self._starting, self._revived = None, False
        place = object()
        self._machine.enter(place)
        try:
            work = self._thread.submit(
                self._on_thread, lambda: self._compute(place, case, manifest, parameters, keys, left_out)
            )
        except BaseException:
            self._machine.leave(place)
            raise
        # Also of work that is let go of before it began.
        work.add_done_callback(lambda _: self._machine.leave(place))
        return work

    def start(self, case: OpenCase, seconds: float) -> None:
        """Start a worker in so many seconds, whatever is done or left undone until then.

        It is not given the rows of who has withdrawn by then. A round that is begun meanwhile comes after it.
        """
        begins, self._revived = time.monotonic() + seconds, False
        self._starting = self._thread.submit(self._on_thread, lambda: self._start(case, begins))

    def revive(self, case: OpenCase) -> None:
        """See to it that a worker that has crashed is followed by another, before a round needs it.

        By one, after each `begin` and `start`: its rows are loaded outside any span. What came to no worker even so, or
        could not be started, is left to the round that needs it, which says why.
        """
        if self._revived or (self._worker is not None and self._worker.alive):
            return
        if self._starting is None or (self._starting.done() and self._starting.exception() is None):
            self.start(case, 0.0)
            self._revived = True

    def unload(self) -> None:
        """End the worker that waits for a round, if there is one: its code may not run any more."""
        if self._worker is not None and self._worker.alive:
            self._worker.kill()

    def close(self, *, wait: bool = False) -> None:
        """End the worker, in whatever it does, also while it starts; the thread ends by itself.

        wait: until it has. Else nobody waits, since how long that takes may depend on rows.
        """
        self._closing.set()
        self._halt.now()
        if self._worker is not None:
            self._worker.kill(wait=wait)
        self._thread.shutdown(wait=wait, cancel_futures=True)

    def _on_thread(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        finally:
            if self._closing.is_set() and self._worker is not None:
                self._worker.kill()
            # Django keeps a connection for each thread, and nobody else closes this one's.
            connections.close_all()

    def _start(self, case: OpenCase, begins: float) -> None:
        while (left := begins - time.monotonic()) > 0 and not self._closing.wait(min(left, 0.2)):
            pass
        try:
            left_out = withdrawn(self._home, case.dataset.name)
            if self._worker is not None and not self._withdrawn <= left_out:
                self._worker.close()  # a withdrawal was undone
            self._started_worker(case, left_out)
        except Exception as error:
            log.warning("no worker yet: %s", type(error).__name__)
            raise

    def _started_worker(self, case: OpenCase, left_out: frozenset[str]) -> Worker:
        """Start a worker with rows, those of `left_out` not among them."""
        if self._worker is not None and not left_out <= self._withdrawn:
            self._worker.close()
        if self._worker is None or not self._worker.alive:
            self._require_open()
            left_out = withdrawn(self._home, case.dataset.name)
            rows = self._rows_of(case)
            # Who was put back and left out again meanwhile may be among them: known to be left out is who stayed so.
            left_out &= withdrawn(self._home, case.dataset.name)
            self._records = records_commitment(self._home, case, rows)
            seconds = self._home.settings.round_seconds
            self._worker = start_worker(self._site, case, rows, seconds, self._halt.watch)
            self._withdrawn = left_out
        self._require_open()
        return self._worker

    def _rows_of(self, case: OpenCase) -> dict[PartitionName, Partition]:
        """Return the rows to work on; waits here for an unavailable database, so that it fails no work on rows."""
        while True:
            self._require_open()
            try:
                return partitions(self._home, case)
            except DATABASE_AWAY as error:
                log.warning("%s; waiting", away(name_of(self._home), reason_of(self._home, error)))
                let_go()
                self._closing.wait(RETRY)

    def _compute(
        self,
        place: object,
        case: OpenCase,
        manifest: RoundManifest,
        parameters: npt.NDArray[np.float32],
        keys: Callable[[str], RoundKeys],
        left_out: frozenset[str],
    ) -> Computed:
        failures, round = Failures(self._home, case.row.study_hash), manifest.round
        while not self._machine.await_turn(place, 0.2):
            self._require_open()
        started = time.monotonic()
        while True:
            failed = failures.of(round)
            if failed >= MOST:
                raise WorkerCrashed(f"work on its records has failed {failed} times", rule="failed")
            try:
                worker = self._started_worker(case, left_out)
                of_round = keys(self._records)
                vectors, steps = self._vectors(worker, case, manifest, parameters, of_round)
            except WorkerError as error:
                # A crash is tried once more, under the same charge and the same keys: the same bytes. What the
                # worker refused it would refuse again.
                if self._closing.is_set():
                    raise
                if failures.add(round) >= MOST or (self._worker is not None and self._worker.alive):
                    raise
                log.warning("round %d: the worker ended (%s); starting another", round, error)
                continue
            return Computed(vectors, steps, of_round.key("rounding"), time.monotonic() - started, failed)

    def _require_open(self) -> None:
        if self._closing.is_set():
            raise WorkerCrashed("the run of the study was closed", rule="closed")

    def _vectors(
        self,
        worker: Worker,
        case: OpenCase,
        manifest: RoundManifest,
        parameters: npt.NDArray[np.float32],
        keys: RoundKeys,
    ) -> tuple[Vectors, int]:
        vectors: Vectors = {}
        steps = 0
        if manifest.train:
            result = self._train(worker, case, manifest, parameters, keys.key("training"))
            if case.plan.mode == "distributed":
                # Whole grid steps, as they are: the noise that was priced is the noise that is summed.
                vectors["gradient"] = result.update
            else:
                share = min(1.0, case.dataset.declared_patients / manifest.weight_max)
                vectors["update"] = result.update.astype(np.float64) * share
                vectors["weight"] = np.array([share])
            steps = result.steps
        if manifest.evaluate != "no":
            counts = worker.evaluate(
                parameters,
                plan=case.evaluation,
                kind=manifest.evaluate,
                key=keys.key("evaluation"),
                slots=case.study.training.slots,
                ring=case.counts_ring(manifest.evaluate),
            )
            vectors["counts"] = counts.reshape(-1)
        return vectors, steps

    def _train(
        self,
        worker: Worker,
        case: OpenCase,
        manifest: RoundManifest,
        parameters: npt.NDArray[np.float32],
        key: bytes,
    ) -> TrainResult:
        return worker.train(
            parameters,
            plan=case.plan,
            training=case.study.training,
            divisor=case.divisor,
            round=manifest.round,
            key=key,
            ring=case.gradient_ring(len(parameters)),
        )


def records_commitment(home: Home, case: OpenCase, rows: dict[PartitionName, Partition]) -> str:
    """Return a commitment to the rows that a worker is given: encoded, split, and without withdrawn patients."""
    digest = hashlib.sha256()
    for name, partition in sorted(rows.items()):
        for array, values in sorted(partition.arrays().items()):
            digest.update(f"{name} {array} {values.dtype.str} {values.shape}\n".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
    return Commitments(home).commit(f"rows of study {case.row.study_hash}", digest.digest())
