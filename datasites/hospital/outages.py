"""Outages of outside services: reported in the same words; the datasite waits for database and store.

Nothing waits for an identity provider: somebody who signs in is told so, and tries again (`console.provider`). There is
no other service; the datasite sends no mail.

Claim: while database or store is unavailable the datasite ends nothing, forgets nothing and charges nothing; it tries
again every `RETRY` seconds, and says so at once, then once a minute, and when the service is back. Assumption: the
service comes back with what it had acknowledged; a database that lost some of it (a fail-over to a replica that lagged)
differs from the audit log and is settled by people, as after a restore.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

#: Seconds between two tries, and between two lines in the log while nothing changes.
RETRY, REMIND = 2.0, 60.0

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def away(service: str, reason: str) -> str:
    """Return the one sentence about a service that is unavailable; a caller that waits adds that it does."""
    return f"{service} is unavailable: {reason}"


class Outages:
    """What is unavailable now, by service."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._reported: dict[str, float] = {}

    def wait(self, service: str, reason: str, stop: threading.Event) -> None:
        """Say that `service` is unavailable, unless that was said a moment ago, and rest until it is tried again."""
        now = time.monotonic()
        self._since.setdefault(service, now)
        if now - self._reported.get(service, now - REMIND) >= REMIND:
            self._reported[service] = now
            log.warning("%s; waiting, tried again every %g s", away(service, reason), RETRY)
        stop.wait(RETRY)

    def over(self, service: str = "") -> None:
        """Say that a service is back, if it was away; without one, all that were."""
        for name in [service] if service else list(self._since):
            if name in self._since:
                log.warning("%s is back after %.0f s", name, time.monotonic() - self._since.pop(name))
                self._reported.pop(name)


def waited_for(
    act: Callable[[], Result],
    outage_of: Callable[[Exception], tuple[str, str] | None],
    outages: Outages,
    stop: threading.Event,
) -> Result | None:
    """Return the result of `act`, as soon as no service that it needs is unavailable; None once `stop` is set.

    outage_of: service and reason if an error says that one is unavailable, None for any other error, which is raised.
    """
    while not stop.is_set():
        try:
            result = act()
        except Exception as error:
            outage = outage_of(error)
            if outage is None:
                raise
            outages.wait(*outage, stop)
        else:
            outages.over()
            return result
    return None
