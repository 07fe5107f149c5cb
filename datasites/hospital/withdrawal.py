"""Withdrawal of a patient's consent: from the next round on, no study here trains or evaluates on that patient.

What it does not undo: models and sums that were released before, of which the patient was a part. Those are bounded
by the privacy loss that was charged, and no software can call them back. The patient's share of the budget stays spent.

Pseudonyms of withdrawn patients lie in one file of the private folder (mode 0600) and nowhere else; the audit log
counts them and does not name them (I12).
"""

from __future__ import annotations

import json
import os

import numpy as np
import numpy.typing as npt

from datasites.hospital.config import Home


def withdrawn(home: Home, dataset: str) -> frozenset[str]:
    """Pseudonyms of the patients who have withdrawn from a dataset."""
    path = home.withdrawals / f"{dataset}.json"
    if not path.exists():
        return frozenset()
    return frozenset(json.loads(path.read_text()))


def add(home: Home, dataset: str, patient: str) -> int:
    """Leave `patient` (as in the dataset's patient column) out from the next round on; returns how many have withdrawn.

    The pseudonym need not be in the table today: a withdrawal also holds for rows that come later. People do this
    through `review.withdraw`.
    """
    everybody = sorted(withdrawn(home, dataset) | {patient})
    home.withdrawals.mkdir(mode=0o700, exist_ok=True)
    path = home.withdrawals / f"{dataset}.json"
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(everybody, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return len(everybody)


def stays(home: Home, dataset: str, patients: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
    """For each row, whether its patient has not withdrawn; shape (rows,)."""
    return ~np.isin(patients, sorted(withdrawn(home, dataset)))
