"""Old states of the aggregator or of a hospital: the same round or none, and marks that tell."""

from __future__ import annotations

import numpy as np
import pytest

from datasites.secagg import masks
from datasites.secagg.aggregator_state import AggregatorState
from datasites.secagg.errors import (
    AlreadyAnswered,
    BadMessage,
    BadTerms,
    Equivocation,
    JournalRolledBack,
    SecaggError,
    SpentState,
)
from datasites.secagg.messages import (
    MaskedHeader,
    SignedManifest,
)
from tests.secagg.attacker import A, B, C, begun, opened_by, reseal
from tests.secagg.cohort import TODAY, assert_exact, integers


def test_the_aggregator_goes_on_after_a_restart_at_any_point(four):
    restart = four.restart
    restart()
    inputs, vectors = begun(four, (A, B, C))
    for masked in vectors.values():
        restart()
        four.state = four.aggregator.receive(four.state, masked)
    restart()
    survivors = four.survivors()
    for name in (A, B, C):
        restart()
        four.state = four.aggregator.receive_shares(four.state, four.answer(name, survivors))
    restart()
    assert_exact(four.result(), inputs)
    restart()
    assert_exact(four.result(), inputs)


def test_an_aggregator_restarted_with_old_state_gets_the_same_round_or_none(four):
    old, enrolment = four.state.to_bytes(), four.state.enrolment.to_bytes()
    inputs, vectors = begun(four)
    for name in (A, B, C):
        four.state = four.aggregator.receive(four.state, vectors[name])
    survivors = four.survivors()
    assert_exact(four.unmask((A, B, C), survivors), inputs)
    four.state = AggregatorState.from_bytes(old, enrolment)
    # Another round 1 is refused by every hospital ...
    four.state, other = four.aggregator.open_round(four.state, four.manifest(model_hash="b" * 64))
    for name in four.members:
        with pytest.raises(Equivocation):
            four.members[name].open(four.states[name], other, today=TODAY)
    # ... and for the same round 1 with another list there is no answer.
    four.state = AggregatorState.from_bytes(old, enrolment)
    four.state, same = four.aggregator.open_round(four.state, four.manifest())
    for name in four.members:
        assert four.members[name].open(four.states[name], same, today=TODAY) == four.states[name]
        four.state = four.aggregator.receive(four.state, vectors[name])
    with pytest.raises(AlreadyAnswered):
        four.members[A].unmask(four.states[A], four.survivors())


def test_an_old_value_of_the_aggregators_state_is_refused(four):
    _, vectors = begun(four)
    old = four.state
    four.state = four.aggregator.receive(old, vectors[A])
    with pytest.raises(SpentState):
        four.aggregator.receive(old, vectors[B])
    with pytest.raises(SpentState):
        four.aggregator.survivors(old)


