"""One hospital's service and everybody else, by turns: nothing happens at once, so a run can be repeated.

The service runs in a thread of its own, as `Service.serve` makes it. Wherever it would wait (for the store, for a
while, for its end) it hands over to the others and says until when it sleeps. The others are whoever calls `turn`, as
a rule the researcher's run while it waits for letters. Time passes only when nobody has anything to do.

Work on rows has a thread of its own in the product. Here (`RowsThread`) it is done at once, and counts as done when
the time that it took by the stage's clock has passed: whether it meets its tick is then the same in each run.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from django.db import connections

from datasites.control.sealer import StrictPeerStore
from datasites.enclave.worker_client import Worker
from datasites.hospital.budget import ledger_log
from datasites.hospital.database import this_home
from datasites.hospital.service import Service
from datasites.hospital.site import Site
from datasites.secagg.member import Member
from datasites.transport.store import Store
from tests.adversarial.neighbours.sources import Clock
from tests.adversarial.neighbours.watch import Left, Watch

HOSPITAL = "hospital"
#: Real seconds after which a service that does not hand over is broken.
PATIENCE = 240.0
#: The least time that passes for one who waits for it.
MOMENT = 0.001


class Killed(BaseException):
    """The hospital's process ends here, whatever it is doing."""


class Enough(Exception):
    """Something else than expected has left, and nobody wants to know more."""


class Stop(threading.Event):
    """The service's stop event: whoever waits for it sleeps by the stage's clock."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep, and say whether it was set."""
        self._stage.sleep(3600.0 if timeout is None else timeout)
        return self.is_set()


class RowsThread:
    """Stands for the executor of the product's thread for rows, which it is built like."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._free_at = 0.0

    def submit(self, act: Callable[..., Any], *args: Any) -> Work:
        """Do it now, beside the hospital, whose time stands still; one thing is begun when the one before is done."""
        clock, work = self._stage.clock, Work(self._stage)

        def apart() -> None:
            clock.go_apart()
            clock.pass_time(self._free_at - clock.now)
            try:
                work.set_result(act(*args))
            except Exception as error:
                work.set_exception(error)
            work.done_at = self._free_at = clock.now

        thread = threading.Thread(target=apart, name=f"{HOSPITAL}, rows")
        thread.start()
        thread.join()
        return work

    def shutdown(self, **_: object) -> None:
        """Nothing is left to do."""


class Work(Future[Any]):
    """What was done in a `RowsThread`."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage
        self.done_at = 0.0

    def done(self) -> bool:
        """Whether the hospital's clock is that far."""
        return self._stage.clock.now >= self.done_at - 1e-9


