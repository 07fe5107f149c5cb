"""The worker in a real sandbox: trains, refuses, crashes, hangs and dies as promised, each with a named error."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from datasites.enclave import protocol, worker_process
from datasites.enclave.confine import WorkerLimits
from datasites.enclave.partition import Partition
from datasites.enclave.processes import family
from datasites.enclave.sandbox import SandboxConfig
from datasites.enclave.worker_client import (
    Timeouts,
    Worker,
    WorkerCrashed,
    WorkerError,
    WorkerOutOfMemory,
    WorkerRefused,
    WorkerTimeout,
)
from datasites.study.schema import DataModel, Feature
from tests.enclave.workers import (
    CRASHING,
    EVALUATION,
    LIMITS,
    PLAN,
    SOURCE,
    TRAINING,
    Unverified,
    rows,
    start,
    study,
    train,
)
from tests.templates import shared


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    folder = study(tmp_path_factory.mktemp("worker") / "study")
    data = {"training": rows(), "held_out": rows(seed=1), "mock": rows(seed=2)}
    started = []
    # Started in a thread that ends at once: the worker must not die with that.
    thread = threading.Thread(target=lambda: started.append(start(folder, data=data, timeouts=Timeouts(train=20.0))))
    thread.start()
    thread.join()
    with started[0] as running:
        yield running


def test_it_describes_the_model(worker):
    assert [(p.name, p.shape) for p in worker.description.parameters] == [
        ("first.weight", (4, 5)), ("first.bias", (4,)), ("last.weight", (1, 4)), ("last.bias", (1,)),
    ]  # fmt: skip
    assert worker.description.count == 29
    assert worker.description.findings == ()
    assert worker.alive
    assert os.path.exists(f"/proc/{worker.pid}")


def test_it_trains_and_evaluates(worker):
    parameters = worker.initial_parameters()
    again = worker.initial_parameters()
    assert np.array_equal(parameters, again)
    first, second = train(worker, parameters), train(worker, parameters)
    assert first.update.shape == (29,)
    assert first.update.dtype == np.float32
    assert first.steps == 2
    # Fresh noise each time (I13), and nothing of one round left for the next.
    assert not np.array_equal(first.update, second.update)
    counts = worker.evaluate(parameters, plan=EVALUATION, kind="final", key=os.urandom(32))
    assert counts.shape == (4, 2)
    assert abs(counts.sum() - 200) < 6 * 2.0 * np.sqrt(8)
    assert not np.array_equal(counts, worker.evaluate(parameters, plan=EVALUATION, kind="final", key=os.urandom(32)))


def test_learning_happens(worker):
    parameters = worker.initial_parameters()
    quiet = PLAN.model_copy(update={"noise_multiplier": 0.01})
    steep = TRAINING.model_copy(update={"learning_rate": 4.0})
    for number in range(1, 6):
        parameters = parameters + train(worker, parameters, round=number, plan=quiet, training=steep).update
    fine = EVALUATION.model_copy(update={"final_multiplier": 0.01})
    counts = worker.evaluate(parameters, plan=fine, kind="final", key=os.urandom(32))
    right = counts[:2, 0].sum() + counts[2:, 1].sum()
    assert right / counts.sum() > 0.8


def test_rehearsal_measures(worker):
    result = worker.rehearse(plan=PLAN, training=TRAINING, divisor=60.0, rounds=2)
    assert (result.rounds, result.steps, result.findings) == (2, 4, ())
    assert result.seconds_per_round > 0
    assert result.peak_memory_bytes > 100 * 1024**2


class Clock:
    """In place of the module `time`: goes on as it does, and by what a test adds."""

    def __init__(self):
        self.added = 0.0

    def monotonic(self):
        return time.monotonic() + self.added


ROUND = {"plan": PLAN, "training": TRAINING, "divisor": 60.0, "evaluation": EVALUATION}


@pytest.fixture
def rehearsing(tmp_path):
    with start(study(tmp_path / "study"), data={"mock": rows(count=20)}) as running:
        yield running


def test_a_measurement_is_of_all_that_the_longest_round_holds(rehearsing, monkeypatch):
    """Training takes 2000 s and evaluation 1000 s here, in real requests on as many rows as were asked for."""
    clock, train_, evaluate, write = Clock(), Worker.train, Worker.evaluate, Worker._write
    sent = []

    def slow_train(self, *args, **options):
        clock.added += 2000.0
        return train_(self, *args, **options)

    def slow_evaluate(self, *args, **options):
        clock.added += 1000.0
        return evaluate(self, *args, **options)

    def noted(self, buffers, deadline):
        sent.append(bytes(buffers[0]))
        return write(self, buffers, deadline)

    monkeypatch.setattr("datasites.enclave.worker_client.time", clock)
    monkeypatch.setattr(protocol, "MOST_INVENTED", 1000)
    monkeypatch.setattr(Worker, "train", slow_train)
    monkeypatch.setattr(Worker, "evaluate", slow_evaluate)
    monkeypatch.setattr(Worker, "_write", noted)
    for together, training_rows, held_out_rows, seconds in (
        (True, 300, 200, 3000.0),
        (False, 300, 200, 2000.0),
        (True, 4000, 200, 4 * 2000.0 + 1000.0),  # four times as many as are invented
        (True, 300, 2000, 2000.0 + 2 * 1000.0),
        (False, 300, 4000, 4 * 1000.0),
    ):
        rows = {"training_rows": training_rows, "held_out_rows": held_out_rows}
        sent.clear()
        assert rehearsing.measure(**ROUND, **rows, together=together) == pytest.approx(seconds, abs=100.0)
        first = sent[0].decode(errors="replace")
        assert f'"training": {min(training_rows, 1000)}, "held_out": {min(held_out_rows, 1000)}' in first


def states(pid):
    """Of a worker's processes, as the kernel says."""
    return [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[0] for one in family(pid)]


