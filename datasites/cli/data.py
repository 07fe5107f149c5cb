"""`datasites dataset` and `datasites budget`: readiness, withdrawal of consent, and the privacy ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

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
from datasites.study.errors import InputError, explain

dataset = group("Datasets and their readiness for a study.")
budget = group("The privacy ledger.")


@dataset.command("check")
def dataset_check(home: HomeOption, dataset: str, study: Annotated[Path, typer.Option("--study")]) -> None:
    """Readiness of a dataset for a study folder, for the hospital's eyes; exit code 0 only when it is ready."""
    open_site(home)
    from datasites.hospital.config import Home
    from datasites.hospital.readiness import check_dataset
    from datasites.study.package import StudyPackage

    readiness = check_dataset(Home.open(home), dataset, StudyPackage.read(study))
    columns = ("feature", "ready", "unit", "missing", "out of range", "reason")
    shown = new_table(f"{dataset}: {readiness.rows} rows", *columns)
    for r in readiness.features:
        shown.add_row(r.name, "yes" if r.ready else "NO", r.unit, str(r.missing), str(r.out_of_range), r.reason)
    out.print(shown)
    out.print(readiness.patients_in_words())
    raise typer.Exit(0 if readiness.ready else 1)


@dataset.command("withdraw")
def dataset_withdraw(
    home: HomeOption,
    dataset: str,
    patient: str,
    name: NameOption,
    reason: ReasonOption,
    password_stdin: StdinOption = False,
) -> None:
    """Leave a patient who withdrew consent out from the next round on; what was released before stays released."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital import review

        number = review.withdraw(site, person, dataset, patient, reason)
        from datasites.hospital.withdrawal import in_words

        out.print(in_words(site.home, dataset, patient), markup=False)
    out.print(f"dataset {dataset}: {number} patient(s) have withdrawn, from the next round on")


@budget.command("show")
def budget_show(home: HomeOption) -> None:
    """Spent, committed and free privacy budget of each dataset, by partition of its patients."""
    site = open_site(home)
    from datasites.hospital import ledger

    table = new_table("", "dataset", "patients", "spent (RDP)", "spent (PLD)", "committed", "cap", "delta")
    for dataset in site.home.settings.datasets:
        tight = ledger.spent_pld(dataset)
        for s in ledger.state(dataset):
            figures = (s.spent_rdp, tight[s.partition], s.committed_rdp, s.cap)
            table.add_row(dataset.name, s.partition, *(f"{figure:.3f}" for figure in figures), f"{s.delta:g}")
    out.print(table)


@budget.command("history")
def budget_history(home: HomeOption, dataset: str) -> None:
    """Every line of a dataset's ledger."""
    open_site(home)
    from datasites.hospital.models import LedgerEntry

    table = new_table("", "at", "patients", "study", "what", "round", "events")
    for entry in LedgerEntry.objects.filter(dataset=dataset):
        events = "; ".join(
            f"{c['count']} x {c['mechanism']} z={c['noise_multiplier']} q={c['sampling_rate']}" for c in entry.charges
        )
        at = entry.at.isoformat(timespec="seconds")
        table.add_row(at, entry.partition, entry.study_hash[:12], entry.kind, str(entry.round or ""), events)
    out.print(table)


@budget.command("what-if")
def budget_what_if(home: HomeOption, dataset: str, epsilon: float, rounds: int, steps: int, rate: float) -> None:
    """Whether one more study that asks this much would fit today."""
    site = open_site(home)
    from datasites.hospital.budget_view import Book

    try:
        answer = Book.read(site.home.dataset(dataset)).what_if(epsilon, rounds, steps, rate)
    except ValidationError as error:
        raise InputError(f"what-if: {explain(error)}") from error
    out.print(
        f"{'fits' if answer.fits else 'does NOT fit'}: training patients at {answer.after:.3f} of {answer.cap:g}, "
        f"noise multiplier {answer.noise_multiplier:.3f}"
    )
    raise typer.Exit(0 if answer.fits else 1)
