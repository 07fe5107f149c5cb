"""The privacy ledger: what each population of patients may lose, has reserved, and has lost.

A population has two partitions of patients, `training` and `held_out`, who share nobody; each composes its own events
over all studies on all datasets of the population, and a patient's loss is that of the one partition the patient is in
(parallel composition over a split that depends on the patient's identity alone).

Gate: before a reservation or a charge is written, the composition of everything committed plus the new event must stay
within the population's (epsilon, delta) by the Renyi filter at one order (theorem in `privacy.accountant`). A charge
is part of what its study reserved: its events are among those reserved. Check and write happen in one transaction that
no other on the population runs beside, so threads, processes and crashes can't both pass one gate (I5). Nothing is ever
refunded: the release of a study's unused reservation leaves its charges. No decision reads a clock.

The cap is the guarantee. What is "spent" or "committed" at some moment is a reading of the same arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dp_accounting import ComposedDpEvent, DpEvent

from datasites.hospital.config import DatasetSettings
from datasites.hospital.models import LedgerEntry
from datasites.hospital.population import Caps, alone, caps_of, order_of, require_agreed
from datasites.privacy.accountant import (
    Charge,
    compose,
    epsilon_at_order,
    epsilon_pld,
    epsilon_rdp,
    is_part_of,
    read_charge,
    share_of_cap,
)
from datasites.study.errors import DatasitesError

PARTITIONS = ("training", "held_out")
#: Room for floating-point noise when the same events are composed in another order.
TOLERANCE = 1e-9


class BudgetExceeded(DatasitesError):
    """An event does not fit the population's budget or the study's reservation; nothing was written."""


@dataclass(frozen=True)
class Asked:
    """What a study or a round costs one partition: the gated price, and the price against one who sees the vectors."""

    event: DpEvent
    local_event: DpEvent


@dataclass(frozen=True)
class PartitionState:
    """Readings of one partition's filter, at its order and the population's delta. `committed`: spent and reserved."""

    partition: str
    cap: float
    delta: float
    order: int
    spent: float
    spent_local: float
    committed: float
    used: float

    @property
    def free(self) -> float:
        """What the cap leaves above everything committed."""
        return max(0.0, self.cap - self.committed)

    @property
    def percent_used(self) -> float:
        """`used`, the part of the cap that is spent or reserved, in percent."""
        return 100 * self.used


def _stored(event: DpEvent) -> list[dict[str, object]]:
    merged = compose([event])
    parts = merged.events if isinstance(merged, ComposedDpEvent) else [merged]
    return [Charge.of(part).model_dump(mode="json") for part in parts]


def _events(stored: Iterable[Mapping[str, object]]) -> list[DpEvent]:
    return [read_charge(json.dumps(charge)).event() for charge in stored]


def _committed(population: str, partition: str, without_study: str = "") -> list[DpEvent]:
    """Charges of closed studies and whole reservations of open ones."""
    events: dict[str, dict[str, list[DpEvent]]] = {}
    closed = set()
    for entry in LedgerEntry.objects.filter(population=population, partition=partition):
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


def _charged(population: str, partition: str, study: str | None = None, local: bool = False) -> list[DpEvent]:
    entries = LedgerEntry.objects.filter(population=population, partition=partition, kind="charge")
    if study is not None:
        entries = entries.filter(study_hash=study)
    return [event for entry in entries for event in _events(entry.local_charges if local else entry.charges)]


@dataclass(frozen=True)
class Measure:
    """How a population's events are measured: its caps and the Renyi order of its budget, read once."""

    caps: Caps
    order: int

    @classmethod
    def of(cls, dataset: DatasetSettings) -> Measure:
        """The measure of a dataset's population now."""
        return cls(caps_of(dataset), order_of(dataset))

    def epsilon(self, events: Sequence[DpEvent]) -> float:
        """What these events read, at the population's delta."""
        return epsilon_at_order(events, self.order, self.caps.delta)

    def share(self, events: Sequence[DpEvent]) -> float:
        """Which part of the population's cap they take."""
        return share_of_cap(events, self.caps.epsilon, self.caps.delta, self.order)


def _gate(dataset: DatasetSettings, partition: str, events: Sequence[DpEvent], what: str) -> None:
    measure = Measure.of(dataset)
    after, caps = measure.epsilon(events), measure.caps
    if not after <= caps.epsilon + TOLERANCE:
        raise BudgetExceeded(
            f"budget: population {caps.population}, {partition} patients: {what} would bring epsilon to {after:.3f} at "
            f"delta {caps.delta:g} (Renyi order {measure.order}), above the cap of {caps.epsilon:g}; ask for fewer "
            "rounds or more noise: what these patients may lose does not grow with time or with another name"
        )


def epsilon_after(dataset: DatasetSettings, asked: Mapping[str, Asked], study: str = "") -> dict[str, float]:
    """Epsilon of each partition if `study` reserved `asked` on top of everything committed; writes nothing."""
    measure = Measure.of(dataset)
    return {
        partition: measure.epsilon([*_committed(dataset.population, partition, study), price.event])
        for partition, price in asked.items()
    }