def test_an_interrupt_while_the_sum_opens_leaves_it_as_it_was(four, monkeypatch):
    """Ctrl-C in the notebook with half of the masks taken off: opened again, the sum is the true one."""
    inputs, vectors = begun(four)
    for masked in vectors.values():
        four.state = four.aggregator.receive(four.state, masked)
    survivors = four.survivors()
    for name in four.members:
        four.state = four.aggregator.receive_shares(four.state, four.answer(name, survivors))
    apply = masks.apply

    def interrupted(vector, chosen, **options):
        apply(vector, list(chosen)[:2], **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(masks, "apply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            four.result()
    assert_exact(four.result(), inputs)
    assert_exact(four.result(), inputs)


def test_an_interrupt_while_a_vector_is_added_spends_the_sum(four, monkeypatch):
    _, vectors = begun(four)
    stored, enrolment = four.state.to_bytes(), four.state.enrolment.to_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(np, "add", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            four.aggregator.receive(four.state, vectors[A])
    for use in (four.state.to_bytes, lambda: four.aggregator.receive(four.state, vectors[A])):
        with pytest.raises(SpentState):
            use()
    assert four.aggregator.receive(AggregatorState.from_bytes(stored, enrolment), vectors[A]).total.added == 1


def test_a_damaged_aggregator_state_is_named(four):
    begun(four, (A,))
    data, enrolment = four.state.to_bytes(), four.state.enrolment.to_bytes()
    older = data.replace(b'"format":2', b'"format":1')
    for broken in (data[:-1], data + b"0", b"", data[:50], b"\0" * 100, older):
        with pytest.raises(SecaggError, match="aggregator state"):
            AggregatorState.from_bytes(broken, enrolment)
    for other in (None, enrolment[:-1]):
        with pytest.raises(SecaggError, match="aggregator state: its enrolment is missing or another; .* new epoch"):
            AggregatorState.from_bytes(data, other)
    assert AggregatorState.from_bytes(data, enrolment).record == four.state.record


def test_a_hospital_set_back_learns_it_from_its_own_mark(four):
    """Journal *and* anchor came back from a snapshot: an honest aggregator shows the mark it was given."""
    backup = dict(four.states)
    inputs = integers(four.manifest(), four.members)
    four.run_round(inputs)
    four.state, signed = four.aggregator.open_round(four.state, four.manifest(2))
    signed = SignedManifest.from_bytes(signed.to_bytes())
    assert {mark.sender for mark in signed.marks} == set(four.members)
    four.members[B].open(four.states[B], signed, today=TODAY)
    with pytest.raises(JournalRolledBack, match="restored or copied"):
        four.members[A].open(backup[A], signed, today=TODAY)


def test_a_hospital_set_back_between_vector_and_answer_learns_it_too(four):
    inputs, vectors = begun(four)
    backup = four.states[A]
    for masked in vectors.values():
        four.state = four.aggregator.receive(four.state, masked)
    assert_exact(four.unmask(four.members, four.survivors()), inputs)
    _, signed = four.aggregator.open_round(four.state, four.manifest(2))
    with pytest.raises(JournalRolledBack):
        four.members[A].open(backup, signed, today=TODAY)


def test_the_aggregator_notices_a_hospital_set_back(four):
    backup = dict(four.states)
    four.run_round(integers(four.manifest(), four.members))
    # This hospital got no marks (an older aggregator) and masks round 2 from its backup.
    manifest = four.manifest(2)
    four.state, _ = four.aggregator.open_round(four.state, manifest)
    state = opened_by(four, A, manifest, backup[A])
    _, masked = four.members[A].mask(state, integers(manifest, [A])[A])
    with pytest.raises(JournalRolledBack, match="must rejoin"):
        four.aggregator.receive(four.state, masked)


def test_a_forged_mark_can_not_stop_a_hospital(four):
    _, vectors = begun(four)
    mark = vectors[A].header.mark
    of_another_epoch = reseal(mark, four.members[A].identity, context="0" * 64, sequence=99)
    signed = SignedManifest.seal(
        four.aggregator.identity,
        context=four.context.digest(),
        manifest=four.manifest(2),
        marks=(of_another_epoch, vectors[B].header.mark),
    )
    assert four.members[A].open(four.states[A], signed, today=TODAY).last_round == 2
    with pytest.raises(BadMessage, match="signature"):
        four.members[A].open(
            four.states[A],
            reseal(signed, four.aggregator.identity, marks=(mark.model_copy(update={"sequence": 99}),)),
            today=TODAY,
        )


def test_a_state_of_other_terms_is_refused(four, seven):
    with pytest.raises(BadTerms, match="other terms"):
        four.members[A].ready(seven.states[A])
    with pytest.raises(BadTerms, match="other terms"):
        four.members[A].mask(seven.states[A], {})
    with pytest.raises(BadTerms, match="other terms"):
        four.aggregator.available(seven.state)
    assert isinstance(begun(four)[1][A].header, MaskedHeader)
