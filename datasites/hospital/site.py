"""One datasite as its own people and its own service use it: settings, institution key, audit log."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from datasites.hospital.audit.log import AuditLog
from datasites.hospital.config import Home
from datasites.hospital.database import DATABASE_AWAY, DatabaseAway, connect, let_go, name_of, reason_of
from datasites.study.addresses import shown
from datasites.study.identity import Identity
from datasites.transport.store_errors import StoreError

if TYPE_CHECKING:
    from datasites.enclave.template import Template


@dataclass(frozen=True)
class Site:
    """What every action of a hospital needs. Made once per process."""

    home: Home
    identity: Identity
    audit: AuditLog

    @cached_property
    def template(self) -> Template:
        """Say where workers come from; it starts nothing before one is needed. Whoever uses it closes it."""
        # Most commands start no worker.
        from datasites.enclave.template import Template

        return Template(self.home.settings.sandbox)

    @classmethod
    def open(cls, root: Path) -> Site:
        """Connect to the database and open key and audit log; raises `InputError`, `IdentityError` or `AuditError`.

        A passphrase for the institution key is read from DATASITES_PASSPHRASE.
        """
        return cls.of(connect(root))

    @classmethod
    def of(cls, home: Home) -> Site:
        """Do the same for a home whose database this process is connected to."""
        identity = Identity.load(home.key, home.settings.email, os.environ.get("DATASITES_PASSPHRASE"))
        return cls(home, identity, AuditLog(home.audit, identity))


def outage_of(home: Home, error: Exception) -> tuple[str, str] | None:
    """Return the service whose outage raised this, and why; None where none is unavailable. Drops a dead connection."""
    if isinstance(error, DatabaseAway):
        return error.outage
    if isinstance(error, DATABASE_AWAY):
        let_go()
        return name_of(home), reason_of(home, error)
    if isinstance(error, StoreError):
        return error.outage(f"store {shown(home.settings.store)}", waited=True)
    return None
