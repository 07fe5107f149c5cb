"""The other end of `reading`: parses, harmonises and encodes tables in a process of their own (`isolated.child`)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field, TypeAdapter

from datasites.hospital.data.findings import TableFinding
from datasites.hospital.data.harmonise import WHOSE, encode, harmonise
from datasites.hospital.data.mapping import FeatureReadiness, Mapping
from datasites.hospital.data.plausible import findings
from datasites.hospital.data.reading_messages import MockSeen, ReadMock, ReadTable, TableSummary
from datasites.hospital.data.tables import Table, parse_mock, parse_table
from datasites.hospital.isolated.child import Answer
from datasites.hospital.isolated.frames import Numbers, texts_packed
from datasites.study.canonical import Agreed
from datasites.study.schema import DataModel

_REQUEST: TypeAdapter[ReadTable | ReadMock] = TypeAdapter(Annotated[ReadTable | ReadMock, Field(discriminator="kind")])


@dataclass(frozen=True)
class Look:
    """A table as a study reads it: frame (rows; features, label), readiness of features, and findings."""

    table: Table
    frame: pd.DataFrame
    features: tuple[FeatureReadiness, ...]
    findings: tuple[TableFinding, ...]

    @classmethod
    def at(cls, table: Table, mapping: Mapping, model: DataModel, declared_patients: int) -> Look:
        """Harmonise a table and look for what people should look at; raises `InputError`."""
        frame, features = harmonise(table.cells, mapping, model)
        return cls(table, frame, features, findings(table, frame, mapping, model, declared_patients))

    def seen(self) -> TableSummary:
        """Describe it in counts and words."""
        records = self.frame[WHOSE].value_counts()
        return TableSummary(
            rows=len(self.table),
            empty=len(self.table.empty),
            names=tuple(self.table.cells.columns),
            features=self.features,
            findings=self.findings,
            kept=len(self.frame),
            patients=len(records),
            most_records=int(records.max()) if len(records) else 1,
        )


def answering(*formats: str) -> Answer:
    """Return the function that answers requests; formats: of files other than text, imported before any is read."""
    for name in formats:
        importlib.import_module(f"pyarrow.{name}")
    return _answer


def _answer(request: bytes, content: Callable[[], bytes]) -> tuple[Agreed, Numbers]:
    wanted = _REQUEST.validate_json(request)
    return _table(wanted, content()) if isinstance(wanted, ReadTable) else _mock(wanted, content())


def _table(wanted: ReadTable, content: bytes) -> tuple[Agreed, Numbers]:
    table = parse_table(content, Path(wanted.file), wanted.separator, wanted.encoding)
    arrays: Numbers = {}
    if wanted.cells:
        text = table.text
        arrays = {**texts_packed("cells", [text.text]), "cells_lengths": text.lengths}
    counted = TableSummary(rows=len(table), empty=len(table.empty), names=tuple(table.cells.columns))
    if wanted.model is None or wanted.mapping is None:
        return counted, arrays
    if wanted.encode and len(table) > wanted.most_rows:
        return counted, {}
    look = Look.at(table, wanted.mapping, wanted.model, wanted.declared_patients)
    if wanted.encode:
        records = encode(look.frame, look.features, wanted.model)
        arrays |= {"x": records["x"], "y": records["y"], **texts_packed("whose", records["patient"].tolist())}
    return look.seen(), arrays


def _mock(wanted: ReadMock, content: bytes) -> tuple[Agreed, Numbers]:
    table = parse_mock(content, Path(wanted.file))
    if wanted.model is None:
        return MockSeen(rows=len(table)), {}
    x, y, patients = wanted.model.encode_mock(table)
    return MockSeen(rows=len(table)), {"x": x, "y": y, "patients": patients}
