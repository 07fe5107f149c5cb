"""Turns a hospital's own table into a study's common data model, by the hospital's `mapping.toml`.

Reads private rows; what leaves this file is a table for the trainer, a readiness report for the hospital's own eyes,
and a bare ready / not ready per feature. Error messages name columns and counts, never a patient's value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from datasites.study.canonical import Agreed, canonical_json
from datasites.study.errors import InputError, read_toml
from datasites.study.manifest import Name
from datasites.study.schema import DataModel, Feature, SchemaError


class Column(Agreed):
    """How one feature is made from one local column.

    `missing` lists local codes for "not measured"; `values` maps local words or codes to the study's; `above` makes a
    yes/no of a number (value > above); `factor` and `offset` convert units (study = local * factor + offset).
    """

    source: str = Field(alias="from", min_length=1)
    unit: str = ""
    factor: float = 1.0
    offset: float = 0.0
    missing: tuple[str | int | float, ...] = ()
    values: dict[str, str | int | float] = {}
    above: float | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Column:
        if self.values and self.above is not None:
            raise ValueError("set either values or above, not both")
        return self


class Mapping(Agreed):
    """The whole of `mapping.toml`: patient column (optional: without it each row is one patient) and features."""

    patient: str | None = None
    columns: dict[Name, Column]


class FeatureReadiness(Agreed):
    """What the hospital sees of one feature; `ready` and `name` alone are what a researcher may see."""

    name: str
    ready: bool
    reason: str = ""
    unit: str = ""
    rows: int = 0
    missing: int = 0
    out_of_range: int = 0
    unmapped: int = 0


class Prepared(Agreed):
    """A prepared dataset's description; the arrays lie beside it in the hospital's private folder.

    content_hash: of the records (`records_digest`). It confirms guesses at them, so it never leaves this folder.
    """

    content_hash: str
    patient_unit: Literal["patient", "row"]
    rows: int
    patients: int


def read_table(path: Path, patient: str | None = None) -> pd.DataFrame:
    """Read CSV or Parquet; raises `InputError`.

    patient: the column that says whose a row is. It is read as the text that stands in the file, since identifiers
    are no numbers: 000002 is not 2, and a withdrawal must find the patient by the words that people use.
    """
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, dtype=None if patient is None else {patient: str})
        if patient is not None and patient in table.columns:
            table[patient] = table[patient].map(pseudonym, na_action="ignore")
        return table
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such table; mend `table` in datasite.toml") from error
    except ImportError as error:
        raise InputError(f"{path}: reading Parquet needs the package pyarrow; install it, or save as CSV") from error
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a readable table ({type(error).__name__}); expected CSV or Parquet") from None


def pseudonym(value: object) -> str | None:
    """A patient's identifier as text, without white space around it (None for no more than that).

    Whole numbers of a Parquet column are written as such.
    """
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip() or None


def read_mapping(path: Path) -> Mapping:
    """Read `mapping.toml`; raises `InputError`."""
    return read_toml(path, Mapping)


def _local_key(value: Any) -> str:
    # 1, 1.0, True and "1" written in TOML and in a table must meet.
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip().lower() if isinstance(value, str) else str(value)


def harmonise_column(table: pd.DataFrame, feature: Feature, column: Column) -> tuple[pd.Series, FeatureReadiness]:
    """One feature from the local table, and its readiness; nothing raises for a value, the report says it."""
    if column.source not in table.columns:
        reason = f"column {column.source!r} is not in the table; mend `from`"
        return pd.Series(dtype=object), FeatureReadiness(name=feature.name, ready=False, reason=reason)
    local = table[column.source]
    missing = local.isna() | local.map(_local_key).isin([_local_key(code) for code in column.missing])
    local = local.where(~missing)
    unmapped = 0
    if column.values:
        known = {_local_key(key): value for key, value in column.values.items()}
        values = local.map(lambda value: known.get(_local_key(value)), na_action="ignore")
        unmapped = int((values.isna() & ~missing).sum())
    elif feature.type == "category":
        values = local.map(_local_key, na_action="ignore")
        unmapped = int((~values.isin(feature.levels) & ~missing).sum())
    else:
        number = pd.to_numeric(local.map(lambda v: float(v) if isinstance(v, bool | np.bool_) else v), errors="coerce")
        unmapped = int((number.isna() & ~missing).sum())
        if column.above is not None:
            values = (number > column.above).astype(float).where(~number.isna())
        else:
            values = number * column.factor + column.offset
    out_of_range = 0
    no_numbers = 0
    if feature.type in ("number", "boolean") and not unmapped:
        number = pd.to_numeric(values, errors="coerce")
        no_numbers = int((number.isna() & values.notna()).sum())
        if feature.type == "number":
            out_of_range = int(((number < feature.low) | (number > feature.high)).sum())
        else:
            out_of_range = int((~number.dropna().isin((0.0, 1.0))).sum())
    reasons = []
    if no_numbers:
        wanted = "yes/no (1 or 0)" if feature.type == "boolean" else "a number"
        reasons.append(f"`values` makes words of {no_numbers} value(s) of {column.source!r}, the study wants {wanted}")
    if unmapped:
        reasons.append(
            f"{unmapped} value(s) of {column.source!r} have no meaning here; add them to `values` or `missing`"
        )
    if feature.type == "boolean" and out_of_range:
        reasons.append(f"{out_of_range} value(s) are not yes/no; set `values` or `above`")
    if column.unit and feature.unit and column.unit != feature.unit and column.factor == 1.0 and column.offset == 0.0:
        reasons.append(f"unit is {column.unit!r}, the study wants {feature.unit!r}; set `factor`")
    report = FeatureReadiness(
        name=feature.name,
        ready=not reasons,
        reason="; ".join(reasons),
        unit=feature.unit,
        rows=len(local),
        missing=int(missing.sum()),
        out_of_range=out_of_range,
        unmapped=unmapped,
    )
    return values, report


def harmonise(
    table: pd.DataFrame, mapping: Mapping, model: DataModel, names: Sequence[str] | None = None
) -> tuple[pd.DataFrame, tuple[FeatureReadiness, ...]]:
    """The harmonised table (features, label, `patient`) and one readiness line per feature and for the label.

    names: of the rows, where no column says whose they are (`patients.row_identities`); numbers unless given. Rows
    without a label are left out. When a feature is not ready the table lacks it; `prepare` then refuses.
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
        frame["patient"] = np.arange(len(table)) if names is None else names
    elif mapping.patient not in table.columns:
        raise InputError(f"mapping.toml: patient column {mapping.patient!r} is not in the table; mend `patient`")
    else:
        frame["patient"] = table[mapping.patient]
        if frame["patient"].isna().any():
            raise InputError(
                f"mapping.toml: {int(frame['patient'].isna().sum())} row(s) have no {mapping.patient!r}; "
                "every record needs its patient"
            )
    if model.label.name in frame:
        frame = frame[frame[model.label.name].notna()]
    return frame, tuple(reports)


