"""Each bound of a study's terms, at its two ends: the study is priced, held and reported, or refused at once.

A refusal comes when the study is read or priced, names the term or what it is bound to, and costs nothing: what could
not be reported is never trained.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import annotated_types
import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from datasites.privacy.accountant import epsilon_pld
from datasites.privacy.curves import DPEvaluation
from datasites.privacy.plan import PlanError, evaluation_edges
from datasites.privacy.study_plan import HospitalLimits, plan_of
from datasites.study.errors import InputError
from datasites.study.manifest import COUNTS_BOUND, MOST_HOSPITALS, RoundManifest, StudyTerms
from datasites.study.rounds import RingRefused, evaluation_kinds, round_terms, work_of

HEART = Path(__file__).resolve().parents[2] / "scripts" / "heart_disease" / "study"
LOCAL = tomllib.loads((HEART / "study.toml").read_text())
DIMENSION = 18
#: What a hospital allows at most, so that its own limits refuse nothing that the study may say.
WIDE = HospitalLimits(100.0, 0.09, 1.0, both_sides=False)


def ends_of(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Each number that a term may have at most or at least."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from ends_of(inner, (*path, name))
            continue
        metadata = [
            *field.metadata,
            *(m for part in getattr(inner, "__args__", ()) for m in getattr(part, "__metadata__", ())),
        ]
        metadata = [m for part in metadata for m in getattr(part, "metadata", [part])]
        whole = "int" in str(inner) or isinstance(inner, type) and issubclass(inner, int)
        for limit in metadata:
            if isinstance(limit, annotated_types.Ge):
                yield (*path, name), limit.ge  # type: ignore[misc]
            elif isinstance(limit, annotated_types.Le):
                yield (*path, name), limit.le  # type: ignore[misc]
            elif isinstance(limit, annotated_types.Lt):
                yield (*path, name), limit.lt - 1 if whole else float(np.nextafter(limit.lt, -1))  # type: ignore[operator]


DISTRIBUTED = {
    **LOCAL,
    "cohort": {**LOCAL["cohort"], "patients": 920},
    "privacy": {**LOCAL["privacy"], "mode": "distributed", "noise_multiplier": 4.0},
    "training": {**LOCAL["training"], "steps": 1},
    "evaluation": {**LOCAL["evaluation"], "noise_multiplier": 3.0},
}
for _term in ("optimiser", "momentum", "schedule", "proximal"):
    DISTRIBUTED["training"].pop(_term, None)
ENDS = sorted({(path, end) for path, end in ends_of(StudyTerms)})


def at_its_end(terms: dict[str, Any], path: tuple[str, ...], end: float) -> dict[str, Any]:
    """The terms with one of them at its end, and those beside it that must go along."""
    changed = {name: dict(part) if isinstance(part, dict) else part for name, part in terms.items()}
    part = changed
    for name in path[:-1]:
        part = part.setdefault(name, {})
    part[path[-1]] = end
    evaluation = changed["evaluation"]
    if path == ("evaluation", "every") and end:
        evaluation["interim_share"] = 0.2
    if path == ("evaluation", "interim_share") and end:
        evaluation["every"] = 5
    return changed


def test_all_bounded_terms_are_found() -> None:
    found = {".".join(path) for path, _ in ENDS}
    assert {"rounds", "privacy.epsilon", "privacy.noise_multiplier", "evaluation.bins", "cohort.threshold"} <= found
    assert len(ENDS) >= 38


def cases() -> Iterator[Any]:
    for mode, terms in (("local", LOCAL), ("distributed", DISTRIBUTED)):
        for path, end in ENDS:
            yield pytest.param(terms, path, end, id=f"{mode}, {'.'.join(path)} = {end:g}")


@pytest.mark.parametrize(("terms", "path", "end"), list(cases()))
def test_a_term_at_its_end_is_reported_or_refused_before_anything_is_trained(
    terms: dict[str, Any], path: tuple[str, ...], end: float
) -> None:
    try:
        study = StudyTerms.model_validate(at_its_end(terms, path, end))
        made = plan_of(study, WIDE)
        first, last = (manifest_of(study, number) for number in (1, study.rounds + 1))
    except (ValidationError, PlanError, RingRefused, InputError) as refusal:
        named = str(refusal)
        assert path[-1] in named or "noise_multiplier" in named or "threshold" in named, named
        return
    assert first.train
    assert work_of(study, study.rounds + 1) == (False, "final")
    assert last.evaluate == "final"
    assert epsilon_pld([made.training.event()], study.privacy.delta) <= study.privacy.epsilon * (1 + 1e-6)
    for kind in evaluation_kinds(study):
        assert made.evaluation.multiplier(kind) > 0
    bins = study.evaluation.bins
    counts = np.full((bins, 2), min(COUNTS_BOUND, 40.0))
    evaluation = DPEvaluation.from_counts(counts, evaluation_edges(bins), 3.0)
    for figure in (evaluation.auc, evaluation.accuracy(), evaluation.sensitivity(), evaluation.specificity()):
        assert 0 <= figure.value <= 1
    assert evaluation.patients.value == counts.sum()
    assert len(evaluation.calibration().patients) == bins


def manifest_of(study: StudyTerms, number: int) -> RoundManifest:
    cohort = study.cohort.hospitals
    terms = round_terms(study, number, dimension=DIMENSION, participants=len(cohort))
    return RoundManifest(study="5" * 64, epoch=0, round=number, participants=cohort, model_hash="a" * 64, **vars(terms))


@pytest.mark.parametrize("hospitals", [3, MOST_HOSPITALS])
def test_a_cohort_at_its_ends_is_priced(hospitals: int) -> None:
    names = [f"datasite@h{number:03d}.example.org" for number in range(hospitals)]
    study = StudyTerms.model_validate({**LOCAL, "cohort": {**LOCAL["cohort"], "hospitals": names, "threshold": None}})
    manifest_of(study, 1)
    more = [*names, "datasite@more.example.org"] if hospitals > 3 else names[:2]
    with pytest.raises(ValidationError, match="hospitals"):
        StudyTerms.model_validate({**LOCAL, "cohort": {**LOCAL["cohort"], "hospitals": more, "threshold": None}})


@pytest.mark.parametrize("bins", [3, 7, 99])
def test_bins_that_half_is_no_edge_of_are_refused_when_the_study_is_read(bins: int) -> None:
    with pytest.raises(ValidationError, match=f"{bins} is odd.*use {bins - 1} or {bins + 1}"):
        StudyTerms.model_validate(at_its_end(LOCAL, ("evaluation", "bins"), bins))
