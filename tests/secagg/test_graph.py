"""The ring of neighbours: recoverable, never both secrets, and connected, whoever is lost."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datasites.secagg.graph import Neighbourhood


@st.composite
def rings(draw):
    n = draw(st.integers(8, 120))
    gone = draw(st.integers(0, n // 3))
    c = draw(st.integers(0, n // 4))
    t = n - gone
    assume(2 * t > n + c and t > c + 1)
    return n, t, c


@given(rings(), st.data())
@settings(max_examples=60)
def test_honest_survivors_stay_connected_whoever_is_lost(case, data):
    n, t, c = case
    graph = Neighbourhood.ring(n, t, c)
    # A run of neighbours is the cut that a ring fears most; else any set.
    lost = set()
    start = data.draw(st.integers(0, n - 1))
    for size in (data.draw(st.integers(0, n - t)), c):
        lost |= {(start + i) % n for i in range(size)}
        start = data.draw(st.integers(0, n - 1))
    left = set(range(n)) - lost
    reached, frontier = set(), [min(left)]
    while frontier:
        place = frontier.pop()
        reached.add(place)
        frontier.extend((set(graph.neighbours(place)) & left) - reached)
    assert reached == left


@given(rings())
def test_shares_can_be_rebuilt_but_never_both(case):
    n, t, c = case
    graph = Neighbourhood.ring(n, t, c)
    for place in (0, n // 2, n - 1):
        holders = graph.holders(place)
        assert len(holders) == graph.degree + 1
        assert len(holders) - (n - t) >= graph.share_threshold
        assert 2 * (graph.share_threshold - c) > len(holders) - c
        assert graph.share_threshold > c


@given(rings())
def test_neighbours_are_mutual_and_as_many_as_stated(case):
    graph = Neighbourhood.ring(*case)
    for place in range(graph.size):
        neighbours = graph.neighbours(place)
        assert len(neighbours) == graph.degree
        assert place not in neighbours
        assert all(graph.are_neighbours(other, place) for other in neighbours)


@pytest.mark.parametrize("size", [3, 4, 5, 40])
def test_complete_graph(size):
    graph = Neighbourhood.complete(size, 3)
    assert all(graph.holders(place) == tuple(range(size)) for place in range(size))


def test_a_ring_saves_masks_in_a_large_cohort():
    assert Neighbourhood.ring(200, 180, 5).degree == 46
    assert Neighbourhood.ring(12, 8, 3) == Neighbourhood.complete(12, 8)
