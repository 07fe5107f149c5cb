"""Each row is encoded by itself: whatever words a patient brings into a table, nobody else is read otherwise."""

from __future__ import annotations

import csv
import io
import math
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from datasites.hospital.cells import cell_text, code, number, pseudonym, read_table
from datasites.hospital.harmonise import Mapping, harmonise, harmonise_column, prepare
from datasites.privacy.batches import binary_loss, tensors
from datasites.privacy.trainer import _Batch
from datasites.study.errors import InputError
from datasites.study.schema import DataModel, Feature, SchemaError

#: One feature of each type and of each way to make it.
MODEL = DataModel.model_validate(
    {
        "features": [
            {"name": "chol", "type": "number", "low": 0, "high": 400, "centre": 0, "scale": 100, "indicator": True},
            {"name": "coded", "type": "number", "low": 0, "high": 9, "centre": 1},
            {"name": "smoker", "type": "boolean", "centre": 0.25, "indicator": True},
            {"name": "fever", "type": "boolean", "indicator": True},
            {"name": "male", "type": "boolean"},
            {"name": "ward", "type": "category", "levels": ["1", "2", "none"], "indicator": True},
            {"name": "stage", "type": "category", "levels": ["i", "ii"], "centres": [0.5], "indicator": True},
        ],
        "label": {"name": "sick", "type": "boolean"},
    }
)
#: Words that readers take for numbers, for truth, for dates or for nothing, or take differently by what stands beside.
ODD = (
    ["?", "", " ", "NA", "nan", "NaN", "None", "null", "<NA>", "-", "x", "i", "01/02/2003", "2003-02-01", "12:30"]
    + ["0", "1", " 1", "1 ", "1.0", "01", "1e0", "+1", "1.", "-9", "-9.0", "-09", " -9", "-9e0", "2", "02", "2.0"]
    + ["TRUE", "True", "false", "yes", "Y", "-0", "-0.0", "0.1", "200", "200.5", "1e400", "-1e400", "inf", "-Infinity"]
    + ["1,000", "1_0", "0x1F", "\u0661", "\uff11", "\u00b2", "9007199254740992", "-9007199254740992", "1e15", "7e300"]
    + ['"', 'a "quote"', "a,b", "\u2028", "1\u2028", "caf\u00e9", "#N/A", "1j", "1e" + "9" * 20]
)
#: Numbers that a column of fractions doesn't hold as they are.
INEXACT = ("9007199254740993", "9223372036854775808", "9" * 40, "1e-400")
# The mapping has a meaning for all of them, so that each table of them is ready.
WORDS = [word for word in ODD if number(word) is None]
CODES = [*WORDS, *(word for word in (*ODD, *INEXACT) if number(word) is not None and code(word) not in (0, 1, 2))]
UNTRUE = [word for word in CODES if word.lower() not in ("true", "false")]
MAPPING = Mapping.model_validate(
    {
        "patient": "mrn",
        "columns": {
            "chol": {"from": "a", "missing": [-9, *WORDS], "factor": 38.67, "offset": -0.0},
            "coded": {"from": "b", "missing": ["-09", *CODES], "values": {"1": 3, "0": "2.5", "2": 4.0, "yes": 7}},
            "smoker": {"from": "c", "missing": [-9.0, *UNTRUE, 2]},
            "fever": {"from": "d", "missing": [-9, *WORDS], "above": 37.5},
            "male": {"from": "e", "missing": CODES, "values": {"01": 1, "0": 0, "2.0": 0}},
            "ward": {"from": "f", "missing": [*(word for word in CODES if word != "None"), 0]},
            "stage": {"from": "g", "missing": CODES, "values": {"1": "i", "0": "ii", "2": "ii"}},
            "sick": {"from": "h", "missing": [*UNTRUE, 2]},
        },
    }
)
COLUMNS = ["mrn", *"abcdefgh"]

