"""Plans and prices studies in a process of its own (`isolated.process`), which ends when no more requests come.

The accountant's libraries would stay in the datasite's memory for good, for one second of work per study. What is sent
is public: terms of studies, limits and mechanisms. A price is the same wherever it is computed. A price that can't be
computed is an error, on which every decision is a denial (I3).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from datasites.enclave.sandbox import SandboxConfig
from datasites.hospital.budget.accounting_messages import Calibrate, Plan, Planned, Priced, PriceRequest
from datasites.hospital.config import Home
from datasites.privacy.events import Charge, Event, in_order
from datasites.privacy.plan import EvaluationPlan, PrivacyPlan
from datasites.privacy.pricing import Prices
from datasites.privacy.study_plan import HospitalLimits
from datasites.study.canonical import Agreed
from datasites.study.manifest import StudyTerms

if TYPE_CHECKING:
    from datasites.hospital.isolated.process import Apart

Reply = TypeVar("Reply", bound=Agreed)
#: Seconds after which a process that nobody has asked again is ended: one act asks for several prices.
_LINGERS = 5.0
_REMEDY = "ask the researcher for fewer steps or rounds"
_PLANS = "plans of a study"


class _Accountant:
    """A process that prices, for one thread (with which it would end)."""

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._apart: Apart | None = None
        self._ending: threading.Timer | None = None

    def ask(self, what: str, request: Agreed, reply: type[Reply]) -> Reply:
        from datasites.hospital.isolated import process  # most have their prices already

        with self._lock:
            if self._ending is not None:
                self._ending.cancel()
            if self._apart is None or not self._apart.alive:
                self._apart = process.Apart(self._config, "budget.accounting_child", remedy=_REMEDY)
            try:
                return self._apart.ask(what, request, reply)[0]
            finally:
                self._ending = threading.Timer(_LINGERS, self._end)
                self._ending.daemon = True
                self._ending.start()

    def _end(self) -> None:
        with self._lock:
            if self._apart is not None:
                self._apart.close()
            self._apart = None


class _Mine(threading.local):
    """This thread's."""

    def __init__(self) -> None:
        self.accountants: dict[SandboxConfig, _Accountant] = {}


_mine = _Mine()


def _ask(home: Home, what: str, request: Agreed, reply: type[Reply]) -> Reply:
    config = home.settings.sandbox
    if config not in _mine.accountants:
        _mine.accountants[config] = _Accountant(config)
    return _mine.accountants[config].ask(what, request, reply)


def plans_of(home: Home, study: StudyTerms, limits: HospitalLimits) -> tuple[PrivacyPlan, EvaluationPlan]:
    """Return the plans of a study (`study_plan.plan_of`) within a hospital's limits; raises `PlanError`."""
    wanted = Plan(
        study=study,
        epsilon=limits.epsilon,
        delta=limits.delta,
        sampling_rate=limits.sampling_rate,
        both_sides=limits.both_sides,
    )
    planned = _ask(home, _PLANS, wanted, Planned)
    assert planned.evaluation is not None
    return planned.training, planned.evaluation


def calibrated(
    home: Home, epsilon: float, delta: float, *, sampling_rate: float, rounds: int, steps: int
) -> PrivacyPlan:
    """Return a plan of training in local mode with clipping norm 1; raises `PlanError` where no noise is enough."""
    wanted = Calibrate(epsilon=epsilon, delta=delta, sampling_rate=sampling_rate, rounds=rounds, steps=steps)
    return _ask(home, _PLANS, wanted, Planned).training


class PricesApart(Prices):
    """The accountant's prices, worked out in a process apart."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def pld(self, events: Iterable[Event], delta: float) -> float:
        """Return what the accountant says."""
        return self._priced(PriceRequest(method="pld", of=in_order(events), at=delta))

    def rdp(self, events: Iterable[Event], delta: float) -> float:
        """Return what the accountant says."""
        return self._priced(PriceRequest(method="rdp", of=in_order(events), at=delta))

    def divergence(self, mechanism: Charge, order: int) -> float:
        """Return what the accountant says."""
        return self._priced(PriceRequest(method="divergence", of=(mechanism,), at=order))

    def _priced(self, wanted: PriceRequest) -> float:
        figure = _ask(self._home, "price of a study", wanted, Priced).figure
        return float("inf") if figure is None else figure
