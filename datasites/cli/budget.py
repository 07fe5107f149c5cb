"""`datasites budget`: the privacy ledger, and what two people decide about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from datasites.hospital.models import Proposal

budget = group("The privacy ledger.")


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
    _show_entered(entered)


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
    _show_entered(entered)


@budget.command("other-patients")
def budget_other_patients(
    home: HomeOption, one: str, other: str, name: NameOption, reason: ReasonOption, password_stdin: StdinOption = False
) -> None:
    """Enter that two populations are different people, although they share pseudonyms."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.proposals import two_people

        entered = two_people.propose_other_patients(site, person, one, other, reason)
    _show_entered(entered)


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
    _show_entered(entered)


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


def _show_entered(entered: Proposal) -> None:
    from datasites.hospital.proposals import two_people

    out.print(f"entry {entered.pk}: {two_people.in_words(entered)}; the other role confirms it")
