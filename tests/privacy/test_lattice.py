"""What discrete noise costs beyond continuous noise of the same sd, worked out exactly, stays within what is charged.

The theorem in `study.rounds` says: on a lattice, noise of sd s steps divides tables no better than continuous noise of
sd sqrt(s^2 - 4). Here both sides are computed for many shifts, rates, directions and directions in space.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from scipy.special import comb
from scipy.stats import norm

from datasites.privacy.accountant import RELATION
from datasites.privacy.events import release
from datasites.privacy.plan import EvaluationPlan, PrivacyPlan
from datasites.study.rounds import LATTICE, LEAST_TOGETHER_STEPS

EPSILONS = np.geomspace(0.003, 6.0, 80)
#: Below this, differences of rounding in the sums of probabilities would be compared.
LEAST_DELTA = 1e-11


def discrete(sd: float, reach: float = 14.0) -> tuple[np.ndarray, np.ndarray]:
    """Points and probabilities of the discrete Gaussian."""
    points = np.arange(-math.ceil(reach * sd), math.ceil(reach * sd) + 1)
    weights = np.exp(-(points.astype(float) ** 2) / (2 * sd**2))
    return points, weights / weights.sum()


def moved_by(points: np.ndarray, sd: float, shift: int) -> np.ndarray:
    """The same noise around another point; what falls beyond `points` has no weight that counts."""
    return np.exp(-((points - shift).astype(float) ** 2) / (2 * sd**2)) / np.exp(-(points**2.0) / (2 * sd**2)).sum()


def hockey_stick(p: np.ndarray, q: np.ndarray, epsilon: float) -> float:
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum())


def on_the_lattice(sd: float, shift: int, rate: float, epsilon: float) -> float:
    """Delta of one sampled step, the larger of adding and removing."""
    points, weights = discrete(sd)
    mixed = (1 - rate) * weights + rate * moved_by(points, sd, shift)
    return max(hockey_stick(mixed, weights, epsilon), hockey_stick(weights, mixed, epsilon))


def continuous(sd: float, shift: float, rate: float, epsilon: float) -> float:
    """The same for continuous noise, in closed form: the likelihood ratio rises with x."""

    def threshold(ratio: float) -> float:
        return (math.log((ratio - 1 + rate) / rate) * sd**2 + shift**2 / 2) / shift

    grow = math.exp(epsilon)
    t = threshold(grow)
    mixed = (1 - rate) * norm.sf(t / sd) + rate * norm.sf((t - shift) / sd)
    removing = mixed - grow * norm.sf(t / sd)
    adding = 0.0
    if 1 / grow > 1 - rate:
        t = threshold(1 / grow)
        mixed = (1 - rate) * norm.cdf(t / sd) + rate * norm.cdf((t - shift) / sd)
        adding = norm.cdf(t / sd) - grow * mixed
    return max(float(removing), float(adding))


SHIFTS = [(4.0, s) for s in (1, 2, 3, 4, 6, 9)] + [(8.0, s) for s in (1, 5, 8, 13)] + [(64.0, s) for s in (16, 33, 64)]


@pytest.mark.parametrize(("sd", "shift"), SHIFTS)
@pytest.mark.parametrize("rate", [1.0, 0.3, 0.02])
def test_a_step_on_the_lattice_costs_at_most_a_continuous_one_of_a_little_less_noise(
    sd: float, shift: int, rate: float
) -> None:
    compared = 0
    for epsilon in EPSILONS:
        charged = continuous(math.sqrt(sd**2 - 4), shift, rate, epsilon)
        if charged > LEAST_DELTA:
            compared += 1
            assert on_the_lattice(sd, shift, rate, epsilon) <= charged * (1 + 1e-6)
    assert compared > 0


def test_the_lattice_is_not_free() -> None:
    """At 4 steps delta is some per cent above that of continuous noise of the same sd, which PLD would price."""
    excess = max(
        on_the_lattice(4.0, shift, 1.0, epsilon) / honest
        for shift in (1, 2, 3, 4)
        for epsilon in np.linspace(0.05, 2.0, 200)
        if (honest := continuous(4.0, shift, 1.0, epsilon)) > 1e-6
    )
    assert 1.03 < excess < 1.1


@pytest.mark.parametrize("shift", [(5, 0), (3, 4), (4, 4), (1, 7)])
def test_in_every_direction_of_space(shift: tuple[int, int]) -> None:
    """Continuous noise is the same in all directions, a lattice is not."""
    sd, length = 6.0, math.hypot(*shift)
    points, weights = discrete(sd, reach=9.0)
    p = np.outer(*(moved_by(points, sd, part) for part in shift))
    q = np.outer(weights, weights)
    for epsilon in np.linspace(0.1, 3.0, 30):
        charged = continuous(math.sqrt(sd**2 - 4), length, 1.0, epsilon)
        if charged > 1e-9:
            assert hockey_stick(p, q, epsilon) <= charged * (1 + 1e-6)


def test_rounds_together_cost_at_most_what_pld_charges_for_the_plan() -> None:
    """Three sampled rounds on a lattice of 8 steps, exactly, against dp_accounting's figure for continuous noise."""
    sd, shift, rate = 8.0, 8, 0.3
    points, weights = discrete(sd, reach=9.0)
    mixed = (1 - rate) * weights + rate * moved_by(points, sd, shift)
    p = np.einsum("i,j,k->ijk", mixed, mixed, mixed)
    q = np.einsum("i,j,k->ijk", weights, weights, weights)
    event = PoissonSampledDpEvent(rate, GaussianDpEvent(math.sqrt(sd**2 - 4) / shift))
    accountant = PLDAccountant(RELATION).compose(SelfComposedDpEvent(event, 3))
    for epsilon in (0.5, 1.0, 2.0, 3.0):
        worst = max(hockey_stick(p, q, epsilon), hockey_stick(q, p, epsilon))
        assert worst <= accountant.get_delta(epsilon) + 1e-12


