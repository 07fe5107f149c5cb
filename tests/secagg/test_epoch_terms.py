"""Epochs of the secure sum: the terms of each are those that the hospitals approved, and a hundred rounds at most."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from datasites.secagg.epoch_terms import EPOCH_ROUNDS, EpochTerms, epoch_rounds
from datasites.study import letters
from datasites.study.identity import Identity
from datasites.study.manifest import MOST_ROUNDS
from datasites.study.package import StudyPackage
from tests.study.entries import roster_of
from tests.study.studies import heart_package

HEART = Path(__file__).resolve().parents[2] / "scripts" / "heart_disease" / "study"


@pytest.mark.parametrize(
    ("first", "training", "last"),
    [(1, 15, 16), (1, 99, 100), (1, 100, 101), (1, 101, 100), (101, 101, 102), (101, 300, 200), (201, 300, 301)],
)
def test_an_epoch_holds_a_hundred_rounds_of_training_and_the_evaluation(first: int, training: int, last: int) -> None:
    assert epoch_rounds(first, training) == (first, last)


@pytest.mark.parametrize("training", [1, 100, 101, 2000, 2001, 2050, MOST_ROUNDS - 1, MOST_ROUNDS])
def test_epochs_of_a_study_of_any_length_follow_one_another(training: int) -> None:
    """What a study may have at most, an offer may name and an epoch may hold: no round is left over."""
    parties = [Identity.generate(f"site@h{n}.example.org") for n in range(4)]
    emails = [party.email for party in parties]
    first, epoch = 1, 0
    while first <= training + 1:
        rounds = epoch_rounds(first, training)
        today = datetime.date(2026, 3, 2)
        letters.EpochOffer(epoch=epoch, first_round=rounds[0], last_round=rounds[1], expires=today)
        context = EpochTerms.from_roster(
            roster_of(parties), study_hash="5" * 64, epoch=epoch, aggregator=emails[0], hospitals=emails[1:],
            colluders=1, rounds=rounds, expires=today,
        )  # fmt: skip
        assert context.first_round == first
        first, epoch = context.last_round + 1, epoch + 1
    assert first == training + 2
    assert epoch == -(-training // EPOCH_ROUNDS)
    assert StudyPackage.read(HEART).study.model_copy(update={"rounds": training}).rounds == training


def test_a_study_of_more_rounds_than_any_is_not_proposed() -> None:
    with pytest.raises(ValueError, match=f"rounds.*{MOST_ROUNDS}"):
        heart_package(rounds=str(MOST_ROUNDS + 1)).study  # noqa: B018


def test_the_evaluation_alone_is_an_epoch_of_one_round() -> None:
    assert epoch_rounds(16, 15) == (16, 16)
