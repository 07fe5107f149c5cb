"""Thresholds and the number of honest contributors that they guarantee."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasites.secagg.errors import BadTerms
from datasites.secagg.threshold import check_threshold, choose_threshold
from datasites.study.survivors import honest_contributors
from tests.secagg.cohort import Cohort


@st.composite
def terms(draw):
    n = draw(st.integers(3, 255))
    c = draw(st.integers(0, n - 1))
    return n, draw(st.integers(3, n)), c


def least_by_search(n: int, t: int, c: int) -> int:
    """The attacker's best by trying: kept honest hospitals k such that the others can be declared gone.

    Each of n - c honest holders can say "gone" of at most n - t; one counts as gone when t - c holders say so.
    """
    honest = n - c
    return next(k for k in range(honest + 1) if (honest - k) * (t - c) <= honest * (n - t))


@given(terms())
def test_formula_is_the_attackers_best(case):
    n, t, c = case
    m = honest_contributors(n, t, c, one_list=False)
    if 2 * t <= n + c or t <= c:
        assert m == 0
    else:
        assert m == max(0, math.ceil((n - c) * (2 * t - n - c) / (t - c)))
        assert m == least_by_search(n, t, c)
        assert honest_contributors(n, t, c, one_list=True) == t - c >= m


def smallest_sum_by_all_lists(n: int, t: int, c: int) -> int:
    """The fewest honest hospitals in a sum that any choice of survivor lists opens, by trying all of them.

    Each honest holder is shown one list of t or more with itself on it, and tells a key share of those left out and a
    seed share of the others; colluders tell both. A secret is out when t shares are. A sum over a set opens when the
    seeds of all in it and the keys of all others are out.
    """
    honest = range(n - c)
    lists = [
        [
            frozenset(gone)
            for size in range(n - t + 1)
            for gone in itertools.combinations([v for v in honest if v != holder], size)
        ]
        for holder in honest
    ]
    smallest = n
    for shown in itertools.product(*lists):
        keys = {v for v in honest if sum(v in gone for gone in shown) + c >= t}
        seeds = {v for v in honest if sum(v not in gone for gone in shown) + c >= t}
        assert not keys & seeds
        if seeds and keys | seeds == set(honest):
            smallest = min(smallest, len(seeds))
    return smallest


@pytest.mark.parametrize(
    "case", [(3, 3, 0), (4, 3, 0), (4, 3, 1), (4, 4, 1), (5, 4, 0), (5, 4, 1), (5, 4, 2), (6, 5, 1)]
)
def test_the_guarantee_is_exactly_what_the_worst_survivor_lists_leave(case):
    m = honest_contributors(*case, one_list=False)
    assert m == smallest_sum_by_all_lists(*case) > 0


@given(terms())
def test_never_both_secrets(case):
    n, t, c = case
    if honest_contributors(n, t, c, one_list=False) > 0:
        # Two rebuilds of one hospital's secrets would need more honest holders than there are.
        assert 2 * (t - c) > n - c


@given(terms())
def test_a_round_with_fewer_participants_keeps_the_guarantee(case):
    n, t, c = case
    m = honest_contributors(n, t, c, one_list=False)
    if m > 0:
        assert all(honest_contributors(p, t, c, one_list=False) >= m for p in range(t, n + 1))


@given(st.integers(3, 255), st.integers(0, 100), st.booleans())
def test_chosen_threshold_is_safe_usual_and_least(n, c, one_list):
    try:
        t = choose_threshold(n, c, one_list=one_list)
    except BadTerms:
        assert honest_contributors(n, n, c, one_list=one_list) < 2
        return
    check_threshold(n, t, c, one_list=one_list)
    assert t >= max(3, 2 * n // 3 + 1)
    assert t == max(3, 2 * n // 3 + 1) or honest_contributors(n, t - 1, c, one_list=one_list) < 2


@pytest.mark.parametrize(
    ("n", "t", "c", "m"), [(4, 3, 1, 2), (4, 4, 1, 3), (10, 7, 1, 5), (30, 21, 3, 14), (100, 67, 10, 38)]
)
def test_known_values(n, t, c, m):
    assert honest_contributors(n, t, c, one_list=False) == m


@pytest.mark.parametrize(
    ("n", "t", "c"), [(2, 2, 0), (256, 200, 0), (4, 2, 0), (4, 5, 0), (4, 3, 2), (10, 5, 0), (3, 3, 2)]
)
def test_terms_that_do_not_protect_are_refused(n, t, c):
    with pytest.raises(BadTerms):
        check_threshold(n, t, c, one_list=False)


def test_an_epoch_of_a_part_of_the_cohort_keeps_the_cohorts_threshold():
    """Ten hospitals with t = 7 and c = 1: five honest noises in any sum, and so in any epoch that may be made."""
    approved = honest_contributors(10, 7, 1, one_list=False)
    for size in (7, 8, 9, 10):
        context = Cohort.of(size, threshold=7, colluders=1).context
        assert context.threshold == 7
        assert context.honest_contributors >= approved == 5
    for size in (3, 6):
        with pytest.raises(BadTerms, match=f"{size} hospitals are fewer than the threshold 7.*wait until more"):
            Cohort.of(size, threshold=7, colluders=1)
