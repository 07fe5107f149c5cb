"""Prices mechanisms: stored events, the two caps that hold, and what they rest on. Pure; no torch.

Two caps bound what a patient can lose, each with one delta of its own. All figures are for adding or removing one
patient, with Poisson sampling where an event says so. Never a central limit theorem.

**A study's cap: privacy loss distributions (PLD).** Claim: whatever a study releases here is (epsilon, delta)
differentially private with epsilon = `epsilon_pld(its events, delta)`, also when it ends early. Assumptions: the events
are fixed before the first of them runs (approval binds the plan; `is_part_of` keeps charges to it), and each mechanism
is one of its event: given all that was released before, a Gaussian of `noise_multiplier` times the sensitivity, on a
Poisson sample. Proof: a step's input, the model, may depend on earlier releases in any way, but for each value of it
the pair of output laws on neighbouring tables is dominated by the event's pair, the same for all values. Domination
passes to adaptive composition (Zhu, Dong, Wang 2022, "Optimal Accounting of Differential Privacy via Characteristic
Function"), so the product of the events' pairs dominates the whole study, and its hockey-stick divergence at e^epsilon
is delta. Losses are put on a grid so that the divergence only grows, so the figure is an upper bound at any grid. A
study that ends early releases a function of what the whole one would have released.

**A population's cap: a Renyi filter at one order.** Studies are chosen by people who have seen the results of earlier
ones, so their events are not fixed in advance and the above says nothing of them together. Fix alpha > 1, epsilon and
delta, and let B = epsilon - log((alpha - 1) / alpha) + log(alpha x delta) / (alpha - 1). Claim: if a mechanism runs
only while the Renyi divergences at alpha of all that ran, itself included, add up to at most B (`would_exceed_filter`),
then all releases together are (epsilon, delta) differentially private, however mechanisms and the moment to stop are
chosen from earlier releases. Proof: let P and Q be the laws of the whole transcript y on neighbouring tables, P_k and
Q_k those of release k given y_<k, and r_k(y_<k) the divergence charged for it, in both directions. Then
E_Q[(P_k / Q_k)^alpha | y_<k] <= exp((alpha - 1) r_k), so the product over k of (P_k / Q_k)^alpha exp(-(alpha - 1) r_k)
is a supermartingale under Q that begins at 1, and has expectation at most 1 at any moment to stop. On every transcript
the r_k add up to at most B, so E_Q[(P / Q)^alpha] <= exp((alpha - 1) B): the divergence of the whole is at most B, and
by Canonne, Kamath, Steinke 2020 ("The Discrete Gaussian for Differential Privacy", Proposition 12) that is (epsilon,
delta). Exchange P and Q for the other direction. The order stands in r_k from the first release on; a minimum over
orders would choose it from y, and no supermartingale would be left. (Feldman, Zrnic 2021, "Individual Privacy
Accounting via a Renyi Filter", rest on the same argument.)

Only a cap is a guarantee. A figure for what was "spent" by some moment is a reading of this arithmetic: the moment to
look at it was chosen with the releases in view, and no theorem above is about such a moment.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from dp_accounting import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    NeighboringRelation,
    NoOpDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from pydantic import Field, model_validator

from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError
from datasites.study.manifest import LEAST_DELTA

RELATION = NeighboringRelation.ADD_OR_REMOVE_ONE

#: Renyi orders that a population's budget may be opened at. Whole ones: their divergence is a finite sum, exact and
#: fast, where a fractional order's series may not converge.
ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)
#: PLD: grid points per Renyi bound, so that the figure is within about a thousandth; more of them for long studies.
GRID, LONG, FINEST_GRID = 10_000, 20_000, 100_000
#: Beyond this nobody needs a tight figure, and a distribution of losses would be large: the Renyi bound is returned.
LOOSE = 1_000.0


class BudgetTooSmall(DatasitesError, ValueError):
    """A budget that admits no release at all; the message says which figure to raise."""


class UnknownEvent(ValueError):
    """An event, or a stored format, that this version can't price; nothing may be charged on its behalf (I3)."""


