"""Who is entered with which role, by whom the log says so, and that no password is kept, shown or known to others."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User

from datasites.hospital.people.accounts import PersonError, identify
from tests.cli.command_line import CommandLine, Done, holds
from tests.hospital.codes import code_of, later
from tests.hospital.desk import PASSWORD

PASSPHRASE, ANOTHER = "a phrase of her own", "another phrase of hers"
EVE = ("person", "add", "eve", "--role", "steward", "--email", "Eve@Cleveland.example.org")


def link_of(done: Done) -> str:
    (link,) = [line for line in done.lines if "/invitation/#" in line]
    assert link.startswith("http://127.0.0.1:8420/invitation/#")
    return link


def test_who_is_entered_may_act_in_that_role_and_the_log_says_so(datasites: CommandLine) -> None:
    done = datasites.does(*EVE)
    assert done.lines[0] == "eve: steward"
    with pytest.raises(PersonError, match="unknown"):
        identify("eve", PASSPHRASE)
    accepted = datasites.does("person", "accept", "--password-stdin", typed=f"{link_of(done)}\n{PASSPHRASE}\n")
    assert accepted.printed == "eve: password set"
    assert identify("eve", PASSPHRASE).role == "steward"
    record = datasites.logged("person_added")[-1]
    expected = {"person": "eve", "role": "steward", "email": "eve@cleveland.example.org", "by": "command line"}
    assert expected.items() <= record.items()
    assert datasites.logged("invited")[-1] == {"person": "eve", "by": "command line"}
    assert datasites.logged("invitation_accepted")[-1] == {"person": "eve"}
    assert not holds(datasites.home, PASSPHRASE)
    assert not holds(datasites.home, link_of(done).partition("#")[2])
    row = next(line.split() for line in datasites.does("person", "list").lines if line.startswith("eve"))
    assert row == ["eve", "eve@cleveland.example.org", "steward", "yes", "no"]


def test_who_has_forgotten_their_password_is_given_a_new_link(datasites: CommandLine) -> None:
    first = link_of(datasites.does("person", "invite", "dee"))
    second = link_of(datasites.does("person", "invite", "dee"))
    assert identify("dee", PASSWORD), "until it is used"
    for link, words in ((first, "not good"), ("no link", "not good"), (f"{second}x", "not good")):
        refused = datasites.refuses("person", "accept", "--password-stdin", typed=f"{link}\n{ANOTHER}\n")
        assert words in refused
        assert link.partition("#")[2] not in refused or "#" not in link
    weak = datasites.refuses("person", "accept", "--password-stdin", typed=f"{second}\nshort\n")
    assert "too short" in weak
    row = next(line.split() for line in datasites.does("person", "list").lines if line.startswith("dee"))
    assert row[3:5] == ["yes", "no"]
    assert len(" ".join(row[5:])) == len("2026-01-01 12:00")
    datasites.does("person", "accept", "--password-stdin", typed=f"{second}\n{ANOTHER}\n")
    assert identify("dee", ANOTHER).role == "auditor"
    assert "dee: unknown" in datasites.refuses("kill", "--reason", "why", by="dee")
    assert "zoe: not entered; see `datasites person list`" in datasites.refuses("person", "invite", "zoe")


def test_who_has_no_password_acts_in_no_command(datasites: CommandLine) -> None:
    datasites.does("person", "add", "eve", "--role", "steward", "--email", "eve@x.example.org", "--no-password")
    for typed in ("\n", "!\n", "None\n"):
        assert "eve: unknown" in datasites.refuses("kill", "--reason", "why", by="eve", typed=typed)
    assert "through the organisation only" in datasites.refuses("person", "invite", "eve")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("eve", "--role", "director"), "role 'director' is not one of steward, privacy_officer, auditor,"),
        (("Eve Lee", "--role", "auditor"), "a name is one word"),
        (("eve", "--role", "steward"), "a steward needs an e-mail address, which says who they are"),
        (("eve", "--role", "auditor", "--email", "eve"), "valid email"),
        (("eve", "--role", "auditor", "--email", "\u0435ve@x.example.org"), "other letters than ASCII"),
        (("eve", "--role", "auditor", "--no-password"), "a auditor needs an e-mail address"),
        (("ANN", "--role", "auditor"), "already entered; choose another name"),
        (("eve", "--role", "steward", "--email", "ann@CLEVELAND.example.org"), "each person is entered once"),
    ],
)
def test_who_can_not_be_entered_is_not_and_the_log_says_nothing(
    datasites: CommandLine, line: tuple[str, ...], words: str
) -> None:
    assert words in datasites.refuses("person", "add", *line)


def test_a_new_password_takes_the_place_of_the_last(datasites: CommandLine) -> None:
    datasites.does("person", "password", by="dee", typed=f"{PASSWORD}\n{ANOTHER}\n")
    assert identify("dee", ANOTHER).role == "auditor"
    assert "dee: unknown" in datasites.refuses("kill", "--reason", "why", by="dee")
    assert datasites.logged("password_changed") == [{"person": "dee"}]
    assert not holds(datasites.home, ANOTHER)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (f"another guess\n{ANOTHER}\n", "dee: unknown"),
        (f"{PASSWORD}\nshort\n", "too short"),
        (f"{PASSWORD}\n", "too short"),
        (f"{PASSWORD}\npasswordpassword\n", "too easy to guess. Repeats like"),
    ],
)
def test_no_password_is_set_by_others_or_that_is_weak(datasites: CommandLine, typed: str, words: str) -> None:
    refused = datasites.refuses("person", "password", by="dee", typed=typed)
    assert words in refused
    assert "passwordpassword" not in refused


def test_who_is_deactivated_stays_entered_and_the_log_says_so(datasites: CommandLine) -> None:
    datasites.does("person", "deactivate", "cyd")
    assert User.objects.get(username="cyd").is_active is False
    with pytest.raises(PersonError, match="unknown"):
        identify("cyd", PASSWORD)
    assert datasites.logged("person_deactivated") == [{"person": "cyd", "by": "command line"}]
    assert next(line for line in datasites.does("person", "list").lines if line.startswith("cyd")).split()[3] == "no"
    assert "zoe: not entered; see `datasites person list`" in datasites.refuses("person", "deactivate", "zoe")
    assert "was shut out" in datasites.refuses("person", "invite", "cyd")


def test_a_second_factor_is_asked_for_by_every_command_once_it_is_set_up(
    datasites: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = ("kill", "--reason", "why", "--yes")
    shown = datasites.does("person", "second-factor", by="ann")
    assert "secret, shown now only: " in shown.printed
    datasites.does(*stop, by="ann")
    wrong = datasites.refuses("person", "second-factor", "--confirm", by="bob", typed=f"{PASSWORD}\n000000\n")
    assert "begin with a new secret" in wrong
    code = code_of("ann", confirmed=False)
    datasites.does("person", "second-factor", "--confirm", by="ann", typed=f"{PASSWORD}\n{code}\n")
    for typed in (f"{PASSWORD}\n", f"{PASSWORD}\n\n", f"{PASSWORD}\nabcdef\n"):
        assert "ann: unknown, or the password or the code is wrong" in datasites.refuses(*stop, by="ann", typed=typed)
    later(monkeypatch, 60)
    typed = f"{PASSWORD}\n{code_of('ann')}\n"
    datasites.does(*stop, by="ann", typed=typed)
    assert datasites("kill", "--reason", "again", "--yes", by="ann", typed=typed).code == 2, "each code once"
    row = next(line.split() for line in datasites.does("person", "list").lines if line.startswith("ann"))
    assert row[4] == "yes"
    datasites.does("person", "reset-second-factor", "ann")
    datasites.does(*stop, by="ann")
    assert "ann: has no second factor" in datasites.refuses("person", "reset-second-factor", "ann")
    kinds = {kind: datasites.logged(kind) for kind in ("second_factor_set_up", "second_factor_reset")}
    assert kinds["second_factor_set_up"] == [{"person": "ann"}]
    assert kinds["second_factor_reset"] == [{"person": "ann", "by": "command line"}]
