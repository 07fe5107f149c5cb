"""What is out of order in the store and can't be put right by us: reported once, then passed over.

Claim: at most `MOST_PASSED_OVER` keys are remembered in a process, and at least the last half as many: where others put
more, the oldest are forgotten, and are looked at and reported once more (a quarantine has its own bounds). So what is
remembered takes some 25 MB at most. Not claimed: that of more such keys in one folder, named as messages are, which we
may not remove, none hides a message.
"""

from __future__ import annotations

import time
from itertools import islice

#: More than one look reads of a folder; honest parties give rise to none.
MOST_PASSED_OVER = 50_000


class PassedOver:
    """Keys, each with a mark of what was found there, and for how long it is left alone."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, float]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def add(self, key: str, mark: str = "", rest: float = 0.0) -> None:
        """Pass `key` over from now on; `rests` says so for `rest` seconds."""
        self._known.pop(key, None)  # what is seen again is the newest
        if len(self._known) >= MOST_PASSED_OVER:
            self._known = dict(islice(self._known.items(), len(self._known) // 2, None))
        self._known[key] = mark, time.monotonic() + rest

    def mark(self, key: str) -> str | None:
        """Return what was found there; None where it isn't passed over."""
        known = self._known.get(key)
        return None if known is None else known[0]

    def rests_until(self, key: str) -> float:
        """Return until when it is left alone, by the monotonic clock; 0 where it never was."""
        known = self._known.get(key)
        return 0.0 if known is None else known[1]

    def rests(self, key: str) -> bool:
        """Return whether it is left alone now."""
        return time.monotonic() < self.rests_until(key)

    def forget(self, key: str) -> None:
        """Forget a path that is empty, or in order."""
        self._known.pop(key, None)
