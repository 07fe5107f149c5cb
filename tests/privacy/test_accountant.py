"""The gate on a budget: it must agree with other accountants, never forget a charge, and read all it ever stored."""

import pytest
from dp_accounting import GaussianDpEvent, LaplaceDpEvent, NoOpDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant

from datasites.privacy.accountant import (
    Charge,
    UnknownEvent,
    compose,
    epsilon_pld,
    epsilon_rdp,
    read_charge,
    would_exceed,
)

STEP = PoissonSampledDpEvent(0.1, GaussianDpEvent(1.5))

charges = st.builds(
    lambda z, q, count: Charge(
        mechanism="gaussian" if q == 1 else "poisson_sampled_gaussian",
        noise_multiplier=z,
        sampling_rate=q,
        count=count,
    ),
    st.floats(0.1, 100),
    st.sampled_from([0.01, 0.3, 0.99, 1.0]),
    st.integers(1, 10_000),
)


@pytest.mark.parametrize(
    ("z", "q", "steps", "delta"), [(1.1, 0.01, 1000, 1e-5), (2.1, 0.3, 30, 1e-3), (0.8, 0.05, 50, 1e-5)]
)
def test_rdp_agrees_with_opacus(z, q, steps, delta):
    theirs = RDPAccountant()
    theirs.history = [(z, q, steps)]
    event = SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(z)), steps)
    assert epsilon_rdp([event], delta) == pytest.approx(theirs.get_epsilon(delta), rel=0.01)


@pytest.mark.parametrize(("z", "q", "steps", "delta"), [(1.1, 0.01, 1000, 1e-5), (2.1, 0.3, 30, 1e-3)])
def test_pld_agrees_with_opacus_prv_and_is_below_the_gate(z, q, steps, delta):
    theirs = PRVAccountant()
    theirs.history = [(z, q, steps)]
    event = SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(z)), steps)
    tight = epsilon_pld([event], delta)
    assert tight == pytest.approx(theirs.get_epsilon(delta, eps_error=0.005), abs=0.02)
    assert tight < epsilon_rdp([event], delta)


def test_history_over_studies_adds_up():
    one = epsilon_rdp([SelfComposedDpEvent(STEP, 100)], 1e-5)
    split = epsilon_rdp([SelfComposedDpEvent(STEP, 30), STEP, SelfComposedDpEvent(STEP, 69)], 1e-5)
    assert split == pytest.approx(one)
    mixed = epsilon_rdp([SelfComposedDpEvent(STEP, 100), GaussianDpEvent(4.0)], 1e-5)
    assert mixed > one


def test_equal_charges_are_merged_so_that_long_histories_stay_fast():
    assert compose([STEP] * 500) == SelfComposedDpEvent(STEP, 500)
    assert compose([]) == NoOpDpEvent()
    assert epsilon_rdp([], 1e-5) == 0.0


def test_gate_answers_at_the_border():
    history = [SelfComposedDpEvent(STEP, 50)]
    cap = epsilon_rdp([*history, STEP], 1e-5)
    assert not would_exceed(history, STEP, cap, 1e-5)
    assert would_exceed(history, STEP, cap - 1e-9, 1e-5)
    assert would_exceed([*history, STEP], STEP, cap, 1e-5)


def test_an_unpriceable_event_raises_and_never_passes_the_gate():
    with pytest.raises(UnknownEvent):
        would_exceed([], PoissonSampledDpEvent(0.1, LaplaceDpEvent(1.0)), 1e9, 1e-5)
    with pytest.raises(UnknownEvent):
        Charge.of(LaplaceDpEvent(1.0))
    with pytest.raises(ValueError, match="delta"):
        would_exceed([], STEP, 1.0, 0.0)


def test_noiseless_event_costs_everything():
    assert would_exceed([], GaussianDpEvent(0.0), 1e6, 1e-5)


@given(charges)
@settings(max_examples=50)
def test_a_charge_survives_storage_and_its_event(charge):
    assert read_charge(charge.canonical()) == charge
    assert Charge.of(charge.event()) == charge
    assert read_charge(Charge.of(charge.event()).canonical()).event() == charge.event()


def test_stored_format_1_is_read_for_ever():
    # These bytes are in ledgers. If this test fails, history is priced wrongly: write a new format instead.
    stored = (
        b'{"count":5,"format":1,"mechanism":"poisson_sampled_gaussian","noise_multiplier":3.1459,"sampling_rate":0.3}'
    )
    assert read_charge(stored).event() == SelfComposedDpEvent(PoissonSampledDpEvent(0.3, GaussianDpEvent(3.1459)), 5)
    plain = b'{"count":1,"format":1,"mechanism":"gaussian","noise_multiplier":1.5,"sampling_rate":1.0}'
    assert read_charge(plain).event() == GaussianDpEvent(1.5)
    assert read_charge(stored).canonical() == stored


def test_a_ledger_of_a_newer_version_says_to_upgrade():
    with pytest.raises(UnknownEvent, match="format 2 is unknown here; upgrade"):
        read_charge(b'{"format":2,"mechanism":"gaussian","noise_multiplier":1.0}')


@pytest.mark.parametrize(
    "stored",
    [
        b'{"mechanism":"gaussian","noise_multiplier":1.0}',
        b'{"format":1,"mechanism":"gaussian","noise_multiplier":0.0}',
        b'{"format":1,"mechanism":"gaussian","noise_multiplier":1.0,"sampling_rate":0.5}',
        b'{"format":1,"mechanism":"gaussian","noise_multiplier":1.0,"discount":0.5}',
        b"[]",
        b"broken",
    ],
)
def test_what_this_version_can_not_read_is_an_error(stored):
    with pytest.raises(UnknownEvent):
        read_charge(stored)
