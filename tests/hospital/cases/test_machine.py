"""A rehearsal stands still while a round is at work, so neither shows how long the other one's work takes."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connections

from datasites.control.syft import HospitalControl
from datasites.enclave.processes import family
from datasites.enclave.worker_client import Timeouts, Worker
from datasites.hospital.cases import examination
from datasites.hospital.cases.halt import Halt, Halted
from datasites.hospital.cases.machine import AtWork, Machine, rounds_at_work, standing_back
from datasites.hospital.cases.threads import in_a_thread
from datasites.hospital.models import Case
from datasites.hospital.rounds.row_work import RowWork
from datasites.hospital.service import Service
from datasites.hospital.ticks import TICK
from datasites.study import letters
from datasites.transport.store import NotAFile
from tests.hospital.desk import Desk, another, turn
from tests.hospital.running import Running, lets_go, runs
from tests.polling import until

ASK = (
    "import sys; from pathlib import Path\n"
    "from datasites.hospital.config import Home\n"
    "from datasites.hospital.cases.machine import rounds_at_work\n"
    "print(rounds_at_work(Home.open(Path(sys.argv[1]))))\n"
)
#: Ends with a round at work.
BEGIN = (
    "import sys; from pathlib import Path\n"
    "from datasites.hospital.config import Home\n"
    "from datasites.hospital.cases.machine import AtWork, rounds_at_work\n"
    "home = Home.open(Path(sys.argv[1])); shown = AtWork(home)\n"
    "shown.begin(); assert rounds_at_work(home)\n"
)


def processor_time(worker: Worker) -> list[int]:
    """Of each of a worker's processes, in the kernel's clock ticks, user and system."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in family(worker.pid)]
    return [int(fields[11]) + int(fields[12]) for fields in stats]


def stopped(worker: Worker) -> bool:
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in family(worker.pid)]
    return all(fields[0] == "T" for fields in stats)


@pytest.mark.slow
@pytest.mark.waits
def test_a_rehearsal_gets_no_processor_and_loses_no_time_while_a_round_is_at_work(desk: Desk) -> None:
    halt, round_of_another = Halt(), AtWork(desk.site.home)

    def admit() -> Case:
        try:
            return examination.admit(desk.site, another("long", long=True), halt)
        finally:
            connections.close_all()

    submission: Future[Case] = in_a_thread(admit)
    try:
        until(lambda: hasattr(halt._process, "description"))
        worker = halt._process
        assert worker is not None
        for _ in range(2):
            round_of_another.begin()
            until(lambda: stopped(worker))
            used, clock = processor_time(worker), worker._now()
            time.sleep(0.5)
            assert processor_time(worker) == used
            assert worker._now() == clock, "its deadlines wait, too"
            round_of_another.end()
            until(lambda used=sum(used): sum(processor_time(worker)) > used)
            assert worker._now() > clock
        round_of_another.begin()
        until(lambda: stopped(worker))
        halt.now()
        assert isinstance(submission.exception(60), Halted), "it can be ended where it stands"
    finally:
        round_of_another.end()
        halt.now()


