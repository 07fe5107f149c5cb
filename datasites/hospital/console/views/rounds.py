"""Studies that were approved: their rounds as they happen, pause, resume and revoke, and the kill switch."""

from __future__ import annotations

from typing import Any

from django.core.paginator import Paginator
from django.db.models import Count, Max, Q
from django.http import Http404, HttpResponse
from django.shortcuts import render

from datasites.hospital.cases.views import APPROVED_ONCE
from datasites.hospital.console.access import ADMIN, EVERYBODY, READERS, REVIEWERS, confirmed, page, present
from datasites.hospital.console.acts import act
from datasites.hospital.console.forms import Kill, Move
from datasites.hospital.models import Case, Round
from datasites.hospital.rounds import lifecycle

#: What can be done in which state. Resuming widens and revoking is final, so both ask for the password.
ACTIONS: dict[str, tuple[str, ...]] = {
    Case.State.APPROVED: ("pause", "revoke"),
    Case.State.RUNNING: ("pause", "revoke"),
    Case.State.PAUSED: ("resume", "revoke"),
    Case.State.STOPPED: ("resume", "sit_out", "rejoin", "revoke"),
}
ASKS_PASSWORD = ("resume", "sit_out", "rejoin", "revoke")
DONE = (Round.State.RELEASED, Round.State.UNMASKED)


@page(EVERYBODY)
def overview(request: Any) -> HttpResponse:
    """Show all studies that were approved, newest first."""
    rows = (
        Case.objects.filter(state__in=APPROVED_ONCE)
        .only("pk", "study_name", "study_hash", "state", "note", "submitted_by", "received_at")
        .annotate(
            done=Count("rounds", filter=Q(rounds__state__in=DONE)),
            failed=Count("rounds", filter=Q(rounds__state=Round.State.FAILED)),
            last=Max("rounds__at"),
        )
        .order_by("-received_at")
    )
    pages = Paginator(rows, 25).get_page(request.GET.get("page"))
    context = {"pages": pages, "kill": Kill(), "may_unkill": request.role in REVIEWERS}
    return render(request, "console/studies.html", context)


@page(READERS)
def show(request: Any, case_id: int) -> HttpResponse:
    """Show one study, with its rounds as they happen."""
    row = _study(case_id)
    actions = ACTIONS.get(row.state, ()) if request.role in REVIEWERS else ()
    forms = [(a, Move(initial={"action": a}, auto_id=f"{a}-%s"), a in ASKS_PASSWORD) for a in actions]
    return render(request, "console/study.html", {"row": row, "forms": forms, **_rounds(row)})


@page(READERS)
def rounds(request: Any, case_id: int) -> HttpResponse:
    """Show the part of the page that is fetched again while a study runs."""
    row = _study(case_id)
    return render(request, "console/rounds.html", {"row": row, **_rounds(row)})


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
        lifecycle.unkill(request.site, confirmed(request), values["reason"])
        return "The kill switch is off."

    return act(request, Kill(request.POST), do, "studies")


def _study(case_id: int) -> Case:
    if case_id > 2**63 - 1:
        raise Http404
    row = Case.objects.filter(pk=case_id, state__in=APPROVED_ONCE).first()
    if row is None:
        raise Http404
    return row


def _rounds(row: Case) -> dict[str, Any]:
    recent = list(Round.objects.filter(case=row).order_by("-round")[:200])
    planned = row.approval_terms.get("plan", {}).get("rounds", 0)
    done = Round.objects.filter(case=row, state__in=DONE)
    return {
        "rounds": recent,
        "planned": planned,
        # After the rounds that train comes one for the final evaluation.
        "done": done.filter(round__lte=planned).count(),
        "evaluated": done.filter(round__gt=planned).exists(),
        "live": row.state in (Case.State.APPROVED, Case.State.RUNNING, Case.State.PAUSED),
    }
