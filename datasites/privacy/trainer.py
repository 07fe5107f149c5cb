"""One round of local training that executes a `PrivacyPlan`: DP-SGD with the patient as the unit.

A step:
1. samples patients by Poisson (`sampling`); all records of a sampled patient come, and the batch may be empty;
2. computes each record's gradient by running the model on that record alone (`alone`; no record can reach another), and
   cuts it to clip / (records of its patient), so that one patient's sum is <= clip;
3. adds the gradients up, in microbatches under a memory limit;
4. adds Gaussian noise from a secure generator (`Mechanism`, the only door out; it counts steps);
5. in local mode divides by `divisor`, a public figure, and hands the result to the optimiser.

In distributed mode a round is one step and ends with 4: what leaves is the noised sum itself, in whole steps of the
grid of the secure sum. No number that another party chose touches it after the noise: a learning rate, a divisor or a
model so large that its last bits are coarser than the noise would round each hospital's noise away.

Before the first step, `probe` looks for a model that treats a batch otherwise than row by row, on invented rows and
with this round's parameters: what it finds, and any error, says nothing about a patient. From then on a record on which
the model raises counts as zero, and the round releases all the same: that it stopped would be a message without noise.

In local mode everything after 4 reads noised numbers and public ones only, and is post-processing of this hospital's
own full noise: FedProx' term, momentum, Adam, the schedule. The update is the difference of parameters that they made.
Buffers, losses, batch sizes and times never leave this file.

The divisor is public because a division by the true number of patients would release that number: it stays unknown
under adding or removing a patient. Take sampling rate x declared cohort size.

The model runs in evaluation mode: dropout is inactive. Its masks would come from torch's global generator, which
submitted code could seed, and their positions in a batch would couple rows. torch's global generator decides nothing.

The noise is drawn on the host in double precision and added there, also when gradients are computed on a GPU: the same
defences hold, for the price of moving d numbers to the host and d back in every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from datasites.privacy import alone, parameters
from datasites.privacy.batches import Array, Inputs, Loss, binary_loss, forward, take, tensor, tensors
from datasites.privacy.clipping import Gradients, clipped_sum, recording, row_records
from datasites.privacy.noise import SecureRandom, discrete_gaussian, noised
from datasites.privacy.plan import PrivacyPlan
from datasites.privacy.probe import check_independence, invented
from datasites.privacy.sampling import PatientIndex, poisson_rows
from datasites.study.manifest import LocalTraining
from datasites.study.rounds import LEAST_OWN_STEPS, NORM_SLACK, RingTerms

DEFAULT_MEMORY = 1 << 30
#: Invented rows in a round's probe.
_PROBE_ROWS = 16
#: Rows in a rehearsal's probe at most: a batch as large as in training, where memory allows.
_LARGEST_PROBE = 4096


class TrainingRefused(ValueError):
    """Training would break the plan or the data does not fit the model; the message names the rule and the remedy."""


class StepsExhausted(TrainingRefused):
    """More noised steps were asked for than the plan pays for in a round."""


@dataclass(frozen=True)
class RoundResult:
    """What a round releases.

    update: shape (d,). Local mode: local minus global parameters, float32. Distributed mode: the noised sum of clipped
        gradients, int64, in steps of the ring's grid.
    steps: noised steps that were run, counted.
    """

    update: npt.NDArray[np.float32] | npt.NDArray[np.int64]
    steps: int


@dataclass(frozen=True)
class StepNotice:
    """What an observer may see of a step: its number and the noised sum over trainable parameters. Nothing private."""

    step: int
    noised_sum: npt.NDArray[np.float64]


class Mechanism:
    """The one door from sums of clipped gradients to numbers that may be used: adds the plan's noise, counts steps.

    A patient moves a sum by at most clip x (1 + `NORM_SLACK`) in L2 norm; see `clipping`.
    """

    def __init__(self, plan: PrivacyPlan, randomness: SecureRandom | None = None) -> None:
        self._plan, self._randomness = plan, randomness or SecureRandom()
        self._sensitivity = plan.clip * (1 + NORM_SLACK)
        self._steps = 0

    @property
    def steps(self) -> int:
        """Steps released so far in this round."""
        return self._steps

    def release(self, clipped: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """`clipped`, shape (d,), plus N(0, (noise multiplier x sensitivity)^2) on each coordinate.

        Raises `StepsExhausted` when the round's steps are used up: they were charged before the round began.
        """
        self._count()
        return noised(clipped, self._sensitivity, self._plan.local_noise_multiplier, self._randomness)

    def release_on_grid(self, clipped: npt.NDArray[np.float64], ring: RingTerms) -> npt.NDArray[np.int64]:
        """As `release`, in whole steps of the ring's grid with discrete Gaussian noise, so that sums stay priced.

        The sum is first cut to +-ring.cut in each coordinate, so that the ring never cuts what holds noise: a
        projection, which moves no two sums apart. Rounding moves a sum by up to sqrt(d) / 2 grid steps, so two
        neighbouring sums by up to clip x (1 + `NORM_SLACK`) + sqrt(d) x grid; the noise is scaled by that. It is priced
        as continuous Gaussian noise: from sd 4 in grid steps on, a sum of m discrete Gaussians is one of sqrt(m) times
        the sd up to tau = 10 sum_k exp(-2 pi^2 sd^2 k / (k + 1)) < 1e-60 (Kairouz, Liu and Steinke 2021,
        arXiv:2102.06387), and lattice sums equal the integrals as closely.
        Raises `TrainingRefused` for ring terms that hold less noise than the plan prices.
        """
        self._count()
        priced = self._plan.local_noise_multiplier * (self._sensitivity + math.sqrt(len(clipped)) * ring.grid)
        if not (ring.deviation >= priced * (1 - 1e-12) and ring.deviation >= LEAST_OWN_STEPS * ring.grid):
            raise TrainingRefused(
                f"ring: noise of sd {ring.deviation:g} on a grid of {ring.grid:g}, the plan prices {priced:g} for "
                f"{len(clipped)} parameters and at least {LEAST_OWN_STEPS:g} steps; take the study's own ring terms"
            )
        if not np.isfinite(clipped).all():
            raise ValueError("values: not all are finite numbers; a sum of clipped gradients always is")
        steps = np.rint(np.clip(clipped, -ring.cut, ring.cut) / ring.grid).astype(np.int64)
        return steps + discrete_gaussian(len(clipped), ring.deviation / ring.grid, self._randomness)

    def _count(self) -> None:
        if self._steps >= self._plan.steps_per_round:
            raise StepsExhausted(
                f"plan: {self._plan.steps_per_round} steps a round are paid for and were run; lower training.steps"
            )
        self._steps += 1


def train_round(
    module: nn.Module,
    loss: Loss | None,
    x: Inputs,
    y: Array,
    patients: npt.ArrayLike,
    plan: PrivacyPlan,
    local: LocalTraining,
    *,
    divisor: float,
    round_number: int = 1,
    device: str | torch.device = "cpu",
    memory_limit: int = DEFAULT_MEMORY,
    ring: RingTerms | None = None,
    rehearsal: bool = False,
    randomness: SecureRandom | None = None,
    observer: Callable[[StepNotice], None] | None = None,
) -> RoundResult:
    """Train `module`, which holds the global model, for `local.steps` noised steps; see the top of this file.

    module: in its private form (`layers.private_form`); left holding the local model afterwards,
        in distributed mode unchanged.
    loss: `loss(logits, target)` gives one loss per row, shape (n,); None is `binary_loss`.
    x: rows first; float32, or integers for embeddings. y: shape (n, ...). patients: one identifier per row.
    divisor: public, sampling rate x *declared* number of patients; in distributed mode who opens the sum divides.
    round_number: 1 .. plan.rounds, for the schedule, which spans the study.
    memory_limit: bytes that a microbatch's activations and gradients may take, estimated.
    ring: in distributed mode, and only there, how the released sum lies in the secure sum.
    rehearsal: the rows are mock rows. The probe takes these, and a row on which the model raises ends the round with
        what it raised.
    randomness: sampling and noise; fresh from the operating system when left out.
    Raises `TrainingRefused` for terms outside the plan, `UnsupportedModel` for a model that can't be clipped,
    `DependentRows` for one that mixes rows, and what the model raises on invented rows.
    """
    _check_terms(plan, local, round_number, divisor, ring)
    inputs, target = tensors(x), tensor(y)
    index = PatientIndex.of(patients)
    if not all(len(part) == len(index.owner) == len(target) for part in inputs.values()):
        raise TrainingRefused("x, y and patients differ in their number of rows; give one of each per record")
    module.to(device).eval()
    if len({id(parameter) for parameter in module.parameters()}) < len(list(module.parameters())):
        raise TrainingRefused(
            "model: parameters() gives one twice, and its gradient would leave twice; leave it as it is"
        )
    start = parameters.flatten(module).astype(np.float64)
    trainable = np.concatenate([np.full(p.numel(), p.requires_grad) for p in module.parameters()])
    learnt: slice | npt.NDArray[np.bool_] = slice(None) if trainable.all() else trainable
    limits = torch.from_numpy((plan.clip / index.records[index.owner]).astype(np.float32))
    batch = _Batch(module, loss or binary_loss, inputs, target, limits, torch.device(device), memory_limit, rehearsal)
    optimiser = _Optimiser(local, plan, round_number, int(trainable.sum()))
    randomness = randomness or SecureRandom()
    source = randomness.generator("probe")
    if rehearsal and len(target) >= 2:
        size = max(2, min(round(divisor), _LARGEST_PROBE, batch.size))
        chosen = torch.from_numpy(source.integers(len(target), size=size))
        check_independence(module, loss, take(inputs, chosen), target[chosen], randomness, device=device)
    else:
        made_up, labels = invented(inputs, target, _PROBE_ROWS, source)
        check_independence(module, loss, made_up, labels, randomness, device=device)

    mechanism = Mechanism(plan, randomness)
    if ring is not None:
        clipped = batch.clipped_sum(poisson_rows(index, plan.sampling_rate, randomness))
        released = mechanism.release_on_grid(clipped, ring)
        released[~trainable] = 0  # what no row moves needs no noise
        if observer is not None:
            observer(StepNotice(mechanism.steps, np.multiply(released, ring.grid, dtype=np.float64)))
        return RoundResult(released, mechanism.steps)
    weights = start.copy()
    for step in range(local.steps):
        clipped = batch.clipped_sum(poisson_rows(index, plan.sampling_rate, randomness))[learnt]
        noisy = mechanism.release(clipped)
        if observer is not None:
            observer(StepNotice(mechanism.steps, noisy.copy()))
        gradient = noisy / divisor
        if local.proximal:
            gradient += local.proximal * (weights - start)[learnt]
        weights[learnt] -= optimiser.direction(step, gradient)
        parameters.unflatten(module, weights)
    return RoundResult((weights - start).astype(np.float32), mechanism.steps)


def _check_terms(
    plan: PrivacyPlan,
    local: LocalTraining,
    round_number: int,
    divisor: float,
    ring: RingTerms | None,
) -> None:
    if local.steps > plan.steps_per_round:
        raise StepsExhausted(
            f"training.steps = {local.steps}, but the plan pays for {plan.steps_per_round} a round; lower it"
        )
    if not 1 <= round_number <= plan.rounds:
        raise TrainingRefused(f"round {round_number} is outside the plan's 1..{plan.rounds}")
    if not (math.isfinite(divisor) and divisor > 0):
        raise TrainingRefused(f"divisor: {divisor}; give sampling rate x declared number of patients")
    if (plan.mode == "distributed") != (ring is not None):
        raise TrainingRefused("ring: given in distributed mode (how a sum lies in the secure sum) and only there")
    if ring is not None and (local.optimiser != "sgd" or local.momentum or local.proximal):
        raise TrainingRefused("distributed mode: plain SGD; all else goes to the aggregator")


def bytes_per_row(module: nn.Module, inputs: Mapping[str | int, Tensor]) -> int:
    """Estimate of what one row takes in training, from a forward pass of one row of zeros (reads no private value)."""
    zeros = {
        name: torch.zeros_like(part[:1]) if len(part) else part.new_zeros((1, *part.shape[1:]))
        for name, part in inputs.items()
    }
    with recording(module) as made:
        forward(module, zeros)
    numbers = 0
    for layer, uses in made.uses.items():
        activations = sum(use.input.numel() for use in uses)
        own = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        if isinstance(layer, nn.modules.conv._ConvNd):
            # Opacus unfolds a convolution's input to one copy for each kernel position.
            activations *= 1 + math.prod(layer.kernel_size)
        numbers += 4 * activations + (0 if type(layer) is nn.Linear and len(uses) == 1 else own)
    return 4 * max(numbers, 1)


class _Batch:
    """Turns row numbers into the sum of their clipped gradients."""

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        inputs: dict[str | int, Tensor],
        target: Tensor,
        limits: Tensor,
        device: torch.device,
        memory_limit: int,
        rehearsal: bool,
    ) -> None:
        self._rehearsal = rehearsal
        self._module, self._loss, self._device = module, loss, device
        self._inputs, self._target, self._limits = inputs, target, limits
        on_device = {name: part[:1].to(device) for name, part in inputs.items()}
        self.size = max(1, memory_limit // bytes_per_row(module, on_device))

    def clipped_sum(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Sum of clipped gradients over `rows`, shape (d,), float64; zeros when `rows` is empty."""
        total: Gradients = {}
        for start in range(0, len(rows), self.size):
            chosen = torch.from_numpy(rows[start : start + self.size])
            made = [(chosen, self._microbatch(chosen))] if self._rehearsal else alone.or_none(self._microbatch, chosen)
            for _, part in made:
                for parameter, value in (part or {}).items():
                    total[parameter] = total[parameter] + value if parameter in total else value
        parts = [
            total[p].reshape(-1).double()
            if p in total
            else torch.zeros(p.numel(), dtype=torch.float64, device=p.device)
            for p in self._module.parameters()
        ]
        return torch.cat(parts).cpu().numpy()

    def _microbatch(self, rows: Tensor) -> Gradients:
        inputs = {name: part.to(self._device) for name, part in take(self._inputs, rows).items()}
        with recording(self._module) as made:
            _, losses = alone.outputs(self._module, inputs, made, self._loss, self._target[rows].to(self._device))
        return clipped_sum(row_records(made, losses), self._limits[rows].to(self._device))


class _Optimiser:
    """Post-processing of noised gradients: SGD with momentum, or Adam (Kingma and Ba 2015), and the schedule."""

    def __init__(self, local: LocalTraining, plan: PrivacyPlan, round_number: int, size: int) -> None:
        self._local, self._plan, self._round = local, plan, round_number
        self._first = np.zeros(size)
        self._second = np.zeros(size)

    def direction(self, step: int, gradient: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What to subtract from the parameters in step 0, 1, ... of this round."""
        rate = self._rate(step)
        if self._local.optimiser == "adam":
            beta, decay = self._local.momentum or 0.9, 0.999
            self._first = beta * self._first + (1 - beta) * gradient
            self._second = decay * self._second + (1 - decay) * gradient**2
            mean = self._first / (1 - beta ** (step + 1))
            return rate * mean / (np.sqrt(self._second / (1 - decay ** (step + 1))) + 1e-8)
        if self._local.momentum == 0:
            return rate * gradient
        self._first = self._local.momentum * self._first + gradient
        return rate * self._first

    def _rate(self, step: int) -> float:
        if self._local.schedule == "constant":
            return self._local.learning_rate
        done = ((self._round - 1) * self._plan.steps_per_round + step) / self._plan.steps
        return self._local.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
