"""What the database says that a population's patients were promised, and the lock on their budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, transaction

from datasites.hospital.audit.commitments import Commitments
from datasites.hospital.budget.ledger_log import Promise
from datasites.hospital.config import Home
from datasites.hospital.models import Population

#: What a fact in the history says of the cap; `delta_accepted` says nothing of it.
CAPS = ("opened", "narrowed", "widened")


@contextmanager
def budget_lock(population: str) -> Iterator[None]:
    """Open a transaction on a population's budget, one at a time: immediate on SQLite, waiting on PostgreSQL."""
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"ledger of {population}"])
        yield


def stored_promise(home: Home, name: str) -> Promise | None:
    """Return what the database says that these patients were promised; None where it does not know them."""
    population = Population.objects.filter(name=name).first()
    if population is None:
        return None
    facts = list(population.facts.all())
    caps = [fact for fact in facts if fact.what in CAPS]
    return Promise(
        epsilon=caps[-1].epsilon if caps else 0.0,
        delta=caps[-1].delta if caps else 0.0,
        order=population.order or 0,
        fraction=population.fraction,
        split=Commitments(home).commit(f"split key of population {name}", bytes(population.split_key)),
        identity=population.identity,
        both_sides=population.both_sides,
        accepted_delta=max((fact.delta for fact in facts if fact.what == "delta_accepted"), default=0.0),
    )
