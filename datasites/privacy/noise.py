"""Gaussian noise that nobody can predict: numbers from AES in counter mode, keyed by the operating system (I13).

Nothing here reads a seed, an environment variable or a framework's global generator, so `torch.manual_seed`,
`numpy.random.seed` and `random.seed` can neither repeat nor predict what is drawn. No torch is imported.

Two defences against reading a value out of the low bits of `value + noise` (Mironov 2012):

1. `gaussian` adds 2n = 4 independent draws and divides by 2 = sqrt(4), as Opacus does in its `secure_mode` (Holohan and
   Braghin 2021, arXiv:2107.10138, section 5.1; Jin et al. 2021, arXiv:2112.05307). With one draw, a double is one of at
   most 2**53 values for a given sigma and can be searched for; with four, the search costs about 2**(53 * 3).
2. `noised` rounds the value and the noise, each on its own, to multiples of one power of two and adds them as
   integers. The result is the rounding of a Gaussian mechanism on rounded values, hence post-processing of it, and the
   low bits of the value are gone before noise is added. The noise is scaled up by what rounding may add to the
   sensitivity.

Not covered: the time that a draw takes, rounding in the arithmetic before (clipping), and the tails beyond 8.6 sigma of
each draw, which doubles can't reach (probability below 1e-16 for each number). `discrete_gaussian` draws on the
integers, for sums of noise from several hospitals, where rounding each of them would be no post-processing of the sum.
"""

from __future__ import annotations

import math
import os

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from randomgen import AESCounter

#: Draws per sample in the floating-point defence: 2n with n = 2.
DRAWS = 4
#: `noised` rounds to the power of two next below this part of sigma.
GRID = 2.0**-24
#: Samples per block: what a block needs fits a processor's second-level cache.
_BLOCK = 1 << 13


def secure_generator() -> np.random.Generator:
    """A numpy `Generator` on AES-128 in counter mode, with a fresh 128-bit key from the operating system.

    Each call gives an independent stream. The key is in this process' memory only and is never stored.
    """
    return np.random.Generator(AESCounter(key=int.from_bytes(os.urandom(16), "little")))


def noised(
    values: npt.NDArray[np.float64], sensitivity: float, multiplier: float, generator: np.random.Generator | None = None
) -> npt.NDArray[np.float64]:
    """`values`, shape (d,), plus Gaussian noise of sd multiplier x sensitivity on each: the Gaussian mechanism.

    sensitivity: how far, in L2 norm, one patient can move `values`. Values and noise are rounded to one grid (see the
    top of this file); the sd is larger than stated by a factor of at most 1 + multiplier sqrt(d) 2**-24.
    Raises `ValueError` unless both figures are finite and above 0, and when a value is not a finite number.
    """
    for name, figure in (("sensitivity", sensitivity), ("noise multiplier", multiplier)):
        if not (math.isfinite(figure) and figure > 0):
            raise ValueError(f"{name}: {figure} is not a finite number above 0")
    if not np.isfinite(values).all():
        raise ValueError("values: not all are finite numbers; a sum of clipped gradients or counts always is")
    grid = 2.0 ** math.floor(math.log2(multiplier * sensitivity * GRID))
    sigma = multiplier * (sensitivity + math.sqrt(len(values)) * grid)
    steps = gaussian(len(values), sigma / grid, generator)
    np.rint(steps, out=steps)
    # Whole numbers below 2**53 add up without rounding, and a power of two scales them without.
    steps += np.rint(values / grid)
    steps *= grid
    return steps


def gaussian(size: int, sigma: float, generator: np.random.Generator | None = None) -> npt.NDArray[np.float64]:
    """`size` independent N(0, sigma**2) draws, each the sum of four normals halved (see the top of this file).

    Without `generator` (the normal case) normals come from AES-256-CTR under a fresh key. A given `generator` is for
    tests, which need repeatable draws. Raises `ValueError` unless sigma is finite and >= 0.
    """
    if not math.isfinite(sigma) or sigma < 0:
        raise ValueError(f"sigma: {sigma} is not a finite number >= 0")
    out = np.empty(size, dtype=np.float64)
    if generator is not None:
        generator.standard_normal(out=out)
        for _ in range(DRAWS - 1):
            out += generator.standard_normal(size)
    else:
        _fill(out)
    out *= sigma / math.sqrt(DRAWS)
    return out


