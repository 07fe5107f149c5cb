"""Unequal hospitals in distributed mode: refused with the figure that would fit, or the noise that all are charged for.

The opened sum is compared over 200,000 coordinates with fixed keys: its sd is then known to some 0.2 %.
"""

from __future__ import annotations

import pytest

from datasites.hospital.config import DatasetSettings, Home
from datasites.privacy.plan import PlanError
from datasites.secagg.errors import TooFew
from tests.hospital.unequal import KINDS, Opened, Terms, open_counts, open_round


def protects(opened: Opened) -> None:
    assert opened.of_stated == pytest.approx(1, abs=0.02)
    assert opened.of_priced >= 0.995


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_what_all_were_charged_for_or_nobody_is(home: Home, heart: DatasetSettings, kind: str) -> None:
    """Each once charged by its own limits: with study_epsilon 0.5 here and 3 there it charged 0.50 and had 0.74."""
    changes, refuses = KINDS[kind]
    datasets = [heart, heart, heart, heart.model_copy(update=changes)]
    terms = Terms()
    if refuses:
        with pytest.raises(PlanError, match="that fits") as caught:
            open_round(home, datasets, terms, threshold=4, survivors=4)
        terms = terms.fitting(caught.value)
    protects(open_round(home, datasets, terms, threshold=4, survivors=4, seed=kind))


@pytest.mark.long
def test_counts_hold_the_noise_that_all_were_charged_for(home: Home, heart: DatasetSettings) -> None:
    """16,667 evaluations of 12 cells, of which one is masked and opened, among a stricter hospital and others."""
    stricter = heart.model_copy(update=KINDS["stricter study_epsilon"][0])
    with pytest.raises(PlanError, match="that fits") as caught:
        open_round(home, [heart, heart, heart, stricter], Terms(), threshold=3, survivors=4)
    terms = Terms().fitting(caught.value)
    hospitals = [heart, heart, heart, stricter]
    for opened in open_counts(home, hospitals, terms, threshold=3, survivors=(3, 4), repeats=16_667):
        protects(opened)


@pytest.mark.slow
@pytest.mark.parametrize(("threshold", "survivors"), [(3, 3), (3, 4)])
def test_noise_grows_with_survivors_as_stated(
    home: Home, heart: DatasetSettings, threshold: int, survivors: int
) -> None:
    opened = open_round(home, [heart] * 4, Terms(), threshold=threshold, survivors=survivors)
    assert opened.factor == pytest.approx({3: 1.225, 4: 1.414}[survivors], abs=1e-3)
    protects(opened)


@pytest.mark.slow
def test_a_hospital_that_dies_between_the_waves_takes_no_noise_with_it(home: Home, heart: DatasetSettings) -> None:
    protects(open_round(home, [heart] * 4, Terms(), threshold=3, survivors=4, dead_between=1))


def test_below_the_threshold_nothing_opens(home: Home, heart: DatasetSettings) -> None:
    for survivors, dead in ((2, 0), (3, 1)):
        with pytest.raises(TooFew):
            open_round(home, [heart] * 4, Terms(), threshold=3, survivors=survivors, dead_between=dead, dimension=100)
