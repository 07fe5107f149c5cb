"""From a study's terms to plans: what it costs, what its threshold costs, and the figure that would fit instead.

In local mode noise is calibrated here, from the study's terms and a hospital's limits. In distributed mode nothing is
calibrated: noise is a term of the study, equal for all, and what is calibrated is only the figure that a refusal names.
A hospital that calibrated by itself would charge its patients for noise that the others do not add.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from datasites.privacy.calibration import ceil
from datasites.privacy.plan import EvaluationPlan, PlanError, PrivacyPlan, evaluation_edges
from datasites.privacy.pricing import Prices
from datasites.study.manifest import DELTA_OVER_ALL, LEAST_DELTA, StudyTerms
from datasites.study.rounds import LATTICE, counts_noise, counts_ring, evaluation_kinds, interim_evaluations, tail_delta
from datasites.study.survivors import honest_contributors, noise_factor

if TYPE_CHECKING:
    import pandas as pd

#: Parts of epsilon that each mechanism may cost where one patient may lose by both; the largest that fits is taken.
PARTS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


@dataclass(frozen=True)
class HospitalLimits:
    """What a hospital allows a study: epsilon and delta of a patient, and the sampling rate.

    both_sides: one patient may lose by training and by evaluation, which then keep within epsilon together.
    """

    epsilon: float
    delta: float
    sampling_rate: float
    both_sides: bool = False

    @classmethod
    def of(cls, study: StudyTerms) -> HospitalLimits:
        """Return what the study itself asks for."""
        privacy = study.privacy
        return cls(privacy.epsilon, privacy.delta, privacy.sampling_rate)

    def within(self, study: StudyTerms) -> HospitalLimits:
        """Return these limits, or what the study asks for where that is less."""
        asked = HospitalLimits.of(study)
        return HospitalLimits(
            min(self.epsilon, asked.epsilon),
            min(self.delta, asked.delta),
            min(self.sampling_rate, asked.sampling_rate),
            self.both_sides,
        )

    def for_each_side(self, study: StudyTerms) -> HospitalLimits:
        """Return these limits with the epsilon for each mechanism at which both together cost at most this one."""
        delta = priced_delta(study, self)
        for part in PARTS:
            each = replace(self, epsilon=part * self.epsilon)
            try:
                events = [_calibrated(study, each).event(), _counts(study, each).total_event()]
            except PlanError:
                break
            if Prices().pld(events, delta) <= self.epsilon:
                return each
        raise PlanError(
            f"epsilon {self.epsilon:g} at delta {self.delta:g}: no noise is enough for training and evaluation of the "
            "same patients; ask for fewer steps or more budget, or name a patient column in mapping.toml"
        )


@dataclass(frozen=True)
class ThresholdChoice:
    """What a threshold would mean. noise_if_all, noise_at_least: sd of the sum's noise, in units of what is priced.

    Both are None in local mode, where every hospital adds its noise in full whatever the threshold.
    """

    threshold: int
    dropouts: int
    honest: int
    noise_if_all: float | None
    noise_at_least: float | None
    epsilon: float
    local_epsilon: float


@dataclass(frozen=True)
class StudyPlan:
    """Both mechanisms of a study and who must be honest for them. delta: at which the epsilons here are stated.

    patients: of the release, as declared, where hospitals share the noise; in local mode each hospital has its own.
    prices: the accountant's, or what it said before.
    """

    training: PrivacyPlan
    evaluation: EvaluationPlan
    hospitals: int
    threshold: int
    colluders: int
    consistency: bool
    honest: int
    delta: float
    priced_delta: float
    patients: int | None
    prices: Prices = field(default=Prices(), repr=False, compare=False)

    @classmethod
    def of(
        cls,
        study: StudyTerms,
        limits: HospitalLimits,
        training: PrivacyPlan,
        evaluation: EvaluationPlan,
        prices: Prices | None = None,
    ) -> StudyPlan:
        """Return the plans of a study as they were made within `limits` (`plan_of` makes them)."""
        cohort, own = study.cohort, limits.within(study)
        return cls(
            training=training,
            evaluation=evaluation,
            hospitals=len(cohort.hospitals),
            threshold=cohort.survivors_needed,
            colluders=cohort.colluders,
            consistency=study.consistency_wave,
            honest=study.honest,
            delta=own.delta,
            priced_delta=priced_delta(study, own),
            patients=cohort.patients if study.is_distributed else None,
            prices=prices or Prices(),
        )

    @property
    def is_distributed(self) -> bool:
        """Return whether hospitals share the noise."""
        return self.training.mode == "distributed"

    def noise_factor(self, survivors: int | None = None) -> float:
        """Sd of the noise of a sum over `survivors` (all, if left out), in units of what is priced; 1 in local mode."""
        return noise_factor(survivors or self.hospitals, self.honest) if self.is_distributed else 1.0

    @cached_property
    def epsilon(self) -> float:
        """Return what training costs a patient at `delta`, by PLD: of the sums in distributed mode."""
        return self.prices.pld([self.training.event()], self.priced_delta)

    @cached_property
    def evaluation_epsilon(self) -> float:
        """Return what all evaluations cost a held-out patient at `delta`, by PLD."""
        return self.prices.pld([self.evaluation.total_event()], self.priced_delta)

    @property
    def local_epsilon(self) -> float:
        """Return what training costs against one who sees this hospital's own vectors, by RDP (exact on a lattice)."""
        return self.prices.rdp([self.training.local_event()], self.delta)

    @property
    def local_evaluation_epsilon(self) -> float:
        """Return what all evaluations cost against one who sees this hospital's own counts, by RDP."""
        return self.prices.rdp([self.evaluation.total_local_event()], self.delta)

    def choices(self) -> tuple[ThresholdChoice, ...]:
        """Every threshold that protects, lowest first: fewer dropouts tolerated, less noise beyond what is priced."""
        return tuple(
            self._choice(threshold, honest)
            for threshold in range(3, self.hospitals + 1)
            if (honest := honest_contributors(self.hospitals, threshold, self.colluders, one_list=self.consistency))
            >= 2
        )

    def _choice(self, threshold: int, honest: int) -> ThresholdChoice:
        shared = self.is_distributed
        plan = self.training.model_copy(update={"honest": honest}) if shared else self.training
        return ThresholdChoice(
            threshold=threshold,
            dropouts=self.hospitals - threshold,
            honest=honest,
            noise_if_all=noise_factor(self.hospitals, honest) if shared else None,
            noise_at_least=noise_factor(threshold, honest) if shared else None,
            epsilon=self.epsilon,
            local_epsilon=self.prices.rdp([plan.local_event()], self.delta) if shared else self.epsilon,
        )

    def table(self) -> pd.DataFrame:
        """Return `choices` as a table; `chosen` marks the study's threshold."""
        import pandas as pd  # for whoever asks for a table

        return pd.DataFrame(
            {
                "threshold": choice.threshold,
                "chosen": choice.threshold == self.threshold,
                "dropouts tolerated": choice.dropouts,
                "honest in each sum": choice.honest,
                "noise factor, all survive": choice.noise_if_all,
                "noise factor, threshold survive": choice.noise_at_least,
                "epsilon (PLD)": choice.epsilon,
                "local epsilon (RDP)": choice.local_epsilon,
                "delta": self.delta,
            }
            for choice in self.choices()
        )

    def sharing(self) -> tuple[str, ...]:
        """Say what distributed mode rests on and what it adds, in sentences; nothing in local mode."""
        if not self.is_distributed:
            return ()
        wave = "on"
        if not self.consistency:
            one_list = honest_contributors(self.hospitals, self.threshold, self.colluders, one_list=True)
            wave = (
                "off, so that hospitals may be shown different lists of survivors: the noise factor is "
                f"{self.noise_factor():.3f} instead of {noise_factor(self.hospitals, one_list):.3f}"
            )
        return (
            f"noise is shared: {self.threshold} of {self.hospitals} hospitals must survive, {self.colluders} may "
            f"collude, every sum holds {self.honest} honest ones or more; consistency wave {wave}",
            f"noise of a sum, in units of what is priced: {self.noise_factor():.3f} if all survive, "
            f"{self.noise_factor(self.threshold):.3f} if {self.threshold} do",
            f"local epsilon, against one who sees a hospital's own vectors: training {self.local_epsilon:.3f}, "
            f"evaluation {self.local_evaluation_epsilon:.3f} at delta {self.delta:g} (RDP)",
        )

    def __str__(self) -> str:
        """Describe the plan in a few lines."""
        plan, counts = self.training, self.evaluation
        return "\n".join(
            [
                f"training: {plan.steps} steps, clip {plan.clip:g}, sampling rate {plan.sampling_rate:g}, noise "
                f"multiplier {plan.noise_multiplier:g}: epsilon {self.epsilon:.3f} at delta {self.delta:g} (PLD)",
                f"evaluation: noise multiplier {counts.final_multiplier:g}"
                + (f", {counts.interim} interim at {counts.interim_multiplier:g}" if counts.interim else "")
                + f": epsilon {self.evaluation_epsilon:.3f} at delta {self.delta:g} (PLD)",
                delta_in_words(self.delta, self.patients),
                *self.sharing(),
            ]
        )