def _fill(out: npt.NDArray[np.float64]) -> None:
    """Fill with sums of `DRAWS` standard normals from one fresh keystream.

    Box and Muller 1958: for a uniform u and a uniform angle a, sqrt(-2 ln u) cos a and sqrt(-2 ln u) sin a are two
    independent normals. u has 53 random bits and the angle 32, computed to single precision, which is fast and,
    four draws together on a grid of 2**-24 sigma, leaves no trace that `noised` would not round away.
    """
    if not len(out):
        return
    half = min(_BLOCK, len(out) + 1) // 2
    pairs = half * DRAWS
    stream = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
    zeros, raw = bytes(12 * pairs), bytearray(12 * pairs + 16)
    bits = np.frombuffer(raw, dtype=np.uint64, count=pairs)
    angle_bits = np.frombuffer(raw, dtype=np.int32, count=pairs, offset=8 * pairs)
    radius, normal = np.empty(pairs, dtype=np.float64), np.empty(pairs, dtype=np.float64)
    angle, wave = np.empty(pairs, dtype=np.float32), np.empty(pairs, dtype=np.float32)
    sums = np.empty(2 * half, dtype=np.float64)
    for start in range(0, len(out), 2 * half):
        stream.update_into(zeros, raw)
        np.right_shift(bits, np.uint64(11), out=bits)
        np.multiply(bits, 2.0**-53, out=radius)
        radius += 2.0**-54  # never 0, whose logarithm is infinite
        np.log(radius, out=radius)
        radius *= -2
        np.sqrt(radius, out=radius)
        np.multiply(angle_bits, np.float32(np.pi * 2.0**-31), out=angle, casting="unsafe", dtype=np.float32)
        for coordinate, into in ((np.cos, sums[:half]), (np.sin, sums[half:])):
            np.multiply(radius, coordinate(angle, out=wave), out=normal)
            np.add.reduce(normal.reshape(DRAWS, half), axis=0, out=into)
        out[start : start + 2 * half] = sums[: len(out) - start]


def discrete_gaussian(size: int, sigma: float, generator: np.random.Generator | None = None) -> npt.NDArray[np.int64]:
    """`size` independent draws from the discrete Gaussian on the integers: P(k) proportional to exp(-k^2 / 2 sigma^2).

    Rejection from the discrete Laplace distribution, algorithm 3 of Canonne, Kamath and Steinke 2020
    (arXiv:2004.00010). The Bernoulli and geometric draws are made in double precision, so probabilities are exact
    to a relative 2**-50 or so and not by rational arithmetic as in the paper. sigma is in integer units, 0 < sigma
    <= 2**40; raises `ValueError` otherwise.
    """
    if not 0 < sigma <= 2**40:
        raise ValueError(f"sigma: {sigma} is outside (0, 2**40]; the discrete Gaussian is drawn in integer units")
    source = generator if generator is not None else secure_generator()
    scale = float(np.floor(sigma) + 1)
    success = -np.expm1(-1.0 / scale)
    out = np.empty(size, dtype=np.int64)
    done = 0
    while done < size:
        tries = min(int((size - done) * 1.4) + 16, 1 << 20)
        # The difference of two geometric draws is discrete Laplace.
        proposal = source.geometric(success, tries) - source.geometric(success, tries)
        exponent = -((np.abs(proposal) - sigma * sigma / scale) ** 2) / (2 * sigma * sigma)
        kept = proposal[source.random(tries) < np.exp(exponent)][: size - done]
        out[done : done + len(kept)] = kept
        done += len(kept)
    return out
