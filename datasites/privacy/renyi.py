"""What all studies on a population may cost together: a Rényi filter at one order. Pure arithmetic.

`accountant` computes a mechanism's divergence, and callers pass it to the functions here; these load nothing to price
with.

**A population's cap: a Rényi filter at one order.** Studies are chosen by people who have seen the results of earlier
ones, so their events are not fixed in advance, and the bound of one study says nothing about all of them together. Fix
alpha > 1, epsilon and delta, and let B = epsilon - log((alpha - 1) / alpha) + log(alpha x delta) / (alpha - 1). Claim:
if a mechanism runs only while the Rényi divergences at alpha of all that have run, including its own, add up to at most
B (their `epsilon_at_order` is at most epsilon), then all releases together are (epsilon, delta) differentially private,
however the mechanisms and the stopping time are chosen from earlier releases. Proof: let P and Q be the distributions
of the whole transcript y on neighbouring tables, P_k and Q_k those of release k given y_<k, and r_k(y_<k) the
divergence charged for it, in both directions. Then E_Q[(P_k / Q_k)^alpha | y_<k] <= exp((alpha - 1) r_k), so the
product over k of (P_k / Q_k)^alpha exp(-(alpha - 1) r_k) is a supermartingale under Q that starts at 1, and has
expectation at most 1 at any stopping time. On every transcript the r_k add up to at most B, so E_Q[(P / Q)^alpha] <=
exp((alpha - 1) B): the divergence of the whole is at most B, and by Canonne, Kamath, Steinke 2020 ("The Discrete
Gaussian for Differential Privacy", Proposition 12) that is (epsilon, delta). Exchange P and Q for the other direction.
The order is fixed in r_k from the first release on; a minimum over orders would choose it from y, and the product would
no longer be a supermartingale. (Feldman, Zrnic 2021, "Individual Privacy Accounting via a Renyi Filter", rest on the
same argument.)

Only a cap is a guarantee. A figure for what was "spent" by some moment is a reading of this arithmetic: that moment was
chosen with the releases in view, and the theorem above says nothing about such a moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from datasites.privacy.events import Charge, Event, counts
from datasites.study.errors import DatasitesError
from datasites.study.manifest import LEAST_DELTA

#: Renyi orders that a population's budget may be opened at. Whole ones: their divergence is a finite sum, exact and
#: fast, where a fractional order's series may not converge.
ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)

#: What one run of a mechanism diverges by at an order.
Divergence = Callable[[Charge, int], float]


class BudgetTooSmall(DatasitesError, ValueError):
    """A budget that admits no release at all; the message says which figure to raise."""


def filter_order(epsilon: float, delta: float) -> int:
    """Return the Renyi order at which a population's budget of (epsilon, delta) is opened, for good.

    Of `ORDERS`, the one whose filter admits most plain Gaussian releases: a Gaussian's divergence at order alpha is
    alpha x rho (zCDP), so most rho fits where B(alpha) / alpha is largest. For the usual plans, a sampled Gaussian's
    best order is near. Tiny sampling rates with a noise multiplier below about 0.8 are dear at it: they need more
    noise than their study's own cap would ask for.
    """
    require_delta(delta)
    order: int = max(ORDERS, key=lambda order: _room(epsilon, delta, order) / order)
    if not _room(epsilon, delta, order) > 0:
        raise BudgetTooSmall(
            f"budget: epsilon {epsilon:g} at delta {delta:g} admits no release at all; set epsilon or delta larger"
        )
    return order


def _room(epsilon: float, delta: float, order: int) -> float:
    return epsilon - _overhead(order, delta)


def _overhead(order: int, delta: float) -> float:
    # Canonne, Kamath, Steinke 2020, Proposition 12: what (epsilon, delta) costs above the Renyi divergence.
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


def epsilon_at_order(events: Iterable[Event], order: int, delta: float, divergence: Divergence) -> float:
    """Return epsilon at `delta` of all `events` by their Renyi divergence at one order; 0 without events.

    The first release costs the whole part of epsilon that the order takes for delta; from then on the figure grows in
    proportion to what is released.
    """
    require_delta(delta)
    events = [event for event in events if event]
    return max(0.0, _together(events, order, divergence) + _overhead(order, delta)) if events else 0.0


def share_of_cap(events: Iterable[Event], epsilon: float, delta: float, order: int, divergence: Divergence) -> float:
    """Return which part of the filter's cap `events` use, 1 for all of it; unlike epsilons, parts of studies add up."""
    require_delta(delta)
    room = _room(epsilon, delta, order)
    return _together(events, order, divergence) / room if room > 0 else math.inf


def _together(events: Iterable[Event], order: int, divergence: Divergence) -> float:
    # Rounded once, so that equal events read the same in whatever order they came.
    return math.fsum(count * divergence(mechanism, order) for mechanism, count in counts(events).items())


def require_delta(delta: float) -> None:
    """Raise `ValueError` for a delta that nothing is priced at."""
    if not LEAST_DELTA <= delta < 1:
        raise ValueError(f"delta: {delta} is outside [{LEAST_DELTA:g}, 1)")
