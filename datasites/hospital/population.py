"""Whose budget it is: populations of patients, the history of their caps, and the key that splits them into two sides.

A dataset names its population; datasets of one population share budget and split, and renaming a dataset changes
neither. What a population's patients were promised is a fact with history: the first value of `datasite.toml` opens
it, a narrower one takes effect at once and is recorded, a wider one is refused until two people have widened the
budget (`proposals`). After a widening the larger cap is what these patients are guaranteed: what they lost under the
smaller one is part of it, and nothing can be taken back.

The side of a patient is a keyed hash of the identity (`sampling.held_out`) under one key per population, for good.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from django.db import connection, transaction

from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.models import BudgetFact, Population, Proposal
from datasites.hospital.site import Site
from datasites.privacy.accountant import filter_order
from datasites.study.errors import InputError

#: What a fact in the history says of the cap; `delta_accepted` says nothing of it.
CAPS = ("opened", "narrowed", "widened")


@dataclass(frozen=True)
class Caps:
    """What a population's patients may lose in all: epsilon at delta."""

    population: str
    epsilon: float
    delta: float

    @property
    def words(self) -> str:
        """For people."""
        return f"epsilon {self.epsilon:g} at delta {self.delta:g}"

    def is_wider_than(self, other: Caps) -> bool:
        """Whether either figure allows more."""
        return self.epsilon > other.epsilon or self.delta > other.delta


@contextmanager
def alone(population: str) -> Iterator[None]:
    """A transaction on a population's budget, one at a time: immediate on SQLite, waiting on PostgreSQL."""
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"ledger of {population}"])
        yield


def asked_caps(dataset: DatasetSettings) -> Caps:
    """What `datasite.toml` says."""
    return Caps(dataset.population, dataset.epsilon, dataset.delta)


def agreed_caps(population: str) -> Caps | None:
    """The caps in force by the history; None before the budget was opened."""
    fact = BudgetFact.objects.filter(population__name=population, what__in=CAPS).last()
    return None if fact is None else Caps(population, fact.epsilon, fact.delta)


def caps_of(dataset: DatasetSettings) -> Caps:
    """The caps to gate on: the stricter of history and `datasite.toml`, figure by figure."""
    asked = asked_caps(dataset)
    agreed = agreed_caps(dataset.population) or asked
    return Caps(asked.population, min(asked.epsilon, agreed.epsilon), min(asked.delta, agreed.delta))


def order_of(dataset: DatasetSettings) -> int:
    """The Renyi order at which the population's budget is kept: fixed when it was opened, whatever its caps since."""
    population = Population.objects.filter(name=dataset.population).first()
    if population is not None and population.order is not None:
        return int(population.order)
    caps = caps_of(dataset)
    return filter_order(caps.epsilon, caps.delta)


def require_agreed(dataset: DatasetSettings) -> Caps:
    """`caps_of`; raises `InputError` where `datasite.toml` says more than these patients were promised."""
    asked, agreed = asked_caps(dataset), agreed_caps(dataset.population)
    if agreed is not None and asked.is_wider_than(agreed):
        raise InputError(
            f"datasite.toml: population {agreed.population}: {asked.words} is wider than {agreed.words}, which these "
            f"patients were promised; set it back, or have two people widen it: `datasites budget widen "
            f"{agreed.population}`, then `datasites budget confirm`"
        )
    return caps_of(dataset)


def guarantee(population: str) -> Caps | None:
    """The largest caps that were ever in force: what these patients are guaranteed over the whole time."""
    facts = BudgetFact.objects.filter(population__name=population, what__in=CAPS)
    caps = [(fact.epsilon, fact.delta) for fact in facts]
    if not caps:
        return None
    return Caps(population, max(epsilon for epsilon, _ in caps), max(delta for _, delta in caps))


def accepted_delta(population: str) -> float:
    """The largest delta of a release that two people took the risk of for these patients; 0 when nobody did."""
    facts = BudgetFact.objects.filter(population__name=population, what="delta_accepted")
    return max((fact.delta for fact in facts), default=0.0)


def history(population: str) -> list[BudgetFact]:
    """All facts about a population's caps, oldest first."""
    return list(BudgetFact.objects.filter(population__name=population))


def open_populations(site: Site) -> None:
    """Follow `datasite.toml`: open budgets that are new, record narrower ones; raises `InputError` for a wider one."""
    for dataset in site.home.settings.datasets:
        open_population(site, dataset)
        asked = asked_caps(dataset)
        with alone(dataset.population):
            narrows = require_agreed(dataset) != agreed_caps(dataset.population)
            if narrows:
                _record(Population.objects.get(name=dataset.population), "narrowed", asked)
        if narrows:
            _log(site, "budget_narrowed", asked)


