"""Speed of private training: plain PyTorch, Opacus hooks, Opacus ghost clipping and this trainer, in one run.

Prints a table of samples per second for three models, and the cost of noise per million parameters.
Usage: python scripts/bench_privacy.py [--device cpu] [--steps 20] [--slots 64] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from datasites.privacy.layers import private_form
from datasites.privacy.noise import discrete_gaussian, gaussian
from datasites.privacy.plan import PrivacyPlan
from datasites.privacy.trainer import train_round
from datasites.study.manifest import LocalTraining

ROWS = 8192


class Sequence(nn.Module):
    """A GRU over 48 hours of 16 measurements, then one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(16, 64, batch_first=True)
        self.head = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, 48, 16)."""
        logits: Tensor = self.head(self.gru(x)[0][:, -1])
        return logits


def mlp() -> nn.Module:
    """0.3 million parameters on 64 features."""
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1))


def cnn() -> nn.Module:
    """Make a small CNN on 64 x 64 images with one channel."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.GroupNorm(4, 64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 1),
    )


#: How it is built, shape of a row, batch size.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 0.3 M, batch 256": (mlp, (64,), 256),
    "MLP 0.3 M, batch 1024": (mlp, (64,), 1024),
    "CNN 64x64, batch 256": (cnn, (1, 64, 64), 256),
    "GRU 48 h, batch 256": (Sequence, (48, 16), 256),
}


def _synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _rate(step: Callable[[], None], steps: int, batch: int, device: str) -> float:
    """Measure samples per second of `step`, which handles one batch; the best of three runs after a warm one."""
    step()
    best = float("inf")
    for _ in range(3):
        _synchronise(device)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        _synchronise(device)
        best = min(best, time.perf_counter() - start)
    return steps * batch / best


def plain(build: Callable[[], nn.Module], x: Tensor, y: Tensor, batch: int, steps: int, device: str) -> float:
    """Ordinary SGD."""
    model = build().to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = nn.BCEWithLogitsLoss()

    def step() -> None:
        rows = torch.randint(len(x), (batch,))
        optimiser.zero_grad()
        criterion(model(x[rows].to(device))[:, 0], y[rows].to(device)).backward()
        optimiser.step()

    return _rate(step, steps, batch, device)


def opacus(
    build: Callable[[], nn.Module], x: Tensor, y: Tensor, batch: int, steps: int, device: str, *, ghost: bool
) -> float:
    """Opacus, with materialised per-sample gradients or with ghost clipping; its default (not secure) noise."""
    base = ModuleValidator.fix(build()).to(device).train()
    criterion = nn.BCEWithLogitsLoss()
    sgd = torch.optim.SGD(base.parameters(), lr=0.1)
    options = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": batch}
    if ghost:
        model = GradSampleModuleFastGradientClipping(base, max_grad_norm=1.0, use_ghost_clipping=True)
        optimiser = DPOptimizerFastGradientClipping(sgd, **options)
        loss = DPLossFastGradientClipping(model, optimiser, criterion)
    else:
        model = GradSampleModule(base)
        optimiser = DPOptimizer(sgd, **options)
        loss = criterion

    def step() -> None:
        rows = torch.randint(len(x), (batch,))
        optimiser.zero_grad()
        loss(model(x[rows].to(device))[:, 0], y[rows].to(device)).backward()
        optimiser.step()

    return _rate(step, steps, batch, device)


def ours(
    build: Callable[[], nn.Module], x: Tensor, y: Tensor, batch: int, steps: int, device: str, slots: int
) -> float:
    """`train_round`, whole: Poisson sampling, secure noise with its floating-point defence, update."""
    model = private_form(build())
    plan = PrivacyPlan(clip=1.0, noise_multiplier=1.0, sampling_rate=batch / ROWS, rounds=1, steps_per_round=steps)
    local = LocalTraining(steps=steps, learning_rate=0.1, slots=slots)
    rows, labels, patients = x.numpy(), y.numpy(), np.arange(len(x))

    def step() -> None:
        train_round(model, None, rows, labels, patients, plan, local, divisor=batch, device=device)

    return _rate(step, 1, batch, device) * steps


def noise_cost() -> dict[str, float]:
    """Milliseconds per million numbers, best of seven."""
    found = {}
    for name, draw in (("Gaussian", gaussian), ("discrete Gaussian", discrete_gaussian)):
        times = []
        for _ in range(7):
            start = time.perf_counter()
            draw(1_000_000, 1000.0)
            times.append(time.perf_counter() - start)
        found[name] = min(times) * 1000
    return found


def main() -> None:
    """Run, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=64, help="rows of a microbatch of this trainer")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    results: list[dict[str, object]] = []

    def report(name: str, value: float, unit: str, target: str, met: bool | None) -> None:
        results.append({"name": name, "value": round(value, 3), "unit": unit, "target": target, "met": met})

    print(f"{'samples / s':<24}{'plain':>10}{'hooks':>10}{'ghost':>10}{'ours':>10}{'/plain':>9}{'/ghost':>9}")
    for name, (build, shape, batch) in MODELS.items():
        x = torch.randn(ROWS, *shape)
        y = (torch.rand(ROWS) < 0.5).float()
        common = (build, x, y, batch, arguments.steps, arguments.device)
        rates = [
            plain(*common),
            opacus(*common, ghost=False),
            opacus(*common, ghost=True),
            ours(*common, arguments.slots),
        ]
        to_plain, to_ghost = rates[3] / rates[0], rates[3] / rates[2]
        print(f"{name:<24}" + "".join(f"{rate:>10,.0f}" for rate in rates) + f"{to_plain:>9.2f}{to_ghost:>9.2f}")
        for method, rate in zip(("plain", "hooks", "ghost", "ours"), rates, strict=True):
            report(f"{name} {method}", rate, "samples/s", "", None)
        wanted = {("MLP", True): 0.6, ("CNN", False): 0.5}.get((name[:3], arguments.device == "cpu"))
        if wanted:
            report(f"{name} ours / plain", to_plain, "ratio", f">= {wanted}", to_plain >= wanted)
        report(f"{name} ours / ghost", to_ghost, "ratio", ">= 1.0", to_ghost >= 1.0)
    for name, cost in noise_cost().items():
        print(f"{name} noise: {cost:.1f} ms per million parameters")
        report(f"{name} noise", cost, "ms per million", "<= 25" if name == "Gaussian" else "", None)
        if name == "Gaussian":
            results[-1]["met"] = cost <= 25
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
