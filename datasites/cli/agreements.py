"""`datasites agreements`: BAA, DUA, IRB approvals, expert determinations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datasites.cli.terminal import HomeOption, NameOption, StdinOption, acting, group, new_table, open_site, out
from datasites.study.dates import today
from datasites.study.visible import visible

agreements = group("BAA, DUA, IRB: entered by one, confirmed by another.")


@agreements.command("list")
def agreements_list(home: HomeOption) -> None:
    """Show all agreements, newest version of each."""
    site = open_site(home)
    from policies.registry import RegistryFile

    registry = RegistryFile(site.home.registry, site.home.settings.organisation).load()
    forced = {(a.terms.id, a.version) for a in registry.in_force(today())}
    table = new_table("", "id", "kind", "version", "parties", "until", "state")
    for id in sorted({a.terms.id for a in registry.agreements}):
        a = registry.latest(id)
        state = "in force" if (id, a.version) in forced else "unconfirmed" if a.confirmed_by is None else "not in force"
        table.add_row(id, a.terms.kind, str(a.version), ", ".join(a.terms.parties), str(a.terms.expires), state)
    out.print(table)
    for warning in registry.expiring(today()):
        out.print(f"expires in {warning.days_left} days: {warning.id}")


@agreements.command("import")
def agreements_import(home: HomeOption, file: Path, name: NameOption, password_stdin: StdinOption = False) -> None:
    """Import the agreements of a TOML file; each counts once a second person has confirmed it."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.people.agreements import enter_agreements

        for id, version in enter_agreements(site, person, file):
            out.print(f"{id} version {version}: entered; a second person confirms it")


@agreements.command("confirm")
def agreements_confirm(
    home: HomeOption, id: str, version: int, name: NameOption, password_stdin: StdinOption = False
) -> None:
    """Confirm that an entry says what the document says."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.people.agreements import confirm_agreement

        confirm_agreement(site, person, id, version)
    out.print(f"{id} version {version}: confirmed")


@agreements.command("draft")
def agreements_draft(home: HomeOption, document: str, study: Annotated[Path, typer.Option("--study")]) -> None:
    """Draft a document from a study: baa_schedule, irb_section or data_protection_summary."""
    site = open_site(home)
    from datasites.study.package import StudyPackage
    from policies.registry import RegistryFile
    from policies.templates import render

    package = StudyPackage.read(study)
    features = tuple(feature.name for feature in (*package.data_model.features, package.data_model.label))
    registry = RegistryFile(site.home.registry, site.home.settings.organisation).load()
    print(visible(render(document, package.study, package.digest(), features, registry, today())))


@agreements.command("terminate")
def agreements_terminate(home: HomeOption, id: str, name: NameOption, password_stdin: StdinOption = False) -> None:
    """Terminate an agreement today."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.people.agreements import terminate_agreement

        terminate_agreement(site, person, id)
    out.print(f"{id}: terminated")
