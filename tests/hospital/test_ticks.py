"""When a release leaves is fixed before rows are looked at; else its time would be a message without noise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from datasites.enclave.worker import Worker
from datasites.hospital import rounds
from datasites.hospital.models import Round
from datasites.hospital.ticks import TICK, leaves_at, ticks_for
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


@pytest.fixture
def running(desk: Desk, tmp_path: Path) -> Iterator[Running]:  # noqa: F811
    study = Running(desk, tmp_path)
    yield study
    study.end()


def test_a_round_leaves_at_its_tick_whether_its_rows_took_long_or_not(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds of 100 ticks: the work of the second takes 20 ticks longer, and both leave at the same tick."""
    begun: list[float] = []
    left: list[float] = []
    train, attend, masked = Worker.train, running.run._attend, running.run._masked

    def timed_attend(*arguments: Any) -> None:
        begun.append(time.monotonic())
        attend(*arguments)

    def timed_masked(*arguments: Any) -> Any:
        left.append(time.monotonic())
        return masked(*arguments)

    def slower(*arguments: Any, **options: Any) -> Any:
        result = train(*arguments, **options)
        time.sleep(20 * TICK if options["round"] == 2 else 0)
        return result

    monkeypatch.setattr(rounds, "leaves_at", lambda started, ticks, now: leaves_at(started, 100, now))
    monkeypatch.setattr(running.run, "_attend", timed_attend)
    monkeypatch.setattr(running.run, "_masked", timed_masked)
    monkeypatch.setattr(Worker, "train", slower)
    running.set_up()
    for number in (1, 2):
        manifest = running.open(number)
        running.steps()
        assert running.heard(number, letters.MASKED) is not None
        running.survive(manifest)
        running.steps()
    first, second = (leaves - begins for begins, leaves in zip(begun, left, strict=True))
    assert min(first, second) >= 100 * TICK
    assert abs(first - second) < 8 * TICK, "a busy machine may miss a few ticks"
    stored = Round.objects.get(case=running.row, round=2)
    assert stored.seconds >= 20 * TICK, "for the hospital alone"
