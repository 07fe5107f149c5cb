"""Workers in real sandboxes, what they are given, and models that show each fate of one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasites.enclave.confine import WorkerLimits
from datasites.enclave.partition import Partition
from datasites.enclave.sandbox import Sandbox, SandboxConfig
from datasites.enclave.template import Template
from datasites.enclave.worker_client import TrainResult, Worker
from datasites.privacy.plan import EvaluationPlan, PrivacyPlan
from datasites.study.manifest import LocalTraining
from tests.templates import shared

#: A model that passes the verifier and does something else for each width of its input: one worker shows many fates.
SOURCE = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, n, hidden):
        super().__init__()
        self.first = nn.Linear(n, hidden)
        self.last = nn.Linear(hidden, 1)

    def forward(self, x):
        h = torch.tanh(self.first(x[:, :5]))
        if x.shape[1] == 6:
            h = h + h.mean(dim=-2, keepdim=True)
        if x.shape[1] == 7:
            h = h + torch.zeros(x.shape[0], 1, 90_000_000).amax(dim=2)
        if x.shape[1] == 8:
            codes = x.long()
            for _ in range(10_000):
                for _ in range(10_000):
                    codes = codes + 1
        if x.shape[1] == 9:
            raise ValueError("this model takes five features")
        if x.shape[1] == 10 and x.transpose(-2, -1).shape[1] == 77:
            h = h * 1000
        return self.last(h)


def build_model(n_features, hidden=4, **config):
    return Net(n_features, hidden)
"""
PLAN = PrivacyPlan.calibrate(3.0, 1e-3, clip=1.0, sampling_rate=0.3, rounds=5, steps_per_round=2)
TRAINING = LocalTraining(steps=2, learning_rate=0.5)
EVALUATION = EvaluationPlan(edges=(0.0, 0.25, 0.5, 0.75, 1.0), final_multiplier=2.0)
LIMITS = WorkerLimits(memory=1 << 30)


def study(folder: Path, source: str = SOURCE) -> Path:
    """The folder with this model in it."""
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(source)
    return folder


def rows(width: int = 5, count: int = 200, seed: int = 0) -> Partition:
    """Invented ones, of which each is a patient."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width)).astype(np.float32)
    return Partition(x, (x[:, 0] > 0).astype(np.float32), np.arange(count, dtype=np.int64))


def start(folder: Path, source: Sandbox | Template | None = None, **options: Any) -> Worker:
    """A worker of the folder's model, of the template that these tests share unless another source is given."""
    source = source or shared(SandboxConfig(limits=options.pop("limits", LIMITS)))
    return Worker.start(source, (folder / "model.py").read_text(), n_features=5, **options)


def train(worker: Worker, parameters: np.ndarray | None = None, **changes: Any) -> TrainResult:
    """One round, as planned but for `changes`."""
    options: dict[str, Any] = {
        "plan": PLAN,
        "training": TRAINING,
        "divisor": 60.0,
        "round": 1,
        "key": os.urandom(32),
    } | changes
    return worker.train(worker.initial_parameters() if parameters is None else parameters, **options)


UNVERIFIED = """
import sys
from datasites.enclave import worker_process, loader, verifier
verifier.check_source = lambda source, name: ()
loader.execute = lambda source: (lambda names: (exec(source, names), names)[1])({})
worker_process.main()
"""


class Unverified(Sandbox):
    """A sandbox whose worker runs any code: no verifier, all builtins."""

    def command(self, arguments: Sequence[str], shown: Path | None = None, *, template: bool = False) -> list[str]:
        asked = ["-c", UNVERIFIED, *arguments[2:]] if "datasites.enclave.worker_process" in arguments else arguments
        return super().command(asked, shown, template=template)


CRASHING = """
import ctypes, os
from torch import nn

def build_model(n_features, **config):
    print("row: 63")
    os.write(1, b"DSW1 forged")
    if config.get("crash"):
        ctypes.string_at(0)
    return nn.Linear(n_features, 1)
"""
