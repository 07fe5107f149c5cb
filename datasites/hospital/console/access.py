"""Who may open which page, and who acts: roles by view, the password asked again, and the answers that refuse.

Pages carry their roles as `view.roles`, so that one table lists them all. A decision that widens what a study or a
party may do, or that can't be undone, asks people to show again who they are: with their password, which counts
towards the same lock-out as signing in, or at the organisation's provider, if they signed in there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, get_user_model
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.crypto import salted_hmac
from django.views.decorators.http import require_http_methods

from datasites.hospital.config import OidcSettings
from datasites.hospital.database import this_home
from datasites.hospital.people.accounts import Actor, PersonError, WrongPassword, acting, identify, must_change

STEWARD, OFFICER, AUDITOR, ADMIN = "steward", "privacy_officer", "auditor", "admin"
REVIEWERS = frozenset({STEWARD, OFFICER})
READERS = REVIEWERS | {AUDITOR}
EVERYBODY = READERS | {ADMIN}

#: In the session: when the person last signed in again at the provider; good for one decision within CONFIRMED_SECONDS.
CONFIRMED = "provider_confirmed"
CONFIRMED_SECONDS = 300

View = Callable[..., HttpResponse]


def page(
    roles: frozenset[str], methods: tuple[str, ...] = ("GET",), *, also_first: bool = False
) -> Callable[[View], View]:
    """Make a view for people of these roles only: anonymous ones sign in first, others are refused with 403.

    also_first: for people, too, who have yet to change a password that somebody else has set.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: Any, *arguments: Any, **values: Any) -> HttpResponse:
            if not request.user.is_authenticated:
                # After signing in people land on a page, never on an action.
                target = request.get_full_path() if request.method == "GET" else "/"
                return redirect_to_login(target)
            if not also_first and not by_provider(request) and must_change(request.user):
                return redirect("password")
            if request.role not in roles:
                who = request.role or "without a role"
                return refuse(request, 403, f"You are {who}; this page is for: {', '.join(sorted(roles))}.")
            return view(request, *arguments, **values)

        checked = require_http_methods([*methods, "HEAD"] if "GET" in methods else list(methods))(guarded)
        vars(checked).update(roles=roles, methods=methods)
        return checked

    return decorate


def present(request: Any) -> Actor:
    """Return the signed-in person, for what needs no password: reading, and acts that only narrow and can be undone."""
    return acting(request.user)


def confirmed(request: Any) -> Actor:
    """Return the signed-in person, who has just proved again who they are; raises `PersonError`."""
    if by_provider(request):
        since = confirmed_since(request)
        request.session.pop(CONFIRMED, None)
        if since is None:
            name = provider().name
            raise PersonError(f"Sign in again with {name} first; that counts for one decision within five minutes.")
        return acting(request.user)
    password = request.POST.get("password", "")
    if not password:
        raise PersonError("Type your password.")
    try:
        return identify(request.user.username, password, request)
    except WrongPassword as error:
        raise PersonError("The password is wrong.") from error


def provider() -> OidcSettings:
    """Return the organisation's provider, on a console that has one."""
    set_up = this_home().settings.console.oidc
    assert set_up is not None
    return set_up


def by_provider(request: Any) -> bool:
    """Say whether the person signed in at the organisation's provider, and not with a password."""
    return bool(request.session.get(BACKEND_SESSION_KEY) == settings.PROVIDER_BACKEND)


def confirmed_since(request: Any) -> float | None:
    """Say when the person signed in again at the provider, if that still counts."""
    at = request.session.get(CONFIRMED)
    return at if at is not None and 0 <= time.time() - at <= CONFIRMED_SECONDS else None


def refuse(request: HttpRequest, status: int, reason: str) -> HttpResponse:
    """Return a page that says why the request was refused."""
    return render(request, "console/refused.html", {"status": status, "reason": reason}, status=status)


def forged(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Answer to a POST without this session's token (Django's CSRF check)."""
    return refuse(request, 403, "This form was not sent from a page of this console. Open the page again and retry.")


def locked_out(request: HttpRequest, *_: object) -> HttpResponse:
    """Answer while too many wrong passwords lie behind (django-axes)."""
    return refuse(request, 429, "Too many wrong passwords. Wait 15 minutes, then try again.")


def client_name(request: HttpRequest, credentials: dict[str, Any] | None = None) -> str | None:
    """Return whose wrong passwords are counted: the given name, or what stands for it where nobody has it.

    People type passwords there, and this is kept in the database and written into the service's log.
    """
    name = (credentials or request.POST).get("username")
    if name is None or get_user_model().objects.filter(username=name).exists():
        return name
    return f"nobody-{salted_hmac('name that nobody has', name, algorithm='sha256').hexdigest()[:32]}"


def client_address(request: HttpRequest) -> str | None:
    """Return the address of the client, as the server saw it; None where it saw none (a Unix socket)."""
    return request.META.get("REMOTE_ADDR") or None
