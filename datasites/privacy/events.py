"""What mechanisms do to a patient, as data: events that plans make, ledgers store and the accountant prices.

Nothing is priced here, so that whoever stores, shows or compares events loads no accountant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError


class UnknownEvent(DatasitesError, ValueError):
    """A stored format that this version can't price; nothing may be charged on its behalf (I3)."""


class Charge(Agreed):
    """`count` runs of a Gaussian mechanism, each on a Poisson sample where rate < 1, as the ledger stores them.

    Format 1. What a stored field means may never change; a new meaning gets a new format number and a branch in
    `charge_of`.
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

    def times(self, count: int) -> Charge:
        """Return the charge for running the same mechanism `count` times."""
        return self.model_copy(update={"count": count})


#: All that is released at once, or over a study: mechanisms that compose.
Event = tuple[Charge, ...]


def release(noise_multiplier: float, sampling_rate: float = 1.0, count: int = 1) -> Event:
    """Return `count` Gaussian releases, each on a Poisson sample where the rate is below 1."""
    return (
        Charge(
            mechanism="gaussian" if sampling_rate == 1 else "poisson_sampled_gaussian",
            noise_multiplier=noise_multiplier,
            sampling_rate=sampling_rate,
            count=count,
        ),
    )


def charge_of(fields: Any) -> Charge:
    """Read a stored charge of any format that was ever written; raises `UnknownEvent` for one from a newer version.

    fields: what its JSON was read to.
    """
    try:
        version = fields["format"]
    except (TypeError, KeyError) as error:
        raise UnknownEvent("stored charge: not a JSON object with a format number; restore the ledger") from error
    if version == 1:
        try:
            return Charge.model_validate(fields)
        except ValueError as error:
            raise UnknownEvent(f"stored charge of format 1: {error}") from error
    raise UnknownEvent(f"stored charge: format {version!r} is unknown here; upgrade this datasite before it goes on")


def compose(events: Iterable[Event]) -> Event:
    """All events as one, equal ones merged (composition does not depend on order), which keeps long histories fast."""
    return tuple(mechanism.times(count) for mechanism, count in counts(events).items())


def in_order(events: Iterable[Event]) -> Event:
    """Return `compose` in one order, so that equal events are equal values, and have one price to the last bit."""
    return tuple(sorted(compose(events), key=lambda charge: (charge.noise_multiplier, charge.sampling_rate)))


def is_part_of(events: Iterable[Event], whole: Iterable[Event]) -> bool:
    """Return whether `whole` holds all `events`, each at least as often: no arithmetic, so no tolerance."""
    return counts(events) <= counts(whole)


def counts(events: Iterable[Event]) -> Counter[Charge]:
    """Return how often each mechanism runs, by its single run."""
    found: Counter[Charge] = Counter()
    for event in events:
        for charge in event:
            found[charge.times(1)] += charge.count
    return found
