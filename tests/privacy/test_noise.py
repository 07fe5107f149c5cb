"""Noise must have the promised size and shape, and nobody may predict, repeat or read through it (I13)."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from datasites.privacy import noise

N = 400_000


def test_gaussian_has_the_stated_moments_and_shape():
    drawn = noise.gaussian(N, 3.0) / 3.0
    # z-scores of moments of N(0, 1); 5 sd would fail once in two million runs.
    assert abs(drawn.mean()) * np.sqrt(N) < 5
    assert abs(drawn.var() - 1) * np.sqrt(N / 2) < 5
    assert abs(stats.skew(drawn)) * np.sqrt(N / 6) < 5
    assert abs(stats.kurtosis(drawn)) * np.sqrt(N / 24) < 5
    assert stats.kstest(drawn, "norm").pvalue > 1e-5
    assert (np.abs(drawn) > 3).mean() == pytest.approx(2 * stats.norm.sf(3), rel=0.15)


@pytest.mark.parametrize("lag", [1, 2, noise._BLOCK // 2, noise._BLOCK, 3 * noise._BLOCK])
def test_gaussian_draws_are_independent(lag):
    drawn = noise.gaussian(N, 1.0)
    for part in (drawn, drawn**2):
        assert abs(np.corrcoef(part[:-lag], part[lag:])[0, 1]) * np.sqrt(N) < 5


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, noise._BLOCK - 1, noise._BLOCK + 1])
def test_every_size_is_filled(size):
    drawn = noise.gaussian(size, 1.0)
    assert drawn.shape == (size,)
    assert len(np.unique(drawn)) == size


def test_no_seed_of_any_framework_repeats_noise_or_sampling():
    draws = []
    for _ in range(2):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        draws.append(
            (
                noise.gaussian(4, 1.0),
                noise.discrete_gaussian(4, 1e6),
                noise.SecureRandom().generator("a").random(4),
                noise.noised(np.zeros(4), 1.0, 1.0),
            )
        )
    for first, second in zip(*draws, strict=True):
        assert not np.isin(first, second).any()


def test_four_draws_are_added():
    """One normal of this method is sqrt(-2 ln u) cos a; each number must be half the sum of four of them."""
    drawn = noise.gaussian(2, 1.0, noise.SecureRandom(b"k" * 32))
    raw = noise.SecureRandom(b"k" * 32).keystream("gaussian").update(bytes(12 * noise.DRAWS))
    uniform = (np.frombuffer(raw, np.uint64, noise.DRAWS) >> np.uint64(11)) * 2.0**-53 + 2.0**-54
    angle = np.frombuffer(raw, np.int32, noise.DRAWS, 8 * noise.DRAWS) * (np.pi * 2.0**-31)
    radius = np.sqrt(-2 * np.log(uniform))
    expected = [(radius * wave).sum() / 2 for wave in (np.cos(angle), np.sin(angle))]
    np.testing.assert_allclose(drawn, expected, atol=1e-5)


def test_one_key_gives_the_same_streams_in_the_same_order_and_none_twice():
    def streams(key):
        randomness = noise.SecureRandom(key)
        return [
            randomness.generator("noise").random(4).tobytes(),
            randomness.generator("noise").random(4).tobytes(),
            randomness.generator("sampling").random(4).tobytes(),
            randomness.keystream("noise").update(bytes(32)),
            randomness.keystream("noise").update(bytes(32)),
        ]

    assert streams(b"k" * 32) == streams(b"k" * 32)
    assert len({*streams(b"k" * 32), *streams(b"l" * 32), *streams(None), *streams(None)}) == 20


def test_a_key_of_another_length_is_refused():
    with pytest.raises(ValueError, match="32"):
        noise.SecureRandom(b"short")


def test_the_low_bits_of_a_value_do_not_survive():
    # Two values closer than the grid give the very same set of possible outputs.
    first, second = (
        noise.noised(np.full(1000, value), 1.0, 1.0, noise.SecureRandom(b"k" * 32)) for value in (1 / 3, 1 / 3 + 1e-12)
    )
    assert (first == second).all()
    grid = 2.0**-24
    assert (first / grid == np.rint(first / grid)).all()


def test_noised_is_unbiased_and_at_least_as_noisy_as_stated():
    values = np.linspace(-5, 5, N)
    residual = noise.noised(values, 2.0, 1.5) - values
    assert residual.std() == pytest.approx(3.0, rel=5 / np.sqrt(2 * N) + 1e-4)
    assert abs(residual.mean()) < 5 * 3 / np.sqrt(N)


@pytest.mark.parametrize(
    ("sensitivity", "multiplier"), [(0.0, 1.0), (1.0, 0.0), (np.inf, 1.0), (1.0, np.nan), (-1.0, 1.0)]
)
def test_a_figure_that_would_mean_no_noise_is_refused(sensitivity, multiplier):
    with pytest.raises(ValueError, match="finite number above 0"):
        noise.noised(np.zeros(3), sensitivity, multiplier)


def test_a_value_that_shines_through_all_noise_is_refused():
    with pytest.raises(ValueError, match="finite"):
        noise.noised(np.array([0.0, np.nan]), 1.0, 1.0)


@pytest.mark.parametrize("sigma", [0.6, 4.0, 37.5])
def test_discrete_gaussian_has_its_distribution(sigma):
    drawn = noise.discrete_gaussian(200_000, sigma)
    limit = int(np.ceil(4 * sigma))
    support = np.arange(-limit, limit + 1)
    weights = np.exp(-(np.arange(-40 * limit, 40 * limit + 1) ** 2) / (2 * sigma**2))
    expected = np.exp(-(support**2) / (2 * sigma**2)) / weights.sum() * len(drawn)
    observed = np.array([(drawn == k).sum() for k in support])
    used = expected > 20
    chi2 = ((observed - expected)[used] ** 2 / expected[used]).sum()
    assert stats.chi2.sf(chi2, used.sum() - 1) > 1e-6


class Scripted:
    """A generator whose uniforms are stated, and that tells how many were asked for."""

    def __init__(self, *uniforms):
        self.uniforms, self.asked = list(uniforms), []

    def random(self, size):
        self.asked.append(size)
        return np.full(size, self.uniforms.pop(0))


@given(
    chance=st.floats(2.0**-100, 1.0, exclude_max=True) | st.sampled_from([math.exp(-(11.0**2) / 2), math.exp(-60.5)])
)
def test_a_chance_is_met_far_below_what_one_uniform_can_tell(chance):
    """The chance that the code gives, from what it does with each of the uniforms around it, exactly."""
    whole = math.floor(Fraction(chance) * 2**53)
    rest = Fraction(chance) * 2**53 - whole

    def happens(*uniforms):
        source = Scripted(*uniforms)
        (result,) = noise._happens(np.array([chance]), source)
        return bool(result), sum(source.asked) - 1

    if whole > 0:
        assert happens((whole - 1) * 2.0**-53, 0.0) == (True, 0)
    assert happens((whole + 1) * 2.0**-53, 0.0) == (False, 0)
    # The one uniform that leaves it open comes with chance 2^-53, and the second decides as exactly again.
    if rest:
        below = math.ceil(rest * 2**53) - 1
        assert happens(whole * 2.0**-53, below * 2.0**-53) == (True, 1)
        if below + 1 < 2**53:
            assert happens(whole * 2.0**-53, (below + 1) * 2.0**-53) == (False, 1)
        assert abs(Fraction(whole, 2**53) + Fraction(below + 1, 2**106) - Fraction(chance)) <= Fraction(1, 2**106)
    else:
        assert happens(whole * 2.0**-53, 0.0) == (False, 0)


def test_no_chance_and_certainty_are_what_they_say():
    source = noise.SecureRandom().generator("chances")
    assert not noise._happens(np.zeros(1000), source).any()
    assert noise._happens(np.ones(1000), source).all()


def test_discrete_gaussian_refuses_a_scale_it_can_not_draw():
    for sigma in (0.0, -1.0, 2.0**41, np.nan):
        with pytest.raises(ValueError, match="sigma"):
            noise.discrete_gaussian(3, sigma)
