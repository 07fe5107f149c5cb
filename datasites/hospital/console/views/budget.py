"""The privacy budget of each dataset: now, over time, per study, and with one more study."""

from __future__ import annotations

from typing import Any

from django.http import Http404, HttpResponse
from django.shortcuts import render

from datasites.hospital import ledger
from datasites.hospital.budget_view import Book
from datasites.hospital.console.access import READERS, page
from datasites.hospital.console.forms import WhatIfForm
from datasites.hospital.console.plot import budget_plot
from datasites.study.errors import InputError


@page(READERS)
def overview(request: Any) -> HttpResponse:
    """All datasets."""
    datasets = [(d, ledger.state(d)) for d in request.site.home.settings.datasets]
    return render(request, "console/budgets.html", {"datasets": datasets})


@page(READERS)
def show(request: Any, name: str) -> HttpResponse:
    """One dataset."""
    try:
        dataset = request.site.home.dataset(name)
    except InputError as error:
        raise Http404 from error
    book = Book.read(dataset)
    parts = []
    for state in ledger.state(dataset):
        history = book.history(state.partition)
        parts.append((state, budget_plot(history, state.cap), history[::-1][:10]))
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
        "parts": parts,
        "studies": book.studies()[:100],
        "form": form,
        "answer": answer,
        "problem": problem,
    }
    return render(request, "console/budget.html", context, status=400 if form.errors else 200)
