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
from datasites.study.roster import HandOver, Roster, RosterEntry

roster = group("Parties whose keys this hospital trusts.")


@roster.command("show")
def roster_show(home: HomeOption) -> None:
    """Show pinned parties."""
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
    """Pin parties, after comparing their fingerprints by telephone."""
    site = open_site(home)
    from datasites.hospital.people.roster import pin_compared

    for entry in [_read_entry(file) for file in files]:
        out.print(f"{entry.organisation} <{entry.email}> ({entry.role})\nfingerprint  {entry.fingerprint}")
        if not yes and not typer.confirm("Did they read you this fingerprint by telephone?"):
            raise DatasitesError(f"{entry.email}: not pinned")
        pin_compared(site, entry)
        out.print(f"{entry.email} is pinned")


def _read_entry(file: Path) -> RosterEntry:
    try:
        return RosterEntry.parse(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasitesError(f"{file}: not a roster entry; ask for the party's roster-entry.json") from error


@roster.command("revoke")
def roster_revoke(
    home: HomeOption, email: str, name: NameOption, reason: ReasonOption, password_stdin: StdinOption = False
) -> None:
    """Revoke a party and its key for good; its studies are denied from the next round on."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.people.roster import revoke_party

        revoke_party(site, person, email, reason)
    out.print(f"{email} is no longer trusted")


@roster.command("hand-over")
def roster_hand_over(
    home: HomeOption,
    file: Annotated[Path, typer.Argument(help="The hand-over.json of a researcher who has replaced their key.")],
    name: NameOption,
    yes: Annotated[bool, typer.Option("--yes", help="You know of the change already.")] = False,
    password_stdin: StdinOption = False,
) -> None:
    """Pin a researcher's new key, signed with the pinned one; running studies continue in a new epoch.

    The fingerprint need not be compared, since the pinned key signs for the new one; but whoever has stolen the pinned
    key could sign, too. Hospitals hand no key over: their audit logs are signed by it.
    """
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.people.roster import accept_hand_over

        try:
            change = HandOver.parse(file.read_bytes())
        except (OSError, ValueError) as error:
            raise DatasitesError(f"{file}: not a hand-over; ask for the party's hand-over.json") from error
        entry, pinned = change.entry, Roster.load(site.home.roster).get(change.entry.email)
        change.check(pinned)
        out.print(f"{entry.organisation} <{entry.email}> ({entry.role})")
        out.print(f"pinned key   {pinned.fingerprint}\nnew key      {entry.fingerprint}")
        out.print(
            "The pinned key signs for the new one. A thief of that key could do the same: if the party has not told "
            "you of a new key, or its key was lost or stolen, stop here and use `datasites roster revoke`."
        )
        if not yes and not typer.confirm("Has the party told you that it changes its key?"):
            raise DatasitesError(f"{entry.email}: the pinned key stays")
        accept_hand_over(site, person, change)
    out.print(f"{entry.email} is pinned with its new key; the old one is never accepted again")


@roster.command("propose")
def roster_propose(home: HomeOption, file: Path, name: NameOption, password_stdin: StdinOption = False) -> None:
    """Propose a party's roster entry; it is trusted once a second person has pinned it with `roster confirm`."""
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
    """Pin what somebody else proposed."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.people.roster import pin_party

        out.print(f"{pin_party(site, person, entry, fingerprint).email} is pinned")


@roster.command("withdraw")
def roster_withdraw(home: HomeOption, entry: int, name: NameOption, password_stdin: StdinOption = False) -> None:
    """Withdraw an entry that is waiting for a second person."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.people.roster import withdraw_party

        withdraw_party(site, person, entry)
    out.print(f"entry {entry}: withdrawn")