def test_a_pause_takes_the_processor_and_counts_for_no_deadline_and_no_measurement(rehearsing, monkeypatch):
    clock, train_, write = Clock(), Worker.train, Worker._write

    def pause(self):
        self.pause()
        while set(states(self.pid)) != {"T"}:
            time.sleep(0.01)
        clock.added += 1e6
        self.resume()
        assert "T" not in states(self.pid)

    def paused_before(self, *args, **options):
        pause(self)
        return train_(self, *args, **options)

    def paused_after(self, buffers, deadline):
        write(self, buffers, deadline)
        pause(self)

    monkeypatch.setattr("datasites.enclave.worker_client.time", clock)
    monkeypatch.setattr(Worker, "train", paused_before)
    monkeypatch.setattr(Worker, "_write", paused_after)
    seconds = rehearsing.measure(**ROUND, training_rows=300, held_out_rows=200, together=True)
    assert seconds < 1000
    assert rehearsing.rehearse(plan=PLAN, training=TRAINING, divisor=60.0).findings == ()


def test_rows_of_patients_are_not_replaced_by_invented_ones(worker):
    with pytest.raises(WorkerRefused, match="invent some in another"):
        worker.measure(**ROUND, training_rows=10, held_out_rows=10, together=True)
    counts = worker.evaluate(worker.initial_parameters(), plan=EVALUATION, kind="final", key=os.urandom(32))
    assert abs(counts.sum() - 200) < 6 * 2.0 * np.sqrt(8)


def test_rehearsal_finds_what_training_would_refuse(worker):
    worker.give("mock", rows(6))
    result = worker.rehearse(plan=PLAN, training=TRAINING, divisor=60.0)
    assert result.rounds == 0
    assert [finding.where for finding in result.findings] == ["dependent-rows"]
    worker.give("mock", rows(seed=2))


def test_dependent_rows_stop_a_round(worker):
    worker.give("training", rows(6))
    with pytest.raises(WorkerRefused) as caught:
        train(worker)
    assert caught.value.rule == "dependent-rows"
    assert caught.value.public == "failed"
    assert worker.alive


def test_a_round_without_rows_releases_noise(worker):
    worker.give("training", rows(count=0))
    worker.give("held_out", rows(count=0))
    result = train(worker)
    assert result.steps == 2
    assert (result.update != 0).all()
    counts = worker.evaluate(worker.initial_parameters(), plan=EVALUATION, kind="final", key=os.urandom(32))
    assert (counts != 0).all()
    worker.give("held_out", rows(seed=1))


def test_one_key_gives_the_same_bytes_in_another_worker_and_on_a_second_try(worker, tmp_path):
    parameters, key = worker.initial_parameters(), bytes(range(32))
    worker.give("training", rows())
    with start(study(tmp_path / "study"), data={"training": rows(), "held_out": rows(seed=1)}) as other:
        tries = [train(one, parameters, key=key).update.tobytes() for one in (worker, worker, other)]
        counts = [one.evaluate(parameters, plan=EVALUATION, kind="final", key=key).tobytes() for one in (worker, other)]
    assert len(set(tries)) == 1
    assert len(set(counts)) == 1
    assert train(worker, parameters, key=key[::-1]).update.tobytes() != tries[0]


