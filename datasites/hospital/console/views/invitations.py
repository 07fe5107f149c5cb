"""Setting a password by an invitation. The link's secret stands after its #, which no browser sends: it is typed into
the form, or filled in by htmx, which says in a header where it stands. To open the page changes nothing.
"""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from datasites.hospital.console.forms import AcceptInvitation
from datasites.hospital.people.accounts import Person, PersonError
from datasites.hospital.people.invitations import accept as accept_invitation
from datasites.hospital.people.invitations import invited


@require_http_methods(["GET", "HEAD", "POST"])
def accept(request: Any) -> HttpResponse:
    """Show the form, or set the password."""
    form, status = AcceptInvitation(request.POST or None), 200
    if request.method == "POST":
        status = 400
        if form.is_valid():
            try:
                person = accept_invitation(request.site, form.cleaned_data["code"], form.cleaned_data["new_password"])
            except PersonError as error:
                form.add_error(None, str(error))
                status = 409
            else:
                messages.success(request, f"Your password is set. Sign in as {person.name}.")
                return redirect("login")
    person_of_it = _person(form["code"].value() or "")
    return render(request, "console/invitation.html", {"form": form, "invited": person_of_it}, status=status)


@require_safe
def code(request: Any) -> HttpResponse:
    """Return the form's field, with what stands after the # of the page's address (`HX-Current-URL`)."""
    written = request.headers.get("HX-Current-URL", "")[:1000].partition("#")[2][:500]
    form = AcceptInvitation(initial={"code": written})
    return render(request, "console/invitation_code.html", {"form": form, "invited": _person(written)})


def _person(written: str) -> Person | None:
    try:
        return invited(written) if written else None
    except PersonError:
        return None
