"""What a table that can be read says may be wrong all the same: people are asked, with counts and never a value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datasites.hospital.config import DatasetSettings
from datasites.hospital.data.answers import GROWTH
from datasites.hospital.data.cells import spelling_key
from datasites.hospital.data.findings import NOTES, TableFinding
from datasites.hospital.data.harmonise import harmonise
from datasites.hospital.data.mapping import Mapping
from datasites.hospital.data.plausible import findings
from datasites.hospital.data.tables import read_table
from datasites.study.schema import DataModel

MODEL = DataModel.model_validate(
    {
        "features": [
            {"name": "age", "type": "number", "unit": "a", "low": 20, "high": 90, "centre": 55, "scale": 20},
            {
                "name": "creatinine",
                "type": "number",
                "unit": "mg/dL",
                "indicator": True,
                "low": 0,
                "high": 15,
                "centre": 1,
            },
        ],
        "label": {"name": "died", "type": "boolean"},
    }
)
MAPPING = Mapping.model_validate(
    {
        "patient": "id",
        "columns": {
            "age": {"from": "age"},
            "creatinine": {"from": "crea", "missing": [-9]},
            "died": {"from": "died"},
        },
    }
)
HEAD = ["id", "age", "crea", "died"]
Row = tuple[str, str, str, str]


def honest(place: int) -> Row:
    return (f"P{place:02d}", str(40 + place), "-9" if place == 7 else f"{0.8 + place / 50:.2f}", str(place % 2))


def found(
    folder: Path, rows: list[Row], *, declared: int = 40, mapping: Mapping = MAPPING, end: str = "\n"
) -> dict[str, TableFinding]:
    path = folder / "table.csv"
    path.write_bytes(("\n".join([",".join(HEAD), *(",".join(row) for row in rows)]) + end).encode())
    table = read_table(path)
    said = DatasetSettings(
        name="d",
        table="t",
        mapping="m",
        mock="k",
        summary="s",
        declared_patients=declared,
        epsilon=3,
        delta=1e-5,
        study_epsilon=3,
    )
    frame, _ = harmonise(table.cells, mapping, MODEL)
    return {finding.name: finding for finding in findings(table, frame, mapping, MODEL, said.declared_patients)}


ROWS = [honest(place) for place in range(40)]


def test_an_honest_table_has_no_finding(tmp_path: Path) -> None:
    assert found(tmp_path, ROWS) == {}


def each(change: Callable[[int, Row], Row]) -> list[Row]:
    return [change(place, row) for place, row in enumerate(ROWS)]


#: What is broken: rows, then findings by name with words that are said of each.
BROKEN: dict[str, tuple[list[Row], dict[str, str]]] = {
    "no rows": ([], {"no_rows": "40 patients are declared"}),
    "ages in months": (
        each(lambda i, row: (row[0], str(12 * int(row[1])), *row[2:])),
        {
            "out_of_range:age": "40 of 40 values lie outside the study's range, 20 to 90 a, and would be clamped to "
            "it; is the unit right? They would fit as months, ×12 of years: factor = 0.08333"
        },
    ),
    "creatinine in another unit": (
        each(lambda i, row: (*row[:2], "-9" if i == 7 else f"{88.4 * float(row[2]):.1f}", row[3])),
        {"out_of_range:creatinine": "µmol/L, ×88.42 of mg/dL: factor = 0.01131"},
    ),
    "one class": (each(lambda i, row: (*row[:3], "1")), {"constant:died": "one class only"}),
    "one value": (each(lambda i, row: (row[0], "50", *row[2:])), {"constant:age": "one value only in 40 of 40 rows"}),
    "an infinite value": (
        each(lambda i, row: (row[0], "inf" if i == 3 else row[1], *row[2:])),
        {"infinite:age": "1 of 40 values are infinite"},
    ),
    "missing everywhere": (
        each(lambda i, row: (*row[:2], "-9", row[3])),
        {"missing:creatinine": "missing in all 40 rows"},
    ),
    "no label": (
        each(lambda i, row: (*row[:3], "")),
        {"missing:died": "missing in all 40 rows", "no_rows": "none of the table's 40 rows has the label"},
    ),
    "totals": ([*ROWS, ("Total", "59", "1.2", "1")], {"last_row": "the row at line 42"}),
    "totals without a word": ([*ROWS, ("-", "59", "1.2", "1")], {"last_row": "unlike the others"}),
    "totals under a word in another column": (
        [*ROWS, ("P99", "59", "1.2", "1"), ("Summe:", "59", "1.2", "1")],
        {"last_row": ""},
    ),
    "the same twice": ([*ROWS, *ROWS], {"repeated": "40 of 80 rows say the same"}),
    "some of it twice": ([*ROWS, *ROWS[:4]], {"repeated": "4 of 44 rows"}),
    "few patients": (ROWS[:19], {"patients": "19 patients, and 40 are declared"}),
    "many patients": (
        [(f"{row[0]}{part}", *row[1:]) for part in "xyz" for row in ROWS],
        {"patients": "120 patients, and 40 are declared"},
    ),
    "a code that nothing is": (
        each(lambda i, row: (*row[:2], "1" if i == 7 else row[2], row[3])),
        {"unused_code:creatinine": "no row has '-9'"},
    ),
}
SPELT = {
    "capitals": ("P03", "p03"),
    "an invisible character": ("P03", "P03\u200b"),
    "a no-break space": ("P 99", "P\u00a099"),
    "a soft hyphen": ("P03", "P\u00ad03"),
    "a selector of a variant": ("P03", "P03\ufe0f"),
    "a joiner": ("P03", "P\u034f03"),
    "a filler": ("P03", "P03\u3164"),
    "an empty sign of Braille": ("P03", "P\u280003"),
    "a separator of lines": ("P03", "P0\u20283"),
    "a large exponent": ("1e99999999", "10e99999998"),
    "a fraction of a number": ("12", "12.0"),
    "zeros before": ("007", "7"),
    "an exponent": ("1E5", "100000"),
    "fullwidth letters": ("P03", "\uff30\uff10\uff13"),
    "fullwidth digits": ("12", "\uff11\uff12"),
    "composed letters": ("Ö3", "O\u03083"),
    "a sharp s": ("STRASSE", "straße"),
}
BROKEN |= {
    f"identifiers that differ in {what}": (
        each(lambda i, row, spelt=spelt: (spelt[i], *row[1:]) if i < 2 else row),  # type: ignore[misc]
        {"spellings": "2 identifiers of 'id'"},
    )
    for what, spelt in SPELT.items()
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_implausible_is_a_finding(what: str, tmp_path: Path) -> None:
    rows, wanted = BROKEN[what]
    got = found(tmp_path, rows)
    assert set(wanted) <= set(got)
    for name, words in wanted.items():
        assert words in got[name].text
        assert got[name].blocks == (got[name].kind not in NOTES)
    assert all("P03" not in finding.text and "Total" not in finding.text for finding in got.values())


def test_no_unit_is_named_that_measures_something_else(tmp_path: Path) -> None:
    """Ages that would fit if they were pounds, inches or degrees."""
    said = found(tmp_path, each(lambda i, row: (row[0], str(120 + i), *row[2:])))["out_of_range:age"].text
    assert "40 of 40 values lie outside" in said
    assert not any(unit in said for unit in ("pounds", "inches", "°F", "kPa"))


def test_few_values_that_are_alike_are_no_finding_but_few_labels_are(tmp_path: Path) -> None:
    few = each(lambda i, row: (*row[:2], "1.1" if i < 20 else "-9", row[3]))
    assert found(tmp_path, few) == {}
    more = each(lambda i, row: (*row[:2], "1.1" if i < 21 else "-9", row[3]))
    assert set(found(tmp_path, more)) == {"constant:creatinine"}
    labels = each(lambda i, row: (*row[:3], "1" if i < 2 else ""))
    assert set(found(tmp_path, labels)) == {"constant:died"}


def test_a_file_that_is_not_ended_is_a_finding(tmp_path: Path) -> None:
    assert set(found(tmp_path, ROWS, end="")) == {"not_ended"}


def test_without_a_patient_column_equal_rows_are_patients_unless_the_whole_stands_twice(tmp_path: Path) -> None:
    mapping = MAPPING.model_copy(update={"patient": None})
    assert found(tmp_path, [*ROWS, *ROWS[:4]], mapping=mapping) == {}
    assert "repeated" in found(tmp_path, [*ROWS, *ROWS], mapping=mapping)
    assert "repeated" in found(tmp_path, sorted([*ROWS, *ROWS]), mapping=mapping)


@pytest.mark.parametrize(
    "names",
    [
        ("P1", "P2"),
        ("P1", "P10"),
        ("1", "-1"),
        ("a1", "1a"),
        ("1.5", "15"),
        ("Ö", "O"),
        ("9" * 32, "9" * 31 + "8"),
        ("1e-9999999", "0"),
        (f"{10**29}", f"{10**29 + 1}"),
    ],
)
def test_other_identifiers_stay_others(names: tuple[str, str]) -> None:
    assert spelling_key(names[0]) != spelling_key(names[1])


@pytest.mark.parametrize(
    "names",
    [
        ("1e2345678", "01E2345678"),
        ("P\ufe0f1", "P1"),
        ("P\u20281", "P1"),
        ("P\u034f1", "P1"),
        ("000", "-0.0"),
        ("8.0", "8"),
    ],
)
def test_spellings_that_look_alike_or_are_one_number_are_one(names: tuple[str, str]) -> None:
    """Of a name in hexadecimal digits, too, which happens to be a number that is too large to count to."""
    assert spelling_key(names[0]) == spelling_key(names[1])


def test_an_answer_to_few_patients_is_none_to_far_fewer(tmp_path: Path) -> None:
    """An export that lacks half of the hospital may be right; one that lacks nearly all of it is another question."""
    half, few = (found(tmp_path, ROWS[:patients])["patients"].share for patients in (19, 3))
    many = found(tmp_path, ROWS, declared=10)["patients"].share
    assert (half, few, many) == (1 - 19 / 40, 1 - 3 / 40, 0.75)
    assert few > half + GROWTH
