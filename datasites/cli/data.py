"""`datasites dataset`: readiness of tables, and withdrawal of consent."""

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

dataset = group("Datasets and their readiness for a study.")


@dataset.command("check")
def dataset_check(home: HomeOption, dataset: str, study: Annotated[Path, typer.Option("--study")]) -> None:
    """Check a dataset for a study folder, for this hospital only; exit code 0 only when it is ready."""
    site = open_site(home)
    from datasites.hospital.cases.readiness import check_dataset
    from datasites.hospital.cases.whereabouts import open_cases
    from datasites.hospital.config import Home
    from datasites.hospital.data.sources import in_words, log_written
    from datasites.study.package import StudyPackage

    case_rows = [row for row in open_cases(site.home) if row.approval_terms["dataset"] == dataset]
    log_written(site, case_rows)
    readiness = check_dataset(Home.open(home), dataset, StudyPackage.read(study))
    columns = ("feature", "ready", "unit", "missing", "out of range", "reason")
    shown = new_table(f"{dataset}: {readiness.rows} rows", *columns)
    for r in readiness.features:
        shown.add_row(r.name, "yes" if r.ready else "NO", r.unit, str(r.missing), str(r.out_of_range), r.reason)
    out.print(shown)
    out.print(readiness.rows_in_words())
    for finding in readiness.findings:
        state = "blocks" if finding.name in readiness.unanswered else "accepted" if finding.blocks else "note"
        out.print(f"{state}: [{finding.name}] {finding.text}", markup=False)
    if readiness.unanswered:
        out.print(f"If one is right as it is, say why: datasites dataset accept {dataset} NAME", markup=False)
    out.print(readiness.patients_in_words())
    if readiness.surplus:
        out.print(readiness.surplus)
    for row in case_rows:
        if blocker := in_words(site.home, row, rows=True):
            out.print(blocker, markup=False)
    raise typer.Exit(0 if readiness.ready else 1)


@dataset.command("accept")
def dataset_accept(
    home: HomeOption,
    dataset: str,
    finding: str,
    study: Annotated[Path, typer.Option("--study")],
    name: NameOption,
    reason: ReasonOption,
    undo: Annotated[bool, typer.Option("--undo", help="Withdraw an answer: the finding blocks again.")] = False,
    password_stdin: StdinOption = False,
) -> None:
    """Accept a finding of `dataset check`: say why the table is right as it is."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.cases.readiness import accept
        from datasites.study.package import StudyPackage

        found = accept(site, person, dataset, StudyPackage.read(study), finding, reason, holds=not undo)
    effect = "blocks again" if undo else "is accepted; ask for a new look at waiting cases: datasites review recheck"
    out.print(f"{dataset}: {found.name} {effect}", markup=False)


@dataset.command("withdraw")
def dataset_withdraw(
    home: HomeOption,
    dataset: str,
    patient: str,
    name: NameOption,
    reason: ReasonOption,
    all_spellings: Annotated[
        bool | None,
        typer.Option(
            "--all-spellings/--this-spelling",
            help="Whether names that differ only in capitals, spaces or the form of a number are this patient too.",
        ),
    ] = None,
    for_later: Annotated[
        bool, typer.Option("--for-later", help="Enter it even if nobody is found, for future tables.")
    ] = False,
    undo: Annotated[
        bool,
        typer.Option("--undo", help="Undo a withdrawal; a person of the other role confirms with `budget confirm`."),
    ] = False,
    password_stdin: StdinOption = False,
) -> None:
    """Leave a patient who withdrew consent out from the next round on; what was released before stays released.

    Looks in the table and in the frozen records of every open case, and says for each what it did; refused where nobody
    is found. Two people undo it, until a round has been held without the patient.
    """
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.cases import consent
        from datasites.hospital.proposals import two_people

        if undo:
            asked = two_people.propose_undoing(site, person, dataset, patient, reason)
            out.print(f"entry {asked.pk}: {two_people.in_words(asked)}; the other role confirms it: budget confirm")
            return
        entered = consent.withdraw(
            site, person, dataset, patient, reason, all_spellings=all_spellings, for_later=for_later
        )
        for line in entered.in_words():
            out.print(line, markup=False)
    out.print(f"dataset {dataset}: {entered.patients} patient(s) have withdrawn, from the next round on")
