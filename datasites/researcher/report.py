"""What a finished run has to show: figures of the DP evaluation, privacy loss per hospital, who took part, audit heads.

Everything here is post-processing of what was released; nothing is computed from a single hospital's vector. A figure
has its value, unit and bounds, or the reason why it is not known; a figure that is not known hides no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.numpy import save_file

from datasites.aggregator.gather import RunError
from datasites.aggregator.run import Run
from datasites.aggregator.run_files import RoundRecord
from datasites.privacy.curves import BOUNDS, DPEvaluation, Estimate, Unit
from datasites.privacy.evaluation import EvaluationError
from datasites.privacy.plan import evaluation_edges
from datasites.study.roster import Roster

#: The figures of an evaluation, each with its unit and how it is read.
_FIGURES: dict[str, tuple[Unit, Callable[[DPEvaluation], Estimate]]] = {
    "auc": ("share", lambda evaluation: evaluation.auc),
    "accuracy": ("share", DPEvaluation.accuracy),
    "sensitivity": ("share", DPEvaluation.sensitivity),
    "specificity": ("share", DPEvaluation.specificity),
    "patients": ("patients", lambda evaluation: evaluation.patients),
}


def evaluation_of(run: Run, round_record: RoundRecord) -> DPEvaluation:
    """Return the DP evaluation of one round; raise `RunError` when that round held none."""
    if round_record.counts is None:
        raise RunError(f"round {round_record.round}: held no evaluation")
    bins = run.study.terms.evaluation.bins
    return DPEvaluation.from_counts(round_record.counts, evaluation_edges(bins), round_record.counts_sigma)


def final_evaluation(run: Run) -> DPEvaluation:
    """Return the evaluation of the final model; raise `RunError` before it was held, and where it failed."""
    return evaluation_of(run, _final_record(run))


def figures_table(run: Run) -> pd.DataFrame:
    """Return one row per figure of the final evaluation: value, 95 % interval and unit, or why it is not known."""
    figures = _figures(lambda: final_evaluation(run))
    columns = ["value", "low", "high", "noise_sd", "unit", "reason"]
    table = pd.DataFrame.from_dict(figures, orient="index").reindex(columns=columns)
    return table.fillna({"reason": ""}).rename_axis("figure").reset_index()


def rounds_table(run: Run) -> pd.DataFrame:
    """Return one row per round: who took part, who survived, who sat out and why, seconds."""
    return pd.DataFrame(
        {
            "round": round_record.round,
            "kind": "training" if round_record.train else "evaluation",
            "participants": len(round_record.participants),
            "survivors": len(round_record.survivors),
            "abstained": ", ".join(
                f"{email}: {' '.join(why) or 'failed'}" for email, why in round_record.abstained.items()
            ),
            "outcome": round_record.outcome,
            "update norm": round_record.update_norm,
            "seconds": sum(round_record.seconds.values()),
        }
        for round_record in run.state.rounds
    )


def privacy_table(run: Run, roster: Roster) -> pd.DataFrame:
    """Return one row per hospital: rounds, steps, and the larger epsilon of training and held-out patients, at delta.

    The cap is what patients are guaranteed; "charged" is of the rounds that ran, by PLD, and "alone" the same against
    one who sees the hospital's own vectors unmasked.
    """
    return pd.DataFrame(
        {
            "hospital": roster.get(email).organisation,
            "rounds": account.rounds,
            "steps": account.steps,
            "epsilon cap": account.cap,
            "epsilon charged": max(figures["pld"] for figures in account.charged.values()),
            "epsilon alone": max(figures["local"] for figures in account.charged.values()),
            "delta": account.delta,
        }
        for email, account in sorted(run.state.accounts.items())
    )


def result(run: Run) -> dict[str, Any]:
    """Return the whole report as plain data; the guide of this room (README.md) says what each field is."""
    heads = {email: head for round_record in run.state.rounds for email, head in round_record.heads.items()}
    heads |= {email: account.head for email, account in run.state.accounts.items()}
    finished = [round_record for round_record in run.state.rounds if round_record.train]
    return {
        "study": run.study.hash,
        "name": run.study.terms.name,
        "strategy": run.study.terms.strategy.name,
        "hospitals": list(run.study.terms.cohort.hospitals),
        "services": [service.model_dump() for service in run.study.terms.services],
        "rounds": [_round(run, round_record) for round_record in run.state.rounds if round_record.train],
        "training_rounds": len(finished),
        "final": _final(run),
        "privacy": {
            email: {
                "delta": account.delta,
                "rounds": account.rounds,
                "steps": account.steps,
                "noise_multiplier": account.noise_multiplier,
                "sampling_rate": account.sampling_rate,
                "epsilon_cap": account.cap,
                "epsilon_charged": max(figures["pld"] for figures in account.charged.values()),
                "epsilon_alone": max(figures["local"] for figures in account.charged.values()),
                "partitions": account.charged,
            }
            for email, account in run.state.accounts.items()
        },
        "unaccounted": sorted(set(run.study.terms.cohort.hospitals) - set(run.state.accounts)),
        "audit_forks": {
            email: [fork.model_dump(mode="json") for fork in forks] for email, forks in run.state.forks.items()
        },
        "audit_heads": {email: head.model_dump(mode="json") for email, head in heads.items()},
        "seconds": {
            "setup": round(run.state.setup_seconds, 3),
            **{
                phase: round(sum(round_record.seconds.get(phase, 0.0) for round_record in run.state.rounds), 3)
                for phase in ("broadcast", "wave_1", "wave_2", "model")
            },
        },
    }


def save_model(run: Run, path: Path) -> None:
    """Write the newest global model as safetensors, named as in `model.py`."""
    save_file(dict(run.model), path, metadata={"study": run.study.hash, "round": str(run.state.next_round - 1)})


def _round(run: Run, round_record: RoundRecord) -> dict[str, Any]:
    described: dict[str, Any] = {
        "round": round_record.round,
        "outcome": round_record.outcome,
        "participants": list(round_record.participants),
        "survivors": list(round_record.survivors),
        "abstained": {email: list(why) for email, why in round_record.abstained.items()},
        "refused": list(round_record.refused),
        "metrics": {"update_norm": round_record.update_norm},
        "bytes": round_record.sent,
        "seconds": round_record.seconds,
    }
    if round_record.counts is not None and round_record.outcome == "done":
        described["metrics"] |= _figures(lambda: evaluation_of(run, round_record), "auc", "accuracy")
    return described


def _final_record(run: Run) -> RoundRecord:
    held = [round_record for round_record in run.state.rounds if round_record.evaluate == "final"]
    for round_record in reversed(held):
        if round_record.outcome == "done":
            return round_record
    if held:
        raise RunError(f"the final evaluation failed: {held[-1].reason}")
    raise RunError("the final evaluation was not held" + ("" if run.state.closed else " yet; complete the run"))


def _final(run: Run) -> dict[str, Any]:
    described = _figures(lambda: final_evaluation(run))
    try:
        round_record = _final_record(run)
    except RunError:
        return described | {"survivors": [], "counts": [], "counts_noise_sd": None}
    return described | {
        "survivors": list(round_record.survivors),
        "counts": [list(row) for row in round_record.counts or ()],
        "counts_noise_sd": round_record.counts_sigma,
    }


def _figures(evaluate: Callable[[], DPEvaluation], *names: str) -> dict[str, dict[str, Any]]:
    """Return these figures of an evaluation, or all, each by itself: what it is, or why it is not known."""
    return {name: _figure(evaluate, *_FIGURES[name]) for name in names or _FIGURES}


def _figure(
    evaluate: Callable[[], DPEvaluation], unit: Unit, figure: Callable[[DPEvaluation], Estimate]
) -> dict[str, Any]:
    bounds = [bound if math.isfinite(bound) else None for bound in BOUNDS[unit]]
    try:
        estimate = figure(evaluate())
    except (EvaluationError, RunError) as error:
        return {"value": None, "reason": str(error), "unit": unit, "bounds": bounds}
    low, high = estimate.interval()
    return {
        "value": estimate.value,
        "sd": estimate.sd,
        "noise_sd": estimate.noise_sd,
        "low": low,
        "high": high,
        "unit": unit,
        "bounds": bounds,
    }
