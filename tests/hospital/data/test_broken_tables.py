"""Tables as hospitals' exports break them, from file to verdict: none that is broken is ready, and honest ones are.

Each is a table of 40 invented patients in which one thing is wrong, written as CSV in several dialects and, where the
fault has a place there, as Parquet. What is said names the file's line, or a column, with a count and a remedy, and no
cell of a patient.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from datasites.hospital.config import Home
from datasites.hospital.data.mapping import read_mapping
from datasites.hospital.data.reading_child import Look
from datasites.hospital.data.tables import read_table
from datasites.study.errors import InputError
from datasites.study.schema import DataModel

MODEL = DataModel.model_validate(
    {
        "features": [
            {"name": "age", "type": "number", "unit": "a", "low": 18, "high": 100, "centre": 55, "scale": 20},
            {"name": "crea", "type": "number", "unit": "mg/dL", "indicator": True, "low": 0, "high": 15, "centre": 1},
            {"name": "ward", "type": "category", "levels": ["1", "2", "na"], "indicator": True},
        ],
        "label": {"name": "died", "type": "boolean"},
    }
)
MAPPING = """patient = "id"
[columns]
age = { from = "age", unit = "a" }
crea = { from = "crea", unit = "mg/dL", missing = [-9] }
ward = { from = "ward" }
died = { from = "died" }
"""
SETTINGS = """organisation = "Hospital"
email = "datasite@hospital.example.org"
store = "store"
run_as_root = true
[[datasets]]
name = "heart"
table = "table{suffix}"
mapping = "mapping.toml"
mock = "mock.csv"
summary = "invented"
declared_patients = 40
epsilon = 3.0
delta = 1e-5
study_epsilon = 3.0
separator = {separator}
encoding = {encoding}
"""
HEAD = ["id", "age", "crea", "ward", "note", "died"]
Row = tuple[str, ...]


def honest(place: int) -> Row:
    """One patient, whose words nobody else has."""
    crea = "-9" if place == 7 else f"{0.71234 + place / 50:.5f}"
    return (f"Zq{place:02d}x", f"{40 + place}.0625", crea, ("1", "2", "NA")[place % 3], "fine", str(place % 2))


ROWS = [honest(place) for place in range(40)]


@dataclass(frozen=True)
class Dialect:
    """How a table is written."""

    separator: str = ","
    encoding: str = "utf-8"
    ended: str = "\n"
    quote_all: bool = False
    mark: str = ""


COMMA, GERMAN = Dialect(), Dialect(";", "windows-1252", "\r\n")
DIALECTS = {"commas": COMMA, "semicolons": GERMAN, "tabs": Dialect("\t", "utf-16", quote_all=True)}


def text_of(rows: list[Row], dialect: Dialect = COMMA, head: list[str] = HEAD) -> str:
    text = io.StringIO()
    quoting = csv.QUOTE_ALL if dialect.quote_all else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=dialect.separator, quoting=quoting, lineterminator=dialect.ended).writerows(
        [head, *rows]
    )
    return text.getvalue()


def seen(folder: Path, content: bytes, dialect: Dialect = COMMA, mapping: str = MAPPING, suffix: str = ".csv") -> Look:
    """What a hospital's own check sees of this table; raises `InputError`."""
    separator, encoding = (f'"{word}"'.replace("\t", "\\t") for word in (dialect.separator, dialect.encoding))
    settings = SETTINGS.format(suffix=suffix, separator=separator, encoding=encoding)
    (folder / "datasite.toml").write_text(settings)
    (folder / "mapping.toml").write_text(mapping)
    (folder / f"table{suffix}").write_bytes(content)
    dataset = Home.open(folder).dataset("heart")
    table = read_table(folder / dataset.table, dataset.separator, dataset.encoding)
    return Look.at(table, read_mapping(folder / dataset.mapping), MODEL, dataset.declared_patients)


def verdict(folder: Path, *asked: Any, **more: Any) -> str:
    """Why the table is not ready, or ""."""
    try:
        found = seen(folder, *asked, **more)
    except InputError as error:
        return f"refused: {error}"
    reasons = [f"feature {line.name}: {line.reason}" for line in found.features if not line.ready]
    return "\n".join([*reasons, *(f"[{one.name}] {one.text}" for one in found.findings if one.blocks)])


