"""What noised counts say of a model: ROC, AUC and calibration, and their errors.

`DPEvaluation.from_counts` uses only the sum of hospitals' counts and the public sd of its noise, so every figure is
post-processing. A figure that these counts can't give raises `EvaluationError`, and the others remain available.
Intervals cover both the DP noise and the sampling of patients; they treat cells as independent and figures as nearly
normal, which is rough below about 50 patients per class.

AUC from few bins: ties inside a bin would count as one half and lower the AUC of a good model (by 0.005 to 0.02 with 8
to 4 bins). The ROC curve is therefore drawn through the bin edges by a monotone cubic (Fritsch and Carlson 1980) and
not by straight lines; on heart disease models that leaves 0.002 or less. Few bins mean little noise: 4 to 6 work best.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from datasites.privacy.evaluation import EvaluationError, Floats

_Figure = Callable[[Floats], float]


Unit = Literal["share", "patients"]


#: The least and most that a figure of this unit can be.
BOUNDS: dict[Unit, tuple[float, float]] = {"share": (0.0, 1.0), "patients": (0.0, math.inf)}


@dataclass(frozen=True)
class Estimate:
    """A figure in `unit`, with its sd from DP noise and sampling of patients together, and from the noise alone."""

    value: float
    sd: float
    noise_sd: float
    unit: Unit = "share"

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Return the value +- z sd, clamped to the range of its unit; 95 % by default."""
        low, high = np.clip((self.value - z * self.sd, self.value + z * self.sd), *BOUNDS[self.unit])
        return float(low), float(high)


@dataclass(frozen=True)
class Calibration:
    """Per bin: mean of its edges as the predicted risk, observed share of label 1 with its sd, patients in it."""

    predicted: Floats
    observed: Floats
    sd: Floats
    patients: Floats


