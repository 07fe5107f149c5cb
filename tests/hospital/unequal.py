"""Hospitals that differ in what they allow, hold out or declare, in one real secure sum with the trainer's own noise.

Used by the tests and by `scripts/show_unequal_hospitals.py`. Rows have gradients of zero, so that the opened sum is the
noise and nothing else; plans, manifests, checks, noise, masks and shares are those of a study.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from datasites.hospital.cases.case import OpenCase, build_approval_terms, site_plan
from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.data.records import Prepared
from datasites.hospital.models import Case
from datasites.hospital.rounds.manifest import check_manifest
from datasites.privacy.evaluation import noised_counts
from datasites.privacy.noise import SecureRandom
from datasites.privacy.plan import PlanError
from datasites.privacy.trainer import train_round
from datasites.study.manifest import RoundManifest
from datasites.study.package import StudyPackage
from datasites.study.rounds import RingTerms, round_terms
from datasites.study.survivors import noise_factor
from tests.hospital.conftest import HEART
from tests.secagg.cohort import Cohort, email
from tests.study.studies import heart_package

PREPARED = Prepared(content_hash="0" * 64, patient_unit="patient", rows=3, patients=3)
#: Values that the model of the heart study has.
DIMENSION = 14

#: Hospitals that differ from the others, and whether the study as it is is too much for them.
KINDS: dict[str, tuple[dict[str, float], bool]] = {
    "stricter study_epsilon": ({"study_epsilon": 1.0}, True),
    "smaller max_sampling_rate": ({"max_sampling_rate": 0.1}, True),
    "stricter delta": ({"delta": 1e-6}, True),
    "larger delta": ({"delta": 9e-3}, False),
    "other held_out": ({"held_out": 0.8}, False),
    "other declared size": ({"declared_patients": 40}, False),
}


@dataclass(frozen=True)
class Terms:
    """Figures of a distributed study that a refusal may change."""

    noise: float = 2.0
    counts_noise: float = 1.4
    rate: float = 0.3
    delta: float = 1e-5

    def fitting(self, refusal: PlanError) -> Terms:
        """These terms with the figures that a refusal names."""
        found = re.findall(r"(\w+\.\w+) is [\w.e-]+: ([0-9.e-]+) is the (?:least|most) that fits", str(refusal))
        names = {
            "privacy.noise_multiplier": "noise",
            "evaluation.noise_multiplier": "counts_noise",
            "privacy.sampling_rate": "rate",
            "privacy.delta": "delta",
        }
        return Terms(**(vars(self) | {names[name]: float(figure) for name, figure in found}))

    def package(self, hospitals: Sequence[str] = (), **cohort: Any) -> StudyPackage:
        """The heart study on these terms, among its own four hospitals unless others are given."""
        others = {"patients": 920, **cohort}
        given = {"hospitals": str(list(hospitals))} if hospitals else {}
        return heart_package(
            mode=f'"distributed"\nnoise_multiplier = {self.noise}',
            sampling_rate=str(self.rate),
            delta=str(self.delta),
            steps="1",
            bins=f"6\nnoise_multiplier = {self.counts_noise}",
            threshold=None,  # among the others, or the usual one
            colluders="\n".join(["1", *(f"{key} = {value}" for key, value in others.items())]),
            **given,
        )


def case_of(home: Home, package: StudyPackage, dataset: DatasetSettings) -> OpenCase:
    """The study as this hospital would approve it, without its records; raises `PlanError`."""
    (home.root / dataset.mapping).write_bytes((HEART / "mappings" / "cleveland.toml").read_bytes())
    terms, made = build_approval_terms(home, package, dataset, PREPARED), site_plan(package.study, dataset)
    row = Case(study_hash=package.digest())
    return OpenCase(row, package, dataset, terms, plan=made.training, evaluation=made.evaluation)


@dataclass(frozen=True)
class Opened:
    """What a round's sum holds, in sd over its coordinates, beside what was priced."""

    survivors: int
    priced: float
    factor: float
    noise: float
    without_colluders: float

    @property
    def of_stated(self) -> float:
        """Noise of the sum, as a part of what is priced times the stated factor."""
        return self.noise / (self.priced * self.factor)

    @property
    def of_priced(self) -> float:
        """Noise that colluders don't know, as a part of what is priced."""
        return self.without_colluders / self.priced


def open_round(
    home: Home,
    datasets: Sequence[DatasetSettings],
    terms: Terms,
    *,
    threshold: int,
    survivors: int,
    dead_between: int = 0,
    dimension: int = 200_000,
    seed: str = "",
) -> Opened:
    """One training round: `survivors` send a vector, and `dead_between` of them are gone before shares are asked for.

    Raises what refuses it.
    """
    package, cases = _cases(home, datasets, terms, threshold)
    vectors = {
        name: noise_of(case, dimension, rows=3 + index, key=f"{seed}{name}")
        for index, (name, case) in enumerate(cases.items())
    }
    total = _opened(package, cases, 1, dimension, {"gradient": vectors}, survivors, dead_between)
    ring = next(iter(cases.values())).gradient_ring(dimension)
    multiplier = package.study.privacy.noise_multiplier
    assert multiplier is not None
    return _measured(package, ring, multiplier, vectors, total, survivors)


