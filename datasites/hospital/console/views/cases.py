"""The inbox, a case, and the decision on it."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import urlencode

from datasites.hospital.cases import examination, review
from datasites.hospital.cases.compliance import Denied
from datasites.hospital.cases.inbox import GROUPS, cases_for
from datasites.hospital.cases.views import (
    APPROVED_ONCE,
    CaseView,
    ReviewLine,
    approved_before,
    decisions_of,
    problem_view,
    view_case_or_problem,
)
from datasites.hospital.console.access import READERS, REVIEWERS, confirmed, page, refuse
from datasites.hospital.console.code import code_lines, diff_lines
from datasites.hospital.console.forms import CaseSearch, Decide
from datasites.hospital.evidence.export import export_evidence
from datasites.hospital.models import Case
from datasites.hospital.people.accounts import PersonError, reader
from datasites.study.errors import DatasitesError

log = logging.getLogger(__name__)

PAGE_SIZE = 25
#: Of the groups of cases, in the reader's words.
HEADINGS = {
    "you": "For you",
    "others": "For others",
    "blocked": "Can\u2019t be approved, and why",
    "done": "Done",
}


@page(READERS)
def inbox(request: Any) -> HttpResponse:
    """Show all cases by what the person must do about them; those that were decided come in pages."""
    search = CaseSearch(request.GET)
    wanted = search.chosen()
    groups = cases_for(request.user.pk, request.role, **wanted)
    pages = Paginator(groups["done"], PAGE_SIZE).get_page(request.GET.get("page"))
    shown = [(group, HEADINGS[group], groups[group] if group != "done" else list(pages)) for group in GROUPS]
    context = {
        "shown": [one for one in shown if one[2]],
        "pages": pages,
        "search": search,
        "extra": "".join(f"&{urlencode({name: value})}" for name, value in wanted.items() if value),
        "searched": bool(wanted["contains"] or wanted["state"]),
    }
    return render(request, "console/cases.html", context)


@page(READERS)
def show(request: Any, case_id: int) -> HttpResponse:
    """Show everything that a decision is based on."""
    view = _view(request, case_id)
    return _case_page(request, view, Decide(initial={"seen": view.seen, "hash": view.row.approval_hash}))


@page(REVIEWERS, ("POST",))
def decide(request: Any, case_id: int) -> HttpResponse:
    """Approve or reject exactly what the page showed; 409 when anything of that has changed."""
    view = _view(request, case_id)
    form = Decide(request.POST)
    if not form.is_valid():
        return _case_page(request, view, form, 400)
    wanted = form.cleaned_data
    if wanted["seen"] != view.seen:
        messages.error(request, _what_changed(view, wanted["hash"]))
        kept = {name: wanted[name] for name in ("verdict", "message", "reason")}
        again = Decide(initial={**kept, "seen": view.seen, "hash": view.row.approval_hash})
        return _case_page(request, view, again, 409)
    try:
        person = confirmed(request)
        if wanted["verdict"] == "approve":
            case = view.examined.case if view.examined else None
            row = review.approve(request.site, case_id, person, wanted["reason"], wanted["hash"], case)
        else:
            row = review.reject(request.site, case_id, person, wanted["reason"], message=wanted["message"])
    except PersonError as error:
        form.add_error("password", str(error))
        return _case_page(request, view, form, 403)
    except Denied as error:
        form.add_error(None, str(error))
        return _case_page(request, view, form, 409)
    except DatasitesError as error:
        form.add_error(None, str(error))
        return _case_page(request, _view(request, case_id), form, 409)
    verdict = "approved" if wanted["verdict"] == "approve" else "rejected"
    messages.success(request, f"You {verdict} case {case_id}; it is {row.get_state_display()} now.")
    return redirect("case", case_id)


@page(REVIEWERS, ("POST",))
def recheck(request: Any, case_id: int) -> HttpResponse:
    """Examine a case again that nobody has approved yet."""
    _row(case_id)
    try:
        row = examination.recheck(request.site, case_id)
    except DatasitesError as error:
        return refuse(request, 409, str(error))
    messages.success(request, f"Case {case_id} was rechecked; it is {row.state} now.")
    return redirect("case", case_id)


@page(READERS, ("POST",))
def evidence(request: Any, case_id: int) -> HttpResponse:
    """Send the evidence bundle of a case, with its own verifier inside."""
    row = _row(case_id)
    with tempfile.TemporaryDirectory(dir=request.site.home.root, prefix=".evidence-") as folder:
        out = Path(folder) / "bundle.zip"
        try:
            checks = export_evidence(request.site, case_id, out)
        except (DatasitesError, ValueError) as error:
            return refuse(request, 409, f"Case {case_id} has no evidence to export: {error}")
        data = out.read_bytes()
    request.site.audit.append("exported", case=case_id, what="evidence", person=request.user.username)
    response = HttpResponse(data, content_type="application/zip")
    response["Content-Disposition"] = f'attachment; filename="evidence-case-{row.pk}.zip"'
    response["X-Evidence-Verified"] = "yes" if all(check.ok for check in checks) else "no"
    return response


def _view(request: Any, case_id: int) -> CaseView:
    return view_case_or_problem(request.site.home, _row(case_id), reader(request.user))


def _row(case_id: int) -> Case:
    if case_id > 2**63 - 1:
        raise Http404
    row = Case.objects.filter(pk=case_id).first()
    if row is None:
        raise Http404
    return row


def _case_page(request: Any, view: CaseView, form: Decide, status: int = 200) -> HttpResponse:
    try:
        return _whole_case_page(request, view, form, status)
    except Exception as error:
        if view.examined is None:
            raise
        log.exception("case %d", view.row.pk)
        return _whole_case_page(
            request, problem_view(view.row, f"it can't be shown ({type(error).__name__})"), form, status
        )


def _whole_case_page(request: Any, view: CaseView, form: Decide, status: int) -> HttpResponse:
    examined = view.examined
    findings = view.row.findings
    context: dict[str, Any] = {
        "view": view,
        "row": view.row,
        "here": reverse("case", args=[view.row.pk]),
        "examined": examined,
        "form": form,
        "may_decide": _may_decide(request, view),
        "obstacles": _obstacles(view),
        "verdict": _verdict_of(request, view),
        "was_approved": view.row.state in APPROVED_ONCE,
        "may_recheck": request.role in REVIEWERS and view.row.state in Case.OPEN and not view.reviews,
        "decisions": decisions_of(view.row),
        "ready": len(view.row.readiness) - len(view.late_features),
    }
    if examined is not None:
        context["results"] = _in_order(examined.decision.results)
        context["files"] = [
            (name, code_lines(name, text, findings if name == "model.py" else ()))
            for name, text in sorted(examined.files.items(), key=lambda item: item[0] != "model.py")
        ]
        before = approved_before(request.site.home, view.row)
        if before is not None:
            earlier, texts = before
            context["earlier"] = earlier
            context["changes"] = [
                (name, diff_lines(texts.get(name, ""), text)) for name, text in examined.files.items()
            ]
    return render(request, "console/case.html", context, status=status)


def _what_changed(view: CaseView, hash: str) -> str:
    """Say what has happened to a case since somebody opened its page, for who was about to decide."""
    if hash != view.row.approval_hash:
        what = "What would be approved has changed: the case has another approval hash."
    else:
        acts = [f"{r.person} decided {r.verdict} at {r.at:%H:%M} UTC" for r in view.reviews if r.hash == hash]
        what = f"{'; '.join(acts)}." if acts else "A fact that the policies look at has changed, or the day has."
    return (
        f"Something changed since you opened this page, so nothing was decided. {what} What you typed is kept; read "
        "the page again, and type your password if you still decide so."
    )


def _verdict_of(request: Any, view: CaseView) -> ReviewLine | None:
    """Return what the person has decided about the present version."""
    mine = [r for r in view.reviews if r.person == request.user.username and r.hash == view.row.approval_hash]
    return mine[-1] if mine else None


def _may_decide(request: Any, view: CaseView) -> bool:
    return request.role in REVIEWERS and view.row.state in Case.OPEN and _verdict_of(request, view) is None


def _obstacles(view: CaseView) -> list[str]:
    """Return why the person could not approve the case as it is, in sentences."""
    if view.row.state == Case.State.INTAKE:
        return [view.row.note or "It is being examined."]
    if view.examined is None:
        return [view.problem] if view.problem else []
    if not view.examined.asked_now:
        return []
    return [f"{denial.reason} {denial.remedy}" for denial in view.examined.decision.denied_by]


def _in_order(results: Any) -> list[Any]:
    """Return rules that deny first, those that don't apply now last."""
    rank = {"deny": 0, "error": 0, "pass": 1, "not_applicable": 2}
    return sorted(results, key=lambda result: rank[result.outcome])
