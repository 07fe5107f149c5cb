"""The process of a datasite: one per home, its parts started in order, each as soon as what it needs is there.

First the lock, then the database, the console, and the loop (`service`). A database or a store that does not answer
yet, as after a power failure, is waited for; a store that is not there or refuses, and settings that are wrong, end
the start with a message.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from datasites.hospital.cases.staging import sweep_staging
from datasites.hospital.config import Home
from datasites.hospital.outages import Outages, waited_for
from datasites.hospital.site import Site, outage_of
from datasites.study.holding import hold
from datasites.transport.store import StoreError, StoreUnreachable


@contextmanager
def only_process(home: Home) -> Iterator[None]:
    """Hold the home's lock; raises `Held` when another process serves it."""
    message = f"{home.root}: a datasite already runs here"
    with hold(home.run / "lock", message, "stop it or choose another folder"):
        try:
            yield
        finally:
            home.ready.unlink(missing_ok=True)


def serve_until(stop: threading.Event, root: Path, console: bool = True) -> None:
    """Serve the datasite at `root`, whose lock is held, until `stop` is set."""
    home = Home.open(root)
    away, outages = partial(_at_start, home), Outages()
    site = waited_for(lambda: Site.open(root), away, outages, stop)
    if site is None:
        return
    # Rooms of the database, which is open from here on.
    from datasites.hospital.console.server import serving
    from datasites.hospital.service import Service

    sweep_staging(home)  # before anybody can begin an examination in the console
    settings = home.settings.console
    with serving(settings.model_copy(update={"enabled": settings.enabled and console})) as address:
        datasite = waited_for(lambda: Service(site, address), away, outages, stop)
        if datasite is not None:
            datasite.serve(stop)


def _at_start(home: Home, error: Exception) -> tuple[str, str] | None:
    """Return `outage_of`, but not for a store that refuses: at a start that is a mistake in the settings."""
    if isinstance(error, StoreError) and not isinstance(error, StoreUnreachable):
        return None
    return outage_of(home, error)
