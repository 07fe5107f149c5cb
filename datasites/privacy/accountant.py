"""Prices a history of mechanisms: stored events, epsilon by RDP (the gate) and by PLD (tight). Pure; no torch.

A ledger stores `Charge` values and asks `would_exceed` before it writes another one. The gate is Renyi DP: an upper
bound that composes exactly over any order of charges. PLD is tighter and only reported. Never a central limit theorem.

All figures are for adding or removing one patient, with Poisson sampling where an event says so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
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
from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon
from pydantic import Field, model_validator

from datasites.study.canonical import Agreed

RELATION = NeighboringRelation.ADD_OR_REMOVE_ONE

#: Renyi orders. Fractional ones come from a slow series; few of them lower epsilon, and leaving one out only raises it.
ORDERS = (2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, *range(6, 65), 80, 96, 128, 192, 256, 512)


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
    counts: Counter[DpEvent] = Counter()
    for event in events:
        for inner, count in _parts(event):
            counts[inner] += count
    merged = [inner if count == 1 else SelfComposedDpEvent(inner, count) for inner, count in counts.items()]
    if not merged:
        return NoOpDpEvent()
    return merged[0] if len(merged) == 1 else ComposedDpEvent(merged)


def _parts(event: DpEvent) -> Iterable[tuple[DpEvent, int]]:
    if isinstance(event, ComposedDpEvent):
        for inner in event.events:
            yield from _parts(inner)
    elif isinstance(event, SelfComposedDpEvent):
        for inner, count in _parts(event.event):
            yield inner, count * event.count
    elif not isinstance(event, NoOpDpEvent):
        yield event, 1


def epsilon_rdp(events: Iterable[DpEvent], delta: float) -> float:
    """Epsilon of all `events` together at `delta`, by Renyi DP (Mironov et al. 2019). What budgets are gated on.

    Raises `UnknownEvent` for an event that the accountant can't price.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta: {delta} is outside (0, 1)")
    total = np.zeros(len(ORDERS))
    for event in events:
        for inner, count in _parts(event):
            total += count * _curve(inner)
    return float(compute_epsilon(np.array(ORDERS), total, delta)[0]) if total.any() else 0.0


@lru_cache(maxsize=1024)
def _curve(event: DpEvent) -> npt.NDArray[np.float64]:
    """Renyi divergence of one event at each of `ORDERS`. It adds up over events; computing it takes some 25 ms."""
    accountant = RdpAccountant(ORDERS, RELATION)
    if not accountant.supports(event):
        raise UnknownEvent(f"event {event}: the accountant has no price for it")
    # dp_accounting has no public way to read the curve; its version is pinned.
    curve: npt.NDArray[np.float64] = accountant.compose(event)._rdp
    return curve


def epsilon_pld(events: Iterable[DpEvent], delta: float) -> float:
    """Epsilon of all `events` together at `delta`, by privacy loss distributions: tighter, for reports only."""
    if not 0 < delta < 1:
        raise ValueError(f"delta: {delta} is outside (0, 1)")
    event, accountant = compose(events), PLDAccountant(RELATION)
    if isinstance(event, NoOpDpEvent):
        return 0.0
    if not accountant.supports(event):
        raise UnknownEvent(f"event {event}: the accountant has no price for it")
    return float(accountant.compose(event).get_epsilon(delta))


def would_exceed(history: Iterable[DpEvent], event: DpEvent, epsilon: float, delta: float) -> bool:
    """Whether `history` with `event` added would cost more than (epsilon, delta), by RDP. Changes nothing.

    An error while pricing is raised, never answered with "no": a caller that denies on an error denies by default.
    """
    return not epsilon_rdp([*history, event], delta) <= epsilon
