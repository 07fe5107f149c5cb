"""A table harmonised and encoded in one step."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from datasites.hospital.data.harmonise import encode, harmonise
from datasites.hospital.data.mapping import FeatureReadiness, Mapping
from datasites.hospital.data.records import Prepared
from datasites.study.schema import DataModel


def prepare(
    table: pd.DataFrame, mapping: Mapping, model: DataModel, names: Sequence[str] | None = None
) -> tuple[dict[str, np.ndarray], tuple[FeatureReadiness, ...], Prepared]:
    """`harmonise` a table and `encode` it; raises as these do.

    names: as for `harmonise`, and needed where no column says whose rows are: numbers would change when a row goes.
    """
    if mapping.patient is None and names is None:
        raise ValueError("names: without a patient column, rows need names that no other row changes")
    frame, reports = harmonise(table, mapping, model, names)
    arrays = encode(frame, reports, model)
    return arrays, reports, Prepared.of(model, arrays, "row" if mapping.patient is None else "patient")
