"""The privacy budget over time, per study, and what a further study would leave, for people to read.

Same events and same accountant as the ledger's gate, so that a plot and a refusal can't disagree; nothing is decided
here. Histories are thinned to a few dozen points: composing a thousand of them would take seconds.
"""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from datasites.hospital.budget import ledger
from datasites.hospital.budget.accounting import PricesApart, calibrated
from datasites.hospital.budget.population import caps_of
from datasites.hospital.config import DatasetSettings
from datasites.hospital.database import this_home
from datasites.hospital.models import Case, LedgerEntry
from datasites.privacy.events import Charge, Event, charge_of, counts

POINTS = 60


@dataclass(frozen=True)
class Point:
    """Epsilon of one partition just after a moment: what was charged, and what was charged or still reserved."""

    at: datetime.datetime
    spent: float
    committed: float


@dataclass(frozen=True)
class StudyLine:
    """Which part of one partition's cap a study reserved and charged, in percent; over all studies they add up."""

    study_hash: str
    name: str
    case_id: int | None
    partition: str
    reserved: float
    charged: float
    rounds: int
    closed: bool


@dataclass(frozen=True)
class BudgetHistory:
    """The ledger of a dataset's population, read once."""

    dataset: DatasetSettings
    entries: tuple[LedgerEntry, ...]

    @classmethod
    def read(cls, dataset: DatasetSettings) -> BudgetHistory:
        """Return all lines of that ledger, in the order in which they were written."""
        return cls(dataset, tuple(LedgerEntry.objects.filter(population=dataset.population)))

    def history(self, partition: str) -> tuple[Point, ...]:
        """Return spent and committed epsilon over time, at most `POINTS` points; the last one is the present."""
        entries = [entry for entry in self.entries if entry.partition == partition]
        step = max(1, -(-len(entries) // POINTS))
        reserved: dict[str, Counter[Charge]] = {}
        charged: dict[str, Counter[Charge]] = {}
        closed: set[str] = set()
        points = []
        for number, entry in enumerate(entries, start=1):
            if entry.kind == "release":
                closed.add(entry.study_hash)
            else:
                book = reserved if entry.kind == "reserve" else charged
                book.setdefault(entry.study_hash, Counter()).update(_counts(entry))
            if number % step == 0 or number == len(entries):
                spent = sum(charged.values(), Counter())
                open_ones = (count for study, count in reserved.items() if study not in closed)
                ended = (charged.get(study, Counter()) for study in closed)
                committed = sum([*open_ones, *ended], Counter())
                points.append(Point(entry.at, self._epsilon(spent), self._epsilon(committed)))
        return tuple(points)

    def studies(self) -> tuple[StudyLine, ...]:
        """Return one line per study and partition, newest study first."""
        names = {row.study_hash: row for row in Case.objects.only("study_hash", "study_name", "pk").order_by("pk")}
        keys = dict.fromkeys((e.study_hash, e.partition) for e in reversed(self.entries))
        lines = []
        for study, partition in keys:
            mine = [e for e in self.entries if (e.study_hash, e.partition) == (study, partition)]
            reserve = sum((_counts(e) for e in mine if e.kind == "reserve"), Counter[Charge]())
            charge = sum((_counts(e) for e in mine if e.kind == "charge"), Counter[Charge]())
            row = names.get(study)
            lines.append(
                StudyLine(
                    study_hash=study,
                    name=row.study_name if row else study[:12],
                    case_id=row.pk if row else None,
                    partition=partition,
                    reserved=100 * self._measure.share([_event(reserve)]),
                    charged=100 * self._measure.share([_event(charge)]),
                    rounds=sum(e.kind == "charge" for e in mine),
                    closed=any(e.kind == "release" for e in mine),
                )
            )
        return tuple(lines)

    def what_if(self, epsilon: float, rounds: int, steps: int, rate: float) -> WhatIf:
        """Say whether a study that asks for this much would fit today, by the plan that this hospital would calibrate.

        epsilon is cut to the dataset's limit per study and rate to its limit, as for a real study. Raises `PlanError`
        (a `ValueError`) for terms that no noise can meet.
        """
        dataset, caps = self.dataset, caps_of(self.dataset)
        plan = calibrated(
            this_home(),
            min(epsilon, dataset.study_epsilon),
            caps.delta,
            sampling_rate=min(rate, dataset.max_sampling_rate),
            rounds=rounds,
            steps=steps,
        )
        # Nobody has asked for such a study, so its price is not kept.
        asked = {"training": ledger.PrivacyCost(plan.event(), plan.local_event())}
        after = ledger.Reading.of(dataset, PricesApart(this_home())).after(asked)["training"]
        return WhatIf(noise_multiplier=plan.noise_multiplier, after=after, cap=caps.epsilon, fits=after <= caps.epsilon)

    def _epsilon(self, mechanisms: Counter[Charge]) -> float:
        return self._measure.epsilon([_event(mechanisms)])

    @cached_property
    def _measure(self) -> ledger.Measure:
        return ledger.Measure.of(self.dataset)


@dataclass(frozen=True)
class WhatIf:
    """Training patients' epsilon over all studies with one more, as their cap counts it, and that study's noise."""

    noise_multiplier: float
    after: float
    cap: float
    fits: bool


def _event(mechanisms: Counter[Charge]) -> Event:
    return tuple(mechanism.times(count) for mechanism, count in mechanisms.items())


def _counts(entry: LedgerEntry) -> Counter[Charge]:
    return counts([tuple(map(charge_of, entry.charges))])
