"""Prices written down as numbers, which another way of computing them gave (`by_hand`).

The product and its accountant are compared with the numbers, and the numbers with the other way, so that neither a plan
that runs something else than it charges nor an accountant that prices something else than the plan passes unseen.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from datasites.privacy.accountant import epsilon_at_order, epsilon_pld, epsilon_rdp, share_of_cap
from datasites.privacy.calibration import MARGIN
from datasites.privacy.events import Event
from datasites.privacy.plan import EvaluationPlan, PrivacyPlan
from datasites.privacy.renyi import filter_order
from datasites.privacy.study_plan import plan_of
from datasites.study.manifest import Evaluation
from tests.privacy import by_hand
from tests.privacy.by_hand import Releases
from tests.study.studies import distributed

DELTA = 1e-5
#: Discrete noise of 64 steps is priced as continuous noise of this part of it (`study.rounds`).
OF_LATTICE = math.sqrt(1 - (2 / 64) ** 2)
EDGES = (0.0, 0.5, 1.0)


def training(z: float, q: float, rounds: int, steps: int, honest: int | None = None) -> PrivacyPlan:
    shared: dict[str, Any] = {"mode": "distributed", "honest": honest} if honest else {}
    return PrivacyPlan(clip=1.5, noise_multiplier=z, sampling_rate=q, rounds=rounds, steps_per_round=steps, **shared)


def evaluation(final: float, interim: int = 0, multiplier: float | None = None, honest: int | None = None) -> Event:
    plan = EvaluationPlan(
        edges=EDGES, final_multiplier=final, interim=interim, interim_multiplier=multiplier, honest=honest
    )
    return plan.total_event()


#: What is charged, what that is in plain figures (noise multiplier, rate, count), and its epsilon at delta 1e-5.
PRICES: dict[str, tuple[Event, list[Releases], float]] = {
    "one sampled step": (training(1.5, 0.3, 1, 1).event(), [(1.5, 0.3, 1)], 1.51924),
    "one step of few patients": (training(0.8, 0.01, 1, 1).event(), [(0.8, 0.01, 1)], 0.48333),
    "the heart study": (training(2.5545, 0.3, 15, 2).event(), [(2.5545, 0.3, 30)], 2.99960),
    "one of its rounds": (training(2.5545, 0.3, 15, 2).round_event(), [(2.5545, 0.3, 2)], 0.84948),
    "many small steps": (training(1.2, 0.1, 20, 3).event(), [(1.2, 0.1, 60)], 3.98887),
    "all patients": (training(2.0, 1.0, 4, 1).event(), [(2.0, 1.0, 4)], 4.37718),
    "little noise": (training(0.7, 0.3, 5, 2).event(), [(0.7, 0.3, 10)], 12.67770),
    "shared noise": (training(2.0, 0.3, 15, 1, honest=3).event(), [(2 * OF_LATTICE, 0.3, 15)], 2.93170),
    "shared noise of all patients": (training(4.0, 1.0, 10, 1, honest=9).event(), [(4 * OF_LATTICE, 1, 10)], 3.34327),
    "an evaluation": (evaluation(1.3907), [(1.3907, 1.0, 1)], 2.99974),
    "interim evaluations": (evaluation(2.0, 3, 4.0), [(2.0, 1.0, 1), (4.0, 1.0, 3)], 2.72898),
    "a shared evaluation": (evaluation(1.4, honest=3), [(1.4 * OF_LATTICE, 1.0, 1)], 2.97879),
}


@pytest.mark.parametrize("name", PRICES)
def test_a_plan_is_charged_what_is_written_down(name: str) -> None:
    charged, _, epsilon = PRICES[name]
    assert epsilon_pld([charged], DELTA) == pytest.approx(epsilon, rel=1e-4)


@pytest.mark.parametrize("name", PRICES)
def test_what_is_written_down_is_what_another_way_gives(name: str) -> None:
    _, releases, epsilon = PRICES[name]
    low, high = by_hand.bracket(releases, DELTA)
    assert low < epsilon < high
    assert by_hand.epsilon(releases, DELTA) == pytest.approx(epsilon, abs=2e-5)


def test_plain_gaussians_cost_what_the_closed_form_says() -> None:
    assert by_hand.gaussian_epsilon(1.0, DELTA) == pytest.approx(PRICES["all patients"][2], abs=1e-5)
    assert by_hand.gaussian_epsilon(math.sqrt(7 / 16), DELTA) == pytest.approx(
        PRICES["interim evaluations"][2], abs=1e-5
    )


#: Against one who sees a hospital's own vectors: its share of the noise alone, by the best whole Renyi order to 64.
LOCAL = {
    "training": (training(2.0, 0.3, 15, 1, honest=3).local_event(), [(2 / math.sqrt(3), 0.3, 15)], 7.53798),
    "of two": (training(2.0, 0.3, 15, 1, honest=2).local_event(), [(2 / math.sqrt(2), 0.3, 15)], 5.40483),
    "all patients": (training(4.0, 1.0, 10, 1, honest=9).local_event(), [(4 / 3, 1.0, 10)], 13.23919),
    "evaluation": (
        EvaluationPlan(edges=EDGES, final_multiplier=1.4, honest=3).total_local_event(),
        [(1.4 / math.sqrt(3), 1.0, 1)],
        6.07926,
    ),
}


@pytest.mark.parametrize("name", LOCAL)
def test_a_hospitals_own_noise_is_priced_by_its_share(name: str) -> None:
    charged, releases, epsilon = LOCAL[name]
    assert epsilon_rdp([charged], DELTA) == pytest.approx(epsilon, rel=1e-5)
    assert by_hand.renyi_epsilon(releases, DELTA, range(2, 65)) == pytest.approx(epsilon, rel=1e-5)


def test_a_study_of_four_hospitals_costs_what_is_written_down() -> None:
    """Threshold 3 and one colluder leave 2 honest hospitals in each sum: a share of 1 / sqrt(2), not of 1 / sqrt(4)."""
    study = distributed(cohort={"threshold": 3})
    made = plan_of(study)
    assert made.honest == 2
    assert made.epsilon == pytest.approx(2.93170, rel=1e-4)
    assert made.evaluation_epsilon == pytest.approx(2.97879, rel=1e-4)
    assert made.local_epsilon == pytest.approx(5.40483, rel=1e-4)
    assert made.local_evaluation_epsilon == pytest.approx(4.80375, rel=1e-4)
    assert by_hand.renyi_epsilon([(1.4 / math.sqrt(2), 1.0, 1)], DELTA, range(2, 65)) == pytest.approx(
        4.80375, rel=1e-5
    )


def test_a_population_is_charged_what_is_written_down() -> None:
    """At (6, 1e-5) the filter is of order 5: the heart study once, twice, and its part of the cap."""
    study, order = PRICES["the heart study"][0], filter_order(6.0, DELTA)
    assert order == 5
    assert epsilon_at_order([study], order, DELTA) == pytest.approx(3.49353, rel=1e-5)
    assert epsilon_at_order([study, study], order, DELTA) == pytest.approx(4.73434, rel=1e-5)
    assert share_of_cap([study], 6.0, DELTA, order) == pytest.approx(0.331122, rel=1e-4)
    for count, epsilon in ((30, 3.49353), (60, 4.73434)):
        assert by_hand.renyi_epsilon([(2.5545, 0.3, count)], DELTA, [5]) == pytest.approx(epsilon, rel=1e-5)
    # The cap holds, and is not given away: four times the study is (6, 1e-5) by no accountant, three times is.
    assert by_hand.epsilon([(2.5545, 0.3, 90)], DELTA) < epsilon_at_order([study] * 3, order, DELTA) < 6.0
    assert epsilon_at_order([study] * 4, order, DELTA) > 6.0


@pytest.mark.parametrize(
    ("q", "rounds", "steps", "honest"),
    [(0.3, 15, 2, None), (1.0, 4, 1, None), (0.1, 20, 3, None), (0.01, 30, 10, None), (0.3, 15, 1, 3)],
)
@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_calibrated_noise_is_enough_by_the_other_way_and_hardly_more(
    q: float, rounds: int, steps: int, honest: int | None, epsilon: float
) -> None:
    shared: dict[str, Any] = {"mode": "distributed", "honest": honest} if honest else {}
    plan = PrivacyPlan.calibrate(
        epsilon, DELTA, clip=1.0, sampling_rate=q, rounds=rounds, steps_per_round=steps, **shared
    )
    noise = plan.noise_multiplier * (OF_LATTICE if honest else 1.0)
    assert by_hand.epsilon([(noise, q, rounds * steps)], DELTA) <= epsilon
    assert by_hand.epsilon([(0.998 * noise, q, rounds * steps)], DELTA) > epsilon * (1 - MARGIN)
    assert epsilon_pld([plan.event()], DELTA) <= epsilon


@pytest.mark.parametrize("every", [0, 2, 4])
def test_calibrated_evaluations_are_enough_together(every: int) -> None:
    terms = Evaluation(every=every, interim_share=0.2 if every else 0.0)
    plan = EvaluationPlan.calibrate(3.0, DELTA, terms, rounds=15)
    mu = math.sqrt(1 / plan.final_multiplier**2 + (plan.interim / plan.interim_multiplier**2 if every else 0.0))
    assert 2.99 < by_hand.gaussian_epsilon(mu, DELTA) <= 3.0
    assert epsilon_pld([plan.total_event()], DELTA) <= 3.0