Rows = list[tuple[str, ...]]
Format = Callable[[Rows], pd.DataFrame]


def as_csv(rows: Rows, **dialect: Any) -> str:
    text = io.StringIO()
    writer = csv.writer(text, **{"lineterminator": "\n", **dialect})
    writer.writerows([COLUMNS, *rows])
    return text.getvalue()


def from_csv(content: str) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_bytes(content.encode())
        return read_table(path)


def plain(rows: Rows) -> pd.DataFrame:
    return from_csv(as_csv(rows))


def quoted(rows: Rows) -> pd.DataFrame:
    return from_csv("\ufeff" + as_csv(rows, quoting=csv.QUOTE_ALL, lineterminator="\r\n"))


def typed(rows: Rows) -> pd.DataFrame:
    """As pandas would hold them: each column of the type that all of its rows allow, two as categories."""
    guessed = pd.read_csv(io.StringIO(as_csv(rows)), dtype={"mrn": str}, float_precision="round_trip")
    return guessed.astype(dict.fromkeys(guessed.columns[-2:], "category"))


def parquet(rows: Rows) -> pd.DataFrame:
    """The same, written and read."""
    pytest.importorskip("pyarrow")
    with tempfile.TemporaryDirectory() as folder:
        typed(rows).to_parquet(Path(folder) / "table.parquet", index=False)
        return read_table(Path(folder) / "table.parquet")


FORMATS = [plain, quoted, typed, parquet]
#: What stands in most rows: one patient with the only odd word in a column is what a reader's guess would turn on.
ORDINARY = st.tuples(*[st.sampled_from(["-9", "-9.0", "0", "1", "1.0", "2", "01", ""])] * 8)
ANYTHING = st.sampled_from([*ODD, *INEXACT]) | st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"))


def tables_for(read: Format) -> st.SearchStrategy[Rows]:
    words = ODD if read in (typed, parquet) else [*ODD, *INEXACT]
    odd = st.tuples(*[st.sampled_from(words)] * 8)
    return st.lists(ORDINARY | odd, min_size=1, max_size=12).map(of_patients)


def of_patients(cells: Rows) -> Rows:
    """Every third patient has two records."""
    return [(f"P{number - number % 3 // 2:03d}", *row) for number, row in enumerate(cells)]


def without(rows: Rows, patient: str) -> Rows:
    return [row for row in rows if row[0] != patient]


@pytest.mark.parametrize("read", FORMATS)
@given(data=st.data())
def test_a_patient_who_leaves_changes_no_bit_of_anybody_else(read: Format, data: st.DataObject) -> None:
    rows = data.draw(tables_for(read))
    gone = data.draw(st.sampled_from([row[0] for row in rows]))
    whole, _, prepared = prepare(read(rows), MAPPING, MODEL)
    less, _, left = prepare(read(without(rows, gone)), MAPPING, MODEL)
    others = whole["patient"] != gone
    assert whole["patient"][others].tolist() == less["patient"].tolist()
    for name in ("x", "y"):
        assert whole[name].dtype == less[name].dtype == np.float32
        assert np.isfinite(whole[name]).all()
        assert whole[name][others].tobytes() == less[name].tobytes(), name
    assert left.patients == prepared.patients - (not others.all())


@pytest.mark.parametrize("read", [plain, quoted])
@settings(max_examples=50)
@given(cells=st.lists(st.tuples(*[ANYTHING] * 8), min_size=1, max_size=8), data=st.data())
def test_values_and_readiness_of_others_hold_whatever_stands_in_a_cell(
    read: Format, cells: Rows, data: st.DataObject
) -> None:
    """Also where cells have no meaning; and a table that is ready stays so when somebody leaves."""
    rows = of_patients(cells)
    gone = data.draw(st.sampled_from([row[0] for row in rows]))
    table, neighbour = read(rows), read(without(rows, gone))
    others = (table["mrn"] != gone).to_numpy()
    assert table[others].to_numpy().tolist() == neighbour.to_numpy().tolist()
    for feature in (*MODEL.features, MODEL.label):
        for column in (MAPPING.columns[feature.name], MAPPING.columns[feature.name].model_copy(update={"missing": ()})):
            values, report = harmonise_column(table, feature, column)
            fewer, less = harmonise_column(neighbour, feature, column)
            assert values.dtype == fewer.dtype
            assert repr(values[others].tolist()) == repr(fewer.tolist())
            assert less.ready or not report.ready