def committed_elsewhere(dataset: DatasetSettings, study: str) -> dict[str, float]:
    """Epsilon that all studies but this one have reserved or charged, per partition."""
    measure = Measure.of(dataset)
    return {partition: measure.epsilon(_committed(dataset.population, partition, study)) for partition in PARTITIONS}


def study_charges(dataset: DatasetSettings, study: str) -> dict[str, list[DpEvent]]:
    """Events that this study has charged, per partition."""
    return {partition: _charged(dataset.population, partition, study) for partition in PARTITIONS}


def reserve(dataset: DatasetSettings, study: str, asked: Mapping[str, Asked]) -> None:
    """Reserve a study's whole privacy loss per partition, or raise `BudgetExceeded` and write nothing.

    A study reserves once; reserving again is an error, since it would hide a change of terms.
    """
    with alone(dataset.population):
        require_agreed(dataset)
        if LedgerEntry.objects.filter(population=dataset.population, study_hash=study).exists():
            raise BudgetExceeded(f"budget: study {study[:12]} has reserved before; submit changed terms as a new study")
        for partition, price in asked.items():
            _gate(dataset, partition, [*_committed(dataset.population, partition), price.event], f"study {study[:12]}")
            LedgerEntry.objects.create(
                population=dataset.population,
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
    with alone(dataset.population):
        require_agreed(dataset)
        for partition, price in asked.items():
            key = {"population": dataset.population, "partition": partition, "study_hash": study}
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
            charged = [*_charged(dataset.population, partition, study), price.event]
            if not is_part_of(charged, reserved):
                raise BudgetExceeded(
                    f"budget: round {number} of study {study[:12]} goes beyond what was reserved at approval for "
                    f"{partition} patients; a study can't run more rounds or steps than were approved"
                )
            _gate(dataset, partition, [*_committed(dataset.population, partition, study), *charged], f"round {number}")
            LedgerEntry.objects.create(
                **key,
                kind="charge",
                round=number,
                charges=_stored(price.event),
                local_charges=_stored(price.local_event),
            )


def round_entry(dataset: DatasetSettings, study: str, number: int) -> dict[str, object]:
    """What the ledger holds of one charged round, as plain data: {"round", "charges": {partition: charges}}."""
    entries = LedgerEntry.objects.filter(population=dataset.population, study_hash=study, kind="charge", round=number)
    return {"round": number, "charges": {entry.partition: entry.charges for entry in entries}}


def charged_rounds(dataset: DatasetSettings, study: str) -> set[int]:
    """Rounds that a study has charged."""
    entries = LedgerEntry.objects.filter(population=dataset.population, study_hash=study, kind="charge")
    return set(entries.values_list("round", flat=True))


def is_charged(dataset: DatasetSettings, study: str, number: int, asked: Mapping[str, Asked]) -> bool:
    """Whether round `number` has been charged with exactly `asked`."""
    entries = LedgerEntry.objects.filter(population=dataset.population, study_hash=study, kind="charge", round=number)
    return {entry.partition: entry.charges for entry in entries} == {
        partition: _stored(price.event) for partition, price in asked.items()
    }


def close(dataset: DatasetSettings, study: str) -> None:
    """Release what a study reserved and did not charge; its charges stay for ever. Idempotent."""
    with alone(dataset.population):
        for partition in PARTITIONS:
            key = {"population": dataset.population, "partition": partition, "study_hash": study}
            if LedgerEntry.objects.filter(**key, kind="reserve").exists():
                LedgerEntry.objects.get_or_create(**key, kind="release", round=0)


def state(dataset: DatasetSettings) -> tuple[PartitionState, ...]:
    """Spent and committed per partition, as they read now."""
    measure, states = Measure.of(dataset), []
    for partition in PARTITIONS:
        committed = _committed(dataset.population, partition)
        states.append(
            PartitionState(
                partition=partition,
                cap=measure.caps.epsilon,
                delta=measure.caps.delta,
                order=measure.order,
                spent=measure.epsilon(_charged(dataset.population, partition)),
                spent_local=measure.epsilon(_charged(dataset.population, partition, local=True)),
                committed=measure.epsilon(committed),
                used=measure.share(committed),
            )
        )
    return tuple(states)


def study_charged(dataset: DatasetSettings, study: str, delta: float) -> dict[str, dict[str, float]]:
    """What one study has charged, at the study's delta: {partition: {"pld": epsilon, "local": epsilon}}.

    "pld" is the figure that the study's own cap bounds; "local" is against one who sees this hospital's own vectors.
    They differ in distributed mode only, where the latter rests on the hospital's own noise and is priced by the best
    Renyi order: that noise is discrete and coarse, which PLD of continuous noise doesn't bound.
    """
    figures = {}
    for partition in PARTITIONS:
        events = _charged(dataset.population, partition, study)
        local = _charged(dataset.population, partition, study, local=True)
        pld = epsilon_pld(events, delta)
        alone = pld if compose(local) == compose(events) else epsilon_rdp(local, delta)
        figures[partition] = {"pld": pld, "local": alone}
    return figures
