"""Folders in which an examination encodes records, before the case takes them.

Claim: of an examination that was killed, the encoded rows are removed when the datasite next starts, before its console
serves; of one that runs, in whichever process, nothing is removed. If one runs at that moment (`review recheck` beside
a service that starts), all stay until the start after. Whoever encodes holds a shared lock, which ends with its process
however that ends. Assumes a file system that keeps locks among all processes of the home.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from datasites.hospital.config import Home

_PREFIX = ".staging-"


@dataclass(frozen=True)
class Staging:
    """A folder for the encoded records of one examination, mode 0700, in the private folder."""

    folder: Path
    lock: IO[bytes]

    @classmethod
    def begin(cls, home: Home) -> Staging:
        """A new folder, which no `sweep_staging` removes until it is dropped."""
        home.prepared.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _lock_file(home)
        fcntl.flock(lock, fcntl.LOCK_SH)
        return cls(Path(tempfile.mkdtemp(dir=home.prepared, prefix=_PREFIX)), lock)

    def drop(self) -> None:
        """Remove it with what was not taken out of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.close()


def sweep_staging(home: Home) -> None:
    """Remove encoded rows that killed examinations have left half made, unless one runs now."""
    with _lock_file(home) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        for left in home.prepared.glob(f"{_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)


def _lock_file(home: Home) -> IO[bytes]:
    home.run.mkdir(parents=True, exist_ok=True)
    return (home.run / "staging.lock").open("a+b")
