"""For any cohort, threshold and pattern of dropouts the sum is exact, or refused by name with nothing opened."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from datasites.secagg.errors import BadTerms, TooFew
from datasites.secagg.threshold import check_threshold, choose_threshold
from datasites.study.manifest import VectorTerm
from tests.secagg.cohort import Cohort, assert_exact, integers

VECTORS = (
    VectorTerm(name="update", length=9, bound=1.0, scale=2.0**20),
    VectorTerm(name="metrics", length=4, bound=100.0, scale=1.0),
    VectorTerm(name="weight", length=1, bound=1.0, scale=2.0**24),
)


@st.composite
def cohorts(draw, largest: int):
    n = draw(st.integers(3, largest))
    colluders = draw(st.integers(0, max(0, n // 3 - 1)))
    consistency = draw(st.booleans())
    try:
        least = choose_threshold(n, colluders, one_list=consistency)
        threshold = draw(st.integers(max(3, (n + colluders) // 2 + 1), n))
        check_threshold(n, threshold, colluders, one_list=consistency)
    except BadTerms:
        threshold = least
    ring = consistency and draw(st.booleans())
    return n, {
        "colluders": colluders,
        "threshold": threshold,
        "consistency": consistency,
        "neighbours": "ring" if ring else "everyone",
    }


def check(n, terms, data):
    """Lose hospitals at every stage: no certificate, no shares, not invited, no vector, no answer."""
    cohort = Cohort.of(n, rounds=(1, 2), **terms)
    names = list(data.draw(st.permutations(list(cohort.members))))
    spare = n - terms["threshold"]
    losses = [data.draw(st.integers(0, spare)) for _ in range(5)]
    for index in range(5):
        losses[index] = min(losses[index], spare - sum(losses[:index]))
    stages = []
    for loss in losses:
        stages.append(set(names[:loss]))
        names = names[loss:]
    absent, silent, uninvited, dropped, mute = stages
    cohort.setup(absent, silent)
    able = cohort.aggregator.available(cohort.state)
    manifest = cohort.manifest(2, vectors=VECTORS, participants=tuple(e for e in able if e not in uninvited))
    inputs = integers(manifest, cohort.members, seed=n)
    result = cohort.run_round(inputs, manifest, dropped=dropped, mute=mute)
    assert set(result.survivors) == set(manifest.participants) - dropped
    assert_exact(result, inputs)


@pytest.mark.slow
@given(cohorts(12), st.data())
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_any_dropouts_that_leave_the_threshold(case, data):
    check(*case, data)


@pytest.mark.long
@given(cohorts(40), st.data())
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_any_dropouts_that_leave_the_threshold_up_to_40(case, data):
    check(*case, data)


@given(cohorts(9), st.data())
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
def test_below_the_threshold_nothing_opens(case, data):
    n, terms = case
    threshold = terms["threshold"]
    cohort = Cohort.of(n, rounds=(1, 1), **terms)
    names = list(data.draw(st.permutations(list(cohort.members))))
    stage = data.draw(st.sampled_from(["certificate", "vector", "answer"]))
    kept = names[: data.draw(st.integers(1, threshold - 1))]
    if stage == "certificate":
        with pytest.raises(TooFew):
            cohort.setup(absent=set(names) - set(kept))
        return
    cohort.setup()
    manifest = cohort.manifest(vectors=VECTORS)
    inputs = integers(manifest, cohort.members)
    if stage == "vector":
        with pytest.raises(TooFew):
            cohort.run_round(inputs, manifest, dropped=set(names) - set(kept))
        assert cohort.state.record.round.answers == ()
        return
    assume(terms["neighbours"] == "everyone")
    with pytest.raises(TooFew):
        cohort.run_round(inputs, manifest, mute=set(names) - set(kept))
    if cohort.state.record.round.survivors is not None:
        left = cohort.state.total.vector.view(np.int32)
        truth = sum(inputs[name]["update"] for name in cohort.members)
        assert not np.array_equal(left[:9], truth)
        assert not cohort.state.total.opened


@given(st.data())
@settings(max_examples=20)
def test_sums_of_floats_are_within_one_step_per_hospital(data):
    """Stochastic rounding moves a coordinate by less than one step of 1/scale at each hospital."""
    cohort = Cohort.of(4, rounds=(1, 1)).setup()
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    manifest = cohort.manifest(vectors=VECTORS)
    inputs = {
        name: {term.name: rng.uniform(-term.bound, term.bound, term.length).astype(np.float32) for term in VECTORS}
        for name in cohort.members
    }
    result = cohort.run_round(inputs, manifest)
    for term in VECTORS:
        truth = sum(inputs[name][term.name].astype(np.float64) for name in cohort.members)
        assert np.all(np.abs(result.sums[term.name] - truth) < 4 / term.scale)
