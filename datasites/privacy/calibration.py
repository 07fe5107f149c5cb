"""The least noise that keeps a fixed number of equal releases within (epsilon, delta), by PLD. Pure; no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

from datasites.privacy.events import release

#: Noise multipliers are looked for up to this one, and down to the least that makes sense.
MOST_NOISE, LEAST_NOISE = 10_000.0, 0.05
#: Relative precision of a calibrated multiplier, before it is rounded upwards.
PRECISION = 1e-4
#: Part of epsilon that a calibration leaves. PLD of nearly equal events may differ by its grid, some 1e-6 of epsilon,
#: and a plan must pass its own cap also where its noise is split over evaluations or rounded by the study.
MARGIN = 1e-4


@lru_cache(maxsize=256)
def least_noise(sampling_rate: float, count: int, epsilon: float, delta: float) -> float | None:
    """Return the least noise multiplier, rounded upwards, at which `count` releases cost at most (epsilon, delta).

    None where no multiplier up to `MOST_NOISE` is enough. What is returned was priced as returned, with the function
    that gates it.
    """
    from datasites.privacy.accountant import epsilon_pld  # see `pricing`

    target = epsilon * (1 - MARGIN)

    def above(multiplier: float, coarse: bool = False) -> float:
        spent = epsilon_pld([release(multiplier, sampling_rate, count)], delta, coarse=coarse)
        return math.log(max(spent, 1e-12) / target)

    # A release of the sampled Gaussian costs about rate / multiplier, and releases add up as their squares.
    high = sampling_rate * math.sqrt(count * 2 * math.log(1 / delta)) / epsilon
    high = min(max(high, 2 * LEAST_NOISE), MOST_NOISE)
    while above(high, coarse=True) > 0:
        if high >= MOST_NOISE:
            return None
        high = min(1.5 * high, MOST_NOISE)
    # The coarse figure is an upper bound, so that what it finds is enough; the fine one only comes down from there.
    high = _enough(above, _root(partial(above, coarse=True), high, 1.3))
    return _enough(above, ceil(_root(above, high, 1.01)))


def _enough(above: Callable[[float], float], multiplier: float) -> float:
    while above(multiplier) > 0:
        multiplier = ceil(multiplier * (1 + PRECISION))
    return multiplier


def _root(above: Callable[[float], float], high: float, factor: float) -> float:
    """Return about the least multiplier at which `above` is not above 0, which it is not at `high`."""
    low = high / factor
    while low > LEAST_NOISE and above(low) <= 0:
        low, high = low / factor, low
    if low <= LEAST_NOISE:
        return high
    from scipy.optimize import brentq  # with the accountant, for whoever calibrates

    root = brentq(lambda x: above(math.exp(x)), math.log(low), math.log(high), xtol=PRECISION)
    return max(low, min(high, math.exp(root)))


def ceil(multiplier: float) -> float:
    """Round to four decimals, upwards: short to read on a page, and never less noise than was computed."""
    return math.ceil(multiplier * 10_000) / 10_000
