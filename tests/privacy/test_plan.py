"""A plan must be worth what it is charged; if these fail, what runs and what is priced have drifted apart."""

import math
import subprocess
import sys

import pytest
from pydantic import ValidationError

from datasites.privacy.accountant import epsilon_pld
from datasites.privacy.events import release
from datasites.privacy.plan import EvaluationPlan, PlanError, PrivacyPlan
from datasites.study.manifest import Evaluation

TERMS = {"clip": 1.0, "sampling_rate": 0.3, "rounds": 15, "steps_per_round": 5}


def test_calibrated_plan_spends_its_target_and_no_more():
    plan = PrivacyPlan.calibrate(3.0, 1e-3, **TERMS)
    assert 2.98 < epsilon_pld([plan.event()], 1e-3) <= 3.0


def test_all_rounds_together_cost_the_whole_plan():
    plan = PrivacyPlan(noise_multiplier=2.0, **TERMS)
    rounds = epsilon_pld([plan.round_event()] * plan.rounds, 1e-3)
    assert rounds == pytest.approx(epsilon_pld([plan.event()], 1e-3))
    assert plan.event()[0].count == plan.steps == 75


def test_one_round_more_costs_more_than_the_plan():
    plan = PrivacyPlan.calibrate(1.0, 1e-3, **TERMS)
    assert epsilon_pld([plan.round_event()] * (plan.rounds + 1), 1e-3) > 1.0


def test_a_sampled_step_is_cheaper_than_an_unsampled_one():
    sampled = PrivacyPlan(noise_multiplier=2.0, **TERMS)
    whole = sampled.model_copy(update={"sampling_rate": 1.0})
    assert whole.event() == release(2.0, count=75)
    assert epsilon_pld([sampled.event()], 1e-3) < epsilon_pld([whole.event()], 1e-3)


def test_local_event_of_distributed_plan_is_dearer_by_the_share_of_noise():
    plan = PrivacyPlan.calibrate(
        1.0, 1e-5, clip=1.0, sampling_rate=0.3, rounds=40, steps_per_round=1, mode="distributed", honest=9
    )
    assert plan.local_noise_multiplier == pytest.approx(plan.noise_multiplier / 3)
    assert epsilon_pld([plan.event()], 1e-5) <= 1.0 < epsilon_pld([plan.local_event()], 1e-5)


def test_distributed_mode_takes_one_step_a_round_only():
    with pytest.raises(ValidationError, match="steps_per_round = 1"):
        PrivacyPlan(noise_multiplier=1.0, mode="distributed", honest=3, **TERMS)


@pytest.mark.parametrize(
    "change",
    [
        {"clip": 0.0},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"sampling_rate": 1.5},
        {"honest": 3},
        {"unit": "record"},
        {"mode": "distributed", "steps_per_round": 1},
    ],
)
def test_a_plan_that_would_not_protect_is_refused(change):
    with pytest.raises(ValidationError):
        PrivacyPlan(**{"noise_multiplier": 1.0, **TERMS, **change})


def test_a_plan_is_frozen_and_has_one_byte_string():
    plan = PrivacyPlan(noise_multiplier=1.0, **TERMS)
    assert PrivacyPlan.parse(plan.canonical()) == plan
    with pytest.raises(ValidationError):
        plan.noise_multiplier = 0.1


def test_an_impossible_budget_is_an_error_not_a_plan():
    with pytest.raises(PlanError, match="epsilon"):
        PrivacyPlan.calibrate(1e-9, 1e-12, **TERMS)
    with pytest.raises(PlanError, match="epsilon"):
        PrivacyPlan.calibrate(-1.0, 1e-3, **TERMS)


def test_ignoring_that_patients_have_several_records_is_shown_to_cost_more():
    plan = PrivacyPlan.calibrate(1.0, 1e-3, **TERMS)
    told = epsilon_pld([plan.event()], 1e-3)
    real = [epsilon_pld([plan.event_if_records_were_patients(records)], 1e-3) for records in (1, 2, 5)]
    assert real[0] == pytest.approx(told)
    assert real[1] > 2 * told
    assert real[2] > 5 * told
    # Never below group privacy's own lower bound: without sampling, k records cost a Gaussian of z / k.
    whole = plan.model_copy(update={"sampling_rate": 1.0})
    expected = whole.model_copy(update={"noise_multiplier": whole.noise_multiplier / 5}).event()
    assert whole.event_if_records_were_patients(5) == expected
    with pytest.raises(PlanError):
        plan.event_if_records_were_patients(0)


def test_evaluation_plan_spends_its_budget_over_interim_and_final():
    plan = EvaluationPlan.calibrate(3.0, 1e-3, Evaluation(every=4, interim_share=0.2), rounds=15)
    assert plan.interim == 3  # after rounds 4, 8 and 12
    spent = epsilon_pld([plan.event("interim")] * 3 + [plan.event("final")], 1e-3)
    assert 2.98 < spent <= 3.0
    assert spent == pytest.approx(epsilon_pld([plan.total_event()], 1e-3))
    share = 3 / plan.interim_multiplier**2 / (3 / plan.interim_multiplier**2 + 1 / plan.final_multiplier**2)
    assert share == pytest.approx(0.2, abs=0.001)


def test_evaluation_plan_without_interim_refuses_one():
    plan = EvaluationPlan.calibrate(3.0, 1e-3, Evaluation(bins=6), rounds=15)
    assert plan.bins == 6
    with pytest.raises(PlanError, match="interim"):
        plan.event("interim")


@pytest.mark.parametrize("edges", [(0.0, 1.0), (0.0, 0.5), (0.0, 0.6, 0.4, 1.0), (0.1, 0.5, 1.0)])
def test_edges_that_do_not_cut_0_to_1_are_refused(edges):
    with pytest.raises(ValidationError):
        EvaluationPlan(edges=edges, final_multiplier=1.0)


def test_the_datasite_process_can_price_plans_without_torch():
    code = (
        "import sys, datasites.privacy.plan, datasites.privacy.accountant, datasites.privacy.noise,"
        " datasites.privacy.sampling, datasites.privacy.evaluation;"
        " sys.exit(bool({'torch', 'opacus', 'django'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
