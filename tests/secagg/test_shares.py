"""Shamir sharing: any t shares rebuild, t - 1 say nothing, and a second implementation agrees."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from Crypto.Protocol.SecretSharing import Shamir, _Element
from hypothesis import given, settings
from hypothesis import strategies as st

from datasites.secagg import shares
from datasites.secagg.errors import TooFew


@given(data=st.data(), secret=st.binary(min_size=1, max_size=96))
def test_any_t_shares_give_the_secret(data, secret):
    places = data.draw(st.lists(st.integers(0, 254), min_size=2, max_size=40, unique=True))
    threshold = data.draw(st.integers(2, len(places)))
    made = shares.split(secret, threshold, places)
    chosen = data.draw(st.permutations(places))[: data.draw(st.integers(threshold, len(places)))]
    assert shares.combine({place: made[place] for place in chosen}, threshold) == secret
    with pytest.raises(TooFew):
        shares.combine({place: made[place] for place in chosen[: threshold - 1]}, threshold)


def slow_product(a: int, b: int) -> int:
    """Multiplication in the field by the school method, bit by bit."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11B << (bit - 8)
    return product


def test_the_table_is_multiplication_in_the_field():
    for a, b in itertools.product(range(256), repeat=2):
        assert shares._PRODUCT[a, b] == slow_product(a, b)


class Embedding:
    """GF(256) as it lies in PyCryptodome's GF(2^128): a byte is a polynomial in a root of x^8 + x^4 + x^3 + x + 1."""

    def __init__(self) -> None:
        # Elements whose order divides 255 are the smaller field; one of them is a root of its modulus.
        candidate = self.power(_Element(7), (2**128 - 1) // 255)
        root = _Element(1)
        for _ in range(255):
            root = root * candidate
            powers = [self.power(root, k) for k in (8, 4, 3, 1, 0)]
            if int(sum(powers[1:], powers[0])) == 0:
                break
        else:
            raise AssertionError("no root found")
        self.powers = [self.power(root, k) for k in range(8)]

    @staticmethod
    def power(base: _Element, exponent: int) -> _Element:
        value = _Element(1)
        for bit in bin(exponent)[2:]:
            value = value * value
            if bit == "1":
                value = value * base
        return value

    def __call__(self, byte: int) -> int:
        value = 0
        for bit in range(8):
            if byte >> bit & 1:
                value ^= int(self.powers[bit])
        return value


def test_pycryptodome_rebuilds_our_shares():
    into = Embedding()
    secret = bytes(random.Random(3).randbytes(6))
    made = shares.split(secret, 4, [0, 2, 5, 9, 100, 254])
    for chosen in ([0, 2, 5, 9], [254, 100, 9, 0]):
        for index, byte in enumerate(secret):
            points = [(into(place + 1), into(made[place][index]).to_bytes(16, "big")) for place in chosen]
            assert Shamir.combine(points) == into(byte).to_bytes(16, "big")


def test_we_rebuild_what_numpys_polynomial_over_the_field_gives():
    # The definition, written out: a degree-2 polynomial evaluated by the school method.
    secret, a, b = 0x53, 0xCA, 0x01
    values = {x - 1: bytes([secret ^ slow_product(a, x) ^ slow_product(b, slow_product(x, x))]) for x in (1, 7, 200)}
    assert shares.combine(values, 3) == bytes([secret])


def test_fewer_than_t_shares_fit_every_secret_equally():
    made = shares.split(b"\x2a", 3, [0, 1, 2])
    held = {0: made[0], 1: made[1]}
    rebuilt = [shares.combine({**held, 2: bytes([guess])}, 3) for guess in range(256)]
    assert sorted(rebuilt) == [bytes([value]) for value in range(256)]


def test_single_shares_are_uniform():
    ones = b"".join(shares.split(bytes(512), 3, [0, 1, 2])[1] for _ in range(100))
    counts = np.bincount(np.frombuffer(ones, np.uint8), minlength=256)
    expected = len(ones) / 256
    # chi-squared with 255 degrees of freedom: mean 255, deviation 22.6
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * 22.6


@pytest.mark.parametrize(
    ("threshold", "places"), [(1, [0, 1, 2]), (4, [0, 1, 2]), (2, [0, 0, 1]), (2, [0, 255]), (2, [-1, 3])]
)
def test_impossible_sharings_are_refused(threshold, places):
    with pytest.raises(ValueError, match="shares"):
        shares.split(b"secret", threshold, places)


@settings(max_examples=50)
@given(
    share=st.binary(min_size=32, max_size=32),
    change=st.sampled_from(["kind", "epoch", "round", "owner", "holder", "share"]),
)
def test_a_commitment_opens_for_one_share_in_one_role(share, change):
    terms = {"kind": b"key", "epoch": b"e" * 32, "round": 3, "owner": 1, "holder": 2, "share": share}
    other = {"kind": b"seed", "epoch": b"f" * 32, "round": 4, "owner": 2, "holder": 1, "share": bytes(32)}
    if share == bytes(32):
        other["share"] = b"\1" * 32
    assert shares.commit(*terms.values()) != shares.commit(*{**terms, change: other[change]}.values())
