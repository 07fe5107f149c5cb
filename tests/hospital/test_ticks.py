"""When a release leaves is fixed before rows are looked at; else its time would be a message without noise."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from datasites.enclave.template import Template
from datasites.enclave.worker_client import Timeouts, Worker
from datasites.hospital import ticks as moments_of
from datasites.hospital.audit.log import AuditLog
from datasites.hospital.cases import case, examination
from datasites.hospital.cases.halt import Halt
from datasites.hospital.cases.machine import rounds_at_work
from datasites.hospital.cases.readiness import check_dataset
from datasites.hospital.config import DatasetSettings
from datasites.hospital.data.reading import TableReader
from datasites.hospital.doctor import examine as doctor
from datasites.hospital.isolated import process
from datasites.hospital.isolated.process import Apart, ApartFailed
from datasites.hospital.models import Case, Round
from datasites.hospital.rounds import lifecycle, row_work, run
from datasites.hospital.rounds.row_work import RowWork
from datasites.hospital.rounds.run import StudyRun
from datasites.hospital.site import Site
from datasites.hospital.ticks import TICK, invented_rows, leaves_at, reading_ticks, sleep_to_tick, ticks_for
from datasites.study import letters
from datasites.study.audit_chain import records
from datasites.study.package import StudyPackage
from tests.hospital.conftest import HEART
from tests.hospital.desk import Desk, job, without_rehearsal
from tests.hospital.running import Running

moments = some.floats(0.0, 1e6, allow_nan=False)


@given(started=moments, ticks=some.integers(1, 10_000), share=some.floats(0.0, 1.0))
def test_work_that_fits_leaves_at_one_moment_however_long_it_took(started: float, ticks: int, share: float) -> None:
    done = started + share * (ticks - 0.01) * TICK
    assert leaves_at(started, ticks, done) == started + ticks * TICK


@given(started=moments, ticks=some.integers(1, 100), late=some.floats(0.0, 100.0))
def test_work_that_overruns_leaves_at_a_whole_tick_and_not_before_it_is_done(
    started: float, ticks: int, late: float
) -> None:
    done = started + ticks * TICK + late
    leaves = leaves_at(started, ticks, done)
    assert leaves >= done - 1e-6
    assert leaves - done <= TICK + 1e-6
    assert (leaves - started) / TICK == pytest.approx(round((leaves - started) / TICK), abs=1e-3)


def test_a_release_waits_for_at_least_one_tick() -> None:
    assert ticks_for(0.0) >= 1
    assert ticks_for(1.0) * TICK > 1.0
    with pytest.raises(ValueError, match="one tick"):
        leaves_at(0.0, 0, 0.0)


@pytest.mark.waits
def test_other_work_on_rows_ends_at_a_whole_tick() -> None:
    started = time.monotonic() - 1.2 * TICK
    sleep_to_tick(started, 1, lambda: None)
    assert time.monotonic() >= started + 2 * TICK
    sleep_to_tick(started, 4, lambda: None)
    assert time.monotonic() >= started + 4 * TICK


@given(records=some.integers(1, 10**7), held_out=some.floats(0.01, 0.99))
def test_time_is_allowed_for_all_that_is_declared(records: int, held_out: float) -> None:
    training, other = invented_rows(records, held_out)
    assert records <= training + other <= records + 2
    assert training >= records * (1 - held_out)
    assert reading_ticks(records, 17) >= max(5, records * 17e-6 / TICK)
    assert reading_ticks(1, 17, records) >= records * 20e-6 / TICK


def test_time_is_allowed_for_the_lists_of_all_whom_the_hospital_declares(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the log's next record would tell how many patients another dataset has."""
    home, allowed = desk.site.home, list[int]()
    known = home.settings.datasets
    other = home.dataset("heart").model_copy(update={"name": "all", "population": "all", "declared_records": 400_000})
    columns = len(case.open_case(home, desk.row).package.data_model.columns)
    monkeypatch.setattr(examination, "sleep_to_tick", lambda _, ticks, __: allowed.append(ticks))
    without_rehearsal(monkeypatch)
    declared = replace(home, settings=home.settings.model_copy(update={"datasets": (*known, other)}))
    examination._examined_case(replace(desk.site, home=declared), Case.objects.get(pk=desk.row.pk), Halt())
    listed = sum(one.declared_records for one in known) + 400_000
    assert allowed == [reading_ticks(303, columns, listed), reading_ticks(303, 0, listed)]
    assert min(allowed) > 400, "and a processor of today takes some 40"


