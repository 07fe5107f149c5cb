"""Attacks on the setup of an epoch: keys, certificates, enrolment and share bundles."""

from __future__ import annotations

import datetime

import pytest
from pydantic import ValidationError

from datasites.secagg import shares
from datasites.secagg.epoch import check_certificate
from datasites.secagg.epoch_terms import EpochTerms, Party
from datasites.secagg.errors import (
    BadMessage,
    BadTerms,
    Equivocation,
    LateVector,
    OutOfOrder,
    TooFew,
    UnknownParty,
)
from datasites.secagg.member import Member
from datasites.secagg.messages import Certificate, Enrolment, ShareBundle
from datasites.study.identity import Identity, IdentityError
from datasites.study.roster import Roster
from tests.secagg.attacker import reseal
from tests.secagg.cohort import EXPIRES, STUDY, TODAY, Cohort, email
from tests.study.entries import roster_of


def enrolment_of(cohort: Cohort, certificates) -> Enrolment:
    """An enrolment signed by a malicious aggregator, without its own checks."""
    return Enrolment.seal(cohort.aggregator.identity, context=cohort.context.digest(), certificates=tuple(certificates))


@pytest.fixture(scope="module")
def _certified() -> tuple[Cohort, Enrolment]:
    cohort = Cohort.of(5)
    return cohort, cohort.enrol()


@pytest.fixture
def cohort(_certified):
    return _certified[0]


@pytest.fixture
def enrolment(_certified):
    return _certified[1]


def share(cohort, enrolment, name=email(0)):
    return cohort.members[name].share(cohort.states[name], enrolment, today=TODAY)


# -- certificates -----------------------------------------------------------------------------------------------


def test_a_forged_certificate_is_refused(cohort, enrolment):
    """The aggregator replaces a hospital's keys by its own, signed by a key of its own making (I9)."""
    real = enrolment.certificates[1]
    forged = reseal(real, Identity.generate(real.sender))
    with pytest.raises(BadMessage, match="signature"):
        share(cohort, enrolment_of(cohort, [enrolment.certificates[0], forged, *enrolment.certificates[2:]]))
    with pytest.raises(BadMessage, match="signature"):
        cohort.aggregator.receive_certificate(cohort.aggregator.start(), forged, today=TODAY)


def test_a_certificate_of_another_epoch_or_study_is_refused(cohort, enrolment):
    """Replay: the hospital did sign it, for other terms."""
    identity = cohort.members[email(1)].identity
    older = cohort.context.model_copy(update={"epoch": 7})
    stale = Member(identity, EpochTerms.model_validate(older.model_dump())).certify()[1]
    with pytest.raises(BadMessage, match="other terms"):
        share(cohort, enrolment_of(cohort, [enrolment.certificates[0], stale, *enrolment.certificates[2:]]))
    for changes in ({"epoch": 3}, {"study": "6" * 64}):
        odd = reseal(enrolment.certificates[1], identity, **changes)
        with pytest.raises(BadMessage, match="another study or epoch"):
            share(cohort, enrolment_of(cohort, [enrolment.certificates[0], odd, *enrolment.certificates[2:]]))


def test_the_aggregator_checks_each_certificate_once(monkeypatch):
    """When it comes; a check costs an exchange with each key. None is enrolled once all have expired."""
    checked: list[str] = []

    def counted(context, certificate, today):
        checked.append(certificate.sender)
        check_certificate(context, certificate, today)

    for module in ("aggregator", "epoch"):
        monkeypatch.setattr(f"datasites.secagg.{module}.check_certificate", counted)
    cohort = Cohort.of(5)
    state, members = cohort.state, cohort.members
    for member in members.values():
        state = cohort.aggregator.receive_certificate(state, member.certify()[1], today=TODAY)
    with pytest.raises(BadMessage, match="expired"):
        cohort.aggregator.enrol(state, today=EXPIRES + datetime.timedelta(days=1))
    _, enrolment = cohort.aggregator.enrol(state, today=TODAY)
    assert checked == [certificate.sender for certificate in enrolment.certificates] == list(members)


def test_an_expired_certificate_is_refused(cohort, enrolment):
    late = EXPIRES + datetime.timedelta(days=1)
    with pytest.raises(BadMessage, match="expired"):
        cohort.members[email(0)].share(cohort.states[email(0)], enrolment, today=late)
    longer = reseal(enrolment.certificates[1], cohort.members[email(1)].identity, expires=late)
    with pytest.raises(BadMessage, match="another end"):
        share(cohort, enrolment_of(cohort, [enrolment.certificates[0], longer, *enrolment.certificates[2:]]))


