"""A store that loses, changes and floods: the study ends as without it, or says who is missing.

All tricks at all points, and pairs of them: `scripts/show_hostile_store.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.researcher.hostile import run_study
from tests.transport.hostile_store import POINTS, TRICKS


@pytest.mark.parametrize("point", ["round", "masked"])
def test_a_lost_letter_costs_seconds_and_not_the_round(tmp_path: Path, point: str) -> None:
    """It is put again, by the researcher and by a hospital, while its answer is waited for."""
    ended = run_study(tmp_path, [(point, "drop")])
    assert (ended.same, ended.says, ended.wrong, ended.played) == (True, "", "", 1)


@pytest.mark.slow
@pytest.mark.parametrize("point", [point for point in POINTS if point not in ("round", "masked")])
def test_any_lost_letter_is_put_again(tmp_path: Path, point: str) -> None:
    ended = run_study(tmp_path, [(point, "delete")])
    assert (ended.same, ended.says, ended.wrong, ended.played) == (True, "", "", 1)


@pytest.mark.slow
@pytest.mark.parametrize("trick", [trick for trick in TRICKS if trick not in ("drop", "delete")])
def test_any_trick_on_a_rounds_letter_leaves_the_right_model(tmp_path: Path, trick: str) -> None:
    ended = run_study(tmp_path, [("round", trick)])
    assert ended.wrong == ""
    assert ended.same or ended.says
    assert ended.played >= 1
    assert ended.quarantine < 40 * 1024**2
