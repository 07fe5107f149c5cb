"""The datasite's end of the pipe: starts a worker in the sandbox, speaks the protocol with it, and ends it.

One warm worker serves one running study. It comes from the datasite's template, or is a sandbox of its own
(`processes`), and dies with the datasite: the kernel kills a sandbox with all that is in it when the thread that
started it ends, which is why each has its own thread. A worker that has crashed, hung or broken the protocol is not
used again; the caller starts another, and nothing was released in between, because everything that leaves a hospital
leaves from the datasite, never from a worker.

Imports no torch.

**Guarantee (a worker's numbers).** Whatever the process in the sandbox sends, each number in a reply is compared with
what was approved before anything is allocated or computed from it: arrays with the name, type and shape that the
request calls for, parameters with the approved number (before there is one, with `Limits.parameters`), steps and rounds
with the plan, seconds with the wall time allowed. A reply costs this process the bytes of the requested arrays, and
less than 24 MiB to read a header of at most 1 MiB and 150,000 values; anything else ends the worker with a
`WorkerError`. Assumption: the request was made of approved terms, as `hospital.rounds.row_work` does.

**Guarantee (a worker's end).** Whatever the process in the sandbox does, it ends with all that it started when `kill`
is called, when a deadline has passed, and when the datasite ends, even by kill -9, paused or not; and `kill` waits for
none of that. If the datasite ended before the sandbox was ready, what it had sent is not started. Assumptions: there is
a filter (`confine`) for this processor; bubblewrap sets the signals by which its two processes end before it starts
Python; the kernel ends a process namespace with its first process. Not claimed: (1) A kill -9 of the datasite, or of
bubblewrap, in the milliseconds in which a sandbox is made, may leave bubblewrap's own process asleep, without model
code and rows. (2) If `sandbox.mode` is off: code that changes its user, as root's can, or, if there is no `setpriv`, a
worker that is paused before its libraries are imported.
"""

from __future__ import annotations

import os
import selectors
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from datasites.enclave import protocol
from datasites.enclave.partition import Partition
from datasites.enclave.processes import Process, Sandboxed
from datasites.enclave.sandbox import Sandbox
from datasites.enclave.template import Template
from datasites.privacy.plan import EvaluationPlan, PrivacyPlan
from datasites.study.errors import DatasitesError
from datasites.study.manifest import EvaluationKind, LocalTraining
from datasites.study.rounds import RingTerms
from datasites.study.schema import DataModel

_CHUNK = 1024 * 1024
#: Seconds between two looks at the clock of a worker that is paused right before a deadline.
_PAUSE_STEP = 0.02

#: Numbers of the type that was asked for: a float type, or int64 for whole steps of a grid.
Numbers = npt.NDArray[np.floating] | npt.NDArray[np.int64]
ReplyType = TypeVar("ReplyType", protocol.Description, protocol.Done, protocol.Trained, protocol.Rehearsed,
                    protocol.Evaluated)  # fmt: skip


class WorkerError(DatasitesError, RuntimeError):
    """The worker did not do what was asked. `str()` is for the hospital; `public` is all that may leave it."""

    public = "failed"

    def __init__(self, reason: str, *, rule: str = "", log: str = "") -> None:
        super().__init__(reason)
        self.rule = rule
        self.log = log


class WorkerCrashed(WorkerError):
    """The process ended, or spoke out of protocol, without being asked to."""


class WorkerTimeout(WorkerError):
    """No answer within the wall or processor time allowed; the process was killed."""


class WorkerOutOfMemory(WorkerError):
    """An allocation failed at the memory limit, or the kernel killed the process (SIGKILL that we did not send)."""


class WorkerRefused(WorkerError):
    """The trusted code inside refused: wrong hash, a finding, dependent rows, a model that raises. `rule` names it."""


@dataclass(frozen=True)
class Timeouts:
    """Wall seconds allowed for each kind of request."""

    start: float = 120.0
    load: float = 120.0
    train: float = 3600.0
    evaluate: float = 600.0


