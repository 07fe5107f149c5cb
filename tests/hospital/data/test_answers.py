"""What people said of a table's findings holds as long as log, opening, study and table are those it was said of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pandas as pd
import pytest

from datasites.hospital.cases import examination
from datasites.hospital.cases.readiness import accept, check_dataset
from datasites.hospital.data.answers import AnswerRefused, answer, unanswered
from datasites.hospital.data.findings import TableFinding
from datasites.hospital.models import Case
from datasites.study.errors import InputError
from datasites.study.package import StudyPackage
from tests.hospital.conftest import HEART
from tests.hospital.desk import Desk

PACKAGE = StudyPackage.read(HEART / "study")
Change = Callable[[str, Callable[[pd.Series], pd.Series]], None]
MONTHS = TableFinding("out_of_range", "age", 0.5, "half of it")


@pytest.fixture
def change(desk: Desk) -> Iterator[Change]:
    """What makes one column of the hospital's table another one, until the test is over."""
    path = desk.site.home.root / "data" / "table.csv"
    before = path.read_bytes()

    def changed(column: str, made: Callable[[pd.Series], pd.Series]) -> None:
        rows = pd.read_csv(path)
        rows[column] = made(rows[column])
        rows.to_csv(path, index=False)

    yield changed
    path.write_bytes(before)


def left(desk: Desk, *found: TableFinding, package: StudyPackage = PACKAGE) -> list[str]:
    return [finding.name for finding in unanswered(desk.site.home, "heart", found, package.data_model)]


def test_a_case_waits_until_a_person_says_why_the_table_is_right(desk: Desk, change: Change) -> None:
    change("age", lambda ages: ages * 12)
    row = examination.recheck(desk.site, desk.row.pk)
    assert row.state == Case.State.INTAKE
    assert "303 of 303 values lie outside the study's range" in row.note
    assert "months" in row.note
    assert "datasites dataset accept heart out_of_range:age" in row.note
    accept(desk.site, desk.login("ann"), "heart", PACKAGE, "out_of_range:age", "a study of the old")
    assert examination.recheck(desk.site, desk.row.pk).state == Case.State.REVIEW
    accept(desk.site, desk.login("bob"), "heart", PACKAGE, "out_of_range:age", "a slip", holds=False)
    assert examination.recheck(desk.site, desk.row.pk).state == Case.State.INTAKE


def test_the_log_shows_that_somebody_answered_and_not_what(desk: Desk) -> None:
    answer(desk.site, desk.login("ann"), "heart", MONTHS, PACKAGE.data_model, "a reason", holds=True)
    record = json.loads(desk.site.home.audit.read_text().splitlines()[-1])
    assert record["kind"] == "finding_answered"
    assert {"dataset", "commitment", "person", "role"} == set(record["fields"])
    assert record["fields"] | {"commitment": ""} == {
        "dataset": "heart", "commitment": "", "person": "ann", "role": "steward",
    }  # fmt: skip


def test_an_answer_holds_for_what_was_answered(desk: Desk) -> None:
    answer(desk.site, desk.login("ann"), "heart", MONTHS, PACKAGE.data_model, "a reason", holds=True)
    assert left(desk, MONTHS) == []
    assert left(desk, TableFinding("out_of_range", "age", 0.59, "")) == []
    assert left(desk, TableFinding("out_of_range", "age", 0.61, "")) == ["out_of_range:age"]
    assert left(desk, TableFinding("infinite", "age", 0.1, "")) == ["infinite:age"]
    assert left(desk, TableFinding("out_of_range", "cholesterol", 0.5, "")) == ["out_of_range:cholesterol"]
    age = PACKAGE.data_model.features[0].model_copy(update={"high": 100.0})
    other = PACKAGE.data_model.model_copy(update={"features": (age, *PACKAGE.data_model.features[1:])})
    assert unanswered(desk.site.home, "heart", [MONTHS], other) == [MONTHS]
    assert unanswered(desk.site.home, "lung", [MONTHS], PACKAGE.data_model) == [MONTHS]
    assert left(desk, TableFinding("no_rows", "", 1.0, ""), TableFinding("unused_code", "age", 0.0, "")) == ["no_rows"]


@pytest.mark.parametrize("harm", ["edited", "gone", "another"])
def test_an_opening_that_is_not_what_the_log_binds_answers_nothing(desk: Desk, harm: str) -> None:
    answer(desk.site, desk.login("ann"), "heart", MONTHS, PACKAGE.data_model, "a reason", holds=True)
    file = max(desk.site.home.bindings.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    assert left(desk, MONTHS) == []
    if harm == "gone":
        file.unlink()
    elif harm == "edited":
        file.write_text(file.read_text().replace('"share":0.5', '"share":0.9'))
    else:
        agreement = next(path for path in desk.site.home.bindings.glob("*.json") if path != file)
        file.write_bytes(agreement.read_bytes())
    assert left(desk, MONTHS) == ["out_of_range:age"]


def test_who_may_not_answer_and_what_cannot_be_answered(desk: Desk) -> None:
    with pytest.raises(AnswerRefused, match="dee is auditor"):
        answer(desk.site, desk.login("dee"), "heart", MONTHS, PACKAGE.data_model, "a reason", holds=True)
    with pytest.raises(AnswerRefused, match="say why"):
        answer(desk.site, desk.login("ann"), "heart", MONTHS, PACKAGE.data_model, "  ", holds=True)
    empty = TableFinding("no_rows", "", 1.0, "the table has no rows")
    with pytest.raises(AnswerRefused, match="this can't be accepted"):
        answer(desk.site, desk.login("ann"), "heart", empty, PACKAGE.data_model, "a reason", holds=True)
    with pytest.raises(InputError, match="not on this table now"):
        accept(desk.site, desk.login("ann"), "heart", PACKAGE, "out_of_range:age", "a reason")
    assert left(desk, MONTHS) == ["out_of_range:age"]


def test_rows_that_are_left_out_are_counted(desk: Desk, change: Change) -> None:
    change("num", lambda labels: labels.where(labels.index > 2))
    path = desk.site.home.root / "data" / "table.csv"
    path.write_text(path.read_text() + "\n\n")  # `change` takes this back, too
    words = check_dataset(desk.site.home, "heart", PACKAGE).rows_in_words()
    assert (
        words
        == "300 rows are kept (300 patients; 303 patients are declared). Left out: 2 empty one(s), 3 without a label."
    )