@dataclass(frozen=True)
class DPEvaluation:
    """What noised counts say about a model. counts: as received, shape (bins, 2); sigma: sd of the noise on each."""

    counts: Floats
    edges: Floats
    sigma: float

    @classmethod
    def from_counts(cls, counts: npt.ArrayLike, edges: npt.ArrayLike, total_sigma: float) -> DPEvaluation:
        """Make it from the sum of hospitals' counts; total_sigma is sqrt(sum of their sd squared), public.

        Raises `EvaluationError` when the shapes differ.
        """
        table, bounds = np.asarray(counts, dtype=np.float64), np.asarray(edges, dtype=np.float64)
        if table.ndim != 2 or table.shape != (len(bounds) - 1, 2) or not np.isfinite(table).all():
            raise EvaluationError(f"counts: shape {table.shape} does not fit {len(bounds)} edges, or not finite")
        return cls(table, bounds, float(total_sigma))

    @property
    def _cells(self) -> Floats:
        # A count below zero is noise; cutting it lowers the error of every figure (Barak et al. 2007).
        return np.maximum(self.counts, 0.0)

    @property
    def patients(self) -> Estimate:
        """Return the estimated number of held-out patients; its sd is noise only."""
        sd = self.sigma * math.sqrt(self.counts.size)
        return Estimate(max(0.0, float(self.counts.sum())), sd, sd, "patients")

    def roc(self) -> Floats:
        """Return points (false positive rate, true positive rate) at each edge from high to low, shape (bins + 1, 2).

        Raises `EvaluationError` where the noise leaves no patients of a class.
        """
        self._require(0, 1)
        rates = np.cumsum(self._cells[::-1], axis=0) / self._cells.sum(0)
        return np.vstack([[0.0, 0.0], rates])

    @property
    def auc(self) -> Estimate:
        """Return the area under the ROC curve: the chance that a patient with label 1 scores above one with label 0."""
        self._require(0, 1)
        return self._estimate(_auc)

    def accuracy(self, threshold: float = 0.5) -> Estimate:
        """Return the share of patients on the right side of `threshold`, which must be an edge."""
        cut = self._cut(threshold)
        if not self._cells.any():
            raise EvaluationError("not known: the noise leaves no patients at all; more budget or fewer bins may help")
        return self._estimate(lambda cells: (cells[:cut, 0].sum() + cells[cut:, 1].sum()) / cells.sum())

    def sensitivity(self, threshold: float = 0.5) -> Estimate:
        """Return the share of patients with label 1 at or above `threshold`, which must be an edge."""
        cut = self._cut(threshold)
        self._require(1)
        return self._estimate(lambda cells: cells[cut:, 1].sum() / cells[:, 1].sum())

    def specificity(self, threshold: float = 0.5) -> Estimate:
        """Return the share of patients with label 0 below `threshold`, which must be an edge."""
        cut = self._cut(threshold)
        self._require(0)
        return self._estimate(lambda cells: cells[:cut, 0].sum() / cells[:, 0].sum())

    def calibration(self) -> Calibration:
        """Return predicted against observed risk per bin; bins under twice their noise have no observed share (NaN)."""
        patients = self._cells.sum(1)
        seen = patients > 2 * self.sigma * math.sqrt(2)
        safe = np.where(seen, patients, 1.0)
        observed = np.where(seen, self._cells[:, 1] / safe, np.nan)
        variance = observed * (1 - observed) / safe + self.sigma**2 * (observed**2 + (1 - observed) ** 2) / safe**2
        return Calibration((self.edges[1:] + self.edges[:-1]) / 2, observed, np.sqrt(variance), patients)

    def _require(self, *labels: int) -> None:
        """Raise `EvaluationError` for the first of these labels of which the noise leaves no patients."""
        for label in labels:
            if not self._cells[:, label].any():
                raise EvaluationError(
                    f"not known: under the noise no patients with label {label} are left; "
                    "more budget or fewer bins may help, if there are any"
                )

    def _cut(self, threshold: float) -> int:
        inner = self.edges[1:-1]
        nearest = int(np.argmin(np.abs(inner - threshold)))
        if abs(inner[nearest] - threshold) > 1e-9:
            raise EvaluationError(
                f"threshold {threshold}: counts exist at {', '.join(f'{edge:g}' for edge in inner)} only"
            )
        return nearest + 1

    def _estimate(self, figure: _Figure) -> Estimate:
        """Value by `figure`, spread by the delta method: numeric gradient over cells, variance count + sigma^2."""
        cells = self._cells
        value = float(figure(cells))
        step = max(0.5, 1e-3 * float(cells.sum()))
        gradient = np.zeros_like(cells)
        for cell in np.ndindex(*cells.shape):
            moved = cells.copy()
            moved[cell] += step
            gradient[cell] = (figure(moved) - value) / step
        noise = float((gradient**2).sum()) * self.sigma**2
        sampling = float((gradient**2 * cells).sum())
        return Estimate(value, math.sqrt(noise + sampling), math.sqrt(noise))


def _auc(cells: Floats) -> float:
    """Return the area under the monotone cubic through the ROC points; both rates are functions of the path length."""
    from scipy.interpolate import PchipInterpolator  # for whoever reads a sum; the worker that counts doesn't

    rates = np.cumsum(cells[::-1], axis=0) / cells.sum(0)
    rates = np.vstack([[0.0, 0.0], rates])
    path = rates.sum(1)
    # Empty bins repeat a point, and an interpolant needs distinct ones.
    distinct = np.concatenate([[True], np.diff(path) > 1e-12])
    false_rate = PchipInterpolator(path[distinct], rates[distinct, 0])
    true_rate = PchipInterpolator(path[distinct], rates[distinct, 1])
    # Three Gauss points integrate a piecewise polynomial of degree 5 exactly.
    nodes, weights = np.polynomial.legendre.leggauss(3)
    low, high = path[distinct][:-1, None], path[distinct][1:, None]
    at = (high + low) / 2 + (high - low) / 2 * nodes
    return float((true_rate(at) * false_rate(at, 1) * weights * (high - low) / 2).sum())
