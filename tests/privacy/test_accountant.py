"""The gate on a budget: it must agree with other accountants, never forget a charge, and read all it ever stored."""

import json
import math
from collections.abc import Iterable

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

from datasites.privacy.accountant import (
    RELATION,
    _losses_of_a_step,
    _priced_as,
    epsilon_at_order,
    epsilon_pld,
    epsilon_rdp,
)
from datasites.privacy.events import Charge, Event, UnknownEvent, charge_of, compose, is_part_of, release
from datasites.privacy.renyi import ORDERS, filter_order

STEP = release(1.5, 0.1)


def would_exceed_filter(history: Iterable[Event], event: Event, epsilon: float, delta: float, order: int) -> bool:
    """Whether `history` with `event` added passes the filter's cap of (epsilon, delta) at `order`. Changes nothing.

    An error while pricing is raised, never answered with "no": a caller that denies on an error denies by default.
    """
    return not epsilon_at_order([*history, event], order, delta) <= epsilon


def steps(count: int) -> Event:
    return release(1.5, 0.1, count)


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


@pytest.mark.filterwarnings("ignore:Optimal order")
@pytest.mark.parametrize(
    ("z", "q", "steps", "delta", "order"),
    [(1.1, 0.01, 1000, 1e-5, 8), (2.1, 0.3, 30, 1e-3, 4), (0.8, 0.05, 50, 1e-5, 5)],
)
def test_divergence_and_conversion_agree_with_opacus(z, q, steps, delta, order):
    divergence = compute_rdp(q=q, noise_multiplier=z, steps=steps, orders=[order])
    theirs, _ = get_privacy_spent(orders=[order], rdp=divergence, delta=delta)
    event = release(z, q, steps)
    assert epsilon_at_order([event], order, delta) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(("z", "q", "steps", "delta"), [(1.1, 0.01, 1000, 1e-5), (2.1, 0.3, 30, 1e-3)])
def test_pld_agrees_with_opacus_prv_and_is_below_rdp(z, q, steps, delta):
    theirs = PRVAccountant()
    theirs.history = [(z, q, steps)]
    event = release(z, q, steps)
    tight = epsilon_pld([event], delta)
    assert tight == pytest.approx(theirs.get_epsilon(delta, eps_error=0.005), abs=0.02)
    assert tight < epsilon_rdp([event], delta)


def sampled(multiplier: float, rate: float, count: int) -> Charge:
    return Charge(mechanism="poisson_sampled_gaussian", noise_multiplier=multiplier, sampling_rate=rate, count=count)


def plain(multiplier: float, count: int) -> Charge:
    return Charge(mechanism="gaussian", noise_multiplier=multiplier, count=count)


@pytest.mark.parametrize(
    "study",
    [
        (sampled(1.1, 0.3, 30),),
        (sampled(1.1, 0.3, 30), plain(4.0, 3)),
        (plain(2.5, 1), sampled(0.9, 0.01, 400)),
    ],
)
def test_pld_is_the_librarys_own_accountants(study: Event) -> None:
    """Put together by hand, so that steps are shared, of what the library's accountant puts together."""
    theirs = PLDAccountant(RELATION, value_discretization_interval=2.0**-14)
    for charge in study:
        theirs.compose(_priced_as(charge))
    assert epsilon_pld([study], 1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-3)


def test_rounds_of_a_study_share_what_a_step_loses() -> None:
    """Else each number of rounds is priced anew, a hundred milliseconds each, at every approval."""
    _losses_of_a_step.cache_clear()
    for rounds in range(1, 17):
        epsilon_pld([(sampled(1.3, 0.3, 2 * rounds),)], 1e-5)
    assert _losses_of_a_step.cache_info().misses <= 4


def test_history_over_studies_adds_up():
    for epsilon in (epsilon_pld, lambda events, delta: epsilon_at_order(events, 6, delta)):
        one = epsilon([steps(100)], 1e-5)
        assert epsilon([steps(30), STEP, steps(69)], 1e-5) == one
        assert epsilon([steps(100), release(4.0)], 1e-5) == epsilon([release(4.0), steps(100)], 1e-5) > one


def test_equal_charges_are_merged_so_that_long_histories_stay_fast():
    assert compose([STEP] * 500) == steps(500)
    assert compose([]) == ()
    assert epsilon_pld([], 1e-5) == epsilon_rdp([], 1e-5) == epsilon_at_order([], 8, 1e-5) == 0.0


def gaussian(rho: float) -> Event:
    return release(math.sqrt(1 / (2 * rho)))


def test_the_filter_admits_the_divergence_of_one_order_and_no_more():
    """By hand at (6, 1e-5): order 5, which leaves 6 + log(0.8) reversed and log(5e-5) / 4, so rho of 0.74945."""
    assert filter_order(6.0, 1e-5) == 5
    room = 6.0 - math.log(4 / 5) + math.log(5 * 1e-5) / 4
    assert room == pytest.approx(3.747272, abs=1e-6)
    most = room / 5
    half = gaussian(most / 2)
    assert not would_exceed_filter([half], gaussian(0.499_999 * most), 6.0, 1e-5, 5)
    assert would_exceed_filter([half], gaussian(0.500_001 * most), 6.0, 1e-5, 5)
    assert would_exceed_filter([half, gaussian(0.499_999 * most)], gaussian(1e-5), 6.0, 1e-5, 5)


