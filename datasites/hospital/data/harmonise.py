"""Turns a hospital's own table into a study's common data model, by the hospital's `mapping.toml`.

Reads private rows; what leaves this file is a table for the trainer, a readiness report for the hospital's own eyes,
and a bare ready / not ready per feature. Error messages name columns and counts, never a patient's value.

Theorem (each row by itself). What `encode` of `harmonise` gives for a row, the numbers in x and y, whether it is left
out for want of a label, and whose it is, is a function of that row's cells, the mapping and the data model alone. So
for a table T and a set P of its rows, that of T without P is that of T without the rows of P, bit for bit, in the same
order.

Assumes: (a) rows are the records of a delimited file, or the rows of a Parquet file whose columns have the same types
with and without P (of decimals the scale is part of the type), except that whole numbers up to 2^53 may lie in columns
of whole numbers or of fractions, and any value as its text; how the hospital's export makes the file is not looked at;
(b) both tables are ready, and what people should look at was answered by them: one that isn't is refused as a whole,
which people see and nobody else (claim 9 of datasites/privacy/README.md);
(c) without a patient column, rows are named by `patients.row_identities`: of equal rows the last name goes, whichever
of them is taken away, and where these rows stand is then theirs as a set: the others keep their places.

Proof. (1) File to cells: the records of a delimited file are read by themselves (theorem in `delimited`); one of empty
fields gives no row. Of Parquet each value is turned into text alone, and a number of (a) into the same text from either
type. No type, date, missing word, dialect or index is inferred. (2) Cell to value: `_Reader` is made of the mapping and
the data model before a row is looked at, and what it reads is a pure function of the cell's text; results are kept by
text, which changes none. `word`, `code` and `number` hold no state. (3) Values to arrays: a column of values has one
dtype whatever it holds, float64 for numbers and yes/no, objects for levels. `Feature.encode` looks levels up one by one
and applies elementwise IEEE operations (clip, subtract, divide, round to float32) with public constants; their results
don't depend on an element's place but for the sign of a zero, which it takes away. Columns are laid side by side; a row
is dropped by its own label; none is moved. (4) Whose a row is: `pseudonym` of its own cell, or its given name. QED.

So neighbouring tables are neighbours after encoding, on which the bound on a patient's influence rests. A datasite
has `harmonise` and `encode` done apart (`reading`), where rows without a patient column have numbers; it gives each
its name of (c) by its number (`encoded.stage_records`), so that both ways make the same arrays
(`tests/hospital/isolated/test_process.py` for tables with a patient column).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

from datasites.hospital.data.cells import USUAL_FOR_MISSING, cell_text, code, number, pseudonym, word
from datasites.hospital.data.mapping import Column, FeatureReadiness, Mapping, one_meaning
from datasites.study.errors import InputError
from datasites.study.schema import DataModel, Feature, SchemaError

#: Column of a harmonised table that says whose a row is; no feature can be called so (`Name`).
WHOSE = "<patient>"
Finding = Literal["missing", "unmapped", "unfit", "out of range"]


@dataclass(frozen=True)
class _Reader:
    """Reads the cells of one column as values of one feature, each by itself."""

    feature: Feature
    column: Column

    @cached_property
    def _missing(self) -> frozenset[Decimal | str]:
        return frozenset(code(cell_text(entry)) for entry in self.column.missing)

    def key(self, text: str) -> Decimal | str:
        """Return what a key of `values` and a cell are compared by."""
        return word(text) if self.feature.type == "category" else code(text)

    @cached_property
    def _values(self) -> dict[Decimal | str, str]:
        pairs = ((self.key(key), cell_text(value)) for key, value in self.column.values.items())
        return one_meaning(pairs, "values")

    @cached_property
    def _levels(self) -> dict[str, str]:
        return {level.casefold(): level for level in self.feature.levels}

    @cached_property
    def _is_text(self) -> bool:
        """Say whether `values` adds words to a number's own values, and recodes none of them."""
        return self.feature.type == "number" and all(isinstance(key, str) for key in self._values)

    def faults(self) -> list[str]:
        """Return what is wrong with the mapping of this column, whatever the table holds."""
        try:
            _ = self._values
        except ValueError as error:
            return [str(error)]
        both = [key for key in self.column.values if code(key) in self._missing]
        return [f"{both[0]!r} stands in `values` and in `missing`; keep it in one of them"] if both else []

    def read(self, cell: str) -> tuple[float | str | None, Finding | None]:
        """Return the value that the cell stands for (None or NaN: missing) and the finding on it, if any."""
        if code(cell) in self._missing:
            return None, "missing"
        if self.column.values:
            meaning = self._values.get(self.key(cell))
            if meaning is not None:
                return self._mapped(meaning)
        if not word(cell):
            return None, "missing"
        if self.column.values and not self._is_text:
            return None, "unmapped"
        if self.feature.type == "category":
            level = self._levels.get(word(cell).casefold())
            return level, None if level is not None else "unmapped"
        exact = number(cell)
        if exact is None:
            return None, "unmapped"
        if self.column.above is not None:
            return self._in_range(float(float(exact) > self.column.above))
        return self._in_range(float(exact) * self.column.factor + self.column.offset)

    def hints(self, unread: Counter[str]) -> str:
        """Suggest what cells without a meaning may mean, without a patient's own text."""
        usual = Counter(word(cell).lower() for cell in unread.elements() if word(cell).lower() in USUAL_FOR_MISSING)
        suggestions = [
            f"{times} say {text!r}: if that means no value, name it in `missing`" for text, times in usual.items()
        ]
        keys = {code(key.casefold()) for key in (*self.column.values, *self._levels)}
        near = sum(times for cell, times in unread.items() if code(cell.casefold()) in keys)
        if near:
            suggestions.append(
                f"{near} differ from what the mapping or the study names in capitals, or in how a number is written"
            )
        return f" ({'; '.join(suggestions)})" if suggestions else ""

    def _mapped(self, value: str) -> tuple[float | str | None, Finding | None]:
        if self.feature.type == "category":
            return (value, None) if value in self.feature.levels else (None, "unfit")
        exact = number(value)
        return (None, "unfit") if exact is None else self._in_range(float(exact))

    def _in_range(self, value: float) -> tuple[float, Finding | None]:
        if self.feature.type == "boolean":
            return value, None if value in (0.0, 1.0) else "out of range"
        assert self.feature.low is not None
        assert self.feature.high is not None
        return value, "out of range" if value < self.feature.low or value > self.feature.high else None


