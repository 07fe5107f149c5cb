"""In distributed mode all that noise is worth is a term of the study; what would void it is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from datasites.study.errors import InputError
from datasites.study.manifest import StudyTerms
from datasites.study.package import StudyPackage
from tests.study.studies import HEART, distributed


def local(**changes: dict[str, Any]) -> StudyTerms:
    terms = StudyPackage.read(HEART).study.model_dump(mode="json")
    for section, values in changes.items():
        terms[section] |= values
    return StudyTerms.model_validate(terms)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cohort": {"colluders": 0}}, "colluders of 1 or more"),
        ({"cohort": {"patients": None}}, "cohort.patients"),
        ({"cohort": {"threshold": 5}}, "can't survive"),
        ({"cohort": {"colluders": 2, "threshold": 3}}, "two honest hospitals"),
        ({"training": {"steps": 2}}, "training.steps = 1"),
        ({"training": {"optimiser": "adam"}}, "optimiser"),
        ({"training": {"schedule": "cosine"}}, "schedule"),
        ({"training": {"momentum": 0.5}}, "momentum"),
        ({"training": {"proximal": 0.5}}, "proximal"),
    ],
)
def test_terms_under_which_shared_noise_protects_nobody_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        distributed(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"privacy": {"noise_multiplier": 1.0}}, {"privacy": {"divisor": 9.0}}, {"evaluation": {"noise_multiplier": 1.0}}],
)
def test_a_study_in_local_mode_sets_no_noise(changes: dict[str, Any]) -> None:
    """I4: there it is each hospital's."""
    with pytest.raises(ValidationError, match="distributed mode|privacy.mode distributed"):
        local(**changes)


def test_survivors_agree_on_one_list_in_distributed_mode_unless_the_study_says_otherwise() -> None:
    assert distributed().consistency_wave
    assert distributed().honest == 2
    assert not distributed(cohort={"consistency": False}).consistency_wave
    assert not local().consistency_wave
    assert local(cohort={"consistency": True}).consistency_wave
    without = distributed(49, cohort={"consistency": False, "threshold": 33})
    assert (without.honest, distributed(49, cohort={"threshold": 33}).honest) == (24, 32)
    # A ring of neighbours is safe only with it.
    assert distributed(65, cohort={"consistency": False}).consistency_wave


def test_the_shared_terms_say_what_every_hospital_adds() -> None:
    study = distributed(cohort={"threshold": 4})
    shared = study.shared
    assert shared is not None
    assert (shared.hospitals, shared.colluders, shared.consistency, shared.honest) == (4, 1, True, 3)
    assert (shared.noise_multiplier, shared.evaluation_noise_multiplier) == (2.0, 1.4)
    assert shared.divisor == pytest.approx(0.3 * 920)
    assert distributed(privacy={"divisor": 100.0}).shared.divisor == 100.0
    assert local().shared is None


@pytest.mark.parametrize("section", ["privacy", "evaluation"])
def test_noise_that_the_study_leaves_out_is_asked_for_by_name(section: str) -> None:
    study = distributed(**{section: {"noise_multiplier": None}})
    with pytest.raises(InputError, match=f"{section}.noise_multiplier.*study plan"):
        _ = study.shared
