"""The messages between a datasite and its pricing process (`accounting`); imports little, for both."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from datasites.privacy.events import Charge
from datasites.privacy.plan import EvaluationPlan, PrivacyPlan
from datasites.study.canonical import Agreed
from datasites.study.manifest import StudyTerms


class Plan(Agreed):
    """Make the plans of a study within limits (`study_plan.plan_of`)."""

    kind: Literal["plan"] = "plan"
    study: StudyTerms
    epsilon: float
    delta: float
    sampling_rate: float
    both_sides: bool


class Calibrate(Agreed):
    """Make a plan of training alone, with noise of its own (`PrivacyPlan.calibrate`). Bounds are the plan's."""

    kind: Literal["calibrate"] = "calibrate"
    epsilon: float
    delta: float
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    rounds: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=1)]


class PriceRequest(Agreed):
    """Say what mechanisms cost, at a delta or an order."""

    kind: Literal["price"] = "price"
    method: Literal["pld", "rdp", "divergence"]
    of: tuple[Charge, ...]
    at: float


class Planned(Agreed):
    """Plans."""

    training: PrivacyPlan
    evaluation: EvaluationPlan | None = None


class Priced(Agreed):
    """What it costs; None where that is more than any number."""

    figure: float | None
