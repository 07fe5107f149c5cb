"""The encoding: exact sums, bounded, unbiased, and refused where the ring can't hold the sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasites.secagg import ring
from datasites.secagg.errors import BadTerms, SecaggError
from datasites.study.manifest import VectorTerm


def term(length=5, bound=1.0, scale=2.0**20, name="update"):
    return VectorTerm(name=name, length=length, bound=bound, scale=scale)


@given(
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=40),
    bound=st.floats(0.001, 8),
    bits=st.integers(-4, 26),
)
def test_a_float_is_cut_and_rounded_to_a_neighbour(values, bound, bits):
    one = term(len(values), bound, 2.0**bits)
    code = ring.encode_all([one], {"update": np.array(values, np.float32)}).view(np.int32).astype(np.int64)
    exact = np.clip(np.array(values, np.float32).astype(np.float64) * one.scale, -ring.limit(one), ring.limit(one))
    assert np.all(np.abs(code) <= ring.limit(one))
    assert np.all((code == np.floor(exact)) | (code == np.ceil(exact)))


@given(
    data=st.lists(st.lists(st.integers(-(2**20), 2**20), min_size=6, max_size=6), min_size=3, max_size=20),
)
def test_the_sum_of_integer_inputs_decodes_without_error(data):
    one = term(6, 1.0, 2.0**20)
    total = np.zeros(6, np.uint32)
    for row in data:
        total += ring.encode_all([one], {"update": np.array(row)})
    assert np.array_equal(total.view(np.int32) / one.scale, np.sum(data, axis=0) / one.scale)


def test_rounding_is_unbiased_and_its_bits_are_not_numpys():
    one = term(200_000, 1.0, 1.0)
    x = np.full(one.length, 0.3, np.float32)
    np.random.seed(1)
    first = ring.encode_all([one], {"update": x})
    np.random.seed(1)
    second = ring.encode_all([one], {"update": x})
    for code in (first, second):
        # 6 standard deviations of a mean of 200 000 coins
        assert abs(code.mean() - 0.3) < 6 * math.sqrt(0.3 * 0.7 / one.length)
    assert not np.array_equal(first, second)


def test_a_whole_number_at_the_bound_is_never_rounded_beyond_it():
    one = term(50_000, 1.0, float(2**30))
    code = ring.encode_all([one], {"update": np.ones(one.length)}).view(np.int32)
    assert np.all(code == 2**30)


def test_integers_beyond_the_ring_are_cut_not_wrapped():
    one = term(4, 1.0, 100.0)
    code = ring.encode_all([one], {"update": np.array([2**40, -(2**40), 99, 2**32 + 5])}).view(np.int32)
    assert code.tolist() == [100, -100, 99, 100]
    assert ring.encode_all([term(2, 1.0, 100.0)], {"update": np.array([250, 7], np.uint8)}).tolist() == [100, 7]


@pytest.mark.parametrize("participants", [3, 10, 255])
def test_overflow_is_refused_at_the_exact_bound(participants):
    room = (2**31 - 1) // participants
    ring.check_fits([term(scale=float(room))], participants)
    with pytest.raises(BadTerms, match="reaches"):
        ring.check_fits([term(scale=float(room + 1))], participants)
    ring.check_fits([term(scale=ring.safe_scale(1.0, participants))], participants)
    with pytest.raises(BadTerms):
        ring.check_fits([term(scale=2 * ring.safe_scale(1.0, participants))], participants)


@pytest.mark.parametrize("bits", [20, 23, 26])
def test_a_refusal_names_a_scale_that_fits_in_all_its_digits(bits):
    bound = (2**31 - 1) // 3 / 2.0**bits
    with pytest.raises(BadTerms) as caught:
        ring.check_fits([term(bound=bound, scale=2.0 ** (bits + 1))], 3)
    ring.check_fits([term(bound=bound, scale=float(str(caught.value).rpartition(" ")[2]))], 3)


def test_the_largest_sum_that_is_allowed_does_not_wrap():
    n = 7
    one = term(1, 1.0, float((2**31 - 1) // n))
    for sign in (1, -1):
        code = ring.encode_all([one], {"update": np.array([sign * 2.0])})
        total = (code * np.uint32(n)).view(np.int32)
        assert total[0] == sign * n * ring.limit(one)


def test_a_sum_too_long_for_one_stream_is_refused():
    with pytest.raises(BadTerms, match="coordinates"):
        ring.check_fits([term(1_500_000_000), term(1_500_000_000, name="more")], 3)


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        ({}, "exactly those"),
        ({"update": np.zeros(5), "extra": np.zeros(1)}, "exactly those"),
        ({"update": np.zeros(6)}, "shape"),
        ({"update": np.zeros((5, 1))}, "shape"),
        ({"update": np.array([0, np.nan, 0, 0, 0])}, "NaN"),
        ({"update": np.zeros(5, complex)}, "type"),
        ({"update": np.zeros(5, np.uint64)}, "type"),
        ({"update": np.zeros(5, bool)}, "type"),
    ],
)
def test_vectors_that_do_not_fit_the_manifest_are_refused(vectors, words):
    with pytest.raises(SecaggError, match=words):
        ring.encode_all([term()], vectors)


@given(lengths=st.lists(st.integers(1, 70_000), min_size=1, max_size=4))
@settings(max_examples=20)
def test_named_vectors_lie_one_after_the_other(lengths):
    terms = [term(length, 100.0, 1.0, f"v{i}") for i, length in enumerate(lengths)]
    code = ring.encode_all(terms, {one.name: np.full(one.length, i) for i, one in enumerate(terms)})
    assert np.array_equal(code, np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths))
    assert [place.stop - place.start for place in ring.offsets(terms).values()] == lengths