def each(change: Callable[[int, Row], Row]) -> list[Row]:
    return [change(place, row) for place, row in enumerate(ROWS)]


def cell(row: Row, column: str, value: str) -> Row:
    place = HEAD.index(column)
    return (*row[:place], value, *row[place + 1 :])


def lines(text: str, dialect: Dialect, change: Callable[[list[str]], list[str]]) -> str:
    """The text with its lines changed."""
    return "".join(line + dialect.ended for line in change(text.split(dialect.ended)[:-1]))


def at(number: int, change: Callable[[str], str]) -> Callable[[list[str]], list[str]]:
    return lambda all_lines: [change(line) if place == number else line for place, line in enumerate(all_lines, 1)]


#: Faults of the file, as what becomes of its lines (a separator is written |), and what is said of them.
FILES: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "a separator at the end of each row": (
        lambda all_lines: [all_lines[0], *(f"{line}|" for line in all_lines[1:])],
        r"the header has 6 columns, and there are 40 row\(s\) \(line 2, .*one separator more.*correct the export",
    ),
    "a separator too many in the first row": (at(2, lambda line: f"{line}|"), r"1 row\(s\) \(line 2\) with 7 field"),
    "a separator at the end of the header": (at(1, lambda line: f"{line}|"), r"7 columns, and there are 40 row"),
    "a lost field": (at(9, lambda line: line.split("|", 1)[1]), r"1 row\(s\) \(line 9\) with 5 field.*a lost field"),
    "a lost separator": (at(9, lambda line: line.replace("|", "", 1)), r"1 row\(s\) \(line 9\) with 5 field"),
    "a name twice": (at(1, lambda line: line.replace("note", "id")), r"line 1: columns 1 and 5 of the header .*give"),
    "a name twice but for spaces": (
        at(1, lambda line: line.replace("note", "id ")),
        "columns 1 and 5 of the header have one",
    ),
    "two stray quotes": (
        lambda all_lines: at(31, lambda line: f'{line}"')(at(12, lambda line: f'"{line}')(all_lines)),
        r"\(line 12\)",
    ),
    "two stray quotes in neighbouring rows": (
        lambda all_lines: at(13, lambda line: line.replace("|", '"|', 2).replace('"|', "|", 1))(
            at(12, lambda line: line.replace("|", '|"', 1))(all_lines)
        ),
        r"\[open_quote\] 1 record\(s\) \(line 12\).*compare these lines with the source",
    ),
    "a quote in the middle of a field": (
        at(12, lambda line: line.replace("fine", 'f"i"ne').replace('"f"', 'f"')),
        r"1 record\(s\) \(line 12\) with a quote that isn't around a whole field.*correct",
    ),
    "a quote that is never closed": (
        at(30, lambda line: line.replace("fine", '"fine').replace('""', '"')),
        "line 30 and never closed; correct the export there",
    ),
    "a quoted text that goes on over further rows": (
        lambda all_lines: [
            *all_lines[:19],
            "|".join(['Zq97x|50|1|1|"fine', *all_lines[19].replace('"', "").split("|")[1:]]),
            'Zq98x|51|1|1|fine"|1',
            *all_lines[20:],
        ],
        r"\[open_quote\] 1 record\(s\) \(line 20\).*compare these lines with the source",
    ),
    "NUL": (at(15, lambda line: line.replace("fine", "fi\0ne")), r"\(U\+0000\) on line 15.*correct the export"),
    "a vertical tab": (at(15, lambda line: line.replace("fine", "fi\x0bne")), r"\(U\+000B\) on line 15"),
    "an escape": (at(15, lambda line: line.replace("fine", "\x1b[31m")), r"\(U\+001B\) on line 15"),
    "cut off in the middle of a row": (
        lambda all_lines: [*all_lines[:27], all_lines[27][: all_lines[27].rindex("|")]],
        r"1 row\(s\) \(line 28\) with 5 field.*a line that was cut off",
    ),
    "a title above the header": (
        lambda all_lines: ["Report|of|today", *all_lines],
        r"3 columns, and there are 41 row.* whether line 1 is the header",
    ),
    "a title of one cell above the header": (
        lambda all_lines: ["Report of today", *all_lines],
        "header has one column",
    ),
    "no header": (lambda all_lines: all_lines[1:], "'id' is not in the table; correct `patient`"),
    "the header again, where two exports meet": (
        lambda all_lines: [*all_lines[:20], all_lines[0], *all_lines[20:]],
        "1 value.s. of 'age' have no meaning here; add them to `values` or `missing`",
    ),
    "a row of units": (
        lambda all_lines: [all_lines[0], "-|years|mg/dL|-|-|-", *all_lines[1:]],
        "1 value.s. of 'crea' have no meaning here",
    ),
    "nothing at all": (lambda all_lines: [], "the file is empty"),
    "empty lines alone": (lambda all_lines: ["", " "], "the file is empty"),
    "a header and no row": (lambda all_lines: all_lines[:1], r"no rows, and 40 patients are declared; is it the right"),
    "a part of the rows": (lambda all_lines: all_lines[:18], r"\[patients\] 17 patients, and 40 are declared; is the"),
    "the rows twice": (lambda all_lines: [*all_lines, *all_lines[1:]], r"\[repeated\] 40 of 80 rows"),
    "some rows twice": (lambda all_lines: [*all_lines, *all_lines[3:8]], r"\[repeated\] 5 of 45 rows.*appended twice"),
}
#: Faults of what cells say, as rows, and what is said of them.
CELLS: dict[str, tuple[list[Row], str]] = {
    "a word for nothing among numbers": (
        each(lambda i, row: cell(row, "crea", "NA" if i < 3 else row[2])),
        r"feature crea: 3 value\(s\) of 'crea' have no meaning here; .*`missing` \(3 say 'na'",
    ),
    "a word that is no number": (
        each(lambda i, row: cell(row, "crea", "haemolysed" if i == 3 else row[2])),
        r"feature crea: 1 value\(s\) of 'crea' have no meaning",
    ),
    "None as the label": (
        each(lambda i, row: cell(row, "died", "None" if i % 2 else "1")),
        r"feature died: 20 value\(s\) of 'died' have no meaning here; .*\(20 say 'none'",
    ),
    "a missing outcome that is coded": (
        each(lambda i, row: cell(row, "died", "-9.0" if i < 5 else row[5])),
        r"feature died: 5 value\(s\) are not yes/no; set `values`",
    ),
    "a level that nobody named": (
        each(lambda i, row: cell(row, "ward", "3" if i < 4 else row[3])),
        r"feature ward: 4 value\(s\) of 'ward' have no meaning here; add them to",
    ),
    "1.0 beside 1 in a category": (
        each(lambda i, row: cell(row, "ward", "1.0" if i < 6 else row[3])),
        r"feature ward: 6 value\(s\) of 'ward'.*6 differ from what.*or in how a number is written",
    ),
    "numbers with a thousands separator": (
        each(lambda i, row: cell(row, "crea", "1 000" if i == 2 else row[2])),
        r"feature crea: 1 value\(s\) of 'crea' have no meaning",
    ),
    "numbers with their unit": (
        each(lambda i, row: cell(row, "age", f"{40 + i} y")),
        r"feature age: 40 value\(s\) of 'age' have no meaning",
    ),
    "an identifier that is missing": (
        each(lambda i, row: cell(row, "id", "" if i == 2 else row[0])),
        r"1 row\(s\) of the table have no 'id', its patient column; .*fill it in, or leave these rows out",
    ),
    "ages in months": (
        each(lambda i, row: cell(row, "age", f"{12 * (40 + i)}.5")),
        r"\[out_of_range:age\] age: 40 of 40 values lie outside.*months, ×12 of years: factor = 0.08333",
    ),
    "ages in days": (
        each(lambda i, row: cell(row, "age", f"{365 * (40 + i)}.25")),
        r"\[out_of_range:age\].*days, ×365.2 of years",
    ),
    "years of birth": (
        each(lambda i, row: cell(row, "age", f"{1940 + i}")),
        r"\[out_of_range:age\] age: 40 of 40 values lie outside.*is the unit right",
    ),
    "creatinine in another unit": (
        each(lambda i, row: cell(row, "crea", f"{88.42 * (0.7 + i / 50):.4f}")),
        r"\[out_of_range:crea\] crea: 40 of 40 values .*mg/dL",
    ),
    "a code for missing that nobody named": (
        each(lambda i, row: cell(row, "age", "-12345" if i % 3 == 0 else row[1])),
        r"\[out_of_range:age\] age: 14 of 40 values",
    ),
    "a few codes for missing that nobody named": (
        each(lambda i, row: cell(row, "age", "-99" if i < 3 else row[1])),
        r"\[coded:age\] age: 3 of 40 rows of 'age' say -99, by which.*name it in `missing`",
    ),
    "an infinite value": (
        each(lambda i, row: cell(row, "age", "inf" if i == 9 else row[1])),
        r"\[infinite:age\] age: 1",
    ),
    "one class": (
        each(lambda i, row: cell(row, "died", "0")),
        r"\[constant:died\] died: one class only in 40 of 40 rows",
    ),
    "one value": (
        each(lambda i, row: cell(row, "age", "50")),
        r"\[constant:age\] age: one value only in 40 of 40 rows",
    ),
    "one level": (each(lambda i, row: cell(row, "ward", "2")), r"\[constant:ward\] ward: one value only in 40"),
    "no value": (
        each(lambda i, row: cell(row, "crea", "-9")),
        r"\[missing:crea\] crea: missing in all 40 rows; is `from`",
    ),
    "no label": (each(lambda i, row: cell(row, "died", "")), r"\[missing:died\] died: missing in all 40 rows"),
    "totals": (
        [*ROWS, ("Total", "59.5", "1.1", "1", "", "1")],
        r"\[last_row\] the row at (line 42|row 41).*leave it out",
    ),
    "means in a word of another language": (
        [*ROWS, ("", "59.5", "1.1", "1", "Mittelwert", "1")],
        r"1 row\(s\) of the table have no 'id'",
    ),
    "a line of counts that looks like no patient": (
        [*ROWS, ("40", "59.5", "1.1", "1", "", "1")],
        r"\[last_row\] the row at (line 42|row 41), near the end, is unlike",
    ),
    "three times the patients": (
        [cell(row, "id", f"{part}{row[0][1:]}") for part in "ABC" for row in ROWS],
        r"\[patients\] 120 patients, and 40 are declared",
    ),
}
SPELLINGS = {
    "capitals": ("Zq03x", "ZQ03X"),
    "an invisible character": ("Zq03x", "Zq03x\u200b"),
    "a no-break space": ("Zq 99", "Zq\u00a099"),
    "a soft hyphen": ("Zq03x", "Zq\u00ad03x"),
    "fullwidth letters": ("Zq03x", "\uff3a\uff5103x"),
    "composed letters": ("Ö3x77", "O\u03083x77"),
    "zeros before": ("000712", "712"),
    "a fraction": ("1271", "1271.0"),
    "an exponent": ("1E5", "100000"),
    "a byte order mark": ("Zq03x", "\ufeffZq03x"),
}
CELLS |= {
    f"identifiers that differ in {what}": (
        each(lambda i, row, two=two: cell(row, "id", two[i]) if i < 2 else row),  # type: ignore[misc]
        r"\[spellings\] 2 identifiers of 'id' differ.*make them one in the export",
    )
    for what, two in SPELLINGS.items()
}


