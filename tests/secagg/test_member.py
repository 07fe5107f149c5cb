"""A lying manifest: what a hospital refuses, and that what it can't see gives noise."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from datasites.secagg import masks, shares
from datasites.secagg.errors import (
    BadMessage,
    BadTerms,
    Equivocation,
    RoundUsed,
    SecaggError,
    TooFew,
    UnknownParty,
)
from datasites.secagg.messages import (
    MaskedVector,
    SignedManifest,
)
from datasites.study.identity import Identity
from datasites.study.manifest import VectorTerm
from tests.secagg.attacker import A, B, C, D, begun, opened_by, reseal, survivor_list
from tests.secagg.cohort import TODAY, Cohort, assert_exact, email, integers


def test_a_second_manifest_for_a_round_is_refused(four):
    state = opened_by(four, A, four.manifest())
    assert opened_by(four, A, four.manifest(), state) == state
    with pytest.raises(Equivocation):
        opened_by(four, A, four.manifest(model_hash="b" * 64), state)


def test_equivocating_manifests_give_noise(four):
    """Two hospitals get another manifest: their masks don't cancel, and nobody unmasks a mixed list."""
    one, other = four.manifest(), four.manifest(model_hash="b" * 64)
    inputs = integers(one, four.members)
    vectors = {}
    for name in four.members:
        four.states[name] = opened_by(four, name, one if name in (A, B) else other)
        vectors[name] = four.mask(name, inputs[name])
    four.state, _ = four.aggregator.open_round(four.state, one)
    four.state = four.aggregator.receive(four.state, vectors[A])
    with pytest.raises(BadMessage, match="another manifest"):
        four.aggregator.receive(four.state, vectors[C])
    mixed = survivor_list(four, [vectors[name].header for name in four.members])
    with pytest.raises(BadMessage, match="signed for another manifest"):
        four.members[A].unmask(four.states[A], mixed)
    with pytest.raises(TooFew):
        four.members[A].unmask(four.states[A], survivor_list(four, [vectors[A].header, vectors[B].header]))
    # Even with all self-masks known, the pairwise masks across the two manifests stay.
    total = sum(vectors[name].vector() for name in four.members)
    epoch = four.aggregator._epoch(four.state)
    for name in four.members:
        manifest = one if name in (A, B) else other
        place = epoch.place(name)
        pieces = {holder: _seed_share(four, holder, place) for holder in range(3)}
        seed = shares.combine(pieces, 3)
        mask = masks.self_mask(seed, manifest=bytes.fromhex(manifest.digest()), epoch=epoch.binding, me=place)
        masks.apply(total, [mask.opposite()])
    truth = sum(inputs[name]["update"] for name in four.members)
    assert not np.any(total.view(np.int32)[:37] == truth)


def _seed_share(cohort: Cohort, holder: int, owner: int) -> bytes:
    return cohort.states[email(holder)].of_round(1).seed_share(owner)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"threshold": 4}, BadTerms, "agreed was 3"),
        ({"study": "6" * 64}, BadMessage, "another study"),
        ({"epoch": 1}, BadMessage, "another study or epoch"),
        ({"round": 9}, RoundUsed, "not of rounds"),
        ({"participants": (B, C, D)}, BadTerms, "not among the participants"),
        ({"participants": (A, B, C, "zoe@h.example.org")}, UnknownParty, "not enrolled"),
        ({"vectors": (VectorTerm(name="u", length=3, bound=1.0, scale=2.0**29),)}, BadTerms, "lower the scale"),
    ],
)
def test_manifests_outside_the_terms_are_refused(four, changes, error, words):
    with pytest.raises(error, match=words):
        opened_by(four, A, four.manifest(**changes))
    if "participants" not in changes or "zoe" in str(changes):
        with pytest.raises(SecaggError):
            four.aggregator.open_round(four.state, four.manifest(**changes))


def test_a_threshold_lowered_in_a_round_is_refused(seven):
    for threshold in (3, 4):
        with pytest.raises(BadTerms, match="agreed was 5"):
            opened_by(seven, A, seven.manifest(threshold=threshold))
    # Few participants under the agreed threshold: such a manifest can't be written, nor read.
    with pytest.raises(ValidationError, match="above the number of participants"):
        seven.manifest(participants=(A, B, C, D))
    signed = seven.signed(seven.manifest(participants=tuple(seven.members)[:5])).to_bytes()
    with pytest.raises(BadMessage, match="above the number of participants"):
        SignedManifest.from_bytes(signed.replace(f'"{D}",'.encode(), b""))


