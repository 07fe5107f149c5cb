"""Figures from noised counts: priced as stated, right on average, and honest about their error."""

import numpy as np
import pytest
from scipy import stats

from datasites.privacy.curves import DPEvaluation, Estimate
from datasites.privacy.evaluation import EvaluationError, noised_counts
from datasites.privacy.noise import SecureRandom
from datasites.privacy.plan import EvaluationPlan, PlanError
from datasites.study.errors import DatasitesError
from datasites.study.rounds import ring_terms

EDGES = tuple(i / 6 for i in range(7))
PLAN = EvaluationPlan(edges=EDGES, final_multiplier=1.5, interim=2, interim_multiplier=4.0)


def exact_auc(scores, labels):
    ranks = stats.rankdata(scores)
    ones = labels.sum()
    return (ranks[labels > 0].sum() - ones * (ones + 1) / 2) / (ones * (len(labels) - ones))


def people(rng, n=400, shift=1.7):
    labels = (rng.random(n) < 0.45).astype(float)
    scores = 1 / (1 + np.exp(-(1.3 * (rng.normal(size=n) + shift * (labels - 0.5)))))
    return scores, labels


def plain_counts(scores, labels, edges=EDGES):
    return np.stack([np.histogram(scores[labels == label], edges)[0] for label in (0, 1)], 1).astype(float)


@pytest.mark.parametrize(("kind", "sd"), [("final", 1.5), ("interim", 4.0)])
def test_counts_have_the_planned_noise_and_no_bias(kind, sd):
    scores, labels = people(np.random.default_rng(0))
    true = plain_counts(scores, labels)
    residuals = np.array(
        [noised_counts(scores, labels, np.arange(400), PLAN, kind) - true for _ in range(4000)]
    ).reshape(-1)
    assert residuals.std() == pytest.approx(sd, rel=0.02)
    assert abs(residuals.mean()) < 5 * sd / np.sqrt(len(residuals))
    assert not np.isclose(residuals, np.rint(residuals)).all()


SHARED = EvaluationPlan(edges=EDGES, final_multiplier=6.0, honest=4)


def shared_ring(noise=6.0, honest=4, cells=12):
    return ring_terms(clip=1.0, noise_multiplier=noise, honest=honest, hospitals=5, length=cells, slack=0.0)