def test_a_key_is_in_no_text(worker):
    request = protocol.Train(round=1, plan=PLAN, training=TRAINING, divisor=1.0, key="c0ffee00" * 8)
    assert "c0ffee" not in repr(request)
    assert "c0ffee" not in str(request)


def test_a_batch_size_in_another_axis_stops_a_round(worker):
    worker.give("training", rows(10))
    with pytest.raises(WorkerRefused, match="axis 0 only") as caught:
        train(worker)
    assert caught.value.rule == "dependent-rows"


def test_a_row_beyond_all_numbers_stops_no_round(worker):
    spoilt = rows(5)
    spoilt.x[0] = 3e38  # no model is asked whether it can take this; the row counts as none
    worker.give("training", spoilt)
    assert train(worker).steps == 2


def test_a_model_that_raises(worker):
    worker.give("training", rows(9))
    with pytest.raises(WorkerRefused, match="takes five features") as caught:
        train(worker)
    assert caught.value.rule == "model-error"
    assert caught.value.public == "failed"


@pytest.mark.waits
def test_memory_ends_at_the_limit(worker):
    worker.give("training", rows(7))
    with pytest.raises(WorkerOutOfMemory, match="memory limit"):
        train(worker)
    worker.give("training", rows())
    assert train(worker).steps == 2


def test_more_steps_than_paid_for_are_refused(worker):
    with pytest.raises(WorkerRefused) as caught:
        train(worker, training=TRAINING.model_copy(update={"steps": 3}))
    assert caught.value.rule == "steps"


@pytest.mark.parametrize(
    "parameters",
    [np.zeros(3, np.float32), np.full(29, np.nan, np.float32), np.full(29, 2.0**42, np.float32)],
    ids=["size", "nan", "large"],
)
def test_parameters_that_do_not_fit_are_refused(worker, parameters):
    with pytest.raises(WorkerRefused) as caught:
        train(worker, parameters)
    assert caught.value.rule == "parameters"


def test_rows_that_do_not_match_are_refused(worker):
    with pytest.raises(ValueError, match="one entry per row"):
        worker.give("training", Partition(np.zeros((3, 5), np.float32), np.zeros(2, np.float32)))


def test_rows_and_reasons_stay_out_of_what_is_public(worker):
    assert "0x" not in WorkerError("a row: [63, 1]").public
    assert WorkerError("a row").public == WorkerTimeout("b").public == "failed"
    assert "array" not in repr(rows())


MIXES_ON_A_LEVEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.first = nn.Linear(n, 4)
        self.last = nn.Linear(4, 1)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        shared = h.mean(dim=-2, keepdim=True)
        return self.last(h + (x[:, 1:2] == 0.5).float() * shared)


def build_model(n_features, **config):
    return Net(n_features)
"""
LEVELS = DataModel(
    features=(
        Feature(name="age", type="number", low=18.0, high=98.0, centre=58.0, scale=20.0),
        Feature(name="ward", type="category", levels=("a", "b", "c"), centres=(0.5, 0.25)),
        Feature(name="smokes", type="boolean", indicator=True),
    ),
    label=Feature(name="died", type="boolean"),
)


def test_a_round_probes_ordinary_rows_of_the_data_model(tmp_path):
    """No row here has the level on which the model mixes rows; that it would is found on rows that nobody has."""
    with start(study(tmp_path / "study", MIXES_ON_A_LEVEL), data={"training": rows()}, data_model=LEVELS) as running:
        with pytest.raises(WorkerRefused) as caught:
            train(running)
    assert caught.value.rule == "dependent-rows"


# From here on the module's worker dies; nothing above may come after.


@pytest.mark.waits
def test_a_hanging_model_is_killed(worker):
    worker.give("training", rows(8))
    parameters = worker.initial_parameters()
    worker._timeouts = Timeouts(train=2.0)
    began = time.monotonic()
    with pytest.raises(WorkerTimeout, match="no answer to train in 2 s"):
        train(worker, parameters)
    assert time.monotonic() - began < 10
    assert not worker.alive
    with pytest.raises(WorkerCrashed):
        train(worker, parameters)


@pytest.fixture(scope="module")
def bare():
    """A worker without a model yet, to which code can be offered many times."""
    running = Worker(shared(SandboxConfig(limits=LIMITS)), Timeouts())
    yield running
    running.close()


def offer(bare, source, config=None):
    request = protocol.LoadCode(source=source, n_features=5, config=config or {})
    with pytest.raises(WorkerRefused) as caught:
        bare._ask(request, protocol.Description, 60.0)
    return caught.value


def test_a_refusal_of_any_length_is_told(bare):
    refused = offer(bare, SOURCE, config={"hidden": "many", "x" * 10_000: 1})
    assert refused.rule == "model-error"
    assert bare.alive


def test_the_worker_verifies_again(bare):
    assert offer(bare, "import os\n" + SOURCE).rule == "verifier/import"


def test_build_model_must_give_a_module(bare):
    assert offer(bare, "def build_model(n_features, **config):\n    return 3\n").rule == "build-model"
    broken = "def build_model(n_features, **config):\n    raise ValueError('no')\n"
    assert offer(bare, broken).rule == "model-error"
    assert offer(bare, SOURCE, config={"hidden": "many"}).rule == "model-error"


def test_what_a_model_may_not_do_before_a_model_is_there(bare):
    with pytest.raises(WorkerCrashed) as caught:
        bare._ask(protocol.Initialise(), protocol.Done, 60.0)
    assert caught.value.rule == "protocol"


def _inside(pid):
    """Process id of the Python in a sandbox, given that of the sandbox."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    below = [int(child) for path in children for child in path.read_text().split()]
    return _inside(below[0]) if below else pid


