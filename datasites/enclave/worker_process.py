"""The sandbox's end of the pipe: loads one study's model, holds its rows, trains and evaluates. Runs as a process.

The only file of this room that is a program (`python -m datasites.enclave.worker_process LIMITS`, started by
`processes`; with `template` after that, by `template`). Order matters: libraries are imported, the pipe is put out of
reach of standard output, the process gives up what it does not need (`confine`), and only then is model code read.

What leaves: a noised update, noised counts, the built model's shape, and reasons of failure. The last are for the
hospital's eyes and hold nothing of a row: checks that may fail, and quote what the model said, run on invented rows. A
real row that a model can't take counts as zero, and this is not reported. Every round works on a fresh copy of the
model as it was built, so nothing that a round leaves on it reaches the next one.
"""

from __future__ import annotations

if __name__ == "__main__":
    import datasites.enclave.opacus_parts  # noqa: F401  (before anything of opacus)

# isort: split
import copy
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import torch

from datasites.enclave import attempts, forking, loader, protocol
from datasites.enclave.confine import WorkerLimits, confine, end_with_parent
from datasites.enclave.shapes import check_shapes
from datasites.privacy import evaluation, parameters, per_row, probe, trainer
from datasites.privacy.clipping import MOST_ROWS
from datasites.privacy.model_inputs import Tensors, tensors
from datasites.privacy.noise import SecureRandom
from datasites.privacy.plan import EvaluationPlan, PrivacyPlan
from datasites.privacy.records import UnsupportedModel
from datasites.study.manifest import LocalTraining
from datasites.study.rounds import ring_terms
from datasites.study.schema import DataModel
from datasites.study.tensors import Parameter

_PROBE_ROWS = 16
#: Said of any error while real rows are at work: its text may hold values of a row.
_WITHHELD = "an error that may hold values of rows; rehearse the model on mock rows to see it"

Rows = dict[str, np.ndarray]


class _CpuTimeUsed(BaseException):
    """The kernel said that the processor time of `WorkerLimits` is used up."""


class _Refusal(Exception):
    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule = rule


