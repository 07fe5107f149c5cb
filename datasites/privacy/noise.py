"""Gaussian noise that nobody can predict: numbers from AES in counter mode, under a secret 256-bit key (I13).

Nothing here reads a seed, an environment variable or a framework's global generator, so `torch.manual_seed`,
`numpy.random.seed` and `random.seed` can neither repeat nor predict what is drawn. No torch is imported. All draws of a
release come from one `SecureRandom`: with the key of a journaled round it gives the same bytes again for the same
inputs, and under any other key independent ones.

Two defences against reading a value out of the low bits of `value + noise` (Mironov 2012):

1. `gaussian` adds 2n = 4 independent draws and divides by 2 = sqrt(4), as Opacus does in its `secure_mode` (Holohan and
   Braghin 2021, arXiv:2107.10138, section 5.1; Jin et al. 2021, arXiv:2112.05307). With one draw, a double is one of at
   most 2**53 values for a given sigma and can be searched for; with four, the search costs about 2**(53 * 3).
2. `noised` rounds the value and the noise, each on its own, to multiples of one power of two and adds them as integers.
   The result is the rounding of a Gaussian mechanism on rounded values, hence post-processing of it, and the low bits
   of the value are gone before noise is added. The noise is scaled up by what rounding can add to the sensitivity.

Not covered: the time that a draw takes, rounding in earlier arithmetic (clipping), and the tails of each draw beyond
8.6 sigma, which doubles can't reach (probability below 1e-16 for each number). `discrete_gaussian` draws on the
integers, for sums of noise from several hospitals, where rounding each of them would not be post-processing of the sum;
its tails are correct as far as any bound of this project reaches.
"""

from __future__ import annotations

import itertools
import math
import os

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from randomgen import AESCounter

#: Draws per sample in the floating-point defence: 2n with n = 2.
DRAWS = 4
#: `noised` rounds to the power of two next below this part of sigma.
GRID = 2.0**-24
#: Samples per block: what a block needs fits a processor's second-level cache.
_BLOCK = 1 << 13


class SecureRandom:
    """Independent cryptographic streams under one secret key: a pure function of the key and of the order of calls.

    key: 32 bytes, secret and of one use; None draws it from the operating system. Each call of `generator` and
    `keystream` has a key of its own: HKDF-SHA256(key, kind, purpose, number of the call). So no keystream is used
    twice under one key, and streams under different keys are independent as long as HKDF-SHA256 and AES are
    pseudorandom. The key is in this object's memory only and is never stored.
    """

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) != 32:
            raise ValueError(f"key: {len(key)} bytes; a key of randomness has 32")
        self._key = os.urandom(32) if key is None else bytes(key)
        self._calls = itertools.count()

    def generator(self, purpose: str) -> np.random.Generator:
        """Return a numpy `Generator` on AES-128 in counter mode."""
        return np.random.Generator(AESCounter(key=int.from_bytes(self._derive("generator", purpose, 16), "little")))

    def keystream(self, purpose: str) -> CipherContext:
        """Make an AES-256-CTR encryptor; what it makes of zeros is its keystream."""
        material = self._derive("keystream", purpose, 48)
        return Cipher(algorithms.AES256(material[:32]), modes.CTR(material[32:])).encryptor()

    def _derive(self, kind: str, purpose: str, length: int) -> bytes:
        info = f"datasites randomness 1|{kind}|{next(self._calls)}|{purpose}".encode()
        return HKDF(hashes.SHA256(), length, salt=None, info=info).derive(self._key)


