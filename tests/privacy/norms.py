"""The norms that the trainer measures of rows' gradients, which it shows nobody."""

from collections.abc import Iterable

import torch
from torch import Tensor

from datasites.privacy.clipping import _norms, _shares
from datasites.privacy.records import RowRecords


def row_norms(records: Iterable[RowRecords]) -> Tensor:
    """Measured L2 norm of each row's whole gradient, float64 (n,)."""
    with torch.no_grad():
        return _norms([share for record in records for share in _shares(record)])
