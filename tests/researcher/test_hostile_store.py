"""A store that loses, changes and floods: the study ends as without it, or says who is missing.

All tricks at all points, and pairs of them: `scripts/show_hostile_store.py`.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from datasites.hospital.rounds.mail import RECORDS_PER_HOUR
from tests.hospital.hostile_home import played
from tests.researcher.hostile import Ended, run_study
from tests.transport.hostile_store import POINTS, TRICKS

pytestmark = pytest.mark.waits


@pytest.mark.slow
@pytest.mark.parametrize("point", ["round", "masked"])
def test_a_lost_letter_costs_seconds_and_not_the_round(tmp_path: Path, point: str) -> None:
    """It is put again, by the researcher and by a hospital, while its answer is waited for."""
    ended = run_study(tmp_path, [(point, "drop")])
    assert (ended.same, ended.says, ended.wrong, ended.played) == (True, "", "", (1,))


@pytest.mark.slow
@pytest.mark.parametrize("point", [point for point in POINTS if point not in ("round", "masked")])
def test_any_lost_letter_is_put_again(tmp_path: Path, point: str) -> None:
    ended = run_study(tmp_path, [(point, "delete")])
    assert (ended.same, ended.says, ended.wrong, ended.played) == (True, "", "", (1,))


@pytest.mark.parametrize(
    ("played", "passed", "in_order"),
    [
        ((), (), True),
        ((1, 3), ("", ""), True),
        ((1, 0), ("", "the study had stopped"), True),
        ((1, 0), ("", ""), False),
        ((0, 0), ("", "the study had stopped"), False),
        ((0,), ("the study had stopped",), False),
    ],
)
def test_each_trick_is_played_or_has_no_letter_because_of_another(
    played: tuple[int, ...], passed: tuple[str, ...], in_order: bool
) -> None:
    ended = Ended(True, "", "", played, passed, 0, 1.0, 1.0, 0, None)
    assert (ended.unplayed() == "") == in_order


@pytest.mark.slow
@pytest.mark.parametrize("trick", [trick for trick in TRICKS if trick not in ("drop", "delete")])
def test_any_trick_on_a_rounds_letter_leaves_the_right_model(tmp_path: Path, trick: str) -> None:
    ended = run_study(tmp_path, [("round", trick)])
    assert ended.wrong == ""
    assert ended.same or ended.says
    assert ended.unplayed() == ""
    assert ended.quarantine < 40 * 1024**2


@pytest.mark.long
def test_a_real_hospital_stands_a_flood_and_a_lost_vector_within_its_bounds(tmp_path: Path) -> None:
    """The service of a datasite, in a process of its own: Django knows one database in each."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        honest = pool.submit(played, tmp_path, ()).result()
        assert (honest.same, honest.wrong, honest.beyond(times=False)) == (True, "", "")
        assert honest.cost is not None
        assert (honest.cost.of_others, honest.cost.quarantine) == (0, 0)
        for point, trick in (("round", "flood"), ("masked", "drop")):
            ended = pool.submit(played, tmp_path, [(point, trick)]).result()
            assert (ended.same, ended.says, ended.wrong, ended.beyond(times=False)) == (True, "", "", "")
            assert ended.unplayed() == ""
            assert ended.cost is not None
            assert ended.cost.records <= honest.cost.records + RECORDS_PER_HOUR + 1
