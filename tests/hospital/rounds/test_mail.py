"""What others lay into a hospital's mailbox costs it bounded work and log, and letters that are lost are put again."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from datasites.hospital.cases.machine import Machine
from datasites.hospital.models import Case
from datasites.hospital.rounds import mail
from datasites.hospital.rounds.mail import HOUR, RECORDS_PER_HOUR
from datasites.hospital.rounds.run import LETTERS_PER_STEP, StudyRun
from datasites.hospital.rounds.setup import OFFERS_PER_STEP
from datasites.hospital.service import FAREWELL, STEPS_PER_TURN, Service
from datasites.hospital.site import Site
from datasites.study import letters
from datasites.study.audit_chain import AuditError, records
from datasites.transport import repeats
from datasites.transport.mailroom import Mailroom, letter_folder, letter_key
from datasites.transport.quarantine import KEEP_PER_HOUR
from datasites.transport.store import StoreError
from tests.hospital.desk import end, turn
from tests.hospital.running import OWN, RESEARCHER, Running, runs
from tests.transport.clock import Hands

FLOOD = 1_000


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kinds of the letters that a mailroom was asked for."""
    kinds: list[str] = []
    receive = Mailroom.receive

    def counted(room: Mailroom, sender: str, study: str, round: int, kind: str, **options: int | None) -> object:
        if room.email == OWN:
            kinds.append(kind)
        return receive(room, sender, study, round, kind, **options)

    monkeypatch.setattr(Mailroom, "receive", counted)
    return kinds


def lay(running: Running, name: str) -> None:
    folder = Path(str(running.store.local), letter_folder(running.study_hash, OWN))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.{RESEARCHER}").write_bytes(b"x")


