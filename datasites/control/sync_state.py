"""What the control plane remembers across restarts: messages handled, files delivered, versions seen.

One SQLite file in the party's private folder. Every entry is written after the act it records, and every act can be
repeated without harm, so a crash between the two costs a repetition and loses nothing. What others make it remember is
bounded by its callers: messages by `MOST_HANDLED`, files and mocks by what is kept of them, peers by the roster. Where
the file can't be read or written now (a full disk), each call raises `OSError`, and changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: Messages of one channel that are remembered as handled, some 200 bytes each: years of what an honest party sends.
MOST_HANDLED = 200_000
#: What the file holds as a number.
LARGEST_NUMBER = 2**63 - 1

SCHEMA = """
CREATE TABLE IF NOT EXISTS handled (channel TEXT, name TEXT, PRIMARY KEY (channel, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leaving (channel TEXT, name TEXT, PRIMARY KEY (channel, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS delivered (recipient TEXT, path TEXT, hash TEXT, PRIMARY KEY (recipient, path))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS numbered (recipient TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS applied (peer TEXT, path TEXT, number INTEGER NOT NULL, PRIMARY KEY (peer, path))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS mocks (owner TEXT, name TEXT, version INTEGER NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (owner, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS peers (email TEXT PRIMARY KEY, entry TEXT NOT NULL) WITHOUT ROWID;
"""


class SyncLog:
    """The control plane's memory of one party."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._path, self._lock = path, threading.RLock()
        self._database = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.executescript(SCHEMA)
        counts = self._database.execute("SELECT channel, COUNT(*) FROM handled GROUP BY channel")
        self._handled: dict[str, int] = dict(counts)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one thread: a change is made whole or not at all."""
        try:
            with self._lock, self._database as database:  # commits, or rolls back
                database.execute("BEGIN")
                yield database
        except sqlite3.OperationalError as error:
            raise OSError(f"{self._path}: {error}; check its disk; nothing is lost") from error

    def _run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._opened() as database:
            return database.execute(statement, values).fetchall()

    def handled(self, channel: str, name: str) -> bool:
        """Return whether the message `name` of `channel` was handled before."""
        return bool(self._run("SELECT 1 FROM handled WHERE channel = ? AND name = ?", channel, name))

    def is_being_removed(self, channel: str, name: str) -> bool:
        """Return whether a message that was handled has perhaps not left the store yet; any other one is a replay."""
        return bool(self._run("SELECT 1 FROM leaving WHERE channel = ? AND name = ?", channel, name))

    def mark_handled(self, channel: str, name: str) -> None:
        """Record that it was handled and is to leave the store."""
        with self._opened() as database:
            added = database.execute("INSERT OR IGNORE INTO handled VALUES (?, ?)", (channel, name)).rowcount
            database.execute("INSERT OR IGNORE INTO leaving VALUES (?, ?)", (channel, name))
        self._handled[channel] = self._handled.get(channel, 0) + max(added, 0)

    def is_full(self, channel: str) -> bool:
        """Return whether no further message of `channel` is remembered, so that none may be taken."""
        with self._lock:
            return self._handled.get(channel, 0) >= MOST_HANDLED

    def mark_left(self, channel: str, name: str) -> None:
        """Record that it has left the store."""
        self._run("DELETE FROM leaving WHERE channel = ? AND name = ?", channel, name)

    def delivered(self, recipient: str) -> dict[str, str]:
        """Return the path → hash of the version that `recipient` was last sent."""
        return dict(self._run("SELECT path, hash FROM delivered WHERE recipient = ?", recipient))

    def mark_delivered(self, recipient: str, files: Mapping[str, str]) -> None:
        """Record that these versions are in `recipient`'s outbox."""
        rows = [(recipient, path, hash) for path, hash in files.items()]
        with self._opened() as database:
            database.executemany("INSERT OR REPLACE INTO delivered VALUES (?, ?, ?)", rows)

    def forget_delivered(self, recipient: str, folder: str) -> None:
        """Send what lies below `folder` (with its "/") once more."""
        self._run(
            "DELETE FROM delivered WHERE recipient = ? AND substr(path, 1, ?) = ?", recipient, len(folder), folder
        )

    def next_number(self, recipient: str) -> int:
        """Return the number of the next message to `recipient`: it always rises, whatever the clock does.

        It starts from the clock (milliseconds), so that a party that lost this file is still ahead of its past.
        """
        with self._lock:
            row = self._run("SELECT number FROM numbered WHERE recipient = ?", recipient)
            number = max(int(time.time() * 1000), (row[0][0] + 1) if row else 0)
            self._run("INSERT OR REPLACE INTO numbered VALUES (?, ?)", recipient, number)
            return number

    def applied(self, peer: str, path: str) -> int:
        """Return the number of the message whose version of `path` we hold; -1 when none."""
        row = self._run("SELECT number FROM applied WHERE peer = ? AND path = ?", peer, path)
        return int(row[0][0]) if row else -1

    def mark_applied(self, peer: str, path: str, number: int) -> None:
        """Record it."""
        self._run("INSERT OR REPLACE INTO applied VALUES (?, ?, ?)", peer, path, number)

    def mock(self, owner: str, name: str) -> tuple[int, str] | None:
        """Return (version, digest) of the newest mock of that dataset that we have published or seen."""
        row = self._run("SELECT version, digest FROM mocks WHERE owner = ? AND name = ?", owner, name)
        return (int(row[0][0]), str(row[0][1])) if row else None

    def mark_mock(self, owner: str, name: str, version: int, digest: str) -> None:
        """Record it."""
        self._run("INSERT OR REPLACE INTO mocks VALUES (?, ?, ?, ?)", owner, name, version, digest)

    def peers(self) -> dict[str, dict[str, Any]]:
        """Return Syft's list of peers: e-mail → state and bundle."""
        return {email: json.loads(entry) for email, entry in self._run("SELECT email, entry FROM peers")}

    def mark_peer(self, email: str, entry: Mapping[str, Any]) -> None:
        """Record it."""
        self._run("INSERT OR REPLACE INTO peers VALUES (?, ?)", email, json.dumps(dict(entry)))
