"""What people should look at in a table that can be read: it may still be broken, which no program can decide.

A finding blocks readiness until a person of the hospital says why it is right (`answers`), but for a table without
rows, which nobody can explain. It states counts, the file's lines and the remedy, and never a patient's value; it is
for the hospital's eyes alone: a researcher sees ready or not, as people decided it (I16).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import pandas as pd

from datasites.hospital.data.cells import cell_text, code, pseudonym, spelling_key, word
from datasites.hospital.data.findings import TableFinding
from datasites.hospital.data.harmonise import codes_that_match_nothing
from datasites.hospital.data.mapping import Column, Mapping
from datasites.hospital.data.tables import Table
from datasites.study.schema import DataModel, Feature

#: From this share of measured values outside the study's range on, a unit is more likely wrong than the patients.
MOST_OUT_OF_RANGE = 0.2
#: So many times fewer or more patients than declared are a finding.
FAR = 2.0
#: From this share on, rows that say the same are an export that was put together twice.
MOST_REPEATED = 0.05
#: Share of values that may lie outside the range under a conversion that explains them.
_STRAYS = 0.05
#: So few measured values may be alike by chance; classes are counted whatever there is.
_FEW = 20
#: Numbers by which tables often say that there is no value.
_CODES = frozenset(Decimal(sign * int("9" * digits)) for sign in (-1, 1) for digits in range(1, 7))
#: Rows at the end of a table that are compared with all others.
_LAST = 3
#: What tables call a row that is no patient.
_TOTALS = frozenset(
    ["total", "totals", "grand total", "sum", "mean", "average", "median", "count", "all"]
    + ["summe", "gesamt", "mittelwert", "anzahl", "somme", "moyenne", "totale", "media", "suma", "promedio"]
)
#: study = (local + shift) / times: what is measured ("": anything), times, shift, the local unit, and the study's.
CONVERSIONS: tuple[tuple[str, float, float, str, str], ...] = (
    ("creatinine", 88.42, 0.0, "µmol/L", "mg/dL"),
    ("glucose", 1 / 18.016, 0.0, "mmol/L", "mg/dL"),
    ("cholesterol", 1 / 38.67, 0.0, "mmol/L", "mg/dL"),
    ("triglycerides", 1 / 88.57, 0.0, "mmol/L", "mg/dL"),
    ("bilirubin", 17.1, 0.0, "µmol/L", "mg/dL"),
    ("urea", 0.357, 0.0, "mmol/L", "mg/dL of nitrogen"),
    ("", 12.0, 0.0, "months", "years"),
    ("", 365.25, 0.0, "days", "years"),
    ("", 2.2046, 0.0, "pounds", "kg"),
    ("", 1 / 2.54, 0.0, "inches", "cm"),
    ("", 1.8, -32.0, "°F", "°C"),
    ("", 0.133322, 0.0, "kPa", "mm[Hg]"),
    *(("", 10.0**power, 0.0, f"the unit's 10^{-power}", "the unit") for power in (-6, -3, -2, -1, 1, 2, 3, 6)),
)

#: How studies write the units above, where these aren't of one substance alone.
_WRITTEN = {
    "years": {"a", "y", "yr", "year", "years"},
    "kg": {"kg"},
    "cm": {"cm"},
    "°C": {"Cel", "°C"},
    "mm[Hg]": {"mm[Hg]", "mmHg"},
}


def findings(
    table: Table, frame: pd.DataFrame, mapping: Mapping, model: DataModel, declared_patients: int
) -> tuple[TableFinding, ...]:
    """Return all findings on a table.

    frame: the result of `harmonise`, shape (rows, columns): a column for each feature that is ready, the label among
    them, and the rows of the table but for those without a label.
    """
    if not len(table):
        text = f"the table has no rows, and {declared_patients} patients are declared; is it the right file?"
        return (TableFinding("no_rows", "", 1.0, text),)
    found: list[TableFinding] = []
    if not len(frame):
        text = f"none of the table's {len(table)} rows has the label, so none is left; is `from` the right column?"
        found.append(TableFinding("no_rows", "", 1.0, text))
    found += [*_of_the_file(table), *_of_patients(table, mapping, declared_patients), *_of_rows(table, mapping)]
    for feature in (*model.features, model.label):
        if feature.name in frame.columns and (len(frame) or feature is model.label):
            found += _of_a_feature(feature, frame[feature.name], len(table), is_label=feature is model.label)
            found += _of_its_codes(feature, table, mapping)
    return tuple(found)


def _of_the_file(table: Table) -> Iterator[TableFinding]:
    for doubt in table.doubts:
        share = len(doubt.lines) / len(table)
        if doubt.kind == "open_quote":
            text = (
                f"{_lines(doubt.lines)} hold a quoted text that looks like further records: a quote that was left open "
                "would swallow patients like that; compare these lines with the source"
            )
        else:
            text = f"the last line ({doubt.lines[0]}) has no line end: a file that was cut off looks like that"
        yield TableFinding(doubt.kind, "", share, text)


def _of_patients(table: Table, mapping: Mapping, declared_patients: int) -> Iterator[TableFinding]:
    if mapping.patient is None or mapping.patient not in table.cells.columns:
        patients = len(table)
    else:
        names = {name for name in map(pseudonym, table.cells[mapping.patient]) if name is not None}
        patients = len(names)
        together = Counter(map(spelling_key, names))
        if alike := sum(times for times in together.values() if times > 1):
            yield TableFinding(
                "spellings",
                "",
                alike / max(1, patients),
                f"{alike} identifiers of {mapping.patient!r} differ from another one only in capitals, in spaces or "
                "invisible characters, in composed letters or in how a number is written: if they are one patient, "
                "that patient counts twice and a withdrawal finds half of the records; make them one in the export",
            )
    fewer, more = sorted((patients, declared_patients))
    if fewer * FAR < more:
        yield TableFinding(
            "patients",
            "",
            1 - fewer / more,
            f"{patients} patients, and {declared_patients} are declared; is the export whole, and are its "
            "patients those of this dataset?",
        )


def _of_rows(table: Table, mapping: Mapping) -> Iterator[TableFinding]:
    rows = list(table.cells.itertuples(index=False, name=None))
    written = Counter(rows)
    again = len(rows) - len(written)
    # Without a patient column patients may be alike, but hardly each one to just one other.
    of_patients = mapping.patient is not None and again / len(rows) >= MOST_REPEATED
    if of_patients or (len(rows) > 2 and all(times % 2 == 0 for times in written.values())):
        yield TableFinding(
            "repeated",
            "",
            again / len(rows),
            f"{again} of {len(rows)} rows say the same as another one in all columns; was an export appended twice?",
        )
    if len(rows) > 2 * _LAST:
        names = table.cells.get(mapping.patient) if mapping.patient is not None else None
        shapes = [""] * len(rows) if names is None else [_shape(name) for name in names]
        usual = set(shapes[:-_LAST])
        for place, cells, shape in zip(table.places[-_LAST:], rows[-_LAST:], shapes[-_LAST:], strict=True):
            named = any(word(cell).casefold().rstrip(":") in _TOTALS for cell in cells)
            if named or (len(usual) == 1 and shape not in usual):
                yield TableFinding(
                    "last_row",
                    "",
                    1 / len(rows),
                    f"the row at {table.place} {place}, near the end, is unlike the others: a row of totals would be "
                    "one more patient; leave it out of the export",
                )
                break


def _shape(identifier: str) -> str:
    """Return the pattern of an identifier: digits, letters, other characters as they are; a run counts as one."""
    kinds = ["9" if letter.isdigit() else "a" if letter.isalpha() else letter for letter in identifier.strip()]
    return "".join(kind for before, kind in zip(["", *kinds], kinds, strict=False) if kind != before)


def _of_a_feature(feature: Feature, values: pd.Series, rows: int, *, is_label: bool) -> Iterator[TableFinding]:
    measured = values[values.notna()]
    name = feature.name
    if not len(measured):
        yield TableFinding(
            "missing",
            name,
            1.0,
            f"{name}: missing in all {rows} rows; is `from` the right column, and does `missing` name too much?",
        )
        return
    if len(measured) > (1 if is_label else _FEW) and measured.nunique() == 1:
        what = "one class only" if is_label else "one value only"
        yield TableFinding(
            "constant", name, 1.0, f"{name}: {what} in {len(measured)} of {rows} rows; is the mapping right?"
        )
    if feature.type != "number":
        return
    numbers = measured.to_numpy(dtype=np.float64)
    if infinite := int(np.isinf(numbers).sum()):
        yield TableFinding(
            "infinite", name, infinite / len(numbers), f"{name}: {infinite} of {len(numbers)} values are infinite"
        )
    out = _outside(feature, numbers)
    if out / len(numbers) >= MOST_OUT_OF_RANGE:
        unit = f" {feature.unit}" if feature.unit else ""
        text = (
            f"{name}: {out} of {len(numbers)} values lie outside the study's range, {feature.low:g} to "
            f"{feature.high:g}{unit}, and would be clamped to it; is the unit right?"
        )
        text += _conversions(feature, numbers)
        yield TableFinding("out_of_range", name, out / len(numbers), text)


def _outside(feature: Feature, numbers: npt.NDArray[np.float64]) -> int:
    assert feature.low is not None
    assert feature.high is not None
    return int(((numbers < feature.low) | (numbers > feature.high)).sum())


def _conversions(feature: Feature, numbers: npt.NDArray[np.float64]) -> str:
    """Name conversions under which nearly all values lie in the range; those of this feature's own kind first.

    Of others, those whose middle value comes nearest to the study's centre.
    """
    both_ways = [
        *((what, 1 / times, shift / times, times, there, here) for what, times, shift, there, here in CONVERSIONS),
        *((what, times, -shift, 1 / times, here, there) for what, times, shift, there, here in CONVERSIONS if what),
    ]
    named = f"{feature.name} {feature.description}".casefold()
    fitting = []
    for what, factor, offset, times, there, here in both_ways:
        if not what and feature.unit and feature.unit not in _WRITTEN.get(here, {feature.unit}):
            continue
        if _outside(feature, numbers * factor + offset) <= _STRAYS * len(numbers) and (not what or what in named):
            distance = abs(float(np.median(numbers)) * factor + offset - feature.centre)
            setting = f"factor = {factor:.4g}" + (f", offset = {offset:.4g}" if offset else "")
            fitting.append((not what, distance, f"{there}, ×{times:.4g} of {here}: {setting}"))
    likely = sorted(fitting)[:1] if fitting and not min(fitting)[0] else sorted(fitting)[:2]
    return f" They would fit as {' or as '.join(conversion for *_, conversion in likely)}" if likely else ""


def _of_its_codes(feature: Feature, table: Table, mapping: Mapping) -> Iterator[TableFinding]:
    column = mapping.columns[feature.name]
    if unused := codes_that_match_nothing(feature, column, table.cells[column.source]):
        yield TableFinding(
            "unused_code",
            feature.name,
            0.0,
            f"{feature.name}: no row has {', '.join(map(repr, unused[:5]))}, which mapping.toml names",
        )
    yield from _of_codes_for_nothing(feature, column, table.cells[column.source])
    if feature.type != "category":
        return
    cells = Counter(map(word, table.cells[column.source]))
    numbers = Counter(map(code, cells))
    if alike := sum(times for cell, times in cells.items() if numbers[code(cell)] > 1):
        yield TableFinding(
            "one_number",
            feature.name,
            alike / len(table),
            f"{feature.name}: {alike} of {len(table)} rows of {column.source!r} have a code that another row writes "
            "otherwise, as 1 and 1.0; they are two codes here: compare with `values` that each is meant",
        )


def _of_codes_for_nothing(feature: Feature, column: Column, cells: pd.Series) -> Iterator[TableFinding]:
    """Yield codes such as -9 that would be taken for a value: clamped to the range, or a no under `above`."""
    named = {code(cell_text(entry)) for entry in (*column.missing, *column.values)}
    read = Counter(code(cell) for cell in cells)
    numbers = {value: times for value, times in read.items() if isinstance(value, Decimal) and value not in named}
    if column.above is not None:
        has_negatives = any(value < 0 and value not in _CODES for value in numbers)
        meant = [value for value in numbers if value in _CODES and value < 0 and not has_negatives]
        becomes = "a no under `above`"
    elif feature.type == "number":
        converted = {value: float(value) * column.factor + column.offset for value in numbers if value in _CODES}
        meant = [value for value, number in converted.items() if _outside(feature, np.array([number]))]
        becomes = "an end of the study's range"
    else:
        return
    if rows := sum(numbers[value] for value in meant):
        yield TableFinding(
            "coded",
            feature.name,
            rows / len(cells),
            f"{feature.name}: {rows} of {len(cells)} rows of {column.source!r} say "
            f"{', '.join(map(str, sorted(meant)))}, by which tables often say that there is no value, and would become "
            f"{becomes}; name it in `missing`",
        )


def _lines(lines: Sequence[int]) -> str:
    return f"{len(lines)} record(s) (line {', '.join(map(str, lines[:5]))}{', …' if len(lines) > 5 else ''})"
