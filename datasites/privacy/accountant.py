"""Prices mechanisms: what events cost a patient, and what that rests on. Pure; no torch.

Loads dp_accounting, and with it scipy, which takes a second: other rooms go through `pricing`, so that code that prices
nothing doesn't wait for it. All figures are for adding or removing one patient, with Poisson sampling where an event
says so. No figure uses a central limit theorem.

**A study's cap: privacy loss distributions (PLD).** Claim: whatever a study releases here is (epsilon, delta)
differentially private with epsilon = `epsilon_pld(its events, delta)`, even if it ends early. Assumptions: the events
are fixed before the first of them runs (approval binds the plan; `is_part_of` keeps charges to it), and each mechanism
is what its event says: given all that was released before, a Gaussian of `noise_multiplier` times the sensitivity, on a
Poisson sample. Proof: a step's input, the model, may depend on earlier releases in any way, but for each value of it
the pair of output distributions on neighbouring tables is dominated by the event's pair, which is the same for all
values. Domination carries over to adaptive composition (Zhu, Dong, Wang 2022, "Optimal Accounting of Differential
Privacy via Characteristic Function"), so the product of the events' pairs dominates the whole study, and its
hockey-stick divergence at e^epsilon is delta. Losses are rounded to a grid in such a way that the divergence can only
grow, so the figure is an upper bound for any grid. A study that ends early releases a function of what the whole one
would have released.

The cap of a population, over studies that are chosen one after another, is in `renyi`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from dp_accounting import DpEvent, GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from dp_accounting.rdp import RdpAccountant

from datasites.privacy import renyi
from datasites.privacy.events import Charge, Event, in_order
from datasites.privacy.renyi import ORDERS, require_delta

RELATION = NeighboringRelation.ADD_OR_REMOVE_ONE

#: PLD: least number of grid points per Renyi bound, so that the figure is within about a thousandth; more of them for
#: long studies.
GRID, LONG, FINEST_GRID = 10_000, 20_000, 100_000
#: Beyond this nobody needs a tight figure, and a distribution of losses would be large: the Renyi bound is returned.
LOOSE = 1_000.0


def epsilon_pld(events: Iterable[Event], delta: float, *, coarse: bool = False) -> float:
    """Return epsilon of `events`, fixed in advance, at `delta`: what a study's own cap is calibrated and gated on.

    Never below the true figure. coarse: on a grid of a tenth of the points, an upper bound too, for searching.
    """
    require_delta(delta)
    return _epsilon_pld(in_order(events), delta, GRID // 10 if coarse else GRID)


@lru_cache(maxsize=1024)
def _epsilon_pld(event: Event, delta: float, points: int) -> float:
    if not event:
        return 0.0
    bound = epsilon_rdp([event], delta)
    if bound > LOOSE:
        return bound
    steps = sum(charge.count for charge in event)
    grid = points * min(FINEST_GRID / GRID, math.sqrt(max(1.0, steps / LONG)))
    # A power of two, so that a study's first rounds and all of it share what one step loses.
    interval = 2.0 ** math.floor(math.log2(max(bound, 1e-6) / grid))
    losses = privacy_loss_distribution.identity(value_discretization_interval=interval)
    for charge in event:
        losses = losses.compose(_losses(charge, interval))
    return float(losses.get_epsilon_for_delta(delta))


def _losses(charge: Charge, interval: float) -> PrivacyLossDistribution:
    """Return how the privacy losses of all its steps together are distributed, on a grid of this interval."""
    if charge.mechanism == "poisson_sampled_gaussian":
        one = _losses_of_a_step(charge.noise_multiplier, charge.sampling_rate, interval)
        return one.self_compose(charge.count)
    return _losses_of_a_step(charge.noise_multiplier / math.sqrt(charge.count), 1.0, interval)


@lru_cache(maxsize=64)
def _losses_of_a_step(noise_multiplier: float, sampling_rate: float, interval: float) -> PrivacyLossDistribution:
    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        sampling_prob=sampling_rate,
        value_discretization_interval=interval,
        neighboring_relation=RELATION,
    )


def epsilon_rdp(events: Iterable[Event], delta: float) -> float:
    """Return epsilon of `events`, fixed in advance, at `delta`, by the best Renyi order; looser than PLD, and no gate.

    It holds for discrete Gaussian noise too, whose Renyi divergence is at most the continuous one's (Canonne, Kamath,
    Steinke 2020), so it is what one who sees a hospital's own vectors in distributed mode is told by.
    """
    events = list(events)
    return min(epsilon_at_order(events, order, delta) for order in ORDERS)


def epsilon_at_order(events: Iterable[Event], order: int, delta: float) -> float:
    """Return `renyi.epsilon_at_order` by this accountant's divergences."""
    return renyi.epsilon_at_order(events, order, delta, divergence)


def share_of_cap(events: Iterable[Event], epsilon: float, delta: float, order: int) -> float:
    """Return `renyi.share_of_cap` by this accountant's divergences: a part of the cap, 1 for all of it."""
    return renyi.share_of_cap(events, epsilon, delta, order, divergence)


@lru_cache(maxsize=8192)
def divergence(mechanism: Charge, order: int) -> float:
    """Return the Renyi divergence at `order` of a mechanism on neighbouring tables, the larger of both directions."""
    # dp_accounting has no public way to read the divergence; its version is pinned.
    return float(RdpAccountant([order], RELATION).compose(_priced_as(mechanism))._rdp[0])


def _priced_as(charge: Charge) -> DpEvent:
    inner: DpEvent = GaussianDpEvent(charge.noise_multiplier)
    if charge.mechanism == "poisson_sampled_gaussian":
        inner = PoissonSampledDpEvent(charge.sampling_rate, inner)
    return inner if charge.count == 1 else SelfComposedDpEvent(inner, charge.count)
