"""A real hospital for studies over a store that meddles: its service, home, database, mailroom, journal and audit log.

Made once in a process, by the functions behind `datasites init`, `roster pin`, `agreements import` and `review`; then
put back for each study, so that none sees what another left. Only the sandboxed worker is replaced, where a round asks
for one, by a plain gradient step on the very rows that it would be given: so the model can be computed in the clear.
Everything around it is the product: policies, ledger, commitments, keys of a round, ticks, release, letters.

One process holds one such hospital, since Django connects to one database. Rooms of the database are imported once it
is connected.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import measure
import numpy as np
import numpy.typing as npt

from datasites.control.syft import SubmittedJob
from datasites.enclave.worker_client import TrainResult
from datasites.hospital.rounds.mail import RECORDS_PER_HOUR
from datasites.hospital.setup import initialise
from datasites.researcher.study import Study
from datasites.study.audit_chain import LogRecord, records, verify_log
from datasites.study.errors import read_toml
from datasites.study.roster import Roster
from datasites.study.schema import DataModel
from datasites.transport.quarantine import KEEP_BYTES, KEEP_PER_HOUR
from datasites.transport.store import Store
from tests.agreements import agreements
from tests.alarms import OF_ITSELF, OF_OTHERS, Written, faults
from tests.e2e.noiseless_datasite import plain_update
from tests.hospital.cleveland import EMAIL, PATIENTS, SETTINGS
from tests.researcher.hostile import LEAST_PATIENCE, PEER_PATIENCE, ROUNDS, Ended, run_study, short_study
from tests.transport.parties import RESEARCHER, Party, make_parties

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
HEART = SCRIPTS / "heart_disease"
PASSWORD = "a long enough passphrase"

#: As `datasites serve` sets it.
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
#: The researcher and the other hospitals.
OTHERS = 4


class PlainWorker:
    """In place of a sandboxed worker: one gradient step, and counts, of the rows that it was given, without noise."""

    alive = True

    def __init__(self, rows: dict[str, Any]) -> None:
        self._rows = rows

    def train(self, parameters: npt.NDArray[np.float32], *, plan: Any, **_: object) -> TrainResult:
        rows = self._rows["training"]
        return TrainResult(plain_update(parameters, rows.x, rows.y), plan.steps_per_round)

    def evaluate(self, parameters: npt.NDArray[np.float32], *, plan: Any, **_: object) -> npt.NDArray[np.float64]:
        rows = self._rows["held_out"]
        scores = 1 / (1 + np.exp(-(rows.x.astype(np.float64) @ parameters[:-1] + parameters[-1])))
        counts = np.zeros((plan.bins, 2))
        np.add.at(counts, (np.minimum((scores * plan.bins).astype(int), plan.bins - 1), rows.y.astype(int)), 1)
        return counts

    def close(self) -> None:
        self.alive = False

    def kill(self, *, wait: bool = False) -> None:
        self.close()


@dataclass(frozen=True)
class Cost:
    """What one study has cost this hospital.

    records: of the audit log, since the study began. of_others: those that others' letters gave rise to. home: bytes
    that the home grew by, without its quarantine. quarantine: bytes of that. files: in the home, more than before.
    memory: bytes that this process, all parties in it, grew by at its peak. stall: the longest time for which its
    service did something without looking at its mail, in seconds, less what it waited for a processor. letters: files
    that lie in its mailbox at the end, which is not its disk.
    """

    records: int
    of_others: int
    home: int
    quarantine: int
    files: int
    memory: int
    stall: float
    letters: int


def bounds(rounds: int = ROUNDS) -> dict[str, int | float]:
    """The most that a study of so many training rounds and an evaluation may cost, whatever its store does, by field.

    records: this hospital's own, two decisions, charge, release and answer a round and five of start and close, and
    those of each other party (`rounds.mail`: so many an hour, and their count). quarantine, files: what it takes in
    an hour (`quarantine`), beside the files of an honest study. home: three times what an honest study leaves there,
    its journals, tables and log. memory: a few copies of a letter of the largest size (1.1 MiB) for each of the five
    parties, who are all in this process. stall: for so long a run waits for stragglers; a hospital that does not look
    for longer may lose its round.
    """
    of_others = OTHERS * (RECORDS_PER_HOUR + 1)
    return {
        "records": 5 + 5 * (rounds + 1) + of_others,
        "of_others": of_others,
        "home": 576 * 1024,
        "quarantine": KEEP_PER_HOUR * (KEEP_BYTES + 4096),
        "files": 40 + 2 * KEEP_PER_HOUR,
        "memory": 32 * 1024**2,
        "stall": LEAST_PATIENCE,
    }


class RealHospital:
    """The hospital of this process, and the keys of the researcher and the other hospitals."""

    def __init__(self, root: Path, study: Study) -> None:
        self.root, self.study, self.email = root, study, EMAIL
        self._others = [email for email in study.terms.cohort.hospitals if email != EMAIL]
        self._make()
        self._template = root / "template"
        for name in ("home", "parties", "store"):
            shutil.copytree(root / name, self._template / name, symlinks=True)

    @property
    def url(self) -> str:
        return str(self.root / "store")

    # -- made once -------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        sys.path.insert(0, str(SCRIPTS))
        from heart_disease import prepare

        home = self.root / "home"
        entry = initialise(home, SETTINGS.format(store=self.url, database="sqlite"))
        self._parties = make_parties(self.root / "parties", self.url, tuple(self._others), start=False)
        researcher, *others = (party.entry() for party in self._parties)
        university = researcher.model_copy(update={"organisation": "University"})
        self._roster = Roster(entries=(entry, university, *others))
        (home / "data").mkdir()
        prepare.local_table("cleveland", prepare.load()["cleveland"]).to_csv(home / "data/table.csv", index=False)
        model = read_toml(HEART / "study" / "features.toml", DataModel)
        prepare.mock_table(model, 200, seed=1).to_csv(home / "data/mock.csv", index=False)
        shutil.copyfile(HEART / "mappings" / "cleveland.toml", home / "mapping.toml")
        self._approve([f.name for f in (*model.features, model.label)])

        from django.db import connections

        from datasites.hospital.rounds import row_work, setup

        connections.close_all()
        vars(row_work).update(start_worker=lambda _, __, rows, *___: PlainWorker(rows))
        setup.PEER_PATIENCE = PEER_PATIENCE

    def _approve(self, features: list[str]) -> None:
        """Pin everybody, enter agreements, take the study in, and let two people approve it."""
        from datasites.hospital.cases import examination, review
        from datasites.hospital.cases.case import open_case
        from datasites.hospital.cases.encoded import partitions
        from datasites.hospital.models import Case
        from datasites.hospital.people.accounts import identify
        from datasites.hospital.people.agreements import confirm_agreement, enter_agreements
        from datasites.hospital.people.roster import pin_compared
        from datasites.hospital.site import Site
        from tests.hospital.invited import enter

        site = self._site = Site.open(self.root / "home")
        for entry in self._roster.entries[1:]:
            pin_compared(site, entry)
        people = {"ann": "steward", "bob": "privacy_officer"}
        for name, role in people.items():
            enter(site, name, role, PASSWORD, f"{name}@cleveland.example.org")
        file = self.root / "agreements.toml"
        file.write_text(agreements("Cleveland", features))
        for id, version in enter_agreements(site, identify("ann", PASSWORD), file):
            confirm_agreement(site, identify("bob", PASSWORD), id, version)
        job = SubmittedJob("heart-1", RESEARCHER, dict(self.study.package.files), "pending", "")
        row = examination.admit(site, job)
        assert row.state == Case.State.REVIEW, row.note
        for name in people:
            row = review.approve(site, row.pk, identify(name, PASSWORD), "read it", row.approval_hash)
        # Its submission did not come through syft, where its decision would be recorded.
        Case.objects.update(recorded_in_syft=True)
        self._case = open_case(site.home, row)
        # Now, since an ended study keeps none.
        self._rows = partitions(site.home, self._case)["training"]

    # -- for each study --------------------------------------------------------------------------------------------

    def begin(self, store: Store) -> list[Party]:
        """Put everything back, and serve: letters go through `store`. Returns the others, not started."""
        from django.db import connections

        from datasites.hospital.audit.log import AuditLog
        from datasites.hospital.budget import ledger_log
        from datasites.hospital.site import Site

        connections.close_all()  # this thread's, opened by a look at the study before this one
        for name in ("home", "parties", "store"):
            for old in (self.root / name).iterdir():
                if old.name != "frozen":  # never changes, and may not be written to
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            shutil.copytree(
                self._template / name,
                self.root / name,
                symlinks=True,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("frozen"),
            )
        ledger_log.forget(self._site.home)
        self._site = Site(self._site.home, self._site.identity, AuditLog(self._site.home.audit, self._site.identity))
        measure.begin_peak()
        self._before = _Before(
            self._site.audit.head().seq, *measure.files_below(self._site.home.root), measure.resident()
        )
        self._failed: list[BaseException] = []
        self._stop, self._stall, self._said = threading.Event(), 0.0, io.StringIO()
        self._thread = threading.Thread(target=self._serve, args=(store,), name="hospital", daemon=True)
        self._thread.start()
        return [replace(party, options={}, roster=self._roster) for party in self._parties]

    def _serve(self, store: Store) -> None:
        from django.db import connections

        from datasites.hospital.service import Service

        hospital = self
        said = logging.StreamHandler(self._said)
        said.setFormatter(logging.Formatter(LOG_FORMAT))
        logging.getLogger("datasites.hospital").addHandler(said)

        class Timed(Service):
            """Says how long its turns take, but for what they sleep."""

            def step(self, stop: threading.Event, *, sync: bool = False) -> None:
                began, sleeps.seconds = time.monotonic() - _queued(), 0.0
                super().step(stop, sync=sync)
                hospital._stall = max(hospital._stall, time.monotonic() - _queued() - began - sleeps.seconds)

        try:
            service = Timed(self._site)
            # Private, since a service opens its own store: the study's letters go by another, and its sleeps are timed.
            service._mailroom.store = store
            sleeps = service._store = _Sleeps(self.url)
            service.serve(self._stop)
        except BaseException as error:
            self._failed.append(error)
            raise
        finally:
            logging.getLogger("datasites.hospital").removeHandler(said)
            connections.close_all()

    @property
    def parameters(self) -> str:
        """The model's tensors, as a run keeps them: a logistic regression."""
        features = self._case.approval_terms.parameters - 1
        return f'[{{"name":"linear.weight","shape":[1,{features}]}},{{"name":"linear.bias","shape":[1]}}]'

    def update(self, model: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """What this hospital adds to that model, computed in the clear."""
        return plain_update(model, self._rows.x, self._rows.y).astype(np.float64)

    @property
    def share(self) -> float:
        """What it weighs."""
        return PATIENTS / self.study.terms.cohort.max_patients

    def stop(self) -> None:
        """Stop serving. Raises what the service ended with."""
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the hospital's service hangs"
        if self._failed:
            raise self._failed[0]

    def cost(self) -> Cost:
        """What the study has cost, whose service was stopped."""
        home, since = self._site.home, self._before
        written = self.written()
        files, size = measure.files_below(home.root)
        _, quarantine = measure.files_below(home.transport / "mail" / "quarantine")
        mailbox = Path(self.url, "mail", self.study.hash, EMAIL)
        return Cost(
            records=len(written),
            of_others=sum(record.kind in OF_OTHERS for record in written),
            home=size - since.size - quarantine,
            quarantine=quarantine,
            files=files - since.files,
            memory=measure.peak() - since.memory,
            stall=self._stall,
            letters=sum(1 for _ in mailbox.iterdir()) if mailbox.is_dir() else 0,
        )

    def written(self) -> list[LogRecord]:
        """What the audit log says of this study's time."""
        return [record for record in records(self._site.home.audit) if record.seq > self._before.records]

    def wrong(self, sure: Collection[int]) -> str:
        """What the logs of a study that has ended say that must not be; nothing where all is well.

        sure: rounds that others know it has released. Raises where log, ledger and journal tell different stories.
        """
        from datasites.hospital.budget.reconcile import require_one_story

        require_one_story(self._site.home)
        report = verify_log(self._site.home.audit, self._site.identity.public_key)
        written = Written(self.written(), self._said.getvalue())
        found = faults(written, self.study.hash, range(1, self.study.terms.rounds + 2), sure, OF_ITSELF)
        return "; ".join(found if report.ok else [f"audit log: {report}", *found])


@functools.cache
def this_hospital(root: Path) -> RealHospital:
    """The real hospital of this process, made below `root`. What is loaded at first use is no growth, and loaded."""
    made = RealHospital(root / str(os.getpid()), short_study())
    run_study(made.root / "first", (), made)
    return made


def played(root: Path, plans: Sequence[tuple[str, str]]) -> Ended:
    """One study over a store that plays these (point, trick), with this process's hospital."""
    hospital = this_hospital(root)
    with tempfile.TemporaryDirectory(prefix="study-", dir=root, ignore_cleanup_errors=True) as folder:
        return run_study(Path(folder), plans, hospital)


class _Sleeps(Store):
    """Adds up for how long its owner waited for letters."""

    seconds = 0.0

    def wait(self, *arguments: Any, **options: Any) -> bool:
        began = time.monotonic()
        try:
            return super().wait(*arguments, **options)
        finally:
            self.seconds += time.monotonic() - began


@dataclass(frozen=True)
class _Before:
    records: int
    files: int
    size: int
    memory: int


def _queued() -> float:
    """Seconds for which this thread was ready and waited for a processor, since it began; 0 where no kernel counts."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except FileNotFoundError:
        return 0.0