def test_more_rows_than_the_rounding_is_proved_for_are_refused(monkeypatch):
    monkeypatch.setattr(worker_process, "MOST_ROWS", 3)
    enclave = worker_process.Enclave(WorkerLimits(), ())
    for count in (3, 4):
        arrays = {"x": np.zeros((count, 2), np.float32), "y": np.zeros(count, np.float32)}
        if count == 3:
            enclave.answer(protocol.LoadData(partition="training"), arrays)
            continue
        with pytest.raises(Exception, match="more than 3 rows; rounding is accounted for"):
            enclave.answer(protocol.LoadData(partition="training"), arrays)


@pytest.mark.slow
@pytest.mark.waits
def test_a_crash_has_a_name_and_what_it_printed_is_in_the_log(tmp_path):
    folder = study(tmp_path / "study", CRASHING)
    sandbox = Unverified(SandboxConfig(limits=LIMITS))
    with pytest.raises(WorkerCrashed, match="SIGSEGV") as caught:
        start(folder, sandbox, config={"crash": True})
    assert caught.value.public == "failed"
    # Standard output of model code is the log, not the pipe: nothing there was taken for a frame.
    assert "row: 63" in caught.value.log
    assert "DSW1 forged" in caught.value.log


@pytest.mark.waits
def test_a_kill_from_outside_is_out_of_memory_and_another_worker_goes_on(tmp_path):
    with start(study(tmp_path / "study"), data={"training": rows()}) as running:
        parameters = running.initial_parameters()
        os.kill(_inside(running.pid), signal.SIGKILL)
        with pytest.raises(WorkerOutOfMemory, match="not by the datasite"):
            train(running, parameters)
        assert not running.alive
    with start(study(tmp_path / "study"), data={"training": rows()}) as fresh:
        assert train(fresh, parameters).steps == 2


PARENT = """
import pathlib, sys, time
from datasites.enclave.sandbox import Sandbox
from datasites.enclave.template import Template
from datasites.enclave.worker_client import Worker
source = Template() if "template" in sys.argv else Sandbox()
worker = Worker.start(source, pathlib.Path(sys.argv[1], "model.py").read_text(), n_features=5)
assert "torch" not in sys.modules, "the datasite imported torch"
print(worker.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.waits
@pytest.mark.parametrize("source", ["sandbox", "template"])
def test_it_dies_with_the_datasite(tmp_path, source):
    if source == "template" and shared(SandboxConfig(limits=LIMITS)).fork_refusal:
        pytest.skip("no worker can be forked here")
    folder = study(tmp_path / "study")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder), source], stdout=subprocess.PIPE, text=True)
    try:
        pid = int(parent.stdout.readline())
        child = _inside(pid)
        assert (child != pid) == (source == "sandbox")
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
    for _ in range(100):
        if not os.path.exists(f"/proc/{child}") or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its datasite")


@pytest.mark.slow
def test_processor_time_ends_with_a_name(tmp_path):
    limits = LIMITS.model_copy(update={"cpu_seconds": 5})
    with start(study(tmp_path / "study"), data={"training": rows(8)}, limits=limits) as running:
        with pytest.raises(WorkerTimeout) as caught:
            train(running)
        assert caught.value.rule == "cpu-time"
        assert not running.alive
