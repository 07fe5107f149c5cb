"""What a round must hold, once: used to make a manifest and to check one. Pure arithmetic; no torch, no Django.

In distributed mode hospitals add their noise on one grid, so that the secure sum adds up what was priced to the last
step. `ring_terms` chooses grid and bound from public terms alone; both sides compute them and compare.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError
from datasites.study.manifest import HALF_RING

#: Slack of the arithmetic that measures and sums clipped gradients: a patient moves a sum by at most clip x (1 + it).
NORM_SLACK = 2.0**-9
#: A hospital's own noise has at least this sd, in grid steps; the noise that the price relies on at least the second.
LEAST_OWN_STEPS, LEAST_TOGETHER_STEPS = 4.0, 64.0
#: Room between what is cut before the noise and the bound of the ring, in sd of a hospital's own noise.
TAIL_SD = 10.0
#: Most of the sensitivity that rounding to the grid may add, as a part of the clip.
ROUNDING_SHARE = 0.01


class RingRefused(DatasitesError):
    """No grid and bound of the secure sum fit these terms; the message names the figure that would."""


class RingTerms(Agreed):
    """How one vector of a distributed release lies in the ring.

    grid: one step, a power of two. bound: largest absolute value of a coordinate, a whole number of steps. cut: the
    clipped sum is cut to +-cut before its noise. deviation: sd of one hospital's noise. sensitivity: how far, in L2
    norm, one patient moves the rounded sum. All in the units of the clip.
    """

    grid: Annotated[float, Field(gt=0)]
    bound: Annotated[float, Field(gt=0)]
    cut: Annotated[float, Field(gt=0)]
    deviation: Annotated[float, Field(gt=0)]
    sensitivity: Annotated[float, Field(gt=0)]


def ring_terms(
    *, clip: float, noise_multiplier: float, honest: int, hospitals: int, length: int, slack: float = NORM_SLACK
) -> RingTerms:
    """Grid and bound for vectors of `length` coordinates, one from each of `hospitals`; raises `RingRefused`.

    noise_multiplier: sd of the noise of `honest` hospitals together, in units of the sensitivity. slack: relative
    error of the clipped sum (0 for counts, which are exact). A finer grid costs range and a coarser one sensitivity:
    the coarsest that keeps sqrt(length) x grid within 1 % of the clip is taken, with the whole range that is left.
    """
    share = noise_multiplier / math.sqrt(honest)
    finest = min(
        ROUNDING_SHARE * clip / math.sqrt(length),
        share * clip / LEAST_OWN_STEPS,
        noise_multiplier * clip / LEAST_TOGETHER_STEPS,
    )
    grid = 2.0 ** math.floor(math.log2(finest))
    sensitivity = clip * (1 + slack) + math.sqrt(length) * grid
    deviation = share * sensitivity
    bound = ((HALF_RING - 1) // hospitals) * grid
    cut = bound - TAIL_SD * deviation
    if cut < clip:
        raise RingRefused(
            f"secure sum: {hospitals} hospitals x {length} coordinates with noise of sd {deviation:g} each leave "
            f"+-{max(cut, 0.0):g} for the sum of clipped gradients, less than one clip ({clip:g}); use a model with "
            f"fewer parameters, fewer hospitals, or a noise multiplier below {_fitting_noise(bound, clip, honest):.3g}"
        )
    return RingTerms(grid=grid, bound=bound, cut=cut, deviation=deviation, sensitivity=sensitivity)


def _fitting_noise(bound: float, clip: float, honest: int) -> float:
    return max(0.0, (bound - clip) / TAIL_SD / (1.02 * clip) * math.sqrt(honest))
