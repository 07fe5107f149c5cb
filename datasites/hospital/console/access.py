"""Who may open which page, and who acts: roles by view, the password asked again, and the answers that refuse.

Pages carry their roles as `view.roles`, so that one table lists them all. A decision that widens what a study or a
party may do, or that can't be undone, asks for the password again; it counts towards the same lock-out as signing in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods

from datasites.hospital.people import identify
from datasites.hospital.review import Acting

STEWARD, OFFICER, AUDITOR, ADMIN = "steward", "privacy_officer", "auditor", "admin"
REVIEWERS = frozenset({STEWARD, OFFICER})
READERS = REVIEWERS | {AUDITOR}
EVERYBODY = READERS | {ADMIN}

View = Callable[..., HttpResponse]


def page(roles: frozenset[str], methods: tuple[str, ...] = ("GET",)) -> Callable[[View], View]:
    """A view for people of these roles only: anonymous ones sign in first, others are refused with 403."""

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: Any, *arguments: Any, **values: Any) -> HttpResponse:
            if not request.user.is_authenticated:
                # After signing in people land on a page, never on an action.
                target = request.get_full_path() if request.method == "GET" else "/"
                return redirect_to_login(target)
            if request.role not in roles:
                who = request.role or "without a role"
                return refuse(request, 403, f"You are {who}; this is for: {', '.join(sorted(roles))}.")
            return view(request, *arguments, **values)

        checked = require_http_methods([*methods, "HEAD"] if "GET" in methods else list(methods))(guarded)
        checked.roles = roles
        checked.methods = methods
        return checked

    return decorate


def present(request: Any) -> Acting:
    """The signed-in person, where no password is asked: reading, and actions that only narrow and can be undone."""
    return Acting(request.user.pk, request.user.username, request.role)


def confirmed(request: Any) -> Acting:
    """The signed-in person, who has typed the password again; raises `PersonError`."""
    pk, role = identify(request.user.username, request.POST.get("password", ""), request)
    return Acting(pk, request.user.username, role)


def refuse(request: HttpRequest, status: int, reason: str) -> HttpResponse:
    """A page that says why not."""
    return render(request, "console/refused.html", {"status": status, "reason": reason}, status=status)


def forged(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Answer to a POST without this session's token (Django's CSRF check)."""
    return refuse(request, 403, "This form was not sent from a page of this console. Open the page again and retry.")


def locked_out(request: HttpRequest, *_: object) -> HttpResponse:
    """Answer while too many wrong passwords lie behind (django-axes)."""
    return refuse(request, 429, "Too many wrong passwords. Wait 15 minutes, then try again.")


def client_address(request: HttpRequest) -> str:
    """Address of the client, as the server saw it."""
    return str(request.META.get("REMOTE_ADDR") or "unknown")
