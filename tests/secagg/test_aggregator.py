"""Unmask answers: wrong shares are found and named, and below the threshold nothing opens."""

from __future__ import annotations

import numpy as np
import pytest

from datasites.secagg import shares
from datasites.secagg.aggregator_state import AggregatorState
from datasites.secagg.errors import (
    BadMessage,
    CommitmentsLost,
    Equivocation,
    OutOfOrder,
    TooFew,
    UnknownParty,
    WrongShare,
)
from datasites.secagg.reports import Reports
from tests.secagg.attacker import A, B, C, D, begun, reseal, survivor_list
from tests.secagg.cohort import Cohort, assert_exact, integers


def answered(cohort: Cohort, spoil=()):
    """A round where D is lost (of seven: the last), with some answers spoiled by their senders."""
    names = tuple(cohort.members)[:-1]
    inputs, vectors = begun(cohort, names)
    for name in names:
        cohort.state = cohort.aggregator.receive(cohort.state, vectors[name])
    survivors = cohort.survivors()
    acks = cohort.acks(survivors, names) if cohort.context.consistency else None
    for name in names:
        answer = cohort.answer(name, survivors, acks)
        if name in spoil:
            wrong = bytes(32) + answer.shares[32:-32] + b"\7" * 32
            answer = reseal(answer, cohort.members[name].identity, shares=wrong)
        cohort.state = cohort.aggregator.receive_shares(cohort.state, answer)
    return inputs


def test_wrong_shares_are_named_and_the_round_goes_on(seven):
    inputs = answered(seven, spoil=(B,))
    result = seven.result()
    assert result.wrong_shares_from == (B,)
    assert_exact(result, inputs)


def test_wrong_shares_that_leave_too_few_are_named_and_nothing_opens(four):
    inputs = answered(four, spoil=(B,))
    before = four.state.total.vector.copy()
    with pytest.raises(WrongShare, match=B) as caught:
        four.result()
    assert caught.value.members == (B,)
    assert np.array_equal(four.state.total.vector, before)
    assert not four.state.total.opened
    assert len(inputs) == 4


def test_without_the_commitments_a_wrong_share_is_blamed_on_nobody(seven):
    """The store has lost the letter that holds them, or holds another one: the sum stays shut, and opens with it."""
    inputs = answered(seven, spoil=(B,))
    other = reseal(seven.readies[A], seven.members[A].identity, commitments=bytes(len(seven.readies[A].commitments)))
    for letters in ({}, dict.fromkeys(seven.members, other), dict.fromkeys(seven.members, seven.readies[B])):
        with pytest.raises(CommitmentsLost, match="nobody is blamed; set up a new epoch"):
            seven.aggregator.result(seven.state, ready_again=letters.get)
        assert not seven.state.total.opened
    assert_exact(seven.result(), inputs)


def test_the_aggregators_state_keeps_no_commitments(seven):
    """Of each "ready" letter it keeps a digest, and a byte for each peer."""
    whole = sum(len(ready.to_bytes()) for ready in seven.readies.values())
    before = len(seven.state.with_record(reports=Reports()).to_bytes())
    assert len(seven.state.to_bytes()) - before < 7 * (7 + 2 * 64 + 128) < whole / 4
    assert len(seven.state.to_bytes()) < len(seven.state.enrolment.to_bytes())


def crooked_owner(monkeypatch) -> Cohort:
    """Four hospitals, of which C commits to shares of another secret than it certified."""
    cohort = Cohort.of(4)
    true_split = shares.split

    def crooked(secret, threshold, places):
        return true_split(bytes(len(secret)) if crooked.armed else secret, threshold, places)

    crooked.armed = False
    monkeypatch.setattr(shares, "split", crooked)
    share = cohort.members[C].share

    def armed(*args, **kwargs):
        crooked.armed = True
        try:
            return share(*args, **kwargs)
        finally:
            crooked.armed = False

    cohort.members[C].share = armed
    return cohort.setup()


def test_an_owner_whose_shares_do_not_give_its_secret_is_named(monkeypatch):
    """It commits to shares of another secret than it certified: its holders are not to blame."""
    cohort = crooked_owner(monkeypatch)
    begun_inputs, vectors = begun(cohort)
    for masked in vectors.values():
        cohort.state = cohort.aggregator.receive(cohort.state, masked)
    survivors = cohort.survivors()
    with pytest.raises(WrongShare, match="certified") as caught:
        cohort.unmask(cohort.members, survivors)
    assert caught.value.members == (C,)
    assert len(begun_inputs) == 4


def test_who_is_left_out_costs_no_further_round(monkeypatch):
    """It costs the others the round that shows the lie, and no more."""
    cohort = crooked_owner(monkeypatch)
    with pytest.raises(WrongShare) as caught:
        cohort.run_round(integers(cohort.manifest(), cohort.members))
    cohort.restart()
    manifest = cohort.manifest(2, participants=tuple(sorted({A, B, C, D} - set(caught.value.members))))
    inputs = integers(manifest, manifest.participants)
    assert_exact(cohort.run_round(inputs, manifest), inputs)


def test_below_the_threshold_of_answers_nothing_opens(four):
    inputs, vectors = begun(four)
    for masked in vectors.values():
        four.state = four.aggregator.receive(four.state, masked)
    survivors = four.survivors()
    before = four.state.total.vector.copy()
    with pytest.raises(OutOfOrder):
        four.aggregator.result(
            AggregatorState(
                four.state.record.model_copy(
                    update={"round": four.state.record.round.model_copy(update={"survivors": None})}
                ),
                four.state.total,
                four.state.enrolment,
            )
        )
    for name in (A, B):
        with pytest.raises(TooFew, match=f"shares for {A}"):
            four.unmask((name,), survivors)
        assert not four.aggregator.can_open(four.state)
    assert np.array_equal(four.state.total.vector, before)
    assert_exact(four.unmask((C,), survivors), inputs)


def test_an_answer_for_another_list_or_by_another_is_refused(four):
    _, vectors = begun(four)
    for name in (A, B, C):
        four.state = four.aggregator.receive(four.state, vectors[name])
    with pytest.raises(OutOfOrder):
        four.aggregator.receive_shares(
            four.state,
            four.members[A].unmask(four.states[A], survivor_list(four, [vectors[n].header for n in (A, B, C)]))[1],
        )
    survivors = four.survivors()
    answer = four.answer(A, survivors)
    identity = four.members[A].identity
    for changes in (
        {"survivors": "0" * 64},
        {"shares": answer.shares[:-1]},
        {"manifest": "0" * 64},
        {"round": 2},
        {"recipient": B},
    ):
        with pytest.raises(BadMessage):
            four.aggregator.receive_shares(four.state, reseal(answer, identity, **changes))
    with pytest.raises(UnknownParty, match="not a survivor"):
        four.aggregator.receive_shares(four.state, reseal(answer, four.members[D].identity))
    four.state = four.aggregator.receive_shares(four.state, answer)
    assert four.aggregator.receive_shares(four.state, answer) == four.state
    with pytest.raises(Equivocation):
        four.aggregator.receive_shares(four.state, reseal(answer, identity, shares=bytes(len(answer.shares))))
