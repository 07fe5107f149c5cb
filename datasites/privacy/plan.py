"""What a study may do to a patient's privacy, as frozen values that carry their own price. No torch.

A `PrivacyPlan` is the mechanism of training, an `EvaluationPlan` that of the DP evaluation. The trainer executes a
plan, the ledger charges that plan's event, the console shows it: what runs and what is priced can't drift apart. A plan
is the hospital's (I4): `study_plan` makes it from the study's terms and the hospital's limits, never from code.

Training and held-out patients are disjoint (`sampling.held_out`), so the two plans are two partitions of a budget.

The guarantee of a plan, with everything that it rests on: (epsilon, delta) differential privacy for adding or removing
one *patient*, if identifiers tell patients apart, if a row's loss depends on that row alone (`per_row`), and in
distributed mode, where `event` is the price of the opened sums, under the theorem in `study.rounds`: if at least
`honest` hospitals add their noise and keep their vectors to themselves, the noise multiplier, clip and sampling rate
are those of all hospitals, and masks hold (they do only against bounded adversaries). `local_event` is the price
against someone who sees this hospital's own vectors unmasked; it depends on nobody else. A patient known at two
hospitals counts as two, and the two losses add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from datasites.privacy.calibration import ceil, least_noise
from datasites.privacy.events import Event, compose, release
from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError
from datasites.study.manifest import MOST_STEPS, Evaluation, EvaluationKind
from datasites.study.rounds import LATTICE

Positive = Annotated[float, Field(gt=0)]


class PlanError(DatasitesError, ValueError):
    """No plan fits what was asked for; the message says which figure to change."""


class PrivacyPlan(Agreed):
    """DP-SGD at one hospital over a whole study: Poisson-sampled, clipped, Gaussian-noised steps.

    clip: L2 norm that bounds one patient's summed gradient in a step.
    noise_multiplier: sd of the noise on the sum of clipped gradients, in units of the sensitivity. In local mode each
        hospital adds it in full; in distributed mode it is the sd of `honest` hospitals' noise together, on a lattice.
    sampling_rate: chance of a patient to enter a step.
    """

    format: Literal[1] = 1
    unit: Literal["patient"] = "patient"
    clip: Positive
    noise_multiplier: Positive
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    rounds: Annotated[int, Field(ge=1)]
    steps_per_round: Annotated[int, Field(ge=1)]
    mode: Literal["local", "distributed"] = "local"
    honest: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _mode_holds_together(self) -> Self:
        if self.mode == "distributed":
            if self.steps_per_round != 1:
                raise ValueError("plan: distributed mode needs steps_per_round = 1; only one clipped step sums to DP")
            if self.honest is None:
                raise ValueError("plan: distributed mode needs `honest`, how many hospitals' noise is relied on")
        elif self.honest is not None:
            raise ValueError("plan: `honest` belongs to distributed mode; local mode relies on nobody")
        return self

    @property
    def steps(self) -> int:
        """Return noised steps over the whole study."""
        return self.rounds * self.steps_per_round

    @property
    def local_noise_multiplier(self) -> float:
        """Noise that this hospital adds, in units of the sensitivity: all of it, or its share 1 / sqrt(honest)."""
        return self.noise_multiplier / math.sqrt(self.honest or 1)

    @property
    def _priced_multiplier(self) -> float:
        # Discrete noise is priced as continuous noise of a little less (`study.rounds`).
        return self.noise_multiplier * (LATTICE if self.mode == "distributed" else 1.0)

    def event(self) -> Event:
        """Price of the whole study: of this hospital's releases (local), or of the sums (distributed)."""
        return self._steps(self._priced_multiplier, self.steps)

    def round_event(self) -> Event:
        """Price of one round; `rounds` of them compose to `event()`."""
        return self._steps(self._priced_multiplier, self.steps_per_round)

    def local_event(self) -> Event:
        """Price of the study against one who sees this hospital's own vectors: `event()` in local mode, else dearer.

        In distributed mode it is a lattice too, of 4 steps or more: exact by Renyi DP, and by nothing else.
        """
        return self._steps(self.local_noise_multiplier, self.steps)

    def local_round_event(self) -> Event:
        """Price of one round against one who sees this hospital's own vector."""
        return self._steps(self.local_noise_multiplier, self.steps_per_round)

    def event_if_records_were_patients(self, records: int) -> Event:
        """Return what a patient with `records` records would pay if each record were sampled and clipped as a patient.

        An upper bound: such a patient enters a step with chance 1 - (1 - rate)^records and then moves the sum by
        up to records x clip. For the data steward, who must decide whether the table has a patient column.
        """
        if records < 1:
            raise PlanError(f"records: {records} is below 1")
        enters = min(1.0, -math.expm1(records * math.log1p(-self.sampling_rate))) if self.sampling_rate < 1 else 1.0
        changes = {"sampling_rate": enters, "noise_multiplier": self.noise_multiplier / records}
        return self.model_copy(update=changes).event()

    def _steps(self, multiplier: float, count: int) -> Event:
        return release(multiplier, self.sampling_rate, count)

    @staticmethod
    def calibrate(
        epsilon: float,
        delta: float,
        *,
        clip: float,
        sampling_rate: float,
        rounds: int,
        steps_per_round: int,
        mode: Literal["local", "distributed"] = "local",
        honest: int | None = None,
    ) -> PrivacyPlan:
        """Return the plan with the least noise whose whole event costs at most (epsilon, delta) by PLD.

        Raises `PlanError` when no noise multiplier up to 10,000 does, or for more steps than can be priced, and
        `ValidationError` for figures out of range.
        """

        def plan(multiplier: float) -> PrivacyPlan:
            return PrivacyPlan(
                clip=clip,
                noise_multiplier=multiplier,
                sampling_rate=sampling_rate,
                rounds=rounds,
                steps_per_round=steps_per_round,
                mode=mode,
                honest=honest,
            )

        plan(1.0)  # figures that no plan may have are named before a price is sought for them
        if rounds * steps_per_round > MOST_STEPS:
            raise PlanError(f"rounds x steps: {rounds * steps_per_round} is more than {MOST_STEPS}; ask for fewer")
        least = _least_noise(sampling_rate, rounds * steps_per_round, epsilon, delta)
        return plan(least if mode == "local" else ceil(least / LATTICE))


