"""`datasites person`: the hospital's people, their roles, and how each of them signs in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from datasites.cli.terminal import (
    HomeOption,
    NameOption,
    StdinOption,
    acting,
    ask_password,
    group,
    new_table,
    open_site,
    out,
)
from datasites.study.errors import InputError

if TYPE_CHECKING:
    from datasites.hospital.people.invitations import Issued
    from datasites.hospital.site import Site

person = group("The hospital's people and their roles.")


@person.command("add")
def person_add(
    home: HomeOption,
    name: str,
    role: Annotated[str, typer.Option(help="steward, privacy_officer, auditor or admin")],
    email: Annotated[str, typer.Option(help="Their e-mail address; reviewers need one. Default: the name.")] = "",
    no_password: Annotated[bool, typer.Option(help="They sign in only through the organisation.")] = False,
) -> None:
    """Add a person; shows once the link by which they set their password, for you to hand over."""
    site = open_site(home)
    from datasites.hospital.people.invitations import enter_person

    issued = enter_person(site, name, role, email, by_provider=no_password)
    out.print(f"{name}: {role}")
    if issued is not None:
        show_once(site, issued)


@person.command("invite")
def person_invite(home: HomeOption, name: str) -> None:
    """Show a new link for a person who has forgotten their password or has not used the last one, which ends."""
    site = open_site(home)
    from datasites.hospital.people.invitations import invite

    show_once(site, invite(site, name))


@person.command("accept")
def person_accept(home: HomeOption, password_stdin: StdinOption = False) -> None:
    """Set your password by the link that you were given; from standard input: the link, then the password."""
    site = open_site(home)
    from datasites.hospital.people.invitations import accept, invited

    code = ask_password(password_stdin, "The link, or what follows its #: ")
    name = invited(code).name
    accept(site, code, _ask_new(password_stdin, name))
    out.print(f"{name}: password set")


@person.command("password")
def person_password(home: HomeOption, name: NameOption, password_stdin: StdinOption = False) -> None:
    """Change your password; who has forgotten it needs a new link (`datasites person invite`)."""
    with acting(home, name, password_stdin) as (site, somebody):
        from datasites.hospital.people.accounts import change_password

        change_password(site, somebody, _ask_new(password_stdin, name))
    out.print(f"{name}: password changed")


@person.command("second-factor")
def person_second_factor(
    home: HomeOption,
    name: NameOption,
    confirm: Annotated[bool, typer.Option(help="Confirm the new secret by its first code.")] = False,
    password_stdin: StdinOption = False,
) -> None:
    """Set up your second factor: shows a new secret for your app, which counts after the same with --confirm."""
    with acting(home, name, password_stdin, enrolling=True) as (site, somebody):
        from datasites.hospital.people import enrolment

        if confirm:
            enrolment.confirm(site, somebody, ask_password(password_stdin, "Code of the new secret: "))
            out.print(f"{name}: second factor set up; each code is good once")
            return
        new = enrolment.begin(somebody)
    out.print(f"secret, shown now only: {new.secret}\nor as an address: {new.address}")
    out.print("enter it into your app, then give the same command with --confirm")


@person.command("reset-second-factor")
def person_reset_second_factor(home: HomeOption, name: str) -> None:
    """Take off the second factor of a person who has lost it."""
    site = open_site(home)
    from datasites.hospital.people.enrolment import reset

    reset(site, name)
    out.print(f"{name}: has no second factor any more")


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
    """Show all people, their roles, and who has yet to set a password."""
    open_site(home)
    from datasites.hospital.people.accounts import list_people
    from datasites.hospital.people.invitations import open_invitations
    from datasites.hospital.people.second_factor import with_one

    table = new_table("", "name", "e-mail", "role", "may sign in", "code", "link until (UTC)")
    invitations, factors = open_invitations(), with_one()
    for one in list_people():
        until = f"{invitations[one.name]:%Y-%m-%d %H:%M}" if one.name in invitations else ""
        may, code = "yes" if one.active else "no", "yes" if one.name in factors else "no"
        table.add_row(one.name, one.email, one.role, may, code, until)
    out.print(table)


def show_once(site: Site, issued: Issued) -> None:
    """Print an invitation; the link is a line of its own."""
    from datasites.hospital.people.invitations import console_address

    out.print(f"hand this link to {issued.name}; it is shown once, and sets a password once, until {issued.until}:")
    out.print(issued.link(console_address(site.home)))
    out.print("without the console: `datasites person accept`")


def _ask_new(from_stdin: bool, name: str) -> str:
    password = ask_password(from_stdin, f"New password of {name}: ")
    if not from_stdin and ask_password(False, "Again: ") != password:
        raise InputError("password: the two differ; start again")
    return password
