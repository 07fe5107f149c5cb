"""Mask streams against a second implementation of AES-CTR, and against themselves in any split."""

from __future__ import annotations

import numpy as np
import pytest
from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from datasites.secagg import masks
from datasites.secagg.masks import Mask

MANIFEST, EPOCH = b"m" * 32, b"e" * 32


def pycryptodome_stream(key: bytes, size: int) -> np.ndarray:
    cipher = AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=0)
    return np.frombuffer(cipher.encrypt(bytes(4 * size)), "<u4")


@given(size=st.integers(1, 300_000), signs=st.lists(st.sampled_from([1, -1]), max_size=4), threads=st.integers(1, 3))
@settings(max_examples=25)
def test_streams_match_pycryptodome_and_any_split(size, signs, threads):
    chosen = [Mask(bytes([i]) * 32, sign) for i, sign in enumerate(signs)]
    vector = np.arange(size, dtype=np.uint32)
    expected = vector.copy()
    for mask in chosen:
        expected += np.uint32(mask.sign % 2**32) * pycryptodome_stream(mask.key, size)
    masks.apply(vector, chosen, threads=threads)
    assert np.array_equal(vector, expected)


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_threads_do_not_change_the_result(threads):
    size = 4 * masks.WORTH_A_THREAD + 12_345
    chosen = [Mask(b"k" * 32, 1), Mask(b"l" * 32, -1)]
    one, many = np.zeros(size, np.uint32), np.zeros(size, np.uint32)
    masks.apply(one, chosen, threads=1)
    masks.apply(many, chosen, threads=threads)
    assert np.array_equal(one, many)
    masks.apply(many, [mask.opposite() for mask in chosen])
    assert not many.any()


def test_the_two_sides_of_a_pair_cancel():
    one, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    near = masks.pairwise(one, other.public_key().public_bytes_raw(), manifest=MANIFEST, epoch=EPOCH, me=4, peer=9)
    far = masks.pairwise(other, one.public_key().public_bytes_raw(), manifest=MANIFEST, epoch=EPOCH, me=9, peer=4)
    assert (near.key, near.sign, far.sign) == (far.key, 1, -1)


def test_a_mask_key_depends_on_manifest_epoch_pair_and_kind():
    one, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    public = other.public_key().public_bytes_raw()
    terms = [(MANIFEST, EPOCH, 0, 1), (b"M" * 32, EPOCH, 0, 1), (MANIFEST, b"E" * 32, 0, 1), (MANIFEST, EPOCH, 0, 2)]
    keys = {masks.pairwise(one, public, manifest=m, epoch=e, me=a, peer=b).key for m, e, a, b in terms}
    secret = one.exchange(other.public_key())
    keys |= {masks.self_mask(secret, manifest=m, epoch=e, me=b).key for m, e, a, b in terms}
    assert len(keys) == 8


def test_key_derivation_is_hkdf_sha256_by_another_implementation():
    mask = masks.self_mask(b"s" * 32, manifest=MANIFEST, epoch=EPOCH, me=7)
    label = b"datasites/1 self mask" + EPOCH + b"\x07"
    assert mask.key == HKDF(b"s" * 32, 32, MANIFEST, SHA256, context=label)


def test_a_key_is_not_printed():
    assert "6b6b" not in repr(Mask(b"k" * 32, 1))
    assert "kkk" not in repr(Mask(b"k" * 32, 1))
