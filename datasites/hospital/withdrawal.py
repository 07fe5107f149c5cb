"""Withdrawal of a patient's consent: from the next round on, no study here trains or evaluates on that patient.

What it does not undo: models and sums that were released before, of which the patient was a part. Those are bounded
by the privacy loss that was charged, and no software can call them back. The patient's share of the budget stays spent.

Pseudonyms of withdrawn patients lie in one file of the private folder (mode 0600) and nowhere else; the audit log
holds a keyed commitment to each (`commitments`), so that it counts them and names nobody (I12).

**A list that came back from a backup puts nobody back.** Whoever stands on the list *or* in the log is left out of
every round; and where the list lacks somebody whom the log knows, nothing runs (`reconcile`) until that patient is
entered again or two people have settled it, which keeps the union. What it rests on: log and ledger's anchor did not
go back with the list unnoticed (`ledger`), the key of the commitments is the same, and withdrawals since the backup of
a log that is lost, anchors included, are entered again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datasites.hospital import ledger_log
from datasites.hospital.cells import pseudonym, table_of
from datasites.hospital.commitments import Commitments
from datasites.hospital.config import Home
from datasites.hospital.harmonise import read_mapping
from datasites.hospital.ledger_log import Told
from datasites.hospital.site import Site
from datasites.study.durable import held, replace_durably
from datasites.study.errors import InputError


class NobodyToLeaveOut(InputError):
    """No column says whose a row is, so a pseudonym names nobody."""


def withdrawn(home: Home, dataset: str) -> frozenset[str]:
    """Pseudonyms of the patients who have withdrawn from a dataset, or from another one of its population."""
    return frozenset().union(*(_read(home.withdrawals / f"{name}.json") for name in _names(home, dataset)))


def _names(home: Home, dataset: str) -> set[str]:
    # A dataset may have been given another population than its own after somebody withdrew.
    return {dataset, home.dataset(dataset).population}


def _read(path: Path) -> frozenset[str]:
    return frozenset(json.loads(path.read_text())) if path.exists() else frozenset()


def require_patient_column(home: Home, dataset: str) -> None:
    """Raise `NobodyToLeaveOut` where rows are named by their content alone: whose they are, only people know."""
    if read_mapping(home.root / home.dataset(dataset).mapping).patient is None:
        raise NobodyToLeaveOut(
            f"dataset {dataset}: mapping.toml names no patient column, so no pseudonym says whose a row is and nobody "
            "can be left out by name; pause the studies that run on it, name the column (`patient = …`), or take the "
            "patient's rows out of the table, and ask for new submissions"
        )


def add(home: Home, dataset: str, patient: str) -> int:
    """Leave `patient` (as in the dataset's patient column) out from the next round on; returns how many have withdrawn.

    The pseudonym need not be in the table today (see `rows_of`): a withdrawal also holds for rows that come later.
    People do this through `review.withdraw`. Raises `InputError` for no pseudonym at all.
    """
    name = pseudonym(patient)
    if name is None:
        raise InputError(f"dataset {dataset}: no pseudonym was given; name the patient as the table does")
    home.withdrawals.mkdir(mode=0o700, exist_ok=True)
    path = home.withdrawals / f"{home.dataset(dataset).population}.json"
    # Read, added to and written while nobody else does, so that no withdrawal can undo another.
    with held(path.with_suffix(".lock")):
        everybody = sorted(withdrawn(home, dataset) | {name})
        replace_durably(path, json.dumps(everybody).encode())
    return len(everybody)


def rows_of(home: Home, dataset: str, patient: str) -> int | None:
    """Rows of the dataset's table that bear this pseudonym now; None when no column says whose a row is."""
    settings = home.dataset(dataset)
    column = read_mapping(home.root / settings.mapping).patient
    table = table_of(home, settings).cells
    if column is None or column not in table.columns:
        return None
    wanted = pseudonym(patient)
    return sum(wanted is not None and pseudonym(cell) == wanted for cell in table[column])


def in_words(home: Home, dataset: str, patient: str) -> str:
    """What a withdrawal means for the table as it is now, for the person who has entered it."""
    try:
        rows = rows_of(home, dataset, patient)
    except InputError as error:
        return f"The table could not be read to look for the patient: {error}"
    if rows is None:
        return (
            f"No row is left out: mapping.toml of {dataset} names no patient column of the table, so nothing says "
            "whose a row is. Name it there, and ask for new submissions."
        )
    if rows == 0:
        return (
            "No row of the table bears that pseudonym now, so nothing is left out yet. Compare it with the table, "
            "letter by letter and zero by zero; it stays on the list for rows that come later."
        )
    return f"{rows} row(s) of the table bear that pseudonym; they are left out."


def stays(home: Home, dataset: str, patients: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
    """For each row, whether its patient has not withdrawn, by the list and by the log; shape (rows,)."""
    told, gone = ledger_log.tell(home).withdrawn, withdrawn(home, dataset)
    logged = frozenset[str]().union(*(told.get(name, frozenset()) for name in _names(home, dataset)))
    if logged:
        commitments = _commitments(home, {str(patient) for patient in patients} - gone)
        gone |= {patient for patient, commitment in commitments.items() if commitment in logged}
    return ~np.isin(patients, sorted(gone))


def log(site: Site, dataset: str, patient: str, **fields: str | int) -> None:
    """Let log and anchor know that a patient is on the list."""
    name = pseudonym(patient)
    assert name is not None
    population = site.home.dataset(dataset).population
    (commitment,) = _commitments(site.home, [name]).values()
    site.audit.append(ledger_log.WITHDRAWN, dataset=dataset, population=population, commitment=commitment, **fields)
    ledger_log.write_anchor(site.home)


def log_the_list(site: Site) -> None:
    """Let the log know of all who are on the list: a kill, or an older version, has left somebody out."""
    told = ledger_log.tell(site.home).withdrawn
    for path in sorted(site.home.withdrawals.glob("*.json")):
        listed = _commitments(site.home, _read(path)).values()
        for commitment in sorted(set(listed) - told.get(path.stem, frozenset())):
            site.audit.append(ledger_log.WITHDRAWN, population=path.stem, commitment=commitment)


def missing(home: Home) -> dict[str, int]:
    """By population, how many the list lacks of those who have withdrawn as the log says."""
    told = ledger_log.tell(home).withdrawn
    lacking = {name: len(logged - _listed(home, name)) for name, logged in told.items()}
    return {name: number for name, number in sorted(lacking.items()) if number}


def settle_the_list(site: Site, known: Iterable[Told]) -> None:
    """Keep all who have withdrawn by the word of log or anchor, known by their commitments alone."""
    home, known = site.home, tuple(known)
    for population in sorted({name for told in known for name in told.withdrawn}):
        everybody = frozenset[str]().union(*(told.withdrawn.get(population, frozenset()) for told in known))
        for commitment in sorted(everybody - ledger_log.tell(home).withdrawn.get(population, frozenset())):
            site.audit.append(ledger_log.WITHDRAWN, population=population, commitment=commitment, settled=True)
        lacking = everybody - _listed(home, population)
        if lacking:
            path = _settled(home, population)
            replace_durably(path, json.dumps(sorted(_read(path) | lacking)).encode())


def _listed(home: Home, population: str) -> frozenset[str]:
    listed = _commitments(home, _read(home.withdrawals / f"{population}.json")).values()
    return frozenset(listed) | _read(_settled(home, population))


def _settled(home: Home, population: str) -> Path:
    """Commitments to patients whose pseudonyms were lost with a list, and who stay left out."""
    return home.withdrawals / "settled" / f"{population}.json"


def _commitments(home: Home, patients: Iterable[str]) -> dict[str, str]:
    key = Commitments(home)
    return {patient: key.commit("withdrawn patient", patient.encode()) for patient in sorted(patients)}
