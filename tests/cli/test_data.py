"""Readiness of a table, and withdrawals, which one person enters and two take back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from datasites.hospital.data.withdrawal import withdrawn
from tests.cli.command_line import CommandLine
from tests.hospital.conftest import HEART
from tests.hospital.desk import Desk

WHY = ("--reason", "why")
STUDY_FOLDER = ("--study", HEART / "study")
SOMEBODY = "CLEVELAND-0007"


@pytest.fixture
def table(desk: Desk) -> Iterator[Path]:
    """The hospital's table, which is as before after the test, like the list of those who have withdrawn."""
    home = desk.site.home
    path = home.root / "data" / "table.csv"
    before = path.read_bytes()
    yield path
    path.write_bytes(before)
    shutil.rmtree(home.withdrawals, ignore_errors=True)


def test_rows_and_findings_are_shown_and_a_person_answers_them(datasites: CommandLine, table: Path) -> None:
    check, accept = (("dataset", word, "heart") for word in ("check", "accept"))
    assert datasites(*check, *STUDY_FOLDER).code == 0
    rows = pd.read_csv(table)
    rows["age"] *= 12
    rows.to_csv(table, index=False)
    done = datasites(*check, *STUDY_FOLDER)
    assert done.code == 1
    assert "blocks: [out_of_range:age] age: 303 of 303 values" in done.printed
    assert "303 rows are kept (303 patients; 303 patients are declared)." in done.printed
    assert "not on this table now" in datasites.refuses(*accept, "no_rows", *STUDY_FOLDER, *WHY, by="ann")
    datasites.does(*accept, "out_of_range:age", *STUDY_FOLDER, "--reason", "known", by="ann")
    (record,) = datasites.logged("finding_answered")
    assert (record["dataset"], record["person"]) == ("heart", "ann")
    assert "accepted: [out_of_range:age]" in datasites.does(*check, *STUDY_FOLDER).printed
    datasites.does(*accept, "out_of_range:age", *STUDY_FOLDER, *WHY, "--undo", by="bob")
    assert datasites(*check, *STUDY_FOLDER).code == 1


def test_a_dataset_or_a_study_that_is_not_there_is_named(datasites: CommandLine, tmp_path: Path) -> None:
    assert "elsewhere" in datasites.refuses("dataset", "check", "elsewhere", *STUDY_FOLDER)
    assert f"{tmp_path}" in datasites.refuses("dataset", "check", "heart", "--study", tmp_path)
    assert "elsewhere" in datasites.refuses("dataset", "accept", "elsewhere", "x", *STUDY_FOLDER, *WHY, by="ann")
    assert "elsewhere" in datasites.refuses("dataset", "withdraw", "elsewhere", "x", *WHY, by="ann")
    assert "elsewhere" in datasites.refuses("budget", "history", "elsewhere")
    assert "elsewhere" in datasites.refuses("budget", "what-if", "elsewhere", "1", "1", "1", "0.1")


def test_who_withdraws_is_left_out_and_two_people_take_it_back(datasites: CommandLine, desk: Desk, table: Path) -> None:
    withdraw = ("dataset", "withdraw", "heart")
    assert "nobody was found" in datasites.refuses(*withdraw, "CLEVELAND-O007", *WHY, by="ann")
    done = datasites.does(*withdraw, SOMEBODY, "--reason", "a letter", by="ann")
    assert "table of heart, as it is now: 1 row(s) have that name" in done.printed
    frozen = f"frozen records of case {desk.row.pk} (review): 1 row(s) are left out from its next round on"
    assert frozen in done.printed
    assert len(withdrawn(datasites.home, "heart")) == 1
    (record,) = datasites.logged("withdrawn")
    assert (record["dataset"], record["person"]) == ("heart", "ann")
    assert SOMEBODY not in datasites.home.audit.read_text()
    assert "was not found" not in datasites.refuses(*withdraw, "--undo", "CLEVELAND-0008", *WHY, by="ann")
    done = datasites.does(*withdraw, "--undo", SOMEBODY, *WHY, by="ann")
    assert "is undone: the patient is back from the next round on; the other role confirms it" in done.printed
    assert "the other role" in datasites.refuses("budget", "confirm", 1, by="cyd")
    datasites.does("budget", "confirm", 1, by="bob")
    assert withdrawn(datasites.home, "heart") == frozenset()
