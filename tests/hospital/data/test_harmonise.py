"""Four schemas, codes and units become one data model; what doesn't fit is named, with counts and never values."""

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datasites.enclave.partition import Partition
from datasites.hospital.data.cells import pseudonym
from datasites.hospital.data.harmonise import harmonise
from datasites.hospital.data.mapping import Column, Mapping, read_mapping
from datasites.hospital.data.tables import read_table
from datasites.study.errors import InputError, read_toml
from datasites.study.schema import DataModel, Feature, SchemaError
from tests.hospital.prepared import prepare

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from heart_disease import prepare as heart  # noqa: E402

MODEL = read_toml(SCRIPTS / "heart_disease" / "study" / "features.toml", DataModel)


def mapping_of(site: str) -> Mapping:
    return read_mapping(SCRIPTS / "heart_disease" / "mappings" / f"{site}.toml")


def local(site: str, tmp_path: Path) -> pd.DataFrame:
    path = tmp_path / "table.csv"
    heart.local_table(site, heart.load()[site]).to_csv(path, index=False)
    return read_table(path).cells


@pytest.mark.parametrize("site", sorted(heart.EXPECTED))
def test_each_hospitals_own_schema_becomes_the_same_numbers(site: str, tmp_path: Path) -> None:
    arrays, reports, prepared = prepare(local(site, tmp_path), mapping_of(site), MODEL)
    assert all(report.ready for report in reports)
    assert arrays["x"].shape == (heart.EXPECTED[site], len(MODEL.columns))
    assert prepared.patients == heart.EXPECTED[site]
    published = heart.load()[site].reset_index(drop=True)
    assert np.array_equal(arrays["y"], (published["num"] > 0).to_numpy(np.float32))
    columns = list(MODEL.columns)
    sex = arrays["x"][:, columns.index("sex")]
    assert np.allclose(sex, (published["sex"] == "Male") - 0.7)
    chol = published["chol"].where(published["chol"] > 0)
    expected = ((chol.clip(85, 605) - 240) / 100).fillna(0)
    assert np.allclose(arrays["x"][:, columns.index("cholesterol")], expected, atol=1e-3)
    pain = (published["cp"] == "asymptomatic") - 0.5
    assert np.allclose(arrays["x"][:, columns.index("chest_pain=asymptomatic")], pain)


def test_the_wrong_hospital_label_is_mended() -> None:
    hungary = heart.load()["hungary"]
    assert (hungary["id"] == 304).any()


def test_the_version_changes_with_one_value(tmp_path: Path) -> None:
    table = local("cleveland", tmp_path)
    before = prepare(table, mapping_of("cleveland"), MODEL)[2].content_hash
    table.loc[5, "age"] = "77"
    assert prepare(table, mapping_of("cleveland"), MODEL)[2].content_hash != before


def test_what_does_not_fit_is_named_without_a_value(tmp_path: Path) -> None:
    table = local("cleveland", tmp_path)
    table.loc[3, "sex"] = "secret-value-7"
    with pytest.raises(SchemaError, match="sex: 1 value") as caught:
        prepare(table, mapping_of("cleveland"), MODEL)
    assert "secret-value-7" not in str(caught.value)


def test_a_missing_column_and_an_unconverted_unit_are_not_ready(tmp_path: Path) -> None:
    table = local("hungary", tmp_path).drop(columns=["oldpeak"])
    mapping = mapping_of("hungary")
    columns = dict(mapping.columns)
    stated = columns["cholesterol"].model_dump(by_alias=True, exclude_unset=True, exclude={"factor"})
    columns["cholesterol"] = Column.model_validate(stated)
    late = {r.name: r.reason for r in harmonise(table, Mapping(patient="id", columns=columns), MODEL)[1] if not r.ready}
    assert set(late) == {"st_depression", "cholesterol"}
    assert "'oldpeak'" in late["st_depression"]
    assert "factor" in late["cholesterol"]


def test_rows_without_label_are_left_out_and_without_patient_refused(tmp_path: Path) -> None:
    table = local("cleveland", tmp_path)
    table.loc[0, "num"] = ""
    assert len(prepare(table, mapping_of("cleveland"), MODEL)[0]["y"]) == 302
    table.loc[1, "id"] = None
    with pytest.raises(InputError, match="1 row"):
        prepare(table, mapping_of("cleveland"), MODEL)


