"""Writes a line of the ledger into audit log, anchor and database as one; the next one completes it after a kill.

A file names the line before it is logged, and goes away once the database has it for good. So a line that the log has
and the database lacks is distinguished from an older database that was restored: the one is named in such a file, the
other is not. A line that is in neither was never acted on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from django.db import transaction
from pydantic import ValidationError

from datasites.hospital.budget import ledger_log
from datasites.hospital.budget.balances import Prices, StudyAccount, of_database
from datasites.hospital.budget.reconcile import differences
from datasites.hospital.models import LedgerEntry
from datasites.hospital.site import Site
from datasites.study.canonical import Agreed, canonical_json, sha256_hex
from datasites.study.files import replace_durably

#: Of the log, by kind of line.
_RECORDS = {"reserve": ledger_log.RESERVED, "charge": ledger_log.CHARGED, "release": ledger_log.RELEASED}


class Line(Agreed):
    """Which line: its amounts stand in the log."""

    kind: Literal["reserve", "charge", "release"]
    population: str
    study: str
    round: int = 0


@dataclass(frozen=True)
class StudyCap:
    """What one study may cost a patient: epsilon at its own delta."""

    epsilon: float
    delta: float


def write(site: Site, line: Line, prices: Prices, *, manifest: str = "", cap: StudyCap | None = None) -> None:
    """Write one line, in a transaction of the caller's that nothing else on the population runs beside."""
    path = _path(site, line)
    replace_durably(path, line.canonical())
    fields: dict[str, str | float] = {}
    if cap is not None:
        fields = {"study_epsilon": cap.epsilon, "study_delta": cap.delta}
    if line.kind == "charge":
        fields = {"manifest": manifest, "digest": entry_digest(line.population, line.round, prices)}
    _log(site, line, prices, **fields)
    # Before the database, and so before anything is released under it: a restored home has no line of which the anchor
    # does not know.
    ledger_log.write_anchor(site.home)
    _store(line, prices)
    transaction.on_commit(partial(path.unlink, missing_ok=True))


def bring_up(
    site: Site,
    population: str,
    study_hash: str,
    account: StudyAccount,
    stored: StudyAccount | None,
    logged: StudyAccount | None,
) -> None:
    """Let log and database say `account` of a study, which is no less than either says; for `restored` alone."""
    known = logged or StudyAccount()
    ended_too_soon = known.released and not account.released
    if account.reserved and (account.reserved != known.reserved or ended_too_soon):
        _log(site, Line(kind="reserve", population=population, study=study_hash), account.reserved, settled=True)
    for round, prices in sorted(account.charged.items()):
        if known.charged.get(round) != prices:
            line = Line(kind="charge", population=population, study=study_hash, round=round)
            _log(site, line, prices, manifest="", digest=entry_digest(population, round, prices), settled=True)
    if account.released and not known.released:
        _log(site, Line(kind="release", population=population, study=study_hash), {}, settled=True)
    if stored == account:
        return
    LedgerEntry.objects.filter(population=population, study_hash=study_hash).delete()
    _store(Line(kind="reserve", population=population, study=study_hash), account.reserved)
    for round, prices in sorted(account.charged.items()):
        _store(Line(kind="charge", population=population, study=study_hash, round=round), prices)
    if account.released:
        _store(Line(kind="release", population=population, study=study_hash), account.reserved)


def round_entry(population: str, round: int, prices: Prices) -> dict[str, object]:
    """Return a charged round as evidence holds it; its digest stands in the audit log."""
    return {
        "round": round,
        "population": population,
        "charges": {partition: json.loads(price.charges) for partition, price in prices.items()},
        "local_charges": {partition: json.loads(price.local) for partition, price in prices.items()},
    }


def entry_digest(population: str, round: int, prices: Prices) -> str:
    """Return SHA-256 of `round_entry`."""
    return sha256_hex(canonical_json(round_entry(population, round, prices)))


def finish(site: Site, population: str) -> None:
    """Put lines of a population into the database that were logged when a process was killed. Holds its lock."""
    waiting = [line for line in _waiting(site) if line.population == population]
    if not waiting:
        return
    accounts = ledger_log.tell(site.home).of(population)
    for line in waiting:
        account, stored = accounts.get(line.study), of_database(population).get(line.study)
        path = _path(site, line)
        if account is not None:
            if line.kind == "reserve" and account.reserved and not (stored and stored.reserved):
                _store(line, account.reserved)
            elif (
                line.kind == "charge"
                and line.round in account.charged
                and not (stored and line.round in stored.charged)
            ):
                _store(line, account.charged[line.round])
            elif line.kind == "release" and account.released and not (stored and stored.released):
                _store(line, account.reserved)
        transaction.on_commit(partial(path.unlink, missing_ok=True))
    # An anchor that is written over a difference would say that it knows of everything.
    if not any(differences(site.home, population)):
        ledger_log.write_anchor(site.home)


def finish_all(site: Site) -> None:
    """Call `finish` for every population, before a service compares database, log and anchor at its start."""
    from datasites.hospital.budget.promises import budget_lock

    for population in sorted({line.population for line in _waiting(site)}):
        with budget_lock(population):
            finish(site, population)


def _log(site: Site, line: Line, prices: Prices, **fields: str | float | bool) -> None:
    record: dict[str, str | float | bool] = {"study": line.study, "population": line.population, **fields}
    if line.kind == "charge":
        record["round"] = line.round
    if line.kind != "release":
        record |= ledger_log.in_log(prices)
    site.audit.append(_RECORDS[line.kind], **record)


def _store(line: Line, prices: Prices) -> None:
    for partition, price in prices.items():
        amounts = {"charges": json.loads(price.charges), "local_charges": json.loads(price.local)}
        LedgerEntry.objects.create(
            population=line.population,
            partition=partition,
            study_hash=line.study,
            kind=line.kind,
            round=line.round,
            **(amounts if line.kind != "release" else {}),
        )


def _path(site: Site, line: Line) -> Path:
    return site.home.ledger_pending / f"{line.digest()}.json"


def _waiting(site: Site) -> list[Line]:
    lines = []
    for path in sorted(site.home.ledger_pending.glob("*.json")):
        try:
            lines.append(Line.parse(path.read_bytes()))
        except (FileNotFoundError, ValidationError, ValueError):
            continue  # gone meanwhile, or no file of ours: the comparison of log and database says what is missing
    return lines
