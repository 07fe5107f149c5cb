"""Fixed-point encoding of real vectors in the integers modulo 2**32, and the bound that keeps a sum exact.

A coordinate x becomes the integer round(x * scale), clamped to ±limit with limit = ceil(bound * scale); rounding is
stochastic, so that it is unbiased, with bits from AES under a secret key (I13): a round's own, so that work that is
repeated after a crash gives the same bytes, or one from the operating system. The sum of n encodings decodes exactly
while n * limit < 2**31. Clamping is deliberately silent: an error would depend on private values. Knows nothing of
masks or messages.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from datasites.secagg.errors import BadTerms, SecaggError
from datasites.study.manifest import HALF_RING, VectorTerm
from datasites.study.rounds import safe_scale

Ring = npt.NDArray[np.uint32]

#: Coordinates handled at once; keeps the work arrays in the processor's cache and memory flat.
BLOCK = 1 << 15
#: Longest concatenation of vectors in one sum (coordinates); 8 GB of payload.
LONGEST_SUM = 2_000_000_000


def limit(term: VectorTerm) -> int:
    """Return the largest absolute value of one encoded coordinate: ceil(bound * scale)."""
    return math.ceil(term.bound * term.scale)


def check_fits(terms: Sequence[VectorTerm], participants: int) -> None:
    """Raise `BadTerms` if a sum over `participants` could leave the ring's signed range, or is too long.

    `bound` includes the noise tail: coordinates are clamped to it after noise, so no input can exceed it.
    """
    for term in terms:
        reach = participants * limit(term)
        if reach >= HALF_RING:
            raise BadTerms(
                f"vector {term.name}: {participants} participants x bound {term.bound:g} x scale {term.scale:g} "
                f"reaches {reach:.3g}, not below 2^31; lower the scale to {safe_scale(term.bound, participants)}"
            )
    if dimension(terms) > LONGEST_SUM:
        raise BadTerms(f"{dimension(terms)} coordinates in one sum; the most is {LONGEST_SUM}; split the model")


def dimension(terms: Sequence[VectorTerm]) -> int:
    """Return coordinates of all vectors together."""
    return sum(term.length for term in terms)


def offsets(terms: Sequence[VectorTerm]) -> dict[str, slice]:
    """Return where each named vector lies in the concatenation, in the manifest's order."""
    places: dict[str, slice] = {}
    start = 0
    for term in terms:
        places[term.name] = slice(start, start + term.length)
        start += term.length
    return places


def encode_all(
    terms: Sequence[VectorTerm], vectors: Mapping[str, npt.NDArray[np.generic]], key: bytes | None = None
) -> Ring:
    """Encode all named vectors into one new array of uint32, shape (dimension(terms),).

    A float vector (any float type) is scaled and rounded, with coins from `key` (32 bytes, secret, of one use); an
    integer vector counts as already scaled (discrete noise added before encoding) and is only clamped. Raises
    `SecaggError` for a missing, extra, wrongly long or NaN vector.
    """
    names = {term.name for term in terms}
    if names != set(vectors):
        raise SecaggError(
            f"vectors: the manifest names {sorted(names)}, the caller gave {sorted(vectors)}; give exactly those"
        )
    ring = np.empty(dimension(terms), np.uint32)
    # One keystream for all vectors, in the manifest's order: no part of it is used twice.
    bits = Cipher(algorithms.AES256(key or os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    for term in terms:
        vector = vectors[term.name]
        if vector.shape != (term.length,):
            raise SecaggError(f"vector {term.name}: shape {vector.shape}, the manifest says ({term.length},)")
        _encode_into(ring[offsets(terms)[term.name]], vector, term, bits)
    return ring


def _encode_into(out: Ring, vector: npt.NDArray[np.generic], term: VectorTerm, bits: CipherContext) -> None:
    most = limit(term)
    signed = out.view(np.int32)
    if np.issubdtype(vector.dtype, np.integer) and vector.dtype != np.uint64:
        # Through int64, so that a value beyond 32 bits is clamped and doesn't wrap.
        for start in range(0, len(out), BLOCK):
            signed[start : start + BLOCK] = np.clip(vector[start : start + BLOCK].astype(np.int64), -most, most)
        return
    if not np.issubdtype(vector.dtype, np.floating):
        raise SecaggError(f"vector {term.name}: type {vector.dtype}; give floats, or integers that are already scaled")
    zeros = bytes(4 * BLOCK)
    coins = np.empty(BLOCK, np.uint32)
    scaled, whole = np.empty(BLOCK), np.empty(BLOCK)
    for start in range(0, len(out), BLOCK):
        size = min(BLOCK, len(out) - start)
        x, floor, coin = scaled[:size], whole[:size], coins[:size]
        np.multiply(vector[start : start + size], term.scale, out=x, casting="same_kind", dtype=np.float64)
        np.clip(x, -most, most, out=x)
        np.floor(x, out=floor)
        # x - floor(x) is exact in float64, so a whole number is never rounded up: |code| stays <= limit.
        np.subtract(x, floor, out=x)
        np.multiply(x, 2.0**32, out=x)
        bits.update_into(memoryview(zeros)[: 4 * size], coin.data.cast("B"))
        target = signed[start : start + size]
        # NaN passes clip and floor; the comparison below would hide it.
        if np.isnan(x).any():
            raise SecaggError(f"vector {term.name}: holds NaN; the training step that made it failed")
        target[:] = floor
        np.add(target, coin < x, out=target, casting="unsafe")
