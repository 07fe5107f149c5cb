"""What this party has sent and seen, so that neither it nor anybody else can send two different messages under one
name.

One SQLite file in the party's private folder. It holds digests, and for rounds that still run the sealed envelope,
so that a resend is byte-identical (I6). It is safe against the death of the process at any point; against a power
cut only with `durable`, at some milliseconds per message. Without `durable`, a power cut can lose the last entries:
a resend then may differ, and its recipient refuses it as equivocation, so it fails closed. Of letters seen it holds a
row of some 250 bytes for each path that its party asks for; how many a signed sender can bring about is for those who
ask to bound (of one study, most are a researcher's offers, `MOST_EPOCHS`).
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from datasites.transport.letter import kind_of

SCHEMA = """
CREATE TABLE IF NOT EXISTS sent (
    path TEXT PRIMARY KEY, study TEXT NOT NULL, round INTEGER NOT NULL,
    said TEXT NOT NULL, contents TEXT NOT NULL, envelope BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen (
    path TEXT PRIMARY KEY, contents TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS secret (one INTEGER PRIMARY KEY CHECK (one = 1), value BLOB NOT NULL);
"""


@dataclass(frozen=True)
class SentMessage:
    """One message that was committed to.

    `said`: SHA-256 over body and blob, as the caller gave them. `contents`: SHA-256 over the inner message.
    `envelope`: its sealed bytes, None once the round was collected.
    """

    said: str
    contents: str
    envelope: bytes | None


class MailJournal:
    """The journal of one party; may be used from several threads and processes."""

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        self._database.executescript(SCHEMA)
        self._database.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (secrets.token_bytes(32),))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    @property
    def secret(self) -> bytes:
        """Return 32 random bytes, made once per journal; blob keys are derived from them."""
        with self._lock:
            (value,) = self._database.execute("SELECT value FROM secret").fetchone()
        return bytes(value)

    def sent(self, path: str) -> SentMessage | None:
        """Return what was committed under `path`."""
        with self._lock:
            row = self._database.execute("SELECT said, contents, envelope FROM sent WHERE path = ?", (path,)).fetchone()
        return SentMessage(*row) if row else None

    def commit(self, study: str, round: int, entries: Mapping[str, SentMessage]) -> dict[str, SentMessage]:
        """Commit to `entries`, by path, all or none; returns what stands there: another entry where one came first."""
        if not entries:
            return {}
        insert, select = "INSERT OR IGNORE INTO sent VALUES (?, ?, ?, ?, ?, ?)", "SELECT said, contents, envelope"
        rows = [(path, study, round, one.said, one.contents, one.envelope) for path, one in entries.items()]
        with self._lock, self._database:
            self._database.execute("BEGIN")  # one for all: each alone would write whole pages
            self._database.executemany(insert, rows)
            found = {path: self._database.execute(f"{select} FROM sent WHERE path = ?", (path,)) for path in entries}
            return {path: SentMessage(*cursor.fetchone()) for path, cursor in found.items()}

    def first_seen(self, path: str, contents: str) -> str:
        """Return the digest of the first authentic message under `path`: `contents` itself if this is the first."""
        with self._lock:
            self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (path, contents))
            (first,) = self._database.execute("SELECT contents FROM seen WHERE path = ?", (path,)).fetchone()
        return str(first)

    def forget_letters(self, study: str, round: int, of_kind: Callable[[str], bool]) -> None:
        """Drop the sealed bytes of one round's letters of some kinds; the digests stay."""
        with self._lock, self._database:  # all or none, and none is left open where there is no room
            rows = self._database.execute(
                "SELECT path FROM sent WHERE study = ? AND round = ? AND envelope IS NOT NULL", (study, round)
            ).fetchall()
            paths = [(path,) for (path,) in rows if of_kind(kind_of(path))]
            self._database.execute("BEGIN")  # one for all: each alone would write its pages
            self._database.executemany("UPDATE sent SET envelope = NULL WHERE path = ?", paths)

    def forget_envelopes(self, study: str, first: int, before: int) -> None:
        """Drop the sealed bytes of rounds first ≤ round < before; the digests stay, so nothing can be said twice."""
        with self._lock:
            self._database.execute(
                "UPDATE sent SET envelope = NULL WHERE study = ? AND round >= ? AND round < ?", (study, first, before)
            )
