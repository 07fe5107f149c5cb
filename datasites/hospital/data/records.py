"""A study's encoded records and the digest that identifies them; they stay in the hospital's private folder."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

from datasites.study.canonical import Agreed, canonical_json
from datasites.study.errors import InputError
from datasites.study.schema import DataModel

if TYPE_CHECKING:
    import numpy as np

#: Numbers of a study's encoded records, at most: a gigabyte in the datasite's own process, before a person has looked.
MOST_CELLS = 2**28


class Prepared(Agreed):
    """A prepared dataset's description; the arrays lie beside it in the hospital's private folder.

    content_hash: of the records (`records_digest`), so an approval, which binds a commitment to it, binds the very
    numbers that are trained on. It confirms guesses at them, so it never leaves this folder.
    patient_unit: the privacy unit when they were encoded; nothing decides by it, and stored descriptions have it.
    """

    content_hash: str
    patient_unit: Literal["patient", "row"]
    rows: int
    patients: int

    @classmethod
    def of(cls, model: DataModel, arrays: dict[str, np.ndarray], unit: Literal["patient", "row"]) -> Prepared:
        """Describe encoded arrays x (rows, columns), y (rows,) and patient (rows,)."""
        import numpy as np

        return cls(
            content_hash=records_digest(model, arrays),
            patient_unit=unit,
            rows=len(arrays["x"]),
            patients=len(np.unique(arrays["patient"])),
        )


def records_digest(model: DataModel, arrays: dict[str, np.ndarray]) -> str:
    """Return SHA-256 over x (rows, columns), y, patient (rows,) and column names; for the private folder only."""
    import numpy as np

    digest = hashlib.sha256(canonical_json([list(arrays["x"].shape), list(model.columns)]))
    for name in ("x", "y"):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    digest.update("\0".join(arrays["patient"]).encode())
    return digest.hexdigest()


def require_room(columns: int, rows: int, what: str) -> None:
    """Raise `InputError` where so many rows of so many encoded columns are more than this datasite prepares."""
    if rows * columns > MOST_CELLS:
        raise InputError(
            f"features.toml: {columns} encoded columns for {rows} {what} are more than {MOST_CELLS} numbers, the most "
            "that this datasite prepares; leave out features, or levels that few patients have"
        )