def test_what_the_filter_admits_never_costs_more_than_its_cap():
    """Also with a minimum over orders it would; what it may never do is admit by another order than the one fixed."""
    for epsilon, delta in ((0.5, 1e-6), (3.0, 1e-5), (6.0, 3e-5), (20.0, 1e-5)):
        order = filter_order(epsilon, delta)
        one = release(3.0 / epsilon + 1.0, 0.2)
        history = []
        while not would_exceed_filter(history, one, epsilon, delta, order):
            history.append(one)
        assert 0.6 * epsilon < epsilon_pld(history, delta) < epsilon
        assert epsilon_at_order(history, order, delta) <= epsilon < epsilon_at_order([*history, one], order, delta)


def test_a_filter_keeps_to_its_order_where_another_would_admit_more():
    """A tiny rate with little noise is cheap at order 2 and dear at the order of the budget; the latter counts."""
    event = release(0.35, 0.001)
    assert epsilon_at_order([event], 3, 1e-5) < 7
    assert would_exceed_filter([], event, 7.0, 1e-5, filter_order(7.0, 1e-5))


def test_the_order_of_a_budget_is_the_best_for_plain_gaussians():
    for epsilon, delta in ((0.1, 1e-6), (1.0, 1e-5), (3.0, 1e-5), (10.0, 1e-4)):
        chosen = filter_order(epsilon, delta)

        def admitted(order, epsilon=epsilon, delta=delta):
            low, high = 0.0, 100.0
            for _ in range(60):
                rho = (low + high) / 2
                exceeded = would_exceed_filter([], gaussian(rho), epsilon, delta, order)
                low, high = (low, rho) if exceeded else (rho, high)
            return low

        assert all(admitted(chosen) >= admitted(other) for other in ORDERS)


def test_a_budget_that_admits_nothing_is_an_error():
    with pytest.raises(ValueError, match="admits no release"):
        filter_order(1e-3, 1e-9)


@given(st.lists(charges, max_size=4), st.data())
@settings(max_examples=50)
def test_a_part_is_told_by_its_events_and_not_by_their_price(whole, data):
    events = [(charge,) for charge in whole]
    part = [(charge.times(data.draw(st.integers(1, charge.count))),) for charge in whole]
    assert is_part_of(part, events)
    assert is_part_of(part[1:], events)
    assert is_part_of([], events)
    assert not is_part_of([*events, release(1e6)], events), "cheaper than nothing is still another event"
    assert not is_part_of([*events, *events], events) or not events


@given(charges)
@settings(max_examples=20)
def test_pld_is_never_above_renyi(charge):
    event = (charge.model_copy(update={"noise_multiplier": 1 + charge.noise_multiplier}),)
    assert epsilon_pld([event], 1e-5) <= epsilon_rdp([event], 1e-5) * (1 + 1e-9)


def test_what_has_no_price_can_t_be_told_as_an_event():
    for fields in ({"mechanism": "laplace"}, {"noise_multiplier": 0.0}, {"noise_multiplier": math.nan}, {"count": 0}):
        with pytest.raises(ValueError):
            Charge(**{"mechanism": "gaussian", "noise_multiplier": 1.0, **fields})


def test_a_delta_that_nothing_is_priced_at_passes_no_gate():
    for delta in (0.0, 1e-13, 1.0):
        with pytest.raises(ValueError, match="delta"):
            would_exceed_filter([], STEP, 1.0, delta, 4)
        with pytest.raises(ValueError, match="delta"):
            epsilon_pld([STEP], delta)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning:dp_accounting.*")
def test_hardly_any_noise_costs_everything():
    assert would_exceed_filter([], release(1e-200), 1e6, 1e-5, 4)
    assert epsilon_pld([release(1e-200)], 1e-5) == math.inf


@given(charges)
@settings(max_examples=50)
def test_a_charge_survives_storage(charge):
    assert charge_of(json.loads(charge.canonical())) == charge


def test_stored_format_1_is_read_for_ever():
    # These bytes are in ledgers. If this test fails, history is priced wrongly: write a new format instead.
    stored = (
        b'{"count":5,"format":1,"mechanism":"poisson_sampled_gaussian","noise_multiplier":3.1459,"sampling_rate":0.3}'
    )
    read = charge_of(json.loads(stored))
    assert (read,) == release(3.1459, 0.3, 5)
    assert _priced_as(read) == SelfComposedDpEvent(PoissonSampledDpEvent(0.3, GaussianDpEvent(3.1459)), 5)
    plain = b'{"count":1,"format":1,"mechanism":"gaussian","noise_multiplier":1.5,"sampling_rate":1.0}'
    assert (charge_of(json.loads(plain)),) == release(1.5)
    assert _priced_as(charge_of(json.loads(plain))) == GaussianDpEvent(1.5)
    assert charge_of(json.loads(stored)).canonical() == stored


def test_a_ledger_of_a_newer_version_says_to_upgrade():
    with pytest.raises(UnknownEvent, match="format 2 is unknown here; upgrade"):
        charge_of({"format": 2, "mechanism": "gaussian", "noise_multiplier": 1.0})


@pytest.mark.parametrize(
    "stored",
    [
        b'{"mechanism":"gaussian","noise_multiplier":1.0}',
        b'{"format":1,"mechanism":"gaussian","noise_multiplier":0.0}',
        b'{"format":1,"mechanism":"gaussian","noise_multiplier":1.0,"sampling_rate":0.5}',
        b'{"format":1,"mechanism":"gaussian","noise_multiplier":1.0,"discount":0.5}',
        b"[]",
        b'"broken"',
    ],
)
def test_what_this_version_can_not_read_is_an_error(stored):
    with pytest.raises(UnknownEvent):
        charge_of(json.loads(stored))