class Charge(Agreed):
    """A mechanism as the ledger stores it: `count` runs of a Gaussian, each on a Poisson sample where rate < 1.

    Format 1. What a stored field means may never change; a new meaning gets a new format number and a branch in
    `read_charge`.
    """

    format: Literal[1] = 1
    mechanism: Literal["gaussian", "poisson_sampled_gaussian"]
    noise_multiplier: Annotated[float, Field(gt=0)]
    sampling_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    count: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _rate_fits(self) -> Self:
        if self.mechanism == "gaussian" and self.sampling_rate != 1:
            raise ValueError("charge: a plain Gaussian has sampling_rate 1")
        return self

    def event(self) -> DpEvent:
        """The `dp_accounting` event that this charge stands for."""
        inner: DpEvent = GaussianDpEvent(self.noise_multiplier)
        if self.mechanism == "poisson_sampled_gaussian":
            inner = PoissonSampledDpEvent(self.sampling_rate, inner)
        return inner if self.count == 1 else SelfComposedDpEvent(inner, self.count)

    @classmethod
    def of(cls, event: DpEvent) -> Self:
        """The stored form of an event that a plan gave; raises `UnknownEvent` for any other kind of event."""
        count = 1
        if isinstance(event, SelfComposedDpEvent):
            event, count = event.event, event.count
        if isinstance(event, GaussianDpEvent):
            return cls(mechanism="gaussian", noise_multiplier=event.noise_multiplier, count=count)
        if isinstance(event, PoissonSampledDpEvent) and isinstance(event.event, GaussianDpEvent):
            return cls(
                mechanism="poisson_sampled_gaussian",
                noise_multiplier=event.event.noise_multiplier,
                sampling_rate=event.sampling_probability,
                count=count,
            )
        raise UnknownEvent(f"event {type(event).__name__}: only (Poisson-sampled) Gaussian events are stored")


