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
from datasites.study.errors import InputError, describe_validation, read_toml

dataset = group("Datasets and their readiness for a study.")
budget = group("The privacy ledger.")


@dataset.command("check")
def dataset_check(home: HomeOption, dataset: str, study: Annotated[Path, typer.Option("--study")]) -> None:
    """Check a dataset for a study folder, for this hospital only; exit code 0 only when it is ready."""
    site = open_site(home)
    from datasites.hospital.cases.readiness import check_dataset
    from datasites.hospital.cases.whereabouts import open_cases
    from datasites.hospital.config import Home
    from datasites.hospital.data.sources import in_words, log_written
    from datasites.study.package import StudyPackage

    cases = [row for row in open_cases(site.home) if row.approval_terms["dataset"] == dataset]
    log_written(site, cases)
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
    for row in cases:
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


@budget.command("show")
def budget_show(home: HomeOption) -> None:
    """Show the budget of each population, by side of its patients; the cap is guaranteed, the rest are readings."""
    site = open_site(home)
    from datasites.hospital.budget import ledger

    table = new_table(
        "", "population", "patients", "spent so far", "spent or reserved", "part", "cap", "delta", "order"
    )
    for dataset in {dataset.population: dataset for dataset in site.home.settings.datasets}.values():
        for s in ledger.state(dataset):
            figures = (f"{s.spent:.3f}", f"{s.committed:.3f}", f"{s.percent_used:.1f} %")
            table.add_row(dataset.population, s.partition, *figures, f"{s.cap:g}", f"{s.delta:g}", str(s.order))
    out.print(table)


@budget.command("history")
def budget_history(home: HomeOption, dataset: str) -> None:
    """Show every line of the ledger of a dataset's population, and the history of its caps."""
    site = open_site(home)
    from datasites.hospital.budget.population import guarantee, history
    from datasites.hospital.models import LedgerEntry

    name = site.home.dataset(dataset).population
    for fact in history(name):
        by = f", by {fact.entered_by} and {fact.confirmed_by}" if fact.confirmed_by else ""
        cap = f"epsilon {fact.epsilon:g} at delta {fact.delta:g}"
        what = f"releases with a delta up to {fact.delta:g} accepted" if fact.what == "delta_accepted" else cap
        out.print(f"{fact.at.isoformat(timespec='seconds')} {fact.what.replace('_', ' ')}: {what}{by}")
    if caps := guarantee(name):
        out.print(f"these patients are guaranteed {caps.summary}, the widest that was ever in force")

    table = new_table("", "at", "patients", "study", "what", "round", "events")
    for entry in LedgerEntry.objects.filter(population=name):
        events = "; ".join(
            f"{c['count']} x {c['mechanism']} z={c['noise_multiplier']} q={c['sampling_rate']}" for c in entry.charges
        )
        at = entry.at.isoformat(timespec="seconds")
        table.add_row(at, entry.partition, entry.study_hash[:12], entry.kind, str(entry.round or ""), events)
    out.print(table)


@budget.command("what-if")
def budget_what_if(home: HomeOption, dataset: str, epsilon: float, rounds: int, steps: int, rate: float) -> None:
    """Show whether one more study with these terms would fit today."""
    site = open_site(home)
    from datasites.hospital.budget.history import BudgetHistory

    try:
        answer = BudgetHistory.read(site.home.dataset(dataset)).what_if(epsilon, rounds, steps, rate)
    except ValidationError as error:
        raise InputError(f"what-if: {describe_validation(error)}") from error
    out.print(
        f"{'fits' if answer.fits else 'does NOT fit'}: all studies on training patients at {answer.after:.3f} of "
        f"{answer.cap:g}, noise multiplier {answer.noise_multiplier:.3f}"
    )
    raise typer.Exit(0 if answer.fits else 1)


@budget.command("widen")
def budget_widen(
    home: HomeOption, population: str, name: NameOption, reason: ReasonOption, password_stdin: StdinOption = False
) -> None:
    """Widen a population's budget to what datasite.toml now says; a second person confirms."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.proposals import two_people

        entered = two_people.propose_widening(site, person, population, reason)
    out.print(f"entry {entered.pk}: {two_people.in_words(entered)}; the other role confirms it")


@budget.command("accept-delta")
def budget_accept_delta(
    home: HomeOption,
    population: str,
    delta: float,
    name: NameOption,
    reason: ReasonOption,
    password_stdin: StdinOption = False,
) -> None:
    """Accept the risk of a delta larger than the rule for the number of patients; a second person confirms."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.proposals import two_people

        entered = two_people.propose_delta(site, person, population, delta, reason)
    out.print(f"entry {entered.pk}: {two_people.in_words(entered)}; the other role confirms it")


@budget.command("other-patients")
def budget_other_patients(
    home: HomeOption, one: str, other: str, name: NameOption, reason: ReasonOption, password_stdin: StdinOption = False
) -> None:
    """Enter that two populations are different people, although they share pseudonyms."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.proposals import two_people

        entered = two_people.propose_other_patients(site, person, one, other, reason)
    out.print(f"entry {entered.pk}: {two_people.in_words(entered)}; the other role confirms it")


@budget.command("restored")
def budget_restored(
    home: HomeOption,
    name: NameOption,
    reason: ReasonOption,
    lost: Annotated[Path | None, typer.Option(help="TOML file: one [[study]] for each lost study.")] = None,
    nothing_lost: Annotated[bool, typer.Option("--nothing-lost", help="No study was lost.")] = False,
    password_stdin: StdinOption = False,
) -> None:
    """Enter that this home was restored from a backup, and what was approved since; a second person confirms.

    A home of an older version is taken over in the same way: enter the studies whose cost its database does not say.

    Each [[study]] says study (hash), population, noise_multiplier, sampling_rate, steps (of all rounds together),
    rounds and evaluation_multiplier, as its approval said; where one is not known, less noise or more steps is the safe
    side. Heads that others hold may show that there was more (`datasites audit held`).
    """
    if (lost is None) != nothing_lost:
        raise InputError("name the studies that are no longer known here: --lost FILE, or --nothing-lost")
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.proposals import two_people
        from datasites.hospital.proposals.restored import Lost

        studies = read_toml(lost, Lost).study if lost is not None else ()
        entered = two_people.propose_restored(site, person, studies, reason)
    out.print(f"entry {entered.pk}: {two_people.in_words(entered)}; the other role confirms it")


@budget.command("waiting")
def budget_waiting(home: HomeOption) -> None:
    """Show entries that wait for a second person."""
    open_site(home)
    from datasites.hospital.proposals import two_people

    table = new_table("", "entry", "what", "by", "reason")
    for entry in two_people.waiting():
        by = f"{entry.proposed_by} ({entry.proposed_role})"
        table.add_row(str(entry.pk), two_people.in_words(entry), by, entry.reason)
    out.print(table)


@budget.command("confirm")
def budget_confirm(home: HomeOption, entry: int, name: NameOption, password_stdin: StdinOption = False) -> None:
    """Confirm what a person of the other role has entered; it counts from now on."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.proposals import two_people

        done = two_people.confirm(site, person, entry)
    out.print(f"entry {entry} counts: {two_people.in_words(done)}")


@budget.command("withdraw")
def budget_withdraw(home: HomeOption, entry: int, name: NameOption, password_stdin: StdinOption = False) -> None:
    """Withdraw an entry that is waiting for a second person."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.proposals import two_people

        two_people.withdraw(site, person, entry)
    out.print(f"entry {entry}: withdrawn")
