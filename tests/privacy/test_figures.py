"""Every figure that a file may hold, at its ends: a plan comes of it, or a refusal in words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import get_args

import annotated_types
import pytest
from pydantic import BaseModel, ValidationError

from datasites.hospital.config import DatasetSettings, DatasiteSettings
from datasites.privacy.plan import PlanError
from datasites.privacy.renyi import filter_order
from datasites.privacy.study_plan import HospitalLimits, plan_of
from datasites.study.errors import DatasitesError, InputError, parse_toml
from datasites.study.manifest import LEAST_DELTA, Evaluation, LocalTraining, PrivacyTerms, StudyTerms
from datasites.study.package import StudyPackage
from tests.study.studies import HEART, distributed

SECTIONS: dict[str, type[BaseModel]] = {"privacy": PrivacyTerms, "training": LocalTraining, "evaluation": Evaluation}


def ends(model: type[BaseModel]) -> Iterator[tuple[str, float]]:
    """Each fraction of a table, with the least and the largest figure that its rule lets through."""
    for name, field in model.model_fields.items():
        rules = list(field.metadata)
        kinds = [field.annotation, *get_args(field.annotation)]
        for kind in get_args(field.annotation):
            rules += [part for rule in get_args(kind)[1:] for part in getattr(rule, "metadata", [rule])]
            kinds += get_args(kind)
        if float not in kinds:
            continue
        for rule in rules:
            match rule:
                case annotated_types.Ge(ge=least):
                    yield name, float(least)
                    if least == 0:
                        yield name, math.ulp(0.0)
                case annotated_types.Gt(gt=least):
                    yield name, math.nextafter(float(least), math.inf)
                case annotated_types.Le(le=most):
                    yield name, float(most)
                case annotated_types.Lt(lt=most):
                    yield name, math.nextafter(float(most), -math.inf)
        if not any(isinstance(rule, annotated_types.Le | annotated_types.Lt) for rule in rules):
            yield name, 1e308


FIGURES = [(section, *end) for section, model in SECTIONS.items() for end in ends(model)]


def test_every_fraction_of_a_study_has_two_ends() -> None:
    names = {f"{section}.{name}" for section, name, _ in FIGURES}
    assert names == {
        "privacy.epsilon", "privacy.delta", "privacy.clip", "privacy.sampling_rate", "privacy.noise_multiplier",
        "privacy.divisor", "training.learning_rate", "training.momentum", "training.proximal",
        "evaluation.interim_share", "evaluation.noise_multiplier",
    }  # fmt: skip
    assert all(sum((section, name) == end[:2] for end in FIGURES) >= 2 for section, name, _ in FIGURES)


@pytest.mark.parametrize("mode", ["local", "distributed"])
@pytest.mark.parametrize(("section", "name", "figure"), FIGURES)
def test_a_study_at_an_end_of_a_figure_has_a_plan_or_a_refusal(
    mode: str, section: str, name: str, figure: float
) -> None:
    """Never an error that nobody foresaw: a hospital would take that for its own fault."""
    base = distributed() if mode == "distributed" else StudyPackage.read(HEART).study
    terms = base.model_dump(mode="json")
    terms[section][name] = figure
    if name == "interim_share":
        terms[section]["every"] = 1
    with suppress(DatasitesError, ValidationError):  # the second for a rule of the whole study
        plan_of(StudyTerms.model_validate(terms))


def test_delta_has_one_least_value() -> None:
    """Of a study, of a dataset and of the accountant; what distributed noise takes of it is said."""
    low = math.nextafter(LEAST_DELTA, 0)
    terms = StudyPackage.read(HEART).study.model_dump(mode="json")
    plan_of(StudyTerms.model_validate(terms | {"privacy": terms["privacy"] | {"delta": LEAST_DELTA}}))
    with pytest.raises(ValueError, match="delta"):
        StudyTerms.model_validate(terms | {"privacy": terms["privacy"] | {"delta": low}})
    with pytest.raises(PlanError, match="privacy.delta: 1e-12 is not above .* ask for a larger delta"):
        plan_of(distributed(privacy={"delta": LEAST_DELTA}))


def test_a_share_that_no_number_holds_the_noise_of_is_refused_and_a_small_one_is_still_read() -> None:
    terms = StudyPackage.read(HEART).study.model_dump(mode="json")
    with pytest.raises(PlanError, match="evaluation.interim_share: .* ask for a larger share"):
        plan_of(StudyTerms.model_validate(terms | {"evaluation": {"every": 1, "interim_share": 1e-320}}))
    for share, every in ((1e-20, 1), (1e-320, terms["rounds"])):  # priced by every version
        plan_of(StudyTerms.model_validate(terms | {"evaluation": {"every": every, "interim_share": share}}))


@pytest.mark.parametrize(("name", "figure"), [*ends(DatasetSettings), ("delta", 1e-13)])
def test_a_dataset_at_an_end_of_a_figure_has_a_budget_or_a_refusal(name: str, figure: float) -> None:
    said = {"name": "a", "table": "t", "mapping": "m", "mock": "k", "summary": "s"}
    figures = {"declared_patients": 9, "epsilon": 8.0, "delta": 1e-5, "study_epsilon": 3.0, name: figure}
    lines = [f"{key} = {json.dumps(value)}" for key, value in (said | figures).items()]
    toml = "\n".join(['organisation = "A"', 'email = "a@a.example.org"', 'store = "s"', "[[datasets]]", *lines])
    if (name, figure) == ("delta", 1e-13):
        with pytest.raises(InputError, match=r"^datasite\.toml: datasets\.0\.delta: .*, found 1e-13"):
            parse_toml(toml, DatasiteSettings, "datasite.toml")
        return
    (dataset,) = parse_toml(toml, DatasiteSettings, "datasite.toml").datasets
    with suppress(DatasitesError):
        filter_order(dataset.epsilon, dataset.delta)
    limits = HospitalLimits(dataset.study_epsilon, dataset.delta, dataset.max_sampling_rate)
    with suppress(DatasitesError):
        plan_of(StudyPackage.read(HEART).study, limits)