@contextmanager
def no_descriptor_free() -> Iterator[None]:
    """As in a burst of connections to the console."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.waits
def test_a_look_that_fails_lets_a_rehearsal_stand_still_until_the_next_one(
    desk: Desk,
    caplog: pytest.LogCaptureFixture,
) -> None:
    home, shown = desk.site.home, AtWork(desk.site.home)

    def watched() -> bool:
        return any(thread.name == "datasites-standing-back" for thread in threading.enumerate())

    worker = Worker(desk.site.template, Timeouts())
    try:
        with standing_back(home) as stand_back:
            stand_back(worker)
            shown.begin()
            until(lambda: stopped(worker))
            with no_descriptor_free():
                until(lambda: "can't see whether a round is at work" in caplog.text or not watched())
            shown.end()
            until(lambda: worker._paused_at is None or not watched())
            assert not stopped(worker), "it goes on"
            with no_descriptor_free():
                until(lambda: worker._paused_at is not None or not watched())
            until(lambda: worker._paused_at is None or not watched())
            shown.begin()
            until(lambda: stopped(worker) or not watched())
            assert stopped(worker), "it stands back for the next round"
        assert caplog.text.count("can't see whether a round is at work") == 1
    finally:
        shown.end()
        worker.kill()


@pytest.mark.waits
def test_a_round_is_at_work_from_its_letter_until_its_release_leaves(running: Running) -> None:
    """And for every process of the home."""
    home = running.site.home
    running.set_up()
    assert not rounds_at_work(home)
    running.open(1)
    running.until_at_work()
    assert rounds_at_work(home)
    done = subprocess.run([sys.executable, "-c", ASK, str(home.root)], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    running.at_work.work.result(120)
    assert rounds_at_work(home), "not until its rows are done, which would tell how long they took"
    running.steps()
    assert running.heard(1, letters.MASKED)
    assert not rounds_at_work(home)


@pytest.mark.waits
def test_a_round_of_a_study_that_people_halt_or_let_go_of_is_not_at_work_for_ever(running: Running) -> None:
    home = running.site.home
    running.set_up()
    running.open(1)
    running.until_at_work()
    Case.objects.filter(pk=running.row.pk).update(state=Case.State.PAUSED)
    running.run.step()
    assert rounds_at_work(home)
    running.at_work.work.result(120)
    time.sleep(max(0.0, running.at_work.due - time.monotonic()))
    running.run.step()
    assert not rounds_at_work(home)
    Case.objects.filter(pk=running.row.pk).update(state=Case.State.RUNNING)
    running.steps()
    assert running.heard(1, letters.MASKED)


@pytest.mark.waits
@pytest.mark.parametrize("away", ["its place in the store", "the store"])
def test_what_keeps_a_study_waiting_keeps_no_rehearsal_after_its_tick(
    running: Running,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    away: str,
) -> None:
    home, run = running.site.home, running.run

    def fail(*_: object) -> None:
        raise NotAFile("p2p: a link")

    def try_once() -> None:
        if away == "the store":
            turn(service)
        else:
            with pytest.raises(NotAFile):
                run.step()

    running.set_up()
    running.open(1)
    running.until_at_work()
    runs(service, running)
    with monkeypatch.context() as patch:
        patch.setattr(*((HospitalControl, "sync") if away == "the store" else (run.post, "look_again")), fail)
        run._at_work.work.result(120)
        run._at_work = replace(run._at_work, due=time.monotonic() + 60.0)
        try_once()
        assert rounds_at_work(home), "for how long its rows were worked on doesn't show"
        run._at_work = replace(run._at_work, due=time.monotonic() - TICK)
        try_once()
    lets_go(service)
    assert not rounds_at_work(home)
    running.steps()
    assert running.heard(1, letters.MASKED)
    assert not rounds_at_work(home)


def test_who_is_at_work_waits_for_nobody_and_is_gone_with_its_process(desk: Desk) -> None:
    home, first, second = desk.site.home, AtWork(desk.site.home), AtWork(desk.site.home)
    first.begin()
    second.begin()
    first.end()
    assert rounds_at_work(home)
    second.end()
    assert not rounds_at_work(home)
    subprocess.run([sys.executable, "-c", BEGIN, str(home.root)], check=True)
    assert not rounds_at_work(home)


def test_a_round_that_could_not_be_announced_is_so_the_next_time(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home, shown, inner = desk.site.home, AtWork(desk.site.home), fcntl.fcntl
    files = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:

        def no_locks(*arguments: Any) -> Any:
            if arguments[1] == fcntl.F_OFD_SETLK:
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            return inner(*arguments)

        patch.setattr(fcntl, "fcntl", no_locks)
        with pytest.raises(OSError, match="No locks"):
            shown.begin()
    assert len(os.listdir("/proc/self/fd")) == files
    shown.begin()
    assert rounds_at_work(home)
    shown.end()
    assert not rounds_at_work(home)


def test_workers_are_started_one_after_the_other_in_spans_that_are_public() -> None:
    """A withdrawal lets all studies of its patients start one."""
    machine = Machine()
    assert machine.load(100.0, 5.0) == (100.0, 105.0)
    assert machine.load(101.0, 3.0) == (105.0, 108.0)
    assert machine.load(200.0, 3.0) == (200.0, 203.0)


@pytest.mark.waits
def test_rows_are_worked_on_in_the_order_in_which_rounds_leave(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever study's thread is free first: which one is, how long its rows took to load had a part in."""
    machine, order, keys = Machine(), list[int](), SimpleNamespace(key=lambda _: b"")
    monkeypatch.setattr(RowWork, "_started_worker", lambda *_: None)
    monkeypatch.setattr(RowWork, "_vectors", lambda _, __, case, *___: (order.append(case.number), ({}, 0))[1])
    studies = [RowWork(desk.site, machine) for _ in range(4)]
    loaded = threading.Event()
    studies[0]._thread.submit(loaded.wait)

    def begin(number: int) -> Future[Any]:
        case = SimpleNamespace(number=number, row=SimpleNamespace(study_hash=f"{number}" * 64))
        return studies[number].begin(case, SimpleNamespace(round=1), None, lambda _: keys, frozenset())  # type: ignore[arg-type]

    try:
        begun = [begin(number) for number in range(4)]
        studies[1].close()  # a study that is let go of keeps nobody
        assert not wait(begun[2:], timeout=0.5).done
        loaded.set()
        assert not wait([begun[0], *begun[2:]], timeout=30).not_done
        assert order == [0, 2, 3]
    finally:
        loaded.set()
        for study in studies:
            study.close(wait=True)
