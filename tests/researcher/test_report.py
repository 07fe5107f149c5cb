"""What a report says of figures that can't be computed, and that they take none of the others along."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pytest

from datasites.aggregator.run_files import RoundRecord, RunState
from datasites.researcher import plots, report
from datasites.researcher.study import Study

SHARES = ("auc", "accuracy", "sensitivity", "specificity")


def run_with(study: Study, *rounds: RoundRecord, closed: bool = True) -> Any:
    state = RunState(study=study.hash, next_round=len(rounds) + 1, rounds=rounds, closed=closed)
    return SimpleNamespace(study=study, state=state)


def final(study: Study, with_it: float, **changes: Any) -> RoundRecord:
    """The record of a final evaluation with this many patients with the outcome in each bin."""
    emails = study.terms.cohort.hospitals
    record = RoundRecord(
        round=1, epoch=0, train=False, evaluate="final", participants=emails, survivors=emails, counts_sigma=2.3,
        counts=((60.0, with_it),) * study.terms.evaluation.bins,
    )  # fmt: skip
    return record.model_copy(update=changes)


def test_a_study_in_which_nobody_had_the_outcome_has_its_report(study: Study) -> None:
    run = run_with(study, final(study, -1.2))
    told = json.loads(json.dumps(report.result(run), allow_nan=False))
    assert told["rounds"] == []
    for name in ("auc", "sensitivity"):
        assert told["final"][name]["value"] is None
        assert "no patients with label 1" in told["final"][name]["reason"]
        assert (told["final"][name]["unit"], told["final"][name]["bounds"]) == ("share", [0, 1])
    assert 0 < told["final"]["specificity"]["value"] < 1
    assert told["final"]["counts_noise_sd"] == 2.3
    table = report.figures_table(run).set_index("figure")
    assert "label 1" in table.loc["auc", "reason"]
    assert table.loc["accuracy", "reason"] == ""
    axes = plots.roc(report.final_evaluation(run))
    assert "label 1" in axes.texts[0].get_text()
    plt.close("all")


def test_a_number_of_patients_lies_between_numbers_of_patients(study: Study) -> None:
    run = run_with(study, final(study, 40.0))
    told = report.result(run)["final"]
    patients = told["patients"]
    assert patients["low"] < patients["value"] < patients["high"]
    assert (patients["value"], patients["unit"], patients["bounds"]) == (
        100.0 * study.terms.evaluation.bins, "patients", [0.0, None],
    )  # fmt: skip
    for name in SHARES:
        assert 0 <= told[name]["low"] <= told[name]["value"] <= told[name]["high"] <= 1
    assert not report.figures_table(run)["reason"].any()


@pytest.mark.parametrize("when", ["failed", "ended before", "not yet"])
def test_a_study_without_a_final_evaluation_has_its_report(study: Study, when: str) -> None:
    interim = final(study, 40.0, train=True, evaluate="interim")
    failed = final(study, 40.0, round=2, counts=None, survivors=(), outcome="failed", reason="too few")
    rounds = (interim, failed) if when == "failed" else (interim,)
    told = report.result(run_with(study, *rounds, closed=when != "not yet"))
    reason = {"failed": "failed: too few", "ended before": "was not held", "not yet": "complete the run"}[when]
    for name in (*SHARES, "patients"):
        assert told["final"][name]["value"] is None
        assert reason in told["final"][name]["reason"]
    assert told["final"]["counts"] == []
    assert told["rounds"][0]["metrics"]["auc"]["value"] > 0