def test_one_patients_word_moves_the_clipped_sum_by_no_more_than_the_clip() -> None:
    """A sentinel of 100 other patients once stopped being missing when one patient with "?" joined."""
    chol = Feature(name="chol", type="number", low=100, high=400, centre=250, scale=100, indicator=True)
    model = DataModel(features=(chol,), label=Feature(name="sick", type="boolean"))
    mapping = Mapping.model_validate(
        {"patient": "mrn", "columns": {"chol": {"from": "chol", "missing": [-9, "?"]}, "sick": {"from": "sick"}}}
    )
    lines = [f"p{i},{'-9.0' if i % 3 == 0 else 200 + i},{i % 2}" for i in range(300)]

    def encoded(odd: list[str]) -> dict[str, np.ndarray]:
        return prepare(from_csv("\n".join(["mrn,chol,sick", *lines, *odd]) + "\n"), mapping, model)[0]

    def clipped_sum(arrays: dict[str, np.ndarray]) -> np.ndarray:
        module = nn.Linear(arrays["x"].shape[1], 1).eval()
        nn.init.constant_(module.weight, 0.3)
        nn.init.zeros_(module.bias)
        target, limits = torch.from_numpy(arrays["y"]), torch.ones(len(arrays["y"]), dtype=torch.float64)
        batch = _Batch(module, binary_loss, tensors(arrays["x"]), target, limits, 64, torch.device("cpu"), False)
        return batch.clipped_sum(np.arange(len(arrays["y"])))

    before, after = encoded([]), encoded(["q,?,1"])
    others = after["patient"] != "q"
    assert (before["x"] == after["x"][others]).all()
    assert before["x"][:, 1].sum() == 100
    assert np.linalg.norm(clipped_sum(after) - clipped_sum(before)) <= 1 + 2**-9


def test_codes_are_compared_as_numbers_and_words_as_words() -> None:
    assert len({code(text) for text in ("1", "01", " 1.0", "1e0", "+1", "0.1e1")}) == 1
    assert code("9007199254740993") != code("9007199254740992")
    assert [number(word) for word in ("1,000", "1_0", "0x1F", "\u0661", "\uff11", "nan", "1e" + "9" * 20)] == [None] * 7
    assert (number("TRUE"), number(" false"), number("-Inf")) == (1, 0, Decimal("-Infinity"))
    assert math.isinf(float(number("1e400") or 0))
    assert code(" Café ") == code("café")
    values = [1, 1.0, np.int64(1), np.float32(1), Decimal("1.00"), True, None, math.nan, pd.NA, pd.NaT, 0.1, 2.0**60]
    assert [cell_text(value) for value in values] == ["1"] * 5 + ["true"] + [""] * 4 + ["0.1", "1.152921504606847e+18"]


def test_a_code_with_two_meanings_is_refused_before_any_row_is_read() -> None:
    with pytest.raises(ValidationError, match="one code with two meanings"):
        Mapping.model_validate({"columns": {"stage": {"from": "g", "values": {"1": "i", "01": "ii"}}}})
    feature = Feature(name="ward", type="category", levels=("1", "01"))
    column = MAPPING.columns["ward"]
    _, report = harmonise_column(pd.DataFrame({"f": ["1"]}), feature, column)
    assert not report.ready
    assert "set `values`" in report.reason