class EvaluationPlan(Agreed):
    """DP evaluation on held-out patients: counts per (score bin, label) with Gaussian noise. See `evaluation`.

    A patient adds at most 1 to the counts in total (records weigh 1 / records of the patient), so the L2 sensitivity
    is 1 and a noise multiplier is the sd of the noise on each count. In distributed mode counts lie on a grid, which
    adds to the sensitivity, and the multipliers are those of `honest` hospitals' noise together.
    edges: public bin edges over [0, 1], ascending; bin i is [edges[i], edges[i+1]), the last one closed.
    interim: how many interim evaluations the plan pays for, each with `interim_multiplier`; then one final one.
    """

    format: Literal[1] = 1
    edges: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    final_multiplier: Positive
    interim: Annotated[int, Field(ge=0)] = 0
    interim_multiplier: Positive | None = None
    honest: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if len(self.edges) < 3 or self.edges[0] != 0 or self.edges[-1] != 1:
            raise ValueError("evaluation plan: edges run from 0 to 1 with at least one threshold between")
        if any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("evaluation plan: edges must ascend")
        if (self.interim > 0) != (self.interim_multiplier is not None):
            raise ValueError("evaluation plan: interim and interim_multiplier are set together or not at all")
        return self

    @property
    def bins(self) -> int:
        """Return the number of score bins."""
        return len(self.edges) - 1

    def multiplier(self, kind: EvaluationKind) -> float:
        """Return the sd of the noise on each count of one evaluation of this kind, in units of the sensitivity.

        In distributed mode that of `honest` hospitals together.
        """
        if kind == "final":
            return self.final_multiplier
        if self.interim_multiplier is None:
            raise PlanError("evaluation plan: it pays for no interim evaluation; set evaluation.every and a share")
        return self.interim_multiplier

    def local_multiplier(self, kind: EvaluationKind) -> float:
        """Return the noise that this hospital adds: all of it, or its share 1 / sqrt(honest)."""
        return self.multiplier(kind) / math.sqrt(self.honest or 1)

    def event(self, kind: EvaluationKind) -> Event:
        """Price of one evaluation of this kind, for a held-out patient: of this hospital's counts, or of the sum."""
        return release(self.multiplier(kind) * (1.0 if self.honest is None else LATTICE))

    def local_event(self, kind: EvaluationKind) -> Event:
        """Price against one who sees this hospital's own counts; exact by Renyi DP."""
        return release(self.local_multiplier(kind)) if self.honest else self.event(kind)

    def total_event(self) -> Event:
        """Price of all interim evaluations and the final one."""
        return self._total(self.event)

    def total_local_event(self) -> Event:
        """Return `total_event` against one who sees this hospital's own counts."""
        return self._total(self.local_event)

    def _total(self, event: Callable[[EvaluationKind], Event]) -> Event:
        return compose([*(event("interim") for _ in range(self.interim)), event("final")])

    @classmethod
    def calibrate(
        cls,
        epsilon: float,
        delta: float,
        evaluation: Evaluation,
        rounds: int,
        *,
        edges: tuple[float, ...] | None = None,
    ) -> Self:
        """Return the plan that spends at most (epsilon, delta), by PLD, on held-out patients over the study.

        Composed Gaussians are one Gaussian with 1/z^2 = sum of 1/z_i^2, so budget is split in that measure (zCDP):
        `evaluation.interim_share` goes to the interim evaluations in equal parts, the rest to the final one. edges:
        `evaluation.bins` equal ones unless given. Raises `PlanError` when the budget is too small for any noise up to
        10,000, or the share of the interim ones for any number.
        """
        whole = _least_noise(1.0, 1, epsilon, delta)
        interim = evaluation.interim(rounds)
        share = evaluation.interim_share if interim else 0.0
        if interim and not math.isfinite(interim / share):
            raise PlanError(f"evaluation.interim_share: no noise is enough for {share:g}; ask for a larger share")
        return cls(
            edges=edges or evaluation_edges(evaluation.bins),
            final_multiplier=ceil(whole / math.sqrt(1 - share)),
            interim=interim,
            interim_multiplier=ceil(whole * math.sqrt(interim / share)) if interim else None,
        )


def evaluation_edges(bins: int) -> tuple[float, ...]:
    """Return the public edges of `bins` equal score bins over [0, 1]."""
    return tuple(i / bins for i in range(bins + 1))


def _least_noise(sampling_rate: float, count: int, epsilon: float, delta: float) -> float:
    if not epsilon > 0:
        raise PlanError(f"epsilon: {epsilon} is not above 0")
    multiplier = least_noise(sampling_rate, count, epsilon, delta)
    if multiplier is None:
        raise PlanError(f"epsilon {epsilon} at delta {delta}: no noise is enough; ask for fewer steps or more budget")
    return multiplier