def test_swapped_certificates_are_refused(cohort, enrolment):
    """One hospital's keys under another's name, or the list in another order, or one twice."""
    a, b, *rest = enrolment.certificates
    swapped = a.model_copy(update={"sender": b.sender}), b.model_copy(update={"sender": a.sender})
    for certificates in ([swapped[1], swapped[0], *rest], [a, a, *rest], [b, a, *rest]):
        with pytest.raises(BadMessage):
            share(cohort, enrolment_of(cohort, certificates))


def test_a_copied_key_is_refused(cohort, enrolment):
    """A colluder certifies another hospital's public keys as its own."""
    a, b, *rest = enrolment.certificates
    copied = reseal(b, cohort.members[b.sender].identity, round_keys=a.round_keys)
    with pytest.raises(BadMessage, match="copied"):
        share(cohort, enrolment_of(cohort, [a, copied, *rest]))


@pytest.mark.parametrize("field", ["hpke_key", "round_keys"])
def test_a_degenerate_key_is_refused(cohort, enrolment, field):
    """A low-order point would make everybody's key exchange with it fail later, in the round."""
    certificate = enrolment.certificates[1]
    weak = bytes(32) if field == "hpke_key" else certificate.round_keys[:-32] + b"\1" + bytes(31)
    odd = reseal(certificate, cohort.members[email(1)].identity, **{field: weak})
    with pytest.raises(BadMessage, match="degenerate"):
        cohort.aggregator.receive_certificate(cohort.aggregator.start(), odd, today=TODAY)


@pytest.mark.parametrize("field", ["hpke_key", "round_keys", "seed_commitments"])
def test_a_certificate_lacks_nothing(cohort, enrolment, field):
    certificate = enrolment.certificates[1]
    short = reseal(certificate, cohort.members[email(1)].identity, **{field: getattr(certificate, field)[1:]})
    with pytest.raises(BadMessage, match="one key and one commitment"):
        cohort.aggregator.receive_certificate(cohort.aggregator.start(), short, today=TODAY)


def test_my_own_certificate_must_be_mine(cohort, enrolment):
    """The aggregator enrols an older certificate of this hospital, from a setup that it lost."""
    other = cohort.members[email(0)].certify()[1]
    with pytest.raises(Equivocation, match="another certificate of this hospital"):
        share(cohort, enrolment_of(cohort, [other, *enrolment.certificates[1:]]))


def test_a_second_certificate_in_an_epoch_is_equivocation(cohort):
    state, first = cohort.aggregator.start(), cohort.members[email(0)].certify()[1]
    state = cohort.aggregator.receive_certificate(state, first, today=TODAY)
    assert cohort.aggregator.receive_certificate(state, first, today=TODAY) == state
    with pytest.raises(Equivocation):
        cohort.aggregator.receive_certificate(state, cohort.members[email(0)].certify()[1], today=TODAY)


def test_a_certificate_after_enrolment_waits_for_the_next_epoch():
    cohort = Cohort.of(5)
    cohort.enrol(absent=(email(4),))
    with pytest.raises(LateVector, match="next epoch"):
        cohort.aggregator.receive_certificate(cohort.state, cohort.members[email(4)].certify()[1], today=TODAY)


# -- enrolment ----------------------------------------------------------------------------------------------------


def test_only_the_aggregator_enrols(cohort, enrolment):
    by_hospital = reseal(enrolment, cohort.members[email(1)].identity)
    with pytest.raises(UnknownParty, match="only the aggregator"):
        share(cohort, by_hospital)
    imitation = reseal(enrolment, Identity.generate(cohort.context.aggregator.email))
    with pytest.raises(BadMessage, match="signature"):
        share(cohort, imitation)


def test_an_enrolment_below_the_threshold_is_refused(cohort, enrolment):
    assert cohort.context.threshold == 4
    with pytest.raises(TooFew):
        share(cohort, enrolment_of(cohort, enrolment.certificates[:3]))


def test_an_enrolment_without_me_is_refused(cohort, enrolment):
    with pytest.raises(UnknownParty):
        share(cohort, enrolment_of(cohort, enrolment.certificates[1:]))


def test_a_second_enrolment_is_refused(cohort, enrolment):
    """Two enrolments would give two sets of shares of the same secrets."""
    state, _ = share(cohort, enrolment)
    for again in (enrolment, enrolment_of(cohort, enrolment.certificates[:4])):
        with pytest.raises(Equivocation, match="shares were made"):
            cohort.members[email(0)].share(state, again, today=TODAY)


def test_different_enrolments_do_not_mix(cohort, enrolment):
    """The aggregator shows one hospital all certificates and another all but one."""
    mine, _ = share(cohort, enrolment)
    theirs = cohort.members[email(1)].share(
        cohort.states[email(1)], enrolment_of(cohort, enrolment.certificates[:4]), today=TODAY
    )[1]
    with pytest.raises(Equivocation, match="different certificates"):
        cohort.members[email(0)].accept(mine, theirs[email(0)])


