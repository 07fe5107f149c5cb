"""A hospital's optimiser: what is done with noised gradients, which is post-processing and costs nothing."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from datasites.privacy.plan import PrivacyPlan
from datasites.study.manifest import LocalTraining


class Optimiser:
    """Post-processing of noised gradients: SGD with momentum, or Adam (Kingma and Ba 2015), and the schedule."""

    def __init__(self, local: LocalTraining, plan: PrivacyPlan, round: int, size: int) -> None:
        self._local, self._plan, self._round = local, plan, round
        self._first = np.zeros(size)
        self._second = np.zeros(size)

    def direction(self, step: int, gradient: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return what to subtract from the parameters, (d,), in step 0, 1, ... of this round; `gradient` is (d,)."""
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