def delta_in_words(delta: float, patients: int | None, accepted: float = 0.0) -> str:
    """How a delta stands to the number of patients of a release. accepted: the largest that people took the risk of."""
    rule = f"at most {DELTA_OVER_ALL:g} unless two people at a hospital accept the risk"
    if patients is None:
        return (
            f"delta {delta:g}: for hospitals that declare up to {math.floor(DELTA_OVER_ALL / delta)} patients ({rule})"
        )
    line = f"delta {delta:g} x {patients} patients of the release = {delta * patients:.2g}, {rule}"
    if delta * patients <= DELTA_OVER_ALL:
        return line
    return f"{line}; accepted for these patients up to {accepted:g}" if accepted else f"{line}: NOT within the rule"


def plan_of(study: StudyTerms, limits: HospitalLimits | None = None) -> StudyPlan:
    """Plan a study, within a hospital's `limits` if given; raise `PlanError` with the figure that would fit.

    Local mode: calibrated at the stricter of both. Distributed mode: the study's own terms, or refused.
    """
    own = (limits or HospitalLimits.of(study)).within(study)
    if own.both_sides:
        own = own.for_each_side(study)
    if study.is_distributed:
        return StudyPlan.of(study, own, *_shared(study, own))
    return StudyPlan.of(study, own, _calibrated(study, own), _counts(study, own))


