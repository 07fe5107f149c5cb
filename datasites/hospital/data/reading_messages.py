"""The messages between a datasite and the process that reads its tables (`reading`); imports little, for both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from datasites.hospital.data.findings import TableFinding
from datasites.hospital.data.mapping import FeatureReadiness, Mapping
from datasites.hospital.dialect import Encoding, Separator
from datasites.study.canonical import Agreed
from datasites.study.schema import DataModel

Count = Annotated[int, Field(ge=0, le=2**40)]


class ReadTable(Agreed):
    """Read a table. file: as messages call it, and how it is written. cells: hand them back.

    mapping, model: harmonise it. encode: for training, unless it has more than `most_rows`.
    """

    kind: Literal["table"] = "table"
    file: str
    separator: Separator
    encoding: Encoding
    declared_patients: int
    mapping: Mapping | None = None
    model: DataModel | None = None
    cells: bool = False
    encode: bool = False
    most_rows: int = 0


class ReadMock(Agreed):
    """Read a mock table, and encode it for a data model."""

    kind: Literal["mock"] = "mock"
    file: str
    model: DataModel | None = None


class TableSummary(Agreed):
    """A table as a study reads it. rows, empty: that it has; kept: that have a label, of so many patients.

    Of a table that was not harmonised, there are its rows alone.
    """

    rows: Count
    empty: Count
    names: tuple[str, ...] = ()
    features: tuple[FeatureReadiness, ...] = ()
    findings: tuple[TableFinding, ...] = ()
    kept: Count = 0
    patients: Count = 0
    most_records: Count = 1


class MockSeen(Agreed):
    """A mock table."""

    rows: Count


@dataclass(frozen=True)
class Cells:
    """The cells of a table, row by row: `text` is all of them joined, `lengths` (cells,) each one's characters."""

    names: tuple[str, ...]
    text: str = field(repr=False)
    lengths: npt.NDArray[np.int64] = field(repr=False)

    @classmethod
    def of(cls, names: Iterable[str], rows: Iterable[Sequence[str]]) -> Cells:
        """Make cells of the rows of a table, each with one cell for each name."""
        flat = [cell for row in rows for cell in row]
        return cls(tuple(names), "".join(flat), np.fromiter(map(len, flat), np.int64, len(flat)))

    def __len__(self) -> int:
        return len(self.lengths) // max(1, len(self.names))

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """Iterate over the rows."""
        place, width = 0, len(self.names)
        for row in range(len(self)):
            cells = []
            for length in self.lengths[row * width : (row + 1) * width].tolist():
                cells.append(self.text[place : place + length])
                place += length
            yield tuple(cells)

    def column(self, name: str) -> list[str]:
        """Return the cells of one column; `name` is one of `names`."""
        place = self.names.index(name)
        return [row[place] for row in self]
