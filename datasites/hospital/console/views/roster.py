"""The parties whose keys this hospital trusts: proposed by one person, pinned by another, revoked by either."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.shortcuts import render

from datasites.hospital.console.access import READERS, REVIEWERS, confirmed, page, present
from datasites.hospital.console.acts import act
from datasites.hospital.console.forms import DecideParty, ProposeParty, RevokeParty
from datasites.hospital.people.roster import open_proposals, pin_party, propose_party, revoke_party, withdraw_party
from datasites.study.identity import same_identity
from datasites.study.roster import Roster


@page(READERS)
def overview(request: Any) -> HttpResponse:
    """Show pinned parties with their fingerprints, and entries that wait for a second person."""
    site, may_act = request.site, request.role in REVIEWERS
    entries = Roster.load(site.home.roster).entries
    own = site.home.settings.email
    pinned = [
        (e, RevokeParty(initial={"email": e.email}, auto_id=f"r{i}-%s") if may_act and e.email != own else None)
        for i, e in enumerate(entries)
    ]
    waiting = [
        (
            row,
            entry,
            DecideParty(initial={"action": "pin"}, auto_id=f"p{row.pk}-%s")
            if may_act and not same_identity(row.proposed_by, request.user.username)
            else None,
        )
        for row, entry in open_proposals()
    ]
    context = {
        "pinned": pinned,
        "waiting": waiting,
        "form": ProposeParty(),
        "may_act": may_act,
        "own": site.identity.fingerprint,
        "own_email": own,
    }
    return render(request, "console/roster.html", context)


@page(REVIEWERS, ("POST",))
def propose(request: Any) -> HttpResponse:
    """Propose a party."""

    def do(values: dict[str, Any]) -> str:
        proposal = propose_party(request.site, present(request), values["entry"])
        return f"{proposal.email} is entered. A second person compares the fingerprint by telephone and pins it."

    return act(request, ProposeParty(request.POST), do, "roster")


@page(REVIEWERS, ("POST",))
def decide(request: Any, entry_id: int) -> HttpResponse:
    """Pin or withdraw an entry that waits."""

    def do(values: dict[str, Any]) -> str:
        if values["action"] == "withdraw":
            withdraw_party(request.site, present(request), entry_id)
            return "The entry is withdrawn."
        entry = pin_party(request.site, confirmed(request), entry_id, values["fingerprint"])
        return f"{entry.email} is pinned."

    return act(request, DecideParty(request.POST), do, "roster")


@page(REVIEWERS, ("POST",))
def revoke(request: Any) -> HttpResponse:
    """Revoke a party."""

    def do(values: dict[str, Any]) -> str:
        revoke_party(request.site, confirmed(request), values["email"], values["reason"])
        return f"{values['email']} is no longer trusted, from the next round on."

    return act(request, RevokeParty(request.POST), do, "roster")
