"""What every request passes: a Content-Security-Policy that allows no inline code, the filter of what strangers wrote,
and the hospital's desk.

The desk puts `site` (settings, key, audit log) and the person's `role` on the request, so that views open nothing
themselves and no global holds them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from datasites.hospital.cases import compliance
from datasites.hospital.cases.inbox import waiting_for
from datasites.hospital.console.access import by_provider, confirmed_since
from datasites.hospital.people.accounts import role_of
from datasites.hospital.site import Site
from datasites.study.visible import visible

Respond = Callable[[HttpRequest], HttpResponse]

#: Scripts, styles and pictures from this server only; nothing inline, no frames, no forms or requests to others.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)


class ContentSecurityPolicy:
    """Sends the policy with every answer, and forbids caches to keep pages."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Add the headers."""
        response = self._respond(request)
        response["Content-Security-Policy"] = POLICY
        response["Permissions-Policy"] = "camera=(), geolocation=(), microphone=(), payment=(), usb=()"
        response["Cross-Origin-Resource-Policy"] = "same-origin"
        if not request.path.startswith(settings.STATIC_URL):
            response["Cache-Control"] = "no-store"
        return response


class Visible:
    """Shows every character of a page, whoever wrote it and in whichever template: none of it hides or acts."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Filter a page; a download is left as it is."""
        response = self._respond(request)
        if response.get("Content-Type", "").startswith("text/html") and not response.streaming:
            _replace(response, visible(response.content.decode(response.charset)).encode(response.charset))
        return response


def _replace(response: HttpResponse, content: bytes) -> None:
    response.content = content
    if response.has_header("Content-Length"):  # set further inside, of what the page was then
        response["Content-Length"] = str(len(content))


class ErrorTitle:
    """Begins the title of every page that refuses something with "Error:", which is what screen readers say first."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Mark a page by its status, whichever view and template it is of."""
        response = self._respond(request)
        page = response.get("Content-Type", "").startswith("text/html") and not response.streaming
        if response.status_code >= 400 and page:
            _replace(response, response.content.replace(b"<title>", b"<title>Error: ", 1))
        return response


class SiteMiddleware:
    """Gives each request the hospital's site and the signed-in person's role ("" for none)."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond

    @cached_property
    def _site(self) -> Site:
        return Site.of(settings.DATASITE)

    def __call__(self, request: Any) -> HttpResponse:
        """Set `request.site` and `request.role`."""
        request.site = self._site
        request.role = role_of(request.user) if request.user.is_authenticated else ""
        return self._respond(request)


def _for_me(request: Any) -> int:
    """Return how many cases wait for this person; 0 on pages for those who haven't signed in."""
    role = getattr(request, "role", "")
    return waiting_for(request.user.pk, role) if role else 0


def page_context(request: Any) -> dict[str, object]:
    """Return what the frame of every page shows."""
    home = settings.DATASITE
    oidc = home.settings.console.oidc
    return {
        "organisation": home.settings.organisation,
        "killed": compliance.is_killed(home),
        "role": getattr(request, "role", ""),
        "for_me": _for_me(request),
        "person": request.user.username if hasattr(request, "user") else "",
        "provider": oidc.name if oidc else "",
        "by_provider": by_provider(request),
        "confirmed": confirmed_since(request) is not None,
        "here": request.path,
    }
