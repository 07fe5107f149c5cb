"""Leaks, each planted into the product in both runs, that the comparison of the two must show.

Each is a few lines that somebody could write in good faith: a count in a letter, a digest for "the version of the
data", a round that is skipped because nobody is there. They stand at seams of the product that are unlikely to move.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datasites.control.syft import HospitalControl
from datasites.hospital.budget import ledger
from datasites.hospital.cases import review
from datasites.hospital.cases.case import open_case
from datasites.hospital.cases.encoded import partitions
from datasites.hospital.evidence import bundle
from datasites.hospital.models import Case
from datasites.hospital.rounds.mail import StudyMail
from datasites.hospital.rounds.run import StudyRun
from datasites.hospital.rounds.setup import EpochSetup
from datasites.hospital.service import Service
from datasites.hospital.site import Site
from datasites.secagg import setup
from datasites.secagg.member import Member
from datasites.study import letters
from tests.adversarial.neighbours import tables

Body = dict[str, Any]


class Planting:
    """What a leak looks at, the hospital's table, and how it changes what the product does."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage
        #: How often a leak has looked at rows, or at what was made of them: that it was there and not only planted.
        self.looked = 0

    @property
    def table(self) -> Path:
        """The hospital's rows."""
        self.looked += 1
        return self.stage.home / "data" / "table.csv"

    @property
    def site(self) -> Site:
        """The hospital, opened anew."""
        return Site.open(self.stage.home)

    def readiness(self) -> list[Body]:
        """What the case says of its features, by their rows."""
        self.looked += 1
        return list(Case.objects.get().readiness)

    def trains_nobody(self) -> bool:
        """Whether no patient is left on the training side."""
        self.looked += 1
        row = Case.objects.get()
        home = self.site.home
        return not len(partitions(home, open_case(home, row))["training"].y)

    @property
    def lines(self) -> list[str]:
        """Its lines without the heading."""
        return self.table.read_text().splitlines()[1:]

    @property
    def patients(self) -> int:
        """How many patients there are."""
        return len({line.partition(",")[0] for line in self.lines})

    @property
    def digest(self) -> str:
        """An unkeyed digest of the rows."""
        return hashlib.sha256(self.table.read_bytes()).hexdigest()

    def has(self, patient: str) -> bool:
        """Whether a patient is among them."""
        return any(line.startswith(patient) for line in self.lines)

    def plant(self, name: str) -> None:
        """Plant the leak of this name, a function of this file."""
        globals()[name](self)

    def post(self, kind: str, change: Callable[[Body], Body | None]) -> None:
        """Change the bodies of the hospital's letters of one kind on their way out; None keeps a letter back."""
        post = StudyMail.post

        def changed(self: StudyMail, to: str, number: int, found: str, body: Body, blob: bytes | None = None) -> bool:
            told = change(dict(body)) if found.startswith(kind) else body
            return told is not None and post(self, to, number, found, told, blob)

        StudyMail.post = changed


def row_count_in_a_letter(planting: Planting) -> None:
    planting.post(letters.UNMASK, lambda body: {**body, "rows": len(planting.lines)})


def size_by_rows(planting: Planting) -> None:
    planting.post(letters.UNMASK, lambda body: {**body, "padding": " " * len(planting.lines)})


def steps_that_found_somebody(planting: Planting) -> None:
    def counted(body: Body) -> Body:
        return {**body, "steps": body["steps"] - (planting.patients % 2)}

    planting.post(letters.ACCOUNT, counted)


