"""The hospital's people and their roles; added, invited and deactivated by an admin, visible to auditors too."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.shortcuts import render

from datasites.hospital.console.access import ADMIN, AUDITOR, confirmed, page
from datasites.hospital.console.acts import act
from datasites.hospital.console.forms import AddPerson, DeactivatePerson, OnPerson
from datasites.hospital.people import enrolment
from datasites.hospital.people.accounts import deactivate as shut_out
from datasites.hospital.people.accounts import list_people, written_down
from datasites.hospital.people.invitations import Issued, enter_person, invite, open_invitations
from datasites.hospital.people.second_factor import with_one


@page(frozenset({ADMIN, AUDITOR}))
def overview(request: Any) -> HttpResponse:
    """Show everybody who was added, and what an admin can do about them."""
    may_act, invitations, factors = request.role == ADMIN, open_invitations(), with_one()
    lines = []
    for index, person in enumerate(list_people()):
        others = may_act and person.active and person.name != request.user.username
        has_factor, start = person.name in factors, {"name": person.name}
        lines.append(
            {
                "person": person,
                "until": invitations.get(person.name),
                "has_factor": has_factor,
                "invite": OnPerson(initial=start, auto_id=f"i{index}-%s") if others else None,
                "reset": OnPerson(initial=start, auto_id=f"s{index}-%s") if others and has_factor else None,
                "deactivate": DeactivatePerson(initial=start, auto_id=f"d{index}-%s") if others else None,
            }
        )
    return render(request, "console/people.html", {"lines": lines, "form": AddPerson(), "may_act": may_act})


@page(frozenset({ADMIN}), ("POST",))
def add(request: Any) -> HttpResponse:
    """Add a person, and show their invitation once."""

    def do(values: dict[str, Any]) -> str | HttpResponse:
        admin, by_provider = confirmed(request), bool(values.get("by_provider"))
        entered = (values["name"], values["role"], values["email"])
        issued = enter_person(request.site, *entered, by=admin.name, by_provider=by_provider)
        return f"{values['name']} is entered." if issued is None else _once(request, issued)

    return act(request, AddPerson(request.POST), do, "people")


@page(frozenset({ADMIN}), ("POST",))
def invite_again(request: Any) -> HttpResponse:
    """Issue a new invitation and show it once; the last one ends."""

    def do(values: dict[str, Any]) -> HttpResponse:
        return _once(request, invite(request.site, values["name"], by=confirmed(request).name))

    return act(request, OnPerson(request.POST), do, "people")


@page(frozenset({ADMIN}), ("POST",))
def reset_second_factor(request: Any) -> HttpResponse:
    """Take off the second factor of somebody else, who has lost it."""

    def do(values: dict[str, Any]) -> str:
        enrolment.reset(request.site, values["name"], by=confirmed(request).name)
        return f"{values['name']} has no second factor any more."

    return act(request, OnPerson(request.POST), do, "people")


def _once(request: Any, issued: Issued) -> HttpResponse:
    """Show an invitation in the answer itself: it is kept nowhere, so to reload the page does not show it again."""
    link = issued.link(request.build_absolute_uri("/"))
    return render(request, "console/invited.html", {"issued": issued, "link": link})


@page(frozenset({ADMIN}), ("POST",))
def deactivate(request: Any) -> HttpResponse:
    """Keep a person out from now on."""

    def do(values: dict[str, Any]) -> str:
        admin = confirmed(request)
        with written_down(request.site, "person_deactivated", person=values["name"], by=admin.name):
            shut_out(values["name"], by=admin.name)
        return f"{values['name']} can't sign in any more."

    return act(request, DeactivatePerson(request.POST), do, "people")
