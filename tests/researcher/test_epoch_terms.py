"""The aggregator's epochs: the terms of each are those that the hospitals approved."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from datasites.researcher.record import RunFolder
from datasites.researcher.secure_sum import SecureSum
from datasites.secagg.context import epoch_rounds
from datasites.secagg.errors import BadTerms
from datasites.study.identity import Identity, Roster, RosterEntry
from datasites.study.package import StudyPackage
from datasites.transport.mailroom import Mailroom

HEART = Path(__file__).resolve().parents[2] / "scripts" / "heart_disease" / "study"


def test_an_epoch_without_everybody_keeps_the_approved_threshold(tmp_path: Path) -> None:
    """Five hospitals, t = 4: four may set an epoch up with t = 4, three may not with t = 3."""
    heart = StudyPackage.read(HEART).study
    emails = tuple(f"site@h{n}.example.org" for n in range(5))
    terms = heart.model_copy(
        update={"cohort": heart.cohort.model_copy(update={"hospitals": emails, "threshold": None})}
    )
    parties = [Identity.generate(email) for email in (heart.researcher, *emails)]
    entries = tuple(
        RosterEntry(organisation=p.email, email=p.email, role="hospital", public_key=p.public_key) for p in parties
    )
    mailroom = cast("Mailroom", None)  # nothing is sent before `set_up`
    total = SecureSum(parties[0], Roster(entries=entries), mailroom, RunFolder(tmp_path), "5" * 64, -1)
    total.new_epoch(terms, emails[:4], 1)
    assert total.context.threshold == terms.cohort.survivors_needed == 4
    with pytest.raises(BadTerms, match="3 hospitals are fewer than the threshold 4"):
        total.new_epoch(terms, emails[:3], 1)


@pytest.mark.parametrize(
    ("first", "training", "last"),
    [(1, 15, 16), (1, 99, 100), (1, 100, 101), (1, 101, 100), (101, 101, 102), (101, 300, 200), (201, 300, 301)],
)
def test_an_epoch_holds_a_hundred_rounds_of_training_and_the_evaluation(first: int, training: int, last: int) -> None:
    assert epoch_rounds(first, training) == (first, last)


def test_the_evaluation_alone_is_an_epoch_of_one_round() -> None:
    assert epoch_rounds(16, 15) == (16, 16)
