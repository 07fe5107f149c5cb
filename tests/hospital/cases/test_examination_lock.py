"""One examination at a time: whoever asks, the table and a study's encoded records are in memory once."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from django.db import connections

from datasites.hospital.cases import examination
from datasites.hospital.cases.examination_lock import AnotherAtWork, one_at_a_time
from datasites.hospital.cases.halt import Halt, Halted
from datasites.hospital.cases.threads import in_a_thread
from datasites.hospital.models import Case
from tests.hospital.desk import Desk, job, without_rehearsal

RECHECK = (
    "import sys; from pathlib import Path\n"
    "from datasites.hospital.site import Site\n"
    "site = Site.open(Path(sys.argv[1]))\n"
    "from datasites.hospital.cases import examination, examination_lock\n"
    "try: examination.recheck(site, int(sys.argv[2]))\n"
    "except examination_lock.AnotherAtWork as error: print(error)\n"
)


class Staging:
    """Counts preparations, each of which waits for `go_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on, self.count = threading.Event(), threading.Event(), 0
        stage = examination.stage_records

        def staged(*arguments: Any) -> Any:
            self.count += 1
            self.begun.set()
            assert self.go_on.wait(120)
            return stage(*arguments)

        monkeypatch.setattr(examination, "stage_records", staged)
        without_rehearsal(monkeypatch)


@pytest.fixture
def staging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Staging]:
    staging = Staging(monkeypatch)
    yield staging
    staging.go_on.set()


def beside(act: Any) -> Future[Case]:
    def run() -> Case:
        try:
            return act()
        finally:
            connections.close_all()

    return in_a_thread(run)


@pytest.mark.slow
def test_a_second_recheck_is_refused_at_once_and_prepares_nothing(desk: Desk, staging: Staging) -> None:
    """In this process and in another one; of another case, and of the same."""
    first = beside(lambda: examination.recheck(desk.site, desk.row.pk))
    assert staging.begun.wait(120)
    other = Case.objects.create(study_hash="0" * 64, job_name="other", submitted_by="r@university.example.org")
    words = f"case {desk.row.pk} is being examined, and only one examination runs at a time; try again when it is over"
    for number in (desk.row.pk, other.pk):
        with pytest.raises(AnotherAtWork, match=words):
            examination.recheck(desk.site, number)
    command = [sys.executable, "-c", RECHECK, str(desk.site.home.root), str(desk.row.pk)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith(words)
    assert staging.count == 1
    staging.go_on.set()
    assert first.result(120).state == Case.State.REVIEW
    assert examination.recheck(desk.site, desk.row.pk).state == Case.State.REVIEW, "and is there again afterwards"


@pytest.mark.slow
def test_a_case_that_is_being_taken_in_is_not_examined_beside_that(desk: Desk, staging: Staging) -> None:
    sent = job(**{"study.toml": job().files["study.toml"].replace(b"IRB-2026-017", b"IRB-another")})
    first = beside(lambda: examination.admit(desk.site, replace(sent, name="another")))
    assert staging.begun.wait(120)
    row = Case.objects.get(job_name="another")
    with pytest.raises(AnotherAtWork, match=f"submission another of {row.submitted_by} is being examined"):
        examination.recheck(desk.site, row.pk)
    staging.go_on.set()
    assert first.result(120).state == Case.State.REVIEW
    assert staging.count == 1


def test_a_submission_waits_for_its_turn_and_the_end_of_the_service_ends_the_wait(
    desk: Desk,
    staging: Staging,
) -> None:
    sent, ended = replace(job(), name="later"), Halt()
    with one_at_a_time(desk.site.home, "case 1"):
        waiting = beside(lambda: examination.admit(desk.site, sent))
        halted = beside(lambda: examination.admit(desk.site, replace(job(), name="never"), ended))
        ended.now()
        assert isinstance(halted.exception(120), Halted)
        assert not waiting.done()
        assert not Case.objects.filter(job_name__in=("later", "never")).exists()
    assert waiting.result(120).job_name == "later"
