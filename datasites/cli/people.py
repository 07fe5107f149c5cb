"""`datasites person`: the hospital's people and their roles."""

from __future__ import annotations

from typing import Annotated

import typer

from datasites.cli.terminal import HomeOption, StdinOption, ask_password, group, new_table, open_site, out

OwnOption = Annotated[bool, typer.Option("--own", help="They typed it themselves, so nobody else knows it.")]

person = group("The hospital's people and their roles.")


@person.command("add")
def person_add(
    home: HomeOption,
    name: str,
    role: Annotated[str, typer.Option(help="steward, privacy_officer, auditor or admin")],
    email: Annotated[str, typer.Option(help="Their e-mail address; reviewers need one. Default: the name.")] = "",
    password_stdin: StdinOption = False,
    no_password: Annotated[bool, typer.Option(help="They sign in only through the organisation.")] = False,
    own: OwnOption = False,
) -> None:
    """Add a person; asks for a first password, which they must change when they sign in to the console."""
    site = open_site(home)
    from datasites.hospital.people.accounts import enter_person

    password = None if no_password else ask_password(password_stdin, f"New password of {name}: ")
    enter_person(site, name, role, password, email, first=not own)
    out.print(f"{name}: {role}")


@person.command("password")
def person_password(home: HomeOption, name: str, password_stdin: StdinOption = False, own: OwnOption = False) -> None:
    """Set a new password for a person who has forgotten theirs; they must change it when they sign in."""
    site = open_site(home)
    from datasites.hospital.people.accounts import change_password, written_down

    password = ask_password(password_stdin, f"New password of {name}: ")
    with written_down(site, "password_changed", person=name):
        change_password(name, password, first=not own)
    out.print(f"{name}: password changed")


@person.command("deactivate")
def person_deactivate(home: HomeOption, name: str) -> None:
    """Keep a person out from now on; their past decisions stand."""
    site = open_site(home)
    from datasites.hospital.people.accounts import deactivate, written_down

    with written_down(site, "person_deactivated", person=name, by="command line"):
        deactivate(name, by="")
    out.print(f"{name}: can no longer act")


@person.command("list")
def person_list(home: HomeOption) -> None:
    """Show all people and their roles."""
    open_site(home)
    from datasites.hospital.people.accounts import list_people

    table = new_table("", "name", "e-mail", "role", "may sign in")
    for somebody in list_people():
        table.add_row(somebody.name, somebody.email, somebody.role, "yes" if somebody.active else "no")
    out.print(table)
