"""Kill -9 of datasites and of the researcher at random moments of studies with 10 rounds (I5, I6, I11)."""

from __future__ import annotations

import pytest

from tests.e2e.kills import kill_while_studies_run
from tests.e2e.support import LocalDatasites

#: In one study, and in several of them.
KILLS, MANY_KILLS = 12, 50


@pytest.mark.parametrize("kills", [KILLS, pytest.param(MANY_KILLS, marks=pytest.mark.long)])
def test_every_study_completes_with_one_release_per_round_whoever_is_killed(
    datasites: LocalDatasites, kills: int
) -> None:
    """Kills count only while a study is under way; a study that completes is followed by the next.

    Moments and victims are drawn with a seed, so that a failure can be met again (about). 200: `scripts/show_kills.py`.
    """
    kill_while_studies_run(datasites, kills, seed=17)
