"""The parties whose keys this hospital trusts: proposed by one person, pinned by another, revoked by either.

A form that is refused is shown again on this page, with what was typed and what is wrong with it.
"""

from __future__ import annotations

from typing import Any

from django import forms
from django.http import HttpResponse
from django.shortcuts import render

from datasites.hospital.console.access import READERS, REVIEWERS, confirmed, page, present
from datasites.hospital.console.acts import act
from datasites.hospital.console.agreement_forms import listed
from datasites.hospital.console.forms import DecideParty, ProposeParty, RevokeParty
from datasites.hospital.people.roster import open_proposals, pin_party, propose_party, revoke_party, withdraw_party
from datasites.study.identity import same_identity
from datasites.study.roster import Roster


@page(READERS)
def overview(request: Any) -> HttpResponse:
    """Show pinned parties with their fingerprints, and entries that wait for a second person."""
    return _overview(request)


@page(REVIEWERS, ("POST",))
def propose(request: Any) -> HttpResponse:
    """Propose a party."""

    def do(values: dict[str, Any]) -> str:
        proposal = propose_party(request.site, present(request), values["entry"])
        return f"{proposal.email} is entered. A second person compares the fingerprint by telephone and pins it."

    def again(form: forms.Form, status: int) -> HttpResponse:
        return _overview(request, propose=form, status=status)

    return act(request, ProposeParty(request.POST, request.FILES), do, "roster", again=again, at="entry")


@page(REVIEWERS, ("POST",))
def decide(request: Any, entry_id: int) -> HttpResponse:
    """Pin or withdraw an entry that waits."""

    def do(values: dict[str, Any]) -> str:
        if values["action"] == "withdraw":
            withdraw_party(request.site, present(request), entry_id)
            return "The entry is withdrawn."
        entry = pin_party(request.site, confirmed(request), entry_id, values["fingerprint"])
        return f"{entry.email} is pinned."

    def again(form: forms.Form, status: int) -> HttpResponse:
        return _overview(request, decide=(entry_id, form), status=status)

    form = DecideParty(request.POST, auto_id=f"p{entry_id}-%s")
    return act(request, form, do, "roster", again=again, at="fingerprint")


@page(REVIEWERS, ("POST",))
def revoke(request: Any) -> HttpResponse:
    """Revoke a party."""

    def do(values: dict[str, Any]) -> str:
        revoke_party(request.site, confirmed(request), values["email"], values["reason"])
        return f"{values['email']} is no longer trusted, from the next round on."

    def again(form: forms.Form, status: int) -> HttpResponse:
        return _overview(request, revoke=form, status=status)

    return act(request, RevokeParty(request.POST, auto_id="revoke-%s"), do, "roster", again=again)


def _overview(
    request: Any,
    *,
    propose: forms.Form | None = None,
    decide: tuple[int, forms.Form] | None = None,
    revoke: forms.Form | None = None,
    status: int = 200,
) -> HttpResponse:
    """Show the page, with the one form that was refused in its place."""
    site, may_act = request.site, request.role in REVIEWERS
    entries, own = Roster.load(site.home.roster).entries, site.home.settings.email
    revoked = revoke.data.get("email") if revoke is not None else None
    pinned = [
        (e, _or(revoke if e.email == revoked else None, RevokeParty(initial={"email": e.email}, auto_id=f"r{i}-%s")))
        if may_act and e.email != own
        else (e, None)
        for i, e in enumerate(entries)
    ]
    waiting = []
    for row, entry in open_proposals():
        form = None
        if may_act and not same_identity(row.proposed_by, request.user.username):
            refused = decide[1] if decide and decide[0] == row.pk and decide[1].data.get("action") == "pin" else None
            form = _or(refused, DecideParty(initial={"action": "pin"}, auto_id=f"p{row.pk}-%s"))
        waiting.append((row, entry, form))
    refused = propose or (decide[1] if decide else revoke)
    on_page = [propose, *(form for *_, form in pinned), *(form for *_, form in waiting)]
    context = {
        "pinned": pinned,
        "waiting": waiting,
        "form": propose or ProposeParty(),
        "may_act": may_act,
        "own": site.identity.fingerprint,
        "own_email": own,
        "mistakes": list(listed(refused)) if refused is not None else [],
        "typed": [] if refused is None or refused in on_page else _typed(refused),
    }
    return render(request, "console/roster.html", context, status=status)


def _or(form: forms.Form | None, fresh: forms.Form) -> forms.Form:
    return fresh if form is None else form


def _typed(form: forms.Form) -> list[tuple[str, str]]:
    """Return what was typed into a form that has no place on the page any more, but for a password."""
    fields = (field for field in form.visible_fields() if field.name != "password")
    return [(str(field.label), text) for field in fields if (text := str(field.value() or ""))]