def read_charge(stored: bytes | str) -> Charge:
    """Read a stored charge of any format that was ever written; raises `UnknownEvent` for one from a newer version."""
    try:
        fields: Any = json.loads(stored)
        version = fields["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise UnknownEvent("stored charge: not a JSON object with a format number; restore the ledger") from error
    if version == 1:
        try:
            return Charge.model_validate(fields)
        except ValueError as error:
            raise UnknownEvent(f"stored charge of format 1: {error}") from error
    raise UnknownEvent(f"stored charge: format {version!r} is unknown here; upgrade this datasite before it runs on")


def compose(events: Iterable[DpEvent]) -> DpEvent:
    """All events as one, equal ones merged (composition does not depend on order), which keeps long histories fast."""
    merged = [inner if n == 1 else SelfComposedDpEvent(inner, n) for inner, n in _counts(events).items()]
    if not merged:
        return NoOpDpEvent()
    return merged[0] if len(merged) == 1 else ComposedDpEvent(merged)


def is_part_of(events: Iterable[DpEvent], whole: Iterable[DpEvent]) -> bool:
    """Whether `events` are among those of `whole`, each at most as often as there: no arithmetic, so no tolerance."""
    return _counts(events) <= _counts(whole)


def _counts(events: Iterable[DpEvent]) -> Counter[DpEvent]:
    counts: Counter[DpEvent] = Counter()
    for event in events:
        for inner, count in _parts(event):
            counts[inner] += count
    return counts


def _parts(event: DpEvent) -> Iterable[tuple[DpEvent, int]]:
    if isinstance(event, ComposedDpEvent):
        for inner in event.events:
            yield from _parts(inner)
    elif isinstance(event, SelfComposedDpEvent):
        for inner, count in _parts(event.event):
            yield inner, count * event.count
    elif not isinstance(event, NoOpDpEvent):
        yield event, 1


def epsilon_pld(events: Iterable[DpEvent], delta: float, *, coarse: bool = False) -> float:
    """Epsilon of `events`, fixed in advance, at `delta`: what a study's own cap is calibrated and gated on.

    Never below the true figure. coarse: on a grid of a tenth of the points, an upper bound too, for searching. Raises
    `UnknownEvent` for an event that the accountant can't price.
    """
    _check(delta)
    return _epsilon_pld(frozenset(_counts(events).items()), delta, GRID // 10 if coarse else GRID)


@lru_cache(maxsize=1024)
def _epsilon_pld(parts: frozenset[tuple[DpEvent, int]], delta: float, points: int) -> float:
    events = [event if count == 1 else SelfComposedDpEvent(event, count) for event, count in parts]
    if not events:
        return 0.0
    bound = epsilon_rdp(events, delta)
    if bound > LOOSE:
        return bound
    steps = sum(count for _, count in parts)
    grid = points * min(FINEST_GRID / GRID, math.sqrt(max(1.0, steps / LONG)))
    accountant = PLDAccountant(RELATION, value_discretization_interval=max(bound, 1e-6) / grid)
    for event in events:
        accountant.compose(event)
    return float(accountant.get_epsilon(delta))


def epsilon_rdp(events: Iterable[DpEvent], delta: float) -> float:
    """Epsilon of `events`, fixed in advance, at `delta`, by the best Renyi order; looser than PLD, and no gate.

    It holds for discrete Gaussian noise too, whose Renyi divergence is at most the continuous one's (Canonne, Kamath,
    Steinke 2020), so it is what one who sees a hospital's own vectors in distributed mode is told by.
    """
    events = list(events)
    return min(epsilon_at_order(events, order, delta) for order in ORDERS)


def filter_order(epsilon: float, delta: float) -> int:
    """The Renyi order at which a population's budget of (epsilon, delta) is opened, for good.

    Of `ORDERS`, the one whose filter admits most plain Gaussian releases: a Gaussian's divergence at order alpha is
    alpha x rho (zCDP), so most rho fits where B(alpha) / alpha is largest. For the usual plans, a sampled Gaussian's
    best order is near. Tiny sampling rates with a noise multiplier below about 0.8 are dear at it: they need more
    noise than their study's own cap would ask for.
    """
    _check(delta)
    order = max(ORDERS, key=lambda order: _room(epsilon, delta, order) / order)
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


def epsilon_at_order(events: Iterable[DpEvent], order: int, delta: float) -> float:
    """Epsilon at `delta` of all `events` by their Renyi divergence at one order; 0 without events.

    Raises `UnknownEvent` for an event that the accountant can't price. The first release costs the whole part of
    epsilon that the order takes for delta; from then on the figure grows in proportion to what is released.
    """
    _check(delta)
    counts = _counts(events)
    if not counts:
        return 0.0
    divergence = sum(count * _divergence(event, order) for event, count in counts.items())
    return max(0.0, divergence + _overhead(order, delta))


def share_of_cap(events: Iterable[DpEvent], epsilon: float, delta: float, order: int) -> float:
    """Which part of the filter's cap `events` take; parts of several studies add up, as epsilons don't."""
    _check(delta)
    room = _room(epsilon, delta, order)
    used = sum(count * _divergence(event, order) for event, count in _counts(events).items())
    return used / room if room > 0 else math.inf


@lru_cache(maxsize=8192)
def _divergence(event: DpEvent, order: int) -> float:
    accountant = RdpAccountant([order], RELATION)
    if not accountant.supports(event):
        raise UnknownEvent(f"event {event}: the accountant has no price for it")
    # dp_accounting has no public way to read the divergence; its version is pinned.
    return float(accountant.compose(event)._rdp[0])


def would_exceed_filter(history: Iterable[DpEvent], event: DpEvent, epsilon: float, delta: float, order: int) -> bool:
    """Whether `history` with `event` added passes the filter's cap of (epsilon, delta) at `order`. Changes nothing.

    An error while pricing is raised, never answered with "no": a caller that denies on an error denies by default.
    """
    return not epsilon_at_order([*history, event], order, delta) <= epsilon


def _check(delta: float) -> None:
    if not LEAST_DELTA <= delta < 1:
        raise ValueError(f"delta: {delta} is outside [{LEAST_DELTA:g}, 1)")
