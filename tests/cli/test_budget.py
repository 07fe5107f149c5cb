"""The privacy ledger: what one person enters counts once a second person has confirmed it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datasites.hospital.budget import ledger
from datasites.hospital.models import BudgetFact, LedgerEntry, Population, Proposal
from tests.cli.command_line import CommandLine
from tests.hospital.budget.accounts import ROUND, STUDY, WHOLE
from tests.hospital.desk import Desk

WHY = ("--reason", "why")


@pytest.fixture
def settings(desk: Desk) -> Iterator[Path]:
    """The hospital's datasite.toml, which is as before after the test."""
    path = desk.site.home.root / "datasite.toml"
    before = path.read_text()
    yield path
    path.write_text(before)


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