def test_one_round_that_only_the_patient_makes_late_is_one_too_many() -> None:
    """However many others the machine makes late by itself."""
    from show_ticks import Shown

    by_chance = [[0.1, 0.9, 0.1], [0.9, 0.1, 0.9]] * 5
    seen = Shown.of(10, np.array([[0.1, 0.2, 0.3], *by_chance, [0.5, 0.1, 0.1]]))
    assert (seen.noise, seen.misses, seen.met) == (10, (), True)
    seen = Shown.of(10, np.array([*by_chance, [0.51, 0.1, 0.1], [0.1, 0.7, 0.7]]))
    assert (seen.differing, seen.noise, seen.misses, seen.met) == (12, 10, (11, 12), False)
    assert seen.late == (6, 6, 6)


class Clock:
    """In place of the module `time` in `rounds`: moves when it is slept on, and when a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(0.0, seconds)


@pytest.mark.waits
@pytest.mark.parametrize("late", [-5, -1, 2, 3])
def test_a_release_leaves_at_its_tick_however_long_its_rows_took(
    running: Running, monkeypatch: pytest.MonkeyPatch, late: int
) -> None:
    """Work that is done early leaves at the tick that was approved; what overruns leaves at the next whole one."""
    clock, go_on, ticks = Clock(), threading.Event(), running.case.approval_terms.ticks
    left: list[float] = []
    train, masked = Worker.train, StudyRun._masked

    def train_when_told(*arguments: Any, **options: Any) -> Any:
        assert go_on.wait(120)
        return train(*arguments, **options)

    def timed(*arguments: Any) -> Any:
        left.append(clock.now)
        return masked(*arguments)

    monkeypatch.setattr(run, "time", clock)
    monkeypatch.setattr(StudyRun, "_masked", timed)
    monkeypatch.setattr(Worker, "train", train_when_told)
    running.set_up()
    running.open(1)
    running.until_at_work()
    begun = running.at_work.started
    for tick in range(1, ticks + 6):
        clock.now = max(clock.now, begun + (tick - 0.5) * TICK)
        if tick >= ticks + late:
            go_on.set()
            if running.at_work is not None:
                wait([running.at_work.work])
        running.run.step()
    assert running.heard(1, letters.MASKED)
    (moment,) = left
    assert moment - begun == pytest.approx((ticks + max(0, late)) * TICK)
    said = f"left {late} ticks of 0.05 s late" if late > 0 else ""
    assert Round.objects.get().reason == said, "for the hospital alone"


@pytest.mark.waits
def test_a_service_that_was_kept_away_releases_at_a_whole_tick(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the moment would tell by what, the work on rows for one."""
    clock, left, masked = Clock(), [], StudyRun._masked

    def timed(*arguments: Any) -> Any:
        left.append(clock.now)
        return masked(*arguments)

    monkeypatch.setattr(run, "time", clock)
    monkeypatch.setattr(StudyRun, "_masked", timed)
    running.set_up()
    running.open(1)
    running.until_at_work()
    work = running.at_work
    wait([work.work])
    clock.now = work.due + 0.3 * TICK
    running.steps()
    assert running.heard(1, letters.MASKED)
    assert left == [pytest.approx(work.due + TICK)]


