"""The doors by which something made of rows may come out: a round's noised sum, noised counts, keyed commitments.

On the first table what passes is recorded. On its neighbour all work is done as well, by the same worker on the
neighbour's rows, and only what comes out is replaced by what was recorded: that it is as likely there, within epsilon,
is what the price says. All else that leaves must then be the same.

A commitment under a secret key is a random function for whoever hasn't the key: the output of a new input is as likely
as any other, so the recorded one is taken. The same input has the same output again, so which inputs are equal is not
replaced, and shows.

A round's keys are in the same way a random function, under the round's secret, of the rows that are worked on. What
they decide outside the doors is how the ring rounds. So they are fixed: of the same round, the first rows that are
worked on have the same keys in each run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from datasites.enclave.protocol import Description, Rehearsed
from datasites.enclave.worker_client import TrainResult, Worker, WorkerCrashed
from datasites.hospital.audit.commitments import Commitments
from datasites.hospital.rounds.round_keys import RoundKeys
from datasites.study.tensors import Parameter

#: Seconds that a round takes on invented rows, by the fixed clock.
MEASURED = 0.2

Passed = dict[str, list[Any]]


class Doors:
    """Records what passes, or replaces it by `recorded`.

    crash: numbers of the trainings before which the worker dies, counted from 1 over the whole study. work: lets the
    time pass that work on rows takes.
    """

    def __init__(self, recorded: Passed | None, crash: tuple[int, ...], work: Callable[[], None]) -> None:
        self.passed: Passed = {"train": [], "evaluate": [], "commit": []}
        self._recorded = recorded
        self._crash = crash
        self._work = work
        self._tries = 0
        self._measuring = False

    def install(self, kind: type[Worker]) -> None:
        """Put the doors into a kind of worker, and into commitments and the keys of rounds."""
        self._install_commitments()
        self._install_keys()
        doors, train, evaluate, measure = self, kind.train, kind.evaluate, kind.measure

        def watched_train(worker: Worker, *args: Any, **options: Any) -> Any:
            if doors._measuring:
                return train(worker, *args, **options)
            doors._tries += 1
            doors._work()
            if doors._tries in doors._crash:
                worker.die()
            return doors._pass("train", train(worker, *args, **options))

        def watched_evaluate(worker: Worker, *args: Any, **options: Any) -> Any:
            if doors._measuring:
                return evaluate(worker, *args, **options)
            doors._work()
            return doors._pass("evaluate", evaluate(worker, *args, **options))

        def fixed_measure(worker: Worker, **options: Any) -> float:
            doors._measuring = True  # on invented rows: nothing of a patient passes
            try:
                measure(worker, **options)
            finally:
                doors._measuring = False
            return MEASURED

        if not hasattr(kind, "die"):
            kind.die = lambda worker: os.kill(worker.pid, signal.SIGABRT)
        kind.measure = fixed_measure
        kind.age = 0.0  # of a rehearsal's worker, which has no rows of a patient either
        kind.train = watched_train
        kind.evaluate = watched_evaluate

    def _install_commitments(self) -> None:
        doors, commit = self, Commitments.commit

        def watched_commit(self: Commitments, label: str, data: bytes) -> str:
            return doors._commit(label, data, commit(self, label, data))

        Commitments.commit = watched_commit

    @staticmethod
    def _install_keys() -> None:
        worked_on: defaultdict[tuple[bytes, str, str], list[str]] = defaultdict(list)
        key = RoundKeys.key

        def fixed_key(self: RoundKeys, purpose: Any) -> bytes:
            known = worked_on[self.secret, self.manifest, self.approval]
            if self.records not in known:
                known.append(self.records)
            return key(dataclasses.replace(self, records=f"rows {known.index(self.records)}"), purpose)

        RoundKeys.key = fixed_key

    def _commit(self, label: str, data: bytes, output: str) -> str:
        one = (label, hashlib.sha256(data).digest())
        committed = self.passed["commit"]
        for *known, told in committed:
            if tuple(known) == one:
                return str(told)
        recorded = [] if self._recorded is None else self._recorded["commit"]
        if one not in [(name, digest) for name, digest, _ in recorded]:
            # An input that the first table had not: as likely to have the output that stands in its place there.
            there = [told for name, _, told in recorded if name == label]
            place = sum(name == label for name, *_ in committed)
            output = there[place] if place < len(there) else output
        committed.append((*one, output))
        return output

    def _pass(self, door: str, result: Any) -> Any:
        number = len(self.passed[door])
        self.passed[door].append(result)
        if self._recorded is None or not self._recorded[door]:
            return result
        # More than was recorded is a retry with the same keys, and gives the same again.
        instead = self._recorded[door][min(number, len(self._recorded[door]) - 1)]
        if isinstance(result, np.ndarray):
            return instead.copy()
        arrays = [f.name for f in dataclasses.fields(result) if isinstance(getattr(result, f.name), np.ndarray)]
        return dataclasses.replace(result, **{name: getattr(instead, name).copy() for name in arrays})


def description(columns: int) -> Description:
    """What a worker says of the study's model."""
    shapes = {"linear.weight": (1, columns), "linear.bias": (1,), "bands.weight": (4, 1)}
    return Description(
        parameters=tuple(Parameter(name=name, shape=shape) for name, shape in shapes.items()),
        findings=(),
    )


class StandIn:
    """A worker for leaks that don't pass it: answers at once, from nothing but what is public."""

    def __init__(self, columns: int) -> None:
        self.description = description(columns)
        self.alive = True
        self.age = 0.0
        self.pid = 0

    @classmethod
    def start(cls, source: object, code: str, *, n_features: int, **_: object) -> StandIn:
        return cls(n_features)

    def die(self) -> None:
        self.alive = False
        raise WorkerCrashed("the worker ended during train with signal SIGABRT", rule="crash")

    def train(self, parameters: np.ndarray, *, plan: Any, ring: object = None, **_: object) -> Any:
        numbers = np.full(len(parameters), 0.25, np.float32) if ring is None else np.full(len(parameters), 7)
        return TrainResult(numbers, plan.steps_per_round)

    def evaluate(self, parameters: np.ndarray, *, plan: Any, ring: object = None, **_: object) -> np.ndarray:
        return np.full((plan.bins, 2), 3.0 if ring is None else 3)

    def rehearse(self, **_: object) -> Any:
        return Rehearsed(rounds=1, steps=1, seconds_per_round=0.0, peak_memory_bytes=0, findings=())

    def measure(self, **_: object) -> float:
        return 0.0

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.alive = False

    def kill(self, *, wait: bool = False) -> None:
        self.close()

    @property
    def log(self) -> str:
        return ""