def prepare(
    table: pd.DataFrame, mapping: Mapping, model: DataModel, names: Sequence[str] | None = None
) -> tuple[dict[str, np.ndarray], tuple[FeatureReadiness, ...], Prepared]:
    """Encode for training: {"x": float32 (rows, columns), "y": float32 (rows,), "patient": str (rows,)}.

    names: as for `harmonise`. Raises `SchemaError` when any feature is not ready. The digest is over the encoded
    arrays, so an approval, which binds a commitment to it, binds the very numbers that are trained on.
    """
    frame, reports = harmonise(table, mapping, model, names)
    late = [report for report in reports if not report.ready]
    if late:
        raise SchemaError(
            f"{len(late)} feature(s) not ready: " + "; ".join(f"{report.name}: {report.reason}" for report in late[:3])
        )
    x, y = model.encode(frame)
    patient = frame["patient"].astype(str).to_numpy(dtype=np.str_)
    arrays = {"x": x, "y": y, "patient": patient}
    prepared = Prepared(
        content_hash=records_digest(model, arrays),
        patient_unit="row" if mapping.patient is None else "patient",
        rows=len(x),
        patients=len(np.unique(patient)),
    )
    return arrays, reports, prepared


def records_digest(model: DataModel, arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over the encoded arrays and the names of their columns; for this hospital's private folder only."""
    digest = hashlib.sha256(canonical_json([list(arrays["x"].shape), list(model.columns)]))
    for name in ("x", "y"):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    digest.update("\0".join(arrays["patient"]).encode())
    return digest.hexdigest()
