"""Studies that were approved: their rounds as they happen, pause, resume and revoke, and the kill switch."""

from __future__ import annotations

from typing import Any

from django.core.paginator import Paginator
from django.http import Http404, HttpResponse
from django.shortcuts import render

from datasites.hospital.cases.views import APPROVED_ONCE
from datasites.hospital.console.access import ADMIN, EVERYBODY, READERS, REVIEWERS, confirmed, page, present
from datasites.hospital.console.acts import act
from datasites.hospital.console.forms import Kill, Move
from datasites.hospital.models import Case
from datasites.hospital.rounds import lifecycle
from datasites.hospital.rounds.progress import counted, progress, with_counts

#: What can be done in which state. Resuming widens and revoking is final, so both ask for the password.
ACTIONS: dict[str, tuple[str, ...]] = {
    Case.State.APPROVED: ("pause", "revoke"),
    Case.State.RUNNING: ("pause", "revoke"),
    Case.State.PAUSED: ("resume", "revoke"),
    Case.State.STOPPED: ("resume", "sit_out", "rejoin", "revoke"),
}
ASKS_PASSWORD = ("resume", "sit_out", "rejoin", "revoke")


@page(EVERYBODY)
def overview(request: Any) -> HttpResponse:
    """Show all studies that were approved, newest first."""
    rows = Case.objects.filter(state__in=APPROVED_ONCE).only(
        "pk", "study_name", "study_hash", "state", "note", "submitted_by", "received_at"
    )
    pages = Paginator(with_counts(rows).order_by("-received_at"), 25).get_page(request.GET.get("page"))
    lines = [(row, counted(row)) for row in pages]
    context = {"pages": pages, "lines": lines, "kill": Kill(), "may_unkill": request.role in REVIEWERS}
    return render(request, "console/studies.html", context)


@page(READERS)
def show(request: Any, case_id: int) -> HttpResponse:
    """Show one study, with its rounds as they happen."""
    row = _study(case_id)
    actions = ACTIONS.get(row.state, ()) if request.role in REVIEWERS else ()
    forms = [(a, Move(initial={"action": a}, auto_id=f"{a}-%s"), a in ASKS_PASSWORD) for a in actions]
    return render(request, "console/study.html", {"row": row, "forms": forms, **_rounds(request, row)})


@page(READERS)
def rounds(request: Any, case_id: int) -> HttpResponse:
    """Show the part of the page that is fetched again while a study runs."""
    row = _study(case_id)
    return render(request, "console/rounds.html", {"row": row, **_rounds(request, row)})


@page(REVIEWERS, ("POST",))
def move(request: Any, case_id: int) -> HttpResponse:
    """Pause, resume, sit a round out, rejoin or revoke; effective before the next round."""
    _study(case_id)

    def do(values: dict[str, Any]) -> str:
        action = values["action"]
        person = confirmed(request) if action in ASKS_PASSWORD else present(request)
        row = getattr(lifecycle, action)(request.site, case_id, person, values["reason"])
        return f"{row.study_name} is {row.get_state_display()} now."

    return act(request, Move(request.POST), do, "study", case_id)


@page(REVIEWERS | {ADMIN}, ("POST",))
def kill(request: Any) -> HttpResponse:
    """Stop everything before its next round, or, by a reviewer with the password, go on."""

    def do(values: dict[str, Any]) -> str:
        if values["action"] == "kill":
            lifecycle.kill(request.site, present(request), values["reason"])
            return "The kill switch is on: no study starts another round."
        if not lifecycle.unkill(request.site, confirmed(request), values["reason"]):
            return "The kill switch was not on, so nothing was done."
        return "The kill switch is off."

    return act(request, Kill(request.POST), do, "studies")


def _study(case_id: int) -> Case:
    if case_id > 2**63 - 1:
        raise Http404
    row = Case.objects.filter(pk=case_id, state__in=APPROVED_ONCE).first()
    if row is None:
        raise Http404
    return row


def _rounds(request: Any, row: Case) -> dict[str, Any]:
    asked = request.GET.get("page", "")
    shown = progress(request.site.home, row, int(asked) if asked.isdecimal() and len(asked) < 6 else 1)
    # Older rounds don't change, so only the newest page is fetched again.
    live = shown.page == 1 and row.state in (Case.State.APPROVED, Case.State.RUNNING, Case.State.PAUSED)
    return {"progress": shown, "live": live}
