"""How often the work on a round's rows has failed, kept on the disk until people have looked.

A worker that fails may do so for a row, so a round is tried once more and then never again by itself: silence tells one
bit, once. A restart of the service in between must not allow another attempt.

Only a failure that the service has lived to see counts, since its own end may have any cause. Not claimed: work that
takes the service down with it, as where the system ends both for want of memory, is tried again at each start; nothing
leaves by that but the service's absence. A cgroup per worker (`enclave.cgroup`) bounds what a worker can take.
"""

from __future__ import annotations

import json

from datasites.hospital.config import Home
from datasites.study.files import replace_durably

#: Failures after which people have to look.
MOST = 2


class Failures:
    """Those of one study's newest round. In the private folder, and nowhere else: they may tell of a row (I16)."""

    def __init__(self, home: Home, study_hash: str) -> None:
        self._path = home.secagg / study_hash / "failures.json"

    def of(self, round: int) -> int:
        """Say how often the work of this round has failed."""
        if not self._path.exists():
            return 0
        known = json.loads(self._path.read_bytes())
        return int(known["failures"]) if known["round"] == round else 0

    def add(self, round: int) -> int:
        """Count one more failure, on the disk when this returns; returns how often."""
        failures = self.of(round) + 1
        replace_durably(self._path, json.dumps({"round": round, "failures": failures}).encode())
        return failures

    def answered(self) -> None:
        """Note that people have looked: a round that failed too often is tried again."""
        if self._path.exists() and json.loads(self._path.read_bytes())["failures"] >= MOST:
            self._path.unlink()
