"""Ends the work of another thread soon and without a result: at its next step, in its sleep or in its worker."""

from __future__ import annotations

import threading
from typing import Any, Protocol


class Killable(Protocol):
    """A worker, or a process apart."""

    def kill(self) -> Any:
        """End it, from another thread."""


class Halted(BaseException):
    """The service ends, and what was being done is done again at its next start.

    No `Exception`, so that nothing which handles the errors of a submission takes it for one of them.
    """


class Halt:
    """Given to what may be ended, which calls `check` before it writes anything, and shows `watch` its processes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._halted = False
        self._process: Killable | None = None

    def now(self) -> None:
        """End it."""
        with self._lock:
            self._halted, process = True, self._process
        if process is not None:
            process.kill()

    def check(self) -> None:
        """Raise `Halted` once it is to end."""
        if self._halted:
            raise Halted

    def watch(self, process: Killable) -> None:
        """Take this one for the one at work, which ends with the rest, also while it starts."""
        with self._lock:
            self._process, halted = process, self._halted
        if halted:
            process.kill()
