"""The model that a study's first round starts from, made while people review the study.

A worker takes some seconds for it, which nobody need wait for. Nothing of it is kept: a run that is begun by another
process makes its own.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from datasites.enclave.protocol import Description
from datasites.enclave.worker_client import Worker
from datasites.researcher.study import Study

Model = tuple[npt.NDArray[np.float32], Description]


class FirstModel:
    """One study's first model, from now on being made. Call `result` for it, or `close` if nobody wants it any more."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._model: Future[Model] = Future()
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._closed = False
        threading.Thread(target=self._make, name="datasites-first-model", daemon=True).start()

    def result(self) -> Model:
        """See `Study.initial_model`, which is tried once more where it went wrong, and raises what it raises."""
        try:
            return self._model.result()
        except Exception:
            return self._study.initial_model()

    def close(self) -> None:
        """End the worker, in whatever it does."""
        with self._lock:
            self._closed = True
            worker = self._worker
        if worker is not None:
            worker.kill()

    def _make(self) -> None:
        try:
            self._model.set_result(self._study.initial_model(began=self._began))
        except BaseException as error:
            self._model.set_exception(error)

    def _began(self, worker: Worker) -> None:
        with self._lock:
            self._worker = worker
            closed = self._closed
        if closed:
            worker.kill()
