"""Connects this process to the datasite's database, one datasite per process, and notices its outages.

Away is whatever Django calls operational: no server, a session that was ended, a server that shuts down, a file that is
locked. None of it is damage, and all of it passes: who meets it lets go of the connections (`let_go`), waits, and does
again what was not finished. Where it broke while a transaction was being committed, nobody can say what became of it;
so what is done in one is written to be done again (see `pending`, `compliance`).
"""

from __future__ import annotations

import os
import pkgutil
from pathlib import Path

import django
from django.db import DatabaseError, InterfaceError, OperationalError, connection, connections

from datasites.hospital.config import Home
from datasites.hospital.outages import away
from datasites.hospital.space import full_in_words
from datasites.study.addresses import hidden, shown
from datasites.study.errors import DatasitesError, InputError

#: A database that can't be used now, and will be later.
DATABASE_AWAY = (OperationalError, InterfaceError)


class DatabaseAway(DatasitesError):
    """The database is unavailable where nobody waits for it. `outage`: its name and why."""

    def __init__(self, service: str, reason: str) -> None:
        super().__init__(f"{away(service, reason)}; try again when it is back, and check first whether it was done")
        self.outage = (service, reason)


class DatabaseRefused(DatasitesError):
    """The database answers, and does not let the datasite make its tables."""


def this_home() -> Home:
    """Return the home of the datasite whose database this process is connected to."""
    from django.conf import settings

    home: Home = settings.DATASITE
    return home


def connect(root: Path) -> Home:
    """Set Django up for the datasite at `root`, migrate its tables, and return its home.

    Raises `InputError` when the process is already connected to another datasite, `DatabaseAway` and `DatabaseRefused`.
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
    try:
        if not _migrated():
            from django.core.management import call_command

            call_command("migrate", verbosity=0, interactive=False)
    except DATABASE_AWAY as error:
        let_go()
        raise DatabaseAway(name_of(home), reason_of(home, error)) from error
    except DatabaseError as error:
        raise DatabaseRefused(
            f"{name_of(home)}: {reason_of(home, error)}; allow its user to create tables in a schema of its own"
        ) from error
    return home


def _migrated() -> bool:
    """Say whether the database has every migration of this version, by their names: for most commands it has."""
    from django.apps import apps
    from django.db.migrations.recorder import MigrationRecorder

    wanted = {
        (app.label, module.name)
        for app in apps.get_app_configs()
        for module in pkgutil.iter_modules([f"{app.path}/migrations"])
        if module.name[0] not in "_~"
    }
    return wanted <= MigrationRecorder(connection).applied_migrations().keys()


def name_of(home: Home) -> str:
    """Return the database as shown to people, without its secrets."""
    address = home.settings.database
    return f"database {home.database if address == 'sqlite' else shown(address)}"


def reason_of(home: Home, error: Exception) -> str:
    """Say why it is unavailable: its library's message on one line, without secrets, or that no room is left for it."""
    if home.settings.database == "sqlite" and (full := full_in_words(home)):
        return full
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return hidden("; ".join(lines), home.settings.database)[:500] or type(error).__name__


def let_go() -> None:
    """Close this thread's connections, of which at least one is dead; the next query opens new ones."""
    connections.close_all()
