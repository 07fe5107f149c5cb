"""Connects this process to the datasite's database; one datasite per process."""

from __future__ import annotations

import os
from pathlib import Path

import django
from django.core.management import call_command

from datasites.hospital.config import Home
from datasites.study.errors import InputError


def this_home() -> Home:
    """The home of the datasite whose database this process is connected to."""
    from django.conf import settings

    home: Home = settings.DATASITE
    return home


def connect(root: Path) -> Home:
    """Set Django up for the datasite at `root`, migrate its tables, and return its home.

    Raises `InputError` when the process is already connected to another datasite.
    """
    home = Home.open(root)
    connected = os.environ.get("DATASITES_HOME")
    from django.conf import settings

    if settings.configured and connected != str(home.root):
        raise InputError(f"{home.root}: this process already serves {connected}; start another process")
    if not settings.configured:
        os.environ["DATASITES_HOME"] = str(home.root)
        os.environ["DJANGO_SETTINGS_MODULE"] = "datasites.hospital.settings"
        django.setup()
    call_command("migrate", verbosity=0, interactive=False)
    return home
