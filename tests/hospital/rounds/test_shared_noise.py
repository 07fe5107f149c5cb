"""Distributed mode at one hospital: it takes the study's terms or refuses, and checks each of them in each round."""

from __future__ import annotations

import dataclasses
import re
from html import unescape
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from django.template.loader import render_to_string

from datasites.enclave.worker_client import TrainResult
from datasites.hospital.cases import as_text, examination
from datasites.hospital.cases.case import OpenCase, build_approval_terms, site_plan
from datasites.hospital.cases.machine import Machine
from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.models import Case
from datasites.hospital.rounds.manifest import RoundRefused, check_manifest
from datasites.hospital.rounds.round_keys import RoundKeys
from datasites.hospital.rounds.row_work import RowWork
from datasites.hospital.site import Site
from datasites.privacy.plan import PlanError
from datasites.study.manifest import COUNTS_BOUND, EvaluationKind, SharedNoise, VectorTerm
from datasites.study.package import StudyPackage
from tests.hospital.conftest import HEART
from tests.hospital.desk import job
from tests.hospital.unequal import DIMENSION, PREPARED, Terms, case_of, manifest_of


@pytest.fixture
def case(heart: DatasetSettings, furnished: Home) -> OpenCase:
    """A study in distributed mode as approved here, without its records."""
    return case_of(furnished, Terms().package(threshold=4), heart)


@pytest.mark.parametrize("number", [1, 3, 15, 16])
def test_the_rounds_of_the_study_are_taken(case: OpenCase, number: int) -> None:
    check_manifest(case, manifest_of(case, number), DIMENSION)


#: Every term that the price rests on, as an aggregator might change it. Those left out would fit the old check.
CHANGED: dict[str, Any] = {
    "hospitals": 5,
    "colluders": 2,
    "consistency": False,
    "honest": 2,
    "clip": 2.0,
    "noise_multiplier": 1.6,
    "sampling_rate": 0.31,
    "divisor": 1.0,
    "delta": 1e-2,
    "evaluation_noise_multiplier": 0.1,
}


def test_every_shared_term_is_among_those_tried() -> None:
    assert set(CHANGED) == set(SharedNoise.model_fields)


@pytest.mark.parametrize("term", CHANGED)
@pytest.mark.parametrize("number", [3, 16])
def test_a_shared_term_that_the_aggregator_changes_is_refused_by_name(case: OpenCase, term: str, number: int) -> None:
    manifest = manifest_of(case, number)
    assert manifest.shared is not None
    changed = manifest.model_copy(update={"shared": manifest.shared.model_copy(update={term: CHANGED[term]})})
    with pytest.raises(RoundRefused, match=rf"shared\.{term} is {CHANGED[term]}"):
        check_manifest(case, changed, DIMENSION)


def test_a_round_that_says_nothing_of_shared_noise_is_refused(case: OpenCase) -> None:
    with pytest.raises(RoundRefused, match="shared"):
        check_manifest(case, manifest_of(case).model_copy(update={"shared": None}), DIMENSION)


@pytest.mark.parametrize(("number", "name"), [(3, "gradient"), (16, "counts")])
@pytest.mark.parametrize("change", [{"bound": 2.0}, {"scale": 2.0}, {"bound": 0.5, "scale": 2.0}, {"length": 2}])
def test_another_bound_or_scale_of_the_ring_is_refused(
    case: OpenCase, number: int, name: str, change: dict[str, float]
) -> None:
    """A coarser scale rounds noise away, a smaller bound cuts it."""
    manifest = manifest_of(case, number)
    term = manifest.vectors[0]
    assert term.name == name
    factors = {key: type(getattr(term, key))(getattr(term, key) * factor) for key, factor in change.items()}
    changed = term.model_copy(update=factors)
    with pytest.raises(RoundRefused, match="bound|scale|vectors"):
        check_manifest(case, manifest.model_copy(update={"vectors": (changed,)}), DIMENSION)


@pytest.mark.parametrize("threshold", [3, 5])
def test_another_threshold_is_refused(case: OpenCase, threshold: int) -> None:
    with pytest.raises(RoundRefused, match="threshold"):
        check_manifest(case, manifest_of(case).model_copy(update={"threshold": threshold}), DIMENSION)