@pytest.mark.waits
@pytest.mark.parametrize("seconds", [0.0, 3.0])
def test_how_long_a_worker_takes_to_have_its_rows_shows_nowhere_within_what_was_allowed(
    running: Running, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """The first round leaves by when a worker may be taken to have them; so does the one after a withdrawal."""
    clock, load = Clock(), row_work.partitions

    def slow(*arguments: Any) -> Any:
        clock.now += seconds
        return load(*arguments)

    monkeypatch.setattr(run, "time", clock)
    monkeypatch.setattr(row_work, "partitions", slow)
    Case.objects.filter(pk=running.row.pk).update(rehearsal={**running.row.rehearsal, "start_ticks": 100})
    running.restart()
    running.set_up()
    allowed = 100 + reading_ticks(running.case.dataset.declared_records, len(running.case.package.data_model.columns))
    withdrawals = running.site.home.withdrawals / "heart.json"
    began = 1000.0  # by the clock that has moved since
    try:
        for number in (1, 2):
            running.open(number)
            while running.run.step():
                pass
            assert running.run.wakes_at == pytest.approx(began + allowed * TICK)
            wait([running.rows._starting])
            running.until_at_work()
            assert running.at_work.due == pytest.approx(began + (allowed + running.case.approval_terms.ticks) * TICK)
            wait([running.at_work.work])
            clock.now = running.at_work.due
            assert running.run.step()
            assert running.heard(number, letters.MASKED)
            withdrawals.parent.mkdir(exist_ok=True)
            withdrawals.write_text('["1"]')
            began = clock.now
            running.run.step()
    finally:
        withdrawals.unlink(missing_ok=True)


def test_a_template_that_has_to_start_takes_nothing_of_a_span(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a round would begin before its worker may be taken to have the rows."""
    clock, start = Clock(), Template.start

    def slow_start(source: Template) -> None:
        clock.now += 5.0
        start(source)

    monkeypatch.setattr(run, "time", clock)
    monkeypatch.setattr(Template, "start", slow_start)
    monkeypatch.setattr(RowWork, "start", lambda *_: None)
    running.restart()
    begun = clock.now
    running.run._load()
    assert clock.now == begun + 5.0
    assert running.run._load_begins == clock.now
    assert running.run._loaded_at == pytest.approx(clock.now + running.run._case.loading_ticks * TICK)


@pytest.fixture
def slow(running: Running, monkeypatch: pytest.MonkeyPatch) -> tuple[Running, Clock, float]:
    """A study whose workers take long to start: the letter of round 1 waits until this moment of the clock."""
    clock = Clock()
    monkeypatch.setattr(run, "time", clock)
    Case.objects.filter(pk=running.row.pk).update(rehearsal={**running.row.rehearsal, "start_ticks": 1000})
    running.restart()
    running.set_up()
    running.open(1)
    while running.run.step():
        pass
    return running, clock, clock.now + running.run._case.loading_ticks * TICK


def test_a_letter_that_waits_for_a_worker_keeps_the_machine_from_nobody(slow: tuple[Running, Clock, float]) -> None:
    """And is not charged: rounds of others go on, and so do rehearsals."""
    running, clock, moment = slow
    machine = running.run._machine
    for _ in range(3):
        assert not running.run.step(), "the service sleeps"
        assert running.run.wakes_at == pytest.approx(moment)
        assert running.run.looks_at is None or running.run.looks_at > time.monotonic()
        assert (machine.free_at, rounds_at_work(running.site.home)) == (0.0, False)
        assert not Round.objects.exists()
        clock.now += (moment - clock.now) / 2
    clock.now = moment + 0.7 * TICK
    assert running.run.step()
    assert rounds_at_work(running.site.home)
    work = running.at_work
    assert work is not None
    assert work.started == pytest.approx(moment), "not when the service came to it"
    assert machine.free_at == work.due == pytest.approx(moment + running.case.approval_terms.ticks * TICK)


@pytest.mark.parametrize(("late", "starts"), [(0.0, 0.0), (2.9, 2.0), (40.2, 40.0)])
def test_a_round_whose_letter_waited_begins_whole_ticks_after_its_moment(
    slow: tuple[Running, Clock, float], late: float, starts: float
) -> None:
    """The service was kept away; a round that began in the past would be late by what its rows take."""
    running, clock, moment = slow
    clock.now = running.run._loaded_at + late * TICK
    assert running.run.step()
    assert running.at_work is not None
    assert running.at_work.started == pytest.approx(moment + starts * TICK)


@pytest.mark.parametrize("steps", [True, False])
def test_a_withdrawal_moves_the_moment_for_which_a_letter_waits(
    slow: tuple[Running, Clock, float], monkeypatch: pytest.MonkeyPatch, steps: bool
) -> None:
    """Another start follows the one that has begun, and leaves out all who have withdrawn until it begins.

    steps: whether the service takes any meanwhile. It does not while people pause the study, or in an outage.
    """
    running, clock, moment = slow
    withdrawals, takes = running.site.home.withdrawals / "heart.json", moment - clock.now
    withdrawals.parent.mkdir(exist_ok=True)
    wait([running.rows._starting])
    monkeypatch.setattr(row_work, "time", clock)
    rows, begun = running.rows, []
    start = rows._started_worker
    monkeypatch.setattr(rows, "_started_worker", lambda *a: (begun.append(clock.now), start(*a))[1])
    try:
        for gone in ('["1"]', '["1", "2"]'):
            clock.now += takes / 4
            withdrawals.write_text(gone)
            assert not running.run.step()
            assert running.run.wakes_at == pytest.approx(moment + takes)
        second = running.rows._starting
        assert not wait([second], timeout=0.5).done
        assert not begun, "though the first is over"
        clock.now = moment
        if steps:
            assert not running.run.step()
        wait([second], timeout=60)
        assert (begun, running.rows._withdrawn) == ([moment], frozenset({"1", "2"}))
        clock.now = moment + takes
        running.until_at_work()
        assert running.at_work.started == clock.now
    finally:
        withdrawals.unlink(missing_ok=True)


def test_who_withdraws_after_a_letter_was_read_is_left_out_of_the_next_round(
    slow: tuple[Running, Clock, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another start in this one would show how long it takes."""
    running, clock, moment = slow
    withdrawals, turn = running.site.home.withdrawals / "heart.json", object()
    withdrawals.parent.mkdir(exist_ok=True)
    machine, starts = running.run._machine, []
    start = row_work.start_worker
    monkeypatch.setattr(row_work, "start_worker", lambda *a: (starts.append(1), start(*a))[1])
    try:
        wait([running.rows._starting])
        clock.now = moment
        machine.enter(turn)  # another study's round, so that this one's work waits
        running.until_at_work()
        withdrawals.write_text('["1"]')
        machine.leave(turn)
        work = running.at_work
        wait([work.work])
        assert (work.work.exception(), starts) == (None, [])
        clock.now = work.due
        running.steps()
        assert running.heard(1, letters.MASKED)
        assert running.run._loaded_at == pytest.approx(clock.now + running.run._case.loading_ticks * TICK)
        wait([running.rows._starting])
        assert starts == [1]
        assert running.rows._withdrawn == frozenset({"1"})
    finally:
        withdrawals.unlink(missing_ok=True)


def test_what_people_and_others_do_while_a_letter_waits(slow: tuple[Running, Clock, float]) -> None:
    """A study that is halted wakes for nothing; a newer round is the one that begins; a sat out one is answered."""
    running, clock, moment = slow
    row = Case.objects.filter(pk=running.row.pk)
    row.update(state=Case.State.PAUSED)
    assert not running.run.step()
    assert running.run.wakes_at is None
    row.update(state=Case.State.RUNNING)
    running.open(2)
    assert not running.run.step()
    assert running.run.wakes_at == pytest.approx(moment)
    Round.objects.create(case=running.row, round=2, epoch=0, manifest_hash="", state=Round.State.CHARGED)
    row.update(state=Case.State.STOPPED)
    lifecycle.sit_out(running.site, running.row.pk, running.desk.login("bob"), "looked at")
    assert running.run.step()
    assert running.heard(2, letters.ABSTAINED)
    assert not running.run.step()
    assert running.run.wakes_at is None, "nothing waits any more"
    clock.now = moment
    assert not running.run.step()
    assert not Round.objects.filter(round=1).exists()


def test_a_round_whose_work_could_not_be_begun_is_not_at_work(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread can be started, say; rehearsals would stand still until a later round ends."""

    def no_thread(*_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    running.set_up()
    running.open(1)
    with monkeypatch.context() as patch:
        patch.setattr(row_work.RowWork, "begin", no_thread)
        with pytest.raises(RuntimeError, match="new thread"):
            running.until_at_work()
    assert not rounds_at_work(running.site.home)
    assert running.run._machine.free_at == 0.0
    running.steps()
    assert running.heard(1, letters.MASKED), "tried again, under the same charge"


def examined_slowly(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, reading: float, keeping: float
) -> list[tuple[str, int]]:
    """What is logged of an examination whose rows take so many seconds to read and to keep, and at which tick."""
    clock, logged = Clock(), []
    begun, stage, keep, append = clock.now, examination.stage_records, examination._keep, AuditLog.append

    def slow_stage(*arguments: Any) -> Any:
        clock.now += reading
        return stage(*arguments)

    def slow_keep(*arguments: Any) -> Any:
        clock.now += keeping
        return keep(*arguments)

    def timed(log: AuditLog, kind: str, **fields: Any) -> Any:
        logged.append((kind, round((clock.now - begun) / TICK)))
        return append(log, kind, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(examination, "time", clock)
        patch.setattr(moments_of, "time", clock)
        patch.setattr(examination, "stage_records", slow_stage)
        patch.setattr(examination, "_keep", slow_keep)
        without_rehearsal(patch)
        patch.setattr(AuditLog, "append", timed)
        examination.recheck(desk.site, desk.row.pk)
    return logged


def test_how_long_a_table_takes_to_read_shows_nowhere_within_what_was_allowed(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = examined_slowly(desk, monkeypatch, 0.0, 0.0)
    assert [kind for kind, _ in quick] == ["patients_kept", "decision", "examined"]
    assert examined_slowly(desk, monkeypatch, 3.5 * TICK, 0.0) == quick
    assert examined_slowly(desk, monkeypatch, 1.5 * TICK, 3.5 * TICK) == quick
    late = examined_slowly(desk, monkeypatch, 20.5 * TICK, 0.0)
    assert {after - before for (_, before), (_, after) in zip(quick, late, strict=True)} == {16}, "by whole ticks"


def test_the_time_of_a_table_holds_no_start_of_its_reader(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where its mock has ended the one that was there: with a start in it, it would overrun by some ticks."""
    there = []

    def breaking(reader: TableReader, *_: object) -> None:
        assert isinstance(reader._apart, Apart)
        reader._apart.close()
        raise ApartFailed("mock: a file that broke its reader")

    def staged(_: object, reader: TableReader, *__: object) -> None:
        assert isinstance(reader._apart, Apart)
        there.append(reader._apart.alive)
        raise ApartFailed("not read")

    monkeypatch.setattr(process, "Apart", Apart)
    monkeypatch.setattr(TableReader, "mock", breaking)
    monkeypatch.setattr(examination, "stage_records", staged)
    examination.recheck(desk.site, desk.row.pk)
    assert there == [True]


def declaring(desk: Desk, **declared: Any) -> Site:
    """The hospital with another declaration in its datasite.toml."""
    home = desk.site.home
    datasets = tuple(dataset.model_copy(update=declared) for dataset in home.settings.datasets)
    settings = home.settings.model_copy(update={"datasets": datasets})
    return replace(desk.site, home=replace(home, settings=settings))


def test_ticks_are_measured_on_as_many_rows_as_records_are_declared(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six records of each patient take six times as long; a release would be late each time."""
    asked: list[dict[str, Any]] = []
    measure = Worker.measure

    def noted(worker: Worker, **options: Any) -> float:
        asked.append(options)
        return measure(worker, **options)

    monkeypatch.setattr(Worker, "measure", noted)
    before = desk.row.approval_hash
    site = declaring(desk, declared_records=6 * 303)
    row = examination.recheck(site, desk.row.pk)
    assert row.rehearsal["outcome"] == "passed", row.rehearsal
    assert (asked[0]["training_rows"], asked[0]["held_out_rows"]) == (909, 909)
    assert not asked[0]["together"], "no round of this study does both"
    assert row.approval_terms["declared_records"] == 6 * 303
    assert row.approval_hash != before
    declared = case.open_case(site.home, row)
    assert declared.approval_hash == row.approval_hash
    assert case.open_case(desk.site.home, row).approval_hash != row.approval_hash, "approved for other records"


def test_time_is_allowed_for_training_and_evaluation_where_a_round_holds_both(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    def noted(worker: Worker, **options: Any) -> float:
        asked.append(options["together"])
        return 1.0

    monkeypatch.setattr(Worker, "measure", noted)
    terms = (HEART / "study" / "study.toml").read_text()
    terms = terms.replace("[evaluation]", "[evaluation]\nevery = 2\ninterim_share = 0.3")
    row = examination.admit(desk.site, replace(job(**{"study.toml": terms.encode()}), name="heart-2"))
    assert row.rehearsal["outcome"] == "passed", (row.note, row.rehearsal)
    assert asked == [True]
    assert row.approval_terms["ticks"] == ticks_for(1.0)


class Shifted:
    """In place of the module `time`: goes on by itself, and further when a test moves it."""

    sleep = staticmethod(time.sleep)

    def __init__(self) -> None:
        self.added = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.added


@pytest.mark.parametrize("stands_still", [True, False])
def test_the_time_that_a_rehearsal_stands_still_is_no_part_of_its_workers_start(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    stands_still: bool,
) -> None:
    """Nor more than a worker may take: by these ticks the first round is put off."""
    clock, seconds, start = Shifted(), Timeouts.start + Timeouts.load, Worker.start

    def begun_slowly(*arguments: Any, began: Callable[[Worker], None], **options: Any) -> Worker:
        def slowly(worker: Worker) -> None:
            began(worker)
            if stands_still:
                worker.pause()
            clock.added += 4 * seconds / 5 if stands_still else 5 * seconds
            worker.resume()

        return start(*arguments, began=slowly, **options)

    monkeypatch.setattr("datasites.enclave.worker_client.time", clock)
    monkeypatch.setattr(examination, "time", clock)
    monkeypatch.setattr(moments_of, "time", clock)
    monkeypatch.setattr(Worker, "start", begun_slowly)
    monkeypatch.setattr(Worker, "measure", lambda *_, **__: 1.0)
    desk.forget_rehearsal()
    row = examination.recheck(desk.site, desk.row.pk)
    assert row.rehearsal["outcome"] == "passed", row.rehearsal
    found = row.rehearsal["start_ticks"]
    assert found < ticks_for(seconds / 2) if stands_still else found == ticks_for(seconds)


def test_a_round_that_would_take_longer_than_a_round_may_is_refused_with_the_figure(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Worker, "measure", lambda *_, **__: 3600.5)
    desk.forget_rehearsal()
    row = examination.recheck(desk.site, desk.row.pk)
    assert row.rehearsal["outcome"] == "failed"
    assert (
        "303 declared records takes about 3.6e+03 s here, longer than round_seconds = 3600" in row.rehearsal["reason"]
    )


def test_more_records_than_declared_are_told_to_people_here_and_to_nobody_else(desk: Desk) -> None:
    words = "the table holds 303 records, more than declared_records = 302"
    site = declaring(desk, declared_patients=302, declared_records=302)
    logged = len(list(records(site.home.audit)))
    row = examination.recheck(site, desk.row.pk)
    assert row.state == Case.State.REVIEW
    assert row.note.startswith(words)
    told = str([record.fields for record in list(records(site.home.audit))[logged:]])
    assert not re.search(r"\b30[23]\b", told)  # as a figure; a digest's digits may hold it
    assert [check.state for check in doctor(site, ["datasets"]) if check.message.startswith(words)] == ["warn"]
    package = StudyPackage.read(HEART / "study")
    assert check_dataset(site.home, "heart", package).surplus.startswith(words)
    assert check_dataset(desk.site.home, "heart", package).surplus == ""


def test_each_patient_has_a_record_and_one_unless_more_are_declared(heart: DatasetSettings) -> None:
    said = heart.model_dump(exclude={"declared_records"})
    assert DatasetSettings.model_validate(said).declared_records == 303
    assert DatasetSettings.model_validate({**said, "declared_records": 900}).declared_records == 900
    with pytest.raises(ValueError, match="302 is less than declared_patients, 303"):
        DatasetSettings.model_validate({**said, "declared_records": 302})