def codes_that_match_nothing(feature: Feature, column: Column, cells: Iterable[str]) -> list[str]:
    """Return the entries of `missing` and `values` that no cell of this column is, as the mapping writes them."""
    reader, seen = _Reader(feature, column), set(cells)
    codes, keys = {code(cell) for cell in seen}, {reader.key(cell) for cell in seen}
    unused = [cell_text(entry) for entry in column.missing if code(cell_text(entry)) not in codes]
    return unused + [key for key in column.values if reader.key(key) not in keys]


def harmonise_column(table: pd.DataFrame, feature: Feature, column: Column) -> tuple[pd.Series, FeatureReadiness]:
    """Return one feature, (rows,), of the local table, and its readiness, which reports bad values; none is raised."""
    if column.source not in table.columns:
        reason = f"column {column.source!r} is not in the table; correct `from`"
        return pd.Series(dtype=object), FeatureReadiness(name=feature.name, ready=False, reason=reason)
    reader = _Reader(feature, column)
    if reasons := reader.faults():
        return pd.Series(dtype=object), FeatureReadiness(name=feature.name, ready=False, reason="; ".join(reasons))
    cells = [cell_text(value) for value in table[column.source]]
    read = {cell: reader.read(cell) for cell in set(cells)}
    values = pd.Series(
        [read[cell][0] for cell in cells], index=table.index, dtype=object if feature.type == "category" else np.float64
    )
    found = Counter(read[cell][1] for cell in cells)
    if found["unfit"]:
        wanted = {"boolean": "yes/no (1 or 0)", "number": "a number", "category": "one of its levels"}[feature.type]
        reasons.append(
            f"`values` makes words of {found['unfit']} value(s) of {column.source!r}, the study wants {wanted}"
        )
    if found["unmapped"]:
        unread = Counter(cell for cell in cells if read[cell][1] == "unmapped")
        reasons.append(
            f"{found['unmapped']} value(s) of {column.source!r} have no meaning here; add them to `values` or `missing`"
            + reader.hints(unread)
        )
    if feature.type == "boolean" and found["out of range"]:
        reasons.append(f"{found['out of range']} value(s) are not yes/no; set `values` or `above`")
    stated = {"factor", "offset"} & column.model_fields_set
    if column.unit and feature.unit and column.unit != feature.unit and not stated:
        reasons.append(
            f"unit is {column.unit!r}, the study wants {feature.unit!r}; set `factor` (1 where both are the same)"
        )
    report = FeatureReadiness(
        name=feature.name,
        ready=not reasons,
        reason="; ".join(reasons),
        unit=feature.unit,
        rows=len(cells),
        missing=found["missing"],
        out_of_range=found["out of range"],
        unmapped=found["unmapped"],
    )
    return values, report


