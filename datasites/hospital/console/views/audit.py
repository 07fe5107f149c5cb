"""The audit log: browse it, verify it, download it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.http import HttpResponse
from django.shortcuts import render

from datasites.hospital.audit.log import AuditError
from datasites.hospital.audit.pages import Filter, audit_page
from datasites.hospital.console.access import READERS, page, refuse
from datasites.hospital.console.forms import AuditSearch
from datasites.study import audit_chain


@page(READERS)
def overview(request: Any) -> HttpResponse:
    """Show records, newest first."""
    form = AuditSearch(request.GET or None)
    status, before, wanted = 200, 0, Filter()
    if form.is_bound:
        if form.is_valid():
            before = form.cleaned_data["before"] or 0
            wanted = Filter(form.cleaned_data["kind"], form.cleaned_data["contains"])
        else:
            status = 400
    shown = audit_page(request.site.home.audit, wanted, before)
    older = urlencode({"kind": wanted.kind, "contains": wanted.contains, "before": shown.older}) if shown.older else ""
    context = {"form": form, "records": shown.records, "older": older, "key": request.site.identity.public_key}
    return render(request, "console/audit.html", context, status=status)


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
