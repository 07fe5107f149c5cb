"""A case as one value: the database row, the frozen study, and what the hospital made of its privacy terms.

`open_case` re-reads the frozen copy and computes the approval hash again from what would run right now; whoever
acts on a case compares it with the hash that was approved (I1).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from datasites.enclave.verifier import RULESET
from datasites.hospital.audit.commitments import Commitments
from datasites.hospital.budget.accounting import plans_of
from datasites.hospital.budget.ledger import PARTITIONS, Measure, PrivacyCost
from datasites.hospital.budget.population import accepted_delta, caps_of, charges_both_sides
from datasites.hospital.budget.price_cache import kept_prices
from datasites.hospital.cases.freeze import ApprovalTerms, dependencies, open_frozen
from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.data.mapping import read_mapping
from datasites.hospital.data.records import Prepared
from datasites.hospital.database import this_home
from datasites.hospital.models import Case
from datasites.hospital.ticks import USUAL_START, invented_rows, loading_ticks
from datasites.privacy.events import Event, compose
from datasites.privacy.plan import EvaluationPlan, PlanError, PrivacyPlan
from datasites.privacy.study_plan import HospitalLimits, StudyPlan, delta_in_words, priced_delta
from datasites.study.errors import InputError
from datasites.study.manifest import COUNTS_BOUND, EvaluationKind, RoundManifest, StudyTerms
from datasites.study.package import StudyPackage
from datasites.study.rounds import (
    RingTerms,
    counts_ring,
    evaluation_kinds,
    gradient_ring,
    interim_evaluations,
    work_of,
)
from policies.facts import counted_delta

#: Rounds that are priced when a study is examined, each a fraction of a second. The price of a later one is worked out
#: when it is begun, which it may overrun by, in whole ticks (`ticks`).
MOST_AHEAD = 128
#: In place of the records that an examination could not prepare; nobody can approve it.
NOT_READY = Prepared(content_hash="0" * 64, patient_unit="row", rows=0, patients=0)


@dataclass(frozen=True)
class OpenCase:
    """All that is known of one case now. `approval_hash` is what the present state of things would be approved as."""

    row: Case
    package: StudyPackage
    dataset: DatasetSettings
    approval_terms: ApprovalTerms
    plan: PrivacyPlan
    evaluation: EvaluationPlan

    @property
    def study(self) -> StudyTerms:
        """The study's terms, from the frozen copy."""
        return self.package.study

    @property
    def approval_hash(self) -> str:
        """Digest of `approval_terms`."""
        return self.approval_terms.digest()

    @property
    def differs(self) -> tuple[str, ...]:
        """What differs between what would run now and what was examined, each with both values."""
        was, now = self.row.approval_terms, self.approval_terms.model_dump(mode="json")
        return tuple(difference for name, value in now.items() for difference in _differs(name, was.get(name), value))

    @property
    def honest(self) -> int:
        """Honest hospitals that every sum is sure to hold, given the declared colluders."""
        return self.study.honest

    @property
    def study_plan(self) -> StudyPlan:
        """The plans with what they rest on, for people and for prices at the study's own delta."""
        return StudyPlan.of(self.study, limits_of(self.dataset), self.plan, self.evaluation, kept_prices())

    def gradient_ring(self, dimension: int) -> RingTerms | None:
        """Return the grid of this hospital's noised sums; None in local mode, whose noise needs no grid."""
        return gradient_ring(self.study, dimension)

    def counts_ring(self, kind: EvaluationKind) -> RingTerms | None:
        """Return the grid of its noised counts; None in local mode."""
        return counts_ring(self.study, kind)

    @property
    def invented_rows(self) -> tuple[int, int]:
        """Training and held-out rows that a measurement invents: as many as records are declared, never a count."""
        return invented_rows(self.dataset.declared_records, self.dataset.held_out)

    @property
    def loading_ticks(self) -> int:
        """Ticks after which a worker that is started has the rows, by figures that are public (`ticks`)."""
        start = int(self.row.rehearsal.get("start_ticks", USUAL_START))
        return loading_ticks(start, self.dataset.declared_records, len(self.package.data_model.columns))

    @property
    def evaluates_in_training(self) -> bool:
        """Say whether some round of the study both trains and evaluates."""
        return interim_evaluations(self.study) > 0

    @property
    def divisor(self) -> float:
        """Public divisor of a step's noised sum, never a count of rows: the study's in distributed mode.

        In local mode sampling rate times declared training patients.
        """
        if self.study.is_distributed:
            return self.study.divisor
        return self.plan.sampling_rate * self.dataset.declared_patients * (1 - self.dataset.held_out)

    @property
    def release_patients(self) -> int:
        """Patients whose sum is released, as declared: this hospital's, or the cohort's where hospitals share noise.

        The cohort's figure is the researcher's word. Too large a one asks for a smaller delta; too small a one would
        allow a larger delta here than this hospital's own patients, with the fewest of each other one, call for.
        """
        own, cohort = self.dataset.declared_patients, self.study.cohort
        if not self.study.is_distributed:
            return own
        return max(cohort.patients or 0, own + (len(cohort.hospitals) - 1) * cohort.min_patients)

    @property
    def study_cap(self) -> float:
        """Epsilon that the study may cost a patient here, at its own delta: its cap, or this hospital's if less."""
        return min(self.dataset.study_epsilon, self.study.privacy.epsilon)

    @property
    def delta_in_words(self) -> str:
        """Say how the study's delta stands to the number of patients."""
        accepted = accepted_delta(self.dataset.population)
        return delta_in_words(self.study.privacy.delta, self.release_patients, accepted)

    @property
    def priced_delta(self) -> float:
        """The delta at which the study's own cap is kept: the study's, less what distributed noise takes of it."""
        return priced_delta(
            self.study, replace(limits_of(self.dataset).within(self.study), delta=self.study.privacy.delta)
        )

    def asked(self) -> dict[str, PrivacyCost]:
        """Price of the whole study per partition."""
        counts = self.evaluation
        return self._charged_to(
            {
                "training": PrivacyCost(self.plan.event(), self.plan.local_event()),
                "held_out": PrivacyCost(counts.total_event(), counts.total_local_event()),
            }
        )

    def price_ahead(self) -> None:
        """Work out what reviewers will be shown, and what rounds will be gated on, so that it is kept (`price_cache`).

        Rounds in the order that the study plans, `MOST_AHEAD` at most; whatever is charged otherwise is priced then.
        """
        plan, budget = self.study_plan, Measure.of(self.dataset)
        plan.epsilon, plan.evaluation_epsilon, plan.sharing()
        for price in self.asked().values():
            for event in (price.event, price.local_event):
                budget.epsilon([event])
            if price.local_event != price.event:
                budget.prices.rdp([price.local_event], self.priced_delta)
        charged: dict[str, list[Event]] = {partition: [] for partition in PARTITIONS}
        for round in range(1, min(self.study.rounds, MOST_AHEAD) + 2):
            for partition, price in self.planned(round).items():
                charged[partition].append(price.event)
                budget.prices.pld(charged[partition], self.priced_delta)

    def round_asked(self, manifest: RoundManifest) -> dict[str, PrivacyCost]:
        """Price of one round per partition that it touches."""
        return self._round_price(manifest.train, manifest.evaluate)

    def planned(self, round: int) -> dict[str, PrivacyCost]:
        """Price of `round` as the study calls for it."""
        return self._round_price(*work_of(self.study, round))

    def _round_price(self, train: bool, evaluate: Literal["no", "interim", "final"]) -> dict[str, PrivacyCost]:
        asked = {}
        if train:
            asked["training"] = PrivacyCost(self.plan.round_event(), self.plan.local_round_event())
        if evaluate != "no":
            counts = self.evaluation
            asked["held_out"] = PrivacyCost(counts.event(evaluate), counts.local_event(evaluate))
        return self._charged_to(asked)

    def _charged_to(self, asked: dict[str, PrivacyCost]) -> dict[str, PrivacyCost]:
        """Return the same costs, or all of them on both partitions where no patient's side is certain."""
        if not self.approval_terms.both_sides:
            return asked
        together = PrivacyCost(
            compose([price.event for price in asked.values()]), compose([price.local_event for price in asked.values()])
        )
        return dict.fromkeys(PARTITIONS, together)