def test_a_missing_word_is_a_value_where_the_mapping_or_the_study_says_so() -> None:
    table = plain([("P1", *["1"] * 5, "None", "1", "1"), ("P2", *["1"] * 5, "NA", "1", "1")])
    column = MAPPING.columns["ward"].model_copy(update={"missing": ()})
    values, report = harmonise_column(table, MODEL.features[5], column)
    assert values.tolist() == ["none", None]
    assert (report.ready, report.missing) == (True, 1)
    column = column.model_copy(update={"values": {"na": "2", "None": "1"}})
    assert harmonise_column(table, MODEL.features[5], column)[0].tolist() == ["1", "2"]


def test_a_value_that_is_no_level_is_a_finding() -> None:
    column = MAPPING.columns["stage"].model_copy(update={"values": {"1": "iii"}})
    _, report = harmonise_column(pd.DataFrame({"g": ["1", "1"]}), MODEL.features[6], column)
    assert not report.ready
    assert "2 value(s)" in report.reason


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ('P1,"open\nP2,2\nP3,"3"\n', "(line 2)"),
        ('P1,"two\nlines"\nP2,2\n', "(line 2)"),
        ('P1,1\n\nP2,"2"x\n', "(line 4)"),
        ("P1,1\nP2,1,000\n", "(line 3)"),
        ("P1,1\nP2,a\rb\n", "(line 3)"),
    ],
)
def test_a_line_that_is_no_record_by_itself_is_refused_and_swallows_nobody(body: str, lines: str) -> None:
    with pytest.raises(InputError) as caught:
        from_csv("mrn,secret\n" + body)
    assert lines in str(caught.value)
    assert "P2" not in str(caught.value)


def test_cells_are_taken_as_they_stand_in_a_csv_file() -> None:
    table = from_csv('\ufeffmrn,,a,a\r\n\r\nP1, x ,"1,5","say ""no"""\r\n   \r\nP2,NA\r\n,,,')
    assert list(table.columns) == ["mrn", "Unnamed: 1", "a", "a.1"]
    assert table.to_numpy().tolist() == [["P1", " x ", "1,5", 'say "no"'], ["P2", "NA", "", ""], [""] * 4]
    assert len(from_csv("mrn,a\n")) == 0


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", b"mrn,a\nP1,caf\xe9\n", "mrn,a\nP1,1\n".encode("utf-16"), b"a\n\0\n"]
)
def test_what_is_no_text_in_utf_8_is_no_table(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(InputError, match="not a readable table"):
        read_table(tmp_path / "table.csv")


def test_no_row_is_known_by_its_place() -> None:
    table = plain([("P1", *["1"] * 8)])
    with pytest.raises(ValueError, match="names"):
        prepare(table, MAPPING.model_copy(update={"patient": None}), MODEL)
    assert len(harmonise(table, MAPPING.model_copy(update={"patient": None}), MODEL)[0]) == 1


def test_a_missing_word_is_nobodys_name() -> None:
    assert [pseudonym(word) for word in ("NA", " nan", "", None, math.nan)] == [None] * 5
    with pytest.raises(InputError, match=r"1 row\(s\)"):
        prepare(plain([("NULL", *["1"] * 8)]), MAPPING, MODEL)


def test_the_sign_of_a_zero_is_taken_away() -> None:
    feature = MODEL.features[0]
    for rows in range(1, 40):
        assert not np.signbit(feature.encode(pd.Series([-0.0] * rows))).any()


def test_the_data_model_reads_each_value_by_itself() -> None:
    values = pd.Series([1, 2.5, True, None, "3", 2**70, 10**400], dtype=object)
    feature = Feature(name="a", type="number", low=0, high=9)
    assert feature.encode(values[:6])[:, 0].tolist() == [1, 2.5, 1, 0, 3, 9]
    with pytest.raises(SchemaError, match="not all values are numbers"):
        feature.encode(values)
