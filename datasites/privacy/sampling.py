"""Which patients take part: Poisson sampling for training, a keyed-hash split for evaluation. No torch.

Poisson sampling is what the accountant prices: each patient enters a step independently with the sampling rate, a
step may be empty, and no batch has a fixed size. A shuffled loader is priced differently and is not offered.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datasites.privacy.noise import SecureRandom


@dataclass(frozen=True)
class PatientIndex:
    """Rows grouped by patient: `owner` (rows,) is each row's patient, `records` (patients,) how many rows each has."""

    owner: npt.NDArray[np.int64]
    records: npt.NDArray[np.int64]

    @classmethod
    def of(cls, patients: npt.ArrayLike) -> PatientIndex:
        """From one identifier per row, shape (rows,). Raises `ValueError` on another shape or a missing identifier."""
        ids = np.asarray(patients)
        if ids.ndim != 1:
            raise ValueError(f"patients: shape {ids.shape}; give one identifier per row")
        missing = np.array([value is None or value != value for value in ids], dtype=bool)
        if missing.any():
            # NaN differs from itself: every such row would count as a new patient with a full clipping norm.
            raise ValueError("patients: an identifier is missing; drop those rows or give them identifiers")
        _, owner, records = np.unique(ids.astype(str), return_inverse=True, return_counts=True)
        return cls(owner.reshape(-1).astype(np.int64), records.astype(np.int64))

    @property
    def count(self) -> int:
        """Return the number of patients. Private."""
        return len(self.records)


def poisson_rows(index: PatientIndex, rate: float, randomness: SecureRandom | None = None) -> npt.NDArray[np.int64]:
    """Draw a Poisson sample of patients, each independently with probability `rate`; return all their rows.

    Row numbers of shape (k,), ascending; may be empty. randomness: fresh from the operating system when left out.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"sampling rate: {rate} is outside (0, 1]")
    chosen = (randomness or SecureRandom()).generator("sampling").random(index.count) < rate
    return np.flatnonzero(chosen[index.owner]) if index.count else np.empty(0, dtype=np.int64)


def held_out(patient_ids: Iterable[object], salt: bytes, fraction: float) -> npt.NDArray[np.bool_]:
    """Return which rows are of held-out patients: a fixed split by HMAC-SHA256(salt, patient), shape (rows,).

    Whether a patient is held out depends on that patient and the salt alone, never on who else is there: adding
    or removing a patient moves nobody else between training and evaluation. So the two sides are disjoint sets of
    patients and a patient's loss is the larger of the two, not their sum (parallel composition). Keep `salt`
    secret and fixed for a dataset and study. Raises `ValueError` for a fraction outside (0, 1) or a short salt.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"held-out fraction: {fraction} is outside (0, 1)")
    if len(salt) < 16:
        raise ValueError(f"salt: {len(salt)} bytes; use 16 or more from the operating system")
    limit = int(fraction * 2**64)
    # str(), as in PatientIndex, so that one patient is one patient on both sides whatever the column's type.
    digests = (hmac.new(salt, str(patient).encode(), hashlib.sha256).digest() for patient in patient_ids)
    return np.fromiter((int.from_bytes(digest[:8], "big") < limit for digest in digests), dtype=bool)
