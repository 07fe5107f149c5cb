"""When to look whether a letter still lies in the store: after growing pauses, until its answer has come.

An untrusted store may lose a letter. Claim: of a letter that waits for its answer, the sender notices the loss within
`FIRST` seconds, or within as long as it had lain there by then, and at most `LONGEST`; whoever asks `due` then puts it
again. So one deleted letter costs seconds. Assumes that `due` is asked in time. A store that loses every letter makes
its sender put each again ever more rarely, so this costs neither side much. The pauses follow the clock alone (I16).
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: Seconds until the first look, and between two at most; each pause is twice the one before.
FIRST, LONGEST = 2.0, 60.0

Posted = tuple[str, int, str]
"""(recipient, round, kind)."""


class Repeats:
    """Letters that wait for their answers."""

    def __init__(self, first: float = FIRST, longest: float = LONGEST) -> None:
        self._first, self._longest = first, longest
        self._next: dict[Posted, tuple[float, float]] = {}

    def begin(self, letter: Posted) -> None:
        """Note that a file was put; one that was put before keeps its pauses."""
        self._next.setdefault(letter, (time.monotonic() + self._first, self._first))

    def end(self, over: Callable[[Posted], bool]) -> None:
        """Those for which `over` is true wait for nothing any more."""
        self._next = {letter: when for letter, when in self._next.items() if not over(letter)}

    def due(self) -> list[Posted]:
        """Return letters to look for now; each of them is due again after twice the pause."""
        now = time.monotonic()
        found = [letter for letter, (moment, _) in self._next.items() if moment <= now]
        for letter in found:
            pause = min(2 * self._next[letter][1], self._longest)
            self._next[letter] = (now + pause, pause)
        return found

    @property
    def next_due(self) -> float | None:
        """Return when `due` has something, by the monotonic clock; None when nothing waits."""
        return min((moment for moment, _ in self._next.values()), default=None)