class Stage:
    """The hospital at `home`, its clock, and what leaves it. `others`: called in each turn; True when one did a thing.

    expected: what left in another run; with the first other thing, `turn` raises `Enough`.
    crash: the pattern of a name in the store, or of "mask" and a round's number. When the hospital is about to put or
    to mask it the first time, its process dies.
    """

    def __init__(self, home: Path, expected: list[Left] | None = None) -> None:
        self.home = home
        self.clock = Clock(self.sleep)
        self.watch = Watch(expected)
        self.others: list[Callable[[], bool]] = []
        self.crash = ""
        self.worker: Any = Worker
        self._wakes = 0.0
        self._puts = 0
        self._thread: threading.Thread | None = None
        self._theirs, self._ours = threading.Semaphore(0), threading.Semaphore(0)
        self._stop = Stop(self)
        self._failure: BaseException | None = None
        self.service: Service

    # -- the hospital's process -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the service from what lies in its home."""
        self._stop = Stop(self)
        ledger_log.forget(this_home())  # what the process before had read
        self._thread = threading.Thread(target=self._serve, name=HOSPITAL, daemon=True)
        self._thread.start()
        self._wait()

    def end(self) -> None:
        """End the service as its operator would."""
        self._stop.set()
        while self._thread is not None and self._thread.is_alive():
            self._hand_over()

    def _serve(self) -> None:
        try:
            self.service = Service(Site.open(self.home))
            self.service.serve(self._stop)
        except Killed:
            pass
        except BaseException as error:
            self._failure = error
        finally:
            connections.close_all()
            self._thread = None
            self._ours.release()

    def _may_die(self, moment: str) -> None:
        if self.crash and re.search(self.crash, moment):
            self._die()

    def _die(self) -> None:
        """The files stay as they are now; what Python does on its way out touches other ones, and nobody sees it."""
        self.crash = ""
        self.watch.blind = True
        shutil.copytree(self.home, self._aside)
        raise Killed

    @property
    def _aside(self) -> Path:
        return self.home.with_name("crashed")

    def _revive(self) -> None:
        connections.close_all()
        shutil.rmtree(self.home)
        self._aside.rename(self.home)
        self.watch.blind = False
        self.start()

    def back_up(self) -> None:
        """Copy the home as its operator would: without anchors and what belongs to the process that runs."""
        shutil.copytree(self.home, self._backup, ignore=shutil.ignore_patterns("anchors", "lock", "ready.json"))

    def restore(self, settle: Callable[[], None]) -> None:
        """End the service, put the backup in place of the home, let people settle it, and start again.

        Anchors are on another disk.
        """
        self.end()
        connections.close_all()
        anchors = self.home.with_name("anchors")
        (self.home / "anchors").rename(anchors)
        shutil.rmtree(self.home)
        self._backup.rename(self.home)
        anchors.rename(self.home / "anchors")
        ledger_log.forget(this_home())
        settle()
        self.start()

    @property
    def _backup(self) -> Path:
        return self.home.with_name("backup")

    # -- turns ----------------------------------------------------------------------------------------------------

    def turn(self, until: float) -> None:
        """Let the hospital and the others do what they can; where nobody can, let time pass, at most to `until`."""
        if self.watch.differs:
            raise Enough
        before = self._puts
        if self._thread is not None:
            self._hand_over()
        busy = [act() for act in self.others]
        if self._puts == before and not any(busy):
            self.clock.pass_time(min(until, self._wakes) - self.clock.now)

    def _hand_over(self) -> None:
        self._theirs.release()
        self._wait()

    def _wait(self) -> None:
        if not self._ours.acquire(timeout=PATIENCE):
            raise TimeoutError("the service does not hand over")
        if self._failure is not None:
            raise self._failure
        if self._aside.exists() and self._thread is None:
            self._revive()

    @property
    def in_hospital(self) -> bool:
        """Whether it is the hospital's process that asks."""
        return threading.current_thread().name.startswith(HOSPITAL)

    def sleep(self, seconds: float) -> None:
        """What `time.sleep` is."""
        if self.clock.is_apart or not self.in_hospital:
            self.clock.pass_time(seconds)
            return
        wakes = self.clock.now + seconds
        while True:
            self._wakes = wakes
            self._ours.release()
            self._theirs.acquire()
            if self.clock.now >= wakes - 1e-9 or self._stop.is_set():
                return

    # -- the store and the seals ----------------------------------------------------------------------------------

    def install(self) -> None:
        """Stand between the parties and the store, and beside the hospital when it seals."""
        stage, put, delete, folder = self, Store.put, Store.delete, Store.delete_folder
        encrypt, mask = StrictPeerStore.encrypt, Member.mask

        def changes(
            store: Store, folders: Iterable[str], timeout: float, stop: threading.Event | None = None
        ) -> Iterator[None]:
            return stage._changes(timeout)

        def watched_put(store: Store, key: str, data: bytes | bytearray | memoryview) -> None:
            if stage.in_hospital:
                stage._may_die(key)
                stage.watch.note(stage.clock.now, "put", key, bytes(data))
            stage._puts += 1
            put(store, key, data)

        def watched_delete(store: Store, key: str) -> None:
            if stage.in_hospital:
                stage.watch.note(stage.clock.now, "delete", key)
            delete(store, key)

        def watched_folder(store: Store, key: str) -> int:
            if stage.in_hospital:
                stage.watch.note(stage.clock.now, "delete", key)
            return folder(store, key)

        def watched_encrypt(keys: StrictPeerStore, recipient: str, data: bytes) -> bytes:
            envelope = bytes(encrypt(keys, recipient, data))
            if stage.in_hospital:
                stage.watch.sealed(bytes(data), envelope)
            return envelope

        def watched_mask(member: Member, state: Any, *args: Any, **options: Any) -> Any:
            if stage.in_hospital:
                stage._may_die(f"mask {state.last_round}")
            return mask(member, state, *args, **options)

        Member.mask = watched_mask
        Store.changes = changes
        Store.put = watched_put
        Store.delete = watched_delete
        Store.delete_folder = watched_folder
        StrictPeerStore.encrypt = watched_encrypt
        self.clock.install()

    def _changes(self, timeout: float) -> Iterator[None]:
        until = self.clock.now + max(timeout, MOMENT)
        yield
        while self.clock.now < until - 1e-9:
            if self.in_hospital:
                # Others may have written: looked at in each turn, whether or not time has passed.
                self._wakes = until
                self._ours.release()
                self._theirs.acquire()
                if self._stop.is_set():
                    return
            else:
                self.turn(until)
            yield
