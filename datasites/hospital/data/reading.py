"""Reads a hospital's tables in a separate process (`isolated.process`): a harmful file harms that process alone.

The datasite opens the file and sends its bytes; the other end (`reading_child`) parses, harmonises and encodes as
`tables`, `harmonise` and `plausible` say, and returns messages, counts and arrays. What binds records or names patients
is computed here, from these arrays and cells, with the home's key, which the other end never sees.

One process reads for one act, however many tables that looks at. It is started before the act's clock, since its start
follows from no row (`ticks`). It sees the files' bytes, mapping and data model, and nothing else of the home.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.data import records
from datasites.hospital.data.cells import readable
from datasites.hospital.data.mapping import Mapping
from datasites.hospital.data.reading_messages import Cells, MockSeen, ReadMock, ReadTable, TableSummary
from datasites.hospital.isolated import process
from datasites.hospital.isolated.frames import BadFrame, Numbers, texts_unpacked
from datasites.hospital.isolated.process import ApartFailed, Reply
from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError
from datasites.study.schema import DataModel

_REMEDY = "make the file smaller, or export it again as CSV"


@dataclass(frozen=True)
class Records:
    """An encoded table: x (rows, columns), y (rows,), and each row's patient, a pseudonym or row number in `cells`."""

    seen: TableSummary
    cells: Cells
    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    whose: list[str] = field(repr=False)


class TableReader:
    """A process that reads tables of this home, for the thread that starts it; use as a context manager."""

    def __init__(self, home: Home) -> None:
        """Start the process; where that fails, each request raises why."""
        self._home = home
        files = [file for one in home.settings.datasets for file in (one.table, one.mock)]
        self._formats = ["parquet"] if any(Path(file).suffix.lower() == ".parquet" for file in files) else []
        self._killed = False
        self._apart = self._begun()

    def _begun(self) -> process.Apart | DatasitesError:
        try:
            return process.Apart(self._home.settings.sandbox, "data.reading_child", *self._formats, remedy=_REMEDY)
        except DatasitesError as error:
            return error

    def __enter__(self) -> Self:
        """See the class."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it."""
        if not isinstance(self._apart, DatasitesError):
            self._apart.close()

    def kill(self) -> None:
        """End it from another thread; it reads nothing more."""
        self._killed = True
        if not isinstance(self._apart, DatasitesError):
            self._apart.kill()

    def ready(self) -> None:
        """See to it that one is there; whatever the last table did to it, the time of the next holds no start."""
        with suppress(DatasitesError):  # whoever asks is told
            _ = self._started

    def rows(self, dataset: DatasetSettings) -> int:
        """Say how many rows its table has; raises `InputError`."""
        return self._table(dataset)[0].rows

    def cells(self, dataset: DatasetSettings) -> Cells:
        """Read the table as it is now; raises `InputError`."""
        seen, arrays = self._table(dataset, cells=True)
        with self._naming_file(dataset.table):
            return _cells(seen, arrays)

    def look(self, dataset: DatasetSettings, mapping: Mapping, model: DataModel) -> TableSummary:
        """Read the table as a study does; raises `InputError`."""
        return self._table(dataset, mapping=mapping, model=model)[0]

    def records(
        self,
        dataset: DatasetSettings,
        mapping: Mapping,
        model: DataModel,
    ) -> Records:
        """Read and encode the table; raises `InputError`, also for a large one, or `SchemaError` if it isn't ready."""
        columns = len(model.columns)
        most = records.MOST_CELLS // columns
        seen, arrays = self._table(dataset, mapping=mapping, model=model, cells=True, encode=True, most_rows=most)
        records.require_room(columns, seen.rows, f"rows of {dataset.table}")
        with self._naming_file(dataset.table):
            return _records(seen, arrays, columns, rows_are_patients=mapping.patient is None)

    def mock_rows(self, dataset: DatasetSettings) -> int:
        """Say how many rows its mock has; raises `InputError`."""
        return self._mock(dataset, None)[0].rows

    def mock(self, dataset: DatasetSettings, model: DataModel) -> Numbers:
        """Read the mock, encoded; raises `InputError` or `SchemaError`.

        Returns float32 x (rows, columns), float32 y (rows,) and int64 patients (rows,), by these names.
        """
        _, arrays = self._mock(dataset, model)
        with self._naming_file(dataset.mock):
            rows = len(arrays.get("y", ()))
            _require(arrays, "x", np.float32, (rows, len(model.columns)))
            _require(arrays, "y", np.float32, (rows,))
            _require(arrays, "patients", np.int64, (rows,))
        return arrays

    def _table(self, dataset: DatasetSettings, **wanted: object) -> tuple[TableSummary, Numbers]:
        request = ReadTable.model_validate(
            {
                "file": str(self._home.root / dataset.table),
                "separator": dataset.separator,
                "encoding": dataset.encoding,
                "declared_patients": dataset.declared_patients,
                **wanted,
            }
        )
        return self._ask(dataset.table, "table", request, TableSummary)

    def _mock(self, dataset: DatasetSettings, model: DataModel | None) -> tuple[MockSeen, Numbers]:
        request = ReadMock(file=str(self._home.root / dataset.mock), model=model)
        return self._ask(dataset.mock, "mock", request, MockSeen)

    def _ask(self, file: str, setting: str, request: Agreed, reply: type[Reply]) -> tuple[Reply, Numbers]:
        path = self._home.root / file
        with readable(path, setting), path.open("rb") as content:
            return self._started.ask(str(path), request, reply, content)

    @property
    def _started(self) -> process.Apart:
        if not isinstance(self._apart, DatasitesError) and not self._apart.alive:
            # What ended the one before was another table, or the end of the service.
            self._apart = ApartFailed("the datasite is stopping and reads no table") if self._killed else self._begun()
        if isinstance(self._apart, DatasitesError):
            raise self._apart
        return self._apart

    @contextmanager
    def _naming_file(self, file: str) -> Iterator[None]:
        try:
            yield
        except BadFrame as error:
            assert not isinstance(self._apart, DatasitesError)
            raise self._apart.garbled(str(self._home.root / file), str(error)) from None


def _cells(seen: TableSummary, arrays: Numbers) -> Cells:
    text, lengths = texts_unpacked("cells", arrays)
    if len(lengths) != seen.rows * len(seen.names) or len(set(seen.names)) != len(seen.names):
        raise BadFrame("cells")
    return Cells(seen.names, text, lengths)


def _records(seen: TableSummary, arrays: Numbers, columns: int, *, rows_are_patients: bool) -> Records:
    cells = _cells(seen, arrays)
    _require(arrays, "x", np.float32, (seen.kept, columns))
    _require(arrays, "y", np.float32, (seen.kept,))
    whose = [one for (one,) in Cells(("whose",), *texts_unpacked("whose", arrays))]
    if seen.kept > seen.rows or len(whose) != seen.kept:
        raise BadFrame("records")
    if rows_are_patients and not all(one.isdecimal() and int(one) < seen.rows for one in whose):
        raise BadFrame("rows")
    return Records(seen, cells, arrays["x"], arrays["y"], whose)


def _require(arrays: Numbers, name: str, number: type[np.generic], shape: tuple[int, ...]) -> None:
    found = arrays.get(name)
    if found is None or found.dtype != number or found.shape != shape or not np.isfinite(found).all():
        raise BadFrame(name)
