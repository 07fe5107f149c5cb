"""Prices by another way: exact distribution functions, plain numpy and scipy, nothing of the product or its libraries.

A step moves the noised sum of one patient's step from Q = N(0, z^2) to P = (1 - q) N(0, z^2) + q N(1, z^2), in units of
the sensitivity. Its privacy loss log(P / Q) rises with the coordinate, so its distribution function is known exactly.
Rounding losses down and up to a grid, and convolving, gives a bracket that holds the true figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import norm

#: (noise multiplier, sampling rate, count)
Releases = tuple[float, float, int]


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of Gaussian releases whose squared sensitivities over variances add up to mu^2 (Balle and Wang 2018)."""

    def excess(epsilon: float) -> float:
        far = epsilon + norm.logcdf(-mu / 2 - epsilon / mu)
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(far) - delta

    return float(brentq(excess, 0, 1000, xtol=1e-10))


def epsilon(releases: Sequence[Releases], delta: float) -> float:
    """Epsilon of all `releases` together at `delta`, to a few millionths: the middle of a bracket."""
    return sum(bracket(releases, delta)) / 2


def renyi_epsilon(releases: Sequence[Releases], delta: float, orders: Sequence[float]) -> float:
    """Epsilon by the best of `orders` (Canonne, Kamath and Steinke 2020, proposition 12)."""
    return min(
        sum(count * divergence(z, q, a) for z, q, count in releases)
        + (math.log(1 / delta) + (a - 1) * math.log(1 - 1 / a) - math.log(a)) / (a - 1)
        for a in orders
    )


def bracket(releases: Sequence[Releases], delta: float, step: float = 5e-4) -> tuple[float, float]:
    """A lower and an upper bound on the epsilon of all `releases` together at `delta`."""
    low, high = (max(_epsilon(releases, delta, step, removed, up) for removed in (True, False)) for up in (False, True))
    return low, high


def _epsilon(releases: Sequence[Releases], delta: float, step: float, removed: bool, up: bool) -> float:
    parts = [(*_losses(z, q, step, removed, up), count) for z, q, count in releases]
    mean = variance = 0.0
    for start, masses, count in parts:
        points = np.arange(len(masses)) + start
        centre = float(points @ masses)
        mean += count * centre
        variance += count * float((points - centre) ** 2 @ masses)
    # Wide enough that what the circular convolution wraps around is less than any delta in question.
    size = 2 ** math.ceil(math.log2(30 * math.sqrt(variance) + 3 * max(len(masses) for _, masses, _ in parts)))
    transform, first = np.ones(size // 2 + 1, dtype=complex), 0
    for start, masses, count in parts:
        transform *= np.fft.rfft(masses, size) ** count
        first += start * count
    total = np.fft.irfft(transform, size)
    begin = round(mean) - size // 2
    total = np.roll(total, first - begin)
    losses = (np.arange(size) + begin) * step

    def excess(epsilon: float) -> float:
        above = losses > epsilon
        return float(total[above] @ -np.expm1(epsilon - losses[above])) - delta

    return float(brentq(excess, -1.0, float(losses[-1]), xtol=1e-9))


def _losses(z: float, q: float, step: float, removed: bool, up: bool) -> tuple[int, npt.NDArray[np.float64]]:
    """Chances of a step's loss on a grid: index of the first point, and the mass at each."""

    def loss(x: float) -> float:
        return (
            float(np.logaddexp(math.log(1 - q), math.log(q) + (2 * x - 1) / (2 * z * z)))
            if q < 1
            else (2 * x - 1) / (2 * z * z)
        )

    edges = (loss(-8 * z), loss(1 + 8 * z))
    first = math.floor(edges[0] / step) - 1
    points = np.arange(first, math.ceil(edges[1] / step) + 2)
    # The coordinate at which the loss is the grid point; below log(1 - q) no coordinate is.
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (np.expm1(points * step) + q) / q
        at = np.where(share > 0, z * z * np.log(np.maximum(share, 1e-300)) + 0.5, -np.inf)
    under_q, under_p = norm.cdf(at / z), (1 - q) * norm.cdf(at / z) + q * norm.cdf((at - 1) / z)
    if removed:
        masses = np.diff(under_p)
        return (first + 1 if up else first), masses
    masses = np.diff(under_q)[::-1]  # of minus the loss, whose grid runs the other way
    last = -int(points[-1])
    return (last + 1 if up else last), masses


def divergence(z: float, q: float, order: float) -> float:
    """Renyi divergence of one release at `order`, the larger of both directions, by the trapezoidal rule."""
    x = np.arange(-12 * z - 2 * order, 12 * z + 2 * order, z / 200)
    log_q = norm.logpdf(x, scale=z)
    log_p = log_q + (
        np.logaddexp(math.log(1 - q), math.log(q) + (2 * x - 1) / (2 * z * z)) if q < 1 else (2 * x - 1) / (2 * z * z)
    )
    both = (order * log_p - (order - 1) * log_q, order * log_q - (order - 1) * log_p)
    return float(max(logsumexp(top) for top in both) + math.log(z / 200)) / (order - 1)
