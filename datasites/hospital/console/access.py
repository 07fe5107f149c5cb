"""Who may open which page, and who acts: roles by view, the password asked again, and the answers that refuse.

Pages carry their roles as `view.roles`, so that one table lists them all. A decision that widens what a study or a
party may do, or that can't be undone, asks people to show again who they are: with their password, which counts
towards the same lock-out as signing in, or at the organisation's provider, if they signed in there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib import auth
from django.contrib.auth import BACKEND_SESSION_KEY, get_user_model
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import Resolver404, resolve, reverse
from django.utils.crypto import salted_hmac
from django.views.decorators.http import require_http_methods

from datasites.hospital.config import OidcSettings
from datasites.hospital.database import this_home
from datasites.hospital.people.accounts import Actor, PersonError, WrongPassword, acting, identify, list_people
from datasites.hospital.people.second_factor import device_of, is_required

STEWARD, OFFICER, AUDITOR, ADMIN = "steward", "privacy_officer", "auditor", "admin"
REVIEWERS = frozenset({STEWARD, OFFICER})
READERS = REVIEWERS | {AUDITOR}
EVERYBODY = READERS | {ADMIN}

#: In the session: when the person last signed in again at the provider; good for one decision within CONFIRMED_SECONDS.
CONFIRMED = "provider_confirmed"
CONFIRMED_SECONDS = 300
#: In the session: the number of the second factor, if any, of which the person gave a code.
SECOND_FACTOR = "second_factor"
#: In the session: when the person had signed in the time before.
LAST_VISIT = "last_visit"

#: Roles as people know them.
ROLE_NAMES = {STEWARD: "data steward", OFFICER: "privacy officer", AUDITOR: "auditor", ADMIN: "admin"}

View = Callable[..., HttpResponse]


def page(
    roles: frozenset[str],
    methods: tuple[str, ...] = ("GET",),
    *,
    without_second_factor: bool = False,
    of: str = "",
) -> Callable[[View], View]:
    """Make a view for people of these roles only: anonymous ones sign in first, others are refused with 403.

    without_second_factor: for people, too, who have yet to set up the one that datasite.toml demands. of: name of the
    page that an address belongs to which only takes forms, where it isn't the one above it.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: Any, *arguments: Any, **values: Any) -> HttpResponse:
            # After signing in people land on a page, never on an action.
            target = request.get_full_path() if request.method == "GET" else "/"
            if not request.user.is_authenticated:
                return redirect_to_login(target)
            if not by_provider(request):
                device = device_of(request.user)
                if device is not None and request.session.get(SECOND_FACTOR) != device.pk:
                    # Begun before it was set up, or with one that counts no longer: somebody else may have begun it.
                    auth.logout(request)
                    return redirect_to_login(target)
                if device is None and is_required() and not without_second_factor:
                    return redirect("second-factor")
            if request.role not in roles:
                return refuse(request, 403, _who_may(request, roles))
            return view(request, *arguments, **values)

        allowed = require_http_methods([*methods, "HEAD"] if "GET" in methods else list(methods))(guarded)

        @wraps(view)
        def checked(request: Any, *arguments: Any, **values: Any) -> HttpResponse:
            # The browser has this address in its bar after a form was refused, and asks for it when people press Enter.
            if request.method in ("GET", "HEAD") and "GET" not in methods:
                return redirect(reverse(of) if of else page_above(request.path))
            return allowed(request, *arguments, **values)

        vars(checked).update(roles=roles, methods=methods)
        return checked

    return decorate


def page_above(path: str) -> str:
    """Return the address of the page that an address which only takes forms belongs to: the nearest one above it."""
    parts = path.strip("/").split("/")
    for length in range(len(parts) - 1, 0, -1):
        above = f"/{'/'.join(parts[:length])}/"
        with suppress(Resolver404):
            if "GET" in getattr(resolve(above).func, "methods", ()):
                return above
    return "/"


def roles_in_words(roles: Collection[str]) -> str:
    """Return such as "data stewards and privacy officers"."""
    names = [f"{name}s" for role, name in ROLE_NAMES.items() if role in roles]
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _who_may(request: Any, roles: frozenset[str]) -> str:
    """Say whom a page or an action is for, who the person is, and whom to ask."""
    what = "This page is" if request.method == "GET" else "This action is"
    who = f"You are signed in as {request.user.username}"
    if not request.role:
        return f"{who}, and you have no role yet, so you can open no page. Ask an admin for one{_admins()}."
    ask = (
        f"If you need it, ask a {ROLE_NAMES[OFFICER]} or {ROLE_NAMES[STEWARD]}"
        if roles & REVIEWERS
        else f"If you need it, ask an admin{_admins()}"
    )
    return f"{what} for {roles_in_words(roles)}. {who}, {ROLE_NAMES[request.role]}. {ask}."


def _admins() -> str:
    names = [person.name for person in list_people() if person.active and person.role == ADMIN][:3]
    return f" ({', '.join(names)})" if names else ""


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


def last_visit(user: Any) -> str:
    """Say when somebody who is just signing in did so the time before; "" for the first time."""
    return user.last_login.isoformat() if user.last_login is not None else ""


def confirmed_since(request: Any) -> float | None:
    """Say when the person signed in again at the provider, if that still counts."""
    at = request.session.get(CONFIRMED)
    return at if at is not None and 0 <= time.time() - at <= CONFIRMED_SECONDS else None


def refuse(request: HttpRequest, status: int, reason: str) -> HttpResponse:
    """Return a page that says why the request was refused."""
    above = page_above(request.path)
    context = {"status": status, "reason": reason, "back": above if request.method == "POST" and above != "/" else ""}
    return render(request, "console/refused.html", context, status=status)


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
