"""Allows one examination at a time in a home, over all threads and processes.

An examination holds the text of the hospital's table in this process's memory, up to `records.MOST_CELLS` encoded
numbers beside it, a process that reads the table (`reading`), and then a worker. **Claim.** However many submissions
come in and however often people examine cases again, that is held once. A submission waits for its turn; a person is
told at once what is at work, and by how many submissions one can be kept waiting is bounded
(`undecided_per_researcher`). Two populations are compared one after the other, too (`patients`). Assumes `flock` on
the home's disk; a process that ends lets go.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from datasites.hospital.cases.halt import Halt
from datasites.hospital.config import Home
from datasites.study.errors import DatasitesError
from datasites.study.files import open_lock, taken

#: Seconds after which one who waits looks again.
_LOOKS = 0.2


class AnotherAtWork(DatasitesError):
    """Another case is being examined; the message names it."""


@contextmanager
def one_at_a_time(home: Home, what: str, halt: Halt | None = None) -> Iterator[None]:
    """Examine `what`, in words for people, while nothing else is examined.

    halt: waits for what is at work now, unless this ends the wait; without it, raises `AnotherAtWork` at once.
    """
    lock = open_lock(home.run / "examining")
    try:
        while not taken(lock):
            if halt is None:
                other = os.pread(lock, 1000, 0).decode(errors="replace") or "another case"
                raise AnotherAtWork(
                    f"{other} is being examined, and only one examination runs at a time; try again when it is "
                    "over, as a record `examined` in the log shows"
                )
            halt.check()
            time.sleep(_LOOKS)
        os.ftruncate(lock, 0)
        os.pwrite(lock, what.encode()[:1000], 0)
        yield
    finally:
        os.close(lock)
