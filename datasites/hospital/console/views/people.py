"""The hospital's people and their roles; added and deactivated by an admin, visible to auditors too."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.shortcuts import render

from datasites.hospital.console.access import ADMIN, AUDITOR, confirmed, page
from datasites.hospital.console.acts import act
from datasites.hospital.console.forms import AddPerson, DeactivatePerson
from datasites.hospital.people.accounts import deactivate as shut_out
from datasites.hospital.people.accounts import enter_person, list_people, written_down


@page(frozenset({ADMIN, AUDITOR}))
def overview(request: Any) -> HttpResponse:
    """Show everybody who was added."""
    may_act = request.role == ADMIN
    lines = [
        (
            person,
            DeactivatePerson(initial={"name": person.name}, auto_id=f"d{index}-%s")
            if may_act and person.active and person.name != request.user.username
            else None,
        )
        for index, person in enumerate(list_people())
    ]
    return render(request, "console/people.html", {"lines": lines, "form": AddPerson(), "may_act": may_act})


@page(frozenset({ADMIN}), ("POST",))
def add(request: Any) -> HttpResponse:
    """Add a person."""

    def do(values: dict[str, Any]) -> str:
        admin = confirmed(request)
        password = None if values.get("by_provider") else values["new_password"]
        enter_person(request.site, values["name"], values["role"], password, values["email"], by=admin.name)
        return f"{values['name']} is entered.{'' if password is None else ' They change their password first.'}"

    return act(request, AddPerson(request.POST), do, "people")


@page(frozenset({ADMIN}), ("POST",))
def deactivate(request: Any) -> HttpResponse:
    """Keep a person out from now on."""

    def do(values: dict[str, Any]) -> str:
        admin = confirmed(request)
        with written_down(request.site, "person_deactivated", person=values["name"], by=admin.name):
            shut_out(values["name"], by=admin.name)
        return f"{values['name']} can't sign in any more."

    return act(request, DeactivatePerson(request.POST), do, "people")
