"""Where bad messages go: a bounded local folder, each with the reason it was refused, for a person to look at.

It keeps evidence; nothing is ever read back from it into the protocol. Claim: it never holds more than `KEEP_ENTRIES`
entries of `KEEP_BYTES` and a reason each, two files an entry (33 MiB in all), and grows by at most `KEEP_PER_HOUR` in
an hour, the log with it; of what comes beyond that, one entry says how many there were: before the next entry, or when
it is closed. So a flood can neither fill a disk or a log, nor push out at once what came before it. What can't be
written (a full disk) leaves no part of an entry, is named in the log and counted, too, and the count is kept until it
is written, or stands in the log at the end: so whoever refuses goes on, and a full disk keeps nobody from refusing or
from closing. Counted from the start of the process.
Not claimed: the evidence of what came while the disk was full, and the count that a kill takes with it.
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
#: More than a person looks at, and few enough that a flood needs hours to push out what came before it.
KEEP_PER_HOUR = 100
HOUR = 3600.0


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
        self._since, self._tried, self._left_out = time.monotonic(), 0, 0
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def keep(self, what: str, reason: str, data: bytes = b"") -> None:
        """Record that `what` was refused for `reason`, with the first 64 KiB of it; or count it.

        It is counted in a flood, and where it can't be written. Raises nothing for that: whoever refuses goes on.
        """
        now = time.monotonic()
        if now - self._since >= HOUR:
            self._since, self._tried = now, 0
        self._tried += 1
        if self._tried > KEEP_PER_HOUR:
            if self._tried == KEEP_PER_HOUR + 1:
                logger.warning("quarantine %s: above %d in an hour; others are counted", self.folder, KEEP_PER_HOUR)
            self._left_out += 1
            return
        try:
            self._write_count()
            self._write(what, reason, data)
        except OSError as error:
            self._left_out += 1
            logger.error("quarantine %s: %s; counted alone: %s: %s", self.folder, error, what, reason[:2000])

    def close(self) -> None:
        """Write down how many were left out since the last entry, if any were; the log says so where it can't."""
        try:
            self._write_count()
        except OSError as error:
            logger.error("quarantine %s: %s; %d that were refused are not counted", self.folder, error, self._left_out)

    def _write_count(self) -> None:
        """As `close`; raises `OSError` where it can't."""
        if self._left_out:
            self._write("flood", f"{self._left_out} more were refused since the entry before this one", b"")
            self._left_out = 0

    def _write(self, what: str, reason: str, data: bytes) -> None:
        """Make room and write one entry, or raise and have written nothing: so nothing is counted twice."""
        entry = Quarantined(what, reason[:2000], time.time(), len(data), hashlib.sha256(data).hexdigest())
        stems = sorted({path.stem for path in self.folder.iterdir()})  # a crash may leave one file of an entry
        for old in stems[: max(0, len(stems) + 1 - KEEP_ENTRIES)]:
            self._remove(old)
        stem = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        try:
            self._write_file(f"{stem}.bin", data[:KEEP_BYTES])
            self._write_file(f"{stem}.json", json.dumps(vars(entry)).encode())
        except BaseException:
            self._remove(stem)
            raise
        logger.warning("quarantined %s: %s", what, entry.reason)

    def _write_file(self, name: str, content: bytes) -> None:
        # Not waited for: nothing rests on an entry, and a flood would have the disk wait for each.
        descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)

    def _remove(self, stem: str) -> None:
        for name in (f"{stem}.json", f"{stem}.bin"):
            (self.folder / name).unlink(missing_ok=True)

    def entries(self) -> list[Quarantined]:
        """Return all that is kept, oldest first; an entry cut off by a crash is passed over."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                found.append(Quarantined(**json.loads(path.read_bytes())))
            except (ValueError, TypeError, OSError):
                continue
        return found
