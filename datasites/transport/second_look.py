"""Half-written files: what is no message yet may become one, so it is looked at again before it is refused.

Tools that carry a shared folder to another machine, and some servers, write a file in place: for a moment it is there
and is cut off. Claim: a file that is whole within `settles` seconds of the first look at it is never refused for having
been cut off; one that stays as it was is refused at the second look; one that changes all the time is refused at the
fifth look at the latest, after 15 times `settles`. Assumes that whoever reads asks `is_final` before refusing. In a
flood, from `MOST_DOUBTS` such files on, further ones are refused at the first look, so what is remembered is bounded;
of those that nobody asked about for `GIVEN_UP` seconds after they were due, room is made.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

#: Files that are remembered as perhaps half written. Honest parties have a few on their way to us at a time.
MOST_DOUBTS = 1_000
#: Looks at a file that is another one each time.
MOST_LOOKS = 5
#: Seconds after which a file that was to be looked at again is taken to be gone. Each is asked about at every sync.
GIVEN_UP = 600.0


@dataclass(frozen=True)
class _Doubt:
    """mark: what was found. due: when it may be looked at again, by the monotonic clock."""

    mark: str
    due: float
    looks: int


class SecondLook:
    """What was no message when it was looked at, by its key in the store. settles: seconds; 0 to refuse at once."""

    def __init__(self, settles: float) -> None:
        self._settles = settles
        self._doubts: dict[str, _Doubt] = {}

    def is_final(self, key: str, mark: str) -> bool:
        """Return whether `key`, now no message but the contents `mark`, may be refused; else look again later."""
        known, now = self._doubts.get(key), time.monotonic()
        if known is None and len(self._doubts) >= MOST_DOUBTS:
            self._doubts = {one: doubt for one, doubt in self._doubts.items() if now < doubt.due + GIVEN_UP}
        if known is None and (self._settles <= 0 or len(self._doubts) >= MOST_DOUBTS):
            return True
        if known is None:
            self._doubts[key] = _Doubt(mark, now + self._settles, 1)
            return False
        if now < known.due:
            return False
        if known.mark == mark or known.looks + 1 >= MOST_LOOKS:
            del self._doubts[key]
            return True
        self._doubts[key] = _Doubt(mark, now + self._settles * 2**known.looks, known.looks + 1)
        return False

    def __contains__(self, key: str) -> bool:
        """Return whether `key` was looked at, and is to be looked at again."""
        return key in self._doubts

    def waits(self, key: str) -> bool:
        """Return whether it is too early to look at `key` again."""
        known = self._doubts.get(key)
        return known is not None and time.monotonic() < known.due

    def forget(self, key: str) -> None:
        """Forget a path that is empty, or a message after all."""
        self._doubts.pop(key, None)

    @property
    def due(self) -> float | None:
        """Return when the next second look is due, by the monotonic clock; None when none is to come."""
        now = time.monotonic()
        return min((doubt.due for doubt in self._doubts.values() if doubt.due > now), default=None)
