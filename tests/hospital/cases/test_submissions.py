"""Submissions are taken in beside the rounds of running studies, one at a time, and once, whatever ends the service."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from datasites.control.syft import HospitalControl, SubmittedJob
from datasites.enclave.worker_client import Worker
from datasites.hospital.cases import examination, submissions
from datasites.hospital.cases.submissions import HOUR, MOST_REFUSED
from datasites.hospital.models import Case
from datasites.hospital.rounds.run import StudyRun
from datasites.hospital.service import Service
from datasites.hospital.serving import only_process
from datasites.hospital.site import Site
from datasites.study import letters
from datasites.study.audit_chain import records
from tests.hospital.desk import Desk, all_taken_in, another, end, job, turn, without_rehearsal
from tests.hospital.running import Running, lets_go, runs
from tests.polling import PATIENCE, until

#: Takes a submission in as the service does, in a process that can be killed.
ADMIT = (
    "import pickle, sys; from pathlib import Path\n"
    "from datasites.hospital.site import Site\n"
    "site = Site.open(Path(sys.argv[1]))\n"
    "from datasites.hospital.cases import examination\n"
    "examination.admit(site, pickle.loads(sys.stdin.buffer.read()))\n"
)
Order = Callable[[str], int | None]


def send(monkeypatch: pytest.MonkeyPatch, *jobs: SubmittedJob) -> None:
    """Let these lie in the datasite's inbox."""

    def next_job(_: object, known: Collection[tuple[str, str]], order: Order) -> SubmittedJob | None:
        turns = [(order(j.submitted_by), j) for j in jobs if (j.name, j.submitted_by) not in known]
        taken = [(turn, j) for turn, j in turns if turn is not None]
        return min(taken, key=lambda pair: (pair[0], pair[1].name), default=(0, None))[1]

    monkeypatch.setattr(HospitalControl, "next_job", next_job)


def told(site: Site, begins: int, *kinds: str) -> list[tuple[str, str]]:
    """What the log says of submissions since: the kind of each record, and the name of whose case it is."""
    names = dict(Case.objects.values_list("pk", "job_name"))
    mine = [r for r in records(site.audit.path) if r.seq > begins and r.kind in kinds]
    return [(r.kind, names[r.fields["case"]]) for r in mine]


ADMITTED = ("received", "refused", "examined", "taken_again")


