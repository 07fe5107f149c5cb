"""The privacy ledger: what each dataset's patients may lose, have reserved, and have lost.

A dataset has two partitions of patients, `training` and `held_out`, who share nobody; each composes its own events
over all studies, and a patient's loss is that of the one partition the patient is in (parallel composition over a
split that depends on the patient's pseudonym alone).

Gate: before a reservation or a charge is written, the composition of everything committed plus the new event must stay
within the dataset's (epsilon, delta) by Renyi accounting. Check and write happen in one transaction that no other on
the dataset runs beside, so threads, processes and crashes can't both pass one gate (I5). Nothing is ever refunded: the
release of a study's unused reservation leaves its charges. No decision reads a clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from django.db import connection, transaction
from dp_accounting import ComposedDpEvent, DpEvent

from datasites.hospital.config import DatasetSettings
from datasites.hospital.models import LedgerEntry
from datasites.privacy.accountant import Charge, compose, epsilon_pld, epsilon_rdp, read_charge
from datasites.study.errors import DatasitesError

PARTITIONS = ("training", "held_out")
#: Room for floating-point noise when the same events are composed in another order.
TOLERANCE = 1e-9


class BudgetExceeded(DatasitesError):
    """An event does not fit the dataset's budget or the study's reservation; nothing was written."""


@dataclass(frozen=True)
class Asked:
    """What a study or a round costs one partition: the gated price, and the price against one who sees the vectors."""

    event: DpEvent
    local_event: DpEvent


@dataclass(frozen=True)
class PartitionState:
    """Epsilons of one partition at the dataset's delta. `committed` is the composition of spent and reserved."""

    partition: str
    cap: float
    delta: float
    spent_rdp: float
    spent_local_rdp: float
    committed_rdp: float

    @property
    def free_rdp(self) -> float:
        """What the cap leaves above everything committed (epsilons don't add up exactly; a guide, not a gate)."""
        return max(0.0, self.cap - self.committed_rdp)


def _stored(event: DpEvent) -> list[dict[str, object]]:
    merged = compose([event])
    parts = merged.events if isinstance(merged, ComposedDpEvent) else [merged]
    return [Charge.of(part).model_dump(mode="json") for part in parts]


def _events(stored: Iterable[Mapping[str, object]]) -> list[DpEvent]:
    return [read_charge(json.dumps(charge)).event() for charge in stored]


def _committed(dataset: str, partition: str, without_study: str = "") -> list[DpEvent]:
    """Charges of closed studies and whole reservations of open ones."""
    events: dict[str, dict[str, list[DpEvent]]] = {}
    closed = set()
    for entry in LedgerEntry.objects.filter(dataset=dataset, partition=partition):
        if entry.kind == "release":
            closed.add(entry.study_hash)
        else:
            kinds = events.setdefault(entry.study_hash, {"reserve": [], "charge": []})
            kinds[entry.kind] += _events(entry.charges)
    committed = []
    for study, kinds in events.items():
        if study != without_study:
            committed += kinds["charge"] if study in closed else kinds["reserve"]
    return committed


def _charged(dataset: str, partition: str, study: str | None = None, local: bool = False) -> list[DpEvent]:
    entries = LedgerEntry.objects.filter(dataset=dataset, partition=partition, kind="charge")
    if study is not None:
        entries = entries.filter(study_hash=study)
    return [event for entry in entries for event in _events(entry.local_charges if local else entry.charges)]


def _gate(dataset: DatasetSettings, partition: str, events: Sequence[DpEvent], what: str) -> None:
    after = epsilon_rdp(events, dataset.delta)
    if not after <= dataset.epsilon + TOLERANCE:
        raise BudgetExceeded(
            f"budget: dataset {dataset.name}, {partition} patients: {what} would bring epsilon to {after:.3f} at "
            f"delta {dataset.delta:g}, above the cap of {dataset.epsilon:g}; ask for less or wait for a new dataset"
        )


def epsilon_after(dataset: DatasetSettings, asked: Mapping[str, Asked], study: str = "") -> dict[str, float]:
    """Epsilon of each partition if `study` reserved `asked` on top of everything committed; writes nothing."""
    return {
        partition: epsilon_rdp([*_committed(dataset.name, partition, study), price.event], dataset.delta)
        for partition, price in asked.items()
    }


def committed_elsewhere(dataset: DatasetSettings, study: str) -> dict[str, float]:
    """Epsilon that all studies but this one have reserved or charged, per partition."""
    return {
        partition: epsilon_rdp(_committed(dataset.name, partition, study), dataset.delta) for partition in PARTITIONS
    }


def study_charges(dataset: DatasetSettings, study: str) -> dict[str, list[DpEvent]]:
    """Events that this study has charged, per partition."""
    return {partition: _charged(dataset.name, partition, study) for partition in PARTITIONS}


@contextmanager
def _alone(dataset: DatasetSettings) -> Iterator[None]:
    """A transaction on a dataset's budget, one at a time: on SQLite all are immediate, on PostgreSQL this one waits."""
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"ledger of {dataset.name}"])
        yield