def broken_files() -> Iterator[Any]:
    for what, (change, words) in FILES.items():
        for name, dialect in DIALECTS.items():
            if not (dialect.quote_all and ("quote" in what or "lost separator" in what)):
                yield pytest.param(change, dialect, words, id=f"{what}, {name}")


def broken_cells() -> Iterator[Any]:
    for what, (rows, words) in CELLS.items():
        for name, dialect in DIALECTS.items():
            with_these = "".join("".join(row) for row in rows)
            if (
                dialect.encoding != "windows-1252"
                or with_these.encode(dialect.encoding, "ignore").decode(dialect.encoding) == with_these
            ):
                yield pytest.param(rows, dialect, words, id=f"{what}, {name}")
        yield pytest.param(rows, None, words, id=f"{what}, Parquet")


def as_parquet(rows: list[Row], folder: Path) -> bytes:
    """As an export from a database: numbers where every cell of a column is one, else text."""
    frame = pd.DataFrame(rows, columns=HEAD)
    for name in HEAD[1:]:
        numbers = pd.to_numeric(frame[name], errors="coerce")
        if name != "ward" and not numbers.isna().any():
            frame[name] = numbers
    frame.to_parquet(folder / "written", index=False)
    return (folder / "written").read_bytes()


def require_no_cell_of(rows: list[Row], said: str) -> None:
    for word in {word for row in rows for word in (row[0], row[1], row[2]) if len(word) > 4 and word not in ("Total",)}:
        assert word not in said


