"""Checks that database, audit log and anchor agree on the budgets; where they don't, nothing runs (I14, I17).

Both ways: what the log has and the database lacks (a row that was deleted, a database that was put back), what the
database has and the log lacks (a row that was added, a log that was put back), and what both say differently. And
whether the log is the one that the ledger's anchor knows (a home that was restored from a backup), and whether all who
have withdrawn as the log says are on the list. And whether the log has the amounts at all: a home of an older version
has them in its database alone, or no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datasites.hospital.budget import balances, ledger_log, withdrawn
from datasites.hospital.budget.ledger_log import LogState, Promise
from datasites.hospital.budget.openings import under_way
from datasites.hospital.budget.promises import budget_lock, stored_promise
from datasites.hospital.config import Home
from datasites.hospital.models import LedgerEntry, Population
from datasites.study.audit_chain import AuditError

_REMEDY = (
    "find out what was changed or restored; then two people settle it, by the larger loss: `datasites budget "
    "restored`, then `datasites budget confirm`"
)
#: Studies that a sentence names; evidence of the others is in the log.
_MOST_NAMED = 20


class AccountsDiffer(AuditError):
    """Database, audit log and anchor disagree on a budget; nothing may run until two people settle it."""


def require_one_story(home: Home, population: str | None = None) -> None:
    """Raise `AccountsDiffer` with the first difference, in one population or in any."""
    for difference in differences(home, population):
        raise AccountsDiffer(difference)


def differences(home: Home, population: str | None = None) -> Iterator[str]:
    """Yield all differences in words, naming population, study and round, and what to do."""
    older = _of_older_version(home)
    if not ledger_log.tell(home).unpriced():  # an older version had no anchor of the ledger, and is refused as it is
        for difference in _of_the_anchor(home):
            yield f"{difference}; {_REMEDY}"
    if older:
        yield (
            f"{home.audit}: this home is of an older version: {_named(older)} reserved or charged before amounts stood "
            "in the log, so that it doesn't show what their patients have lost; keep this home with the version "
            "that wrote it, or have two people enter what those studies cost, as far as the database does not say it: "
            "`datasites budget restored --lost FILE`, then `datasites budget confirm`"
        )
    for difference in _differences(home, population, frozenset(older)):
        yield f"{difference}; {_REMEDY}"


def _differences(home: Home, population: str | None, older: frozenset[str]) -> Iterator[str]:
    yield from _of_unknown_heads(home)
    yield from _of_withdrawals(home)
    for name in [population] if population is not None else _names(ledger_log.tell(home)):
        with budget_lock(name):  # else a line that is being written would be one that one of the two lacks
            found = list(_of_population(home, name, older))
        yield from found


def _of_older_version(home: Home) -> list[str]:
    """Return the studies that an older version charged or reserved, and whose amounts the log doesn't say.

    Older versions logged no amounts, and no budget that was opened as it is now; here nothing is reserved before that.
    """
    # Before the log: a line that is being written is there first.
    stored = set(LedgerEntry.objects.values_list("population", "study_hash").distinct())
    log_state = ledger_log.tell(home)
    logged = {study for studies in log_state.studies.values() for study in studies}
    before = {study for name, study in stored if name not in log_state.populations and study not in logged}
    return sorted({*log_state.unpriced(), *before})


def _named(studies: Sequence[str]) -> str:
    names = ", ".join(study[:12] for study in studies[:_MOST_NAMED])
    more = f" and {len(studies) - _MOST_NAMED} more" if len(studies) > _MOST_NAMED else ""
    return f"study {names} was" if len(studies) == 1 else f"studies {names}{more} were"


def _of_population(home: Home, name: str, older: frozenset[str]) -> Iterator[str]:
    log_state = ledger_log.tell(home)
    yield from _of_promises(home, log_state, name)
    database, log = balances.of_database(name), log_state.of(name)
    for study in sorted((database.keys() | log.keys()) - older):
        for line in balances.differing(database.get(study), log.get(study)):
            yield f"budget of population {name}: study {study[:12]}, {line}: database and audit log differ"


def _of_unknown_heads(home: Home) -> Iterator[str]:
    if home.unknown_heads.exists():
        yield (
            f"{home.audit}: other parties hold heads of it that are not in it ({home.unknown_heads.name}): it was "
            "restored from a backup, and what was charged since is not in it"
        )


def _of_withdrawals(home: Home) -> Iterator[str]:
    for name, number in withdrawn.missing(home).items():
        yield (
            f"withdrawals of population {name}: the list lacks {number} of the patients who have withdrawn as the "
            "audit log says: it was changed, or restored from a backup; they stay left out; whoever is known is "
            "entered again: `datasites dataset withdraw`"
        )


def _names(log_state: LogState) -> list[str]:
    stored = set(LedgerEntry.objects.values_list("population", flat=True).distinct())
    rows = Population.objects.values_list("name", flat=True)
    return sorted({*stored, *rows, *log_state.studies, *log_state.populations})


def _of_the_anchor(home: Home) -> Iterator[str]:
    standing = ledger_log.standing(home)
    if standing == "missing":
        yield (
            f"{home.ledger_anchor}: is missing, so that this home can't be distinguished from one that was "
            "restored from a backup: what was charged since is not known here"
        )
    elif standing == "behind":
        yield (
            f"{home.audit}: does not hold what {home.ledger_anchor} knows: it was restored from a backup, and what was "
            "charged since is not in it"
        )


def _of_promises(home: Home, log_state: LogState, name: str) -> Iterator[str]:
    logged, stored = log_state.populations.get(name), stored_promise(home, name)
    what = f"budget of population {name}"
    if stored is None:
        if logged is not None:
            yield f"{what}: the audit log knows its cap, and the database does not"
        return
    if logged is None:
        # Without a cap it was never opened. One that is being opened is named (`open_populations` ends that).
        if stored.epsilon > 0 and name not in under_way(home):
            yield f"{what}: the database knows its cap, and the audit log does not"
        return
    yield from (f"{what}: {difference}" for difference in _wider(stored, logged))


def _wider(stored: Promise, logged: Promise) -> Iterator[str]:
    if stored.epsilon > logged.epsilon or stored.delta > logged.delta:
        yield (
            f"the database says epsilon {stored.epsilon:g} at delta {stored.delta:g}, the audit log epsilon "
            f"{logged.epsilon:g} at delta {logged.delta:g}"
        )
    if stored.accepted_delta > logged.accepted_delta:
        yield f"the database accepts a delta of {stored.accepted_delta:g}, the audit log {logged.accepted_delta:g}"
    if (stored.order, stored.fraction, stored.split) != (logged.order, logged.fraction, logged.split):
        yield "the order of the filter, or the split into two sides, is not the one that the audit log knows"
    if stored.identity not in ("", logged.identity):
        yield "the column that identifies patients is not the one that the audit log knows"
