"""Rows as a worker is given them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from datasites.enclave import protocol
from datasites.study.schema import DataModel

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Partition:
    """Rows of one part of a dataset: x (rows, ...) float32 or int64, y (rows,) float32, patients (rows,) int64.

    Without `patients` each row is one patient. Identifiers are numbers that mean nothing outside this hospital.
    """

    x: npt.NDArray[np.float32] | npt.NDArray[np.int64] = field(repr=False)
    y: npt.NDArray[np.float32] = field(repr=False)
    patients: npt.NDArray[np.int64] | None = field(default=None, repr=False)

    @classmethod
    def of_mock(cls, model: DataModel, table: pd.DataFrame) -> Self:
        """Return mock rows, encoded by `DataModel.encode_mock`; raise `SchemaError`.

        table: shape (rows, columns), a column for each feature and the label, and maybe one `patient`.
        """
        x, y, patients = model.encode_mock(table)
        return cls(x=x, y=y, patients=patients)

    def arrays(self) -> protocol.Arrays:
        """Return arrays by name, with the shapes above; raises `ValueError` if their numbers of rows differ."""
        rows = len(self.y)
        if len(self.x) != rows or (self.patients is not None and len(self.patients) != rows):
            raise ValueError("partition: x, y and patients must have one entry per row")
        arrays: protocol.Arrays = {"x": self.x, "y": self.y}
        if self.patients is not None:
            arrays["patients"] = self.patients
        return arrays
