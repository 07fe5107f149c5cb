"""Reads a hospital's table as text, cell by cell; what the text of a cell means, `cells` says.

Nothing is guessed from a column: what one row holds must not change how another is read (theorem in `harmonise`).

Delimited text is read by `delimited`, strictly. Parquet: the types of its columns are part of the file, and values are
written as text one by one. A whole number has one text in columns of whole numbers and of fractions, since writers take
the one or the other depending on whether a value is missing somewhere.

A datasite reads in a process of its own (`reading`), which imports this; its own process doesn't.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from datasites.hospital.data.cells import cell_text, readable
from datasites.hospital.data.delimited import CONTROL, Doubt, decoded, parse
from datasites.hospital.data.reading_messages import Cells
from datasites.hospital.dialect import Encoding, Separator
from datasites.study.errors import InputError

#: Names that pandas gives in Parquet to the row numbers of what it wrote; no content of a row.
_ROW_NUMBERS = re.compile(r"__index_level_[0-9]+__")


@dataclass(frozen=True)
class Table:
    """A hospital's table as it stands in its file, all text, "" where there is no value.

    places: of each row in the file, its line, or its number in Parquet. empty: how many lines or rows hold nothing and
    are left out. doubts: what people should look at (see `delimited.Doubt`).
    """

    path: Path
    cells: pd.DataFrame
    places: tuple[int, ...]
    empty: tuple[int, ...]
    doubts: tuple[Doubt, ...]

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def text(self) -> Cells:
        """The cells of the table, in the form in which they are sent."""
        return Cells.of(self.cells.columns, self.cells.itertuples(index=False, name=None))

    @property
    def place(self) -> str:
        """What `places` counts."""
        return "row" if self.path.suffix.lower() == ".parquet" else "line"


def read_table(path: Path, separator: Separator = ",", encoding: Encoding = "utf-8") -> Table:
    """Read delimited text or Parquet; raises `InputError` that names lines and never shows a patient's value."""
    with readable(path, "table"):
        return parse_table(path.read_bytes(), path, separator, encoding)


def parse_table(content: bytes, path: Path, separator: Separator = ",", encoding: Encoding = "utf-8") -> Table:
    """Parse a table file's content; `path` says how it is written, and what messages call it."""
    with readable(path, "table"):
        if path.suffix.lower() == ".parquet":
            return _parquet(content, path)
        read = parse(decoded(content, encoding, str(path)), separator, str(path))
        cells = pd.DataFrame(list(read.rows), columns=list(read.names), dtype=object)
        return Table(path, cells, read.lines, read.empty, read.doubts)


def parse_mock(content: bytes, path: Path) -> pd.DataFrame:
    """Read a mock table, CSV or Parquet, as researchers do, with the types of pandas; raises `InputError`.

    Its rows are invented and published, so that types may be guessed from all of them.
    """
    with readable(path, "mock"):
        file = io.BytesIO(content)
        return pd.read_parquet(file) if path.suffix.lower() == ".parquet" else pd.read_csv(file)


def _parquet(content: bytes, path: Path) -> Table:
    from pyarrow import parquet

    # A file tells what was damaged only where its writer wrote checksums of its pages; see TABLES.md.
    with parquet.ParquetFile(io.BytesIO(content), page_checksum_verification=True) as file:
        table = file.read()
    kept = [place for place, name in enumerate(table.column_names) if not _ROW_NUMBERS.fullmatch(name)]
    names = [table.column_names[place].strip() for place in kept]
    if twice := sorted({repr(name) for name in names if names.count(name) > 1}):
        raise InputError(
            f"{path}: {', '.join(twice)} is the name of more than one column (spaces around a name don't count); give "
            "each column a name of its own"
        )
    columns = [[cell_text(value) for value in table.columns[place].to_pylist()] for place in kept]
    for name, column in zip(names, columns, strict=True):
        if cut := sum(CONTROL.search(cell) is not None for cell in column):
            raise InputError(
                f"{path}: {cut} value(s) of column {name!r} hold control characters, at which readers cut "
                "values; correct the export"
            )
    rows = list(zip(*columns, strict=True))
    places = [number for number, row in enumerate(rows, 1) if any(cell.strip() for cell in row)]
    frame = pd.DataFrame([rows[place - 1] for place in places], columns=names, dtype=object)
    empty = tuple(sorted(set(range(1, len(rows) + 1)) - set(places)))
    return Table(path, frame, tuple(places), empty, ())