def test_shares_wait_for_the_enrolment(cohort):
    with pytest.raises(OutOfOrder):
        cohort.members[email(0)].ready(cohort.states[email(0)])


# -- share bundles --------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(cohort, enrolment):
    """Hospital 0 has shared; and what hospital 1 sends it."""
    state, _ = share(cohort, enrolment)
    return cohort.members[email(0)], state, share(cohort, enrolment, email(1))[1]


def test_a_bundle_for_another_is_refused(shared):
    member, state, bundles = shared
    with pytest.raises(BadMessage, match="not for this hospital"):
        member.accept(state, bundles[email(2)])


def test_a_bundle_relabelled_for_me_is_refused(shared, cohort):
    """A colluding sender passes on what it encrypted to somebody else, or re-signs another's ciphertext."""
    member, state, bundles = shared
    colluder = cohort.members[email(2)].identity
    sender = cohort.members[email(1)].identity
    with pytest.raises(BadMessage, match="decrypt"):
        member.accept(state, reseal(bundles[email(2)], sender, recipient=email(0)))
    with pytest.raises(BadMessage, match="decrypt"):
        member.accept(state, reseal(bundles[email(0)], colluder))
    with pytest.raises(BadMessage, match="signature"):
        member.accept(state, bundles[email(0)].model_copy(update={"sender": email(2)}))


def test_shares_that_do_not_match_their_commitments_are_refused(shared, cohort):
    member, state, bundles = shared
    good = bundles[email(0)]
    odd = reseal(good, cohort.members[email(1)].identity, columns=bytes(32) + good.columns[32:])
    with pytest.raises(BadMessage, match="commitments"):
        member.accept(state, odd)
    short = reseal(good, cohort.members[email(1)].identity, columns=good.columns[:-32])
    with pytest.raises(BadMessage, match="one pair of shares"):
        member.accept(state, short)


def test_the_same_bundle_twice_is_harmless_and_a_second_one_is_not(shared, cohort, enrolment):
    member, state, bundles = shared
    state = member.accept(state, ShareBundle.from_bytes(bundles[email(0)].to_bytes()))
    assert member.accept(state, bundles[email(0)]) == state
    with pytest.raises(Equivocation, match="second, different bundle"):
        member.accept(state, share(cohort, enrolment, email(1))[1][email(0)])


def test_shares_that_come_after_ready_are_refused_and_no_round_is_opened_before(shared, cohort):
    """What was said to be held is held, and the key that opens bundles is gone."""
    member, state, bundles = shared
    after, ready = member.ready(state)
    assert (ready.seen, after.hpke_private) == ((), b"")
    with pytest.raises(OutOfOrder, match="new epoch"):
        member.accept(after, bundles[email(0)])
    with pytest.raises(OutOfOrder, match="the journal's copy"):
        member.ready(after)
    manifest = cohort.manifest(2, participants=tuple(email(i) for i in range(4)))
    with pytest.raises(OutOfOrder, match="before this hospital is `ready`"):
        member.open(state, cohort.signed(manifest), today=TODAY)


def test_commitments_shown_to_the_aggregator_must_be_those_shown_to_holders(cohort, enrolment):
    """Else a hospital could have its peers blamed for wrong shares: the pair can't both take part."""
    fresh = Cohort(cohort.context, cohort.aggregator, cohort.members, cohort.state, dict(cohort.states))
    made = {}
    for name in fresh.members:
        fresh.states[name], made[name] = share(fresh, enrolment, name)
    for name in fresh.members:
        for peer in fresh.members:
            if peer != name:
                fresh.states[name] = fresh.members[name].accept(fresh.states[name], made[peer][name])
    for name, member in fresh.members.items():
        after, ready = member.ready(fresh.states[name])
        if name == email(2):
            again = ready
            ready = reseal(ready, member.identity, commitments=bytes(len(ready.commitments)))
        fresh.states[name], fresh.state = after, fresh.aggregator.receive_ready(fresh.state, ready)
    assert fresh.aggregator.available(fresh.state) == tuple(email(i) for i in (0, 1, 3, 4))
    with pytest.raises(BadTerms, match="did not complete"):
        fresh.aggregator.open_round(fresh.state, fresh.manifest(participants=tuple(fresh.members)))
    with pytest.raises(Equivocation):
        fresh.aggregator.receive_ready(fresh.state, again)


def test_every_share_handed_out_is_the_committed_one(shared, cohort, enrolment):
    member, state, bundles = shared
    state, _ = member.ready(member.accept(state, bundles[email(0)]))
    owner = cohort.states[email(1)]
    held = [one.seed_share(1) for one in state.secrets]
    assert len({*held}) == len(held) == 3
    assert all(share != one.seed for share, one in zip(held, owner.secrets, strict=True))
    _, ready = cohort.members[email(1)].ready(share(cohort, enrolment, email(1))[0])
    assert len(ready.commitments) == 5 * 3 * 2 * shares.SECRET