@pytest.mark.parametrize(("change", "dialect", "words"), list(broken_files()))
def test_a_broken_file_is_refused_or_waits_for_people(
    change: Callable[[list[str]], list[str]], dialect: Dialect, words: str, tmp_path: Path
) -> None:
    separated = Dialect("|", "utf-8", "\n", dialect.quote_all)
    text = lines(text_of(ROWS, separated), separated, change).replace("|", dialect.separator)
    said = verdict(tmp_path, text.replace("\n", dialect.ended).encode(dialect.encoding), dialect)
    assert re.search(words, said), said
    assert "table.csv" in said or said.startswith(("[", "feature ", "refused: mapping.toml"))
    require_no_cell_of(ROWS, said.replace("'Zq00x'", ""))


@pytest.mark.parametrize(("rows", "dialect", "words"), list(broken_cells()))
def test_what_cells_say_wrong_is_refused_or_waits_for_people(
    rows: list[Row], dialect: Dialect | None, words: str, tmp_path: Path
) -> None:
    if dialect is None:
        said = verdict(tmp_path, as_parquet(rows, tmp_path), suffix=".parquet")
    else:
        said = verdict(tmp_path, text_of(rows, dialect).encode(dialect.encoding), dialect)
    assert re.search(words, said), said
    require_no_cell_of(rows, said)


