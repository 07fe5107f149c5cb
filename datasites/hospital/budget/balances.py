"""The content of a ledger as values: what each study has reserved and charged of a population, in full.

The same values are read from the database (`of_database`) and from the audit log (`ledger_log`), so that the two can be
compared line by line. Where they differ the larger loss counts (`larger`), and nothing runs (`one_story`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from datasites.hospital.budget.price_cache import kept_prices
from datasites.hospital.models import LedgerEntry
from datasites.privacy.events import Event, charge_of, compose, counts, is_part_of
from datasites.study.canonical import canonical_json

PARTITIONS = ("training", "held_out")
#: Losses of two lines are compared at the order of the population's filter, where they add up; delta shifts both alike.
_DELTA = 1e-6


@dataclass(frozen=True)
class PrivacyCost:
    """What a study or a round costs one partition: the gated price, and the price against one who sees the vectors."""

    event: Event
    local_event: Event


@dataclass(frozen=True)
class StoredPrice:
    """`PrivacyCost` as it is stored: canonical JSON of lists of charges."""

    charges: str
    local: str

    @classmethod
    def of(cls, asked: PrivacyCost) -> StoredPrice:
        """Return the stored form."""
        return cls(_stored(asked.event), _stored(asked.local_event))

    @classmethod
    def read(cls, charges: object, local: object) -> StoredPrice:
        """Read a price from plain JSON values."""
        return cls(canonical_json(charges).decode(), canonical_json(local).decode())

    @property
    def event(self) -> Event:
        """What is gated on."""
        return _event(self.charges)

    @property
    def local_event(self) -> Event:
        """The same against one who sees this hospital's own vectors."""
        return _event(self.local)


#: By partition.
Prices = Mapping[str, StoredPrice]


def prices_of(asked: Mapping[str, PrivacyCost]) -> dict[str, StoredPrice]:
    """Return the stored form of what is asked of each partition."""
    return {partition: StoredPrice.of(price) for partition, price in asked.items()}


def _stored(event: Event) -> str:
    return canonical_json([charge.model_dump(mode="json") for charge in compose([event])]).decode()


@lru_cache(maxsize=8192)
def _event(stored: str) -> Event:
    return tuple(charge_of(fields) for fields in json.loads(stored))


#: Of a study whose whole reservation was charged after a restore, in words.
IN_FULL = (
    "was charged in full after a restore, since nothing here says which of its rounds were released; revoke it, and "
    "ask for a new submission"
)


@dataclass(frozen=True)
class StudyAccount:
    """One study's lines: what it reserved, what it charged by round, and whether the rest was released.

    Round 0 is what was charged after a restore for all that the study may have released: nothing more runs under it.
    """

    reserved: Prices = field(default_factory=dict)
    charged: Mapping[int, Prices] = field(default_factory=dict)
    released: bool = False

    @property
    def is_in_full(self) -> bool:
        """Say whether all that was reserved was charged after a restore (round 0)."""
        return 0 in self.charged

    def charged_events(self, partition: str, *, local: bool = False) -> list[Event]:
        """Return the events of all rounds that were charged."""
        prices = [prices[partition] for prices in self.charged.values() if partition in prices]
        return [price.local_event if local else price.event for price in prices]

    def reserved_events(self, partition: str) -> list[Event]:
        """Return the events of the reservation."""
        return [self.reserved[partition].event] if partition in self.reserved else []

    def committed(self, partition: str) -> list[Event]:
        """Return what counts against the cap: the reservation until it is released, and never less than was charged."""
        charged, reserved = self.charged_events(partition), self.reserved_events(partition)
        if self.released:
            return charged
        return reserved if is_part_of(charged, reserved) else [*reserved, *charged]


Accounts = Mapping[str, StudyAccount]


def of_database(population: str) -> dict[str, StudyAccount]:
    """Return all studies of a population as the database has them."""
    found: dict[str, StudyAccount] = {}
    for entry in LedgerEntry.objects.filter(population=population):
        known = found.get(entry.study_hash) or StudyAccount(reserved={}, charged={})
        price = {entry.partition: StoredPrice.read(entry.charges, entry.local_charges)}
        if entry.kind == "reserve":
            known = StudyAccount({**known.reserved, **price}, known.charged, known.released)
        elif entry.kind == "charge":
            rounds = {**known.charged, entry.round: {**known.charged.get(entry.round, {}), **price}}
            known = StudyAccount(known.reserved, rounds, known.released)
        else:
            known = StudyAccount(known.reserved, known.charged, released=True)
        found[entry.study_hash] = known
    return found


def larger(one: StudyAccount | None, other: StudyAccount | None, order: int) -> StudyAccount:
    """Return the larger loss of two accounts of one study, line by line, at this Renyi order.

    Losses add up at one order, so what this commits is at least what either account commits.
    """
    if one is None or other is None or one == other:
        return one or other or StudyAccount()
    rounds = sorted(one.charged.keys() | other.charged.keys())
    return StudyAccount(
        _larger(one.reserved, other.reserved, order),
        {round: _larger(one.charged.get(round, {}), other.charged.get(round, {}), order) for round in rounds},
        one.released and other.released,
    )


def merged(one: Accounts, other: Accounts, order: int) -> dict[str, StudyAccount]:
    """Return the larger loss of each study of two sets of accounts, at the order of the population's filter."""
    return {study: larger(one.get(study), other.get(study), order) for study in sorted(one.keys() | other.keys())}


def _larger(one: Prices, other: Prices, order: int) -> Prices:
    prices, kept = {}, kept_prices()
    for partition in sorted(one.keys() | other.keys()):
        candidates = [prices_[partition] for prices_ in (one, other) if partition in prices_]
        prices[partition] = max(candidates, key=lambda price: kept.at_order([price.event], order, _DELTA))
    return prices


def in_full(account: StudyAccount) -> StudyAccount:
    """Return the account with all that it reserved charged, as round 0: whatever of it was released is paid for."""
    rest = {}
    for partition, price in account.reserved.items():
        charged = [prices[partition] for prices in account.charged.values() if partition in prices]
        rest[partition] = StoredPrice(
            _minus(price.charges, [one.charges for one in charged]), _minus(price.local, [one.local for one in charged])
        )
    return replace(account, charged={**account.charged, 0: rest})


def _minus(whole: str, parts: Iterable[str]) -> str:
    left = counts([_event(whole)]) - counts(map(_event, parts))
    return _stored(tuple(mechanism.times(count) for mechanism, count in left.items()))


def differing(one: StudyAccount | None, other: StudyAccount | None) -> list[str]:
    """Return the lines in which two accounts of one study differ, by name."""
    first, second = one or StudyAccount(), other or StudyAccount()
    lines = ["its reservation"] if first.reserved != second.reserved else []
    rounds = sorted(
        round
        for round in first.charged.keys() | second.charged.keys()
        if first.charged.get(round) != second.charged.get(round)
    )
    lines += [f"round {round}" for round in rounds]
    if first.released != second.released:
        lines.append("its end")
    return lines


def committed(accounts: Iterable[StudyAccount], partition: str) -> list[Event]:
    """Return what all these studies commit."""
    return [event for account in accounts for event in account.committed(partition)]
