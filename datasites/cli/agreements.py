"""`datasites agreements`: BAA, DUA, IRB approvals, expert determinations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datasites.cli.terminal import HomeOption, NameOption, StdinOption, acting, group, new_table, open_site, out
from datasites.study.dates import today
from datasites.study.visible import visible

if TYPE_CHECKING:
    from datasites.hospital.cases.reliance import OpenStudy
    from policies.registry import Agreement, Registry

agreements = group("BAA, DUA, IRB: entered by one, confirmed by another.")


@agreements.command("list")
def agreements_list(home: HomeOption) -> None:
    """Show all agreements, newest version of each, and how many studies here rest on it."""
    site = open_site(home)
    from datasites.hospital.cases.reliance import by_hand, open_studies, rests_on
    from policies.registry import STANDING_NAMES, RegistryFile

    registry = RegistryFile(site.home.registry, site.home.settings.organisation).load()
    studies, day = open_studies(site.home), today()
    forced = {a.terms.id for a in registry.in_force(day)}
    table = new_table("", "id", "kind", "version", "parties", "studies", "until", "state")
    for id in sorted({a.terms.id for a in registry.agreements}):
        a = registry.latest(id)
        resting = len(rests_on(registry, id, studies, day)) if id in forced else 0
        used = str(resting) if resting or id not in forced else "unused"
        state = STANDING_NAMES[registry.standing(a, day)]
        table.add_row(id, a.terms.kind, str(a.version), ", ".join(a.terms.parties), used, str(a.terms.expires), state)
    out.print(table)
    for warning in registry.expiring(day):
        out.print(f"expires in {warning.days_left} days: {warning.id}")
    for difference in by_hand(site.home, registry, day):
        out.print(f"no agreement counts: {difference}; `datasites doctor` says what to do")


@agreements.command("show")
def agreements_show(home: HomeOption, id: str) -> None:
    """Show one agreement: its versions, what rests on it, and what a version that waits would change."""
    site = open_site(home)
    from datasites.hospital.cases.reliance import open_studies, rests_on
    from policies.registry import STANDING_NAMES, RegistryFile

    registry = RegistryFile(site.home.registry, site.home.settings.organisation).load()
    studies, day, newest = open_studies(site.home), today(), registry.latest(id)
    for a in registry.versions(id):
        by = f"entered by {a.entered_by} on {a.entered_on}"
        by += f", confirmed by {a.confirmed_by} on {a.confirmed_on}" if a.confirmed_by else ""
        by += f", terminated by {a.terminated_by} on {a.terminated_on}" if a.terminated_by else ""
        out.print(f"version {a.version}: {STANDING_NAMES[registry.standing(a, day)]}; {by}")
    if any(a.terms.id == id for a in registry.in_force(day)):
        resting = rests_on(registry, id, studies, day)
        out.print("If it ended today, this would stop:" if resting else "Unused: no open study here rests on it.")
        for one in resting:
            out.print(f"  {_study(one.study)}: {'; '.join(one.stops) or 'nothing, others permit the same'}")
    if newest in registry.unconfirmed():
        _print_change(registry, newest, studies)


@agreements.command("preview")
def agreements_preview(home: HomeOption, file: Path) -> None:
    """Show what the agreements of a TOML file would change, and enter nothing."""
    site = open_site(home)
    from datasites.hospital.cases.reliance import open_studies
    from datasites.hospital.people.agreements import read_file, with_toml
    from policies.registry import RegistryFile

    registry = RegistryFile(site.home.registry, site.home.settings.organisation).load()
    then, entered = with_toml(registry, read_file(file))
    studies = open_studies(site.home)
    for id, version in entered:
        _print_change(then, next(a for a in then.versions(id) if a.version == version), studies)
    if not entered:
        out.print("all of it is registered like this already; there is nothing to enter")


def _print_change(then: Registry, agreement: Agreement, studies: Iterable[OpenStudy]) -> None:
    """Print what differs from the confirmed version before, and what that does to studies here."""
    from datasites.hospital.cases.reliance import once_confirmed
    from policies.registry import term_changes

    terms = agreement.terms
    before = then.confirmed_before(terms.id, agreement.version)
    compared = f"differs from version {before.version}" if before else "no version was confirmed before"
    out.print(f"{terms.id} version {agreement.version}, unconfirmed: {compared}")
    for change in term_changes(before.terms if before else None, terms):
        was = f"{', '.join(change.before) or 'nothing'} -> " if before else ""
        out.print(f"  {change.name}: {was}{', '.join(change.after) or 'nothing'}")
    day, effects = once_confirmed(then, agreement, studies, today())
    for effect in effects:
        lacking = "has all agreements then" if effect.ready else "lacks an agreement then"
        out.print(f"  from {day}, {_study(effect.study)}: {'; '.join((*effect.starts, *effect.stops))}; {lacking}")


def _study(study: OpenStudy) -> str:
    return f"{study.name} (case {study.case_id}, {study.state})"


@agreements.command("import")
def agreements_import(home: HomeOption, file: Path, name: NameOption, password_stdin: StdinOption = False) -> None:
    """Import the agreements of a TOML file; each counts once a second person has confirmed it."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.people.agreements import enter_agreements

        for id, version in enter_agreements(site, person, file):
            out.print(f"{id} version {version}: entered; a second person confirms it")


@agreements.command("confirm")
def agreements_confirm(
    home: HomeOption,
    id: str,
    version: int,
    name: NameOption,
    document: Annotated[
        Path | None, typer.Option("--document", help="The document as you have it; another one is refused.")
    ] = None,
    password_stdin: StdinOption = False,
) -> None:
    """Confirm that an entry says what the document says."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.people.agreements import confirm_agreement, hash_document

        confirm_agreement(site, person, id, version, hash_document(document) if document else "")
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