WRONG = {
    "another separator": (text_of(ROWS, Dialect(";")).encode(), COMMA, "set `separator`"),
    "commas read as semicolons": (text_of(ROWS).encode(), Dialect(";"), "a comma: set `separator`"),
    "decimal commas": (
        text_of([cell(row, "age", row[1].replace(".", ",")) for row in ROWS]).replace('"', "").encode(),
        COMMA,
        "40 row.s. .* with 7 field.*a decimal comma",
    ),
    "decimal commas, in semicolons": (
        text_of([cell(row, "age", row[1].replace(".", ",")) for row in ROWS], Dialect(";")).encode(),
        Dialect(";"),
        "feature age: 40 value.s. of 'age' have no meaning here",
    ),
    "Latin letters as UTF-8": (
        text_of([cell(row, "note", "café") for row in ROWS]).encode("windows-1252"),
        COMMA,
        r"\(line 2\) is no text in utf-8; set `encoding`",
    ),
    "UTF-16 as UTF-8": (text_of(ROWS).encode("utf-16"), COMMA, r"\(line 1\) is no text in utf-8; set `encoding`"),
    "UTF-16 without a mark as UTF-8": (text_of(ROWS).encode("utf-16-le"), COMMA, r"\(U\+0000\) on line 1"),
    "carriage returns alone": (text_of(ROWS, Dialect(ended="\r")).encode(), COMMA, "carriage return"),
    "a last line without an end": (text_of(ROWS).encode()[:-1], COMMA, r"\[not_ended\] the last line \(41\)"),
    "an archive": (b"PK\x03\x04" + bytes(60), COMMA, r"\(U\+0003\) on line 1"),
    "half of a Parquet file": (b"PAR1" + bytes(60), COMMA, r"\(U\+0000\) on line 1"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_not_what_the_settings_say_is_refused(what: str, tmp_path: Path) -> None:
    content, dialect, words = WRONG[what]
    said = verdict(tmp_path, content, dialect)
    assert re.search(words, said), said
    require_no_cell_of(ROWS, said)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('values = { a = 1, "a " = 0 }', r"mapping.toml.*'a' and another entry are one code with two meanings"),
        ('values = { 1 = 1, "1.0" = 0 }', "feature died: .*are one code with two meanings; keep one"),
        ("values = { 1 = 1, 0 = 0 }, missing = [1.0]", "feature died: '1' stands in `values` and in `missing`"),
        ("above = 0, values = { 1 = 1 }", "mapping.toml.*set either values or above, not both"),
        ('values = { 1 = "yes", 0 = "no" }', "feature died: `values` makes words of 40"),
    ],
)
def test_a_mapping_that_says_two_things_is_refused(change: str, words: str, tmp_path: Path) -> None:
    mapping = MAPPING.replace('"died" }', f'"died", {change} }}')
    assert re.search(words, verdict(tmp_path, text_of(ROWS).encode(), mapping=mapping), re.DOTALL)


