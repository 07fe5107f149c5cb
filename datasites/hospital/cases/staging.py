"""Folders in which an examination encodes records, before the case takes them.

Claim: of an examination that was killed, the encoded rows are removed when the datasite next starts, before its console
serves; of one that runs, in whichever process, nothing is removed. If one runs at that moment (`review recheck` beside
a service that starts), all stay until the start after. Proof: records are encoded within
`examination_lock.one_at_a_time`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from datasites.hospital.cases.examination_lock import AnotherAtWork, one_at_a_time
from datasites.hospital.config import Home

_PREFIX = ".staging-"


def new_staging(home: Home) -> Path:
    """Create a folder for the encoded records of one examination, mode 0700, in the private folder."""
    home.prepared.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Path(tempfile.mkdtemp(dir=home.prepared, prefix=_PREFIX))


def sweep_staging(home: Home) -> None:
    """Remove encoded rows that killed examinations have left half made, unless one runs now."""
    try:
        with one_at_a_time(home, "what killed examinations have left"):
            for left in home.prepared.glob(f"{_PREFIX}*"):
                shutil.rmtree(left, ignore_errors=True)
    except AnotherAtWork:
        return