@pytest.mark.parametrize(("sd", "shift", "order"), [*itertools.product((4.0, 8.0), (1, 3, 7), (2, 8, 32))])
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_renyi_divergence_is_never_above_the_continuous_one(sd: float, shift: int, order: int, rate: float) -> None:
    points = np.arange(-2000, 2001).astype(float)
    scale = np.log(np.exp(-(points**2) / (2 * sd**2)).sum())
    base = -(points**2) / (2 * sd**2) - scale
    mixed = -((points - shift) ** 2) / (2 * sd**2) - scale
    if rate < 1:
        mixed = np.logaddexp(math.log(1 - rate) + base, math.log(rate) + mixed)
    # Mironov, Talwar and Zhang 2019, arXiv:1908.10530, for continuous noise.
    k = np.arange(order + 1) if rate < 1 else np.array([order])
    moments = np.log(comb(order, k)) + (k * k - k) / 2 * (shift / sd) ** 2 + k * math.log(rate)
    continuous = np.logaddexp.reduce(moments + (order - k) * math.log1p(-rate) if rate < 1 else moments)
    for p, q in ((mixed, base), (base, mixed)):
        assert np.logaddexp.reduce(order * p + (1 - order) * q) <= continuous * (1 + 1e-9)


def test_shared_noise_is_charged_as_a_lattice_of_the_fewest_steps_and_full_noise_is_not() -> None:
    assert pytest.approx(math.sqrt(LEAST_TOGETHER_STEPS**2 - 4) / LEAST_TOGETHER_STEPS) == LATTICE
    terms = {"clip": 1.0, "noise_multiplier": 2.0, "sampling_rate": 1.0, "rounds": 1, "steps_per_round": 1}
    assert PrivacyPlan(**terms).event() == release(2.0)
    assert PrivacyPlan(**terms, mode="distributed", honest=3).event() == release(2.0 * LATTICE)
    assert PrivacyPlan(**terms, mode="distributed", honest=3).round_event() == release(2.0 * LATTICE)
    counts = EvaluationPlan(edges=(0.0, 0.5, 1.0), final_multiplier=1.5)
    assert counts.total_event() == counts.total_local_event() == release(1.5)
    shared = counts.model_copy(update={"honest": 4})
    assert shared.event("final") == release(1.5 * LATTICE)
    assert shared.total_local_event() == release(0.75)