@dataclass(frozen=True)
class TrainResult:
    """`update` (d,), noised: float32, or in distributed mode int64 in steps of the ring's grid. See `privacy.trainer`.

    `steps` as counted by the trainer.
    """

    update: Numbers = field(repr=False)
    steps: int


class Worker:
    """A running worker. Use `Worker.start`; every method raises a `WorkerError` and is safe to call from any thread."""

    def __init__(self, source: Sandbox | Template, timeouts: Timeouts) -> None:
        self._sandbox = source.sandbox if isinstance(source, Template) else source
        self._timeouts = timeouts
        self._lock = threading.Lock()
        self._killed = False
        self._pausing = threading.Lock()
        self._paused_at: float | None = None
        self._stopped = False
        #: Seconds that it was paused before.
        self._paused = 0.0
        try:
            if isinstance(source, Template):
                source.start()
            self._began = time.monotonic()
            self._process: Process = source.process() if isinstance(source, Template) else Sandboxed(source)
        except OSError as error:
            raise WorkerCrashed(f"the sandbox did not start: {error}") from error
        self.description: protocol.Description

    @classmethod
    def start(
        cls,
        source: Sandbox | Template,
        code: str,
        *,
        n_features: int,
        config: Mapping[str, JsonValue] | None = None,
        data_model: DataModel | None = None,
        data: Mapping[protocol.PartitionName, Partition] | None = None,
        timeouts: Timeouts | None = None,
        parameters: int | None = None,
        began: Callable[[Self], None] | None = None,
    ) -> Self:
        """Start a worker, load a study's model in it, hand it rows.

        source: where it comes from, a template, or a sandbox that is made for it. code: the text of `model.py`, which
        the caller has found to be what was approved (I1).
        data_model: what ordinary rows hold; checks of the model run on rows that are drawn from it.
        parameters: how many the model has, once that is approved.
        began: told of the worker as soon as it runs, by whom it may be killed while its model is loaded.
        Raises `WorkerRefused` when the code is refused, `SandboxUnavailable` where this machine can make no sandbox,
        else as the class says.
        """
        worker = cls(source, timeouts or Timeouts())
        try:
            if began is not None:
                began(worker)
            request = protocol.LoadCode(
                source=code, n_features=n_features, config=dict(config or {}), data_model=data_model
            )
            # The first answer may also wait for torch to be imported.
            seconds = worker._timeouts.start + worker._timeouts.load
            try:
                worker.description, _ = worker._ask(request, protocol.Description, seconds)
            except WorkerCrashed:
                # No fault of the study where no sandbox can be made at all. Tried, not read from what the worker has
                # printed, where model code may write what it likes. One that was killed from here had been made.
                if not worker._killed:
                    worker._sandbox.require()
                raise
            worker._require_size(parameters)
            for name, partition in (data or {}).items():
                worker.give(name, partition)
        except BaseException:
            worker.kill(wait=True)
            raise
        return worker

    @property
    def alive(self) -> bool:
        """Return whether the process runs and was not killed. A worker that isn't alive stays so; start another."""
        return not self._killed and not self._process.is_over

    @property
    def age(self) -> float:
        """Return the seconds since it was begun, from a template that was there, less those in which it was paused."""
        return self._now() - self._began

    @property
    def pid(self) -> int:
        """Process id on this machine, of the worker or of its sandbox."""
        return self._process.pid

    @property
    def log(self) -> str:
        """The last 64 KiB that the worker wrote to its standard output and error; for the hospital's eyes only."""
        return str(self._process.log)

    def give(self, name: protocol.PartitionName, partition: Partition) -> None:
        """Hand over rows; they stay in the worker's memory and replace those given under this name before."""
        self._ask(protocol.LoadData(partition=name), protocol.Done, self._timeouts.load, partition.arrays())

    def initial_parameters(self) -> npt.NDArray[np.float32]:
        """Return what `build_model` starts from, float32 (d,); a researcher's first global model."""
        layout = _layout("parameters", np.float32, (self.description.count,))
        _, arrays = self._ask(protocol.Initialise(), protocol.Done, self._timeouts.load, gives=layout)
        return self._vector(arrays, layout).astype(np.float32, copy=False)

    def train(
        self,
        parameters: npt.NDArray[np.float32],
        *,
        plan: PrivacyPlan,
        training: LocalTraining,
        divisor: float,
        round: int,
        key: bytes,
        ring: RingTerms | None = None,
    ) -> TrainResult:
        """Run one round from global `parameters` (d,); the update is noised inside, by the plan. See `privacy.trainer`.

        round: 1 .. plan.rounds. divisor: public. key: 32 secret bytes of this one use, from which sampling and noise
        are drawn. ring: distributed mode.
        Raises `WorkerRefused` when the trainer refuses (`rule` "dependent-rows" for a failed independence probe) and
        when it counted more steps than the plan pays for.
        """
        request = protocol.Train(round=round, plan=plan, training=training, divisor=divisor, key=key.hex(), ring=ring)
        arrays: protocol.Arrays = {"parameters": np.ascontiguousarray(parameters, dtype=np.float32)}
        layout = _layout("update", np.float32 if ring is None else np.int64, (self.description.count,))
        reply, results = self._ask(request, protocol.Trained, self._timeouts.train, arrays, gives=layout)
        update = self._vector(results, layout)
        if reply.steps > plan.steps_per_round:
            self.kill(wait=True)
            raise WorkerRefused(
                f"the trainer ran {reply.steps} steps in round {round}, but the plan pays for {plan.steps_per_round}",
                rule="steps",
            )
        return TrainResult(update, reply.steps)

    def evaluate(
        self,
        parameters: npt.NDArray[np.float32],
        *,
        plan: EvaluationPlan,
        kind: EvaluationKind,
        key: bytes,
        slots: int = 64,
        ring: RingTerms | None = None,
    ) -> Numbers:
        """Return noised counts per (score bin, label) of the held-out rows, (plan.bins, 2); key and ring as in `train`.

        slots: rows that the model is run on at a time, a public number.
        """
        request = protocol.Evaluate(plan=plan, evaluation=kind, slots=slots, key=key.hex(), ring=ring)
        arrays = {"parameters": np.ascontiguousarray(parameters, dtype=np.float32)}
        layout = _layout("counts", np.float64 if ring is None else np.int64, (plan.bins, 2))
        _, results = self._ask(request, protocol.Evaluated, self._timeouts.evaluate, arrays, gives=layout)
        return self._vector(results, layout)

    def rehearse(
        self,
        *,
        plan: PrivacyPlan,
        training: LocalTraining,
        divisor: float,
        rounds: int = 1,
        ring: RingTerms | None = None,
    ) -> protocol.Rehearsed:
        """Train on the "mock" partition and run every check of a real round; return findings and don't raise them.

        divisor: public, sampling rate x declared patients.
        """
        request = protocol.Rehearse(plan=plan, training=training, divisor=divisor, rounds=rounds, ring=ring)
        reply, _ = self._ask(request, protocol.Rehearsed, self._timeouts.train)
        for name, figure, most in (
            ("rounds", reply.rounds, rounds),
            ("steps", reply.steps, rounds * plan.steps_per_round),
            # Of the worker's own clock, which goes on while it is paused.
            ("seconds_per_round", reply.seconds_per_round, self._timeouts.train + self._paused),
        ):
            if figure > most:
                self.kill(wait=True)
                raise WorkerCrashed(
                    f"the worker reports {name} = {figure:g}; {most:g} at most were asked for", rule="protocol"
                )
        return reply

    def measure(
        self,
        *,
        plan: PrivacyPlan,
        training: LocalTraining,
        divisor: float,
        evaluation: EvaluationPlan,
        training_rows: int,
        held_out_rows: int,
        together: bool,
        ring: RingTerms | None = None,
        counts_ring: RingTerms | None = None,
    ) -> float:
        """Wall seconds that the longest round takes, in this worker and the pipe, on invented rows like the mock ones.

        Less those in which the worker was paused.

        The very requests of a round are sent: a training, and an evaluation as at the study's end. together: whether a
        round may hold both; else the longer one counts. It is done twice (the first time warms up, and a real round may
        be a worker's first) unless half of the time for a training is used up; the longer time counts.

        Of `MOST_INVENTED` rows and more so many are invented, and the time is multiplied by the rest. That is never too
        short: a request takes a + b n for n rows, with a, b >= 0, and (a + b most) n / most >= a + b n for n >= most.
        Raises as `train` and `evaluate` do, and `WorkerRefused` where this worker was given rows of patients.
        """
        most = protocol.MOST_INVENTED
        rows = max(training_rows, 1), max(held_out_rows, 1)
        self._ask(
            protocol.Invent(training=min(rows[0], most), held_out=min(rows[1], most)),
            protocol.Done,
            self._timeouts.load,
        )
        parameters = self.initial_parameters()
        begun, longest = self._now(), 0.0
        for _ in range(2):
            started = self._now()
            self.train(
                parameters, plan=plan, training=training, divisor=divisor, round=1, key=os.urandom(32), ring=ring
            )
            trained = self._now()
            self.evaluate(
                parameters, plan=evaluation, kind="final", key=os.urandom(32), slots=training.slots, ring=counts_ring
            )
            parts = (trained - started, self._now() - trained)
            whole = [part * max(1.0, count / most) for part, count in zip(parts, rows, strict=True)]
            longest = max(longest, sum(whole) if together else max(whole))
            if self._now() - begun > self._timeouts.train / 2:
                break
        return longest

    def close(self) -> None:
        """Ask the worker to leave, and kill it when it does not within five seconds."""
        if not self._process.is_over and self._lock.acquire(timeout=0.1):
            try:
                self._write(protocol.encode(protocol.Leave()), self._now() + 1)
                self._process.wait(5)
            except (OSError, WorkerError):
                pass
            finally:
                self._lock.release()
        self.kill(wait=True)

    def pause(self) -> None:
        """Let the process, with all that it has started, stand still, and its deadlines too.

        To be called again and again: one whose sandbox is still being made is not stopped yet, so that it ends with the
        datasite. Its deadlines stand still from the first call on.
        """
        with self._pausing:
            if self._paused_at is None:
                self._paused_at = time.monotonic()
            if not self._stopped and self.alive:
                self._stopped = self._process.stop()

    def resume(self) -> None:
        """Let it go on."""
        with self._pausing:
            if self._stopped and self.alive:
                self._process.resume()
            self._stopped = False
            if self._paused_at is not None:
                self._paused += time.monotonic() - self._paused_at
                self._paused_at = None

    def kill(self, *, wait: bool = False) -> None:
        """End the process now, with all that it has started, in whatever they do.

        wait: until they have, and the log is complete. Else nobody waits, since how long that takes may depend on rows.
        """
        with self._pausing:
            self._killed = True
            self._process.end()
        if wait:
            self._process.wait()

    def __enter__(self) -> Self:
        """Use as a context manager closes the worker."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """See `close`."""
        self.close()

    def _ask(
        self,
        request: protocol.Request,
        expected: type[ReplyType],
        seconds: float,
        arrays: protocol.Arrays | None = None,
        *,
        gives: protocol.ArrayLayout | None = None,
    ) -> tuple[ReplyType, protocol.Arrays]:
        with self._lock:
            if not self.alive:
                raise self._ended(f"before {request.kind}")
            deadline = self._now() + seconds
            try:
                self._write(protocol.encode(request, arrays), deadline)
                reply, results = protocol.decode(
                    lambda count: self._read(count, deadline),
                    max_header=protocol.largest_header(expected),
                    expected=() if gives is None else (gives,),
                )
            except TimeoutError as error:
                self.kill(wait=True)
                raise WorkerTimeout(
                    f"no answer to {request.kind} in {seconds:.0f} s; the worker was killed. Allow more time, or "
                    "ask for fewer steps or a smaller model",
                    rule="wall-time",
                    log=self.log,
                ) from error
            except (EOFError, BrokenPipeError, ConnectionResetError) as error:
                raise self._ended(f"during {request.kind}") from error
            except protocol.ProtocolError as error:
                self.kill(wait=True)
                raise WorkerCrashed(f"{request.kind}: {error}", rule="protocol", log=self.log) from error
        if isinstance(reply, protocol.Failed):
            raise self._failure(reply)
        if not isinstance(reply, expected):
            self.kill(wait=True)
            raise WorkerCrashed(f"{request.kind} was answered by {reply.kind}", rule="protocol", log=self.log)
        return reply, results

    def _require_size(self, approved: int | None) -> None:
        count, most = self.description.count, self._sandbox.limits.parameters
        if approved is not None and count != approved:
            raise WorkerRefused(
                f"the model has {count} parameters and was approved with {approved}; a build_model that builds the "
                "same model each time can be approved anew",
                rule="parameters",
            )
        if count > most:
            raise WorkerRefused(
                f"the model has {count} parameters; workers here take {most} at most: build a smaller one, or raise "
                "parameters under [sandbox.limits] in datasite.toml",
                rule="parameters",
            )

    def _failure(self, reply: protocol.Failed) -> WorkerError:
        if reply.failure == "out_of_memory":
            return WorkerOutOfMemory(reply.reason, rule="memory", log=self.log)
        if reply.failure == "cpu_time":
            self.kill(wait=True)
            return WorkerTimeout(reply.reason, rule="cpu-time", log=self.log)
        if reply.failure in ("refused", "model_error"):
            return WorkerRefused(reply.reason, rule=reply.rule or reply.failure, log=self.log)
        self.kill(wait=True)
        return WorkerCrashed(reply.reason, rule=reply.failure, log=self.log)

    def _ended(self, when: str) -> WorkerError:
        ours = self._killed
        self._process.wait(10)
        code = self._process.code
        if code is None:
            self.kill(wait=True)
            return WorkerCrashed(f"the worker closed its pipe {when} and was killed", rule="protocol", log=self.log)
        number = max(0, -code)
        if number == signal.SIGKILL and not ours:
            return WorkerOutOfMemory(
                f"the worker was killed {when}, not by the datasite: as a rule the kernel was out of memory",
                rule="memory",
                log=self.log,
            )
        name = f"signal {signal.Signals(number).name}" if number in set(signal.Signals) else f"exit code {code}"
        return WorkerCrashed(f"the worker ended {when} with {name}", rule="crash", log=self.log)

    def _now(self) -> float:
        """Return seconds, by a clock that stands still while the worker is paused."""
        with self._pausing:
            return (time.monotonic() if self._paused_at is None else self._paused_at) - self._paused

    def _wait(self, selector: selectors.BaseSelector, deadline: float) -> None:
        """Until the pipe is ready; raises `TimeoutError` when `deadline` has come by `_now`."""
        while not selector.select(max(0.0, deadline - self._now())):
            if self._now() >= deadline:
                raise TimeoutError
            time.sleep(_PAUSE_STEP)  # paused just before its deadline

    def _vector(self, arrays: protocol.Arrays, layout: protocol.ArrayLayout) -> Numbers:
        name = layout.name
        if name not in arrays:
            self.kill(wait=True)
            raise WorkerCrashed(f"the worker's reply is without {name}", rule="protocol")
        found: Numbers = arrays[name]
        if not np.isfinite(found).all():
            raise WorkerRefused(f"the worker's {name} is not finite: training diverged", rule="not-finite")
        return found

    def _write(self, buffers: list[memoryview], deadline: float) -> None:
        descriptor = self._process.requests
        os.set_blocking(descriptor, False)
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_WRITE)
            for buffer in buffers:
                position = 0
                while position < len(buffer):
                    self._wait(selector, deadline)
                    position += os.write(descriptor, buffer[position : position + _CHUNK])

    def _read(self, count: int, deadline: float) -> bytearray:
        descriptor = self._process.replies
        received = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while len(received) < count:
                self._wait(selector, deadline)
                chunk = os.read(descriptor, min(_CHUNK, count - len(received)))
                if not chunk:
                    raise EOFError
                received += chunk
        return received


def _layout(name: str, number: type[np.generic], shape: tuple[int, ...]) -> protocol.ArrayLayout:
    return protocol.ArrayLayout.model_validate({"name": name, "type": np.dtype(number).name, "shape": shape})