def noised(
    values: npt.NDArray[np.float64], sensitivity: float, multiplier: float, randomness: SecureRandom | None = None
) -> npt.NDArray[np.float64]:
    """Return `values`, shape (d,), plus Gaussian noise of sd multiplier x sensitivity on each: the Gaussian mechanism.

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
    steps = gaussian(len(values), sigma / grid, randomness)
    np.rint(steps, out=steps)
    # Whole numbers below 2**53 add up without rounding, and a power of two scales them without.
    steps += np.rint(values / grid)
    steps *= grid
    return steps


def gaussian(size: int, sigma: float, randomness: SecureRandom | None = None) -> npt.NDArray[np.float64]:
    """Return independent N(0, sigma**2) draws, shape (size,), each half the sum of four normals (see above).

    sigma: sd in units of the result. randomness: fresh from the operating system when left out. Raises `ValueError`
    unless sigma is finite and >= 0.
    """
    if not math.isfinite(sigma) or sigma < 0:
        raise ValueError(f"sigma: {sigma} is not a finite number >= 0")
    out = np.empty(size, dtype=np.float64)
    _fill(out, (randomness or SecureRandom()).keystream("gaussian"))
    out *= sigma / math.sqrt(DRAWS)
    return out


def _fill(out: npt.NDArray[np.float64], stream: CipherContext) -> None:
    """Fill with sums of `DRAWS` standard normals from one keystream of `SecureRandom`.

    Box and Muller 1958: for a uniform u and a uniform angle a, sqrt(-2 ln u) cos a and sqrt(-2 ln u) sin a are two
    independent normals. u has 53 random bits and the angle 32, computed to single precision, which is fast and,
    four draws together on a grid of 2**-24 sigma, leaves no trace that `noised` would not round away.
    """
    if not len(out):
        return
    half = min(_BLOCK, len(out) + 1) // 2
    pairs = half * DRAWS
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


def discrete_gaussian(size: int, sigma: float, randomness: SecureRandom | None = None) -> npt.NDArray[np.int64]:
    """Draw from the discrete Gaussian on the integers, shape (size,): P(k) proportional to exp(-k^2 / 2 sigma^2).

    Draws are independent. Rejection from the discrete Laplace distribution: algorithms 2 and 3 of Canonne, Kamath and
    Steinke 2020 (arXiv:2004.00010), with the chances exp(-x) as doubles and not by rational arithmetic. Whole numbers
    are drawn exactly and chances are met to 2**-106 (`_happens`), so that P(k) is right up to a factor within 1 +-
    2**-43 for |k| <= 13 sigma, and within 1 +- 2**-48 for |k| <= 4 sigma: what rounding of x and exp leaves. sigma is
    in integer units, 0 < sigma <= 2**40; raises `ValueError` otherwise.
    """
    if not 0 < sigma <= 2**40:
        raise ValueError(f"sigma: {sigma} is outside (0, 2**40]; the discrete Gaussian is drawn in integer units")
    source = (randomness or SecureRandom()).generator("discrete gaussian")
    scale = math.floor(sigma) + 1
    out = np.empty(size, dtype=np.int64)
    done = 0
    while done < size:
        tries = min(int((size - done) * 2.2) + 16, 1 << 20)
        # Geometric of parameter 1 - exp(-1 / scale), as remainder and quotient by the scale.
        magnitude = source.integers(0, scale, tries)
        magnitude = magnitude[_happens(np.exp(-magnitude / scale), source)]
        going = np.arange(len(magnitude))
        while len(going := going[_happens(np.full(len(going), math.exp(-1)), source)]):
            magnitude[going] += scale
        negative = source.integers(0, 2, len(magnitude), dtype=np.bool_)
        chance = np.exp(-((magnitude - sigma * sigma / scale) ** 2) / (2 * sigma * sigma))
        chance[negative & (magnitude == 0)] = 0.0  # else zero, which has two signs, would come twice as often
        kept = np.where(negative, -magnitude, magnitude)[_happens(chance, source)][: size - done]
        out[done : done + len(kept)] = kept
        done += len(kept)
    return out


def _happens(chance: npt.NDArray[np.float64], source: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Draw an event for each chance in [0, 1], right to 2**-106 and not only to the 2**-53 of one uniform double.

    A uniform of 53 bits stands for an interval; where the chance lies inside it, 53 more bits decide.
    """
    uniform = source.random(len(chance))
    happens = uniform < chance
    undecided = np.flatnonzero(happens & (chance < uniform + 2.0**-53))
    happens[undecided] = source.random(len(undecided)) < (chance[undecided] - uniform[undecided]) * 2.0**53
    return happens
