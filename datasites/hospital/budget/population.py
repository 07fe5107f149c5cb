"""Whose budget it is: populations of patients, the history of their caps, and the key that splits them into two sides.

A dataset names its population; datasets of one population share budget and split, and renaming a dataset changes
neither. What a population's patients were promised is a fact with history: the first value of `datasite.toml` opens
it, a narrower one takes effect at once and is recorded, a wider one is refused until two people have widened the
budget (`two_people`). After a widening the larger cap is what these patients are guaranteed: what they lost under the
smaller one is part of it, and nothing can be taken back.

The side of a patient is a keyed hash of the identity (`sampling.held_out`) under one key per population, for good.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from datasites.hospital.budget import ledger_log, openings
from datasites.hospital.budget.ledger_log import Promise
from datasites.hospital.budget.promises import CAPS, budget_lock, stored_promise
from datasites.hospital.budget.reconcile import require_one_story
from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.database import this_home
from datasites.hospital.models import BudgetFact, Population, Proposal
from datasites.hospital.site import Site
from datasites.privacy.renyi import filter_order
from datasites.study.errors import InputError


@dataclass(frozen=True)
class Caps:
    """What a population's patients may lose in all: epsilon at delta."""

    population: str
    epsilon: float
    delta: float

    @property
    def summary(self) -> str:
        """Both figures in one line, for people."""
        return f"epsilon {self.epsilon:g} at delta {self.delta:g}"

    def is_wider_than(self, other: Caps) -> bool:
        """Say whether either figure allows more."""
        return self.epsilon > other.epsilon or self.delta > other.delta


def asked_caps(dataset: DatasetSettings) -> Caps:
    """Return the caps that `datasite.toml` asks for."""
    return Caps(dataset.population, dataset.epsilon, dataset.delta)


def agreed_caps(population: str) -> Caps | None:
    """Return the caps in force, the stricter of database and audit log; None before the budget was opened."""
    fact, logged = BudgetFact.objects.filter(population__name=population, what__in=CAPS).last(), _logged(population)
    known = [(one.epsilon, one.delta) for one in (fact, logged) if one is not None]
    if not known:
        return None
    return Caps(population, min(epsilon for epsilon, _ in known), min(delta for _, delta in known))


def caps_of(dataset: DatasetSettings) -> Caps:
    """Return the caps to gate on: the stricter of history and `datasite.toml`, figure by figure."""
    asked = asked_caps(dataset)
    agreed = agreed_caps(dataset.population) or asked
    return Caps(asked.population, min(asked.epsilon, agreed.epsilon), min(asked.delta, agreed.delta))


def order_of(dataset: DatasetSettings) -> int:
    """Return the Renyi order of the population's budget, fixed when it was opened, whatever its caps since."""
    order = opened_order(dataset.population)
    if order is not None:
        return order
    caps = caps_of(dataset)
    return filter_order(caps.epsilon, caps.delta)


def opened_order(name: str) -> int | None:
    """Return the Renyi order of a population's filter, by the audit log; None before its budget was opened."""
    logged, population = _logged(name), Population.objects.filter(name=name).first()
    if logged is not None:
        return logged.order
    return None if population is None or population.order is None else int(population.order)


def require_agreed(dataset: DatasetSettings) -> Caps:
    """`caps_of`; raises `InputError` where `datasite.toml` says more than these patients were promised."""
    asked, agreed = asked_caps(dataset), agreed_caps(dataset.population)
    if agreed is not None and asked.is_wider_than(agreed):
        raise InputError(
            f"datasite.toml: population {agreed.population}: {asked.summary} is wider than {agreed.summary}, which "
            f"these patients were promised; set it back, or have two people widen it: `datasites budget widen "
            f"{agreed.population}`, then `datasites budget confirm`"
        )
    return caps_of(dataset)


def guarantee(population: str) -> Caps | None:
    """Return the largest caps that were ever in force: what these patients are guaranteed over the whole time."""
    facts = BudgetFact.objects.filter(population__name=population, what__in=CAPS)
    caps = [(fact.epsilon, fact.delta) for fact in facts]
    if not caps:
        return None
    return Caps(population, max(epsilon for epsilon, _ in caps), max(delta for _, delta in caps))


def accepted_delta(population: str) -> float:
    """Return the largest delta of a release whose risk two people accepted for these patients; 0 when nobody did."""
    facts = BudgetFact.objects.filter(population__name=population, what="delta_accepted")
    logged = _logged(population)
    return min(max((fact.delta for fact in facts), default=0.0), logged.accepted_delta if logged is not None else 0.0)