def test_a_manifest_not_signed_by_the_aggregator_is_refused(four):
    signed = four.signed(four.manifest())
    for forged in (
        reseal(signed, Identity.generate(four.context.aggregator.email)),
        signed.model_copy(update={"manifest": four.manifest(model_hash="c" * 64)}),
    ):
        with pytest.raises(BadMessage, match="signature"):
            four.members[A].open(four.states[A], forged, today=TODAY)
    with pytest.raises(UnknownParty):
        four.members[A].open(four.states[A], reseal(signed, four.members[B].identity), today=TODAY)


def test_expired_keys_open_no_round(four):
    import datetime

    with pytest.raises(BadTerms, match="expired"):
        four.members[A].open(
            four.states[A], four.signed(four.manifest()), today=four.context.expires + datetime.timedelta(days=1)
        )


def test_dimension_or_scale_changed_after_opening(four):
    """The aggregator wants the hospital to encode for other vectors than the others did."""
    state = opened_by(four, A, four.manifest())
    update, weight = four.manifest().vectors
    for vectors in (
        (update.model_copy(update={"length": 36}), weight),
        (update.model_copy(update={"scale": 2.0**12}), weight),
        (update.model_copy(update={"bound": 1.0}), weight),
        (weight, update),
    ):
        with pytest.raises(Equivocation):
            opened_by(four, A, four.manifest(vectors=vectors), state)
    with pytest.raises(SecaggError, match="shape"):
        four.members[A].mask(state, {"update": np.zeros(36), "weight": np.zeros(1)})


def test_vectors_swapped_between_names_give_noise(four):
    """Two names of one length, in another order for one hospital: the sum of neither comes out."""
    terms = tuple(VectorTerm(name=name, length=20, bound=1.0, scale=2.0**16) for name in ("control", "update"))
    one, other = four.manifest(vectors=terms), four.manifest(vectors=terms[::-1])
    inputs = integers(one, four.members)
    four.state, _ = four.aggregator.open_round(four.state, one)
    for name in four.members:
        four.states[name] = opened_by(four, name, other if name == D else one)
    vectors = {name: four.mask(name, inputs[name]) for name in four.members}
    with pytest.raises(BadMessage, match="another manifest"):
        four.aggregator.receive(four.state, vectors[D])
    for name in (A, B, C):
        four.state = four.aggregator.receive(four.state, vectors[name])
    survivors = four.survivors()
    assert_exact(four.unmask((A, B, C), survivors), inputs)


def test_a_used_or_skipped_round_can_not_be_opened_again(four):
    for number in (2, 3):
        four.states[A] = opened_by(four, A, four.manifest(number))
        for earlier in range(1, number):
            with pytest.raises(RoundUsed):
                opened_by(four, A, four.manifest(earlier))
        assert [one.round for one in four.states[A].secrets] == list(range(number, 4))


def test_an_honest_aggregator_opens_each_round_once_and_in_order(four):
    state, signed = four.aggregator.open_round(four.state, four.manifest(2))
    assert four.aggregator.open_round(state, four.manifest(2)) == (state, signed)
    for number, changes in ((1, {}), (2, {"model_hash": "b" * 64}), (4, {})):
        with pytest.raises(RoundUsed):
            four.aggregator.open_round(state, four.manifest(number, **changes))


def test_a_state_that_has_seen_a_later_round_opens_no_earlier_one(four):
    """The record of the last round holds by itself, even if an earlier round's secrets were still there."""
    kept = four.states[A].model_copy(update={"last_round": 3})
    with pytest.raises(RoundUsed):
        opened_by(four, A, four.manifest(2), kept)


def test_participants_outside_the_enrolment_are_refused():
    cohort = Cohort.of(4).setup()
    with pytest.raises(UnknownParty, match="not enrolled"):
        opened_by(cohort, A, cohort.manifest(participants=(A, B, C, "zoe@h.example.org")))


def test_a_participant_without_shares_is_refused():
    """The aggregator adds a hospital whose shares were never spread: its loss would cost everyone the round."""
    cohort = Cohort.of(5, threshold=4).setup(silent=(email(4),))
    with pytest.raises(BadTerms, match="no shares of"):
        opened_by(cohort, A, cohort.manifest(participants=tuple(cohort.members)))


def test_a_participant_replaced_by_another_is_refused(four):
    """The aggregator puts an invented hospital in a pinned one's place, with a key of its own."""
    inputs, vectors = begun(four, (A, B))
    invented = Identity.generate(C)
    genuine = vectors[B].header
    forged = reseal(genuine, invented)
    with pytest.raises(BadMessage, match="signature"):
        four.aggregator.receive(four.state, MaskedVector(forged, vectors[B].payload))
    with pytest.raises(BadMessage, match="signature"):
        four.members[A].unmask(four.states[A], survivor_list(four, [vectors[A].header, genuine, forged]))