@pytest.mark.slow
def test_files_named_like_offers_neither_stop_a_hospital_nor_fill_its_log(
    running: Running, received: list[str]
) -> None:
    """Thousands of one-byte files: each step looks at a few, rounds go on, and the log holds a few records."""
    for number in range(1, FLOOD + 1):
        lay(running, f"00000000.offer-{number}")
    began = running.site.home.audit.stat().st_size
    running.run.step()
    assert len([kind for kind in received if kind.startswith("offer-")]) <= OFFERS_PER_STEP
    running.set_up()
    running.open(1)
    running.steps()
    assert running.heard(1, letters.MASKED), "the round is answered while the flood lies there"
    for _ in range(2 * FLOOD // OFFERS_PER_STEP):
        before = len(received)
        running.run.step()
        assert len(received) - before <= OFFERS_PER_STEP + LETTERS_PER_STEP + 10
    names = running.store.list(letter_folder(running.study_hash, OWN))
    assert [name for name in names if "offer-" in name] == [], "refused, and the true one collected after the setup"
    assert len(running.logged("letter_rejected")) <= RECORDS_PER_HOUR
    assert running.site.home.audit.stat().st_size - began < 64 * 1024
    assert len(list((running.folder / OWN / "mail" / "quarantine").iterdir())) <= 2 * KEEP_PER_HOUR


def test_what_was_left_out_of_the_log_is_counted_after_an_hour(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 41):
        lay(running, f"00000000.offer-{number}")
    for _ in range(40):
        running.run.step()
    assert len(running.logged("letter_rejected")) == RECORDS_PER_HOUR
    assert running.logged("events_left_out") == []
    later = mail.time.monotonic() + HOUR
    with monkeypatch.context() as patched:
        patched.setattr(mail.time, "monotonic", lambda: later)
        running.run.step()
        running.run.step()
    (counted,) = running.logged("events_left_out")
    assert (counted.fields["party"], counted.fields["count"]) == (RESEARCHER, 40 - RECORDS_PER_HOUR)


def no_room(*_: object, **__: object) -> None:
    raise AuditError("the disk took only part of it")


def test_what_could_not_be_written_into_the_log_is_counted_once_it_can_be(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count of an hour that is over, and an event that found the disk full: its letter is gone from the store."""
    post, log = running.run.post, type(running.site.audit)
    for number in range(RECORDS_PER_HOUR + 5):
        post.note("setup_refused", (number,), reason="no offer")
    later = mail.time.monotonic() + HOUR
    monkeypatch.setattr(mail.time, "monotonic", lambda: later)
    with monkeypatch.context() as full:
        full.setattr(log, "append", no_room)
        for _ in range(2):
            with pytest.raises(AuditError):
                post.look_again()
    post.look_again()
    (counted,) = running.logged("events_left_out")
    assert counted.fields["count"] == 5
    with monkeypatch.context() as full:
        full.setattr(log, "append", no_room)
        with pytest.raises(AuditError):
            post.note("setup_refused", ("another",), reason="no offer")
    post.close()
    post.close()
    assert [record.fields["count"] for record in running.logged("events_left_out")] == [5, 1]


@pytest.mark.parametrize("what", ["service", "study", "farewell"])
def test_what_was_left_out_of_the_log_is_counted_when_what_counts_ends(
    running: Running, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Within the hour: a study that was closed without an account, one after its farewell, and a service that stops,
    which has written it once it says that it ended."""
    began = running.site.audit.head().seq
    for number in range(1, 41):
        lay(running, f"00000000.offer-{number}")
    for _ in range(40):
        running.run.step()
    service = Service(running.site)
    try:
        runs(service, running)
        if what == "farewell":
            running.tell(0, letters.CLOSE, {"rounds": 0})
            running.steps()
            assert running.heard(0, letters.ACCOUNT)
            turn(service)
            assert running.logged("events_left_out") == []
            now = time.monotonic
            monkeypatch.setattr(time, "monotonic", lambda: now() + FAREWELL)
            turn(service)
            assert len(running.logged("events_left_out")) == 1
        if what == "study":
            Case.objects.filter(pk=running.row.pk).update(state=Case.State.CLOSED)
            turn(service)
            assert len(running.logged("events_left_out")) == 1
        end(service)
    finally:
        running.run = StudyRun(running.site, running.rooms[OWN], Case.objects.get(pk=running.row.pk))
    (counted,) = running.logged("events_left_out")
    assert (counted.fields["party"], counted.fields["count"]) == (RESEARCHER, 40 - RECORDS_PER_HOUR)
    assert [r.kind for r in records(running.site.home.audit) if r.seq > began][-1] == "ended"


def test_files_named_like_rounds_do_not_hide_the_round(running: Running, received: list[str]) -> None:
    """Only rounds that this epoch may open are looked at, some in a step."""
    running.set_up()
    for number in range(2, FLOOD):
        lay(running, f"{number:08d}.round")
    running.open(1)
    received.clear()
    while not received.count(letters.ROUND) or running.run.looks_at is None:
        running.run.step()
    assert received.count(letters.ROUND) <= LETTERS_PER_STEP
    running.steps()
    assert running.heard(1, letters.MASKED)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Hands:
    """By which pauses pass until the hospital looks for a letter."""
    return Hands(monkeypatch, repeats)


def lose(running: Running, clock: Hands, number: int, kind: str) -> bytes:
    """Take the hospital's letter to the researcher out of the store, and let its pause pass."""
    key = letter_key(OWN, running.study_hash, RESEARCHER, number, kind)
    data = running.store.get(key)
    assert data is not None
    running.store.delete(key)
    clock.now += repeats.LONGEST
    return data


def test_each_letter_that_the_store_loses_is_put_again_byte_for_byte(clock: Hands, running: Running) -> None:
    """Certificate, readiness, vector, shares: while their answers are missing, and not when they have come."""
    running.offer()
    running.steps()
    for _ in range(3):
        data = lose(running, clock, 0, letters.certificate_kind(0))
        running.run.step()
        assert (
            running.store.get(letter_key(OWN, running.study_hash, RESEARCHER, 0, letters.certificate_kind(0))) == data
        )
    running.set_up()
    data = lose(running, clock, 0, letters.ready_kind(0))
    running.run.step()
    assert running.store.get(letter_key(OWN, running.study_hash, RESEARCHER, 0, letters.ready_kind(0))) == data
    manifest = running.open(1)
    running.steps()
    data = lose(running, clock, 1, letters.MASKED)
    running.run.step()
    assert running.store.get(letter_key(OWN, running.study_hash, RESEARCHER, 1, letters.MASKED)) == data
    assert len(running.logged("released")) == 1
    running.survive(manifest)
    running.steps()
    lose(running, clock, 1, letters.MASKED)
    running.run.step()
    assert running.heard(1, letters.MASKED) is None, "the survivors are named"
    data = lose(running, clock, 1, letters.UNMASK)
    running.run.step()
    assert running.store.get(letter_key(OWN, running.study_hash, RESEARCHER, 1, letters.UNMASK)) == data
    running.open(2, value=1e30)  # beyond the bound on models
    running.steps()
    data = lose(running, clock, 2, letters.ABSTAINED)
    running.run.step()
    assert running.store.get(letter_key(OWN, running.study_hash, RESEARCHER, 2, letters.ABSTAINED)) == data


def test_studies_take_turns(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that always has something to do, and one whose place in the store is out of order, hold up nobody."""
    done: list[str] = []

    class Busy:
        wakes_at = looks_at = None

        def __init__(self, site: Site, room: Mailroom, row: Case, machine: Machine) -> None:
            self.study_hash, self.post = row.study_hash, running.run.post

        def step(self) -> bool:
            done.append(self.study_hash[0])
            if self.study_hash[0] == "3":
                raise StoreError("a link inside the store leads elsewhere")
            return True

        def close(self, *, wait: bool = False) -> None: ...

    monkeypatch.setattr("datasites.hospital.service.StudyRun", Busy)
    cases = list[Case]()
    Case.objects.filter(pk=running.row.pk).update(state=Case.State.STOPPED)
    service = Service(running.site)
    try:
        for number in "321":  # the last one comes first
            cases.append(
                Case.objects.create(
                    study_hash=number * 64, job_name=number, state=Case.State.APPROVED, recorded_in_syft=True
                )
            )
        service.step(threading.Event())
        assert done == ["1"] * STEPS_PER_TURN + ["2"] * STEPS_PER_TURN + ["3"]
        done.clear()
        service.step(threading.Event())
        assert done == ["1"] * STEPS_PER_TURN + ["2"] * STEPS_PER_TURN, "the third rests"
    finally:
        end(service)
        Case.objects.filter(pk__in=[case.pk for case in cases]).delete()


def test_a_lost_account_is_put_again_after_the_study_was_closed(clock: Hands, running: Running) -> None:
    running.set_up()
    service = Service(running.site)
    try:
        running.tell(0, letters.CLOSE, {"rounds": 0})
        runs(service, running)
        while Case.objects.get(pk=running.row.pk).state != Case.State.CLOSED:
            turn(service)
        turn(service)
        key = letter_key(OWN, running.study_hash, RESEARCHER, 0, letters.ACCOUNT)
        data = running.store.get(key)
        assert data is not None
        running.store.delete(key)
        clock.now += repeats.LONGEST
        turn(service)
        assert running.store.get(key) == data
        assert len([r for r in records(running.site.home.audit) if r.kind == "closed"]) == 1
    finally:
        end(service)
        running.run = StudyRun(running.site, running.rooms[OWN], Case.objects.get(pk=running.row.pk))
