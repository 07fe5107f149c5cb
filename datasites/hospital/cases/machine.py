"""How studies and submissions share this machine: whose turn it is, and who waits for whom.

Rows are worked on one study after the other (`Machine`). A round is *at work* from when its letter is read until its
release leaves, at a tick that is public; for how long its rows are really worked on is not. Where people, the study's
place in the store or an unavailable service keep it from leaving then, it is at work again only while it leaves. A
letter that waits for a worker to be started (`ticks`) is not read yet, and keeps the machine from nobody. `AtWork` says
so to every process of the home, and a rehearsal stands still meanwhile (`standing_back`): its worker gets no processor,
and its clock stops, by which its deadlines run and a round's ticks and its worker's start are measured.

**Claim (I16).** What a rehearsal shows (outcome, ticks, when it ends) follows from the submission, the mock rows, the
machine, public figures and *when* rounds are at work, not from how long the rows of another study take; and a rehearsal
takes no processor from a round, so it makes none late and ends none by a deadline. No round waits for one. Assumptions:
this process is given the processor once in `LOOKS` seconds, for which both may run side by side when a round begins, as
they do while a rehearsal's sandbox is made (milliseconds); workers are on this machine. Not claimed: a GPU, on which
kernels that a worker has queued go on while its process stands still; memory, of the machine and of a GPU, which a
worker keeps meanwhile: a machine holds two workers of `sandbox.limits`, and so must its GPU. Nor caches and the disk; a
worker that is being started with a study's rows outside of a round (`RowWork.start`), the hospital's table as it is
read, and the interpreter of this process in either, beside which a rehearsal goes on: these show in it as a machine's
load does. A rehearsal waits for as long as rounds follow each other without a gap.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datasites.enclave.worker_client import Worker
from datasites.hospital.config import Home
from datasites.study.files import open_lock

#: Seconds after which a rehearsal looks again whether a round is at work; a tick.
LOOKS = 0.05
#: `struct flock` of 64-bit Linux: kind, whence, start, length, process.
_FLOCK = "hhqqi4x"

log = logging.getLogger(__name__)


class Machine:
    """What the studies of one datasite share.

    Rows are worked on one round after the other, in the order in which rounds were begun, which is that in which they
    are due. Workers are started with rows one after the other, each in a span of its own.
    """

    def __init__(self) -> None:
        #: When the round that was begun last leaves, by the monotonic clock: public, unlike when its work is done. None
        #: is begun before its worker is taken to have its rows, so this holds ticks of rounds and no start of a worker.
        self.free_at = 0.0
        #: When the worker that is given rows last is taken to have them.
        self._loaded_at = 0.0
        self._rounds: deque[object] = deque()
        self._moved = threading.Condition()

    def load(self, now: float, seconds: float) -> tuple[float, float]:
        """Take the next span of `seconds` for the start of a worker with rows: when it begins, and when it is over."""
        begins = max(now, self._loaded_at)
        self._loaded_at = begins + seconds
        return begins, self._loaded_at

    def enter(self, work: object) -> None:
        """Let the rows of this round be worked on after those of all that were entered before."""
        with self._moved:
            self._rounds.append(work)

    def await_turn(self, work: object, seconds: float) -> bool:
        """Wait until it is this round's turn, for so long at most; whether it is."""
        with self._moved:
            return self._moved.wait_for(lambda: self._rounds[0] is work, seconds)

    def leave(self, work: object) -> None:
        """Let the next one have its turn, whether or not this one had its own."""
        with self._moved:
            self._rounds.remove(work)
            self._moved.notify_all()


class AtWork:
    """Whether a round of one study is at work, for all processes of the home. A process that ends says no."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._lock: int | None = None

    def begin(self) -> None:
        """Say so. Waits for nobody: any number may, and who asks takes no lock. Where it raises, it is not said."""
        if self._lock is None:
            lock = _opened(self._home)
            try:
                # Not by `study.files`: this kind of lock can be asked for without being taken (`rounds_at_work`).
                fcntl.fcntl(lock, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, 0, 0, 0, 0))
            except BaseException:
                os.close(lock)
                raise
            self._lock = lock

    def end(self) -> None:
        """Say so no longer."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def rounds_at_work(home: Home) -> bool:
    """Say whether some round of the home is at work."""
    lock = _opened(home)
    try:
        found = fcntl.fcntl(lock, fcntl.F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0))
    finally:
        os.close(lock)
    return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)


@contextmanager
def standing_back(home: Home) -> Iterator[Callable[[Worker], None]]:
    """Give what lets a worker stand still, from then on, while a round is at work."""
    over, threads = threading.Event(), list[threading.Thread]()

    def watch(worker: Worker) -> None:
        warned = False
        while True:
            try:
                _look(home, worker)
            except Exception as error:
                if not warned:
                    log.warning("rehearsal: can't see whether a round is at work, so it stands still: %s", error)
                warned = True
            if over.wait(LOOKS):
                return

    def begin(worker: Worker) -> None:
        thread = threading.Thread(target=watch, args=(worker,), name="datasites-standing-back", daemon=True)
        thread.start()
        threads.append(thread)

    try:
        yield begin
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _look(home: Home, worker: Worker) -> None:
    """Let the worker stand still where a round is at work, or where that can't be seen, and else go on."""
    try:
        at_work = rounds_at_work(home)
    except OSError:
        worker.pause()
        raise
    worker.pause() if at_work else worker.resume()


def _opened(home: Home) -> int:
    return open_lock(home.run / "rounds")
