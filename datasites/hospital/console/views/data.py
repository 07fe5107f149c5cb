"""Datasets: what researchers see (the mock), and how ready the table was for studies that asked. No patient rows."""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path
from typing import Any

from django.http import Http404, HttpResponse
from django.shortcuts import render

from datasites.hospital.console.access import READERS, page
from datasites.hospital.models import Case
from datasites.study.errors import InputError

ROWS, COLUMNS = 10, 60


@page(READERS)
def overview(request: Any) -> HttpResponse:
    """Show all datasets of this hospital."""
    return render(request, "console/datasets.html", {"datasets": request.site.home.settings.datasets})


@page(READERS)
def show(request: Any, name: str) -> HttpResponse:
    """Show one dataset's mock, settings, and readiness for the studies that asked for it."""
    home = request.site.home
    try:
        dataset = home.dataset(name)
    except InputError as error:
        raise Http404 from error
    header, rows, problem = _mock(home.root / dataset.mock)
    asked = Case.objects.filter(approval_terms__dataset=name).exclude(readiness=[])
    recent = asked.only("pk", "study_name", "readiness")[:5]
    context = {"dataset": dataset, "header": header, "rows": rows, "problem": problem, "recent": recent}
    return render(request, "console/dataset.html", context)


def _mock(path: Path) -> tuple[list[str], list[list[str]], str]:
    try:
        with path.open(newline="") as file:
            lines = [line[:COLUMNS] for line in islice(csv.reader(file), ROWS + 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return [], [], f"the mock {path.name} can't be read: {error}"
    return (lines[0], lines[1:], "") if lines else ([], [], f"the mock {path.name} is empty")
