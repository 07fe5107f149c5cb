"""Whole rounds: the opened sum is exactly the sum of the survivors' inputs, whoever drops out and when."""

from __future__ import annotations

import pytest

from tests.secagg.cohort import Cohort, assert_exact, email, integers

ONE_GONE = [(), (email(0),), (email(3),)]


@pytest.mark.parametrize("dropped", ONE_GONE)
def test_four_hospitals_one_may_be_lost(dropped):
    cohort = Cohort.of(4).setup()
    inputs = integers(cohort.manifest(), cohort.members)
    assert_exact(cohort.run_round(inputs, dropped=dropped), inputs)


@pytest.mark.parametrize("dropped", ONE_GONE)
def test_with_the_consistency_wave(dropped):
    cohort = Cohort.of(4, consistency=True).setup()
    inputs = integers(cohort.manifest(), cohort.members)
    assert_exact(cohort.run_round(inputs, dropped=dropped), inputs)


def test_ring_of_neighbours():
    cohort = Cohort.of(20, consistency=True, neighbours="ring", threshold=17, colluders=2, rounds=(1, 1)).setup()
    assert cohort.context.neighbourhood(20).degree == 8
    inputs = integers(cohort.manifest(), cohort.members)
    assert_exact(cohort.run_round(inputs, dropped=(email(4), email(5), email(6))), inputs)


def test_a_hospital_that_missed_a_round_is_back_in_the_next():
    cohort = Cohort.of(4).setup()
    for number, dropped in ((1, email(2)), (2, email(0)), (3, email(2))):
        manifest = cohort.manifest(number)
        inputs = integers(manifest, cohort.members, seed=number)
        assert_exact(cohort.run_round(inputs, manifest, dropped=(dropped,)), inputs)


def test_setup_goes_on_without_a_missing_hospital():
    cohort = Cohort.of(5, threshold=4).setup(absent=(email(1),))
    manifest = cohort.manifest()
    assert email(1) not in manifest.participants
    inputs = integers(manifest, cohort.members)
    assert_exact(cohort.run_round(inputs), inputs)


def test_a_hospital_that_sent_no_shares_is_left_out_of_rounds():
    cohort = Cohort.of(5, threshold=4).setup(silent=(email(4),))
    manifest = cohort.manifest()
    assert manifest.participants == tuple(email(i) for i in range(4))
    inputs = integers(manifest, cohort.members)
    assert_exact(cohort.run_round(inputs), inputs)