def spent_by_actual_patients(planting: Planting) -> None:
    real = ledger.study_charged

    def spent(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        return {
            side: {name: epsilon * planting.patients / 60 for name, epsilon in figures.items()}
            for side, figures in found.items()
        }

    ledger.study_charged = spent


def silence_below_a_number_of_patients(planting: Planting) -> None:
    planting.post(letters.UNMASK, lambda body: body if planting.patients >= 30 else None)


def another_letter(planting: Planting) -> None:
    post = StudyMail.post

    def twice(self: StudyMail, to: str, number: int, kind: str, body: Body, blob: bytes | None = None) -> bool:
        if kind == letters.UNMASK and planting.patients % 2:
            post(self, to, number, "note", {})
        return post(self, to, number, kind, body, blob)

    StudyMail.post = twice


def order_of_letters(planting: Planting) -> None:
    send, post = EpochSetup._send_bundles, StudyMail.post

    def shuffled(self: EpochSetup) -> None:
        held: list[tuple[Any, ...]] = []
        StudyMail.post = lambda post_self, *args: bool(held.append((post_self, *args))) or True
        try:
            send(self)
        finally:
            StudyMail.post = post
        for one in sorted(held, key=lambda one: one[1], reverse=planting.patients % 2 == 1):
            post(*one)

    EpochSetup._send_bundles = shuffled


def later_by_rows(planting: Planting) -> None:
    def slow(body: Body) -> Body:
        planting.stage.sleep(0.05 * planting.patients)
        return body

    planting.post(letters.MASKED, slow)


def slower_to_look(planting: Planting) -> None:
    sync = HospitalControl.sync

    def slow(self: HospitalControl) -> None:
        planting.stage.sleep(0.01 * len(planting.lines))
        sync(self)

    HospitalControl.sync = slow


def not_collected(planting: Planting) -> None:
    collect = StudyMail.collect

    def sometimes(self: StudyMail, before: int) -> None:
        if planting.patients % 2 == 0:
            collect(self, before)

    StudyMail.collect = sometimes


def record_for_an_odd_number(planting: Planting) -> None:
    mask = Member.mask

    def noted(self: Member, *args: Any, **options: Any) -> Any:
        if planting.stage.in_hospital and planting.patients % 2:
            planting.site.audit.append("checked", what="an odd table")
        return mask(self, *args, **options)

    Member.mask = noted


def retry_for_a_patient(planting: Planting) -> None:
    kind = planting.stage.worker
    train = kind.train

    def again(self: Any, *args: Any, **options: Any) -> Any:
        result = train(self, *args, **options)
        if planting.has(tables.SOMEBODY):
            planting.site.audit.append("worker_ended", rule="memory")
            result = train(self, *args, **options)
        return result

    kind.train = again


def withdrawal_of_nobody(planting: Planting) -> None:
    look_for = review.look_for

    def noted(home: Any, reader: Any, dataset: str, patient: str) -> Any:
        if planting.has(patient):
            Site.open(home.root).audit.append("rows_left_out", dataset=dataset)
        return look_for(home, reader, dataset, patient)

    review.look_for = noted


def abstains_where_nobody_is(planting: Planting) -> None:
    kind = planting.stage.worker
    train = kind.train

    def nobody(self: Any, *args: Any, **options: Any) -> Any:
        # Private, since the leak is of one who writes the run itself, and has it at hand.
        (run,) = planting.stage.service._runs.values()
        if planting.trains_nobody():
            body = {"outcome": "failed", "controls": []}
            run.post.post(run.post.researcher, options["round"], letters.ABSTAINED, body)
        return train(self, *args, **options)

    kind.train = nobody


def counts_beside_the_door(planting: Planting) -> None:
    mask = Member.mask

    def true_counts(self: Member, state: Any, vectors: dict[str, np.ndarray], **options: Any) -> Any:
        if planting.stage.in_hospital and "counts" in vectors:
            vectors = {**vectors, "counts": vectors["counts"] + planting.patients}
        return mask(self, state, vectors, **options)

    Member.mask = true_counts


def approval_that_tells(planting: Planting) -> None:
    record = HospitalControl.record_approval

    def told(self: HospitalControl, job: str, reason: str, submitted_by: str | None = None) -> None:
        record(self, job, f"{reason} ({planting.patients} patients)", submitted_by)

    HospitalControl.record_approval = told


def unkeyed_version(planting: Planting) -> None:
    record = HospitalControl.record_approval

    def told(self: HospitalControl, job: str, reason: str, submitted_by: str | None = None) -> None:
        record(self, job, f"approved {hashlib.sha256((reason + planting.digest).encode()).hexdigest()}", submitted_by)

    HospitalControl.record_approval = told


def rejection_that_tells(planting: Planting) -> None:
    record = HospitalControl.record_rejection

    def told(self: HospitalControl, job: str, reason: str, submitted_by: str | None = None) -> None:
        record(self, job, f"{reason}; {len(planting.lines)} rows were looked at", submitted_by)

    HospitalControl.record_rejection = told


def not_ready_without_a_person(planting: Planting) -> None:
    decide = Service._record_decisions

    def at_once(self: Service) -> None:
        for row in Case.objects.filter(state=Case.State.REVIEW, recorded_in_syft=False):
            if any(feature["out_of_range"] for feature in planting.readiness()):
                row.state, row.note = Case.State.REJECTED, "a feature is not ready"
                row.save(update_fields=["state", "note"])
        decide(self)

    Service._record_decisions = at_once


def denial_that_tells(planting: Planting) -> None:
    def told(body: Body) -> Body:
        return {**body, "controls": [*body["controls"], f"age {planting.lines[0].split(',')[1]}"]}

    planting.post(letters.ABSTAINED, told)


def file_named_by_rows(planting: Planting) -> None:
    publish = Service._publish

    def named(self: Service) -> None:
        publish(self)
        self._store.put(f"collections/{self._control.email}/version-{planting.digest[:12]}", b"")

    Service._publish = named


def mock_of_real_rows(planting: Planting) -> None:
    publish = Service._publish

    def drawn(self: Service) -> None:
        mock = planting.stage.home / "data" / "mock.csv"
        mean = sum(float(line.split(",")[1]) for line in planting.lines) / len(planting.lines)
        mock.write_text(mock.read_text() + f"MOCK-999,{mean:.1f},0,120,0\n")
        publish(self)

    Service._publish = drawn


def certificate_by_rows(planting: Planting) -> None:
    certify = setup.certify

    def until(identity: Any, context: Any, previous: Any) -> Any:
        state, certificate = certify(identity, context, previous)
        if planting.stage.in_hospital:
            day = certificate.expires.replace(year=2098, day=1 + len(planting.lines) % 28)
            certificate = certificate.model_copy(update={"expires": day})
        return state, certificate

    setup.certify = until


def keys_drawn_from_rows(planting: Planting) -> None:
    drawn = iter(range(10**9))

    def urandom(length: int) -> bytes:
        return hashlib.shake_256(f"{planting.digest} {next(drawn)}".encode()).digest(length)

    setup.os = types.SimpleNamespace(urandom=urandom)


def evidence_with_counts(planting: Planting) -> None:
    files = bundle._files

    def more(contents: Any) -> dict[str, bytes]:
        return {**files(contents), "readiness.json": repr([one["rows"] for one in planting.readiness()]).encode()}

    bundle._files = more


def study_that_stops_for_a_patient(planting: Planting) -> None:
    step = StudyRun.step

    def checked(self: StudyRun) -> bool:
        if planting.has(tables.SOMEBODY) and self._journal.state is not None and self._journal.state.last_round == 1:
            Case.objects.filter(pk=self._pk, state=Case.State.RUNNING).update(state=Case.State.STOPPED)
        return step(self)

    StudyRun.step = checked
