"""Trains a submitted model on mock rows before people decide on it, and measures how long a round takes here.

What it shows is kept as long as all that it rests on is the same. No row of a patient is seen.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from typing import Any

from datasites.enclave.partition import Partition
from datasites.enclave.worker_client import Timeouts, Worker, WorkerError
from datasites.hospital.cases.case import OpenCase
from datasites.hospital.cases.halt import Halt
from datasites.hospital.cases.machine import standing_back
from datasites.hospital.cases.worker import MayNotRun, start_worker
from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.data.reading import TableReader
from datasites.hospital.site import Site
from datasites.hospital.ticks import ticks_for
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.errors import DatasitesError
from datasites.study.rounds import RingRefused
from datasites.study.schema import DataModel, SchemaError

#: Seconds of a worker's start that are allowed for at most: those in which it must have loaded its model.
_LONGEST_START = Timeouts.start + Timeouts.load


#: Mock rows, or why there are none.
Mock = Partition | DatasitesError


def mock_of(reader: TableReader, dataset: DatasetSettings, model: DataModel) -> Mock:
    """Return mock rows to rehearse on, or why there are none."""
    try:
        return Partition(**reader.mock(dataset, model))
    except DatasitesError as error:
        return error


def rehearse_once(site: Site, case: OpenCase, mock: Mock, before: dict[str, Any], halt: Halt) -> dict[str, Any]:
    """Return what training on mock rows has shown, or showed before if it passed and rests on the same (`rests_on`).

    One that failed is done again: a machine under load may have failed it. What is kept shows no more of rows than what
    is done anew (I16): a rehearsal sees mock rows alone, and what it rests on are declarations, what others sent, the
    mock and this machine. The records are not among it, so that neither is whether this takes minutes or none: how long
    an examination takes would tell whether the table has changed.
    """
    rests_on = _rests_on(site.home, case, mock)
    if (before.get("outcome"), before.get("rests_on")) == ("passed", rests_on):
        return before
    return {**_rehearse(site, case, mock, halt), "rests_on": rests_on}


def _rests_on(home: Home, case: OpenCase, mock: Mock) -> str:
    """Return the digest of all that decides on a rehearsal: submission, plans, mock, limits, versions and machine."""
    rows = hashlib.sha256()
    for name, array in [] if isinstance(mock, DatasitesError) else sorted(mock.arrays().items()):
        rows.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    settings = home.settings
    return sha256_hex(
        canonical_json(
            {
                "terms": case.approval_terms.model_dump(mode="json", exclude={"data_version", "ticks", "parameters"}),
                "held_out": case.dataset.held_out,
                "mock": rows.hexdigest(),
                "sandbox": settings.sandbox.model_dump(mode="json"),
                "seconds": [settings.rehearsal_seconds, settings.round_seconds],
                "machine": [platform.node(), platform.machine(), os.cpu_count()],
            }
        )
    )


def _rehearse(site: Site, case: OpenCase, mock: Mock, halt: Halt) -> dict[str, Any]:
    """Return what training on mock rows has shown; `ticks`, by the time on invented rows; the model's `parameters`; and
    `start_ticks` that a worker took to start, less the time in which it stood still, and at most for `_LONGEST_START`.

    Fails too where a round would take longer than a round may: it would end in silence, and when would tell of rows.
    """
    with standing_back(site.home) as stand_back:

        def began(worker: Worker) -> None:
            halt.watch(worker)
            stand_back(worker)

        return _rehearsed(site, case, mock, began)


def _rehearsed(site: Site, case: OpenCase, mock: Mock, began: Callable[[Worker], None]) -> dict[str, Any]:
    home = site.home
    if isinstance(mock, SchemaError):
        path = home.root / case.dataset.mock
        remedy = f"a mock has the columns of features.toml, in its units and codes; write {case.dataset.mock} again"
        return {"outcome": "failed", "reason": f"mock {path}: {mock}; {remedy}, and examine the case again"}
    if isinstance(mock, DatasitesError):
        raise mock
    try:
        worker = start_worker(site, case, {"mock": mock}, home.settings.rehearsal_seconds, began)
        start_ticks = ticks_for(min(worker.age, _LONGEST_START))
    except MayNotRun as error:
        return {"outcome": "not_run", "reason": str(error)}
    except WorkerError as error:
        return {"outcome": "failed", "reason": f"{error.rule}: {error}"}
    with worker:
        try:
            ring = case.gradient_ring(worker.description.count)
            result = worker.rehearse(
                plan=case.plan,
                training=case.study.training,
                divisor=case.plan.sampling_rate * len(mock.y),
                ring=ring,
            )
            report = result.model_dump(mode="json")
            if result.findings:
                return {**report, "outcome": "failed"}
            training_rows, held_out_rows = case.invented_rows
            seconds = worker.measure(
                plan=case.plan,
                training=case.study.training,
                divisor=case.divisor,
                evaluation=case.evaluation,
                training_rows=training_rows,
                held_out_rows=held_out_rows,
                together=case.evaluates_in_training,
                ring=ring,
                counts_ring=case.counts_ring("final"),
            )
        except WorkerError as error:
            return {"outcome": "failed", "reason": f"{error.rule}: {error}"}
        except RingRefused as error:
            return {"outcome": "failed", "reason": str(error)}
    if seconds > home.settings.round_seconds:
        reason = (
            f"a round on {case.dataset.declared_records} declared records takes about {seconds:.3g} s here, longer "
            f"than round_seconds = {home.settings.round_seconds:g} of datasite.toml; allow more, or ask the researcher "
            "for fewer steps, a smaller sampling rate, more slots or a smaller model"
        )
        return {**report, "outcome": "failed", "reason": reason}
    figures = {"ticks": ticks_for(seconds), "parameters": worker.description.count, "start_ticks": start_ticks}
    return {**report, "outcome": "passed", **figures}
