"""The terms of a study and of a round, as frozen values with one canonical form and hash.

A `Study` is what reviewers approve; a `RoundManifest` is what the aggregator signs for each round. Nothing here
is decided by the hospital: its privacy plan is derived from `PrivacyTerms` and its own limits, in `hospital`.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from datasites.study.canonical import Agreed
from datasites.study.identity import Email

Name = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Words = Annotated[str, Field(min_length=1, max_length=4000)]

#: Services that every study uses, so every study must say who runs them.
REQUIRED_SERVICES = ("aggregation", "model_distribution", "transport")


#: Coordinates of a weighted update are cut to ± this before they are encoded; a step beyond it is no use to a model.
UPDATE_BOUND = 16.0
#: Patients of one hospital in one cell of the evaluation, noise included, at most.
COUNTS_BOUND = float(2**20)
#: Shamir shares over GF(256) have 255 distinct places.
MOST_HOSPITALS = 255
#: Patients that a study or a hospital may speak of.
MOST_PATIENTS = 1_000_000_000
#: Rounds of training in a study (a final evaluation is one more), and setups of its secure sum.
MOST_ROUNDS = 10_000
MOST_EPOCHS = 1_000_000
#: The secure sum counts modulo 2**32, with sign.
HALF_RING = 2**31
#: Above this many hospitals masks form a ring of neighbours, which is safe only with the consistency wave.
ALWAYS_CONSISTENT_ABOVE = 64


class Service(Agreed):
    """One thing done with federated traffic, and the organisation that does it (it needs a BAA for it)."""

    kind: Name
    organisation: Annotated[str, Field(min_length=1, max_length=120)]


class Cohort(Agreed):
    """Which hospitals train on which dataset, and how many of them may collude.

    A hospital weighs as many patients as it declares, but at most `max_patients`. `patients` is what all hospitals
    declare together, a public figure that distributed mode divides by. `consistency` adds a wave in which survivors
    agree on one survivor list; it is always on above 64 hospitals.
    """

    dataset: Name
    hospitals: Annotated[tuple[Email, ...], Field(max_length=MOST_HOSPITALS)]
    min_patients: Annotated[int, Field(ge=1, le=MOST_PATIENTS)]
    colluders: Annotated[int, Field(ge=0, le=MOST_HOSPITALS)] = 1
    threshold: Annotated[int, Field(ge=3, le=MOST_HOSPITALS)] | None = None
    max_patients: Annotated[int, Field(ge=1, le=MOST_PATIENTS)] = 10_000
    consistency: bool = False
    patients: Annotated[int, Field(ge=1, le=MOST_PATIENTS)] | None = None

    @field_validator("hospitals")
    @classmethod
    def _distinct(cls, hospitals: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(hospitals)) != len(hospitals):
            raise ValueError("cohort.hospitals names a hospital twice")
        if len(hospitals) < 3:
            raise ValueError("cohort.hospitals needs at least 3: a sum of two shows each the other's update")
        return tuple(sorted(hospitals))

    @property
    def consistency_wave(self) -> bool:
        """Whether survivors agree on one survivor list first."""
        return self.consistency or len(self.hospitals) > ALWAYS_CONSISTENT_ABOVE

    @property
    def survivors_needed(self) -> int:
        """Threshold t of the secure sum: as stated, else floor(2n/3)+1, never below 3 (design section 9)."""
        return self.threshold or max(3, 2 * len(self.hospitals) // 3 + 1)


class PrivacyTerms(Agreed):
    """What the study asks for. Each hospital calibrates its own noise from it and may only be stricter."""

    epsilon: Annotated[float, Field(gt=0, le=100)]
    delta: Annotated[float, Field(gt=0, lt=0.1)]
    clip: Annotated[float, Field(ge=1e-3, le=1e6)]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    mode: Literal["local", "distributed"] = "local"


class LocalTraining(Agreed):
    """How a hospital's local steps use the noised gradient (all of it post-processing)."""

    steps: Annotated[int, Field(ge=1, le=10_000)]
    learning_rate: Annotated[float, Field(gt=0, le=10_000)]
    optimiser: Literal["sgd", "adam"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    proximal: Annotated[float, Field(ge=0)] = 0.0


class Evaluation(Agreed):
    """DP evaluation: noised counts per (score bin, label) on the patients that each hospital always holds out.

    Which patients those are is fixed by the hospital for its dataset, over all studies.
    """

    bins: Annotated[int, Field(ge=2, le=100)] = 8
    every: Annotated[int, Field(ge=0)] = 0
    interim_share: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _share_has_a_use(self) -> Self:
        if (self.every > 0) != (self.interim_share > 0):
            raise ValueError("evaluation.every and evaluation.interim_share are set together or not at all")
        return self


class Strategy(Agreed):
    """How the researcher makes the next model from the secure sum."""

    name: Name = "fedavg"
    options: dict[str, JsonValue] = {}


class Study(Agreed):
    """All terms of one study. Its digest, with those of `features.toml` and `model.py`, is the study hash."""

    format: Literal[1] = 1
    name: Name
    title: Annotated[str, Field(min_length=1, max_length=200)]
    purpose: Name
    description: Words
    irb: Annotated[str, Field(min_length=1, max_length=80)]
    researcher: Email
    organisation: Annotated[str, Field(min_length=1, max_length=120)]
    ends: datetime.date
    services: tuple[Service, ...]
    cohort: Cohort
    label: Name
    privacy: PrivacyTerms
    training: LocalTraining
    evaluation: Evaluation = Evaluation()
    rounds: Annotated[int, Field(ge=1, le=MOST_ROUNDS)]
    strategy: Strategy = Strategy()
    model: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _services_are_named(self) -> Self:
        kinds = [service.kind for service in self.services]
        missing = [kind for kind in REQUIRED_SERVICES if kind not in kinds]
        if missing:
            raise ValueError(f"services: name the organisation that runs {', '.join(missing)}")
        if len(set(kinds)) != len(kinds):
            raise ValueError("services: one entry per kind")
        if self.privacy.mode == "distributed" and self.training.steps != 1:
            raise ValueError("privacy.mode distributed needs training.steps = 1: only one clipped step sums to DP")
        if self.privacy.mode == "distributed" and self.cohort.patients is None:
            raise ValueError("privacy.mode distributed needs cohort.patients, what all hospitals declare together")
        return self

    @property
    def divisor(self) -> float:
        """What the opened sum of a step is divided by in distributed mode: expected patients in it, a public figure."""
        return self.privacy.sampling_rate * (self.cohort.patients or 0)


class VectorTerm(Agreed):
    """One named vector inside the secure sum: coordinates are cut to ±bound and encoded as round(x * scale)."""

    name: Name
    length: Annotated[int, Field(ge=1, le=2_000_000_000)]
    bound: Annotated[float, Field(ge=1 / HALF_RING, le=HALF_RING)]
    scale: Annotated[float, Field(ge=1 / HALF_RING, le=HALF_RING)]

    @model_validator(mode="after")
    def _fits_the_ring(self) -> Self:
        if self.bound * self.scale >= HALF_RING:
            raise ValueError(
                f"vector {self.name}: bound {self.bound:g} x scale {self.scale:g} is not below 2^31; lower the scale"
            )
        return self


class RoundManifest(Agreed):
    """What one round is. Signed by the aggregator; its digest enters every mask derivation of the round."""

    format: Literal[1] = 1
    study: Sha256
    epoch: Annotated[int, Field(ge=0, le=MOST_EPOCHS)]
    round: Annotated[int, Field(ge=1, le=MOST_ROUNDS + 1)]
    participants: tuple[Email, ...]
    threshold: Annotated[int, Field(ge=3)]
    train: bool
    evaluate: Literal["no", "interim", "final"]
    weight_max: Annotated[float, Field(gt=0)]
    model_hash: Sha256
    vectors: tuple[VectorTerm, ...]

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if list(self.participants) != sorted(set(self.participants)):
            raise ValueError("participants must be distinct and sorted")
        if not self.threshold <= len(self.participants):
            raise ValueError("threshold is above the number of participants")
        names = [vector.name for vector in self.vectors]
        if not names or len(set(names)) != len(names):
            raise ValueError("vectors must be distinct and not empty")
        if not self.train and self.evaluate == "no":
            raise ValueError("a round trains, evaluates, or both")
        return self