def open_population(site: Site, dataset: DatasetSettings) -> Population:
    """The population of a dataset, opened with what `datasite.toml` says when it is new."""
    asked = asked_caps(dataset)
    with alone(dataset.population):
        population, _ = Population.objects.get_or_create(
            name=dataset.population,
            defaults={
                "fraction": dataset.held_out,
                "split_key": bytes.fromhex(dataset.split_salt) or secrets.token_bytes(32),
            },
        )
        if population.order is None:
            # For good from here on, also for a budget of a version that knew no order: caps are public, so the choice
            # follows nothing that was released.
            population.order = filter_order(asked.epsilon, asked.delta)
            population.save(update_fields=["order"])
        opens = agreed_caps(dataset.population) is None
        if opens:
            _record(population, "opened", asked)
    if opens:
        _log(site, "budget_opened", asked)
    return population


def split_of(dataset: DatasetSettings) -> Population:
    """Key and share by which the population's patients are split, made when its budget was opened and never changed.

    Raises `InputError` when `datasite.toml` no longer says what the split was made with: a patient who moved from one
    side to the other could lose on both, and the ledger counts the larger loss only.
    """
    population = Population.objects.filter(name=dataset.population).first()
    if population is None:
        raise InputError(f"population {dataset.population}: its budget is not open yet; start the datasite once")
    other_key = dataset.split_salt and bytes(population.split_key) != bytes.fromhex(dataset.split_salt)
    if population.fraction != dataset.held_out or other_key:
        raise InputError(
            f"datasite.toml: dataset {dataset.name}: held_out was {population.fraction}, or split_salt another, when "
            f"the budget of population {population.name} was opened; set them back, since its patients never change "
            "sides"
        )
    return population


def charges_both_sides(population: str, identity: str) -> bool:
    """Whether patients told apart by this column ("" for rows) may be on another side than those of earlier studies.

    A patient of an earlier study is on the side that the first column says, for good. One who is told apart otherwise
    may be on either, so what such a study costs is charged to both: whichever side a patient lost on before, the sum
    stands in that side's account.
    """
    known = Population.objects.filter(name=population).first()
    changed = known is not None and (known.both_sides or known.identity not in ("", identity))
    return changed or not identity


def settle_identity(site: Site, population: str, identity: str) -> None:
    """Let an approved study's patient column count: the first one for good, another one by charging both sides."""
    if not identity:
        return
    known = Population.objects.select_for_update().get(name=population)
    if not known.identity:
        known.identity = identity
        known.save(update_fields=["identity"])
        site.audit.append("identity_set", population=population, column=identity)
    elif known.identity != identity and not known.both_sides:
        known.both_sides = True
        known.save(update_fields=["both_sides"])
        site.audit.append("identity_changed", population=population, column=identity, before=known.identity)


def other_patients(population: str) -> frozenset[str]:
    """Populations of which two people said that they are other patients than these."""
    pairs = Proposal.objects.filter(kind="other_patients", outcome="confirmed").values_list("terms", flat=True)
    return frozenset(
        other for terms in pairs if population in terms["populations"] for other in terms["populations"]
    ) - {population}


def say_other_patients(site: Site, names: tuple[str, str], by: tuple[str, str], reason: str) -> None:
    """Take two populations for different people, on the word of two people."""
    site.audit.append("other_patients", populations=list(names), entered_by=by[0], confirmed_by=by[1], reason=reason)


def _record(population: Population, what: str, caps: Caps, by: tuple[str, str] = ("", ""), reason: str = "") -> None:
    BudgetFact.objects.create(
        population=population,
        what=what,
        epsilon=caps.epsilon,
        delta=caps.delta,
        entered_by=by[0],
        confirmed_by=by[1],
        reason=reason,
    )


def _log(site: Site, kind: str, caps: Caps, by: tuple[str, str] = ("", ""), reason: str = "") -> None:
    who = {"entered_by": by[0], "confirmed_by": by[1], "reason": reason} if by[0] else {}
    site.audit.append(kind, population=caps.population, epsilon=caps.epsilon, delta=caps.delta, **who)


def widen(site: Site, population: str, caps: Caps, by: tuple[str, str], reason: str) -> None:
    """Make a wider cap the one in force, on the word of two people (`proposals.confirm` has checked them)."""
    # Logged before it counts: killed in between, no cap is in force that the log does not know.
    _log(site, "budget_widened", caps, by, reason)
    _record(Population.objects.get(name=population), "widened", caps, by, reason)


def accept_delta(site: Site, population: str, delta: float, by: tuple[str, str], reason: str) -> None:
    """Take the risk of a larger delta for releases on these patients, on the word of two people."""
    caps = Caps(population, 0.0, delta)
    site.audit.append(
        "delta_accepted", population=population, delta=delta, entered_by=by[0], confirmed_by=by[1], reason=reason
    )
    _record(Population.objects.get(name=population), "delta_accepted", caps, by, reason)


def dataset_of(home: Home, population: str) -> DatasetSettings:
    """A dataset of this population in `datasite.toml` as it is on the disk now; raises `InputError`."""
    fresh = Home.open(home.root)
    for dataset in fresh.settings.datasets:
        if dataset.population == population:
            return dataset
    known = ", ".join(sorted({dataset.population for dataset in fresh.settings.datasets})) or "none"
    raise InputError(f"population {population!r}: no dataset in datasite.toml is of it (known: {known})")