# -- terms ------------------------------------------------------------------------------------------------------------


def roster_among(n: int) -> Roster:
    parties = [Identity.generate("pi@university.example.org"), *(Identity.generate(email(i)) for i in range(n))]
    return roster_of(parties)


def terms(roster: Roster, n: int, **changes):
    given = {
        "study_hash": STUDY,
        "epoch": 0,
        "aggregator": "pi@university.example.org",
        "hospitals": [email(i) for i in range(n)],
        "colluders": 1,
        "rounds": (1, 5),
        "expires": EXPIRES,
    }
    return EpochTerms.from_roster(roster, **{**given, **changes})


def test_a_roster_of_two_is_refused():
    with pytest.raises(BadTerms):
        terms(roster_among(2), 2)
    with pytest.raises(BadTerms):
        terms(roster_among(2), 2, threshold=2)


def test_an_unpinned_hospital_is_refused():
    with pytest.raises(IdentityError, match="not pinned"):
        terms(roster_among(3), 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 2},
        {"threshold": 3, "colluders": 2},
        {"threshold": 5},
        {"colluders": 4},
        {"rounds": (3, 2)},
        {"rounds": (1, 3000)},
        {"neighbours": "ring", "consistency": False},
        {"aggregator": email(0)},
    ],
)
def test_terms_that_protect_nobody_are_refused(changes):
    with pytest.raises(BadTerms):
        terms(roster_among(4), 4, **changes)


def test_the_same_key_twice_is_refused():
    context = terms(roster_among(4), 4)
    first, second, *rest = context.hospitals
    twin = Party(email=second.email, public_key=first.public_key)
    with pytest.raises(ValidationError, match="same public_key"):
        EpochTerms.model_validate({**context.model_dump(), "hospitals": [first, twin, *rest]})


def test_two_rosters_with_another_key_make_two_contexts():
    assert terms(roster_among(4), 4).digest() != terms(roster_among(4), 4).digest()
    roster = roster_among(4)
    assert terms(roster, 4).digest() == terms(roster, 4).digest()
    for changes in ({"epoch": 1}, {"colluders": 0}, {"threshold": 4}, {"rounds": (1, 6)}, {"consistency": True}):
        assert terms(roster, 4, **changes).digest() != terms(roster, 4).digest()


def test_a_large_cohort_gets_the_ring_and_its_consistency_wave():
    context = terms(roster_among(70), 70, threshold=60)
    assert (context.neighbours, context.consistency) == ("ring", True)
    assert context.honest_contributors == 59
    assert context.neighbourhood(70).degree == 22


def test_a_new_epoch_is_later_in_number_and_rounds(four):
    member, state = four.members[email(0)], four.states[email(0)]
    state = member.open(state, four.signed(four.manifest(2)), today=TODAY)

    def following(**changes):
        return Member(member.identity, EpochTerms.model_validate({**four.context.model_dump(), **changes}))

    for changes in ({"epoch": 0, "first_round": 3}, {"epoch": 1}, {"epoch": 1, "first_round": 2}):
        with pytest.raises(BadTerms, match="The next epoch must be 1 or later, from round 3 or later"):
            following(**changes).certify(state)
    with pytest.raises(BadTerms, match="another study"):
        following(epoch=1, first_round=3, study="6" * 64).certify(state)
    after, certificate = following(epoch=1, first_round=3).certify(state)
    assert (after.last_round, after.sequence) == (2, state.sequence + 1)
    assert isinstance(certificate, Certificate)
    assert not {one.key for one in after.secrets} & {one.key for one in state.secrets}


@pytest.mark.parametrize(
    ("n", "terms"),
    [
        (5, {}),
        (12, {"neighbours": "ring", "consistency": True, "threshold": 11, "colluders": 1}),
    ],
)
def test_a_hospital_awaits_the_shares_that_its_peers_make_for_it_and_no_others(n: int, terms: dict) -> None:
    cohort = Cohort.of(n, **terms)
    enrolment, made = cohort.enrol(), {}
    for name, member in cohort.members.items():
        cohort.states[name], made[name] = member.share(cohort.states[name], enrolment, today=TODAY)
    for name, member in cohort.members.items():
        meant = {peer for peer, bundles in made.items() if name in bundles}
        assert member.awaited(cohort.states[name]) == meant
        for peer in sorted(meant):
            cohort.states[name] = member.accept(cohort.states[name], made[peer][name])
            meant.remove(peer)
            assert member.awaited(cohort.states[name]) == meant
