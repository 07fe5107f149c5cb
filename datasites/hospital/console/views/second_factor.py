"""One's own second factor: set up, confirmed by its first code, and replaced. Others are taken off under People."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.safestring import mark_safe

from datasites.hospital.console.access import EVERYBODY, SECOND_FACTOR, by_provider, confirmed, page, present, refuse
from datasites.hospital.console.forms import BeginSecondFactor, ConfirmSecondFactor
from datasites.hospital.people import enrolment
from datasites.hospital.people.accounts import PersonError
from datasites.hospital.people.second_factor import device_of, is_required


@page(EVERYBODY, ("GET", "POST"), without_second_factor=True)
def overview(request: Any) -> HttpResponse:
    """Say whether the person has one; make a new secret and show it in the answer itself."""
    if request.method == "POST" and by_provider(request):
        return refuse(request, 409, "You sign in through the organisation, which has a second factor of its own.")
    has_one = device_of(request.user) is not None
    form = BeginSecondFactor(request.POST or None)
    if not has_one:
        del form.fields["code"]
    if request.method == "POST" and form.is_valid():
        try:
            person = confirmed(request)
            enrolment.require_code(person, form.cleaned_data.get("code", ""))
            return _secret(request, enrolment.begin(person), ConfirmSecondFactor())
        except PersonError as error:
            form.add_error(None, str(error))
    context = {"form": form, "has_one": has_one, "required": is_required()}
    return render(request, "console/second_factor.html", context, status=400 if form.errors else 200)


@page(EVERYBODY, ("POST",), without_second_factor=True)
def confirm(request: Any) -> HttpResponse:
    """Let the new secret count; other sessions of the person end."""
    if by_provider(request):
        return refuse(request, 409, "You sign in through the organisation, which has a second factor of its own.")

    form = ConfirmSecondFactor(request.POST)
    device = device_of(request.user, confirmed=False)
    if device is None:
        return refuse(request, 409, "There is no new secret to confirm. Begin again.")
    if form.is_valid():
        try:
            number = enrolment.confirm(request.site, present(request), form.cleaned_data["code"])
        except PersonError as error:
            form.add_error("code", str(error))
        else:
            request.session[SECOND_FACTOR] = number
            messages.success(request, "Your second factor is set up. From now on you sign in with a code, too.")
            return redirect("second-factor")
    return _secret(request, enrolment.enrolment(device), form, 400)


def _secret(request: Any, new: enrolment.NewSecret, form: ConfirmSecondFactor, status: int = 200) -> HttpResponse:
    # Made of black squares by segno, from an address that this datasite has written.
    context = {"form": form, "secret": new.secret, "address": new.address, "picture": mark_safe(new.picture())}
    return render(request, "console/secret.html", context, status=status)