@pytest.mark.parametrize("words", [{"Male": "yes", "Female": "no"}, {"Male": "1.5", "Female": "no"}])
def test_a_mapping_that_makes_words_where_the_study_wants_numbers_is_a_finding(tmp_path: Path, words: dict) -> None:
    mapping = mapping_of("cleveland")
    columns = dict(mapping.columns)
    columns["sex"] = columns["sex"].model_copy(update={"values": words})
    _, reports = harmonise(local("cleveland", tmp_path), mapping.model_copy(update={"columns": columns}), MODEL)
    (sex,) = (report for report in reports if report.name == "sex")
    assert not sex.ready
    assert "`values`" in sex.reason


def test_patients_are_called_as_the_table_calls_them(tmp_path: Path) -> None:
    """000002 is not 2, in CSV as in Parquet, where a gap makes floats of whole numbers."""
    table = tmp_path / "table.csv"
    table.write_text("id,age\n000002,40\n 17 ,41\n2.0,42\n  ,43\n")
    assert read_table(table).cells.map(pseudonym)["id"].tolist() == ["000002", "17", "2.0", None]
    assert read_table(table).cells["age"].tolist() == ["40", "41", "42", "43"]
    assert pseudonym(2.0) == "2"
    assert pseudonym("NA") == "NA"


def test_a_patients_records_share_one_patient(tmp_path: Path) -> None:
    table = local("cleveland", tmp_path)
    table.loc[1, "id"] = table.loc[0, "id"]
    assert prepare(table, mapping_of("cleveland"), MODEL)[2].patients == 302


def test_preparing_takes_the_memory_of_the_encoded_numbers_once() -> None:
    """So what bounds these bounds the datasite's process: 4,096 levels once took eight bytes for each, twice over."""
    levels = tuple(f"l{number}" for number in range(4096))
    ward = Feature(name="ward", type="category", levels=levels)
    model = DataModel(features=(ward,), label=Feature(name="died", type="boolean"))
    mapping = Mapping.model_validate({"patient": "id", "columns": {name: {"from": name} for name in ("ward", "died")}})
    rows = 2048
    table = pd.DataFrame(
        {"id": [str(row) for row in range(rows)], "ward": levels[:rows], "died": ["0", "1"] * (rows // 2)}
    )
    tracemalloc.start()
    try:
        arrays, _, _ = prepare(table, mapping, model)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert arrays["x"].sum() == rows - 1
    assert arrays["x"].nbytes < peak < 1.25 * arrays["x"].nbytes


def test_a_unit_of_another_name_is_the_same_where_the_mapping_says_so() -> None:
    feature = Feature.model_validate(
        {"name": "na", "type": "number", "unit": "mmol/L", "low": 100, "high": 180, "centre": 140}
    )
    model = DataModel.model_validate({"features": [feature], "label": {"name": "died", "type": "boolean"}})
    table = pd.DataFrame({"Na": ["138"], "died": ["0"]})
    for column, ready in (({"unit": "meq/L"}, False), ({"unit": "meq/L", "factor": 1}, True), ({}, True)):
        columns = {"na": {"from": "Na", **column}, "died": {"from": "died"}}
        _, (report, _) = harmonise(table, Mapping.model_validate({"columns": columns}), model)
        assert report.ready == ready
        assert ready or "set `factor` (1 where both are the same)" in report.reason


@pytest.mark.parametrize("named", [{"patient": "pid"}, {}])
def test_a_feature_may_be_called_as_the_reader_calls_things_itself(named: dict[str, str]) -> None:
    table = pd.DataFrame({"pid": ["101", "102", "103", "103"], "visits": ["7"] * 4, "died": ["0", "1", "0", "1"]})
    columns = {"patient": {"from": "visits"}, "x": {"from": "visits"}, "died": {"from": "died"}}
    model = DataModel.model_validate(
        {
            "features": [{"name": name, "type": "number", "low": 0, "high": 1000} for name in ("patient", "x")],
            "label": {"name": "died", "type": "boolean"},
        }
    )
    mapping = Mapping.model_validate({"columns": columns} | named)
    arrays, _, prepared = prepare(table, mapping, model, None if named else ["a", "b", "c", "d"])
    assert arrays["x"].tolist() == [[7.0, 7.0]] * 4
    assert arrays["patient"].tolist() == (["101", "102", "103", "103"] if named else ["a", "b", "c", "d"])
    assert prepared.patients == (3 if named else 4)
    mock = Partition.of_mock(model, pd.DataFrame({"patient": [5.0, 5.0], "x": [1.0, 2.0], "died": [0.0, 1.0]}))
    assert mock.patients is not None
    assert mock.patients.tolist() == [0, 1]