def limits_of(dataset: DatasetSettings, *, both_sides: bool = False) -> HospitalLimits:
    """Return what the hospital allows one study on a dataset, with delta as the rules count it."""
    return HospitalLimits(
        dataset.study_epsilon, counted_delta(caps_of(dataset).delta), dataset.max_sampling_rate, both_sides
    )


def site_plan(study: StudyTerms, dataset: DatasetSettings, *, both_sides: bool = False) -> StudyPlan:
    """Return the hospital's plan of a study within its own limits (I4); raises `PlanError`.

    both_sides: a patient may lose on both, so that training and evaluation together keep within epsilon.

    In local mode epsilon is cut to the dataset's limit per study, delta to the population's, the sampling rate to the
    allowed one; noise is calibrated here and never read from the study. In distributed mode (I17) the study's terms
    must lie within these limits as they are.
    """
    limits = limits_of(dataset, both_sides=both_sides)
    plan = StudyPlan.of(study, limits, *plans_of(this_home(), study, limits), kept_prices())
    patients = dataset.declared_patients * dataset.held_out
    for kind in evaluation_kinds(study):
        ring = counts_ring(study, kind)
        cut = COUNTS_BOUND if ring is None else ring.cut
        if cut < patients:
            fits = (
                "a study with fewer bins or hospitals would fit"
                if ring
                else "declare a smaller dataset, such as a part of it"
            )
            raise PlanError(
                f"evaluation.bins: {kind} counts of {study.evaluation.bins} bins over {len(study.cohort.hospitals)} "
                f"hospitals are cut at {cut:.0f} patients of one hospital, and this one evaluates on about "
                f"{patients:.0f}; {fits}"
            )
    return plan