def open_counts(
    home: Home,
    datasets: Sequence[DatasetSettings],
    terms: Terms,
    *,
    threshold: int,
    survivors: Sequence[int],
    repeats: int,
) -> Iterator[Opened]:
    """The final evaluation, `repeats` times, of which the first is opened; the others are added as that one is.

    By how many survive it, of the same draws.
    """
    package, cases = _cases(home, datasets, terms, threshold)
    drawn = {name: counts_noise_of(case, repeats, key=name) for name, case in cases.items()}
    number, ring = package.study.rounds + 1, next(iter(cases.values())).counts_ring("final")
    one = {"counts": {name: counts[0] for name, counts in drawn.items()}}
    for alive in survivors:
        first = _opened(package, cases, number, 1, one, alive, 0)
        total = np.sum([drawn[name] for name in list(cases)[:alive]], axis=0)
        assert (first == total[0]).all()
        yield _measured(package, ring, terms.counts_noise, drawn, total, alive)


def _cases(
    home: Home, datasets: Sequence[DatasetSettings], terms: Terms, threshold: int
) -> tuple[StudyPackage, dict[str, OpenCase]]:
    hospitals = [email(index) for index in range(len(datasets))]
    package = terms.package(hospitals, threshold=threshold)
    return package, {name: case_of(home, package, own) for name, own in zip(hospitals, datasets, strict=True)}


def _opened(
    package: StudyPackage,
    cases: dict[str, OpenCase],
    number: int,
    dimension: int,
    vectors: dict[str, dict[str, np.ndarray]],
    survivors: int,
    dead_between: int,
) -> np.ndarray:
    """The integers of the one vector (by name, then by hospital) of a round, after a real secure sum."""
    study, hospitals = package.study, list(cases)
    cohort = Cohort.of(
        len(hospitals),
        study=package.digest(),
        rounds=(number, number),
        colluders=study.cohort.colluders,
        threshold=study.cohort.survivors_needed,
        consistency=study.consistency_wave,
    ).setup()
    holds = round_terms(study, number, dimension=dimension, participants=len(hospitals))
    manifest = RoundManifest(
        study=package.digest(), epoch=0, round=number, participants=tuple(hospitals), model_hash="a" * 64, **vars(holds)
    )
    for case in cases.values():
        check_manifest(case, manifest, dimension)
    ((name, by_hospital),) = vectors.items()
    alive = hospitals[:survivors]
    cohort.open(manifest)
    cohort.collect({hospital: {name: vector} for hospital, vector in by_hospital.items()}, alive)
    listed = cohort.survivors()
    acks = cohort.acks(listed, alive) if cohort.context.consistency else None
    return cohort.unmask(alive[: survivors - dead_between], listed, acks).integers[name]


def _measured(
    package: StudyPackage,
    ring: RingTerms | None,
    multiplier: float,
    vectors: dict[str, np.ndarray],
    total: np.ndarray,
    survivors: int,
) -> Opened:
    assert ring is not None
    known = sum(vectors[name] for name in list(vectors)[: package.study.cohort.colluders])
    return Opened(
        survivors=survivors,
        priced=multiplier * ring.sensitivity,
        factor=noise_factor(survivors, package.study.honest),
        noise=deviation(total) * ring.grid,
        without_colluders=deviation(total - known) * ring.grid,
    )


def noise_of(case: OpenCase, dimension: int, *, rows: int, key: str) -> np.ndarray:
    """What the trainer releases at this hospital on rows whose gradients are zero, int64."""
    model = torch.nn.Linear(dimension, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    result = train_round(
        model,
        None,
        np.zeros((rows, dimension), np.float32),
        np.zeros(rows, np.float32),
        np.arange(rows),
        case.plan,
        case.study.training,
        divisor=case.divisor,
        ring=case.gradient_ring(dimension),
        randomness=SecureRandom(hashlib.sha256(key.encode()).digest()),
    )
    assert result.update.dtype == np.int64
    return result.update


def counts_noise_of(case: OpenCase, repeats: int, *, key: str) -> np.ndarray:
    """What the final evaluation releases at this hospital on no rows, int64, shape (repeats, cells)."""
    randomness = SecureRandom(hashlib.sha256(key.encode()).digest())
    ring, none = case.counts_ring("final"), np.zeros(0)
    released = [
        noised_counts(none, none, none, case.evaluation, "final", ring=ring, randomness=randomness).ravel()
        for _ in range(repeats)
    ]
    assert released[0].dtype == np.int64
    return np.stack(released)


def deviation(steps: np.ndarray) -> float:
    """Root of the mean square: the noise has mean zero."""
    return math.sqrt(float(np.mean(steps.astype(np.float64) ** 2)))


def with_interim(package: StudyPackage) -> StudyPackage:
    """The same study with an evaluation after each fifth round."""
    text, changed = re.subn(
        rb"(?m)^bins = 6$", b"bins = 6\nevery = 5\ninterim_share = 0.3", package.files["study.toml"]
    )
    assert changed == 1
    return StudyPackage({**package.files, "study.toml": text})


def manifests(case: OpenCase) -> list[RoundManifest]:
    """All rounds of the study."""
    return [manifest_of(case, number) for number in range(1, case.study.rounds + 2)]


def manifest_of(case: OpenCase, number: int = 3) -> RoundManifest:
    cohort = case.study.cohort.hospitals
    terms = round_terms(case.study, number, dimension=DIMENSION, participants=len(cohort))
    return RoundManifest(
        study=case.row.study_hash,
        epoch=0,
        round=number,
        participants=cohort,
        model_hash="a" * 64,
        **vars(terms),
    )
