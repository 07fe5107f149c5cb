"""The audit log: browse it, verify it, download it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.http import HttpResponse
from django.shortcuts import render

from datasites.hospital.audit.log import AuditError
from datasites.hospital.audit.pages import BY, Filter, audit_page, people_of
from datasites.hospital.cases.views import APPROVED_ONCE
from datasites.hospital.console.access import READERS, page, refuse
from datasites.hospital.console.forms import AuditSearch
from datasites.hospital.console.templatetags.figures import listed
from datasites.hospital.models import Case
from datasites.study import audit_chain
from datasites.study.audit_chain import LogRecord

#: Characters of a record's content that its line shows; the rest is behind it.
BRIEF = 160
#: A hash in full, of which a line shows the beginning.
_DIGITS = re.compile(r"\b[0-9a-f]{40,}\b")
_ABOUT = ("case", "study")


@dataclass(frozen=True)
class AuditLine:
    """One record as the page shows it. case_id: of the case that it names; study_case_id: of the
    case whose study it is about; None without."""

    record: LogRecord
    people: str
    brief: str
    case_id: int | None
    study_case_id: int | None


@page(READERS)
def overview(request: Any) -> HttpResponse:
    """Show records, newest first."""
    form = AuditSearch(request.GET or None)
    status, before, wanted, shown_filter = 200, 0, Filter(), {}
    if form.is_bound:
        if form.is_valid():
            values = form.cleaned_data
            before = values["before"] or 0
            wanted = Filter(**{name: values[name] for name in ("kind", "contains", "person", "since", "until")})
            shown_filter = {name: value for name, value in values.items() if value and name != "before"}
        else:
            status = 400
    shown = audit_page(request.site.home.audit, wanted, before)
    context = {
        "form": form,
        "lines": _lines(shown.records),
        "older": urlencode({**shown_filter, "before": shown.older}) if shown.older else "",
        "narrowed": bool(shown_filter),
        "key": request.site.identity.public_key,
    }
    return render(request, "console/audit.html", context, status=status)


def _lines(records: Iterable[LogRecord]) -> list[AuditLine]:
    """Return records with what they are about; asks the database once, for the cases that this page names."""
    records = list(records)
    hashes = {value for r in records if isinstance(value := r.fields.get("study"), str)}
    rows = Case.objects.filter(study_hash__in=hashes, state__in=APPROVED_ONCE).order_by("pk")
    studies: Mapping[str, int] = dict(rows.values_list("study_hash", "pk"))
    return [
        AuditLine(
            record=r,
            people=", ".join(people_of(r)),
            brief=_brief(r),
            case_id=r.fields["case"] if type(r.fields.get("case")) is int and r.fields["case"] > 0 else None,
            study_case_id=studies.get(str(r.fields.get("study"))),
        )
        for r in records
    ]


def _brief(record: LogRecord) -> str:
    rest = ((key, value) for key, value in record.fields.items() if key not in (*BY, *_ABOUT))
    text = _DIGITS.sub(lambda found: f"{found[0][:8]}…", ", ".join(f"{key} {listed(value)}" for key, value in rest))
    return text if len(text) <= BRIEF else f"{text[: BRIEF - 1]}…"


@page(READERS, ("POST",))
def verify(request: Any) -> HttpResponse:
    """Check the whole log against the hospital's key and its signed head."""
    site = request.site
    report = audit_chain.verify_log(site.home.audit, site.identity.public_key)
    return render(request, "console/verified.html", {"report": report, "fingerprint": site.identity.fingerprint})


@page(READERS, ("POST",))
def export(request: Any) -> HttpResponse:
    """Send the log after a signed checkpoint."""
    site = request.site
    try:
        site.audit.append("exported", what="audit log", person=request.user.username)
        site.audit.checkpoint()
    except AuditError as error:
        return refuse(request, 503, str(error))
    response = HttpResponse(site.home.audit.read_bytes(), content_type="application/x-ndjson")
    response["Content-Disposition"] = 'attachment; filename="audit.jsonl"'
    return response
