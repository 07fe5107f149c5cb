"""A study's plan: in distributed mode nothing is calibrated by a hospital, and a refusal names the figure that fits."""

from __future__ import annotations

import re
from typing import Any

import pytest

from datasites.privacy.accountant import epsilon_pld, epsilon_rdp
from datasites.privacy.plan import PlanError
from datasites.privacy.study_plan import HospitalLimits, plan_of
from datasites.study.manifest import StudyTerms
from datasites.study.package import StudyPackage
from datasites.study.rounds import LATTICE, RingRefused, counts_ring
from tests.study.studies import HEART, distributed

LIMITS = HospitalLimits(epsilon=3.0, delta=1e-5, sampling_rate=0.5)

#: Of hospitals that are stricter than the others: by how much, and what the study would have to change.
STRICTER = {
    "study_epsilon 0.5": ({"epsilon": 0.5}, {"privacy.noise_multiplier", "evaluation.noise_multiplier"}),
    "study_epsilon 1": ({"epsilon": 1.0}, {"privacy.noise_multiplier", "evaluation.noise_multiplier"}),
    "max_sampling_rate 0.1": ({"sampling_rate": 0.1}, {"privacy.sampling_rate"}),
    "max_sampling_rate 0.05": ({"sampling_rate": 0.05}, {"privacy.sampling_rate"}),
    "delta 1e-6": (
        {"delta": 1e-6},
        {"privacy.noise_multiplier", "evaluation.noise_multiplier", "privacy.delta"},
    ),
    # Figures of more than six digits.
    "study_epsilon 0.02": ({"epsilon": 0.02}, {"privacy.noise_multiplier", "evaluation.noise_multiplier"}),
    "max_sampling_rate 0.12345678": ({"sampling_rate": 0.12345678}, {"privacy.sampling_rate"}),
    "delta 0.01 / 1303": ({"delta": 0.01 / 1303}, {"evaluation.noise_multiplier", "privacy.delta"}),
    "all of them, of the same patients": (
        {"epsilon": 0.1234567, "delta": 0.01 / 1303, "sampling_rate": 1 / 7, "both_sides": True},
        {"privacy.noise_multiplier", "evaluation.noise_multiplier", "privacy.sampling_rate", "privacy.delta"},
    ),
}


def with_figures(study: StudyTerms, figures: dict[str, float]) -> StudyTerms:
    terms = study.model_dump(mode="json")
    for name, figure in figures.items():
        section, _, key = name.partition(".")
        terms[section][key] = figure
    return StudyTerms.model_validate(terms)


def figures_in(error: PlanError) -> dict[str, float]:
    """What a refusal names: term -> the figure that would fit."""
    found = re.findall(r"(\w+\.\w+) is [\w.e-]+: ([0-9.e-]+) is the (?:least|most) that fits", str(error))
    return {name: float(figure) for name, figure in found}


@pytest.mark.slow
@pytest.mark.parametrize("kind", STRICTER)
def test_a_stricter_hospital_refuses_and_names_the_study_that_it_would_take(kind: str) -> None:
    """Noise of its own would not make up for what the others don't add: it charged 0.50 and had 0.74."""
    limits, named = STRICTER[kind]
    strict = HospitalLimits(**(vars(LIMITS) | limits))
    study = distributed(cohort={"threshold": 4})
    assert plan_of(study, LIMITS).training.noise_multiplier == 2.0
    with pytest.raises(PlanError) as caught:
        plan_of(study, strict)
    figures = figures_in(caught.value)
    assert set(figures) == named
    fitting = with_figures(study, figures)
    made = plan_of(fitting, strict)
    assert made.training.noise_multiplier == fitting.privacy.noise_multiplier
    assert made.epsilon <= strict.epsilon
    assert made.evaluation_epsilon <= strict.epsilon
    # And it is the least that fits, not any.
    worse = {name: figure * (0.99 if "noise" in name else 1.01) for name, figure in figures.items()}
    with pytest.raises(PlanError):
        plan_of(with_figures(study, worse), strict)


