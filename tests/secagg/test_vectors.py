"""Masked vectors: one a round, only this round's, and late ones stay masked."""

from __future__ import annotations

import numpy as np
import pytest

from datasites.secagg import masks, shares
from datasites.secagg.errors import (
    AlreadyAnswered,
    AlreadyMasked,
    BadMessage,
    BadTerms,
    Equivocation,
    LateVector,
    OutOfOrder,
    UnknownParty,
)
from datasites.secagg.messages import (
    MaskedVector,
)
from tests.secagg.attacker import A, B, C, D, begun, reseal, survivor_list
from tests.secagg.cohort import TODAY, assert_exact, email, integers


def test_one_masked_vector_a_round(four):
    inputs, _ = begun(four, (A,))
    with pytest.raises(AlreadyMasked):
        four.members[A].mask(four.states[A], inputs[A])
    assert four.states[A].of_round(1).key == four.states[A].of_round(1).seed == b""


def test_nothing_is_masked_before_a_manifest(four):
    with pytest.raises(OutOfOrder):
        four.members[A].mask(four.states[A], {})


def test_the_aggregator_refuses_what_is_not_this_rounds_vector(four):
    inputs, vectors = begun(four)
    masked = vectors[A]
    identity = four.members[A].identity
    for changes in (
        {"round": 2},
        {"manifest": "0" * 64},
        {"dimension": 37},
        {"recipient": B},
    ):
        with pytest.raises(BadMessage):
            four.aggregator.receive(
                four.state, MaskedVector(reseal(masked.header, identity, **changes), masked.payload)
            )
    before = four.state.total.vector.copy()
    four.state = four.aggregator.receive(four.state, masked)
    assert four.aggregator.receive(four.state, masked) == four.state
    assert np.array_equal(four.state.total.vector, before + masked.vector())
    second = MaskedVector(reseal(masked.header, identity, payload="0" * 64), masked.payload)
    with pytest.raises(Equivocation, match="the first stays"):
        four.aggregator.receive(four.state, second)


def test_a_mark_of_another_does_not_pass(four):
    _, vectors = begun(four)
    header = reseal(vectors[A].header, four.members[A].identity, mark=vectors[B].header.mark)
    with pytest.raises(BadMessage, match="journal-mark"):
        four.aggregator.receive(four.state, MaskedVector(header, vectors[A].payload))


def test_an_outsiders_vector_is_refused(seven):
    manifest = seven.manifest(participants=tuple(email(i) for i in range(6)))
    seven.open(manifest)
    outsider = seven.members[email(6)]
    vectors = integers(manifest, seven.members)
    with pytest.raises(BadTerms):
        outsider.open(seven.states[email(6)], seven.signed(manifest), today=TODAY)
    masked = seven.mask(A, vectors[A])
    copied = reseal(masked.header, outsider.identity)
    with pytest.raises(UnknownParty, match="not a participant"):
        seven.aggregator.receive(seven.state, MaskedVector(copied, masked.payload))


def test_a_late_vector_stays_masked(four):
    """D's vector comes after the others told D's round key: it is refused, and its self-mask still hides it (I8)."""
    inputs, vectors = begun(four)
    for name in (A, B, C):
        four.state = four.aggregator.receive(four.state, vectors[name])
    survivors = four.survivors()
    result = four.unmask((A, B, C), survivors)
    assert_exact(result, inputs)
    with pytest.raises(LateVector):
        four.aggregator.receive(four.state, vectors[D])
    # What a malicious aggregator can do with it: rebuild D's round key and take off all pairwise masks.
    epoch = four.aggregator._epoch(four.state)
    answers = four.state.record.round.answers
    key = shares.combine({epoch.place(one.sender): one.shares[3 * 32 :] for one in answers}, 3)
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    private = X25519PrivateKey.from_private_bytes(key)
    assert private.public_key().public_bytes_raw() == epoch.round_key(3, 1)
    left = vectors[D].vector().copy()
    bound = {"manifest": bytes.fromhex(result.manifest.digest()), "epoch": epoch.binding}
    masks.apply(
        left, [masks.pairwise(private, epoch.round_key(i, 1), me=3, peer=i, **bound).opposite() for i in (0, 1, 2)]
    )
    assert not np.any(left.view(np.int32)[:37] == inputs[D]["update"])
    # And D's own seed was in no answer: no survivor will tell it any more.
    full = survivor_list(four, [vectors[name].header for name in (A, B, C, D)])
    for name in (A, B, C):
        with pytest.raises(AlreadyAnswered):
            four.members[name].unmask(four.states[name], full)
        assert four.states[name].of_round(1) is None