class Enclave:
    """State of one worker: the model as built, and rows by partition. Each method answers one request."""

    def __init__(self, limits: WorkerLimits, warnings: tuple[str, ...]) -> None:
        self._limits = limits
        self._warnings = warnings
        self._genuine = loader.Genuine()
        self._model: loader.LoadedModel | None = None
        self._data_model: DataModel | None = None
        self._findings: tuple[protocol.ModelFinding, ...] = ()
        self._rows: dict[str, Rows] = {}
        self._made_up: set[str] = set()
        self._device = "cuda" if limits.devices and torch.cuda.is_available() else "cpu"
        self._on_rows = False

    def failed(self, error: BaseException) -> protocol.Failed:
        """Return what the hospital learns of an error that `answer` raised."""
        return _failed(error, quoted=not self._on_rows)

    def answer(self, request: protocol.Message, arrays: protocol.Arrays) -> tuple[protocol.Reply, protocol.Arrays]:
        """Reply to one request; raise whatever went wrong. `protocol` names the arrays of each, with their shapes."""
        self._on_rows = False
        if isinstance(request, protocol.LoadCode):
            return self._load_code(request), {}
        if isinstance(request, protocol.LoadData):
            return self._load_data(request, arrays), {}
        if isinstance(request, protocol.Initialise):
            return protocol.Done(), {"parameters": parameters.flatten(self._loaded().module)}
        if isinstance(request, protocol.Train):
            return self._train(request, arrays)
        if isinstance(request, protocol.Rehearse):
            return self._rehearse(request), {}
        if isinstance(request, protocol.Invent):
            return self._invent(request), {}
        if isinstance(request, protocol.Evaluate):
            return self._evaluate(request, arrays)
        raise _Refusal("protocol", f"{request.kind} is not a request")

    def _load_code(self, request: protocol.LoadCode) -> protocol.Description:
        if self._model is not None:
            raise _Refusal("protocol", "this worker has a model; a worker serves one study")
        built = loader.load(request.source, request.n_features, request.config, self._genuine)
        self._model, self._data_model = built, request.data_model
        self._findings = built.findings
        named = tuple(
            Parameter(name=name, shape=tuple(parameter.shape)) for name, parameter in built.module.named_parameters()
        )
        return protocol.Description(parameters=named, findings=self._findings, warnings=self._warnings)

    def _load_data(self, request: protocol.LoadData, arrays: protocol.Arrays) -> protocol.Done:
        if set(arrays) - {"x", "y", "patients"} or not {"x", "y"} <= set(arrays):
            raise _Refusal("protocol", "a partition is x, y and, where there is one, patients")
        rows = dict(arrays)
        rows.setdefault("patients", np.arange(len(rows["y"]), dtype=np.int64))
        if not len(rows["x"]) == len(rows["y"]) == len(rows["patients"]):
            raise _Refusal("data", "x, y and patients differ in their number of rows")
        if len(rows["y"]) > MOST_ROWS:
            raise _Refusal("data", f"more than {MOST_ROWS:,} rows; rounding is accounted for up to that")
        self._rows[request.partition] = rows
        self._made_up.discard(request.partition)
        return protocol.Done()

    def _train(self, request: protocol.Train, arrays: protocol.Arrays) -> tuple[protocol.Reply, protocol.Arrays]:
        rows = self._partition("training")
        module = self._fresh(arrays)
        self._check_on_invented(module, rows)
        self._on_rows = True
        result = self._round(module, rows, request, request.round)
        self._genuine.check()
        return protocol.Trained(steps=result.steps), {"update": result.update}

    def _round(
        self,
        module: torch.nn.Module,
        rows: Rows,
        request: protocol.Train | protocol.Rehearse,
        round: int,
    ) -> trainer.TrainedRound:
        key = bytes.fromhex(request.key) if isinstance(request, protocol.Train) else None
        return trainer.train_round(
            module,
            self._loaded().loss,
            rows["x"],
            rows["y"],
            rows["patients"],
            request.plan,
            request.training,
            divisor=request.divisor,
            round=round,
            device=self._device,
            ring=request.ring,
            rehearsal=isinstance(request, protocol.Rehearse),
            data_model=self._data_model,
            randomness=SecureRandom(key),
        )

    def _check_on_invented(self, module: torch.nn.Module, rows: Rows) -> tuple[Tensors, torch.Tensor]:
        """Check that the batch size shows in axis 0 only, with this round's parameters; return the rows that it took.

        They are the data model's and have the shape of `rows`: what fails here fails whoever the patients are.
        That rows are independent, the trainer probes itself.
        """
        made_up, labels = self._invented(rows, _PROBE_ROWS, SecureRandom().generator("probe"))
        check_shapes(copy.deepcopy(module), self._loaded().loss, made_up[0].numpy(), labels.numpy())
        return made_up, labels

    def _invented(self, like: Rows, count: int, source: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        return probe.invented(tensors(like["x"]), torch.from_numpy(like["y"]), count, source, self._data_model)

    def _check_on_mock(self, module: torch.nn.Module, rows: Rows) -> None:
        if not len(rows["y"]):
            raise _Refusal("data", "no mock rows: nothing can be shown about the model")
        chosen = SecureRandom().generator("rehearsal").integers(len(rows["y"]), size=_PROBE_ROWS)
        check_shapes(copy.deepcopy(module), self._loaded().loss, rows["x"][chosen], rows["y"][chosen])

    def _rehearse(self, request: protocol.Rehearse) -> protocol.Rehearsed:
        rows = self._partition("mock")
        found: list[protocol.ModelFinding] = list(self._findings)
        steps = done = 0
        started = time.perf_counter()
        try:
            for round in range(1, min(request.rounds, request.plan.rounds) + 1):
                module = copy.deepcopy(self._usable().module)
                self._check_on_invented(module, rows)
                # Training first: it says on which rows a model fails, and the check draws some of them only.
                steps += self._round(module, rows, request, round).steps
                self._check_on_mock(module, rows)
                done += 1
            self._genuine.check()
        except Exception as error:
            failed = _failed(error, quoted=True)
            if failed.failure == "out_of_memory":
                raise
            found.append(
                protocol.ModelFinding(where=failed.rule or failed.failure, reason=failed.reason[-2000:] or "failed")
            )
        seconds = (time.perf_counter() - started) / max(done, 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return protocol.Rehearsed(
            rounds=done, steps=steps, seconds_per_round=seconds, peak_memory_bytes=peak, findings=tuple(found)
        )

    def _invent(self, request: protocol.Invent) -> protocol.Done:
        shaped, source = self._partition("mock"), SecureRandom().generator("invent")
        for name, count in (("training", request.training), ("held_out", request.held_out)):
            if name in self._rows and name not in self._made_up:
                raise _Refusal("data", f"{name} rows were given to this worker; invent some in another one")
            made_up, labels = self._invented(shaped, count, source)
            patients = np.arange(len(labels), dtype=np.int64)
            self._rows[name] = {"x": made_up[0].numpy(), "y": labels.numpy(), "patients": patients}
            self._made_up.add(name)
        return protocol.Done()

    def _evaluate(self, request: protocol.Evaluate, arrays: protocol.Arrays) -> tuple[protocol.Reply, protocol.Arrays]:
        rows = self._partition("held_out")
        module = self._fresh(arrays).to(self._device).eval()
        made_up, labels = self._check_on_invented(module, rows)
        probe.check_independence(module, self._loaded().loss, made_up, labels, device=self._device)
        one = per_row.run(module, {name: part[:1].to(self._device) for name, part in made_up.items()}).outputs
        if one.numel() != 1:
            raise _Refusal("model", f"the model gives {one.numel()} numbers for a row; one logit each")
        self._on_rows = True
        logits = per_row.scores(module, tensors(rows["x"]), slots=request.slots, device=self._device)
        self._genuine.check()
        # A row with codes out of range has no score, and counts with the lowest.
        scores = torch.sigmoid(logits).numpy()
        counts = evaluation.noised_counts(
            scores,
            rows["y"],
            rows["patients"],
            request.plan,
            request.evaluation,
            ring=request.ring,
            randomness=SecureRandom(bytes.fromhex(request.key)),
        )
        return protocol.Evaluated(), {"counts": counts}

    def _loaded(self) -> loader.LoadedModel:
        if self._model is None:
            raise _Refusal("protocol", "no model is loaded yet")
        return self._model

    def _usable(self) -> loader.LoadedModel:
        blocking = [finding for finding in self._findings if finding.blocking]
        if blocking:
            first = blocking[0]
            raise _Refusal("model", f"{first.where}: {first.reason}; {first.remedy}")
        return self._loaded()

    def _partition(self, name: str) -> Rows:
        if name not in self._rows:
            raise _Refusal("data", f"no {name} rows were given to this worker")
        return self._rows[name]

    def _fresh(self, arrays: protocol.Arrays) -> torch.nn.Module:
        module = copy.deepcopy(self._usable().module)
        if "parameters" not in arrays:
            raise _Refusal("protocol", "no global parameters were given")
        try:
            parameters.receive(module, arrays["parameters"])
        except ValueError as error:
            raise _Refusal("parameters", str(error)) from error
        return module


def _failed(error: BaseException, *, quoted: bool) -> protocol.Failed:
    """Return what the hospital learns of an error; quoted: with the text of errors that are not our own refusals."""
    text = "".join(traceback.format_exception(error))[-6000:] if quoted else _WITHHELD
    message = str(error)[:6000]
    refusals: list[tuple[type[BaseException], str]] = [
        (probe.DependentRows, "dependent-rows"),
        (trainer.StepsExhausted, "steps"),
        (trainer.TrainingRefused, "training"),
        (UnsupportedModel, "model"),
        (evaluation.EvaluationError, "evaluation"),
    ]
    if isinstance(error, _CpuTimeUsed):
        return protocol.Failed(failure="cpu_time", rule="cpu-time", reason="the processor time allowed is used up")
    if isinstance(error, loader.CodeRefused | _Refusal):
        failure: protocol.Failure = "protocol" if error.rule == "protocol" else "refused"
        return protocol.Failed(failure=failure, rule=error.rule[:80], reason=message)
    for kind, rule in refusals:
        if isinstance(error, kind):
            return protocol.Failed(failure="refused", rule=rule, reason=message)
    out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        phrase in message
        for phrase in ("can't allocate memory", "not enough memory", "Cannot allocate memory", "std::bad_alloc")
    )
    if out_of_memory:
        return protocol.Failed(
            failure="out_of_memory",
            rule="memory",
            reason=f"the memory limit was reached: {message if quoted else _WITHHELD}",
        )
    return protocol.Failed(failure="model_error", rule="model-error", reason=text)


def _reader(descriptor: int) -> Callable[[int], bytearray]:
    def read(count: int) -> bytearray:
        received = bytearray()
        while len(received) < count:
            chunk = os.read(descriptor, min(1 << 20, count - len(received)))
            if not chunk:
                raise EOFError
            received += chunk
        return received

    return read


def _write(descriptor: int, buffers: list[memoryview]) -> None:
    for buffer in buffers:
        position = 0
        while position < len(buffer):
            position += os.write(descriptor, buffer[position:])


def _take_pipe() -> tuple[int, int]:
    """Move the pipe to other descriptors; what anything prints goes to the bounded log on standard error."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _is_orphan(requests: int) -> bool:
    """Return whether nobody can write to the pipe any more, whatever it holds still."""
    looked = select.poll()
    looked.register(requests, 0)
    return any(event & select.POLLHUP for _, event in looked.poll(0))


def _out_of_time(_: int, __: object) -> None:
    raise _CpuTimeUsed


def work(limits: WorkerLimits, requests: int, replies: int, size: int | None = None) -> None:
    """Give up what isn't needed, then serve requests until `close` or the end of the pipe; size as in `confine`."""
    if _is_orphan(requests):
        return  # the datasite ended before the kernel would have told; what it had sent is not for anyone
    # The first process of a sandbox gets only signals that it handles; without this the limit would be silent.
    signal.signal(signal.SIGXCPU, _out_of_time)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    enclave = Enclave(limits, confine(limits, size))
    read = _reader(requests)
    while True:
        try:
            request, arrays = protocol.decode(read)
        except EOFError:
            return
        if isinstance(request, protocol.Leave):
            return
        reply: protocol.Reply
        try:
            reply, results = enclave.answer(request, arrays)
        except BaseException as error:  # model code may raise SystemExit; the datasite still gets an answer
            reply, results = enclave.failed(error), {}
        _write(replies, protocol.encode(reply, results))


#: A model of one weight, for `warm_up`.
_SMALL = """
from torch import nn

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
"""


def warm_up(limits: WorkerLimits) -> None:
    """Do on a few rows of zeros, and on none, what a study does, so that libraries load all that they load late.

    Else they would while rows are at work, and when, and whether, could follow from a row.
    """
    rows, none = ({"x": np.zeros((count, 1), np.float32), "y": np.zeros(count, np.float32)} for count in (4, 0))
    local = PrivacyPlan(clip=1.0, noise_multiplier=1.0, sampling_rate=0.5, rounds=1, steps_per_round=1)
    distributed = {"mode": "distributed", "honest": 1}
    summed = partial(ring_terms, clip=1.0, noise_multiplier=1.0, honest=1, hospitals=2)
    rings = summed(length=2), summed(length=4, slack=0.0, room=4.0)
    training = LocalTraining(steps=1, learning_rate=0.1)
    counts = EvaluationPlan(edges=(0.0, 0.5, 1.0), final_multiplier=1.0)
    # What is drawn here moves no model that is built later.
    with torch.random.fork_rng(devices=[]):
        enclave = Enclave(limits, ())
        enclave.answer(protocol.LoadCode(source=_SMALL, n_features=1), {})
        enclave.answer(protocol.LoadData(partition="mock"), rows)
        _, start = enclave.answer(protocol.Initialise(), {})
        for given, (mode, (update, counted)) in product((none, rows), (({}, (None, None)), (distributed, rings))):
            for side in ("training", "held_out"):
                enclave.answer(protocol.LoadData(partition=side), given)
            plan, key = local.model_copy(update=mode), os.urandom(32).hex()
            evaluated = counts.model_copy(update={"honest": plan.honest})
            for request in (
                protocol.Rehearse(plan=plan, training=training, divisor=2.0, ring=update),
                protocol.Train(round=1, plan=plan, training=training, divisor=2.0, key=key, ring=update),
                protocol.Evaluate(plan=evaluated, evaluation="final", key=key, ring=counted),
            ):
                enclave.answer(request, start)


def main() -> None:
    """Be a worker, or the template of workers."""
    limits = WorkerLimits.model_validate_json(sys.argv[1])
    torch.set_num_threads(1)  # a process with threads can't be forked; `work` sets its own
    warm_up(limits)
    if sys.argv[2:] == ["template"]:
        works: dict[str, forking.Work] = {
            "worker": partial(work, limits),
            "escape": partial(attempts.attempt_apart, limits),
            "bait": attempts.bait,
        }
        with socket.socket(fileno=os.dup(0)) as control:
            forking.serve(control, works)
        return
    requests, replies = _take_pipe()
    end_with_parent()
    work(limits, requests, replies)


if __name__ == "__main__":
    main()
