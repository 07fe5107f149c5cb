"""What a round holds is worked out once, from the study alone; grids and bounds keep what was priced whole."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasites.study.manifest import HALF_RING, MOST_HOSPITALS, RoundManifest, StudyTerms
from datasites.study.rounds import (
    NORM_SLACK,
    RingRefused,
    RingTerms,
    counts_noise,
    counts_ring,
    gradient_ring,
    interim_evaluations,
    ring_terms,
    round_terms,
    tail_delta,
)
from datasites.study.survivors import honest_contributors, noise_factor
from tests.study.studies import distributed

TERMS = st.fixed_dictionaries(
    {
        "clip": st.floats(1e-3, 1e6),
        "noise_multiplier": st.floats(1e-4, 1e4),
        "honest": st.integers(2, 254),
        "hospitals": st.integers(3, MOST_HOSPITALS),
        "length": st.integers(1, 2_000_000_000),
        "slack": st.sampled_from([0.0, NORM_SLACK]),
    }
)


def holds(ring: RingTerms, terms: dict[str, Any]) -> None:
    """Everything that the price rests on."""
    clip, together = terms["clip"], terms["noise_multiplier"]
    assert math.log2(ring.grid).is_integer()
    assert math.sqrt(terms["length"]) * ring.grid <= 0.01 * clip * (1 + 1e-12)
    assert ring.sensitivity == pytest.approx(clip * (1 + terms["slack"]) + math.sqrt(terms["length"]) * ring.grid)
    assert ring.deviation == pytest.approx(together / math.sqrt(terms["honest"]) * ring.sensitivity)
    assert ring.deviation >= 4 * ring.grid
    assert math.sqrt(terms["honest"]) * ring.deviation >= 64 * ring.grid
    assert (ring.bound / ring.grid).is_integer()
    assert (ring.cut / ring.grid).is_integer()
    assert terms["hospitals"] * ring.bound / ring.grid < HALF_RING
    assert ring.bound - ring.cut >= 12 * ring.deviation
    assert ring.cut >= clip


@given(TERMS)
def test_a_ring_holds_all_that_is_priced_or_is_refused_with_a_figure_that_would_fit(terms: dict[str, Any]) -> None:
    try:
        holds(ring_terms(**terms), terms)
    except RingRefused as error:
        said = str(error).partition("all else equal: ")[2]
        named = dict(re.findall(r"([a-z]+|noise multiplier) of ([0-9.e+-]+)", said))
        assert named or "smaller model and fewer hospitals" in said
        for name, figure in named.items():
            key = {"vectors": "length", "noise multiplier": "noise_multiplier"}[name]
            fitting = terms | {key: float(figure) if key == "noise_multiplier" else int(figure)}
            holds(ring_terms(**fitting), fitting)


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.3, 0.5])
@pytest.mark.parametrize(("honest", "hospitals"), [(2, 3), (9, 12), (66, 100), (254, 255)])
def test_little_noise_has_a_fine_grid(noise: float, honest: int, hospitals: int) -> None:
    """Where noise is small, it and not the clip says how fine the lattice must be."""
    terms = {
        "clip": 1.0,
        "noise_multiplier": noise,
        "honest": honest,
        "hospitals": hospitals,
        "length": 1,
        "slack": 0.0,
    }
    holds(ring_terms(**terms), terms)


def test_the_rounding_term_stays_small_where_it_was_larger_than_the_noise() -> None:
    """A scale that followed the hospitals' number alone charged 2.9 clips of rounding here, and 9.4."""
    for hospitals, length in ((100, 1_000_000), (255, 300_000)):
        ring = ring_terms(clip=1.0, noise_multiplier=1.0, honest=66, hospitals=hospitals, length=length)
        assert ring.sensitivity <= 1 + NORM_SLACK + 0.01


def test_a_round_with_noise_in_the_ring_of_every_hospital() -> None:
    study = distributed()
    training = round_terms(study, 1, dimension=14, participants=3)
    ring = gradient_ring(study, 14)
    assert ring is not None
    assert (training.train, training.evaluate, training.shared) == (True, "no", study.shared)
    # One named vector, and no weight that a hospital could scale its noise with; the same among fewer participants.
    assert [(term.name, term.length) for term in training.vectors] == [("gradient", 14)]
    assert (training.vectors[0].bound, training.vectors[0].scale) == (ring.bound, 1 / ring.grid)
    assert training == round_terms(study, 1, dimension=14, participants=4)
    final = round_terms(study, 16, dimension=14, participants=4)
    assert (final.train, final.evaluate, [term.name for term in final.vectors]) == (False, "final", ["counts"])
    assert final.vectors[0].scale * counts_ring(study, "final").grid == 1


def test_interim_evaluations_share_the_final_ones_noise_by_the_study() -> None:
    study = distributed(evaluation={"every": 4, "interim_share": 0.2})
    assert interim_evaluations(study) == 3
    assert round_terms(study, 4, dimension=14, participants=4).evaluate == "interim"
    interim, final = counts_noise(study, "interim"), counts_noise(study, "final")
    assert final == 1.4
    assert 3 / interim**2 / (3 / interim**2 + 1 / final**2) == pytest.approx(0.2)
    deviations = [counts_ring(study, kind).deviation for kind in ("interim", "final")]
    assert deviations[0] > deviations[1]


@given(
    st.integers(1, 16),
    st.integers(1, 10_000),
    st.sampled_from([distributed(), distributed(evaluation={"every": 3, "interim_share": 0.1})]),
)
def test_a_manifest_of_shared_noise_is_read_back_as_it_was_written(
    number: int, dimension: int, study: StudyTerms
) -> None:
    terms = round_terms(study, number, dimension=dimension, participants=4)
    manifest = RoundManifest(
        study="a" * 64, epoch=0, round=number, participants=study.cohort.hospitals, model_hash="b" * 64, **vars(terms)
    )
    again = RoundManifest.parse(manifest.canonical())
    assert again == manifest
    assert again.shared == study.shared
    assert again.digest() == manifest.digest()


@pytest.mark.parametrize(
    ("hospitals", "threshold", "factor"),
    [(49, 33, 1.24), (49, 40, 1.12), (49, 45, 1.055), (4, 3, 1.41), (4, 4, 1.155)],
)
def test_what_a_threshold_adds_to_the_noise_that_is_priced(hospitals: int, threshold: int, factor: float) -> None:
    honest = honest_contributors(hospitals, threshold, 1, one_list=True)
    assert noise_factor(hospitals, honest) == pytest.approx(factor, abs=0.005)


def test_without_the_wave_two_lists_are_priced() -> None:
    assert honest_contributors(49, 33, 1, one_list=False) == 24
    assert noise_factor(49, 24) == pytest.approx(1.43, abs=0.005)


def test_the_tail_of_the_noise_is_paid_for_every_coordinate_hospital_and_round() -> None:
    one = tail_delta(1, 0, 0.0)
    assert tail_delta(4, 15, 0.0) / one == pytest.approx(4 * 16)
    # 2 x 2^31 coordinates that pass 11.75 sd, up or down; e^epsilon patients' worth of it.
    assert one / (2 * 2**31 * 7.1e-32) == pytest.approx(1, abs=0.03)
    assert tail_delta(1, 0, 8.0) / one == pytest.approx((1 + math.exp(8)) / 2)
    # It never decides what a study costs, also among 255 hospitals.
    assert tail_delta(255, 1000, 8.0) < 1e-12
