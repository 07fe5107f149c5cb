"""Figures for the notebook and the report, from released sums alone. Each returns the matplotlib axes it drew on."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from datasites.aggregator.run import Run
from datasites.privacy.curves import DPEvaluation
from datasites.privacy.evaluation import EvaluationError


def roc(evaluation: DPEvaluation, axes: Axes | None = None) -> Axes:
    """Draw ROC points between the bins, and the AUC with its 95 % interval, or why they are not known."""
    axes = axes or plt.subplots(figsize=(4, 4))[1]
    try:
        points, auc = evaluation.roc(), evaluation.auc
    except EvaluationError as error:
        axes.text(0.5, 0.5, str(error), ha="center", va="center", wrap=True)
    else:
        low, high = auc.interval()
        axes.plot(points[:, 0], points[:, 1], marker="o", label=f"AUC {auc.value:.3f} ({low:.3f} to {high:.3f})")
        axes.legend(loc="lower right")
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC, differentially private counts")
    return axes


def calibration(evaluation: DPEvaluation, axes: Axes | None = None) -> Axes:
    """Draw observed against predicted risk per score bin, with the standard error of noise and sampling."""
    axes = axes or plt.subplots(figsize=(4, 4))[1]
    points = evaluation.calibration()
    axes.errorbar(points.predicted, points.observed, yerr=points.sd, marker="o", linestyle="none", capsize=3)
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey")
    axes.set(xlabel="predicted risk", ylabel="observed share", title="Calibration", xlim=(0, 1), ylim=(0, 1))
    return axes


def participation(run: Run, axes: Axes | None = None) -> Axes:
    """Draw survivors and participants by round."""
    axes = axes or plt.subplots(figsize=(6, 3))[1]
    rounds = run.state.rounds
    numbers = [round_record.round for round_record in rounds]
    participants = [len(round_record.participants) for round_record in rounds]
    survivors = [len(round_record.survivors) for round_record in rounds]
    axes.step(numbers, participants, where="mid", label="participants")
    axes.bar(numbers, survivors, alpha=0.5, label="survivors")
    axes.set(xlabel="round", ylabel="hospitals", title="Hospitals in the sum")
    axes.legend(loc="lower left")
    return axes
