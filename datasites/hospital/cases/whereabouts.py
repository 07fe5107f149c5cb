"""Where a patient's name is found: in the tables as they are now, and in the frozen records of every open case.

Training reads the frozen records, and a table may have changed since: whoever withdraws is looked for in both. What is
found is for the hospital's eyes, in counts; no word of it holds a name, and nothing that leaves depends on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.db.models import QuerySet

from datasites.hospital.cases.case import records_folder
from datasites.hospital.cases.encoded import PREPARED_FILE
from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.data.cells import pseudonym, spelling_key
from datasites.hospital.data.mapping import read_mapping
from datasites.hospital.models import Case
from datasites.hospital.ticks import reading_ticks
from datasites.study.errors import DatasitesError

if TYPE_CHECKING:
    from datasites.hospital.data.reading import TableReader


@dataclass(frozen=True)
class Place:
    """One place that was looked at. rows: under the very name; others: rows, and spellings of it, that may be the same.

    problem: why nobody can be found there, else "". frozen: whether these are records of a case.
    """

    name: str
    frozen: bool
    rows: int = 0
    other_rows: int = 0
    spellings: int = 0
    problem: str = ""

    def left_out(self, *, all_spellings: bool) -> int:
        """Return the rows that a withdrawal leaves out."""
        return self.rows + (self.other_rows if all_spellings else 0)

    def in_words(self, *, all_spellings: bool) -> str:
        """Say what a withdrawal does there."""
        if self.problem:
            return f"{self.name}: {self.problem}"
        rows = self.left_out(all_spellings=all_spellings)
        if not rows:
            what = "no row has that name; none is left out"
        elif self.frozen:
            what = f"{rows} row(s) are left out from its next round on"
        else:
            what = f"{rows} row(s) have that name; no study that reads the table from now on trains on them"
        kept = f"; {self.other_rows} under another spelling stay" if self.other_rows and not all_spellings else ""
        return f"{self.name}: {what}{kept}"


#: Of a place in which rows are named by their content alone.
_UNNAMED = "no column names patients, so nobody can be left out by name; "


def look_for(home: Home, reader: TableReader, dataset: str, patient: str) -> tuple[Place, ...]:
    """Return all places in which a withdrawal from a dataset counts; raises `InputError` for an unknown dataset."""
    population = home.dataset(dataset).population
    related = [one for one in home.settings.datasets if population in (one.name, one.population)]
    names = {one.name for one in related}
    return tuple(
        [_in_table(home, reader, one, patient) for one in related]
        + [_in_case(home, row, patient) for row in open_cases(home) if row.approval_terms["dataset"] in names]
    )


def looking_ticks(home: Home) -> int:
    """Return ticks that looking takes, by what is declared and submitted: whose records are there depends on rows."""
    declared = sum(one.declared_records for one in home.settings.datasets)
    return reading_ticks(declared * (1 + _may_run().count()), 0)


def names_patients(places: Iterable[Place]) -> bool:
    """Say whether a name could be found in any of them, or whether it could is not known."""
    return any(not place.problem.startswith(_UNNAMED) for place in places)


def open_cases(home: Home) -> Iterator[Case]:
    """Yield the examined cases that may run, now or later, and whose frozen records are there."""
    for row in _may_run():
        if row.approval_terms and (records_folder(home, row.study_hash) / PREPARED_FILE).exists():
            yield row


def _may_run() -> QuerySet[Case]:
    return Case.objects.exclude(state__in=[*Case.ENDED, Case.State.REFUSED]).order_by("pk")


def frozen_patients(home: Home, row: Case) -> list[str]:
    """Return the patient of each frozen record of a case, whoever has withdrawn."""
    import numpy as np  # for whoever looks for a patient; most who act on a case import this room

    with np.load(records_folder(home, row.study_hash) / PREPARED_FILE, allow_pickle=False) as stored:
        return [str(name) for name in stored["patient"]]


def _in_table(home: Home, reader: TableReader, dataset: DatasetSettings, patient: str) -> Place:
    name = f"table of {dataset.name}, as it is now"
    try:
        column = read_mapping(home.root / dataset.mapping).patient
        if column is None:
            return Place(name, False, problem=f"{_UNNAMED}take the patient's rows out of the table")
        cells = reader.cells(dataset)
    except DatasitesError as error:
        return Place(name, False, problem=f"not read, so nobody was looked for there: {error}")
    if column not in cells.names:
        return Place(name, False, problem="the patient column of mapping.toml is not in it, so nobody was looked for")
    return _found(name, False, map(pseudonym, cells.column(column)), patient)


def _in_case(home: Home, row: Case, patient: str) -> Place:
    name = f"frozen records of case {row.pk} ({row.state})"
    if not row.approval_terms["identity"]:
        return Place(name, True, problem=f"{_UNNAMED}pause the study, and ask for a new submission")
    try:
        return _found(name, True, frozen_patients(home, row), patient)
    except (OSError, ValueError, KeyError):
        return Place(name, True, problem="can't be read, so nobody was looked for there; no round is held on them")


def _found(name: str, frozen: bool, patients: Iterable[str | None], patient: str) -> Place:
    wanted = pseudonym(patient)
    assert wanted is not None
    rows, key = Counter(patients), spelling_key(wanted)
    alike = {one: number for one, number in rows.items() if one is not None and spelling_key(one) == key}
    exact = alike.pop(wanted, 0)
    return Place(name, frozen, exact, sum(alike.values()), len(alike))
