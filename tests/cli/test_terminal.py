"""What all commands share: who acts gives a password and has the role for it, errors are one line, words do nothing."""

from __future__ import annotations

import io
import logging
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from every_command import Run

from datasites.cli.terminal import LogLines, Terminal, ask_password, new_table
from datasites.study.errors import InputError
from tests.cli.command_line import CommandLine, commands
from tests.hospital.desk import Desk

ACTS = ("Cc", "Cf", "Cs", "Zl", "Zp")

#: Commands that change something and ask nobody who they are: whoever has the machine's shell has the database.
BY_THE_SHELL = {
    "init",
    "serve",
    "person add",
    "person invite",
    "person accept",
    "person reset-second-factor",
    "person deactivate",
    "roster pin",
    "review recheck",
    "audit held",
    "audit export",
    "evidence",
}
#: Commands in which everybody acts, about themselves.
ABOUT_ONESELF = {"person password", "person second-factor"}
SHOWS = {
    "doctor",
    "identity show",
    "person list",
    "roster show",
    "agreements list",
    "agreements show",
    "agreements preview",
    "agreements draft",
    "budget show",
    "budget history",
    "budget waiting",
    "budget what-if",
    "dataset check",
    "study plan",
    "study check",
    "study rounds",
    "review list",
    "review wait",
    "review show",
    "audit tail",
    "audit replay",
    "audit verify",
}


def acted(runs: list[Run]) -> list[Run]:
    """One of each command that somebody has to act in."""
    return list({run.command: run for run in runs if "--as" in run.line}.values())


def test_every_command_shows_only_or_says_who_acts_but_for_a_few(runs: list[Run]) -> None:
    """A new one has to be put somewhere."""
    known = dict(commands())
    asks = {name for name, command in known.items() if any("--as" in option.opts for option in command.params)}
    assert asks == {run.command for run in acted(runs)}
    assert set(known) == asks | BY_THE_SHELL | SHOWS
    assert not asks & (BY_THE_SHELL | SHOWS)


@pytest.mark.slow
def test_who_gives_another_password_does_nothing(datasites: CommandLine, runs: list[Run]) -> None:
    """In each command, and before anything else of it is looked at; `budget restored` says first that it lacks one."""
    for run in acted(runs):
        refused = datasites.refuses(*run.line, typed="another passphrase\n")
        assert re.fullmatch(r"datasites: person (ann|bob): unknown, or the password is wrong", refused), run.command
    assert "zoe: unknown" in datasites.refuses("kill", "--reason", "why", by="zoe")
    assert "ann: unknown" in datasites.refuses("kill", "--reason", "why", by="ann", typed="")


@pytest.mark.slow
def test_an_auditor_does_nothing(datasites: CommandLine, runs: list[Run]) -> None:
    """Each command names the role that she has, and the one that it takes."""
    for run in acted(runs):
        if run.command in ABOUT_ONESELF:
            continue
        by_dee = [{"ann": "dee", "bob": "dee"}.get(word, word) for word in run.line]
        if run.command in {"roster hand-over", "budget widen", "budget restored", "budget other-patients"}:
            datasites.refuses(*by_dee)  # these look first at whether there is anything to enter
        elif run.command == "dataset accept":
            assert "nothing" in datasites.refuses(*by_dee)
        else:
            assert "dee is auditor; " in datasites.refuses(*by_dee), run.command


def test_who_has_been_deactivated_does_nothing(datasites: CommandLine) -> None:
    datasites.does("person", "deactivate", "ann")
    assert "person ann: unknown" in datasites.refuses("kill", "--reason", "why", by="ann")


@pytest.mark.slow
def test_a_case_that_is_not_there_is_named(datasites: CommandLine, desk: Desk, tmp_path: Path) -> None:
    """By every command that takes one, also where its number is larger than the database knows any."""
    why, large = ("--reason", "why"), 10**30
    number = desk.row.pk + 1
    for line in (
        ("review", "show", number),
        ("review", "show", large),
        ("review", "recheck", number),
        ("study", "rounds", large),
        ("audit", "replay", "--case", number),
        ("evidence", number, "--out", tmp_path / "bundle.zip"),
    ):
        assert "not here; see `datasites review list`" in datasites.refuses(*line)
    for line in (
        ("review", "approve", number, "--hash", "ab", *why),
        ("review", "reject", large, "--tell", "no", *why),
        *(("study", action, number, *why) for action in ("pause", "resume", "sit-out", "rejoin", "revoke")),
    ):
        assert f"case {line[2]}: not here; see `datasites review list`" in datasites.refuses(*line, by="ann")
    assert not (tmp_path / "bundle.zip").exists()


def test_a_folder_that_is_no_datasite_is_named_with_what_makes_one(datasites: CommandLine, tmp_path: Path) -> None:
    for line in (("review", "list"), ("budget", "show"), ("kill", "--as", "ann", "--reason", "why")):
        refused = datasites.refuses(*line, "--home", tmp_path)
        assert f"{tmp_path}: holds no datasite.toml; run `datasites init` there" in refused
    assert list(tmp_path.iterdir()) == []


def test_a_defect_keeps_its_traceback(datasites: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only our own errors are for people."""
    monkeypatch.setattr("datasites.hospital.people.accounts.list_people", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        datasites("person", "list")


def test_a_password_that_is_no_text_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"secret\xff\n"), encoding="utf-8"))
    with pytest.raises(InputError, match=r"^password: not UTF-8 text; type it on the terminal$") as refused:
        ask_password(True, "")
    assert refused.value.__cause__ is None


def test_a_password_keeps_its_spaces_and_loses_its_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(" a b \nanother line\n"))
    assert ask_password(True, "") == " a b "


def test_a_terminal_prints_words_as_they_are() -> None:
    """Also brackets, which are markup elsewhere, and names of pictures; in tables, their titles and columns, too."""
    told = io.StringIO()
    terminal, words = Terminal(file=told), "a \x1b[2J\x1b[8m\u202eb\u200b\x9b0m [red]c[/red] [degF] :warning:"
    terminal.print(words)
    table = new_table(words, words)
    table.add_row(words)
    terminal.print(table)
    said = told.getvalue()
    assert not [c for c in said if unicodedata.category(c) in ACTS and c != "\n"]
    assert said.split("\n")[0] == (
        "a \u27e6U+001B\u27e7[2J\u27e6U+001B\u27e7[8m\u27e6U+202E\u27e7b\u27e6U+200B\u27e7\u27e6U+009B\u27e70m "
        "[red]c[/red] [degF] :warning:"
    )
    assert said.count("[degF]") == 4


def test_a_cell_of_a_table_passes_for_no_other_row_and_a_line_of_the_log_for_no_other_line() -> None:
    told = io.StringIO()
    table = new_table("", "note")
    table.add_row("read\napproved\x1b[1A")
    Terminal(file=told).print(table)
    assert len(told.getvalue().strip().split("\n")) == 2
    record = logging.LogRecord("a", logging.INFO, "", 0, "case %d: %s", (1, "\u202eread\n\x1b[1Aapproved"), None)
    line = LogLines().format(record)
    assert line.endswith("case 1: \u27e6U+202E\u27e7read\u27e6U+000A\u27e7\u27e6U+001B\u27e7[1Aapproved")
