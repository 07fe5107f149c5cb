"""The other end of `accounting`: plans and prices, in a process of their own (`isolated.child`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from pydantic import Field, TypeAdapter

from datasites.hospital.budget.accounting_messages import Calibrate, Plan, Planned, Priced, PriceRequest
from datasites.hospital.isolated.child import Answer
from datasites.hospital.isolated.frames import Numbers
from datasites.privacy import accountant
from datasites.privacy.plan import PrivacyPlan
from datasites.privacy.study_plan import HospitalLimits, plan_of
from datasites.study.canonical import Agreed

_REQUEST: TypeAdapter[Plan | Calibrate | PriceRequest] = TypeAdapter(
    Annotated[Plan | Calibrate | PriceRequest, Field(discriminator="kind")]
)


def answering() -> Answer:
    """Return the function that answers requests."""
    return _answer


def _answer(request: bytes, content: Callable[[], bytes]) -> tuple[Agreed, Numbers]:
    content()  # none comes with any
    wanted = _REQUEST.validate_json(request)
    if isinstance(wanted, PriceRequest):
        figure = _price(wanted)
        return Priced(figure=figure if math.isfinite(figure) else None), {}
    return _plan(wanted), {}


def _plan(wanted: Plan | Calibrate) -> Planned:
    if isinstance(wanted, Plan):
        limits = HospitalLimits(wanted.epsilon, wanted.delta, wanted.sampling_rate, wanted.both_sides)
        plans = plan_of(wanted.study, limits)
        return Planned(training=plans.training, evaluation=plans.evaluation)
    training = PrivacyPlan.calibrate(
        wanted.epsilon,
        wanted.delta,
        clip=1.0,
        sampling_rate=wanted.sampling_rate,
        rounds=wanted.rounds,
        steps_per_round=wanted.steps,
        mode="local",
        honest=None,
    )
    return Planned(training=training)


def _price(wanted: PriceRequest) -> float:
    if wanted.method == "divergence":
        (mechanism,) = wanted.of
        return accountant.divergence(mechanism, int(wanted.at))
    method = {"pld": accountant.epsilon_pld, "rdp": accountant.epsilon_rdp}[wanted.method]
    return method([wanted.of], wanted.at)
