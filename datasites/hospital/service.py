"""The datasite's service: one process that takes submissions in, records decisions in syft, and runs approved studies.

One per home folder, held by a lock. The loop syncs syft at its own slow pace, sooner where something came for it, lets
each running study do what it can, and then sleeps until a letter comes. People act through the database (`review`),
which the loop reads again each turn; it imports no torch and runs no submitted code.

What goes wrong with one study, one party or one submission is written down and stays there; the others go on. A
database or store that is unavailable is waited for, whenever that happens (`outages`): nothing is lost, and nothing is
charged, released or sent twice. Only a damaged audit log ends the service (I14).

Claim: what others lay into the store for one study delays another's step by at most `STEPS_PER_TURN` steps of each
study, whose letters, names and bytes are bounded (`mailroom`, `rounds.run`, `rounds.setup`), and by one sync
(`guards`). Assumes a store that answers; each step waits for it. No step waits while a submission is examined
(`submissions`).

Claim (I16): when `ended` is logged depends on no row: not on how long a table that is being read or a worker that is
being given its rows still takes, for which only the process waits. Proof: it is logged before that wait, once no
submission begins anything more that looks at rows or that it would write (`halt`). It says that no study has a turn any
more. What others write, who act in console or command line, may come after it, and so may the one record that a
submission's thread had come to, at its tick. Not claimed: when the process ends, and so when a supervisor that waits
for that starts the next one, which logs `started`.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from django.db import close_old_connections

from datasites.hospital.audit.entered import pinned_by_people
from datasites.hospital.budget import ledger_log, pending, withdrawn
from datasites.hospital.budget.ledger import release_what_is_left
from datasites.hospital.budget.population import open_populations
from datasites.hospital.budget.reconcile import require_one_story
from datasites.hospital.cases.machine import Machine
from datasites.hospital.cases.owed import settle, settle_all
from datasites.hospital.cases.review import LONGEST_MESSAGE
from datasites.hospital.cases.submissions import Submissions
from datasites.hospital.cases.summary import Upkeep
from datasites.hospital.cases.whereabouts import open_cases
from datasites.hospital.data.patients import log_lists
from datasites.hospital.data.sources import log_written
from datasites.hospital.database import DATABASE_AWAY, name_of
from datasites.hospital.models import Case
from datasites.hospital.outages import Outages, waited_for
from datasites.hospital.rounds.closing import results_of, send_account
from datasites.hospital.rounds.journals import destroy_secrets, give_up_keys
from datasites.hospital.rounds.mail import StudyMail
from datasites.hospital.rounds.run import StudyRun, foreseen
from datasites.hospital.setup import open_control, require_own_user
from datasites.hospital.site import Site, outage_of
from datasites.hospital.space import full_in_words
from datasites.study import letters
from datasites.study.audit_chain import AuditError
from datasites.study.errors import InputError
from datasites.study.files import replace_durably
from datasites.study.roster import Roster
from datasites.transport.mailroom import Mailroom, letter_folder
from datasites.transport.repeats import Posted
from datasites.transport.store import WHOLE_STORE, Snapshot, StoreError
from policies.engine import Engine

#: Seconds for which a study rests after an error that nobody foresaw, doubled each time up to the second figure.
REST, LONGEST_REST = 2.0, 120.0
#: The part of the pace of syncs after which one may follow early.
SOONEST = 0.25
#: Steps of one study before the next has its turn.
STEPS_PER_TURN = 4
#: Seconds for which the account of a study that was closed is put again where the store loses it.
FAREWELL = 600.0

#: What a researcher is told of a revocation.
REVOKED = "this hospital has revoked its approval"

#: What is waited for: a service that is unavailable.
OUTAGES = (StoreError, *DATABASE_AWAY)

log = logging.getLogger(__name__)


class Service:
    """A running datasite. Build it, then `serve` until the stop event. `console`: where its pages are, if anywhere."""

    def __init__(self, site: Site, console: str = "") -> None:
        self._site = site
        self._console = console
        self._home = site.home
        require_own_user(self._home)
        sandbox = site.template.sandbox
        sandbox.require()
        site.template.warm()
        # A rule file that is missing or that permits must keep the datasite from starting, not only from deciding.
        Engine(local_dir=site.home.local_rules)
        pending.finish_all(site)
        require_one_story(site.home)
        open_populations(site)
        log_lists(site)
        withdrawn.log_the_list(site)
        log_written(site, open_cases(self._home))
        ledger_log.write_anchor(site.home)  # the next process reads the log on from here
        self._control = open_control(site)
        self._store = self._control.store
        self._mailroom = Mailroom(
            site.identity.email, self._store, self._control.sealer(), self._home.transport / "mail", durable=True
        )
        self._runs: dict[int, StudyRun] = {}
        self._machine = Machine()
        self._resting: dict[int, tuple[float, float]] = {}
        self._farewells: dict[int, tuple[StudyMail, float]] = {}
        self._noted: set[tuple[str, str]] = set()
        self._roster: Roster | None = None
        self._synced = self._next_sync = 0.0
        self._inbox_read = False
        self._submissions = Submissions(site)
        self._summaries = Upkeep(site.home)
        self._outages = Outages()
        for warning in sandbox.warnings:
            log.warning("%s", warning)
            site.audit.append("sandbox_warning", reason=warning)

    def serve(self, stop: threading.Event) -> None:
        """Run until `stop` is set."""
        waited_for(self._publish, partial(outage_of, self._home), self._outages, stop)
        self._site.audit.append("started", pid=os.getpid())
        ready = {"pid": os.getpid(), "email": self._control.email, "console": self._console}
        replace_durably(self._home.ready, json.dumps(ready).encode())
        log.info("ready: %s", self._home.root)
        try:
            while not stop.is_set():
                self.step(stop)
        finally:
            self._end()

    def _end(self) -> None:
        """Log the end, and then wait for what looks at rows; in this order also where the log is damaged."""
        try:
            try:
                self._submissions.end()
                for post in [run.post for run in self._runs.values()] + [post for post, _ in self._farewells.values()]:
                    post.close()  # counts what others sent, no row
            finally:
                self._site.audit.append("ended")
        finally:
            for run in self._runs.values():
                run.close()  # all of them end at once
            self._submissions.close()
            self._summaries.close()
            for run in self._runs.values():
                run.close(wait=True)
            self._site.template.close()
            self._mailroom.close()
            self._control.close()

    def step(self, stop: threading.Event, *, sync: bool = False) -> None:
        """One turn of the loop: talk to syft where that is due, let studies and submissions go on, sleep until `stop`.

        sync: talk to syft now, whether it is due or not.
        """
        try:
            close_old_connections()  # a dead one is noticed, and costs this turn nothing
            settle_all(self._site)
            if sync or time.monotonic() >= self._next_sync:
                self._pin()
                with self._contained("syft"):
                    self._control.sync()
                self._record_decisions()
                self._destroy_what_ended()
                with self._contained("summaries"):
                    self._summaries.look()
                self._inbox_read = False
                self._synced = time.monotonic()
                self._next_sync = self._synced + self._home.settings.control_seconds
            self._follow_cases()
            self._outages.over(name_of(self._home))
            # Taken before looking, so that what comes in between ends the sleep at once.
            folders = self._folders()
            before = self._store.snapshot(folders)
            busy, outage = self._run_studies(stop)
            busy = self._take_in() or busy
            self._say_farewell()
            if outage is not None:
                raise outage
            if not busy:
                # Until the next sync, the tick at which a release leaves, the moment at which a round's letter is read
                # that waits for a worker, or a letter that is to be looked at again.
                runs = [run for pk, run in self._runs.items() if pk not in self._resting]
                awake = [run.wakes_at for run in runs] + [run.looks_at for run in runs]
                wakes = [moment for moment in (*awake, self._mailroom.looks_again_at) if moment is not None]
                left = min([max(self._next_sync, time.monotonic() + 0.05), *wakes]) - time.monotonic()
                if left > 0 and self._store.wait(folders, left, stop, since=before):
                    self._sync_soon(before)
        except OUTAGES as error:
            service = outage_of(self._home, error)
            assert service is not None
            for run in self._runs.values():
                run.stand_aside()
            self._outages.wait(*service, stop)
        else:
            self._outages.over()

    def _sync_soon(self, before: Snapshot) -> None:
        """Sync early where something for syft came into the store meanwhile, so that nobody waits for the slow pace.

        Not sooner than `SOONEST` of it after the last one, whatever others lay there.
        """
        folders = self._control.folders()
        if self._store.snapshot(folders) != {folder: before.get(folder, ()) for folder in folders}:
            soonest = self._synced + SOONEST * self._home.settings.control_seconds
            self._next_sync = min(self._next_sync, soonest)

    def _run_studies(self, stop: threading.Event) -> tuple[bool, Exception | None]:
        """Let each study do what it can; whether one did anything, and the store's failure, if it failed for one.

        Raises what Django raises while the database is unavailable, without which no study can do anything.
        """
        busy = False
        outage: Exception | None = None
        for pk, run in list(self._runs.items()):
            until, rest = self._resting.get(pk, (0.0, REST))
            if time.monotonic() < until:
                continue
            # An error of the study makes it rest; without one, what it rested before is forgotten.
            self._resting[pk] = (time.monotonic() + rest, min(2 * rest, LONGEST_REST))
            with self._contained(f"case {pk}", audited=False):
                try:
                    for _ in range(STEPS_PER_TURN):
                        if not run.step() or stop.is_set():
                            break
                        busy = True
                except (*WHOLE_STORE, *DATABASE_AWAY) as error:
                    outage = error
                except StoreError as error:
                    log.warning("case %d: %s", pk, error)  # a place in the store of this study alone: it rests
                    continue
                del self._resting[pk]
            if isinstance(outage, DATABASE_AWAY):
                raise outage
        return busy, outage

    @contextmanager
    def _contained(self, what: str, *, audited: bool = True) -> Iterator[None]:
        """Keep an error of one case, party or submission there: the log has where, the audit log once that it was.

        An unavailable service and a damaged audit log go on up. audited: not where rows are at work, since heads of the
        audit log leave and what happens there may depend on a row (I16).
        """
        try:
            yield
        except (*OUTAGES, AuditError):
            raise
        except Exception as error:
            # The place without the words, which may hold a value of a row (I12), unless they are our own.
            kind = type(error).__name__
            detail = str(error) if foreseen(error) else full_in_words(self._home)
            message = f"{kind}: {detail}" if detail else kind
            log.error("%s: %s", what, message)
            if (what, kind) not in self._noted:
                self._noted.add((what, kind))
                log.error("%s", "".join(traceback.format_tb(error.__traceback__)))
                if audited:
                    self._site.audit.append("contained", what=what[:200], reason=message[:500])

    def _folders(self) -> list[str]:
        """Say where something for this datasite would appear."""
        mail = {letter_folder(run.study_hash, self._control.email) for run in self._runs.values()}
        return sorted(mail | set(self._control.folders()))

    def _publish(self) -> None:
        """Publish all mocks; one whose place in the store is out of order is put when that is free (`mocks`)."""
        for dataset in self._home.settings.datasets:
            mock = self._home.root / dataset.mock
            if not mock.is_file():
                raise InputError(f"{mock}: no such file; put the mock there, or correct `mock` of {dataset.name}")
            try:
                self._control.publish_dataset(dataset.name, mock, dataset.summary)
            except WHOLE_STORE:
                raise
            except StoreError as error:
                log.warning(
                    "mock of %s: %s; it is published again by itself once its place is free", dataset.name, error
                )
        self._control.offer_datasets([dataset.name for dataset in self._home.settings.datasets])

    def _pin(self) -> None:
        """Follow the pinned roster, as the log knows it: new researchers become peers, revoked ones stop being."""
        with self._contained("roster"):
            roster = pinned_by_people(self._home, Roster.load(self._home.roster))
            if roster == self._roster:
                return
            self._control.pin(roster)
            for entry in roster.entries:
                if entry.role == "researcher":
                    with self._contained(f"party {entry.email}"):
                        self._control.accept_peers([entry.email])
            self._roster = roster

    def _take_in(self) -> bool:
        """Note what came of a submission, and begin with the next one; whether there was either."""
        name = self._submissions.ended
        if name is not None:
            self._inbox_read = False
            with self._contained(f"submission {name[0]} of {name[1]}"):
                row = self._submissions.collect()
                log.info("case %d: %s %s", row.pk, row.state, row.note)
            self._record_decisions()
        if self._submissions.at_work is not None or self._inbox_read:
            return name is not None
        with self._contained("submissions"):
            job = self._control.next_job(self._submissions.known(), self._submissions.turns())
            if job is not None:
                self._submissions.begin(job)
                return True
        self._inbox_read = True
        return name is not None

    def _record_decisions(self) -> None:
        """Put into syft what people decided here, with the hash that they decided on, and what studies came to."""
        recorded = False
        for row in Case.objects.filter(recorded_in_syft=False):
            if (row.job_name, row.submitted_by) == self._submissions.at_work:
                continue  # not yet logged, maybe
            with self._contained(f"case {row.pk}"):
                if row.owed:  # decided since this turn began
                    settle(self._site, row.pk)
                if row.state in Case.ACTIVE:
                    self._control.record_approval(row.job_name, f"approved {row.approval_hash}", row.submitted_by)
                elif row.state in (Case.State.REJECTED, Case.State.REFUSED):
                    self._control.record_rejection(
                        row.job_name, row.note[:LONGEST_MESSAGE] or "rejected", row.submitted_by
                    )
                elif row.state == Case.State.REVOKED:
                    self._control.record_revocation(row.job_name, REVOKED, row.submitted_by)
                elif row.state == Case.State.CLOSED:
                    # Closed, maybe, before its approval was told.
                    self._control.record_approval(row.job_name, f"approved {row.approval_hash}", row.submitted_by)
                    self._control.publish_result(row.job_name, results_of(self._home, row.study_hash), row.submitted_by)
                else:
                    continue
                # Unless people have decided again meanwhile, which is told next.
                Case.objects.filter(pk=row.pk, state=row.state).update(recorded_in_syft=True)
                recorded = True
        if recorded:
            with self._contained("syft"):
                self._control.sync()

    def _follow_cases(self) -> None:
        """Start runs for cases that were approved, and drop those that have ended."""
        open_states = (*Case.ACTIVE, Case.State.STOPPED)
        wanted = {row.pk: row for row in Case.objects.filter(state__in=open_states)}
        for pk in list(self._runs):
            if pk not in wanted or wanted[pk].rejoins:
                self._resting.pop(pk, None)
                with self._contained(f"case {pk}"):
                    settle(self._site, pk)  # decided since this turn began
                    run = self._runs.pop(pk)
                    run.close()
                    if run.post.posted(*_account_of(run.post)):
                        self._farewells[pk] = (run.post, time.monotonic() + FAREWELL)
                    else:
                        run.post.close()
        for pk, row in wanted.items():
            if pk not in self._runs and row.state != Case.State.STOPPED:
                self._follow(row)

    def _say_farewell(self) -> None:
        """Send accounts of closed studies again that the store has lost; the studies' runs have ended."""
        for pk, (post, until) in list(self._farewells.items()):
            with self._contained(f"case {pk}"):
                post.look_again()
                if time.monotonic() > until:
                    del self._farewells[pk]
                    post.close()
                elif not post.posted(*_account_of(post)):
                    send_account(self._home, post)

    def _destroy_what_ended(self) -> None:
        for row in Case.objects.filter(state__in=Case.ENDED).exclude(pk__in=list(self._runs)):
            with self._contained(f"case {row.pk}"):
                if row.owed:
                    settle(self._site, row.pk)
                destroy_secrets(self._site, row)
                release_what_is_left(self._site, row.study_hash)

    def _follow(self, row: Case) -> None:
        try:
            if row.owed:
                settle(self._site, row.pk)
            if row.rejoins:
                give_up_keys(self._home, row.study_hash)
                Case.objects.filter(pk=row.pk).update(rejoins=False)
            self._runs[row.pk] = StudyRun(self._site, self._mailroom, row, self._machine)
        except (*OUTAGES, AuditError):
            raise
        except Exception as error:
            with self._contained(f"case {row.pk}"):
                raise
            reason = (
                str(error) if foreseen(error) else f"can't be opened ({type(error).__name__}); see the service's log"
            )
            self._site.audit.append("stopped", case=row.pk, reason=reason[:500])
            Case.objects.filter(pk=row.pk, state__in=Case.ACTIVE).update(state=Case.State.STOPPED, note=reason)


def _account_of(post: StudyMail) -> Posted:
    """Return the name under which a study's account is sent."""
    return post.researcher, letters.SETUP_ROUND, letters.ACCOUNT