def harmonise(
    table: pd.DataFrame, mapping: Mapping, model: DataModel, names: Sequence[str] | None = None
) -> tuple[pd.DataFrame, tuple[FeatureReadiness, ...]]:
    """Return the harmonised table (rows; features, label, `WHOSE`) and one readiness line for each feature and label.

    names: of the rows, where no column says whose they are (`patients.row_identities`); numbers unless given. Rows
    without a label are left out. When a feature is not ready the table lacks it; `encode` then refuses.
    """
    harmonised: dict[str, pd.Series] = {}
    reports = []
    for feature in (*model.features, model.label):
        column = mapping.columns.get(feature.name)
        if column is None:
            reports.append(
                FeatureReadiness(name=feature.name, ready=False, reason="not in mapping.toml; add it under [columns]")
            )
            continue
        values, report = harmonise_column(table, feature, column)
        reports.append(report)
        if report.ready:
            harmonised[feature.name] = values
    frame = pd.DataFrame(harmonised, index=table.index)
    if mapping.patient is None:
        frame[WHOSE] = np.arange(len(table)) if names is None else names
    elif mapping.patient not in table.columns:
        raise InputError(f"mapping.toml: patient column {mapping.patient!r} is not in the table; correct `patient`")
    else:
        frame[WHOSE] = [pseudonym(cell) for cell in table[mapping.patient]]
        if frame[WHOSE].isna().any():
            raise InputError(
                f"{int(frame[WHOSE].isna().sum())} row(s) of the table have no {mapping.patient!r}, its patient "
                "column; every record needs its patient: fill it in, or leave these rows out of the export"
            )
    if model.label.name in frame:
        frame = frame[frame[model.label.name].notna()]
    return frame, tuple(reports)


def encode(frame: pd.DataFrame, reports: Sequence[FeatureReadiness], model: DataModel) -> dict[str, np.ndarray]:
    """Encode for training: {"x": float32 (rows, columns), "y": float32 (rows,), "patient": str (rows,)}.

    Raises `SchemaError` when any feature is not ready.
    """
    late = [report for report in reports if not report.ready]
    if late:
        raise SchemaError(
            f"{len(late)} feature(s) not ready: " + "; ".join(f"{report.name}: {report.reason}" for report in late[:3])
        )
    x, y = model.encode(frame)
    patient = frame[WHOSE].astype(str).to_numpy(dtype=np.str_)
    return {"x": x, "y": y, "patient": patient}