def history(population: str) -> list[BudgetFact]:
    """Return all facts about a population's caps, oldest first."""
    return list(BudgetFact.objects.filter(population__name=population))


def open_populations(site: Site) -> None:
    """Follow `datasite.toml`: open budgets that are new, record narrower ones; raises `InputError` for a wider one.

    Killed at any moment, the next start goes on: what narrows is in the database first, and in the log once. A budget
    that is opened is named in a file until all know it; raises `AccountsDiffer` where the log lacks another one.
    """
    for dataset in site.home.settings.datasets:
        asked = asked_caps(dataset)
        _begin(site, dataset.population)
        with budget_lock(dataset.population):
            population = _open(dataset)
            require_agreed(dataset)
            fact = population.facts.filter(what__in=CAPS).last()
            if fact is None or Caps(population.name, fact.epsilon, fact.delta) != asked:
                _record(population, "opened" if fact is None else "narrowed", asked)
        logged = ledger_log.tell(site.home).populations.get(dataset.population)
        if logged is None:
            promise = stored_promise(site.home, dataset.population)
            assert promise is not None
            _log(
                site,
                ledger_log.OPENED,
                asked,
                order=promise.order,
                fraction=promise.fraction,
                split=promise.split,
            )
        elif Caps(dataset.population, logged.epsilon, logged.delta) != asked:
            _log(site, ledger_log.NARROWED, asked)
        ledger_log.write_anchor(site.home)
        with budget_lock(dataset.population):  # whoever compares holds it, too
            openings.end(site.home, dataset.population)


def _begin(site: Site, name: str) -> None:
    if name in ledger_log.tell(site.home).populations:
        return
    stored = stored_promise(site.home, name)
    if stored is not None and stored.epsilon > 0:
        require_one_story(site.home, name)  # one whose opening was interrupted, or the log was lost
    else:
        openings.begin(site.home, name)


def _open(dataset: DatasetSettings) -> Population:
    order = filter_order(dataset.epsilon, dataset.delta)
    population, _ = Population.objects.get_or_create(
        name=dataset.population,
        defaults={
            "fraction": dataset.held_out,
            "split_key": bytes.fromhex(dataset.split_salt) or secrets.token_bytes(32),
            "order": order,
        },
    )
    if population.order is None:
        # For good from here on, also for a budget of a version that knew no order: caps are public, so the choice
        # follows nothing that was released.
        population.order = order
        population.save(update_fields=["order"])
    return population


def adopt(site: Site, name: str, promise: Promise) -> None:
    """Let log and database promise the same, after a restore: the stricter of all that is known (`restored`)."""
    salts = {dataset.population: bytes.fromhex(dataset.split_salt) for dataset in site.home.settings.datasets}
    population, created = Population.objects.get_or_create(
        name=name,
        defaults={
            "fraction": promise.fraction or 0.5,
            "split_key": salts.get(name) or secrets.token_bytes(32),
            "order": promise.order,
        },
    )
    if created:
        stored = stored_promise(site.home, name)
        assert stored is not None
        promise = promise.model_copy(update={"fraction": stored.fraction, "split": stored.split})
    caps = Caps(name, promise.epsilon, promise.delta)
    fact = population.facts.filter(what__in=CAPS).last()
    if fact is None or (fact.epsilon, fact.delta) != (caps.epsilon, caps.delta):
        _record(population, "narrowed" if fact is not None else "opened", caps)
    population.facts.filter(what="delta_accepted", delta__gt=promise.accepted_delta).delete()
    population.order, population.identity, population.both_sides = promise.order, promise.identity, promise.both_sides
    population.save(update_fields=["order", "identity", "both_sides"])
    if _logged(name) != promise:
        site.audit.append(ledger_log.SETTLED, population=name, **promise.model_dump())


def _logged(population: str) -> Promise | None:
    return ledger_log.tell(this_home()).populations.get(population)


def split_of(dataset: DatasetSettings) -> Population:
    """Return key and share by which the population's patients are split, made when its budget was opened, for good.

    Raises `InputError` when `datasite.toml` no longer says what the split was made with: a patient who moved from one
    side to the other could lose on both, and the ledger counts the larger loss only.
    """
    population = _opened(dataset.population)
    other_key = dataset.split_salt and bytes(population.split_key) != bytes.fromhex(dataset.split_salt)
    if population.fraction != dataset.held_out or other_key:
        raise InputError(
            f"datasite.toml: dataset {dataset.name}: held_out was {population.fraction}, or split_salt another, when "
            f"the budget of population {population.name} was opened; set them back, since its patients never change "
            "sides"
        )
    return population


