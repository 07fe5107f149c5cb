"""Hostile models: verifier or probe refuse each or it gains nothing, and without the verifier the sandbox holds.

Rules in a model's first line: one of the verifier's; `probe` for what the text does not show; `alone` and `sum` for
what runs unrefused and must still not move a sum or a count by more than one patient is allowed to: by a failing row,
or by numbers that cancel where they are measured and not where they are added.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from datasites.enclave import escape, loader, protocol, worker_process
from datasites.enclave.confine import WorkerLimits
from datasites.enclave.sandbox import Sandbox, SandboxConfig
from datasites.enclave.shapes import check_shapes
from datasites.enclave.verifier import check_source
from datasites.privacy import per_row, trainer
from datasites.privacy.layers import private_form
from datasites.privacy.model_inputs import binary_loss
from datasites.privacy.parameters import flatten
from datasites.privacy.plan import EvaluationPlan, PrivacyPlan
from datasites.privacy.probe import DependentRows, check_independence
from datasites.privacy.records import UnsupportedModel
from datasites.study.manifest import LocalTraining
from datasites.study.rounds import NORM_SLACK

FOLDER = Path(__file__).parent / "hostile_models"
HEADER = re.compile(r"^# tries: (?P<tries>.+?) \| rule: (?P<rule>[a-z-]+)(?: \| touches: (?P<flags>[a-z ]+))?$")
LIMITS = WorkerLimits(memory=1 << 30)


@dataclass(frozen=True)
class Hostile:
    name: str
    source: str
    rule: str
    flags: tuple[str, ...]


def _read(path):
    source = path.read_text(encoding="utf-8")
    header = HEADER.match(source.split("\n", 1)[0])
    assert header, f"{path.name}: the first line must say what it tries and which rule stops it"
    return Hostile(path.name, source, header["rule"], tuple((header["flags"] or "").split()))


HOSTILE = [_read(path) for path in sorted(FOLDER.glob("*.py"))]
SYSTEM = [model for model in HOSTILE if "system" in model.flags]
LIVE = [model for model in HOSTILE if "live" in model.flags]
UNSEEN = [model for model in HOSTILE if model.rule == "probe"]
ALONE = [model for model in HOSTILE if model.rule == "alone"]
CANCEL = [model for model in HOSTILE if model.rule == "sum"]
NAMED = [model for model in HOSTILE if model not in [*UNSEEN, *ALONE, *CANCEL]]
#: Noise that leaves sums and counts visible; one step over everyone.
BARE = PrivacyPlan(clip=1.0, noise_multiplier=1e-6, sampling_rate=1.0, rounds=1, steps_per_round=1)
COUNTED = EvaluationPlan(edges=(0.0, 0.1, 0.5, 0.9, 1.0), final_multiplier=1e-6)
STEP = LocalTraining(steps=1, learning_rate=1.0)
KEY = "5a" * 32


def test_the_suite_is_large():
    assert len(HOSTILE) >= 60
    assert len(SYSTEM) >= 30
    assert len(LIVE) >= 15
    assert len(UNSEEN) >= 16
    assert len(ALONE) >= 2
    assert len(CANCEL) >= 3


@pytest.mark.parametrize("model", NAMED, ids=lambda m: m.name)
def test_the_verifier_refuses(model):
    found = {finding.rule for finding in check_source(model.source)}
    assert model.rule in found, f"expected {model.rule}, found {sorted(found)}"


@pytest.mark.parametrize("model", UNSEEN, ids=lambda m: m.name)
def test_the_probe_refuses_what_the_text_does_not_show(model):
    assert check_source(model.source) == ()
    namespace = loader.execute(model.source)
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(12, 4)).astype(np.float32), (rng.random(12) < 0.5).astype(np.float32)

    def probe():
        module, loss = private_form(namespace["build_model"](4)), namespace.get("loss")
        check_shapes(module, loss, x, y)
        check_independence(module, loss, x, y)

    with pytest.raises((DependentRows, UnsupportedModel)):
        probe()


def _patients():
    """1,500 patients, of whom the last alone is one that a hostile model can tell from all others."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(1500, 4)).astype(np.float32).clip(-2, 2)
    x[-1, 0] = 3.0
    return x, (rng.random(1500) < 0.5).astype(np.float32)


