"""The datasite itself: make it, serve it, stop it, look after it."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from datasites.cli.terminal import (
    CaseArgument,
    HomeOption,
    LogLines,
    NameOption,
    ReasonOption,
    StdinOption,
    acting,
    check_place,
    group,
    open_site,
    out,
)
from datasites.enclave import cgroup
from datasites.study.errors import DatasitesError, InputError
from datasites.study.roster import RosterEntry

commands = typer.Typer()
identity = group("This hospital's own keys.")


@commands.command()
def init(
    home: HomeOption,
    settings: Annotated[Path, typer.Argument(help="The datasite.toml to start from.")],
) -> None:
    """Make a datasite: key, database, SyftBox, and the roster entry to give to the other parties."""
    from datasites.hospital.setup import initialise

    if not settings.is_file():
        raise DatasitesError(
            f"{settings}: no such file; write the datasite's settings first (see datasites/hospital/README.md)"
        )
    try:
        text = settings.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasitesError(f"{settings}: cannot be read as UTF-8 text; save it as UTF-8 and try again") from error
    entry = initialise(home, text)
    from datasites.cli.people import show_once
    from datasites.hospital.people.invitations import enter_first_admin

    site = open_site(home)
    issued = enter_first_admin(site)
    out.print(f"datasite of {entry.organisation} in {home}\nfingerprint  {entry.fingerprint}")
    out.print(f"give {home / 'roster-entry.json'} to the other parties, and compare fingerprints by telephone")
    out.print(f"the first admin is called {issued.name}, and enters people")
    show_once(site, issued)


@commands.command()
def serve(
    home: HomeOption,
    console: Annotated[bool, typer.Option(help="Serve the approval console too ([console] in datasite.toml).")] = True,
) -> None:
    """Run the datasite until Ctrl-C or SIGTERM."""
    lines = logging.StreamHandler()
    lines.setFormatter(LogLines())
    logging.basicConfig(handlers=[lines], level=logging.INFO)
    for library in ("watchfiles", "httpx"):  # each look into the store would be a line
        logging.getLogger(library).setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    from datasites.hospital.config import Home
    from datasites.hospital.serving import only_process, serve_until

    cgroup.take_over()

    with only_process(Home.open(home)):
        serve_until(stop, home, console)


@commands.command()
def kill(
    home: HomeOption,
    name: NameOption,
    reason: ReasonOption,
    yes: Annotated[bool, typer.Option("--yes", help="Yes, stop all studies; asked for on a terminal.")] = False,
    password_stdin: StdinOption = False,
) -> None:
    """Stop all studies of this datasite before their next round."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.rounds import lifecycle

        if not yes and (password_stdin or not typer.confirm("Stop all studies of this datasite?")):
            raise InputError("kill switch: not confirmed, so nothing was stopped; give the command again with --yes")
        lifecycle.kill(site, person, reason)
    out.print("the kill switch is on; `datasites unkill` switches it off")


@commands.command()
def unkill(home: HomeOption, name: NameOption, reason: ReasonOption, password_stdin: StdinOption = False) -> None:
    """Turn the kill switch off."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.rounds import lifecycle

        done = lifecycle.unkill(site, person, reason)
    out.print("the kill switch is off" if done else "the kill switch was not on; nothing was done")


@commands.command()
def evidence(home: HomeOption, case_id: CaseArgument, out_file: Annotated[Path, typer.Option("--out")]) -> None:
    """Write the evidence bundle of a case, with a stand-alone verifier inside; exit code 0 only when it verifies."""
    site = open_site(home)
    from datasites.hospital.evidence.export import export_evidence

    check_place(site.home, out_file)
    checks = export_evidence(site, case_id, out_file)
    for check in checks:
        out.print(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.found}")
    out.print(f"{out_file}: verify with `python verify_bundle.py {out_file.name} --key {site.identity.public_key}`")
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@commands.command()
def doctor(home: HomeOption) -> None:
    """Check store, clock, permissions, keys, roster, agreements, sandbox and GPU, and say what to correct."""
    site = open_site(home)
    from datasites.hospital.doctor import examine

    sick = False
    for check in examine(site):
        sick = sick or check.state == "bad"
        out.print(f"{check.state:4} {check.name}: {check.message}")
    raise typer.Exit(1 if sick else 0)


@identity.command("show")
def identity_show(home: HomeOption) -> None:
    """Show this hospital's fingerprint and roster entry."""
    file = open_site(home).home.roster_entry
    try:
        entry = RosterEntry.parse(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasitesError(f"{file}: not this hospital's roster entry; put it back from a backup") from error
    out.print(f"{entry.organisation} <{entry.email}>\nfingerprint  {entry.fingerprint}")
    out.print(entry.model_dump_json(indent=2))