def charges_both_sides(population: str, identity: str) -> bool:
    """Say whether patients by this column ("" for rows) may be on another side than those of earlier studies.

    A patient of an earlier study is on the side that the first column says, for good. One who is told apart otherwise
    may be on either, so what such a study costs is charged to both: whichever side a patient lost on before, the sum
    stands in that side's account.
    """
    first, both_sides = _distinguished(Population.objects.filter(name=population).first(), population)
    return both_sides or not identity or first not in ("", identity)


def _distinguished(known: Population | None, population: str) -> tuple[str, bool]:
    """Return the first patient column, by the log where the database lacks it, and whether another one came later."""
    logged = _logged(population)
    first = (logged.identity if logged is not None else "") or (known.identity if known is not None else "")
    return first, bool((known and known.both_sides) or (logged and logged.both_sides))


def settle_identity(site: Site, population: str, identity: str) -> None:
    """Let an approved study's patient column count: the first one for good, another one by charging both sides."""
    if not identity:
        return
    known = Population.objects.select_for_update().get(name=population)
    first, both_sides = _distinguished(known, population)
    now_both = both_sides or first not in ("", identity)
    # Logged first: killed in between, the log's word counts, and no other column is ever taken for the first one.
    if not first:
        site.audit.append(ledger_log.IDENTITY_SET, population=population, column=identity)
    elif now_both and not both_sides:
        site.audit.append(ledger_log.IDENTITY_CHANGED, population=population, column=identity, before=first)
    known.identity, known.both_sides = first or identity, now_both
    known.save(update_fields=["identity", "both_sides"])


def other_patients(population: str) -> frozenset[str]:
    """Return the populations that two people declared to be other patients, where database and log both say so."""
    confirmed = Proposal.objects.filter(kind="other_patients", outcome="confirmed").values_list("details", flat=True)
    pairs = {tuple(sorted(details["populations"])) for details in confirmed} & ledger_log.tell(this_home()).others
    return frozenset(name for pair in pairs if population in pair for name in pair) - {population}


def say_other_patients(site: Site, names: tuple[str, str], by: tuple[str, str], reason: str) -> None:
    """Take two populations for different people, on the word of two people."""
    site.audit.append(
        ledger_log.OTHER_PATIENTS, populations=list(names), entered_by=by[0], confirmed_by=by[1], reason=reason
    )


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


def _log(
    site: Site, kind: str, caps: Caps, by: tuple[str, str] = ("", ""), reason: str = "", **figures: int | float | str
) -> None:
    who = {"entered_by": by[0], "confirmed_by": by[1], "reason": reason} if by[0] else {}
    site.audit.append(kind, population=caps.population, epsilon=caps.epsilon, delta=caps.delta, **figures, **who)
    ledger_log.write_anchor(site.home)


def widen(site: Site, population: str, caps: Caps, by: tuple[str, str], reason: str) -> None:
    """Make a wider cap the one in force, on the word of two people (`two_people.confirm` has checked them)."""
    # Logged when the database has taken it, and before it counts: nothing is logged that is refused, and killed in
    # between, no cap is in force that the log does not know.
    _record(_opened(population), "widened", caps, by, reason)
    _log(site, ledger_log.WIDENED, caps, by, reason)


def accept_delta(site: Site, population: str, delta: float, by: tuple[str, str], reason: str) -> None:
    """Take the risk of a larger delta for releases on these patients, on the word of two people."""
    caps = Caps(population, 0.0, delta)
    who = {"entered_by": by[0], "confirmed_by": by[1], "reason": reason}
    _record(_opened(population), "delta_accepted", caps, by, reason)
    site.audit.append(ledger_log.DELTA_ACCEPTED, population=population, delta=delta, **who)


def _opened(name: str) -> Population:
    population = Population.objects.filter(name=name).first()
    if population is None:
        raise InputError(f"population {name}: its budget is not open yet; start the datasite once")
    return population


def dataset_of(home: Home, population: str) -> DatasetSettings:
    """Return a dataset of this population from `datasite.toml` as it is on the disk now; raises `InputError`."""
    fresh = Home.open(home.root)
    for dataset in fresh.settings.datasets:
        if dataset.population == population:
            return dataset
    known = ", ".join(sorted({dataset.population for dataset in fresh.settings.datasets})) or "none"
    raise InputError(f"population {population!r}: no dataset in datasite.toml is of it (known: {known})")
