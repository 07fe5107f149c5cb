"""Survivor lists: one answer a round, for one true list, never both shares (I8); the consistency wave."""

from __future__ import annotations

import pytest

from datasites.secagg.errors import (
    AlreadyAnswered,
    BadMessage,
    Equivocation,
    NotASurvivor,
    OutOfOrder,
    TooFew,
    UnknownParty,
)
from datasites.secagg.messages import (
    AckList,
    SurvivorAck,
    SurvivorList,
)
from datasites.study.identity import Identity
from tests.secagg.attacker import A, B, C, D, begun, opened_by, reseal, survivor_list
from tests.secagg.cohort import assert_exact, email, integers


def test_two_survivor_sets_get_one_answer(four):
    _, vectors = begun(four)
    headers = [vectors[name].header for name in (A, B, C, D)]
    first, second = survivor_list(four, headers), survivor_list(four, headers[:3])
    state, answer = four.members[A].unmask(four.states[A], first)
    assert four.members[A].unmask(state, first) == (state, answer)
    with pytest.raises(AlreadyAnswered):
        four.members[A].unmask(state, second)


def test_unmask_asked_twice_gives_the_same_bytes(four):
    _, vectors = begun(four)
    survivors = survivor_list(four, [one.header for one in vectors.values()])
    state, first = four.members[A].unmask(four.states[A], survivors)
    again = SurvivorList.from_bytes(survivors.to_bytes())
    assert four.members[A].unmask(state, again)[1].to_bytes() == first.to_bytes()


def test_an_answer_never_holds_both_shares(four):
    """For every participant exactly one share, of the kind that the one list says (I8)."""
    _, vectors = begun(four)
    held = four.states[A].of_round(1)
    _, answer = four.members[A].unmask(four.states[A], survivor_list(four, [vectors[n].header for n in (A, B, D)]))
    given = [answer.shares[i * 32 : (i + 1) * 32] for i in range(4)]
    assert given == [held.seed_share(0), held.seed_share(1), held.key_share(2), held.seed_share(3)]
    assert len(answer.shares) == 4 * 32


def test_a_survivor_listed_twice_or_alive_and_dead_is_refused(four):
    _, vectors = begun(four)
    a, b, c, d = (vectors[name].header for name in (A, B, C, D))
    for headers in ([a, a, b, c], [a, b, b], [b, a, c]):
        with pytest.raises(BadMessage, match="listed twice"):
            four.members[A].unmask(four.states[A], survivor_list(four, headers))


def test_a_list_below_the_threshold_is_refused(four):
    _, vectors = begun(four)
    with pytest.raises(TooFew):
        four.members[A].unmask(four.states[A], survivor_list(four, [vectors[A].header, vectors[B].header]))


def test_a_list_with_one_bad_signature_is_refused(four):
    _, vectors = begun(four)
    a, b, c = (vectors[name].header for name in (A, B, C))
    unsigned = d_never_sent = b.model_copy(update={"sender": D})
    for headers in ([a, b, d_never_sent], [a, b, c, unsigned], [a, b.model_copy(update={"payload": "0" * 64}), c]):
        with pytest.raises(BadMessage, match="signature"):
            four.members[A].unmask(four.states[A], survivor_list(four, headers))


def test_a_list_of_another_round_or_manifest_is_refused(four):
    _, old = begun(four, number=1)
    _, new = begun(four, number=2)
    headers = [new[name].header for name in (A, B, C)]
    stale = [new[A].header, old[B].header, old[C].header]
    with pytest.raises(BadMessage, match="signed for another manifest"):
        four.members[A].unmask(four.states[A], survivor_list(four, stale))
    for changes in ({"round": 1}, {"manifest": "0" * 64}):
        with pytest.raises(BadMessage, match="not of the manifest"):
            four.members[A].unmask(four.states[A], survivor_list(four, headers, **changes))


def test_a_list_without_my_vector_is_refused(four):
    """A hospital that is declared gone answers nothing, nor when another vector of its own is listed."""
    _, vectors = begun(four)
    b, c, d = (vectors[name].header for name in (B, C, D))
    other = reseal(vectors[A].header, four.members[A].identity, payload="0" * 64)
    for headers in ([b, c, d], [other, b, c, d]):
        with pytest.raises(NotASurvivor):
            four.members[A].unmask(four.states[A], survivor_list(four, headers))


def test_a_list_of_outsiders_is_refused(seven):
    six = tuple(email(i) for i in range(6))
    manifest = seven.manifest(participants=six)
    seven.open(manifest)
    inputs = integers(manifest, seven.members)
    headers = [seven.mask(name, inputs[name]).header for name in six[:5]]
    guest = reseal(headers[0], seven.members[email(6)].identity)
    with pytest.raises(UnknownParty, match="not a participant"):
        seven.members[A].acknowledge(seven.states[A], survivor_list(seven, [*headers, guest]))


