"""The two addresses of signing in with the organisation's provider; they do not exist where none is configured."""

from __future__ import annotations

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.views.decorators.http import require_safe


@require_safe
def begin(request: HttpRequest) -> HttpResponse:
    """Send the browser to the provider."""
    return _flow("Begin", request)


@require_safe
def finish(request: HttpRequest) -> HttpResponse:
    """Receive the browser back from the provider."""
    return _flow("Finish", request)


def _flow(step: str, request: HttpRequest) -> HttpResponse:
    if settings.DATASITE.settings.console.oidc is None:
        raise Http404
    from datasites.hospital.console import provider

    answer: HttpResponse = getattr(provider, step).as_view()(request)
    return answer
