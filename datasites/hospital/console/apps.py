"""Django's name for the console; it has templates and static files, and no tables."""

from __future__ import annotations

from django.apps import AppConfig


class ConsoleConfig(AppConfig):
    """The approval console."""

    name = "datasites.hospital.console"
    label = "console"