def test_one_number_written_in_two_ways_is_two_codes_and_is_said(tmp_path: Path) -> None:
    named = 'from = "ward", values = { 1 = "1", "1.0" = "2", 2 = "2", NA = "na" }'
    mapping = MAPPING.replace('from = "ward"', named)
    rows = each(lambda i, row: cell(row, "ward", "1.0" if i < 6 else row[3]))
    found = seen(tmp_path, text_of(rows).encode(), mapping=mapping)
    (note,) = found.findings
    assert (note.name, note.blocks) == ("one_number:ward", False)
    assert re.search(r"18 of 40 rows of 'ward' have a code that another row writes otherwise", note.text)
    assert found.frame["ward"][:6].tolist() == ["2"] * 6
    assert seen(tmp_path, text_of(ROWS).encode()).findings == ()


def test_a_missing_outcome_is_no_survivor_under_above(tmp_path: Path) -> None:
    rows = each(lambda i, row: cell(row, "died", "-9.0" if i < 5 else row[5]))
    mapping = MAPPING.replace('"died" }', '"died", above = 0 }')
    said = verdict(tmp_path, text_of(rows).encode(), mapping=mapping)
    assert "[coded:died] died: 5 of 40 rows of 'died' say -9.0, by which" in said
    named = mapping.replace("above = 0", "above = 0, missing = [-9]")
    assert verdict(tmp_path, text_of(rows).encode(), mapping=named) == ""
    excess = each(lambda i, row: cell(row, "died", str((-9, -4, 3)[i % 3])))  # numbers below zero that are measured
    assert verdict(tmp_path, text_of(excess).encode(), mapping=mapping) == ""


@pytest.mark.parametrize("kind", ["cut off", "a name twice", "NUL", "no rows", "infinite"])
def test_what_is_wrong_in_parquet_alone(kind: str, tmp_path: Path) -> None:
    content = as_parquet(ROWS, tmp_path)
    if kind == "cut off":
        said = verdict(tmp_path, content[:-40], suffix=".parquet")
        assert "table.parquet: not a readable table" in said
        return
    frame = pd.read_parquet(io.BytesIO(content))
    if kind == "a name twice":
        frame = frame.rename(columns={"note": " id"})
    elif kind == "NUL":
        frame.loc[3, "note"] = "fi\0ne"
    elif kind == "no rows":
        frame = frame[:0]
    else:
        frame.loc[3, "age"] = np.inf
    frame.to_parquet(tmp_path / "changed")
    said = verdict(tmp_path, (tmp_path / "changed").read_bytes(), suffix=".parquet")
    assert {
        "a name twice": "'id' is the name of more than one column",
        "NUL": "1 value(s) of column 'note' hold control characters",
        "no rows": "the table has no rows",
        "infinite": "1 of 40 values are infinite",
    }[kind] in said
    require_no_cell_of(ROWS, said)


def honest_files() -> Iterator[Any]:
    for separator in (",", ";", "\t", "|"):
        for encoding, mark in (("utf-8", ""), ("utf-8", "\ufeff"), ("utf-16", ""), ("windows-1252", "")):
            for ended in ("\n", "\r\n"):
                quote_all = (encoding, separator) in (("utf-8", ","), ("windows-1252", ";"))
                name = f"{separator!r} {encoding}{' with a mark' if mark else ''} {ended!r}{' quoted' * quote_all}"
                yield pytest.param(Dialect(separator, encoding, ended, quote_all, mark), id=name)


