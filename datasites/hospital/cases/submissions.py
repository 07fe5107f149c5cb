"""Examines submissions beside the service's loop: one at a time, in a thread, so that no study's round waits for one.

**Claim.** While a submission is read, checked, prepared and rehearsed, however long that takes, every running study has
its turn, and while a round of one is at work, the rehearsal stands still (`machine`). What a submission takes of a turn
is to read it from the disk, `submissions.MAX_CODE_BYTES` at most, and to note what came of it. Submitters take turns,
so one with many submissions has at most one of them before each of another's, and one of whose submissions
`MOST_REFUSED` were refused within an hour waits until it is over: what they write into log and database is bounded, and
nothing of it is lost. Each is taken once: a database that goes
away, a stop or a kill at any point leaves either nothing, or a case that the service goes on with. One during which the
process has ended again and again is left to people, so that no submission keeps a datasite down.

Assumptions: a processor beside the one that works on a submission, or that the system shares one fairly; no call into a
library holds the interpreter for long. Not claimed: (1) The longest of those calls are on the hospital's own table, in
the reader of its file, numpy and pandas, and take longer the more rows it has: other threads may wait for one of them,
and so a letter that leaves then. (2) That work on rows is as quick while a submission's table is read as without. (3)
That memory suffices: a worker that stands still keeps what it has, of a GPU too, and a round whose worker finds none
twice stops its study; a machine holds two workers of `sandbox.limits`. Nor that a GPU is free: kernels that a rehearsal
has queued there go on while it stands still, beside a round. (4) That a submission is examined while rounds follow each
other without a gap. (5) That work which takes the whole service down, by memory say, is tried twice at most: an end of
the service is no failure of the work (`failures`), so each start tries again, until people stop it. (6) That it shows
nowhere how far the reading of a table had come when the database went away: the submission is begun again once that is
noticed.

The thread writes to database and audit log by itself, as a `recheck` in the console does, and ends soon when the
service does (`halt`). The process doesn't wait for one that can't: it is then as if it had been killed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import timedelta

from django.db import connections
from django.utils import timezone

from datasites.control.syft import SubmittedJob
from datasites.hospital.cases import examination
from datasites.hospital.cases.halt import Halt
from datasites.hospital.cases.threads import in_a_thread
from datasites.hospital.database import DATABASE_AWAY
from datasites.hospital.models import Case
from datasites.hospital.site import Site
from datasites.transport.store import StoreError

#: Seconds that the end of the service waits for a submission's thread.
PATIENCE = 5.0
#: Submissions of one researcher that are refused within an hour before the next has to wait.
MOST_REFUSED, HOUR = 10, timedelta(hours=1)

Name = tuple[str, str]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _BeingExamined:
    name: Name
    pending: Future[Case]


class Submissions:
    """Submissions of one datasite, as (name, submitter). `at_work`: the one that is being taken in."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._halt = Halt()
        self._work: _BeingExamined | None = None
        #: Begun and without a case that is known to be whole: not begun again, but for those that were interrupted.
        self._begun: set[Name] = set()
        self._interrupted = examination.unfinished(site)
        #: How many were begun before, when one of a submitter was begun last.
        self._turns: dict[str, int] = {}

    @property
    def at_work(self) -> Name | None:
        """The one that is being taken in, or was and has not been collected."""
        return None if self._work is None else self._work.name

    @property
    def ended(self) -> Name | None:
        """The one that can be collected."""
        return self._work.name if self._work is not None and self._work.pending.done() else None

    def known(self) -> set[Name]:
        """Return the submissions that need not be begun."""
        return self._begun | set(Case.objects.values_list("job_name", "submitted_by")) - self._interrupted

    def turns(self) -> Callable[[str], int | None]:
        """Return a function that says when a submitter has its turn: the least figure first; None: not now."""
        lately = Case.objects.filter(state=Case.State.REFUSED, received_at__gte=timezone.now() - HOUR)
        refused = Counter(lately.values_list("submitted_by", flat=True))
        return lambda submitter: self._turns.get(submitter, 0) if refused[submitter] < MOST_REFUSED else None

    def begin(self, job: SubmittedJob) -> None:
        """Take one in, while no other is at work."""
        assert self._work is None
        name = (job.name, job.submitted_by)
        log.info("submission %s of %s", *name)
        admit = examination.admit_again if name in self._interrupted else examination.admit
        self._begun.add(name)
        self._turns[job.submitted_by] = max(self._turns.values(), default=0) + 1
        self._work = _BeingExamined(name, in_a_thread(lambda: self._on_thread(admit, job)))

    def _on_thread(self, admit: Callable[[Site, SubmittedJob, Halt], Case], job: SubmittedJob) -> Case:
        try:
            return admit(self._site, job, self._halt)
        finally:
            # Django keeps a connection for each thread, and nobody else closes this one's.
            connections.close_all()

    def collect(self) -> Case:
        """Return the case of the submission that `ended`; raises what went wrong. After an outage it is begun again."""
        assert self._work is not None
        work, self._work = self._work, None
        try:
            row = work.pending.result()
        except (StoreError, *DATABASE_AWAY):
            self._interrupted.add(work.name)
            self._begun.discard(work.name)
            raise
        self._interrupted.discard(work.name)
        self._begun.discard(work.name)
        return row

    def end(self) -> None:
        """End the one at work at its next step; waits for none that looks at rows."""
        self._halt.now()

    def close(self) -> None:
        """End the one at work, whatever it does, and wait for that a moment."""
        self.end()
        if self._work is not None:
            wait([self._work.pending], timeout=PATIENCE)