def test_vectors_of_local_mode_are_none_of_distributed_mode(case: OpenCase) -> None:
    """A weight, or a difference of parameters, would let noise be scaled by what others choose."""
    update = VectorTerm(name="update", length=DIMENSION, bound=16.0, scale=2.0**24)
    weight = VectorTerm(name="weight", length=1, bound=1.0, scale=2.0**28)
    with pytest.raises(RoundRefused, match="vectors"):
        check_manifest(case, manifest_of(case).model_copy(update={"vectors": (update, weight)}), DIMENSION)


@pytest.mark.parametrize(
    "planned",
    [
        {"plan": {"noise_multiplier": 1.5}},
        {"plan": {"clip": 0.9}},
        {"plan": {"sampling_rate": 0.2}},
        {"plan": {"honest": 2}},
        {"plan": {"mode": "local", "honest": None}},
        {"evaluation": {"final_multiplier": 1.1}},
        {"evaluation": {"honest": 2}},
    ],
)
def test_a_plan_that_is_charged_for_other_noise_than_the_study_adds_takes_no_round(
    case: OpenCase, planned: dict[str, dict[str, Any]]
) -> None:
    """I17: what is priced is what protects, even were the two stored apart."""
    changes = {name: getattr(case, name).model_copy(update=values) for name, values in planned.items()}
    with pytest.raises(RoundRefused, match=r"plan\."):
        check_manifest(dataclasses.replace(case, **changes), manifest_of(case), DIMENSION)


def test_each_hospital_adds_its_share_and_charges_the_sum(case: OpenCase) -> None:
    assert case.divisor == pytest.approx(0.3 * 920)
    training, held_out = case.asked()["training"], case.asked()["held_out"]
    assert training.event == case.plan.event()
    assert training.local_event == case.plan.local_event() != training.event
    assert held_out.local_event == case.evaluation.total_local_event() != held_out.event
    kind: EvaluationKind = "final"
    ring = case.counts_ring(kind)
    assert ring is not None
    assert ring.deviation == pytest.approx(1.4 / 3**0.5 * ring.sensitivity)


class WholeSteps:
    """A worker that gives whole steps which no double holds, and notes the rings that it is asked for."""

    def __init__(self) -> None:
        self.rings: list[object] = []

    def train(self, parameters: Any, *, ring: object, **_: object) -> TrainResult:
        self.rings.append(ring)
        return TrainResult(2**53 + 1 - np.arange(len(parameters), dtype=np.int64) * (2**50 + 1), 1)

    def evaluate(self, parameters: Any, *, plan: Any, ring: object, **_: object) -> Any:
        self.rings.append(ring)
        return 2**53 + 1 + 2 * np.arange(2 * plan.bins, dtype=np.int64).reshape(plan.bins, 2)


@pytest.mark.parametrize(("number", "kind"), [(4, "interim"), (16, "final")])
def test_whole_steps_leave_the_worker_as_they_are_in_the_ring_of_their_kind(
    heart: DatasetSettings, furnished: Home, site: Site, number: int, kind: EvaluationKind
) -> None:
    files = Terms(counts_noise=3.0).package(threshold=4).files
    text = files["study.toml"].replace(b"bins = 6", b"bins = 6\nevery = 4\ninterim_share = 0.2")
    case = case_of(furnished, StudyPackage({**files, "study.toml": text}), heart)
    assert case.counts_ring("interim") != case.counts_ring("final")
    manifest, model, worker = manifest_of(case, number), np.zeros(DIMENSION, np.float32), WholeSteps()
    work, keys = RowWork(site, Machine()), RoundKeys(bytes(32), "", "", "")
    vectors, _ = work._vectors(worker, case, manifest, model, keys)  # type: ignore[arg-type]
    made, trains = WholeSteps(), number == 4
    expected = {"counts": made.evaluate(model, plan=case.evaluation, ring=None).reshape(-1)}
    if trains:
        expected["gradient"] = made.train(model, ring=None).update
    assert {name: (vector.dtype, vector.tolist()) for name, vector in vectors.items()} == {
        name: (np.dtype(np.int64), vector.tolist()) for name, vector in expected.items()
    }
    assert worker.rings == [case.gradient_ring(DIMENSION)] * trains + [case.counts_ring(kind)]