def test_only_the_aggregator_may_list_survivors(four):
    _, vectors = begun(four)
    good = survivor_list(four, [one.header for one in vectors.values()])
    with pytest.raises(UnknownParty):
        four.members[A].unmask(four.states[A], reseal(good, four.members[B].identity))
    with pytest.raises(BadMessage, match="signature"):
        four.members[A].unmask(four.states[A], reseal(good, Identity.generate(good.sender)))


def test_who_sent_no_vector_answers_nothing(four):
    _, vectors = begun(four, (B, C, D))
    with pytest.raises(OutOfOrder):
        four.members[A].unmask(four.states[A], survivor_list(four, [vectors[n].header for n in (B, C, D)]))


def test_two_lists_can_not_both_gather_acknowledgements(seven):
    _, vectors = begun(seven)
    names = tuple(seven.members)
    one = survivor_list(seven, [vectors[name].header for name in names])
    other = survivor_list(seven, [vectors[name].header for name in names[:5]])
    acks = []
    for name in names[:5]:
        shown = one if name in names[:3] else other
        seven.states[name], ack = seven.members[name].acknowledge(seven.states[name], shown)
        acks.append(ack)
    with pytest.raises(AlreadyAnswered):
        seven.members[A].acknowledge(seven.states[A], other)
    for mixed, error in ((acks, Equivocation), (acks[:3], TooFew)):
        listed = AckList.seal(
            seven.aggregator.identity, context=seven.context.digest(), round=1, manifest=one.manifest, acks=tuple(mixed)
        )
        with pytest.raises(error):
            seven.members[A].unmask(seven.states[A], one, listed)


def test_the_list_of_acknowledgements_stays_as_it_was_told(seven):
    """Five of six came and were told; the sixth comes after a restart: one path in the mailroom, one list."""
    names = tuple(seven.members)
    inputs, vectors = begun(seven, names[:6])
    for masked in vectors.values():
        seven.state = seven.aggregator.receive(seven.state, masked)
    survivors = seven.survivors()
    told = seven.acks(survivors, names[:5])
    seven.restart()
    again = seven.acks(survivors, names[5:6])
    assert again.to_bytes() == told.to_bytes()
    assert_exact(seven.unmask(names[:6], survivors, again), inputs)


def test_no_answer_without_valid_acknowledgements(seven):
    _, vectors = begun(seven)
    for masked in vectors.values():
        seven.state = seven.aggregator.receive(seven.state, masked)
    survivors = seven.survivors()
    with pytest.raises(OutOfOrder, match="missing"):
        seven.members[A].unmask(seven.states[A], survivors)
    with pytest.raises(TooFew):
        seven.aggregator.acknowledged(seven.state)
    silent = seven.states[A]
    acks = seven.acks(survivors, seven.members)
    with pytest.raises(OutOfOrder, match="has not acknowledged"):
        seven.members[A].unmask(silent, survivors, acks)
    before = opened_by(seven, A, seven.manifest(2))
    forged = acks.acks[1].model_copy(update={"sender": email(2)})
    outsider = reseal(acks.acks[1], Identity.generate("o@h.example.org"))
    for listed in (
        acks.model_copy(update={"acks": acks.acks[:5]}),
        reseal(acks, seven.members[B].identity),
        reseal(acks, seven.aggregator.identity, acks=(*acks.acks[:2], forged, *acks.acks[3:])),
        reseal(acks, seven.aggregator.identity, acks=(acks.acks[0], *acks.acks[:5])),
        reseal(acks, seven.aggregator.identity, acks=(outsider, *acks.acks[:5])),
    ):
        with pytest.raises((BadMessage, UnknownParty)):
            seven.members[A].unmask(seven.states[A], survivors, listed)
    with pytest.raises(BadMessage):
        seven.members[A].unmask(before, survivors, acks)
    assert seven.answer(A, survivors, acks).survivors == survivors.content_digest()


def test_the_aggregator_refuses_acknowledgements_of_another_list(seven):
    _, vectors = begun(seven)
    for masked in vectors.values():
        seven.state = seven.aggregator.receive(seven.state, masked)
    survivors = seven.survivors()
    _, ack = seven.members[A].acknowledge(seven.states[A], survivors)
    assert isinstance(ack, SurvivorAck)
    with pytest.raises(BadMessage, match="another list"):
        seven.aggregator.receive_ack(seven.state, reseal(ack, seven.members[A].identity, survivors="0" * 64))
