"""The datasite's service: one process that takes submissions in, records decisions in syft, and runs approved studies.

One per home folder, held by a lock. The loop syncs syft at its own slow pace, lets each running study do what it can,
and then sleeps until a letter comes. People act through the database (`review`), which the loop reads again each turn;
it imports no torch and runs no submitted code.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from datasites.enclave.sandbox import Sandbox
from datasites.hospital import admission
from datasites.hospital.config import Home
from datasites.hospital.models import Case
from datasites.hospital.rounds import StudyRun
from datasites.hospital.setup import open_control
from datasites.hospital.site import Site
from datasites.study.errors import DatasitesError, InputError
from datasites.study.identity import Roster
from datasites.transport.mailroom import Mailroom, letter_folder
from datasites.transport.store import StoreError

READY_FILE = "ready.json"

log = logging.getLogger(__name__)


@contextmanager
def only_process(home: Home) -> Iterator[None]:
    """Hold the home's lock; raises `InputError` when another process serves it."""
    home.run.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home.run / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(f"{home.root}: a datasite already runs here; stop it or choose another folder") from error
    try:
        yield
    finally:
        (home.run / READY_FILE).unlink(missing_ok=True)
        os.close(descriptor)


class Datasite:
    """A running datasite. Build it, then `serve` until the stop event. `console`: where its pages are, if anywhere."""

    def __init__(self, site: Site, console: str = "") -> None:
        self._site = site
        self._console = console
        self._home = site.home
        for warning in Sandbox(self._home.settings.sandbox).warnings:
            log.warning("%s", warning)
            site.audit.append("sandbox_warning", reason=warning)
        self._control = open_control(site)
        self._store = self._control.store
        self._mailroom = Mailroom(
            site.identity.email, self._store, self._control.sealer(), self._home.transport / "mail", durable=True
        )
        self._runs: dict[int, StudyRun] = {}
        self._roster_read = 0.0
        self._next_sync = 0.0

    def serve(self, stop: threading.Event) -> None:
        """Run until `stop` is set."""
        self._publish()
        self._site.audit.append("started", pid=os.getpid())
        ready = {"pid": os.getpid(), "email": self._control.email, "console": self._console}
        written = self._home.run / f".{READY_FILE}"
        written.write_text(json.dumps(ready))
        written.replace(self._home.run / READY_FILE)
        log.info("ready: %s", self._home.root)
        try:
            while not stop.is_set():
                self._turn(stop)
        finally:
            for run in self._runs.values():
                run.close()
            self._mailroom.close()
            self._control.close()
            self._site.audit.append("ended")

    def _turn(self, stop: threading.Event) -> None:
        try:
            if time.monotonic() >= self._next_sync:
                self._pin()
                self._sync()
                self._next_sync = time.monotonic() + self._home.settings.control_seconds
            self._follow_cases()
            # Taken before looking, so that what comes in between ends the sleep at once.
            folders = self._folders()
            before = self._store.snapshot(folders)
            busy = False
            for run in list(self._runs.values()):
                while run.step() and not stop.is_set():
                    busy = True
            if not busy:
                left = max(0.05, self._next_sync - time.monotonic())
                self._store.wait(folders, left, stop, since=before)
        except StoreError as error:
            log.warning("store: %s", error)
            stop.wait(2.0)

    def _folders(self) -> list[str]:
        """Where something for this datasite would appear."""
        mail = {letter_folder(run.study_hash, self._control.email) for run in self._runs.values()}
        return sorted(mail | set(self._control.folders()))

    def _publish(self) -> None:
        for dataset in self._home.settings.datasets:
            self._control.publish_dataset(dataset.name, self._home.root / dataset.mock, dataset.summary)

    def _pin(self) -> None:
        """Follow the pinned roster: new researchers become peers, revoked ones stop being."""
        try:
            changed = self._home.roster.stat().st_mtime
        except FileNotFoundError:
            return
        if changed != self._roster_read:
            roster = Roster.load(self._home.roster)
            self._control.pin(roster)
            self._control.accept_peers([entry.email for entry in roster.entries if entry.role == "researcher"])
            self._roster_read = changed

    def _sync(self) -> None:
        self._control.sync()
        known = set(Case.objects.values_list("job_name", "submitted_by"))
        for job in self._control.jobs():
            if (job.name, job.submitted_by) not in known:
                log.info("submission %s of %s", job.name, job.submitted_by)
                row = admission.admit(self._site, job)
                log.info("case %d: %s %s", row.pk, row.state, row.note)
        self._record_decisions()

    def _record_decisions(self) -> None:
        """Put into syft what people decided here, with the hash that they decided on."""
        recorded = False
        for row in Case.objects.filter(recorded_in_syft=False):
            if row.state in Case.ACTIVE:
                self._control.record_approval(row.job_name, f"approved {row.approval_hash}", row.submitted_by)
            elif row.state in (Case.State.REJECTED, Case.State.REFUSED):
                self._control.record_rejection(row.job_name, row.note[:1900] or "rejected", row.submitted_by)
            else:
                continue
            row.recorded_in_syft = True
            row.save(update_fields=["recorded_in_syft"])
            recorded = True
        if recorded:
            self._control.sync()

    def _follow_cases(self) -> None:
        """Start following cases that were approved, and let go of those that have ended."""
        open_states = (*Case.ACTIVE, Case.State.STOPPED)
        wanted = {row.pk: row for row in Case.objects.filter(state__in=open_states)}
        for pk in [pk for pk in self._runs if pk not in wanted]:
            self._runs.pop(pk).close()
        for pk, row in wanted.items():
            if pk not in self._runs and row.state != Case.State.STOPPED:
                try:
                    self._runs[pk] = StudyRun(self._site, self._mailroom, row)
                except (DatasitesError, ValueError) as error:
                    log.error("case %d: %s", pk, error)
                    self._site.audit.append("stopped", case=pk, reason=str(error)[:500])
                    Case.objects.filter(pk=pk).update(state=Case.State.STOPPED, note=str(error))
