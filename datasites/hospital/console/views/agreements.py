"""The registry of agreements: imported by one person, confirmed by another, terminated by either."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from django.http import HttpResponse
from django.shortcuts import render

from datasites.hospital.console.access import READERS, REVIEWERS, confirmed, page, present
from datasites.hospital.console.acts import act
from datasites.hospital.console.forms import AgreementText, ConfirmAgreement, TerminateAgreement
from datasites.hospital.people.agreements import confirm_agreement, enter_agreements, terminate_agreement
from datasites.study.dates import today
from datasites.study.identity import same_identity
from policies.registry import KIND_NAMES, RegistryError, RegistryFile


@page(READERS)
def overview(request: Any) -> HttpResponse:
    """Show all agreements, newest version of each first, with what waits for a second person."""
    home = request.site.home
    day = today()
    may_act = request.role in REVIEWERS
    try:
        registry = RegistryFile(home.registry, home.settings.organisation).load()
    except RegistryError as error:
        return render(request, "console/agreements.html", {"problem": str(error)}, status=500)
    forced = {(a.terms.id, a.version) for a in registry.in_force(day)}
    waiting = {(a.terms.id, a.version) for a in registry.unconfirmed()}
    lines = []
    for a in sorted(registry.agreements, key=lambda a: (a.terms.id, -a.version)):
        key = (a.terms.id, a.version)
        lines.append(
            {
                "a": a,
                "kind": KIND_NAMES[a.terms.kind],
                "in_force": key in forced,
                "waiting": key in waiting,
                "confirm": ConfirmAgreement(initial={"id": a.terms.id, "version": a.version}, auto_id=_ids("c", key))
                if may_act and key in waiting and not same_identity(a.entered_by, request.user.username)
                else None,
                "terminate": TerminateAgreement(initial={"id": a.terms.id}, auto_id=_ids("t", key))
                if may_act and key in forced
                else None,
            }
        )
    context = {"lines": lines, "expiring": registry.expiring(day), "form": AgreementText(), "may_act": may_act}
    return render(request, "console/agreements.html", context)


@page(REVIEWERS, ("POST",))
def enter(request: Any) -> HttpResponse:
    """Enter agreements; they count once somebody else has confirmed them."""

    def do(values: dict[str, Any]) -> str:
        with tempfile.TemporaryDirectory(dir=request.site.home.root, prefix=".agreements-") as folder:
            file = Path(folder) / "agreements.toml"
            file.write_text(values["text"])
            entered = enter_agreements(request.site, present(request), file)
        names = ", ".join(f"{id} version {version}" for id, version in entered)
        return f"Entered: {names or 'nothing new'}. A second person compares them with the documents and confirms."

    return act(request, AgreementText(request.POST), do, "agreements")


@page(REVIEWERS, ("POST",))
def confirm(request: Any) -> HttpResponse:
    """Confirm what somebody else entered."""

    def do(values: dict[str, Any]) -> str:
        confirm_agreement(request.site, confirmed(request), values["id"], values["version"])
        return f"{values['id']} version {values['version']} is confirmed."

    return act(request, ConfirmAgreement(request.POST), do, "agreements")


@page(REVIEWERS, ("POST",))
def terminate(request: Any) -> HttpResponse:
    """Terminate an agreement today."""

    def do(values: dict[str, Any]) -> str:
        terminate_agreement(request.site, confirmed(request), values["id"])
        return f"{values['id']} ends today; studies that rest on it are denied from the next round on."

    return act(request, TerminateAgreement(request.POST), do, "agreements")


def _ids(prefix: str, key: tuple[str, int]) -> str:
    return f"{prefix}-{key[0]}-{key[1]}-%s"