def _adversarial(module):
    """Parameters as a malicious researcher may choose them: large, and not those that were rehearsed."""
    rng = np.random.default_rng(12)
    return (rng.normal(size=len(flatten(module))) * 20).astype(np.float32)


@pytest.mark.parametrize("model", [*UNSEEN, *ALONE, *CANCEL], ids=lambda m: m.name)
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_even_unprobed_one_patient_moves_a_sum_by_one_clip(model, scale):
    namespace = loader.execute(model.source)
    torch.manual_seed(0)
    try:
        module, loss = private_form(namespace["build_model"](4)).eval(), namespace.get("loss") or binary_loss
    except UnsupportedModel:
        pytest.skip("it has no private form, and nothing of it is ever summed")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    x, y = map(torch.from_numpy, _patients())

    def total(rows):
        batch = trainer._Batch(module, loss, {0: x}, y, torch.ones(1500).double(), 64, torch.device("cpu"), False)
        return batch.clipped_sum(np.arange(rows))

    try:
        total(2)
    except (UnsupportedModel, ValueError, RuntimeError):
        pytest.skip("it does not run on a row alone, and nothing of it is ever summed")
    assert np.linalg.norm(total(1500) - total(1499)) <= 1 + NORM_SLACK
    given = per_row.scores(module, {0: x}, slots=64)
    assert torch.allclose(given[:-1], per_row.scores(module, {0: x[:-1]}, slots=64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", CANCEL, ids=lambda m: m.name)
def test_what_cancels_where_it_is_measured_is_not_refused_and_moves_a_release_by_one_clip(model):
    assert check_source(model.source) == ()
    running, (x, y) = _enclave(model), _patients()
    start = {"parameters": flatten(running._loaded().module)}
    updates = []
    for rows in (slice(0, 1500), slice(0, 1499)):
        _give(running, x[rows], y[rows])
        train = protocol.Train(round=1, plan=BARE, training=STEP, divisor=1.0, key=KEY)
        updates.append(running.answer(train, start)[1]["update"].astype(np.float64))
    assert np.linalg.norm(updates[0] - updates[1]) <= 1 + 1e-2


def _enclave(model):
    running = worker_process.Enclave(LIMITS, ())
    running.answer(protocol.LoadCode(source=model.source, n_features=4), {})
    return running


def _give(running, x, y):
    for partition in ("training", "held_out"):
        running.answer(protocol.LoadData(partition=partition), {"x": x, "y": y})


@pytest.mark.parametrize("model", ALONE, ids=lambda m: m.name)
def test_a_round_releases_whoever_is_in_it(model):
    running, (x, y) = _enclave(model), _patients()
    start = {"parameters": _adversarial(running._loaded().module)}
    train = protocol.Train(round=1, plan=BARE, training=STEP, divisor=1.0, key=KEY)
    evaluate = protocol.Evaluate(plan=COUNTED, evaluation="final", key=KEY)
    updates, counts = [], []
    for rows in (slice(0, 1500), slice(0, 1499)):
        _give(running, x[rows], y[rows])
        updates.append(running.answer(train, start)[1]["update"].astype(np.float64))
        counts.append(running.answer(evaluate, start)[1]["counts"])
    assert np.linalg.norm(updates[0] - updates[1]) <= 1 + 1e-2
    assert np.linalg.norm(counts[0] - counts[1]) == pytest.approx(1, abs=1e-3)
    assert "57" not in running.failed(RuntimeError("index 57 is out of bounds")).reason
    # Nobody held out is a count like any other.
    running.answer(protocol.LoadData(partition="held_out"), {"x": x[:0], "y": y[:0]})
    assert np.abs(running.answer(evaluate, start)[1]["counts"]).max() < 1e-3
    # And if nobody's row can be taken, noise goes out, as from a hospital where nobody came to be sampled.
    _give(running, x[[-1] * 20], y[[-1] * 20])
    assert np.abs(running.answer(train, start)[1]["update"]).max() < 1e-4
    assert running.answer(evaluate, start)[1]["counts"].sum() == pytest.approx(20, abs=1e-3)


@pytest.mark.parametrize("model", ALONE, ids=lambda m: m.name)
def test_rehearsal_says_on_which_mock_rows_a_model_fails(model):
    running, (x, y) = _enclave(model), _patients()
    rehearse = protocol.Rehearse(plan=BARE, training=STEP, divisor=1500.0)
    running.answer(protocol.LoadData(partition="mock"), {"x": x[:50], "y": y[:50]})
    assert running.answer(rehearse, {})[0].findings == ()
    running.answer(protocol.LoadData(partition="mock"), {"x": x[-50:], "y": y[-50:]})
    (finding,) = running.answer(rehearse, {})[0].findings
    assert finding.where == "training"
    assert "out of range" in finding.reason


@pytest.mark.parametrize("model", UNSEEN, ids=lambda m: m.name)
def test_no_round_and_no_evaluation_runs_what_the_probe_refuses(model):
    try:
        running = _enclave(model)
    except loader.CodeRefused:
        return
    x, y = _patients()
    _give(running, x, y)
    start = {"parameters": _adversarial(running._loaded().module)}
    for request in (
        protocol.Train(round=1, plan=BARE, training=STEP, divisor=1.0, key=KEY),
        protocol.Evaluate(plan=COUNTED, evaluation="final", key=KEY),
    ):
        with pytest.raises(Exception) as caught:
            running.answer(request, start)
        failed = running.failed(caught.value)
        assert failed.rule in ("dependent-rows", "model", "model-error"), failed
        assert not running._on_rows  # refused on invented rows


def _run(sandbox, tmp_path, models, limits, port, name):
    """Run models with the verifier off; returns name -> (loot, error), after checking the host."""
    bait_folder = tmp_path / "bait"
    bait_folder.mkdir()
    token = secrets.token_hex(16)
    (bait_folder / "bait.txt").write_text(token)
    study = tmp_path / "study"
    study.mkdir()
    for model in models:
        (study / model.name).write_text(model.source, encoding="utf-8")
    shutil.copy(Path(__file__).with_name("hostile_run.py"), study)
    before = {path.name: path.read_bytes() for path in study.iterdir()}
    bait = {
        "file": str(bait_folder / "bait.txt"), "folder": str(bait_folder), "port": port, "socket": name,
        "pid": os.getpid(), "token_name": "DATASITES_TOKEN",
    }  # fmt: skip
    shown = sandbox.seen_path(study)
    arguments = [
        str(shown / "hostile_run.py"),
        str(shown),
        json.dumps(bait),
        limits,
        *(m.name for m in models),
    ]
    command = sandbox.command(arguments, study)
    if sandbox.config.mode == "off":
        command.insert(
            command.index("-i") + 1, f"DATASITES_TOKEN={token}"
        )  # the variables that a datasite without a sandbox would have
    done = subprocess.run(command, env={"DATASITES_TOKEN": token}, capture_output=True, timeout=300, check=False)
    results = {}
    for line in done.stdout.splitlines():
        with contextlib.suppress(ValueError):
            result = json.loads(line)
            results[result["name"]] = (result["loot"], result["error"])
    assert set(results) == {model.name for model in models}, done.stderr.decode()[-2000:]
    unchanged = {path.name: path.read_bytes() for path in study.iterdir()} == before
    return results, unchanged and [path.name for path in bait_folder.iterdir()] == ["bait.txt"]


@pytest.mark.slow
def test_the_sandbox_holds_with_the_verifier_off(tmp_path):
    package = Path(loader.__file__).parent.parent
    sources = {path: path.read_bytes() for path in package.glob("privacy/*.py")}
    with escape._ports() as (port, name, reached):
        results, untouched = _run(Sandbox(SandboxConfig(limits=LIMITS)), tmp_path, SYSTEM, LIMITS.model_dump_json(),
                                  port, name)  # fmt: skip
        assert {name: loot for name, (loot, _) in results.items() if loot} == {}
        assert untouched
        assert not reached()
    assert {path: path.read_bytes() for path in package.glob("privacy/*.py")} == sources


def test_the_attacks_are_real_ones(tmp_path):
    """Without a sandbox they work: a suite of attacks that fail anyway would show nothing."""
    with escape._ports() as (port, name, _):
        results, _ = _run(Sandbox(SandboxConfig(mode="off")), tmp_path, LIVE, "none", port, name)
    failed = {name: error for name, (loot, error) in results.items() if not loot}
    assert failed == {}
