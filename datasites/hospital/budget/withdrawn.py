"""Compares the list of patients who have withdrawn with the log: where the list lacks somebody, nothing runs.

`withdrawal` defines what the list means and whom it leaves out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from datasites.hospital.audit.commitments import Commitments
from datasites.hospital.budget import ledger_log
from datasites.hospital.budget.ledger_log import LogState
from datasites.hospital.config import Home
from datasites.hospital.site import Site
from datasites.study.files import replace_durably


def listed_in(path: Path) -> frozenset[str]:
    """Return the entries of one file of the list; none where there is no such file."""
    return frozenset(json.loads(path.read_text())) if path.exists() else frozenset()


def log_the_list(site: Site) -> None:
    """Let the log know of all who are on the list: a kill, or an older version, has left somebody out."""
    logged = ledger_log.tell(site.home).withdrawn
    for path in sorted(site.home.withdrawals.glob("*.json")):
        by_name = commitments_to(site.home, listed_in(path)).values()
        for commitment in sorted(set(by_name) - logged.get(path.stem, frozenset())):
            site.audit.append(ledger_log.WITHDRAWN, population=path.stem, commitment=commitment)


def missing(home: Home) -> dict[str, int]:
    """Return, by population, how many the list lacks of those who have withdrawn as the log says."""
    by_population = ledger_log.tell(home).withdrawn
    lacking = {name: len(logged - listed(home, name)) for name, logged in by_population.items()}
    return {name: number for name, number in sorted(lacking.items()) if number}


def settle_the_list(site: Site, known: Iterable[LogState]) -> None:
    """Keep all who have withdrawn by the word of log or anchor, known by their commitments alone."""
    home, known = site.home, tuple(known)
    for population in sorted({name for log_state in known for name in log_state.withdrawn}):
        everybody = frozenset[str]().union(*(log_state.withdrawn.get(population, frozenset()) for log_state in known))
        for commitment in sorted(everybody - ledger_log.tell(home).withdrawn.get(population, frozenset())):
            site.audit.append(ledger_log.WITHDRAWN, population=population, commitment=commitment, settled=True)
        lacking = everybody - listed(home, population)
        if lacking:
            path = settled_file(home, population)
            replace_durably(path, json.dumps(sorted(listed_in(path) | lacking)).encode())


def listed(home: Home, population: str) -> frozenset[str]:
    """Return commitments to all who stand on a population's list, by name or by commitment alone."""
    by_name = commitments_to(home, listed_in(home.withdrawals / f"{population}.json")).values()
    return frozenset(by_name) | listed_in(settled_file(home, population))


def settled_file(home: Home, population: str) -> Path:
    """Return the file of commitments to patients whose pseudonyms were lost with a list, and who stay left out."""
    return home.withdrawals / "settled" / f"{population}.json"


def commitments_to(home: Home, patients: Iterable[str]) -> dict[str, str]:
    """Return what the log holds of each entry, instead of it: {entry: commitment}."""
    key = Commitments(home)
    return {patient: key.commit("withdrawn patient", patient.encode()) for patient in sorted(patients)}
