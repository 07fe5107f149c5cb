"""Django's name for the console; it has templates and static files, and no tables."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.contrib.auth.signals import user_login_failed


class ConsoleConfig(AppConfig):
    """The approval console."""

    name = "datasites.hospital.console"
    label = "console"

    def ready(self) -> None:
        """Count failures to sign in, or to confirm a decision, for the audit log."""
        from axes.signals import user_locked_out

        user_login_failed.connect(_failed)
        user_locked_out.connect(_locked_out)


def _failed(credentials: dict[str, Any], request: Any = None, **_: object) -> None:
    from datasites.hospital.people.sign_ins import failed

    if hasattr(request, "site"):  # without a request nobody asks over the network
        confirms = request.user.is_authenticated
        name = credentials.get("username") or ""
        failed(request.site, "confirmation_failed" if confirms else "sign_in_failed", name)


def _locked_out(request: Any, username: str | None = None, **_: object) -> None:
    from datasites.hospital.people.sign_ins import failed

    if hasattr(request, "site"):
        failed(request.site, "locked_out", username or "")
