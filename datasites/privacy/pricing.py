"""Loads the accountant when the first price is asked for, and not before.

Its library takes a second to import; a command that shows what was priced before, or prices nothing, needs none of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from datasites.privacy import renyi
from datasites.privacy.events import Charge, Event


class Prices:
    """What events cost a patient, worked out anew."""

    def pld(self, events: Iterable[Event], delta: float) -> float:
        """Return `accountant.epsilon_pld`."""
        from datasites.privacy import accountant

        return accountant.epsilon_pld(events, delta)

    def rdp(self, events: Iterable[Event], delta: float) -> float:
        """Return `accountant.epsilon_rdp`."""
        from datasites.privacy import accountant

        return accountant.epsilon_rdp(events, delta)

    def divergence(self, mechanism: Charge, order: int) -> float:
        """Return `accountant.divergence`."""
        from datasites.privacy import accountant

        return accountant.divergence(mechanism, order)

    def at_order(self, events: Iterable[Event], order: int, delta: float) -> float:
        """Return `renyi.epsilon_at_order`."""
        return renyi.epsilon_at_order(events, order, delta, self.divergence)

    def share(self, events: Iterable[Event], epsilon: float, delta: float, order: int) -> float:
        """Return `renyi.share_of_cap`: a part of the cap (epsilon, delta), 1 for all of it."""
        return renyi.share_of_cap(events, epsilon, delta, order, self.divergence)
