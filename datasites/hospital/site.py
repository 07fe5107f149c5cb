"""One datasite as its own people and its own service hold it: settings, institution key, audit log."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from datasites.hospital.audit import AuditLog
from datasites.hospital.config import Home
from datasites.hospital.database import connect
from datasites.study.identity import Identity


@dataclass(frozen=True)
class Site:
    """What every action of a hospital needs. Made once per process."""

    home: Home
    identity: Identity
    audit: AuditLog

    @classmethod
    def open(cls, root: Path) -> Site:
        """Connect to the database and open key and audit log; raises `InputError`, `IdentityError` or `AuditError`.

        A passphrase for the institution key is read from DATASITES_PASSPHRASE.
        """
        home = connect(root)
        identity = Identity.load(home.key, home.settings.email, os.environ.get("DATASITES_PASSPHRASE"))
        return cls(home, identity, AuditLog(home.audit, identity))
