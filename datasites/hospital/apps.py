"""Django's name for this room."""

from __future__ import annotations

from django.apps import AppConfig


class HospitalConfig(AppConfig):
    """The datasite's tables."""

    name = "datasites.hospital"
    label = "hospital"
