"""The privacy ledger: what each dataset's patients may lose, have reserved, and have lost.

A dataset has two partitions of patients, `training` and `held_out`, who share nobody; each composes its own events
over all studies, and a patient's loss is that of the one partition the patient is in (parallel composition over a
split that depends on the patient's pseudonym alone).

Gate: before a reservation or a charge is written, the composition of everything committed plus the new event must stay
within the dataset's (epsilon, delta) by Renyi accounting. Check and write happen in one immediate transaction, so
threads, processes and crashes can't both pass one gate (I5). Nothing is ever refunded: the release of a study's unused
reservation leaves its charges. No decision reads a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from django.db import transaction

from datasites.hospital.config import DatasetSettings
from datasites.hospital.models import LedgerEntry
from datasites.privacy.accountant import StoredEvent, epsilon_pld, epsilon_rdp
from datasites.study.errors import DatasitesError

PARTITIONS = ("training", "held_out")
#: Room for floating-point noise when the same events are composed in another order.
TOLERANCE = 1e-9


class BudgetExceeded(DatasitesError):
    """An event does not fit the dataset's budget or the study's reservation; nothing was written."""


@dataclass(frozen=True)
class PartitionState:
    """Epsilons of one partition at the dataset's delta. `committed` is the composition of spent and reserved."""

    partition: str
    cap: float
    delta: float
    spent_rdp: float
    spent_pld: float
    committed_rdp: float

    @property
    def free_rdp(self) -> float:
        """What the cap leaves above everything committed (epsilons don't add up exactly; a guide, not a gate)."""
        return max(0.0, self.cap - self.committed_rdp)


def _committed(dataset: str, partition: str, without_study: str = "") -> list[StoredEvent]:
    """Charges of closed studies and whole reservations of open ones."""
    events: dict[str, dict[str, list[StoredEvent]]] = {}
    closed = set()
    for entry in LedgerEntry.objects.filter(dataset=dataset, partition=partition):
        if entry.kind == "release":
            closed.add(entry.study_hash)
        else:
            kinds = events.setdefault(entry.study_hash, {"reserve": [], "charge": []})
            kinds[entry.kind].append(StoredEvent.model_validate(entry.event))
    committed = []
    for study, kinds in events.items():
        if study != without_study:
            committed += kinds["charge"] if study in closed else kinds["reserve"]
    return committed


def _charges(dataset: str, partition: str, study: str | None = None) -> list[StoredEvent]:
    entries = LedgerEntry.objects.filter(dataset=dataset, partition=partition, kind="charge")
    if study is not None:
        entries = entries.filter(study_hash=study)
    return [StoredEvent.model_validate(entry.event) for entry in entries]


def _gate(dataset: DatasetSettings, partition: str, events: Sequence[StoredEvent], what: str) -> None:
    after = epsilon_rdp(events, dataset.delta)
    if after > dataset.epsilon + TOLERANCE:
        raise BudgetExceeded(
            f"budget: dataset {dataset.name}, {partition} patients: {what} would bring epsilon to {after:.3f} at "
            f"delta {dataset.delta:g}, above the cap of {dataset.epsilon:g}; ask for less or wait for a new dataset"
        )


def epsilon_after(dataset: DatasetSettings, asked: Mapping[str, StoredEvent]) -> dict[str, float]:
    """Epsilon of each partition if `asked` were reserved on top of everything committed; writes nothing."""
    return {
        partition: epsilon_rdp([*_committed(dataset.name, partition), event], dataset.delta)
        for partition, event in asked.items()
    }


def reserve(dataset: DatasetSettings, study: str, asked: Mapping[str, StoredEvent]) -> None:
    """Reserve a study's whole privacy loss per partition, or raise `BudgetExceeded` and write nothing.

    A study reserves once; reserving again is an error, since it would hide a change of terms.
    """
    with transaction.atomic(durable=True):
        if LedgerEntry.objects.filter(dataset=dataset.name, study_hash=study).exists():
            raise BudgetExceeded(f"budget: study {study[:12]} has reserved before; submit changed terms as a new study")
        for partition, event in asked.items():
            _gate(dataset, partition, [*_committed(dataset.name, partition), event], f"study {study[:12]}")
            LedgerEntry.objects.create(
                dataset=dataset.name,
                partition=partition,
                study_hash=study,
                kind="reserve",
                event=event.model_dump(mode="json"),
            )


def charge(dataset: DatasetSettings, study: str, number: int, events: Mapping[str, StoredEvent]) -> None:
    """Charge round `number` (>= 1) before it runs, or raise `BudgetExceeded` and write nothing.

    Charging the same round again with the same events is the same charge: a round releases at most once, so a crash
    between charge and release may repeat the work under it. Other events for that round are an error.
    """
    with transaction.atomic(durable=True):
        for partition, event in events.items():
            key = {"dataset": dataset.name, "partition": partition, "study_hash": study}
            done = LedgerEntry.objects.filter(**key, kind="charge", round=number).first()
            if done is not None:
                if StoredEvent.model_validate(done.event) != event:
                    raise BudgetExceeded(f"budget: round {number} of study {study[:12]} was charged with another event")
                continue
            if LedgerEntry.objects.filter(**key, kind="release").exists():
                raise BudgetExceeded(f"budget: study {study[:12]} is closed; it can charge nothing more")
            reserved = [
                StoredEvent.model_validate(entry.event) for entry in LedgerEntry.objects.filter(**key, kind="reserve")
            ]
            charged = [*_charges(dataset.name, partition, study), event]
            if not reserved or epsilon_rdp(charged, dataset.delta) > epsilon_rdp(reserved, dataset.delta) + TOLERANCE:
                raise BudgetExceeded(
                    f"budget: round {number} of study {study[:12]} goes beyond what was reserved at approval for "
                    f"{partition} patients; a study can't run more rounds or steps than were approved"
                )
            _gate(dataset, partition, [*_committed(dataset.name, partition, study), *charged], f"round {number}")
            LedgerEntry.objects.create(**key, kind="charge", round=number, event=event.model_dump(mode="json"))


def close(dataset: DatasetSettings, study: str) -> None:
    """Release what a study reserved and did not charge; its charges stay for ever. Idempotent."""
    with transaction.atomic(durable=True):
        for partition in PARTITIONS:
            key = {"dataset": dataset.name, "partition": partition, "study_hash": study}
            if LedgerEntry.objects.filter(**key, kind="reserve").exists():
                LedgerEntry.objects.get_or_create(**key, kind="release")


def state(dataset: DatasetSettings) -> tuple[PartitionState, ...]:
    """Spent and committed per partition."""
    return tuple(
        PartitionState(
            partition=partition,
            cap=dataset.epsilon,
            delta=dataset.delta,
            spent_rdp=epsilon_rdp(_charges(dataset.name, partition), dataset.delta),
            spent_pld=epsilon_pld(_charges(dataset.name, partition), dataset.delta),
            committed_rdp=epsilon_rdp(_committed(dataset.name, partition), dataset.delta),
        )
        for partition in PARTITIONS
    )


def study_spent(dataset: DatasetSettings, study: str) -> dict[str, dict[str, float]]:
    """What one study has charged: {partition: {"rdp": epsilon, "pld": epsilon}}."""
    spent = {}
    for partition in PARTITIONS:
        events = _charges(dataset.name, partition, study)
        spent[partition] = {"rdp": epsilon_rdp(events, dataset.delta), "pld": epsilon_pld(events, dataset.delta)}
    return spent
