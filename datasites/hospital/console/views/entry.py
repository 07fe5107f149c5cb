"""Signing in and out, the first page, one's own password, and the pages for what is not there."""

from __future__ import annotations

import datetime
import logging
import sys
from typing import Any

from django.conf import settings
from django.contrib import auth, messages
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView
from django.core.exceptions import RequestDataTooBig, TooManyFieldsSent
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from datasites.hospital.console.access import (
    ADMIN,
    EVERYBODY,
    LAST_VISIT,
    SECOND_FACTOR,
    confirmed,
    last_visit,
    page,
    refuse,
)
from datasites.hospital.console.forms import ChangePassword, SignIn
from datasites.hospital.database import DATABASE_AWAY, let_go, name_of, reason_of, this_home
from datasites.hospital.models import Case
from datasites.hospital.outages import away
from datasites.hospital.people.accounts import PersonError, change_password
from datasites.hospital.people.second_factor import device_of
from datasites.hospital.people.sign_ins import signed_in, signed_out
from datasites.hospital.people.visits import since

AWAY = (
    "The datasite's database is unavailable. Open this page again in a moment; if you were about to change something, "
    "check first whether it was done. The datasite's log says why."
)

log = logging.getLogger(__name__)


class _SignIn(LoginView):
    """Django's own, which goes only to addresses of this console afterwards and gives the session a new key."""

    template_name = "console/login.html"
    authentication_form = SignIn
    redirect_authenticated_user = True
    request: Any

    def get_default_redirect_url(self) -> str:
        return "/"

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        user = form.get_user()
        remember_last_visit, device = last_visit(user), device_of(user)
        response = super().form_valid(form)
        self.request.session[LAST_VISIT] = remember_last_visit
        if device is not None:
            self.request.session[SECOND_FACTOR] = device.pk  # the form has taken a code of it
        signed_in(self.request.site, user.username)
        return response


login = _SignIn.as_view()


@page(EVERYBODY)
def home(request: Any) -> HttpResponse:
    """Show what happened since the person's last visit, and where they go on."""
    moment, is_admin = request.session.get(LAST_VISIT, ""), request.role == ADMIN
    visit = None
    if moment:
        name = request.user.username
        visit = since(request.site, name, datetime.datetime.fromisoformat(moment), accounts_only=is_admin)
    waiting = 0 if is_admin else Case.objects.filter(state=Case.State.REVIEW).count()
    return render(request, "console/home.html", {"visit": visit, "waiting": waiting})


@page(EVERYBODY, ("POST",), without_second_factor=True)
def logout(request: Any) -> HttpResponse:
    """End the session."""
    name = request.user.username
    auth.logout(request)
    signed_out(request.site, name)
    return redirect("login")


@page(EVERYBODY, ("GET", "POST"))
def password(request: Any) -> HttpResponse:
    """Change one's own password; other sessions of the person end with it."""
    if request.method == "POST" and not request.user.has_usable_password():
        return refuse(request, 409, "You sign in through the organisation, so you have no password here.")
    form = ChangePassword(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            person = confirmed(request)
            change_password(request.site, person, form.cleaned_data["new_password"])
        except PersonError as error:
            form.add_error(None, str(error))
        else:
            request.user.refresh_from_db()
            auth.update_session_auth_hash(request, request.user)
            messages.success(request, "Your password is changed.")
            return redirect("password")
    status = 400 if form.errors else 200
    return render(request, "console/password.html", {"form": form}, status=status)


def malformed(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Answer 400."""
    if isinstance(exception, RequestDataTooBig | TooManyFieldsSent):
        most, fields = settings.DATA_UPLOAD_MAX_MEMORY_SIZE // 1024, settings.DATA_UPLOAD_MAX_NUMBER_FIELDS
        return refuse(
            request,
            413,
            f"The form is too large: this console takes {most} KiB of text and {fields} fields at once. Your browser "
            "goes back to what you typed: shorten it, or send it in parts.",
        )
    return refuse(
        request, 400, "This console does not understand the request. Open the page again, and use its own forms."
    )


def forbidden(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Answer 403."""
    return refuse(request, 403, "You may not open this page. If you need it, ask an admin of this hospital.")


def missing(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Answer 404."""
    return refuse(
        request,
        404,
        "There is no page at this address. It may be mistyped, or of another hospital: each has cases and studies of "
        "its own. A study has a page once it was approved here; before that, look for its case.",
    )


def failed(request: HttpRequest) -> HttpResponse:
    """Answer 500, or 503 while the database is unavailable, without details, which are in the datasite's own log."""
    error = sys.exc_info()[1]
    if isinstance(error, DATABASE_AWAY):
        home = this_home()
        log.warning("%s; %s was answered with 503", away(name_of(home), reason_of(home, error)), request.path)
        let_go()
        # Without a template: pages show who is signed in, which is asked of the database.
        response = HttpResponse(AWAY, status=503, content_type="text/plain", headers={"Retry-After": "5"})
        vars(response).update(_has_been_logged=True)  # for Django, which would add a traceback
        return response
    return HttpResponse("Something went wrong; the datasite's log says what.", status=500, content_type="text/plain")
