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

from datasites.hospital.data.cells import cell_text, code, number, pseudonym, word
from datasites.hospital.data.harmonise import harmonise, harmonise_column
from datasites.hospital.data.mapping import Column, Mapping
from datasites.hospital.data.tables import read_table
from datasites.privacy.model_inputs import binary_loss, tensors
from datasites.privacy.trainer import _Batch
from datasites.study.errors import InputError
from datasites.study.schema import DataModel, Feature, SchemaError
from tests.hospital.prepared import prepare

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
    + [
        "TRUE",
        "True",
        "true",
        "false",
        "yes",
        "Y",
        "-0",
        "-0.0",
        "0.1",
        "200",
        "200.5",
        "1e400",
        "-1e400",
        "inf",
        "-Infinity",
    ]
    + ["1,000", "1_0", "0x1F", "\u0661", "\uff11", "\u00b2", "9007199254740992", "-9007199254740992", "1e15", "7e300"]
    + ['"', 'a "quote"', "a,b", "\u2028", "1\u2028", "caf\u00e9", "#N/A", "1j", "1e" + "9" * 20]
)
#: Numbers that a column of fractions doesn't hold as they are.
INEXACT = ("9007199254740993", "9223372036854775808", "9" * 40, "1e-400")
# The mapping has a meaning for all of them, so that each table of them is ready.
WORDS = [word for word in ODD if number(word) is None]
CODES = [*WORDS, *(word for word in (*ODD, *INEXACT) if number(word) is not None and code(word) not in (0, 1, 2))]
UNTRUE = [word for word in CODES if word.lower() not in ("true", "false")]


def spellings(value: int, meaning: str) -> dict[str, str]:
    """A category's codes are words, so each way to write a number is one of its own."""
    return {text.strip(): meaning for text in ODD if code(text) == value}


