"""A table is read as what it is, or not at all: no damage moves a cell, and none loses or makes a row unseen."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datasites.hospital.data.delimited import CONTROL, Delimited, decoded, parse
from datasites.hospital.dialect import ENCODINGS, SEPARATORS, Encoding, Separator
from datasites.study.errors import InputError

LETTERS = st.characters(codec="utf-8", exclude_characters="\r\n", exclude_categories=["Cc", "Cs"])
PLAIN = st.text(st.sampled_from('aé1 ,;"') | LETTERS, max_size=6)
INSIDE = st.text(st.sampled_from('aé1 ,;"\n') | LETTERS, max_size=8)
Rows = list[list[str]]


@st.composite
def tables(draw: st.DrawFn, cells: st.SearchStrategy[str] = INSIDE) -> Rows:
    """A header of distinct names and rows of as many cells, the first of which holds something."""
    names = draw(st.lists(st.text(LETTERS, min_size=1, max_size=5).map(str.strip), min_size=2, max_size=5, unique=True))
    assume(all(names))
    row = st.tuples(st.sampled_from(["P1", "P2", "Ö-3"]), *[cells] * (len(names) - 1)).map(list)
    return [names, *draw(st.lists(row, min_size=1, max_size=6))]


def written(rows: Rows, separator: Separator = ",", *, quote_all: bool = False, ended: str = "\n") -> str:
    """As Python's own writer writes it."""
    text = io.StringIO()
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=ended).writerows(rows)
    return text.getvalue()


def read(text: str, separator: Separator = ",") -> Delimited:
    return parse(text, separator, "table.csv")


@given(
    rows=tables(), separator=st.sampled_from(SEPARATORS), quote_all=st.booleans(), ended=st.sampled_from(["\n", "\r\n"])
)
def test_what_a_writer_wrote_is_read_as_the_same_cells(
    rows: Rows, separator: Separator, quote_all: bool, ended: str
) -> None:
    found = read(written(rows, separator, quote_all=quote_all, ended=ended), separator)
    assert [list(found.names), *map(list, found.rows)] == rows
    assert not found.empty
    assert {doubt.kind for doubt in found.doubts} <= {"open_quote"}


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(rows=tables(st.text("aé1 ,\u00df", max_size=6)))
@settings(max_examples=25)
def test_a_stated_encoding_is_read_with_and_without_its_mark(encoding: str, rows: Rows) -> None:
    rows[0] = [f"c{place}" for place in range(len(rows[0]))]
    text = written(rows)
    for mark in ("", "\ufeff") if encoding.startswith("utf") else ("",):
        assert read(decoded((mark + text).encode(encoding), encoding, "t")).rows == tuple(map(tuple, rows[1:]))  # type: ignore[arg-type]


@given(rows=tables(), gone=st.sets(st.integers(0, 5)))
def test_records_that_are_taken_away_change_no_other(rows: Rows, gone: set[int]) -> None:
    left = [row for place, row in enumerate(rows[1:]) if place not in gone]
    assert read(written([rows[0], *left])).rows == tuple(map(tuple, left))


@settings(max_examples=600)
@given(rows=tables(), quote_all=st.booleans(), data=st.data())
def test_one_damaged_byte_is_refused_or_changes_one_cell_and_no_more(
    rows: Rows, quote_all: bool, data: st.DataObject
) -> None:
    content = bytearray(written(rows, quote_all=quote_all).encode())
    before = read(content.decode())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.sampled_from(b'"",,\n\n\r\0\t ;0aZ') | st.integers(0, 255))
    try:
        after = read(decoded(bytes(content), "utf-8", "t"))
    except InputError:
        return
    if not after.rows:  # the header took the one record in: no table of no rows is ever ready
        return
    assert len(after.names) == len(before.names)
    others = {doubt.kind for doubt in after.doubts} - {doubt.kind for doubt in before.doubts}
    if others or after.empty:
        return  # people are shown it
    assert len(after.rows) == len(before.rows)
    one = [*before.names, *(cell for row in before.rows for cell in row)]
    other = [*after.names, *(cell for row in after.rows for cell in row)]
    assert sum(a != b for a, b in zip(one, other, strict=True)) <= 1


