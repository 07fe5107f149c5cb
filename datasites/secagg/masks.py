"""Mask streams: AES-256-CTR keystreams added to, or taken from, a vector modulo 2**32.

A mask key is derived for one round, one manifest (its hash is the salt) and one pair or one hospital, and makes one
stream, so no keystream is ever used twice. The counter starts at zero because the key is never used again. All named
vectors of a round lie in one concatenation under one stream. Keys come in, nothing is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from datasites.secagg.ring import Ring

#: Coordinates per block: 128 KiB of vector and of stream stay in the second-level cache.
BLOCK = 1 << 15
#: Below this many coordinates per thread, starting threads costs more than it saves.
WORTH_A_THREAD = 1 << 17


@dataclass(frozen=True)
class Mask:
    """One mask stream: its AES-256 key (32 bytes) and whether it is added (+1) or taken away (-1)."""

    key: bytes = field(repr=False)
    sign: Literal[1, -1]

    def opposite(self) -> Mask:
        """Return the stream that undoes this one."""
        return Mask(self.key, -1 if self.sign == 1 else 1)


def pairwise(own: X25519PrivateKey, other: bytes, *, manifest: bytes, epoch: bytes, me: int, peer: int) -> Mask:
    """Return the mask that two hospitals share in a round: the one in the lower place adds it, the other subtracts it.

    `own` is this hospital's key of the round, `other` the peer's public key (32 bytes), `manifest` and `epoch` are
    SHA-256 digests (32 bytes) and `me`, `peer` places in the epoch. Raises `ValueError` for a low-order public key.
    """
    low, high = min(me, peer), max(me, peer)
    label = b"datasites/1 pairwise mask" + epoch + bytes((low, high))
    secret = own.exchange(X25519PublicKey.from_public_bytes(other))
    return Mask(_derive(secret, manifest, label), 1 if me < peer else -1)


def self_mask(seed: bytes, *, manifest: bytes, epoch: bytes, me: int) -> Mask:
    """Return the mask that hides a vector that arrives after its sender was counted as dropped out."""
    return Mask(_derive(seed, manifest, b"datasites/1 self mask" + epoch + bytes((me,))), 1)


def _derive(secret: bytes, salt: bytes, label: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, label).derive(secret)


def apply(vector: Ring, masks: Iterable[Mask], *, threads: int | None = None) -> None:
    """Add all mask streams to `vector` (uint32, one dimension) in place.

    Work goes block by block and through all masks within a block, so the vector passes through memory once.
    `threads` splits the vector (default: the processors this process may use, at most 4); the result is the same.
    """
    chosen = tuple(masks)
    if threads is None:
        threads = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    parts = max(1, min(threads, len(vector) // WORTH_A_THREAD))
    if parts == 1 or not chosen:
        _apply_from(vector, chosen, 0)
        return
    # Whole blocks for each thread, so that a part starts on a 16-byte counter step.
    edges = [len(vector) * part // parts // BLOCK * BLOCK for part in range(parts)] + [len(vector)]
    with ThreadPoolExecutor(parts) as pool:
        for done in [
            pool.submit(_apply_from, vector[low:high], chosen, low)
            for low, high in zip(edges[:-1], edges[1:], strict=True)
        ]:
            done.result()


def _apply_from(vector: Ring, masks: Sequence[Mask], start: int) -> None:
    # One counter step is 16 bytes, that is 4 coordinates; `start` is a multiple of BLOCK.
    counter = (start // 4).to_bytes(16, "big")
    streams = [(Cipher(algorithms.AES(mask.key), modes.CTR(counter)).encryptor(), mask.sign) for mask in masks]
    zeros = memoryview(bytes(4 * BLOCK))
    stream = np.empty(BLOCK, np.dtype("<u4"))
    raw = stream.data.cast("B")
    for low in range(0, len(vector), BLOCK):
        part = vector[low : low + BLOCK]
        size = len(part)
        for encryptor, sign in streams:
            encryptor.update_into(zeros[: 4 * size], raw[: 4 * size])
            if sign == 1:
                np.add(part, stream[:size], out=part)
            else:
                np.subtract(part, stream[:size], out=part)
