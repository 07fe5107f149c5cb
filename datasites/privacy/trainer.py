"""One round of local training that executes a `PrivacyPlan`: DP-SGD with the patient as the unit.

A step:
1. samples patients by Poisson sampling (`sampling`), each with all of its records; the batch may be empty;
2. computes each record's gradient by running the model on that record alone (`per_row`; no record can reach another),
   and clips it to clip / (records of its patient), so that one patient's sum is <= clip;
3. adds the gradients up (`clipping`), in microbatches of a fixed public number of slots;
4. adds Gaussian noise from a secure generator (`Mechanism`, the only way out; it counts steps);
5. in local mode divides by `divisor`, a public figure, and hands the result to the optimiser.

In distributed mode a round is one step and ends with 4: what leaves is the noised sum itself, in whole steps of the
grid of the secure sum. After the noise no number that another party chose touches it: with a learning rate, a divisor
or a model so large that its last bits are coarser than the noise, each hospital's noise would be rounded away.

Theorem. Each step's `noised_sum` is the output of a Poisson-sampled Gaussian mechanism with the plan's rate and noise
multiplier, for adding or removing one patient; in distributed mode so is the sum of such steps over hospitals of which
at least `honest` add their noise, up to the discreteness that `Mechanism.release_on_grid` states. Assumed: identifiers
tell patients apart; the randomness is secret and used once; the theorem of `clipping` with its assumptions. Proof: each
patient enters a sample by an independent draw, and changes the sum by at most clip x (1 + slack), by that theorem;
clamping to a box and rounding to a grid are applied only to the sum, and change it by what is charged; the noise is
that of the plan for this sensitivity, drawn independently; what follows reads nothing else of rows. Which models,
parameters, learning rates and divisors were received does not matter.

Before the first step, `probe` looks for a model that does not treat a batch row by row, on invented rows and with this
round's parameters: its findings and errors say nothing about a patient. From then on a record that is not finite or has
codes out of range counts as zero, and the round is released all the same. An empty table releases noise.

In local mode everything after step 4 reads only noised and public numbers, and is post-processing of sums with this
hospital's own full noise: the proximal term, momentum, Adam, the schedule. The update is the resulting difference of
parameters. Buffers, losses, batch sizes and times never leave this file.

The divisor is public because a division by the true number of patients would release that number, which is not public
under adding or removing a patient. Use sampling rate x declared cohort size.

The model runs in evaluation mode: dropout is inactive. Its masks would come from torch's global generator, which
submitted code could seed, and their positions in a batch would couple rows. torch's global generator has no influence.

The noise is drawn on the host in double precision and added there, even if gradients are computed on a GPU: the same
defences hold, at the price of moving d numbers to the host and d back in every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from datasites.privacy import parameters, per_row
from datasites.privacy.clipping import LARGEST_MODEL, ClippedSum
from datasites.privacy.model_inputs import (
    Array,
    Inputs,
    Loss,
    Tensors,
    binary_loss,
    slots_of,
    slots_part,
    take,
    tensor,
    tensors,
)
from datasites.privacy.noise import SecureRandom, discrete_gaussian, noised
from datasites.privacy.optimiser import Optimiser
from datasites.privacy.plan import PrivacyPlan
from datasites.privacy.probe import check_independence, invented
from datasites.privacy.records import recording, row_records
from datasites.privacy.sampling import PatientIndex, poisson_rows
from datasites.study.errors import DatasitesError
from datasites.study.manifest import LocalTraining
from datasites.study.rounds import LEAST_OWN_STEPS, NORM_SLACK, RingTerms
from datasites.study.schema import DataModel

#: Invented rows in a round's probe.
_PROBE_ROWS = 16


class TrainingRefused(DatasitesError, ValueError):
    """Training would break the plan or the data does not fit the model; the message names the rule and the remedy."""


class StepsExhausted(TrainingRefused):
    """More noised steps were asked for than the plan pays for in a round."""


@dataclass(frozen=True)
class TrainedRound:
    """What a round releases.

    update: shape (d,). Local mode: local minus global parameters, float32. Distributed mode: the noised sum of clipped
        gradients, int64, in steps of the ring's grid.
    steps: noised steps that were run, counted.
    """

    update: npt.NDArray[np.float32] | npt.NDArray[np.int64]
    steps: int


@dataclass(frozen=True)
class StepNotice:
    """A step as tests measure it: its number and the noised sum, shape (trainable parameters,). Nothing private."""

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
        """Return steps released so far in this round."""
        return self._steps

    def release(self, clipped: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return `clipped`, shape (d,), plus N(0, (noise multiplier x sensitivity)^2) on each coordinate.

        Raises `StepsExhausted` when the round's steps are used up: they were charged before the round began.
        """
        self._count()
        return noised(clipped, self._sensitivity, self._plan.local_noise_multiplier, self._randomness)

    def release_on_grid(self, clipped: npt.NDArray[np.float64], ring: RingTerms) -> npt.NDArray[np.int64]:
        """Release as `release` does, shape (d,), in whole steps of the grid with discrete noise, so sums stay priced.

        The sum is first clamped to +-ring.cut in each coordinate, so that the ring never clamps what holds noise: a
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
    round: int = 1,
    device: str | torch.device = "cpu",
    ring: RingTerms | None = None,
    rehearsal: bool = False,
    data_model: DataModel | None = None,
    randomness: SecureRandom | None = None,
    observer: Callable[[StepNotice], None] | None = None,
) -> TrainedRound:
    """Train `module`, which holds the global model, for `local.steps` noised steps; see the top of this file.

    module: in its private form (`layers.private_form`); left holding the local model afterwards,
        in distributed mode unchanged.
    loss: `loss(logits, target)` gives one loss per row, shape (n,); None is `binary_loss`.
    x: rows first; float32, or integers for embeddings. y: shape (n, ...). patients: one identifier per row.
    divisor: public, sampling rate x *declared* number of patients; in distributed mode who opens the sum divides.
    round: 1 .. plan.rounds, for the schedule, which spans the study.
    ring: in distributed mode, and only there, how the released sum lies in the secure sum.
    rehearsal: the rows are mock rows. The probe takes these, and a row with codes out of range is refused.
    data_model: what ordinary rows hold; the rows that the probe invents are drawn from it.
    randomness: sampling and noise; fresh from the operating system when left out.
    observer: is given each noised step; tests measure noise and sensitivity by it, and no hospital passes one.
    Raises `TrainingRefused` for terms outside the plan, `UnsupportedModel` for a model that can't be clipped,
    `DependentRows` for one that mixes rows, and what the model raises.
    """
    _check_terms(plan, local, round, divisor, ring)
    inputs, target = tensors(x), tensor(y)
    index = PatientIndex.of(patients)
    if not all(len(part) == len(index.owner) == len(target) for part in inputs.values()):
        raise TrainingRefused("x, y and patients differ in their number of rows; give one of each per record")
    module.to(device).eval()
    if len({id(parameter) for parameter in module.parameters()}) < len(list(module.parameters())):
        raise TrainingRefused(
            "model: parameters() gives one twice, and its gradient would leave twice; leave it as it is"
        )
    if parameters.dimension(module) > LARGEST_MODEL:
        raise TrainingRefused(f"model: more than {LARGEST_MODEL:,} parameters; rounding is accounted for up to that")
    start = parameters.flatten(module).astype(np.float64)
    trainable = np.concatenate([np.full(p.numel(), p.requires_grad) for p in module.parameters()])
    learnt: slice | npt.NDArray[np.bool_] = slice(None) if trainable.all() else trainable
    limits = torch.from_numpy(plan.clip / index.records[index.owner])
    batch = _Batch(module, loss or binary_loss, inputs, target, limits, local.slots, torch.device(device), rehearsal)
    optimiser = Optimiser(local, plan, round, int(trainable.sum()))
    randomness = randomness or SecureRandom()
    source = randomness.generator("probe")
    if rehearsal and len(target) >= 2:
        size = max(2, min(int(np.rint(divisor)), local.slots))
        chosen = torch.from_numpy(source.integers(len(target), size=size))
        check_independence(module, loss, take(inputs, chosen), target[chosen], randomness, device=device)
    else:
        made_up, labels = invented(inputs, target, _PROBE_ROWS, source, data_model)
        check_independence(module, loss, made_up, labels, randomness, device=device)

    mechanism = Mechanism(plan, randomness)
    if ring is not None:
        clipped = batch.clipped_sum(poisson_rows(index, plan.sampling_rate, randomness))
        released = mechanism.release_on_grid(clipped, ring)
        released[~trainable] = 0  # what no row moves needs no noise
        if observer is not None:
            observer(StepNotice(mechanism.steps, np.multiply(released, ring.grid, dtype=np.float64)))
        return TrainedRound(released, mechanism.steps)
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
    return TrainedRound((weights - start).astype(np.float32), mechanism.steps)


def _check_terms(
    plan: PrivacyPlan,
    local: LocalTraining,
    round: int,
    divisor: float,
    ring: RingTerms | None,
) -> None:
    if local.steps > plan.steps_per_round:
        raise StepsExhausted(
            f"training.steps = {local.steps}, but the plan pays for {plan.steps_per_round} a round; lower it"
        )
    if not 1 <= round <= plan.rounds:
        raise TrainingRefused(f"round {round} is outside the plan's 1..{plan.rounds}")
    if not (math.isfinite(divisor) and divisor > 0):
        raise TrainingRefused(f"divisor: {divisor}; give sampling rate x declared number of patients")
    if (plan.mode == "distributed") != (ring is not None):
        raise TrainingRefused("ring: given in distributed mode (how a sum lies in the secure sum) and only there")
    if ring is not None and (local.optimiser != "sgd" or local.momentum or local.proximal):
        raise TrainingRefused("distributed mode: plain SGD; all else goes to the aggregator")


@dataclass(frozen=True)
class _Batch:
    """Turns row numbers into the sum of their clipped gradients."""

    module: nn.Module
    loss: Loss
    inputs: Tensors
    target: Tensor
    limits: Tensor
    slots: int
    device: torch.device
    rehearsal: bool

    def clipped_sum(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Sum of clipped gradients over `rows`, shape (d,), float64; zeros when `rows` is empty."""
        total = ClippedSum()
        for start in range(0, len(rows), self.slots):
            self._add(total, torch.from_numpy(rows[start : start + self.slots]))
        found = total.value()
        parts = [
            found[p].reshape(-1) if p in found else torch.zeros(p.numel(), dtype=torch.float64, device=p.device)
            for p in self.module.parameters()
        ]
        return torch.cat(parts).cpu().numpy()

    def _add(self, total: ClippedSum, rows: Tensor) -> None:
        inputs = {name: part.to(self.device) for name, part in slots_of(self.inputs, rows, self.slots).items()}
        target, limits = (slots_part(part, rows, self.slots).to(self.device) for part in (self.target, self.limits))
        with recording(self.module) as trace:
            found = per_row.run(self.module, inputs, trace, self.loss, target)
        if self.rehearsal and not found.fit[: len(rows)].all():
            raise TrainingRefused(
                "model: a mock row has a code, class or share out of range, and such a row counts as nothing; size the "
                "table of codes or the number of classes by the data model"
            )
        # A slot that nobody is in has limit 0.
        total.add(row_records(trace, found.losses), limits, found.fit & torch.isfinite(found.losses) & (limits > 0))
