"""The terms of a study and of a round, as frozen values with one canonical form and hash.

A `StudyTerms` is what reviewers approve; a `RoundManifest` is what the aggregator signs for each round.

In local mode a hospital derives its privacy plan from `PrivacyTerms` and its own limits. In distributed mode the noise
that protects its patients is mostly the others', so all that the price rests on are terms of the study, equal for all
(`SharedNoise`); a hospital with stricter limits refuses, since no noise of its own would make up for the others'.
"""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, field_validator, model_validator

from datasites.study.canonical import Agreed
from datasites.study.errors import InputError
from datasites.study.identity import Email, written_twice
from datasites.study.survivors import honest_contributors

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")


def _named(text: str) -> str:
    if not _NAME.fullmatch(text):
        fitting = re.sub(r"[^a-z0-9_-]+", "_", text.casefold())[:64].strip("_-")
        raise ValueError(
            "a name is up to 64 small letters, digits, - and _, and begins and ends with a letter or a digit"
            + (f"; write {fitting}" if fitting else "")
        )
    return text


#: What a study calls a thing.
Name = Annotated[str, AfterValidator(_named)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
EvaluationKind = Literal["interim", "final"]
NoiseMultiplier = Annotated[float, Field(ge=1e-3, le=10_000)]

#: Services that every study uses, so every study must say who runs them.
REQUIRED_SERVICES = ("aggregation", "model_distribution", "transport")


#: Coordinates of a weighted update are cut to ± this before they are encoded; a step beyond it is no use to a model.
UPDATE_BOUND = 16.0
#: Largest absolute value of a parameter of a model that is received, far above any that is of use.
PARAMETER_BOUND = 2.0**20
#: Patients of one hospital in one cell of the evaluation, noise included, at most.
COUNTS_BOUND = float(2**20)
#: Shamir shares over GF(256) have 255 distinct places.
MOST_HOSPITALS = 255
#: Patients that a study or a hospital may speak of.
MOST_PATIENTS = 1_000_000_000
#: Delta is the chance that the promise fails a patient altogether; over all patients it stays below this.
DELTA_OVER_ALL = 0.01
#: Below this delta the rounding errors of a convolution count; nothing is priced there.
LEAST_DELTA = 1e-12
#: Chance of a patient to enter a step, at least, where one is to be sampled at all.
LEAST_RATE = 1e-9
#: Rounds of training in a study (a final evaluation is one more), and setups of its secure sum.
MOST_ROUNDS = 10_000
MOST_EPOCHS = 1_000_000
#: Noised steps of a study, over all its rounds, that a plan is made for: to price more takes a hospital minutes. No
#: rule of the format: studies that an earlier version approved go on.
MOST_STEPS = 100_000
#: Kinds of services that a study may name.
MOST_SERVICES = 50
#: The secure sum counts modulo 2**32, with sign.
HALF_RING = 2**31
#: Bounds and scales of a vector lie within this power of two and its inverse.
WIDEST_SCALE = 2.0**62
#: Above this many hospitals masks form a ring of neighbours, which is safe only with the consistency wave.
ALWAYS_CONSISTENT_ABOVE = 64


#: Options of a model or a strategy: values, nesting, and characters of one text, at most.
MOST_OPTIONS, DEEPEST_OPTION, LONGEST_OPTION = 1000, 4, 1000
LARGEST_NUMBER = 1e15


def _few_and_plain(options: dict[str, JsonValue]) -> dict[str, JsonValue]:
    level: list[JsonValue] = [options]
    seen = 0
    for _ in range(DEEPEST_OPTION):
        seen += len(level)
        if seen > MOST_OPTIONS:
            raise ValueError(f"more than {MOST_OPTIONS} values; people can't review that many")
        inner: list[JsonValue] = []
        for value in level:
            if isinstance(value, str) and len(value) > LONGEST_OPTION:
                raise ValueError(f"a text of more than {LONGEST_OPTION} characters; shorten it")
            if isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
                raise ValueError(f"a number beyond {LARGEST_NUMBER:g}; use another unit")
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
        level = inner
        if not level:
            return options
    raise ValueError(f"nested more than {DEEPEST_OPTION - 1} deep; nest it less deeply")


#: What a study says to its model or strategy, and the trainer passes on.
Options = Annotated[dict[str, JsonValue], AfterValidator(_few_and_plain)]


class ServiceEntry(Agreed):
    """One thing done with federated traffic, and the organisation that does it (it needs a BAA for it)."""

    kind: Name
    organisation: Annotated[str, Field(min_length=1, max_length=120)]


class Cohort(Agreed):
    """Which hospitals train on which dataset, and how many of them may collude.

    A hospital weighs as many patients as it declares, but at most `max_patients`. `patients` is what all hospitals
    declare together, a public figure that distributed mode divides by. `consistency` adds a wave in which survivors
    agree on one survivor list (`StudyTerms.consistency_wave` says when it is on if left out).
    """

    dataset: Name
    hospitals: Annotated[tuple[Email, ...], Field(max_length=MOST_HOSPITALS)]
    min_patients: Annotated[int, Field(ge=1, le=MOST_PATIENTS)]
    colluders: Annotated[int, Field(ge=0, le=MOST_HOSPITALS)] = 1
    threshold: Annotated[int, Field(ge=3, le=MOST_HOSPITALS)] | None = None
    max_patients: Annotated[int, Field(ge=1, le=MOST_PATIENTS)] = 10_000
    consistency: bool | None = None
    patients: Annotated[int, Field(ge=1, le=MOST_PATIENTS)] | None = None

    @field_validator("hospitals")
    @classmethod
    def _distinct(cls, hospitals: tuple[str, ...]) -> tuple[str, ...]:
        if twice := written_twice(hospitals):
            raise ValueError(f"cohort.hospitals names a hospital twice: {twice[0]} and {twice[1]} are one mailbox")
        if len(hospitals) < 3:
            raise ValueError("cohort.hospitals needs at least 3: a sum of two shows each the other's update")
        return tuple(sorted(hospitals))

    @model_validator(mode="after")
    def _enough_can_survive(self) -> Self:
        if self.threshold is not None and self.threshold > len(self.hospitals):
            raise ValueError(
                f"cohort.threshold: {self.threshold} of {len(self.hospitals)} hospitals can't survive; lower it"
            )
        return self

    @property
    def survivors_needed(self) -> int:
        """Return the threshold t of the secure sum: as stated, else floor(2n/3)+1, never below 3."""
        return self.threshold or max(3, 2 * len(self.hospitals) // 3 + 1)


class PrivacyTerms(Agreed):
    """What the study asks for.

    Local mode: each hospital calibrates its own noise from it and may only be stricter. Distributed mode: these are the
    terms, and no hospital trains on others. noise_multiplier: sd of the noise that `honest` hospitals add together, in
    units of the sensitivity; divisor: what the opened sum of a step is divided by, sampling_rate x cohort.patients if
    left out. Both belong to distributed mode.
    """

    epsilon: Annotated[float, Field(ge=1e-6, le=100)]
    delta: Annotated[float, Field(ge=LEAST_DELTA, lt=0.1)]
    clip: Annotated[float, Field(ge=1e-3, le=1e6)]
    sampling_rate: Annotated[float, Field(ge=LEAST_RATE, le=1)]
    mode: Literal["local", "distributed"] = "local"
    noise_multiplier: NoiseMultiplier | None = None
    divisor: Annotated[float, Field(ge=1e-6, le=MOST_PATIENTS)] | None = None

    @model_validator(mode="after")
    def _shared_terms_are_of_distributed_mode(self) -> Self:
        for name in ("noise_multiplier", "divisor"):
            if self.mode == "local" and getattr(self, name) is not None:
                raise ValueError(
                    f"{name}: belongs to distributed mode; in local mode each hospital sets it; leave it out"
                )
        return self


class LocalTraining(Agreed):
    """How a hospital's local steps use the noised gradient (all of it post-processing).

    slots: rows that a microbatch holds, empty ones included: a public number, so that neither memory nor time tells how
    many rows there are. More of them are faster and take more memory; the gradients are the same.
    """

    steps: Annotated[int, Field(ge=1, le=10_000)]
    learning_rate: Annotated[float, Field(ge=1e-12, le=10_000)]
    optimiser: Literal["sgd", "adam"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    proximal: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    slots: Annotated[int, Field(ge=1, le=4096)] = 64


class Evaluation(Agreed):
    """DP evaluation: noised counts per (score bin, label) on the patients that each hospital always holds out.

    Which patients those are is fixed by the hospital for its dataset, over all studies. noise_multiplier: distributed
    mode only, and needed there: sd of the noise that `honest` hospitals add together to each count of the final
    evaluation, in units of the sensitivity; that of interim ones follows from it and `interim_share`.
    """

    bins: Annotated[int, Field(ge=2, le=100)] = 8
    every: Annotated[int, Field(ge=0, le=MOST_ROUNDS)] = 0
    interim_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    noise_multiplier: NoiseMultiplier | None = None

    @field_validator("bins")
    @classmethod
    def _halves(cls, bins: int) -> int:
        if bins % 2:
            raise ValueError(
                f"{bins} is odd, and accuracy, sensitivity and specificity are reported at one half, which must be an "
                f"edge between bins; use {bins - 1} or {bins + 1}"
            )
        return bins

    @model_validator(mode="after")
    def _share_has_a_use(self) -> Self:
        if (self.every > 0) != (self.interim_share > 0):
            raise ValueError("evaluation.every and evaluation.interim_share are set together or not at all")
        return self

    def interim(self, rounds: int) -> int:
        """Return how many interim evaluations that many rounds hold: after every, 2 * every, ... before the last."""
        return (rounds - 1) // self.every if self.every else 0


class Strategy(Agreed):
    """How the researcher makes the next model from the secure sum."""

    name: Name = "fedavg"
    options: Options = {}


class StudyTerms(Agreed):
    """All terms of one study. Its digest, with those of `features.toml` and `model.py`, is the study hash."""

    format: Literal[1] = 1
    name: Name
    title: Annotated[str, Field(min_length=1, max_length=200)]
    purpose: Name
    description: Annotated[str, Field(min_length=1, max_length=4000)]
    irb: Annotated[str, Field(min_length=1, max_length=80)]
    researcher: Email
    organisation: Annotated[str, Field(min_length=1, max_length=120)]
    ends: datetime.date
    services: Annotated[tuple[ServiceEntry, ...], Field(max_length=MOST_SERVICES)]
    cohort: Cohort
    label: Name
    privacy: PrivacyTerms
    training: LocalTraining
    evaluation: Evaluation = Evaluation()
    rounds: Annotated[int, Field(ge=1, le=MOST_ROUNDS)]
    strategy: Strategy = Strategy()
    model: Options = {}

    @model_validator(mode="after")
    def _services_are_named(self) -> Self:
        kinds = [service.kind for service in self.services]
        missing = [kind for kind in REQUIRED_SERVICES if kind not in kinds]
        if missing:
            raise ValueError(f"services: name the organisation that runs {', '.join(missing)}")
        if len(set(kinds)) != len(kinds):
            raise ValueError("services: one entry per kind")
        return self

    @model_validator(mode="after")
    def _noise_can_be_shared(self) -> Self:
        if not self.is_distributed:
            if self.evaluation.noise_multiplier is not None:
                raise ValueError("evaluation.noise_multiplier: belongs to privacy.mode distributed; leave it out")
            return self
        cohort, training = self.cohort, self.training
        if training.steps != 1:
            raise ValueError("privacy.mode distributed needs training.steps = 1: only one clipped step sums to DP")
        server_side = ("optimiser", "momentum", "schedule", "proximal")
        if any(getattr(training, name) != LocalTraining.model_fields[name].default for name in server_side):
            raise ValueError(
                "privacy.mode distributed: hospitals send one clipped sum and take no step by themselves; leave "
                "training.optimiser, momentum, schedule and proximal out, and say in [strategy] what the server does"
            )
        if cohort.patients is None:
            raise ValueError("privacy.mode distributed needs cohort.patients, what all hospitals declare together")
        if cohort.colluders < 1:
            raise ValueError(
                "privacy.mode distributed needs cohort.colluders of 1 or more: every hospital knows its own noise and "
                "sees the next model, so it could take its noise off the sum"
            )
        if self.honest < 2:
            raise ValueError(
                f"cohort.threshold: {cohort.survivors_needed} of {len(cohort.hospitals)} with {cohort.colluders} "
                "colluder(s) is not sure to leave two honest hospitals in a sum; raise the threshold, switch "
                "cohort.consistency on, or declare fewer colluders"
            )
        return self

    @property
    def is_distributed(self) -> bool:
        """Return whether hospitals share the noise of a sum."""
        return self.privacy.mode == "distributed"

    @property
    def consistency_wave(self) -> bool:
        """Return whether survivors agree on one survivor list first: as the cohort says; else in distributed mode.

        Above 64 hospitals it is always on.
        """
        stated, many = self.cohort.consistency, len(self.cohort.hospitals) > ALWAYS_CONSISTENT_ABOVE
        return many or (self.is_distributed if stated is None else stated)

    @property
    def honest(self) -> int:
        """m: honest hospitals that every opened sum is sure to hold, 0 where nothing is sure (see `survivors`)."""
        cohort = self.cohort
        return honest_contributors(
            len(cohort.hospitals), cohort.survivors_needed, cohort.colluders, one_list=self.consistency_wave
        )

    @property
    def divisor(self) -> float:
        """What the opened sum of a step is divided by in distributed mode: a public figure, as stated or expected."""
        return self.privacy.divisor or self.privacy.sampling_rate * (self.cohort.patients or 0)

    @property
    def shared(self) -> SharedNoise | None:
        """The terms of shared noise; None in local mode. Raises `InputError` where the study leaves a noise out."""
        if not self.is_distributed:
            return None
        cohort, privacy = self.cohort, self.privacy
        noise, counts_noise = privacy.noise_multiplier, self.evaluation.noise_multiplier
        if noise is None or counts_noise is None:
            missing = "privacy.noise_multiplier" if noise is None else "evaluation.noise_multiplier"
            raise InputError(
                f"study.toml: {missing}: is missing, and in distributed mode all hospitals add the same noise; "
                "`datasites study plan FOLDER` names the figure that fits"
            )
        return SharedNoise(
            hospitals=len(cohort.hospitals),
            colluders=cohort.colluders,
            consistency=self.consistency_wave,
            honest=self.honest,
            clip=privacy.clip,
            noise_multiplier=noise,
            sampling_rate=privacy.sampling_rate,
            divisor=self.divisor,
            delta=privacy.delta,
            evaluation_noise_multiplier=counts_noise,
        )


class SharedNoise(Agreed):
    """What hospitals must have in common for noise that they add together to be worth its price (distributed mode).

    With the threshold, and bound and scale of each vector, this is all that the price rests on. hospitals: enrolled in
    the study. consistency: whether survivors agree on one list. honest: of whom every opened sum is sure to hold noise.
    noise_multiplier: of `honest` hospitals together, in units of the sensitivity; evaluation_noise_multiplier: that of
    the final evaluation. divisor: of the opened sum of a step. delta: at which the study is priced.
    """

    hospitals: Annotated[int, Field(ge=3, le=MOST_HOSPITALS)]
    colluders: Annotated[int, Field(ge=1, le=MOST_HOSPITALS)]
    consistency: bool
    honest: Annotated[int, Field(ge=2, le=MOST_HOSPITALS)]
    clip: Annotated[float, Field(gt=0)]
    noise_multiplier: NoiseMultiplier
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    divisor: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    evaluation_noise_multiplier: NoiseMultiplier


class VectorTerm(Agreed):
    """One named vector inside the secure sum: coordinates are cut to ±bound and encoded as round(x * scale)."""

    name: Name
    length: Annotated[int, Field(ge=1, le=2_000_000_000)]
    bound: Annotated[float, Field(ge=1 / WIDEST_SCALE, le=WIDEST_SCALE)]
    scale: Annotated[float, Field(ge=1 / WIDEST_SCALE, le=WIDEST_SCALE)]

    @model_validator(mode="after")
    def _fits_the_ring(self) -> Self:
        if self.bound * self.scale >= HALF_RING:
            raise ValueError(
                f"vector {self.name}: bound {self.bound:g} x scale {self.scale:g} is not below 2^31; lower the scale"
            )
        return self


class RoundManifest(Agreed):
    """What one round is. Signed by the aggregator; its digest enters every mask derivation of the round.

    shared: in distributed mode, and only there. Format 2 knows it.
    """

    format: Literal[2] = 2
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
    shared: SharedNoise | None = None

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