MAPPING = Mapping.model_validate(
    {
        "patient": "mrn",
        "columns": {
            "chol": {"from": "a", "missing": [-9, *WORDS], "factor": 38.67, "offset": -0.0},
            "coded": {
                "from": "b",
                "missing": ["-09", *(word for word in CODES if word != "yes")],
                "values": {"1": 3, "0": "2.5", "2": 4.0, "yes": 7},
            },
            "smoker": {"from": "c", "missing": [-9.0, *UNTRUE, 2]},
            "fever": {"from": "d", "missing": [-9, *WORDS], "above": 37.5},
            "male": {"from": "e", "missing": CODES, "values": {"01": 1, "0": 0, "2.0": 0}},
            "ward": {
                "from": "f",
                "missing": [*(word for word in CODES if word != "None"), 0],
                "values": {**spellings(1, "1"), **spellings(2, "2"), "None": "none"},
            },
            "stage": {
                "from": "g",
                "missing": CODES,
                "values": {**spellings(1, "i"), **spellings(0, "ii"), **spellings(2, "ii")},
            },
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
        return read_table(path).cells


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
    with tempfile.TemporaryDirectory() as folder:
        typed(rows).to_parquet(Path(folder) / "table.parquet", index=False)
        return read_table(Path(folder) / "table.parquet").cells


FORMATS = [plain, quoted, typed, parquet]
#: What stands in most rows: one patient with the only odd word in a column is what a reader's guess would turn on.
ORDINARY = st.tuples(*[st.sampled_from(["-9", "-9.0", "0", "1", "1.0", "2", "01", ""])] * 8)
ANYTHING = st.sampled_from([*ODD, *INEXACT]) | st.text(
    st.sampled_from("\n") | st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])
)


def tables_for(read: Format) -> st.SearchStrategy[Rows]:
    words = ODD if read in (typed, parquet) else [*ODD, *INEXACT]
    odd = st.tuples(*[st.sampled_from(words)] * 8)
    return st.lists(ORDINARY | odd, min_size=1, max_size=12).map(of_patients)


def of_patients(cells: Rows) -> Rows:
    """Every third patient has two records."""
    return [(f"P{number - number % 3 // 2:03d}", *row) for number, row in enumerate(cells)]


def without(rows: Rows, patient: str) -> Rows:
    return [row for row in rows if row[0] != patient]


@pytest.mark.slow
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
    assert word(" Cafe\u0301 ") == word("Café") != word("café")
    assert len({word(text) for text in ("250.0", "250.00", "250")}) == 3
    values = [1, 1.0, np.int64(1), np.float32(1), Decimal("1.00"), True, None, math.nan, pd.NA, pd.NaT, 0.1, 2.0**60]
    assert [cell_text(value) for value in values] == ["1"] * 5 + ["true"] + [""] * 4 + ["0.1", "1.152921504606847e+18"]


def ready(feature: Feature, column: dict[str, Any], cells: list[str]) -> tuple[list[Any], str]:
    """Values, and why the feature isn't ready."""
    values, report = harmonise_column(pd.DataFrame({"a": cells}), feature, Column(**{"from": "a", **column}))
    assert report.ready == (not report.reason)
    return values.tolist(), report.reason


def test_a_code_with_two_meanings_is_refused() -> None:
    number, yes, ward = MODEL.features[1], MODEL.features[4], MODEL.features[5]
    with pytest.raises(ValidationError, match="one code with two meanings"):
        Mapping.model_validate({"columns": {"stage": {"from": "g", "values": {"a": "i", " a": "ii"}}}})
    for feature in (number, yes):
        assert "one code with two meanings" in ready(feature, {"values": {"1": 1, "01": 0}}, ["1"])[1]
    # Of a category these are two codes.
    assert ready(ward, {"values": {"250.0": "1", "250.00": "2"}}, ["250.0", "250.00"]) == (["1", "2"], "")
    assert ready(yes, {"values": {"a": 1, "A": 0}}, ["a", "A", "a"]) == ([1, 0, 1], "")
    assert "stands in `values` and in `missing`" in ready(ward, {"values": {"9": "1"}, "missing": [9.0]}, ["9"])[1]


def test_no_word_is_missing_unless_the_mapping_says_so() -> None:
    number, yes, ward = MODEL.features[0], MODEL.features[2], MODEL.features[5]
    assert ready(ward, {}, ["None", "NONE", "1"]) == (["none", "none", "1"], "")
    assert ready(yes, {"values": {"None": 0, "Minor": 1}}, ["None", "Minor", " None "]) == ([0, 1, 0], "")
    for cell in ("NA", "nan", "null", "#N/A"):
        for feature in (number, yes, ward):
            assert f"1 say {cell.lower()!r}: if that means no value" in ready(feature, {}, [cell, "1"])[1]
            values, reason = ready(feature, {"missing": [cell]}, [cell, "1", ""])
            assert (reason, pd.isna(values[0]), pd.isna(values[1]), pd.isna(values[2])) == ("", True, False, True)


def test_missing_codes_are_numbers_whatever_else_the_column_holds() -> None:
    for entry in (0, 0.0, "0.0", "-0"):
        values, reason = ready(
            MODEL.features[0], {"missing": [entry, "haemolysed"]}, ["0.0", "23.7", "haemolysed", "0"]
        )
        assert (reason, [pd.isna(value) for value in values]) == ("", [True, False, True, True])


def test_what_differs_in_capitals_or_in_how_a_number_is_written_is_said_without_a_value() -> None:
    reason = ready(MODEL.features[5], {"values": {"M": "1", "1.0": "2"}}, ["m", "1", "M", "secret"])[1]
    assert "3 value(s)" in reason
    assert "2 differ from what the mapping or the study names in capitals, or in how a number is written" in reason
    assert "secret" not in reason


def test_words_for_a_number_leave_its_numbers_alone_and_a_recoding_does_not() -> None:
    number = MODEL.features[1]
    assert ready(number, {"values": {"> 8": 9}}, ["> 8", "3", "4.5"]) == ([9, 3, 4.5], "")
    assert "1 value(s)" in ready(number, {"values": {"1": 3}}, ["1", "2"])[1]


def test_a_value_that_is_no_level_is_a_finding() -> None:
    column = MAPPING.columns["stage"].model_copy(update={"values": {"1": "iii"}})
    _, report = harmonise_column(pd.DataFrame({"g": ["1", "1"]}), MODEL.features[6], column)
    assert not report.ready
    assert "2 value(s)" in report.reason


def test_cells_are_taken_as_they_stand(tmp_path: Path) -> None:
    table = from_csv('\ufeffmrn,,a\r\n\r\nP1, x ,"say ""no"""\r\n   \r\nP2,NA,\r\n,,\r\n')
    assert list(table.columns) == ["mrn", "", "a"]
    assert table.to_numpy().tolist() == [["P1", " x ", 'say "no"'], ["P2", "NA", ""]]
    assert len(from_csv("mrn,a\n")) == 0


def test_parquet_is_read_by_the_same_rules(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pd.DataFrame({"id": ["P1", "", "P3"], "a": [1.0, None, 2.5]}).to_parquet(path, index=False)
    table = read_table(path)
    assert table.cells.to_numpy().tolist() == [["P1", "1"], ["P3", "2.5"]]
    assert (table.place, table.places, table.empty) == ("row", (1, 3), (2,))
    pd.DataFrame({"id": ["P1"], " id": ["x"]}).to_parquet(path, index=False)
    with pytest.raises(InputError, match="'id' is the name of more than one column"):
        read_table(path)
    pd.DataFrame({"id": ["P1\0secret", "P2"], "a": ["x", "y"]}).to_parquet(path, index=False)
    with pytest.raises(InputError, match=r"1 value\(s\) of column 'id' hold control characters") as caught:
        read_table(path)
    assert "secret" not in str(caught.value)


def test_damage_to_parquet_with_checksums_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.PARQUET"
    frame = pd.DataFrame({"id": [f"P{row}" for row in range(40)], "a": np.arange(40) % 3 + 0.5})
    frame.to_parquet(path, index=False, write_page_checksum=True)
    content, before = path.read_bytes(), read_table(path).cells
    refused = 0
    for place in range(0, len(content), 11):
        path.write_bytes(content[:place] + bytes([content[place] ^ 37]) + content[place + 1 :])
        try:
            after = read_table(path).cells
        except InputError:
            refused += 1
            continue
        assert after.to_numpy().tolist() == before.to_numpy().tolist()
    assert refused > 20


def test_no_row_is_known_by_its_place() -> None:
    table = plain([("P1", *["1"] * 8)])
    with pytest.raises(ValueError, match="names"):
        prepare(table, MAPPING.model_copy(update={"patient": None}), MODEL)
    assert len(harmonise(table, MAPPING.model_copy(update={"patient": None}), MODEL)[0]) == 1


def test_an_empty_cell_is_nobodys_name_and_a_word_is_one() -> None:
    assert [pseudonym(text) for text in ("", "  ", None, math.nan)] == [None] * 4
    assert pseudonym(" NA ") == "NA"
    with pytest.raises(InputError, match=r"1 row\(s\)"):
        prepare(plain([(" ", *["1"] * 8)]), MAPPING, MODEL)
    assert prepare(plain([("NULL", *["1"] * 8)]), MAPPING, MODEL)[0]["patient"].tolist() == ["NULL"]


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