def test_shared_counts_are_whole_steps_with_this_hospitals_share_of_the_noise():
    scores, labels = people(np.random.default_rng(0))
    true, ring = plain_counts(scores, labels), shared_ring()
    drawn = [
        noised_counts(
            scores,
            labels,
            np.arange(400),
            SHARED,
            "final",
            ring=ring,
            randomness=SecureRandom(bytes([i % 256] * 30 + [i // 256] * 2)),
        )
        for i in range(2000)
    ]
    assert all(counts.dtype == np.int64 for counts in drawn)
    residuals = (np.array(drawn) * ring.grid - true).reshape(-1)
    assert residuals.std() == pytest.approx(ring.deviation, rel=0.02)
    assert ring.deviation == pytest.approx(3.0 * (1 + np.sqrt(12) * ring.grid))
    assert abs(residuals.mean()) < 5 * ring.deviation / np.sqrt(len(residuals))


@pytest.mark.parametrize(
    ("plan", "ring"),
    [(SHARED, None), (PLAN, shared_ring()), (SHARED, shared_ring(noise=5.9)), (SHARED, shared_ring(honest=5))],
)
def test_counts_with_less_noise_than_is_priced_are_refused(plan, ring):
    with pytest.raises(EvaluationError, match="ring"):
        noised_counts([0.1], [0], [1], plan, "final", ring=ring)


def test_counts_are_cut_before_their_noise_and_stay_within_the_bound_with_it():
    """Cut after it, a cell of many patients would hold next to no noise."""
    wide = shared_ring()
    tight = wide.model_copy(update={"cut": 3.0, "bound": 3.0 + 10 * wide.deviation})
    drawn = [
        noised_counts(
            [0.1] * 400, [0] * 400, np.arange(400), SHARED, "final",
            ring=tight, randomness=SecureRandom(bytes([i % 256] * 30 + [i // 256] * 2)),
        )
        for i in range(1000)
    ]  # fmt: skip
    full = np.array(drawn)[:, 0, 0] * tight.grid
    assert np.abs(full).max() < tight.bound
    assert full.std() == pytest.approx(tight.deviation, rel=0.1)
    assert full.mean() == pytest.approx(3.0, abs=5 * tight.deviation / np.sqrt(1000))


def test_one_key_gives_the_same_counts_and_another_key_others():
    first, again, other = (
        noised_counts([0.1], [0], [1], PLAN, "final", randomness=SecureRandom(key))
        for key in (b"a" * 32, b"a" * 32, b"b" * 32)
    )
    assert first.tobytes() == again.tobytes()
    assert (first != other).all()


@pytest.mark.parametrize("records", [3, 7, 13, 21])
def test_what_a_patient_adds_to_the_counts_is_at_most_one_and_exact(records):
    """Also where thirds are added: who stays has the same share of the sums when somebody goes."""
    quiet = EvaluationPlan(edges=EDGES, final_multiplier=1e-12)
    patients = np.repeat(np.arange(20_000), records)
    scores = np.full(len(patients), 0.1)
    counts = [
        noised_counts(scores[gone:], np.zeros(len(patients) - gone), patients[gone:], quiet, "final")
        for gone in (0, records)
    ]
    moved = np.rint((counts[0] - counts[1]) * 2**28)
    assert np.abs(counts[0] * 2**28 - np.rint(counts[0] * 2**28)).max() < 0.1
    assert 2**28 * (1 - 1e-6) < moved.sum() <= 2**28


def test_a_patient_with_many_records_weighs_one():
    quiet = EvaluationPlan(edges=EDGES, final_multiplier=1e-6)
    counts = noised_counts([0.9] * 50 + [0.1], [1] * 50 + [0], [7] * 50 + [8], quiet, "final")
    assert counts.sum() == pytest.approx(2.0, abs=1e-3)
    assert counts[5, 1] == pytest.approx(1.0, abs=1e-3)


def test_a_score_at_the_border_or_none_is_counted_once():
    quiet = EvaluationPlan(edges=(0.0, 0.5, 1.0), final_multiplier=1e-6)
    counts = noised_counts([0.0, 0.5, 1.0, np.nan, np.inf], [0] * 5, np.arange(5), quiet, "final")
    np.testing.assert_allclose(counts[:, 0], [2.0, 3.0], atol=1e-3)


def test_a_label_that_is_none_counts_with_the_lowest_score_and_stops_nothing():
    quiet = EvaluationPlan(edges=(0.0, 0.5, 1.0), final_multiplier=1e-6)
    counts = noised_counts([0.9, 0.9, 0.9], [1, 2, np.nan], np.arange(3), quiet, "final")
    np.testing.assert_allclose(counts, [[2.0, 0.0], [0.0, 1.0]], atol=1e-3)


def test_interim_without_a_budget_and_what_is_not_one_per_row_are_refused():
    with pytest.raises(PlanError, match="interim"):
        noised_counts([0.1], [0], [1], EvaluationPlan(edges=EDGES, final_multiplier=1.0), "interim")
    with pytest.raises(EvaluationError, match="per row"):
        noised_counts([0.1, 0.2], [1, 0], [1], PLAN, "final")


@pytest.mark.parametrize("bins", [4, 6, 8])
@pytest.mark.parametrize("shift", [0.8, 1.7, 2.4])
def test_auc_from_few_bins_is_nearly_unbiased(bins, shift):
    edges = np.linspace(0, 1, bins + 1)
    errors = []
    for seed in range(40):
        scores, labels = people(np.random.default_rng(seed), 2000, shift)
        evaluation = DPEvaluation.from_counts(plain_counts(scores, labels, edges), edges, 0.0)
        errors.append(evaluation.auc.value - exact_auc(scores, labels))
    assert abs(np.mean(errors)) < 0.006


def test_auc_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    truth = exact_auc(*people(rng, 100_000))
    inside_all = inside_noise = 0
    trials = 250
    for _ in range(trials):
        scores, labels = people(rng)
        counts = plain_counts(scores, labels) + rng.normal(0, 2.0, (6, 2))
        auc = DPEvaluation.from_counts(counts, EDGES, 2.0).auc
        low, high = auc.interval()
        inside_all += low <= truth <= high
        inside_noise += abs(auc.value - exact_auc(scores, labels)) <= 1.96 * auc.noise_sd
    assert 0.90 <= inside_all / trials <= 0.985
    assert 0.88 <= inside_noise / trials <= 0.99


def test_threshold_figures_equal_plain_ones_without_noise():
    scores, labels = people(np.random.default_rng(2), 1000)
    evaluation = DPEvaluation.from_counts(plain_counts(scores, labels), EDGES, 0.0)
    called = scores >= 0.5
    assert evaluation.accuracy(0.5).value == pytest.approx((called == (labels > 0)).mean())
    assert evaluation.sensitivity(0.5).value == pytest.approx(called[labels > 0].mean())
    assert evaluation.specificity(0.5).value == pytest.approx(1 - called[labels == 0].mean())
    accuracy = evaluation.accuracy(0.5)
    assert accuracy.noise_sd == 0.0
    assert accuracy.sd == pytest.approx(np.sqrt(accuracy.value * (1 - accuracy.value) / 1000), rel=0.02)
    with pytest.raises(EvaluationError, match="0.45"):
        evaluation.accuracy(0.45)


def test_noise_sd_of_accuracy_is_that_of_repeated_noise():
    rng = np.random.default_rng(3)
    scores, labels = people(rng)
    true = plain_counts(scores, labels)
    values = [
        DPEvaluation.from_counts(true + rng.normal(0, 2.0, true.shape), EDGES, 2.0).accuracy() for _ in range(500)
    ]
    assert np.std([value.value for value in values]) == pytest.approx(np.mean([v.noise_sd for v in values]), rel=0.2)


def test_roc_ends_in_the_corners_and_calibration_follows_the_labels():
    scores, labels = people(np.random.default_rng(4), 5000)
    evaluation = DPEvaluation.from_counts(plain_counts(scores, labels), EDGES, 0.0)
    roc = evaluation.roc()
    assert roc.shape == (7, 2)
    assert (roc[0] == 0).all()
    np.testing.assert_allclose(roc[-1], 1.0)
    assert (np.diff(roc, axis=0) >= 0).all()
    calibration = evaluation.calibration()
    inside = (scores >= EDGES[2]) & (scores < EDGES[3])
    assert calibration.observed[2] == pytest.approx(labels[inside].mean())
    assert evaluation.patients.value == 5000
    assert (np.diff(calibration.observed) > 0).all()


def test_a_bin_lost_in_noise_has_no_observed_risk():
    counts = np.array([[100.0, 10.0], [1.0, 0.5], [10.0, 90.0]])
    calibration = DPEvaluation.from_counts(counts, [0, 0.3, 0.6, 1.0], 2.0).calibration()
    assert np.isnan(calibration.observed[1])
    assert not np.isnan(calibration.observed[[0, 2]]).any()


def test_counts_that_can_not_be_read_are_refused():
    with pytest.raises(EvaluationError, match="shape"):
        DPEvaluation.from_counts(np.ones((5, 2)), EDGES, 1.0)


def without_outcome():
    counts = [(60.0, -1.2), (63.0, -1.1), (66.0, -0.4), (69.0, -0.9)]
    return DPEvaluation.from_counts(counts, [0, 0.25, 0.5, 0.75, 1], 2.3)


def test_a_figure_that_is_not_known_hides_no_other():
    evaluation = without_outcome()
    for figure in (lambda: evaluation.auc, evaluation.sensitivity, evaluation.roc):
        with pytest.raises(EvaluationError, match="no patients with label 1") as raised:
            figure()
        assert isinstance(raised.value, DatasitesError)
    assert evaluation.specificity().value == pytest.approx(123 / 258)
    assert evaluation.accuracy().value == pytest.approx(123 / 258)
    assert evaluation.patients.value == pytest.approx(254.4)
    nobody = DPEvaluation.from_counts(-np.ones((4, 2)), [0, 0.25, 0.5, 0.75, 1], 2.3)
    with pytest.raises(EvaluationError, match="no patients at all"):
        nobody.accuracy()
    assert nobody.patients.value == 0.0


def test_each_interval_has_the_bounds_of_its_own_unit():
    low, high = without_outcome().patients.interval()
    assert (low, high) == pytest.approx((254.4 - 1.96 * 2.3 * np.sqrt(8), 254.4 + 1.96 * 2.3 * np.sqrt(8)))
    nobody = DPEvaluation.from_counts(np.full((4, 2), -3.0), [0, 0.25, 0.5, 0.75, 1], 2.3).patients
    assert nobody.interval()[0] == 0.0 < nobody.interval()[1]
    assert Estimate(0.99, 0.02, 0.02).interval()[1] == 1.0
    assert Estimate(-0.2, 0.01, 0.01).interval() == (0.0, 0.0)
