"""Readiness of a table, withdrawals, and the budget: what is entered counts once a second person has confirmed it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from datasites.hospital.budget import ledger
from datasites.hospital.data.withdrawal import withdrawn
from datasites.hospital.models import BudgetFact, LedgerEntry, Population, Proposal
from tests.cli.command_line import CommandLine
from tests.hospital.budget.test_ledger_log import ROUND, STUDY, WHOLE
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


@pytest.fixture
def settings(desk: Desk) -> Iterator[Path]:
    """The hospital's datasite.toml, which is as before after the test."""
    path = desk.site.home.root / "datasite.toml"
    before = path.read_text()
    yield path
    path.write_text(before)


# -- datasets ----------------------------------------------------------------------------------------------------------


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


# -- budget ------------------------------------------------------------------------------------------------------------


def test_the_budget_and_its_history_are_shown(datasites: CommandLine, desk: Desk) -> None:
    heart = desk.site.home.dataset("heart")
    ledger.reserve(desk.site, heart, STUDY, WHOLE)
    ledger.charge(desk.site, heart, STUDY, 1, ROUND)
    state = ledger.state(heart)[0]
    row = datasites.does("budget", "show").lines[1].split()
    assert row[:4] == ["heart", "training", f"{state.spent:.3f}", f"{state.committed:.3f}"]
    done = datasites.does("budget", "history", "heart")
    assert "opened: epsilon 4 at delta 1e-05" in done.printed
    kinds = [word for line in done.lines for word in line.split() if word in ("reserve", "charge")]
    assert set(kinds) == {"reserve", "charge"}


def test_whether_another_study_would_fit_is_said_by_the_exit_code(datasites: CommandLine) -> None:
    before = datasites.home.audit.read_bytes()
    assert "fits: all studies" in datasites.does("budget", "what-if", "heart", "0.1", "5", "1", "0.1").printed
    done = datasites("budget", "what-if", "heart", "100", "5", "1", "0.1")
    assert (done.code, "does NOT fit" in done.printed) == (1, True)
    assert datasites.home.audit.read_bytes() == before


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (("1.0", "0", "5", "0.1"), "rounds"),
        (("1.0", "5", "0", "0.1"), "steps"),
        (("1.0", "5", "5", "-0.1"), "rate"),
        (("0", "5", "5", "0.1"), "epsilon"),
        (("nan", "5", "5", "0.1"), "epsilon"),
        (("1.0", "99999999999999999999", "5", "0.1"), "rounds"),
    ],
)
def test_a_study_that_nobody_could_run_is_not_priced(
    datasites: CommandLine, figures: tuple[str, ...], words: str
) -> None:
    assert words in datasites.refuses("budget", "what-if", "--", "heart", *figures)


def test_a_larger_delta_counts_once_the_other_role_has_confirmed_it(datasites: CommandLine) -> None:
    enter = ("budget", "accept-delta", "heart")
    done = datasites.does(*enter, "0.001", *WHY, by="ann")
    words = "population heart: releases with a delta up to 0.001"
    assert done.printed == f"entry 1: {words}; the other role confirms it"
    (record,) = datasites.logged("proposed")
    assert {"what": "accept_delta", "subject": "heart", "person": "ann", "reason": "why"}.items() <= record.items()
    assert words in datasites.does("budget", "waiting").printed
    assert "waits already" in datasites.refuses(*enter, "0.002", *WHY, by="bob")
    for same in ("ann", "cyd"):
        assert "a different person of the other role" in datasites.refuses("budget", "confirm", 1, by=same)
    assert not BudgetFact.objects.filter(what="delta_accepted").exists()
    assert datasites.does("budget", "confirm", 1, by="bob").printed == f"entry 1 counts: {words}"
    fact = BudgetFact.objects.get(what="delta_accepted")
    assert (fact.delta, fact.entered_by, fact.confirmed_by) == (0.001, "ann", "bob")
    (record,) = datasites.logged("proposal_confirmed")
    assert (record["what"], record["person"]) == ("accept_delta", "bob")
    assert "entry 1: does not wait" in datasites.refuses("budget", "confirm", 1, by="bob")
    assert "by ann and bob" in datasites.does("budget", "history", "heart").printed


