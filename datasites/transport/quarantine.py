"""Where bad messages go: a bounded local folder, each with the reason it was refused, for a person to look at.

It keeps evidence; nothing is ever read back from it into the protocol. It holds the newest entries only, and only
the start of each, so that a flood of bad messages can't fill the disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

KEEP_ENTRIES = 500
KEEP_BYTES = 64 * 1024


@dataclass(frozen=True)
class Quarantined:
    """One refused message: `what` names it (a store key), `reason` says which rule it broke."""

    what: str
    reason: str
    at: float
    size: int
    sha256: str


class Quarantine:
    """A folder (mode 0700) of refused messages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def keep(self, what: str, reason: str, data: bytes = b"") -> None:
        """Record that `what` was refused for `reason`, with the first 64 KiB of it."""
        entry = Quarantined(what, reason[:2000], time.time(), len(data), hashlib.sha256(data).hexdigest())
        stem = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        for name, content in ((f"{stem}.bin", data[:KEEP_BYTES]), (f"{stem}.json", json.dumps(vars(entry)).encode())):
            descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
        logger.warning("quarantined %s: %s", what, entry.reason)
        stems = sorted(path.stem for path in self.folder.glob("*.json"))
        for old in stems[:-KEEP_ENTRIES]:
            (self.folder / f"{old}.json").unlink(missing_ok=True)
            (self.folder / f"{old}.bin").unlink(missing_ok=True)

    def entries(self) -> list[Quarantined]:
        """All that is kept, oldest first; an entry cut off by a crash is passed over."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                found.append(Quarantined(**json.loads(path.read_bytes())))
            except (ValueError, TypeError, OSError):
                continue
        return found