#: Notes as people type them, which are nobody's business but their own cell's.
NOTES = ["", "a, b; c | d", 'she said "no"', " spaces ", "two\nlines", "NA", "=1+1", "'", "Ä, ö", "1,5"]


@pytest.mark.parametrize("dialect", list(honest_files()))
def test_an_honest_file_is_read_right_in_any_dialect(dialect: Dialect, tmp_path: Path) -> None:
    rows = each(lambda i, row: cell(row, "note", NOTES[i % len(NOTES)]))
    text = dialect.mark + text_of(rows, dialect)
    found = seen(tmp_path, text.encode(dialect.encoding), dialect)
    assert not [line for line in found.features if not line.ready]
    assert not [one for one in found.findings if one.blocks]
    assert list(found.table.cells.itertuples(index=False, name=None)) == rows
    assert found.frame["died"].tolist() == [float(place % 2) for place in range(40)]
    assert found.frame["crea"].isna().sum() == 1
    assert found.frame["ward"].value_counts().to_dict() == {"1": 14, "2": 13, "na": 13}


SLOPPY: dict[str, Callable[[list[str]], list[str]]] = {
    "empty lines between": lambda all_lines: [part for line in all_lines for part in (line, "")],
    "empty lines before the header": lambda all_lines: ["", " ", *all_lines],
    "rows of empty fields at the end": lambda all_lines: [*all_lines, ",,,,,", ",,,,,", " , ,,,,"],
    "spaces around fields": lambda all_lines: [line.replace(",", " , ") for line in all_lines],
    "columns in another order": lambda all_lines: [",".join(reversed(line.split(","))) for line in all_lines],
    "a column more": lambda all_lines: [f"{all_lines[0]},more", *(f"{line},x" for line in all_lines[1:])],
    "a column without a name": lambda all_lines: [
        f",{all_lines[0]}",
        *(f"{place},{line}" for place, line in enumerate(all_lines[1:])),
    ],
    "rows in another order": lambda all_lines: [all_lines[0], *sorted(all_lines[1:], reverse=True)],
}


@pytest.mark.parametrize("what", SLOPPY)
def test_what_spreadsheets_add_changes_nothing(what: str, tmp_path: Path) -> None:
    found = seen(tmp_path, lines(text_of(ROWS), COMMA, SLOPPY[what]).encode())
    assert all(line.ready for line in found.features)
    assert not [one for one in found.findings if one.blocks]
    assert sorted(found.table.cells["age"].str.strip()) == sorted(row[1] for row in ROWS)
    assert found.frame["died"].sum() == 20


@pytest.mark.parametrize(
    "kind", ["text", "numbers", "categories", "decimals", "nullable", "yes/no", "bytes", "an index"]
)
def test_an_honest_parquet_file_is_read_right(kind: str, tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS, columns=HEAD)
    if kind == "numbers":
        frame = frame.assign(age=frame["age"].astype(float), died=frame["died"].astype(int))
    elif kind == "categories":
        frame = frame.astype({"ward": "category", "died": "category"})
    elif kind == "decimals":
        frame["age"] = frame["age"].map(Decimal)
    elif kind == "nullable":
        frame["crea"] = frame["crea"].replace("-9", None).astype("Float64")
    elif kind == "bytes":
        frame = frame.map(str.encode).assign(picture=[b"\0\xff"] * 40)
    elif kind == "yes/no":
        frame["died"] = frame["died"] == "1"
    frame.to_parquet(tmp_path / "written", index=kind == "an index")
    found = seen(tmp_path, (tmp_path / "written").read_bytes(), suffix=".parquet")
    assert all(line.ready for line in found.features)
    assert not [one for one in found.findings if one.blocks]
    assert found.frame["died"].sum() == 20
    assert found.frame["crea"].isna().sum() == 1
    assert found.table.cells["id"].tolist() == [row[0] for row in ROWS]
    assert found.frame["age"].tolist() == [float(row[1]) for row in ROWS]
