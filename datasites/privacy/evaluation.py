"""DP evaluation at a hospital: noised counts per (score bin, label), of which `curves` makes figures. No torch.

`noised_counts` bins the scores of held-out patients between public edges and adds Gaussian noise to every cell; a
patient weighs 1 in total, so the L2 sensitivity is 1. Price: `EvaluationPlan.event`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from datasites.privacy.noise import SecureRandom, discrete_gaussian, noised
from datasites.privacy.plan import EvaluationPlan
from datasites.privacy.sampling import PatientIndex
from datasites.study.errors import DatasitesError
from datasites.study.manifest import EvaluationKind
from datasites.study.rounds import LEAST_OWN_STEPS, RingTerms

Floats = npt.NDArray[np.float64]
#: Shares of one patient that are told apart.
_SHARES = 2.0**28


class EvaluationError(DatasitesError, ValueError):
    """Scores, labels or counts are not what the evaluation needs; the message names the remedy."""


def noised_counts(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    patients: npt.ArrayLike,
    plan: EvaluationPlan,
    kind: EvaluationKind,
    *,
    ring: RingTerms | None = None,
    randomness: SecureRandom | None = None,
) -> Floats | npt.NDArray[np.int64]:
    """Return counts per (score bin, label) with the plan's noise, shape (bins, 2); column 1 is label 1.

    scores: in [0, 1], shape (rows,); one that is not a number counts as 0, so that it can't stop or mark a release.
    labels: 0 or 1, shape (rows,); any other counts as 0 with the lowest score. patients: one identifier per row; a row
    weighs 1 / rows of its patient.
    ring: in distributed mode; the counts are then whole steps of its grid, int64, and hold its share of the noise.
    randomness: fresh from the operating system when left out.
    """
    score = np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=0.0, posinf=1.0, neginf=0.0)
    label = np.asarray(labels, dtype=np.float64)
    index = PatientIndex.of(patients)
    if score.ndim != 1 or label.shape != score.shape or index.owner.shape != score.shape:
        raise EvaluationError("scores, labels and patients: give one of each per row")
    # The data model lets no other labels in; if one came all the same, that must not stop or mark a release either.
    score, label = np.where(np.isin(label, (0.0, 1.0)), score, 0.0), label == 1.0
    # On a grid, so that sums of 2^24 rows are exact: what a patient adds is at most 1, and moves nobody else's share.
    weight = np.floor(_SHARES / index.records[index.owner]) / _SHARES
    inner = np.asarray(plan.edges[1:-1])
    cell = 2 * np.searchsorted(inner, score, side="right") + label.astype(np.int64)
    counts: Floats = np.bincount(cell, weights=weight, minlength=2 * plan.bins).astype(np.float64)
    if (plan.honest is not None) != (ring is not None):
        raise EvaluationError("ring: given in distributed mode (how counts lie in the secure sum) and only there")
    if ring is None:
        return noised(counts, 1.0, plan.multiplier(kind), randomness).reshape(plan.bins, 2)
    priced = plan.local_multiplier(kind) * (1 + math.sqrt(len(counts)) * ring.grid)
    if not (ring.deviation >= priced * (1 - 1e-12) and ring.deviation >= LEAST_OWN_STEPS * ring.grid):
        raise EvaluationError(
            f"ring: noise of sd {ring.deviation:g} on a grid of {ring.grid:g}, the plan prices {priced:g} for "
            f"{len(counts)} cells and at least {LEAST_OWN_STEPS:g} steps; take the study's own ring terms"
        )
    steps = np.rint(np.clip(counts, -ring.cut, ring.cut) / ring.grid).astype(np.int64)
    steps += discrete_gaussian(len(counts), ring.deviation / ring.grid, randomness)
    return steps.reshape(plan.bins, 2)
