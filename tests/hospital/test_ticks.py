"""When a release leaves is fixed before rows are looked at; else its time would be a message without noise."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from datasites.enclave.worker import Worker
from datasites.hospital import rounds
from datasites.hospital.models import Round
from datasites.hospital.rounds import StudyRun
from datasites.hospital.ticks import TICK, leaves_at, sleep_to_tick, ticks_for
from datasites.study import letters
from tests.hospital.running import Running
from tests.hospital.test_review import Desk, desk, examined  # noqa: F401 (fixtures)

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


def test_other_work_on_rows_ends_at_a_whole_tick() -> None:
    started = time.monotonic() - 1.2 * TICK
    sleep_to_tick(started)
    assert time.monotonic() >= started + 2 * TICK


@pytest.fixture
def running(desk: Desk, tmp_path: Path) -> Iterator[Running]:  # noqa: F811
    study = Running(desk, tmp_path)
    yield study
    study.end()


class Clock:
    """In place of the module `time` in `rounds`: moves when it is slept on, and when a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("late", [-5, -1, 2, 3])
def test_a_release_leaves_at_its_tick_however_long_its_rows_took(
    running: Running, monkeypatch: pytest.MonkeyPatch, late: int
) -> None:
    """Work that is done early leaves at the tick that was approved; what overruns leaves at the next whole one."""
    clock, go_on, ticks = Clock(), threading.Event(), running.case.terms.ticks
    left: list[float] = []
    train, masked = Worker.train, StudyRun._masked

    def train_when_told(*arguments: Any, **options: Any) -> Any:
        assert go_on.wait(120)
        return train(*arguments, **options)

    def timed(*arguments: Any) -> Any:
        left.append(clock.now)
        return masked(*arguments)

    monkeypatch.setattr(rounds, "time", clock)
    monkeypatch.setattr(StudyRun, "_masked", timed)
    monkeypatch.setattr(Worker, "train", train_when_told)
    running.set_up()
    running.open(1)
    while running.run._at_work is None:
        assert running.run.step()
    begun = clock.now
    for tick in range(1, ticks + 6):
        clock.now = max(clock.now, begun + (tick - 0.5) * TICK)
        if tick >= ticks + late:
            go_on.set()
            if running.run._at_work is not None:
                wait([running.run._at_work.work])
        running.run.step()
    assert running.heard(1, letters.MASKED)
    (moment,) = left
    assert moment - begun == pytest.approx((ticks + max(0, late)) * TICK)
    said = f"left {late} ticks of 0.05 s late" if late > 0 else ""
    assert Round.objects.get().reason == said, "for the hospital alone"