def reserve(dataset: DatasetSettings, study: str, asked: Mapping[str, Asked]) -> None:
    """Reserve a study's whole privacy loss per partition, or raise `BudgetExceeded` and write nothing.

    A study reserves once; reserving again is an error, since it would hide a change of terms.
    """
    with _alone(dataset):
        if LedgerEntry.objects.filter(dataset=dataset.name, study_hash=study).exists():
            raise BudgetExceeded(f"budget: study {study[:12]} has reserved before; submit changed terms as a new study")
        for partition, price in asked.items():
            _gate(dataset, partition, [*_committed(dataset.name, partition), price.event], f"study {study[:12]}")
            LedgerEntry.objects.create(
                dataset=dataset.name,
                partition=partition,
                study_hash=study,
                kind="reserve",
                charges=_stored(price.event),
                local_charges=_stored(price.local_event),
            )


def charge(dataset: DatasetSettings, study: str, number: int, asked: Mapping[str, Asked]) -> None:
    """Charge round `number` (>= 1) before it runs, or raise `BudgetExceeded` and write nothing.

    Charging the same round again with the same events is the same charge: a round releases at most once, so a crash
    between charge and release may repeat the work under it. Other events for that round are an error.
    """
    with _alone(dataset):
        for partition, price in asked.items():
            key = {"dataset": dataset.name, "partition": partition, "study_hash": study}
            done = LedgerEntry.objects.filter(**key, kind="charge", round=number).first()
            if done is not None:
                if done.charges != _stored(price.event):
                    raise BudgetExceeded(f"budget: round {number} of study {study[:12]} was charged with another event")
                continue
            if LedgerEntry.objects.filter(**key, kind="release").exists():
                raise BudgetExceeded(f"budget: study {study[:12]} is closed; it can charge nothing more")
            reserved = [
                event for entry in LedgerEntry.objects.filter(**key, kind="reserve") for event in _events(entry.charges)
            ]
            charged = [*_charged(dataset.name, partition, study), price.event]
            within = reserved and (
                epsilon_rdp(charged, dataset.delta) <= epsilon_rdp(reserved, dataset.delta) + TOLERANCE
            )
            if not within:
                raise BudgetExceeded(
                    f"budget: round {number} of study {study[:12]} goes beyond what was reserved at approval for "
                    f"{partition} patients; a study can't run more rounds or steps than were approved"
                )
            _gate(dataset, partition, [*_committed(dataset.name, partition, study), *charged], f"round {number}")
            LedgerEntry.objects.create(
                **key,
                kind="charge",
                round=number,
                charges=_stored(price.event),
                local_charges=_stored(price.local_event),
            )


def round_entry(dataset: DatasetSettings, study: str, number: int) -> dict[str, object]:
    """What the ledger holds of one charged round, as plain data: {"round", "charges": {partition: charges}}."""
    entries = LedgerEntry.objects.filter(dataset=dataset.name, study_hash=study, kind="charge", round=number)
    return {"round": number, "charges": {entry.partition: entry.charges for entry in entries}}


def charged_rounds(dataset: DatasetSettings, study: str) -> set[int]:
    """Rounds that a study has charged."""
    entries = LedgerEntry.objects.filter(dataset=dataset.name, study_hash=study, kind="charge")
    return set(entries.values_list("round", flat=True))


def is_charged(dataset: DatasetSettings, study: str, number: int, asked: Mapping[str, Asked]) -> bool:
    """Whether round `number` has been charged with exactly `asked`."""
    entries = LedgerEntry.objects.filter(dataset=dataset.name, study_hash=study, kind="charge", round=number)
    return {entry.partition: entry.charges for entry in entries} == {
        partition: _stored(price.event) for partition, price in asked.items()
    }


def close(dataset: DatasetSettings, study: str) -> None:
    """Release what a study reserved and did not charge; its charges stay for ever. Idempotent."""
    with _alone(dataset):
        for partition in PARTITIONS:
            key = {"dataset": dataset.name, "partition": partition, "study_hash": study}
            if LedgerEntry.objects.filter(**key, kind="reserve").exists():
                LedgerEntry.objects.get_or_create(**key, kind="release", round=0)


def state(dataset: DatasetSettings) -> tuple[PartitionState, ...]:
    """Spent and committed per partition."""
    return tuple(
        PartitionState(
            partition=partition,
            cap=dataset.epsilon,
            delta=dataset.delta,
            spent_rdp=epsilon_rdp(_charged(dataset.name, partition), dataset.delta),
            spent_local_rdp=epsilon_rdp(_charged(dataset.name, partition, local=True), dataset.delta),
            committed_rdp=epsilon_rdp(_committed(dataset.name, partition), dataset.delta),
        )
        for partition in PARTITIONS
    )


def spent_pld(dataset: DatasetSettings) -> dict[str, float]:
    """The tight figure for what each partition has spent, for reports; takes a fraction of a second each."""
    return {partition: epsilon_pld(_charged(dataset.name, partition), dataset.delta) for partition in PARTITIONS}


def study_spent(dataset: DatasetSettings, study: str) -> dict[str, dict[str, float]]:
    """What one study has charged: {partition: {"rdp": epsilon, "pld": epsilon, "local_rdp": epsilon}}."""
    spent = {}
    for partition in PARTITIONS:
        events = _charged(dataset.name, partition, study)
        spent[partition] = {
            "rdp": epsilon_rdp(events, dataset.delta),
            "pld": epsilon_pld(events, dataset.delta),
            "local_rdp": epsilon_rdp(_charged(dataset.name, partition, study, local=True), dataset.delta),
        }
    return spent
