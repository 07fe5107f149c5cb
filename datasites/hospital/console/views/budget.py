"""The privacy budget of each dataset: now, over time, per study, and with one more study."""

from __future__ import annotations

from typing import Any

from django.http import Http404, HttpResponse
from django.shortcuts import render

from datasites.hospital.budget import ledger, population
from datasites.hospital.budget.history import BudgetHistory
from datasites.hospital.config import Home
from datasites.hospital.console.access import READERS, REVIEWERS, confirmed, page, present
from datasites.hospital.console.acts import act
from datasites.hospital.console.forms import AcceptDelta, DecideEntry, WhatIfForm, Widen
from datasites.hospital.console.plot import NARROW_WIDTH, budget_plot
from datasites.hospital.proposals import two_people
from datasites.study.errors import InputError


@page(READERS)
def overview(request: Any) -> HttpResponse:
    """Show all datasets, and what waits for a second person."""
    home, may_act = request.site.home, request.role in REVIEWERS
    datasets = [
        (d, ledger.state(d), population.caps_of(d), population.guarantee(d.population)) for d in home.settings.datasets
    ]
    waiting = [
        (
            entry,
            two_people.in_words(entry),
            DecideEntry(initial={"action": "confirm"}, auto_id=f"e{entry.pk}-%s")
            if may_act and entry.proposed_role != request.role
            else None,
        )
        for entry in two_people.waiting()
    ]
    context = {
        "datasets": datasets,
        "waiting": waiting,
        "wider": _wider(home) if may_act else [],
        "delta": [(name, AcceptDelta(initial={"population": name}, auto_id=f"d-{name}-%s")) for name in _names(home)]
        if may_act
        else [],
        "may_act": may_act,
    }
    return render(request, "console/budgets.html", context)


def _names(home: Home) -> list[str]:
    return sorted({dataset.population for dataset in home.settings.datasets})


def _wider(home: Home) -> list[tuple[population.Caps, Widen]]:
    """Return what datasite.toml, as it is on the disk now, asks for beyond what was agreed."""
    try:
        datasets = Home.open(home.root).settings.datasets
    except InputError:
        return []
    found = {}
    for dataset in datasets:
        asked, agreed = population.asked_caps(dataset), population.agreed_caps(dataset.population)
        if agreed is not None and asked.is_wider_than(agreed):
            found[dataset.population] = asked
    return [(asked, Widen(initial={"population": name}, auto_id=f"w-{name}-%s")) for name, asked in found.items()]


@page(REVIEWERS, ("POST",), of="budget")
def widen(request: Any) -> HttpResponse:
    """Enter a wider budget; it counts once the other role has confirmed it."""

    def do(values: dict[str, Any]) -> str:
        entry = two_people.propose_widening(request.site, present(request), values["population"], values["reason"])
        return f"Entered: {two_people.in_words(entry)}. A person of the other role must confirm it."

    return act(request, Widen(request.POST), do, "budget")


@page(REVIEWERS, ("POST",), of="budget")
def accept_delta(request: Any) -> HttpResponse:
    """Enter that the risk of a larger delta is accepted."""

    def do(values: dict[str, Any]) -> str:
        person = present(request)
        entry = two_people.propose_delta(request.site, person, values["population"], values["delta"], values["reason"])
        return f"Entered: {two_people.in_words(entry)}. A person of the other role must confirm it."

    return act(request, AcceptDelta(request.POST), do, "budget")


@page(REVIEWERS, ("POST",), of="budget")
def decide(request: Any, entry_id: int) -> HttpResponse:
    """Confirm or withdraw what was entered."""

    def do(values: dict[str, Any]) -> str:
        if values["action"] == "withdraw":
            two_people.withdraw(request.site, present(request), entry_id)
            return f"Entry {entry_id} is withdrawn."
        entry = two_people.confirm(request.site, confirmed(request), entry_id)
        return f"Confirmed: {two_people.in_words(entry)}. Restart the datasite if datasite.toml has changed."

    return act(request, DecideEntry(request.POST), do, "budget")


@page(READERS)
def show(request: Any, name: str) -> HttpResponse:
    """Show the budget of one dataset."""
    try:
        dataset = request.site.home.dataset(name)
    except InputError as error:
        raise Http404 from error
    book = BudgetHistory.read(dataset)
    parts = []
    for state in ledger.state(dataset):
        history = book.history(state.partition)
        drawn = ((budget_plot(history, state.cap), "wide"), (budget_plot(history, state.cap, NARROW_WIDTH), "small"))
        parts.append((state, drawn if history else (), history[::-1][:10]))
    form = WhatIfForm(request.GET if "epsilon" in request.GET else None)
    answer, problem = None, ""
    if form.is_bound and form.is_valid():
        values = form.cleaned_data
        try:
            answer = book.what_if(values["epsilon"], values["rounds"], values["steps"], values["rate"])
        except ValueError as error:
            problem = str(error)
    context = {
        "dataset": dataset,
        "caps": population.caps_of(dataset),
        "guarantee": population.guarantee(dataset.population),
        "facts": population.history(dataset.population)[::-1],
        "parts": parts,
        "studies": book.studies()[:100],
        "form": form,
        "answer": answer,
        "problem": problem,
    }
    return render(request, "console/budget.html", context, status=400 if form.errors else 200)