@given(text=st.text(st.sampled_from('ab,"\n\r ') | LETTERS, max_size=60), separator=st.sampled_from(SEPARATORS))
def test_any_text_is_a_table_or_an_input_error(text: str, separator: Separator) -> None:
    try:
        found = read(text, separator)
    except InputError:
        return
    assert all(len(row) == len(found.names) for row in found.rows)
    assert len(set(found.names)) == len(found.names) > 1
    assert len(found.lines) == len(found.rows)


HEAD = "id,age,died\n"
BROKEN = {
    "a separator at the end of each row": (
        HEAD + "secret1,48,0,\nsecret2,50,1,\n",
        "2 row(s) (line 2, 3) with 4 field",
    ),
    "one comma too many in the first row": (HEAD + "secret1,48,0,\nsecret2,50,1\n", "1 row(s) (line 2) with 4 field"),
    "a lost field": (HEAD + "secret1,48,0\nsecret2,1\n", "1 row(s) (line 3) with 2 field"),
    "a decimal comma": (HEAD + "secret1,48,5,0\nsecret2,51,1\n", "1 row(s) (line 2) with 4 field"),
    "a name twice": ("id,id,died\nsecret1,48,0\n", "columns 1 and 2 of the header have one name"),
    "a name twice but for spaces": ("id, id,died\nsecret1,48,0\n", "columns 1 and 2 of the header"),
    "two names that are empty": ("id,, ,died\nsecret1,48,0,1\n", "columns 2 and 3 of the header"),
    "no header, and a value that stands twice": ("7,secret,secret\n8,48,0\n", "add a header to a file without one"),
    "a line above the header": ("sep=,\n" + HEAD + "secret1,48,0\n", "whether line 1 is the header"),
    "two stray quotes": (HEAD + 'secret1,"48,0\nsecret2,50,1\nsecret3,5"1,1\n', "1 record(s) (line 2)"),
    "a quote in the middle": (HEAD + 'secret1,4"8,0\n', "1 is opened"),
    "a quote after a space": (HEAD + 'secret1, "48",0\n', "1 record(s) (line 2)"),
    "text after a quote": (HEAD + 'secret1,"48"x,0\n', "1 record(s) (line 2)"),
    "a quote that never closes": (HEAD + 'secret1,48,0\nsecret2,"50,1\nsecret3,51,0\n', "line 3 and never closed"),
    "NUL": (HEAD + "secret\x001,48,0\n", "(U+0000) on line 2"),
    "a control character": (HEAD + "secret1,48\x0b,0\n", "(U+000B) on line 2"),
    "a delete character": (HEAD + "secret1,48\x7f,0\n", "(U+007F) on line 2"),
    "windows-1252 as if it were latin": (HEAD + "secret\x801,48,0\n", "set `encoding`"),
    "carriage returns alone": (HEAD.replace("\n", "\r") + "secret1,48,0\r", "carriage return"),
    "another separator": (HEAD.replace(",", ";") + "secret1;48;0\n", "set `separator`"),
    "one column": ("secret\n1\n", "one column"),
    "nothing": ("", "the file is empty"),
    "blank lines": ("\n \n\n", "the file is empty"),
    "cut off in a row": (HEAD + "secret1,48,0\nsecret2,5", "1 row(s) (line 3) with 2 field"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_table_is_refused_with_its_lines_and_no_field(what: str, tmp_path: Path) -> None:
    text, words = BROKEN[what]
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    with pytest.raises(InputError) as caught:
        read_delimited(path)
    said = str(caught.value)
    assert words.replace("1 is opened", "is opened in the record on line 2") in said
    assert str(path) in said
    assert "secret" not in said.replace("'secret'", "")
    assert not CONTROL.search(said)


DOUBTFUL = {
    "a line end is missing": (HEAD + "P1,48,0\nP2,50,1", "not_ended", (3,)),
    "a quoted text that looks like records": (HEAD + 'P1,"48,0\nP2,50,1\nP3,51",1\n', "open_quote", (2,)),
    "a quoted text that looks like one more record": (HEAD + 'P1,"48,0\nP2,50",1\n', "open_quote", (2,)),
    "the same around an empty line": (HEAD + 'P1,"48,0\n\nP2,50",1\n', "open_quote", (2,)),
}


@pytest.mark.parametrize("what", DOUBTFUL)
def test_what_a_broken_export_makes_as_well_is_a_doubt(what: str) -> None:
    text, kind, lines = DOUBTFUL[what]
    (doubt,) = read(text).doubts
    assert (doubt.kind, doubt.lines) == (kind, lines)


HONEST = {
    "mark": ("\ufeff" + HEAD + "P1,48,0\n", ",", [["P1", "48", "0"]]),
    "CRLF": (HEAD.replace("\n", "\r\n") + "P1,48,0\r\n", ",", [["P1", "48", "0"]]),
    "mixed line ends": (HEAD + "P1,48,0\r\nP2,49,1\n", ",", [["P1", "48", "0"], ["P2", "49", "1"]]),
    "semicolons and decimal commas": ("id;age;died\nP1;48,5;0\n", ";", [["P1", "48,5", "0"]]),
    "tabs": ("id\tage\tdied\nP1\t48\t0\n", "\t", [["P1", "48", "0"]]),
    "bars": ("id|age|died\nP1|48|0\n", "|", [["P1", "48", "0"]]),
    "quoted commas": (HEAD + 'P1,"48, about",0\n', ",", [["P1", "48, about", "0"]]),
    "all quoted": ('"id","age","died"\n"P1","48","0"\n', ",", [["P1", "48", "0"]]),
    "quotes in a quoted field": (HEAD + 'P1,"say ""no""",0\n', ",", [["P1", 'say "no"', "0"]]),
    "an empty quoted field": (HEAD + 'P1,"",0\n', ",", [["P1", "", "0"]]),
    "quoted line ends": (
        HEAD + 'P1,"two\nlines",0\nP2,"two\r\nlines",1\n',
        ",",
        [["P1", "two\nlines", "0"], ["P2", "two\r\nlines", "1"]],
    ),
    "quoted line ends and a separator": (
        HEAD + 'P1,"two\nlines, or\nthree",0\n',
        ",",
        [["P1", "two\nlines, or\nthree", "0"]],
    ),
    "spaces": (HEAD + " P1 , 48 ,0\n", ",", [[" P1 ", " 48 ", "0"]]),
    "blank lines": (HEAD + "\nP1,48,0\n   \n\n", ",", [["P1", "48", "0"]]),
    "rows of empty fields": (HEAD + "P1,48,0\n,,\n,,\n", ",", [["P1", "48", "0"]]),
    "blank lines before the header": ("\n,,\n" + HEAD + "P1,48,0\n", ",", [["P1", "48", "0"]]),
    "a column without a name": (",age,died\nP1,48,0\n", ",", [["P1", "48", "0"]]),
    "a column without a name at the end": ("id,age,died,\nP1,48,0,\n", ",", [["P1", "48", "0", ""]]),
    "letters of all scripts": ("名,возраст,died\nمريض,48,0\n", ",", [["مريض", "48", "0"]]),
    "tabs inside": (HEAD + "P1,4\t8,0\n", ",", [["P1", "4\t8", "0"]]),
    "no rows": (HEAD, ",", []),
    "line separators of Unicode": (HEAD + "P1,4\u20288,0\n", ",", [["P1", "4\u20288", "0"]]),
}


@pytest.mark.parametrize("what", HONEST)
def test_an_honest_table_is_read_right(what: str) -> None:
    text, separator, rows = HONEST[what]
    found = parse(
        text.removeprefix("\ufeff") if what != "mark" else decoded(text.encode(), "utf-8", "t"), separator, "t"
    )  # type: ignore[arg-type]
    assert list(map(list, found.rows)) == rows
    assert not found.doubts


def test_lines_are_those_of_the_file() -> None:
    found = read(HEAD + 'P1,"a\nb",0\n\n,,\nP2,c,1\n')
    assert (found.lines, found.empty) == ((2, 6), (4, 5))


def read_delimited(path: Path, encoding: Encoding = "utf-8") -> Delimited:
    return parse(decoded(path.read_bytes(), encoding, str(path)), ",", str(path))


def test_what_is_no_text_is_refused_with_its_line_and_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(HEAD.encode() + "P1,caf\u00e9,0\n".encode("iso-8859-1"))
    with pytest.raises(InputError, match=r"\(line 2\) is no text in utf-8; set `encoding`"):
        read_delimited(tmp_path / "t.csv")
    assert read_delimited(tmp_path / "t.csv", encoding="iso-8859-1").rows == (("P1", "caf\u00e9", "0"),)