def priced_delta(study: StudyTerms, limits: HospitalLimits) -> float:
    """Return what is left of delta for the mechanisms once the chance is paid that noise passes the secure sum's bound.

    Raises `PlanError` where less is left than anything is priced at. In local mode all of it is.
    """
    if not study.is_distributed:
        return limits.delta
    tail = tail_delta(len(study.cohort.hospitals), study.rounds, limits.epsilon)
    if limits.delta - tail < LEAST_DELTA:
        raise PlanError(
            f"privacy.delta: {limits.delta} is not above {tail}, the chance that noise passes the secure sum's "
            f"bound, by {LEAST_DELTA:g} or more; ask for a larger delta, fewer rounds or a smaller epsilon"
        )
    return limits.delta - tail


def _calibrated(study: StudyTerms, limits: HospitalLimits) -> PrivacyPlan:
    return PrivacyPlan.calibrate(
        limits.epsilon,
        priced_delta(study, limits),
        clip=study.privacy.clip,
        sampling_rate=limits.sampling_rate,
        rounds=study.rounds,
        steps_per_round=study.training.steps,
        mode=study.privacy.mode,
        honest=study.honest if study.is_distributed else None,
    )


def _counts(study: StudyTerms, limits: HospitalLimits) -> EvaluationPlan:
    return EvaluationPlan.calibrate(limits.epsilon, priced_delta(study, limits), study.evaluation, study.rounds)


def _shared(study: StudyTerms, limits: HospitalLimits) -> tuple[PrivacyPlan, EvaluationPlan]:
    """Return the study's own plans in distributed mode, if they lie within `limits`.

    Else raises `PlanError`, with figures in all their digits: a rounded one may not fit, and noise that is the least
    at one delta is not at a smaller one.
    """
    least = _calibrated(study, limits).noise_multiplier
    least_counts = ceil(_counts(study, limits).final_multiplier / LATTICE)
    noise, counts = study.privacy.noise_multiplier, study.evaluation.noise_multiplier
    wrong = []
    for name, found, needed in (
        ("privacy.noise_multiplier", noise, least),
        ("evaluation.noise_multiplier", counts, least_counts),
    ):
        if found is None:
            wrong.append(f"{name} is missing: {needed} is the least that fits")
        elif found < needed:
            wrong.append(f"{name} is {found}: {needed} is the least that fits")
    asked = HospitalLimits.of(study)
    if asked.sampling_rate > limits.sampling_rate:
        wrong.append(f"privacy.sampling_rate is {asked.sampling_rate}: {limits.sampling_rate} is the most that fits")
    if asked.delta > limits.delta:
        wrong.append(f"privacy.delta is {asked.delta}: {limits.delta} is the most that fits")
    if wrong:
        raise PlanError(
            "distributed mode: all hospitals add the study's noise, and none its own. For epsilon "
            f"{limits.epsilon:g} at delta {limits.delta} and sampling rate {limits.sampling_rate}, " + "; ".join(wrong)
        )
    shared = study.shared
    assert shared is not None
    for kind in evaluation_kinds(study):
        counts_ring(study, kind)
    interim = interim_evaluations(study)
    training = PrivacyPlan(
        clip=shared.clip,
        noise_multiplier=shared.noise_multiplier,
        sampling_rate=shared.sampling_rate,
        rounds=study.rounds,
        steps_per_round=study.training.steps,
        mode="distributed",
        honest=shared.honest,
    )
    evaluation = EvaluationPlan(
        edges=evaluation_edges(study.evaluation.bins),
        final_multiplier=shared.evaluation_noise_multiplier,
        interim=interim,
        interim_multiplier=counts_noise(study, "interim") if interim else None,
        honest=shared.honest,
    )
    return training, evaluation
