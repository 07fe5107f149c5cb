"""`datasites roster`: parties whose keys this hospital trusts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datasites.cli.terminal import (
    HomeOption,
    NameOption,
    ReasonOption,
    StdinOption,
    acting,
    group,
    new_table,
    open_site,
    out,
)
from datasites.study.errors import DatasitesError
from datasites.study.identity import Roster, RosterEntry

roster = group("Parties whose keys this hospital trusts.")


@roster.command("show")
def roster_show(home: HomeOption) -> None:
    """Pinned parties."""
    table = new_table("", "organisation", "e-mail", "role", "fingerprint")
    for entry in Roster.load(open_site(home).home.roster).entries:
        table.add_row(entry.organisation, entry.email, entry.role, entry.fingerprint)
    out.print(table)


@roster.command("pin")
def roster_pin(
    home: HomeOption,
    files: Annotated[list[Path], typer.Argument(help="Roster entries of other parties.")],
    yes: Annotated[bool, typer.Option("--yes", help="You have compared the fingerprints already.")] = False,
) -> None:
    """Trust parties, after comparing their fingerprints by telephone."""
    site = open_site(home)
    from datasites.hospital.people.roster import pin_compared

    for file in files:
        try:
            entry = RosterEntry.parse(file.read_bytes())
        except (OSError, ValueError) as error:
            raise DatasitesError(f"{file}: not a roster entry; ask for the party's roster-entry.json") from error
        out.print(f"{entry.organisation} <{entry.email}> ({entry.role})\nfingerprint  {entry.fingerprint}")
        if not yes and not typer.confirm("Did they read you this fingerprint by telephone?"):
            raise DatasitesError(f"{entry.email}: not pinned")
        pin_compared(site, entry)


@roster.command("revoke")
def roster_revoke(
    home: HomeOption, email: str, name: NameOption, reason: ReasonOption, password_stdin: StdinOption = False
) -> None:
    """Stop trusting a party and its key for good; its studies are denied from the next round on."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.people.roster import revoke_party

        revoke_party(site, person, email, reason)
    out.print(f"{email} is no longer trusted")


@roster.command("propose")
def roster_propose(home: HomeOption, file: Path, name: NameOption, password_stdin: StdinOption = False) -> None:
    """Enter a party's roster entry; it is trusted once a second person has pinned it with `roster confirm`."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.people.roster import propose_party

        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise DatasitesError(f"{file}: cannot be read; ask for the party's roster-entry.json") from error
        proposal = propose_party(site, person, text)
    out.print(f"entry {proposal.pk}: {proposal.email} waits for a second person")


@roster.command("confirm")
def roster_confirm(
    home: HomeOption,
    entry: int,
    name: NameOption,
    fingerprint: Annotated[str, typer.Option(help="As the party reads it to you by telephone.")],
    password_stdin: StdinOption = False,
) -> None:
    """Pin what somebody else entered."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.people.roster import pin_party

        out.print(f"{pin_party(site, person, entry, fingerprint).email} is pinned")


@roster.command("withdraw")
def roster_withdraw(home: HomeOption, entry: int, name: NameOption, password_stdin: StdinOption = False) -> None:
    """Drop an entry that waits for a second person."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.people.roster import withdraw_party

        withdraw_party(site, person, entry)
    out.print(f"entry {entry}: withdrawn")