@pytest.mark.slow
@pytest.mark.waits
def test_a_round_is_answered_while_a_submission_is_rehearsed(
    running: Running,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rehearsal takes minutes, and is ended with the service."""
    running.set_up()
    runs(service, running)
    send(monkeypatch, another("long", long=True))
    turn(service)
    # Private, since a worker of a rehearsal shows nowhere else before it has said what it is; the round has its own.
    until(lambda: isinstance(service._submissions._halt._process, Worker))
    running.open(1)
    while running.heard(1, letters.MASKED) is None:
        turn(service)
    row = Case.objects.get(job_name="long")
    assert (row.state, row.rehearsal) == (Case.State.INTAKE, {}), "the round waited for the submission"
    lets_go(service)


@pytest.mark.slow
@pytest.mark.waits
@pytest.mark.parametrize("loaded", [False, True])
def test_the_end_of_the_service_ends_a_rehearsal_and_the_next_start_takes_it_up(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    loaded: bool,
) -> None:
    """Whether its model is being loaded or is training already."""
    begins, workers = desk.site.audit.head().seq, list[Worker]()
    start = Worker.__init__

    def started(worker: Worker, *arguments: Any, **options: Any) -> None:
        start(worker, *arguments, **options)
        workers.append(worker)

    monkeypatch.setattr(Worker, "__init__", started)
    send(monkeypatch, another("heart-again", long=True))
    first = Service(desk.site)
    turn(first)
    until(lambda: workers and (not loaded or hasattr(workers[0], "description")))
    stop(desk.site, first)
    assert [worker.alive for worker in workers] == [False]
    row = Case.objects.get(job_name="heart-again")
    assert (row.state, row.note, row.rehearsal) == (Case.State.INTAKE, "", {}), "the killed worker is not its fault"
    assert not list(desk.site.home.prepared.glob(".staging-*"))
    begun_again(desk, monkeypatch, begins)


@pytest.mark.slow
@pytest.mark.waits
def test_a_kill_while_a_submission_is_rehearsed_leaves_it_to_the_next_start(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begins = desk.site.audit.head().seq
    sent = another("heart-again", long=True)
    send(monkeypatch, sent)
    command = [sys.executable, "-c", ADMIT, str(desk.site.home.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(pickle.dumps(sent))
        process.stdin.close()
        until(lambda: process.poll() is not None or sandboxes_of(process.pid))
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    assert told(desk.site, begins, *ADMITTED) == [("received", "heart-again")]
    begun_again(desk, monkeypatch, begins)


def begun_again(desk: Desk, monkeypatch: pytest.MonkeyPatch, begins: int) -> None:
    """A start of the service takes the interrupted submission again, once; and a further start does not."""
    without_rehearsal(monkeypatch)
    whole = [("received", "heart-again"), ("taken_again", "heart-again"), ("examined", "heart-again")]
    for _ in range(2):
        again = Service(desk.site)
        all_taken_in(again)
        stop(desk.site, again)
        (row,) = Case.objects.filter(job_name="heart-again")
        assert row.state == Case.State.REVIEW
        assert row.rehearsal
        assert told(desk.site, begins, *ADMITTED) == whole


@pytest.mark.waits
def test_the_end_of_the_service_is_logged_before_it_waits_for_what_looks_at_rows(
    running: Running,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else its time would tell how many there are: of a table that is being read, and of a study's worker."""
    site, begins, waited = running.site, running.site.audit.head().seq, list[bool]()
    reading, may_end = threading.Event(), threading.Event()
    inner, wait_for, close = examination.stage_records, submissions.wait, StudyRun.close

    def logged(*kinds: str) -> list[str]:
        return [r.kind for r in records(site.home.audit) if r.seq > begins and r.kind in kinds]

    def long_table(*arguments: Any) -> Any:
        reading.set()
        assert may_end.wait(PATIENCE)
        return inner(*arguments)

    def waiting(*arguments: Any, **options: Any) -> Any:
        waited.append("ended" in logged("ended"))
        may_end.set()
        return wait_for(*arguments, **options)

    def closing(run: StudyRun, *, wait: bool = False) -> None:
        waited.append("ended" in logged("ended"))
        close(run, wait=wait)

    monkeypatch.setattr(examination, "stage_records", long_table)
    monkeypatch.setattr(submissions, "wait", waiting)
    monkeypatch.setattr(StudyRun, "close", closing)
    send(monkeypatch, another("heart-again", long=True))
    first = Service(site)
    runs(first, running)
    turn(first)
    assert reading.wait(PATIENCE)
    stop(site, first)
    assert waited == [True, True, True], (
        "of the submission, and of the study, which is told to end before it is waited for"
    )
    assert logged("ended", *ADMITTED) == ["received", "ended"], "and it writes nothing after"


def stop(site: Site, datasite: Service) -> None:
    """End it as the only process on its home."""
    with only_process(site.home):
        end(datasite)


def sandboxes_of(pid: int) -> list[int]:
    """Processes that this one has started."""
    children = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in path.read_text().split()]
    return children


@pytest.mark.slow
@pytest.mark.waits
def test_submissions_are_taken_in_one_after_the_other_and_submitters_take_turns(
    desk: Desk,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two that are rehearsed, and one of somebody else that came in later by name and is refused."""
    begins = desk.site.audit.head().seq
    send(monkeypatch, another("a"), another("b"), another("c", submitter="else@university.example.org"))
    all_taken_in(service)
    assert told(desk.site, begins, *ADMITTED) == [
        ("received", "a"),
        ("examined", "a"),
        ("refused", "c"),
        ("received", "b"),
        ("examined", "b"),
    ]
    rows = Case.objects.filter(job_name__in=("a", "b"))
    assert [row.rehearsal["outcome"] for row in rows] == ["passed", "passed"]


def test_who_is_refused_again_and_again_waits_for_the_hour_to_end(
    desk: Desk,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What they send is bounded in log and database, and taken in later; others are not held up."""
    begins = desk.site.audit.head().seq
    broken = [dataclasses.replace(job(**{"study.toml": b"x"}), name=f"bad-{number:02}") for number in range(25)]
    send(monkeypatch, *broken, dataclasses.replace(broken[0], name="z", submitted_by="else@university.example.org"))
    all_taken_in(service)
    refused = [name for _, name in told(desk.site, begins, *ADMITTED)]
    assert sorted(refused) == [*(f"bad-{number:02}" for number in range(MOST_REFUSED)), "z"]
    Case.objects.update(received_at=timezone.now() - HOUR)
    all_taken_in(service)
    assert len(told(desk.site, begins, *ADMITTED)) == 2 * MOST_REFUSED + 1


def test_a_submission_under_which_the_process_ends_again_and_again_is_left_to_people(desk: Desk) -> None:
    """Else a submission that ends it would keep it down."""
    row = Case.objects.create(study_hash="0" * 64, job_name="deadly", submitted_by="researcher@university.example.org")
    desk.site.audit.append("received", case=row.pk)
    starts = [examination.unfinished(desk.site) for _ in range(examination.MOST_AGAIN + 2)]
    assert starts == [{("deadly", row.submitted_by)}] * examination.MOST_AGAIN + [set(), set()]
    row.refresh_from_db()
    assert "ended 4 times while it examined this; correct it and run `datasites review recheck`" in row.note
