"""Shamir sharing over GF(256), byte by byte, and the commitments by which a wrong share is told from a right one.

The field is that of AES (x^8 + x^4 + x^3 + x + 1). A secret of L bytes is the constant term of L polynomials of degree
t - 1 with coefficients from the operating system; the holder in place j (0-based) gets their values at x = j + 1.
Any t shares give the secret, t - 1 say nothing about it (Shamir 1979). Own code because `cryptography` has none; it is
table look-ups over numpy arrays, not constant-time against an attacker who shares the processor's cache. A test checks
it against a second implementation. No messages, no policy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from datasites.secagg.errors import TooFew

Octets = npt.NDArray[np.uint8]

#: Bytes of a round key, of a self-mask seed, and so of one share of either.
SECRET = 32


def _tables() -> tuple[Octets, npt.NDArray[np.int64], Octets]:
    power = np.zeros(510, np.uint8)
    logarithm = np.zeros(256, np.int64)
    value = 1
    for exponent in range(255):
        power[exponent] = power[exponent + 255] = value
        logarithm[value] = exponent
        value ^= value << 1  # times the generator 3
        if value & 0x100:
            value ^= 0x11B
    product = np.zeros((256, 256), np.uint8)
    product[1:, 1:] = power[logarithm[1:, None] + logarithm[None, 1:]]
    return power, logarithm, product


_POWER, _LOGARITHM, _PRODUCT = _tables()


def split(secret: bytes, threshold: int, places: Sequence[int]) -> dict[int, bytes]:
    """Make shares of `secret` for the holders in `places` (distinct, 0 .. 254); any `threshold` of them rebuild it.

    Raises `ValueError` when the threshold is below 2 or above the number of places.
    """
    if not 2 <= threshold <= len(places):
        raise ValueError(f"shares: threshold {threshold} must lie between 2 and the {len(places)} holders")
    if len(set(places)) != len(places) or not all(0 <= place < 255 for place in places):
        raise ValueError("shares: places must be distinct and lie in 0 .. 254")
    constant = np.frombuffer(secret, np.uint8)
    size = len(secret)
    coefficients = np.frombuffer(os.urandom((threshold - 1) * size), np.uint8).reshape(threshold - 1, size)
    shares: dict[int, bytes] = {}
    for place in places:
        times_x = _PRODUCT[place + 1]
        value = coefficients[-1]
        for coefficient in coefficients[-2::-1]:
            value = times_x[value] ^ coefficient
        shares[place] = (times_x[value] ^ constant).tobytes()
    return shares


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Combine shares by place into the secret; use the `threshold` lowest places. Raise `TooFew` below the threshold.

    Wrong shares give a wrong secret: the caller checks it against the owner's certificate.
    """
    if len(shares) < threshold:
        raise TooFew(f"shares: {len(shares)} of the {threshold} that rebuild a secret")
    places = sorted(shares)[:threshold]
    value = np.zeros(len(shares[places[0]]), np.uint8)
    for place, weight in zip(places, weights_at_zero(places), strict=True):
        value ^= _PRODUCT[weight][np.frombuffer(shares[place], np.uint8)]
    return value.tobytes()


def weights_at_zero(places: Sequence[int]) -> list[int]:
    """Return Lagrange weights of the points x = place + 1 for the value at zero: prod x_j / (x_j - x_i) over j != i."""
    points = np.asarray(places, np.int64) + 1
    # Subtraction in the field is exclusive or; division is subtraction of logarithms modulo 255.
    apart = points[:, None] ^ points[None, :]
    np.fill_diagonal(apart, 1)
    logs = _LOGARITHM[points].sum() - _LOGARITHM[points] - _LOGARITHM[apart].sum(axis=1)
    return [int(_POWER[log % 255]) for log in logs]


def commit(kind: bytes, epoch: bytes, round: int, owner: int, holder: int, share: bytes) -> bytes:
    """Return the SHA-256 commitment to one share (32 bytes).

    Binding by collision resistance. Hiding because a share is 32 uniform bytes, unguessable, seen through a hash; the
    label keeps a commitment from serving for another round, owner, holder or kind ("key" or "seed").
    """
    label = b"datasites/1 share" + kind.rjust(8, b"\0") + epoch + round.to_bytes(4, "big")
    return hashlib.sha256(label + bytes((owner, holder)) + share).digest()


def commit_seed(epoch: bytes, round: int, owner: str, seed: bytes) -> bytes:
    """Commit by SHA-256 to a whole self-mask seed (32 uniform bytes), published in the owner's certificate."""
    return hashlib.sha256(
        b"datasites/1 seed" + epoch + round.to_bytes(4, "big") + owner.encode() + b"\0" + seed
    ).digest()
