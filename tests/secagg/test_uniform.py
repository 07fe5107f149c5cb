"""A masked vector looks like random bytes, and unrelated to every other one of the same plaintext."""

from __future__ import annotations

import itertools

import numpy as np

from datasites.study.manifest import VectorTerm
from tests.secagg.cohort import Cohort, email

A = email(0)
LENGTH = 40_000
#: Chi-squared over 256 byte values has mean 255 and deviation sqrt(2 * 255) = 22.6. About 60 statistics are looked at
#: below; eight deviations are passed by chance with probability 1.3e-11 each.
LIMIT = 255 + 8 * 22.6


def chi_squared(vector: np.ndarray) -> float:
    counts = np.bincount(vector.view(np.uint8), minlength=256)
    expected = vector.nbytes / 256
    return float(((counts - expected) ** 2 / expected).sum())


def terms() -> tuple[VectorTerm, ...]:
    return tuple(VectorTerm(name=name, length=LENGTH, bound=1.0, scale=2.0**16) for name in ("control", "update"))


def vectors_of(cohort: Cohort, number: int) -> np.ndarray:
    """One hospital's masked vector of a plaintext that is all zero, and never rounded."""
    manifest = cohort.manifest(number, vectors=terms())
    cohort.states[A] = cohort.members[A].open(cohort.states[A], cohort.signed(manifest), today=_today())
    zeros = np.zeros(LENGTH)
    return cohort.mask(A, {"control": zeros, "update": zeros}).vector()


def _today():
    from tests.secagg.cohort import TODAY

    return TODAY


def test_uniform_alone_and_in_differences_over_rounds_studies_and_names():
    seen: dict[tuple[int, int, str], np.ndarray] = {}
    for study in (0, 1):
        cohort = Cohort.of(3, study=str(study) * 64).setup()
        for number in (1, 2):
            both = vectors_of(cohort, number)
            seen[study, number, "control"] = both[:LENGTH]
            seen[study, number, "update"] = both[LENGTH:]
    for vector in seen.values():
        assert chi_squared(vector) < LIMIT
    for one, other in itertools.combinations(seen.values(), 2):
        assert chi_squared(one - other) < LIMIT
        # Unrelated: about LENGTH / 2^32 coordinates agree by chance.
        assert np.count_nonzero(one == other) <= 2


def test_the_statistic_sees_what_it_should():
    """The same test fails for a keystream used twice, and for a vector that is not masked."""
    rng = np.random.default_rng(0)
    stream = rng.integers(0, 2**32, LENGTH, dtype=np.uint32)
    plain = rng.integers(-(2**16), 2**16, LENGTH, dtype=np.int32).view(np.uint32)
    assert chi_squared(stream) < LIMIT
    assert chi_squared(plain) > LIMIT
    assert chi_squared((stream + plain) - stream) > LIMIT


def test_without_the_self_mask_and_pairs_alike():
    """A coalition that knows all pairwise masks but not the self-mask still sees uniform bytes, and the reverse."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from datasites.secagg import masks

    cohort = Cohort.of(3).setup()
    secrets = cohort.states[A].of_round(1)
    vector = vectors_of(cohort, 1)
    manifest = bytes.fromhex(cohort.states[A].open.manifest_hash)
    epoch = cohort.aggregator._epoch(cohort.state)
    bound = {"manifest": manifest, "epoch": epoch.binding}
    key = X25519PrivateKey.from_private_bytes(secrets.key)
    pairs = [masks.pairwise(key, epoch.round_key(i, 1), me=0, peer=i, **bound) for i in (1, 2)]
    own = masks.self_mask(secrets.seed, me=0, **bound)
    for known in (pairs, [own], [own, pairs[0]], [own, pairs[1]]):
        left = vector.copy()
        masks.apply(left, [mask.opposite() for mask in known])
        assert chi_squared(left) < LIMIT
    bare = vector.copy()
    masks.apply(bare, [mask.opposite() for mask in (own, *pairs)])
    assert not bare.any()
