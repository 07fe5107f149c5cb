"""A round manifest must be one that the approved study calls for; any other costs the round and releases nothing."""

from __future__ import annotations

import pytest

from datasites.hospital.cases.case import OpenCase, open_case
from datasites.hospital.rounds.manifest import RoundRefused, check_manifest
from datasites.study.manifest import COUNTS_BOUND, UPDATE_BOUND, RoundManifest, VectorTerm
from tests.hospital.desk import Desk

DIMENSION = 18


def manifest(case: OpenCase, **changes: object) -> RoundManifest:
    fields: dict[str, object] = {
        "study": case.row.study_hash,
        "epoch": 0,
        "round": 3,
        "participants": case.study.cohort.hospitals,
        "threshold": 3,
        "train": True,
        "evaluate": "no",
        "weight_max": 1000.0,
        "model_hash": "a" * 64,
        "vectors": (
            VectorTerm(name="update", length=DIMENSION, bound=UPDATE_BOUND, scale=2.0**24),
            VectorTerm(name="weight", length=1, bound=1.0, scale=2.0**28),
        ),
    }
    return RoundManifest.model_validate({**fields, **changes})


def counts(bins: int = 6) -> VectorTerm:
    return VectorTerm(name="counts", length=2 * bins, bound=COUNTS_BOUND, scale=2.0**8)


def test_the_rounds_that_were_approved_are_accepted(desk: Desk) -> None:
    case = open_case(desk.site.home, desk.row)
    check_manifest(case, manifest(case), DIMENSION)
    check_manifest(case, manifest(case, round=16, train=False, evaluate="final", vectors=(counts(),)), DIMENSION)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"study": "0" * 64}, "study"),
        ({"round": 17, "train": False, "evaluate": "final", "vectors": (counts(),)}, "final evaluation"),
        ({"evaluate": "final", "vectors": (counts(),)}, "evaluate"),
        ({"evaluate": "interim"}, "evaluate"),
        ({"round": 16}, "train"),
        ({"round": 16, "train": False, "evaluate": "final", "vectors": (counts(7),)}, "vectors"),
        ({"vectors": (VectorTerm(name="update", length=DIMENSION + 1, bound=UPDATE_BOUND, scale=1.0),)}, "vectors"),
        ({"vectors": (VectorTerm(name="rows", length=DIMENSION, bound=UPDATE_BOUND, scale=1.0),)}, "vectors"),
        (
            {
                "round": 16,
                "train": False,
                "evaluate": "final",
                "vectors": (counts().model_copy(update={"scale": 2.0**7}),),
            },
            "scale",
        ),
        ({"weight_max": 1.0}, "weight_max"),
    ],
)
def test_any_other_round_is_refused_by_name(desk: Desk, changes: dict, word: str) -> None:
    case = open_case(desk.site.home, desk.row)
    with pytest.raises(RoundRefused, match=word):
        check_manifest(case, manifest(case, **changes), DIMENSION)