def test_one_person_withdraws_an_entry(datasites: CommandLine) -> None:
    datasites.does("budget", "accept-delta", "heart", "0.001", *WHY, by="ann")
    assert datasites.does("budget", "withdraw", 1, by="cyd").printed == "entry 1: withdrawn"
    (record,) = datasites.logged("proposal_withdrawn")
    assert record["person"] == "cyd"
    assert "entry 1: does not wait" in datasites.refuses("budget", "confirm", 1, by="bob")
    assert "entry 1: does not wait" in datasites.refuses("budget", "withdraw", 1, by="bob")
    assert not BudgetFact.objects.filter(what="delta_accepted").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("accept-delta", "elsewhere", "0.1"), "elsewhere"),
        (("accept-delta", "heart", "0"), "outside (0, 1)"),
        (("accept-delta", "heart", "1"), "outside (0, 1)"),
        (("accept-delta", "heart", "nan"), "outside (0, 1)"),
        (("accept-delta", "heart", "0.1", "--reason", " "), "needs a reason"),
        (("widen", "heart"), "asks for no wider budget"),
        (("widen", "elsewhere"), "elsewhere"),
        (("other-patients", "heart", "elsewhere"), "'elsewhere': is not known here (known: heart)"),
        (("other-patients", "heart", "heart"), "name two different ones"),
        (("restored",), "--lost FILE, or --nothing-lost"),
        (("restored", "--nothing-lost", "--lost", "x.toml"), "--lost FILE, or --nothing-lost"),
        (("restored", "--lost", "/missing/lost.toml"), "/missing/lost.toml"),
        (("restored", "--nothing-lost"), "there is nothing to settle"),
    ],
)
def test_what_can_not_be_entered_is_named(datasites: CommandLine, line: tuple[str, ...], words: str) -> None:
    reason = () if "--reason" in line else WHY
    assert words in datasites.refuses("budget", *line, *reason, by="ann")


def test_a_budget_is_widened_to_what_the_settings_say_by_two_people(datasites: CommandLine, settings: Path) -> None:
    text = settings.read_text()
    settings.write_text(text.replace("\nepsilon = 4.0", "\nepsilon = 5.0"))
    datasites.does("budget", "widen", "heart", *WHY, by="bob")
    assert datasites.does("budget", "show").lines[1].split()[-3] == "4", "it does not count yet"
    settings.write_text(text.replace("\nepsilon = 4.0", "\nepsilon = 6.0"))
    assert "withdraw it and enter it again" in datasites.refuses("budget", "confirm", 1, by="ann")
    settings.write_text(text.replace("\nepsilon = 4.0", "\nepsilon = 5.0"))
    datasites.does("budget", "confirm", 1, by="ann")
    assert datasites.does("budget", "show").lines[1].split()[-3] == "5"
    fact = BudgetFact.objects.get(what="widened")
    assert (fact.epsilon, fact.entered_by, fact.confirmed_by) == (5.0, "bob", "ann")


def test_two_people_say_that_two_populations_are_different_people(datasites: CommandLine) -> None:
    Population.objects.create(name="others", split_key=bytes(32), fraction=0.5)
    done = datasites.does("budget", "other-patients", "others", "heart", *WHY, by="ann")
    assert "populations heart and others are different people" in done.printed
    datasites.does("budget", "confirm", 1, by="bob")
    assert Proposal.objects.get().outcome == "confirmed"
    (record,) = datasites.logged("other_patients")
    assert {"ann", "bob"} <= {str(value) for value in record.values()}


def test_two_people_settle_what_a_restore_has_lost(datasites: CommandLine, desk: Desk) -> None:
    heart = desk.site.home.dataset("heart")
    ledger.reserve(desk.site, heart, STUDY, WHOLE)
    ledger.charge(desk.site, heart, STUDY, 1, ROUND)
    LedgerEntry.objects.filter(kind="charge").delete()
    datasites.does("budget", "restored", "--nothing-lost", *WHY, by="ann")
    assert "approved after the backup: nothing" in datasites.does("budget", "waiting").printed
    assert not LedgerEntry.objects.filter(kind="charge").exists()
    datasites.does("budget", "confirm", 1, by="bob")
    assert {entry.round for entry in LedgerEntry.objects.filter(kind="charge")} == {1}
    assert "there is nothing to settle" in datasites.refuses("budget", "restored", "--nothing-lost", *WHY, by="ann")