@pytest.mark.parametrize("section", ["privacy", "evaluation"])
def test_noise_that_the_study_leaves_out_is_named(section: str) -> None:
    study = distributed(**{section: {"noise_multiplier": None}})
    with pytest.raises(PlanError, match=f"{section}.noise_multiplier is missing: [0-9.]+ is the least that fits"):
        plan_of(study)


def test_laxer_limits_change_nothing() -> None:
    """All hospitals add the same noise, whatever more a hospital would allow."""
    study = distributed()
    lax = HospitalLimits(epsilon=50.0, delta=0.01, sampling_rate=1.0)
    assert plan_of(study, lax) == plan_of(study, LIMITS) == plan_of(study)


@pytest.mark.parametrize("mode", ["distributed", "local"])
def test_the_plan_prices_the_study_itself(mode: str) -> None:
    study = distributed() if mode == "distributed" else StudyPackage.read(HEART).study
    made = plan_of(study)
    assert made.epsilon == epsilon_pld([made.training.event()], made.priced_delta) <= study.privacy.epsilon
    assert made.priced_delta <= study.privacy.delta
    if mode == "distributed":
        assert made.training.round_event()[0].noise_multiplier == pytest.approx(2.0 * LATTICE)
        assert made.local_epsilon == epsilon_rdp([made.training.local_event()], made.delta) > made.epsilon
        assert made.local_evaluation_epsilon > made.evaluation_epsilon


def test_noise_beyond_the_bound_is_taken_off_delta() -> None:
    study = distributed(privacy={"delta": 1e-5, "noise_multiplier": 9.0}, evaluation={"noise_multiplier": 9.0})
    made = plan_of(study)
    assert 0 < study.privacy.delta - made.priced_delta < 1e-8
    hopeless = distributed(privacy={"delta": 1e-11, "epsilon": 50.0})
    with pytest.raises(PlanError, match="privacy.delta"):
        plan_of(hopeless)


def choices(**cohort: Any) -> dict[int, Any]:
    return {choice.threshold: choice for choice in plan_of(distributed(cohort=cohort)).choices()}


def test_the_table_shows_noise_against_dropouts() -> None:
    table = choices()
    assert set(table) == {3, 4}
    assert [(table[t].dropouts, table[t].honest) for t in (3, 4)] == [(1, 2), (0, 3)]
    assert table[3].noise_if_all == pytest.approx(1.414, abs=1e-3)
    assert table[3].noise_at_least == pytest.approx(1.225, abs=1e-3)
    assert table[4].noise_if_all == table[4].noise_at_least == pytest.approx(1.155, abs=1e-3)
    # What the sum costs is the study's; what one hospital's own vector would cost rises with the threshold.
    assert table[3].epsilon == table[4].epsilon
    assert table[3].local_epsilon < table[4].local_epsilon
    frame = plan_of(distributed(cohort={"threshold": 4})).table()
    assert list(frame["threshold"]) == [3, 4]
    assert list(frame["chosen"]) == [False, True]


def test_a_study_without_the_wave_is_shown_what_that_costs() -> None:
    study = distributed(49, cohort={"consistency": False, "threshold": 33})
    made = plan_of(study)
    assert made.noise_factor() == pytest.approx(1.43, abs=0.005)
    assert "1.429 instead of 1.237" in str(made)
    assert "instead of" not in str(plan_of(distributed(49, cohort={"threshold": 33})))


def test_a_study_whose_interim_counts_fit_no_ring_is_refused_before_it_runs() -> None:
    """Their noise is the larger the less they cost: each interim round would be refused, after approval."""
    interim = {"every": 1, "interim_share": 1e-9, "noise_multiplier": 50.0}
    study = distributed(255, evaluation=interim, cohort={"patients": 20_000, "threshold": 250})
    limits = HospitalLimits(epsilon=100.0, delta=1e-5, sampling_rate=0.5)
    assert counts_ring(study, "final") is not None
    with pytest.raises(RingRefused, match="interim counts: .*all else equal"):
        plan_of(study, limits)
