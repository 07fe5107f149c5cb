"""A cache of the prices that this hospital has computed: whoever shows or gates on one later loads no accountant.

A figure is stored with all that it follows from: what was computed, for exactly which mechanisms, at which delta or
order, by which accountant (the sources of its arithmetic and its library's version). For anything else the accountant
computes a new figure, which is stored too. So a figure is a fact of arithmetic and not of history: it is never out of
date, neither after a restore nor with other caps, and a figure that is lost is computed again. Each is a file of its
own, and holds only public terms of studies. Prices that follow from rows are never requested here (`readiness`).

**Claim.** Decisions that rest on stored figures are those that would follow from the accountant itself, unless somebody
can write to the home's private folder and read its key. Proof: a figure counts only under an HMAC-SHA256 by the home's
key over all that it follows from and its value, so a figure that was edited, moved or made up does not count, and one
that is put back is correct. Figures are not rows of the database, so somebody who can write only to that reaches none.
Whoever can do both could forge the ledger's anchor and the database beside it, which `ledger` assumes not to happen:
figures are bound as strongly as events are.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

from datasites.hospital.audit.commitments import Commitments
from datasites.hospital.budget.accounting import PricesApart
from datasites.hospital.config import Home
from datasites.hospital.database import this_home
from datasites.privacy import pricing
from datasites.privacy.events import Charge, Event, in_order
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.errors import InputError
from datasites.study.files import write_whole

#: What the accountant's arithmetic stands in, of `privacy`.
SOURCES = ("accountant.py", "events.py", "renyi.py")


class KeptPrices(PricesApart):
    """The accountant's prices, each worked out once in this home."""

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self._seen: dict[bytes, float] = {}

    def pld(self, events: Iterable[Event], delta: float) -> float:
        """Return what the accountant says, or said before."""
        event = in_order(events)
        return self._figure("pld", event, delta, lambda: super(KeptPrices, self).pld([event], delta))

    def rdp(self, events: Iterable[Event], delta: float) -> float:
        """Return what the accountant says, or said before."""
        event = in_order(events)
        return self._figure("rdp", event, delta, lambda: super(KeptPrices, self).rdp([event], delta))

    def divergence(self, mechanism: Charge, order: int) -> float:
        """Return what the accountant says, or said before."""
        what = (mechanism,)
        return self._figure("divergence", what, order, lambda: super(KeptPrices, self).divergence(mechanism, order))

    def _figure(self, method: str, event: Event, at: float, work_out: Callable[[], float]) -> float:
        asked = canonical_json(
            {
                "by": _accountant(),
                "method": method,
                "of": [charge.model_dump(mode="json") for charge in event],
                "at": at,
            }
        )
        if asked not in self._seen:
            known = _kept(self._home, asked)
            if known is None:
                known = work_out()
                _keep(self._home, asked, known)
            self._seen[asked] = known
        return self._seen[asked]


def kept_prices() -> KeptPrices:
    """Return the prices of the home that this process is connected to."""
    return KeptPrices(this_home())


@lru_cache(maxsize=1)
def _accountant() -> str:
    """Say which accountant this version has; another one's figures are not taken for its own."""
    folder = Path(pricing.__file__).parent
    sources = b"".join((folder / name).read_bytes() for name in SOURCES)
    return f"dp-accounting {version('dp-accounting')}, {sha256_hex(sources)}"


def _kept(home: Home, asked: bytes) -> float | None:
    try:
        found: Any = json.loads(_path(home, asked).read_bytes())
        value = float(found["value"])
        return value if hmac.compare_digest(found["bound"], _bound(home, asked, value)) else None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None  # none, or not of ours


def _keep(home: Home, asked: bytes, value: float) -> None:
    if not isfinite(value):
        return
    path = _path(home, asked)
    with suppress(OSError, InputError):  # a full disk or a damaged key must keep nobody from a price
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_whole(path, canonical_json({"value": value, "bound": _bound(home, asked, value)}))


def _path(home: Home, asked: bytes) -> Path:
    return home.figures / hashlib.sha256(asked).hexdigest()


def _bound(home: Home, asked: bytes, value: float) -> str:
    return Commitments(home).commit("figure of the accountant", asked + b" = " + repr(value).encode())