def patient_column(home: Home, dataset: DatasetSettings) -> str:
    """Return the column that identifies patients, by mapping.toml as it is now; "" where each row is a patient."""
    return read_mapping(home.root / dataset.mapping).patient or ""


def data_version(home: Home, study_hash: str, digest: str) -> str:
    """Return a commitment to a study's records, given as their digest: binds them, and tells nothing of them."""
    return Commitments(home).commit(f"data version of study {study_hash}", bytes.fromhex(digest))


def records_folder(home: Home, study_hash: str) -> Path:
    """Say where this study's encoded records lie."""
    return home.prepared / study_hash


def build_approval_terms(
    home: Home, package: StudyPackage, dataset: DatasetSettings, prepared: Prepared
) -> ApprovalTerms:
    """Return what an approval of `package` on the prepared records would bind, before its model is built or timed."""
    identity = patient_column(home, dataset)
    both_sides = charges_both_sides(dataset.population, identity)
    plan = site_plan(package.study, dataset, both_sides=both_sides)
    return ApprovalTerms(
        study_hash=package.digest(),
        dataset=dataset.name,
        population=dataset.population,
        identity=identity,
        both_sides=both_sides,
        data_version=data_version(home, package.digest(), prepared.content_hash),
        plan=plan.training.model_dump(mode="json"),
        evaluation_plan=plan.evaluation.model_dump(mode="json"),
        declared_patients=dataset.declared_patients,
        declared_records=dataset.declared_records,
        verifier_ruleset=RULESET,
        dependencies=dependencies(),
        ticks=1,
        parameters=0,
    )


def _differs(name: str, was: Any, now: Any) -> Iterator[str]:
    if was == now:
        return
    if name == "data_version":
        yield (
            "the records are not those that were examined: somebody changed the datasite's private folder, or its "
            "commitment key"
        )
    elif isinstance(was, dict) and isinstance(now, dict):
        for key in sorted({*was, *now}):
            yield from _differs(key if name == "dependencies" else f"{name}.{key}", was.get(key), now.get(key))
    else:
        yield f"{name} was {was} when this was examined and is {now} now"


def open_case(home: Home, row: Case, prepared: Prepared | None = None) -> OpenCase:
    """Read everything that would run now; raises `FrozenCopyChanged` or `InputError`.

    The plans are those stored with the case, parsed from what was shown to reviewers; dependencies, declared size,
    data version, population and the column that identifies patients are taken afresh, so a change in any of them
    changes the approval hash. prepared: of records that are being examined and not yet in their place.
    """
    if row.state == Case.State.REFUSED:
        raise InputError(f"case {row.pk}: was refused on arrival, so there is nothing to open: {row.note}")
    package = open_frozen(home.frozen, row.study_hash)
    dataset = home.dataset(package.study.cohort.dataset)
    if not row.approval_terms:
        raise InputError(
            f"case {row.pk}: has not been examined{': ' + row.note if row.note else ''}; correct that and run "
            f"`datasites review recheck {row.pk}`"
        )
    stored = ApprovalTerms.model_validate(row.approval_terms)
    try:
        prepared = prepared or Prepared.model_validate_json(
            (records_folder(home, row.study_hash) / "prepared.json").read_bytes()
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"case {row.pk}: its prepared records are missing; run `datasites review recheck {row.pk}`"
        ) from error
    identity = patient_column(home, dataset)
    approval_terms = stored.model_copy(
        update={
            "population": dataset.population,
            "identity": identity,
            "both_sides": charges_both_sides(dataset.population, identity),
            "data_version": data_version(home, row.study_hash, prepared.content_hash),
            "declared_patients": dataset.declared_patients,
            "declared_records": dataset.declared_records,
            "verifier_ruleset": RULESET,
            "dependencies": dependencies(),
        }
    )
    return OpenCase(
        row=row,
        package=package,
        dataset=dataset,
        approval_terms=approval_terms,
        plan=PrivacyPlan.model_validate_json(json.dumps(stored.plan)),
        evaluation=EvaluationPlan.model_validate_json(json.dumps(stored.evaluation_plan)),
    )
