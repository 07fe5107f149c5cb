"""Who is entered with which role, by whom the log says so, and that no password is kept or shown."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User

from datasites.hospital.models import FirstPassword
from datasites.hospital.people.accounts import PersonError, identify
from tests.cli.command_line import CommandLine, holds

PASSPHRASE, ANOTHER = "a phrase of her own", "another phrase of hers"


def test_who_is_entered_may_act_in_that_role_and_the_log_says_so(datasites: CommandLine) -> None:
    done = datasites.does(
        "person", "add", "eve", "--role", "steward", "--email", "Eve@Cleveland.example.org", "--password-stdin",
        typed=f"{PASSPHRASE}\n",
    )  # fmt: skip
    assert done.printed == "eve: steward"
    assert identify("eve", PASSPHRASE).role == "steward"
    record = datasites.logged("person_added")[-1]
    expected = {"person": "eve", "role": "steward", "email": "eve@cleveland.example.org", "by": "command line"}
    assert expected.items() <= record.items()
    assert FirstPassword.objects.filter(person__username="eve").exists(), "somebody else typed it"
    assert not holds(datasites.home, PASSPHRASE)
    row = next(line.split() for line in datasites.does("person", "list").lines if line.startswith("eve"))
    assert row == ["eve", "eve@cleveland.example.org", "steward", "yes"]


def test_who_types_their_own_password_need_not_change_it(datasites: CommandLine) -> None:
    line = ("person", "add", "eve", "--role", "auditor", "--own", "--password-stdin")
    datasites.does(*line, typed=f"{PASSPHRASE}\n")
    datasites.does("person", "password", "dee", "--own", "--password-stdin", typed=f"{ANOTHER}\n")
    assert not FirstPassword.objects.exclude(person__username="admin").exists()


def test_who_has_no_password_acts_in_no_command(datasites: CommandLine) -> None:
    datasites.does("person", "add", "eve", "--role", "steward", "--email", "eve@x.example.org", "--no-password")
    for typed in ("\n", "!\n", "None\n"):
        assert "eve: unknown" in datasites.refuses("kill", "--reason", "why", by="eve", typed=typed)


@pytest.mark.parametrize(
    ("line", "typed", "words"),
    [
        (("eve", "--role", "director"), PASSPHRASE, "role 'director' is not one of steward, privacy_officer, auditor,"),
        (("Eve Lee", "--role", "auditor"), PASSPHRASE, "a name is one word"),
        (("eve", "--role", "steward"), PASSPHRASE, "a steward needs an e-mail address, which says who they are"),
        (("eve", "--role", "auditor", "--email", "eve"), PASSPHRASE, "valid email"),
        (("eve", "--role", "auditor", "--email", "\u0435ve@x.example.org"), PASSPHRASE, "other letters than ASCII"),
        (("eve", "--role", "auditor", "--no-password"), PASSPHRASE, "a auditor needs an e-mail address"),
        (("ANN", "--role", "auditor"), PASSPHRASE, "already entered; choose another name"),
        (
            ("eve", "--role", "steward", "--email", "ann@CLEVELAND.example.org"),
            PASSPHRASE,
            "each person is entered once",
        ),
        (("eve", "--role", "auditor"), "short", "too short"),
        (("eve", "--role", "auditor"), "", "too short"),
    ],
)
def test_who_can_not_be_entered_is_not_and_the_log_says_nothing(
    datasites: CommandLine, line: tuple[str, ...], typed: str, words: str
) -> None:
    refused = datasites.refuses("person", "add", *line, "--password-stdin", typed=f"{typed}\n")
    assert words in refused
    assert PASSPHRASE not in refused


def test_a_new_password_takes_the_place_of_the_last(datasites: CommandLine) -> None:
    datasites.does("person", "password", "dee", "--password-stdin", typed=f"{ANOTHER}\n")
    assert identify("dee", ANOTHER).role == "auditor"
    assert "dee: unknown" in datasites.refuses("kill", "--reason", "why", by="dee")
    assert FirstPassword.objects.filter(person__username="dee").exists()
    assert datasites.logged("password_changed") == [{"person": "dee"}]
    assert not holds(datasites.home, ANOTHER)


@pytest.mark.parametrize(("name", "typed", "words"), [("zoe", ANOTHER, "person list"), ("dee", "short", "too short")])
def test_no_password_is_set_for_a_stranger_or_that_is_weak(
    datasites: CommandLine, name: str, typed: str, words: str
) -> None:
    assert words in datasites.refuses("person", "password", name, "--password-stdin", typed=f"{typed}\n")


def test_who_is_deactivated_stays_entered_and_the_log_says_so(datasites: CommandLine) -> None:
    datasites.does("person", "deactivate", "cyd")
    assert User.objects.get(username="cyd").is_active is False
    with pytest.raises(PersonError, match="unknown"):
        identify("cyd", "a long enough passphrase")
    assert datasites.logged("person_deactivated") == [{"person": "cyd", "by": "command line"}]
    assert next(line for line in datasites.does("person", "list").lines if line.startswith("cyd")).split()[-1] == "no"
    assert "zoe: not entered; see `datasites person list`" in datasites.refuses("person", "deactivate", "zoe")