@pytest.mark.parametrize(
    "strict",
    [
        {"study_epsilon": 0.5},
        {"max_sampling_rate": 0.1},
        {"delta": 1e-6},
        {"study_epsilon": 1.0, "max_sampling_rate": 0.05},
    ],
)
def test_intake_refuses_for_a_stricter_hospital_and_says_what_would_fit(
    heart: DatasetSettings, furnished: Home, strict: dict[str, float]
) -> None:
    dataset = heart.model_copy(update=strict)
    with pytest.raises(PlanError, match="distributed mode") as caught:
        build_approval_terms(furnished, Terms().package(), dataset, PREPARED)
    fitting = Terms().fitting(caught.value)
    assert fitting != Terms()
    assert (
        build_approval_terms(furnished, fitting.package(), dataset, PREPARED).plan["noise_multiplier"] == fitting.noise
    )


@pytest.mark.parametrize("other", [{"held_out": 0.8}, {"declared_patients": 50}, {"study_epsilon": 50.0}])
def test_a_hospital_that_differs_otherwise_has_the_same_plan_as_all(
    heart: DatasetSettings, other: dict[str, float]
) -> None:
    """Its own share of held-out patients or size once moved the divisor, and with it what the noise was worth."""
    study = Terms().package().study
    assert site_plan(study, heart.model_copy(update=other)) == site_plan(study, heart)


def test_counts_that_would_be_cut_are_refused_at_intake(heart: DatasetSettings) -> None:
    large = heart.model_copy(update={"declared_patients": 50_000_000})
    with pytest.raises(PlanError, match="fewer bins or hospitals"):
        site_plan(Terms().package().study, large)
    local = StudyPackage.read(HEART / "study").study
    most = int(COUNTS_BOUND / heart.held_out)
    site_plan(local, heart.model_copy(update={"declared_patients": most}))
    with pytest.raises(PlanError, match="are cut at 1048576 patients .* declare a smaller dataset"):
        site_plan(local, heart.model_copy(update={"declared_patients": most + 3}))


def test_counts_of_more_patients_than_the_ring_holds_are_refused_by_that_figure(
    furnished: Home, database: Home
) -> None:
    files = Terms().package(patients=900_000_000).files
    row = examination.admit(Site.open(furnished.root), dataclasses.replace(job(**files), name="heart-many"))
    assert row.state in (Case.State.INTAKE, Case.State.REFUSED)
    assert "cohort.patients = 900000000 are more than" in row.note


def test_the_case_says_why_it_can_not_be_examined(furnished: Home, database: Home) -> None:
    sent = dataclasses.replace(job(**Terms(noise=0.9).package().files), name="heart-together")
    row = examination.admit(Site.open(furnished.root), sent)
    assert row.state == Case.State.INTAKE
    assert re.search(r"privacy.noise_multiplier is 0.9: [0-9.]+ is the least that fits", row.note)


def test_reviewers_read_what_is_shared_and_what_their_own_noise_is_worth(case: OpenCase) -> None:
    """On the page and on the terminal: threshold, colluders, noise factor, local epsilons of training and counts."""
    nothing = SimpleNamespace(allowed=True, denied_by=())
    examined = SimpleNamespace(case=case, decision=nothing, budget=(), services=())
    view = SimpleNamespace(late_features=(), rehearsal="passed")
    page = render_to_string("console/case_summary.html", {"examined": examined, "row": case.row, "view": view})
    text = "\n".join(as_text._terms(examined))  # type: ignore[arg-type]
    plan = case.study_plan
    for shown in (unescape(page), text):
        assert "4 of 4 hospitals must survive, 1 may collude, every sum holds 3 honest ones" in shown
        assert "1.155 if all survive" in shown
        assert f"training {plan.local_epsilon:.3f}, evaluation {plan.local_evaluation_epsilon:.3f}" in shown
